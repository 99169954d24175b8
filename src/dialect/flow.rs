//! What the path bears: how fast it delivers, and how much may be on it. Knows costs and instants, nothing of lanes.
//!
//! The rate is measured as BBR's delivery rate is (Cardwell et al., draft-ietf-ccwg-bbr): what was acked since the
//! last ack before a message left, over the time since then. What is on the way at once is bounded by what the path
//! delivers in its shortest round trip and [`QUEUE`]: so a link of 2 kB/s has 4 kB before it when an alarm comes, and
//! not a window. A window that follows the rate so still finds out where there is more: a round trip that is not yet
//! full carries twice as much the next time.
//!
//! What an ack says of the path, the pong to a ping behind the data says as well, and says it of a server that is slow to
//! store: before the first ack, and where acks lag, the path is measured by pongs. Not by what the kernel still holds:
//! behind a proxy its queue is empty at once.

use std::time::Duration;

use super::cursor::{Load, RECORD_COST};
use crate::time::Instant;

/// What is on the way beyond one round trip, as time: enough for a server that acks once a second, and what a record
/// that is put now waits for.
const QUEUE: Duration = Duration::from_secs(2);
/// The first message of a connection is so much smaller than what may be on the way: its round trip shows how long the
/// path is, not how slow.
const FIRST_PARTS: u64 = 8;
/// An ack that is later than the queue explains by so much, and so many round trips, says that the far end lags.
const LAG: Duration = Duration::from_secs(1);
const LAG_ROUND_TRIPS: u32 = 4;
/// What was measured for so long is no accident: a path that got much slower is believed at once.
const LONG: Duration = Duration::from_secs(4);
/// No ack for so long beyond what the path explains: a server may be slower to store than protocol rule 4 allows.
const PATIENCE: Duration = Duration::from_millis(1500);
/// No pong for so long beyond what the path explains: it was skipped for another ping's (RFC 6455 § 5.5.3).
const PONG_PATIENCE: Duration = Duration::from_secs(10);
/// Shorter is not measured: a rate over less says nothing.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// When a message left, and how much had been delivered by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    sent_at: Instant,
    delivered: u64,
    delivered_at: Instant,
    /// There was nothing more to send: it shows what was put, not what the path bears.
    limited: bool,
}

/// The measure of one connection.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    /// On the way at most, before anything is known.
    start_bytes: u64,
    /// A batch takes no longer.
    batch_max: Duration,
    /// Delivered since the connection began, and when it was last.
    delivered: u64,
    delivered_at: Instant,
    /// On the way.
    flight: u64,
    /// While `delivered` is below, what leaves is limited by what was put.
    limited_until: u64,
    /// Bytes a second.
    rate: Option<u64>,
    /// From a message to its ack, the shortest.
    round_trip: Option<Duration>,
    /// Unacked at most while the far end lags (additive increase, multiplicative decrease).
    brake: u64,
    braked_at: Instant,
}

impl Flow {
    pub(super) fn new(start_bytes: u32, batch_max: Duration, now: Instant) -> Self {
        Self {
            start_bytes: start_bytes.into(),
            batch_max,
            delivered: 0,
            delivered_at: now,
            flight: 0,
            limited_until: 0,
            rate: None,
            round_trip: None,
            brake: u64::MAX,
            braked_at: now,
        }
    }

    /// Bytes a second that the path delivers, where that is known.
    pub(super) const fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// A message leaves.
    pub(super) fn on_sent(&mut self, load: Load, now: Instant) -> Stamp {
        if self.flight == 0 {
            self.delivered_at = now;
        }
        self.flight += load.cost();
        Stamp {
            sent_at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            limited: self.delivered < self.limited_until,
        }
    }

