//! One row, played: all is well, then the failure, again and again, then all is well again.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use backhaul::config::{Config, Heartbeat, Reconnect};
use backhaul::link::{Class, Disposition};
use native_tls::{Identity, TlsAcceptor};
use serde_json::Value;

use crate::support::agent::{self, Agent};
use crate::support::authority::Authority;
use crate::support::fault_server::{Fault, FaultServer};
use crate::support::producer::{Committed, Handed, Producer};
use crate::support::{DEADLINE, TempDir, wait_until};
use crate::table::{Row, Wait};

/// Times that a row fails before the fault is lifted: two gaps between them at the least.
pub const TIMES: usize = 4;

const LANE: &str = "telemetry";

/// The waits of these rows, apart from each other so that no class passes for another.
pub const RECONNECT: Reconnect = Reconnect {
    start_delay_ms_max: 0,
    spread_ms: 100,
    backoff_ms_min: 400,
    backoff_ms_max: 800,
    slow_ms_min: 1200,
    slow_ms_max: 2400,
    stable_after_ms: 100,
    failover_failures: 3,
    failback_ms: 300_000,
};

/// What all rows share.
pub struct Stage {
    dir: TempDir,
    acceptor: TlsAcceptor,
}

impl Stage {
    pub fn new() -> Self {
        let dir = TempDir::new("stage");
        let authority = Authority::new(&dir, "ours");
        let (certificate, key) = authority.issue("server", "IP:127.0.0.1");
        let read = |path| std::fs::read(path).expect("openssl wrote it");
        let identity = Identity::from_pkcs8(&read(certificate), &read(key)).expect("a certificate and its key");
        Self { dir, acceptor: TlsAcceptor::new(identity).expect("a server's TLS") }
    }
}

/// The agent, its upstream and a producer.
struct Scene<'a> {
    row: &'a Row,
    agent: Agent,
    producer: Producer,
    server: FaultServer,
    _dir: TempDir,
}

/// Plays a row; panics where it is not as the row says.
pub fn play(row: &Row, stage: &Stage) {
    let dir = TempDir::new("row");
    let server = FaultServer::new();
    if row.tls {
        server.set_tls(stage.acceptor.clone());
    }
    let mut config = agent::quick(&dir, &server.url());
    config.log.level = "debug".into();
    config.upstream.reconnect = RECONNECT;
    set_timeouts(&mut config, row.class);
    if row.tls {
        config.upstream.endpoints[0].ca_file = Some(stage.dir.join("ours/ca.pem"));
    }
    (row.adjust)(&mut config);
    let agent = Agent::new(&dir, &config);
    let producer = Producer::new(agent.socket(), Some(LANE));
    let mut scene = Scene { row, agent, producer, server, _dir: dir };
    scene.agent.start();
    scene.agent.wait_listening();
    put(&mut scene.producer, 3);
    scene.wait_arrived();
    let name = row.name;
    if may_be_stable(&config) {
        wait_until(DEADLINE, format!("{name}: the session is stable"), || scene.agent.log().contains("link: stable"));
    }
    scene.fail();
    scene.recover();
}

/// Short where the row waits for one, else such that a machine with much to do does not meet it by accident.
fn set_timeouts(config: &mut Config, class: &str) {
    config.upstream.handshake_timeout_ms = if class == "timeout" { 1000 } else { 10_000 };
    config.upstream.ack_timeout_ms = if class == "stalled" { 500 } else { 10_000 };
    if class != "silent" {
        config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 5000, ..config.upstream.heartbeat };
    }
}

/// The first session lives long enough to be stable.
fn may_be_stable(config: &Config) -> bool {
    config.upstream.session_age_s_max == 0 && config.upstream.reconnect.stable_after_ms < 1000
}

