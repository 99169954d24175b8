//! Says how far it is: a line that is written over on a terminal, one now and then elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::engine::Counts;

/// How far a phase is.
pub struct Progress {
    name: &'static str,
    units: u64,
    begun: Instant,
    distinct_before: u64,
    /// Distinct states to reach and instant to end at: whichever is sooner says how long it takes still.
    enough: u64,
    deadline: Instant,
    said: Mutex<Instant>,
    interval: Duration,
    on_terminal: bool,
}

impl Progress {
    /// Of a phase with so many units.
    pub fn new(name: &'static str, units: u64, counts: &Counts, enough: u64, deadline: Instant) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let interval = Duration::from_secs(if on_terminal { 1 } else { 30 });
        let distinct_before = counts.distinct.load(Ordering::Relaxed);
        let begun = Instant::now();
        Self { name, units, begun, distinct_before, enough, deadline, said: Mutex::new(begun), interval, on_terminal }
    }

    /// A unit is done.
    pub fn tick(&self, counts: &Counts, unit: u64) {
        let Ok(mut said) = self.said.try_lock() else { return };
        if said.elapsed() < self.interval {
            return;
        }
        *said = Instant::now();
        let distinct = counts.distinct.load(Ordering::Relaxed);
        let rate = (distinct - self.distinct_before) as f64 / self.begun.elapsed().as_secs_f64();
        let to_enough = Duration::from_secs_f64(self.enough.saturating_sub(distinct) as f64 / rate.max(1.0));
        let left = to_enough.min(self.deadline.saturating_duration_since(*said)).as_secs();
        let share = distinct as f64 / self.enough as f64;
        let bar: String = (0..20).map(|step| if share * 20.0 > f64::from(step) { '#' } else { '.' }).collect();
        let line = format!(
            "[{bar}] {:5.1} % {}: string {unit} of {}, {distinct} distinct, {rate:.0}/s, {}:{:02}:{:02} left",
            share.min(1.0) * 100.0,
            self.name,
            self.units,
            left / 3600,
            left / 60 % 60,
            left % 60
        );
        let mut stderr = std::io::stderr().lock();
        let _ = if self.on_terminal { write!(stderr, "\r\x1b[K{line}") } else { writeln!(stderr, "{line}") };
    }

    /// The phase is over: its line stays.
    pub fn finish(&self, line: &str) {
        let begin = if self.on_terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(std::io::stderr().lock(), "{begin}{line}");
    }
}
