//! From the first lookup to the greeting: the race of the addresses, one redirect, the look for other credentials.

use std::mem;
use std::time::Duration;

use log::debug;

use super::{Handshake, Link, Purpose, Race, Stage, State, Waiting, Word};
use crate::link::{Class, Failure, Output};
use crate::time::Instant;

/// Round trips of a handshake, about: the name, TCP, TLS (two), the upgrade, the greeting, and half as many again for
/// a proxy and a lost packet.
const HANDSHAKE_ROUND_TRIPS: u32 = 9;

/// The handshake's timeout never grows beyond so many times what is configured.
const HANDSHAKE_TIMEOUT_FACTOR_MAX: u32 = 4;

impl Link {
    /// The wait, or the start delay, is over.
    pub(super) fn on_wait_over(&mut self, now: Instant) {
        let State::Waiting(Waiting { due, recheck, .. }) = self.state else {
            // The start delay: a machine without a path need not try.
            return if self.has_no_path() { self.park(now) } else { self.begin_attempt(now) };
        };
        if !recheck {
            return self.begin_attempt(now);
        }
        self.attempt_at = now;
        self.sources_changed = false;
        self.look_up(self.endpoints.current(), Purpose::Recheck { due }, now + self.handshake_timeout(), now);
    }

    fn begin_attempt(&mut self, now: Instant) {
        self.provoked = matches!(self.state, State::Waiting(Waiting { hinted: true, .. }));
        let (exponent, wait) = self.backoff.presumed_death(&self.config.reconnect);
        let not_before = if wait.is_zero() { Instant::default() } else { now + wait };
        self.save(exponent, not_before);
        self.attempts += 1;
        self.attempt_at = now;
        self.sources_changed = false;
        self.look_up(self.endpoints.current(), Purpose::Attempt, now + self.handshake_timeout(), now);
    }

    fn look_up(&mut self, endpoint: u8, purpose: Purpose, deadline: Instant, now: Instant) {
        self.target = endpoint;
        self.enter(State::Resolving { deadline, purpose }, now);
        let recheck = matches!(purpose, Purpose::Recheck { .. });
        self.pending.action = Some(Output::Resolve { endpoint, recheck });
    }

    /// What is configured is the floor; it grows where handshakes came late, and with the round trip of the last
    /// session.
    pub(super) fn handshake_timeout(&self) -> Duration {
        let floor = Duration::from_millis(self.config.handshake_timeout_ms);
        let ceiling = floor.saturating_mul(HANDSHAKE_TIMEOUT_FACTOR_MAX);
        let late = floor.saturating_mul(1 << self.late.min(8));
        late.max(self.rto.saturating_mul(HANDSHAKE_ROUND_TRIPS)).clamp(floor, ceiling)
    }

    pub(super) fn on_resolved(&mut self, addresses: u8, now: Instant) {
        let State::Resolving { deadline, purpose } = self.state else { return };
        if addresses == 0 {
            let detail = self.write_detail(format_args!("resolving: no address"));
            return self.end(Class::Name, detail, None, now);
        }
        // Other credentials are at hand: only now the recheck is an attempt.
        self.attempts += u64::from(matches!(purpose, Purpose::Recheck { .. }));
        let handshake = Handshake {
            stage: Stage::Dialing,
            race: Race::new(addresses, now),
            redirected: purpose == Purpose::Redirect,
            seen: None,
            share: deadline,
            deadline,
        };
        self.dial_next(handshake, now);
    }

    /// The next address joins the race.
    fn dial_next(&mut self, mut handshake: Handshake, now: Instant) {
        let Some(address) = handshake.race.join(now) else { return };
        self.enter(State::Handshake(handshake), now);
        self.pending.action = Some(Output::Dial { address });
    }

    pub(super) fn join_race(&mut self, now: Instant) {
        if let State::Handshake(handshake) = self.state {
            self.dial_next(handshake, now);
        }
    }

    pub(super) fn on_dialed(&mut self, address: u8, now: Instant) {
        let State::Handshake(mut handshake) = self.state else { return };
        if handshake.stage != Stage::Dialing || !handshake.race.on_won(address) {
            return;
        }
        let tls = self.config.endpoints_tls.get(usize::from(self.target)).copied().unwrap_or(true);
        handshake.stage = if tls { Stage::Securing } else { Stage::Upgrading };
        // The others get their shares should this one come to nothing.
        let untried = handshake.race.untried();
        if untried > 0 {
            handshake.share = (now + handshake.deadline.since(now) / (untried + 1)).min(handshake.deadline);
        }
        self.enter(State::Handshake(handshake), now);
    }

    pub(super) fn on_stage_done(&mut self, done: Stage, now: Instant) {
        let State::Handshake(handshake) = self.state else { return };
        if handshake.stage != done {
            return;
        }
        let next = match done {
            Stage::Dialing => return,
            Stage::Securing => Handshake { stage: Stage::Upgrading, ..handshake },
            // The address did its part; the greeting may take all that is left.
            Stage::Upgrading => Handshake { stage: Stage::Greeting, share: handshake.deadline, ..handshake },
            Stage::Greeting => return self.begin_session(now),
        };
        self.enter(State::Handshake(next), now);
    }

