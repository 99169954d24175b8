//! The power-cut campaign: every short string of operations, cut at every call to the disk, in every way in which the
//! pending sectors can come out, against a model that knows the exact truth. A state is the image after the cut and
//! the model; it counts once. `make powercut` runs the part for CI, `make powercut-long` the long one.
//!
//! `POWERCUT='start/operations/moment/fates[/moment/fates]'` replays one state. `POWERCUT_SECONDS` bounds the time,
//! `POWERCUT_THREADS` the threads, `POWERCUT_LONG=1` makes it the long part, which goes on where it
//! was stopped (`target/tmp/powercut`; remove that folder to begin anew, as after any change to the code).
//! `POWERCUT_PHASE=n` begins with that phase, from 0.

mod cuts;
mod engine;
mod model;
mod ops;
mod oracle;
mod progress;
mod resume;
mod seen;
mod starts;
mod trace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backhaul::outbox::format::RecordArea;
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::outbox::{LaneId, Outbox};
use cuts::Depth;
use engine::{Campaign, Phase, Strings};
use progress::Progress;
use resume::Resume;
use seen::Seen;

/// Distinct states that the part for CI is to reach.
const ENOUGH: u64 = 10_000_000;
/// And the long one.
const ENOUGH_LONG: u64 = 1_000_000_000;
/// Strings between two moments at which the long run can be stopped.
const ROUND: u64 = 256;
/// In `cargo test` alone: a taste of it.
const SECONDS: u64 = 10;

fn number(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// In this order: each start a little of everything, then everything.
fn phases(long: bool) -> Vec<Phase> {
    let phase = |name, strings, first, second| Phase { name, strings, first, second };
    let sweep = phase("a sweep over strings of 0 to 3", Strings::All(0..4), Depth::Drawn(6), Some(Depth::Drawn(2)));
    let drawn = phase("drawn strings", Strings::Drawn(u64::MAX), Depth::Drawn(48), Some(Depth::Drawn(6)));
    let twice = |first, second| phase("a second cut, strings of 0 to 3", Strings::All(0..4), first, Some(second));
    if long {
        let once = phase("all strings of 0 to 5", Strings::All(0..6), Depth::All(64), None);
        vec![sweep, once, twice(Depth::All(32), Depth::All(16)), drawn]
    } else {
        let once = phase("all strings of 0 to 4", Strings::All(0..5), Depth::All(32), None);
        vec![sweep, once, twice(Depth::All(8), Depth::All(2)), drawn]
    }
}

#[test]
pub(crate) fn nothing_promised_is_lost_and_nothing_invented_whatever_a_power_cut_leaves() {
    let starts = starts::all();
    if let Ok(place) = std::env::var("POWERCUT") {
        return engine::replay(&starts, &place);
    }
    let long = std::env::var_os("POWERCUT_LONG").is_some();
    let seconds = number("POWERCUT_SECONDS", if long { u64::from(u32::MAX) } else { SECONDS });
    let threads = number("POWERCUT_THREADS", std::thread::available_parallelism().map_or(2, |n| n.get() as u64));
    let enough = number("POWERCUT_ENOUGH", if long { ENOUGH_LONG } else { ENOUGH });
    let seen = if long { Seen::filter(number("POWERCUT_FILTER_MIB", 2048) as usize) } else { Seen::exact() };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let campaign = Campaign::new(starts, seen, deadline, enough, threads as usize);
    let mut resume = if long { Resume::load(&campaign) } else { Resume::default() };
    for (index, phase) in phases(long).iter().enumerate().skip(resume.phase.max(number("POWERCUT_PHASE", 0) as usize)) {
        resume.enter(index);
        run(&campaign, phase, &mut resume);
        if let Some(failure) = campaign.failure() {
            panic!("{failure}");
        }
    }
    if long {
        resume.save(&campaign);
    }
    report(&campaign, resume.seconds());
}

fn report(campaign: &Campaign, seconds: f64) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &campaign.counts;
    let distinct = count(&counts.distinct);
    eprintln!(
        "visited {}, distinct {distinct} (of these {} by a second cut, {} with zeros, garbage or a bit off), \
         deduplicated {}, kills {}; {:.0} distinct states a second in {seconds:.0} s on {} threads",
        count(&counts.visited),
        count(&counts.second),
        count(&counts.damaged),
        count(&counts.deduplicated),
        count(&counts.kills),
        distinct as f64 / seconds,
        campaign.threads,
    );
    if distinct < campaign.enough {
        eprintln!("FEWER than the goal of {} distinct states in the time there was", campaign.enough);
    }
}

