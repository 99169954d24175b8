//! Is the far end still there? Owns the pings of one session and dies with it (firezone/firezone#4361). TCP alone
//! never tells (firezone/firezone#12248): a missed pong is *suspect*, `misses_max` of them in a row are *dead*.

use std::time::Duration;

use super::Timer;
use crate::config::Heartbeat;
use crate::status::Quality;
use crate::time::Instant;

/// RFC 6298 § 2.4.
const RTO_MIN: Duration = Duration::from_secs(1);
/// RFC 6298 § 2.5: a maximum may be placed, of at least 60 s.
const RTO_MAX: Duration = Duration::from_secs(60);
/// An adaptive interval grows by this share for each idle one that the path bore.
const GROWTH: u32 = 4;
/// And by this one where a longer one was lost before: from the half back to the whole takes 180 idle intervals, so
/// that looking for more costs a session in hours at most (mozilla-services/autopush#103).
const GROWTH_AFTER_LOSS: u32 = 256;

/// The ping interval that the path to an endpoint bears, as it is remembered: in ms, 0 where nothing is known; odd
/// where a longer one was lost.
pub(super) type Borne = u32;

/// The pulse of one session.
#[derive(Debug)]
pub(super) struct Liveness {
    pulse: Pulse,
    /// Pongs missed in a row.
    misses: u32,
    /// When the ping left whose pong gives a round trip; none where a pong could answer an earlier ping (Karn).
    measured_from: Option<Instant>,
    rtt: Option<RoundTrip>,
    borne: Borne,
    /// The ping on its way ended an idle interval; no longer once it was missed.
    after_idle: Option<AfterIdle>,
    /// The newest 32 pings, one bit each: set where the pong was late or never came.
    lost: u32,
    /// How many they are.
    pings: u8,
    /// A ping has left whose pong has not come.
    outstanding: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterIdle {
    /// So far no pong is late.
    Clean,
    /// One is, or the session's end follows from it.
    Missed,
}

/// RFC 6298 § 2.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
    /// The last one, and how many were measured.
    last: Duration,
    count: u32,
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

impl RoundTrip {
    fn first(sample: Duration) -> Self {
        Self { smoothed: sample, variation: sample / 2, last: sample, count: 1 }
    }

    fn and(self, sample: Duration) -> Self {
        let variation = self.variation * 3 / 4 + self.smoothed.abs_diff(sample) / 4;
        let smoothed = self.smoothed * 7 / 8 + sample / 8;
        Self { smoothed, variation, last: sample, count: self.count.wrapping_add(1) }
    }
}

impl Liveness {
    /// `borne` is what the path to this endpoint is known to bear.
    pub(super) fn new(limits: &Heartbeat, borne: Borne, now: Instant) -> Self {
        let mut liveness = Self {
            pulse: Pulse::Quiet { ping_at: now },
            misses: 0,
            measured_from: None,
            rtt: None,
            borne,
            after_idle: None,
            lost: 0,
            pings: 0,
            outstanding: false,
        };
        liveness.pulse = liveness.quiet(limits, now);
        liveness
    }

    /// Pongs missed in a row: the session is suspect.
    pub(super) fn misses(&self) -> u32 {
        self.misses
    }

    /// Smoothed round trip of the pings.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|rtt| rtt.smoothed)
    }

    /// The last round trip that was measured, and how many there were.
    pub(super) fn rtt_last(&self) -> Option<(Duration, u32)> {
        self.rtt.map(|rtt| (rtt.last, rtt.count))
    }

    /// When an answer is late (RFC 6298 § 2.3).
    pub(super) fn rto(&self) -> Option<Duration> {
        self.rtt.map(|rtt| (rtt.smoothed + rtt.variation * 4).clamp(RTO_MIN, RTO_MAX))
    }

    /// What the pings say of the path.
    pub(super) fn quality(&self) -> Quality {
        let ms = |part: fn(&RoundTrip) -> Duration| self.rtt.as_ref().map(|rtt| part(rtt).as_secs_f64() * 1000.0);
        Quality {
            rtt_ms: ms(|rtt| rtt.smoothed),
            rttvar_ms: ms(|rtt| rtt.variation),
            ping_loss: (self.pings > 0).then(|| f64::from(self.lost.count_ones()) / f64::from(self.pings)),
            bytes_per_s: None,
        }
    }

