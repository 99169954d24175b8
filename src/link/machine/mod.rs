//! The machine behind [`Link`]: its states, what it is driven by and what it shows. What each input and each deadline
//! does lies in `attempt` (up to the greeting), `session`, `waiting` (between attempts) and `reload`. Durations come
//! from `backoff`, the endpoint from `endpoints`, the order of addresses from `race`, the pulse from `liveness`, what
//! to try when nothing helps from `remedies`; here they meet.

mod attempt;
mod reload;
mod session;
mod waiting;

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, info};

use super::backoff::{Backoff, EXPONENT_MAX, Word};
use super::endpoints::Endpoints;
use super::liveness::Liveness;
use super::race::Race;
use super::remedies::{self, Remedies};
use super::{Class, Config, DETAIL_BYTES_MAX, Disposition, Input, Output, Saved, Timer, one_line};
use crate::insight::words::WaitCause;
use crate::status::LinkView;
use crate::time::Instant;

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
    remedies: Remedies,
    /// Bit i: this machine has a path to endpoint i, as far as it can tell.
    usable: u16,
    /// When it last said so.
    network_at: Instant,
    /// The endpoint that is dialed: the current one, or where that has redirected this attempt to.
    target: u8,
    /// The backup that was left, until the preferred endpoint has proved stable.
    left: Option<u8>,
    /// Times in a row that going back to a preferred endpoint failed.
    failbacks_failed: u8,
    /// Sessions that were taken over since one was stable.
    takeovers: u8,
    /// The one look for other credentials since a session was stable is spent.
    rechecked: bool,
    /// While an attempt was under way something changed here that may cure a refusal.
    sources_changed: bool,
    /// A change in the network has provoked the attempt.
    provoked: bool,
    /// Handshakes in a row that were late.
    late: u8,
    /// What an answer took at most on the last session's path.
    rto: Duration,
    /// Attempts since the last session.
    attempts_failed: u32,
    attempts: u64,
    attempt_at: Instant,
    sessions: u64,
    failures: [u32; Class::COUNT],
    /// Class and instant of the last failure.
    last: Option<(Class, Instant)>,
    /// What ended the attempt or session before, in this process or in the one before.
    cause: Option<Class>,
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
    Waiting(Waiting),
    Resolving { deadline: Instant, purpose: Purpose },
    Handshake(Handshake),
    Up(Session),
    Stopped,
}

/// Between two attempts.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    /// The next attempt.
    until: Instant,
    /// What the cause asks for. `until` is later where this machine has no path anywhere, and earlier where the next
    /// attempt only looks for other credentials.
    due: Instant,
    /// The next attempt is only to look for other credentials.
    recheck: bool,
    /// Something has hastened it: once is enough.
    hinted: bool,
    /// This machine has no path to any endpoint.
    parked: bool,
}

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Attempt,
    /// Goes on only with other credentials than those refused; else the wait goes on.
    Recheck {
        due: Instant,
    },
    /// A redirect is followed.
    Redirect,
}

/// From the first dial to `welcome`.
#[derive(Debug, Clone, Copy)]
struct Handshake {
    stage: Stage,
    race: Race,
    /// This attempt was redirected already.
    redirected: bool,
    /// The class of an address that failed otherwise than by a local cause.
    seen: Option<Class>,
    /// The share of the address that won the race ends.
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
    probing: Option<Probing>,
}

/// How far the session is proved stable: it must have lived long enough *and* done useful work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Young { until: Instant, proved: bool },
    OldEnough,
    Stable,
}

/// In a stable session at a backup: looking at what is preferred.
#[derive(Debug, Clone, Copy)]
struct Probing {
    /// The next look.
    at: Instant,
    /// At which one.
    endpoint: u8,
    /// Its answer is awaited.
    asked: bool,
    /// It answered the last time.
    seen: bool,
    /// A change in the network may hasten it, but once an interval is enough.
    no_hint_before: Instant,
}

/// Outputs not yet polled. Each kind has one place, later ones replace earlier ones, so nothing can overflow.
#[derive(Debug, Default)]
struct Pending {
    drop: Option<Option<u16>>,
    save: bool,
    /// `Resolve`, `Dial` or `Ping`.
    action: Option<Output>,
    probe: Option<u8>,
    remedy: Option<u8>,
    changed: bool,
    give_up: bool,
}

