//! A simulated disk for tests: a durable image and pending writes. A power cut keeps each pending sector on its own:
//! old, new, zeros, garbage or one bit off; sizes and folder entries on their own, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::disk::{Disk, Entry};

/// What a disk writes whole.
pub const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct File {
    /// What reads see.
    seen: Vec<u8>,
    /// What a power cut leaves if nothing pending gets through.
    durable: Vec<u8>,
    /// The folder durably knows of the file.
    known: bool,
    /// Sectors written since the last sync.
    pending: BTreeSet<usize>,
}

/// What becomes of a pending sector at a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// As before the write.
    Old,
    /// As written.
    New,
    /// Zeros.
    Zeros,
    /// Anything.
    Garbage,
    /// As written, but for one bit.
    BitOff,
}

/// One folder in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimDisk {
    files: BTreeMap<String, File>,
    /// Calls until the power goes: every later call fails and changes nothing.
    pub cut_after: Option<u64>,
    /// Changing calls made.
    pub calls: u64,
    /// Bytes left on the file system.
    pub free_bytes: Option<u64>,
    /// The next so many syncs fail; the kernel forgets that their pages are dirty.
    pub sync_failures: u32,
}

impl SimDisk {
    fn change(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.cut_after.is_some_and(|after| self.calls > after) {
            return Err(io::Error::other("the power is off"));
        }
        Ok(())
    }

    /// How many sectors are pending.
    pub fn pending(&self) -> usize {
        self.files.values().map(|file| file.pending.len()).sum()
    }

    /// The power goes and comes back: `fate` decides for each pending sector and each pending folder entry
    /// ([`Fate::Old`]: the file is gone).
    pub fn power_cut(&mut self, rng: &mut fastrand::Rng, mut fate: impl FnMut(&mut fastrand::Rng) -> Fate) {
        for file in self.files.values_mut() {
            file.known |= fate(rng) != Fate::Old;
            for sector in std::mem::take(&mut file.pending) {
                settle(&mut file.durable, &file.seen, sector, fate(rng), rng);
            }
            file.seen = file.durable.clone();
        }
        self.files.retain(|_, file| file.known);
        self.cut_after = None;
        self.sync_failures = 0;
    }

    /// The process dies, the machine lives: what was written is seen by the next one, synced or not.
    pub fn kill(&mut self) {
        self.cut_after = None;
    }

    /// The files as they are.
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        self.files.iter().map(|(name, file)| (name.clone(), file.seen.clone())).collect()
    }

    /// A disk with these files, durable.
    pub fn from_image(image: BTreeMap<String, Vec<u8>>) -> Self {
        let file = |bytes: Vec<u8>| File { seen: bytes.clone(), durable: bytes, known: true, pending: BTreeSet::new() };
        Self { files: image.into_iter().map(|(name, bytes)| (name, file(bytes))).collect(), ..Self::default() }
    }

    /// A media fault: changes durable bytes.
    pub fn damage(&mut self, name: &str, change: impl FnOnce(&mut [u8])) {
        if let Some(file) = self.files.get_mut(name) {
            change(&mut file.seen);
            file.durable = file.seen.clone();
            file.pending.clear();
        }
    }
}

fn settle(image: &mut Vec<u8>, seen: &[u8], sector: usize, fate: Fate, rng: &mut fastrand::Rng) {
    let start = sector * SECTOR_BYTES;
    let end = (start + SECTOR_BYTES).min(seen.len());
    if fate == Fate::Old || start >= end {
        return;
    }
    if image.len() < end {
        image.resize(end, 0);
    }
    let target = &mut image[start..end];
    match fate {
        Fate::Old => {}
        Fate::New => target.copy_from_slice(&seen[start..end]),
        Fate::Zeros => target.fill(0),
        Fate::Garbage => rng.fill(target),
        Fate::BitOff => {
            target.copy_from_slice(&seen[start..end]);
            let bit = rng.usize(..target.len() * 8);
            target[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

impl Disk for SimDisk {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let entry = |(name, file): (&String, &File)| Entry { name: name.clone(), bytes: file.seen.len() as u64 };
        Ok(self.files.iter().map(entry).collect())
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let rest = file.seen.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change()?;
        let offset = offset as usize;
        let file = self.files.entry(name.into()).or_default();
        let end = offset + bytes.len();
        let grown = end.saturating_sub(file.seen.len()) as u64;
        if let Some(free) = &mut self.free_bytes {
            *free = free.checked_sub(grown).ok_or(io::ErrorKind::StorageFull)?;
        }
        if file.seen.len() < end {
            file.seen.resize(end, 0);
        }
        file.seen[offset..end].copy_from_slice(bytes);
        file.pending.extend(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.change()?;
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        if self.sync_failures > 0 {
            self.sync_failures -= 1;
            file.pending.clear();
            return Err(io::Error::other("the device said no"));
        }
        for sector in std::mem::take(&mut file.pending) {
            let rng = &mut fastrand::Rng::with_seed(0);
            settle(&mut file.durable, &file.seen, sector, Fate::New, rng);
        }
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.change()?;
        self.files.values_mut().for_each(|file| file.known = true);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.change()?;
        let file = self.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        if let Some(free) = &mut self.free_bytes {
            *free += file.seen.len() as u64;
        }
        Ok(())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(self.free_bytes.unwrap_or(u64::MAX / 2))
    }
}
