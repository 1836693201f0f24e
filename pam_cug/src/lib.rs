//! `pam_cug.so`: an OS login with a card, a user ID and a password, checked by the management server of closed user groups.
//!
//! # Synopsis
//! ```text
//! auth     ... pam_cug.so [exempt=USER,@GROUP,...] [remote=ignore|allow] [socket=PATH] [use_first_pass|try_first_pass] [debug]
//! account  ... pam_cug.so [the same]
//! session  ... pam_cug.so [the same]
//! password ... pam_cug.so [the same] [use_authtok|ask_others]
//! ```
//!
//! # Options
//! * `exempt=NAME,NAME,@GROUP`: these users, and the members of these groups, do not log in with a card; the module returns `PAM_IGNORE` for them before it
//!   looks at anything else. May be given several times. The user `root`, and every user with the number 0, is always exempt, and so is who is listed as `exempt` in cugd.toml (while cugd runs).
//! * `remote=ignore` (default): a login from another host (`PAM_RHOST` set, and not `localhost`, `127.0.0.1` or `::1`) is not this module's
//!   business: the card in this workstation's reader says nothing about a person elsewhere. `PAM_IGNORE`.
//!   `remote=allow`: the card in this workstation's reader counts for remote logins too.
//! * `socket=PATH`: absolute path of cugd's socket, default `/run/cugd/cugd.sock`. Only a daemon that runs as root is trusted there.
//! * `use_first_pass`: take the password that an earlier module asked for; fail with `PAM_AUTHTOK_RECOVERY_ERR` if there is none.
//! * `try_first_pass`: take it if there is one, else ask.
//! * `use_authtok`: the new password is the one that an earlier module asked for and accepted (pam_pwquality); it is not asked for here.
//! * `ask_others`: who is no member is asked for the new password here too, for modules below that are told `use_authtok` (as pam-auth-update tells pam_unix).
//! * `debug`: more lines to syslog. Never a secret, with or without.
//!
//! An option that is not known is logged and otherwise ignored: a slip in a PAM file must not lock anybody out. Servers, time limits, readers and media are
//! configured in one place, `/etc/cug/cugd.toml`; the daemon hands them over at each login.
//!
//! # What each entry point returns
//! | entry | returns |
//! |---|---|
//! | `pam_sm_authenticate` | `PAM_SUCCESS`: card and password are right, and the grant is with cugd, or the password must be changed first (then `pam_sm_acct_mgmt` says so, and there is no grant yet). `PAM_IGNORE`: exempt or remote. `PAM_USER_UNKNOWN`: not a name that a member can have. `PAM_AUTHINFO_UNAVAIL`: cugd, the reader service or the server does not answer. `PAM_AUTH_ERR`: card, PIN, user ID or password. `PAM_MAXTRIES`: PIN blocked, or too many wrong passwords. `PAM_PERM_DENIED`, `PAM_ACCT_EXPIRED`: the server refuses this member. |
//! | `pam_sm_setcred` | `PAM_SUCCESS` after a login by this module on the same handle, else `PAM_IGNORE`. |
//! | `pam_sm_acct_mgmt` | `PAM_SUCCESS` after a login by this module on the same handle. `PAM_NEW_AUTHTOK_REQD`: after a login whose password must be changed. The server's refusal, if there was one on this handle, even if another module let the user in. Else `PAM_IGNORE`. |
//! | `pam_sm_open_session` | `PAM_SUCCESS`: the group is open, `CUG_GROUPS` and `CUG_ADDRESS` are set (names, and IPv4 overlay addresses in the same order, separated by commas). `PAM_IGNORE`: exempt, remote, or not logged in with a card. `PAM_SESSION_ERR`: logged in with a card, and the group cannot be opened. |
//! | `pam_sm_close_session` | `PAM_SUCCESS` when cugd was told, else `PAM_IGNORE`; never an error. |
//! | `pam_sm_chauthtok` | `PAM_SUCCESS`: the password is changed at the server; after a login that had to wait for it, the grant is with cugd. `PAM_IGNORE`: exempt or remote, no name that a member can have, started by root (`passwd USER`, adduser, chpasswd: that is a password of this workstation), or only expired passwords are to be changed and this one has not. `PAM_TRY_AGAIN`: cugd does not answer (preliminary check). `PAM_AUTHTOK_ERR`: not changed. `PAM_PERM_DENIED`: the server refuses this member. |
//!
//! Unless `PAM_SILENT` is set, every refusal comes with one sentence for the person through the conversation. The cause goes to syslog.
//!
//! # A password that must be changed
//! `pam_sm_authenticate` finds that card and password are right and that there is no session until the password is changed. It keeps on the handle what was
//! typed (password and PIN, wiped with the handle) and succeeds; `pam_sm_acct_mgmt` returns `PAM_NEW_AUTHTOK_REQD`; login, su, sudo and sshd then call
//! `pam_chauthtok` with `PAM_CHANGE_EXPIRED_AUTHTOK`, which asks for the new password twice and sends it with the old one, by the card. The server changes the password and
//! grants the session in one step. A program that does not look at the account phase gets no grant, and the group stays closed.
//!
//! # No server (`offline = "local"` in cugd.toml)
//! `pam_sm_authenticate` returns `PAM_IGNORE` when no server answers, sets PAM_AUTHTOK, and keeps on the handle what was typed (wiped with the handle).
//! If the other modules let the person in, `pam_sm_open_session` (or `pam_sm_setcred` with `PAM_REFRESH_CRED` or `PAM_REINITIALIZE_CRED`, for a locker) hands it to a
//! waiting login, and returns `PAM_IGNORE` too. With `offline = "deny"`: `PAM_AUTHINFO_UNAVAIL`.
//!
//! # What the module does to its host
//! It makes no lasting thread and installs no logger, no signal handler, no TLS provider. While the user types the password, one thread with all
//! signals blocked talks to the server and the card; it has ended when the entry point returns. A panic ends in `PAM_SYSTEM_ERR` and a line in syslog. Once
//! loaded, the module stays mapped until the process ends (see `build.rs`).
//!
//! It does not touch the environment. Variables that lead the PC/SC library to another service (`PCSCLITE_CSOCK_NAME`) make the login fail with a sentence: a user could
//! otherwise call su with a card reader of their own making.
//!
//! # Time limits
//! | what | limit |
//! |---|---|
//! | cugd | 2 s for each request, 10 s for opening a session, 5 s to hand over what was typed to a waiting login |
//! | waiting for a card | `card-wait-seconds` of cugd |
//! | the server, all tries and servers together, typing not counted | `server-timeout-seconds` of cugd (5 s) |
#![deny(unsafe_code)]

mod account;
mod authenticate;
mod change;
mod entry;
mod exempt;
mod failure;
mod ffi;
mod guard;
mod host;
mod later;
mod options;
mod parts;
mod session;

use cug_login::{challenge, daemon, edge, exchange, login, offer, server};

#[cfg(test)]
mod doubles;
