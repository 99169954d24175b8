//! What happens to an agent that runs: its configuration is changed under it, its endpoints come from elsewhere, its
//! outage is long enough for remedies, it is told to give up. Real processes.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use backhaul::config::{Config, Encoding, Endpoint, Heartbeat, Remedy};
use rustix::process::Signal;
use serde_json::Value;
use support::agent::{self, Agent};
use support::fault_server::{Fault, FaultServer};
use support::producer::{Handed, Producer};
use support::proxy::{Mode, Proxy};
use support::receiver::Receiver;
use support::stopped::Stopped;
use support::{DEADLINE, TempDir, free_port, not_run, program, wait_until};

/// A receiver behind two cables, and an agent that knows the first.
struct Site {
    agent: Agent,
    config: Config,
    producer: Producer,
    first: Proxy,
    second: Proxy,
    receiver: Receiver,
    dir: TempDir,
}

impl Site {
    fn up(adjust: impl FnOnce(&mut Config, &Names)) -> Self {
        let dir = TempDir::new("upkeep");
        let mut receiver = Receiver::new(&dir);
        receiver.start();
        receiver.wait_listening();
        let [first, second] = [(); 2].map(|()| Proxy::new(&receiver.address()));
        let mut config = agent::quick(&dir, &url(&first));
        // No session ends but by our hand, however busy the machine is.
        config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 5000, ..config.upstream.heartbeat };
        (config.upstream.handshake_timeout_ms, config.upstream.ack_timeout_ms) = (10_000, 10_000);
        adjust(&mut config, &Names { first: url(&first), file: dir.join("endpoints.toml") });
        let mut agent = Agent::new(&dir, &config);
        let producer = Producer::new(agent.socket(), None);
        agent.start();
        agent.wait_up();
        let mut site = Self { agent, config, producer, first, second, receiver, dir };
        site.deliver(5);
        site
    }

    /// Commits so many records and waits until they are stored.
    fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.producer.handed_in();
            assert_eq!(self.producer.put("upkeep", format!("record {number}")), Handed::Answered);
        }
        self.receiver.wait_acked([&self.producer]);
    }

    /// Writes the configuration and asks for it to be read; `said`: what the log says then, `times` in all.
    fn reload(&mut self, said: &str, times: usize) {
        self.agent.configure(&self.config);
        self.agent.signal(Signal::HUP);
        wait_until(DEADLINE, format!("the log says {said:?}"), || {
            self.agent.assert_runs();
            self.agent.log().matches(said).count() >= times
        });
    }

    /// Each record is stored once, and nothing is missing.
    fn assert_stored_once(&self) {
        let stored: Vec<_> = self.receiver.records().into_iter().filter(|record| record.topic != "$event").collect();
        let names: Vec<_> = stored.iter().map(|record| (record.epoch, record.seq, &record.body)).collect();
        let promised = self.producer.committed.iter();
        assert_eq!(names, promised.map(|record| (record.epoch, record.seq, &record.body)).collect::<Vec<_>>());
        assert_eq!(self.receiver.gaps(), []);
    }
}

/// What a configuration may want to name.
struct Names {
    first: String,
    file: PathBuf,
}

fn url(proxy: &Proxy) -> String {
    format!("ws://{}/v1", proxy.address())
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint { url: url.into(), ..Endpoint::default() }
}

/// A URL where nobody listens.
fn vacant() -> String {
    format!("ws://127.0.0.1:{}/v1", free_port())
}

fn session(status: &Value) -> (String, u64, u64) {
    let session = status["link"]["session"].as_str().unwrap_or_default().to_owned();
    (session, agent::sessions(status), status["agent"]["pid"].as_u64().unwrap())
}

