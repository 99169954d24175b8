//! Runs the campaign: strings of operations from every start, every moment of the last one, every outcome; each new
//! state once through the oracle. In a fixed order, so that what was covered can be said.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Instant;

use backhaul::outbox::Outbox;
use backhaul::outbox::sim_disk::SimDisk;

use super::cuts::{self, Cutter, Depth};
use super::model::Model;
use super::ops::{self, Driver, Moment, Op, Recorder};
use super::oracle;
use super::progress::Progress;
use super::seen::Seen;
use super::starts::Start;
use super::trace;

/// Salt of the states whose recovery was cut: they were counted before.
const RECOVERED: u64 = 0x5ec0_17d0_5ec0_17d0;

/// How many operations strings are made of.
const LETTERS: u64 = Op::ALPHABET.len() as u64;

/// One part of the campaign.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// For people.
    pub name: &'static str,
    /// What strings.
    pub strings: Strings,
    /// The first cut.
    pub first: Depth,
    /// A second one, in the recovery from the first.
    pub second: Option<Depth>,
}

/// Which strings of operations.
#[derive(Debug, Clone, PartialEq)]
pub enum Strings {
    /// All of these lengths, from every start; moments of the last operation only, the others' are a shorter string's.
    /// One live epoch a string, where one can begin: the second waits for the first one's backlog.
    All(Range<u32>),
    /// So many, drawn, cuts and recoveries among their operations; moments of every operation.
    Drawn(u64),
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Outcomes looked at.
    pub visited: AtomicU64,
    /// New states, each of which went through the oracle.
    pub distinct: AtomicU64,
    /// Outcomes that were there before.
    pub deduplicated: AtomicU64,
    /// Of the distinct ones, those left by a second cut, in recovery.
    pub second: AtomicU64,
    /// Moments at which the process was killed instead; not counted as states.
    pub kills: AtomicU64,
    /// Outcomes that a drawn other than old and new left; counted in `distinct`, too.
    pub damaged: AtomicU64,
}

/// What all threads share.
pub struct Campaign {
    /// Where strings start.
    pub starts: Vec<Start>,
    /// What was there.
    pub seen: Seen,
    /// The counts.
    pub counts: Counts,
    /// When to stop.
    pub deadline: Instant,
    /// Distinct states after which drawn strings end.
    pub enough: u64,
    /// Threads.
    pub threads: usize,
    /// The disk says that it has synced and has not: the oracle must find out.
    pub lying_disk: bool,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
}

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// Whether this thread's panics are findings.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs it; what it panicked with, if it did. Panics are findings here: they are noted, not printed.
pub fn caught(run: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.get() {
                PANIC.with_borrow_mut(|text| *text = info.to_string());
            } else {
                others(info);
            }
        }));
    });
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run)).map_err(|_| PANIC.with_borrow(Clone::clone));
    CATCHING.set(before);
    result
}

impl Phase {
    /// How many strings that are, from so many starts.
    pub fn units(&self, starts: usize) -> u64 {
        match &self.strings {
            Strings::All(lengths) => lengths.clone().map(|length| LETTERS.pow(length)).sum::<u64>() * starts as u64,
            Strings::Drawn(count) => *count,
        }
    }

    /// The start and the string of a unit; shorter ones first, each from every start.
    fn unit(&self, unit: u64, starts: usize) -> (usize, Vec<Op>) {
        let start = (unit % starts as u64) as usize;
        match &self.strings {
            Strings::All(lengths) => {
                let mut rest = unit / starts as u64;
                let mut length = lengths.start;
                while rest >= LETTERS.pow(length) {
                    rest -= LETTERS.pow(length);
                    length += 1;
                }
                let op = |place: u32| Op::ALPHABET[(rest / LETTERS.pow(place) % LETTERS) as usize];
                (start, (0..length).rev().map(op).collect())
            }
            Strings::Drawn(_) => {
                let mut rng = fastrand::Rng::with_seed(unit);
                let length = rng.usize(5..40);
                let letters = "sssmmmmlllccccccccaaarroxxv";
                let op = |_| Op::from_letter(letters.as_bytes()[rng.usize(..letters.len())].into());
                (start, (0..length).filter_map(op).collect())
            }
        }
    }

    /// Strings are drawn: all their moments count, and there is no end to them.
    pub fn is_drawn(&self) -> bool {
        matches!(self.strings, Strings::Drawn(_))
    }
}

