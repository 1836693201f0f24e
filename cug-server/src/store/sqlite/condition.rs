//! Why the database cannot be used, in words for the administrator.

use super::StoreError;
use rusqlite::{Error, ErrorCode};
use std::path::Path;

/// A sentence, and the cause for the log.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
struct Condition {
    sentence: String,
    source: Error,
}

impl From<Error> for StoreError {
    fn from(source: Error) -> Self {
        let sentence = sentence(&source);
        Self::Fault(Condition { sentence, source }.into())
    }
}

/// A fault that names the file.
pub(super) fn fault(path: &Path, source: Error) -> StoreError {
    let sentence = format!("{}: {}", path.display(), sentence(&source));
    StoreError::Fault(Condition { sentence, source }.into())
}

/// The same of a backup, which is not used yet.
pub(super) fn of_backup(path: &Path, error: StoreError) -> StoreError {
    StoreError::Refused(format!("{} cannot be restored: {error}; nothing was changed", path.display()))
}

fn sentence(error: &Error) -> String {
    let Some(code) = error.sqlite_error_code() else { return error.to_string() };
    match code {
        ErrorCode::DiskFull => "the disk is full; nothing was changed: make room on it and do it again".into(),
        ErrorCode::ReadOnly => {
            "it cannot be written; nothing was changed: see its owner and mode, and whether the file system is mounted read-only".into()
        }
        ErrorCode::CannotOpen => {
            "the file or its directory cannot be opened for writing: see their owner and mode, and whether the file system is mounted read-only".into()
        }
        ErrorCode::DatabaseCorrupt => {
            "the file is damaged: stop the server, keep the file, and use `cug-server restore` with a backup".into()
        }
        ErrorCode::NotADatabase => "the file is not a database, or its beginning is damaged: use `cug-server restore` with a backup".into(),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            "another program keeps it locked; nothing was changed: find it with `fuser`, end it, and do it again".into()
        }
        ErrorCode::SystemIoFailure => {
            format!("the disk reports an error, or is full; nothing was changed: see the kernel's log ({error})")
        }
        ErrorCode::OutOfMemory => "there is not enough memory; nothing was changed".into(),
        _ => error.to_string(),
    }
}