#[test]
fn a_reload_that_the_uplink_can_take_up_drops_no_session() {
    let mut site = Site::up(|_, _| {});
    let before = session(&site.agent.wait_up());
    // One after the other: a spare endpoint, one that is preferred, timings, remedies, the log's level.
    let here = site.config.upstream.endpoints[0].clone();
    site.config.upstream.endpoints = vec![here.clone(), endpoint(&vacant())];
    site.reload("reloaded in place", 1);
    site.deliver(5);
    site.config.upstream.endpoints = vec![endpoint(&vacant()), here];
    site.config.upstream.reconnect.failback_ms = 3_600_000;
    site.reload("reloaded in place", 2);
    site.deliver(5);
    site.config.upstream.reconnect.backoff_ms_max = 500;
    site.config.upstream.heartbeat.interval_ms = 300;
    site.config.upstream.handshake_timeout_ms = 11_000;
    site.config.upstream.ack_timeout_ms = 11_000;
    site.config.remedies = vec![Remedy { after_s: 3600, exec: vec!["/bin/true".into()], ..Remedy::default() }];
    site.reload("reloaded in place", 3);
    site.config.log.level = "debug".into();
    site.reload("reloaded in place", 4);
    site.deliver(5);
    let status = site.agent.wait_up();
    assert_eq!(session(&status), before, "the same session of the same process");
    assert_eq!(status["link"]["endpoint"], url(&site.first));
    assert_eq!(site.first.accepted(), 1, "the receiver saw one connection");
    // What cannot be taken up in place: another crew.
    site.config.upstream.encodings = vec![Encoding::Json];
    site.reload("config: reloaded\n", 1);
    site.deliver(5);
    assert_eq!(session(&site.agent.wait_up()).2, before.2);
    assert!(site.first.accepted() + site.second.accepted() >= 2, "another session");
    site.assert_stored_once();
}

#[test]
fn a_reload_without_the_endpoint_in_use_moves_to_another_one() {
    let mut site = Site::up(|_, _| {});
    let before = session(&site.agent.wait_up());
    site.config.upstream.endpoints = vec![endpoint(&url(&site.second))];
    site.reload("reloaded in place", 1);
    let status = site.agent.wait_status("it is up at the second", |status| {
        agent::state(status) == "up" && status["link"]["endpoint"] == url(&site.second)
    });
    assert_eq!(session(&status).2, before.2);
    assert_eq!(agent::failures(&status, "renewed"), 1, "{status:#}");
    site.deliver(5);
    assert_eq!((site.first.accepted(), site.second.accepted()), (1, 1));
    site.assert_stored_once();
}

/// An agent whose token, in this file, was refused: it waits for an hour.
fn refused(dir: &TempDir, server: &FaultServer) -> (Agent, PathBuf) {
    server.set(Fault::Http(401, ""));
    let token = dir.join("token");
    write_secret(&token, "first");
    let mut config = agent::quick(dir, &server.url());
    config.upstream.endpoints[0].token_file = Some(token.clone());
    (config.upstream.reconnect.slow_ms_min, config.upstream.reconnect.slow_ms_max) = (3_600_000, 3_600_000);
    let mut agent = Agent::new(dir, &config);
    agent.start();
    agent.wait_status("it waits for an hour", |status| agent::failures(status, "credentials") > 0 && waits(status));
    (agent, token)
}

fn write_secret(path: &Path, secret: &str) {
    fs::write(path, secret).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// For much longer than any backoff of these tests.
fn waits(status: &Value) -> bool {
    status["link"]["next_attempt_ms"].as_u64() > Some(1_000_000)
}

#[test]
fn sighup_ends_a_long_wait_for_credentials() {
    let dir = TempDir::new("upkeep");
    let server = FaultServer::new();
    let (mut agent, token) = refused(&dir, &server);
    server.set(Fault::None);
    // thin-edge/thin-edge.io#3157
    write_secret(&token, "second");
    agent.signal(Signal::HUP);
    agent.wait_up();
}

#[test]
fn endpoints_from_a_file_are_read_before_each_attempt_and_a_broken_one_changes_nothing() {
    let list = |urls: &[&str]| urls.iter().map(|url| format!("[[endpoint]]\nurl = \"{url}\"\n")).collect::<String>();
    let mut site = Site::up(|config, site| {
        fs::write(&site.file, list(&[&site.first])).unwrap();
        config.upstream.endpoints = vec![endpoint(&vacant())];
        config.upstream.endpoints_file = Some(site.file.clone());
    });
    let file = site.dir.join("endpoints.toml");
    let (first, second) = (url(&site.first), url(&site.second));
    let at = |site: &mut Site, url: &str, what: &str| {
        site.agent.wait_status(what, |status| agent::state(status) == "up" && status["link"]["endpoint"] == url);
        site.deliver(3);
    };
    let stays = |site: &Site| site.agent.log().matches("the endpoints stay as they are").count();
    at(&mut site, &first, "up where the file says");
    let config = site.dir.join("backhaul.toml");
    let shown = Command::new(program("backhaul")).arg("check").arg("--config").arg(config).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("# endpoints now, of ") && text.contains(&first), "{text}");
    // A running session is left alone; the next attempt goes where the file says then.
    fs::write(&file, list(&[&second])).unwrap();
    site.deliver(3);
    assert_eq!(site.second.accepted(), 0);
    site.first.cut();
    at(&mut site, &second, "at the second");
    for (nth, broken) in ["[[endpoint]]\nurl = \"http://nowhere/\"\n", "[[", ""].into_iter().enumerate() {
        fs::write(&file, broken).unwrap();
        let sessions = agent::sessions(&site.agent.wait_up());
        for _ in 0..2 {
            site.second.cut();
            site.agent.wait_status("again at the second", |status| {
                agent::state(status) == "up" && agent::sessions(status) > sessions
            });
        }
        at(&mut site, &second, "still at the second");
        assert_eq!(stays(&site), nth + 1, "one warning a change");
    }
    fs::remove_file(&file).unwrap();
    site.second.cut();
    wait_until(DEADLINE, "it is said that the file has gone", || stays(&site) == 4);
    at(&mut site, &second, "without the file");
    fs::write(&file, list(&[&first])).unwrap();
    site.second.set(Mode::Refuse);
    at(&mut site, &first, "the file is back");
    site.assert_stored_once();
}

