//! The desk by rule, then as a whole: a seeded run with everything that can happen, against what must hold always.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::record::Body;

const WAIT: Duration = Duration::from_secs(60);

fn at(s: u64) -> Instant {
    Instant::from_micros(s * 1_000_000)
}

fn command(seq: u64, topic: &str) -> Command {
    Command { stream: 7, seq, topic: topic.into(), body: Body::Text(seq.to_string()) }
}

fn filter(text: &str) -> Filter {
    Filter::try_new(text).unwrap()
}

struct Rig(Desk);

impl Rig {
    fn new() -> Self {
        Self(Desk::new(WAIT))
    }

    fn came(&mut self, seqs: impl IntoIterator<Item = u64>, topic: &str, s: u64) {
        seqs.into_iter().for_each(|seq| self.0.handle_command(command(seq, topic), at(s)));
    }

    fn asks(&mut self, client: u64, topics: &str, s: u64) {
        self.0.handle_subscribe(client, filter(topics), false, at(s)).unwrap();
    }

    fn given(&mut self, client: u64) -> Vec<u64> {
        std::iter::from_fn(|| self.0.poll_next(client)).map(|command| command.seq).collect()
    }

    fn done(&mut self, client: u64, seqs: impl IntoIterator<Item = u64>, s: u64) {
        seqs.into_iter().for_each(|seq| assert!(self.0.handle_done(client, seq, at(s)), "{seq}"));
    }

    /// Up to where all is done, if there is news.
    fn news(&mut self) -> Option<u64> {
        self.0.poll_done().map(|cursor| cursor.seq)
    }

    fn later(&mut self, s: u64) {
        self.0.handle_timeout(at(s));
    }
}

#[test]
fn a_subscriber_is_given_what_it_asked_for_in_order_and_each_once() {
    let mut rig = Rig::new();
    rig.asks(1, "valve/#", 0);
    rig.asks(1, "valve/+", 0);
    rig.came([1, 2], "valve/1", 0);
    rig.came([3], "pump/1", 0);
    rig.came([4], "valve/2", 0);
    assert_eq!(rig.given(1), [1, 2, 4]);
    assert_eq!(rig.given(1), [0; 0]);
    rig.done(1, [2, 1, 4], 1);
    assert_eq!(rig.news(), Some(2), "up to the lowest that is not done");
    assert_eq!(rig.news(), None);
    rig.later(60);
    assert_eq!(rig.news(), Some(4));
    assert_eq!(rig.0.counts(), Counts { delivered: 3, unclaimed: 1, timed_out: 0 });
}

#[test]
fn who_comes_late_is_given_what_still_waits() {
    let mut rig = Rig::new();
    rig.came([1, 2], "a", 0);
    rig.later(59);
    rig.asks(1, "a", 59);
    assert_eq!(rig.given(1), [1, 2]);
    rig.later(100);
    assert_eq!(rig.news(), None, "it has its own wait");
    rig.done(1, [1, 2], 100);
    assert_eq!(rig.news(), Some(2));
    rig.asks(2, "a", 101);
    assert_eq!(rig.given(2), [0; 0], "never again");
}

#[test]
fn two_subscribers_for_one_topic_are_both_waited_for() {
    let mut rig = Rig::new();
    rig.asks(1, "a", 0);
    rig.asks(2, "#", 0);
    rig.came([1], "a", 0);
    assert_eq!((rig.given(1), rig.given(2)), (vec![1], vec![1]));
    rig.done(2, [1], 1);
    assert_eq!(rig.news(), None);
    rig.done(1, [1], 2);
    assert_eq!(rig.news(), Some(1));
    assert_eq!(rig.0.counts().delivered, 1);
}

