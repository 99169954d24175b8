//! The machine behind [`Link`]: the states, what each input and each deadline does in them, and what follows the end
//! of an attempt or a session. Durations come from `backoff`, the endpoint from `endpoints`, the pulse from
//! `liveness`; here they meet.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, info, warn};

use super::backoff::{Backoff, EXPONENT_MAX, Word};
use super::endpoints::Endpoints;
use super::liveness::{Liveness, Verdict};
use super::{Class, Config, DETAIL_BYTES_MAX, Disposition, Failure, Input, Output, Saved, Timer, one_line};
use crate::config::Heartbeat;
use crate::status::LinkView;
use crate::time::Instant;

/// Sessions in a row that were taken over before they were stable, before a clone of this device is suspected.
/// A reboot behind a dead session takes over once.
const CLONE_TAKEOVERS: u8 = 3;

/// Close code for an end on purpose (RFC 6455 § 7.4.1).
const CLOSE_NORMAL: u16 = 1000;

/// The life of the one upstream. At most 1 KiB, and nothing allocated per attempt: a simulation runs a million.
#[derive(Debug)]
pub struct Link {
    config: Arc<Config>,
    backoff: Backoff,
    state: State,
    /// When the state was entered.
    since: Instant,
    endpoints: Endpoints,
    /// Sessions in a row that were taken over before they were stable.
    takeovers: u8,
    /// Attempts since the last session.
    attempts_failed: u32,
    attempts: u64,
    attempt_at: Instant,
    sessions: u64,
    failures: [u32; Class::COUNT],
    /// Class and instant of the last failure.
    last: Option<(Class, Instant)>,
    /// Its detail.
    detail: String,
    /// The buffer of the next detail; in a handshake, what the last address failed of.
    spare: String,
    /// The wait drawn last.
    wait: Duration,
    /// As last given out.
    saved: Saved,
    pending: Pending,
}

const _: () = assert!(size_of::<Link>() <= 1024, "the planner holds a million links");

/// Each state owns its data and its deadlines: nothing of one connection outlives it.
#[derive(Debug)]
enum State {
    StartDelay { until: Instant },
    Waiting { until: Instant, hinted: bool },
    Resolving { deadline: Instant },
    Handshake(Handshake),
    Up(Session),
    Stopped,
}

/// From the first dial to `welcome`.
#[derive(Debug, Clone, Copy)]
struct Handshake {
    stage: Stage,
    address: u8,
    addresses: u8,
    /// The class of an address that failed otherwise than by a local cause.
    seen: Option<Class>,
    /// The present address's share ends.
    share: Instant,
    /// The whole handshake ends.
    deadline: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Dialing,
    Securing,
    Upgrading,
    Greeting,
}

/// From `welcome` to the end.
#[derive(Debug)]
struct Session {
    liveness: Liveness,
    proof: Proof,
    /// Its maximum age is reached.
    aged_at: Option<Instant>,
}

/// How far the session is proved stable: it must have lived long enough *and* done useful work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Young { until: Instant, proved: bool },
    OldEnough,
    Stable,
}

/// Outputs not yet polled. Each kind has one place, later ones replace earlier ones, so nothing can overflow.
#[derive(Debug, Default)]
struct Pending {
    drop: Option<Option<u16>>,
    save: bool,
    /// `Resolve`, `Dial` or `Ping`.
    action: Option<Output>,
    changed: bool,
    give_up: bool,
}

