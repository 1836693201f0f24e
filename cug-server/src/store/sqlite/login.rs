//! What a login reads and writes.

use super::{audit::Entry, row, *};

/// One look-up of the card and one of each key size, found or not (P4).
pub(super) fn card(t: &Transaction<'_>, card: &Fingerprint) -> Result<(Option<Card>, [bool; 3])> {
    let found = t
        .prepare_cached(
            "SELECT user.name, card.public_key, card.revoked IS NOT NULL FROM card JOIN user ON user.id = card.user WHERE fingerprint = ?1",
        )?
        .query_row([card.as_slice()], |r| Ok(Card { user: row::parse(r, 0)?, public_key: r.get(1)?, revoked: r.get(2)? }))
        .optional()?;
    let sizes = t
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM card WHERE bits = 2048), EXISTS (SELECT 1 FROM card WHERE bits = 3072), EXISTS (SELECT 1 FROM card WHERE bits = 4096)",
        )?
        .query_row([], |r| Ok([r.get(0)?, r.get(1)?, r.get(2)?]))?;
    Ok((found, sizes))
}

pub(super) fn entry<'a>(login: &LoginFacts<'a>, event: &'a str) -> Entry<'a> {
    let by = By { actor: login.user.as_str(), now: login.now };
    Entry::new(by, event).user(login.user.as_str()).card(login.card).source(login.source)
}

pub(super) fn refused(t: &Transaction<'_>, refusal: &LoginRefused<'_>) -> Result<()> {
    if refusal.wrong_password {
        t.prepare_cached("UPDATE user SET failures = failures + 1, last_failure = ?2 WHERE name = ?1")?
            .execute(params![refusal.login.user.as_str(), refusal.login.now])?;
    }
    entry(&refusal.login, "login").outcome("refused").reason(refusal.reason).write(t)
}

pub(super) fn verified(t: &Transaction<'_>, facts: &LoginFacts<'_>) -> Result<()> {
    forget_failures(t, facts.user)?;
    entry(facts, "verify").outcome("granted").write(t)
}

pub(super) fn create_session(t: &Transaction<'_>, new: &NewSession<'_>) -> Result<()> {
    let user = user_row(t, new.login.user)?;
    forget_failures(t, new.login.user)?;
    if let Some(password) = new.new_password {
        account::change_password(t, &new.login, password)?;
    }
    t.prepare_cached(
        "INSERT INTO session (id, user, card, state, wrapped_secret, wg_public_key, source, host_name, addresses, created, seen, look)
         VALUES (?1, ?2, ?3, 'pending', ?4, ?5, ?6, ?7, ?8, ?9, ?9,
            (SELECT 0 FROM user WHERE id = ?2 AND (expires IS NOT NULL OR hours IS NOT NULL)))",
    )?
    .execute(params![
        new.id,
        user,
        new.login.card,
        new.wrapped_secret,
        new.wg_public_key,
        new.login.source.to_string(),
        new.host_name.as_str(),
        row::addresses_to_text(new.addresses),
        new.login.now
    ])?;
    for (group, epoch) in new.groups {
        t.prepare_cached("INSERT INTO session_group (session, closed_group, epoch) VALUES (?1, ?2, ?3)")?
            .execute(params![new.id, group, epoch])?;
    }
    entry(&new.login, "login").outcome("granted").reason(new.host_name.as_str()).write(t)
}

fn forget_failures(t: &Transaction<'_>, user: &UserId) -> Result<()> {
    t.prepare_cached("UPDATE user SET failures = 0 WHERE name = ?1 AND failures <> 0")?.execute([user.as_str()])?;
    Ok(())
}
