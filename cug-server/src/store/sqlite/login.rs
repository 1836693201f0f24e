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

pub(super) fn account(t: &Transaction<'_>, user: &UserId) -> Result<Option<Account>> {
    Ok(t.prepare_cached(
        "SELECT salt, hash, memory_kib, iterations, lanes, disabled, failures, last_failure FROM user WHERE name = ?1",
    )?
    .query_row([user.as_str()], |r| {
        let password = PasswordRecord {
            salt: r.get(0)?,
            hash: r.get(1)?,
            memory_kib: r.get(2)?,
            iterations: r.get(3)?,
            lanes: r.get(4)?,
        };
        Ok(Account { password, disabled: r.get(5)?, failures: r.get(6)?, last_failure: r.get(7)? })
    })
    .optional()?)
}

fn entry<'a>(login: &LoginFacts<'a>, event: &'a str) -> Entry<'a> {
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
    t.prepare_cached(
        "INSERT INTO session (id, user, card, state, wrapped_secret, wg_public_key, source, host_name, addresses, created, seen)
         VALUES (?1, ?2, ?3, 'pending', ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
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
