//! The outbox's folder on a real file system, by std and rustix, and the lock that keeps a second agent out of it.
//! It performs: what an error means is the outbox's to decide. Storage goes and comes back under a running agent:
//! - When a call fails all handles are dropped: the next call opens the file that is there by then, and meanwhile no
//!   file of ours is in the way of a repair.
//! - A sync is only good if what it synced is what lies at the file's path: a folder that was removed, moved or mounted
//!   over takes writes for as long as someone holds a file in it, and no start will ever find them.
//! - What was removed is made again, folder, lock and files (zeros, so that writes stay in place). A file that is not
//!   the one it was has to be written from its start first: a batch behind zeros would not be found.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statvfs};
use rustix::io::Errno;

use crate::insight::figures::Histogram;
use crate::outbox::disk::{Disk, Entry};
use crate::outbox::format::VERSION;
use crate::outbox::inspect::newer_format;
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
    handles: Vec<Handle>,
    /// Files that are there, as far as the outbox knows.
    known: BTreeMap<String, Known>,
    /// Which file the agent's lock is on, by device and inode.
    locked: Option<(u64, u64)>,
    /// Taken when the folder had to be made again: the agent's own is on a file that is gone.
    lock: Option<Lock>,
    times: Arc<SyncTimes>,
    read_only: bool,
}

/// An open file.
#[derive(Debug)]
struct Handle {
    name: String,
    file: File,
    writable: bool,
}

/// A file as it was last seen.
#[derive(Debug, Default)]
struct Known {
    bytes: u64,
    /// It is not the file that it was, and has not been written from its start since.
    replaced: bool,
}

/// How long syncs took, shared between the outbox thread and the status.
#[derive(Debug, Default)]
pub struct SyncTimes(Mutex<(Samples, Histogram)>);

impl SyncTimes {
    /// Median of the recent past and the longest ever, in ms.
    pub fn ms_p50_and_max(&self) -> (f64, f64) {
        let samples = &self.0.lock().unwrap_or_else(PoisonError::into_inner).0;
        (samples.percentiles().p50.unwrap_or(0.0), samples.ms_max())
    }

    /// All of them, by size.
    pub fn histogram(&self) -> Histogram {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    fn push(&self, took: Duration) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        times.0.push(took);
        times.1.push(took);
    }
}

