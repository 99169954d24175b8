//! The server's word on how fast records may come (`pace`). Knows rates and instants, nothing of lanes.

use std::time::Duration;

use crate::time::Instant;

/// A slice of records goes out at a time, so many of them a second: fine enough to be even, coarse enough to batch.
const SLICES_PER_S: u64 = 32;

/// Keeps records below a rate. What was not used is not saved up: an idle minute earns no burst.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    /// 0: unlimited.
    records_per_s: u64,
    /// Nothing before this.
    not_before: Instant,
}

impl Pace {
    /// The server's new word; 0: unlimited. What was sent under the old one is still paid for at its rate.
    pub(super) const fn set(&mut self, records_per_s: u64) {
        self.records_per_s = records_per_s;
    }

    /// The rate.
    pub(super) const fn records_per_s(&self) -> u64 {
        if self.records_per_s == 0 { u64::MAX } else { self.records_per_s }
    }

    /// How many records may go now.
    pub(super) fn allowed(&self, now: Instant) -> u64 {
        match self.records_per_s {
            0 => u64::MAX,
            _ if now < self.not_before => 0,
            rate => (rate / SLICES_PER_S).max(1),
        }
    }

    /// So many went.
    pub(super) fn spend(&mut self, records: u64, now: Instant) {
        if self.records_per_s == 0 {
            return;
        }
        // A sixteenth slower than asked: with it no second at all, wherever it begins, holds more than the rate.
        let micros = u128::from(records) * 17_000_000 / 16 / u128::from(self.records_per_s);
        self.not_before = self.not_before.max(now) + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
    }

    /// When the next record may go.
    pub(super) const fn next(&self) -> Instant {
        self.not_before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as allowed for `seconds`; the instants in µs, one a record.
    fn sent(rate: u64, seconds: u64) -> Vec<u64> {
        let (mut pace, mut now, mut sent) = (Pace::default(), Instant::from_micros(0), Vec::new());
        pace.set(rate);
        while now.as_micros() < seconds * 1_000_000 {
            let records = pace.allowed(now);
            assert!(records > 0, "allowed at the instant it names");
            sent.extend((0..records).map(|_| now.as_micros()));
            pace.spend(records, now);
            now = pace.next();
        }
        sent
    }

    #[test]
    fn no_second_holds_more_than_the_rate_and_the_whole_comes_close_to_it() {
        for rate in [1, 2, 3, 7, 31, 32, 33, 63, 64, 100, 999, 1000, 12_345] {
            let sent = sent(rate, 10);
            for (start, beyond) in sent.iter().zip(sent.iter().skip(rate as usize)) {
                assert!(*beyond >= start + 1_000_000, "rate={rate} start={start}");
            }
            assert!(sent.len() as u64 >= rate * 9, "rate={rate} sent={}", sent.len());
        }
    }

    #[test]
    fn an_idle_minute_earns_no_burst() {
        let mut pace = Pace::default();
        pace.set(64);
        pace.spend(2, Instant::from_micros(0));
        assert_eq!(pace.allowed(Instant::from_micros(60_000_000)), 2);
    }

    #[test]
    fn what_goes_in_two_messages_at_one_instant_is_paid_for_twice() {
        let mut pace = Pace::default();
        pace.set(1000);
        let now = Instant::from_micros(7);
        pace.spend(20, now);
        pace.spend(11, now);
        assert_eq!(pace.next().since(now).as_micros(), 31 * 17_000 / 16);
    }

    #[test]
    fn zero_is_unlimited() {
        let mut pace = Pace::default();
        pace.spend(1 << 40, Instant::from_micros(0));
        assert_eq!(pace.allowed(Instant::from_micros(0)), u64::MAX);
    }
}
