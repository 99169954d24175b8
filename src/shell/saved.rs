//! What outlives a restart of the process, as small files beside the local socket, and a reboot, as one on flash: a
//! crash loop must not bypass the backoff, nor have a fresh flash budget each time. Hints: whatever is wrong with one, its reader begins without.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::file;

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// The kernel's name for this boot.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Serialize, Deserialize)]
struct Content<T> {
    /// The boot whose clock the instants are of.
    boot_id: String,
    saved: T,
}

/// What an earlier process left, and whether that was in this boot.
pub fn read<T: DeserializeOwned>(path: &Path) -> Option<(T, bool)> {
    let bytes = file::read(path, FILE_BYTES_MAX).ok()?;
    let content: Content<T> = serde_json::from_slice(&bytes).ok()?;
    Some((content.saved, content.boot_id == boot_id()))
}

/// Writes it; a failure is worth a word for who looks for one, no more.
pub fn keep<T: Serialize>(path: &Path, saved: T) {
    if let Err(error) = write(path, saved) {
        log::debug!(target: "agent", "not kept path={} error={error}", path.display());
    }
}

/// Replaces the file as a whole. Not synced: it is of use only while the machine runs.
pub fn write<T: Serialize>(path: &Path, saved: T) -> io::Result<()> {
    let text = serde_json::to_string(&Content { boot_id: boot_id(), saved })?;
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

/// The same on flash: there after a power cut, too. Makes the folder.
pub fn write_durably<T: Serialize>(path: &Path, saved: T) -> io::Result<Written> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if let Err(error) = fs::create_dir(folder)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary)?;
    let text = serde_json::to_string(&Content { boot_id: boot_id(), saved })?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(folder)?.sync_all()?;
    Ok(Written { bytes: text.len() as u64, syncs: 2 })
}

/// What something cost flash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Handed to the file system.
    pub bytes: u64,
    /// Calls of fsync.
    pub syncs: u64,
}

/// Empty where the kernel does not say: then any file counts as of this boot.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID_FILE).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::link::Saved;
    use crate::temp_dir::TempDir;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_ignored() {
        let dir = TempDir::new("saved");
        let path = dir.join("backoff");
        assert_eq!(read::<Saved>(&path), None);
        let saved = Saved { backoff_exponent: 3, slow_exponent: 1, not_before_boot_ms: 77, ..Saved::default() };
        write(&path, Saved::default()).unwrap();
        write(&path, saved).unwrap();
        assert_eq!(read(&path), Some((saved, true)));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&boot_id(), "another boot")).unwrap();
        assert_eq!(read(&path), Some((saved, false)));
        for damage in ["", "{", "null", "{\"boot_id\":1}", &"x".repeat(9000)] {
            fs::write(&path, damage).unwrap();
            assert_eq!(read::<Saved>(&path), None, "{damage:.20}");
        }
    }
}
