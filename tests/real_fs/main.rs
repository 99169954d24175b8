//! Power cuts of a real file system under the real agent. A folder over FUSE holds one file, `disk.img`, and writes down
//! every write and every flush that a loop-mounted ext4 makes of what the agent does. Afterwards the power is cut at any
//! place in that film: what was flushed stays, what was not is dropped, kept or torn by sector; the file system is put
//! in order by `e2fsck`, or by the kernel alone, and the real recovery code has to bring back what was committed.
//! `backhaul outbox prove` is filmed likewise, and has to say of such a disk that it keeps its word.
//!
//! `CUTS=250 ROUNDS=4 SEED=7 cargo test --features receiver --test real_fs` for more of it, or for the same choices
//! again. (The seed gives the same records, places and fates; what the kernel writes when is the kernel's. The image of
//! a failure is kept.)
#![cfg(feature = "receiver")]

mod film;
mod load;
mod prove;
mod revive;
mod verdict;

#[path = "../support/storage/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod storage;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use fastrand::Rng;

use film::{Fates, Film, Player};
use load::Options;
use revive::Way;
use support::TempDir;
use verdict::{Books, Tally};

/// Cuts of each variant.
const CUTS: u64 = 40;
/// Rounds of load (offline, online, kill) that are filmed.
const ROUNDS: u64 = 1;
/// Cuts by a disk that lies: enough that not each can fall where nothing was promised lately.
const LIES: usize = 6;

#[test]
fn what_was_committed_survives_cuts_of_ext4_ordered_with_4_kib_blocks() {
    campaign("what_was_committed_survives_cuts_of_ext4_ordered_with_4_kib_blocks", "data=ordered", 4096);
}

#[test]
fn what_was_committed_survives_cuts_of_ext4_ordered_with_1_kib_blocks() {
    campaign("what_was_committed_survives_cuts_of_ext4_ordered_with_1_kib_blocks", "data=ordered", 1024);
}

#[test]
fn what_was_committed_survives_cuts_of_ext4_writeback_with_4_kib_blocks() {
    campaign("what_was_committed_survives_cuts_of_ext4_writeback_with_4_kib_blocks", "data=writeback", 4096);
}

#[test]
fn what_was_committed_survives_cuts_of_ext4_writeback_with_1_kib_blocks() {
    campaign("what_was_committed_survives_cuts_of_ext4_writeback_with_1_kib_blocks", "data=writeback", 1024);
}

#[test]
fn prove_acquits_an_honest_disk_whenever_the_power_goes_and_finds_a_liar_out() {
    prove::campaign("prove_acquits_an_honest_disk_whenever_the_power_goes_and_finds_a_liar_out");
}

fn campaign(name: &'static str, mode: &'static str, block_bytes: u32) {
    if !storage::own_mounts(name, &["mkfs.ext4", "e2fsck", "debugfs", "mount", "losetup"]) {
        return;
    }
    let (cuts, rounds) = (from_env("CUTS").unwrap_or(CUTS), from_env("ROUNDS").unwrap_or(ROUNDS));
    let seed = from_env("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let _replay = Replay { name, cuts, rounds, seed };
    let mut rng = Rng::with_seed(seed);
    let dir = TempDir::new("cuts");
    let options = Options { mode, block_bytes, rounds };
    let (film, books) = load::record(&dir, &options, &mut rng);
    let mut stage = Stage { dir: &dir, mode, books: &books, tally: Tally::default() };
    let mut player = Player::new(&film);
    let mut fates = BTreeMap::new();
    let answers: Vec<usize> = books.promises.iter().map(|promise| promise.at).collect();
    for at in places(&film, &answers, cuts, &mut rng) {
        let fate = Fates::draw(&mut rng);
        *fates.entry(format!("{fate:?}")).or_insert(0) += 1;
        let image = player.cut(at, fate, &mut rng);
        let way = if rng.bool() { Way::Fsck } else { Way::Kernel };
        stage.check(&image, at, way, fate, rng.u64(..));
    }
    let Tally { held, gaps, torn_off, false_alarms, unmountable } = stage.tally;
    eprintln!(
        "ext4 {mode}, {block_bytes}-byte blocks: {cuts} cuts of {} events ({fates:?}), {} records committed, {held} \
         seen again where they had to be, {gaps} torn gaps, {torn_off} uncommitted records, {false_alarms} empty \
         lanes reported lost, {unmountable} times the kernel wanted fsck, seed {seed}",
        film.events.len(),
        books.promises.len(),
    );
    assert!(held >= cuts * 10, "{held} records held over {cuts} cuts: that proves little");
    assert_lies_are_seen(&film, &mut stage, &mut rng);
}

/// Where to cut, in order: one third anywhere, one third right behind an answer, one third right before a flush.
fn places(film: &Film, answers: &[usize], cuts: u64, rng: &mut Rng) -> Vec<usize> {
    let flushes: Vec<usize> = film.flushes().filter(|at| *at >= film.begin).collect();
    let place = |number| match number % 3 {
        0 => rng.usize(film.begin..=film.events.len()),
        1 => answers[rng.usize(..answers.len())],
        _ => flushes[rng.usize(..flushes.len())],
    };
    let mut places: Vec<usize> = (0..cuts).map(place).collect();
    places.sort_unstable();
    places
}

/// The other way round: a disk that forgets what it had flushed is found out. Else the verdicts above mean nothing.
fn assert_lies_are_seen(film: &Film, stage: &mut Stage<'_>, rng: &mut Rng) {
    let mut places: Vec<usize> = (0..LIES).map(|_| rng.usize(film.begin..film.events.len())).collect();
    places.sort_unstable();
    let mut player = Player::new(film);
    let mut seen = 0;
    for at in places {
        let image = player.cut(at, Fates::Dropped, rng);
        // Three answers later, the disk is still where it was.
        let Some(late) = stage.books.promises.iter().filter(|promise| promise.at > at).nth(3) else { continue };
        seen += u32::from(stage.verdict(&image, late.at, Way::Fsck, rng.u64(..)).is_err());
    }
    assert!(seen > 0, "not one of {LIES} lies about flushing was seen");
}

/// Where images are revived and judged.
struct Stage<'a> {
    dir: &'a TempDir,
    mode: &'static str,
    books: &'a Books,
    tally: Tally,
}

impl Stage<'_> {
    fn verdict(&mut self, image: &[u8], at: usize, way: Way, seed: u64) -> Result<Tally, String> {
        let file = self.dir.join("cut.img");
        film::write_sparse(&file, image);
        revive::with(self.dir, &file, self.mode, way, "outbox", &mut self.tally.unmountable, |folder| {
            let revived = revive::open(folder, seed)?;
            let tally = self.books.check(at, &revived)?;
            revive::goes_on(folder, seed, &revived, &self.books.left_by(at))?;
            Ok(tally)
        })
    }

    fn check(&mut self, image: &[u8], at: usize, way: Way, fates: Fates, seed: u64) {
        match self.verdict(image, at, way, seed) {
            Ok(tally) => self.tally.add(&tally),
            Err(words) => {
                let kept = self.dir.join("failed.img");
                fs::write(&kept, image).expect("the temporary folder takes an image");
                panic!("cut at {at} ({fates:?}, {way:?}, recovery's seed {seed}), image {}: {words}", kept.display());
            }
        }
    }
}

/// Says how to replay when the test fails.
struct Replay {
    name: &'static str,
    cuts: u64,
    rounds: u64,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "replay: CUTS={} ROUNDS={} SEED={} cargo test --features receiver --test real_fs {}",
                self.cuts, self.rounds, self.seed, self.name
            );
        }
    }
}

fn from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}
