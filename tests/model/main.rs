//! The model test: every state that a few small configurations of lane, wire and server can reach, by breadth-first
//! search. Outbox, recovery and session are the real ones; disk, wire and server are models. From each state, with
//! nothing going wrong any more, everything must be delivered exactly once.
//!
//! `MODEL_SECONDS=600 MODEL_DEPTH=40 MODEL_STATES=20000000 cargo test --test model` goes further; `MODEL=name` takes
//! one configuration; a failure prints the command that replays it.
#![expect(clippy::print_stdout, reason = "what was searched is the test's result")]

mod agent;
mod facts;
mod flash;
mod rules;
mod search;
mod server;
mod world;

use std::sync::Arc;

use search::Bounds;
use world::{Broken, Rules};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Searches one configuration, or replays a trace of it.
fn check(rules: Rules, states: usize) {
    if std::env::var("MODEL").is_ok_and(|only| only != rules.name) {
        return;
    }
    let rules = Arc::new(rules);
    if let Ok(words) = std::env::var("MODEL_TRACE") {
        let trace = search::parse(&rules, &words).expect("a trace as it was printed");
        let end = search::replay(&rules, &trace, &mut |line| println!("{line}"));
        return end.unwrap_or_else(|what| panic!("{what}"));
    }
    let bounds = Bounds {
        depth: number("MODEL_DEPTH").map_or(usize::MAX, |depth| depth as usize),
        states: number("MODEL_STATES").map_or(states, |states| states as usize),
        seconds: number("MODEL_SECONDS").unwrap_or(u64::MAX),
    };
    match search::explore(&rules, bounds) {
        Ok(report) => println!(
            "{}: {} states, depth {}{}, {} steps, {} to the end, {:.0} states/s",
            rules.name,
            report.states,
            report.depth,
            if report.complete { ", complete" } else { "" },
            report.steps,
            report.calm_steps,
            report.states as f64 / report.seconds
        ),
        Err(violation) => {
            let words: Vec<_> = violation.trace.iter().map(ToString::to_string).collect();
            println!("{}: {}", rules.name, violation.what);
            let _ = search::replay(&rules, &violation.trace, &mut |line| println!("  {line}"));
            panic!(
                "{}\nreplay with MODEL={} MODEL_TRACE='{}' cargo test --test model -- --nocapture",
                violation.what,
                rules.name,
                words.join("; ")
            );
        }
    }
}

/// One test a configuration, so that they run side by side.
macro_rules! searched {
    ($($name:ident: $states:expr,)*) => {$(
        #[test]
        fn $name() {
            check(rules::$name(), $states);
        }
    )*};
}

searched! {
    young: 40_000,
    drop_oldest: 40_000,
    roomy: 40_000,
    reject: 40_000,
    group: 40_000,
    refusals: 40_000,
    server_restored: 40_000,
    image_restored: 40_000,
    image_restored_full: 40_000,
    copied: 40_000,
    two_lanes: 40_000,
    threads: 40_000,
    threads_foreign: 40_000,
    storage: 40_000,
    storage_full: 40_000,
    storage_refusals: 40_000,
    storage_image: 40_000,
    storage_threads: 40_000,
    ram_first: 40_000,
    ram_first_full: 40_000,
    ram_first_storage: 40_000,
    live: 40_000,
    live_full: 40_000,
    live_refusals: 40_000,
    live_storage: 40_000,
}

#[test]
#[ignore = "a start whose sync fails goes on as if the page cache were on flash; a power cut then takes what it said"]
fn storage_lies() {
    check(rules::storage_lies(), 40_000);
}

/// The search can fail: a server that breaks one sentence of the protocol is found out.
#[test]
fn a_server_that_breaks_the_protocol_is_noticed() {
    for (broken, expected) in [
        (Broken::AcksUnsynced, "committed, not stored"),
        (Broken::WithoutFence, ""),
        (Broken::ForgetsRefusals, "committed, not stored"),
    ] {
        let rules = Arc::new(rules::broken(broken));
        let bounds = Bounds { depth: usize::MAX, states: 100_000, seconds: u64::MAX };
        let violation = search::explore(&rules, bounds).expect_err("a broken rule");
        assert!(violation.what.contains(expected), "{broken:?}: {}", violation.what);
    }
}
