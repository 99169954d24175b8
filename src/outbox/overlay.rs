//! A disk whose writes stay in RAM, over one that is only read: an outbox can be opened as after any start, repairs
//! and all, on a read-only mount or on evidence that must not change.

use std::collections::BTreeMap;
use std::io;

use super::IDENTITY_FILE;
use super::disk::{Disk, Entry};
use super::format::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

/// The overlay. Memory: the pages written. A page of zeros takes none, so that segments that recovery makes anew cost
/// nothing. The file that names the device is hidden: on whose gateway one looks does not matter.
#[derive(Debug)]
pub struct Overlay<D> {
    base: D,
    files: BTreeMap<String, File>,
}

/// A file that was written or removed.
#[derive(Debug)]
struct File {
    /// So much of the base shows through.
    base_bytes: u64,
    bytes: u64,
    removed: bool,
    /// `None`: zeros.
    pages: BTreeMap<u64, Option<Box<[u8; PAGE_BYTES]>>>,
}

impl<D: Disk> Overlay<D> {
    /// Nothing written yet.
    pub fn new(base: D) -> Self {
        Self { base, files: BTreeMap::new() }
    }

    /// The disk below.
    pub fn base_mut(&mut self) -> &mut D {
        &mut self.base
    }

    fn base_bytes(&mut self, name: &str) -> io::Result<Option<u64>> {
        let entries = self.base.list()?;
        Ok(entries.iter().find(|entry| entry.name == name && name != IDENTITY_FILE).map(|entry| entry.bytes))
    }

    /// The page as it is seen now.
    fn load(&mut self, name: &str, page: u64) -> io::Result<Box<[u8; PAGE_BYTES]>> {
        let file = self.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        if let Some(written) = file.pages.get(&page) {
            return Ok(written.clone().unwrap_or_else(|| Box::new([0; PAGE_BYTES])));
        }
        let mut bytes = Box::new([0; PAGE_BYTES]);
        let from_base = file.base_bytes.saturating_sub(page * PAGE).min(PAGE) as usize;
        if from_base > 0 {
            let read = self.base.read_at(name, page * PAGE, &mut bytes[..from_base])?;
            bytes[read..].fill(0);
        }
        Ok(bytes)
    }
}

impl<D: Disk> Disk for Overlay<D> {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = self.base.list()?;
        entries.retain(|entry| entry.name != IDENTITY_FILE && !self.files.contains_key(&entry.name));
        let written = self.files.iter().filter(|(_, file)| !file.removed);
        entries.extend(written.map(|(name, file)| Entry { name: name.clone(), bytes: file.bytes }));
        Ok(entries)
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = match self.files.get(name) {
            None if name == IDENTITY_FILE => return Err(io::ErrorKind::NotFound.into()),
            None => return self.base.read_at(name, offset, buf),
            Some(file) if file.removed => return Err(io::ErrorKind::NotFound.into()),
            Some(file) => file.bytes,
        };
        let count = bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let now = (count - done).min(PAGE_BYTES - within);
            let page = self.load(name, at / PAGE)?;
            buf[done..done + now].copy_from_slice(&page[within..within + now]);
            done += now;
        }
        Ok(count)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.files.contains_key(name) {
            let base_bytes = self.base_bytes(name)?.unwrap_or(0);
            let file = File { base_bytes, bytes: base_bytes, removed: false, pages: BTreeMap::new() };
            self.files.insert(name.to_owned(), file);
        }
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = (at % PAGE) as usize;
            let now = (bytes.len() - done).min(PAGE_BYTES - within);
            let mut page = if now == PAGE_BYTES { Box::new([0; PAGE_BYTES]) } else { self.load(name, at / PAGE)? };
            page[within..within + now].copy_from_slice(&bytes[done..done + now]);
            let kept = page.iter().any(|&byte| byte != 0).then_some(page);
            let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
            file.pages.insert(at / PAGE, kept);
            done += now;
        }
        let file = self.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file.removed = false;
        file.bytes = file.bytes.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn sync(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let gone = File { base_bytes: 0, bytes: 0, removed: true, pages: BTreeMap::new() };
        self.files.insert(name.to_owned(), gone);
        Ok(())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        Ok(u64::MAX / 2)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::sim_disk::SimDisk;
    use super::*;

    #[test]
    fn reads_as_a_disk_that_took_the_writes_and_leaves_the_base_alone() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut image = BTreeMap::new();
            for name in ["a", "b"] {
                let mut bytes = vec![0; rng.usize(..20_000)];
                rng.fill(&mut bytes);
                image.insert(name.to_owned(), bytes);
            }
            let mut model = SimDisk::from_image(image.clone());
            let mut overlay = Overlay::new(SimDisk::from_image(image.clone()));
            for _ in 0..40 {
                let name = *rng.choice(["a", "b", "c"].iter()).unwrap();
                let offset = rng.u64(..24_000);
                let bytes = vec![rng.u8(..2) * 7; *rng.choice([1, 100, 4096, 9000].iter()).unwrap()];
                match rng.u8(..8) {
                    0 if model.remove(name).is_ok() => overlay.remove(name).unwrap(),
                    1 => {
                        model.write_at(name, offset / PAGE * PAGE, &[0; 3 * PAGE_BYTES]).unwrap();
                        overlay.write_at(name, offset / PAGE * PAGE, &[0; 3 * PAGE_BYTES]).unwrap();
                    }
                    _ => {
                        model.write_at(name, offset, &bytes).unwrap();
                        overlay.write_at(name, offset, &bytes).unwrap();
                    }
                }
                let (mut ours, mut theirs) = (vec![1; 13_000], vec![1; 13_000]);
                let at = rng.u64(..20_000);
                let read = overlay.read_at(name, at, &mut ours).ok();
                assert_eq!(read, model.read_at(name, at, &mut theirs).ok(), "seed {seed}");
                assert!(ours == theirs, "seed {seed}: {name} from {at}");
            }
            let mut listed = overlay.list().unwrap();
            listed.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(listed, model.list().unwrap(), "seed {seed}");
            assert_eq!(overlay.base_mut().image(), image, "seed {seed}");
        }
    }

    #[test]
    fn zeros_take_no_memory_and_the_name_of_the_device_is_hidden() {
        let image = BTreeMap::from([(IDENTITY_FILE.to_owned(), b"gw-17\n\n".to_vec())]);
        let mut overlay = Overlay::new(SimDisk::from_image(image));
        overlay.write_at("x", 0, &[0; 16 * PAGE_BYTES]).unwrap();
        assert!(overlay.files["x"].pages.values().all(Option::is_none));
        assert!(overlay.read_at(IDENTITY_FILE, 0, &mut [0]).is_err());
        assert_eq!(overlay.list().unwrap().len(), 1);
    }
}
