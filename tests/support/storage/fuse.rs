//! One flat folder over FUSE. Everything passes through to a real folder below, by way of a [`Medium`] that may look,
//! refuse or forget. Files bypass the page cache: each call of the program arrives here as it was made.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::{text, try_run};

/// Whose hands everything passes through. As it stands, a sound disk.
pub trait Medium: Send + Sync + 'static {
    /// Fills `buf` as far as the file goes.
    fn read(&self, file: &Backing, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        file.read(offset, buf)
    }

    /// Writes; how many of the bytes it took.
    fn write(&self, file: &Backing, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        file.file.write_all_at(bytes, offset)?;
        Ok(bytes.len())
    }

    /// What was written is durable. The folder below needs no sync of its own: no power is cut there.
    fn sync(&self, _file: &Backing) -> io::Result<()> {
        Ok(())
    }

    /// Before a file is made, removed or truncated.
    fn change(&self) -> io::Result<()> {
        Ok(())
    }

    /// Before a file is opened.
    fn open(&self, _to_write: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A file of the folder below.
pub struct Backing {
    /// Its name.
    pub name: String,
    /// It.
    pub file: File,
}

impl Backing {
    /// Fills `buf` as far as the file goes.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }
}

/// A mounted folder; gone when dropped.
pub struct Folder {
    point: PathBuf,
    _session: BackgroundSession,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A loop device lets go of its file some time after its mount is gone: the name goes now, the rest then.
        let _namespace_goes = try_run("umount", &["--lazy", text(&self.point)]);
    }
}

impl Folder {
    /// Mounts the folder `below` at `point`, both made when missing.
    pub fn new(below: &Path, point: &Path, medium: Arc<dyn Medium>) -> Self {
        for folder in [below, point] {
            fs::create_dir_all(folder).expect("the test's folder takes a folder");
        }
        let folder = Passing { below: below.into(), medium, nodes: Mutex::default() };
        let session = fuser::spawn_mount(folder, point, &Config::default());
        let session = session.expect("root may mount a FUSE folder where there is /dev/fuse");
        Self { point: point.into(), _session: session }
    }
}

/// Nothing about a file is remembered by the kernel: it asks each time.
const TTL: Duration = Duration::ZERO;
/// Everything lies in the one folder.
const FIRST_FILE: u64 = 2;

/// Files seen so far: names may go, files stay for as long as someone may hold them.
#[derive(Default)]
struct Nodes {
    by_name: BTreeMap<String, INodeNo>,
    files: Vec<Arc<Backing>>,
}

struct Passing {
    below: PathBuf,
    medium: Arc<dyn Medium>,
    nodes: Mutex<Nodes>,
}

impl Passing {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, ino: INodeNo) -> io::Result<Arc<Backing>> {
        let index = ino.0.checked_sub(FIRST_FILE).ok_or(io::ErrorKind::IsADirectory)?;
        self.nodes()
            .files
            .get(index as usize)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(Errno::ENOENT.code()))
    }

    /// The file of this name, opened below once for everyone.
    fn find(&self, name: &OsStr, make: bool) -> io::Result<FileAttr> {
        let name = name.to_str().ok_or_else(|| io::Error::from_raw_os_error(Errno::EINVAL.code()))?;
        let mut nodes = self.nodes();
        let ino = match nodes.by_name.get(name) {
            Some(ino) => *ino,
            None => {
                let path = self.below.join(name);
                let file = File::options().read(true).write(true).create(make).truncate(false).open(path)?;
                let ino = INodeNo(FIRST_FILE + nodes.files.len() as u64);
                nodes.files.push(Arc::new(Backing { name: name.into(), file }));
                nodes.by_name.insert(name.into(), ino);
                ino
            }
        };
        let file = Arc::clone(&nodes.files[(ino.0 - FIRST_FILE) as usize]);
        drop(nodes);
        Ok(attributes(ino, &file.file.metadata()?))
    }

    fn attributes(&self, ino: INodeNo) -> io::Result<FileAttr> {
        let meta = if ino == INodeNo::ROOT { fs::metadata(&self.below)? } else { self.file(ino)?.file.metadata()? };
        Ok(attributes(ino, &meta))
    }

    fn truncate(&self, ino: INodeNo, size: Option<u64>) -> io::Result<FileAttr> {
        if let Some(size) = size {
            self.medium.change()?;
            self.file(ino)?.file.set_len(size)?;
        }
        self.attributes(ino)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        self.medium.change()?;
        fs::remove_file(self.below.join(name))?;
        if let Some(name) = name.to_str() {
            self.nodes().by_name.remove(name);
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<(INodeNo, String)>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.below)? {
            let name = entry?.file_name();
            let ino = self.find(&name, false)?.ino;
            names.push((ino, name.to_string_lossy().into_owned()));
        }
        names.sort();
        Ok(names)
    }
}

fn attributes(ino: INodeNo, meta: &Metadata) -> FileAttr {
    FileAttr {
        ino,
        size: meta.len(),
        blocks: meta.blocks(),
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if meta.is_dir() { FileType::Directory } else { FileType::RegularFile },
        perm: (meta.permissions().mode() & 0o777) as u16,
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Passing {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(name, false) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.truncate(ino, size) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let to_write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match self.medium.open(to_write).and_then(|()| self.file(ino)) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, _mode: u32, _umask: u32, _: i32, reply: ReplyCreate) {
        match self.medium.change().and_then(|()| self.find(name, true)) {
            Ok(attributes) => {
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buf = vec![0; size as usize];
        match self.file(ino).and_then(|file| self.medium.read(&file, offset, &mut buf)) {
            Ok(count) => reply.data(&buf[..count]),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file(ino).and_then(|file| self.medium.write(&file, offset, data)) {
            Ok(count) => reply.written(u32::try_from(count).expect("a request is some MiB at most")),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.file(ino).and_then(|file| self.medium.sync(&file)) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.names() {
            Ok(names) => {
                for (index, (ino, name)) in names.iter().enumerate().skip(offset as usize) {
                    if reply.add(*ino, index as u64 + 1, FileType::RegularFile, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.remove(name) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::statvfs(&self.below) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                4096,
                255,
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(Errno::from_i32(error.raw_os_error())),
        }
    }
}
