//! Without a clock, with the real agent: a gateway whose wall clock is behind the last time that it saw. Files are given
//! times of tomorrow, so that the clock of this machine is one that nobody has set yet. That someone sets it is not
//! tried here: it would be set for everyone on the machine. It is reached by itself.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use backhaul::config::Config;
use backhaul::shell::clock;
use mio::{Events, Poll, Token};
use serde_json::Value;
use support::agent::{self, Agent, failures, state};
use support::authority::Authority;
use support::fault_server::{Fault, FaultServer};
use support::producer::Producer;
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, not_run, wait_until};

/// No session comes about.
const AWAY: Fault = Fault::Http(503, "");

const HOUR: Duration = Duration::from_secs(3600);

/// What the clocks may drift and round in a test.
const TOLERANCE_MS: u64 = 50;

/// Makes it a file that is written so far from now.
fn touch(path: &Path, ahead: Duration) {
    let file = fs::File::options().create(true).append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + ahead).unwrap();
}

/// The same for all that an agent has written.
fn touch_outbox(config: &Config, ahead: Duration) {
    for entry in fs::read_dir(&config.outbox.dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            touch(&path, ahead);
        }
    }
}

fn clock_of(status: &Value) -> &str {
    status["link"]["clock"].as_str().unwrap()
}

/// An agent that is not started yet and whose clock will be behind its files, and a server that takes no session.
struct Site {
    agent: Agent,
    server: FaultServer,
    config: Config,
    dir: TempDir,
}

impl Site {
    fn new(name: &str) -> Self {
        let (dir, server) = (TempDir::new(name), FaultServer::new());
        server.set(AWAY);
        let config = agent::quick(&dir, &server.url());
        touch(&dir.join("backoff"), HOUR);
        let agent = Agent::new(&dir, &config);
        Self { agent, server, config, dir }
    }
}

/// Starts it and waits until its clock is like this; a producer for its records.
fn start(agent: &mut Agent, clock: &str) -> Producer {
    agent.start();
    agent.wait_status(&format!("the clock is {clock}"), |status| clock_of(status) == clock);
    Producer::new(agent.socket(), None)
}

/// Puts a record; when that was, in Unix ms: not before, and not after.
fn put(producer: &mut Producer, body: &str) -> (u64, u64) {
    let before = clock::wall_ms();
    producer.put("t", body);
    assert_eq!(producer.committed.last().unwrap().body, body.as_bytes());
    (before, clock::wall_ms())
}

/// What the server was told of when these were handed in, in their order, once it has all of them.
fn stamps(server: &FaultServer, count: usize) -> Vec<Option<u64>> {
    wait_until(DEADLINE, "the records arrive", || server.books(|books| books.records.len() >= count));
    server.books(|books| {
        assert_eq!(books.breaches, Vec::<String>::new());
        books.stamps.values().copied().collect()
    })
}

fn assert_within(stamp: Option<u64>, (from, to): (u64, u64)) {
    let stamp = stamp.expect("stamped");
    assert!((from - TOLERANCE_MS..=to + TOLERANCE_MS).contains(&stamp), "{stamp} is not within {from} and {to}");
}

// The one test here that moves this process's own floor.
#[test]
fn the_clock_is_set_from_the_newest_file_on_and_a_watch_says_when() {
    let dir = TempDir::new("clock");
    let (outbox, other) = (dir.join("outbox"), dir.join("backoff"));
    fs::create_dir(&outbox).unwrap();
    clock::learn_floor(&outbox, &other);
    assert!(clock::wall_ms_if_set().is_some(), "there is nothing yet, and the program was built before now");

    // Long ago, and out of a bad clock: neither tells anything.
    fs::File::create(outbox.join("1")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    touch(&outbox.join("2"), 30 * 365 * 24 * HOUR);
    clock::learn_floor(&outbox, &other);
    assert!(clock::wall_ms_if_set().is_some());

    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1);
    let mut ahead = Duration::from_millis(300);
    loop {
        touch(&outbox.join("3"), ahead);
        touch(&other, ahead / 2);
        clock::learn_floor(&outbox, &other);
        let mut watch = clock::Watch::try_new(poll.registry(), Token(3)).unwrap();
        if clock::wall_ms_if_set().is_some() {
            // A machine so slow that the time was over before anyone could look.
            ahead *= 2;
            continue;
        }
        assert!(!clock::is_plausible(clock::wall_ms()));
        let mut told = false;
        while !told {
            poll.poll(&mut events, Some(DEADLINE)).unwrap();
            assert!(!events.is_empty(), "the floor is reached, and nobody was told");
            told = watch.on_ready();
            assert!(!told || clock::wall_ms_if_set().is_some());
        }
        assert!(!watch.on_ready(), "told once");
        assert!(clock::is_plausible(clock::wall_ms()) && !clock::is_plausible(u64::MAX));
        return;
    }
}

