//! What the link does, seen from outside: inputs and time in, outputs and deadlines out, all in virtual time.
//! Everything random is seeded; a failure names its seed.

#![expect(clippy::unwrap_used, reason = "tests")]

mod failover;
mod network;
mod outage;
mod race;
mod refusals;
mod restart;
mod session;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::time::Instant;

const SEEDS: u64 = 300;

fn config() -> Config {
    Config {
        reconnect: Reconnect::default(),
        heartbeat: Heartbeat::default(),
        handshake_timeout_ms: 30_000,
        server_wait_ms_max: 3_600_000,
        session_age_s_max: 0,
        attempts_max: 0,
        endpoints_tls: vec![true],
        ..Config::default()
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn failed(class: Class) -> Input {
    Input::Failed(Failure::new(class, "seen"))
}

/// A link in virtual time, and what it said that outlives a moment.
struct Rig {
    link: Link,
    now: Instant,
    config: Arc<Config>,
    saved: Option<Saved>,
    attempts: u32,
}

impl Rig {
    /// Merely restarted, an hour after boot.
    fn new(config: Config, seed: u64) -> Self {
        let (config, now) = (Arc::new(config), Instant::default() + s(3600));
        Self { link: Link::new(config.clone(), seed, None, false, now), now, config, saved: None, attempts: 0 }
    }

    /// The process ends and another one starts in the same instant.
    fn restart(&mut self, seed: u64) {
        self.link = Link::new(self.config.clone(), seed, self.saved, false, self.now);
    }

    fn outputs(&mut self) -> Vec<Output> {
        let outputs: Vec<_> = std::iter::from_fn(|| self.link.poll_output()).collect();
        for output in &outputs {
            if let Output::Save(saved) = output {
                self.saved = Some(*saved);
            }
        }
        outputs
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.link.handle_input(input, self.now);
        self.outputs()
    }

    /// On to the next deadline.
    fn next(&mut self) -> (Timer, Vec<Output>) {
        let (at, timer) = self.link.poll_timeout().unwrap();
        self.now = self.now.max(at);
        self.link.handle_timeout(self.now);
        (timer, self.outputs())
    }

    fn state(&self) -> &'static str {
        self.link.view().state
    }

    /// Waits for the next attempt; says how long that took.
    fn attempt(&mut self) -> Duration {
        assert!(["waiting", "start_delay"].contains(&self.state()), "{}", self.state());
        self.attempts += 1;
        assert!(self.attempts < 20_000, "a busy loop");
        let from = self.now;
        let (_, outputs) = self.next();
        assert!(outputs.iter().any(|output| matches!(output, Output::Resolve { .. })), "{outputs:?}");
        self.now.since(from)
    }

    /// From an attempt just begun to a stage of the handshake, by name, over so many addresses.
    fn reach(&mut self, stage: &str, addresses: u8) {
        let steps = [
            Input::Resolved { addresses },
            Input::Dialed { address: 0 },
            Input::Secured,
            Input::Upgraded,
            Input::Greeted,
        ];
        for step in steps {
            if self.state() == stage {
                return;
            }
            self.input(step);
        }
        assert_eq!(self.state(), stage);
    }

    /// The next attempt, and its session.
    fn connect(&mut self) -> Duration {
        let waited = self.attempt();
        self.reach("up", 1);
        waited
    }

    /// Stays up that long, every ping answered at once.
    fn stay_up(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.link.poll_timeout().unwrap().0 <= end {
            if self.next().1.contains(&Output::Ping) {
                self.input(Input::PingFlushed);
                self.input(Input::Pong);
            }
            assert!(self.link.is_up());
        }
        self.now = end;
    }

    /// What is saved costs the next process no wait.
    fn is_rested(&self) -> bool {
        self.saved
            .is_some_and(|saved| (saved.backoff_exponent, saved.slow_exponent, saved.not_before_boot_ms) == (0, 0, 0))
    }

    /// A session that proved stable.
    fn connect_stably(&mut self) {
        self.connect();
        self.input(Input::Proved);
        self.stay_up(ms(self.config.reconnect.stable_after_ms));
        assert!(self.is_rested(), "stable");
    }
}

// The start.

#[test]
fn tries_at_once_when_merely_restarted() {
    assert_eq!(Rig::new(config(), 1).attempt(), Duration::ZERO);
}

#[test]
fn the_start_delay_after_a_boot_fills_its_range() {
    let delays: Vec<_> = (0..SEEDS)
        .map(|seed| {
            let mut rig = Rig::new(config(), seed);
            rig.link = Link::new(rig.config.clone(), seed, None, true, rig.now);
            assert_eq!(rig.link.poll_timeout().unwrap().1, Timer::StartDelay);
            rig.attempt()
        })
        .collect();
    assert!(delays.iter().all(|delay| *delay <= s(30)));
    assert!(delays.iter().any(|delay| *delay < s(2)) && delays.iter().any(|delay| *delay > s(28)));
}

// The handshake.

#[test]
fn walks_the_handshake_in_order() {
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    let mut states = vec![rig.state()];
    assert_eq!(rig.input(Input::Resolved { addresses: 2 }), [Output::Dial { address: 0 }, Output::Changed]);
    for input in [Input::Dialed { address: 0 }, Input::Secured, Input::Upgraded, Input::Greeted] {
        states.push(rig.state());
        let outputs = rig.input(input);
        assert!(outputs.iter().all(|output| matches!(output, Output::Changed | Output::Save(_))), "{outputs:?}");
    }
    states.push(rig.state());
    assert_eq!(states, ["resolving", "dialing", "securing", "upgrading", "greeting", "up"]);
}

#[test]
fn a_plain_endpoint_is_not_secured() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![false], ..config() }, 1);
    rig.attempt();
    rig.reach("dialing", 1);
    rig.input(Input::Dialed { address: 0 });
    assert_eq!(rig.state(), "upgrading");
}

