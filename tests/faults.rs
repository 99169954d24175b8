//! Upstreams that fail in ways that take more than one row of `tests/failures`, and a real agent that has to bear it:
//! it notices, it says what it saw, it never hammers, and once the fault is lifted it is up again by itself and every
//! committed record arrives.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use backhaul::config::{Config, Encoding};
use support::agent::{self, Agent};
use support::authority::Authority;
use support::fault_server::{Act, Books, Fault, FaultServer};
use support::producer::{Committed, Handed, Producer};
use support::proxy::{Mode, Proxy};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, wait_until};

const LANE: &str = "telemetry";

/// An agent, its upstream that may fail, and one producer. Dropped in this order: the folder last.
struct Bench {
    agent: Agent,
    producer: Producer,
    server: FaultServer,
    config: Config,
    _dir: TempDir,
}

impl Bench {
    /// All configured, nothing started.
    fn new(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new("faults");
        let server = FaultServer::new();
        let mut config = agent::quick(&dir, &server.url());
        config.upstream.ack_timeout_ms = 500;
        adjust(&mut config);
        let agent = Agent::new(&dir, &config);
        let producer = Producer::new(agent.socket(), Some(LANE));
        Self { agent, producer, server, config, _dir: dir }
    }

    /// Up, and its first records are stored.
    fn up(adjust: impl FnOnce(&mut Config)) -> Self {
        let mut bench = Self::new(adjust);
        bench.agent.start();
        bench.agent.wait_listening();
        bench.put(20);
        bench.wait_arrived();
        bench
    }

    /// SIGTERM: it leaves in order and within 2 s, whatever its upstream does.
    fn term(&mut self) {
        let status = self.agent.term(Duration::from_secs(2)).expect("it leaves within 2 s");
        assert!(status.success(), "{status}");
    }

    /// Commits so many records.
    fn put(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.producer.handed_in();
            assert_eq!(self.producer.put("fault", format!("record {number}")), Handed::Answered);
        }
        assert_eq!(self.producer.refused, [], "nothing is refused");
    }

    /// The epoch of the last record committed.
    fn epoch(&self) -> u64 {
        self.producer.committed.last().unwrap().epoch
    }

    /// Commits a record now and then until the link has failed twice with one of these classes and long enough for a
    /// busy loop to show; then no more attempts were made than the backoff allows.
    fn endure(&mut self, classes: &[&str]) {
        const WINDOW: Duration = Duration::from_millis(1500);
        let begin = Instant::now();
        wait_until(DEADLINE, format!("the link has failed twice with one of {classes:?}"), || {
            self.put(1);
            let status = self.agent.status().expect("the agent answers whatever its upstream does");
            let failures: u64 = classes.iter().map(|class| agent::failures(&status, class)).sum();
            failures >= 2 && begin.elapsed() >= WINDOW
        });
        self.assert_polite(begin);
    }

    /// Since `begin` no more attempts were made than waits of half the cap allow, beside the first few that are
    /// shorter: the prompt one, the spread one, those below the cap.
    fn assert_polite(&self, begin: Instant) {
        const FIRST_FEW: u128 = 6;
        let attempts = self.server.books(|books| books.attempts.iter().filter(|&&at| at >= begin).count());
        let wait_ms = u128::from(self.config.upstream.reconnect.backoff_ms_max / 2);
        let allowed = FIRST_FEW + begin.elapsed().as_millis() / wait_ms;
        assert!(attempts as u128 <= allowed, "{attempts} attempts in {:?}, {allowed} allowed", begin.elapsed());
    }

    /// Lifts the fault; by itself it is up again, and all that was committed, before, meanwhile and now, arrives.
    fn assert_recovers(&mut self) {
        self.server.set(Fault::None);
        self.put(5);
        self.wait_arrived();
        self.agent.wait_drained();
        self.server.books(|books| assert_eq!(books.breaches, [""; 0]));
    }

    /// Waits until every committed record is stored under its name.
    fn wait_arrived(&mut self) {
        let stored = |record: &Committed, books: &mut Books| {
            let name = (record.lane.clone(), record.epoch, record.seq);
            books.records.get(&name).is_some_and(|body| *body == record.body)
        };
        for record in &self.producer.committed {
            wait_until(DEADLINE, format!("{record:?} is stored"), || {
                self.agent.assert_runs();
                self.server.books(|books| stored(record, books))
            });
        }
    }
}

