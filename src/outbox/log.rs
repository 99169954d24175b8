//! One numbering of a lane: what is acked, given up, durable and reserved. Positions only; pages and segments are
//! `lane`'s business, bytes are `format`'s.

use super::Draft;
use super::format::{Header, RUNS_MAX, Run, SEGMENT_RECORDS_MAX};
use super::mutants::mutant;
use super::recent::Recent;
use super::runs::{Runs, is_found_again};
use crate::record::{Epoch, LaneName, Offer, Why};
use crate::time::Instant;

/// A header reserves positions in steps of this, so that a start that cannot prove its tail knows above what to go on.
pub const RESERVE_STEP: u64 = 65_536;
// A step covers more than a segment can hold.
const _: () = assert!(RESERVE_STEP >= 2 * SEGMENT_RECORDS_MAX as u64);

/// How far an `eager` log's reservation goes ahead of its numbers before two headers are written: few, since a link
/// that keeps up costs flash nothing else (two pages for each step).
const RESERVE_LEAD: u64 = RESERVE_STEP / 4;
// A commit in between finds its numbers reserved.
const _: () = assert!(RESERVE_STEP >= SEGMENT_RECORDS_MAX as u64 + RESERVE_LEAD);

/// When a record may leave the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leave {
    /// When it is on flash.
    Durable,
    /// When its number is reserved there: after a power cut the tail is not proved (`ram_first`).
    Reserved,
    /// At once: nothing of this log is on flash, and its epoch is gone when the power is (storage that fails).
    AtOnce,
}

/// One numbering of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    /// Names the log on flash.
    pub origin: u64,
    /// Its epoch upstream.
    pub epoch: Epoch,
    /// When its records may leave.
    pub leave: Leave,
    /// Its newest records, in RAM.
    pub recent: Recent,
    /// A record's seq is its position less this.
    pub base: u64,
    /// Everything up to here is acked.
    pub acked: u64,
    /// Everything up to here is acked or given up.
    pub floor: u64,
    /// What will never come, above `acked`.
    pub runs: Runs,
    /// The next record's position.
    pub next: u64,
    /// Everything up to here is on flash, or a run: the next batch begins behind it.
    pub durable: u64,
    /// `reserved` of the two newest synced headers of this epoch, older one first.
    pub reserved: [u64; 2],
    /// Highest position that stands in a batch on flash.
    pub written: u64,
    /// `acked` of the newest synced header.
    pub durable_acked: u64,
    /// `floor` of the newest synced header.
    pub durable_floor: u64,
    /// What the synced header before the newest one says needs no segment any more.
    pub covered_before: u64,
    /// Highest position that can have left the gateway, ever.
    pub sent_max: u64,
    /// Highest position that left as a record since the start.
    pub sent_record_max: u64,
    /// What was given up after it had left as a record, and did not leave as a gap since: an ack saves it.
    left_before: (u64, u64),
}

impl Log {
    /// Records not yet acked.
    pub fn depth(&self) -> u64 {
        self.next - 1 - self.acked - self.runs.covered(self.acked + 1, self.next - 1, |_| true)
    }

    /// An empty log.
    pub fn new(origin: u64, epoch: Epoch, leave: Leave) -> Self {
        Self {
            origin,
            epoch,
            leave,
            recent: Recent::default(),
            base: 0,
            acked: 0,
            floor: 0,
            runs: Runs::default(),
            next: 1,
            durable: 0,
            reserved: [0, 0],
            written: 0,
            durable_acked: 0,
            durable_floor: 0,
            covered_before: 0,
            sent_max: 0,
            sent_record_max: 0,
            left_before: (0, 0),
        }
    }

    /// Everything up to here needs no segment any more, by what is on flash.
    pub fn covered_durably(&self) -> u64 {
        self.durable_acked.max(self.durable_floor)
    }

    /// Everything up to here needs no segment any more, by two headers on flash: files may go.
    pub fn covered_twice(&self) -> u64 {
        self.covered_before.min(self.covered_durably())
    }

    /// Everything up to here needs no segment any more.
    pub fn covered(&self) -> u64 {
        self.acked.max(self.floor)
    }