    /// So much has arrived, the message with this stamp last.
    pub(super) fn on_arrived(&mut self, load: Load, stamp: Stamp, now: Instant) {
        if load.cost() == 0 {
            return;
        }
        self.flight = self.flight.saturating_sub(load.cost());
        self.delivered += load.cost();
        self.delivered_at = now;
        let interval = now.since(stamp.delivered_at).max(INTERVAL_MIN);
        let micros = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        let sample = (self.delivered - stamp.delivered).saturating_mul(1_000_000) / micros;
        self.rate = match self.rate {
            Some(rate) if sample > rate => Some(rate + (sample - rate).div_ceil(2)),
            rate if stamp.limited => rate,
            Some(_) if interval >= LONG => Some(sample.max(1)),
            Some(rate) => Some((rate - (rate - sample) / 4).max(1)),
            None => Some(sample.max(1)),
        };
        let delay = now.since(stamp.sent_at);
        self.round_trip = Some(self.round_trip.map_or(delay, |known| known.min(delay)));
    }

    /// The message with this stamp was acked, and has arrived.
    pub(super) fn on_acked(&mut self, stamp: Stamp, now: Instant) {
        let Some(round_trip) = self.round_trip else { return };
        let delay = now.since(stamp.sent_at);
        if delay > QUEUE + LAG + round_trip * LAG_ROUND_TRIPS {
            // Once for all that was on the way then.
            if stamp.sent_at >= self.braked_at {
                self.braked_at = now;
                self.brake = (self.unbraked().min(self.brake) / 10 * 7).max(self.batch_bytes());
            }
        } else if self.brake != u64::MAX {
            self.brake = self.brake.saturating_add(self.batch_bytes());
            if self.brake >= self.unbraked() {
                self.brake = u64::MAX;
            }
        }
    }

    /// There is nothing more to send for now.
    pub(super) fn on_starved(&mut self) {
        self.limited_until = self.delivered + self.flight + 1;
    }

    /// All that was sent has arrived, and no ack came for [`Flow::patience`]: it is not the path.
    pub(super) const fn release(&mut self) {
        self.brake = self.brake.saturating_mul(2);
    }

    /// How long an ack may take, or a pong.
    pub(super) fn patience(&self, pong: bool) -> Duration {
        self.time_on_the_way() + if pong { PONG_PATIENCE } else { PATIENCE }
    }

    /// What may be on the way.
    pub(super) fn window(&self) -> Load {
        load_of(self.unbraked())
    }

    /// What may be unacked.
    pub(super) fn unacked(&self) -> Load {
        load_of(self.brake)
    }

    /// What one message may hold.
    pub(super) fn batch(&self) -> Load {
        load_of(self.batch_bytes())
    }

    /// How long all that is on the way takes.
    pub(super) fn time_on_the_way(&self) -> Duration {
        let micros = self.rate.map_or(0, |rate| self.flight.saturating_mul(1_000_000) / rate.max(1));
        self.round_trip.unwrap_or_default() + Duration::from_micros(micros)
    }

    fn unbraked(&self) -> u64 {
        let Some(rate) = self.rate else { return self.start_bytes };
        in_time(rate, self.round_trip.unwrap_or_default() + QUEUE)
    }

    fn batch_bytes(&self) -> u64 {
        let start = if self.flight == 0 { self.start_bytes / FIRST_PARTS } else { self.start_bytes };
        self.rate.map_or(start, |rate| in_time(rate, self.batch_max)).max(1)
    }
}

/// So many bytes, and no more records than they cost.
fn load_of(bytes: u64) -> Load {
    Load { records: (bytes / RECORD_COST).max(1), bytes: bytes.max(1) }
}