impl Campaign {
    /// Nothing has run yet.
    pub fn new(starts: Vec<Start>, seen: Seen, deadline: Instant, enough: u64, threads: usize) -> Self {
        let counts = Counts::default();
        let (stop, failure) = (AtomicBool::new(false), Mutex::new(None));
        Self { starts, seen, counts, deadline, enough, threads, lying_disk: false, stop, failure }
    }

    /// What went wrong first.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("no thread panics in here").clone()
    }

    /// Whether it is over: time is up, or something went wrong.
    pub fn is_over(&self) -> bool {
        if Instant::now() >= self.deadline {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.stop.load(Ordering::Relaxed)
    }

    /// Runs these units of a phase; says how many were begun.
    pub fn run(&self, phase: &Phase, units: Range<u64>, progress: &Progress) -> u64 {
        let next = AtomicU64::new(units.start);
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while !self.is_over() {
                        let unit = next.fetch_add(1, Ordering::Relaxed);
                        let sated = phase.is_drawn() && self.counts.distinct.load(Ordering::Relaxed) >= self.enough;
                        if unit >= units.end || sated {
                            break;
                        }
                        let (start, string) = phase.unit(unit, self.starts.len());
                        let start = &self.starts[start];
                        if phase.is_drawn() || is_taken(start, &string) {
                            self.string(phase, start, &string);
                        }
                        progress.tick(&self.counts, unit);
                    }
                });
            }
        });
        next.into_inner().min(units.end) - units.start
    }

    /// One string: all moments, all outcomes.
    fn string(&self, phase: &Phase, start: &Start, string: &[Op]) {
        let mut moments = Vec::new();
        let run = caught(|| moments = moments_of(start, string, phase.is_drawn(), self.lying_disk));
        if let Err(panic) = run {
            return self.fail(&place(start, string), &panic);
        }
        for (index, moment) in moments.iter().enumerate() {
            if !self.moment(phase, start, string, index, moment) {
                break;
            }
        }
    }

    fn moment(&self, phase: &Phase, start: &Start, string: &[Op], index: usize, moment: &Moment) -> bool {
        let here = || format!("{}/{index}", place(start, string));
        let model = moment.model.digest() ^ start.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = fastrand::Rng::with_seed(model ^ index as u64);
        if self.seen.insert(model ^ index as u64 ^ !RECOVERED) {
            self.counts.kills.fetch_add(1, Ordering::Relaxed);
            let mut disk = moment.disk.clone();
            disk.kill();
            disk.kill();
            if !self.ask(disk, &moment.model, start, || format!("{}/kill", here())) {
                return false;
            }
        }
        let cutter = Cutter::new(&moment.disk);
        let mut rng2 = rng.fork();
        cutter.outcomes(phase.first, &mut rng, |fates| {
            let at = || format!("{}/{}", here(), cuts::letters(fates));
            let (key, disk) = cutter.hash(fates);
            let key = key ^ model;
            let goes_on =
                self.state(key, fates, || disk.unwrap_or_else(|| cutter.cut(fates)), &moment.model, start, &at);
            match phase.second {
                Some(depth) if goes_on && self.seen.insert(key ^ RECOVERED) => {
                    let found =
                        caught(|| self.second(&cutter.cut(fates), depth, model, &moment.model, start, &mut rng2, &at));
                    found.inspect_err(|panic| self.fail(&at(), panic)).is_ok() && !self.is_over()
                }
                Some(_) | None => goes_on,
            }
        })
    }

    /// The power goes again, at each call of the recovery.
    #[expect(clippy::too_many_arguments, reason = "all that says where we are")]
    fn second(
        &self,
        disk: &SimDisk,
        depth: Depth,
        digest: u64,
        model: &Model,
        start: &Start,
        rng: &mut fastrand::Rng,
        at: &dyn Fn() -> String,
    ) {
        for (index, copy) in recovery(disk, start).iter().enumerate() {
            let cutter = Cutter::new(copy);
            let whole = cutter.outcomes(depth, rng, |fates| {
                let (key, disk) = cutter.hash(fates);
                let at = || format!("{}/{index}/{}", at(), cuts::letters(fates));
                let before = self.counts.distinct.load(Ordering::Relaxed);
                let build = || disk.unwrap_or_else(|| cutter.cut(fates));
                let goes_on = self.state(key ^ digest, fates, build, model, start, &at);
                let new = self.counts.distinct.load(Ordering::Relaxed) - before;
                self.counts.second.fetch_add(new.min(1), Ordering::Relaxed);
                goes_on
            });
            if !whole {
                break;
            }
        }
    }

    /// One outcome: counted, and asked if it is new. False: it is over.
    fn state(
        &self,
        key: u64,
        fates: &cuts::Fates,
        disk: impl FnOnce() -> SimDisk,
        model: &Model,
        start: &Start,
        at: &dyn Fn() -> String,
    ) -> bool {
        self.counts.visited.fetch_add(1, Ordering::Relaxed);
        if !self.seen.insert(key) {
            self.counts.deduplicated.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        self.counts.distinct.fetch_add(1, Ordering::Relaxed);
        if cuts::is_damage(fates) {
            self.counts.damaged.fetch_add(1, Ordering::Relaxed);
        }
        self.ask(disk(), model, start, at) && !self.is_over()
    }

    fn ask(&self, disk: SimDisk, model: &Model, start: &Start, at: impl FnOnce() -> String) -> bool {
        let answer = caught(|| oracle::check(disk, model, start));
        answer.inspect_err(|panic| self.fail(&at(), panic)).is_ok()
    }

    fn fail(&self, place: &str, panic: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let report = format!("{panic}\nreplay with: POWERCUT='{place}' make powercut");
        self.failure.lock().expect("no thread panics in here").get_or_insert(report);
    }
}

