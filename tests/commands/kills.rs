//! Rule 8 under SIGKILL: agent, receiver and subscriber die at random while commands flow; each command is delivered at
//! least once, in order, and never again after its `done`.
//!
//! `KILLS=1000 SEED=7 cargo test --features receiver --test commands kills` for more of it, or for the same again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backhaul::receiver::commands::Beside;
use fastrand::Rng;
use rusqlite::Connection;

use crate::rig::{Bench, Peer, done, text};
use crate::support::{DEADLINE, wait_until};

/// Kills of agents and receivers; subscribers die beside.
const KILLS: u64 = 60;
/// Longest pause between two kills.
const CALM_MS_MAX: u64 = 300;

#[test]
fn each_command_is_delivered_and_never_again_after_its_done_whoever_dies() {
    let from_env = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let (kills, seed) = (from_env("KILLS").unwrap_or(KILLS), from_env("SEED").unwrap_or(now));
    eprintln!("KILLS={kills} SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut bench = Bench::new(|_| ());
    let stop = Arc::new(AtomicBool::new(false));
    let operator = operator(bench.dir.join("receiver.sqlite"), rng.fork(), Arc::clone(&stop));
    let subscriber = subscriber(&bench, rng.fork(), Arc::clone(&stop));
    for _ in 0..kills {
        thread::sleep(Duration::from_millis(rng.u64(..CALM_MS_MAX)));
        if rng.bool() {
            bench.agent.kill9();
            bench.agent.start();
        } else {
            bench.receiver.kill9();
            bench.receiver.start();
        }
    }
    bench.receiver.wait_listening();
    stop.store(true, Ordering::Relaxed);
    let last = operator.join().unwrap();
    bench.wait_done(last);
    stop.store(true, Ordering::Relaxed);
    // The subscriber leaves when all is done.
    let (delivered, lives) = subscriber.join().unwrap();
    assert_eq!(delivered, (1..=last).collect(), "each at least once");
    assert!(last >= kills, "{last} commands: that was no load");
    eprintln!("{last} commands, {lives} lives of the subscriber");
}

/// Puts commands until told to stop; returns the last number.
fn operator(store: PathBuf, mut rng: Rng, stop: Arc<AtomicBool>) -> JoinHandle<u64> {
    thread::spawn(move || {
        let mut beside = Beside::try_new(&store).unwrap();
        let mut last = 0;
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..rng.u64(1..20) {
                let seq = beside.put("rig", "a", &text("x"), 0).unwrap();
                assert_eq!(seq, last + 1);
                last = seq;
            }
            thread::sleep(Duration::from_millis(rng.u64(..100)));
        }
        last
    })
}

/// Takes commands and dies now and then, with some taken and not done. Returns what it was given in all its lives.
fn subscriber(bench: &Bench, mut rng: Rng, stop: Arc<AtomicBool>) -> JoinHandle<(BTreeSet<u64>, u64)> {
    let (socket, store) = (bench.agent.socket().to_owned(), bench.dir.join("receiver.sqlite"));
    thread::spawn(move || {
        let store = Connection::open(store).unwrap();
        store.busy_timeout(DEADLINE).unwrap();
        let (mut delivered, mut lives) = (BTreeSet::new(), 0);
        let waiting = || store.query_row("SELECT max(last) > max(done) FROM command_cursors", [], |row| row.get(0));
        while !stop.load(Ordering::Relaxed) || waiting().unwrap_or(true) {
            // What is done now must not come in this life.
            let done = done(&store);
            let Some(mut peer) = Peer::connect(&socket) else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            peer.set_timeout(Duration::from_millis(500));
            if !peer.try_say(r##"{"subscribe":{"topic":"#"}}"##) {
                continue;
            }
            lives += 1;
            let mut before = done;
            for _ in 0..rng.u64(1..200) {
                let line = peer.try_line();
                let Some(seq) = line["command"]["seq"].as_u64() else { break };
                assert!(seq > before, "{seq} came after {before}, which is done or was given before it");
                before = seq;
                delivered.insert(seq);
                // It dies with some of them in its hands.
                if rng.u8(..50) == 0 || !peer.try_done(seq) {
                    break;
                }
            }
        }
        (delivered, lives)
    })
}

#[test]
fn a_receiver_that_comes_back_sends_again_what_is_not_done_and_nothing_else() {
    let mut bench = Bench::new(|_| ());
    let mut peer = bench.subscribe("a");
    bench.put(30, "a");
    for seq in 1..=16 {
        assert_eq!(peer.hear().0, seq);
    }
    peer.done(1);
    bench.wait_done(1);
    assert_eq!(peer.hear().0, 17);
    bench.receiver.kill9();
    peer.done(2);
    bench.agent.wait_status("the desk is done with it", |status| status["commands"]["waiting"] == 15);
    bench.receiver.start();
    // Only 18, once the server knows of 2: what is held is not given again.
    assert_eq!(peer.hear().0, 18);
    for seq in 3..=30 {
        peer.done(seq.min(18));
        if seq > 18 {
            assert_eq!(peer.hear().0, seq);
            peer.done(seq);
        }
    }
    bench.wait_done(30);
    wait_until(DEADLINE, "all are counted", || bench.agent.status().unwrap()["commands"]["done"] == 30);
    assert_eq!(bench.agent.status().unwrap()["commands"]["received"], 30);
}