fn in_time(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_millis() / 1000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A path of so many bytes a second and so long a round trip, always fed; `seconds` of it. Returns the longest
    /// time that something which is put now would have waited, in the second half.
    fn fed(flow: &mut Flow, rate: u64, round_trip: Duration, seconds: u64, start: Instant) -> Duration {
        let mut on_way: VecDeque<(Instant, Load, Stamp)> = VecDeque::new();
        let (mut now, mut free, mut longest) = (start, start, Duration::ZERO);
        let end = start + Duration::from_secs(seconds);
        while now < end {
            let window = flow.window();
            loop {
                let flight = on_way.iter().map(|(_, load, _)| *load).sum::<Load>();
                let batch = flow.batch();
                let records = (batch.bytes / 132).clamp(1, batch.records);
                let load = Load { records, bytes: records * 100 };
                if !(flight + load).fits(window) && !on_way.is_empty() {
                    break;
                }
                let takes = Duration::from_micros(load.cost() * 1_000_000 / rate);
                free = free.max(now) + takes;
                let stamp = flow.on_sent(load, now);
                on_way.push_back((free + round_trip, load, stamp));
                if now.since(start) * 2 > end.since(start) {
                    longest = longest.max(free.since(now));
                }
            }
            let (at, load, stamp) = on_way.pop_front().expect("something is always on the way");
            now = now.max(at);
            flow.on_arrived(load, stamp, now);
            flow.on_acked(stamp, now);
        }
        // The test's path ends here: nothing is on the way any more.
        for (_, load, _) in on_way {
            flow.flight -= load.cost();
        }
        longest
    }

    #[test]
    fn the_rate_is_found_and_no_more_is_on_the_way_than_it_delivers_in_seconds() {
        for (rate, trip_ms) in [(2_000, 300), (8_000, 50), (8_000, 900), (250_000, 30), (12_000_000, 1)] {
            let start = Instant::from_micros(5_000_000);
            let mut flow = Flow::new(4096, Duration::from_secs(1), start);
            let waits = fed(&mut flow, rate, Duration::from_millis(trip_ms), 120, start);
            let found = flow.rate().expect("measured");
            assert!(found * 10 >= rate * 8 && found * 10 <= rate * 13, "rate={rate} trip_ms={trip_ms} found={found}");
            assert!(waits <= Duration::from_millis(3500 + trip_ms), "rate={rate} trip_ms={trip_ms} waits={waits:?}");
            let batch = flow.batch().bytes;
            assert!(batch <= found + 1 && batch * 10 >= found * 9, "a batch is a second: {batch} of {found}");
        }
    }

    #[test]
    fn a_path_that_gets_slower_and_faster_again_is_followed() {
        let start = Instant::from_micros(5_000_000);
        let mut flow = Flow::new(4096, Duration::from_secs(1), start);
        let mut now = start;
        for rate in [250_000, 4_000, 250_000, 8_000] {
            fed(&mut flow, rate, Duration::from_millis(100), 200, now);
            now = now + Duration::from_secs(200);
            let found = flow.rate().expect("measured");
            assert!(found * 10 >= rate * 8 && found * 10 <= rate * 13, "rate={rate} found={found}");
        }
    }

    #[test]
    fn what_trickles_says_nothing_of_what_the_path_bears() {
        let start = Instant::from_micros(5_000_000);
        let mut flow = Flow::new(4096, Duration::from_secs(1), start);
        fed(&mut flow, 250_000, Duration::from_millis(100), 60, start);
        let found = flow.rate();
        let one = Load { records: 1, bytes: 10 };
        for second in 60..200 {
            let now = start + Duration::from_secs(second);
            flow.on_starved();
            let stamp = flow.on_sent(one, now);
            flow.on_arrived(one, stamp, now + Duration::from_millis(100));
            flow.on_acked(stamp, now + Duration::from_millis(100));
        }
        assert_eq!(flow.rate(), found);
    }

    #[test]
    fn a_far_end_that_lags_is_given_less_at_once_and_more_bit_by_bit() {
        let start = Instant::from_micros(5_000_000);
        let mut flow = Flow::new(4096, Duration::from_secs(1), start);
        fed(&mut flow, 250_000, Duration::from_millis(100), 60, start);
        let (before, now) = (flow.window().bytes, start + Duration::from_secs(60));
        let load = Load { records: 10, bytes: 10_000 };
        let stamps: Vec<_> = (0..10).map(|_| flow.on_sent(load, now)).collect();
        for stamp in stamps {
            flow.on_arrived(load, stamp, now + Duration::from_millis(3600));
            flow.on_acked(stamp, now + Duration::from_millis(3600));
        }
        let braked = flow.unacked().bytes;
        assert!(braked * 10 <= before * 7 && flow.brake != u64::MAX, "{before} {braked}");
        for n in 0..100 {
            let now = now + Duration::from_secs(10) + Duration::from_millis(200 * n);
            let stamp = flow.on_sent(load, now);
            flow.on_arrived(load, stamp, now + Duration::from_millis(100));
            flow.on_acked(stamp, now + Duration::from_millis(100));
        }
        assert_eq!(flow.brake, u64::MAX, "and in the end it is as it was");
    }
}
