//! Pings that go behind what was sent, and what their pongs say. Knows numbers, nothing of what an arrival is worth.
//!
//! Each carries a counter. A pong confirms every ping before the one that it answers (RFC 6455 § 5.5.3: a server may
//! answer the newest one alone), and each ping confirms what was sent before it (§ 5.4: no message is reordered).

use std::collections::VecDeque;

use crate::record::Seq;

/// A ping, and how far each cursor was sent when it was.
#[derive(Debug, Clone)]
struct Barrier {
    counter: u64,
    sent: Vec<Seq>,
}

/// The pings of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Pings {
    /// Those whose pong has not come, oldest first. A silent far end is found dead long before these are many; the newest
    /// says all that those before it say.
    barriers: VecDeque<Barrier>,
    /// Of the newest ping.
    counter: u64,
}

impl Pings {
    /// A ping goes behind what was sent up to here; its number.
    pub(super) fn next(&mut self, sent: Vec<Seq>) -> u64 {
        self.counter += 1;
        self.barriers.push_back(Barrier { counter: self.counter, sent });
        self.counter
    }

    /// How far each cursor's messages have arrived; `None`: that was known, or nobody asked for this pong (RFC 6455
    /// § 5.5.3), and it confirms nothing.
    pub(super) fn on_pong(&mut self, payload: &[u8]) -> Option<Vec<Seq>> {
        let counter: u64 = std::str::from_utf8(payload).ok()?.parse().ok()?;
        if counter > self.counter {
            return None;
        }
        let mut confirmed = None;
        while self.barriers.front().is_some_and(|barrier| barrier.counter <= counter) {
            confirmed = self.barriers.pop_front();
        }
        confirmed.map(|barrier| barrier.sent)
    }

    /// A pong is awaited.
    pub(super) fn is_awaiting(&self) -> bool {
        !self.barriers.is_empty()
    }
}