#[test]
fn a_late_handshake_says_in_which_stage() {
    // Accepts and never upgrades, upgrades and never greets, …
    for stage in ["resolving", "dialing", "securing", "upgrading", "greeting"] {
        let mut rig = Rig::new(config(), 1);
        rig.attempt();
        let from = rig.now;
        rig.reach(stage, 1);
        let (timer, outputs) = rig.next();
        assert_eq!((timer, rig.now.since(from)), (Timer::Handshake, s(30)), "{stage}");
        assert_eq!(outputs[0], Output::Drop { close: None }, "{stage}");
        let (class, detail, _) = rig.link.view().last_failure.unwrap();
        assert_eq!((class, detail), (Class::Timeout, format!("{stage}: no answer in time")));
        assert!(rig.attempt() > s(28) || stage == "greeting");
    }
}

#[test]
fn a_route_that_is_missing_here_does_not_hide_what_another_address_said() {
    for order in [[Class::Local, Class::Refused], [Class::Refused, Class::Local]] {
        let mut rig = Rig::new(config(), 1);
        rig.attempt();
        rig.reach("dialing", 2);
        for (address, class) in (0..).zip(order) {
            rig.input(Input::DialFailed { address, failure: Failure::new(class, class.name()) });
        }
        let (class, detail, _) = rig.link.view().last_failure.unwrap();
        assert_eq!((class, detail.as_str()), (Class::Refused, "refused"), "{order:?}");
        assert!(rig.attempt() >= s(28), "not promptly");
    }
}

#[test]
fn a_refusal_by_the_server_is_not_repeated_at_every_address() {
    for status in [401, 403, 404, 429, 500, 503] {
        let mut rig = Rig::new(config(), 1);
        rig.attempt();
        rig.reach("upgrading", 8);
        rig.input(Input::Failed(Failure::from_http(status, None, None)));
        assert_eq!(rig.state(), "waiting", "{status}");
    }
}

