//! What every dialect has in common on the way up: cursors, windows, shares, pace and flow; what is asked of the outbox
//! and what goes next. Knows nothing of messages, of what an ack looks like, or of how a session begins and ends.

use std::sync::Arc;
use std::time::Duration;

use super::cursor::{Cursor, Load, Progress};
use super::flow::Flow;
use super::pace::Pace;
use super::shares::Shares;
use super::surface::{Config, Greeting, LaneConfig, Timer};
use crate::record::{Epoch, Fetch, Gap, Item, LaneName, Offer, Record, Seq};
use crate::time::Instant;

/// A lane's weight is split in so many parts.
const PARTS: u32 = 1000;
/// The ack timeout grows with the path, up to so many times the configured one.
const ACK_TIMEOUT_FACTOR_MAX: u32 = 4;

/// What goes next.
pub(super) enum Next {
    /// This.
    Gap(Gap),
    /// These, in one message.
    Records(Vec<Record>),
}

/// The way up, on one connection.
#[derive(Debug, Clone)]
pub(super) struct Drain {
    config: Arc<Config>,
    number: u64,
    batch_records_max: u32,
    pub(super) cursors: Vec<Cursor>,
    /// Which of them go on though the day's bytes are spent.
    exempt: Vec<bool>,
    capped: bool,
    /// Who may ask the outbox: by weight, and in turn where several may. What was fetched is sent in turn.
    shares: Shares,
    turn_to_send: usize,
    turn_to_ask: usize,
    pace: Pace,
    pace_deadline: Option<Instant>,
    flow: Flow,
    /// When a ping's pong would be late (RFC 6298), as the link has it.
    rto: Duration,
    ack_deadline: Option<Instant>,
    /// The flow's window is full: when it is opened further, should no ack come.
    open_at: Option<Instant>,
    progressed: bool,
    records_sent: u64,
}

impl Drain {
    pub(super) fn new(config: Arc<Config>, greeting: &Greeting, now: Instant) -> Self {
        let offers = &greeting.offers;
        let lane = |offer: &Offer| config.lanes.iter().find(|lane| lane.name == offer.lane);
        let weights: Vec<u32> = (0..offers.len()).map(|index| weight(lane(&offers[index]), offers, index)).collect();
        Self {
            exempt: offers.iter().map(|offer| lane(offer).is_some_and(|lane| lane.cap_exempt)).collect(),
            capped: greeting.capped,
            shares: Shares::new(weights.into_iter()),
            number: greeting.session,
            batch_records_max: greeting.batch_records_max.max(1),
            cursors: offers.iter().map(Cursor::new).collect(),
            turn_to_send: 0,
            turn_to_ask: 0,
            pace: Pace::new(config.records_per_s_max, config.bytes_per_s_max),
            pace_deadline: None,
            flow: Flow::new(config.start_bytes, Duration::from_millis(config.batch_ms_max), now),
            rto: Duration::ZERO,
            ack_deadline: None,
            open_at: None,
            progressed: false,
            records_sent: 0,
            config,
        }
    }

    /// True with nothing in flight and nothing to send.
    pub(super) fn is_idle(&self) -> bool {
        let unsent = |(index, cursor): (usize, &Cursor)| cursor.has_unsent() && !self.is_held(index);
        !self.is_in_flight() && !self.cursors.iter().enumerate().any(unsent)
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.cursors.iter().any(Cursor::is_in_flight)
    }

    pub(super) const fn progressed(&self) -> bool {
        self.progressed
    }

    pub(super) const fn records_sent(&self) -> u64 {
        self.records_sent
    }

    pub(super) const fn rate(&self) -> Option<u64> {
        self.flow.rate()
    }

    pub(super) fn set_batch_records_max(&mut self, records: u32) {
        self.batch_records_max = records.max(1);
    }

    pub(super) fn set_rto(&mut self, rto: Duration) {
        self.rto = rto;
    }

    /// The day's bytes are spent, or no longer.
    pub(super) fn set_capped(&mut self, capped: bool) {
        self.capped = capped;
    }

    /// The server's word.
    pub(super) fn set_pace(&mut self, records_per_s: u64) {
        self.pace.set(records_per_s);
    }

    pub(super) fn flight(&self) -> Load {
        self.cursors.iter().map(Cursor::flight_load).sum()
    }

    pub(super) fn position(&self, lane: &LaneName, epoch: Epoch) -> Option<usize> {
        self.cursors.iter().position(|cursor| cursor.is(lane, epoch))
    }