#[test]
fn one_that_never_answers_costs_the_wait_and_no_more() {
    let mut rig = Rig::new();
    rig.asks(1, "#", 0);
    rig.asks(2, "#", 0);
    rig.came(1..=16, "a", 10);
    assert_eq!(rig.given(2).len(), 16);
    rig.done(2, 1..=16, 20);
    assert_eq!(rig.0.poll_timeout(), Some(at(70)));
    rig.later(69);
    assert_eq!(rig.news(), None);
    rig.later(70);
    assert_eq!(rig.news(), Some(16), "all of them at once, read or not");
    assert_eq!(rig.0.counts().timed_out, 16);
    assert_eq!(rig.given(1), [0; 0], "what is done is not given");
    assert_eq!(rig.0.poll_timeout(), None);
}

#[test]
fn one_that_is_slow_has_the_wait_again_with_each_answer() {
    let mut rig = Rig::new();
    rig.asks(1, "a", 0);
    rig.came(1..=3, "a", 0);
    rig.given(1);
    for (seq, s) in [(1, 59), (2, 110), (3, 169)] {
        rig.later(s);
        rig.done(1, [seq], s);
        assert_eq!(rig.news(), Some(seq));
    }
    assert_eq!(rig.0.counts().timed_out, 0);
}

#[test]
fn what_one_that_died_left_is_for_the_next_one() {
    let mut rig = Rig::new();
    rig.asks(1, "a", 0);
    rig.came(1..=3, "a", 0);
    assert_eq!(rig.given(1), [1, 2, 3]);
    rig.done(1, [1], 5);
    rig.0.handle_gone(1, at(10));
    assert_eq!(rig.news(), Some(1));
    rig.asks(2, "a", 60);
    assert_eq!(rig.given(2), [2, 3]);
    rig.later(119);
    assert_eq!(rig.news(), None, "it has its own wait");
    rig.done(2, [2, 3], 119);
    assert_eq!(rig.news(), Some(3));
}

#[test]
fn nobody_comes_for_what_one_that_died_left() {
    let mut rig = Rig::new();
    rig.asks(1, "a", 0);
    rig.asks(2, "b", 0);
    rig.came([1], "a", 0);
    rig.0.handle_gone(1, at(10));
    rig.later(69);
    assert_eq!(rig.news(), None);
    rig.later(70);
    assert_eq!(rig.news(), Some(1));
    assert_eq!(rig.0.counts(), Counts { delivered: 0, unclaimed: 0, timed_out: 1 });
}

#[test]
fn one_that_dies_of_a_command_again_and_again_holds_up_nobody_for_ever() {
    let mut rig = Rig::new();
    rig.came([1, 2], "a", 0);
    let mut deaths = 0;
    for client in 1.. {
        let s = client * 7;
        rig.asks(client, "a", s);
        if rig.given(client).first() != Some(&1) {
            break;
        }
        rig.0.handle_gone(client, at(s + 1));
        deaths += 1;
        assert!(deaths < 20);
    }
    assert_eq!(rig.0.counts().timed_out, 2);
    assert_eq!(deaths, 10, "since the first death");
}

#[test]
fn done_of_what_was_not_given_is_a_mistake_and_too_late_is_none() {
    let mut rig = Rig::new();
    rig.asks(1, "a", 0);
    rig.came([1, 2], "a", 0);
    assert!(!rig.0.handle_done(1, 1, at(0)), "it has not read it");
    assert!(!rig.0.handle_done(9, 1, at(0)), "who never asked");
    assert_eq!(rig.given(1), [1, 2]);
    assert!(!rig.0.handle_done(1, 3, at(0)));
    rig.later(60);
    assert_eq!(rig.news(), Some(2));
    assert!(rig.0.handle_done(1, 1, at(61)));
    assert_eq!(rig.news(), None);
}

#[test]
fn filters_are_bounded_and_the_same_one_counts_once() {
    let mut rig = Rig::new();
    for nth in 0..FILTERS_MAX {
        rig.asks(1, &format!("a/{nth}"), 0);
        rig.asks(1, "a/0", 0);
    }
    assert!(rig.0.handle_subscribe(1, filter("b"), false, at(0)).is_err());
    rig.asks(2, "b", 0);
}