#[test]
fn the_servers_word_ends_the_attempt_whatever_the_class() {
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    rig.reach("upgrading", 8);
    let failure = Failure::new(Class::Reset, "seen");
    rig.input(Input::Failed(Failure { server_wait_ms: Some(5_000), ..failure }));
    assert_eq!(rig.state(), "waiting");
}

// Backoff.

#[test]
fn spreads_the_first_attempt_after_a_remote_close_then_backs_off() {
    for seed in 0..SEEDS {
        let mut rig = Rig::new(config(), seed);
        rig.connect_stably();
        rig.input(Input::Failed(Failure::from_close(1012, "restart")));
        let first = rig.attempt();
        assert!(first <= s(35), "seed {seed}: {first:?}");
        for (low, high) in [(28, 35), (32, 40), (32, 40), (32, 40)] {
            rig.input(failed(Class::Refused));
            let wait = rig.attempt();
            assert!((s(low)..=s(high)).contains(&wait), "seed {seed}: {wait:?}");
        }
    }
}

#[test]
fn connect_ok_then_drop_backs_off() {
    // moq-dev/moq#1806: 71 connects in 15 s against a server that closes right after the greeting.
    for seed in 0..SEEDS {
        for class in [Class::Closed, Class::Reset, Class::Renewed, Class::Local, Class::Protocol, Class::Replaced] {
            let mut rig = Rig::new(config(), seed);
            let from = rig.now;
            while rig.now.since(from) < s(3600) {
                rig.connect();
                rig.input(Input::Proved);
                rig.input(failed(class));
            }
            let sessions = rig.link.view().sessions;
            assert!(sessions <= 3 + 3600 / 28, "seed {seed} {class:?}: {sessions} sessions in an hour");
        }
    }
}

#[test]
fn only_a_session_that_lived_and_worked_resets_the_exponent() {
    // pladaria/reconnecting-websocket#200: a reset on `open` made a second herd at every flap.
    for (lives, proves, resets) in [(59, true, false), (600, false, false), (60, true, true), (600, true, true)] {
        // So that the first backoff and the cap are told apart.
        let reconnect = Reconnect { backoff_ms_min: 10_000, ..Reconnect::default() };
        let mut rig = Rig::new(Config { reconnect, ..config() }, 7);
        for _ in 0..5 {
            rig.attempt();
            rig.input(failed(Class::Refused));
        }
        rig.connect();
        if proves {
            rig.input(Input::Proved);
        }
        rig.stay_up(s(lives));
        rig.input(failed(Class::Silent));
        rig.attempt();
        rig.input(failed(Class::Refused));
        let wait = rig.attempt();
        assert_eq!(wait <= s(10), resets, "lives {lives} s, proves {proves}: {wait:?}");
    }
}

#[test]
fn proof_that_comes_late_still_counts() {
    let mut rig = Rig::new(config(), 7);
    rig.connect();
    rig.stay_up(s(300));
    assert!(!rig.is_rested());
    rig.input(Input::Proved);
    assert!(rig.is_rested());
}

#[test]
fn a_local_cause_is_tried_promptly_once() {
    for seed in 0..SEEDS {
        for class in [Class::Local, Class::Renewed] {
            let mut rig = Rig::new(config(), seed);
            rig.connect_stably();
            rig.input(failed(class));
            assert!(rig.attempt() <= s(1));
            rig.input(failed(class));
            let wait = rig.attempt();
            assert!((s(28)..=s(35)).contains(&wait), "seed {seed} {class:?}: {wait:?}");
        }
    }
}

#[test]
fn a_refusal_is_tried_slowly_and_more_and_more_slowly() {
    // OpenVPN/openvpn#932: a refused login was repeated every 5 s for hours.
    for class in [Class::WrongPlace, Class::Certificate, Class::ClockUnset] {
        let mut rig = Rig::new(config(), 3);
        for minutes in [5, 10, 20, 40, 60, 60] {
            rig.attempt();
            rig.reach("upgrading", 1);
            rig.input(failed(class));
            let wait = rig.link.view().next_attempt.unwrap().since(rig.now);
            assert!((s(minutes * 48)..=s(minutes * 60)).contains(&wait), "{class:?}: {wait:?}");
        }
    }
}

