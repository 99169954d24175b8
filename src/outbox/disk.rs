//! The few disk calls that the outbox makes: production is `shell::disk` (rustix), tests use a simulated disk.
//! One flat folder, file names of `[a-z0-9_.-]`, nothing renamed.

use std::io;

/// A file in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One folder of files. Errors are [`io::Error`]; the outbox tells `StorageFull` and `ReadOnlyFilesystem` apart.
pub trait Disk: 'static {
    /// The files there are.
    fn list(&mut self) -> io::Result<Vec<Entry>>;
    /// Fills `buf` from `offset`; returns how much there was.
    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`; makes the file when it is missing. Not durable before [`Disk::sync`].
    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// `fdatasync` of the file.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// `fsync` of the folder: which files there are.
    fn sync_dir(&mut self) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Bytes free on the file system.
    fn free_bytes(&mut self) -> io::Result<u64>;
}