#[test]
fn a_token_that_was_mended_while_nothing_ran_is_tried_at_once_and_only_once() {
    let dir = TempDir::new("upkeep");
    let server = FaultServer::new();
    let (mut agent, token) = refused(&dir, &server);
    // A crash loop gets nothing but the wait.
    let restarts = |agent: &mut Agent, server: &FaultServer| {
        let attempts = server.attempts();
        for _ in 0..3 {
            agent.kill9();
            agent.start();
            agent.wait_status("it goes on waiting", waits);
        }
        assert_eq!(server.attempts(), attempts);
    };
    restarts(&mut agent, &server);
    agent.kill9();
    write_secret(&token, "second");
    agent.start();
    agent.wait_status("that was wrong, too", |status| agent::failures(status, "credentials") > 0 && waits(status));
    restarts(&mut agent, &server);
    // Whoever writes the same at each start has changed nothing.
    agent.kill9();
    write_secret(&token, "second");
    let attempts = server.attempts();
    agent.start();
    agent.wait_status("it goes on waiting", waits);
    assert_eq!(server.attempts(), attempts);
    agent.kill9();
    server.set(Fault::None);
    // As `cp -p` and `mv` do it: the file says nothing of when it came.
    let new = dir.join("mended");
    write_secret(&new, "third");
    fs::File::options().append(true).open(&new).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::rename(&new, &token).unwrap();
    agent.start();
    agent.wait_up();
}

#[test]
fn a_pipe_in_the_place_of_the_endpoints_file_holds_up_nothing() {
    let mut site = Site::up(|config, site| {
        fs::write(&site.file, format!("[[endpoint]]\nurl = \"{}\"\n", site.first)).unwrap();
        config.upstream.endpoints_file = Some(site.file.clone());
    });
    let file = site.dir.join("endpoints.toml");
    fs::remove_file(&file).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RWXU).unwrap();
    let sessions = agent::sessions(&site.agent.wait_up());
    site.first.cut();
    site.agent
        .wait_status("it is up again", |status| agent::state(status) == "up" && agent::sessions(status) > sessions);
    assert!(site.agent.log().contains("not a file"), "{}", site.agent.log());
    site.config.upstream.reconnect.backoff_ms_max = 500;
    site.reload("reloaded in place", 1);
    site.deliver(3);
    site.agent.term(DEADLINE).expect("it leaves");
}

/// Stops a thread of the agent; where that cannot be, the test is not run.
fn stopped(agent: &mut Agent, thread: &str, test: &str) -> Option<Stopped> {
    let process = agent.wait_up()["agent"]["pid"].as_u64().unwrap();
    Stopped::try_new(process, thread).inspect_err(|why| not_run(test, why)).ok()
}

#[test]
fn sigterm_ends_a_reload_that_waits_for_flash() {
    let mut site = Site::up(|_, _| {});
    let name = "sigterm_ends_a_reload_that_waits_for_flash";
    let Some(outbox) = stopped(&mut site.agent, "outbox", name) else { return };
    // Another crew is needed for this, and the old one does not end.
    site.config.upstream.encodings = vec![Encoding::Json];
    site.agent.configure(&site.config);
    let begin = Instant::now();
    site.agent.hup();
    wait_until(DEADLINE, "the local thread has left", || UnixStream::connect(site.agent.socket()).is_err());
    site.agent.signal(Signal::TERM);
    wait_until(DEADLINE, "it leaves", || {
        outbox.let_die();
        !site.agent.runs()
    });
    // A reload alone may wait for 20 s.
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(site.agent.exit_code(), Some(0), "{}", site.agent.log());
}

