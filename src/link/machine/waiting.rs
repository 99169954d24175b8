//! Between attempts: what follows the end of an attempt or a session, and what hastens or stays the next one.

use std::mem;
use std::time::Duration;

use log::{info, warn};

use super::{Link, Proof, Session, State, Waiting, Word};
use crate::link::endpoints::Move;
use crate::link::{Class, Disposition, ENDPOINTS_MAX, Output};
use crate::time::Instant;

/// Sessions that were taken over without one being stable in between, before a clone of this device is suspected.
/// A reboot behind a dead session takes over once.
const CLONE_TAKEOVERS: u8 = 3;

/// Doublings of the handshake's timeout, at most.
const LATE_MAX: u8 = 2;

impl Link {
    /// Counts what ended the attempt or session, and decides where and when the next attempt is made.
    pub(super) fn end(&mut self, class: Class, detail: String, word: Option<Word>, now: Instant) {
        let Some(class) = self.count(class, detail, now) else { return };
        match word {
            Some(word) => self.wait_for_word(class, word, None, now),
            None => self.wait_for_class(class, now),
        }
    }

    /// The same for `retry`. `named`: where the server sends us.
    pub(super) fn end_by_word(&mut self, word: Word, named: Option<u8>, detail: String, now: Instant) {
        if let Some(class) = self.count(Class::ServerRetry, detail, now) {
            self.wait_for_word(class, word, named, now);
        }
    }

    /// Counts it; says what it was in the end. `None`: that was the last attempt.
    fn count(&mut self, class: Class, detail: String, now: Instant) -> Option<Class> {
        let (was_up, upgraded) = (self.is_up(), self.state.is_upgraded());
        let mut class = class;
        if !self.has_path() {
            // Nobody answers where this machine has no path to; nor is what a lookup says, or a program that asks for a
            // credential, anybody's answer.
            let is_prepared = !matches!(self.state, State::Resolving { purpose: super::Purpose::Attempt, .. });
            if class.may_be_silence() || !is_prepared {
                class = Class::Local;
            } else if class.is_answer() && self.attempt_at > self.network_at {
                // Somebody did answer an attempt that was made all the same: the hint was wrong.
                self.usable |= 1 << self.endpoints.current();
            }
        }
        let class = if upgraded { self.suspect_clone(class) } else { class };
        if let State::Up(session) = &mut self.state {
            if matches!(class, Class::Reset | Class::Silent) {
                session.liveness.on_lost(&self.config.heartbeat, now);
            }
            self.endpoints.set_interval_ms(self.target, session.liveness.borne());
            self.rto = session.liveness.rtt().map_or(self.rto, |rtt| rtt * 3);
            self.remedies.on_down(now);
        } else if class == Class::Timeout {
            self.late = (self.late + 1).min(LATE_MAX);
        }
        self.remedies.on_failed();
        self.failures[class as usize] = self.failures[class as usize].saturating_add(1);
        (self.last, self.cause) = (Some((class, now)), Some(class));
        self.spare = mem::replace(&mut self.detail, detail);
        self.attempts_failed = match was_up {
            true => 0,
            // Without a path there was nothing that an attempt could have reached.
            false if class == Class::Local && !self.has_path() || !class.is_failure() => self.attempts_failed,
            false => self.attempts_failed.saturating_add(1),
        };
        if self.config.attempts_max > 0 && self.attempts_failed >= self.config.attempts_max {
            warn!(target: "link", "giving up attempts={} class={} detail={:?}", self.attempts_failed, class.name(), self.detail);
            self.pending.give_up = true;
            self.stop(now);
            return None;
        }
        if class.disposition() == Disposition::Stop {
            self.stop(now);
            return None;
        }
        Some(class)
    }

    /// Two devices with one identity take each other over for ever, and each time the connect succeeds (emqx/emqx#151).
    fn suspect_clone(&mut self, class: Class) -> Class {
        let stable = matches!(&self.state, State::Up(Session { proof: Proof::Stable, .. }));
        if class == Class::Clone {
            self.takeovers = CLONE_TAKEOVERS;
        } else if class == Class::Replaced && !stable {
            self.takeovers = self.takeovers.saturating_add(1);
        }
        let taken_over = matches!(class, Class::Clone | Class::Replaced);
        if taken_over && self.takeovers >= CLONE_TAKEOVERS { Class::Clone } else { class }
    }

