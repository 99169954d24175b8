//! A cheap disk for millions of cases on one image: nothing is copied, every change is noted and taken back.
//! It keeps no pending writes; power cuts are `sim_disk`'s.

use std::collections::BTreeMap;
use std::io;

use backhaul::outbox::disk::{Disk, Entry};

/// How to take a change back.
enum Undo {
    /// These bytes stood here, and the file was so long.
    Bytes { name: String, offset: usize, before: Vec<u8>, length: usize },
    /// The file was not there.
    Made { name: String },
    /// The file was this.
    Was { name: String, bytes: Vec<u8> },
}

/// One folder in memory, with a way back.
#[derive(Default)]
pub struct PatchDisk {
    files: BTreeMap<String, Vec<u8>>,
    undo: Vec<Undo>,
    /// Calls that read pages since [`PatchDisk::restore`], and the bytes they brought.
    pub reads: u64,
    /// Bytes read since then.
    pub bytes_read: u64,
    /// Changing calls since then.
    pub changes: u64,
}

impl PatchDisk {
    /// A disk with these files.
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { files, ..Self::default() }
    }

    /// The files as they are.
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// Changes a file's bytes in place: a media fault, a hostile hand.
    pub fn patch(&mut self, name: &str, offset: usize, length: usize, change: impl FnOnce(&mut [u8])) {
        let file = self.files.get_mut(name).expect("a file of the image");
        let before = file[offset..offset + length].to_vec();
        self.undo.push(Undo::Bytes { name: name.into(), offset, before, length: file.len() });
        change(&mut file[offset..offset + length]);
    }

    /// Puts a file in the place of what was there; `None`: removes it.
    pub fn replace(&mut self, name: &str, bytes: Option<Vec<u8>>) {
        let before = match bytes {
            Some(bytes) => self.files.insert(name.into(), bytes),
            None => self.files.remove(name),
        };
        self.undo.push(match before {
            Some(bytes) => Undo::Was { name: name.into(), bytes },
            None => Undo::Made { name: name.into() },
        });
    }

    /// Back to the image as it was given.
    pub fn restore(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Bytes { name, offset, before, length } => {
                    let file = self.files.get_mut(&name).expect("restored in order");
                    file.truncate(length);
                    file[offset..offset + before.len()].copy_from_slice(&before);
                }
                Undo::Made { name } => {
                    self.files.remove(&name);
                }
                Undo::Was { name, bytes } => {
                    self.files.insert(name, bytes);
                }
            }
        }
        (self.reads, self.bytes_read, self.changes) = (0, 0, 0);
    }
}

impl Disk for PatchDisk {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        Ok(self.files.iter().map(|(name, file)| Entry { name: name.clone(), bytes: file.len() as u64 }).collect())
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let rest = file.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        self.reads += 1;
        self.bytes_read += read as u64;
        Ok(read)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.changes += 1;
        let offset = offset as usize;
        if !self.files.contains_key(name) {
            self.replace(name, Some(Vec::new()));
        }
        let file = self.files.get_mut(name).expect("just made");
        let (length, end) = (file.len(), offset + bytes.len());
        let before = file[offset.min(length)..end.min(length)].to_vec();
        self.undo.push(Undo::Bytes { name: name.into(), offset: offset.min(length), before, length });
        if length < end {
            file.resize(end, 0);
        }
        file[offset..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if self.files.contains_key(name) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.changes += 1;
        if !self.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.replace(name, None);
        Ok(())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}
