//! One session of the plain dialect: each record one message to any WebSocket server, acknowledged by the pong to a
//! ping that was sent behind it. At least once, and what is acknowledged is that the far end's WebSocket layer has read
//! it: whatever answers pings on the way defeats it. `docs/plain.md` says what that is worth.

use std::collections::VecDeque;
use std::sync::Arc;

use super::codec::MESSAGE_BYTES_MAX;
use super::cursor::Progress;
use super::drain::{Drain, Next};
use super::message::Frame;
use super::surface::{Config, Greeting, Input, Output, Purpose};
use crate::link::{Class, Failure};
use crate::record::{Body, Record, Seq};
use crate::time::Instant;

/// One session.
#[derive(Debug, Clone)]
pub(super) struct Plain {
    pub(super) drain: Drain,
    proved: bool,
    over: bool,
    outputs: VecDeque<Output>,
}

impl Plain {
    pub(super) fn new(config: Arc<Config>, greeting: &Greeting, now: Instant) -> Self {
        let mut session =
            Self { drain: Drain::new(config, greeting, now), proved: false, over: false, outputs: VecDeque::new() };
        // The upgrade is all the greeting there is.
        let name = format!("plain-{}", greeting.session);
        session.outputs.push_back(Output::Greeted { name, server_now_ms: None, command_stream: None });
        session.pump(now);
        session
    }

    pub(super) fn is_idle(&self) -> bool {
        self.over || self.drain.is_idle()
    }

    pub(super) fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        if self.over {
            return;
        }
        match input {
            Input::Text(text) => ignored(text.len()),
            Input::Binary(bytes) => ignored(bytes.len()),
            Input::Pong(payload) => self.on_pong(payload, now),
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
        if self.over {
            return;
        }
        match self.drain.stalled(now) {
            Some(detail) => self.end(Class::Stalled, detail),
            None => self.pump(now),
        }
        self.check_invariants();
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn set_capped(&mut self, capped: bool, now: Instant) {
        self.drain.set_capped(capped);
        if !self.over {
            self.pump(now);
        }
    }

    /// The heartbeat's ping: behind what was sent, with the next number.
    pub(super) fn heartbeat(&mut self) -> u64 {
        self.ping()
    }

    fn on_pong(&mut self, payload: &[u8], now: Instant) {
        let Some(sent) = self.drain.pings.on_pong(payload) else { return };
        for (index, seq) in sent.into_iter().enumerate() {
            self.confirm(index, seq, now);
        }
        self.pump(now);
    }

    fn confirm(&mut self, index: usize, seq: Seq, now: Instant) {
        match self.drain.on_ack(index, seq, now) {
            Progress::Advanced(_) => {
                self.acked(index, seq);
                self.prove();
            }
            // No barrier is above what was sent here.
            Progress::Stale | Progress::Unsent | Progress::Foreign => (),
        }
    }

    fn acked(&mut self, index: usize, seq: Seq) {
        let cursor = &self.drain.cursors[index];
        let (lane, epoch) = (cursor.lane.clone(), cursor.epoch);
        self.outputs.push_back(Output::Acked { lane, epoch, seq });
    }

    fn pump_or_end(&mut self, carried: Result<(), String>, now: Instant) {
        match carried {
            Ok(()) => self.pump(now),
            Err(detail) => self.end(Class::Renewed, detail),
        }
    }

    /// Sends and asks for whatever pace and windows allow; a ping goes behind it.
    fn pump(&mut self, now: Instant) {
        let mut wants_ping = false;
        while let Some((index, next)) = self.drain.next(now) {
            match next {
                Next::Records(records) => {
                    self.drain.on_records_sent(index, &records, now);
                    self.outputs.extend(records.into_iter().map(transmit));
                    wants_ping = true;
                }
                // Nobody up there knows of numbers: with nothing before it, it is settled here, which proves nothing.
                Next::Gap(gap) if !self.drain.cursors[index].is_in_flight() => {
                    self.drain.cursors[index].on_gap_settled(gap);
                    self.acked(index, gap.to);
                }
                Next::Gap(gap) => {
                    self.drain.on_gap_sent(index, gap, now);
                    wants_ping = true;
                }
            }
        }
        if self.is_idle() {
            self.prove();
        }
        if wants_ping || self.drain.wants_ping() {
            self.ping();
        }
        let outputs = &mut self.outputs;
        self.drain.ask(MESSAGE_BYTES_MAX, now, |fetch| outputs.push_back(Output::Fetch(fetch)));
    }

    fn ping(&mut self) -> u64 {
        let counter = self.drain.ping();
        self.outputs.push_back(Output::Ping(counter));
        counter
    }

    fn prove(&mut self) {
        if !std::mem::replace(&mut self.proved, true) {
            self.outputs.push_back(Output::Proved);
        }
    }

    fn end(&mut self, class: Class, detail: String) {
        self.over = true;
        self.drain.on_end();
        self.outputs.push_back(Output::End { failure: Failure::new(class, detail), close: Some(1000) });
    }

    fn check_invariants(&self) {
        if cfg!(debug_assertions) && !self.over {
            self.drain.check_invariants();
            assert!(
                !self.drain.is_in_flight() || self.drain.pings.is_awaiting(),
                "what is in flight has a ping behind it"
            );
        }
    }
}

fn transmit(record: Record) -> Output {
    let frame = match record.body {
        Body::Text(text) => Frame::Text(text),
        Body::Bytes(bytes) => Frame::Binary(bytes),
    };
    Output::Transmit { frame, purpose: Purpose::Records }
}

fn ignored(bytes: usize) {
    log::debug!(target: "dialect", "a message of the plain server ignored bytes={bytes}");
}