    /// The server said when.
    fn wait_for_word(&mut self, class: Class, word: Word, named: Option<u8>, now: Instant) {
        let said = self.backoff.server_wait(&self.config.reconnect, word, self.config.server_wait_ms_max);
        // Whoever spoke is bound, and who sent us there: it would do so again.
        self.endpoints.bind(self.target, now + said);
        self.endpoints.bind(self.endpoints.current(), now + said);
        let mut wait = said;
        if class.disposition() == Disposition::Slow {
            wait = wait.max(self.backoff.slow(&self.config.reconnect));
            self.bind_slowly(now + wait);
        }
        if let Some(named) = named {
            self.left = None;
            self.endpoints.go_to(named);
            self.endpoints.bind(named, now + said);
            return self.wait_for(wait, now);
        }
        if self.left.is_some() {
            return self.return_to_backup(now);
        }
        self.count_at_endpoint(class, now);
        let patience_ms = self.config.reconnect.backoff_ms_max.saturating_mul(self.failures_max().into());
        // The reserve is for those who would have to wait for long. `retry` says where to come back: here.
        if class != Class::ServerRetry {
            wait = self.choose(class, said > Duration::from_millis(patience_ms), wait, now);
        }
        self.wait_for(wait, now);
    }

    fn wait_for_class(&mut self, class: Class, now: Instant) {
        if class == Class::Local && !self.has_path() {
            return self.wait_for_path(class, now);
        }
        if mem::take(&mut self.provoked) && class.may_be_local() {
            // Too early: for 3 s the system goes on asking for a neighbour that was not there, and then gives up what
            // waits for it; a name server may be a moment behind the cable.
            let until = self.soon(now).max(self.endpoints.not_before());
            return self.wait_until(Waiting::until(until), now);
        }
        if mem::take(&mut self.sources_changed) && class.may_be_cured_here() {
            // What was refused is not what is at hand now.
            let until = self.soon(now);
            return self.wait_until(Waiting::until(until), now);
        }
        let limits = &self.config.reconnect;
        let recheck = class.is_of_credentials() && !self.rechecked;
        let wait = match recheck {
            true => Some(self.backoff.slow_ahead(limits)),
            false => self.backoff.wait(limits, class, self.state.is_upgraded()),
        };
        let Some(wait) = wait else { return self.stop(now) };
        if class.disposition() == Disposition::Slow {
            self.bind_slowly(now + wait);
        }
        if self.left.is_some() && class.is_failure() {
            return self.return_to_backup(now);
        }
        self.count_at_endpoint(class, now);
        let before = self.endpoints.current();
        let chosen = self.choose(class, false, wait, now);
        if recheck && self.endpoints.current() == before {
            self.rechecked = true;
            let until = now + self.backoff.prompt(&self.config.reconnect);
            return self.wait_until(Waiting { until, recheck: true, ..Waiting::until(now + wait) }, now);
        }
        self.wait_for(chosen, now);
    }

    /// This machine has no path to the endpoint: nothing failed, nothing is counted.
    fn wait_for_path(&mut self, class: Class, now: Instant) {
        if self.has_no_path() {
            // The slow probes go to all of them.
            self.endpoints.turn();
            let wait = self.backoff.prompt(&self.config.reconnect);
            return self.wait_for(wait, now);
        }
        let wait = self.backoff.prompt(&self.config.reconnect);
        let wait = self.choose(class, false, wait, now);
        self.wait_for(wait, now);
    }

    /// Going back to a preferred endpoint failed: at once to the backup, which worked.
    fn return_to_backup(&mut self, now: Instant) {
        let Some(left) = self.left.take() else { return };
        self.failbacks_failed = self.failbacks_failed.saturating_add(1);
        let period = self.backoff.probe_wait(&self.config.reconnect, self.failbacks_failed);
        self.endpoints.open(now + period);
        self.endpoints.go_to(left);
        let wait = self.backoff.prompt(&self.config.reconnect);
        self.wait_for(wait, now);
    }