impl Scene<'_> {
    /// The fault strikes and stays, until the agent has met it [`TIMES`] times.
    fn fail(&mut self) {
        let Row { name, class, .. } = self.row;
        let status = self.agent.wait_up();
        let all_before = status["link"]["failures"].clone();
        let (failed_before, begin) = (failures_of(self.row, &status), Instant::now());
        let before = self.server.attempts();
        self.server.strike(self.row.fault.clone());
        let mut drawn: Vec<(u64, u64)> = Vec::new();
        let what = format!("{name}: {TIMES} failures as {class}");
        let (busy, refuses) = (self.row.busy, self.row.fault == Fault::Refuses);
        let status = self.agent.wait_status(&what, |status| {
            let failures = failures_of(self.row, status) - failed_before;
            if agent::state(status) == "waiting" {
                drawn.push((failures, status["link"]["backoff_ms"].as_u64().unwrap_or(0)));
            }
            if busy && agent::depth(status) == 0 {
                put(&mut self.producer, 1);
            }
            failures >= TIMES as u64 && (refuses || self.server.attempts() >= before + TIMES)
        });
        self.assert_only_this_class(&all_before, &status);
        let last = &status["link"]["last_failure"];
        assert_eq!(last["class"], *class, "{name}: {status:#}");
        let detail = last["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(self.row.detail), "{name}: {detail:?} has no {:?}", self.row.detail);
        self.assert_waits(before, begin);
        for (failures, wait_ms) in drawn {
            self.assert_drawn(failures, wait_ms);
        }
        self.assert_logged();
    }

    /// What was seen at the listening socket. xmidt-org/parodus#264: what was documented as exponential was constant
    /// in one path, so the observed sequence counts, not the computed one. Each attempt is noted before the server
    /// does anything, so a gap is never measured shorter than the agent waited.
    fn assert_waits(&self, before: usize, begin: Instant) {
        let name = self.row.name;
        if self.row.fault == Fault::Refuses {
            // Nothing listens that could note the attempts: the agent's own count, against the least time for so many.
            let least: u64 = (1..TIMES).map(|nth| *self.range(nth).start()).sum();
            let took = begin.elapsed();
            assert!(took >= Duration::from_millis(least), "{name}: {TIMES} attempts in {took:?}");
            return;
        }
        let attempts = self.server.books(|books| books.attempts[before..].to_vec());
        let gaps: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() >= TIMES - 1, "{name}: {gaps:?}");
        for (nth, gap) in (1..TIMES).zip(&gaps) {
            let least = Duration::from_millis(*self.range(nth).start());
            assert!(*gap >= least, "{name}: attempt {} came after {gap:?}, {least:?} at least; {gaps:?}", nth + 1);
        }
    }

    /// The wait that `status` shows lies within what the class may draw.
    fn assert_drawn(&self, failures: u64, wait_ms: u64) {
        let Ok(nth) = usize::try_from(failures) else { return };
        // Before the first failure of the row it is the wait for the cut that began it.
        if (1..=TIMES).contains(&nth) {
            let range = self.range(nth);
            // A look at the credentials comes first, and what is left of the wait behind it is shown then.
            let looks = matches!(self.row.wait, Wait::Refused) && wait_ms <= *range.end();
            let range = range.start() - range.start().min(&1)..=*range.end();
            assert!(
                looks || range.contains(&wait_ms),
                "{}: {wait_ms} ms after failure {nth}, {range:?} allowed",
                self.row.name
            );
        }
    }

    /// What the agent may draw after the nth failure, in ms.
    fn range(&self, nth: usize) -> RangeInclusive<u64> {
        self.row.wait.range(nth)
    }

    /// Nothing else happened, but for the cut that began it.
    fn assert_only_this_class(&self, before: &Value, status: &Value) {
        let Row { name, class, on_the_way, .. } = self.row;
        let failures = status["link"]["failures"].as_object().expect("a map");
        for (other, count) in failures {
            let new = count.as_u64().unwrap_or(0) - before[other].as_u64().unwrap_or(0);
            let cut = new == 0 || other == "reset" && new == 1;
            assert!(other == class || on_the_way.contains(&other.as_str()) || cut, "{name}: {failures:?}");
        }
    }

    /// The log says class and detail in one line, loudly where it is worth waking someone.
    fn assert_logged(&self) {
        let Row { name, class, .. } = self.row;
        let log = self.agent.log();
        let level = match class_named(class).disposition() {
            Disposition::Slow => "WARN",
            Disposition::Promptly | Disposition::Spread | Disposition::Backoff | Disposition::Stop => "INFO",
        };
        let tells = |line: &&str| {
            line.contains(level) && line.contains(&format!("class={class} ")) && line.contains(self.row.detail)
        };
        let count = log.lines().filter(tells).count();
        assert!(count >= 2, "{name}: {count} lines at {level} say class={class} and {:?}", self.row.detail);
    }

    /// The fault is lifted: it is up again by itself, says why it was gone, and all that was committed is stored.
    fn recover(&mut self) {
        self.server.set(Fault::None);
        put(&mut self.producer, 2);
        self.wait_arrived();
        self.agent.wait_drained();
        self.server.books(|books| {
            let Row { name, class, .. } = self.row;
            assert_eq!(books.breaches, [""; 0], "{name}");
            let last = books.hellos.last().and_then(|hello| hello.last.as_deref());
            assert_eq!(last, Some(*class), "{name}: the hello after it names what ended the session before");
        });
    }

    fn wait_arrived(&mut self) {
        let stored = |record: &Committed| {
            let name = (record.lane.clone(), record.epoch, record.seq);
            self.server.books(|books| books.records.get(&name).is_some_and(|body| *body == record.body))
        };
        for record in &self.producer.committed {
            wait_until(DEADLINE, format!("{}: {record:?} is stored", self.row.name), || {
                self.agent.assert_runs();
                stored(record)
            });
        }
    }
}