impl Link {
    /// A link that has not tried yet: the first attempt is [`Link::handle_timeout`]'s. `fresh_boot` asks for the
    /// start delay and says that the instant in `saved` is of a boot clock that no longer runs.
    pub fn new(config: Arc<Config>, seed: u64, saved: Option<Saved>, fresh_boot: bool, now: Instant) -> Self {
        let saved = saved.unwrap_or_default();
        let mut backoff = Backoff::new(seed, saved);
        let state = if fresh_boot {
            State::StartDelay { until: now + backoff.uniform(config.reconnect.start_delay_ms_max) }
        } else {
            let kept = Instant::from_micros(saved.not_before_boot_ms.saturating_mul(1000));
            // A file that was damaged, or outlived a reboot after all, must not park the gateway for years.
            State::Waiting { until: kept.min(now + config.wait_max()).max(now), hinted: false }
        };
        Self {
            backoff,
            state,
            since: now,
            endpoints: Endpoints::new(config.endpoints_tls.len()),
            takeovers: 0,
            attempts_failed: 0,
            attempts: 0,
            attempt_at: Instant::default(),
            sessions: 0,
            failures: [0; Class::COUNT],
            last: None,
            detail: String::new(),
            spare: String::new(),
            wait: Duration::ZERO,
            saved,
            pending: Pending::default(),
            config,
        }
    }

    /// The session is up.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// What ended the session or attempt before.
    pub fn last_class(&self) -> Option<Class> {
        self.last.map(|(class, _)| class)
    }

    /// What `status` shows; the session's name is not known here.
    pub fn view(&self) -> LinkView {
        LinkView {
            state: self.state.name(),
            since: self.since,
            endpoint: (self.attempts > 0).then(|| self.endpoints.current()),
            session: None,
            sessions: self.sessions,
            attempts: self.attempts,
            failures: Class::ALL
                .into_iter()
                .zip(self.failures)
                .filter(|(_, count)| *count > 0)
                .map(|(class, count)| (class.name(), u64::from(count)))
                .collect(),
            last_failure: self.last.map(|(class, at)| (class.name(), self.detail.clone(), at)),
            next_attempt: match self.state {
                State::StartDelay { until } | State::Waiting { until, .. } => Some(until),
                State::Resolving { .. } | State::Handshake(_) | State::Up(_) | State::Stopped => None,
            },
            backoff_ms: self.wait.as_millis() as u64,
            rtt: self.liveness().and_then(Liveness::rtt),
            suspect: self.liveness().is_some_and(|liveness| liveness.misses() > 0),
            quality: self.liveness().map(Liveness::quality).unwrap_or_default(),
        }
    }

    /// When an answer of the session's far end is late (RFC 6298).
    pub fn rto(&self) -> Option<Duration> {
        self.liveness().and_then(Liveness::rto)
    }

    fn liveness(&self) -> Option<&Liveness> {
        match &self.state {
            State::Up(session) => Some(&session.liveness),
            State::StartDelay { .. }
            | State::Waiting { .. }
            | State::Resolving { .. }
            | State::Handshake(_)
            | State::Stopped => None,
        }
    }

    /// Another configuration, from now on. `was[i]` is the old index of the new endpoint i where it is the same one. A
    /// session lives on if its endpoint is still there.
    pub fn reconfigure(&mut self, config: Arc<Config>, _was: &[Option<u8>], _now: Instant) {
        self.config = config;
        self.check_invariants();
    }