/// A phase from where it was left, in rounds; after each a long run may be stopped.
fn run(campaign: &Campaign, phase: &Phase, resume: &mut Resume) {
    if campaign.is_over() {
        return;
    }
    let units = phase.units(campaign.starts.len());
    let progress = Progress::new(phase.name, units, &campaign.counts, campaign.enough, campaign.deadline);
    let (begun, before) = (Instant::now(), campaign.counts.distinct.load(Ordering::Relaxed));
    while resume.unit < units && !campaign.is_over() {
        let end = if resume.is_kept() { units.min(resume.unit + ROUND) } else { units };
        let done = campaign.run(phase, resume.unit..end, &progress);
        // A round that was not finished is run again: what it did is in the filter and is not counted twice.
        let whole = done == end - resume.unit && !campaign.is_over();
        let sated = phase.is_drawn() && campaign.counts.distinct.load(Ordering::Relaxed) >= campaign.enough;
        if resume.is_kept() && !whole {
            break;
        }
        resume.unit += done;
        resume.save_if_due(campaign);
        if sated {
            break;
        }
    }
    let new = campaign.counts.distinct.load(Ordering::Relaxed) - before;
    let all = if resume.unit == units { "whole".into() } else { format!("{} strings of {units} begun", resume.unit) };
    progress.finish(&format!("{}: {all}, {new} new states, {:.0} s", phase.name, begun.elapsed().as_secs_f64()));
}

/// States that were wrong once.
const MENDED: &[&str] = &[
    // A segment made before a SIGKILL, unknown to the folder on flash, took a batch that was then called committed.
    "smaller-segments/sc/0/kill",
    // A segment cut while it was filled, short and with garbage in it, was made anew as short as it was.
    "fresh//0/nznnoooooooooooooooooooooooooooooo/0/gnnnnnnzobononoonnnnoonnoononno",
    // Of a batch that was cut, a record came back under the number that another one had in the next batch, cut at the
    // same place of a segment that was taken again. Nobody was told of either.
    "live-fresh/crlcmaxscxccrlsaxlarsasccx/15/ngggoon",
];

#[test]
fn what_was_found_once_stays_mended() {
    let starts = starts::all();
    for place in MENDED {
        eprintln!("POWERCUT='{place}'");
        engine::replay(&starts, place);
    }
}

/// 130 bytes of flash for a record of 100 as encoded, 70 to a batch, segments made before, acked meanwhile.
#[test]
fn seventy_records_a_batch_stay_within_the_budget_of_bytes() {
    let mut config = starts::all().remove(0).config;
    config.segment_bytes = 256 << 10;
    config.lanes[0].bytes_max = 4 * (256 << 10);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    let (lane, now) = (LaneId(0), backhaul::time::Instant::default());
    let encoded = |bytes| {
        let mut area = RecordArea::default();
        area.push(&ops::draft(model::text(1, bytes)));
        area.bytes() as u32
    };
    let draft = ops::draft(model::text(1, 100 - (encoded(50) - 50)));
    assert_eq!(encoded(100 - (encoded(50) - 50)), 100, "as encoded");
    let batches = 1000;
    for _ in 0..batches {
        for _ in 0..70 {
            outbox.push(lane, draft.clone(), now).expect("room");
        }
        outbox.commit(lane).expect("a disk that works");
        let (epoch, seq) = outbox.committed(lane);
        let name = outbox.lane_name(lane).clone();
        outbox.acked(&name, epoch, seq, now);
    }
    let flash = outbox.flash_status();
    let bytes = flash.bytes_written - flash.by_purpose.segments;
    assert!(bytes <= 130 * 70 * batches, "{} bytes a record: {flash:?}", bytes / (70 * batches));
}

/// The campaign itself, tried: on a disk that only says that it has synced, it finds something at once.
#[test]
fn a_disk_that_lies_about_flushing_is_found_out() {
    let starts = starts::all();
    let mut campaign = Campaign::new(starts, Seen::exact(), Instant::now() + Duration::from_secs(600), ENOUGH, 1);
    campaign.lying_disk = true;
    run(&campaign, &phases(false)[0], &mut Resume::default());
    assert!(campaign.failure().is_some(), "it is found out");
}
