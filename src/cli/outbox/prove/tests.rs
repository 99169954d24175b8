//! A storage that keeps its word, and several that do not.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::bench::{Bench, RING, SLOT_BYTES, SLOTS, made_name, slot_offset};
use super::history::{self, Line, State};
use super::judge::{Findings, Verdict, judge, newest_run};
use crate::outbox::disk::{Disk, Entry};
use crate::outbox::sim_disk::{Fate, SimDisk};

/// How a storage takes a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Honest,
    /// It says yes and does nothing, from this call on.
    Ignored {
        after: u64,
    },
    /// What the folder holds is never flushed.
    FilesOnly,
}

/// One storage with two users.
#[derive(Clone)]
struct Storage {
    disk: Rc<RefCell<SimDisk>>,
    flush: Flush,
    flushes: Rc<RefCell<u64>>,
}

impl Storage {
    fn new(flush: Flush) -> Self {
        Self { disk: Rc::default(), flush, flushes: Rc::default() }
    }

    fn takes(&self) -> bool {
        *self.flushes.borrow_mut() += 1;
        let nth = *self.flushes.borrow();
        match self.flush {
            Flush::Honest | Flush::FilesOnly => true,
            Flush::Ignored { after } => nth <= after,
        }
    }

    fn cut(&self, seed: u64, fate: impl FnMut(&mut fastrand::Rng) -> Fate) {
        self.disk.borrow_mut().power_cut(&mut fastrand::Rng::with_seed(seed), fate);
    }

    fn judge(&self, seen: Option<u64>) -> Findings {
        judge(&mut self.clone(), self.clone(), 1, seen, 5)
    }
}

impl Disk for Storage {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        self.disk.borrow_mut().list()
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.borrow_mut().read_at(name, offset, buf)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.borrow_mut().write_at(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        if self.takes() { self.disk.borrow_mut().sync(name) } else { Ok(()) }
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        if self.takes() && self.flush != Flush::FilesOnly { self.disk.borrow_mut().sync_dir() } else { Ok(()) }
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.borrow_mut().remove(name)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        self.disk.borrow_mut().free_bytes()
    }
}

/// Counts until the power goes at the `calls`-th changing call from here; the last number said to be flushed.
fn count_until(storage: &Storage, calls: u64) -> u64 {
    let mut bench = Bench::begin(storage.clone(), storage.clone(), 1, 3).expect("a storage that works");
    {
        let mut disk = storage.disk.borrow_mut();
        disk.cut_after = Some(disk.calls + calls);
    }
    (1..).find(|number| bench.number(*number).is_err()).expect("the power goes") - 1
}

fn any(rng: &mut fastrand::Rng) -> Fate {
    *rng.choice([Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff].iter()).expect("five")
}

#[test]
fn a_storage_that_keeps_its_word_is_said_to_whenever_the_power_goes() {
    let only = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in only.map_or(0..150, |seed: u64| seed..seed + 1) {
        let storage = Storage::new(Flush::Honest);
        let flushed = count_until(&storage, 1 + seed * 3 % 1100);
        storage.cut(seed, any);
        for seen in [None, Some(flushed)] {
            let found = storage.judge(seen);
            let replay = format!("SEED={seed} cargo test --lib a_storage_that_keeps");
            assert_eq!(found.verdict(), Verdict::Kept, "{found:?}; replay: {replay}");
            assert!(found.flushed.abs_diff(flushed) <= 1, "{found:?}, {flushed}; replay: {replay}");
        }
    }
}

#[test]
fn flushes_that_do_nothing_are_a_lie_by_the_last_number_seen() {
    let storage = Storage::new(Flush::Ignored { after: 120 });
    let flushed = count_until(&storage, 600);
    storage.cut(1, |_| Fate::Old);
    let blind = storage.judge(None);
    let found = storage.judge(Some(flushed));
    assert_eq!(found.verdict(), Verdict::Lies, "{found:?}");
    assert!(found.tail_missing > 50 && found.top + found.tail_missing == flushed, "{found:?}");
    assert!(blind.flushed < flushed, "the disk alone does not know it: {blind:?}");
}

#[test]
fn a_storage_that_reorders_is_told_without_a_witness() {
    for seed in 0..50 {
        let storage = Storage::new(Flush::Ignored { after: 120 });
        count_until(&storage, 500 + seed);
        storage.cut(seed, |rng| if rng.bool() { Fate::Old } else { Fate::New });
        let found = storage.judge(None);
        assert_eq!((found.verdict(), found.reordered.is_empty()), (Verdict::Lies, false), "seed {seed}: {found:?}");
    }
}

