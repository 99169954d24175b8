//! What happened at the door, second by second, for ten minutes. Pure: time is an argument; who looks at it is no
//! concern of it. Nothing wakes it: seconds in which nothing happened are filled in when something does, or when
//! someone looks.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;

use super::door::Counts;
use crate::time::Instant;

/// Seconds that are remembered.
pub const SECONDS_MAX: usize = 600;

/// One second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Second {
    attempts: u32,
    /// Told to come back, or reset.
    refused: u32,
    /// At its end.
    sessions: u32,
}

/// The counters, and their last ten minutes.
#[derive(Debug)]
pub struct Meter {
    /// Complete ones, the oldest first; the next is `current`.
    past: VecDeque<Second>,
    current: Second,
    /// Which second `current` is, since boot.
    number: u64,
    counts: Counts,
    /// Devices that there are, as far as is known.
    devices: u64,
}

/// What a line on a terminal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    sessions: u32,
    attempts_per_s: u32,
    refused_per_s: u32,
    queue_ms: u64,
}

/// `/fleet.json`.
#[derive(Serialize)]
struct Fleet<'a> {
    sessions: u32,
    /// Ever seen: by the store, or at once.
    devices: u64,
    accept_rate: Option<u32>,
    queue_ms: u64,
    attempts: u64,
    refused: u64,
    dropped: u64,
    /// Attempts, turned away (refused or dropped), and sessions at the end, of each second; the newest last.
    seconds: &'a [[u32; 3]],
}

impl Meter {
    /// Nothing has happened yet. The store knows so many devices.
    pub fn new(devices: u64, now: Instant) -> Self {
        let past = VecDeque::with_capacity(SECONDS_MAX);
        Self { past, current: Second::default(), number: second(now), counts: Counts::default(), devices }
    }

    /// So it is now; called whenever something may have changed. True where something has.
    pub fn handle_counts(&mut self, counts: Counts, sessions: usize, now: Instant) -> bool {
        self.advance(now);
        let before = (self.counts, self.current.sessions);
        let refused = |counts: Counts| counts.refused + counts.dropped;
        let add = |sum: &mut u32, more: u64| *sum = sum.saturating_add(clamp(more));
        add(&mut self.current.attempts, counts.attempts - self.counts.attempts);
        add(&mut self.current.refused, refused(counts) - refused(self.counts));
        self.current.sessions = clamp(sessions as u64);
        self.counts = counts;
        self.devices = self.devices.max(sessions as u64);
        before != (self.counts, self.current.sessions)
    }

    /// The last complete second.
    pub fn glance(&mut self, queue_ms: u64, now: Instant) -> Glance {
        self.advance(now);
        let last = self.past.back().copied().unwrap_or_default();
        let Second { attempts, refused, .. } = last;
        let sessions = self.current.sessions;
        Glance { sessions, attempts_per_s: attempts, refused_per_s: refused, queue_ms }
    }

    /// When the current second is over: the time for the next glance.
    pub fn glance_at(&self) -> Instant {
        Instant::from_micros((self.number + 1) * 1_000_000)
    }

    /// All that is remembered, as JSON.
    pub fn json(&mut self, accept_rate: Option<u32>, queue_ms: u64, now: Instant) -> String {
        self.advance(now);
        let seconds: Vec<_> =
            self.past.iter().map(|second| [second.attempts, second.refused, second.sessions]).collect();
        let Counts { attempts, refused, dropped } = self.counts;
        let (sessions, devices) = (self.current.sessions, self.devices);
        let fleet = Fleet { sessions, devices, accept_rate, queue_ms, attempts, refused, dropped, seconds: &seconds };
        serde_json::to_string(&fleet).expect("numbers are JSON")
    }

    fn advance(&mut self, now: Instant) {
        let number = second(now);
        let passed = number.saturating_sub(self.number).min(SECONDS_MAX as u64 + 1);
        for _ in 0..passed {
            if self.past.len() >= SECONDS_MAX {
                self.past.pop_front();
            }
            self.past.push_back(self.current);
            self.current = Second { sessions: self.current.sessions, ..Second::default() };
        }
        self.number = self.number.max(number);
    }
}

impl Glance {
    /// Nothing happens, and nobody is waited for.
    pub fn is_quiet(&self) -> bool {
        (self.attempts_per_s, self.refused_per_s, self.queue_ms) == (0, 0, 0)
    }
}

impl fmt::Display for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sessions, attempts_per_s, refused_per_s, queue_ms } = self;
        let (queue_s, tenths) = (queue_ms / 1000, queue_ms % 1000 / 100);
        write!(f, "sessions {sessions:>6}  attempts {attempts_per_s:>5}/s  refused {refused_per_s:>5}/s  ")?;
        write!(f, "virtual queue {queue_s}.{tenths} s")
    }
}

fn second(now: Instant) -> u64 {
    now.as_millis() / 1000
}

fn clamp(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_micros(5_000_000 + ms * 1000)
    }

    fn counts(attempts: u64, refused: u64, dropped: u64) -> Counts {
        Counts { attempts, refused, dropped }
    }

    fn seconds(meter: &mut Meter, now: Instant) -> Vec<[u32; 3]> {
        let json: serde_json::Value = serde_json::from_str(&meter.json(None, 0, now)).unwrap();
        serde_json::from_value(json["seconds"].clone()).unwrap()
    }

    #[test]
    fn each_second_has_what_happened_in_it() {
        let mut meter = Meter::new(0, at(0));
        meter.handle_counts(counts(3, 1, 0), 2, at(100));
        meter.handle_counts(counts(5, 1, 1), 4, at(900));
        meter.handle_counts(counts(6, 1, 1), 5, at(3_500));
        assert_eq!(seconds(&mut meter, at(4_000)), [[5, 2, 4], [0, 0, 4], [0, 0, 4], [1, 0, 5]]);
        assert_eq!(
            meter.glance(1_250, at(4_100)).to_string(),
            "sessions      5  attempts     1/s  refused     0/s  virtual queue 1.2 s"
        );
        assert!(!meter.glance(1, at(9_000)).is_quiet() && meter.glance(0, at(9_000)).is_quiet());
    }

    #[test]
    fn ten_minutes_are_remembered_and_no_more_whatever_passes() {
        let mut meter = Meter::new(7, at(0));
        let capacity = meter.past.capacity();
        for ms in (0..2_000_000).step_by(500) {
            meter.handle_counts(counts(ms, ms / 2, 0), 1, at(ms));
        }
        assert_eq!(seconds(&mut meter, at(2_000_000)).len(), SECONDS_MAX);
        // A machine that slept for a year.
        let year = 31_536_000_000;
        assert_eq!(seconds(&mut meter, at(year)), [[0, 0, 1]; SECONDS_MAX]);
        assert_eq!(meter.past.capacity(), capacity);
        let json = meter.json(Some(9), 5, at(year));
        assert!(json.len() < 16_384 && json.contains("\"devices\":7") && json.contains("\"accept_rate\":9"), "{json}");
    }

    #[test]
    fn a_clock_that_stands_still_counts_on() {
        let mut meter = Meter::new(0, at(5_000));
        meter.handle_counts(counts(1, 0, 0), 1, at(4_000));
        meter.handle_counts(counts(2, 0, 0), 1, at(5_000));
        assert_eq!(seconds(&mut meter, at(6_000)), [[2, 0, 1]]);
    }
}
