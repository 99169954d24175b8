//! The bytes of a day on a metered link: how many went over the wire in the last 24 hours, and whether that is all that
//! may. Pure: it is told what the meter shows and what time it is.

use serde::{Deserialize, Serialize};

use crate::time::Instant;

const HOUR_US: u64 = 3_600_000_000;
/// The hour that runs and the 24 before it: what they add up to covers any 24 hours.
const HOURS: usize = 25;
/// What is kept lags behind by no more than this share of what may be spent, or by so many bytes.
const KEPT_SHARE: u64 = 256;
const KEPT_BYTES_MIN: u64 = 65_536;

/// What outlives the process: a restart must not have a fresh day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Saved {
    /// The hour that runs, on the clock of this boot.
    hour: u64,
    /// Bytes of it and of those before it.
    bytes: Vec<u64>,
}

/// The count.
#[derive(Debug, Clone, Default)]
pub struct Cap {
    /// 0: any number.
    bytes_per_day_max: u64,
    hour: u64,
    bytes: [u64; HOURS],
    /// The meter, as told last.
    seen: u64,
    spent: bool,
    /// Not yet kept.
    unsaved: u64,
}

impl Cap {
    /// So many bytes in any 24 hours, 0: any number.
    pub fn new(bytes_per_day_max: u64) -> Self {
        Self { bytes_per_day_max, ..Self::default() }
    }

    /// Less what an earlier process of this boot has spent.
    #[must_use]
    pub fn with(mut self, saved: Saved) -> Self {
        self.hour = saved.hour;
        for (own, bytes) in self.bytes.iter_mut().zip(saved.bytes) {
            *own = bytes;
        }
        self.spent = self.is_over();
        self
    }

    /// So many from now on; what is spent is spent.
    pub(super) const fn set_max(&mut self, bytes_per_day_max: u64) {
        self.bytes_per_day_max = bytes_per_day_max;
    }

    /// The meter shows so many bytes since the process started. True where that is worth keeping.
    pub(super) fn handle_wire(&mut self, total: u64, now: Instant) -> bool {
        self.turn(now);
        let more = total.saturating_sub(self.seen);
        self.seen = total;
        self.bytes[0] = self.bytes[0].saturating_add(more);
        self.unsaved += more;
        let worth = if self.bytes_per_day_max == 0 { u64::MAX } else { self.bytes_per_day_max / KEPT_SHARE };
        let keep = self.unsaved >= worth.clamp(1, KEPT_BYTES_MIN) || more > 0 && self.is_over() != self.spent;
        if keep {
            self.unsaved = 0;
        }
        keep
    }

    /// Whether the day's bytes are spent, where that has changed.
    pub(super) fn poll_change(&mut self, now: Instant) -> Option<bool> {
        self.turn(now);
        let spent = self.is_over();
        (std::mem::replace(&mut self.spent, spent) != spent).then_some(spent)
    }

    /// The day's bytes are spent.
    pub(super) const fn is_spent(&self) -> bool {
        self.spent
    }

    /// When an hour falls out of the day that may change that.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.spent.then(|| Instant::from_micros((self.hour + 1) * HOUR_US))
    }

    /// Of the last 24 hours, and up to one more.
    pub(super) fn day_bytes(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What may be spent in a day; 0: any number.
    pub const fn bytes_per_day_max(&self) -> u64 {
        self.bytes_per_day_max
    }

    /// For the next process.
    pub(super) fn saved(&self) -> Saved {
        Saved { hour: self.hour, bytes: self.bytes.to_vec() }
    }

    fn is_over(&self) -> bool {
        self.bytes_per_day_max > 0 && self.day_bytes() >= self.bytes_per_day_max
    }

    fn turn(&mut self, now: Instant) {
        let hour = now.as_micros() / HOUR_US;
        // A file that is of a later hour than it is now is not of this boot.
        let passed = if hour < self.hour { HOURS } else { usize::try_from(hour - self.hour).unwrap_or(HOURS) };
        if passed > 0 {
            let gone = passed.min(HOURS);
            self.bytes.copy_within(..HOURS - gone, gone);
            self.bytes[..gone].fill(0);
            self.hour = hour;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(minutes: u64) -> Instant {
        Instant::from_micros(minutes * 60_000_000)
    }

    #[test]
    fn no_24_hours_hold_more_than_the_cap_wherever_they_begin() {
        // As much as is allowed, in lumps of a tenth, through a week; looked at in minutes.
        let mut random = fastrand::Rng::with_seed(3);
        let mut cap = Cap::new(1000);
        let (mut total, mut sent) = (0, Vec::new());
        for minute in 600..600 + 7 * 1440 {
            cap.poll_change(at(minute));
            if !cap.is_spent() && random.u8(..30) == 0 {
                total += 100;
                sent.push(minute);
            }
            cap.handle_wire(total, at(minute));
            cap.poll_change(at(minute));
        }
        assert!(sent.len() >= 60, "the cap is used: {}", sent.len());
        for (first, eleventh) in sent.iter().zip(sent.iter().skip(10)) {
            assert!(eleventh - first > 1440, "{first} {eleventh}");
        }
    }

    #[test]
    fn what_is_spent_is_told_once_and_ends_when_its_hour_is_a_day_old() {
        let mut cap = Cap::new(1000);
        assert!(cap.handle_wire(999, at(90)));
        assert_eq!((cap.poll_change(at(90)), cap.poll_timeout()), (None, None));
        cap.handle_wire(1000, at(95));
        assert_eq!((cap.poll_change(at(95)), cap.poll_change(at(96))), (Some(true), None));
        // Its hour ends at 120, and a day later it is over.
        let mut now = at(96);
        let mut turns = 0;
        while let Some(due) = cap.poll_timeout() {
            assert!(due > now && due.since(now) <= HOUR);
            now = due;
            turns += 1;
            if cap.poll_change(now) == Some(false) {
                break;
            }
        }
        assert_eq!((now, turns), (at(120 + 1440), 25));
    }

    #[test]
    fn a_restart_has_no_fresh_day_and_a_reboot_has() {
        let mut cap = Cap::new(1000);
        cap.handle_wire(1200, at(600));
        let saved = cap.saved();
        let mut again = Cap::new(1000).with(saved.clone());
        assert_eq!((again.is_spent(), again.poll_change(at(610)), again.day_bytes()), (true, None, 1200));
        assert_eq!(again.poll_change(at(600 + 1500)), Some(false));
        let mut rebooted = Cap::new(1000).with(saved);
        assert_eq!((rebooted.poll_change(at(5)), rebooted.day_bytes()), (Some(false), 0));
        let damaged = Saved { hour: u64::MAX, bytes: vec![u64::MAX; 99] };
        let mut cap = Cap::new(1000).with(damaged);
        assert_eq!(cap.poll_change(at(5)), Some(false));
    }

    #[test]
    fn without_a_cap_bytes_are_counted_and_nothing_is_ever_spent() {
        let mut cap = Cap::new(0);
        for minute in 0..100 {
            cap.handle_wire(minute << 30, at(minute));
            assert_eq!(cap.poll_change(at(minute)), None);
        }
        assert_eq!(cap.day_bytes(), 99 << 30);
    }
}
