//! Bearer tokens and passwords, from files and from programs: what the server hears on each dial, and what becomes of
//! a refusal.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use backhaul::config::Endpoint;

use crate::bench::{Bench, endpoint, replace, secret};
use crate::support::gate::{Gate, Reply};
use crate::support::{DEADLINE, wait_until};

/// A server in front of the bench's that lets only this `Authorization` through; which one it is can be changed.
struct Guard {
    gate: Gate,
    wanted: Arc<Mutex<String>>,
}

impl Guard {
    fn new(wanted: &str) -> Self {
        let gate = Gate::new(|_| Reply::Hang);
        Self { gate, wanted: Arc::new(Mutex::new(wanted.into())) }
    }

    /// From now on it stands in front of this bench's server.
    fn before(&self, bench: &Bench) {
        let (wanted, to) = (Arc::clone(&self.wanted), format!("127.0.0.1:{}", bench.server.port()));
        self.gate.set(move |head| {
            if authorization(head) == Some(wanted.lock().unwrap().as_str()) {
                Reply::Forward(to.clone())
            } else {
                Reply::http(401, "WWW-Authenticate: Bearer\r\n")
            }
        });
    }

    fn url(&self) -> String {
        format!("ws://{}/v1", self.gate.address())
    }

    fn want(&self, authorization: &str) {
        *self.wanted.lock().unwrap() = authorization.into();
    }

    fn heard(&self) -> Vec<String> {
        self.gate.heads().iter().map(|head| authorization(head).unwrap_or("none").to_owned()).collect()
    }
}

fn authorization(head: &str) -> Option<&str> {
    head.lines()
        .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("authorization")))
        .map(|(_, value)| value)
}

fn bench(guard: &Guard, credentials: impl FnOnce(&Path) -> Endpoint) -> Bench {
    let mut bench = Bench::new(|_, dir| Endpoint { url: guard.url(), ..credentials(dir) });
    bench.wait_long_after_refusals();
    guard.before(&bench);
    bench
}

fn sh(script: String) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), script]
}

// xmidt-org/parodus#306, thin-edge/thin-edge.io#3157: what is renewed on disk has to be noticed.
#[test]
fn a_token_that_is_replaced_after_a_refusal_ends_the_wait() {
    let guard = Guard::new("Bearer right");
    let mut bench = bench(&guard, |dir| Endpoint { token_file: secret(dir, "token", "wrong\n"), ..endpoint("") });
    bench.start();
    let detail = bench.wait_failed("credentials");
    assert!(detail.contains("http 401"), "{detail}");
    replace(&bench.dir.join("token"), "right\n");
    bench.assert_delivers();
    let heard = guard.heard();
    assert_eq!(heard.last().unwrap(), "Bearer right");
    assert!(heard.len() <= 3 && heard[..heard.len() - 1].iter().all(|word| word == "Bearer wrong"), "{heard:?}");
    bench.assert_secret(&["right", "wrong", "Bearer"]);
}

#[test]
fn a_refused_token_that_stays_the_same_is_not_shown_again() {
    let guard = Guard::new("Bearer right");
    let mut bench = bench(&guard, |dir| Endpoint { token_file: secret(dir, "token", "wrong\n"), ..endpoint("") });
    bench.start();
    bench.wait_failed("credentials");
    wait_until(DEADLINE, "it looked again", || bench.agent.log().contains("credentials unchanged"));
    assert_eq!(guard.heard(), ["Bearer wrong"]);
    replace(&bench.dir.join("token"), "right\n");
    bench.assert_delivers();
    assert_eq!(guard.heard(), ["Bearer wrong", "Bearer right"]);
}

