//! Figures that need a past: how many a second, and how long things took, in buckets.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Instant;

/// Events a second over about the last [`Rate::MEMORY`]: each counts for less as it ages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    per_s: f64,
    at: Instant,
    total: u64,
}

impl Rate {
    /// After so long an event counts for 1/e of what it did.
    pub const MEMORY: Duration = Duration::from_secs(10);

    /// There have been `total` events so far.
    pub fn count(&mut self, total: u64, now: Instant) {
        let new = total.saturating_sub(self.total) as f64;
        self.per_s = Self::aged(self.per_s, now.since(self.at)) + new / Self::MEMORY.as_secs_f64();
        (self.total, self.at) = (total, now);
    }

    /// As it was counted last.
    pub const fn per_s(&self) -> f64 {
        self.per_s
    }

    /// A rate after so long without an event; 0 where nobody would see the rest.
    pub fn aged(per_s: f64, by: Duration) -> f64 {
        let aged = per_s * (-by.as_secs_f64() / Self::MEMORY.as_secs_f64()).exp();
        if aged < 0.005 { 0.0 } else { aged }
    }
}

/// Counts of durations by size since the process started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many took at most [`Histogram::BOUNDS_S`] of the same place and more than the one before; the last one counts
    /// those that took longer than all.
    pub counts: [u64; Histogram::BOUNDS_S.len() + 1],
    /// All durations together.
    pub sum_s: f64,
}

impl Histogram {
    /// Upper ends of the buckets, in seconds: from a sync of good flash to a backlog of a day.
    pub const BOUNDS_S: [f64; 17] =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 300.0, 3600.0, 86_400.0];

    /// One more.
    pub fn push(&mut self, took: Duration) {
        let took_s = took.as_secs_f64();
        let place = Self::BOUNDS_S.iter().position(|bound| took_s <= *bound).unwrap_or(Self::BOUNDS_S.len());
        self.counts[place] += 1;
        self.sum_s += took_s;
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// How long things took, in buckets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histograms {
    /// Syncs of the outbox's files.
    pub sync: Histogram,
    /// Round trips of the pings.
    pub rtt: Histogram,
    /// From a put to its ack from upstream, of a sample of the records.
    pub put_to_delivered: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    #[test]
    fn a_rate_comes_to_what_is_steady_and_falls_to_nothing() {
        let mut rate = Rate::default();
        for s in 1..=100 {
            rate.count(s * 7, at(s));
        }
        assert!((7.0..7.5).contains(&rate.per_s()), "{}", rate.per_s());
        let after = |s| Rate::aged(rate.per_s(), Duration::from_secs(s));
        assert!((2.4..2.9).contains(&after(10)), "{}", after(10));
        assert_eq!(after(3600), 0.0);
        // A counter that begins anew is no event.
        rate.count(0, at(101));
        assert!(rate.per_s() < 7.0);
        rate.count(3, at(1101));
        assert_eq!(rate.per_s(), 0.3);
    }

    #[test]
    fn a_duration_falls_into_the_bucket_that_ends_at_it() {
        let mut histogram = Histogram::default();
        for ms in [0, 1, 2, 100_000_000_000] {
            histogram.push(Duration::from_millis(ms));
        }
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[17]), (2, 1, 1));
        assert_eq!((histogram.count(), histogram.sum_s), (4, 100_000_000.003));
        assert!(Histogram::BOUNDS_S.is_sorted());
    }
}