    /// One of the racing addresses failed. The next one begins at once, the others go on.
    pub(super) fn on_dial_failed(&mut self, address: u8, failure: Failure, now: Instant) {
        let State::Handshake(mut handshake) = self.state else { return };
        if handshake.stage != Stage::Dialing || !handshake.race.on_failed(address) {
            return;
        }
        let Failure { class, detail, server_wait_ms, server_spread_ms, close_code: _ } = failure;
        let word = server_wait_ms.map(|after_ms| Word { after_ms, spread_ms: server_spread_ms });
        if word.is_some() || !class.concerns_address() {
            // Whoever said it spoke for all addresses.
            self.pending.drop = Some(None);
            let detail = self.write_detail(format_args!("{detail}"));
            return self.end(class, detail, word, now);
        }
        debug!(target: "link", "address failed address={address} class={} detail={detail:?}", class.name());
        let (class, detail) = self.better(handshake.seen, class, &detail);
        if handshake.race.next_at().is_none() && !handshake.race.is_running() {
            return self.end(class, detail, None, now);
        }
        self.spare = detail;
        handshake.seen = Some(class).filter(|class| *class != Class::Local);
        if handshake.race.next_at().is_some() {
            return self.dial_next(handshake, now);
        }
        self.state = State::Handshake(handshake);
    }

    /// The attempt, or the address that won the race, failed; or the session did.
    pub(super) fn on_failed(&mut self, failure: Failure, now: Instant) {
        let Failure { class, detail, server_wait_ms, server_spread_ms, close_code: _ } = failure;
        let word = server_wait_ms.map(|after_ms| Word { after_ms, spread_ms: server_spread_ms });
        match self.state {
            State::StartDelay { .. } | State::Waiting(_) | State::Stopped => {}
            State::Handshake(Handshake { seen, .. }) => {
                let (class, detail) = self.better(seen, class, &detail);
                self.next_address_or_end(class, detail, word, now);
            }
            State::Resolving { .. } | State::Up(_) => {
                // There is no handshake any more that could be late: the system gave the peer up (TCP_USER_TIMEOUT).
                let class = if class == Class::Timeout && self.is_up() { Class::Silent } else { class };
                let detail = self.write_detail(format_args!("{detail}"));
                self.end(class, detail, word, now);
            }
        }
    }

    /// That this machine has no route to one of the addresses (no IPv6) says nothing where another address failed for
    /// a better reason.
    fn better(&mut self, seen: Option<Class>, class: Class, detail: &str) -> (Class, String) {
        match seen.filter(|_| class == Class::Local) {
            Some(seen) => (seen, mem::take(&mut self.spare)),
            None => (class, self.write_detail(format_args!("{detail}"))),
        }
    }

    /// Goes on with the other addresses where that may help, else ends the attempt.
    fn next_address_or_end(&mut self, class: Class, detail: String, word: Option<Word>, now: Instant) {
        let next = match self.state {
            State::Handshake(handshake) => {
                let may_help = word.is_none() && class.concerns_address() && now < handshake.deadline;
                // In a race it was the attempt that failed, not an address.
                let has_won = matches!(handshake.stage, Stage::Securing | Stage::Upgrading);
                Some(handshake).filter(|handshake| may_help && has_won && handshake.race.untried() > 0)
            }
            State::StartDelay { .. } | State::Waiting(_) | State::Resolving { .. } | State::Up(_) | State::Stopped => {
                None
            }
        };
        let Some(next) = next else { return self.end(class, detail, word, now) };
        debug!(target: "link", "address failed after it won class={} detail={detail:?}", class.name());
        self.spare = detail;
        let seen = Some(class).filter(|class| *class != Class::Local);
        self.dial_next(Handshake { stage: Stage::Dialing, seen, share: next.deadline, ..next }, now);
    }

    pub(super) fn on_handshake_timeout(&mut self, now: Instant) {
        let detail = self.write_detail(format_args!("{}: no answer in time", self.state.name()));
        self.pending.drop = Some(None);
        self.next_address_or_end(Class::Timeout, detail, None, now);
    }

    /// Followed once an attempt. The breakers, the server's word and the way back stay with the endpoint that sent us
    /// on: it is what is configured first.
    pub(super) fn on_redirected(&mut self, endpoint: u8, now: Instant) {
        let State::Handshake(handshake) = self.state else { return };
        if handshake.stage != Stage::Upgrading {
            return;
        }
        if handshake.redirected || usize::from(endpoint) >= self.endpoints.count() {
            let detail = self.write_detail(format_args!("upgrading: redirected once too often"));
            return self.end(Class::WrongPlace, detail, None, now);
        }
        let word = self.endpoints.word(endpoint);
        if word > now {
            let detail = self.write_detail(format_args!("upgrading: redirected to where we must not go yet"));
            self.endpoints.bind(self.endpoints.current(), word);
            return self.end(Class::Overload, detail, None, now);
        }
        debug!(target: "link", "redirected endpoint={endpoint}");
        self.look_up(endpoint, Purpose::Redirect, handshake.deadline, now);
    }

    /// The wait of the refusal goes on: nothing was dialed.
    pub(super) fn on_credentials_unchanged(&mut self, now: Instant) {
        let State::Resolving { purpose: Purpose::Recheck { due }, .. } = self.state else { return };
        debug!(target: "link", "credentials unchanged");
        if mem::take(&mut self.sources_changed) {
            let soon = self.soon(now);
            return self.wait_until(Waiting::until(soon), now);
        }
        self.backoff.spend_slow();
        self.wait_until(Waiting::until(due.max(now)), now);
    }
}
