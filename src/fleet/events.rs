//! What is to happen, in its order. Owns nothing but times; what is still true of an entry, whoever takes it out knows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What happens to a device or to the server. At one instant in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The server is back.
    ServerUp,
    /// The server may take the next one out of its backlog.
    Backlog,
    /// An attempt reaches the server.
    Arrive,
    /// The server's answer to an attempt reaches the device.
    Answer,
    /// The end of its session reaches the device.
    Lost,
    /// A pong reaches the device.
    Pong,
    /// A deadline of the device.
    Timer,
}

/// At, what, whose: 16 bytes, and ordered alike on each machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Event {
    /// In µs.
    pub(super) at: u64,
    pub(super) kind: Kind,
    /// Of which attempt or session of the device it is.
    pub(super) generation: u16,
    pub(super) device: u32,
}

/// The earliest first.
#[derive(Debug, Default)]
pub(super) struct Events {
    heap: BinaryHeap<Reverse<Event>>,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        self.heap.push(Reverse(event));
    }

    /// For the server.
    pub(super) fn push_server(&mut self, at: u64, kind: Kind) {
        self.push(Event { at, kind, generation: 0, device: 0 });
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        self.heap.pop().map(|Reverse(event)| event)
    }
}
