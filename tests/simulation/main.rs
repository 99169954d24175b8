//! The seeded simulator: link, dialect and outbox, the very code that runs on the gateway, against a simulated
//! network, disk, clock and server. It only simulates; the same faults on real parts are in `kill.rs`, `faults.rs`.
//!
//! `SEEDS=n cargo test --test simulation` runs so many seeds, `SEED=n` replays one.

#[path = "../support/dead_letters.rs"]
#[expect(dead_code, reason = "headers are another test's")]
mod dead_letters;
mod draw;
mod oracle;
mod scenarios;
mod scripts;
mod server;
mod world;

use world::{Faults, Mutant, World};

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs all seeds; a violation prints the command that replays it.
fn explore(test: &str, seeds: u64, faults: Faults) {
    let seeds = env("SEED").map_or(0..env("SEEDS").unwrap_or(seeds), |seed| seed..seed + 1);
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| World::new(seed, faults, None).run());
        let violated = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(violated)) => violated,
            Err(_) => "a panic, see above".into(),
        };
        panic!("{violated}\nreplay with: SEED={seed} cargo test --test simulation {test}");
    }
}

#[test]
fn everything_committed_arrives_once_and_in_order_whatever_fails() {
    explore("whatever_fails", 256, Faults::ALL);
}

#[test]
fn a_server_that_forgets_is_told_what_it_will_not_get_again() {
    explore("forgets", 128, Faults { server_restore: 4, ..Faults::ALL });
}

/// Without kills: an image that puts, syncs and restarts before its first welcome cannot know that it is one.
#[test]
fn a_restored_image_begins_a_new_epoch_and_loses_nothing_it_holds() {
    explore("restored_image", 128, Faults { image_restore: 4, kill: 0, power_cut: 0, ..Faults::ALL });
}

#[test]
fn ten_thousand_fault_scripts_are_never_stuck_never_impatient_and_never_two_sessions() {
    let alone = env("SEED");
    let seeds = alone.map_or(0..env("SEEDS").unwrap_or(10_000), |seed| seed..seed + 1);
    let count = seeds.end - seeds.start;
    let (mut sessions, mut stables) = (0, 0);
    for seed in seeds {
        let Ok(life) = std::panic::catch_unwind(|| scripts::run(seed, alone.is_some())) else {
            panic!("see above\nreplay with: SEED={seed} cargo test --test simulation fault_scripts");
        };
        (sessions, stables) = (sessions + life.0, stables + life.1);
    }
    let proves = sessions > 3 * count && stables > count;
    assert!(alone.is_some() || proves, "lives that reach nothing prove nothing: {sessions}, {stables}");
}

/// How many of 40 seeds notice the mutant.
fn caught(mutant: Mutant) -> usize {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let notices = |seed: &u64| {
        let outcome = std::panic::catch_unwind(|| World::new(*seed, Faults::ALL, Some(mutant)).run());
        !matches!(outcome, Ok(Ok(())))
    };
    let count = (0..40).filter(notices).count();
    std::panic::set_hook(quiet);
    count
}

#[test]
fn mutants_are_seen() {
    for mutant in [Mutant::ReusedSeq, Mutant::TrimmedUnacked, Mutant::TwoSessions, Mutant::WedgedFullLane] {
        let caught = caught(mutant);
        eprintln!("{mutant:?}: seen by {caught} of 40 seeds");
        assert!(caught > 0, "{mutant:?} survives");
    }
}
