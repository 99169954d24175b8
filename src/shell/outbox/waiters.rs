//! Who waits for the upstream: producers for `delivered`, and a few records whose delay is measured. Both have a
//! bound, since an upstream may be away for weeks.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use crate::record::{Epoch, LaneName, Seq};
use crate::shell::port::{Answer, Outcome, Ticket};

/// Producers waiting for `delivered`; beyond, a put hears `busy`.
pub(super) const DELIVERED_WAITERS_MAX: usize = 4096;
/// Records measured at once.
const WATCHED_MAX: usize = 16;

/// A numbering.
type Name = (LaneName, Epoch);

/// All who wait.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// In the order of their numbers.
    lanes: BTreeMap<Name, VecDeque<(Seq, Ticket)>>,
    count: usize,
    watched: Vec<Watched>,
}

/// A record whose delay is measured.
#[derive(Debug)]
pub(super) struct Watched {
    pub lane: Name,
    pub seq: Seq,
    /// When it was handed in.
    pub boot_ms: u64,
}

impl Waiters {
    /// No one more may wait.
    pub fn is_full(&self) -> bool {
        self.count >= DELIVERED_WAITERS_MAX
    }

    /// `ticket` waits for `seq`, which is above all others there.
    pub fn add(&mut self, lane: Name, seq: Seq, ticket: Ticket) {
        self.lanes.entry(lane).or_default().push_back((seq, ticket));
        self.count += 1;
    }

    /// Everyone who waits for one of `seqs` hears `answer`.
    pub fn answer(&mut self, name: &Name, seqs: RangeInclusive<Seq>, answer: &Answer, outcomes: &mut Vec<Outcome>) {
        let Some(waiting) = self.lanes.get_mut(name) else { return };
        let first = waiting.partition_point(|(seq, _)| seq < seqs.start());
        let end = waiting.partition_point(|(seq, _)| seq <= seqs.end());
        outcomes.extend(waiting.drain(first..end).map(|(seq, ticket)| Outcome {
            ticket,
            answer: answer.clone(),
            lane: Some(name.0.clone()),
            epoch: name.1,
            seq,
        }));
        self.count -= end - first;
        if waiting.is_empty() {
            self.lanes.remove(name);
        }
    }

    /// A client has left.
    pub fn forget(&mut self, client: u64) {
        self.lanes.retain(|_, waiting| {
            let before = waiting.len();
            waiting.retain(|(_, ticket)| ticket.client != client);
            self.count -= before - waiting.len();
            !waiting.is_empty()
        });
    }

    /// A further record may be measured.
    pub fn may_watch(&self) -> bool {
        self.watched.len() < WATCHED_MAX
    }

    /// Measures one more.
    pub fn watch(&mut self, watched: Watched) {
        self.watched.push(watched);
    }

    /// When those of `name` up to `seq` were handed in; they are no longer measured.
    pub fn watched_up_to(&mut self, name: &Name, seq: Seq) -> Vec<u64> {
        let of_these = |watched: &mut Watched| watched.lane == *name && watched.seq <= seq;
        self.watched.extract_if(.., of_these).map(|watched| watched.boot_ms).collect()
    }

    /// These have other numbers now: they are not measured.
    pub fn unwatch_from(&mut self, name: &Name, seq: Seq) {
        self.watched.retain(|watched| watched.lane != *name || watched.seq < seq);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn name(epoch: Epoch) -> Name {
        (LaneName::try_new("a").unwrap(), epoch)
    }

    fn ticket(client: u64, request: u64) -> Ticket {
        Ticket { client, request }
    }

    #[test]
    fn an_ack_answers_those_it_covers_in_order_and_no_one_else() {
        let mut waiters = Waiters::default();
        for seq in 1..=5 {
            waiters.add(name(1), seq, ticket(seq % 2, seq));
            waiters.add(name(2), seq, ticket(7, seq));
        }
        let mut outcomes = Vec::new();
        waiters.answer(&name(1), 2..=2, &Answer::Error("full", String::new()), &mut outcomes);
        waiters.answer(&name(1), 0..=3, &Answer::Delivered, &mut outcomes);
        waiters.answer(&name(3), 0..=3, &Answer::Delivered, &mut outcomes);
        assert_eq!(outcomes.iter().map(|outcome| outcome.seq).collect::<Vec<_>>(), [2, 1, 3]);
        waiters.forget(1);
        outcomes.clear();
        waiters.answer(&name(1), 0..=Seq::MAX, &Answer::Delivered, &mut outcomes);
        assert_eq!(outcomes.iter().map(|outcome| outcome.seq).collect::<Vec<_>>(), [4]);
        assert_eq!(waiters.count, 5);
        waiters.forget(7);
        assert!(waiters.lanes.is_empty() && waiters.count == 0);
    }

    #[test]
    fn it_is_full_at_its_bound() {
        let mut waiters = Waiters::default();
        for seq in 0..DELIVERED_WAITERS_MAX as u64 {
            assert!(!waiters.is_full());
            waiters.add(name(1), seq, ticket(1, seq));
        }
        assert!(waiters.is_full());
        waiters.answer(&name(1), 0..=0, &Answer::Delivered, &mut Vec::new());
        assert!(!waiters.is_full());
        while waiters.may_watch() {
            let seq = waiters.watched.len() as u64;
            waiters.watch(Watched { lane: name(1), seq, boot_ms: seq * 10 });
        }
        assert_eq!(waiters.watched_up_to(&name(1), 2), [0, 10, 20]);
        assert_eq!(waiters.watched_up_to(&name(2), 9), [0; 0]);
        assert!(waiters.may_watch());
    }
}