    pub(super) fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let ack = self.ack_deadline.map(|deadline| (deadline, Timer::Ack));
        let pace = self.pace_deadline.map(|deadline| (deadline, Timer::Pace));
        let open = self.open_at.map(|at| (at, Timer::Window));
        ack.into_iter().chain(pace).chain(open).min()
    }

    /// No ack came in time; `None`: none is late. With what is said of it.
    pub(super) fn stalled(&self, now: Instant) -> Option<String> {
        self.ack_deadline.filter(|deadline| *deadline <= now)?;
        let (timeout_ms, in_flight) = (self.ack_timeout().as_millis(), self.flight().records);
        Some(format!("no ack for {timeout_ms} ms, records in flight: {in_flight}"))
    }

    /// `Err`: this connection cannot carry it.
    pub(super) fn on_offers(&mut self, offers: &[Offer]) -> Result<(), String> {
        for offer in offers {
            match self.cursors.iter_mut().find(|cursor| cursor.is(&offer.lane, offer.epoch)) {
                Some(cursor) => cursor.on_offer(offer),
                None => return Err(format!("lane {} goes on in epoch {}", offer.lane, offer.epoch)),
            }
        }
        let gone = |cursor: &&Cursor| !offers.iter().any(|offer| cursor.is(&offer.lane, offer.epoch));
        match self.cursors.iter().filter(gone).find(|cursor| cursor.has_unsent()) {
            Some(cursor) => Err(format!("lane {} no longer has epoch {}", cursor.lane, cursor.epoch)),
            None => Ok(()),
        }
    }

    /// `Err`: never a hole on the wire; whatever went wrong in here, a new session begins at the truth.
    pub(super) fn on_items(&mut self, fetch: &Fetch, items: Vec<Item>) -> Result<(), String> {
        let Some(index) = self.cursors.iter().position(|cursor| cursor.asked(fetch)) else {
            return Ok(()); // The answer to another session's question.
        };
        let done = self.cursors[index].on_items(items);
        done.map_err(|expected| format!("lane {}: the outbox does not go on at {expected}", fetch.lane))?;
        self.shares.on_answered(index, self.cursors[index].ready_load());
        Ok(())
    }

    pub(super) fn on_ack(&mut self, index: usize, seq: Seq, now: Instant) -> Progress {
        let progress = self.cursors[index].on_ack(seq);
        if let Progress::Advanced(landed) = progress {
            if let Some((load, stamp)) = landed {
                self.flow.on_acked(load, stamp, now);
            }
            self.progressed = true;
            (self.ack_deadline, self.open_at) = (None, None);
            if self.is_in_flight() {
                self.expect_ack(now);
            }
        }
        progress
    }

    /// Nothing comes after it.
    pub(super) fn on_end(&mut self) {
        (self.ack_deadline, self.pace_deadline, self.open_at) = (None, None, None);
    }

    /// What goes now, of the lane whose turn it is.
    pub(super) fn next(&mut self, now: Instant) -> Option<(usize, Next)> {
        if self.open_at.take_if(|at| *at <= now).is_some() {
            self.flow.open();
        }
        let flight = self.flight();
        let window = self.window();
        let overfull = !flight.fits(window); // by a lone large record, or a path that got slower
        let room = if overfull { Load::default() } else { window.without(flight) };
        let batch = self.batch().min(self.pace.allowed(now));
        let records = room.records.min(batch.records);
        // With nothing in flight, a record goes however large it is: else it would hold up its lane for ever.
        let first = Load { records, bytes: if flight.records == 0 { u64::MAX } else { room.bytes } };
        let batch = Load { records, bytes: room.bytes.min(batch.bytes) };
        for step in 0..self.cursors.len() {
            let index = (self.turn_to_send + step) % self.cursors.len();
            if self.is_held(index) {
                continue;
            }
            let cursor = &mut self.cursors[index];
            let next = if let Some(gap) = cursor.take_gap() {
                Next::Gap(gap)
            } else {
                let records = cursor.take_records(first, batch);
                if records.is_empty() {
                    continue;
                }
                Next::Records(records)
            };
            self.turn_to_send = index + 1;
            return Some((index, next));
        }
        None
    }

    /// These left in one message.
    pub(super) fn on_records_sent(&mut self, index: usize, records: &[Record], now: Instant) {
        let load: Load = records.iter().map(Load::of).sum();
        let stamp = self.flow.on_sent(load, now);
        self.cursors[index].on_records_sent(records, stamp);
        self.records_sent += load.records;
        self.pace.spend(load, now);
        self.expect_ack(now);
    }

    /// This left.
    pub(super) fn on_gap_sent(&mut self, index: usize, gap: Gap, now: Instant) {
        let stamp = self.flow.on_sent(Load::default(), now);
        self.cursors[index].on_gap_sent(gap, stamp);
        self.expect_ack(now);
    }

    /// Asks the outbox for what the window will take, by weight. What is asked for has its place in the window. To be
    /// called when nothing more can be sent.
    pub(super) fn ask(&mut self, message_bytes_max: usize, now: Instant, mut ask: impl FnMut(Fetch)) {
        let (window, batch) = (self.window(), self.batch());
        let batch = Load { bytes: batch.bytes.min(message_bytes_max as u64).max(1), ..batch };
        // Not for every crumb that an ack frees (RFC 9293 § 3.8.6.2): a batch, or a quarter of a smaller window.
        let worth = match self.flow.is_opened() {
            true => Load { records: 1, bytes: 1 }, // No ack frees anything.
            false => batch.min(Load { records: window.records.div_ceil(4), bytes: window.bytes.div_ceil(4) }),
        };
        let held: Vec<bool> = (0..self.cursors.len()).map(|index| self.is_held(index)).collect();
        // What is held back leaves its place to those that may go.
        let claimed = |(index, cursor): (usize, &Cursor)| match held[index] {
            true => cursor.flight_load(),
            false => cursor.claimed(),
        };
        let mut room = window.without(self.cursors.iter().enumerate().map(claimed).sum());
        for (index, cursor) in self.cursors.iter().enumerate() {
            self.shares.set_waiting(index, cursor.waits() && !held[index]);
        }
        while worth.fits(room) {
            let in_turn = (0..self.cursors.len()).map(|step| (self.turn_to_ask + step) % self.cursors.len());
            let asks =
                |index: &usize| self.cursors[*index].wants_fetch() && !held[*index] && self.shares.may_ask(*index);
            let Some(index) = in_turn.into_iter().find(asks) else { break };
            // About a second's worth, where there is a pace: a lane that comes later waits no longer.
            let limit = batch.min(self.pace.in_a_second()).min(room);
            room = room.without(limit);
            ask(self.cursors[index].ask(self.number, limit));
            self.shares.on_asked(index, limit);
            self.turn_to_ask = index + 1;
        }
        let record_is_next = |(index, cursor): (usize, &Cursor)| cursor.record_is_next() && !held[index];
        let paced = self.pace.allowed(now).records == 0 && self.cursors.iter().enumerate().any(record_is_next);
        self.pace_deadline = paced.then(|| self.pace.next());
        let unsent = |(index, cursor): (usize, &Cursor)| cursor.has_unsent() && !held[index];
        let starved = paced || !self.cursors.iter().enumerate().any(unsent);
        if starved {
            self.flow.on_starved();
        }
        let closed = !starved && self.is_in_flight() && !self.configured().fits(self.flow.window());
        self.open_at = closed.then(|| self.open_at.unwrap_or(now + self.flow.patience()));
    }

    /// Held back until the day's bytes are not spent any more.
    fn is_held(&self, index: usize) -> bool {
        self.capped && !self.exempt[index]
    }

    fn window(&self) -> Load {
        self.configured().min(self.flow.window())
    }

    fn configured(&self) -> Load {
        Load { records: self.config.window_records.max(1).into(), bytes: self.config.window_bytes.max(1).into() }
    }

    fn batch(&self) -> Load {
        let batch = Load { records: self.batch_records_max.into(), bytes: self.config.batch_bytes_max.into() };
        batch.min(self.flow.batch())
    }

    /// Something is in flight: an ack must come in time, if none is awaited already.
    fn expect_ack(&mut self, now: Instant) {
        let timeout = self.ack_timeout();
        self.ack_deadline.get_or_insert(now + timeout);
    }

    /// As configured, and longer where the path is slow: twice what it should take.
    fn ack_timeout(&self) -> Duration {
        let configured = Duration::from_millis(self.config.ack_timeout_ms);
        let expected = (self.rto + self.flow.time_on_the_way()) * 2;
        expected.clamp(configured, configured * ACK_TIMEOUT_FACTOR_MAX)
    }

    /// What always holds, checked after every change in debug builds.
    pub(super) fn check_invariants(&self) {
        self.cursors.iter().for_each(Cursor::check_invariants);
        let flight = self.flight();
        assert!(flight.records <= 1 || flight.fits(self.configured()), "the window holds: {flight:?}");
        assert_eq!(self.ack_deadline.is_some(), self.is_in_flight(), "an ack is awaited while something is in flight");
    }
}

/// The weight of one (lane, epoch): what is live has its share of the lane's, older epochs have the rest.
fn weight(lane: Option<&LaneConfig>, offers: &[Offer], index: usize) -> u32 {
    let (weight, live) = lane.map_or((1, 0), |lane| (lane.weight, lane.live_permille.min(PARTS)));
    let newer = |offer: &Offer| offer.lane == offers[index].lane;
    let epochs = offers.iter().filter(|offer| newer(offer)).count() as u32;
    let is_live = !offers[index + 1..].iter().any(newer);
    let parts = match (live, epochs) {
        (0, _) | (_, 0 | 1) => PARTS,
        (live, _) if is_live => live,
        (live, epochs) => ((PARTS - live) / (epochs - 1)).max(1),
    };
    weight.saturating_mul(parts)
}
