//! The power-cut campaign: every short string of operations, cut at every call to the disk, in every way in which the
//! pending sectors can come out, against a model that knows the exact truth. A state is the image after the cut and
//! the model; it counts once. `make powercut` runs the part for CI, `make powercut-long` the long one.
//!
//! `POWERCUT='start/operations/moment/fates[/moment/fates]'` replays one state. `POWERCUT_SECONDS` bounds the time,
//! `POWERCUT_THREADS` the threads, `POWERCUT_LONG=1` makes it the long part.

mod cuts;
mod engine;
mod model;
mod ops;
mod oracle;
mod progress;
mod seen;
mod starts;
mod trace;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cuts::Depth;
use engine::{Campaign, Phase, Strings};
use progress::Progress;
use seen::Seen;

/// Distinct states that the part for CI is to reach.
const ENOUGH: u64 = 10_000_000;
/// In `cargo test` alone: a taste of it.
const SECONDS: u64 = 10;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// In this order: each start a little of everything, then everything.
fn phases() -> Vec<Phase> {
    let phase = |name, strings, first, second| Phase { name, strings, first, second };
    vec![
        phase("a sweep over strings of 0 to 3", Strings::All(0..4), Depth::Drawn(6), Some(Depth::Drawn(2))),
        phase("all strings of 0 to 4", Strings::All(0..5), Depth::All(32), None),
        phase("a second cut, strings of 0 to 3", Strings::All(0..4), Depth::All(8), Some(Depth::All(2))),
        phase("drawn strings", Strings::Drawn(u64::MAX), Depth::Drawn(48), Some(Depth::Drawn(6))),
    ]
}

#[test]
fn nothing_promised_is_lost_and_nothing_invented_whatever_a_power_cut_leaves() {
    let starts = starts::all();
    if let Ok(place) = std::env::var("POWERCUT") {
        return engine::replay(&starts, &place);
    }
    let seconds = number("POWERCUT_SECONDS", SECONDS);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let threads = number("POWERCUT_THREADS", std::thread::available_parallelism().map_or(2, |n| n.get() as u64));
    let campaign = Campaign::new(starts, Seen::exact(), deadline, ENOUGH, threads as usize);
    let begun = Instant::now();
    for phase in phases() {
        run(&campaign, &phase);
        if let Some(failure) = campaign.failure() {
            panic!("{failure}");
        }
    }
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &campaign.counts;
    let (distinct, elapsed) = (count(&counts.distinct), begun.elapsed().as_secs_f64());
    eprintln!(
        "visited {}, distinct {distinct} (of these {} by a second cut, {} with zeros, garbage or a bit off), \
         deduplicated {}, kills {}; {:.0} distinct states a second in {elapsed:.0} s on {threads} threads",
        count(&counts.visited),
        count(&counts.second),
        count(&counts.damaged),
        count(&counts.deduplicated),
        count(&counts.kills),
        distinct as f64 / elapsed,
    );
    if distinct < ENOUGH {
        eprintln!("fewer than the goal of {ENOUGH} distinct states in the {seconds} s there were");
    }
}

fn run(campaign: &Campaign, phase: &Phase) {
    if campaign.is_over() {
        return;
    }
    let units = phase.units(campaign.starts.len());
    let progress = Progress::new(phase.name, units, &campaign.counts, campaign.enough, campaign.deadline);
    let (begun, before) = (Instant::now(), campaign.counts.distinct.load(Ordering::Relaxed));
    let done = campaign.run(phase, 0..units, &progress);
    let new = campaign.counts.distinct.load(Ordering::Relaxed) - before;
    let all = if done == units { "whole".into() } else { format!("{done} strings begun of {units}") };
    progress.finish(&format!("{}: {all}, {new} new states, {:.0} s", phase.name, begun.elapsed().as_secs_f64()));
}

/// The campaign itself, tried: on a disk that only says that it has synced, it finds a loss at once.
#[test]
fn a_disk_that_lies_about_flushing_is_found_out() {
    let starts = starts::all();
    let mut campaign = Campaign::new(starts, Seen::exact(), Instant::now() + Duration::from_secs(600), ENOUGH, 1);
    campaign.lying_disk = true;
    run(&campaign, &phases()[0]);
    let failure = campaign.failure().expect("it is found out");
    assert!(failure.contains("promised and not there"), "{failure}");
}
