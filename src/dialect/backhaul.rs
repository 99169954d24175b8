//! One session of `backhaul.v1` on the agent's side, from the upgrade to its end. Owns the rules of the protocol;
//! knows nothing of sockets, of flash, or of what comes before and after (the link's business). Nothing of it
//! outlives its connection.

use std::collections::VecDeque;
use std::sync::Arc;

use super::codec::{self, FrameRef, MESSAGE_BYTES_MAX};
use super::cursor::{Cursor, Progress, Standing};
use super::drain::{Drain, Next};
use super::message::{AgentMessage, CommandCursor, Hello, HelloLane, Lost, ServerMessage, Welcome};
use super::surface::{Config, Greeting, Input, Output, Purpose};
use crate::config::Encoding;
use crate::link::{Class, Failure, one_line};
use crate::record::{Epoch, Gap, LaneName, Record, Seq, Why};
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
pub(super) struct Backhaul {
    encoding: Encoding,
    phase: Phase,
    pub(super) drain: Drain,
    proved: bool,
    outputs: VecDeque<Output>,
}

impl Backhaul {
    pub(super) fn new(config: Arc<Config>, greeting: Greeting, encoding: Encoding, now: Instant) -> Self {
        let mut session = Self {
            drain: Drain::new(config, &greeting, now),
            encoding,
            phase: Phase::Greeting,
            proved: false,
            outputs: VecDeque::new(),
        };
        session.transmit(&hello(greeting), Purpose::Handshake);
        session.check_invariants();
        session
    }

    pub(super) fn is_idle(&self) -> bool {
        match self.phase {
            Phase::Greeting => false,
            Phase::Open { .. } => self.drain.is_idle(),
            Phase::Over => true,
        }
    }

    pub(super) fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match self.phase {
            Phase::Over => return,
            Phase::Greeting | Phase::Open { .. } => (),
        }
        match input {
            Input::Text(text) => self.on_frame(FrameRef::Text(text), now),
            Input::Binary(bytes) => self.on_frame(FrameRef::Binary(bytes), now),
            Input::Pong(payload) => {
                if self.drain.on_arrived(payload, now) {
                    self.pump(now);
                }
            }
            Input::Offers(offers) => {
                let carried = self.drain.on_offers(offers);
                self.pump_or_end(carried, now);
            }
            Input::Items(fetch, items) => {
                let carried = self.drain.on_items(fetch, items);
                self.pump_or_end(carried, now);
            }
        }
        self.check_invariants();
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(detail) = self.drain.stalled(now) {
            self.end(Class::Stalled, 1000, detail);
        }
        self.pump(now);
        self.check_invariants();
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The day's bytes are spent, or no longer.
    pub(super) fn set_capped(&mut self, capped: bool, now: Instant) {
        self.drain.set_capped(capped);
        self.pump(now);
        if let Phase::Open { .. } = self.phase
            && self.is_idle()
        {
            self.prove();
        }
    }

    /// Tells the server which commands are done; never before it has greeted (rule 1).
    pub(super) fn send_done(&mut self, CommandCursor { stream, seq }: CommandCursor) {
        if let Phase::Open { .. } = self.phase {
            self.transmit(&AgentMessage::Done { stream, seq }, Purpose::Commands);
        }
    }

    /// Rule 8: the server has sent more commands than it may.
    pub(super) fn refuse_command(&mut self) {
        self.violation("more than 16 commands beyond the last one done");
    }

    /// What waits with the server comes with the next session.
    pub(super) fn renew(&mut self, detail: &str) {
        self.renewed(detail.into());
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
                self.outputs.push_back(Output::Retry { after_ms, spread_ms, endpoint });
            }
            (Phase::Open { .. }, ServerMessage::Pace { records_per_s }) => {
                self.drain.set_pace(records_per_s);
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
        let foreign: Vec<_> = self.drain.cursors.iter().filter(|cursor| cursor.is_foreign(acked(cursor))).collect();
        if !foreign.is_empty() {
            let pairs: Vec<_> = foreign.iter().map(|cursor| (cursor.lane.clone(), cursor.epoch)).collect();
            return self.foreign(pairs);
        }
        for refused in &welcome.rejected {
            let known = self.drain.cursors.iter().find(|cursor| cursor.is(&refused.lane, refused.epoch));
            if known.is_some_and(|cursor| cursor.may_have_refused(refused.seq)) {
                let (lane, reason) = (refused.lane.clone(), one_line(refused.reason.clone()));
                let (epoch, seq) = (refused.epoch, refused.seq);
                self.outputs.push_back(Output::Rejected { lane, epoch, seq, reason, ours: false });
            }
        }
        for cursor in &mut self.drain.cursors {
            let (lane, epoch) = (cursor.lane.clone(), cursor.epoch);
            match cursor.on_welcome(acked(cursor)) {
                Standing::Ahead(seq) => self.outputs.push_back(Output::Acked { lane, epoch, seq }),
                Standing::Behind { acked, had } => {
                    self.outputs.push_back(Output::Forgotten { lane, epoch, acked, had });
                }
                Standing::Level => (),
            }
        }
        let (server_now_ms, command_stream) = (Some(welcome.now), Some(welcome.command_stream));
        self.outputs.push_back(Output::Greeted { name: welcome.session, server_now_ms, command_stream });
        let message_bytes_max = usize::try_from(welcome.message_bytes_max).unwrap_or(usize::MAX);
        self.phase = Phase::Open { message_bytes_max: message_bytes_max.min(MESSAGE_BYTES_MAX) };
        if self.is_idle() {
            self.prove();
        }
        self.pump(now);
    }