impl RealDisk {
    /// The folder `dir`, which taking its [`Lock`] has made. Where there is none every call fails, and the outbox lives
    /// in RAM.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            handles: Vec::with_capacity(HANDLES_MAX),
            known: BTreeMap::new(),
            locked: identity(&dir.join(LOCK_NAME)).ok(),
            lock: None,
            times: Arc::default(),
            read_only: false,
        }
    }

    /// The folder as it is, whatever is asked: nothing is written, synced, removed or made again.
    pub fn read_only(dir: &Path) -> Self {
        Self { read_only: true, ..Self::new(dir) }
    }

    /// How long syncs take.
    pub fn sync_times(&self) -> Arc<SyncTimes> {
        Arc::clone(&self.times)
    }

    /// An open file for a call.
    fn with<T>(&mut self, name: &str, write: bool, call: impl FnOnce(&Self, &File) -> io::Result<T>) -> io::Result<T> {
        let held = self.handles.iter().position(|held| held.name == name).map(|index| self.handles.remove(index));
        let handle = match held.filter(|held| held.writable || !write) {
            Some(handle) => Ok(handle),
            None => self.open(name, write),
        };
        let called = handle.and_then(|handle| call(self, &handle.file).map(|result| (handle, result)));
        let (handle, result) = called.inspect_err(|_| self.handles.clear())?;
        if self.handles.len() >= HANDLES_MAX {
            // Closing loses no write: a sync through a new handle reaches the same pages and sees their errors.
            self.handles.remove(0);
        }
        self.handles.push(handle);
        Ok(result)
    }

    fn open(&self, name: &str, write: bool) -> io::Result<Handle> {
        let path = self.dir.join(name);
        if self.read_only {
            return Ok(Handle { name: name.to_owned(), file: File::open(&path)?, writable: false });
        }
        let create = write && !self.known.contains_key(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false).mode(FILE_MODE);
        let (file, writable) = match options.open(&path) {
            // A read-only file system still holds a backlog to send.
            Err(error)
                if !write
                    && matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) =>
            {
                (File::open(&path)?, false)
            }
            result => (result?, true),
        };
        Ok(Handle { name: name.to_owned(), file, writable })
    }

    /// Makes the folder, the lock and all files again that are not there.
    fn remake(&mut self) -> io::Result<()> {
        self.handles.clear();
        let lock_path = self.dir.join(LOCK_NAME);
        if self.locked.is_none() || self.locked != identity(&lock_path).ok() {
            self.lock = None;
            // Otherwise another agent has begun there, and it is its folder now.
            self.lock = Some(Lock::try_new(&self.dir).map_err(|Locked| io::ErrorKind::ResourceBusy)?);
            self.locked = identity(&lock_path).ok();
        }
        let mut made = 0;
        for (name, known) in &mut self.known {
            let path = self.dir.join(name);
            if path.try_exists()? {
                continue;
            }
            known.replaced = true;
            make_zeros(&path, known.bytes)?;
            made += 1;
        }
        if made > 0 {
            log::warn!(target: "outbox", "made again what was removed dir={} files={made}", self.dir.display());
        }
        self.sync_dir()
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    /// Whether this open file is the one that a start would find.
    fn check_in_place(&self, name: &str, file: &File) -> io::Result<()> {
        let held = file.metadata()?;
        if identity(&self.dir.join(name))? == (held.dev(), held.ino()) { Ok(()) } else { Err(gone(name)) }
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
                if name != LOCK_NAME {
                    self.known.insert(name.clone(), Known { bytes: meta.len(), replaced: false });
                }
                entries.push(Entry { name, bytes: meta.len() });
            }
        }
        Ok(entries)
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(name, false, |_, file| {
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
        })
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        if offset > 0 && self.known.get(name).is_some_and(|known| known.replaced) {
            return Err(gone(name));
        }
        let write = |_: &Self, file: &File| file.write_all_at(bytes, offset);
        match self.with(name, true, write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.remake()?;
                if offset > 0 {
                    return Err(gone(name));
                }
                self.with(name, true, write)?;
            }
            result => result?,
        }
        if name != LOCK_NAME {
            let known = self.known.entry(name.to_owned()).or_default();
            known.bytes = known.bytes.max(offset + bytes.len() as u64);
            known.replaced &= offset > 0;
        }
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        let synced = self.with(name, false, |disk, file| {
            disk.timed(|| file.sync_data())?;
            disk.check_in_place(name, file)
        });
        if synced.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            if let Some(known) = self.known.get_mut(name) {
                known.replaced = true;
            }
            if let Err(error) = self.remake() {
                log::warn!(target: "outbox", "cannot make again what was removed error={error}");
            }
        }
        synced
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.check_writable()?;
        let folder = File::open(&self.dir)?;
        self.timed(|| match folder.sync_all() {
            // Some file systems (FUSE, some network ones) have nothing to sync in a folder and say so.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            result => result,
        })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        self.handles.retain(|held| held.name != name);
        self.known.remove(name);
        match std::fs::remove_file(self.dir.join(name)) {
            // Someone else has done it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// Which file lies there, for as long as someone holds it open.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

fn gone(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} was removed or replaced"))
}

/// A file of zeros, as it was made once.
fn make_zeros(path: &Path, bytes: u64) -> io::Result<()> {
    let zeros = [0; 64 << 10];
    let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)?;
    let mut offset = 0;
    while offset < bytes {
        let chunk = (bytes - offset).min(zeros.len() as u64);
        file.write_all_at(&zeros[..chunk as usize], offset)?;
        offset += chunk;
    }
    file.sync_all()
}

/// Held as long as an agent owns the folder; the kernel lets go of it when the process dies.
#[derive(Debug)]
pub struct Lock {
    dir: PathBuf,
    file: Option<File>,
}