// arendst/Tasmota#9757: the last write to flash is a lower bound of the time. mobius-home/mobius#81,
// balena-os/balena-supervisor#488: what happened before the time was known was stamped with nonsense.
#[test]
fn records_of_an_unset_clock_are_stamped_once_it_is_set_even_by_a_later_process_of_the_boot() {
    let Site { dir, server, config, mut agent } = Site::new("restamp");
    let mut producer = start(&mut agent, "unset");
    let mut expected = vec![put(&mut producer, "first"), put(&mut producer, "second")];
    agent.kill9();

    touch_outbox(&config, HOUR);
    let mut producer = start(&mut agent, "unset");
    expected.push(put(&mut producer, "third"));
    agent.kill9();

    // It will be set in a moment, while the agent runs.
    touch_outbox(&config, Duration::from_secs(2));
    touch(&dir.join("backoff"), Duration::ZERO);
    let mut producer = start(&mut agent, "set");
    expected.push(put(&mut producer, "fourth"));
    server.set(Fault::None);
    let stamps = stamps(&server, expected.len());
    assert_eq!(stamps.len(), expected.len());
    for (stamp, expected) in stamps.into_iter().zip(expected) {
        assert_within(stamp, expected);
    }
}

#[test]
fn the_upstreams_time_stamps_what_an_unset_clock_cannot_and_sets_nothing() {
    let Site { dir, server, config, mut agent } = Site::new("welcome");
    // Tomorrow: no clock here says so.
    let ahead_ms = 24 * 3_600_000;
    server.books(|books| books.now_ms = Some(clock::wall_ms() + ahead_ms));
    let mut producer = start(&mut agent, "unset");
    let first = put(&mut producer, "before the first session");
    // The server says what its books say, whenever it is asked.
    let told = clock::wall_ms();
    server.books(|books| books.now_ms = Some(told + ahead_ms));
    server.set(Fault::None);
    let status = agent.wait_drained();
    assert_eq!(clock_of(&status), "unset");
    let late_ms = clock::wall_ms() - told;
    let stamp = stamps(&server, 1)[0];
    // It took so long to be asked; the rest is exact.
    assert_within(stamp, (first.0 + ahead_ms - late_ms, first.1 + ahead_ms));
    agent.kill9();

    // A set clock is never overridden, and a time before the last one known is none.
    for (now_ms, ahead, stamped) in [(told + 2 * ahead_ms, Duration::ZERO, true), (told - ahead_ms, HOUR, false)] {
        server.books(|books| {
            books.now_ms = Some(now_ms);
            books.records.clear();
            books.stamps.clear();
        });
        touch_outbox(&config, ahead);
        touch(&dir.join("backoff"), Duration::ZERO);
        agent.start();
        agent.wait_up();
        let mut producer = Producer::new(agent.socket(), None);
        let when = put(&mut producer, "later");
        let stamp = stamps(&server, 1)[0];
        if stamped {
            assert_within(stamp, when);
        } else {
            assert_eq!(stamp, None);
        }
        agent.kill9();
    }
}

