//! Which endpoint is tried, in order of preference; *when* is decided elsewhere. It fails over after a few failures
//! in a row, and back to the first once a session elsewhere was stable and has ended.

use super::{Class, Disposition};
use crate::time::Instant;

/// Failures in a row at one endpoint before the next one is tried.
const FAILOVER_FAILURES: u8 = 3;

#[derive(Debug)]
pub(super) struct Endpoints {
    /// The one in use, or next.
    current: u8,
    /// Failures in a row at it.
    failures: u8,
    /// For each: the server's word, not before this. It binds that endpoint only.
    not_before: Box<[Instant]>,
}

impl Endpoints {
    /// So many endpoints; the 256th and later are never tried.
    pub(super) fn new(count: usize) -> Self {
        let count = count.clamp(1, usize::from(u8::MAX));
        Self { current: 0, failures: 0, not_before: vec![Instant::default(); count].into_boxed_slice() }
    }

    /// Index of the one in use, or next.
    pub(super) fn current(&self) -> u8 {
        self.current
    }

    /// The current one must not be tried before this.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before[usize::from(self.current)]
    }

    /// The server of the current one asks for patience.
    pub(super) fn bind(&mut self, until: Instant) {
        self.not_before[usize::from(self.current)] = until;
    }

    /// A server names an endpoint; one that does not exist is ignored.
    pub(super) fn go_to(&mut self, index: u8) {
        if usize::from(index) < self.not_before.len() && index != self.current {
            (self.current, self.failures) = (index, 0);
        }
    }

    /// A session here proved stable.
    pub(super) fn on_stable(&mut self) {
        self.failures = 0;
    }

    /// The preferred endpoint has its chance again. True if that is another one.
    pub(super) fn fail_back(&mut self) -> bool {
        let moved = self.current != 0;
        self.go_to(0);
        moved
    }

    /// Counts a failure that was not this side's, and goes on to the next unbound endpoint after enough of them.
    /// True if it does; where there is none, it stays.
    pub(super) fn fail_over(&mut self, class: Class, now: Instant) -> bool {
        let counts = match class.disposition() {
            Disposition::Promptly | Disposition::Stop => false,
            // `retry` says where to come back.
            Disposition::Spread | Disposition::Backoff | Disposition::Slow => class != Class::ServerRetry,
        };
        if !counts {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < FAILOVER_FAILURES {
            return false;
        }
        let count = self.not_before.len();
        let next = (1..count)
            .map(|step| (usize::from(self.current) + step) % count)
            .find(|index| self.not_before[*index] <= now);
        if let Some(next) = next {
            self.go_to(next as u8);
        }
        next.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    /// Fails so often; says where it ends up.
    fn after(endpoints: &mut Endpoints, class: Class, failures: u32, now: Instant) -> u8 {
        (0..failures).for_each(|_| {
            endpoints.fail_over(class, now);
        });
        endpoints.current()
    }

    #[test]
    fn fails_over_after_three_failures_and_around() {
        let mut endpoints = Endpoints::new(3);
        let visited: Vec<_> = (0..9).map(|_| after(&mut endpoints, Class::Refused, 1, at(1))).collect();
        assert_eq!(visited, [0, 0, 1, 1, 1, 2, 2, 2, 0]);
    }

    #[test]
    fn a_local_cause_and_the_servers_retry_do_not_count() {
        let mut endpoints = Endpoints::new(2);
        for class in [Class::Local, Class::Renewed, Class::Aged, Class::ServerRetry] {
            assert_eq!(after(&mut endpoints, class, 10, at(1)), 0, "{class:?}");
        }
    }

    #[test]
    fn stays_where_every_other_endpoint_is_bound() {
        let mut endpoints = Endpoints::new(2);
        endpoints.go_to(1);
        endpoints.bind(at(100));
        endpoints.go_to(0);
        assert_eq!(after(&mut endpoints, Class::Refused, 10, at(99)), 0);
        assert_eq!(after(&mut endpoints, Class::Refused, 1, at(100)), 1);
        assert_eq!(after(&mut Endpoints::new(1), Class::Refused, 10, at(1)), 0, "alone");
    }

    #[test]
    fn goes_only_to_endpoints_that_exist() {
        let mut endpoints = Endpoints::new(2);
        endpoints.go_to(2);
        assert_eq!(endpoints.current(), 0);
        endpoints.go_to(1);
        assert!(endpoints.fail_back());
        assert!(!endpoints.fail_back());
    }
}
