//! Random fault scripts against the link alone: whatever happens to it, in whatever order, there are never two
//! sessions, no attempt comes sooner than its cause allows, nothing of a session outlives it, and once the fault is
//! gone the link is up again within the bound.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks at the few inputs that it means")]

use std::sync::Arc;
use std::time::Duration;

use backhaul::config::{Heartbeat, Reconnect};
use backhaul::link::{
    Class, Config, Disposition, Failure, Input, JITTER_FLOOR_PERCENT, Link, Output, Remedy, Saved, Timer,
};
use backhaul::time::Instant;
use fastrand::Rng;

use super::draw::{below, pick};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A random but valid configuration.
fn random_config(rng: &mut Rng) -> Config {
    let (endpoints, failover_failures) = (rng.u64(1..5), rng.u32(1..5));
    let mut ms = |least: u64, most: u64| least << rng.u32(0..=(most / least).ilog2());
    let reconnect = Reconnect {
        start_delay_ms_max: ms(1, 60_000),
        spread_ms: ms(1, 60_000),
        backoff_ms_min: ms(10, 20_000),
        backoff_ms_max: ms(10, 80_000),
        slow_ms_min: ms(40_000, 600_000),
        slow_ms_max: ms(40_000, 3_600_000),
        stable_after_ms: ms(10, 120_000),
        failover_failures,
        failback_ms: ms(1000, 600_000),
    };
    let mut ms = |least: u64, most: u64| least << rng.u32(0..=(most / least).ilog2());
    let heartbeat = Heartbeat {
        interval_ms: ms(10, 60_000),
        timeout_ms: ms(10, 10_000),
        misses_max: rng.u32(1..5),
        adaptive: rng.bool(),
        ..Heartbeat::default()
    };
    let remedy =
        |rng: &mut Rng| Remedy { after_s: rng.u64(1..4000), again_after_s: rng.u64(0..3) * 5000, id: rng.u16(1..4) };
    Config {
        reconnect,
        heartbeat,
        handshake_timeout_ms: 10 << rng.u32(0..12),
        server_wait_ms_max: 10 << rng.u32(0..19),
        session_age_s_max: rng.u64(0..3) * 1000,
        attempts_max: 0,
        endpoints_tls: (0..endpoints).map(|_| rng.bool()).collect(),
        remedies: (0..rng.u64(0..3)).map(|_| remedy(rng)).collect(),
    }
}

/// What the shell holds for the link.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Held {
    looking_up: bool,
    /// Sockets being dialed, as bits.
    racing: u64,
    /// One that has won.
    open: bool,
}

/// A link, what the shell holds for it, and what an observer knows of it.
struct Life {
    rng: Rng,
    config: Arc<Config>,
    link: Link,
    now: Instant,
    held: Held,
    saved: Option<Saved>,
    /// Endpoint of the last lookup, and of the last that was no redirect's.
    tried: u8,
    sent_by: u8,
    /// For each endpoint: not before this, by its server's word; and by the slow class.
    word: [Instant; 8],
    slow: [Instant; 8],
    /// Since when there is no path to any endpoint.
    no_path_since: Option<Instant>,
    /// Somebody answered since: there was one after all.
    answered: bool,
    /// Something that may cure a refusal came during the attempt.
    cured: bool,
    /// When each remedy was run in this outage.
    remedies: [Option<Instant>; 8],
    /// Time that has passed on boot clocks that no longer run, and when this one was looked at first.
    passed: Duration,
    from: Instant,
    attempts: u64,
    granted: u64,
    sessions: u64,
    stables: u64,
    backoff_ms_least: u64,
    /// Shows every step.
    loud: bool,
}

