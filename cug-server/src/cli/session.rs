//! `session ...`

use super::user::user_id;
use crate::admin::Request;
use cug_proto::id::UserId;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List who is logged in where, one row for each group
    List,
    /// End a user's session: the terminal tears its tunnel down
    End {
        /// User ID
        #[arg(value_parser = user_id)]
        user: UserId,
    },
}

impl Command {
    pub(super) fn request(self) -> Request {
        match self {
            Self::List => Request::SessionList,
            Self::End { user } => Request::SessionEnd(user),
        }
    }
}
