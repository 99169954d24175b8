//! The soak: real agents and a real receiver behind a cable, and something goes wrong every second or two, drawn from
//! a seed. One agent lives through all of it: it must end with the descriptors and threads that it began with, and
//! with memory that has stopped growing. The other one is killed again and again. Of both, everything that was
//! promised is stored once.
//!
//! `SOAK_SECONDS=600 SEED=7 cargo test --features receiver --test soak -- --nocapture`, or `make soak HOURS=24`. (The
//! seed gives the same faults in the same order; what they meet is the kernel's.)
#![cfg(feature = "receiver")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

mod body;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backhaul::config::{Config, Device, Overflow};
use fastrand::Rng;
use rustix::process::Signal;
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::proxy::{Mode, Proxy};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, not_run, poll_until};

/// How long, unless `SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 120;
/// Records a second that each producer puts, at most.
const RECORDS_PER_S: f64 = 100.0;
/// Records of each producer, at most: the books of a day are compared in memory.
const RECORDS_MAX: f64 = 2_000_000.0;
/// Longest fault: beyond every timeout of the configuration.
const FAULT_MS_MAX: u64 = 3000;
/// Longest calm between two faults.
const CALM_MS_MAX: u64 = 1500;

const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const BUSY_FOR_A_SECOND: &[u8] =
    b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const BAD_GATEWAY: &[u8] = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const UNAUTHORIZED: &[u8] = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Stall,
    Cut,
    Refuse,
    Busy,
    BusyForASecond,
    BadGateway,
    Unauthorized,
    ReceiverKilled,
    AgentKilled,
    /// SIGSTOP, SIGCONT: a machine that was suspended.
    AgentStopped,
    /// SIGHUP with nothing changed.
    AgentReloaded,
}

const FAULTS: [Fault; 11] = [
    Fault::Stall,
    Fault::Cut,
    Fault::Refuse,
    Fault::Busy,
    Fault::BusyForASecond,
    Fault::BadGateway,
    Fault::Unauthorized,
    Fault::ReceiverKilled,
    Fault::AgentKilled,
    Fault::AgentStopped,
    Fault::AgentReloaded,
];

#[test]
fn nothing_is_missing_and_nothing_grows_after_random_faults() {
    let seconds = from_env("SOAK_SECONDS").unwrap_or(SECONDS);
    let seed = from_env("SEED").unwrap_or_else(seed_of_now);
    let _replay = Replay { seconds, seed };
    let mut rng = Rng::with_seed(seed);
    let dir = TempDir::new("soak");
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    let proxy = Proxy::new(&receiver.address());
    let rate = RECORDS_PER_S.min(RECORDS_MAX / seconds as f64);
    let mut steady = Gateway::start("steady", &proxy, rate, rng.fork());
    let mut killed = Gateway::start("killed", &proxy, rate, rng.fork());
    let mut watch = Watch::begin(&mut steady.agent);
    let mut happened: BTreeMap<Fault, u64> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let fault = FAULTS[rng.usize(0..FAULTS.len())];
        *happened.entry(fault).or_default() += 1;
        strike(fault, &mut rng, &proxy, &mut receiver, &mut steady, &mut killed);
        watch.look(&mut steady.agent);
        // Most strike at work, some before everyone is back.
        if rng.u8(0..4) > 0 {
            steady.wait_for_progress();
        }
        pause(&mut rng, CALM_MS_MAX);
        watch.look(&mut steady.agent);
    }
    steady.load.stop.store(true, Ordering::Relaxed);
    killed.load.stop.store(true, Ordering::Relaxed);
    let pid_at_end = watch.assert_at_rest(&mut steady.agent);
    let sessions = [&mut steady, &mut killed].map(|gateway| agent::sessions(&gateway.agent.wait_drained()));
    let producers = [steady.finish(), killed.finish()];
    receiver.wait_acked(&producers);
    let stored = receiver.records();
    for (producer, device) in producers.iter().zip(["steady", "killed"]) {
        verdict::verify(producer, stored.iter().filter(|record| record.device == device));
    }
    verdict::assert_no_loss(&receiver.gaps());
    let records: usize = producers.iter().map(|producer| producer.committed.len()).sum();
    eprintln!(
        "{seconds} s, seed {seed}: {records} records, {} sessions of process {pid_at_end}, faults {happened:?}, {watch}",
        sessions[0]
    );
    assert!(records as f64 > rate * seconds as f64 / 2.0, "{records} records: that was no load");
    assert!(sessions[0] > happened.values().sum::<u64>() / 4, "{} sessions: the faults did not bite", sessions[0]);
}

