//! What the responder says: authoritative for one zone and the reverse names of its networks, nothing else, and never asks anybody.
//! From bytes to bytes, without I/O; the format is hickory-proto's business.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA},
    },
};
use ipnet::IpNet;

use super::zone::{Zone, reverse_domain};

/// Most bytes of a query. A name of 255 bytes with EDNS is far below.
pub const MAX_QUERY: usize = 1024;

/// Most bytes of an answer by UDP without EDNS (RFC 1035, 4.2.1).
const UDP_PLAIN: u16 = 512;

/// Most bytes of an answer by UDP with EDNS: fits into every IPv6 packet.
const UDP_EDNS: u16 = 1232;

/// Seconds that an address may be remembered. It is stable: only its owner may be away.
const TTL: u32 = 5;

/// Seconds that an absence may be remembered (RFC 2308): who joins is to be found within a moment.
const ABSENT_TTL: u32 = 1;

/// How the query came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// With a limit on the answer.
    Udp,
    /// Without.
    Tcp,
}

/// The answer to `query`; `None` when there is nothing to answer: not a query at all.
pub fn answer(query: &[u8], zone: &Zone, transport: Transport) -> Option<Vec<u8>> {
    let request = Message::from_vec(query).ok()?;
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut response = Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.queries.clone_from(&request.queries);
    let mut limit = UDP_PLAIN;
    if let Some(edns) = &request.edns {
        limit = edns.max_payload().clamp(UDP_PLAIN, UDP_EDNS);
        let mut own = Edns::new();
        own.set_max_payload(UDP_EDNS).set_version(0);
        response.set_edns(own);
    }
    response.metadata.response_code = match (request.queries.as_slice(), &request.edns) {
        (_, Some(edns)) if edns.version() != 0 => ResponseCode::BADVERS,
        _ if request.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
        ([query], _) => respond(query, zone, &mut response).unwrap_or(ResponseCode::ServFail),
        _ => ResponseCode::FormErr,
    };
    let bytes = response.to_vec().ok()?;
    if transport == Transport::Udp && bytes.len() > usize::from(limit) {
        return response.truncate().to_vec().ok();
    }
    Some(bytes)
}

/// `None` when a name cannot be made, which names of a zone always can.
fn respond(query: &Query, zone: &Zone, response: &mut Message) -> Option<ResponseCode> {
    if query.query_class() != DNSClass::IN {
        return Some(ResponseCode::Refused);
    }
    let apex = name(&zone.domain)?;
    let asked = query.name();
    if apex.zone_of(asked) {
        return forward(query, zone, &apex, response);
    }
    match asked.parse_arpa_name() {
        Ok(net) => backward(query, zone, net, response),
        Err(_) => Some(ResponseCode::Refused),
    }
}

fn forward(query: &Query, zone: &Zone, apex: &Name, response: &mut Message) -> Option<ResponseCode> {
    response.metadata.authoritative = true;
    let asked = query.name();
    if asked == apex && matches!(query.query_type(), RecordType::SOA | RecordType::ANY) {
        response.add_answer(soa(apex)?);
        return Some(ResponseCode::NoError);
    }
    let text = asked.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    if let Some((four, six)) = zone.hosts.get(&text) {
        let wanted = |kind| query.query_type() == kind || query.query_type() == RecordType::ANY;
        if wanted(RecordType::A) {
            response.add_answer(Record::from_rdata(asked.clone(), TTL, RData::A(A(*four))));
        }
        if wanted(RecordType::AAAA) {
            response.add_answer(Record::from_rdata(asked.clone(), TTL, RData::AAAA(AAAA(*six))));
        }
        if response.answers.is_empty() {
            response.add_authority(soa(apex)?);
        }
        return Some(ResponseCode::NoError);
    }
    response.add_authority(soa(apex)?);
    // RFC 8020: a name below which there are names exists.
    let below = format!(".{text}");
    let exists = asked == apex || zone.hosts.keys().any(|host| host.ends_with(&below));
    Some(if exists { ResponseCode::NoError } else { ResponseCode::NXDomain })
}

fn backward(query: &Query, zone: &Zone, net: IpNet, response: &mut Message) -> Option<ResponseCode> {
    let address = net.addr();
    if !zone.covers(address) {
        return Some(ResponseCode::Refused);
    }
    let labels = match address {
        IpAddr::V4(_) => zone.prefix4.prefix_len().next_multiple_of(8).max(8),
        IpAddr::V6(_) => zone.prefix6.prefix_len().next_multiple_of(4).max(4),
    };
    if net.prefix_len() < labels {
        // Above what was given to this zone.
        return Some(ResponseCode::Refused);
    }
    response.metadata.authoritative = true;
    let apex = name(&reverse_domain(IpNet::new(address, labels).ok()?))?;
    let whole = net.prefix_len() == net.max_prefix_len();
    let found = zone.name_of(address).filter(|_| whole);
    if let Some(found) = found
        && matches!(query.query_type(), RecordType::PTR | RecordType::ANY)
    {
        response.add_answer(Record::from_rdata(query.name().clone(), TTL, RData::PTR(PTR(name(found)?))));
        return Some(ResponseCode::NoError);
    }
    response.add_authority(soa(&apex)?);
    Some(if found.is_some() || !whole { ResponseCode::NoError } else { ResponseCode::NXDomain })
}

