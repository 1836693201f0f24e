//! What the store knows, read when somebody asks for metrics.

use crate::{
    clock::UnixTime,
    store::{GroupInfo, Result, Store},
};

/// Figures of one moment.
pub struct Figures {
    /// All groups.
    pub groups: Vec<GroupInfo>,
    /// Registered sessions.
    pub sessions: usize,
    /// End of the TLS certificate; 0 when it cannot be read.
    pub certificate_end: UnixTime,
}

impl Figures {
    /// Reads them. Blocks.
    ///
    /// # Errors
    /// [`crate::store::StoreError`]
    pub fn read(store: &dyn Store, certificate_end: UnixTime) -> Result<Self> {
        Ok(Self { groups: store.groups()?, sessions: store.live_sessions()?.len(), certificate_end })
    }
}