#[test]
fn a_folder_that_is_not_flushed_loses_its_files() {
    let storage = Storage::new(Flush::FilesOnly);
    let flushed = count_until(&storage, 400);
    assert!(flushed > 20);
    // All but the folder's entries were flushed; the ring's is lost, too.
    storage.cut(1, |_| Fate::Old);
    let found = storage.judge(Some(flushed));
    assert_eq!((found.verdict(), found.files_missing.len()), (Verdict::Lies, 2), "{found:?}");
}

#[test]
fn damage_beside_the_number_in_flight_is_told_from_a_lie() {
    let storage = Storage::new(Flush::Honest);
    let flushed = count_until(&storage, 300);
    storage.cut(1, |_| Fate::Old);
    let at = slot_offset(flushed - 3) as usize;
    storage.disk.borrow_mut().damage(RING, |bytes| bytes[at + 700] ^= 1);
    let found = storage.judge(Some(flushed));
    assert_eq!((found.verdict(), found.damaged), (Verdict::Damages, vec![flushed - 3]));
}

#[test]
fn records_that_our_outbox_lost_are_its_own_fault() {
    let storage = Storage::new(Flush::Honest);
    let flushed = count_until(&storage, 300);
    storage.cut(1, |_| Fate::Old);
    let names: Vec<_> = storage.disk.borrow().image().into_keys().filter(|name| name.ends_with(".seg")).collect();
    for name in names {
        storage.disk.borrow_mut().damage(&name, |bytes| bytes.fill(0));
    }
    let found = storage.judge(Some(flushed));
    assert_eq!(found.verdict(), Verdict::OurFault);
    assert_eq!(found.records_missing.len() as u64, flushed.min(48));
}

#[test]
fn says_where_the_number_in_flight_was_torn() {
    let storage = Storage::new(Flush::Honest);
    let mut bench = Bench::begin(storage.clone(), storage.clone(), 1, 3).expect("a storage that works");
    (1..=5).for_each(|number| bench.number(number).expect("a storage that works"));
    let mut six = storage.clone();
    let torn: Vec<u8> = (0..SLOT_BYTES / 512).flat_map(|nth| super::bench::sector(1, 6, nth as u32)).collect();
    six.write_at(RING, slot_offset(6), &torn[..4096]).expect("a storage that works");
    let found = storage.judge(Some(5));
    assert_eq!((found.in_flight.new, found.in_flight.torn_at), (8, Some(4096)));
    assert_eq!(found.verdict(), Verdict::Kept);
    six.write_at(RING, slot_offset(6) + 4096 + 1024, &torn[5120..5632]).expect("a storage that works");
    assert_eq!(storage.judge(Some(5)).in_flight.torn_at, Some(512));
}

#[test]
fn a_run_that_goes_on_after_kills_keeps_everything() {
    let storage = Storage::new(Flush::Honest);
    let mut flushed = count_until(&storage, 77);
    for round in 0..200u64 {
        storage.disk.borrow_mut().kill();
        let found = storage.judge(Some(flushed));
        assert_eq!(found.verdict(), Verdict::Kept, "round {round}: {found:?}");
        let mut bench = Bench::go_on(storage.clone(), storage.clone(), 1, round);
        {
            let mut disk = storage.disk.borrow_mut();
            disk.cut_after = Some(disk.calls + 1 + round * 13 % 90);
        }
        let next = found.flushed + 1;
        let failed = (next..).find(|number| bench.number(*number).is_err()).expect("killed");
        flushed = failed - 1;
    }
    assert!(flushed > 10 * SLOTS, "{flushed}");
    let made = storage.disk.borrow().image().into_keys().filter(|name| name.starts_with("prove.made")).count();
    assert!(made <= 3, "old files go: {made}");
    assert!(storage.clone().read_at(&made_name((flushed - 1) / 16), 0, &mut [0]).is_ok());
}

#[test]
fn remembers_runs_and_verdicts_across_torn_writes() {
    let mut disk = SimDisk::default();
    assert_eq!((history::state(&mut disk), newest_run(&mut disk)), (None, None));
    let state = |run| State { run, boot: "b".into(), finished: false };
    history::set_state(&mut disk, &state(1)).expect("a storage that works");
    history::set_state(&mut disk, &state(2)).expect("a storage that works");
    disk.damage("prove.state.0", |bytes| bytes[..200].fill(7));
    assert_eq!(history::state(&mut disk), Some(state(1)));
    let line =
        |run, torn_at| Line { torn_at, ..Line::new(run, "cut", &Findings { flushed: 9, ..Findings::default() }) };
    history::add(&mut disk, &line(1, None)).expect("a storage that works");
    disk.write_at("prove.report", 200, b"{\"run\":").expect("a storage that works");
    history::add(&mut disk, &line(2, Some(512))).expect("a storage that works");
    let report = history::report(&mut disk);
    assert_eq!(report, [line(1, None), line(2, Some(512))]);
    assert_eq!(history::summary(&report), "2 cuts judged: 2 kept everything; smallest piece torn off: 512 bytes");
}
