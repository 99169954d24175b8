//! How fast records may go: the server's word (`pace`) and the configured ceilings. Knows rates and instants, nothing
//! of lanes.

use std::time::Duration;

use super::cursor::Load;
use crate::time::Instant;

/// A slice of records goes out at a time, so many of them a second: fine enough to be even, coarse enough to batch.
const SLICES_PER_S: u64 = 32;

/// Keeps records, and their bytes, below a rate each. What was not used is not saved up: an idle minute earns no
/// burst.
#[derive(Debug, Clone, Default)]
pub(super) struct Pace {
    /// The configured ceilings, 0: none.
    records_per_s_max: u64,
    bytes_per_s_max: u64,
    /// The server's word on records; 0: unlimited.
    told: u64,
    /// Nothing before this.
    not_before: Instant,
}

impl Pace {
    /// As configured, until the server says less.
    pub(super) fn new(records_per_s_max: u64, bytes_per_s_max: u64) -> Self {
        Self { records_per_s_max, bytes_per_s_max, ..Self::default() }
    }

    /// The server's new word; 0: unlimited. What was sent under the old one is still paid for at its rate.
    pub(super) const fn set(&mut self, records_per_s: u64) {
        self.told = records_per_s;
    }

    /// What may go in a second: the least wins.
    pub(super) fn in_a_second(&self) -> Load {
        let least = |one: u64, other: u64| [one, other].into_iter().filter(|rate| *rate > 0).min().unwrap_or(u64::MAX);
        Load { records: least(self.told, self.records_per_s_max), bytes: least(self.bytes_per_s_max, 0) }
    }

    /// How much may go now; a lone larger record counts as well, and is paid for.
    pub(super) fn allowed(&self, now: Instant) -> Load {
        let slice = |rate: u64| if rate == u64::MAX { rate } else { (rate / SLICES_PER_S).max(1) };
        let Load { records, bytes } = self.in_a_second();
        let unlimited = records == u64::MAX && bytes == u64::MAX;
        if !unlimited && now < self.not_before {
            return Load::default();
        }
        Load { records: slice(records), bytes: slice(bytes) }
    }

    /// So much went.
    pub(super) fn spend(&mut self, load: Load, now: Instant) {
        // A sixteenth slower than asked: with it no second at all, wherever it begins, holds more than the rate.
        let micros = |spent: u64, rate: u64| u128::from(spent) * 17_000_000 / 16 / u128::from(rate.max(1));
        let rates = self.in_a_second();
        let micros = match (rates.records, rates.bytes) {
            (u64::MAX, u64::MAX) => return,
            (records, u64::MAX) => micros(load.records, records),
            (u64::MAX, bytes) => micros(load.bytes, bytes),
            (records, bytes) => micros(load.records, records).max(micros(load.bytes, bytes)),
        };
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

    fn records(records: u64) -> Load {
        Load { records, bytes: 0 }
    }

    /// Sends as fast as allowed for `seconds`; the instants in µs, one a record.
    fn sent(rate: u64, seconds: u64) -> Vec<u64> {
        let (mut pace, mut now, mut sent) = (Pace::default(), Instant::from_micros(0), Vec::new());
        pace.set(rate);
        while now.as_micros() < seconds * 1_000_000 {
            let load = pace.allowed(now).min(Load { records: u64::MAX, bytes: 1 });
            assert!(load.records > 0, "allowed at the instant it names");
            sent.extend((0..load.records).map(|_| now.as_micros()));
            pace.spend(load, now);
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
        pace.spend(records(2), Instant::from_micros(0));
        assert_eq!(pace.allowed(Instant::from_micros(60_000_000)).records, 2);
    }

    #[test]
    fn what_goes_in_two_messages_at_one_instant_is_paid_for_twice() {
        let mut pace = Pace::default();
        pace.set(1000);
        let now = Instant::from_micros(7);
        pace.spend(records(20), now);
        pace.spend(records(11), now);
        assert_eq!(pace.next().since(now).as_micros(), 31 * 17_000 / 16);
    }

    #[test]
    fn zero_is_unlimited() {
        let mut pace = Pace::default();
        pace.spend(records(1 << 40), Instant::from_micros(0));
        assert_eq!(pace.allowed(Instant::from_micros(0)), Load { records: u64::MAX, bytes: u64::MAX });
    }

    #[test]
    fn the_least_of_what_is_told_and_configured_binds_and_bytes_are_paid_for_beside_records() {
        let second = |told, records, bytes| {
            let mut pace = Pace::new(records, bytes);
            pace.set(told);
            pace.in_a_second()
        };
        assert_eq!(second(0, 10, 0), Load { records: 10, bytes: u64::MAX });
        assert_eq!(second(5, 10, 0).records, 5);
        assert_eq!(second(20, 10, 700), Load { records: 10, bytes: 700 });
        let mut pace = Pace::new(1000, 3200);
        let now = Instant::from_micros(7);
        assert_eq!(pace.allowed(now), Load { records: 31, bytes: 100 });
        // A lone record above the slice is paid for as a whole.
        pace.spend(Load { records: 1, bytes: 3200 }, now);
        assert_eq!(pace.next().since(now).as_micros(), 17_000_000 / 16);
        assert_eq!(pace.allowed(now), Load::default());
    }
}
