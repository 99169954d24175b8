//! What every dialect has in common on the way up: cursors, windows, shares, pace and flow; what is asked of the outbox
//! and what goes next. Knows nothing of messages, of what an ack looks like, or of how a session begins and ends.

use std::sync::Arc;
use std::time::Duration;

use super::cursor::{Cursor, Landed, Load, Progress};
use super::flow::Flow;
use super::pace::Pace;
use super::pings::Pings;
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
    pub(super) pings: Pings,
    /// No ack has come yet, or none for long: pongs say what has arrived, and a ping goes behind each message that others
    /// wait behind.
    probing: bool,
    /// No ack has come for long: none will free more than what is left of the window.
    unfreed: bool,
    /// Something was sent behind the newest ping.
    unpinged: bool,
    /// So many records go one at a time: the far end found one of them too large.
    lone_records: u32,
    /// When a ping's pong would be late (RFC 6298), as the link has it.
    rto: Duration,
    ack_deadline: Option<Instant>,
    /// Something waits, and a window may open: when to see to it, should neither ack nor pong come.
    open_at: Option<Instant>,
    progressed: bool,
    /// The most records that left in one message.
    largest_batch: u32,
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
            pings: Pings::default(),
            probing: true,
            unfreed: false,
            unpinged: false,
            lone_records: greeting.lone_records,
            rto: Duration::ZERO,
            ack_deadline: None,
            open_at: None,
            progressed: false,
            largest_batch: 0,
            config,
        }
    }

    /// True with nothing in flight and nothing to send.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_in_flight() && !self.has_unsent()
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.cursors.iter().any(Cursor::is_in_flight)
    }

    pub(super) const fn progressed(&self) -> bool {
        self.progressed
    }

    pub(super) const fn largest_batch(&self) -> u32 {
        self.largest_batch
    }

    pub(super) const fn lone_records(&self) -> u32 {
        self.lone_records
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

    /// The one record in flight, where there is just one.
    pub(super) fn lone(&self) -> Option<(LaneName, Epoch, Seq)> {
        let lone = self.cursors.iter().find(|cursor| cursor.flight_load().records == 1);
        let lone = lone.filter(|_| self.flight().records == 1)?;
        Some((lone.lane.clone(), lone.epoch, lone.record_in_flight()?))
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
        let before = self.cursors[index].flight_load().records;
        let progress = self.cursors[index].on_ack(seq);
        if let Progress::Advanced(landed) = progress {
            if let Some(Landed { news, stamp }) = landed {
                self.flow.on_arrived(news, stamp, now);
                self.flow.on_acked(stamp, now);
            }
            let acked = before - self.cursors[index].flight_load().records;
            self.lone_records = self.lone_records.saturating_sub(u32::try_from(acked).unwrap_or(u32::MAX));
            self.pings.on_acked(&self.cursors);
            self.progressed = true;
            (self.probing, self.unfreed) = (false, false);
            (self.ack_deadline, self.open_at) = (None, None);
            if self.is_in_flight() {
                self.expect_ack(now);
            }
        }
        progress
    }

    /// A pong that is no ack says what has arrived. True where that is news.
    pub(super) fn on_arrived(&mut self, payload: &[u8], now: Instant) -> bool {
        let Some(sent) = self.pings.on_pong(payload) else { return false };
        let landed = self.cursors.iter_mut().zip(sent).filter_map(|(cursor, seq)| cursor.on_arrived(seq));
        let landed =
            landed.reduce(|one, other| Landed { news: one.news + other.news, stamp: one.stamp.max(other.stamp) });
        if let Some(Landed { news, stamp }) = landed {
            self.flow.on_arrived(news, stamp, now);
            self.open_at = None;
        }
        landed.is_some()
    }

    /// A ping is to go behind what was sent: records wait, and no ack says how they get on.
    pub(super) fn wants_ping(&self) -> bool {
        self.probing && self.unpinged && self.may_open() && self.has_unsent()
    }

    /// A ping goes behind what was sent; its number.
    pub(super) fn ping(&mut self) -> u64 {
        self.unpinged = false;
        self.pings.next(self.cursors.iter().map(Cursor::sent).collect())
    }

    /// Nothing comes after it.
    pub(super) fn on_end(&mut self) {
        (self.ack_deadline, self.pace_deadline, self.open_at) = (None, None, None);
    }

    /// What goes now, of the lane whose turn it is.
    pub(super) fn next(&mut self, now: Instant) -> Option<(usize, Next)> {
        if self.open_at.take_if(|at| *at <= now).is_some() {
            self.on_patience_over();
        }
        let (flight, on_way) = (self.flight(), self.on_way());
        let (unacked, path) = (self.unacked().room(flight), self.flow.window().room(on_way));
        let room = unacked.min(path);
        let batch = self.batch().min(self.pace.allowed(now));
        let records = room.records.min(batch.records);
        // With nothing before it, a record goes however large it is: else it would hold up its lane for ever.
        let fits = |room: Load, before: Load| if before.records == 0 { u64::MAX } else { room.bytes };
        let first = Load { records, bytes: fits(unacked, flight).min(fits(path, on_way)) };
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
        self.largest_batch = self.largest_batch.max(u32::try_from(load.records).unwrap_or(u32::MAX));
        self.unpinged = true;
        self.pace.spend(load, now);
        self.expect_ack(now);
    }

    /// This left.
    pub(super) fn on_gap_sent(&mut self, index: usize, gap: Gap, now: Instant) {
        let stamp = self.flow.on_sent(Load::default(), now);
        self.cursors[index].on_gap_sent(gap, stamp);
        self.unpinged = true;
        self.expect_ack(now);
    }

    /// Asks the outbox for what the window will take, by weight. What is asked for has its place in the window. To be
    /// called when nothing more can be sent.
    pub(super) fn ask(&mut self, message_bytes_max: usize, now: Instant, mut ask: impl FnMut(Fetch)) {
        let batch = self.batch();
        let batch = Load { bytes: batch.bytes.min(message_bytes_max as u64).max(1), ..batch };
        let held: Vec<bool> = (0..self.cursors.len()).map(|index| self.is_held(index)).collect();
        // What is held back leaves its place to those that may go.
        let goes = self.cursors.iter().zip(&held).filter(|(_, held)| !**held);
        let claimed: Load = goes.map(|(cursor, _)| cursor.claimed()).sum();
        let (unacked, path) = (self.unacked(), self.flow.window());
        let crumb = Load { records: 1, bytes: 1 };
        // Not for every crumb that is freed (RFC 9293 § 3.8.6.2): a batch, or a quarter of a smaller window.
        let worth =
            |window: Load| batch.min(Load { records: window.records.div_ceil(4), bytes: window.bytes.div_ceil(4) });
        let worth_unacked = if self.unfreed { crumb } else { worth(unacked) };
        let worth_path = worth(unacked.min(path));
        let mut room_unacked = unacked.room(self.flight() + claimed);
        let mut room_path = path.room(self.on_way() + claimed);
        for (index, cursor) in self.cursors.iter().enumerate() {
            self.shares.set_waiting(index, cursor.waits() && !held[index]);
        }
        while worth_unacked.fits(room_unacked) && worth_path.fits(room_path) {
            let in_turn = (0..self.cursors.len()).map(|step| (self.turn_to_ask + step) % self.cursors.len());
            let asks =
                |index: &usize| self.cursors[*index].wants_fetch() && !held[*index] && self.shares.may_ask(*index);
            let Some(index) = in_turn.into_iter().find(asks) else { break };
            // About a second's worth, where there is a pace: a lane that comes later waits no longer.
            let limit = batch.min(self.pace.in_a_second()).min(room_unacked).min(room_path);
            (room_unacked, room_path) = (room_unacked.without(limit), room_path.without(limit));
            ask(self.cursors[index].ask(self.number, limit));
            self.shares.on_asked(index, limit);
            self.turn_to_ask = index + 1;
        }
        let record_is_next = |(index, cursor): (usize, &Cursor)| cursor.record_is_next() && !held[index];
        let paced = self.pace.allowed(now).records == 0 && self.cursors.iter().enumerate().any(record_is_next);
        self.pace_deadline = paced.then(|| self.pace.next());
        let starved = paced || !self.has_unsent();
        if starved {
            self.flow.on_starved();
        }
        let wants = self.cursors.iter().zip(&held).any(|(cursor, held)| cursor.wants_fetch() && !held);
        let leaves = wants && crumb.fits(room_unacked) && !worth_unacked.fits(room_unacked);
        // With all arrived, only the brake can still be released: what waits then waits for acks.
        let may_open = self.may_open() && (self.on_way().records > 0 || self.is_braked());
        let waits = !starved && self.is_in_flight() && (may_open || leaves);
        let patience = self.flow.patience(self.probing && self.pings.is_awaiting());
        self.open_at = waits.then(|| self.open_at.unwrap_or(now + patience));
    }

    /// Neither ack nor pong came: either all has arrived, or a pong is to tell.
    fn on_patience_over(&mut self) {
        let has_arrived = self.on_way().records == 0;
        if has_arrived {
            self.flow.release();
        }
        (self.probing, self.unpinged, self.unfreed) = (true, !has_arrived, true);
    }

    /// Not all that is configured may go.
    fn may_open(&self) -> bool {
        !self.configured().fits(self.flow.window().min(self.flow.unacked()))
    }

    /// Less may be unacked than is configured: the far end lags.
    fn is_braked(&self) -> bool {
        !self.configured().fits(self.flow.unacked())
    }

    /// Something waits that may go.
    fn has_unsent(&self) -> bool {
        self.cursors.iter().enumerate().any(|(index, cursor)| cursor.has_unsent() && !self.is_held(index))
    }

    /// What of the flight is not known to have arrived.
    fn on_way(&self) -> Load {
        self.cursors.iter().map(Cursor::on_way).sum()
    }

    /// Held back until the day's bytes are not spent any more.
    fn is_held(&self, index: usize) -> bool {
        self.capped && !self.exempt[index]
    }

    /// What may be unacked now.
    fn unacked(&self) -> Load {
        self.configured().min(self.flow.unacked())
    }

    fn configured(&self) -> Load {
        let records = if self.lone_records > 0 { 1 } else { self.config.window_records.max(1).into() };
        Load { records, bytes: self.config.window_bytes.max(1).into() }
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
