//! Which endpoint is tried, in order of preference; *when* is decided elsewhere. Owns a breaker for each: closed, it
//! is tried as it comes; open, after a few failures in a row, another one is; half-open, it has one attempt to show
//! that it works again.

use std::time::Duration;

use super::{Class, Disposition, ENDPOINTS_MAX};
use crate::status::BreakerView;
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Endpoints {
    /// The one in use, or next.
    current: u8,
    all: Box<[Endpoint]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Endpoint {
    breaker: Breaker,
    /// Failures in a row, overload not counted.
    failures: u32,
    /// Answers of overload in a row.
    overloads: u32,
    /// The server's word: not before this.
    word: Instant,
    /// Refused for a reason that time alone does not cure: not before this, unless something changed here.
    slow: Instant,
    /// The ping interval that its path bears, in ms; 0: not known.
    interval_ms: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Breaker {
    #[default]
    Closed,
    /// Not to be preferred before this.
    Open {
        until: Instant,
    },
    HalfOpen,
}

/// Where a choice led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// It is the same endpoint as before.
    Stays,
    /// To a reserve that works as far as we know.
    ToReserve,
    /// Back to one that is preferred.
    ToPreferred,
    /// Every breaker is open: the next one in turn.
    InTurn,
    /// This machine has no path to the one before.
    Elsewhere,
}

impl Endpoints {
    /// So many endpoints, beginning with the one in use when the last process ended. Those before it did not work.
    pub(super) fn new(count: usize, saved: u8, open_until: Instant) -> Self {
        let count = count.clamp(1, ENDPOINTS_MAX);
        let current = if usize::from(saved) < count { saved } else { 0 };
        let mut all = vec![Endpoint::default(); count].into_boxed_slice();
        all[..usize::from(current)].iter_mut().for_each(|e| e.breaker = Breaker::Open { until: open_until });
        Self { current, all }
    }

    /// After a reload: `was[i]` is the old index of the new endpoint i. Returns the new index of an old one.
    pub(super) fn remap(&mut self, count: usize, was: &[Option<u8>]) {
        let old = |new: usize| was.get(new).copied().flatten();
        let count = count.clamp(1, ENDPOINTS_MAX);
        let kept = |new: usize| old(new).and_then(|index| self.all.get(usize::from(index))).copied();
        let all = (0..count).map(|new| kept(new).unwrap_or_default()).collect();
        let current = (0..count).find(|new| old(*new) == Some(self.current)).unwrap_or(0);
        *self = Self { current: current as u8, all };
    }

    /// Nothing binds for longer than this.
    pub(super) fn cap(&mut self, until: Instant) {
        for endpoint in &mut self.all {
            (endpoint.word, endpoint.slow) = (endpoint.word.min(until), endpoint.slow.min(until));
        }
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Index of the one in use, or next.
    pub(super) fn current(&self) -> u8 {
        self.current
    }

    /// The server's word: this one must not be tried before.
    pub(super) fn word(&self, index: u8) -> Instant {
        self.get(index).word
    }

    /// Neither the server's word nor a refusal lets the current one be tried before this.
    pub(super) fn not_before(&self) -> Instant {
        let Endpoint { word, slow, .. } = self.get(self.current);
        word.max(slow)
    }

    /// The server of this one asks for patience.
    pub(super) fn bind(&mut self, index: u8, until: Instant) {
        let word = &mut self.get_mut(index).word;
        *word = until.max(*word);
    }

    /// This one has refused us.
    pub(super) fn bind_slowly(&mut self, index: u8, until: Instant) {
        self.get_mut(index).slow = until;
    }

    /// Something changed here that may cure refusals.
    pub(super) fn unbind_slow(&mut self) {
        self.all.iter_mut().for_each(|endpoint| endpoint.slow = Instant::default());
    }

    /// A session is up: whatever the current one refused is settled.
    pub(super) fn on_up(&mut self) {
        self.get_mut(self.current).slow = Instant::default();
    }

    /// The ping interval that the path to this one bears, in ms; 0: not known.
    pub(super) fn interval_ms(&self, index: u8) -> u32 {
        self.get(index).interval_ms
    }

    pub(super) fn set_interval_ms(&mut self, index: u8, interval_ms: u32) {
        self.get_mut(index).interval_ms = interval_ms;
    }

    /// A server names an endpoint; one that does not exist is ignored.
    pub(super) fn go_to(&mut self, index: u8) {
        if usize::from(index) < self.all.len() {
            self.current = index;
        }
    }

    /// A session here proved stable.
    pub(super) fn on_stable(&mut self) {
        let endpoint = self.get_mut(self.current);
        (endpoint.breaker, endpoint.failures, endpoint.overloads) = (Breaker::Closed, 0, 0);
    }

    /// The network here was gone and is back: what failed before says nothing.
    pub(super) fn on_network_back(&mut self) {
        for endpoint in &mut self.all {
            (endpoint.breaker, endpoint.failures) = (Breaker::Closed, 0);
        }
    }

    /// Counts a failure of the current one. After `failures_max` in a row, or one while half-open, its breaker opens
    /// for so long.
    pub(super) fn on_failure(&mut self, class: Class, failures_max: u32, now: Instant, period: Duration) {
        let counts = match class.disposition() {
            // A cause on this side counts, too: it may be one of this endpoint's path.
            Disposition::Promptly => class == Class::Local,
            Disposition::Stop => false,
            // `retry` says where to come back.
            Disposition::Spread | Disposition::Backoff | Disposition::Slow => class != Class::ServerRetry,
        };
        if !counts {
            return;
        }
        let endpoint = self.get_mut(self.current);
        // Lest a busy server's clients stampede the reserve at its first sign of overload.
        let count = if class == Class::Overload { &mut endpoint.overloads } else { &mut endpoint.failures };
        *count = count.saturating_add(1);
        if *count >= failures_max.max(1) || endpoint.breaker != Breaker::Closed {
            self.open(now + period);
        }
    }

    /// Opens the breaker of the current one.
    pub(super) fn open(&mut self, until: Instant) {
        let endpoint = self.get_mut(self.current);
        (endpoint.breaker, endpoint.failures, endpoint.overloads) = (Breaker::Open { until }, 0, 0);
    }

    /// The preferred one that has shown a sign of life becomes the next, for one attempt.
    pub(super) fn fail_back(&mut self, index: u8) {
        self.go_to(index);
        self.get_mut(self.current).breaker = Breaker::HalfOpen;
    }

    /// Chooses the next one among those that this machine has a path to: the first that works as far as we know or
    /// may show that it does. `impatient`: not the current one, if that can be.
    pub(super) fn choose(&mut self, usable: u16, impatient: bool, now: Instant) -> Move {
        let has_path = |index: &usize| usable & (1 << index) != 0;
        let current = usize::from(self.current);
        let stays = has_path(&current);
        let mut next = None;
        for index in (0..self.all.len()).filter(has_path) {
            let Endpoint { breaker, word, slow, .. } = self.all[index];
            match breaker {
                Breaker::Open { until } if until > now => continue,
                Breaker::Closed | Breaker::Open { .. } | Breaker::HalfOpen => {}
            }
            if index == current && !impatient {
                return Move::Stays;
            }
            if index != current && word.max(slow) <= now {
                next = Some(index);
                break;
            }
        }
        let is_open = |index: usize| matches!(self.all[index].breaker, Breaker::Open { until } if until > now);
        let moved = match next {
            Some(_) if !stays => Move::Elsewhere,
            Some(next) if next < current => Move::ToPreferred,
            Some(_) => Move::ToReserve,
            None if stays && !is_open(current) => return Move::Stays,
            None => Move::InTurn,
        };
        let Some(next) = next.or_else(|| self.in_turn(usable, now)) else { return Move::Stays };
        if let Breaker::Open { .. } = self.all[next].breaker {
            self.all[next].breaker = Breaker::HalfOpen;
        }
        self.current = next as u8;
        if next == current { Move::Stays } else { moved }
    }

    /// The next one in turn that may be tried, else the one that may be tried first.
    fn in_turn(&self, usable: u16, now: Instant) -> Option<usize> {
        let count = self.all.len();
        let bound = |index: &usize| self.all[*index].word.max(self.all[*index].slow).max(now);
        (1..=count)
            .map(|step| (usize::from(self.current) + step) % count)
            .filter(|index| usable & (1 << index) != 0)
            .min_by_key(bound)
    }

    /// On to the next one, whatever is known of it.
    pub(super) fn turn(&mut self) {
        self.current = (self.current + 1) % self.all.len() as u8;
    }

    /// What `status` shows of each.
    pub(super) fn breakers(&self) -> Vec<BreakerView> {
        let view = |endpoint: &Endpoint| match endpoint.breaker {
            Breaker::Closed => BreakerView { state: "closed", until: None },
            Breaker::Open { until } => BreakerView { state: "open", until: Some(until) },
            Breaker::HalfOpen => BreakerView { state: "half_open", until: None },
        };
        self.all.iter().map(view).collect()
    }

    /// The next one of the first `count` that may be looked at, beginning with this index: one with a path, not bound by
    /// its server's word.
    pub(super) fn to_probe(&self, count: u8, from: u8, usable: u16, now: Instant) -> Option<u8> {
        (0..count)
            .map(|step| (from % count + step) % count)
            .find(|index| usable & (1 << index) != 0 && self.get(*index).word.max(self.get(*index).slow) <= now)
    }

    fn get(&self, index: u8) -> Endpoint {
        self.all.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// The current one is always one of them; what is none changes the last.
    fn get_mut(&mut self, index: u8) -> &mut Endpoint {
        let last = self.all.len() - 1;
        &mut self.all[usize::from(index).min(last)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u16 = u16::MAX;
    const PERIOD: Duration = Duration::from_secs(300);

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    fn fresh(count: usize) -> Endpoints {
        Endpoints::new(count, 0, at(0))
    }

    /// One failure; where that leads.
    fn fail(endpoints: &mut Endpoints, class: Class, now: Instant) -> (u8, Move) {
        endpoints.on_failure(class, 3, now, PERIOD);
        let moved = endpoints.choose(ALL, false, now);
        (endpoints.current(), moved)
    }

    fn fail_often(endpoints: &mut Endpoints, class: Class, failures: u32, now: Instant) -> u8 {
        (0..failures).for_each(|_| {
            fail(endpoints, class, now);
        });
        endpoints.current()
    }

    #[test]
    fn fails_over_after_three_failures_and_then_in_turn() {
        let mut endpoints = fresh(3);
        let visited: Vec<_> = (0..13).map(|_| fail(&mut endpoints, Class::Refused, at(1)).0).collect();
        assert_eq!(visited, [0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn says_whether_it_went_to_a_reserve_or_merely_took_turns() {
        let mut endpoints = fresh(2);
        let moves: Vec<_> = (0..8).map(|_| fail(&mut endpoints, Class::Refused, at(1)).1).collect();
        use Move::{InTurn, Stays, ToReserve};
        assert_eq!(moves, [Stays, Stays, ToReserve, Stays, Stays, InTurn, InTurn, InTurn]);
    }

    #[test]
    fn what_this_side_wanted_and_the_servers_retry_do_not_count() {
        for class in [Class::Renewed, Class::Aged, Class::Failback, Class::ServerRetry] {
            assert_eq!(fail_often(&mut fresh(2), class, 10, at(1)), 0, "{class:?}");
        }
        assert_eq!(fail_often(&mut fresh(2), Class::Local, 3, at(1)), 1, "its path may be broken, another one not");
    }

    #[test]
    fn overload_counts_only_after_so_many_answers_of_it() {
        let mut endpoints = fresh(2);
        fail_often(&mut endpoints, Class::Refused, 2, at(1));
        assert_eq!(fail_often(&mut endpoints, Class::Overload, 2, at(1)), 0, "two refusals and two overloads");
        assert_eq!(fail_often(&mut endpoints, Class::Overload, 1, at(1)), 1);
    }

    #[test]
    fn an_open_breaker_gives_one_attempt_when_its_time_is_over() {
        let mut endpoints = fresh(2);
        assert_eq!(fail_often(&mut endpoints, Class::Refused, 3, at(1)), 1);
        assert_eq!(fail(&mut endpoints, Class::Refused, at(300)), (1, Move::Stays));
        assert_eq!(fail(&mut endpoints, Class::Refused, at(301)), (0, Move::ToPreferred), "half-open");
        assert_eq!(fail(&mut endpoints, Class::Refused, at(302)), (1, Move::ToReserve), "one attempt only");
    }

    #[test]
    fn a_stable_session_closes_the_breaker() {
        let mut endpoints = fresh(2);
        fail_often(&mut endpoints, Class::Refused, 6, at(1));
        endpoints.go_to(0);
        endpoints.on_stable();
        assert_eq!(fail_often(&mut endpoints, Class::Refused, 2, at(2)), 0, "three again");
    }

    #[test]
    fn stays_where_every_other_endpoint_is_bound() {
        let mut endpoints = fresh(2);
        endpoints.bind(1, at(100));
        assert_eq!(fail_often(&mut endpoints, Class::Refused, 10, at(99)), 0);
        assert_eq!(fail(&mut endpoints, Class::Refused, at(100)).0, 1);
        assert_eq!(fail_often(&mut fresh(1), Class::Refused, 10, at(1)), 0, "alone");
    }

    #[test]
    fn an_endpoint_without_a_path_is_passed_over() {
        let mut endpoints = fresh(3);
        assert_eq!((endpoints.choose(0b110, false, at(1)), endpoints.current()), (Move::Elsewhere, 1));
        assert_eq!((endpoints.choose(0b111, false, at(1)), endpoints.current()), (Move::ToPreferred, 0));
    }

    #[test]
    fn impatience_goes_elsewhere_only_where_something_works() {
        let mut endpoints = fresh(2);
        assert_eq!((endpoints.choose(ALL, true, at(1)), endpoints.current()), (Move::ToReserve, 1));
        assert_eq!(fresh(1).choose(ALL, true, at(1)), Move::Stays);
    }

    #[test]
    fn looks_at_preferred_endpoints_only_and_in_turn() {
        let mut endpoints = fresh(4);
        assert_eq!(endpoints.to_probe(0, 0, ALL, at(1)), None);
        endpoints.go_to(3);
        assert_eq!(
            [0, 1, 2, 3].map(|from| endpoints.to_probe(3, from, ALL, at(1))),
            [Some(0), Some(1), Some(2), Some(0)]
        );
        endpoints.bind(1, at(9));
        assert_eq!([0, 1, 2].map(|from| endpoints.to_probe(3, from, 0b011, at(1))), [Some(0), Some(0), Some(0)]);
    }

    #[test]
    fn goes_only_to_endpoints_that_exist() {
        let mut endpoints = fresh(2);
        endpoints.go_to(2);
        assert_eq!(endpoints.current(), 0);
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_the_same_endpoint() {
        let mut endpoints = fresh(3);
        endpoints.go_to(2);
        endpoints.bind(2, at(50));
        endpoints.remap(2, &[Some(2), None]);
        assert_eq!((endpoints.current(), endpoints.not_before()), (0, at(50)));
        endpoints.remap(1, &[None]);
        assert_eq!((endpoints.current(), endpoints.not_before()), (0, at(0)));
    }
}