fn name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// There is no other server and no transfer of zones: only the last number, the time for which an absence is remembered, is ever used.
fn soa(apex: &Name) -> Option<Record> {
    let contact = name("invalid").and_then(|invalid| invalid.prepend_label("nobody").ok())?;
    let data = SOA::new(apex.clone(), contact, 1, 3600, 600, 86_400, ABSENT_TTL);
    Some(Record::from_rdata(apex.clone(), ABSENT_TTL, RData::SOA(data)))
}

#[cfg(test)]
mod tests {
    use super::{super::zone::tests::zone, *};
    use proptest::prelude::*;

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = answer(&message.to_vec().unwrap(), zone, Transport::Udp).expect("an answer");
        let answer = Message::from_vec(&answer).unwrap();
        assert!(!answer.metadata.recursion_available && answer.metadata.id == 7);
        assert_eq!(answer.queries, message.queries);
        answer
    }

    fn outcome(zone: &Zone, name: &str, kind: RecordType) -> (ResponseCode, String, bool) {
        let answer = ask(zone, name, kind);
        let data = answer.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(" ");
        // An absence is remembered for the lesser of the record's time and its minimum.
        let denied = answer.authorities.iter().any(|record| record.ttl <= ABSENT_TTL);
        (answer.metadata.response_code, data, denied)
    }

    #[test]
    fn members_have_addresses_and_names() {
        let zone = zone(&["USER-A", "USER-B", "first.last"]);
        let yes = |data: &str| (ResponseCode::NoError, data.to_owned(), false);
        let empty = (ResponseCode::NoError, String::new(), true);
        let absent = (ResponseCode::NXDomain, String::new(), true);
        assert_eq!(outcome(&zone, "user-b.vpn1.cug.", RecordType::A), yes("100.96.16.2"));
        assert_eq!(outcome(&zone, "USER-B.VPN1.CUG.", RecordType::AAAA), yes("fd00::2"));
        assert_eq!(outcome(&zone, "user-b.vpn1.cug.", RecordType::MX), empty);
        assert_eq!(outcome(&zone, "user-d.vpn1.cug.", RecordType::A), absent);
        assert_eq!(outcome(&zone, "last.vpn1.cug.", RecordType::A), empty, "first.last is below it");
        assert_eq!(outcome(&zone, "2.16.96.100.in-addr.arpa.", RecordType::PTR), yes("user-b.vpn1.cug."));
        assert_eq!(outcome(&zone, "9.16.96.100.in-addr.arpa.", RecordType::PTR), absent);
        let six = format!("2.{}fd.ip6.arpa.", "0.".repeat(29)).replace("fd.", "d.f.");
        assert_eq!(outcome(&zone, &six, RecordType::PTR), yes("user-b.vpn1.cug."));
    }

    #[test]
    fn nothing_else_is_answered() {
        let zone = zone(&["USER-B"]);
        for other in
            ["example.org.", "cug.", "user-b.vpn2.cug.", "2.32.96.100.in-addr.arpa.", "arpa.", "100.in-addr.arpa."]
        {
            let (code, data, _) = outcome(&zone, other, RecordType::PTR);
            assert_eq!((code, data.as_str()), (ResponseCode::Refused, ""), "{other}");
        }
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        assert!(answer(&message.to_vec().unwrap(), &zone, Transport::Udp).is_none(), "an answer is not answered");
        message = Message::new(7, MessageType::Query, OpCode::Update);
        message.add_query(Query::query(Name::from_ascii("vpn1.cug.").unwrap(), RecordType::SOA));
        let refused = answer(&message.to_vec().unwrap(), &zone, Transport::Tcp).unwrap();
        assert_eq!(Message::from_vec(&refused).unwrap().metadata.response_code, ResponseCode::NotImp);
        message = Message::new(7, MessageType::Query, OpCode::Query);
        let refused = answer(&message.to_vec().unwrap(), &zone, Transport::Udp).unwrap();
        assert_eq!(Message::from_vec(&refused).unwrap().metadata.response_code, ResponseCode::FormErr);
    }

    proptest! {
        /// Noise, and queries with noise in them: no panic, and an answer never grows beyond what UDP may carry.
        #[test]
        fn nothing_from_the_network_can_harm(noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..40, flip in any::<u8>()) {
            let zone = zone(&["USER-A", "USER-B"]);
            let _whatever = answer(&noise, &zone, Transport::Tcp);
            let mut message = Message::new(7, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(Name::from_ascii("user-b.vpn1.cug.").unwrap(), RecordType::ANY));
            let mut bytes = message.to_vec().unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.extend_from_slice(&noise);
            if let Some(answer) = answer(&bytes, &zone, Transport::Udp) {
                prop_assert!(answer.len() <= usize::from(UDP_EDNS));
            }
        }
    }
}