    /// Positions up to here may leave the gateway: reserved by two synced headers, so that one damaged page loses
    /// neither epoch nor reservation.
    pub fn may_leave(&self) -> u64 {
        match self.leave {
            Leave::AtOnce => self.next - 1,
            Leave::Durable | Leave::Reserved => self.ready().min(self.reserved[usize::from(mutant!(OneReservation))]),
        }
    }

    /// Positions up to here could leave if they were reserved.
    fn ready(&self) -> u64 {
        match self.leave {
            Leave::Durable => self.durable,
            Leave::Reserved | Leave::AtOnce => self.next - 1,
        }
    }

    /// Whether the record at this position was ever on flash: numbers burnt by a write that failed were not.
    pub fn reached_flash(&self, position: u64) -> bool {
        position <= self.durable && self.runs.at(position).is_none_or(|run| run.why != Why::Torn)
    }

    /// Something may not leave before one more header is there, or soon will not.
    pub fn wants_reservation(&self) -> bool {
        match self.leave {
            Leave::AtOnce => false,
            Leave::Durable => !self.is_named() || self.may_leave() < self.durable && !self.is_drained(),
            Leave::Reserved => {
                !self.is_named() || self.next - 1 + RESERVE_LEAD > self.reserved[0] && !self.is_drained()
            }
        }
    }

    /// The epoch stands on flash.
    pub fn is_named(&self) -> bool {
        self.reserved[1] > 0
    }

    /// There is no second page, and no ack will make room for one: what one header says has to do.
    pub fn rely_on_one_header(&mut self) {
        if self.may_leave() <= self.acked {
            self.reserved[0] = self.reserved[1];
        }
    }

    /// Nothing is left to send or to be acked.
    pub fn is_drained(&self) -> bool {
        self.acked + 1 == self.next
    }

    /// Likewise after a start, whatever the power does; a log that is in RAM is gone by then.
    pub fn is_drained_durably(&self) -> bool {
        self.is_drained() && (self.leave == Leave::AtOnce || self.durable_acked == self.acked)
    }

    /// What a batch of `count` records (`length` bytes) says; an empty one for 0. Lap is the segment's, `alive` the
    /// lane's.
    pub fn header(&self, lane: &LaneName, lap: u32, alive: u32, count: u32, length: u32) -> Header {
        let first = self.durable + 1;
        let ahead = self.next.max(first + u64::from(count)) + u64::from(SEGMENT_RECORDS_MAX);
        let missing = ahead.saturating_sub(self.reserved[1]);
        // What is found again need not stand here above the floor; the rest stands nowhere else.
        let kept = |run: &&Run| run.from <= self.floor || !is_found_again(run.why);
        Header {
            eager: self.leave != Leave::Durable,
            count,
            length,
            lap,
            origin: self.origin,
            epoch: self.epoch,
            base: self.base,
            first,
            acked: self.acked,
            floor: self.floor,
            durable: self.durable,
            reserved: self.reserved[1] + missing.next_multiple_of(RESERVE_STEP),
            alive,
            lane: lane.clone(),
            runs: self.runs.as_slice().iter().filter(kept).take(RUNS_MAX).copied().collect(),
        }
    }

    /// This header is on flash and synced; it may have `replaced` the newest one before it.
    pub fn on_synced(&mut self, header: &Header, replaced: bool) {
        let older = if replaced { self.reserved[0] } else { self.reserved[1] };
        self.reserved = [older, header.reserved];
        self.covered_before = self.covered_durably();
        self.durable_acked = header.acked;
        self.durable_floor = header.floor;
        self.durable = self.durable.max(header.next() - 1);
        if header.count > 0 {
            self.written = header.next() - 1;
            self.recent.on_written(header.count as usize);
        }
    }

    /// What the newest synced headers say: both reservations, what is covered since the one before, acks and floor.
    pub fn flash_knows(&self) -> ([u64; 2], [u64; 3]) {
        (self.reserved, [self.covered_before, self.durable_acked, self.durable_floor])
    }

    /// It is this still, whatever was written since.
    pub fn set_flash_knows(&mut self, (reserved, covered): ([u64; 2], [u64; 3])) {
        self.reserved = reserved;
        [self.covered_before, self.durable_acked, self.durable_floor] = covered;
    }

