//! One session in whichever dialect was agreed: the surface that `upstream` drives.

use std::sync::Arc;
use std::time::Duration;

use super::backhaul::Backhaul;
use super::drain::Drain;
use super::message::CommandCursor;
use super::plain::Plain;
use super::surface::{Config, Greeting, InFlight, Input, Output, Timer};
use crate::time::Instant;

/// One session, from the upgrade to its end. Nothing of it outlives its connection.
#[derive(Debug, Clone)]
pub struct Session(Dialect);

#[derive(Debug, Clone)]
enum Dialect {
    Backhaul(Box<Backhaul>),
    Plain(Box<Plain>),
}

impl Session {
    /// The upgrade is done: `hello` goes out, where there is one. The wait for `welcome` is part of the link's
    /// handshake deadline.
    pub fn new(config: Arc<Config>, greeting: Greeting, now: Instant) -> Self {
        Self(match greeting.encoding {
            Some(encoding) => Dialect::Backhaul(Backhaul::new(config, greeting, encoding, now).into()),
            None => Dialect::Plain(Plain::new(config, &greeting, now).into()),
        })
    }

    /// True with nothing in flight, nothing on offer and nothing asked for.
    pub fn is_idle(&self) -> bool {
        match &self.0 {
            Dialect::Backhaul(session) => session.is_idle(),
            Dialect::Plain(session) => session.is_idle(),
        }
    }

    /// True once an ack has advanced on this connection; while false, its end halves the next one's batches (rule 6).
    pub fn progressed(&self) -> bool {
        self.drain().progressed()
    }

    /// The most records that left in one message on this connection.
    pub fn largest_batch(&self) -> u32 {
        self.drain().largest_batch()
    }

    /// Bytes a second that the path delivers, about, where that is known.
    pub fn bytes_per_s(&self) -> Option<u64> {
        self.drain().rate()
    }

    /// Records in one message, at most, from now on: what rule 6 halved grows again while acks advance.
    pub fn set_batch_records_max(&mut self, records: u32) {
        self.drain_mut().set_batch_records_max(records);
    }

    /// When a pong would be late (RFC 6298): acks have as long at least.
    pub fn set_rto(&mut self, rto: Duration) {
        self.drain_mut().set_rto(rto);
    }

    /// The day's bytes are spent: only lanes that are exempt go on; or no longer.
    pub fn set_capped(&mut self, capped: bool, now: Instant) {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.set_capped(capped, now),
            Dialect::Plain(session) => session.set_capped(capped, now),
        }
    }

    /// The link wants a ping. A number: it is among the outputs, with this one; `None`: it is the caller's to send.
    pub fn heartbeat(&mut self) -> Option<u64> {
        match &mut self.0 {
            Dialect::Backhaul(_) => None,
            Dialect::Plain(session) => Some(session.heartbeat()),
        }
    }

    /// Something happened.
    pub fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.handle_input(input, now),
            Dialect::Plain(session) => session.handle_input(input, now),
        }
    }

    /// Time passed; harmless when nothing is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.handle_timeout(now),
            Dialect::Plain(session) => session.handle_timeout(now),
        }
    }

    /// What to do next; `None`: nothing until the next input or deadline.
    pub fn poll_output(&mut self) -> Option<Output> {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.poll_output(),
            Dialect::Plain(session) => session.poll_output(),
        }
    }

    /// When [`Session::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        self.drain().poll_timeout()
    }

    /// What was sent on this connection and is not known to be acked.
    pub fn in_flight(&self) -> InFlight {
        InFlight { records: self.drain().flight().records, lone: self.drain().lone() }
    }

    /// Tells the far end which commands are done.
    pub fn send_done(&mut self, done: CommandCursor) {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.send_done(done),
            Dialect::Plain(_) => {}
        }
    }

    /// Ends it: the far end has sent more commands than it may.
    pub fn refuse_command(&mut self) {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.refuse_command(),
            Dialect::Plain(_) => {}
        }
    }

    /// Ends it, for a new one at once.
    pub fn renew(&mut self, detail: &str) {
        match &mut self.0 {
            Dialect::Backhaul(session) => session.renew(detail),
            Dialect::Plain(_) => {}
        }
    }

    /// So many records are still to go one at a time.
    pub fn lone_records(&self) -> u32 {
        self.drain().lone_records()
    }

    fn drain(&self) -> &Drain {
        match &self.0 {
            Dialect::Backhaul(session) => &session.drain,
            Dialect::Plain(session) => &session.drain,
        }
    }

    fn drain_mut(&mut self) -> &mut Drain {
        match &mut self.0 {
            Dialect::Backhaul(session) => &mut session.drain,
            Dialect::Plain(session) => &mut session.drain,
        }
    }
}
