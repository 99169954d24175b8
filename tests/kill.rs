//! The main promise under SIGKILL: what a producer was told is committed is stored upstream exactly once, whoever dies,
//! whenever. Real processes, real flash, four producers, both encodings; several pairs of agent and receiver side by
//! side, so that the machine has work while one of them sleeps.
//!
//! `KILLS=15001 SEED=7 cargo test --features receiver --test kill` for more of it, or for the same again. A history
//! has at most 250 kills, then a new folder begins; one that fails names its own seed, and `PAIRS=1` runs it alone.
//! (The seed gives the same victims, pauses and records; the moment a signal lands within a system call is the
//! kernel's.)
#![cfg(feature = "receiver")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backhaul::config::{Commit, Config, Encoding, Overflow, Reconnect};
use fastrand::Rng;
use support::TempDir;
use support::agent::{self, Agent};
use support::producer::{Committed, Handed, PIPELINE_MAX, Producer};
use support::receiver::{Receiver, Stored, StoredGap};

/// Kills, half of them the agents', half the receivers'.
const KILLS: u64 = 1000;
/// Pairs of agent and receiver at once: twice the two cores, since most of their time is waiting.
const PAIRS: u64 = 4;
/// Kills in one folder, at most: what was stored and promised in it is compared in memory.
const HISTORY_KILLS_MAX: u64 = 250;
/// Longest pause between a sign of progress and the kill.
const CALM_MS_MAX: u64 = 200;
/// Longest time that a victim stays dead.
const DEATH_MS_MAX: u64 = 100;
/// Longest pause of a producer.
const PRODUCER_MS_MAX: u64 = 20;

/// Where each producer puts: (lane, asks for `committed`).
const PRODUCERS: [(&str, bool); 4] = [("telemetry", false), ("telemetry", false), ("alarm", false), ("meter", true)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Agent,
    Receiver,
}

#[test]
fn every_committed_record_is_stored_once_through_1000_kills() {
    let kills = from_env("KILLS").unwrap_or(KILLS);
    let pairs = from_env("PAIRS").unwrap_or(PAIRS).max(1);
    let seed = from_env("SEED").unwrap_or_else(seed_of_now);
    // As even as can be, so that all pairs are busy to the end.
    let histories = kills.div_ceil(HISTORY_KILLS_MAX).next_multiple_of(pairs).min(kills);
    let kills_of = |number: u64| kills / histories + u64::from(number < kills % histories);
    let (next, done, records) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..pairs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= histories || stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let _failing = Failing(&stop);
                    let committed = history(kills_of(number), seed.wrapping_add(number));
                    records.fetch_add(committed, Ordering::Relaxed);
                    let done = done.fetch_add(kills_of(number), Ordering::Relaxed) + kills_of(number);
                    eprintln!("{done} of {kills} kills, {:.0} s", begin.elapsed().as_secs_f64());
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), kills);
    eprintln!("{kills} kills, {} records committed, seed {seed}", records.load(Ordering::Relaxed));
}

/// One pair from an empty folder through so many kills; returns how many records were promised.
fn history(kills: u64, seed: u64) -> u64 {
    let _replay = Replay { kills, seed };
    let mut rng = Rng::with_seed(seed);
    let dir = TempDir::new("kill");
    let mut receiver = Receiver::new(&dir);
    let mut config = configuration(&dir, &receiver);
    let mut agent = Agent::new(&dir, &config);
    receiver.start();
    let load = Load::start(&agent, &mut rng);
    for (encoding, kills) in [(Encoding::Postcard, kills / 2), (Encoding::Json, kills - kills / 2)] {
        if agent.runs() {
            agent.kill9();
        }
        config.upstream.encodings = vec![encoding];
        agent.configure(&config);
        agent.start();
        agent.wait_up();
        kill_many(&mut agent, &mut receiver, &mut rng, kills);
    }
    let producers = load.stop();
    receiver.wait_acked(&producers);
    agent.wait_drained();
    let committed = producers.iter().map(|producer| producer.committed.len() as u64).sum();
    assert!(committed >= kills * 20, "{committed} records committed: that was no load");
    verify(&producers, receiver.records(), &receiver.gaps(), &receiver.acked());
    committed
}