impl Link {
    /// A link that has not tried yet: the first attempt is [`Link::handle_timeout`]'s. `fresh_boot` asks for the
    /// start delay and says that the instants in `saved` are of a boot clock that no longer runs.
    pub fn new(config: Arc<Config>, seed: u64, saved: Option<Saved>, fresh_boot: bool, now: Instant) -> Self {
        let saved = saved.unwrap_or_default();
        let mut backoff = Backoff::new(seed, saved);
        let state = if fresh_boot {
            State::StartDelay { until: now + backoff.uniform(config.reconnect.start_delay_ms_max) }
        } else {
            let kept = Instant::from_micros(saved.not_before_boot_ms.saturating_mul(1000));
            // A file that was damaged, or outlived a reboot after all, must not park the gateway for years.
            State::Waiting(Waiting::until(kept.min(now + config.wait_max()).max(now)))
        };
        let kept = match state {
            State::Waiting(waiting) => waiting.until,
            State::StartDelay { .. }
            | State::Resolving { .. }
            | State::Handshake(_)
            | State::Up(_)
            | State::Stopped => now,
        };
        let open_until = now + backoff.probe_wait(&config.reconnect, 0);
        let mut endpoints = Endpoints::new(config.endpoints_tls.len(), saved.endpoint, open_until);
        // What a server said, or refused, holds whatever restarts; what may have been this side's doing does not.
        match saved.cause {
            Some(class) if class.disposition() == Disposition::Slow => endpoints.bind_slowly(endpoints.current(), kept),
            Some(class) if !class.may_be_local() => endpoints.bind(endpoints.current(), kept),
            Some(_) | None => {}
        }
        let latest = now + config.wait_max();
        for index in 0..endpoints.count() as u8 {
            endpoints.set_interval_ms(index, saved.intervals_ms[usize::from(index)]);
            let word = Instant::default() + Duration::from_secs(saved.words_boot_s[usize::from(index)].into());
            if !fresh_boot && word > now {
                endpoints.bind(index, word.min(latest));
            }
        }
        Self {
            backoff,
            state,
            since: now,
            target: endpoints.current(),
            endpoints,
            remedies: Remedies::new(&config.remedies, &saved, fresh_boot, now),
            usable: u16::MAX,
            network_at: Instant::default(),
            left: None,
            failbacks_failed: 0,
            takeovers: 0,
            rechecked: false,
            sources_changed: false,
            provoked: false,
            late: 0,
            rto: Duration::ZERO,
            attempts_failed: 0,
            attempts: 0,
            attempt_at: Instant::default(),
            sessions: 0,
            failures: [0; Class::COUNT],
            last: None,
            cause: saved.cause,
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

    /// What `status` shows; the session's name and the URLs are not known here.
    pub fn view(&self) -> LinkView {
        LinkView {
            state: self.state.name(),
            since: self.since,
            endpoint: (self.attempts > 0).then_some(self.target),
            url: None,
            breakers: self.endpoints.breakers(),
            urls: Vec::new(),
            session: None,
            sessions: self.sessions,
            attempts: self.attempts,
            failures: Class::ALL
                .into_iter()
                .zip(self.failures)
                .filter(|(_, count)| *count > 0)
                .map(|(class, count)| (class.name(), u64::from(count)))
                .collect(),
            last_failure: self.last.map(|(class, at)| (class, self.detail.clone(), at)),
            next_attempt: match self.state {
                State::StartDelay { until } | State::Waiting(Waiting { until, .. }) => Some(until),
                State::Resolving { .. } | State::Handshake(_) | State::Up(_) | State::Stopped => None,
            },
            backoff_ms: self.wait.as_millis() as u64,
            rtt: self.liveness().and_then(Liveness::rtt),
            suspect: self.liveness().is_some_and(|liveness| liveness.misses() > 0),
            quality: self.liveness().map(Liveness::quality).unwrap_or_default(),
            path: None,
            wait_cause: self.wait_cause(),
        }
    }

    fn wait_cause(&self) -> Option<WaitCause> {
        let waiting = match self.state {
            State::StartDelay { .. } => return Some(WaitCause::Boot),
            State::Waiting(waiting) => waiting,
            State::Resolving { .. } | State::Handshake(_) | State::Up(_) | State::Stopped => return None,
        };
        let is_bound = self.endpoints.word(self.endpoints.current()) > self.since;
        Some(match self.cause.map(Class::disposition) {
            _ if waiting.parked => WaitCause::NoNetwork,
            _ if is_bound => WaitCause::Server,
            Some(Disposition::Slow) => WaitCause::Slow,
            Some(Disposition::Promptly) => WaitCause::Promptly,
            Some(Disposition::Spread | Disposition::Backoff | Disposition::Stop) | None => WaitCause::Backoff,
        })
    }

    /// The last round trip that was measured, and how many there were in this session.
    pub fn rtt_last(&self) -> Option<(Duration, u32)> {
        self.liveness().and_then(Liveness::rtt_last)
    }

    /// When an answer of the session's far end is late (RFC 6298).
    pub fn rto(&self) -> Option<Duration> {
        self.liveness().and_then(Liveness::rto)
    }

    /// The server's word that binds an endpoint.
    #[cfg(test)]
    pub(super) fn endpoints_word(&self, index: u8) -> Instant {
        self.endpoints.word(index)
    }

    fn liveness(&self) -> Option<&Liveness> {
        match &self.state {
            State::Up(session) => Some(&session.liveness),
            State::StartDelay { .. }
            | State::Waiting(_)
            | State::Resolving { .. }
            | State::Handshake(_)
            | State::Stopped => None,
        }
    }

    /// Something happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Resolved { addresses } => self.on_resolved(addresses, now),
            Input::Dialed { address } => self.on_dialed(address, now),
            Input::DialFailed { address, failure } => self.on_dial_failed(address, failure, now),
            Input::Secured => self.on_stage_done(Stage::Securing, now),
            Input::Upgraded => self.on_stage_done(Stage::Upgrading, now),
            Input::Redirected { endpoint } => self.on_redirected(endpoint, now),
            Input::Greeted => self.on_stage_done(Stage::Greeting, now),
            Input::Proved => self.on_proved(now),
            Input::Received => self.on_life(now, Liveness::on_received),
            Input::PingFlushed => self.on_life(now, Liveness::on_ping_flushed),
            Input::Pong => self.on_life(now, Liveness::on_pong),
            Input::Failed(failure) => self.on_failed(failure, now),
            Input::Retry { after_ms, spread_ms, endpoint } => self.on_retry(after_ms, spread_ms, endpoint, now),
            Input::Network { usable, changed } => self.on_network(usable, changed, now),
            Input::Probed { endpoint, ok } => self.on_probed(endpoint, ok, now),
            Input::CredentialsUnchanged => self.on_credentials_unchanged(now),
            Input::SourcesChanged => self.on_cure(Class::wants_other_sources, now),
            Input::ClockSet => self.on_cure(|class| class == Class::ClockUnset, now),
            Input::RemedyDropped { step } => {
                self.remedies.on_dropped(step);
                self.save_rest();
            }
            Input::Stop => self.on_stop(now),
        }
        self.check_invariants();
    }

