//! Time zones of the system: found by name, and how it is with a user who has hours to keep to.

use crate::{clock::UnixTime, config::Config, policy::hours::Standing};
use cug_proto::{hours::Rule, id::ZoneName};
use jiff::tz::TimeZone;
use std::path::Path;

/// A time zone, and its name as the system writes it.
pub struct Zone {
    /// As it is stored.
    pub name: ZoneName,
    /// Its clocks.
    pub clocks: TimeZone,
}

/// Why a time zone cannot be used: a sentence without its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// There is none of that name.
    #[error(
        "the time zone {0} is not known to this system: look at its spelling, and whether the package tzdata is installed"
    )]
    NotKnown(ZoneName),
    /// The system does not say.
    #[error(
        "the name of this system's own time zone is not known: write one, as in \"... in Europe/Berlin\", or set time-zone in server.toml"
    )]
    NoName,
}

/// The zone of that name.
///
/// # Errors
/// [`ZoneError::NotKnown`]
pub fn named(name: &ZoneName) -> Result<Zone, ZoneError> {
    let not_known = || ZoneError::NotKnown(name.clone());
    let clocks = TimeZone::get(name.as_str()).ok().filter(|clocks| !clocks.is_unknown()).ok_or_else(not_known)?;
    let name = clocks.iana_name().and_then(|name| name.parse().ok()).ok_or_else(not_known)?;
    Ok(Zone { name, clocks })
}

/// The zone that counts for hours that name none: the configuration's, or else the system's.
///
/// # Errors
/// [`ZoneError`]
pub fn own(config: &Config) -> Result<Zone, ZoneError> {
    match &config.time_zone {
        Some(name) => named(name),
        None => named(&system()?),
    }
}

/// A system that says nothing about its zone has UTC, as for all its programs.
fn system() -> Result<ZoneName, ZoneError> {
    let says_nothing = || std::env::var_os("TZ").is_none() && Path::new("/etc/localtime").symlink_metadata().is_err();
    let name = match TimeZone::try_system() {
        Ok(clocks) if !clocks.is_unknown() => clocks.iana_name().map(str::to_owned),
        _ if says_nothing() => Some("UTC".to_owned()),
        _ => None,
    };
    name.and_then(|name| name.parse().ok()).ok_or(ZoneError::NoName)
}

/// A rule as it is stored: with a zone that this system knows, so that it keeps its meaning whatever the configuration says later.
///
/// # Errors
/// [`ZoneError`]
pub fn complete(rule: &Rule, config: &Config) -> Result<Rule, ZoneError> {
    let zone = rule.zone.as_ref().map_or_else(|| own(config), named)?;
    Ok(Rule { hours: rule.hours, zone: Some(zone.name) })
}

/// How it is at `now` with a user who has this rule. Reads the zone from the system, if it was not read lately.
pub fn standing(rule: &Rule, config: &Config, now: UnixTime) -> Standing {
    let zone = rule.zone.as_ref().and_then(|name| match named(name) {
        Ok(zone) => Some(zone.clocks),
        Err(error) => {
            tracing::error!(%error, "permitted hours cannot be judged");
            None
        }
    });
    let Some(zone) = zone else { return Standing::Unknown };
    Standing::at(&rule.hours, &zone, own(config).ok().map(|own| own.clocks).as_ref(), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("server.toml")).unwrap()
    }

    #[test]
    fn a_rule_is_stored_with_its_zone() {
        let complete =
            |rule: &str, text: &str| complete(&rule.parse().unwrap(), &config(text)).map(|rule| rule.to_string());
        let berlin = "time-zone = 'Europe/Berlin'";
        assert_eq!(complete("Mon 07:00-19:00", berlin).unwrap(), "Mon 07:00-19:00 in Europe/Berlin");
        assert_eq!(complete("Mon 07:00-19:00 in asia/tokyo", berlin).unwrap(), "Mon 07:00-19:00 in Asia/Tokyo");
        for unknown in ["Europe/Nowhere", "Etc/Unknown", "Europe", "posixrules/x"] {
            let error = complete(&format!("Mon 07:00-19:00 in {unknown}"), berlin).unwrap_err().to_string();
            assert!(error.contains(unknown) && error.contains("tzdata"), "{error}");
        }
    }

    #[test]
    fn a_zone_that_is_gone_lets_nobody_in_who_has_hours() {
        let config = config("time-zone = 'UTC'");
        for rule in ["00:00-24:00 in Europe/Nowhere", "00:00-24:00"] {
            assert_eq!(standing(&rule.parse().unwrap(), &config, 1_800_000_000), Standing::Unknown, "{rule}");
        }
        let always = "00:00-24:00 in Europe/Berlin".parse().unwrap();
        assert_eq!(standing(&always, &config, 1_800_000_000), Standing::Open(None));
    }
}
