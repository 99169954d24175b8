//! A day of the gateway in RAM, for the page: slots of five minutes, a few numbers each, about 14 KiB.

use std::collections::VecDeque;
use std::time::Duration;

use crate::status::Status;
use crate::time::Instant;

/// Length of a slot.
pub const SLOT: Duration = Duration::from_secs(300);
/// A day of them, and the one that is not over.
pub const SLOTS_MAX: usize = 289;
/// What was not looked at for longer was not seen: the machine slept.
const SEEN_MAX: Duration = Duration::from_secs(60);

/// A slot as the page gets it: share of the time that the link was up (per mille, null where nobody looked), most records
/// waiting, records put, acked, lost, bytes on the wire, round trip in ms or null.
pub type Row = (Option<u32>, u64, u64, u64, u64, u64, Option<u64>);

/// The last day.
#[derive(Debug, Default)]
pub struct History {
    slots: VecDeque<Slot>,
    /// Number of the newest slot, counted from boot.
    newest: u64,
    /// When it was looked at last, and the counters then.
    before: Option<(Instant, Totals)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// How long it was looked at, and how much of that the link was up.
    seen_ms: u32,
    up_ms: u32,
    /// Most records that waited.
    waiting: u64,
    of: Totals,
    /// Sum and count of the round trips that were looked at.
    rtt_ms: f64,
    rtts: u32,
}

/// Counters, or what they rose by.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    put: u64,
    acked: u64,
    lost: u64,
    bytes: u64,
}

impl History {
    /// Looks at the agent; now and then, at least once a minute.
    pub fn look(&mut self, status: &Status, now: Instant) {
        let totals = Totals::of(status);
        // What was counted before the first look is of that slot: the process has just begun.
        let (at, before) = self.before.replace((now, totals)).unwrap_or((now, Totals::default()));
        let (elapsed, is_up) = (now.since(at).min(SEEN_MAX), status.link.state == "up");
        let slot = self.slot(now);
        slot.seen_ms += elapsed.as_millis() as u32;
        if is_up {
            slot.up_ms += elapsed.min(Duration::from_secs(status.link.since_s + 1)).as_millis() as u32;
        }
        slot.waiting =
            slot.waiting.max(status.lanes.iter().filter(|lane| lane.name != "dead").map(|lane| lane.depth).sum());
        slot.of.put += totals.put.saturating_sub(before.put);
        slot.of.acked += totals.acked.saturating_sub(before.acked);
        slot.of.lost += totals.lost.saturating_sub(before.lost);
        slot.of.bytes += totals.bytes.saturating_sub(before.bytes);
        if let Some(rtt_ms) = status.link.rtt_ms {
            slot.rtt_ms += rtt_ms;
            slot.rtts += 1;
        }
    }

    /// The slot of now; those between that nobody looked at are empty.
    fn slot(&mut self, now: Instant) -> &mut Slot {
        let number = now.as_millis() / SLOT.as_millis() as u64;
        let missing = if self.slots.is_empty() { 1 } else { number.saturating_sub(self.newest) };
        for _ in 0..missing.min(SLOTS_MAX as u64) {
            if self.slots.len() >= SLOTS_MAX {
                self.slots.pop_front();
            }
            self.slots.push_back(Slot::default());
        }
        self.newest = self.newest.max(number);
        self.slots.back_mut().expect("there is one at least")
    }

    /// Seconds since the newest slot began.
    pub fn open_s(now: Instant) -> u64 {
        now.as_millis() / 1000 % SLOT.as_secs()
    }

    /// The slots, the newest last.
    pub fn rows(&self) -> Vec<Row> {
        let row = |slot: &Slot| {
            let Totals { put, acked, lost, bytes } = slot.of;
            let up = (slot.up_ms.min(slot.seen_ms) * 100).checked_div(slot.seen_ms / 10);
            let rtt_ms = (slot.rtts > 0).then(|| (slot.rtt_ms / f64::from(slot.rtts)).round() as u64);
            (up.map(|up| up.min(1000)), slot.waiting, put, acked, lost, bytes, rtt_ms)
        };
        self.slots.iter().map(row).collect()
    }
}

impl Totals {
    fn of(status: &Status) -> Self {
        // What the dead letters give up was counted when it was refused.
        let lanes = || status.lanes.iter().filter(|lane| lane.name != "dead");
        Self {
            put: lanes().map(|lane| lane.put_total).sum(),
            acked: lanes().map(|lane| lane.acked_total).sum(),
            lost: lanes().map(|lane| lane.lost()).sum(),
            bytes: status.wire.bytes_sent + status.wire.bytes_received,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Lane;

    fn status(up: bool, put_total: u64, depth: u64) -> Status {
        let lane = Lane { name: "telemetry".into(), put_total, depth, ..Lane::default() };
        let mut status = Status { lanes: vec![lane], ..Status::default() };
        (status.link.state, status.link.since_s) = (if up { "up" } else { "waiting" }.into(), 1_000_000);
        status.link.rtt_ms = up.then_some(40.4);
        status
    }

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    #[test]
    fn slots_hold_what_happened_in_them() {
        let mut history = History::default();
        // Up for the first half of each slot.
        for s in (600..1200).step_by(10) {
            history.look(&status(s % 300 < 150, s, s % 7), at(s));
        }
        let rows = history.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1], (Some(500), 6, 300, 0, 0, 0, Some(40)));
        assert_eq!(rows[0].2, 890, "what was put before the first look, too");
    }

    #[test]
    fn a_day_is_kept_and_time_asleep_is_a_gap_and_no_more() {
        let mut history = History::default();
        for s in (0..200_000).step_by(10) {
            history.look(&status(true, s, 0), at(s));
        }
        let slots = history.slots.capacity();
        assert_eq!(history.rows().len(), SLOTS_MAX);
        assert!(history.rows().iter().all(|row| row.0 == Some(1000)));
        assert!(slots * size_of::<Slot>() < 60_000, "{slots} slots of {}", size_of::<Slot>());
        // An hour of sleep.
        history.look(&status(true, 200_000, 0), at(203_600));
        let rows = history.rows();
        assert_eq!((rows.len(), rows[SLOTS_MAX - 5].0), (SLOTS_MAX, None));
        assert_eq!(rows[SLOTS_MAX - 1].0, Some(1000));
        // Years of it are no more work than a day.
        history.look(&status(true, 200_000, 0), at(10_000_000_000));
        assert_eq!(history.rows().iter().filter(|row| row.0.is_some()).count(), 1);
    }
}
