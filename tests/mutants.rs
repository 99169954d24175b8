//! Seeded bugs: each mutant of commit and recovery (`src/outbox/mutants.rs`) is caught by the test named here, and
//! without a mutant the same tests pass. Each case is a process of its own, so that a mutant may hang or abort.
//! `make mutants` runs them; `MUTANT=Name` and `one_case -- --ignored --nocapture` show how one dies.
#![expect(clippy::print_stdout, reason = "what caught whom is the test's result")]

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use backhaul::outbox::mutants::{Mutant, choose};

#[path = "outbox_faults.rs"]
mod faults;
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
    /// The power-cut campaign from its beginning.
    Powercut,
    /// Its drawn strings.
    PowercutDrawn,
    /// Power cuts, failing storage and damaged pages, drawn.
    Faults,
    /// Every bit of a segment of backlog, or one in some.
    RotOfBacklog,
    /// A folder that was copied to another device.
    Copies,
}

impl Catcher {
    const ALL: [Self; 5] = [Self::Powercut, Self::PowercutDrawn, Self::Faults, Self::RotOfBacklog, Self::Copies];

    fn run(self) {
        match self {
            Self::Powercut | Self::PowercutDrawn => {
                powercut::nothing_promised_is_lost_and_nothing_invented_whatever_a_power_cut_leaves();
            }
            Self::Faults => faults::nothing_committed_is_lost_and_nothing_invented_whatever_fails(),
            Self::RotOfBacklog => rot::a_flipped_bit_in_the_backlog_costs_what_it_hits_and_no_more(),
            Self::Copies => outbox::a_copied_image_begins_a_new_epoch_and_numbers_from_one(),
        }
    }

    /// How much of it: bounded, and enough by far (a mutant ends it at the first find).
    fn bounds(self, has_mutant: bool) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Powercut if has_mutant => &[("POWERCUT_SECONDS", "30")],
            // Without a mutant the campaign has a part of its own.
            Self::Powercut => &[("POWERCUT_SECONDS", "3")],
            Self::PowercutDrawn if has_mutant => &[("POWERCUT_SECONDS", "60"), ("POWERCUT_PHASE", "3")],
            Self::PowercutDrawn => &[("POWERCUT_SECONDS", "3"), ("POWERCUT_PHASE", "3")],
            Self::Faults => &[("SEEDS", "400")],
            Self::RotOfBacklog => &[("STEP", "37")],
            Self::Copies => &[],
        }
    }
}

/// The power-cut campaign where power cuts can show it. They cannot show what takes damage to pages that were durable,
/// storage that refuses a write and goes on, or another device: there it says who does.
fn catcher(mutant: Mutant) -> Catcher {
    match mutant {
        Mutant::SyncLeftOut
        | Mutant::SyncErrorIgnored
        | Mutant::DurablePageWrittenAgain
        | Mutant::SpareTaken
        | Mutant::ReusedBeforeDurable
        | Mutant::OverwrittenBeforeFloor
        | Mutant::FolderNotSynced
        | Mutant::LapKept
        | Mutant::NotSyncedAtOpen
        | Mutant::WalkStopsAtDamage
        | Mutant::StaleLapRead
        | Mutant::AcksForgotten
        | Mutant::FloorForgotten
        | Mutant::RunsForgotten
        | Mutant::HeaderCrcUnchecked
        | Mutant::RecordCrcUnchecked => Catcher::Powercut,
        Mutant::LeftoversKept => Catcher::PowercutDrawn,
        // A header or a tail is damaged that was durable; or storage fails twice.
        Mutant::OneReservation
        | Mutant::TailTrusted
        | Mutant::SuspectsIgnored
        | Mutant::DamageGoesFirst
        | Mutant::FailureForgotten => Catcher::Faults,
        // A page of the backlog is damaged, long after it was durable.
        Mutant::ReaderStandsAtDamage | Mutant::DamageLosesTheSegment | Mutant::LossNotCounted => Catcher::RotOfBacklog,
        // Two devices.
        Mutant::CopyUnseen => Catcher::Copies,
    }
}

/// Whether the case passes; how long it took.
fn case(catcher: Catcher, mutant: Option<Mutant>) -> (bool, Duration) {
    let begun = Instant::now();
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "one_case", "--ignored"])
        .envs(catcher.bounds(mutant.is_some()).iter().copied())
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