    /// Something happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Resolved { addresses } => self.on_resolved(addresses, now),
            Input::Dialed { .. } => self.on_stage_done(Stage::Dialing, now),
            Input::DialFailed { failure, .. } => self.on_failed(failure, now),
            Input::Secured => self.on_stage_done(Stage::Securing, now),
            Input::Upgraded => self.on_stage_done(Stage::Upgrading, now),
            Input::Greeted => self.on_stage_done(Stage::Greeting, now),
            Input::Proved => self.on_proved(),
            Input::Received => self.on_life(now, Liveness::on_received),
            Input::PingFlushed => self.on_life(now, Liveness::on_ping_flushed),
            Input::Pong => self.on_life(now, Liveness::on_pong),
            Input::Failed(failure) => self.on_failed(failure, now),
            Input::Retry { after_ms, spread_ms, endpoint } => self.on_retry(after_ms, spread_ms, endpoint, now),
            Input::Network { changed: true, .. } => self.on_network_changed(now),
            Input::Network { changed: false, .. } | Input::Probed { .. } | Input::SourcesChanged | Input::ClockSet => {}
            Input::Redirected { .. } => {
                let failure = Failure::new(Class::WrongPlace, "upgrading: redirect".to_owned());
                self.on_failed(failure, now);
            }
            Input::CredentialsUnchanged => {
                let failure = Failure::new(Class::Credentials, "unchanged".to_owned());
                self.on_failed(failure, now);
            }
            Input::Stop => self.on_stop(now),
        }
        self.check_invariants();
    }

    /// The time is `now`. Does nothing before a deadline.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some((_, timer)) = self.poll_timeout().filter(|(at, _)| *at <= now) else { return };
        match timer {
            Timer::StartDelay | Timer::Retry => self.begin_attempt(now),
            Timer::Handshake => self.on_handshake_timeout(now),
            Timer::Heartbeat | Timer::Pong => self.on_pulse_timeout(now),
            Timer::Stable => self.on_old_enough(),
            Timer::SessionAge => {
                self.end_session(Class::Aged, Some(CLOSE_NORMAL), format_args!("up: maximum age"), now)
            }
            Timer::Race | Timer::Probe | Timer::Remedy => {}
        }
        self.check_invariants();
    }

    /// What to do next, until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        let pending = &mut self.pending;
        if let Some(close) = pending.drop.take() {
            return Some(Output::Drop { close });
        }
        // What a crash must not bypass is given out before what may crash.
        if mem::take(&mut pending.save) {
            return Some(Output::Save(self.saved));
        }
        if let Some(action) = pending.action.take() {
            return Some(action);
        }
        if mem::take(&mut pending.changed) {
            return Some(Output::Changed);
        }
        mem::take(&mut pending.give_up).then_some(Output::GiveUp)
    }

    /// When to call [`Link::handle_timeout`], and why. `None` once stopped, and only then.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        match &self.state {
            State::StartDelay { until } => Some((*until, Timer::StartDelay)),
            State::Waiting { until, .. } => Some((*until, Timer::Retry)),
            State::Resolving { deadline } => Some((*deadline, Timer::Handshake)),
            State::Handshake(handshake) => Some((handshake.share, Timer::Handshake)),
            State::Up(session) => Some(session.deadline()),
            State::Stopped => None,
        }
    }

    /// Panics, in builds with debug assertions, where the machine contradicts itself. Every mutator ends with it.
    pub fn check_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let (exponent, slow_exponent) = self.backoff.exponents();
        assert!(exponent <= EXPONENT_MAX && slow_exponent <= EXPONENT_MAX);
        assert!(self.detail.len() <= DETAIL_BYTES_MAX, "details are bounded");
        assert_eq!(self.poll_timeout().is_none(), matches!(self.state, State::Stopped), "stuck without a deadline");
        let (resolving, dialing, up) = match &self.state {
            State::Waiting { until, .. } => {
                assert!(self.attempts == 0 || *until >= self.endpoints.not_before(), "not before");
                (false, false, false)
            }
            State::StartDelay { .. } | State::Stopped => (false, false, false),
            State::Resolving { .. } => (true, false, false),
            State::Handshake(handshake) => {
                assert!(handshake.address < handshake.addresses && handshake.share <= handshake.deadline);
                (false, handshake.stage == Stage::Dialing, false)
            }
            State::Up(session) => {
                assert!(session.liveness.misses() < self.config.heartbeat.misses_max.max(1), "dead, but up");
                (false, false, true)
            }
        };
        match self.pending.action {
            Some(Output::Resolve { endpoint, .. }) => assert!(resolving && endpoint == self.endpoints.current()),
            Some(Output::Dial { .. }) => assert!(dialing),
            Some(Output::Ping) => assert!(up),
            Some(
                Output::Drop { .. }
                | Output::Probe { .. }
                | Output::Remedy { .. }
                | Output::Changed
                | Output::Save(_)
                | Output::GiveUp,
            ) => unreachable!("not actions"),
            None => {}
        }
    }

    // The attempt.

    fn begin_attempt(&mut self, now: Instant) {
        let (exponent, wait) = self.backoff.presumed_death(&self.config.reconnect);
        let not_before = if wait.is_zero() { Instant::default() } else { now + wait };
        self.save(exponent, not_before);
        self.attempts += 1;
        self.attempt_at = now;
        self.enter(State::Resolving { deadline: now + Duration::from_millis(self.config.handshake_timeout_ms) }, now);
        self.pending.action = Some(Output::Resolve { endpoint: self.endpoints.current(), recheck: false });
    }

    fn on_resolved(&mut self, addresses: u8, now: Instant) {
        let State::Resolving { deadline } = self.state else { return };
        if addresses == 0 {
            let detail = self.write_detail(format_args!("resolving: no address"));
            return self.end(Class::Name, detail, None, now);
        }
        self.dial(
            Handshake { stage: Stage::Dialing, address: 0, addresses, seen: None, share: deadline, deadline },
            now,
        );
    }

    /// Dials the address at hand, with its share of what is left.
    fn dial(&mut self, handshake: Handshake, now: Instant) {
        let Handshake { address, addresses, deadline, .. } = handshake;
        let share = if address + 1 == addresses {
            deadline
        } else {
            now + deadline.since(now) / u32::from(addresses - address)
        };
        self.enter(State::Handshake(Handshake { stage: Stage::Dialing, share, ..handshake }), now);
        self.pending.action = Some(Output::Dial { address });
    }

    fn on_stage_done(&mut self, done: Stage, now: Instant) {
        let State::Handshake(handshake) = self.state else { return };
        if handshake.stage != done {
            return;
        }
        let tls = self.config.endpoints_tls.get(usize::from(self.endpoints.current())).copied().unwrap_or(true);
        let next = match done {
            Stage::Dialing if tls => Handshake { stage: Stage::Securing, ..handshake },
            Stage::Dialing | Stage::Securing => Handshake { stage: Stage::Upgrading, ..handshake },
            // The address did its part; the greeting may take all that is left.
            Stage::Upgrading => Handshake { stage: Stage::Greeting, share: handshake.deadline, ..handshake },
            Stage::Greeting => return self.begin_session(now),
        };
        self.enter(State::Handshake(next), now);
    }

    fn on_failed(&mut self, failure: Failure, now: Instant) {
        let Failure { class, detail, server_wait_ms, server_spread_ms } = failure;
        let word = server_wait_ms.map(|after_ms| Word { after_ms, spread_ms: server_spread_ms });
        match self.state {
            State::StartDelay { .. } | State::Waiting { .. } | State::Stopped => {}
            State::Handshake(Handshake { seen: Some(seen), .. }) if class == Class::Local => {
                // That this machine has no route to one of the addresses (no IPv6) says nothing where another
                // address failed for a better reason.
                let detail = mem::take(&mut self.spare);
                self.next_address_or_end(seen, detail, word, now);
            }
            State::Resolving { .. } | State::Handshake(_) | State::Up(_) => {
                // There is no handshake any more that could be late: the system gave the peer up (TCP_USER_TIMEOUT).
                let class = if class == Class::Timeout && self.is_up() { Class::Silent } else { class };
                let detail = self.write_detail(format_args!("{detail}"));
                self.next_address_or_end(class, detail, word, now);
            }
        }
    }

    /// Goes on to the next address where that may help, else ends the attempt or session.
    fn next_address_or_end(&mut self, class: Class, detail: String, word: Option<Word>, now: Instant) {
        let next = match self.state {
            State::Handshake(tried) => tried.next_address(now).filter(|_| word.is_none() && class.concerns_address()),
            State::StartDelay { .. }
            | State::Waiting { .. }
            | State::Resolving { .. }
            | State::Up(_)
            | State::Stopped => None,
        };
        let Some(next) = next else { return self.end(class, detail, word, now) };
        debug!(target: "link", "address failed next={} class={} detail={detail:?}", next.address, class.name());
        self.spare = detail;
        self.dial(Handshake { seen: Some(class).filter(|class| *class != Class::Local), ..next }, now);
    }

    fn on_handshake_timeout(&mut self, now: Instant) {
        let detail = self.write_detail(format_args!("{}: no answer in time", self.state.name()));
        self.pending.drop = Some(None);
        self.next_address_or_end(Class::Timeout, detail, None, now);
    }

    // The session.

    fn begin_session(&mut self, now: Instant) {
        let config = &self.config;
        let age_ms_max = config.session_age_s_max.saturating_mul(1000);
        let session = Session {
            liveness: Liveness::new(&config.heartbeat, self.borne(), now),
            proof: Proof::Young { until: now + Duration::from_millis(config.reconnect.stable_after_ms), proved: false },
            aged_at: (age_ms_max > 0).then(|| now + self.backoff.at_most(age_ms_max)),
        };
        self.sessions += 1;
        self.attempts_failed = 0;
        self.enter(State::Up(session), now);
        info!(target: "link", "up endpoint={} attempts={} sessions={}", self.endpoints.current(), self.attempts, self.sessions);
    }

    fn on_proved(&mut self) {
        let State::Up(session) = &mut self.state else { return };
        match &mut session.proof {
            Proof::Young { proved, .. } => *proved = true,
            Proof::OldEnough => self.on_stable(),
            Proof::Stable => {}
        }
    }

    fn on_old_enough(&mut self) {
        let State::Up(session) = &mut self.state else { return };
        match session.proof {
            Proof::Young { proved: true, .. } => self.on_stable(),
            Proof::Young { proved: false, .. } => session.proof = Proof::OldEnough,
            Proof::OldEnough | Proof::Stable => {}
        }
    }

    fn on_stable(&mut self) {
        let State::Up(session) = &mut self.state else { return };
        session.proof = Proof::Stable;
        self.backoff.on_stable();
        self.endpoints.on_stable();
        self.save(0, Instant::default());
        debug!(target: "link", "stable");
    }

    fn on_life(&mut self, now: Instant, sign: fn(&mut Liveness, &Heartbeat, Instant)) {
        if let State::Up(session) = &mut self.state {
            self.pending.changed |= session.liveness.misses() > 0;
            sign(&mut session.liveness, &self.config.heartbeat, now);
            self.remember_borne();
        }
    }

    /// The ping interval that the path to the endpoint in use bears.
    fn borne(&self) -> u32 {
        self.saved.intervals_ms.get(usize::from(self.endpoints.current())).copied().unwrap_or(0)
    }

    fn remember_borne(&mut self) {
        let known = self.saved.intervals_ms.get_mut(usize::from(self.endpoints.current()));
        if let (State::Up(session), Some(known)) = (&self.state, known) {
            self.pending.save |= *known != session.liveness.borne();
            *known = session.liveness.borne();
        }
    }

    fn on_pulse_timeout(&mut self, now: Instant) {
        let State::Up(session) = &mut self.state else { return };
        let verdict = session.liveness.on_timeout(&self.config.heartbeat, now);
        let misses = session.liveness.misses();
        self.remember_borne();
        match verdict {
            Verdict::Ping => {
                if misses > 0 {
                    debug!(target: "link", "suspect misses={misses}");
                    self.pending.changed = true;
                }
                self.pending.action = Some(Output::Ping);
            }
            Verdict::NoPong => {
                let misses = self.config.heartbeat.misses_max.max(1);
                self.end_session(Class::Silent, None, format_args!("up: pongs missed in a row: {misses}"), now);
            }
            Verdict::Stuck => {
                self.end_session(Class::Silent, None, format_args!("up: a ping never left the send buffer"), now);
            }
        }
    }

    /// Our own decision to end the session.
    fn end_session(&mut self, class: Class, close: Option<u16>, detail: fmt::Arguments<'_>, now: Instant) {
        let detail = self.write_detail(detail);
        self.pending.drop = Some(close);
        self.end(class, detail, None, now);
    }

    fn on_retry(&mut self, after_ms: u64, spread_ms: u64, endpoint: Option<u8>, now: Instant) {
        if !self.state.is_upgraded() {
            return;
        }
        self.pending.drop = Some(Some(CLOSE_NORMAL));
        if let Some(named) = endpoint {
            self.endpoints.go_to(named);
        }
        let detail =
            self.write_detail(format_args!("{}: retry after_ms={after_ms} spread_ms={spread_ms}", self.state.name()));
        self.end(Class::ServerRetry, detail, Some(Word { after_ms, spread_ms: Some(spread_ms) }), now);
    }

    /// A hint, never a verdict (warmcat/libwebsockets#3015).
    fn on_network_changed(&mut self, now: Instant) {
        match &mut self.state {
            State::Up(session) => {
                if session.liveness.on_hint(&self.config.heartbeat, now) {
                    self.pending.action = Some(Output::Ping);
                }
            }
            State::Waiting { until, hinted: false } if self.last.is_some_and(|(class, _)| class.may_be_local()) => {
                let reconnect = &self.config.reconnect;
                let soon = (now + self.backoff.prompt(reconnect))
                    .max(self.attempt_at + self.backoff.hint_gap(reconnect))
                    .max(self.endpoints.not_before())
                    .min(*until);
                self.enter(State::Waiting { until: soon, hinted: true }, now);
                self.save(self.backoff.exponents().0, soon);
            }
            State::Waiting { .. }
            | State::StartDelay { .. }
            | State::Resolving { .. }
            | State::Handshake(_)
            | State::Stopped => {}
        }
    }

    fn on_stop(&mut self, now: Instant) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        self.pending.drop = Some(Some(CLOSE_NORMAL));
        self.stop(now);
    }

    // The end of an attempt or a session, and what follows.

    /// Counts what ended the attempt or session, and decides where and when the next attempt is made.
    fn end(&mut self, class: Class, detail: String, word: Option<Word>, now: Instant) {
        let upgraded = self.state.is_upgraded();
        let stable = matches!(&self.state, State::Up(session) if session.proof == Proof::Stable);
        let class = if upgraded { self.suspect_clone(class, stable) } else { class };
        self.failures[class as usize] = self.failures[class as usize].saturating_add(1);
        self.last = Some((class, now));
        self.spare = mem::replace(&mut self.detail, detail);
        self.attempts_failed = if self.is_up() { 0 } else { self.attempts_failed.saturating_add(1) };
        if self.config.attempts_max > 0 && self.attempts_failed >= self.config.attempts_max {
            warn!(target: "link", "giving up attempts={} class={} detail={:?}", self.attempts_failed, class.name(), self.detail);
            self.pending.give_up = true;
            return self.stop(now);
        }
        let reconnect = &self.config.reconnect;
        let wait = match word {
            Some(word) => Some(self.backoff.server_wait(reconnect, word, self.config.server_wait_ms_max)),
            None => self.backoff.wait(reconnect, class, upgraded),
        };
        let Some(wait) = wait else { return self.stop(now) };
        if word.is_some() {
            self.endpoints.bind(now + wait);
        }
        let moved = (stable && word.is_none() && self.endpoints.fail_back()) || self.endpoints.fail_over(class, now);
        // Lest the fleet stampede the reserve.
        let wait = if moved { self.backoff.uniform(self.config.reconnect.spread_ms) } else { wait };
        let until = (now + wait).max(self.endpoints.not_before());
        self.wait = until.since(now);
        self.log_wait(class);
        self.save(self.backoff.exponents().0, until);
        self.enter(State::Waiting { until, hinted: false }, now);
    }

    /// Two devices with one identity take each other over for ever, and each time the connect succeeds (emqx/emqx#151).
    fn suspect_clone(&mut self, class: Class, stable: bool) -> Class {
        self.takeovers = if class == Class::Replaced && !stable { self.takeovers.saturating_add(1) } else { 0 };
        if self.takeovers >= CLONE_TAKEOVERS { Class::Clone } else { class }
    }

    fn stop(&mut self, now: Instant) {
        self.enter(State::Stopped, now);
        info!(target: "link", "stopped");
    }

    fn enter(&mut self, state: State, now: Instant) {
        if state.name() != self.state.name() {
            debug!(target: "link", "state={} was={}", state.name(), self.state.name());
            self.since = now;
        }
        self.state = state;
        self.pending.action = None;
        self.pending.changed = true;
    }

    fn save(&mut self, backoff_exponent: u8, not_before: Instant) {
        let (_, slow_exponent) = self.backoff.exponents();
        let saved = Saved {
            backoff_exponent,
            slow_exponent,
            not_before_boot_ms: not_before.as_micros().div_ceil(1000),
            ..self.saved
        };
        self.pending.save |= saved != self.saved;
        self.saved = saved;
    }

    /// The spare buffer, written anew.
    fn write_detail(&mut self, text: fmt::Arguments<'_>) -> String {
        let mut detail = mem::take(&mut self.spare);
        detail.clear();
        // Writing to a String cannot fail.
        let _ = fmt::Write::write_fmt(&mut detail, text);
        one_line(detail)
    }

    fn log_wait(&self, class: Class) {
        let (wait_ms, endpoint, detail) = (self.wait.as_millis(), self.endpoints.current(), &self.detail);
        let (exponent, slow_exponent) = self.backoff.exponents();
        match class.disposition() {
            Disposition::Slow => warn!(
                target: "link",
                "waiting class={} wait_ms={wait_ms} slow_exponent={slow_exponent} endpoint={endpoint} detail={detail:?}",
                class.name()
            ),
            Disposition::Promptly | Disposition::Spread | Disposition::Backoff | Disposition::Stop => info!(
                target: "link",
                "waiting class={} wait_ms={wait_ms} exponent={exponent} endpoint={endpoint} detail={detail:?}",
                class.name()
            ),
        }
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::StartDelay { .. } => "start_delay",
            Self::Waiting { .. } => "waiting",
            Self::Resolving { .. } => "resolving",
            Self::Handshake(handshake) => match handshake.stage {
                Stage::Dialing => "dialing",
                Stage::Securing => "securing",
                Stage::Upgrading => "upgrading",
                Stage::Greeting => "greeting",
            },
            Self::Up(_) => "up",
            Self::Stopped => "stopped",
        }
    }

    /// The far end has accepted the upgrade.
    fn is_upgraded(&self) -> bool {
        match self {
            Self::Handshake(handshake) => handshake.stage == Stage::Greeting,
            Self::Up(_) => true,
            Self::StartDelay { .. } | Self::Waiting { .. } | Self::Resolving { .. } | Self::Stopped => false,
        }
    }
}

impl Handshake {
    /// The same at the next address, if there is one, time for it, and this one has not upgraded.
    fn next_address(self, now: Instant) -> Option<Self> {
        let more = self.address + 1 < self.addresses && self.stage != Stage::Greeting && now < self.deadline;
        more.then(|| Self { address: self.address + 1, ..self })
    }
}

impl Session {
    fn deadline(&self) -> (Instant, Timer) {
        let proof = match self.proof {
            Proof::Young { until, .. } => Some((until, Timer::Stable)),
            Proof::OldEnough | Proof::Stable => None,
        };
        let age = self.aged_at.map(|at| (at, Timer::SessionAge));
        [proof, age].into_iter().flatten().fold(self.liveness.deadline(), Ord::min)
    }
}
