//! Is the far end still there? Owns the pings of one session and dies with it (firezone/firezone#4361). TCP alone
//! never tells (firezone/firezone#12248): a missed pong is *suspect*, `misses_max` of them in a row are *dead*.

use std::time::Duration;

use super::Timer;
use crate::config::Heartbeat;
use crate::time::Instant;

/// The pulse of one session.
#[derive(Debug)]
pub(super) struct Liveness {
    pulse: Pulse,
    /// Pongs missed in a row.
    misses: u32,
    /// When the ping left whose pong gives a round trip; none where a pong could answer an earlier ping (Karn).
    measured_from: Option<Instant>,
    /// Smoothed round trip (RFC 6298 § 2).
    rtt: Option<Duration>,
}

#[derive(Debug)]
enum Pulse {
    /// Life was seen; the next ping is due at this instant.
    Quiet { ping_at: Instant },
    /// A ping was asked for and waits in the send buffer, not for ever.
    Flushing { until: Instant },
    /// The ping has left; its pong is due.
    Awaiting { pong_by: Instant },
}

/// What a deadline led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send a ping.
    Ping,
    /// Too many pongs missed.
    NoPong,
    /// The ping did not even leave the send buffer.
    Stuck,
}

impl Liveness {
    pub(super) fn new(limits: &Heartbeat, now: Instant) -> Self {
        Self { pulse: quiet(limits, now), misses: 0, measured_from: None, rtt: None }
    }

    /// Pongs missed in a row.
    pub(super) fn misses(&self) -> u32 {
        self.misses
    }

    /// Smoothed round trip of the pings.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// There is always one.
    pub(super) fn deadline(&self) -> (Instant, Timer) {
        match self.pulse {
            Pulse::Quiet { ping_at } => (ping_at, Timer::Heartbeat),
            Pulse::Flushing { until } => (until, Timer::Pong),
            Pulse::Awaiting { pong_by } => (pong_by, Timer::Pong),
        }
    }

    /// Any bytes are life.
    pub(super) fn on_received(&mut self, limits: &Heartbeat, now: Instant) {
        self.misses = 0;
        self.pulse = match self.pulse {
            Pulse::Quiet { .. } | Pulse::Awaiting { .. } => quiet(limits, now),
            Pulse::Flushing { .. } => flushing(limits, now),
        };
    }

    /// The ping has left: only now does its pong's time run, lest a slow link kill itself with its own backlog.
    pub(super) fn on_ping_flushed(&mut self, limits: &Heartbeat, now: Instant) {
        let Pulse::Flushing { .. } = self.pulse else { return };
        self.pulse = Pulse::Awaiting { pong_by: now + Duration::from_millis(limits.timeout_ms) };
        self.measured_from = (self.misses == 0).then_some(now);
    }

    pub(super) fn on_pong(&mut self, limits: &Heartbeat, now: Instant) {
        if let Some(from) = self.measured_from.take() {
            let sample = now.since(from);
            self.rtt = Some(self.rtt.map_or(sample, |rtt| rtt * 7 / 8 + sample / 8));
        }
        self.on_received(limits, now);
    }

    /// Ping now, rather than at the next interval? False where one is already on its way.
    pub(super) fn on_hint(&mut self, limits: &Heartbeat, now: Instant) -> bool {
        let quiet = matches!(self.pulse, Pulse::Quiet { .. });
        if quiet {
            self.pulse = flushing(limits, now);
        }
        quiet
    }

    /// The deadline has passed.
    pub(super) fn on_timeout(&mut self, limits: &Heartbeat, now: Instant) -> Verdict {
        match self.pulse {
            Pulse::Quiet { .. } => {}
            Pulse::Flushing { .. } => return Verdict::Stuck,
            Pulse::Awaiting { .. } => {
                self.measured_from = None;
                if self.misses + 1 >= limits.misses_max {
                    return Verdict::NoPong;
                }
                self.misses += 1;
            }
        }
        self.pulse = flushing(limits, now);
        Verdict::Ping
    }
}

fn quiet(limits: &Heartbeat, now: Instant) -> Pulse {
    Pulse::Quiet { ping_at: now + Duration::from_millis(limits.interval_ms) }
}

