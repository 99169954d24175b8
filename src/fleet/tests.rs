//! The fleet in small: that a run is what its scenario says. The herd's numbers are tests/herd's.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::link::Config;
use crate::time::Instant;

fn play(scenario: &Scenario) -> Outcome {
    run(scenario, &Arc::new(Config::default()), &mut |_, _| {})
}

#[test]
fn one_seed_is_one_run() {
    let scenario = Scenario { seed: 7, ..Scenario::outage(500, 10, 60) };
    assert_eq!(play(&scenario), play(&scenario));
    assert_ne!(play(&scenario), play(&Scenario { seed: 8, ..scenario }));
}

#[test]
fn those_turned_away_come_back_at_exactly_the_rate() {
    let start = Instant::from_micros(5_000_000);
    let mut admission = Admission::new(100, 50, start);
    let answers: Vec<_> = (0..1_050).map(|_| admission.admit(start)).collect();
    assert!(answers[..50].iter().all(Result::is_ok) && answers[50..].iter().all(Result::is_err));
    for (second, slots) in answers[50..].chunks(100).enumerate() {
        let after: Vec<_> = slots.iter().map(|slot| slot.expect_err("turned away").after_s as usize).collect();
        assert!(after.iter().filter(|after| **after == second).count() >= 99, "second {second}: {after:?}");
    }
    assert_eq!(admission.queue(start), Duration::from_secs(10));
    // A pause fills the bucket, no more.
    let later = start + Duration::from_secs(100);
    assert_eq!((0..1_000).filter(|_| admission.admit(later).is_ok()).count(), 50);
}
