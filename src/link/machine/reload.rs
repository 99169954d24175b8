//! Another configuration, in place: what is known of an endpoint goes on with it, and so does a session at it.

use std::mem;
use std::sync::Arc;

use log::info;

use super::{CLOSE_NORMAL, Link, Session, State, Waiting};
use crate::link::{Class, Config, Output};
use crate::time::Instant;

impl Link {
    /// Another configuration, from now on. `was[i]` is the old index of the new endpoint i where it is the same one. A
    /// session lives on if its endpoint is still there.
    pub fn reconfigure(&mut self, config: Arc<Config>, was: &[Option<u8>], now: Instant) {
        let count = config.endpoints_tls.len();
        let old = mem::replace(&mut self.config, config);
        self.remedies.remap(&old.remedies, &self.config.remedies);
        let new_index = |of: u8| was.iter().take(count).position(|old| *old == Some(of)).map(|new| new as u8);
        let (current, target) = (new_index(self.endpoints.current()), new_index(self.target));
        self.left = self.left.and_then(new_index);
        let had_path = |new: usize| match was.get(new).copied().flatten() {
            Some(old) => self.usable.checked_shr(old.into()).unwrap_or(1) & 1,
            None => 1,
        };
        self.usable = (0..16).fold(0, |usable, new| usable | had_path(new) << new);
        self.endpoints.remap(count, was);
        self.endpoints.cap(now + self.config.wait_max());
        info!(target: "link", "reconfigured endpoints={count}");
        self.go_on(current, target, &new_index, &old, now);
        self.save_rest();
        self.check_invariants();
    }

    /// `current` and `target`: their new indices, where they are still there.
    fn go_on(
        &mut self,
        current: Option<u8>,
        target: Option<u8>,
        new_index: &dyn Fn(u8) -> Option<u8>,
        old: &Config,
        now: Instant,
    ) {
        match self.state {
            State::StartDelay { until } => {
                self.target = self.endpoints.current();
                let delay = std::time::Duration::from_millis(self.config.reconnect.start_delay_ms_max);
                self.state = State::StartDelay { until: until.min(now + delay) };
            }
            State::Waiting(waiting) => self.go_on_waiting(waiting, current.is_some(), now),
            State::Stopped => self.target = self.endpoints.current(),
            State::Resolving { .. } | State::Handshake(_) | State::Up(_) => {
                let Some(target) = target else {
                    self.target = self.endpoints.current();
                    let name = self.state.name();
                    return self.end_session(
                        Class::Renewed,
                        Some(CLOSE_NORMAL),
                        format_args!("{name}: the endpoint is no longer configured"),
                        now,
                    );
                };
                self.target = target;
                if let Some(Output::Resolve { endpoint, .. }) = &mut self.pending.action {
                    *endpoint = target;
                }
                self.go_on_up(old, new_index, now);
            }
        }
    }

    fn go_on_waiting(&mut self, waiting: Waiting, is_there: bool, now: Instant) {
        let before = self.endpoints.current();
        self.endpoints.choose(self.paths(), false, now);
        let stays = is_there && self.endpoints.current() == before;
        let due = match stays {
            true => waiting.due.min(now + self.config.wait_max()),
            // What was waited for concerned another one.
            false => waiting.due.min(self.soon(now)).max(self.endpoints.not_before()),
        };
        if !stays {
            self.left = None;
        }
        let recheck = waiting.recheck && stays;
        let until = if recheck { waiting.until } else { due };
        self.wait_until(Waiting { until, due, recheck, ..waiting }, now);
    }

    fn go_on_up(&mut self, old: &Config, new_index: &dyn Fn(u8) -> Option<u8>, now: Instant) {
        self.pending.probe = None;
        let before = self.probing();
        self.begin_probing(now);
        // A reload a minute must not put the looks off for ever.
        if let (Some(before), State::Up(Session { probing: Some(probing), .. })) = (before, &mut self.state) {
            (probing.at, probing.no_hint_before) = (before.at.min(probing.at), before.no_hint_before);
            if let Some(endpoint) = new_index(before.endpoint) {
                // The answer to a look that is under way names an old index: it counts for nothing.
                (probing.endpoint, probing.seen) = (endpoint, before.seen);
            }
        }
        let age_ms_max = self.config.session_age_s_max.saturating_mul(1000);
        let (since, age) = (self.since, self.backoff.at_most(age_ms_max));
        let changed = old.session_age_s_max != self.config.session_age_s_max;
        if let State::Up(session) = &mut self.state
            && changed
        {
            session.aged_at = (age_ms_max > 0).then(|| (since + age).max(now));
        }
    }
}
