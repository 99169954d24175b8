//! One session of the plain dialect: each record one message to any WebSocket server, acknowledged by the pong to a
//! ping that was sent behind it. At least once, and what is acknowledged is that the far end's WebSocket layer has read
//! it: whatever answers pings on the way defeats it. `docs/plain.md` says what that is worth.
//!
//! Pings carry a counter. A pong confirms every ping before the one that it answers (RFC 6455 § 5.5.3: a server may
//! answer the newest one alone), and each ping confirms what was sent before it (§ 5.4: no message is reordered).

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

/// A ping, and how far each cursor was sent when it was.
#[derive(Debug, Clone)]
struct Barrier {
    counter: u64,
    sent: Vec<Seq>,
}

/// One session.
#[derive(Debug, Clone)]
pub(super) struct Plain {
    pub(super) drain: Drain,
    /// Pings whose pong has not come, oldest first.
    barriers: VecDeque<Barrier>,
    /// Of the newest ping.
    counter: u64,
    proved: bool,
    over: bool,
    outputs: VecDeque<Output>,
}

impl Plain {
    pub(super) fn new(config: Arc<Config>, greeting: &Greeting, now: Instant) -> Self {
        let mut session = Self {
            drain: Drain::new(config, greeting, now),
            barriers: VecDeque::new(),
            counter: 0,
            proved: false,
            over: false,
            outputs: VecDeque::new(),
        };
        // The upgrade is all the greeting there is.
        let name = format!("plain-{}", greeting.session);
        session.outputs.push_back(Output::Greeted { name, server_now_ms: None });
        if session.is_idle() {
            session.prove();
        }
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
            if self.is_idle() {
                self.prove();
            }
        }
    }

    /// The heartbeat's ping: behind what was sent, with the next number.
    pub(super) fn heartbeat(&mut self) -> u64 {
        self.ping();
        self.counter
    }

    fn on_pong(&mut self, payload: &[u8], now: Instant) {
        let counter = std::str::from_utf8(payload).ok().and_then(|text| text.parse::<u64>().ok());
        // One that nobody asked for (RFC 6455 § 5.5.3) confirms nothing.
        let Some(counter) = counter.filter(|counter| *counter <= self.counter) else { return };
        let mut confirmed = None;
        while self.barriers.front().is_some_and(|barrier| barrier.counter <= counter) {
            confirmed = self.barriers.pop_front();
        }
        let Some(Barrier { sent, .. }) = confirmed else { return };
        for (index, seq) in sent.into_iter().enumerate() {
            self.confirm(index, seq, now);
        }
        self.pump(now);
    }

    fn confirm(&mut self, index: usize, seq: Seq, now: Instant) {
        match self.drain.on_ack(index, seq, now) {
            Progress::Advanced(_) => {
                let cursor = &self.drain.cursors[index];
                let (lane, epoch) = (cursor.lane.clone(), cursor.epoch);
                self.outputs.push_back(Output::Acked { lane, epoch, seq });
                self.prove();
            }
            // No barrier is above what was sent here.
            Progress::Stale | Progress::Unsent | Progress::Foreign => (),
        }
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
                Next::Gap(gap) => {
                    // Nobody up there knows of numbers: with nothing before it, it is as good as acked.
                    let alone = !self.drain.cursors[index].is_in_flight();
                    self.drain.on_gap_sent(index, gap, now);
                    if alone {
                        self.confirm(index, gap.to, now);
                    }
                    wants_ping |= !alone;
                }
            }
        }
        if wants_ping {
            self.ping();
        }
        let outputs = &mut self.outputs;
        self.drain.ask(MESSAGE_BYTES_MAX, now, |fetch| outputs.push_back(Output::Fetch(fetch)));
    }

    fn ping(&mut self) {
        self.counter += 1;
        let sent = self.drain.cursors.iter().map(super::cursor::Cursor::sent).collect();
        // A silent far end is found dead long before these are many; the newest says all that those before it say.
        self.barriers.push_back(Barrier { counter: self.counter, sent });
        self.outputs.push_back(Output::Ping(self.counter));
    }

    fn prove(&mut self) {
        if !std::mem::replace(&mut self.proved, true) {
            self.outputs.push_back(Output::Proved);
        }
    }

    fn end(&mut self, class: Class, detail: String) {
        self.over = true;
        self.drain.on_end();
        let failure = Failure { class, detail, server_wait_ms: None, server_spread_ms: None };
        self.outputs.push_back(Output::End { failure, close: Some(1000) });
    }

    fn check_invariants(&self) {
        if cfg!(debug_assertions) && !self.over {
            self.drain.check_invariants();
            assert!(!self.drain.is_in_flight() || !self.barriers.is_empty(), "what is in flight has a ping behind it");
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