fn configuration(dir: &TempDir, receiver: &Receiver) -> Config {
    let mut config = agent::quick(dir, &format!("ws://{}/v1", receiver.address()));
    // Small enough that segments are used again and again, and that `full` is met.
    let mut telemetry = agent::lane("telemetry");
    telemetry.overflow = Overflow::Reject;
    telemetry.bytes_max = 1 << 20;
    let mut meter = agent::lane("meter");
    meter.commit = Commit::Group;
    meter.commit_ms = 1000;
    config.lanes = vec![telemetry, agent::lane("alarm"), meter];
    // Whoever has lost the other is soon there again, to be killed at work.
    let reconnect = config.upstream.reconnect;
    config.upstream.reconnect = Reconnect { spread_ms: 20, backoff_ms_min: 10, backoff_ms_max: 40, ..reconnect };
    config
}

/// Kills the agent and the receiver `kills / 2` times each, in random order, and leaves both running.
fn kill_many(agent: &mut Agent, receiver: &mut Receiver, rng: &mut Rng, kills: u64) {
    let victim = |number| if number % 2 == 0 { Victim::Agent } else { Victim::Receiver };
    let mut victims: Vec<Victim> = (0..kills).map(victim).collect();
    rng.shuffle(&mut victims);
    for victim in victims {
        // Most die at work, some before they have properly started.
        if rng.u8(0..4) > 0 {
            receiver.assert_runs();
            wait_for_progress(agent);
        }
        pause(rng, CALM_MS_MAX);
        match victim {
            Victim::Agent => {
                agent.kill9();
                pause(rng, DEATH_MS_MAX);
                agent.start();
            }
            Victim::Receiver => {
                receiver.kill9();
                pause(rng, DEATH_MS_MAX);
                receiver.start();
            }
        }
    }
    receiver.wait_listening();
    wait_for_progress(agent);
}

/// Waits until an ack has come that was not there yet.
fn wait_for_progress(agent: &mut Agent) {
    let mut first = None;
    agent.wait_status("acks come", |status| {
        let acked = agent::sum_over_lanes(status, "acked");
        agent::state(status) == "up" && acked > *first.get_or_insert(acked)
    });
}

fn pause(rng: &mut Rng, ms_max: u64) {
    thread::sleep(Duration::from_millis(rng.u64(0..=ms_max)));
}

/// Four producers at work.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Producer>>,
}

impl Load {
    fn start(agent: &Agent, rng: &mut Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = PRODUCERS.iter().enumerate().map(|(number, &(lane, asks))| {
            let mut producer = Producer::new(agent.socket(), Some(lane));
            if asks {
                producer = producer.wait_committed();
            }
            let (stop, rng) = (Arc::clone(&stop), rng.fork());
            thread::spawn(move || produce(producer, number, &stop, rng))
        });
        Self { threads: threads.collect(), stop }
    }

    /// Their books.
    fn stop(self) -> Vec<Producer> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("the producer did not panic")).collect()
    }
}

/// Hands in batches of any size with pauses of any length, until told to stop.
fn produce(mut producer: Producer, number: usize, stop: &AtomicBool, mut rng: Rng) -> Producer {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let batch = (0..rng.usize(1..=PIPELINE_MAX / 4)).map(|_| {
            count += 1;
            ("load".into(), body(number, count, &mut rng))
        });
        match producer.put_all(batch.collect()) {
            Handed::Answered => pause(&mut rng, PRODUCER_MS_MAX),
            Handed::Broken | Handed::NoAgent => thread::sleep(Duration::from_millis(5)),
        }
    }
    producer
}

