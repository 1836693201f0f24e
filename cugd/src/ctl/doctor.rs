//! `cugctl doctor`: is this workstation ready for logins, and if not, what is to be done?
//!
//! [`gather`] looks and changes nothing, [`facts`] is what it saw, [`judge`] says what that means. What could not be looked at is said, and is neither
//! well nor wrong.

mod facts;
mod gather;
mod judge;
mod pam;
mod reach;

use std::{fmt::Write as _, path::Path, process::ExitCode};

use serde_json::json;

use super::{CtlError, NOT_WELL, print, text::plain};
use judge::{Finding, Verdict};

/// Looks, judges and shows. Exit status 0: nothing is wrong; 3: something is.
pub(super) fn run(socket: &Path, json: bool) -> Result<ExitCode, CtlError> {
    let findings = judge::judge(&gather::gather(socket));
    let well = !findings.iter().any(|finding| finding.verdict == Verdict::Failed);
    print(&if json {
        serde_json::to_string_pretty(&as_json(&findings, well)).map_err(|_| CtlError::Strange)? + "\n"
    } else {
        as_text(&findings, well)
    })?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(NOT_WELL) })
}

fn as_json(findings: &[Finding], well: bool) -> serde_json::Value {
    let checks: Vec<_> = findings
        .iter()
        .map(|f| json!({ "item": f.item, "verdict": f.verdict.name(), "text": plain(&f.text), "advice": f.advice.as_deref().map(plain) }))
        .collect();
    json!({ "healthy": well, "checks": checks })
}

fn as_text(findings: &[Finding], well: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let _infallible =
            writeln!(text, "{:<8} {:<14} {}", finding.verdict.shown(), finding.item, plain(&finding.text));
        if let Some(advice) = &finding.advice {
            let _infallible = writeln!(text, "{:<8} {:<14} -> {}", "", "", plain(advice));
        }
    }
    let unseen = findings.iter().filter(|finding| finding.verdict == Verdict::Unknown).count();
    text.push_str(match (well, unseen) {
        (false, _) => "This workstation is not ready.\n",
        (true, 0) => "This workstation is ready for logins.\n",
        (true, _) => "Nothing wrong was found; not everything could be looked at.\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(verdict: Verdict) -> Finding {
        Finding { item: "pcscd", verdict, text: "a\x1b[2Jb".into(), advice: Some("start\nit".into()) }
    }

    #[test]
    fn what_was_not_seen_is_not_called_well() {
        assert!(as_text(&[finding(Verdict::Ok)], true).ends_with("ready for logins.\n"));
        assert!(as_text(&[finding(Verdict::Ok), finding(Verdict::Unknown)], true).contains("not everything"));
        assert!(as_text(&[finding(Verdict::Failed)], false).ends_with("is not ready.\n"));
    }

    #[test]
    fn nothing_steers_the_screen_and_each_finding_has_two_lines_at_most() {
        let text = as_text(&[finding(Verdict::Failed)], false);
        assert!(!text.contains('\x1b') && text.lines().count() == 3, "{text}");
        assert_eq!(as_json(&[finding(Verdict::Failed)], false)["checks"][0]["verdict"], "failed");
    }
}
