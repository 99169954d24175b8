//! A disk whose copies share their pages: a state of the search is cheap to keep, to copy and to tell from another.
//! It cuts the power, kills and fails by script rather than by chance: the search tries every way there is.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;

use backhaul::outbox::disk::{Disk, Entry};

use super::search::Digest;

const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

/// Bytes of one page, with their hash.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    digest: u128,
}

impl Chunk {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let mut digest = Digest::default();
        digest.write(&bytes);
        Arc::new(Self { digest: digest.value(), bytes })
    }
}

#[derive(Debug, Clone)]
struct Page {
    seen: Arc<Chunk>,
    /// `None`: flash does not have it.
    durable: Option<Arc<Chunk>>,
    /// Written since the last sync. Neither pending nor durable: a sync failed, and the kernel forgot.
    pending: bool,
}

#[derive(Debug, Clone, Default)]
struct File {
    pages: Vec<Page>,
    /// The folder durably knows of it.
    known: bool,
}

impl File {
    fn bytes(&self) -> u64 {
        self.pages.iter().map(|page| page.seen.bytes.len() as u64).sum()
    }
}

/// What a cut makes of all that is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Nothing: the process was killed, the page cache lives.
    Kept,
    /// As before the write.
    Old,
    /// As written.
    New,
    /// The first sector of each page as written, the rest as before.
    Head,
    /// As written, but for one sector that is anything.
    Rot,
}

impl Fate {
    /// What a power cut may leave.
    pub const POWER: [Self; 4] = [Self::Old, Self::New, Self::Head, Self::Rot];
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The power goes, or the process dies, before this call: it and all later ones do nothing.
    Cut,
    /// This call fails; a sync that fails marks clean.
    Fails,
    /// This call and all later ones fail, until the storage is healed.
    Breaks,
}

/// One folder.
#[derive(Debug, Clone, Default)]
pub struct Flash {
    files: BTreeMap<Arc<str>, File>,
    /// Calls that would change something.
    pub calls: u32,
    /// What goes wrong, and at which call.
    pub trouble: Option<(u32, Trouble)>,
    /// Takes nothing at all.
    pub broken: bool,
}

impl Flash {
    fn change(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.trouble {
            Some((at, Trouble::Cut)) if self.calls > at => Err(io::Error::other("the power is off")),
            Some((at, Trouble::Fails)) if self.calls == at + 1 => Err(io::Error::other("the device said no")),
            Some((at, Trouble::Breaks)) if self.calls > at => {
                self.broken = true;
                Err(io::Error::other("the device says no"))
            }
            Some(_) | None if self.broken => Err(io::Error::other("the device says no")),
            Some(_) | None => Ok(()),
        }
    }

    /// The power went in this step: what is done now is not done.
    pub fn is_off(&self) -> bool {
        matches!(self.trouble, Some((at, Trouble::Cut)) if self.calls > at)
    }

    /// Whether a power cut has something to choose.
    pub fn is_pending(&self) -> bool {
        self.files.values().any(|file| !file.known || file.pages.iter().any(|page| page.pending))
    }

    /// The power goes and comes back, or the process dies.
    pub fn cut(&mut self, fate: Fate) {
        (self.calls, self.trouble) = (0, None);
        if fate == Fate::Kept {
            return;
        }
        for file in self.files.values_mut() {
            file.known |= fate == Fate::New;
            for page in &mut file.pages {
                if page.pending {
                    page.durable = torn(page, fate);
                    page.pending = false;
                }
            }
            let whole = file.pages.iter().position(|page| page.durable.is_none()).unwrap_or(file.pages.len());
            file.pages.truncate(whole);
            for page in &mut file.pages {
                page.seen = page.durable.clone().expect("truncated to what is durable");
            }
        }
        self.files.retain(|_, file| file.known);
    }

    /// A seed for what is drawn from here on: what is on flash has not drawn it yet.
    pub fn seed(&self, salt: u64) -> u64 {
        let mut digest = Digest::default();
        (self, salt).hash(&mut digest);
        digest.finish()
    }

    /// For a trace: the files' names and what is not zero in them.
    pub fn describe(&self) -> String {
        let page = |page: &Page| match (page.seen.bytes.iter().all(|b| *b == 0), page.pending) {
            (true, _) => '.',
            (false, false) => '#',
            (false, true) => '?',
        };
        let file =
            |(name, file): (&Arc<str>, &File)| format!("{name}[{}]", file.pages.iter().map(page).collect::<String>());
        self.files.iter().map(file).collect::<Vec<_>>().join(" ")
    }
}

/// What the power cut leaves of a pending page.
fn torn(page: &Page, fate: Fate) -> Option<Arc<Chunk>> {
    let new = || page.seen.bytes.clone();
    match fate {
        Fate::Kept | Fate::New => Some(Arc::clone(&page.seen)),
        Fate::Old => page.durable.clone(),
        Fate::Head => {
            let mut bytes = page.durable.as_ref().map_or(vec![0; page.seen.bytes.len()], |old| old.bytes.clone());
            bytes.resize(page.seen.bytes.len(), 0);
            let head = bytes.len().min(SECTOR_BYTES);
            bytes[..head].copy_from_slice(&page.seen.bytes[..head]);
            Some(Chunk::new(bytes))
        }
        Fate::Rot => {
            let mut bytes = new();
            let head = bytes.len().min(SECTOR_BYTES);
            bytes[..head].iter_mut().for_each(|byte| *byte ^= 0xa5);
            Some(Chunk::new(bytes))
        }
    }
}

impl Hash for Flash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (name, file) in &self.files {
            (name, file.known, file.pages.len()).hash(state);
            for page in &file.pages {
                (page.seen.digest, page.durable.as_ref().map(|chunk| chunk.digest), page.pending).hash(state);
            }
        }
        self.broken.hash(state);
    }
}

impl Disk for Flash {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        Ok(self.files.iter().map(|(name, file)| Entry { name: name.to_string(), bytes: file.bytes() }).collect())
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut read = 0;
        while read < buf.len() {
            let at = offset as usize + read;
            let Some(page) = file.pages.get(at / PAGE_BYTES) else { break };
            let rest = page.seen.bytes.get(at % PAGE_BYTES..).unwrap_or_default();
            let some = rest.len().min(buf.len() - read);
            if some == 0 {
                break;
            }
            buf[read..read + some].copy_from_slice(&rest[..some]);
            read += some;
        }
        Ok(read)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change()?;
        assert_eq!(offset as usize % PAGE_BYTES, 0, "the outbox writes whole pages");
        let file = self.files.entry(name.into()).or_default();
        for (index, new) in bytes.chunks(PAGE_BYTES).enumerate() {
            let at = offset as usize / PAGE_BYTES + index;
            assert!(at <= file.pages.len(), "no hole in a file");
            let mut whole = new.to_vec();
            match file.pages.get_mut(at) {
                Some(page) => {
                    whole.extend_from_slice(page.seen.bytes.get(whole.len()..).unwrap_or_default());
                    page.seen = Chunk::new(whole);
                    page.pending = true;
                }
                None => file.pages.push(Page { seen: Chunk::new(whole), durable: None, pending: true }),
            }
        }
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let changed = self.change();
        let cut = self.is_off();
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        for page in file.pages.iter_mut().filter(|page| page.pending && !cut) {
            page.pending = false;
            if changed.is_ok() {
                page.durable = Some(Arc::clone(&page.seen));
            }
        }
        changed
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.change()?;
        self.files.values_mut().for_each(|file| file.known = true);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.change()?;
        self.files.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(u64::MAX / 2)
    }
}
