//! The outbox's folder on a real file system, by std and rustix, and the lock that keeps a second agent out of it.
//! It performs: what an error means is the outbox's to decide.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use crate::outbox::disk::{Disk, Entry};
use crate::status::Samples;

/// Files held open at once: the newest segments of a few lanes, and one that is read for the backlog.
const HANDLES_MAX: usize = 8;
/// What records say is the owner's and the group's business.
const DIR_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;
/// The file that a live agent holds locked.
const LOCK_NAME: &str = "lock";

/// One folder of files.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    /// Least recently used first.
    handles: Vec<(String, File)>,
    times: Arc<SyncTimes>,
    read_only: bool,
}

/// How long syncs took, shared between the outbox thread and the status.
#[derive(Debug, Default)]
pub struct SyncTimes(Mutex<Samples>);

impl SyncTimes {
    /// Median of the recent past and the longest ever, in ms.
    pub fn ms_p50_and_max(&self) -> (f64, f64) {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (samples.percentiles().p50.unwrap_or(0.0), samples.ms_max())
    }

    fn push(&self, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(took);
    }
}

impl RealDisk {
    /// The folder `dir`, made when missing. Where that fails every call fails, and the outbox lives in RAM.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), handles: Vec::with_capacity(HANDLES_MAX), times: Arc::default(), read_only: false }
    }

    /// The folder as it is: no file is opened for writing.
    pub fn read_only(dir: &Path) -> Self {
        Self { read_only: true, ..Self::new(dir) }
    }

    /// How long syncs take.
    pub fn sync_times(&self) -> Arc<SyncTimes> {
        Arc::clone(&self.times)
    }

    fn handle(&mut self, name: &str, create: bool) -> io::Result<&File> {
        let found = self.handles.iter().position(|(held, _)| held == name);
        let entry = match found {
            Some(index) => self.handles.remove(index),
            None => (name.to_owned(), self.open(name, create)?),
        };
        if self.handles.len() >= HANDLES_MAX {
            // Closing loses no write: a sync through a new handle reaches the same pages and sees their errors.
            self.handles.remove(0);
        }
        self.handles.push(entry);
        Ok(&self.handles[self.handles.len() - 1].1)
    }

    fn open(&self, name: &str, create: bool) -> io::Result<File> {
        let path = self.dir.join(name);
        if self.read_only {
            return File::open(&path);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).mode(FILE_MODE);
        match options.open(&path) {
            // A read-only file system still holds a backlog to send.
            Err(error)
                if !create
                    && matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) =>
            {
                File::open(&path)
            }
            result => result,
        }
    }

    fn timed(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let start = Instant::now();
        let result = sync();
        self.times.push(start.elapsed());
        result
    }
}

impl Disk for RealDisk {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                entries.push(Entry { name, bytes: meta.len() });
            }
        }
        Ok(entries)
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.handle(name, false)?;
        let mut done = 0;
        while done < buf.len() {
            match file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.handle(name, true)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.handle(name, false)?;
        let held = self.handles.last().map(|(_, file)| file);
        self.timed(|| held.map_or(Ok(()), File::sync_data))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let folder = File::open(&self.dir)?;
        self.timed(|| match folder.sync_all() {
            // Some file systems (FUSE, some network ones) have nothing to sync in a folder and say so.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            result => result,
        })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.handles.retain(|(held, _)| held != name);
        std::fs::remove_file(self.dir.join(name))
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Held as long as an agent owns the folder; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

/// Whether a live agent owns the folder. Changes nothing in it; an agent that starts in this very instant would be
/// refused, and started again by its service manager.
pub fn is_owned(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK_NAME)) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// Another live agent owns the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked;

impl Lock {
    /// Takes the folder, made when missing. Only a live owner is a refusal: a folder that cannot be written or a
    /// file system that cannot lock is a warning.
    pub fn try_new(dir: &Path) -> Result<Self, Locked> {
        if let Err(error) = DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir) {
            log::warn!(target: "outbox", "cannot make the folder dir={} error={error}", dir.display());
        }
        let path = dir.join(LOCK_NAME);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
        let file = match opened.or_else(|_| File::open(&path)) {
            Ok(file) => file,
            Err(error) => {
                log::warn!(target: "outbox", "cannot lock the folder file={} error={error}", path.display());
                return Ok(Self { _file: None });
            }
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Locked),
            Err(error) => {
                log::warn!(target: "outbox", "this file system cannot lock file={} error={error}", path.display());
            }
        }
        Ok(Self { _file: Some(file) })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn reads_what_was_written_through_more_files_than_it_holds_open() {
        let folder = TempDir::new("disk-many");
        let _lock = Lock::try_new(&folder).unwrap();
        let mut disk = RealDisk::new(&folder);
        for n in 0..HANDLES_MAX * 3 {
            disk.write_at(&format!("f{n}"), n as u64 * 100, format!("content {n}").as_bytes()).unwrap();
        }
        assert_eq!(disk.handles.len(), HANDLES_MAX);
        for n in 0..HANDLES_MAX * 3 {
            let mut buf = [0; 64];
            let count = disk.read_at(&format!("f{n}"), n as u64 * 100, &mut buf).unwrap();
            assert_eq!(&buf[..count], format!("content {n}").as_bytes());
            disk.sync(&format!("f{n}")).unwrap();
        }
        disk.sync_dir().unwrap();
        assert!(disk.sync_times().ms_p50_and_max().1 > 0.0);
        let mut names: Vec<_> = disk.list().unwrap().into_iter().map(|entry| (entry.name, entry.bytes)).collect();
        names.sort();
        assert_eq!(names.len(), HANDLES_MAX * 3 + 1, "all, and the lock");
        assert!(names.contains(&("f2".into(), 209)));
        assert!(disk.free_bytes().unwrap() > 0);
    }

    #[test]
    fn a_removed_file_is_gone_for_open_handles_too() {
        let folder = TempDir::new("disk-remove");
        let _lock = Lock::try_new(&folder).unwrap();
        let mut disk = RealDisk::new(&folder);
        disk.write_at("a", 0, b"x").unwrap();
        disk.remove("a").unwrap();
        assert_eq!(disk.read_at("a", 0, &mut [0]).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.sync("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.write_at("a", 1, b"y").unwrap();
        let mut buf = [9; 4];
        assert_eq!(disk.read_at("a", 0, &mut buf).unwrap(), 2);
        assert_eq!(buf, [0, b'y', 9, 9]);
    }

    #[test]
    fn a_second_agent_is_refused_until_the_first_is_gone() {
        let folder = TempDir::new("disk-lock");
        let first = Lock::try_new(&folder).unwrap();
        assert_eq!(Lock::try_new(&folder).unwrap_err(), Locked);
        assert!(is_owned(&folder));
        drop(first);
        assert!(!is_owned(&folder));
        Lock::try_new(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_refusal_and_every_call_fails() {
        let folder = TempDir::new("disk-file");
        let file = folder.join("file");
        std::fs::write(&file, "a file, not a folder").unwrap();
        Lock::try_new(&file).unwrap();
        let mut disk = RealDisk::new(&file);
        assert!(disk.list().is_err());
        assert!(disk.write_at("a", 0, b"x").is_err());
    }
}
