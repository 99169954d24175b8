//! Where the threads meet. No thread waits on a queue to another: what passes between them lies in cells and short
//! lists with a bound, behind one lock that is held for a move, and a waker says that there is something.
//!
//! - local → outbox: [`Put`]s, at most [`PUTS_BYTES_MAX`]; when it is full, `local` stops reading its clients.
//! - uplink → outbox: one ack cell a (lane, epoch) (the highest wins), one [`Fetch`] a (lane, epoch), one
//!   refusal a record in the window.
//! - outbox → uplink: the current [`Offer`]s, answers to fetches.
//! - outbox → local: [`Outcome`]s, one a put.
//! - uplink → local: [`Command`]s, as many as are under way at most.
//! - local → outbox → uplink: the last command done, one cell each; in between it goes to flash.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::commands::Command;
use crate::config::Endpoint;
use crate::dialect::message::CommandCursor;
use crate::outbox::Draft;
use crate::record::{Epoch, Fetch, Item, LaneName, Offer, Seq};
use crate::shell::handler::Report;
use crate::shell::saved::Written;
use crate::shell::uplink::Setup;
use crate::time::Instant;

/// Bytes of topic and body waiting for the outbox thread, at most; a put is taken while the sum is below it.
pub const PUTS_BYTES_MAX: usize = 1 << 20;
/// Puts waiting for the outbox thread, at most.
pub const PUTS_MAX: usize = 8192;

/// How long a producer waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Numbered; on flash when the lane's mode says.
    Accepted,
    /// On flash.
    Committed,
    /// Acked upstream.
    Delivered,
}

/// Names a put: the client's slot and generation, and the request's number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The client.
    pub client: u64,
    /// The request.
    pub request: u64,
}

/// A record on its way in.
#[derive(Debug, Clone)]
pub struct Put {
    /// Who wants the answer; `None` for the agent's own events.
    pub ticket: Option<Ticket>,
    /// `None`: the default lane.
    pub lane: Option<String>,
    /// The record.
    pub draft: Draft,
    /// `None`: as the lane's mode has it (`sync`: committed, else accepted).
    pub wait: Option<Wait>,
}

/// The answer to a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// In RAM, on flash when the lane's mode says.
    Accepted,
    /// On flash.
    Committed,
    /// Acked upstream.
    Delivered,
    /// An error code of the local socket and a message.
    Error(&'static str, String),
}

/// What became of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whose.
    pub ticket: Ticket,
    /// What.
    pub answer: Answer,
    /// The lane it went to; `None` with an error before a lane was found.
    pub lane: Option<LaneName>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
}

/// A record is refused for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for people.
    pub reason: String,
    /// Not by the server but by this agent (protocol rule 6).
    pub ours: bool,
}

/// What lies in wait for the outbox thread.
#[derive(Debug, Default)]
pub struct ForOutbox {
    /// Records in.
    pub puts: Vec<Put>,
    /// Bytes of topic and body in `puts`.
    pub puts_bytes: usize,
    /// Clients that left while they waited for `delivered`.
    pub gone: Vec<u64>,
    /// Highest ack a (lane, epoch).
    pub acks: BTreeMap<(LaneName, Epoch), Seq>,
    /// What the session wants next, one a (lane, epoch).
    pub fetches: Vec<Fetch>,
    /// Records refused for ever, and why, each before the ack that covers it.
    pub rejected: BTreeMap<(LaneName, Epoch, Seq), Refusal>,
    /// Numberings that are not ours.
    pub foreign: Vec<(LaneName, Epoch)>,
    /// A connection is about to begin: the uplink waits for the offers to name, and for
    /// [`ForUplink::offers_prepared`].
    pub prepare_offers: bool,
    /// The upstream's time in Unix ms, and when it was told: read with the fetches that follow it.
    pub server_time: Option<(u64, Instant)>,
    /// Every command up to there is done; to be kept on flash.
    pub done: Option<CommandCursor>,
    /// What was written to flash beside the outbox since the thread looked.
    pub beside: Written,
    /// The agent is about to leave: no commit is held back any more.
    pub hurry: bool,
    /// Put everything on flash and leave.
    pub stop: bool,
}

impl ForOutbox {
    /// True when no further put may be added.
    pub fn is_full(&self) -> bool {
        self.puts.len() >= PUTS_MAX || self.puts_bytes >= PUTS_BYTES_MAX
    }

    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty()
            && self.gone.is_empty()
            && self.acks.is_empty()
            && self.fetches.is_empty()
            && self.rejected.is_empty()
            && self.foreign.is_empty()
            && !self.prepare_offers
            && self.done.is_none()
            && self.beside == Written::default()
            && !self.hurry
            && !self.stop
    }
}

/// What lies in wait for the uplink thread.
#[derive(Debug, Default)]
pub struct ForUplink {
    /// What the outbox can offer now; replaced, never appended to.
    pub offers: Vec<Offer>,
    /// `offers` changed since the uplink looked.
    pub offers_changed: bool,
    /// They are as a connection that begins now may name them.
    pub offers_prepared: bool,
    /// Answers to fetches.
    pub items: Vec<(Fetch, Vec<Item>)>,
    /// Every command up to there is done, on flash.
    pub done: Option<CommandCursor>,
    /// Another configuration, to be taken up in place, and what its `endpoints_file` says, if that is good.
    pub setup: Option<(Box<Setup>, Option<Vec<Endpoint>>)>,
    /// Someone asks for a reload that changed nothing in the configuration: credentials may have changed.
    pub sources_changed: bool,
    /// Leave.
    pub stop: bool,
}

/// What lies in wait for the local thread.
#[derive(Debug, Default)]
pub struct ForLocal {
    /// Answers to puts.
    pub outcomes: Vec<Outcome>,
    /// For local programs, in order; at most [`COMMANDS_MAX`](crate::commands::COMMANDS_MAX) are not done.
    pub commands: Vec<Command>,
    /// Handlers' runs that have ended; at most one each.
    pub handled: Vec<Report>,
    /// The link's state changed (for `watch`).
    pub link_changed: bool,
    /// Take nothing more, answer what was taken, leave.
    pub stop: bool,
    /// Leave, whatever is not answered.
    pub leave: bool,
}

/// What lies in wait for the page's thread.
#[derive(Debug, Default)]
pub struct ForPage {
    /// Leave.
    pub stop: bool,
}

/// A lock and the call that wakes its reader.
pub struct Port<T> {
    cell: Mutex<T>,
    /// For a reader that sleeps on the cell itself (the outbox thread).
    pub filled: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl<T: Default> Port<T> {
    /// A port whose reader sleeps on [`Port::filled`].
    pub fn new() -> Self {
        Self { cell: Mutex::default(), filled: Condvar::new(), wake: Box::new(|| ()) }
    }

    /// A port whose reader sleeps elsewhere and is woken by `wake` (a mio waker).
    pub fn with_wake(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { cell: Mutex::default(), filled: Condvar::new(), wake: Box::new(wake) }
    }

    /// Changes the content and wakes the reader.
    pub fn give<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.filled.notify_one();
        (self.wake)();
        result
    }

    /// Looks at the content, or changes it without waking anyone.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // What lies here stays valid whatever a panicking thread was doing: each change is one move.
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Default for Port<T> {
    fn default() -> Self {
        Self::new()
    }
}
