//! What a disk was told, in order, and what it holds when the power goes at some place in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

use super::storage::fuse::{Backing, Folder, Medium};
use super::storage::{self, LoopMount, text};

/// The disk that is filmed.
const DISK_BYTES: usize = 16 << 20;
/// What a disk writes whole.
const SECTOR_BYTES: usize = 512;
/// A film that is longer is a load that does not end.
const FILM_BYTES_MAX: usize = 1 << 30;

/// One thing that the disk was told.
pub enum Event {
    /// These bytes go there.
    Write {
        /// Where.
        offset: usize,
        /// What.
        bytes: Vec<u8>,
    },
    /// What was written before is durable before this is answered.
    Flush,
}

/// Films a disk: the medium below its one file.
#[derive(Default)]
pub struct Recorder {
    reel: Mutex<(Vec<Event>, usize)>,
}

impl Recorder {
    /// How many events there were.
    pub fn position(&self) -> usize {
        self.reel().0.len()
    }

    /// All that was filmed; to be taken once the disk is at rest.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.reel().0)
    }

    fn reel(&self) -> MutexGuard<'_, (Vec<Event>, usize)> {
        self.reel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Medium for Recorder {
    fn write(&self, file: &Backing, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        file.file.write_all_at(bytes, offset)?;
        let mut reel = self.reel();
        reel.1 += bytes.len();
        if reel.1 > FILM_BYTES_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        reel.0.push(Event::Write { offset: offset as usize, bytes: bytes.into() });
        Ok(bytes.len())
    }

    fn sync(&self, _: &Backing) -> io::Result<()> {
        self.reel().0.push(Event::Flush);
        Ok(())
    }
}

/// Films a disk with an ext4 on it while `act` uses it: at its mount point, and by the place in the film.
pub fn shoot<T>(dir: &Path, mode: &str, block_bytes: u32, act: impl FnOnce(&Path, &Recorder) -> T) -> (Film, T) {
    let recorder = Arc::new(Recorder::default());
    let folder = Folder::new(&dir.join("below"), &dir.join("fuse"), recorder.clone());
    let image = dir.join("fuse/disk.img");
    let file = File::create(&image).expect("the filmed folder takes the disk");
    file.set_len(DISK_BYTES as u64).expect("the filmed folder takes the disk");
    let block = block_bytes.to_string();
    // Nothing is left to be done in the background: it would be filmed between the agent's writes, and is none of its.
    let now = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
    storage::run("mkfs.ext4", &["-q", "-b", &block, "-m", "0", "-E", now, text(&image)]);
    let mount = LoopMount::try_new(&image, &dir.join("disk"), &format!("{mode},commit=1"));
    let mount = mount.unwrap_or_else(|words| panic!("{words}"));
    let begin = recorder.position();
    let told = act(mount.point(), &recorder);
    let end = recorder.position();
    drop(mount);
    drop(folder);
    let mut events = recorder.take();
    events.truncate(end);
    (Film { events, disk_bytes: DISK_BYTES, begin }, told)
}

/// A disk's whole life, from zeros on.
pub struct Film {
    /// What it was told.
    pub events: Vec<Event>,
    /// How large it is.
    pub disk_bytes: usize,
    /// Before this there was no agent.
    pub begin: usize,
}

impl Film {
    /// Where it was told to flush.
    pub fn flushes(&self) -> impl Iterator<Item = usize> {
        self.events.iter().enumerate().filter(|(_, event)| matches!(event, Event::Flush)).map(|(at, _)| at)
    }
}

/// What becomes of writes that were not flushed when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fates {
    /// None got through.
    Dropped,
    /// All did.
    Kept,
    /// Each write did or did not.
    ByWrite,
    /// Each sector did or did not.
    BySector,
}

impl Fates {
    /// One of them.
    pub fn draw(rng: &mut Rng) -> Self {
        match rng.u8(0..6) {
            0 => Self::Dropped,
            1 => Self::Kept,
            2 | 3 => Self::ByWrite,
            _ => Self::BySector,
        }
    }
}

/// Plays a film forward, cut by cut.
pub struct Player<'a> {
    film: &'a Film,
    /// What is durable: everything before the event `flushed`.
    durable: Vec<u8>,
    flushed: usize,
}

impl<'a> Player<'a> {
    /// At the beginning.
    pub fn new(film: &'a Film) -> Self {
        Self { film, durable: vec![0; film.disk_bytes], flushed: 0 }
    }

