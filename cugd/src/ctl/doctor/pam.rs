//! PAM stacks as pam.conf(5) describes the files of `/etc/pam.d`: where pam_cug stands in them.

/// Longest chain of includes.
const DEPTH: usize = 8;

/// One program that logs people in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// As its file is called.
    pub name: String,
    /// pam_cug is asked for card and password.
    pub auth: bool,
    /// pam_cug is asked about the account.
    pub account: bool,
    /// pam_cug hears of sessions.
    pub session: bool,
    /// pam_systemd stands after pam_cug among the session's lines.
    pub before_systemd: bool,
}

/// The lines of a service, includes resolved: its kind (`auth`, ...) and module, in order. `read` gives a file's text by its name.
fn lines(name: &str, kind: Option<&str>, depth: usize, read: &dyn Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    if depth == 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for line in read(name).unwrap_or_default().replace("\\\n", " ").lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if first == "@include" {
            found.extend(lines(rest.trim(), kind, depth - 1, read));
            continue;
        }
        let own = first.trim_start_matches('-').to_ascii_lowercase();
        if own.is_empty() || kind.is_some_and(|kind| kind != own) {
            continue;
        }
        let rest = rest.trim_start();
        let (control, after) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((_, after)) => ("[]", after),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        let target = after.split_whitespace().next().unwrap_or_default();
        match control {
            "include" | "substack" => found.extend(lines(target, Some(&own), depth - 1, read)),
            _ => found.push((own, target.rsplit('/').next().unwrap_or_default().to_owned())),
        }
    }
    found
}

/// What a service's stack says about pam_cug.
pub(super) fn service(name: &str, read: &dyn Fn(&str) -> Option<String>) -> Service {
    let lines = lines(name, None, DEPTH, read);
    let has = |kind: &str| lines.iter().any(|(own, module)| own == kind && module == "pam_cug.so");
    let session: Vec<_> = lines.iter().filter(|(kind, _)| kind == "session").map(|(_, module)| module).collect();
    let at = |module: &str| session.iter().position(|name| *name == module);
    Service {
        name: name.to_owned(),
        auth: has("auth"),
        account: has("account"),
        session: has("session"),
        before_systemd: matches!((at("pam_cug.so"), at("pam_systemd.so")), (Some(cug), Some(systemd)) if cug < systemd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str) -> Option<String> {
        Some(
            match name {
                "login" => {
                    "auth optional pam_faildelay.so\n@include common-auth\n@include common-account\n@include common-session\n"
                }
                "common-auth" => {
                    "auth\t[success=2 authinfo_unavail=ignore default=die]\tpam_cug.so\nauth [success=1 default=ignore] pam_unix.so\n"
                }
                "common-account" => "account required /lib/security/pam_cug.so # the card\n",
                "common-session" => "session required pam_unix.so\n-session optional pam_systemd.so\nsession \\\n optional pam_cug.so\n",
                "sshd" => "auth substack password-auth\nsession include password-auth\n",
                "password-auth" => {
                    "auth sufficient pam_unix.so\naccount required pam_cug.so\nsession optional pam_cug.so\nsession optional pam_systemd.so\n"
                }
                "loop" => "@include loop\nauth required pam_cug.so\n",
                "comment" => "#auth required pam_cug.so\nauth required pam_cug.so.old\n",
                _ => return None,
            }
            .to_owned(),
        )
    }

    #[test]
    fn debian_style() {
        let found = service("login", &files);
        assert!(found.auth && found.account && found.session && !found.before_systemd, "{found:?}");
    }

    #[test]
    fn includes_of_one_kind_bring_that_kind_only() {
        let found = service("sshd", &files);
        assert!(!found.auth && !found.account && found.session && found.before_systemd, "{found:?}");
    }

    #[test]
    fn loops_end_and_comments_do_not_count() {
        assert!(service("loop", &files).auth);
        assert!(!service("comment", &files).auth && !service("missing", &files).auth);
    }
}