/// A ping may wait in the send buffer for as long as a silent far end would be borne.
fn flushing(limits: &Heartbeat, now: Instant) -> Pulse {
    let silence_ms = limits.timeout_ms.saturating_mul(u64::from(limits.misses_max)).saturating_add(limits.interval_ms);
    Pulse::Flushing { until: now + Duration::from_millis(silence_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Heartbeat =
        Heartbeat { interval_ms: 60_000, timeout_ms: 10_000, misses_max: 3, adaptive: false, interval_ms_max: 900_000 };

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    #[test]
    fn data_postpones_the_ping() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        for s in 1..=100 {
            liveness.on_received(&LIMITS, at(s * 50));
            assert_eq!(liveness.deadline(), (at(s * 50 + 60), Timer::Heartbeat));
        }
    }

    #[test]
    fn the_pongs_time_runs_from_the_flush() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        assert_eq!(liveness.on_timeout(&LIMITS, at(60)), Verdict::Ping);
        assert_eq!(liveness.deadline(), (at(150), Timer::Pong), "a stuck buffer is borne, but not for ever");
        liveness.on_ping_flushed(&LIMITS, at(100));
        assert_eq!(liveness.deadline(), (at(110), Timer::Pong));
    }

    #[test]
    fn a_missed_pong_is_suspect_and_three_in_a_row_are_dead() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        assert_eq!(liveness.on_timeout(&LIMITS, at(60)), Verdict::Ping);
        liveness.on_ping_flushed(&LIMITS, at(60));
        for miss in 1..=2 {
            assert_eq!(liveness.on_timeout(&LIMITS, at(60 + miss * 10)), Verdict::Ping, "again, at once");
            assert_eq!(u64::from(liveness.misses()), miss);
            liveness.on_ping_flushed(&LIMITS, at(60 + miss * 10));
        }
        assert_eq!(liveness.on_timeout(&LIMITS, at(90)), Verdict::NoPong);
    }

    #[test]
    fn any_byte_between_two_misses_starts_the_count_over() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        for round in 1..=20 {
            let (verdict, now) = (liveness.on_timeout(&LIMITS, at(round * 100)), at(round * 100));
            assert_eq!(verdict, Verdict::Ping, "round {round}");
            liveness.on_ping_flushed(&LIMITS, now);
            if round % 2 == 0 {
                liveness.on_received(&LIMITS, now);
                assert_eq!(liveness.misses(), 0);
            }
        }
    }

    #[test]
    fn a_ping_that_never_leaves_is_dead_too() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        assert_eq!(liveness.on_timeout(&LIMITS, at(60)), Verdict::Ping);
        assert_eq!(liveness.on_timeout(&LIMITS, at(150)), Verdict::Stuck);
    }

    #[test]
    fn a_hint_pings_once_however_often_it_comes() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        assert!(liveness.on_hint(&LIMITS, at(5)));
        assert!(!liveness.on_hint(&LIMITS, at(5)));
        liveness.on_ping_flushed(&LIMITS, at(5));
        assert!(!liveness.on_hint(&LIMITS, at(6)));
        liveness.on_pong(&LIMITS, at(7));
        assert!(liveness.on_hint(&LIMITS, at(8)));
    }

    #[test]
    fn the_round_trip_is_smoothed_and_an_ambiguous_pong_is_no_measure() {
        let mut liveness = Liveness::new(&LIMITS, at(0));
        let ping = |liveness: &mut Liveness, s| {
            liveness.on_hint(&LIMITS, at(s));
            liveness.on_ping_flushed(&LIMITS, at(s));
        };
        ping(&mut liveness, 10);
        liveness.on_received(&LIMITS, at(12)); // the shell reports the bytes, then what they were
        liveness.on_pong(&LIMITS, at(12));
        assert_eq!(liveness.rtt(), Some(Duration::from_secs(2)));
        ping(&mut liveness, 20);
        liveness.on_pong(&LIMITS, at(30));
        assert_eq!(liveness.rtt(), Some(Duration::from_secs(3)), "7/8 · 2 s + 1/8 · 10 s");
        ping(&mut liveness, 40);
        assert_eq!(liveness.on_timeout(&LIMITS, at(50)), Verdict::Ping);
        liveness.on_ping_flushed(&LIMITS, at(50));
        liveness.on_pong(&LIMITS, at(51));
        assert_eq!(liveness.rtt(), Some(Duration::from_secs(3)), "whose pong was it?");
    }
}
