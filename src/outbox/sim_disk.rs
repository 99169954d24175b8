//! A simulated disk for tests: a durable image and pending writes. A power cut keeps each pending sector on its own:
//! old, new, zeros, garbage or one bit off; sizes and folder entries on their own, too. Pages are shared between
//! clones, so that a disk can be copied at every call.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::disk::{Disk, Entry};

/// What a disk writes whole.
pub const SECTOR_BYTES: usize = 512;

/// What clones share.
const SHARED_BYTES: usize = 4096;
const SECTORS: usize = SHARED_BYTES / SECTOR_BYTES;

/// EIO, ENOSPC and EROFS on Linux, everywhere that we build for.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

/// How a write fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Failure {
    /// EIO.
    #[default]
    Io,
    /// ENOSPC.
    Full,
    /// EROFS.
    ReadOnly,
}

impl Failure {
    /// As the system call says it.
    pub fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => EIO,
            Self::Full => ENOSPC,
            Self::ReadOnly => EROFS,
        })
    }
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

/// What a power cut decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// Whether the folder knows of a new file. [`Fate::Old`]: it is gone.
    Made(Arc<str>),
    /// Whether the folder knows that a file is gone. [`Fate::Old`]: it is back.
    Removed(Arc<str>),
    /// A file's size. [`Fate::Old`]: as before; [`Fate::New`]: the whole; else as far as the last sector that was kept.
    Size(Arc<str>),
    /// One pending sector.
    Sector(Arc<str>, usize),
}

/// A file's bytes, in pages that clones share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Content {
    pages: Vec<Arc<[u8; SHARED_BYTES]>>,
    bytes: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct File {
    /// What reads see.
    seen: Content,
    /// What a power cut leaves if nothing pending gets through.
    durable: Content,
    /// The folder durably knows of the file.
    known: bool,
    /// Sectors written since the last sync.
    pending: BTreeSet<usize>,
}

/// One folder in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimDisk {
    files: BTreeMap<Arc<str>, Arc<File>>,
    /// Removed, but the folder on flash may still know them.
    removed: BTreeMap<Arc<str>, Arc<File>>,
    /// Calls until the power goes: every later call fails and changes nothing.
    pub cut_after: Option<u64>,
    /// Changing calls made.
    pub calls: u64,
    /// Bytes left on the file system.
    pub free_bytes: Option<u64>,
    /// The next so many syncs fail; the kernel forgets that their pages are dirty.
    pub sync_failures: u32,
    /// The next so many writes fail…
    pub write_failures: u32,
    /// … in this way …
    pub write_failure: Failure,
    /// … after so many of their bytes.
    pub write_failure_keeps: usize,
    /// Every change is answered EROFS.
    pub read_only: bool,
    /// Pages of 4,096 bytes, by file and number, that answer EIO when read, until they are written again.
    pub unreadable: BTreeSet<(String, usize)>,
    /// Pages of 4,096 bytes, by file and number, that answer EIO the next so many times that they are read.
    pub read_failures: BTreeMap<(String, usize), u32>,
    /// How often durable bytes were damaged.
    pub media_faults: u64,
}

impl SimDisk {
    fn change(&mut self) -> io::Result<()> {
        self.calls += 1;
        if self.cut_after.is_some_and(|after| self.calls > after) {
            return Err(io::Error::other("the power is off"));
        }
        if self.read_only { Err(Failure::ReadOnly.error()) } else { Ok(()) }
    }

    /// How many sectors are pending.
    pub fn pending(&self) -> usize {
        self.files.values().map(|file| file.pending.len()).sum()
    }

    /// Whether a power cut now would decide on anything.
    pub fn has_doubts(&self) -> bool {
        let in_doubt = |file: &Arc<File>| {
            let differs = |sector: &usize| file.seen.sector(*sector) != file.durable.sector(*sector);
            !file.known || file.pending.iter().any(differs)
        };
        self.files.values().any(in_doubt) || self.removed.values().any(|file| file.known)
    }

