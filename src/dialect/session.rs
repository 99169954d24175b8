//! One session of `backhaul.v1` on the agent's side, from the upgrade to its end. Owns the rules of the protocol;
//! knows nothing of sockets, of flash, or of what comes before and after (the link's business). Nothing of it
//! outlives its connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::codec::{self, FrameRef, MESSAGE_BYTES_MAX};
use super::cursor::{Cursor, Load, Progress, Standing};
use super::message::{AgentMessage, Hello, HelloLane, Lost, ServerMessage, Welcome};
use super::pace::Pace;
use super::shares::Shares;
use super::surface::{Config, Greeting, Input, Output, Purpose, Timer};
use crate::config::Encoding;
use crate::link::{Class, Failure, one_line};
use crate::record::{Epoch, Fetch, Gap, Item, LaneName, Offer, Record, Seq, Why};
use crate::time::Instant;

/// A server must take messages of so many bytes at least: any `gap` fits, so that whatever is too large can be
/// reported. A `welcome` that asks for less is an error; obeying it would refuse every record.
const MESSAGE_BYTES_MIN: u64 = 256;

/// Where a session stands.
#[derive(Debug, Clone)]
enum Phase {
    /// `hello` is out; only `welcome` may come.
    Greeting,
    /// Records and acks.
    Open {
        /// A larger message is not sent, encoded.
        message_bytes_max: usize,
    },
    /// Ended.
    Over,
}

/// One session.
#[derive(Debug, Clone)]
pub struct Session {
    config: Arc<Config>,
    number: u64,
    encoding: Encoding,
    batch_records_max: u32,
    phase: Phase,
    cursors: Vec<Cursor>,
    /// Who may ask the outbox: by weight, and in turn where several may. What was fetched is sent in turn.
    shares: Shares,
    turn_to_send: usize,
    turn_to_ask: usize,
    pace: Pace,
    pace_deadline: Option<Instant>,
    ack_deadline: Option<Instant>,
    progressed: bool,
    proved: bool,
    records_sent: u64,
    outputs: VecDeque<Output>,
}

impl Session {
    /// The upgrade is done: `hello` goes out. The wait for `welcome` is part of the link's handshake deadline.
    pub fn new(config: Arc<Config>, greeting: Greeting, _now: Instant) -> Self {
        let weight = |offer: &Offer| {
            let configured = config.weights.iter().find(|(lane, _)| *lane == offer.lane);
            configured.map_or(1, |(_, weight)| *weight)
        };
        let mut session = Self {
            shares: Shares::new(greeting.offers.iter().map(weight)),
            config,
            number: greeting.session,
            encoding: greeting.encoding,
            batch_records_max: greeting.batch_records_max.max(1),
            phase: Phase::Greeting,
            cursors: greeting.offers.iter().map(Cursor::new).collect(),
            turn_to_send: 0,
            turn_to_ask: 0,
            pace: Pace::default(),
            pace_deadline: None,
            ack_deadline: None,
            progressed: false,
            proved: false,
            records_sent: 0,
            outputs: VecDeque::new(),
        };
        session.transmit(&hello(greeting), Purpose::Handshake);
        session.check_invariants();
        session
    }

    /// True with nothing in flight, nothing on offer and nothing asked for.
    pub fn is_idle(&self) -> bool {
        match self.phase {
            Phase::Greeting => false,
            Phase::Open { .. } => self.cursors.iter().all(|cursor| !cursor.is_in_flight() && !cursor.has_unsent()),
            Phase::Over => true,
        }
    }

    /// True once an ack has advanced on this connection; while false, its end halves the next one's batches (rule 6).
    pub const fn progressed(&self) -> bool {
        self.progressed
    }

    /// Records in one message, at most, from now on: what rule 6 halved grows again while acks advance.
    pub fn set_batch_records_max(&mut self, records: u32) {
        self.batch_records_max = records.max(1);
    }

    /// Records sent on this connection.
    pub const fn records_sent(&self) -> u64 {
        self.records_sent
    }

    /// Records sent on this connection and not yet known to be acked.
    #[cfg(test)]
    pub fn records_in_flight(&self) -> u64 {
        self.flight().records
    }