    fn on_ack(&mut self, lane: LaneName, epoch: Epoch, seq: Seq, now: Instant) {
        let Some(index) = self.drain.position(&lane, epoch) else {
            log::debug!(target: "dialect", "ack of an unknown lane ignored lane={lane} epoch={epoch}");
            return;
        };
        match self.drain.on_ack(index, seq, now) {
            Progress::Stale => (),
            Progress::Foreign => self.foreign(vec![(lane, epoch)]),
            Progress::Unsent => {
                let sent = self.drain.cursors[index].sent();
                self.violation(&format!("ack {seq} on lane {lane} is above {sent}, the highest sent here"));
            }
            Progress::Advanced(_) => {
                self.outputs.push_back(Output::Acked { lane, epoch, seq });
                self.prove();
                self.pump(now);
            }
        }
    }

    fn on_reject(&mut self, lane: LaneName, epoch: Epoch, seq: Seq, reason: String) {
        let Some(cursor) = self.drain.cursors.iter().find(|cursor| cursor.is(&lane, epoch)) else {
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

    fn pump_or_end(&mut self, carried: Result<(), String>, now: Instant) {
        match carried {
            Ok(()) => self.pump(now),
            Err(detail) => self.renewed(detail),
        }
    }

    /// Sends and asks for whatever pace and windows allow.
    fn pump(&mut self, now: Instant) {
        let Phase::Open { message_bytes_max } = self.phase else { return };
        while let Some((index, next)) = self.drain.next(now) {
            match next {
                Next::Gap(gap) => self.send_gap(index, gap, now),
                Next::Records(records) => self.send_records(index, &records, message_bytes_max, now),
            }
            self.ping_if_wanted();
        }
        self.ping_if_wanted();
        let outputs = &mut self.outputs;
        self.drain.ask(message_bytes_max, now, |fetch| outputs.push_back(Output::Fetch(fetch)));
    }

    fn ping_if_wanted(&mut self) {
        if self.drain.wants_ping() {
            self.outputs.push_back(Output::Ping(self.drain.ping()));
        }
    }

    fn send_records(&mut self, index: usize, records: &[Record], message_bytes_max: usize, now: Instant) {
        let cursor = &self.drain.cursors[index];
        let frame = codec::encode_records(&cursor.lane, cursor.epoch, records, self.encoding);
        if frame.bytes_len() <= message_bytes_max {
            self.drain.on_records_sent(index, records, now);
            self.outputs.push_back(Output::Transmit { frame, purpose: Purpose::Records });
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
        let cursor = &self.drain.cursors[index];
        let message = AgentMessage::Gap {
            lane: cursor.lane.clone(),
            epoch: cursor.epoch,
            from: gap.from,
            to: gap.to,
            lost: vec![Lost { why: gap.why.as_str().into(), count: gap.count() }],
        };
        self.drain.on_gap_sent(index, gap, now);
        self.transmit(&message, Purpose::Records);
    }

    fn transmit(&mut self, message: &AgentMessage, purpose: Purpose) {
        let frame = codec::encode(message, self.encoding);
        self.outputs.push_back(Output::Transmit { frame, purpose });
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
        self.drain.on_end();
        self.outputs.push_back(Output::End { failure: Failure::new(class, detail), close: Some(close) });
    }

    /// What always holds, checked after every change in debug builds.
    fn check_invariants(&self) {
        if !cfg!(debug_assertions) {
            return;
        }
        let deadline = self.drain.poll_timeout();
        match self.phase {
            Phase::Over => assert!(deadline.is_none(), "nothing comes after the end"),
            Phase::Greeting => assert!(self.drain.largest_batch() == 0 && deadline.is_none(), "hello alone"),
            Phase::Open { .. } => self.drain.check_invariants(),
        }
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