fn put(producer: &mut Producer, count: usize) {
    for _ in 0..count {
        let number = producer.handed_in();
        assert_eq!(producer.put("failure", format!("record {number}")), Handed::Answered);
    }
    assert_eq!(producer.refused, [], "nothing is refused");
}

/// How often the row's failure has happened; what led to it counts, the cut that began it does not.
fn failures_of(row: &Row, status: &Value) -> u64 {
    let cut = u64::from(row.class == "reset");
    let led: u64 = row.on_the_way.iter().map(|class| agent::failures(status, class)).sum();
    (agent::failures(status, row.class) + led).saturating_sub(cut)
}

/// The class of this name.
pub fn class_named(name: &str) -> Class {
    Class::ALL.into_iter().find(|class| class.name() == name).unwrap_or_else(|| panic!("there is no class {name}"))
}

impl Wait {
    /// What may be drawn after the nth failure (from 1), in ms, with [`RECONNECT`].
    pub fn range(self, nth: usize) -> RangeInclusive<u64> {
        let jittered = |min: u64, max: u64| {
            let ceiling = (min << (nth - 1).min(20)).min(max);
            ceiling * 7 / 10..=ceiling
        };
        let r = RECONNECT;
        match self {
            Self::Backoff => jittered(r.backoff_ms_min, r.backoff_ms_max),
            Self::BackoffAndSpread => {
                let range = jittered(r.backoff_ms_min, r.backoff_ms_max);
                *range.start()..=*range.end() + r.spread_ms
            }
            Self::Slow | Self::Refused => jittered(r.slow_ms_min, r.slow_ms_max),
            Self::ServersWord { after_ms, spread_ms } => after_ms..=after_ms + spread_ms,
            Self::Promptly => 0..=r.spread_ms,
            // Three takeovers in a row are needed before a clone is suspected.
            Self::Takeovers if nth <= 2 => Self::Backoff.range(nth),
            Self::Takeovers => Self::Slow.range(nth - 2),
        }
    }
}