#[test]
fn garbage_bytes_break_a_session_that_speaks_json() {
    for garbage in [Act::GarbageText, Act::GarbageBinary] {
        let mut bench = Bench::up(|config| config.upstream.encodings = vec![Encoding::Json]);
        bench.server.strike(Fault::AfterWelcome(garbage));
        bench.endure(&["protocol"]);
        bench.assert_recovers();
    }
}

#[test]
fn retry_after_of_a_503_is_a_lower_bound() {
    let mut bench = Bench::up(|_| {});
    let before = bench.server.attempts();
    bench.server.strike(Fault::Http(503, "Retry-After: 1\r\n"));
    bench.put(5);
    wait_until(DEADLINE, "three attempts", || bench.server.attempts() >= before + 3);
    let attempts = bench.server.books(|books| books.attempts[before..].to_vec());
    for pair in attempts.windows(2) {
        let wait = pair[1] - pair[0];
        assert!(wait >= Duration::from_millis(990), "back after {wait:?}, asked for 1 s");
    }
    bench.assert_recovers();
}

#[test]
fn retry_after_is_capped() {
    let mut bench = Bench::up(|config| config.upstream.server_wait_ms_max = 300);
    let before = bench.server.attempts();
    bench.server.strike(Fault::Http(429, "Retry-After: 86400\r\nBackhaul-Spread-Ms: 10\r\n"));
    bench.put(5);
    wait_until(DEADLINE, "three attempts", || bench.server.attempts() >= before + 3);
    bench.assert_recovers();
}

#[test]
fn a_session_that_never_proves_stable_backs_off_to_the_cap() {
    let mut bench = Bench::up(|config| {
        config.upstream.reconnect.backoff_ms_min = 100;
        config.upstream.reconnect.backoff_ms_max = 800;
    });
    let before = bench.server.attempts();
    bench.server.strike(Fault::AfterWelcome(Act::Close(1000, "")));
    wait_until(DEADLINE, "eight attempts", || bench.server.attempts() >= before + 8);
    let attempts = bench.server.books(|books| books.attempts[before..].to_vec());
    let last = attempts[7] - attempts[6];
    assert!(last >= Duration::from_millis(400), "the 8th attempt came after {last:?}: the backoff did not grow");
    bench.assert_recovers();
}

#[test]
fn what_a_server_forgot_is_settled_and_records_go_on() {
    for kept in [0, 7] {
        let mut bench = Bench::up(|_| {});
        let epoch = bench.epoch();
        let had = bench.server.books(|books| books.acked[&(LANE.into(), epoch)]);
        bench.server.restart(|books| books.forget_above(LANE, epoch, kept));
        bench.put(10);
        let last = bench.producer.committed.last().unwrap().seq;
        wait_until(DEADLINE, "the numbers forgotten are accounted for", || {
            bench.server.books(|books| books.acked[&(LANE.into(), epoch)] >= last)
        });
        bench.server.books(|books| {
            let settled: Vec<_> = books.gaps.iter().map(|gap| (gap.epoch, gap.from, gap.to)).collect();
            assert_eq!(settled, [(epoch, kept + 1, had)]);
            assert_eq!(books.gaps[0].lost, [("settled".into(), 0)]);
            assert_eq!(books.breaches, [""; 0]);
            for record in bench.producer.committed.iter().filter(|record| record.seq > had) {
                let name = (record.lane.clone(), record.epoch, record.seq);
                assert_eq!(books.records.get(&name), Some(&record.body), "committed as {name:?}");
            }
        });
        assert_eq!(bench.epoch(), epoch, "the numbering goes on");
    }
}

#[test]
fn a_server_that_knows_more_than_we_do_gets_everything_under_a_new_epoch() {
    const HELD: usize = 30;
    let mut bench = Bench::new(|_| {});
    bench.server.set(Fault::Http(503, ""));
    bench.agent.start();
    bench.agent.wait_listening();
    bench.put(HELD);
    let old = bench.epoch();
    bench.server.books(|books| books.acked.insert((LANE.into(), old), 10_000));
    bench.server.set(Fault::None);
    bench.agent.wait_status("the lane has a new epoch", |status| status["lanes"][0]["epoch"] != old);
    bench.put(5);
    let new = bench.epoch();
    assert_ne!(new, old);
    let last = bench.producer.committed.last().unwrap();
    wait_until(DEADLINE, "the last record is stored", || {
        bench.server.books(|books| books.records.get(&(LANE.into(), new, last.seq)) == Some(&last.body))
    });
    bench.server.books(|books| {
        let offered = books.hellos.iter().flat_map(|hello| &hello.lanes).find(|lane| lane.epoch == new);
        assert_eq!(offered.map(|lane| lane.first), Some(1));
        assert!(books.records.keys().all(|name| name.1 == new), "nothing is stored under the clone's epoch");
        for (seq, record) in (1..).zip(&bench.producer.committed[..HELD]) {
            assert_eq!(books.records.get(&(LANE.into(), new, seq)), Some(&record.body), "seq {seq}");
        }
        assert_eq!(books.breaches, [""; 0]);
    });
}