#[test]
fn close_1013_backs_off_and_spreads() {
    let waits: Vec<_> = (0..SEEDS)
        .map(|seed| {
            let mut rig = Rig::new(config(), seed);
            rig.connect_stably();
            rig.input(Input::Failed(Failure::from_close(1013, "")));
            rig.attempt()
        })
        .collect();
    assert!(waits.iter().all(|wait| (s(28)..=s(70)).contains(wait)));
    assert!(waits.iter().any(|wait| *wait < s(35)) && waits.iter().any(|wait| *wait > s(60)));
}

#[test]
fn two_seeds_never_share_a_sequence_of_attempts() {
    let sequence = |seed| {
        let mut rig = Rig::new(config(), seed);
        [(); 4].map(|()| {
            rig.attempt();
            rig.input(failed(Class::Refused));
            rig.now
        })
    };
    let mut sequences: Vec<_> = (0..SEEDS).map(sequence).collect();
    sequences.sort_unstable();
    sequences.dedup();
    assert_eq!(sequences.len() as u64, SEEDS);
}

// The server's word.

#[test]
fn never_tries_before_the_servers_word() {
    for seed in 0..SEEDS {
        let mut rig = Rig::new(config(), seed);
        rig.attempt();
        rig.reach("upgrading", 3);
        rig.input(Input::Failed(Failure::from_http(503, Some(90_000), Some(10_000))));
        let wait = rig.attempt();
        assert!((s(90)..=s(100)).contains(&wait), "seed {seed}: {wait:?}");

        rig.reach("upgrading", 3);
        rig.input(Input::Failed(Failure::from_http(429, Some(90_000), None)));
        let wait = rig.attempt();
        assert!((s(90)..=s(130)).contains(&wait), "seed {seed}, our own spread: {wait:?}");

        rig.reach("up", 1);
        let retry = Input::Retry { after_ms: 5_000, spread_ms: 60_000, endpoint: None };
        assert_eq!(rig.input(retry)[0], Output::Drop { close: Some(1000) });
        assert_eq!(rig.link.last_class(), Some(Class::ServerRetry));
        let wait = rig.attempt();
        assert!((s(5)..=s(65)).contains(&wait), "seed {seed}: {wait:?}");
    }
}

#[test]
fn the_servers_word_is_capped() {
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    rig.input(Input::Retry { after_ms: u64::MAX, spread_ms: u64::MAX, endpoint: None });
    assert!((s(3600)..=s(7200)).contains(&rig.attempt()));
}

#[test]
fn the_servers_word_outlives_a_restart() {
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    rig.input(Input::Retry { after_ms: 100_000, spread_ms: 0, endpoint: None });
    rig.restart(2);
    assert!(rig.attempt() >= s(100));
}

#[test]
fn the_servers_word_binds_its_endpoint_only() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, 1);
    let refusal = |wait_ms| Input::Failed(Failure::from_http(503, wait_ms, Some(0)));
    for wait_ms in [None, None, Some(3_000_000)] {
        rig.attempt();
        rig.reach("upgrading", 1);
        rig.input(refusal(wait_ms));
    }
    let bound_until = rig.now + s(3000);
    assert!(rig.attempt() <= s(35), "the other endpoint, spread");
    assert_eq!(rig.link.view().endpoint, Some(1));
    while rig.now < bound_until - s(41) {
        rig.input(failed(Class::Refused));
        rig.attempt();
        assert_eq!(rig.link.view().endpoint, Some(1));
    }
}

