//! Pings that go behind what was sent, and what their pongs say. Knows numbers, nothing of what an arrival is worth.
//!
//! Each carries a counter. A pong confirms every ping before the one that it answers (RFC 6455 § 5.5.3: a server may
//! answer the newest one alone), and each ping confirms what was sent before it (§ 5.4: no message is reordered).

use std::collections::VecDeque;

use super::cursor::Cursor;
use crate::record::Seq;

/// So many are remembered: on a path that swallows pings no pong ever comes, and acks may keep the session alive.
const BARRIERS_MAX: usize = 256;

/// A ping, and how far each cursor was sent when it was.
#[derive(Debug, Clone)]
struct Barrier {
    counter: u64,
    sent: Vec<Seq>,
}

/// The pings of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Pings {
    /// Those whose pong has not come and would say something new, oldest first.
    barriers: VecDeque<Barrier>,
    /// Of the newest ping.
    counter: u64,
}

impl Pings {
    /// A ping goes behind what was sent up to here; its number.
    pub(super) fn next(&mut self, sent: Vec<Seq>) -> u64 {
        self.counter += 1;
        let newest = self.barriers.back();
        if newest.is_none_or(|newest| newest.sent != sent) {
            // It says what the newest says, and more. Those before it stay: their pongs are on their way.
            if self.barriers.len() >= BARRIERS_MAX {
                self.barriers.pop_back();
            }
            self.barriers.push_back(Barrier { counter: self.counter, sent });
        }
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

    /// Acks came: a pong that would say no more than they do is awaited no longer.
    pub(super) fn on_acked(&mut self, cursors: &[Cursor]) {
        let is_news = |barrier: &Barrier| cursors.iter().zip(&barrier.sent).any(|(cursor, seq)| cursor.awaits(*seq));
        while self.barriers.front().is_some_and(|barrier| !is_news(barrier)) {
            self.barriers.pop_front();
        }
    }

    /// A pong is awaited.
    pub(super) fn is_awaiting(&self) -> bool {
        !self.barriers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cursor::Load;
    use super::super::flow::Flow;
    use super::*;
    use crate::record::{Gap, LaneName, Offer, Why};
    use crate::time::Instant;

    #[test]
    fn without_pongs_so_many_pings_are_remembered_and_the_oldest_and_the_newest_pong_still_count() {
        let mut pings = Pings::default();
        for seq in 1..=10_000 {
            assert_eq!(pings.next(vec![seq]), seq);
        }
        assert_eq!(pings.barriers.len(), BARRIERS_MAX);
        assert_eq!(pings.on_pong(b"1"), Some(vec![1]));
        assert_eq!(pings.on_pong(b"9999"), Some(vec![BARRIERS_MAX as Seq - 1]), "all that was before it");
        assert_eq!(pings.on_pong(b"10000"), Some(vec![10_000]));
        assert!(!pings.is_awaiting());
    }

    #[test]
    fn a_ping_behind_nothing_new_is_confirmed_with_the_one_before_it() {
        let mut pings = Pings::default();
        for counter in 1..=1000 {
            assert_eq!(pings.next(vec![7, 8]), counter);
        }
        assert_eq!(pings.barriers.len(), 1);
        assert_eq!(pings.on_pong(b"1000"), Some(vec![7, 8]));
        assert_eq!(pings.on_pong(b"1000"), None);
    }

    #[test]
    fn what_acks_cover_is_awaited_no_longer() {
        let now = Instant::from_micros(1_000_000);
        let offer =
            |lane| Offer { lane: LaneName::try_new(lane).expect("a name"), epoch: 1, first: 1, next: 9, sent_max: 0 };
        let mut cursors = [Cursor::new(&offer("a")), Cursor::new(&offer("b"))];
        let (mut pings, mut flow) = (Pings::default(), Flow::new(4096, Duration::from_secs(1), now));
        for (index, seq) in [(0, 1), (0, 2), (1, 1)] {
            let stamp = flow.on_sent(Load::default(), now);
            cursors[index].on_gap_sent(Gap { from: seq, to: seq, why: Why::Overflow }, stamp);
            pings.next(cursors.iter().map(Cursor::sent).collect());
        }
        for (index, seq, left) in [(0, 1, 2), (0, 2, 1), (1, 1, 0)] {
            cursors[index].on_ack(seq);
            pings.on_acked(&cursors);
            assert_eq!(pings.barriers.len(), left);
        }
        assert_eq!(pings.on_pong(b"3"), None);
    }
}