#[test]
fn an_ack_beyond_what_was_sent_trims_nothing() {
    let mut bench = Bench::up(|_| {});
    let old = bench.epoch();
    bench.server.strike(Fault::AcksBeyond(1000));
    bench.put(5);
    bench.agent.wait_status("the lane has a new epoch", |status| status["lanes"][0]["epoch"] != old);
    bench.server.set(Fault::None);
    bench.put(5);
    let last = bench.producer.committed.last().unwrap();
    wait_until(DEADLINE, "the last record is stored", || {
        bench.server.books(|books| books.records.values().any(|body| *body == last.body))
    });
    bench.server.books(|books| {
        // What was stored under the old epoch may be stored again under the new one: the old ack proved nothing.
        let mut bodies: BTreeMap<&[u8], usize> = BTreeMap::new();
        for body in books.records.values() {
            *bodies.entry(body).or_default() += 1;
        }
        for record in &bench.producer.committed {
            assert!(bodies.contains_key(&record.body[..]), "seq {} of epoch {}", record.seq, record.epoch);
        }
        assert_eq!(books.breaches, [""; 0]);
    });
}

#[test]
fn a_name_that_does_not_resolve_is_tried_again_and_does_not_hold_up_sigterm() {
    let mut bench = Bench::new(|config| {
        config.upstream.endpoints[0].url = "wss://does-not-exist.invalid/v1".into();
    });
    bench.agent.start();
    bench.agent.wait_listening();
    bench.put(5);
    // Where no name server answers, it is the lookup that times out.
    let status = bench.agent.wait_status("two lookups have failed", |status| {
        agent::failures(status, "name") + agent::failures(status, "timeout") >= 2
    });
    assert_eq!(agent::sessions(&status), 0);
    bench.term();
    bench.config.upstream.endpoints[0].url = bench.server.url();
    bench.agent.configure(&bench.config);
    bench.agent.start();
    bench.agent.wait_listening();
    bench.assert_recovers();
}

#[test]
fn sigterm_is_obeyed_while_the_server_never_greets() {
    let mut bench = Bench::up(|config| config.upstream.handshake_timeout_ms = 60_000);
    bench.server.strike(Fault::InsteadOfWelcome(Act::Silence));
    bench.agent.wait_status("it greets", |status| agent::state(status) == "greeting");
    bench.put(5);
    bench.term();
    bench.server.strike(Fault::None);
    bench.agent.start();
    bench.agent.wait_listening();
    bench.assert_recovers();
}

/// A real receiver behind a cable with our hands on it.
struct Cable {
    agent: Agent,
    producer: Producer,
    proxy: Proxy,
    receiver: Receiver,
    _dir: TempDir,
}

impl Cable {
    fn up() -> Self {
        let dir = TempDir::new("path");
        let mut receiver = Receiver::new(&dir);
        receiver.start();
        receiver.wait_listening();
        let proxy = Proxy::new(&receiver.address());
        let config = agent::quick(&dir, &format!("ws://{}/v1", proxy.address()));
        let mut agent = Agent::new(&dir, &config);
        let producer = Producer::new(agent.socket(), None);
        agent.start();
        agent.wait_listening();
        let mut path = Self { agent, producer, proxy, receiver, _dir: dir };
        path.put(20);
        path.wait_arrived();
        path
    }

    fn put(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.producer.handed_in();
            assert_eq!(self.producer.put("path", format!("record {number}")), Handed::Answered);
        }
    }

    /// By itself it is up again, and what was committed is stored once.
    fn assert_recovers(&mut self) {
        self.put(5);
        self.wait_arrived();
        self.agent.wait_drained();
        assert_stored_once(&self.producer, &self.receiver);
    }

    fn wait_arrived(&mut self) {
        self.receiver.wait_acked([&self.producer]);
    }
}

/// What was committed, and nothing else of the producer's, is in the receiver's table, each once.
fn assert_stored_once(producer: &Producer, receiver: &Receiver) {
    let mut stored = receiver.records();
    stored.retain(|record| record.topic != "$event");
    let stored: Vec<_> = stored.into_iter().map(|record| (record.epoch, record.seq, record.body)).collect();
    let committed = producer.committed.iter().map(|record| (record.epoch, record.seq, record.body.clone()));
    assert_eq!(stored, committed.collect::<Vec<_>>());
    assert_eq!(receiver.gaps(), []);
}