// A clock that was wrong for a while, and ahead, leaves files of a time that has not come yet.
#[test]
fn files_of_a_clock_that_was_ahead_do_not_keep_the_right_one_unset_for_ever() {
    let Site { dir: _dir, server, config, mut agent } = Site::new("ahead");
    let mut producer = start(&mut agent, "unset");
    put(&mut producer, "makes the files");
    agent.kill9();
    // So far ahead that nobody believes it.
    let year = 365 * 24 * HOUR;
    touch(&config.local.socket.with_file_name("backoff"), Duration::ZERO);
    touch_outbox(&config, 15 * year);
    start(&mut agent, "set");
    agent.kill9();
    // Not so far: who says the same as the clock is the upstream.
    touch_outbox(&config, 2 * year);
    let mut producer = start(&mut agent, "unset");
    let when = put(&mut producer, "before the session");
    server.books(|books| books.now_ms = Some(clock::wall_ms()));
    server.set(Fault::None);
    agent.wait_status("the clock is set", |status| state(status) == "up" && clock_of(status) == "set");
    assert_within(stamps(&server, 2).pop().unwrap(), when);
}

// evercam/ex_nvr#404: how long a boot took that nobody clocked is not known.
#[test]
fn records_of_an_unset_clock_in_another_boot_stay_without_a_time() {
    let Site { dir, server, config, mut agent } = Site::new("boot");
    let mount = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id; shift; exec \"$@\"";
    let boot_id = dir.join("boot_id");
    fs::write(&boot_id, "00000000-0000-4000-8000-000000000000\n").unwrap();
    let boot_id = boot_id.to_str().unwrap();
    let other_boot = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", mount, "sh", boot_id];
    let mut probe = Command::new(other_boot[0]);
    let probe = probe.args(&other_boot[1..]).arg("true").stdin(Stdio::null()).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        let name = "records_of_an_unset_clock_in_another_boot_stay_without_a_time";
        not_run(name, "no mount namespace is to be had");
        return;
    }
    agent.run_through(&other_boot.map(Into::into));
    let mut producer = start(&mut agent, "unset");
    put(&mut producer, "of another boot");
    agent.kill9();

    touch_outbox(&config, Duration::ZERO);
    touch(&dir.join("backoff"), Duration::ZERO);
    agent.run_through(&[]);
    let mut producer = start(&mut agent, "set");
    let when = put(&mut producer, "of this one");
    server.set(Fault::None);
    let stamps = stamps(&server, 2);
    assert_eq!(stamps[0], None);
    assert_within(stamps[1], when);
}

/// As a certificate has it.
fn utc(unix_s: u64) -> String {
    let output = Command::new("date").args(["-u", &format!("-d@{unix_s}"), "+%Y%m%d%H%M%SZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

// pendulum-project/ntpd-rs#1428, mendersoftware/mender-docs#327: "not yet valid", again and again, until someone came.
#[test]
fn a_certificate_that_is_not_yet_valid_waits_for_the_clock_and_no_longer() {
    // A slow machine may look at it for the first time when it is valid already.
    for margin_s in [4, 12, 36] {
        let dir = TempDir::new("not-yet");
        let valid_s = clock::wall_ms() / 1000 + margin_s;
        let authority = Authority::new(&dir, "ca");
        let (cert, key) =
            authority.issue_between("server", "IP:127.0.0.1", &utc(valid_s), &utc(valid_s + HOUR.as_secs()));
        let mut receiver = Receiver::new(&dir);
        receiver.set_tls(&cert, &key);
        receiver.start();
        receiver.wait_listening();
        let mut config = agent::quick(&dir, &format!("wss://{}/v1", receiver.address()));
        config.upstream.endpoints[0].ca_file = Some(authority.path("ca.pem"));
        config.upstream.handshake_timeout_ms = 10_000;
        let reconnect = &mut config.upstream.reconnect;
        (reconnect.slow_ms_min, reconnect.slow_ms_max) = (3_600_000, 3_600_000);
        touch(&dir.join("backoff"), Duration::from_secs(margin_s + 1));
        let mut agent = Agent::new(&dir, &config);
        agent.start();
        let status =
            agent.wait_status("it was tried", |status| state(status) == "up" || failures(status, "clock_unset") > 0);
        if failures(&status, "clock_unset") == 0 {
            continue;
        }
        // Left to the slow class it would take an hour.
        let up = agent.wait_up();
        assert_eq!((clock_of(&up), failures(&up, "clock_unset")), ("set", 1), "{up:#}");
        assert_eq!(up["link"]["failures"].as_object().unwrap().len(), 1, "no other failure: {up:#}");
        return;
    }
    panic!("never tried before it was valid");
}