/// One fault, from its beginning to its end.
fn strike(
    fault: Fault,
    rng: &mut Rng,
    proxy: &Proxy,
    receiver: &mut Receiver,
    steady: &mut Gateway,
    killed: &mut Gateway,
) {
    let mut for_a_while = |mode| {
        proxy.set(mode);
        if matches!(mode, Mode::Answer(_)) {
            proxy.cut();
        }
        pause(rng, FAULT_MS_MAX);
        proxy.set(Mode::Pass);
    };
    match fault {
        Fault::Stall => for_a_while(Mode::Stall),
        Fault::Refuse => for_a_while(Mode::Refuse),
        Fault::Cut => proxy.cut(),
        Fault::Busy => for_a_while(Mode::Answer(BUSY)),
        Fault::BusyForASecond => for_a_while(Mode::Answer(BUSY_FOR_A_SECOND)),
        Fault::BadGateway => for_a_while(Mode::Answer(BAD_GATEWAY)),
        Fault::Unauthorized => for_a_while(Mode::Answer(UNAUTHORIZED)),
        Fault::ReceiverKilled => {
            receiver.kill9();
            pause(rng, FAULT_MS_MAX / 2);
            receiver.start();
            receiver.wait_listening();
        }
        Fault::AgentKilled => {
            killed.agent.kill9();
            pause(rng, FAULT_MS_MAX / 4);
            killed.agent.start();
        }
        Fault::AgentStopped => {
            steady.agent.signal(Signal::STOP);
            pause(rng, FAULT_MS_MAX);
            steady.agent.signal(Signal::CONT);
        }
        Fault::AgentReloaded => steady.agent.signal(Signal::HUP),
    }
}

/// An agent and its producer.
struct Gateway {
    agent: Agent,
    load: Load,
    _dir: TempDir,
}

impl Gateway {
    fn start(device: &str, proxy: &Proxy, rate: f64, rng: Rng) -> Self {
        let dir = TempDir::new(device);
        let mut config: Config = agent::quick(&dir, &format!("ws://{}/v1", proxy.address()));
        config.device = Device { id: device.into() };
        config.upstream.ack_timeout_ms = 2000;
        // What a producer is told to be committed is kept, so that a fault costs nothing but time.
        config.lanes[0].overflow = Overflow::Reject;
        let mut agent = Agent::new(&dir, &config);
        agent.start();
        agent.wait_up();
        let load = Load::start(Producer::new(agent.socket(), None), rate, rng);
        let mut gateway = Self { agent, load, _dir: dir };
        gateway.wait_for_progress();
        gateway
    }

    /// Waits until an ack has come that was not there yet.
    fn wait_for_progress(&mut self) {
        let mut first = None;
        self.agent.wait_status("acks come", |status| {
            let acked = agent::sum_over_lanes(status, "acked");
            agent::state(status) == "up" && acked > *first.get_or_insert(acked)
        });
    }

    fn finish(self) -> Producer {
        self.load.thread.join().expect("the producer did not panic")
    }
}

/// A producer at work.
struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Producer>,
}

impl Load {
    fn start(mut producer: Producer, rate: f64, mut rng: Rng) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    let batch: Vec<_> = (0..rng.u64(1..=20))
                        .map(|_| {
                            count += 1;
                            ("soak".to_owned(), body::of(count, rng.usize(0..200)))
                        })
                        .collect();
                    let records = batch.len() as f64;
                    match producer.put_all(batch) {
                        Handed::Answered | Handed::Broken => {
                            thread::sleep(Duration::from_secs_f64(records / rate * 2.0 * rng.f64()));
                        }
                        Handed::NoAgent => thread::sleep(Duration::from_millis(20)),
                    }
                }
                producer
            }
        });
        Self { stop, thread }
    }
}