#[test]
fn a_link_that_stalls_without_closing_is_noticed_by_the_heartbeat_alone() {
    let mut path = Cable::up();
    // Idle: nothing is in flight, so no ack is late.
    path.proxy.set(Mode::Stall);
    path.agent.wait_failures("silent", 1);
    path.put(20);
    // New connections stall as well.
    path.agent.wait_failures("timeout", 1);
    path.proxy.set(Mode::Pass);
    path.assert_recovers();
}

#[test]
fn a_link_that_stalls_with_records_in_flight_delivers_them_once() {
    let mut path = Cable::up();
    for _ in 0..3 {
        let failed = |status: &_| agent::failures(status, "silent") + agent::failures(status, "stalled");
        let before = failed(&path.agent.wait_up());
        path.put(10);
        path.proxy.set(Mode::Stall);
        path.put(50);
        path.agent.wait_status("the stall is noticed", |status| failed(status) > before);
        path.proxy.set(Mode::Pass);
        path.wait_arrived();
    }
    path.assert_recovers();
}

#[test]
fn a_link_that_is_cut_again_and_again_delivers_once() {
    let mut path = Cable::up();
    for _ in 0..10 {
        path.put(20);
        path.proxy.cut();
        path.put(20);
        path.agent.wait_up();
    }
    path.assert_recovers();
}

#[test]
fn a_port_that_refuses_is_tried_again() {
    let mut path = Cable::up();
    path.proxy.set(Mode::Refuse);
    path.agent.wait_failures("refused", 3);
    path.put(20);
    path.proxy.set(Mode::Pass);
    path.assert_recovers();
}

/// Everything for one agent over TLS that trusts `authority`; not yet started.
fn over_tls(dir: &TempDir, host: &str, authority: &Authority) -> (Receiver, Agent) {
    let receiver = Receiver::new(dir);
    let port = receiver.address().rsplit(':').next().unwrap().to_owned();
    let mut config = agent::quick(dir, &format!("wss://{host}:{port}/v1"));
    config.upstream.endpoints[0].ca_file = Some(authority.path("ca.pem"));
    let agent = Agent::new(dir, &config);
    (receiver, agent)
}

const NAMES: &str = "DNS:localhost,IP:127.0.0.1";

#[test]
fn private_authority_that_matches_is_trusted() {
    let dir = TempDir::new("tls");
    let authority = Authority::new(&dir, "ours");
    let (certificate, key) = authority.issue("server", NAMES);
    for host in ["localhost", "127.0.0.1"] {
        let dir = TempDir::new("tls");
        let (mut receiver, mut agent) = over_tls(&dir, host, &authority);
        receiver.set_tls(&certificate, &key);
        receiver.start();
        receiver.wait_listening();
        agent.start();
        agent.wait_listening();
        let mut producer = Producer::new(agent.socket(), None);
        for number in 0..20 {
            assert_eq!(producer.put("tls", format!("record {number}")), Handed::Answered);
        }
        receiver.wait_acked([&producer]);
        assert_stored_once(&producer, &receiver);
    }
}

#[test]
fn certificate_of_another_authority_or_name_is_refused_until_it_is_right() {
    let dir = TempDir::new("tls");
    let ours = Authority::new(&dir, "ours");
    let theirs = Authority::new(&dir, "theirs");
    let right = ours.issue("server", NAMES);
    let of_another_authority = theirs.issue("server", NAMES);
    let of_another_name = ours.issue("other", "DNS:other.example");
    let (mut receiver, mut agent) = over_tls(&dir, "localhost", &ours);
    agent.start();
    agent.wait_listening();
    let mut producer = Producer::new(agent.socket(), None);
    let mut seen = 0;
    for (certificate, key) in [of_another_authority, of_another_name] {
        receiver.set_tls(&certificate, &key);
        receiver.start();
        receiver.wait_listening();
        for number in 0..10 {
            assert_eq!(producer.put("tls", format!("record {seen} {number}")), Handed::Answered);
        }
        let status = agent.wait_failures("certificate", seen + 2);
        seen = agent::failures(&status, "certificate");
        assert_eq!((agent::sessions(&status), receiver.count()), (0, 0), "nothing is said to a stranger");
        receiver.kill9();
    }
    receiver.set_tls(&right.0, &right.1);
    receiver.start();
    receiver.wait_listening();
    receiver.wait_acked([&producer]);
    assert_stored_once(&producer, &receiver);
}
