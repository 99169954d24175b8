//! A session: its pulse, its proof, its age, and while it is one at a backup the look at what is preferred.

use std::fmt;
use std::time::Duration;

use log::{debug, info};

use super::{CLOSE_NORMAL, Link, Liveness, Probing, Proof, Session, State, Word};
use crate::config::Heartbeat;
use crate::link::liveness::Verdict;
use crate::link::{Class, Output};
use crate::time::Instant;

impl Link {
    pub(super) fn begin_session(&mut self, now: Instant) {
        let config = &self.config;
        let age_ms_max = config.session_age_s_max.saturating_mul(1000);
        let session = Session {
            liveness: Liveness::new(&config.heartbeat, self.endpoints.interval_ms(self.target), now),
            proof: Proof::Young { until: now + Duration::from_millis(config.reconnect.stable_after_ms), proved: false },
            aged_at: (age_ms_max > 0).then(|| now + self.backoff.at_most(age_ms_max)),
            probing: None,
        };
        self.sessions += 1;
        (self.attempts_failed, self.late, self.cause) = (0, 0, None);
        self.remedies.on_up();
        self.endpoints.on_up();
        self.enter(State::Up(session), now);
        self.save_rest();
        info!(target: "link", "up endpoint={} attempts={} sessions={}", self.target, self.attempts, self.sessions);
    }

    pub(super) fn on_proved(&mut self, now: Instant) {
        let State::Up(session) = &mut self.state else { return };
        match &mut session.proof {
            Proof::Young { proved, .. } => *proved = true,
            Proof::OldEnough => self.on_stable(now),
            Proof::Stable => {}
        }
    }

    pub(super) fn on_old_enough(&mut self, now: Instant) {
        let State::Up(session) = &mut self.state else { return };
        match session.proof {
            Proof::Young { proved: true, .. } => self.on_stable(now),
            Proof::Young { proved: false, .. } => session.proof = Proof::OldEnough,
            Proof::OldEnough | Proof::Stable => {}
        }
    }

    fn on_stable(&mut self, now: Instant) {
        let State::Up(session) = &mut self.state else { return };
        session.proof = Proof::Stable;
        self.backoff.on_stable();
        self.endpoints.on_stable();
        self.remedies.on_stable();
        (self.takeovers, self.rechecked) = (0, false);
        if self.left.take().is_some() || self.endpoints.current() == 0 {
            self.failbacks_failed = 0;
        }
        self.save(0, Instant::default());
        debug!(target: "link", "stable");
        self.begin_probing(now);
    }

    pub(super) fn on_life(&mut self, now: Instant, sign: fn(&mut Liveness, &Heartbeat, Instant)) {
        if let State::Up(session) = &mut self.state {
            self.pending.changed |= session.liveness.misses() > 0;
            sign(&mut session.liveness, &self.config.heartbeat, now);
            self.remember_borne();
        }
    }

    /// The ping interval that the path to this endpoint bears outlives the session.
    fn remember_borne(&mut self) {
        let State::Up(session) = &self.state else { return };
        let borne = session.liveness.borne();
        if self.endpoints.interval_ms(self.target) != borne {
            self.endpoints.set_interval_ms(self.target, borne);
            self.save_rest();
        }
    }

    pub(super) fn on_pulse_timeout(&mut self, now: Instant) {
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
    pub(super) fn end_session(&mut self, class: Class, close: Option<u16>, detail: fmt::Arguments<'_>, now: Instant) {
        let detail = self.write_detail(detail);
        self.pending.drop = Some(close);
        self.end(class, detail, None, now);
    }

    pub(super) fn on_retry(&mut self, after_ms: u64, spread_ms: u64, endpoint: Option<u8>, now: Instant) {
        if !self.state.is_upgraded() {
            return;
        }
        self.pending.drop = Some(Some(CLOSE_NORMAL));
        let detail =
            self.write_detail(format_args!("{}: retry after_ms={after_ms} spread_ms={spread_ms}", self.state.name()));
        let word = Word { after_ms, spread_ms: Some(spread_ms) };
        let named = endpoint.filter(|index| usize::from(*index) < self.endpoints.count());
        self.end_by_word(word, named, detail, now);
    }

    /// Looks at the preferred endpoints from now on, if there are any.
    pub(super) fn begin_probing(&mut self, now: Instant) {
        let wait = self.backoff.probe_wait(&self.config.reconnect, self.failbacks_failed);
        let is_backup = self.preferred() > 0;
        let State::Up(session) = &mut self.state else { return };
        let begun = Probing { at: now + wait, endpoint: 0, asked: false, seen: false, no_hint_before: now };
        session.probing = (session.proof == Proof::Stable && is_backup).then_some(begun);
    }

    /// As many endpoints are preferred to the one of the session: a redirect may have led to a better one.
    pub(super) fn preferred(&self) -> u8 {
        self.endpoints.current().min(self.target)
    }

    pub(super) fn probing(&self) -> Option<Probing> {
        match &self.state {
            State::Up(session) => session.probing,
            State::StartDelay { .. }
            | State::Waiting(_)
            | State::Resolving { .. }
            | State::Handshake(_)
            | State::Stopped => None,
        }
    }

    /// It is time for a look at a preferred endpoint. No answer to the one before is an answer, too.
    pub(super) fn probe(&mut self, now: Instant) {
        let at = now + self.backoff.probe_wait(&self.config.reconnect, self.failbacks_failed);
        let count = self.preferred();
        let State::Up(Session { probing: Some(probing), .. }) = &mut self.state else { return };
        if probing.asked {
            (probing.endpoint, probing.seen) = (probing.endpoint.saturating_add(1), false);
        }
        let next = self.endpoints.to_probe(count, probing.endpoint, self.usable, now);
        let endpoint = next.unwrap_or(0);
        let seen = probing.seen && endpoint == probing.endpoint;
        *probing = Probing { at, endpoint, asked: next.is_some(), seen, ..*probing };
        self.pending.probe = next;
    }

    /// Two in a row, lest a flapping path takes a working session along.
    pub(super) fn on_probed(&mut self, endpoint: u8, ok: bool, now: Instant) {
        let count = self.preferred();
        let State::Up(Session { probing: Some(probing), .. }) = &mut self.state else { return };
        if !probing.asked || probing.endpoint != endpoint {
            return;
        }
        debug!(target: "link", "looked at a preferred endpoint={endpoint} ok={ok}");
        probing.asked = false;
        if !ok {
            (probing.endpoint, probing.seen) = (endpoint.saturating_add(1), false);
        } else if !probing.seen {
            probing.seen = true;
        } else if self.endpoints.to_probe(count, endpoint, self.usable, now) == Some(endpoint) {
            self.fail_back(endpoint, now);
        }
    }

    fn fail_back(&mut self, preferred: u8, now: Instant) {
        let left = self.endpoints.current();
        info!(target: "link", "going back endpoint={preferred} from={left}");
        self.end_session(Class::Failback, Some(CLOSE_NORMAL), format_args!("up: endpoint {preferred} is back"), now);
        if let State::Waiting(waiting) = self.state {
            self.left = Some(left);
            self.endpoints.fail_back(preferred);
            self.target = preferred;
            self.wait_until(waiting, now);
        }
    }
}