/// A body that says who put it and as which one; every fourth producer's is no text.
fn body(producer: usize, count: u64, rng: &mut Rng) -> Vec<u8> {
    let mut body = format!("{producer} {count} ").into_bytes();
    body.extend((0..rng.usize(0..300)).map(|_| rng.alphanumeric() as u8));
    if producer == PRODUCERS.len() - 1 {
        body.extend([0, 0xff, 0xfe]);
    }
    body
}

/// Who put it and as which one.
fn origin(body: &[u8]) -> (usize, u64) {
    let head = String::from_utf8_lossy(body);
    let mut words = head.split(' ').map(|word| word.parse().ok());
    let mut next = || words.next().flatten().expect("every body names its producer and count");
    (usize::try_from(next()).expect("four producers"), next())
}

/// What is stored durably of each (lane, epoch).
type Acks = BTreeMap<(String, u64), u64>;

/// Compares what the producers were told with what the receiver has stored.
fn verify(producers: &[Producer], mut stored: Vec<Stored>, gaps: &[StoredGap], acked: &Acks) {
    assert_accounted(&stored, gaps, acked);
    // The agent's own events are records too, and no producer's.
    stored.retain(|record| record.topic != "$event");
    let names: BTreeMap<(&str, u64, u64), &[u8]> =
        stored.iter().map(|record| ((record.lane.as_str(), record.epoch, record.seq), &record.body[..])).collect();
    let bodies: BTreeSet<&[u8]> = stored.iter().map(|record| &record.body[..]).collect();
    assert_eq!(bodies.len(), stored.len(), "a body is stored twice");
    let mut allowed = BTreeSet::new();
    for producer in producers {
        for committed in &producer.committed {
            let name = (committed.lane.as_str(), committed.epoch, committed.seq);
            let found = names.get(&name).copied();
            assert!(
                found == Some(&committed.body[..]),
                "committed as {name:?}: {:?}, stored: {:?}",
                shown(&committed.body),
                found.map(shown)
            );
        }
        allowed.extend(producer.committed.iter().map(|committed| &committed.body[..]));
        allowed.extend(producer.uncertain.iter().map(Vec::as_slice));
        assert!(producer.refused.iter().all(|(_, code)| code == "full"), "{:?}", producer.refused);
    }
    for body in &bodies {
        assert!(allowed.contains(body), "stored, and never put or refused: {:?}", shown(body));
    }
    assert_in_order(&stored);
    let epochs: BTreeSet<(&str, u64)> = names.keys().map(|name| (name.0, name.1)).collect();
    let lanes: BTreeSet<&str> = epochs.iter().map(|epoch| epoch.0).collect();
    assert_eq!(epochs.len(), lanes.len(), "a kill is no reason for a new epoch: {epochs:?}");
}

/// Enough of a body to know it by.
fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(24)]).into_owned()
}

/// In each epoch, each producer's records stand in the order in which it put them.
fn assert_in_order(stored: &[Stored]) {
    let mut last: BTreeMap<(&str, u64, usize), u64> = BTreeMap::new();
    for record in stored {
        let (producer, count) = origin(&record.body);
        let before = last.insert((&record.lane, record.epoch, producer), count).unwrap_or(0);
        assert!(count > before, "{count} stands behind {before} of producer {producer} in {}", record.lane);
    }
}

/// Every number up to the last ack is a record or part of one reported gap, and no gap says that a promise was broken.
fn assert_accounted(stored: &[Stored], gaps: &[StoredGap], acked: &Acks) {
    let mut spans: BTreeMap<(String, u64), Vec<(u64, u64)>> = BTreeMap::new();
    for gap in gaps {
        assert!(["torn", "unknown"].contains(&gap.why.as_str()) && gap.count == 0, "{gap:?}");
        spans.entry((gap.lane.clone(), gap.epoch)).or_default().push((gap.from, gap.to));
    }
    for record in stored {
        spans.entry((record.lane.clone(), record.epoch)).or_default().push((record.seq, record.seq));
    }
    for (name, mut spans) in spans {
        spans.sort_unstable();
        let mut next = 1;
        for (from, to) in spans {
            assert_eq!(from, next, "{name:?}: neither stored nor reported, or both");
            next = to + 1;
        }
        assert_eq!(acked.get(&name).copied(), Some(next - 1), "{name:?}: acked");
    }
}