/// Whether a live agent owns the folder. Changes nothing in it; an agent that starts in this very instant would be
/// refused, and started again by its service manager.
pub fn is_owned(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK_NAME)) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// What to say of a folder that a later version of this program wrote; `None`: it is not one. Changes nothing in it.
pub fn newer(dir: &Path) -> Option<String> {
    let (file, version) = newer_format(&mut RealDisk::read_only(dir))?;
    Some(format!(
        "the outbox was written by a newer backhaul, in format {version} (this one knows up to {VERSION}), and stays as \
         it is: start the newer one again, and let it drain the outbox before going back dir={} file={file}",
        dir.display()
    ))
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
                return Ok(Self { dir: dir.to_owned(), file: None });
            }
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Locked),
            Err(error) => {
                log::warn!(target: "outbox", "this file system cannot lock file={} error={error}", path.display());
            }
        }
        Ok(Self { dir: dir.to_owned(), file: Some(file) })
    }

    /// Takes the folder again if someone removed it since, for whoever is to use it next.
    pub fn renew(&mut self, dir: &Path) -> Result<(), Locked> {
        let held = self.file.as_ref().and_then(|file| file.metadata().ok()).map(|meta| (meta.dev(), meta.ino()));
        if self.dir == dir && (held.is_none() || held != identity(&dir.join(LOCK_NAME)).ok()) {
            *self = Self::try_new(dir)?;
        }
        Ok(())
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
    fn a_removed_folder_is_noticed_and_made_again() {
        let folder = TempDir::new("disk-gone");
        let dir = folder.join("outbox");
        let mut lock = Lock::try_new(&dir).unwrap();
        let mut disk = RealDisk::new(&dir);
        for name in ["a", "b", "c"] {
            disk.write_at(name, 0, &[7; 300]).unwrap();
            disk.sync(name).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
        disk.write_at("a", 100, b"into a file without a name").unwrap();
        assert_eq!(disk.sync("a").unwrap_err().kind(), io::ErrorKind::NotFound, "no start would find it");
        assert_eq!(std::fs::read(dir.join("b")).unwrap(), [0; 300], "as it was made once");
        assert_eq!(Lock::try_new(&dir).unwrap_err(), Locked, "and locked again");
        for name in ["a", "b"] {
            let error = disk.write_at(name, 100, b"behind zeros it would not be found").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            disk.write_at(name, 0, b"from the start").unwrap();
            disk.write_at(name, 100, b"and on").unwrap();
            disk.sync(name).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
        disk.write_at("new", 0, b"a new file in a folder that is not there").unwrap();
        disk.sync("new").unwrap();
        assert_eq!(disk.list().unwrap().len(), 5, "a, b, c, new and the lock");
        drop(disk);
        lock.renew(&dir).unwrap();
        assert_eq!(Lock::try_new(&dir).unwrap_err(), Locked, "the agent's next disk is locked, too");
        lock.renew(&dir).unwrap();
        drop(lock);
        Lock::try_new(&dir).unwrap();
    }

    #[test]
    fn a_folder_that_is_only_read_is_left_alone_whatever_is_asked() {
        let folder = TempDir::new("disk-read");
        std::fs::write(folder.join("a"), "content").unwrap();
        let mut disk = RealDisk::read_only(&folder);
        assert_eq!(disk.list().unwrap().len(), 1);
        assert_eq!(disk.read_at("a", 3, &mut [0; 9]).unwrap(), 4);
        let refused = |result: io::Result<()>| result.unwrap_err().kind() == io::ErrorKind::ReadOnlyFilesystem;
        assert!(refused(disk.write_at("a", 0, b"x")) && refused(disk.write_at("b", 0, b"x")));
        assert!(refused(disk.sync("a")) && refused(disk.sync_dir()) && refused(disk.remove("a")));
        std::fs::remove_file(folder.join("a")).unwrap();
        assert!(refused(disk.sync("a")) && refused(disk.write_at("a", 0, b"x")));
        assert!(std::fs::read_dir(&*folder).unwrap().next().is_none(), "nothing was made, not even a lock");
    }

    #[test]
    fn a_folder_that_is_gone_is_noticed_by_a_sync_without_an_open_file() {
        let folder = TempDir::new("disk-gone-idle");
        let dir = folder.join("outbox");
        let _lock = Lock::try_new(&dir).unwrap();
        let mut disk = RealDisk::new(&dir);
        disk.write_at("a", 0, &[7; 300]).unwrap();
        // A call that failed lets go of all files.
        assert!(disk.read_at("nosuch", 0, &mut [0]).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(disk.sync("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(std::fs::read(dir.join("a")).unwrap(), [0; 300], "made again");
        assert!(disk.write_at("a", 100, b"x").is_err(), "from its start first");
    }

    #[test]
    fn a_file_that_was_moved_away_or_replaced_is_noticed() {
        let folder = TempDir::new("disk-moved");
        let _lock = Lock::try_new(&folder).unwrap();
        let mut disk = RealDisk::new(&folder);
        disk.write_at("a", 0, &[1; 100]).unwrap();
        disk.sync("a").unwrap();
        std::fs::rename(folder.join("a"), folder.join("away")).unwrap();
        std::fs::write(folder.join("a"), "someone else's").unwrap();
        disk.write_at("a", 50, b"x").unwrap();
        assert!(disk.sync("a").is_err());
        assert_eq!(std::fs::read(folder.join("a")).unwrap(), b"someone else's", "what is there is left alone");
        assert!(disk.write_at("a", 50, b"x").is_err());
        disk.write_at("a", 0, b"x").unwrap();
        disk.sync("a").unwrap();
    }

    #[test]
    fn a_folder_that_another_agent_has_made_again_is_not_ours() {
        let folder = TempDir::new("disk-theirs");
        let dir = folder.join("outbox");
        let _lock = Lock::try_new(&dir).unwrap();
        let mut disk = RealDisk::new(&dir);
        disk.write_at("a", 0, b"x").unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let theirs = Lock::try_new(&dir).unwrap();
        assert!(disk.sync("a").is_err());
        assert!(disk.write_at("a", 0, b"x").is_err());
        assert!(!dir.join("a").exists());
        drop(theirs);
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