    /// What the disk holds when the power goes before the event `at`, which is not before an earlier cut's.
    pub fn cut(&mut self, at: usize, fates: Fates, rng: &mut Rng) -> Vec<u8> {
        let past = &self.film.events[self.flushed..at];
        let flushed = past.iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |last| last + 1);
        self.keep(self.flushed + flushed);
        self.image(at, fates, rng)
    }

    /// The same of a disk that lies: since the event `since` it said yes to each flush, and did nothing.
    pub fn cut_of_a_liar(&mut self, since: usize, at: usize, fates: Fates, rng: &mut Rng) -> Vec<u8> {
        self.keep(since.max(self.flushed));
        self.image(at, fates, rng)
    }

    /// Everything before this event is durable.
    fn keep(&mut self, before: usize) {
        for event in &self.film.events[self.flushed..before] {
            apply(&mut self.durable, event, |_| true);
        }
        self.flushed = before;
    }

    /// What is durable, and of what came since before `at` what gets through.
    fn image(&self, at: usize, fates: Fates, rng: &mut Rng) -> Vec<u8> {
        let mut image = self.durable.clone();
        for event in &self.film.events[self.flushed..at] {
            match fates {
                Fates::Dropped => {}
                Fates::Kept => apply(&mut image, event, |_| true),
                Fates::ByWrite => {
                    let kept = rng.bool();
                    apply(&mut image, event, |_| kept);
                }
                Fates::BySector => apply(&mut image, event, |_| rng.bool()),
            }
        }
        image
    }
}

/// Writes those sectors that get through.
fn apply(image: &mut [u8], event: &Event, mut gets_through: impl FnMut(usize) -> bool) {
    let Event::Write { offset, bytes } = event else { return };
    for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
        if gets_through(index) {
            let at = offset + index * SECTOR_BYTES;
            image[at..at + sector.len()].copy_from_slice(sector);
        }
    }
}

/// An image as a file that has holes where there are zeros.
pub fn write_sparse(path: &Path, image: &[u8]) {
    const CHUNK_BYTES: usize = 64 << 10;
    let file = File::create(path).expect("the temporary folder takes an image");
    file.set_len(image.len() as u64).expect("the temporary folder takes an image");
    for (index, chunk) in image.chunks(CHUNK_BYTES).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            file.write_all_at(chunk, (index * CHUNK_BYTES) as u64).expect("the temporary folder takes an image");
        }
    }
}

#[test]
fn a_cut_keeps_what_was_flushed_and_tears_what_was_not() {
    let write = |offset, byte| Event::Write { offset, bytes: vec![byte; 4 * SECTOR_BYTES] };
    let events = vec![write(0, 1), Event::Flush, write(0, 2), write(4 * SECTOR_BYTES, 3)];
    let film = Film { events, disk_bytes: 16 * SECTOR_BYTES, begin: 0 };
    let mut rng = Rng::with_seed(1);
    let mut cut = |at, fates| Player::new(&film).cut(at, fates, &mut rng);
    assert!(cut(1, Fates::Dropped).iter().all(|byte| *byte == 0), "written and not flushed");
    assert_eq!(cut(2, Fates::Dropped)[..4 * SECTOR_BYTES], [1; 4 * SECTOR_BYTES]);
    assert_eq!(cut(4, Fates::Dropped), cut(2, Fates::Dropped));
    assert_eq!(cut(4, Fates::Kept)[4 * SECTOR_BYTES - 1..=4 * SECTOR_BYTES], [2, 3]);
    let liar = |since, fates| Player::new(&film).cut_of_a_liar(since, 4, fates, &mut Rng::with_seed(2));
    assert!(liar(0, Fates::Dropped).iter().all(|byte| *byte == 0), "flushed, and nothing was done");
    assert_eq!(
        liar(3, Fates::Dropped)[..5 * SECTOR_BYTES],
        *[[2; 4 * SECTOR_BYTES].as_slice(), &[0; SECTOR_BYTES]].concat()
    );
    assert_eq!(liar(0, Fates::Kept), cut(4, Fates::Kept));
    let torn = cut(4, Fates::BySector);
    let sectors = torn.chunks(SECTOR_BYTES).map(|sector| (sector[0], sector.iter().all(|byte| *byte == sector[0])));
    let (kinds, whole): (Vec<u8>, Vec<bool>) = sectors.unzip();
    assert!(whole.iter().all(|whole| *whole), "a sector is written whole or not at all");
    assert!(
        kinds[..4].iter().all(|kind| [1, 2].contains(kind)) && kinds[4..8].iter().all(|kind| [0, 3].contains(kind))
    );
}