    /// What a power cut now would decide on. Sectors that are the same before and after are not among it.
    pub fn doubts(&self) -> Vec<Doubt> {
        let removed = self.removed.iter().filter(|(_, file)| file.known);
        let mut doubts: Vec<Doubt> = removed.map(|(name, _)| Doubt::Removed(name.clone())).collect();
        for (name, file) in &self.files {
            if !file.known {
                doubts.push(Doubt::Made(name.clone()));
            }
            if file.pending.is_empty() {
                continue;
            }
            if file.seen.bytes != file.durable.bytes {
                doubts.push(Doubt::Size(name.clone()));
            }
            let differs = |sector: &&usize| file.seen.sector(**sector) != file.durable.sector(**sector);
            doubts.extend(file.pending.iter().filter(differs).map(|sector| Doubt::Sector(name.clone(), *sector)));
        }
        doubts
    }

    /// The power goes and comes back: `fate` decides on each doubt.
    pub fn power_cut(&mut self, rng: &mut fastrand::Rng, mut fate: impl FnMut(&mut fastrand::Rng) -> Fate) {
        let decided: Vec<_> = self.doubts().into_iter().map(|doubt| (doubt, fate(rng))).collect();
        self.cut(&decided, rng);
    }

    /// The power goes and comes back, with these fates; what is not named is [`Fate::Old`].
    pub fn cut(&mut self, decided: &[(Doubt, Fate)], rng: &mut fastrand::Rng) {
        let mut removed = std::mem::take(&mut self.removed);
        for (doubt, fate) in decided {
            match doubt {
                Doubt::Removed(name) if *fate != Fate::Old => _ = removed.remove(name),
                Doubt::Made(name) if *fate != Fate::Old => self.file_mut(name).known = true,
                Doubt::Size(name) if *fate == Fate::New => {
                    let file = self.file_mut(name);
                    file.durable.resize(file.seen.bytes);
                }
                Doubt::Sector(name, sector) => {
                    let keeps_size = decided.contains(&(Doubt::Size(name.clone()), Fate::Old));
                    let file = self.file_mut(name);
                    if !keeps_size || sector * SECTOR_BYTES < file.durable.bytes {
                        file.settle(*sector, *fate, rng);
                    }
                }
                Doubt::Removed(_) | Doubt::Made(_) | Doubt::Size(_) => {}
            }
        }
        // A new file of the same name, if the folder knows it, has taken the old one's place.
        self.files.retain(|_, file| file.known);
        for (name, file) in removed {
            self.files.entry(name).or_insert(file);
        }
        for file in self.files.values_mut() {
            if !file.pending.is_empty() || file.seen != file.durable {
                let file = Arc::make_mut(file);
                file.pending.clear();
                file.seen = file.durable.clone();
            }
        }
        self.kill();
        self.sync_failures = 0;
        self.write_failures = 0;
        self.read_only = false;
    }

    /// The process dies, the machine lives: what was written is seen by the next one, synced or not.
    pub fn kill(&mut self) {
        self.cut_after = None;
    }

    /// The files as they are.
    pub fn image(&self) -> BTreeMap<String, Vec<u8>> {
        self.files.iter().map(|(name, file)| (name.to_string(), file.seen.to_vec())).collect()
    }

    /// A disk with these files, durable.
    pub fn from_image(image: BTreeMap<String, Vec<u8>>) -> Self {
        let file = |bytes: Vec<u8>| {
            let mut seen = Content::default();
            seen.write(0, &bytes);
            Arc::new(File { durable: seen.clone(), seen, known: true, pending: BTreeSet::new() })
        };
        Self { files: image.into_iter().map(|(name, bytes)| (name.into(), file(bytes))).collect(), ..Self::default() }
    }

