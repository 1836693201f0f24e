//! `server-key ...`

use crate::admin::Request;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Make a new key and wrap all group keys and session secrets of the database under it; sessions go on
    Rotate,
}

impl Command {
    pub(super) fn request(self) -> Request {
        match self {
            Self::Rotate => Request::ServerKeyRotate,
        }
    }
}