    /// What the path bears by now, to be remembered.
    pub(super) fn borne(&self) -> Borne {
        self.borne
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
            Pulse::Quiet { .. } | Pulse::Awaiting { .. } => self.quiet(limits, now),
            Pulse::Flushing { .. } => flushing(limits, now),
        };
    }

    /// The ping has left: only now does its pong's time run, lest a slow link kill itself with its own backlog.
    pub(super) fn on_ping_flushed(&mut self, limits: &Heartbeat, now: Instant) {
        let Pulse::Flushing { .. } = self.pulse else { return };
        self.pulse = Pulse::Awaiting { pong_by: now + Duration::from_millis(limits.timeout_ms) };
        self.measured_from = (self.misses == 0).then_some(now);
        self.outstanding = true;
    }

    pub(super) fn on_pong(&mut self, limits: &Heartbeat, now: Instant) {
        if let Some(from) = self.measured_from.take() {
            let sample = now.since(from);
            self.rtt = Some(self.rtt.map_or_else(|| RoundTrip::first(sample), |rtt| rtt.and(sample)));
        }
        if std::mem::take(&mut self.outstanding) {
            self.count(false);
        }
        if self.after_idle.take() == Some(AfterIdle::Clean) && limits.adaptive {
            self.grow(limits);
        }
        self.on_received(limits, now);
    }

    /// Ping now, rather than at the next interval? False where one is already on its way.
    pub(super) fn on_hint(&mut self, limits: &Heartbeat, now: Instant) -> bool {
        let quiet = matches!(self.pulse, Pulse::Quiet { .. });
        if quiet {
            self.after_idle = None;
            self.pulse = flushing(limits, now);
        }
        quiet
    }

    /// The deadline has passed.
    pub(super) fn on_timeout(&mut self, limits: &Heartbeat, now: Instant) -> Verdict {
        match self.pulse {
            Pulse::Quiet { .. } => self.after_idle = Some(AfterIdle::Clean),
            Pulse::Flushing { .. } => {
                self.halve(limits);
                return Verdict::Stuck;
            }
            Pulse::Awaiting { .. } => {
                self.measured_from = None;
                self.after_idle = self.after_idle.map(|_| AfterIdle::Missed);
                self.count(true);
                if self.misses + 1 >= limits.misses_max {
                    self.halve(limits);
                    return Verdict::NoPong;
                }
                self.misses += 1;
            }
        }
        self.pulse = flushing(limits, now);
        Verdict::Ping
    }

    /// The connection was reset, or given up by the system: at a ping that ended an idle interval, or in an idle
    /// interval that was longer than the shortest, whoever keeps a table of connections may have dropped this one.
    pub(super) fn on_lost(&mut self, limits: &Heartbeat, now: Instant) {
        if let Pulse::Quiet { ping_at } = self.pulse {
            let idle_ms = self.interval_ms(limits).saturating_sub(ping_at.since(now).as_millis() as u64);
            self.after_idle = (idle_ms >= limits.interval_ms).then_some(AfterIdle::Missed);
        }
        self.halve(limits);
    }

    fn count(&mut self, lost: bool) {
        self.lost = self.lost << 1 | u32::from(lost);
        self.pings = (self.pings + 1).min(32);
    }

    fn quiet(&self, limits: &Heartbeat, now: Instant) -> Pulse {
        Pulse::Quiet { ping_at: now + Duration::from_millis(self.interval_ms(limits)) }
    }

    fn interval_ms(&self, limits: &Heartbeat) -> u64 {
        if limits.adaptive { in_bounds(limits, self.borne.into()) } else { limits.interval_ms }
    }

    /// An idle interval came to its end, and the path still carried.
    fn grow(&mut self, limits: &Heartbeat) {
        let lost_before = self.borne & 1;
        let share = if lost_before == 1 { GROWTH_AFTER_LOSS } else { GROWTH };
        let interval_ms = self.interval_ms(limits);
        self.remember(in_bounds(limits, interval_ms + (interval_ms / u64::from(share)).max(2)), lost_before);
    }

    /// The silence after an idle interval: a binding on the way may have been forgotten.
    fn halve(&mut self, limits: &Heartbeat) {
        let interval_ms = self.interval_ms(limits);
        // At its shortest it is not the interval's fault.
        if self.after_idle.is_some() && limits.adaptive && interval_ms > limits.interval_ms {
            self.remember(in_bounds(limits, interval_ms / 2), 1);
        }
        // Once.
        self.after_idle = None;
    }

    fn remember(&mut self, interval_ms: u64, lost: Borne) {
        self.borne = u32::try_from(interval_ms).unwrap_or(u32::MAX) & !1 | lost;
    }
}

