//! The last command done, on flash. Its format is [`crate::commands::cursor`]'s; here it is read, written and synced,
//! and tried again while the storage does not take it: nothing is done before it is on flash.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::commands::cursor::{FILE_BYTES, Kept};
use crate::config::file;
use crate::dialect::message::CommandCursor;
use crate::shell::saved::Written;
use crate::time::Instant;

/// From one try to the next, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The file and what is to be written to it.
#[derive(Debug)]
pub struct DoneFile {
    path: PathBuf,
    device: String,
    kept: Kept,
    /// Done, not yet on flash.
    pending: Option<CommandCursor>,
    /// The storage did not take it: the next try, and how long that wait is.
    retry: Option<(Instant, Duration)>,
}

impl DoneFile {
    /// Not yet read.
    pub fn new(path: PathBuf, device: &str) -> Self {
        Self { path, device: device.into(), kept: Kept::default(), pending: None, retry: None }
    }

    /// What it says.
    pub fn open(&mut self) -> Option<CommandCursor> {
        let bytes = file::read(&self.path, FILE_BYTES as u64).unwrap_or_default();
        self.kept = Kept::read(&bytes, &self.device);
        self.kept.cursor
    }

    /// When [`DoneFile::write`] is to be called again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    /// Writes what is new, or what it owes; returns what is on flash since, and what that cost.
    pub fn write(&mut self, done: Option<CommandCursor>, now: Instant) -> Option<(CommandCursor, Written)> {
        self.pending = done.or(self.pending);
        let pending = self.pending.filter(|_| self.retry.is_none_or(|(at, _)| at <= now))?;
        let mut kept = self.kept;
        let (offset, slot) = kept.advance(pending, &self.device);
        match write(&self.path, offset, &slot) {
            Ok(written) => {
                if self.retry.take().is_some() {
                    log::info!(target: "outbox", "the storage takes again which commands are done");
                }
                (self.kept, self.pending) = (kept, None);
                Some((pending, written))
            }
            Err(error) => {
                if self.retry.is_none() {
                    let path = self.path.display();
                    log::warn!(target: "outbox", "which commands are done is not kept path={path} error={error}");
                }
                let pause = self.retry.map_or(RETRY.0, |(_, pause)| RETRY.1.min(pause * 2));
                self.retry = Some((now + pause, pause));
                None
            }
        }
    }
}

/// By its path each time: a folder that was removed or mounted over is no place to keep a promise in.
fn write(path: &Path, offset: u64, slot: &[u8]) -> io::Result<Written> {
    let mut written = Written { bytes: slot.len() as u64, syncs: 1 };
    let file = match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            written.bytes += FILE_BYTES as u64;
            written.syncs += 3;
            make(path)?
        }
        opened => opened?,
    };
    file.write_all_at(slot, offset)?;
    file.sync_data()?;
    Ok(written)
}

/// The file, and that it is there, is on flash when this returns.
fn make(path: &Path) -> io::Result<File> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let around = folder.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&[0; FILE_BYTES], 0)?;
    file.sync_all()?;
    File::open(folder)?.sync_all()?;
    File::open(around)?.sync_all()?;
    Ok(file)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    const NOW: Instant = Instant::from_micros(0);

    fn cursor(seq: u64) -> CommandCursor {
        CommandCursor { stream: 4, seq }
    }

    #[test]
    fn what_is_written_is_found_by_the_same_device() {
        let dir = TempDir::new("done");
        let file = || DoneFile::new(dir.join("link/done"), "gw");
        let mut first = file();
        assert_eq!(first.open(), None);
        for seq in 1..=3 {
            let (done, written) = first.write(Some(cursor(seq)), NOW).unwrap();
            assert_eq!((done, written.syncs), (cursor(seq), if seq == 1 { 4 } else { 1 }));
        }
        assert_eq!(first.write(None, NOW), None, "nothing is owed");
        assert_eq!(file().open(), Some(cursor(3)));
        assert_eq!(DoneFile::new(dir.join("link/done"), "other").open(), None);
    }

    #[test]
    fn while_the_storage_does_not_take_it_nothing_is_done_and_it_is_tried_again() {
        let dir = TempDir::new("done");
        let mut file = DoneFile::new(dir.join("away/link/done"), "gw");
        assert_eq!(file.write(Some(cursor(1)), NOW), None);
        let due = file.poll_timeout().unwrap();
        assert_eq!(due, NOW + RETRY.0);
        assert_eq!(file.write(Some(cursor(2)), NOW), None, "not before");
        assert_eq!(file.write(None, due), None);
        let due = file.poll_timeout().unwrap();
        fs::create_dir(dir.join("away")).unwrap();
        assert_eq!(file.write(None, due).unwrap().0, cursor(2), "the newest");
        assert_eq!(file.poll_timeout(), None);
        assert_eq!(DoneFile::new(dir.join("away/link/done"), "gw").open(), Some(cursor(2)));
    }
}