/// What the agent that lives through all of it holds.
struct Watch {
    pid: u64,
    descriptors: usize,
    threads: usize,
    began: Instant,
    /// Resident memory, and when.
    memory: Vec<(Duration, u64)>,
}

impl Watch {
    fn begin(agent: &mut Agent) -> Self {
        let status = agent.wait_up();
        let pid = status["agent"]["pid"].as_u64().expect("a process id");
        let (descriptors, threads) = (held(pid, "fd"), held(pid, "task"));
        assert!(threads > 0, "its threads can be counted");
        if descriptors == 0 {
            not_run("the count of descriptors", "of a process that dumps no core only root sees them");
        }
        Self { pid, descriptors, threads, began: Instant::now(), memory: Vec::new() }
    }

    fn look(&mut self, agent: &mut Agent) {
        agent.assert_runs();
        if let Some(kib) = resident_kib(self.pid) {
            self.memory.push((self.began.elapsed(), kib));
        }
    }

    /// When nothing goes wrong any more it is the same process, and holds no more than when it began.
    fn assert_at_rest(&mut self, agent: &mut Agent) -> u64 {
        let status = agent.wait_drained();
        assert_eq!(status["agent"]["pid"], self.pid, "it lived through all of it");
        let pid = self.pid;
        for (what, folder, before) in [("descriptors", "fd", self.descriptors), ("threads", "task", self.threads)] {
            let mut now = 0;
            let found = poll_until(DEADLINE, || {
                now = held(pid, folder);
                (now <= before).then_some(())
            });
            assert!(found.is_some(), "{what}: {before} at the start, {now} at the end: {:#?}", links(pid, folder));
        }
        self.assert_flat();
        pid
    }

    /// The median of the last third is no more than that of the first, but for what an allocator keeps.
    fn assert_flat(&self) {
        /// Of pages, and of an arena that a thread left behind.
        const SLACK_KIB: u64 = 1024;
        let (first, last) = (self.third(0), self.third(2));
        assert!(first > 0, "{} samples of its memory", self.memory.len());
        assert!(last <= first + first / 10 + SLACK_KIB, "{first} KiB in the first third, {last} KiB in the last");
    }

    fn third(&self, nth: usize) -> u64 {
        let third = self.memory.len() / 3;
        let mut kib: Vec<u64> = self.memory[nth * third..(nth + 1) * third].iter().map(|(_, kib)| *kib).collect();
        kib.sort_unstable();
        kib.get(kib.len() / 2).copied().unwrap_or(0)
    }
}

impl std::fmt::Display for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { descriptors, threads, .. } = self;
        let (first, last) = (self.third(0), self.third(2));
        write!(f, "{first} KiB, later {last} KiB, {descriptors} descriptors, {threads} threads")
    }
}

/// Entries of a folder in /proc/PID, but for the outbox's files: how many of these are open is bounded by themselves
/// and grows with the longest backlog there was.
fn held(pid: u64, folder: &str) -> usize {
    links(pid, folder).iter().filter(|path| path.extension().is_none_or(|extension| extension != "seg")).count()
}

/// What the entries of such a folder point to.
fn links(pid: u64, folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/{folder}")).into_iter().flatten().flatten();
    entries.map(|entry| std::fs::read_link(entry.path()).unwrap_or_else(|_| entry.path())).collect()
}

fn resident_kib(pid: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn pause(rng: &mut Rng, ms_max: u64) {
    thread::sleep(Duration::from_millis(rng.u64(0..=ms_max)));
}

/// Says how to replay when it fails.
struct Replay {
    seconds: u64,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self { seconds, seed } = self;
            eprintln!("replay: SOAK_SECONDS={seconds} SEED={seed} cargo test --features receiver --test soak");
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
