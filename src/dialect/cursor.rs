//! One (lane, epoch) of a session: how far it is acked, sent and fetched on this connection. Knows nothing of
//! windows over several of them, of frames, or of time.
//!
//! `acked ≤ sent ≤ fetched`: what lies between the first two is in flight, between the last two ready to go.

use std::collections::VecDeque;
use std::ops::{Add, AddAssign, SubAssign};

use super::flow::Stamp;
use crate::record::{Epoch, Fetch, Gap, INTEGER_MAX, Item, LaneName, Offer, Record, Seq, Why};

/// What a record costs beside its bytes: number, time, lengths, and its share of frame and header.
pub(super) const RECORD_COST: u64 = 32;

/// Records, and their bytes of topic and body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Load {
    pub(super) fn of(record: &Record) -> Self {
        Self { records: 1, bytes: (record.topic.len() + record.body.as_bytes().len()) as u64 }
    }

    /// What it costs the path, in bytes.
    pub(super) const fn cost(self) -> u64 {
        self.bytes.saturating_add(self.records.saturating_mul(RECORD_COST))
    }

    /// What is left of `self` beside `other`: nothing where one part is used up, since a record takes of both.
    pub(super) fn room(self, other: Self) -> Self {
        if other.fits(self) { self.without(other) } else { Self::default() }
    }

    /// What is left of each part of `self` beside `other`.
    pub(super) const fn without(self, other: Self) -> Self {
        Self { records: self.records.saturating_sub(other.records), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    /// True where both parts fit.
    pub(super) const fn fits(self, room: Self) -> bool {
        self.records <= room.records && self.bytes <= room.bytes
    }

    /// The lesser of each part.
    pub(super) fn min(self, other: Self) -> Self {
        Self { records: self.records.min(other.records), bytes: self.bytes.min(other.bytes) }
    }
}

impl Add for Load {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { records: self.records + other.records, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Load {
    fn sub_assign(&mut self, other: Self) {
        self.records -= other.records;
        self.bytes -= other.bytes;
    }
}

impl std::iter::Sum for Load {
    fn sum<I: Iterator<Item = Self>>(loads: I) -> Self {
        loads.fold(Self::default(), Add::add)
    }
}

/// What the server's word on the state of a numbering means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The server has more than was known: everything up to here.
    Ahead(Seq),
    /// As expected.
    Level,
    /// Rule 7: the server lost state; it has up to `acked`, had up to `had`.
    Behind { acked: Seq, had: Seq },
}

/// What an `ack` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on from here; with the messages that are acked as a whole by now.
    Advanced(Option<Landed>),
    /// No higher than one before.
    Stale,
    /// Above all that this connection has sent, though not above all that this agent can have sent.
    Unsent,
    /// Rule 7: above every number this agent can have sent.
    Foreign,
}

/// Messages that are acked as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Landed {
    /// What of them was not known to have arrived.
    pub(super) news: Load,
    /// Of the last of them.
    pub(super) stamp: Stamp,
}

/// A message that is not acked as a whole.
#[derive(Debug, Clone, Copy)]
struct Message {
    last: Seq,
    load: Load,
    stamp: Stamp,
    /// The far end has read it.
    arrived: bool,
}

/// One (lane, epoch).
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    pub(super) lane: LaneName,
    pub(super) epoch: Epoch,
    /// As `hello` said it.
    first: Seq,
    /// One above the highest number on offer.
    next: Seq,
    /// The highest number this agent can have sent, ever.
    sent_max: Seq,
    acked: Seq,
    sent: Seq,
    /// Messages not yet acked as a whole.
    flight: VecDeque<Message>,
    flight_load: Load,
    /// What of it is not known to have arrived.
    on_way: Load,
    /// Fetched, contiguous from `sent` + 1.
    ready: VecDeque<Item>,
    ready_load: Load,
    /// The question that the outbox has not answered.
    fetch: Option<Fetch>,
    /// An offer came since `fetch` was asked.
    offered: bool,
    /// The outbox had nothing, whatever `next` says: wait for an offer.
    dry: bool,
}

impl Cursor {
    pub(super) fn new(offer: &Offer) -> Self {
        Self {
            lane: offer.lane.clone(),
            epoch: offer.epoch,
            first: offer.first,
            next: offer.next,
            sent_max: offer.sent_max,
            acked: offer.first.saturating_sub(1),
            sent: offer.first.saturating_sub(1),
            flight: VecDeque::new(),
            flight_load: Load::default(),
            on_way: Load::default(),
            ready: VecDeque::new(),
            ready_load: Load::default(),
            fetch: None,
            offered: false,
            dry: false,
        }
    }