fn in_bounds(limits: &Heartbeat, interval_ms: u64) -> u64 {
    interval_ms.min(limits.interval_ms_max).max(limits.interval_ms)
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
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
        for s in 1..=100 {
            liveness.on_received(&LIMITS, at(s * 50));
            assert_eq!(liveness.deadline(), (at(s * 50 + 60), Timer::Heartbeat));
        }
    }

    #[test]
    fn the_pongs_time_runs_from_the_flush() {
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
        assert_eq!(liveness.on_timeout(&LIMITS, at(60)), Verdict::Ping);
        assert_eq!(liveness.deadline(), (at(150), Timer::Pong), "a stuck buffer is borne, but not for ever");
        liveness.on_ping_flushed(&LIMITS, at(100));
        assert_eq!(liveness.deadline(), (at(110), Timer::Pong));
    }

    #[test]
    fn a_missed_pong_is_suspect_and_three_in_a_row_are_dead() {
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
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
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
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
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
        assert_eq!(liveness.on_timeout(&LIMITS, at(60)), Verdict::Ping);
        assert_eq!(liveness.on_timeout(&LIMITS, at(150)), Verdict::Stuck);
    }

    #[test]
    fn a_hint_pings_once_however_often_it_comes() {
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
        assert!(liveness.on_hint(&LIMITS, at(5)));
        assert!(!liveness.on_hint(&LIMITS, at(5)));
        liveness.on_ping_flushed(&LIMITS, at(5));
        assert!(!liveness.on_hint(&LIMITS, at(6)));
        liveness.on_pong(&LIMITS, at(7));
        assert!(liveness.on_hint(&LIMITS, at(8)));
    }

    #[test]
    fn the_round_trip_is_smoothed_and_an_ambiguous_pong_is_no_measure() {
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
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

    #[test]
    fn round_trip_and_its_variation_are_as_in_rfc_6298() {
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
        assert_eq!(liveness.rto(), None);
        for (start, trip) in [(10, 4), (20, 8), (40, 4)] {
            liveness.on_hint(&LIMITS, at(start));
            liveness.on_ping_flushed(&LIMITS, at(start));
            liveness.on_pong(&LIMITS, at(start + trip));
        }
        // SRTT 4, 4.5, 4.4375; RTTVAR 2, 2.5, 2.
        let quality = liveness.quality();
        assert_eq!((quality.rtt_ms, quality.rttvar_ms), (Some(4437.5), Some(2000.0)));
        assert_eq!(liveness.rto(), Some(Duration::from_micros(12_437_500)));
    }

    #[test]
    fn the_timeout_from_the_round_trip_is_a_second_at_least_and_a_minute_at_most() {
        for (trip_ms, rto_s) in [(1, 1), (50, 1), (100_000, 60)] {
            let mut liveness = Liveness::new(&LIMITS, 0, at(0));
            liveness.on_hint(&LIMITS, at(5));
            liveness.on_ping_flushed(&LIMITS, at(5));
            liveness.on_pong(&LIMITS, at(5) + Duration::from_millis(trip_ms));
            assert_eq!(liveness.rto(), Some(Duration::from_secs(rto_s)));
        }
    }

    #[test]
    fn the_loss_is_that_of_the_last_32_pings() {
        let mut liveness = Liveness::new(&LIMITS, 0, at(0));
        assert_eq!(liveness.quality().ping_loss, None);
        let mut now = at(0);
        let mut ping = |liveness: &mut Liveness, lost: bool| {
            now = now + Duration::from_secs(100);
            liveness.on_hint(&LIMITS, now);
            liveness.on_ping_flushed(&LIMITS, now);
            if lost {
                assert_eq!(liveness.on_timeout(&LIMITS, now), Verdict::Ping);
                liveness.on_received(&LIMITS, now);
                liveness.on_ping_flushed(&LIMITS, now);
            }
            liveness.on_pong(&LIMITS, now);
        };
        ping(&mut liveness, false);
        assert_eq!(liveness.quality().ping_loss, Some(0.0));
        ping(&mut liveness, true); // one late, one in time
        assert_eq!(liveness.quality().ping_loss, Some(1.0 / 3.0));
        for _ in 0..29 {
            ping(&mut liveness, false);
        }
        assert_eq!(liveness.quality().ping_loss, Some(1.0 / 32.0));
        for _ in 0..2 {
            ping(&mut liveness, false);
        }
        assert_eq!(liveness.quality().ping_loss, Some(0.0));
    }

    const ADAPTIVE: Heartbeat = Heartbeat { adaptive: true, ..LIMITS };

    /// A path whose binding is forgotten after so long an idle time, for `days`. Sessions lost, pings sent, and what
    /// is remembered in the end. Each session goes on with what the one before it learned.
    fn idle_days(binding: Duration, days: u64) -> (u32, u32, Borne) {
        let (mut now, mut borne, mut losses, mut pings) = (at(0), 0, 0, 0);
        let end = at(days * 86_400);
        while now < end {
            let mut liveness = Liveness::new(&ADAPTIVE, borne, now);
            let mut life = now;
            loop {
                let (due, _) = liveness.deadline();
                let dead = due.since(life) > binding;
                now = due;
                match liveness.on_timeout(&ADAPTIVE, now) {
                    Verdict::Ping => {
                        pings += 1;
                        liveness.on_ping_flushed(&ADAPTIVE, now);
                        if !dead {
                            liveness.on_pong(&ADAPTIVE, now);
                            life = now;
                        }
                    }
                    Verdict::NoPong | Verdict::Stuck => {
                        losses += 1;
                        break;
                    }
                }
                borne = liveness.borne();
                assert!(u64::from(borne) <= ADAPTIVE.interval_ms_max + 1);
                if now >= end {
                    break;
                }
            }
            borne = liveness.borne();
        }
        (losses, pings, borne)
    }

    /// mozilla-services/autopush#103: an interval that adapts ran away, and took battery and data along.
    #[test]
    fn an_adaptive_interval_finds_what_the_path_bears_and_does_not_run_away() {
        // Borne whatever it is: at the upper bound within the first hours, and for ever.
        let (losses, pings, borne) = idle_days(Duration::from_secs(86_400), 30);
        assert_eq!((losses, borne), (0, 900_000));
        assert!(pings <= 30 * 96 + 20, "{pings}");
        // A NAT of five minutes: found, kept below, and what looking for more costs is a session now and then.
        let (losses, pings, borne) = idle_days(Duration::from_secs(300), 30);
        assert!((1..=4 * 30).contains(&losses), "{losses}");
        assert!((150_000..=300_001).contains(&borne), "{borne}");
        assert!(pings < 30 * 86_400 / 150, "{pings} against 43,200 of the shortest interval");
        // One that is shorter than the shortest interval: no more pings than without.
        let (_, _, borne) = idle_days(Duration::from_secs(30), 1);
        assert_eq!(borne, 0);
    }

    #[test]
    fn a_reset_where_it_was_idle_is_held_against_the_interval_once() {
        // A balancer that forgets after 350 s answers the next ping with RST, or closes by itself.
        for at_ping in [true, false] {
            let mut liveness = Liveness::new(&ADAPTIVE, 400_000, at(0));
            if at_ping {
                assert_eq!(liveness.on_timeout(&ADAPTIVE, at(400)), Verdict::Ping);
                liveness.on_ping_flushed(&ADAPTIVE, at(400));
            }
            liveness.on_lost(&ADAPTIVE, at(if at_ping { 401 } else { 350 }));
            assert_eq!(liveness.borne(), 200_001, "at_ping={at_ping}");
        }
        let mut liveness = Liveness::new(&ADAPTIVE, 400_000, at(0));
        liveness.on_lost(&ADAPTIVE, at(30));
        assert_eq!(liveness.borne(), 400_000, "in mid-traffic");
    }

    #[test]
    fn only_silence_after_an_idle_interval_is_held_against_it() {
        let mut liveness = Liveness::new(&ADAPTIVE, 400_000, at(0));
        assert_eq!(liveness.deadline().0, at(400));
        // A hint's ping: the path was in use a moment ago.
        assert!(liveness.on_hint(&ADAPTIVE, at(10)));
        for miss in 1..=3 {
            liveness.on_ping_flushed(&ADAPTIVE, at(10 * miss));
            liveness.on_timeout(&ADAPTIVE, at(10 + 10 * miss));
        }
        assert_eq!(liveness.borne(), 400_000);
        // Without `adaptive` nothing is learned, and nothing of it heeded.
        let mut liveness = Liveness::new(&LIMITS, 400_000, at(0));
        assert_eq!(liveness.deadline().0, at(60));
        liveness.on_timeout(&LIMITS, at(60));
        liveness.on_ping_flushed(&LIMITS, at(60));
        liveness.on_pong(&LIMITS, at(61));
        assert_eq!(liveness.borne(), 400_000);
    }
}