// A watchdog that is fed by a thread of its own guards nothing.
#[test]
fn the_watchdog_hears_of_the_agent_while_its_loops_turn_and_no_longer() {
    let dir = TempDir::new("upkeep");
    let path = dir.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let server = FaultServer::new();
    let mut agent = Agent::new(&dir, &agent::quick(&dir, &server.url()));
    agent.set_env("NOTIFY_SOCKET", path.to_str().unwrap());
    agent.set_env("WATCHDOG_USEC", "400000");
    let interval = Duration::from_millis(100);
    agent.start();
    let hear = |timeout: Duration| {
        manager.set_read_timeout(Some(timeout)).unwrap();
        let mut buffer = [0; 256];
        let count = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
    };
    assert_eq!(hear(DEADLINE).as_deref(), Some("READY=1\n"));
    let begin = Instant::now();
    for _ in 0..10 {
        assert_eq!(hear(DEADLINE).as_deref(), Some("WATCHDOG=1\n"));
    }
    assert!(begin.elapsed() >= interval * 8, "a quarter of what the watchdog bears: {:?}", begin.elapsed());
    for thread in ["uplink", "local"] {
        let name = "the_watchdog_hears_of_the_agent_while_its_loops_turn_and_no_longer";
        let Some(stopped) = stopped(&mut agent, thread, name) else { return };
        manager.set_nonblocking(true).unwrap();
        while manager.recv(&mut [0; 256]).is_ok() {}
        manager.set_nonblocking(false).unwrap();
        // It may have turned once since the last look.
        let mut late = 0;
        while hear(interval * 20).is_some() {
            late += 1;
            assert!(late <= 2, "{thread} stands still, and the watchdog is fed");
        }
        drop(stopped);
        assert_eq!(hear(DEADLINE).as_deref(), Some("WATCHDOG=1\n"), "{thread} goes on");
    }
    agent.hup();
    let heard = |what: &str| wait_until(DEADLINE, what, || hear(DEADLINE).is_some_and(|said| said.starts_with(what)));
    heard("RELOADING=1\nMONOTONIC_USEC=");
    heard("READY=1\n");
    agent.signal(Signal::TERM);
    heard("STOPPING=1\n");
}

/// A program of one line that appends it to a file.
fn script(dir: &TempDir, name: &str, lines: &str) -> Vec<String> {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    vec![path.to_str().unwrap().into(), dir.join("runs").to_str().unwrap().into()]
}

fn runs(dir: &TempDir) -> Vec<String> {
    let text = fs::read_to_string(dir.join("runs")).unwrap_or_default();
    text.lines().map(Into::into).collect()
}

#[test]
fn a_remedy_is_run_once_an_outage_whoever_is_killed_meanwhile() {
    let dir = TempDir::new("upkeep");
    let mut config = agent::quick(&dir, &vacant());
    let exec = script(&dir, "remedy", "echo \"$BACKHAUL_CLASS $BACKHAUL_DOWN_S\" >> $1; echo reset; echo done >&2");
    config.remedies = vec![Remedy { after_s: 2, exec, again_after_s: 0, ..Remedy::default() }];
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    let written = |status: &Value| status["flash"]["by_purpose"]["other"].as_u64().unwrap();
    agent.wait_listening();
    let before = written(&agent.wait_status("it answers", |_| true));
    wait_until(DEADLINE, "it is run", || !runs(&dir).is_empty());
    // What the link writes to flash is in the books.
    let kept_bytes = fs::metadata(dir.join("outbox/link/backoff")).unwrap().len();
    agent.wait_status("it is counted", |status| written(status) >= before + kept_bytes);
    wait_until(DEADLINE, "what it said is in the log", || {
        let log = agent.log();
        log.contains("ended step=0") && log.contains("reset") && log.contains("done")
    });
    let first = runs(&dir);
    let (class, down_s) = first[0].split_once(' ').unwrap();
    assert_eq!(class, "refused");
    assert!(down_s.parse::<u64>().unwrap() >= 2, "{first:?}");
    // Killed, and restarted for longer than it took the first time; the second time it stands elsewhere in the list.
    for _ in 0..2 {
        agent.kill9();
        agent.start();
        let begin = Instant::now();
        agent.wait_status("3 s of the outage", |_| begin.elapsed() > Duration::from_secs(3));
        assert_eq!(runs(&dir), first);
        let other = Remedy { after_s: 3600, exec: vec!["/bin/true".into()], ..Remedy::default() };
        config.remedies.insert(0, other);
        agent.configure(&config);
    }
    // As after a reboot: nothing beside the socket, and what is on flash is of another boot.
    agent.kill9();
    fs::remove_file(dir.join("backoff")).unwrap();
    let kept = dir.join("outbox/link/backoff");
    let text = fs::read_to_string(&kept).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&kept, text.replace(boot.trim(), "another")).unwrap();
    agent.start();
    let begin = Instant::now();
    agent.wait_status("3 s of the outage", |_| begin.elapsed() > Duration::from_secs(3));
    assert_eq!(runs(&dir), first, "a modem is power-cycled once, not in a loop");
    // The outbox does not mind the folder beside its files.
    agent.term(Duration::from_secs(5)).expect("it leaves");
    let verify = Command::new(program("backhaul")).args(["outbox", "verify"]).arg(&config.outbox.dir).status().unwrap();
    assert!(verify.success());
}