    /// As negotiated.
    #[cfg(test)]
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Something happened.
    pub fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match self.phase {
            Phase::Over => return,
            Phase::Greeting | Phase::Open { .. } => (),
        }
        match input {
            Input::Text(text) => self.on_frame(FrameRef::Text(text), now),
            Input::Binary(bytes) => self.on_frame(FrameRef::Binary(bytes), now),
            Input::Offers(offers) => self.on_offers(offers, now),
            Input::Items(fetch, items) => self.on_items(fetch, items, now),
        }
        self.check_invariants();
    }

    /// Time passed; harmless when nothing is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ack_deadline.is_some_and(|deadline| deadline <= now) {
            let in_flight = self.flight().records;
            let timeout_ms = self.config.ack_timeout_ms;
            self.end(Class::Stalled, 1000, format!("no ack for {timeout_ms} ms, records in flight: {in_flight}"));
        }
        self.pump(now);
        self.check_invariants();
    }

    /// What to do next; `None`: nothing until the next input or deadline.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let ack = self.ack_deadline.map(|deadline| (deadline, Timer::Ack));
        let pace = self.pace_deadline.map(|deadline| (deadline, Timer::Pace));
        ack.into_iter().chain(pace).min()
    }

    fn on_frame(&mut self, frame: FrameRef<'_>, now: Instant) {
        let agreed = match (frame, self.encoding) {
            (FrameRef::Text(_), Encoding::Json) | (FrameRef::Binary(_), Encoding::Postcard) => true,
            (FrameRef::Text(_), Encoding::Postcard) | (FrameRef::Binary(_), Encoding::Json) => false,
        };
        if !agreed {
            return self.end(Class::Protocol, 1002, "a frame of the other encoding".into());
        }
        match codec::decode(&frame) {
            Ok(Some(message)) => self.on_message(message, now),
            Ok(None) => log::debug!(target: "dialect", "unknown message ignored bytes={}", frame.bytes_len()),
            Err(error) => self.end(Class::Protocol, error.kind.close_code(), error.to_string()),
        }
    }

    fn on_message(&mut self, message: ServerMessage, now: Instant) {
        match (&self.phase, message) {
            (Phase::Greeting, ServerMessage::Welcome(welcome)) => self.on_welcome(welcome, now),
            (Phase::Open { .. }, ServerMessage::Welcome(_)) => self.violation("a second welcome"),
            (
                Phase::Greeting,
                ServerMessage::Ack { .. }
                | ServerMessage::Reject { .. }
                | ServerMessage::Command { .. }
                | ServerMessage::Retry { .. }
                | ServerMessage::Pace { .. },
            ) => self.violation("a message before welcome"),
            (Phase::Open { .. }, ServerMessage::Ack { lane, epoch, seq }) => self.on_ack(lane, epoch, seq, now),
            (Phase::Open { .. }, ServerMessage::Reject { lane, epoch, seq, reason }) => {
                self.on_reject(lane, epoch, seq, reason);
            }
            (Phase::Open { .. }, ServerMessage::Command { seq, topic, body }) => {
                self.outputs.push_back(Output::Command { seq, topic, body });
            }
            (Phase::Open { .. }, ServerMessage::Retry { after_ms, spread_ms, endpoint }) => {
                let endpoint = endpoint.filter(|url| {
                    let known = self.config.endpoint_urls.contains(url);
                    if !known {
                        log::warn!(target: "dialect", "retry to an endpoint that is not configured, ignored url={url:?}");
                    }
                    known
                });
                self.outputs.push_back(Output::Retry { after_ms, spread_ms, endpoint });
            }
            (Phase::Open { .. }, ServerMessage::Pace { records_per_s }) => {
                self.pace.set(records_per_s);
                self.pump(now);
            }
            (Phase::Over, _) => (),
        }
    }

    fn on_welcome(&mut self, welcome: Welcome, now: Instant) {
        if welcome.message_bytes_max < MESSAGE_BYTES_MIN {
            let asked = welcome.message_bytes_max;
            return self.violation(&format!("message_bytes_max {asked} is below {MESSAGE_BYTES_MIN}"));
        }
        let acked = |cursor: &Cursor| {
            let ours = welcome.acked.iter().filter(|acked| cursor.is(&acked.lane, acked.epoch));
            ours.map(|acked| acked.seq).max().unwrap_or(0)
        };
        let foreign: Vec<_> = self.cursors.iter().filter(|cursor| cursor.is_foreign(acked(cursor))).collect();
        if !foreign.is_empty() {
            let pairs: Vec<_> = foreign.iter().map(|cursor| (cursor.lane.clone(), cursor.epoch)).collect();
            return self.foreign(pairs);
        }
        for refused in &welcome.rejected {
            let known = self.cursors.iter().find(|cursor| cursor.is(&refused.lane, refused.epoch));
            if known.is_some_and(|cursor| cursor.may_have_refused(refused.seq)) {
                let (lane, reason) = (refused.lane.clone(), one_line(refused.reason.clone()));
                let (epoch, seq) = (refused.epoch, refused.seq);
                self.outputs.push_back(Output::Rejected { lane, epoch, seq, reason, ours: false });
            }
        }
        for cursor in &mut self.cursors {
            let (lane, epoch) = (cursor.lane.clone(), cursor.epoch);
            match cursor.on_welcome(acked(cursor)) {
                Standing::Ahead(seq) => self.outputs.push_back(Output::Acked { lane, epoch, seq }),
                Standing::Behind { acked, had } => {
                    self.outputs.push_back(Output::Forgotten { lane, epoch, acked, had });
                }
                Standing::Level => (),
            }
        }
        self.outputs.push_back(Output::Greeted { name: welcome.session, server_now_ms: welcome.now });
        let message_bytes_max = usize::try_from(welcome.message_bytes_max).unwrap_or(usize::MAX);
        self.phase = Phase::Open { message_bytes_max: message_bytes_max.min(MESSAGE_BYTES_MAX) };
        if self.is_idle() {
            self.prove();
        }
        self.pump(now);
    }

    fn on_ack(&mut self, lane: LaneName, epoch: Epoch, seq: Seq, now: Instant) {
        let Some(cursor) = self.cursors.iter_mut().find(|cursor| cursor.is(&lane, epoch)) else {
            log::debug!(target: "dialect", "ack of an unknown lane ignored lane={lane} epoch={epoch}");
            return;
        };
        match cursor.on_ack(seq) {
            Progress::Stale => (),
            Progress::Foreign => self.foreign(vec![(lane, epoch)]),
            Progress::Unsent => {
                let sent = cursor.sent();
                self.violation(&format!("ack {seq} on lane {lane} is above {sent}, the highest sent here"));
            }
            Progress::Advanced => {
                self.outputs.push_back(Output::Acked { lane, epoch, seq });
                self.progressed = true;
                self.prove();
                self.ack_deadline = None;
                if self.cursors.iter().any(Cursor::is_in_flight) {
                    self.expect_ack(now);
                }
                self.pump(now);
            }
        }
    }

    fn on_reject(&mut self, lane: LaneName, epoch: Epoch, seq: Seq, reason: String) {
        let Some(cursor) = self.cursors.iter().find(|cursor| cursor.is(&lane, epoch)) else {
            log::debug!(target: "dialect", "refusal on an unknown lane ignored lane={lane} epoch={epoch}");
            return;
        };
        if cursor.awaits(seq) {
            let reason = one_line(reason);
            self.outputs.push_back(Output::Rejected { lane, epoch, seq, reason, ours: false });
        } else if seq > cursor.sent() {
            self.violation(&format!("refusal of {seq} on lane {lane}, which was not sent"));
        }
    }

    fn on_offers(&mut self, offers: &[Offer], now: Instant) {
        for offer in offers {
            match self.cursors.iter_mut().find(|cursor| cursor.is(&offer.lane, offer.epoch)) {
                Some(cursor) => cursor.on_offer(offer),
                None => return self.renewed(format!("lane {} goes on in epoch {}", offer.lane, offer.epoch)),
            }
        }
        let gone = |cursor: &&Cursor| !offers.iter().any(|offer| cursor.is(&offer.lane, offer.epoch));
        if let Some(cursor) = self.cursors.iter().filter(gone).find(|cursor| cursor.has_unsent()) {
            return self.renewed(format!("lane {} no longer has epoch {}", cursor.lane, cursor.epoch));
        }
        self.pump(now);
    }

    fn on_items(&mut self, fetch: &Fetch, items: Vec<Item>, now: Instant) {
        let Some(index) = self.cursors.iter().position(|cursor| cursor.asked(fetch)) else {
            return; // The answer to another session's question.
        };
        match self.cursors[index].on_items(items) {
            Ok(()) => {
                self.shares.on_answered(index, self.cursors[index].ready_load());
                self.pump(now);
            }
            // Never a hole on the wire (rule 3): whatever went wrong in here, a new session begins at the truth.
            Err(expected) => self.renewed(format!("lane {}: the outbox does not go on at {expected}", fetch.lane)),
        }
    }

    /// Sends and asks for whatever pace and windows allow.
    fn pump(&mut self, now: Instant) {
        let Phase::Open { message_bytes_max } = self.phase else { return };
        while self.send_next(message_bytes_max, now) {}
        self.ask(message_bytes_max);
        let paced = self.pace.allowed(now) == 0 && self.cursors.iter().any(Cursor::record_is_next);
        self.pace_deadline = paced.then(|| self.pace.next());
    }

    /// Sends one message of the lane whose turn it is; false: nothing may go now.
    fn send_next(&mut self, message_bytes_max: usize, now: Instant) -> bool {
        let flight = self.flight();
        let overfull = !flight.fits(self.window()); // by a lone large record
        let room = if overfull { Load::default() } else { self.window().without(flight) };
        let records = room.records.min(self.pace.allowed(now)).min(u64::from(self.batch_records_max));
        // With nothing in flight, a record goes however large it is: else it would hold up its lane for ever.
        let first = Load { records, bytes: if flight.records == 0 { u64::MAX } else { room.bytes } };
        let batch = Load { records, bytes: room.bytes.min(self.config.batch_bytes_max.into()) };
        for step in 0..self.cursors.len() {
            let index = (self.turn_to_send + step) % self.cursors.len();
            let cursor = &mut self.cursors[index];
            if let Some(gap) = cursor.take_gap() {
                self.send_gap(index, gap, now);
            } else {
                let records = cursor.take_records(first, batch);
                if records.is_empty() {
                    continue;
                }
                self.send_records(index, &records, message_bytes_max, now);
            }
            self.turn_to_send = index + 1;
            return true;
        }
        false
    }

    fn send_records(&mut self, index: usize, records: &[Record], message_bytes_max: usize, now: Instant) {
        let cursor = &mut self.cursors[index];
        let frame = codec::encode_records(&cursor.lane, cursor.epoch, records, self.encoding);
        if frame.bytes_len() <= message_bytes_max {
            cursor.on_records_sent(records);
            let count = records.len() as u64;
            self.records_sent += count;
            self.pace.spend(count, now);
            self.outputs.push_back(Output::Transmit { frame, purpose: Purpose::Records });
            self.expect_ack(now);
        } else if let [record] = records {
            let reason = format!("{} bytes encoded, the server takes {message_bytes_max}", frame.bytes_len());
            let (lane, epoch, seq) = (cursor.lane.clone(), cursor.epoch, record.seq);
            self.outputs.push_back(Output::Rejected { lane, epoch, seq, reason, ours: true });
            self.send_gap(index, Gap { from: seq, to: seq, why: Why::Rejected }, now);
        } else {
            let (front, back) = records.split_at(records.len() / 2);
            self.send_records(index, front, message_bytes_max, now);
            self.send_records(index, back, message_bytes_max, now);
        }
    }

    fn send_gap(&mut self, index: usize, gap: Gap, now: Instant) {
        let cursor = &mut self.cursors[index];
        cursor.on_gap_sent(gap);
        let message = AgentMessage::Gap {
            lane: cursor.lane.clone(),
            epoch: cursor.epoch,
            from: gap.from,
            to: gap.to,
            lost: vec![Lost { why: gap.why.as_str().into(), count: gap.count() }],
        };
        self.transmit(&message, Purpose::Records);
        self.expect_ack(now);
    }

    /// Asks the outbox for what the window will take, by weight. What is asked for has its place in the window.
    fn ask(&mut self, message_bytes_max: usize) {
        let window = self.window();
        let batch = Load {
            records: self.batch_records_max.into(),
            bytes: u64::from(self.config.batch_bytes_max).min(message_bytes_max as u64).max(1),
        };
        // Not for every crumb that an ack frees (RFC 9293 § 3.8.6.2): a batch, or a quarter of a smaller window.
        let worth = batch.min(Load { records: window.records.div_ceil(4), bytes: window.bytes.div_ceil(4) });
        let mut room = window.without(self.cursors.iter().map(Cursor::claimed).sum());
        for (index, cursor) in self.cursors.iter().enumerate() {
            self.shares.set_waiting(index, cursor.waits());
        }
        while worth.fits(room) {
            let in_turn = (0..self.cursors.len()).map(|step| (self.turn_to_ask + step) % self.cursors.len());
            let asks = |index: &usize| self.cursors[*index].wants_fetch() && self.shares.may_ask(*index);
            let Some(index) = in_turn.into_iter().find(asks) else { return };
            // About a second's worth, where the server sets a pace: a lane that comes later waits no longer.
            let paced = Load { records: batch.records.min(self.pace.records_per_s()), ..batch };
            let limit = paced.min(room);
            room = room.without(limit);
            let fetch = self.cursors[index].ask(self.number, limit);
            self.outputs.push_back(Output::Fetch(fetch));
            self.shares.on_asked(index, limit);
            self.turn_to_ask = index + 1;
        }
    }

    fn window(&self) -> Load {
        Load { records: self.config.window_records.max(1).into(), bytes: self.config.window_bytes.max(1).into() }
    }

    fn flight(&self) -> Load {
        self.cursors.iter().map(Cursor::flight_load).sum()
    }

    fn transmit(&mut self, message: &AgentMessage, purpose: Purpose) {
        let frame = codec::encode(message, self.encoding);
        self.outputs.push_back(Output::Transmit { frame, purpose });
    }

    /// Something is in flight: an ack must come in time, if none is awaited already.
    fn expect_ack(&mut self, now: Instant) {
        self.ack_deadline.get_or_insert(now + Duration::from_millis(self.config.ack_timeout_ms));
    }

    fn prove(&mut self) {
        if !self.proved {
            self.proved = true;
            self.outputs.push_back(Output::Proved);
        }
    }

    /// Rule 7: nothing is trimmed, and the session ends.
    fn foreign(&mut self, pairs: Vec<(LaneName, Epoch)>) {
        let named = pairs.first().map(|(lane, _)| lane.to_string()).unwrap_or_default();
        self.outputs.extend(pairs.into_iter().map(|(lane, epoch)| Output::Foreign { lane, epoch }));
        self.renewed(format!("the server acked what was never sent on lane {named}"));
    }

    fn renewed(&mut self, detail: String) {
        self.end(Class::Renewed, 1000, detail);
    }

    /// Rule 10: a message not allowed at this point.
    fn violation(&mut self, detail: &str) {
        self.end(Class::Protocol, 1008, detail.into());
    }

    fn end(&mut self, class: Class, close: u16, detail: String) {
        self.phase = Phase::Over;
        self.ack_deadline = None;
        self.pace_deadline = None;
        let failure = Failure { class, detail, server_wait_ms: None, server_spread_ms: None };
        self.outputs.push_back(Output::End { failure, close: Some(close) });
    }

    /// What always holds, checked after every change in debug builds.
    fn check_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        match self.phase {
            Phase::Over => return assert!(self.poll_timeout().is_none(), "nothing comes after the end"),
            Phase::Greeting => assert!(self.records_sent == 0 && self.poll_timeout().is_none(), "hello alone"),
            Phase::Open { .. } => (),
        }
        self.cursors.iter().for_each(Cursor::check_invariants);
        let flight = self.flight();
        assert!(flight.records <= 1 || flight.fits(self.window()), "the window holds: {flight:?}");
        let in_flight = self.cursors.iter().any(Cursor::is_in_flight);
        assert_eq!(self.ack_deadline.is_some(), in_flight, "an ack is awaited while something is in flight");
    }
}

fn hello(greeting: Greeting) -> AgentMessage {
    let lanes = greeting.offers.into_iter().map(|offer| HelloLane {
        lane: offer.lane,
        epoch: offer.epoch,
        first: offer.first,
        next: offer.next,
    });
    AgentMessage::Hello(Hello {
        device: greeting.device,
        agent: greeting.agent,
        boot: greeting.boot,
        features: Vec::new(),
        lanes: lanes.collect(),
        commands: greeting.commands,
        last: greeting.last,
    })
}