#[test]
fn who_always_answers_has_all_the_time() {
    let mut rig = Rig::new();
    rig.0.handle_subscribe(1, filter("#"), true, at(0)).unwrap();
    rig.came([1], "a", 0);
    assert_eq!(rig.0.poll_timeout(), None);
    rig.later(1_000_000);
    assert_eq!(rig.news(), None);
    rig.given(1);
    rig.done(1, [1], 1_000_001);
    assert_eq!(rig.news(), Some(1));
}

#[test]
fn another_stream_forgets_what_was_held_of_the_old_one() {
    let mut rig = Rig::new();
    rig.asks(1, "#", 0);
    rig.came([1, 2], "a", 0);
    assert_eq!(rig.0.poll_next(1).unwrap().seq, 1);
    rig.0.handle_command(Command { stream: 8, ..command(1, "a") }, at(1));
    assert_eq!(rig.given(1), [1]);
    rig.done(1, [1], 1);
    assert_eq!(rig.0.poll_done(), Some(CommandCursor { stream: 8, seq: 1 }));
    assert_eq!(rig.0.waiting(), 0);
}

/// Everything at random: subscribers come, go, answer in any order or not at all, time passes. What holds: `done`
/// covers a command only after everyone who was given it has answered, gone or timed out; nobody is given what is
/// done, or one command twice; each subscription is served in order; in the end all is done.
#[test]
fn whatever_happens_each_is_done_once_and_not_too_early() {
    for seed in 0..150 {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rig = Rig::new();
    let topics = ["a", "b", "c"];
    let (mut now, mut next_seq, mut next_client, mut done) = (0, 1, 1, 0);
    // By client: what it was given and has not answered.
    let mut clients: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut given: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut came: BTreeMap<u64, u64> = BTreeMap::new();
    while next_seq <= 200 || rig.0.waiting() > 0 {
        match rng.u8(..100) {
            0..30 if rig.0.waiting() < COMMANDS_MAX && next_seq <= 200 => {
                rig.came([next_seq], topics[rng.usize(..3)], now);
                came.insert(next_seq, now);
                next_seq += 1;
            }
            30..40 if clients.len() < 5 => {
                rig.asks(next_client, ["a", "b", "+", "#"][rng.usize(..4)], now);
                clients.insert(next_client, BTreeSet::new());
                next_client += 1;
            }
            40..45 if !clients.is_empty() => {
                let client = *clients.keys().nth(rng.usize(..clients.len())).unwrap();
                clients.remove(&client);
                rig.0.handle_gone(client, at(now));
            }
            45..60 => {
                let clients_before: Vec<u64> = clients.keys().copied().collect();
                for client in clients_before.into_iter().filter(|_| rng.bool()) {
                    for seq in rig.given(client) {
                        assert!(seq > done, "seed {seed}: {seq} was given after its done");
                        assert!(given.insert((client, seq)), "seed {seed}: {seq} twice");
                        clients.get_mut(&client).unwrap().insert(seq);
                    }
                }
            }
            60..90 => {
                if let Some((client, waiting)) = clients.iter_mut().find(|(_, waiting)| !waiting.is_empty()) {
                    let seq = *waiting.iter().nth(rng.usize(..waiting.len())).unwrap();
                    waiting.remove(&seq);
                    let client = *client;
                    rig.done(client, [seq], now);
                }
            }
            _ => {
                now += rng.u64(..20);
                rig.later(now);
            }
        }
        if let Some(seq) = rig.news() {
            assert!(seq > done && seq < next_seq, "seed {seed}: it rises");
            let owing = clients.values().flatten().filter(|owed| (done + 1..=seq).contains(*owed));
            let early: Vec<u64> = owing.copied().filter(|owed| now < came[owed] + WAIT.as_secs()).collect();
            assert!(early.is_empty(), "seed {seed}: done up to {seq}, but {early:?} are owed and not late");
            done = seq;
        }
        assert!(rig.0.poll_timeout().is_none_or(|due| due > at(now) || rig.0.waiting() > 0));
    }
    assert_eq!(done, 200, "seed {seed}");
    let counts = rig.0.counts();
    assert!(counts.delivered + counts.unclaimed <= 200 && counts.delivered > 0, "seed {seed}: {counts:?}");
}