    /// Whoever refused us, and who sent us there.
    fn bind_slowly(&mut self, until: Instant) {
        self.endpoints.bind_slowly(self.target, until);
        self.endpoints.bind_slowly(self.endpoints.current(), until);
    }

    fn count_at_endpoint(&mut self, class: Class, now: Instant) {
        let period = self.backoff.probe_wait(&self.config.reconnect, self.failbacks_failed);
        self.endpoints.on_failure(class, self.failures_max(), now, period);
    }

    fn failures_max(&self) -> u32 {
        self.config.reconnect.failover_failures.max(1)
    }

    /// Where the next attempt goes, and how long it waits if the cause asks for `wait`.
    fn choose(&mut self, class: Class, impatient: bool, wait: Duration, now: Instant) -> Duration {
        let moved = self.endpoints.choose(self.paths(), impatient, now);
        if moved == Move::Stays {
            return wait;
        }
        self.left = None;
        match moved {
            // Lest the fleet stampedes the reserve.
            Move::ToReserve => self.backoff.uniform(self.config.reconnect.spread_ms),
            Move::Elsewhere => self.soon(now).since(now),
            // Another one has not refused us, or has its own time for that.
            Move::ToPreferred | Move::InTurn if class.disposition() == Disposition::Slow => {
                self.backoff.ordinary(&self.config.reconnect)
            }
            Move::Stays | Move::ToPreferred | Move::InTurn => wait,
        }
    }

    /// So long, and never before the server's word or the end of a refusal's wait.
    fn wait_for(&mut self, wait: Duration, now: Instant) {
        self.wait_until(Waiting::until((now + wait).max(self.endpoints.not_before())), now);
    }

    pub(super) fn wait_until(&mut self, mut waiting: Waiting, now: Instant) {
        let word = self.endpoints.word(self.endpoints.current());
        (waiting.until, waiting.due) = (waiting.until.max(word), waiting.due.max(word));
        waiting.parked = self.has_no_path();
        if waiting.parked {
            // A hint is never a verdict: now and then it is put to the test.
            waiting.until = (now + self.backoff.path_wait(&self.config.reconnect)).max(self.endpoints.not_before());
        }
        self.target = self.endpoints.current();
        self.wait = waiting.until.since(now);
        self.log_wait(waiting);
        self.save(self.backoff.exponents().0, waiting.due);
        self.enter(State::Waiting(waiting), now);
    }

    /// The start delay is over and there is nowhere to go.
    pub(super) fn park(&mut self, now: Instant) {
        self.wait_until(Waiting::until(now), now);
    }

    /// At once, but not in step with the neighbours, and not for ever at once.
    pub(super) fn soon(&mut self, now: Instant) -> Instant {
        let gap = self.backoff.hint_gap(&self.config.reconnect);
        (now + self.backoff.prompt(&self.config.reconnect)).max(self.attempt_at + gap)
    }

    // What hastens it.

    /// What this machine knows of its network: a hint, never a verdict (warmcat/libwebsockets#3015).
    pub(super) fn on_network(&mut self, usable: u16, changed: bool, now: Instant) {
        let was = mem::replace(&mut self.usable, usable);
        self.network_at = now;
        match self.state {
            State::Up(_) => self.on_network_while_up(was, changed, now),
            State::Waiting(waiting) => self.on_network_while_waiting(waiting, usable & !was != 0, changed, now),
            State::StartDelay { .. } | State::Resolving { .. } | State::Handshake(_) | State::Stopped => {}
        }
    }