#[test]
fn a_token_that_others_can_read_is_not_sent() {
    use std::os::unix::fs::PermissionsExt as _;
    let guard = Guard::new("Bearer right");
    let mut bench = bench(&guard, |dir| Endpoint { token_file: secret(dir, "token", "right\n"), ..endpoint("") });
    bench.start();
    bench.assert_delivers();
    let file = bench.dir.join("token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    bench.server.kick();
    let detail = bench.wait_failed("credentials");
    assert!(detail.contains("others may get at this secret"), "{detail}");
    assert_eq!(guard.heard(), ["Bearer right"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    bench.assert_delivers();
    bench.assert_secret(&["right"]);
}

#[test]
fn user_and_password_go_as_basic() {
    let guard = Guard::new("Basic bWU6b3BlbiBzZXNhbWU=");
    let mut bench =
        bench(&guard, |dir| Endpoint { basic_file: secret(dir, "basic", "me:open sesame\n"), ..endpoint("") });
    bench.start();
    bench.assert_delivers();
    bench.assert_secret(&["sesame", "bWU6b3BlbiBzZXNhbWU="]);
}

// Tr3kkR and others kept the old token over reconnects (perspective#2902).
#[test]
fn a_command_is_asked_on_each_dial() {
    let guard = Guard::new("Bearer word1");
    let mut bench = bench(&guard, |dir| {
        let count = dir.join("count").display().to_string();
        Endpoint { token_command: sh(format!("echo x >> {count}; echo word$(wc -l < {count})")), ..endpoint("") }
    });
    bench.start();
    bench.assert_delivers();
    for number in 2..4 {
        guard.want(&format!("Bearer word{number}"));
        bench.server.kick();
        bench.assert_delivers();
    }
    assert_eq!(guard.heard(), ["Bearer word1", "Bearer word2", "Bearer word3"]);
    bench.assert_secret(&["word1", "word2", "word3", "Bearer"]);
}

#[test]
fn a_basic_command_prints_user_and_password() {
    let guard = Guard::new("Basic bWU6c2VzYW1l");
    let mut bench = bench(&guard, |_| Endpoint { basic_command: sh("echo me:sesame".into()), ..endpoint("") });
    bench.start();
    bench.assert_delivers();
    let arguments =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let of_agents: Vec<_> = arguments.filter(|line| line.windows(8).any(|part| part == b"backhaul")).collect();
    assert!(!of_agents.is_empty(), "at least our own is seen");
    assert!(of_agents.iter().all(|line| !line.windows(12).any(|part| part == b"bWU6c2VzYW1l")));
}

#[test]
fn a_command_that_fails_is_told_by_its_status_and_never_by_its_output() {
    for (script, timeout_ms, class, expected) in [
        ("echo sesame; echo sesame >&2; exit 3", 10_000, "credentials", "token_command: exit status: 3"),
        ("echo sesame; exit 75", 10_000, "closed", "token_command: exit status: 75: try again"),
        ("echo sesame; kill -9 $$", 10_000, "credentials", "token_command: signal: 9 (SIGKILL)"),
        ("echo sesame; sleep 1000", 300, "timeout", "token_command: not done within 300 ms"),
        ("while :; do echo sesame; done", 10_000, "credentials", "token_command: more than 16384 bytes of output"),
        ("echo open sesame", 10_000, "credentials", "token_command: its output holds more than one printable word"),
        ("true", 10_000, "credentials", "token_command: its output holds no secret"),
    ] {
        let guard = Guard::new("Bearer right");
        let mut bench = bench(&guard, |dir| {
            let good = dir.join("good").display().to_string();
            let script = format!("if test -e {good}; then echo right; else {script}; fi");
            Endpoint { token_command: sh(script), ..endpoint("") }
        });
        bench.adjust(|config| {
            config.upstream.credential_timeout_ms = timeout_ms;
            config.upstream.handshake_timeout_ms = 60_000;
            config.upstream.reconnect.slow_ms_min = 100;
            config.upstream.reconnect.slow_ms_max = 300;
        });
        bench.start();
        assert_eq!(bench.wait_failed(class), expected);
        assert_eq!(guard.heard(), [""; 0], "{script}");
        // It gets better by itself; a deadline that a loaded machine may miss is no longer part of it.
        fs::write(bench.dir.join("good"), "").unwrap();
        if timeout_ms >= 10_000 {
            bench.assert_delivers();
        }
        bench.assert_secret(&["sesame"]);
    }
}

#[test]
fn sighup_looks_at_the_credentials_at_once() {
    let guard = Guard::new("Bearer right");
    let mut bench = bench(&guard, |dir| {
        let word = dir.join("word");
        fs::write(&word, "wrong\n").unwrap();
        Endpoint { token_command: vec!["/bin/cat".into(), word.display().to_string()], ..endpoint("") }
    });
    bench.start();
    bench.wait_failed("credentials");
    // What a command reads is not watched.
    fs::write(bench.dir.join("word"), "right\n").unwrap();
    bench.agent.hup();
    bench.assert_delivers();
    wait_until(DEADLINE, "the right word was heard last", || guard.heard().last().is_some_and(|w| w == "Bearer right"));
}
