//! Seeded bugs: each mutant of commit and recovery (`src/outbox/mutants.rs`) is caught by the test named here, and
//! without a mutant the same tests pass. Each case is a process of its own, so that a mutant may hang or abort.
//! `MUTANT=Name cargo test --features mutants --test mutants one_case -- --ignored --nocapture` shows how one dies.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use backhaul::outbox::mutants::{Mutant, choose};

#[path = "outbox_faults.rs"]
mod faults;
#[path = "outbox_hostile.rs"]
mod hostile_folders;
#[path = "outbox.rs"]
mod outbox;
#[path = "powercut/main.rs"]
mod powercut;
#[path = "outbox_rot.rs"]
mod rot;

/// Longest that one case may take, by far.
const CASE_S_MAX: u64 = 300;

/// The tests that catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Catcher {
    Cuts,
    Copies,
    Powercut,
    Faults,
    RotOfBacklog,
    RotOfNewest,
}

impl Catcher {
    const ALL: [Self; 6] =
        [Self::Cuts, Self::Copies, Self::Powercut, Self::Faults, Self::RotOfBacklog, Self::RotOfNewest];

    fn run(self) {
        match self {
            Self::Cuts => outbox::nothing_committed_is_lost_and_nothing_invented_whatever_is_cut(),
            Self::Copies => outbox::a_copied_image_begins_a_new_epoch_and_numbers_from_one(),
            Self::Powercut => powercut::nothing_promised_is_lost_and_nothing_invented_whatever_a_power_cut_leaves(),
            Self::Faults => faults::nothing_committed_is_lost_and_nothing_invented_whatever_fails(),
            Self::RotOfBacklog => rot::a_flipped_bit_in_the_backlog_costs_what_it_hits_and_no_more(),
            Self::RotOfNewest => rot::a_flipped_bit_in_the_newest_segment_costs_what_it_hits_and_no_more(),
        }
    }
}

fn catcher(mutant: Mutant) -> Catcher {
    match mutant {
        Mutant::SyncLeftOut
        | Mutant::DurablePageWrittenAgain
        | Mutant::SpareTaken
        | Mutant::ReusedBeforeDurable
        | Mutant::OverwrittenBeforeFloor
        | Mutant::FolderNotSynced
        | Mutant::LapKept
        | Mutant::NotSyncedAtOpen
        | Mutant::StaleLapRead
        | Mutant::TailTrusted
        | Mutant::LeftoversKept
        | Mutant::AcksForgotten
        | Mutant::FloorForgotten
        | Mutant::RunsForgotten
        | Mutant::HeaderCrcUnchecked
        | Mutant::RecordCrcUnchecked => Catcher::Cuts,
        Mutant::CopyUnseen => Catcher::Copies,
        Mutant::SyncErrorIgnored
        | Mutant::OneReservation
        | Mutant::FailureForgotten
        | Mutant::SuspectsIgnored
        | Mutant::DamageGoesFirst => Catcher::Faults,
        Mutant::ReaderStandsAtDamage | Mutant::DamageLosesTheSegment | Mutant::LossNotCounted => Catcher::RotOfBacklog,
        Mutant::WalkStopsAtDamage => Catcher::RotOfNewest,
    }
}

/// Whether the case passes; how long it took.
fn case(catcher: Catcher, mutant: Option<Mutant>) -> (bool, Duration) {
    let begun = Instant::now();
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "one_case", "--ignored"])
        .env("CATCHER", format!("{catcher:?}"))
        .env("MUTANT", mutant.map_or(String::new(), |mutant| format!("{mutant:?}")))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test runs");
    while begun.elapsed() < Duration::from_secs(CASE_S_MAX) {
        if let Some(status) = child.try_wait().expect("a child of ours") {
            return (status.success(), begun.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    (false, begun.elapsed())
}

#[test]
#[ignore = "one case of the test below, in a process of its own"]
fn one_case() {
    let name = std::env::var("MUTANT").unwrap_or_default();
    let mutant = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == name).copied();
    assert_eq!(mutant.is_none(), name.is_empty(), "no mutant {name}");
    let wanted = std::env::var("CATCHER").ok();
    let named = Catcher::ALL.into_iter().find(|catcher| Some(format!("{catcher:?}")) == wanted);
    choose(mutant);
    named.or(mutant.map(catcher)).expect("MUTANT=name or CATCHER=name").run();
}

#[test]
fn every_mutant_is_caught_and_without_one_the_same_tests_pass() {
    let mut failures = Vec::new();
    for catcher in Catcher::ALL {
        let (passed, took) = case(catcher, None);
        println!("{catcher:?} without a mutant: {} {took:.1?}", if passed { "passes" } else { "FAILS" });
        if !passed {
            failures.push(format!("{catcher:?} fails without a mutant"));
        }
    }
    for mutant in Mutant::ALL {
        let (passed, took) = case(catcher(*mutant), Some(*mutant));
        println!("{mutant:?} {} by {:?} {took:.1?}", if passed { "SURVIVES" } else { "is caught" }, catcher(*mutant));
        if passed {
            failures.push(format!("{mutant:?} survives"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
