//! What a power cut may leave: every way in which the pending sectors, sizes and folder entries of a moment can come
//! out, as a string of letters that replays it; and the hash of the image, without building it where that can be.

use std::hash::{DefaultHasher, Hash, Hasher};

use backhaul::outbox::sim_disk::{Doubt, Fate, SimDisk};

/// Up to so many sectors, all old/new subsets are taken.
pub const SECTORS_MAX: usize = 8;

/// One fate for each doubt of a disk, in its order.
pub type Fates = Vec<Fate>;

/// How thoroughly a moment is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// So many outcomes, drawn by seed.
    Drawn(usize),
    /// All old/new subsets of up to [`SECTORS_MAX`] sectors, and so many of the other outcomes, drawn.
    All(usize),
}

/// The letters of an outcome.
pub fn letters(fates: &[Fate]) -> String {
    let letter = |fate: &Fate| match fate {
        Fate::Old => 'o',
        Fate::New => 'n',
        Fate::Zeros => 'z',
        Fate::Garbage => 'g',
        Fate::BitOff => 'b',
    };
    fates.iter().map(letter).collect()
}

/// Something else than old and new is in it.
pub fn is_damage(fates: &[Fate]) -> bool {
    fates.iter().any(|fate| !matches!(fate, Fate::Old | Fate::New))
}

/// The outcome of these letters.
pub fn parse(letters: &str) -> Fates {
    let fate = |letter| match letter {
        'o' => Fate::Old,
        'n' => Fate::New,
        'z' => Fate::Zeros,
        'g' => Fate::Garbage,
        'b' => Fate::BitOff,
        other => panic!("no fate {other}"),
    };
    letters.chars().map(fate).collect()
}

/// A disk at a moment, ready to be cut again and again.
pub struct Cutter<'a> {
    disk: &'a SimDisk,
    doubts: Vec<Doubt>,
    /// Of the image in which nothing got through.
    base: u64,
    /// What a sector that got through changes in the hash; empty where sizes or folder entries are in doubt.
    deltas: Vec<u64>,
}

impl<'a> Cutter<'a> {
    /// Of this disk.
    pub fn new(disk: &'a SimDisk) -> Self {
        let doubts = disk.doubts();
        let delta = |doubt: &Doubt| match doubt {
            Doubt::Sector(name, sector) => {
                let (old, new) = disk.sector(name, *sector);
                Some(sector_hash(name, *sector, old?) ^ sector_hash(name, *sector, new?))
            }
            Doubt::Made(_) | Doubt::Removed(_) | Doubt::Size(_) => None,
        };
        let deltas = doubts.iter().map(delta).collect::<Option<Vec<_>>>().unwrap_or_default();
        Self { disk, doubts, base: image_hash(disk), deltas }
    }

    /// The disk after this outcome.
    pub fn cut(&self, fates: &[Fate]) -> SimDisk {
        let mut disk = self.disk.clone();
        let decided: Vec<_> = self.doubts.iter().cloned().zip(fates.iter().copied()).collect();
        // What garbage it is follows from the outcome: a replay needs its letters only.
        let mut hasher = DefaultHasher::new();
        letters(fates).hash(&mut hasher);
        disk.cut(&decided, &mut fastrand::Rng::with_seed(hasher.finish()));
        disk
    }

    /// Hash of the image after this outcome, and the disk if it had to be built.
    pub fn hash(&self, fates: &[Fate]) -> (u64, Option<SimDisk>) {
        if !self.deltas.is_empty() && !is_damage(fates) {
            let kept = self.deltas.iter().zip(fates).filter(|(_, fate)| **fate == Fate::New);
            return (kept.fold(self.base, |hash, (delta, _)| hash ^ delta), None);
        }
        let disk = self.cut(fates);
        (image_hash(&disk), Some(disk))
    }