impl Life {
    fn new(seed: u64, loud: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let config = Arc::new(random_config(&mut rng));
        let now = Instant::default() + Duration::from_secs(3600);
        let link = Link::new(Arc::clone(&config), seed, None, rng.bool(), now);
        let backoff_ms_least = least(&config);
        Self {
            rng,
            link,
            config,
            now,
            held: Held::default(),
            saved: None,
            tried: 0,
            sent_by: 0,
            word: Default::default(),
            slow: Default::default(),
            no_path_since: None,
            answered: false,
            cured: false,
            remedies: [None; 8],
            passed: Duration::ZERO,
            from: now,
            attempts: 0,
            granted: 16,
            sessions: 0,
            stables: 0,
            backoff_ms_least,
            loud,
        }
    }

    fn state(&self) -> &'static str {
        self.link.view().state
    }

    fn slow_least(&self) -> Duration {
        let reconnect = &self.config.reconnect;
        ms(reconnect.slow_ms_min.min(reconnect.slow_ms_max)) * JITTER_FLOOR_PERCENT as u32 / 100
    }

    /// Gives the input as the shell would: what it says of sockets is done.
    fn input(&mut self, input: Input) {
        let before = self.state();
        let failures_before = self.link.view().failures;
        match &input {
            Input::Resolved { .. } | Input::CredentialsUnchanged => self.held.looking_up = false,
            Input::Dialed { address } if before == "dialing" && self.is_racing(*address) => {
                self.held = Held { open: true, ..Held::default() };
            }
            Input::DialFailed { address, .. } => self.held.racing &= !bit(*address),
            Input::Failed(_) => self.held = Held::default(),
            Input::Redirected { .. } if before == "upgrading" => self.held = Held::default(),
            Input::SourcesChanged | Input::ClockSet => {
                self.slow = Default::default();
                self.cured = true;
            }
            Input::Network { usable, .. } => {
                let none = usable & ((1 << self.config.endpoints_tls.len()) - 1) == 0;
                self.no_path_since = none.then(|| self.no_path_since.unwrap_or(self.now));
                self.answered &= none;
            }
            _other => {}
        }
        let of_session = matches!(
            input,
            Input::Resolved { .. }
                | Input::Dialed { .. }
                | Input::DialFailed { .. }
                | Input::Secured
                | Input::Upgraded
                | Input::Redirected { .. }
                | Input::Greeted
                | Input::Proved
                | Input::Received
                | Input::PingFlushed
                | Input::Pong
                | Input::Failed(_)
                | Input::Retry { .. }
                | Input::Probed { .. }
                | Input::CredentialsUnchanged
        );
        let word = match &input {
            Input::Retry { after_ms, endpoint, .. } => Some((*after_ms, *endpoint)),
            Input::Failed(failure) | Input::DialFailed { failure, .. } => failure.server_wait_ms.map(|ms| (ms, None)),
            _other => None,
        };
        if self.loud {
            eprintln!("{:?} {before} ← {input:?}", self.now);
        }
        self.link.handle_input(input, self.now);
        if before == "waiting" && of_session {
            assert_eq!(self.link.poll_output(), None, "something of an old session");
        }
        if before != "waiting" && self.state() == "waiting" && self.link.view().failures != failures_before {
            self.on_end(word);
        }
        self.outputs(before);
    }

    /// An attempt or a session has just ended.
    fn on_end(&mut self, word: Option<(u64, Option<u8>)>) {
        let Some(class) = self.link.last_class() else { return };
        if let Some((after_ms, named)) = word {
            let named = named.filter(|index| usize::from(*index) < self.config.endpoints_tls.len());
            let until = self.now + ms(after_ms.min(self.config.server_wait_ms_max));
            self.word[usize::from(named.unwrap_or(self.tried))] = until;
        }
        let is_slow = class.disposition() == Disposition::Slow;
        if is_slow && !self.cured && word.is_none() {
            self.slow[usize::from(self.tried)] = self.now + self.slow_least();
        }
        if !matches!(class, Class::Local | Class::Name | Class::Unreachable | Class::Timeout | Class::Silent) {
            // An answer: there is a path after all.
            self.answered = true;
        }
        // It was left, and the other one is returned to, should it not work.
        self.granted += 2 * u64::from(class == Class::Failback);
    }

    fn next(&mut self) {
        let (at, timer) = self.link.poll_timeout().expect("never stuck");
        let before = self.state();
        self.now = self.now.max(at);
        let failures_before = self.link.view().failures;
        self.link.handle_timeout(self.now);
        if timer == Timer::Stable || before == "up" {
            self.granted += 2;
        }
        if before != "waiting" && self.state() == "waiting" && self.link.view().failures != failures_before {
            self.on_end(None);
        }
        self.outputs(before);
    }

    fn outputs(&mut self, before: &str) {
        while let Some(output) = self.link.poll_output() {
            if self.loud {
                eprintln!("{:?} {before} → {output:?}", self.now);
            }
            match output {
                Output::Resolve { endpoint, recheck } => self.on_resolve(endpoint, recheck, before),
                Output::Dial { address } => {
                    assert!(!self.held.open && !self.held.looking_up, "a dial beside {:?}", self.held);
                    assert!(!self.is_racing(address), "dialed twice");
                    self.held.racing |= bit(address);
                }
                Output::Drop { .. } => self.held = Held::default(),
                Output::Save(saved) => {
                    if (saved.backoff_exponent, saved.not_before_boot_ms) == (0, 0) && self.link.is_up() {
                        self.on_stable();
                    }
                    self.saved = Some(saved);
                }
                Output::Probe { endpoint } => {
                    // What is preferred to the one that sent us where we are, if it did: that is seen in the unit tests.
                    assert!(self.link.is_up() && usize::from(endpoint) < self.config.endpoints_tls.len(), "{endpoint}");
                }
                Output::Remedy { step } => self.on_remedy(step),
                Output::GiveUp => panic!("gave up"),
                Output::Ping | Output::Changed => {}
            }
        }
        let state = self.state();
        match state {
            "waiting" | "start_delay" | "stopped" => {
                assert_eq!(self.held, Held::default(), "something is still open in {state}");
            }
            "dialing" => assert_ne!(self.held.racing, 0, "nothing is dialed"),
            "up" => {
                assert!(self.held.open, "up without a transport");
                self.sessions += u64::from(before != "up");
                for index in [self.tried, self.sent_by] {
                    self.slow[usize::from(index)] = Instant::default();
                }
            }
            _handshake => {}
        }
        assert!(self.link.poll_timeout().is_some(), "stuck in {state}");
    }

    fn on_resolve(&mut self, endpoint: u8, recheck: bool, before: &str) {
        assert_eq!(self.held, Held::default(), "an attempt beside another one");
        self.held.looking_up = true;
        let index = usize::from(endpoint);
        assert!(self.now >= self.word[index], "before the server's word");
        let redirected = before == "upgrading";
        if !redirected && !recheck {
            assert!(self.now >= self.slow[index], "sooner than the slow class allows");
            if let Some(since) = self.no_path_since.filter(|_| !self.answered) {
                assert!(self.now >= since + self.slow_least(), "dialing without a path");
            }
            self.attempts += 1;
        }
        self.tried = endpoint;
        if !redirected {
            self.sent_by = endpoint;
        }
        self.cured &= redirected;
    }

    fn on_stable(&mut self) {
        self.stables += 1;
        self.granted += 20;
        self.remedies = [None; 8];
    }

    fn on_remedy(&mut self, step: u8) {
        assert!(!self.link.is_up(), "a remedy for a link that is up");
        let again_after_s = self.config.remedies[usize::from(step)].again_after_s;
        if let Some(run) = self.remedies[usize::from(step)].replace(self.now) {
            assert!(again_after_s > 0, "once an outage");
            assert!(self.now.since(run) >= Duration::from_secs(again_after_s), "too often");
        }
    }

    fn is_racing(&self, address: u8) -> bool {
        self.held.racing & bit(address) != 0
    }

    /// The process dies and begins anew, perhaps with the machine.
    fn restart(&mut self) {
        let reboot = self.rng.u8(..) < 60;
        self.held = Held::default();
        (self.word, self.slow, self.no_path_since) = (Default::default(), Default::default(), None);
        if reboot {
            self.passed += self.now.since(self.from);
            self.now = Instant::default() + ms(self.rng.u64(0..20_000));
            self.from = self.now;
            let now = self.now;
            self.remedies.iter_mut().flatten().for_each(|run| *run = now);
        }
        // The instants of what was run are kept in whole seconds.
        self.link = Link::new(Arc::clone(&self.config), self.rng.u64(..), self.saved, reboot, self.now);
        self.granted += 16;
    }

    fn reload(&mut self) {
        let old = self.config.endpoints_tls.len();
        let mut config = if self.rng.bool() { random_config(&mut self.rng) } else { (*self.config).clone() };
        config.remedies.clone_from(&self.config.remedies);
        let count = config.endpoints_tls.len();
        let mut free: Vec<u8> = (0..old as u8).collect();
        for at in 1..free.len() {
            let other = below(&mut self.rng, at + 1);
            free.swap(at, other);
        }
        let keep = self.rng.u8(..);
        let was: Vec<Option<u8>> = (0..count).map(|_| free.pop().filter(|_| self.rng.u8(..) < keep)).collect();
        let of = |new: usize| was.get(new).copied().flatten().map(usize::from);
        self.word = std::array::from_fn(|new| of(new).map_or(Instant::default(), |old| self.word[old]));
        self.slow = std::array::from_fn(|new| of(new).map_or(Instant::default(), |old| self.slow[old]));
        // What is new counts as having a path until told otherwise.
        self.answered = true;
        self.config = Arc::new(config);
        // A shorter wait of the new configuration holds at once.
        let until = self.now + self.slow_least();
        self.slow = self.slow.map(|slow| slow.min(until));
        let until = self.now + ms(self.config.server_wait_ms_max);
        self.word = self.word.map(|word| word.min(until));
        self.backoff_ms_least = self.backoff_ms_least.min(least(&self.config));
        self.granted += 4;
        let before = self.state();
        let tried = (0..count).find(|new| was[*new] == Some(self.tried));
        self.tried = tried.unwrap_or(0) as u8;
        self.sent_by = (0..count).find(|new| was[*new] == Some(self.sent_by)).unwrap_or(0) as u8;
        if self.loud {
            eprintln!("{:?} {before} reload {was:?} {:?}", self.now, self.config);
        }
        self.link.reconfigure(Arc::clone(&self.config), &was, self.now);
        self.outputs(before);
    }

    /// The input that moves the link on from here; `None`: only time does.
    fn fitting(&mut self) -> Option<Input> {
        let racing: Vec<u8> = (0..64).filter(|address| self.is_racing(*address)).collect();
        Some(match self.state() {
            "resolving" => Input::Resolved { addresses: self.rng.u8(1..5) },
            "dialing" => Input::Dialed { address: pick(&mut self.rng, &racing) },
            "securing" => Input::Secured,
            "upgrading" => Input::Upgraded,
            "greeting" => Input::Greeted,
            "up" => {
                let endpoint = self.rng.u8(0..4);
                let probed = Input::Probed { endpoint, ok: true };
                let good = [None, Some(Input::Proved), Some(Input::PingFlushed), Some(Input::Pong), Some(probed)];
                return pick(&mut self.rng, &good);
            }
            _waiting => return None,
        })
    }

    /// Any input, fitting or not.
    fn blind(&mut self) -> Input {
        let rng = &mut self.rng;
        let class = pick(rng, &Class::ALL[..Class::COUNT - 1]); // but Stopped
        let failure = Failure {
            server_wait_ms: (rng.u8(..) < 50).then(|| rng.u64(..) >> rng.u32(0..64)),
            server_spread_ms: rng.bool().then(|| rng.u64(0..100_000)),
            ..Failure::new(class, "seen")
        };
        let address = rng.u8(..) >> rng.u32(4..8);
        match rng.u8(0..22) {
            0 => Input::Resolved { addresses: rng.u8(..) },
            1 => Input::Dialed { address },
            2 => Input::Secured,
            3 => Input::Upgraded,
            4 => Input::Greeted,
            5 => Input::Proved,
            6 => Input::Received,
            7 => Input::PingFlushed,
            8 => Input::Pong,
            9 => Input::Network { usable: rng.u16(..) & rng.u16(..) & rng.u16(..), changed: rng.bool() },
            10 => Input::Network { usable: u16::MAX, changed: rng.bool() },
            11 => Input::Probed { endpoint: rng.u8(0..4), ok: rng.bool() },
            12 => Input::CredentialsUnchanged,
            13 if rng.bool() => Input::SourcesChanged,
            14 if rng.bool() => Input::ClockSet,
            15 => Input::Redirected { endpoint: rng.u8(0..6) },
            16 => Input::Retry {
                after_ms: rng.u64(..) >> rng.u32(0..64),
                spread_ms: rng.u64(..) >> rng.u32(0..64),
                endpoint: rng.bool().then(|| rng.u8(0..4)),
            },
            17..20 => Input::DialFailed { address, failure },
            _rest => Input::Failed(failure),
        }
    }

    /// One input that the shell would give in this state, for good or bad; else time passes.
    fn step(&mut self, luck: u8) {
        match self.rng.u8(0..16) {
            _ if self.rng.u8(..) < luck => match self.fitting() {
                Some(input) => self.input(input),
                None => self.next(),
            },
            0..9 => {
                let input = self.blind();
                self.input(input);
            }
            9..13 => self.next(),
            13 => match self.rng.u8(..) {
                0..25 => self.restart(),
                25..50 => self.reload(),
                _rest => {}
            },
            _rest => {
                let before = self.state();
                self.now = self.now + ms(self.rng.u64(0..2000));
                let failures_before = self.link.view().failures;
                self.link.handle_timeout(self.now);
                if before != "waiting" && self.state() == "waiting" && self.link.view().failures != failures_before {
                    self.on_end(None);
                }
                self.outputs(before);
            }
        }
    }

    /// Every attempt has its cause: a wait of at least the least backoff, or one of those that were granted.
    fn check_pace(&self) {
        let passed = self.passed + self.now.since(self.from);
        let waits = passed.as_micros() as u64 / (self.backoff_ms_least * 10 * JITTER_FLOOR_PERCENT);
        let most = self.granted + waits * 3 / 2;
        assert!(self.attempts <= most, "{} attempts, {} granted, {waits} waits", self.attempts, self.granted);
    }

    /// The fault is gone: from here on everything works.
    fn check_comes_back(&mut self) {
        self.input(Input::Network { usable: u16::MAX, changed: true });
        let from = self.now;
        let reconnect = &self.config.reconnect;
        let wait_ms = (2 * self.config.server_wait_ms_max)
            .max(reconnect.slow_ms_max.max(reconnect.slow_ms_min))
            .max(reconnect.backoff_ms_max + reconnect.spread_ms)
            .max(reconnect.start_delay_ms_max);
        for _ in 0..200 {
            if self.link.is_up() {
                let took = self.now.since(from);
                assert!(took <= ms(wait_ms + 8 * self.config.handshake_timeout_ms), "up again only after {took:?}");
                return;
            }
            match self.fitting() {
                Some(input) => self.input(input),
                None => self.next(),
            }
        }
        panic!("never up again: {:?}", self.link.view());
    }
}

/// The least wait of ordinary backoff, in ms.
fn least(config: &Config) -> u64 {
    let reconnect = &config.reconnect;
    reconnect.backoff_ms_min.min(reconnect.backoff_ms_max)
}

fn bit(address: u8) -> u64 {
    1u64.checked_shl(address.into()).unwrap_or(0)
}

/// One script, `loud`: shown step by step; its sessions, and how many were stable.
pub fn run(seed: u64, loud: bool) -> (u64, u64) {
    let mut life = Life::new(seed, loud);
    // How often things go on as they should, of 256: blind steps alone hardly ever finish a handshake.
    let luck = life.rng.u8(..);
    for _ in 0..life.rng.u32(1..300) {
        life.step(luck);
    }
    life.check_pace();
    life.check_comes_back();
    (life.sessions, life.stables)
}
