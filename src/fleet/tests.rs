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
    let mut admit = |now| if admission.take(now) { Ok(()) } else { Err(admission.turn_away(now)) };
    let answers: Vec<_> = (0..1_050).map(|_| admit(start)).collect();
    assert!(answers[..50].iter().all(Result::is_ok) && answers[50..].iter().all(Result::is_err));
    for (second, slots) in answers[50..].chunks(100).enumerate() {
        let after: Vec<_> = slots.iter().map(|slot| slot.expect_err("turned away").after_s as usize).collect();
        assert!(after.iter().filter(|after| **after == second).count() >= 99, "second {second}: {after:?}");
    }
    assert_eq!(admission.queue(start), Duration::from_secs(10));
    // A pause fills the bucket, no more.
    let later = start + Duration::from_secs(100);
    assert_eq!((0..1_000).filter(|_| admission.take(later)).count(), 50);
}

#[test]
fn the_virtual_queue_is_never_longer_than_an_hour() {
    let start = Instant::from_micros(5_000_000);
    let mut admission = Admission::new(2, 1, start);
    let after: Vec<_> = (0..20_000).map(|_| admission.turn_away(start).after_s).collect();
    assert_eq!(after[..4], [0, 1, 1, 2]);
    assert_eq!(after.iter().max(), Some(&3600));
    // The second round is as evenly spread as the first one.
    assert_eq!(after[..7_200], after[7_200..14_400]);
}

#[test]
fn a_token_that_is_given_back_is_there_again_but_never_beyond_the_burst() {
    let start = Instant::from_micros(5_000_000);
    let mut admission = Admission::new(1, 2, start);
    admission.give_back();
    assert_eq!((0..5).filter(|_| admission.take(start)).count(), 2);
    admission.give_back();
    assert_eq!((0..5).filter(|_| admission.take(start)).count(), 1);
}