    /// The time is `now`. Does nothing before a deadline.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some((_, timer)) = self.poll_timeout().filter(|(at, _)| *at <= now) else { return };
        match timer {
            Timer::StartDelay | Timer::Retry => self.on_wait_over(now),
            Timer::Race => self.join_race(now),
            Timer::Handshake => self.on_handshake_timeout(now),
            Timer::Heartbeat | Timer::Pong => self.on_pulse_timeout(now),
            Timer::Stable => self.on_old_enough(now),
            Timer::SessionAge => {
                self.end_session(Class::Aged, Some(CLOSE_NORMAL), format_args!("up: maximum age"), now)
            }
            Timer::Probe => self.probe(now),
            Timer::Remedy => self.run_remedy(now),
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
        if let Some(endpoint) = pending.probe.take() {
            return Some(Output::Probe { endpoint });
        }
        if let Some(step) = pending.remedy.take() {
            return Some(Output::Remedy { step });
        }
        if mem::take(&mut pending.changed) {
            return Some(Output::Changed);
        }
        mem::take(&mut pending.give_up).then_some(Output::GiveUp)
    }

    /// When to call [`Link::handle_timeout`], and why. `None` once stopped, and only then.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let own = match &self.state {
            State::StartDelay { until } => (*until, Timer::StartDelay),
            State::Waiting(waiting) => (waiting.until, Timer::Retry),
            State::Resolving { deadline, .. } => (*deadline, Timer::Handshake),
            State::Handshake(handshake) => handshake.deadline(),
            State::Up(session) => session.deadline(),
            State::Stopped => return None,
        };
        let remedy = self.remedies.next(&self.config.remedies).map(|(at, _)| (at, Timer::Remedy));
        Some(remedy.map_or(own, |remedy| remedy.min(own)))
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
        assert!(usize::from(self.endpoints.current()) < self.endpoints.count());
        assert!(usize::from(self.target) < self.endpoints.count());
        let (mut resolving, mut dialing, mut up, mut probing) = (false, false, false, false);
        match &self.state {
            State::Waiting(waiting) => {
                assert!(self.attempts == 0 || waiting.until >= self.endpoints.word(self.endpoints.current()), "early");
            }
            State::StartDelay { .. } | State::Stopped => {}
            State::Resolving { .. } => resolving = true,
            State::Handshake(handshake) => {
                assert!(handshake.share <= handshake.deadline);
                dialing = handshake.stage == Stage::Dialing;
                assert_eq!(dialing, handshake.race.is_running(), "a race ends with its winner");
            }
            State::Up(session) => {
                (up, probing) = (true, session.probing.is_some());
            }
        }
        match self.pending.action {
            Some(Output::Resolve { endpoint, .. }) => assert!(resolving && endpoint == self.target),
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
        assert!(self.pending.probe.is_none() || probing, "only a session at a backup looks elsewhere");
    }

    fn on_stop(&mut self, now: Instant) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        self.pending.drop = Some(Some(CLOSE_NORMAL));
        self.stop(now);
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
        (self.pending.action, self.pending.probe) = (None, None);
        self.pending.changed = true;
    }

    /// Remembers what a restart must not bypass.
    fn save(&mut self, backoff_exponent: u8, not_before: Instant) {
        self.save_all(backoff_exponent, not_before.as_micros().div_ceil(1000));
    }

    /// Remembers the rest of it: a death now costs what it would have cost before.
    fn save_rest(&mut self) {
        self.save_all(self.saved.backoff_exponent, self.saved.not_before_boot_ms);
    }

    fn save_all(&mut self, backoff_exponent: u8, not_before_boot_ms: u64) {
        let (offline_since_boot_ms, remedies_boot_s) = self.remedies.saved();
        let saved = Saved {
            credentials: self.saved.credentials,
            cause: self.cause,
            backoff_exponent,
            slow_exponent: self.backoff.exponents().1,
            not_before_boot_ms,
            endpoint: self.endpoints.current(),
            intervals_ms: std::array::from_fn(|index| self.endpoints.interval_ms(index as u8)),
            offline_since_boot_ms,
            remedies_boot_s,
            remedies_id: remedies::ids(&self.config.remedies),
            words_boot_s: std::array::from_fn(|index| whole_seconds(self.endpoints.word(index as u8))),
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

    fn run_remedy(&mut self, now: Instant) {
        let Some((_, step)) = self.remedies.next(&self.config.remedies).filter(|(at, _)| *at <= now) else { return };
        self.remedies.on_run(step, now);
        self.pending.remedy = Some(step);
        self.save_rest();
        log::warn!(target: "link", "no session for long: remedy={step}");
    }
}

/// Rounded up, so that nothing is tried a moment early.
fn whole_seconds(at: Instant) -> u32 {
    u32::try_from(at.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::StartDelay { .. } => "start_delay",
            Self::Waiting(_) => "waiting",
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
            Self::StartDelay { .. } | Self::Waiting(_) | Self::Resolving { .. } | Self::Stopped => false,
        }
    }
}

impl Waiting {
    fn until(until: Instant) -> Self {
        Self { until, due: until, recheck: false, hinted: false, parked: false }
    }
}

impl Handshake {
    fn deadline(&self) -> (Instant, Timer) {
        let race = self.race.next_at().filter(|_| self.stage == Stage::Dialing).map(|at| (at, Timer::Race));
        race.into_iter().fold((self.share, Timer::Handshake), Ord::min)
    }
}

impl Session {
    fn deadline(&self) -> (Instant, Timer) {
        let proof = match self.proof {
            Proof::Young { until, .. } => Some((until, Timer::Stable)),
            Proof::OldEnough | Proof::Stable => None,
        };
        let age = self.aged_at.map(|at| (at, Timer::SessionAge));
        let probe = self.probing.map(|probing| (probing.at, Timer::Probe));
        [proof, age, probe].into_iter().flatten().fold(self.liveness.deadline(), Ord::min)
    }
}