    /// Each file as a power cut would leave it if nothing pending got through, sector by sector; a file that the
    /// folder does not know has none.
    pub fn durable_sectors(&self) -> impl Iterator<Item = (&str, usize, impl Iterator<Item = &[u8]>)> {
        let lost = self.removed.iter().filter(|(name, _)| !self.files.get(*name).is_some_and(|file| file.known));
        self.files.iter().chain(lost).filter(|(_, file)| file.known).map(|(name, file)| {
            let sectors = (0..file.durable.bytes.div_ceil(SECTOR_BYTES)).filter_map(|at| file.durable.sector(at));
            (&**name, file.durable.bytes, sectors)
        })
    }

    /// A pending sector before and after.
    pub fn sector(&self, name: &str, sector: usize) -> (Option<&[u8]>, Option<&[u8]>) {
        self.files.get(name).map_or((None, None), |file| (file.durable.sector(sector), file.seen.sector(sector)))
    }

    /// A media fault: changes durable bytes.
    pub fn damage(&mut self, name: &str, change: impl FnOnce(&mut [u8])) {
        if let Some(file) = self.files.get_mut(name) {
            let file = Arc::make_mut(file);
            let mut bytes = file.seen.to_vec();
            change(&mut bytes);
            file.seen.write(0, &bytes);
            file.durable = file.seen.clone();
            file.pending.clear();
            self.media_faults += 1;
        }
    }

    /// A media fault in one durable page of 4,096 bytes: garbage, whatever is pending beside it.
    pub fn damage_page(&mut self, name: &str, page: usize, rng: &mut fastrand::Rng) {
        if let Some(file) = self.files.get_mut(name) {
            let file = Arc::make_mut(file);
            let mut garbage = [0; SHARED_BYTES];
            rng.fill(&mut garbage);
            for content in [&mut file.seen, &mut file.durable] {
                let bytes = content.bytes.saturating_sub(page * SHARED_BYTES).min(SHARED_BYTES);
                content.write(page * SHARED_BYTES, &garbage[..bytes]);
            }
            self.media_faults += 1;
        }
    }

    fn file_mut(&mut self, name: &Arc<str>) -> &mut File {
        Arc::make_mut(self.files.entry(name.clone()).or_default())
    }
}

impl Content {
    fn sector(&self, sector: usize) -> Option<&[u8]> {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.bytes);
        let page = self.pages.get(sector / SECTORS)?;
        (start < end).then(|| &page[start % SHARED_BYTES..][..end - start])
    }

    fn sector_mut(&mut self, sector: usize) -> Option<&mut [u8]> {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.bytes);
        let page = self.pages.get_mut(sector / SECTORS)?;
        (start < end).then(|| &mut Arc::make_mut(page)[start % SHARED_BYTES..][..end - start])
    }

    fn resize(&mut self, bytes: usize) {
        debug_assert!(bytes >= self.bytes, "the outbox truncates nothing");
        self.bytes = bytes;
        if self.pages.len() * SHARED_BYTES < bytes {
            self.pages.resize(bytes.div_ceil(SHARED_BYTES), Arc::new([0; SHARED_BYTES]));
        }
    }

    fn read(&self, offset: usize, buf: &mut [u8]) -> usize {
        let end = self.bytes.min(offset.saturating_add(buf.len()));
        let mut at = offset;
        while at < end {
            let within = at % SHARED_BYTES;
            let step = (SHARED_BYTES - within).min(end - at);
            buf[at - offset..][..step].copy_from_slice(&self.pages[at / SHARED_BYTES][within..][..step]);
            at += step;
        }
        at - offset
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.bytes {
            self.resize(end);
        }
        let mut at = offset;
        while at < end {
            let within = at % SHARED_BYTES;
            let step = (SHARED_BYTES - within).min(end - at);
            let from = &bytes[at - offset..][..step];
            let page = &mut self.pages[at / SHARED_BYTES];
            if page[within..][..step] != *from {
                Arc::make_mut(page)[within..][..step].copy_from_slice(from);
            }
            at += step;
        }
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        self.read(0, &mut bytes);
        bytes
    }
}