#[test]
fn remedies_run_one_after_the_other_and_are_killed_at_their_deadline() {
    let dir = TempDir::new("upkeep");
    let mut config = agent::quick(&dir, &vacant());
    let slow = script(&dir, "slow", "echo slow >> $1; sleep 1000 & echo $! > $1.pid; wait");
    let quick = script(&dir, "quick", "echo quick >> $1");
    let remedy = |after_s, exec| Remedy { after_s, exec, timeout_s: 6, again_after_s: 0 };
    config.remedies = vec![remedy(1, slow), remedy(2, quick)];
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    wait_until(DEADLINE, "the first is run", || runs(&dir) == ["slow"]);
    let begin = Instant::now();
    wait_until(DEADLINE, "the second is run", || runs(&dir) == ["slow", "quick"]);
    // Due a second after the first, it had to wait for the other two.
    assert!(begin.elapsed() > Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(agent.log().contains("failed step=0"), "{}", agent.log());
    let child = fs::read_to_string(dir.join("runs.pid")).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    wait_until(DEADLINE, "its group is gone", || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")));
}

#[test]
fn a_remedy_that_waits_for_another_one_is_dropped_when_the_link_is_back() {
    let dir = TempDir::new("upkeep");
    let server = FaultServer::new();
    server.set(Fault::Refuses);
    let mut config = agent::quick(&dir, &server.url());
    let slow = script(&dir, "slow", "echo slow >> $1; while ! [ -e $1.go ]; do sleep 0.05; done; echo ended >> $1");
    let quick = script(&dir, "quick", "echo quick >> $1");
    let remedy = |after_s, exec| Remedy { after_s, exec, timeout_s: 600, again_after_s: 0 };
    config.remedies = vec![remedy(1, slow), remedy(2, quick)];
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    wait_until(DEADLINE, "the second is due while the first runs", || agent.log().contains("remedy step=1"));
    server.set(Fault::None);
    agent.wait_up();
    wait_until(DEADLINE, "it is said", || agent.log().contains("remedy not run, a session is up"));
    fs::write(dir.join("runs.go"), "").unwrap();
    wait_until(DEADLINE, "the first ends", || agent.log().contains("ended step=0"));
    // It would be next. In the next outage, of a session that was not stable, it is due once more.
    assert_eq!(runs(&dir), ["slow", "ended"]);
    server.strike(Fault::Refuses);
    wait_until(DEADLINE, "it is run", || runs(&dir).last().is_some_and(|last| last == "quick"));
}

#[test]
fn a_session_ends_the_outage_and_the_next_one_has_its_own_remedy() {
    let dir = TempDir::new("upkeep");
    let server = FaultServer::new();
    server.set(Fault::Refuses);
    let mut config = agent::quick(&dir, &server.url());
    let exec = script(&dir, "remedy", "echo run >> $1");
    config.remedies = vec![Remedy { after_s: 1, exec, again_after_s: 0, ..Remedy::default() }];
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    for outage in 1..=2 {
        wait_until(DEADLINE, "it is run", || runs(&dir).len() == outage);
        server.set(Fault::None);
        agent.wait_status("the session is stable", |status| {
            agent::state(status) == "up" && status["link"]["since_s"].as_u64() >= Some(1)
        });
        server.strike(Fault::Refuses);
    }
}

#[test]
fn with_attempts_max_it_leaves_with_69() {
    let dir = TempDir::new("upkeep");
    let mut config = agent::quick(&dir, &vacant());
    config.upstream.attempts_max = 3;
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    wait_until(DEADLINE, "it gives up", || !agent.runs());
    assert!(agent.log().contains("giving up as configured"), "{}", agent.log());
    assert_eq!(agent.log().matches("dialing: Connection refused").count(), 3, "{}", agent.log());
    assert_eq!(agent.exit_code(), Some(69));
}