/// Tells the other pairs that one has failed.
struct Failing<'a>(&'a AtomicBool);

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Says how to replay when a history fails.
struct Replay {
    kills: u64,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self { kills, seed } = self;
            eprintln!("replay: PAIRS=1 KILLS={kills} SEED={seed} cargo test --features receiver --test kill");
        }
    }
}

fn from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("this is not the past");
    u64::from(now.subsec_nanos()) | now.as_secs() << 30
}

/// One producer that was told about two records, and a third that was never answered; what a receiver should have.
fn small_books() -> ([Producer; 1], Vec<Stored>, Acks) {
    let stored = |seq, body: &str| Stored {
        device: "rig".into(),
        lane: "alarm".into(),
        epoch: 5,
        seq,
        topic: "load".into(),
        body: body.into(),
    };
    let mut producer = Producer::new("/nowhere".as_ref(), None);
    for (seq, body) in [(1, "0 1 "), (2, "0 2 ")] {
        producer.committed.push(Committed { body: body.into(), lane: "alarm".into(), epoch: 5, seq });
    }
    producer.uncertain.push("0 3 ".into());
    let table = vec![stored(1, "0 1 "), stored(2, "0 2 "), stored(3, "0 3 ")];
    ([producer], table, Acks::from([(("alarm".into(), 5), 3)]))
}

#[test]
fn verdict_is_good_when_all_is_there() {
    let (producers, stored, acked) = small_books();
    verify(&producers, stored, &[], &acked);
}

#[test]
#[should_panic(expected = "neither stored nor reported")]
fn verdict_sees_a_hole() {
    let (producers, mut stored, acked) = small_books();
    stored.remove(1);
    verify(&producers, stored, &[], &acked);
}

#[test]
#[should_panic(expected = "committed as")]
fn verdict_sees_a_promise_reported_as_torn() {
    let (producers, mut stored, acked) = small_books();
    stored.remove(1);
    let gap = StoredGap { lane: "alarm".into(), epoch: 5, from: 2, to: 2, why: "torn".into(), count: 0 };
    verify(&producers, stored, &[gap], &acked);
}

#[test]
#[should_panic(expected = "committed as")]
fn verdict_sees_other_bytes() {
    let (producers, mut stored, acked) = small_books();
    stored[0].body = "0 1 x".into();
    verify(&producers, stored, &[], &acked);
}

#[test]
#[should_panic(expected = "stored twice")]
fn verdict_sees_a_copy() {
    let (producers, mut stored, mut acked) = small_books();
    stored.push(Stored { seq: 4, ..stored[2].clone() });
    acked.insert(("alarm".into(), 5), 4);
    verify(&producers, stored, &[], &acked);
}

#[test]
#[should_panic(expected = "never put or refused")]
fn verdict_sees_a_stranger() {
    let (producers, mut stored, acked) = small_books();
    stored[2].body = "0 4 ".into();
    verify(&producers, stored, &[], &acked);
}

#[test]
#[should_panic(expected = "stands behind")]
fn verdict_sees_a_wrong_order() {
    let (mut producers, mut stored, acked) = small_books();
    producers[0].committed.clear();
    producers[0].uncertain = vec!["0 1 ".into(), "0 2 ".into(), "0 3 ".into()];
    stored[0].body = "0 2 ".into();
    stored[1].body = "0 1 ".into();
    verify(&producers, stored, &[], &acked);
}