    pub(super) fn is(&self, lane: &LaneName, epoch: Epoch) -> bool {
        self.epoch == epoch && self.lane == *lane
    }

    /// Rule 7: `acked` is above every number this agent can have sent.
    pub(super) fn is_foreign(&self, acked: Seq) -> bool {
        acked > self.sent_max.max(self.sent)
    }

    /// True for a record that the server may have refused before this connection.
    pub(super) fn may_have_refused(&self, seq: Seq) -> bool {
        (self.first..=self.sent_max).contains(&seq)
    }

    /// Something is sent and not acked.
    pub(super) fn is_in_flight(&self) -> bool {
        !self.flight.is_empty()
    }

    /// Something is on offer and not sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.ready.is_empty() || self.sent + 1 < self.next
    }

    /// The numbers sent on this connection and not acked.
    pub(super) fn awaits(&self, seq: Seq) -> bool {
        (self.acked + 1..=self.sent).contains(&seq)
    }

    /// The highest number sent on this connection.
    pub(super) const fn sent(&self) -> Seq {
        self.sent
    }

    /// The first record in flight.
    pub(super) fn record_in_flight(&self) -> Option<Seq> {
        let message = self.flight.iter().find(|message| message.load.records > 0)?;
        Some(message.last + 1 - message.load.records)
    }

    /// Load in flight.
    pub(super) const fn flight_load(&self) -> Load {
        self.flight_load
    }

    /// What of it is not known to have arrived.
    pub(super) const fn on_way(&self) -> Load {
        self.on_way
    }

    /// Load ready, and asked for.
    pub(super) fn claimed(&self) -> Load {
        let asked = self.fetch.as_ref().map_or_else(Load::default, |fetch| Load {
            records: u64::from(fetch.records_max),
            bytes: u64::from(fetch.bytes_max),
        });
        self.ready_load + asked
    }

    /// The `welcome`: everything up to `acked` is stored. Begins the numbering of this connection.
    pub(super) fn on_welcome(&mut self, acked: Seq) -> Standing {
        self.acked = acked;
        self.sent = acked;
        if acked >= self.first {
            self.next = self.next.max(acked + 1);
            return Standing::Ahead(acked);
        }
        let had = self.first - 1;
        if acked == had {
            return Standing::Level;
        }
        self.ready.push_back(Item::Gap(Gap { from: acked + 1, to: had, why: Why::Settled }));
        Standing::Behind { acked, had }
    }

    pub(super) fn on_ack(&mut self, seq: Seq) -> Progress {
        if seq <= self.acked {
            return Progress::Stale;
        }
        if self.is_foreign(seq) {
            return Progress::Foreign;
        }
        if seq > self.sent {
            return Progress::Unsent;
        }
        self.acked = seq;
        let on_way = self.on_way;
        let mut landed = None;
        while let Some(message) = self.flight.front().copied().filter(|message| message.last <= seq) {
            self.flight.pop_front();
            self.flight_load -= message.load;
            if !message.arrived {
                self.on_way -= message.load;
            }
            landed = Some(message.stamp);
        }
        Progress::Advanced(landed.map(|stamp| Landed { news: on_way.without(self.on_way), stamp }))
    }

    /// The far end has read everything up to `seq`, though it may not have stored it.
    pub(super) fn on_arrived(&mut self, seq: Seq) -> Option<Landed> {
        let on_way = self.on_way;
        let mut landed = None;
        for message in self.flight.iter_mut().filter(|message| !message.arrived).take_while(|one| one.last <= seq) {
            message.arrived = true;
            self.on_way -= message.load;
            landed = Some(message.stamp);
        }
        landed.map(|stamp| Landed { news: on_way.without(self.on_way), stamp })
    }

    pub(super) fn on_offer(&mut self, offer: &Offer) {
        self.next = self.next.max(offer.next);
        self.offered = true;
        self.dry = false;
    }

    /// What is ready to go.
    pub(super) const fn ready_load(&self) -> Load {
        self.ready_load
    }

    /// True where something is on offer, asked for, or ready to go.
    pub(super) fn waits(&self) -> bool {
        self.fetch.is_some() || !self.ready.is_empty() || self.wants_fetch()
    }

    /// True where the outbox has something to ask for.
    pub(super) fn wants_fetch(&self) -> bool {
        self.fetch.is_none() && self.ready.is_empty() && !self.dry && self.sent + 1 < self.next
    }

    /// The next question to the outbox, remembered.
    pub(super) fn ask(&mut self, session: u64, limit: Load) -> Fetch {
        let fetch = Fetch {
            session,
            lane: self.lane.clone(),
            epoch: self.epoch,
            from: self.sent + 1,
            records_max: u32::try_from(limit.records).unwrap_or(u32::MAX),
            bytes_max: u32::try_from(limit.bytes).unwrap_or(u32::MAX),
        };
        self.offered = false;
        self.fetch = Some(fetch.clone());
        fetch
    }

    /// True for the question that is open.
    pub(super) fn asked(&self, fetch: &Fetch) -> bool {
        self.fetch.as_ref() == Some(fetch)
    }

    /// The answer. `Err`: it does not go on where it must, at this number.
    pub(super) fn on_items(&mut self, items: Vec<Item>) -> Result<(), Seq> {
        self.fetch = None;
        // An offer that crossed with an empty answer may be newer than it.
        self.dry = items.is_empty() && !self.offered;
        let mut expected = self.sent + 1;
        for item in &items {
            if item.first() != expected || item.last() < item.first() {
                return Err(expected);
            }
            expected = item.last() + 1;
        }
        self.ready_load += items.iter().map(load_of).sum();
        self.ready.extend(items);
        self.next = self.next.max(expected);
        Ok(())
    }

    /// True where a record is the next to go.
    pub(super) fn record_is_next(&self) -> bool {
        matches!(self.ready.front(), Some(Item::Record(_)))
    }

    /// The gap that is next to go.
    pub(super) fn take_gap(&mut self) -> Option<Gap> {
        match self.ready.front() {
            Some(Item::Gap(gap)) => {
                let gap = *gap;
                self.ready.pop_front();
                Some(gap)
            }
            Some(Item::Record(_)) | None => None,
        }
    }

    /// The records that are next to go, within `batch`, the first of them only within `first`.
    pub(super) fn take_records(&mut self, first: Load, batch: Load) -> Vec<Record> {
        let (mut taken, mut load) = (Vec::new(), Load::default());
        while let Some(Item::Record(record)) = self.ready.front() {
            let one = Load::of(record);
            let goes = if taken.is_empty() { one.fits(first) } else { (load + one).fits(batch) };
            if !goes {
                break;
            }
            if let Some(Item::Record(mut record)) = self.ready.pop_front() {
                // A time that the wire cannot carry is no time; it must not hold up the lane for ever.
                record.at = record.at.filter(|at| *at <= INTEGER_MAX);
                load += one;
                taken.push(record);
            }
        }
        self.ready_load -= load;
        taken
    }

    /// These went out in one message.
    pub(super) fn on_records_sent(&mut self, records: &[Record], stamp: Stamp) {
        if let Some(last) = records.last() {
            self.sent = last.seq;
            let load = records.iter().map(Load::of).sum();
            self.flight.push_back(Message { last: last.seq, load, stamp, arrived: false });
            self.flight_load += load;
            self.on_way += load;
        }
    }

    /// This went out.
    pub(super) fn on_gap_sent(&mut self, gap: Gap, stamp: Stamp) {
        self.sent = gap.to;
        self.flight.push_back(Message { last: gap.to, load: Load::default(), stamp, arrived: false });
    }

    /// This needs not go out, and nothing is in flight before it.
    pub(super) fn on_gap_settled(&mut self, gap: Gap) {
        debug_assert!(!self.is_in_flight(), "in its turn");
        (self.sent, self.acked) = (gap.to, gap.to);
    }

    /// What always holds, checked after every change in debug builds.
    pub(super) fn check_invariants(&self) {
        debug_assert!(self.acked <= self.sent && self.sent < self.next);
        debug_assert!(self.ready.front().is_none_or(|item| item.first() == self.sent + 1), "ready goes on from sent");
        debug_assert!(
            self.ready.iter().zip(self.ready.iter().skip(1)).all(|(one, two)| one.last() + 1 == two.first()),
            "ready is contiguous"
        );
        debug_assert_eq!(self.ready_load, self.ready.iter().map(load_of).sum());
        debug_assert_eq!(self.flight_load, self.flight.iter().map(|message| message.load).sum());
        let on_way = self.flight.iter().filter(|message| !message.arrived).map(|message| message.load);
        debug_assert_eq!(self.on_way, on_way.sum());
        debug_assert_eq!(
            self.flight.back().map_or(self.acked, |message| message.last),
            self.sent,
            "flight ends at sent"
        );
        debug_assert!(self.flight.front().is_none_or(|message| message.last > self.acked), "what is acked has landed");
        debug_assert!(self.fetch.as_ref().is_none_or(|fetch| fetch.from == self.sent + 1 && self.ready.is_empty()));
    }
}

fn load_of(item: &Item) -> Load {
    match item {
        Item::Record(record) => Load::of(record),
        Item::Gap(_) => Load::default(),
    }
}