    /// Calls `visit` with outcomes until it says to stop.
    pub fn outcomes(&self, depth: Depth, rng: &mut fastrand::Rng, mut visit: impl FnMut(&Fates) -> bool) -> bool {
        match depth {
            Depth::Drawn(count) => {
                let all: Fates = self.doubts.iter().map(|_| Fate::Old).collect();
                visit(&all) && (0..count).all(|index| visit(&self.drawn(index % 2 == 0, rng)))
            }
            Depth::All(drawn) => {
                self.frames().iter().all(|frame| self.subsets(frame, rng, &mut visit))
                    && (0..drawn).all(|_| visit(&self.drawn(false, rng)))
            }
        }
    }

    fn drawn(&self, plain: bool, rng: &mut fastrand::Rng) -> Fates {
        let fates = [Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff];
        // Most of the time a disk does one kind of harm.
        let harm = fates[rng.usize(2..fates.len())];
        let any = rng.u8(..4) == 0;
        let mut draw = || match rng.u8(..3) {
            0 if plain => Fate::Old,
            0 if any => fates[rng.usize(..fates.len())],
            0 => harm,
            1 => Fate::Old,
            _ => Fate::New,
        };
        self.doubts.iter().map(|_| draw()).collect()
    }

    /// Every combination of folder entries and sizes, all sectors old.
    fn frames(&self) -> Vec<Fates> {
        let mut frames: Vec<Fates> = vec![Vec::new()];
        for doubt in &self.doubts {
            let fates: &[Fate] = match doubt {
                Doubt::Made(_) | Doubt::Removed(_) => &[Fate::Old, Fate::New],
                Doubt::Size(_) => &[Fate::Old, Fate::New, Fate::Zeros],
                Doubt::Sector(..) => &[Fate::Old],
            };
            let longer = |frame: Fates| fates.iter().map(move |fate| [frame.as_slice(), &[*fate]].concat());
            frames = frames.into_iter().flat_map(longer).collect();
        }
        frames
    }

    fn subsets(&self, frame: &Fates, rng: &mut fastrand::Rng, visit: &mut impl FnMut(&Fates) -> bool) -> bool {
        let is_sector = |doubt: &Doubt| matches!(doubt, Doubt::Sector(..));
        let sectors: Vec<usize> = (0..self.doubts.len()).filter(|index| is_sector(&self.doubts[*index])).collect();
        let count = sectors.len();
        let mut take = |kept: &dyn Fn(usize) -> bool| {
            let mut fates = frame.clone();
            for (bit, index) in sectors.iter().enumerate() {
                fates[*index] = if kept(bit) { Fate::New } else { Fate::Old };
            }
            visit(&fates)
        };
        if count <= SECTORS_MAX {
            return (0..1usize << count).all(|mask| take(&|bit| mask >> bit & 1 == 1));
        }
        // Too many for all: beginnings, ends, one alone, all but one, and some drawn.
        let shapes = (0..=count).all(|n| take(&|bit| bit < n) && take(&|bit| bit >= n));
        let ones = shapes && (0..count).all(|n| take(&|bit| bit == n) && take(&|bit| bit != n));
        ones && (0..128).all(|_| {
            let drawn: Vec<bool> = (0..count).map(|_| rng.bool()).collect();
            take(&|bit| drawn[bit])
        })
    }
}

/// Zero for zeros, so that a sector that was never written and one that is missing are the same.
fn sector_hash(name: &str, sector: usize, bytes: &[u8]) -> u64 {
    // Eight bytes a step, each step a bijection of what came before: SipHash takes three times as long.
    let (words, rest) = bytes.as_chunks::<8>();
    let mix = |hash: u64, word: u64| (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if rest.is_empty() && words.iter().all(|word| *word == [0; 8]) {
        return 0;
    }
    let hash = words.iter().fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let mut hasher = DefaultHasher::new();
    (name, sector, hash, rest).hash(&mut hasher);
    hasher.finish()
}

/// Hash of what is durable: the sum of its sectors'.
fn image_hash(disk: &SimDisk) -> u64 {
    let mut hash = 0;
    for (name, bytes, sectors) in disk.durable_sectors() {
        let mut hasher = DefaultHasher::new();
        (name, bytes).hash(&mut hasher);
        hash ^= hasher.finish();
        for (index, sector) in sectors.enumerate() {
            hash ^= sector_hash(name, index, sector);
        }
    }
    hash
}