impl File {
    /// What a pending sector becomes.
    fn settle(&mut self, sector: usize, fate: Fate, rng: &mut fastrand::Rng) {
        let Some(new) = self.seen.sector(sector).filter(|_| fate != Fate::Old) else { return };
        let end = sector * SECTOR_BYTES + new.len();
        if end > self.durable.bytes {
            self.durable.resize(end);
        }
        let Some(target) = self.durable.sector_mut(sector) else { return };
        match fate {
            Fate::Old => {}
            Fate::New => target.copy_from_slice(new),
            Fate::Zeros => target.fill(0),
            Fate::Garbage => rng.fill(target),
            Fate::BitOff => {
                target.copy_from_slice(new);
                // Not `Rng::usize`: a seed is the same cut on 32 and on 64 bits.
                let bit = rng.u64(..target.len() as u64 * 8) as usize;
                target[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    /// All that is pending is durable.
    fn sync(&mut self) {
        if self.durable.bytes < self.seen.bytes {
            self.durable.resize(self.seen.bytes);
        }
        for sector in std::mem::take(&mut self.pending) {
            let page = sector / SECTORS;
            let (Some(new), Some(old)) = (self.seen.pages.get(page), self.durable.pages.get_mut(page)) else {
                continue;
            };
            let start = sector * SECTOR_BYTES % SHARED_BYTES;
            if new[start..start + SECTOR_BYTES] != old[start..start + SECTOR_BYTES] {
                Arc::make_mut(old)[start..start + SECTOR_BYTES].copy_from_slice(&new[start..start + SECTOR_BYTES]);
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let entry =
            |(name, file): (&Arc<str>, &Arc<File>)| Entry { name: name.to_string(), bytes: file.seen.bytes as u64 };
        Ok(self.files.iter().map(entry).collect())
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let offset = offset as usize;
        let pages = offset / SHARED_BYTES..(offset + buf.len()).div_ceil(SHARED_BYTES);
        if self.unreadable.iter().any(|(of, page)| of == name && pages.contains(page)) {
            return Err(Failure::Io.error());
        }
        let failing =
            |((of, page), left): &(&(String, usize), &mut u32)| of == name && pages.contains(page) && **left > 0;
        if let Some((_, left)) = self.read_failures.iter_mut().find(failing) {
            *left -= 1;
            return Err(Failure::Io.error());
        }
        Ok(file.seen.read(offset, buf))
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change()?;
        let fails = self.write_failures > 0;
        self.write_failures = self.write_failures.saturating_sub(1);
        let bytes = if fails { &bytes[..bytes.len().min(self.write_failure_keeps)] } else { bytes };
        let offset = offset as usize;
        let end = offset + bytes.len();
        let seen = self.files.get(name).map_or(0, |file| file.seen.bytes);
        if let Some(free) = &mut self.free_bytes {
            // Opened with O_CREAT: a write without room leaves an empty file.
            let Some(rest) = free.checked_sub(end.saturating_sub(seen) as u64) else {
                self.file_mut(&name.into());
                return Err(Failure::Full.error());
            };
            *free = rest;
        }
        let file = self.file_mut(&name.into());
        if !bytes.is_empty() {
            file.seen.write(offset, bytes);
            file.pending.extend(offset / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
            let (first, last) = (offset / SHARED_BYTES, end.div_ceil(SHARED_BYTES));
            self.unreadable.retain(|(of, page)| of != name || !(first..last).contains(page));
        }
        if fails { Err(self.write_failure.error()) } else { Ok(()) }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.change()?;
        let file = Arc::make_mut(self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?);
        if self.sync_failures > 0 {
            self.sync_failures -= 1;
            file.pending.clear();
            return Err(Failure::Io.error());
        }
        file.sync();
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.change()?;
        self.removed.clear();
        for file in self.files.values_mut().filter(|file| !file.known) {
            Arc::make_mut(file).known = true;
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.change()?;
        let file = self.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        if let Some(free) = &mut self.free_bytes {
            *free += file.seen.bytes as u64;
        }
        if file.known {
            self.removed.insert(name.into(), file);
        }
        Ok(())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(self.free_bytes.unwrap_or(u64::MAX / 2))
    }
}