    fn on_network_while_up(&mut self, was: u16, changed: bool, now: Instant) {
        let (current, preferred, came) = (self.endpoints.current(), self.preferred(), self.usable & !was);
        let soon = now + self.backoff.prompt(&self.config.reconnect);
        let State::Up(session) = &mut self.state else { return };
        let preferred_came = came & ((1 << preferred) - 1) != 0;
        if let Some(probing) =
            session.probing.as_mut().filter(|probing| preferred_came && now >= probing.no_hint_before)
        {
            // Until then a look was due anyway.
            (probing.no_hint_before, probing.at) = (probing.at, probing.at.min(soon));
        }
        let lost = was & !self.usable & (1 << current) != 0;
        if (changed || lost) && session.liveness.on_hint(&self.config.heartbeat, now) {
            self.pending.action = Some(Output::Ping);
        }
    }

    /// `came`: there is a path where there was none.
    fn on_network_while_waiting(&mut self, waiting: Waiting, came: bool, changed: bool, now: Instant) {
        if self.has_no_path() {
            if !waiting.parked {
                self.wait_until(waiting, now);
            }
            return;
        }
        if waiting.parked {
            // What failed before the network was gone says nothing now.
            self.endpoints.on_network_back();
        }
        let before = self.endpoints.current();
        if waiting.parked || came || !self.has_path() {
            self.endpoints.choose(self.paths(), false, now);
        }
        let moved = self.endpoints.current() != before;
        let is_local = self.cause.is_none_or(Class::may_be_local);
        let hastened = moved || is_local && !waiting.hinted && (waiting.parked || changed);
        if moved {
            self.left = None;
        }
        if !hastened && !waiting.parked {
            return;
        }
        let mut due = waiting.due;
        if hastened {
            due = due.min(self.soon(now)).max(self.endpoints.not_before());
        }
        let recheck = waiting.recheck && !moved && !hastened;
        let until = if recheck { now } else { due };
        let hinted = waiting.hinted || hastened;
        self.wait_until(Waiting { until, due, recheck, hinted, parked: false }, now);
    }

    /// What was refused may be cured now: by other credentials, another certificate, a clock that is set.
    pub(super) fn on_cure(&mut self, cures: fn(Class) -> bool, now: Instant) {
        // Whichever endpoint it was.
        self.endpoints.unbind_slow();
        match self.state {
            State::Resolving { .. } | State::Handshake(_) => self.sources_changed = true,
            State::Waiting(waiting) if self.cause.is_some_and(cures) => {
                let due = waiting.due.min(self.soon(now));
                self.wait_until(Waiting { until: due, due, recheck: false, ..waiting }, now);
            }
            State::StartDelay { .. } | State::Waiting(_) | State::Up(_) | State::Stopped => {}
        }
    }

    // What this machine has a path to.

    /// To the current endpoint, as far as it can tell.
    fn has_path(&self) -> bool {
        self.usable & (1 << self.endpoints.current()) != 0
    }

    /// To no endpoint at all.
    pub(super) fn has_no_path(&self) -> bool {
        self.usable & Self::all(self.endpoints.count()) == 0
    }

    /// To which ones; where there is none, any may be tried.
    pub(super) fn paths(&self) -> u16 {
        if self.has_no_path() { u16::MAX } else { self.usable }
    }

    fn all(count: usize) -> u16 {
        u16::MAX >> (ENDPOINTS_MAX - count)
    }

    fn log_wait(&self, waiting: Waiting) {
        let (wait_ms, endpoint, detail) = (self.wait.as_millis(), self.target, &self.detail);
        let (exponent, slow_exponent) = self.backoff.exponents();
        let class = self.last.map(|(class, _)| class);
        let name = class.map_or("none", Class::name);
        let parked = waiting.parked;
        match class.map(Class::disposition) {
            Some(Disposition::Slow) => warn!(
                target: "link",
                "waiting class={name} wait_ms={wait_ms} slow_exponent={slow_exponent} endpoint={endpoint} detail={detail:?}"
            ),
            Some(Disposition::Promptly | Disposition::Spread | Disposition::Backoff | Disposition::Stop) | None => {
                info!(
                    target: "link",
                    "waiting class={name} wait_ms={wait_ms} exponent={exponent} endpoint={endpoint} path={} detail={detail:?}",
                    !parked
                )
            }
        }
    }
}