/// Whether a string that is enumerated says more than one without a live epoch.
fn is_taken(start: &Start, string: &[Op]) -> bool {
    string.iter().filter(|op| **op == Op::Live).count() <= usize::from(start.may_live())
}

fn place(start: &Start, string: &[Op]) -> String {
    format!("{}/{}", start.name, string.iter().map(|op| op.letter()).collect::<String>())
}

/// The moments of a string's last operation, or of all of them.
fn moments_of(start: &Start, string: &[Op], all: bool, lying_disk: bool) -> Vec<Moment> {
    let (last, before) = string.split_last().map_or((None, string), |(last, before)| (Some(*last), before));
    let from_open = all || string.is_empty();
    let disk = Recorder::new(start.disk.clone(), from_open, lying_disk);
    let mut driver = Driver::open(disk, Model::clone(&start.model), &start.config, start.seed + 100);
    before.iter().for_each(|op| driver.run(*op));
    driver.record();
    last.into_iter().for_each(|op| driver.run(op));
    driver.moments
}

/// The disk after each call of a recovery that leaves something pending.
fn recovery(disk: &SimDisk, start: &Start) -> Vec<SimDisk> {
    let (outbox, _) = Outbox::open(Recorder::new(disk.clone(), true, false), &start.config, 11);
    outbox.into_disk().copies
}

/// Replays one state, or a string up to where it fails, and says what happens on the way.
pub fn replay(starts: &[Start], place: &str) {
    let parts: Vec<&str> = place.split('/').collect();
    let start = starts.iter().find(|start| start.name == parts[0]).unwrap_or_else(|| panic!("no start {}", parts[0]));
    eprintln!("start {}: {}", start.name, trace::disk(&start.disk));
    let string = ops::parse(parts.get(1).copied().unwrap_or_default());
    let drawn = string.len() > 5;
    let moments = moments_of(start, &string, drawn, false);
    let Some(index) = parts.get(2) else { return eprintln!("{} moments, nothing wrong", moments.len()) };
    let moment = &moments[index.parse::<usize>().expect("the number of a moment")];
    eprintln!("truth: {:#?}", moment.model);
    let mut disk = moment.disk.clone();
    disk.kill();
    if parts.get(3) != Some(&"kill") {
        disk = cut(disk, parts.get(3).expect("fates"));
        if let (Some(index), Some(fates)) = (parts.get(4), parts.get(5)) {
            let copies = recovery(&disk, start);
            disk = cut(copies[index.parse::<usize>().expect("the number of a call")].clone(), fates);
        }
    }
    let (mut outbox, report) = Outbox::open(disk.clone(), &start.config, 11);
    eprintln!("recovery: {report:?}\nflash: {:?}", outbox.flash_status());
    for (offer, items) in ops::look(&mut outbox) {
        eprintln!("{offer:?}: {}", trace::items(&items));
    }
    eprintln!("after it: {}", trace::disk(outbox.disk_mut()));
    oracle::check(disk, &moment.model, start);
    eprintln!("nothing wrong");
}

fn cut(disk: SimDisk, letters: &str) -> SimDisk {
    for (doubt, letter) in disk.doubts().iter().zip(letters.chars()) {
        eprintln!("  {letter} {doubt:?}");
    }
    let disk = Cutter::new(&disk).cut(&cuts::parse(letters));
    eprintln!("after the cut: {}", trace::disk(&disk));
    disk
}
