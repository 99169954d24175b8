//! The film's cast: the real agent with its outbox on the filmed disk, producers that note where in the film each
//! answer came, the real receiver, and someone who pulls the cable and kills the agent.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use backhaul::config::{Commit, Config, Lane, Overflow};
use fastrand::Rng;

use super::film::{self, Film, Recorder};
use super::support::agent::{self, Agent};
use super::support::producer::{Handed, Producer};
use super::support::proxy::{Mode, Proxy};
use super::support::receiver::Receiver;
use super::support::{DEADLINE, wait_until};
use super::verdict::{AckSample, Books, Promise};

/// Answers in each act.
const ACT_ANSWERS: u64 = 120;
/// Most records handed in at once: a batch's answers are noted together.
const BATCH_MAX: usize = 6;

/// What is filmed.
pub struct Options {
    /// Of the mount.
    pub mode: &'static str,
    /// Of the file system.
    pub block_bytes: u32,
    /// Rounds of load.
    pub rounds: u64,
}

/// Three lanes small enough that segments are used again: two that sync, and one that commits later but for those who
/// ask.
pub fn lanes() -> Vec<Lane> {
    let small = |name| Lane { overflow: Overflow::Reject, bytes_max: 512 << 10, ..agent::lane(name) };
    let meter = Lane { commit: Commit::Group, commit_ms: 100, ..small("meter") };
    vec![small("telemetry"), small("alarm"), meter]
}

/// The agent's configuration, apart from where things are.
pub fn configure(config: &mut Config) {
    config.lanes = lanes();
    config.outbox.headroom_bytes_min = 1 << 20;
}

/// Films the disk under a load.
pub fn record(dir: &Path, options: &Options, rng: &mut Rng) -> (Film, Books) {
    film::shoot(dir, options.mode, options.block_bytes, |mount, recorder| {
        act(dir, mount.join("outbox"), recorder, options.rounds, rng)
    })
}

/// The load, from the agent's first start to its last death.
fn act(dir: &Path, outbox: PathBuf, recorder: &Recorder, rounds: u64, rng: &mut Rng) -> Books {
    let mut receiver = Receiver::new(dir);
    let proxy = Proxy::new(&receiver.address());
    let mut config = agent::quick(dir, &format!("ws://{}/v1", proxy.address()));
    configure(&mut config);
    config.outbox.dir = outbox;
    let mut agent = Agent::new(dir, &config);
    receiver.start();
    receiver.wait_listening();
    agent.start();
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // A panic in here must end the producers, too, or the scope waits for them.
        let _stop = StopOnDrop(&stop);
        let producers: Vec<_> = [("telemetry", false), ("telemetry", false), ("alarm", false), ("meter", true)]
            .into_iter()
            .enumerate()
            .map(|(number, (lane, asks))| {
                let mut producer = Producer::new(agent.socket(), Some(lane));
                if asks {
                    producer = producer.wait_committed();
                }
                let (stop, answers, rng) = (&stop, &answers, rng.fork());
                scope.spawn(move || produce(producer, number, recorder, answers, stop, rng))
            })
            .collect();
        let sampler = scope.spawn(|| sample(&receiver, recorder, &stop));
        for _ in 0..rounds {
            round(&mut agent, &proxy, &answers);
        }
        stop.store(true, Ordering::Relaxed);
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().expect("a producer does not panic");
        let books = producers.into_iter().map(join).collect();
        agent.kill9();
        let mut acks = sampler.join().expect("who samples acks does not panic");
        // Nothing can be acked after this.
        acks.push(AckSample { before: usize::MAX, acked: receiver.acked(), after: usize::MAX });
        Books::new(books, acks)
    })
}

/// Offline, online, dead and alive again.
fn round(agent: &mut Agent, proxy: &Proxy, answers: &AtomicU64) {
    proxy.set(Mode::Refuse);
    wait_answers(agent, answers);
    proxy.set(Mode::Pass);
    let acked = |status: &serde_json::Value| agent::sum_over_lanes(status, "acked");
    let before = agent.status().map_or(0, |status| acked(&status));
    agent.wait_status("acks come", |status| acked(status) > before);
    wait_answers(agent, answers);
    proxy.set(Mode::Refuse);
    wait_answers(agent, answers);
    agent.kill9();
    agent.start();
    wait_answers(agent, answers);
}

fn wait_answers(agent: &mut Agent, answers: &AtomicU64) {
    let goal = answers.load(Ordering::Relaxed) + ACT_ANSWERS;
    wait_until(DEADLINE, "producers are answered", || {
        agent.assert_runs();
        answers.load(Ordering::Relaxed) >= goal
    });
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Hands in small batches until told to stop; its books, and where in the film each promise had been read.
fn produce(
    mut producer: Producer,
    number: usize,
    recorder: &Recorder,
    answers: &AtomicU64,
    stop: &AtomicBool,
    mut rng: Rng,
) -> (Producer, Vec<usize>) {
    let mut places = Vec::new();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let batch = (0..rng.usize(1..=BATCH_MAX)).map(|_| {
            count += 1;
            let mut body = format!("{number} {count} ").into_bytes();
            body.extend((0..rng.usize(0..400)).map(|_| rng.alphanumeric() as u8));
            ("load".into(), body)
        });
        let handed = producer.put_all(batch.collect());
        // Here and not before: an answer that has been read lies behind the flush that made it true.
        places.resize(producer.committed.len(), recorder.position());
        answers.fetch_add(1, Ordering::Relaxed);
        match handed {
            Handed::Answered => thread::sleep(Duration::from_millis(rng.u64(0..4))),
            Handed::Broken | Handed::NoAgent => thread::sleep(Duration::from_millis(5)),
        }
    }
    (producer, places)
}

/// Asks again and again what the receiver has acknowledged.
fn sample(receiver: &Receiver, recorder: &Recorder, stop: &AtomicBool) -> Vec<AckSample> {
    let mut samples: Vec<AckSample> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let before = recorder.position();
        let acked = receiver.acked();
        samples.push(AckSample { before, acked, after: recorder.position() });
        thread::sleep(Duration::from_millis(5));
    }
    samples
}

impl Books {
    fn new(producers: Vec<(Producer, Vec<usize>)>, acks: Vec<AckSample>) -> Self {
        let mut books = Self { acks, ..Self::default() };
        for (producer, places) in producers {
            assert!(producer.refused.iter().all(|(_, code)| code == "full"), "{:?}", producer.refused);
            books.put.extend(producer.uncertain);
            books.put.extend(producer.committed.iter().map(|committed| committed.body.clone()));
            let promise = |(record, at)| Promise { at, record };
            books.promises.extend(producer.committed.into_iter().zip(places).map(promise));
        }
        books.promises.sort_by_key(|promise| promise.at);
        assert!(!books.promises.is_empty(), "nothing was committed");
        books
    }
}