    /// Positions acked that flash does not know of and still holds.
    pub fn acks_lag(&self) -> u64 {
        let held = match self.leave {
            Leave::Durable => self.acked,
            Leave::Reserved | Leave::AtOnce => self.acked.min(self.written),
        };
        held.saturating_sub(self.durable_acked)
    }

    /// Everything up to `position` is stored upstream. Returns how many of those given up were not lost after all.
    pub fn on_acked(&mut self, position: u64) -> u64 {
        let position = position.min(self.ready());
        if position <= self.acked {
            return 0;
        }
        self.settle(position);
        let (from, to) = self.left_before;
        let spared = self.runs.covered(from.max(self.acked + 1), to.min(position), |why| why == Why::Overflow);
        self.acked = position;
        self.floor = self.floor.max(position);
        self.runs.trim(position);
        self.check_invariants();
        spared
    }

    /// Gives up everything up to `position` that is not acked. Returns how many records that were.
    pub fn give_up(&mut self, position: u64, why: Why) -> u64 {
        let filled = self.runs.fill(self.acked + 1, position, why);
        self.settle(position);
        self.floor = self.floor.max(position);
        self.left_before.1 = self.left_before.1.max(position.min(self.sent_record_max));
        self.check_invariants();
        filled
    }

    /// What is acked or given up needs neither flash nor RAM.
    fn settle(&mut self, position: u64) {
        self.durable = self.durable.max(position);
        self.recent.trim(position);
    }

    /// Numbers a record and keeps it in RAM.
    #[inline] // A draft is large: each call that is one copies it.
    pub fn push(&mut self, draft: Draft, now: Instant) -> u64 {
        let position = self.next;
        self.recent.push(position, draft, now);
        self.next += 1;
        position
    }

    /// This log takes no more: gives back what waits for flash and cannot have left.
    pub fn seal(&mut self) -> Vec<(Draft, Instant)> {
        let given = self.recent.split_off(self.sent_max.max(self.durable) + 1);
        self.next -= given.len() as u64;
        self.check_invariants();
        given
    }

    /// A gap up to `position` leaves the gateway: what it covers is lost, also what had left as records before.
    pub fn on_gap_sent(&mut self, position: u64) {
        self.left_before.0 = self.left_before.0.max(position + 1);
    }

    /// The records that wait are not taken: their numbers are burnt.
    pub fn burn(&mut self) {
        drop(self.recent.split_off(0));
        self.skip(self.next, Why::Torn);
    }

    /// A start that cannot prove its tail: skips to above everything that can have left.
    pub fn skip_to(&mut self, next: u64, why: Why) {
        if next > self.next {
            self.skip(next, why);
        }
    }

    /// What is skipped stands nowhere yet: `may_leave` waits until two headers say so.
    fn skip(&mut self, next: u64, why: Why) {
        self.runs.fill(self.durable + 1, next - 1, why);
        self.reserved = [self.may_leave(); 2];
        self.next = next;
        self.durable = next - 1;
    }

    /// Protocol rule 7: what is held is numbered from 1, in a new epoch. Durable with the next header.
    pub fn renumber(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.base = self.acked;
        // Nothing of this epoch has left; `may_leave` waits until two headers say so.
        self.reserved = [0, 0];
        self.sent_max = self.acked;
    }

    /// Its line in a `hello`.
    pub fn offer(&self, lane: &LaneName) -> Offer {
        let leave = self.may_leave().max(self.acked);
        Offer {
            lane: lane.clone(),
            epoch: self.epoch,
            first: self.acked + 1 - self.base,
            next: leave + 1 - self.base,
            sent_max: self.sent_max.saturating_sub(self.base),
        }
    }

    /// What always holds.
    pub fn check_invariants(&self) {
        debug_assert!(self.base <= self.acked, "{self:?}");
        debug_assert!(self.acked <= self.floor && self.floor <= self.durable, "{self:?}");
        debug_assert!(self.durable < self.next, "{self:?}");
        debug_assert!(self.reserved[0] <= self.reserved[1], "{self:?}");
    }
}