#[test]
fn goes_to_the_endpoint_that_the_server_names() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true, true], ..config() }, 1);
    rig.connect();
    rig.input(Input::Retry { after_ms: 0, spread_ms: 0, endpoint: Some(2) });
    rig.connect();
    assert_eq!(rig.link.view().endpoint, Some(2));
    rig.input(Input::Retry { after_ms: 0, spread_ms: 0, endpoint: Some(3) });
    assert_eq!(rig.link.view().endpoint, Some(2), "no such endpoint");
    rig.connect();
    rig.input(Input::Proved);
    rig.stay_up(s(60));
    rig.input(failed(Class::Reset));
    assert_eq!(rig.link.view().endpoint, Some(0), "back to the preferred one after a stable session");
}

// The end.

#[test]
fn stops_at_once_in_every_state() {
    for stage in ["waiting", "resolving", "dialing", "securing", "upgrading", "greeting", "up"] {
        let mut rig = Rig::new(config(), 1);
        if stage != "waiting" {
            rig.attempt();
            rig.reach(stage, 1);
        }
        assert_eq!(rig.input(Input::Stop), [Output::Drop { close: Some(1000) }, Output::Changed], "{stage}");
        assert_eq!((rig.state(), rig.link.poll_timeout()), ("stopped", None), "{stage}");
        for late in
            [failed(Class::Reset), Input::Greeted, Input::Network { usable: u16::MAX, changed: true }, Input::Stop]
        {
            assert_eq!(rig.input(late), [], "{stage}");
        }
        rig.link.handle_timeout(rig.now + s(86_400));
        assert_eq!(rig.outputs(), [], "{stage}");
    }
}

#[test]
fn gives_up_only_when_told_to() {
    let mut rig = Rig::new(Config { attempts_max: 3, ..config() }, 1);
    rig.attempt();
    rig.input(failed(Class::Refused));
    rig.connect(); // a session starts the count over
    rig.input(failed(Class::Reset));
    for _ in 0..2 {
        rig.attempt();
        assert!(!rig.input(failed(Class::Refused)).contains(&Output::GiveUp));
    }
    rig.attempt();
    assert!(rig.input(failed(Class::Name)).contains(&Output::GiveUp));
    assert_eq!((rig.state(), rig.link.poll_timeout()), ("stopped", None));

    let mut rig = Rig::new(config(), 1);
    for _ in 0..10_000 {
        rig.attempt();
        assert!(!rig.input(failed(Class::Refused)).contains(&Output::GiveUp));
    }
}

#[test]
fn every_class_leads_to_another_attempt_from_every_state() {
    // EVerest/EVerest#1808: one way to lose the link was never followed by a reconnect.
    for class in Class::ALL {
        for stage in ["resolving", "dialing", "securing", "upgrading", "greeting", "up"] {
            let mut rig = Rig::new(config(), 1);
            rig.attempt();
            rig.reach(stage, 1);
            rig.input(failed(class));
            let stops = class.disposition() == Disposition::Stop;
            assert_eq!(rig.state(), if stops { "stopped" } else { "waiting" }, "{class:?} in {stage}");
            if !stops {
                rig.connect();
            }
        }
    }
}

#[test]
fn the_view_shows_what_status_needs() {
    let mut rig = Rig::new(config(), 1);
    assert_eq!((rig.link.view().endpoint, rig.link.view().next_attempt), (None, Some(rig.now)));
    rig.connect();
    rig.input(Input::Network { usable: u16::MAX, changed: true });
    rig.input(Input::PingFlushed);
    rig.now = rig.now + ms(80);
    rig.input(Input::Pong);
    assert_eq!((rig.link.view().rtt, rig.link.view().since), (Some(ms(80)), rig.now - ms(80)));
    rig.input(Input::Failed(Failure::from_close(1001, "bye")));
    let view = rig.link.view();
    assert_eq!((view.state, view.sessions, view.attempts, view.endpoint), ("waiting", 1, 1, Some(0)));
    assert_eq!(view.failures, [("closed", 1)]);
    assert_eq!(view.last_failure, Some((Class::Closed, "close 1001: bye".into(), rig.now)));
    assert_eq!(view.backoff_ms, view.next_attempt.unwrap().since(rig.now).as_millis() as u64);
    assert_eq!(view.rtt, None);
}
