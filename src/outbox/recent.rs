//! The newest records of a log, in RAM: first those kept so that a healthy link never reads flash, then those that
//! wait for it. One queue: a record that is written does not move.

use std::collections::VecDeque;

use super::Draft;
use super::format::record_bytes;
use crate::time::Instant;

/// Consecutive positions, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recent {
    /// Position of the oldest.
    first: u64,
    records: VecDeque<Held>,
    /// What all of them take, about.
    bytes: usize,
    /// So many at the end wait for flash.
    waiting: usize,
    /// What these take there.
    waiting_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    draft: Draft,
    since: Instant,
}

impl Held {
    fn bytes(&self) -> usize {
        self.draft.bytes() + size_of::<Self>()
    }
}

impl Recent {
    /// Takes the record at `position`, which waits for flash from now on.
    pub fn push(&mut self, position: u64, draft: Draft, since: Instant) {
        if self.end() != position {
            // Numbers were skipped: what waits is never behind a hole.
            debug_assert_eq!(self.waiting, 0);
            self.trim(u64::MAX);
            self.first = position;
        }
        self.waiting += 1;
        self.waiting_bytes += record_bytes(&draft);
        let held = Held { draft, since };
        self.bytes += held.bytes();
        self.records.push_back(held);
    }

    /// The position after the newest.
    fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    /// The record at a position, if it is here.
    pub fn get(&self, position: u64) -> Option<&Draft> {
        let index = usize::try_from(position.checked_sub(self.first)?).ok()?;
        self.records.get(index).map(|held| &held.draft)
    }

    /// The oldest here, and its position.
    pub fn oldest(&self) -> Option<(u64, &Draft)> {
        self.records.front().map(|held| (self.first, &held.draft))
    }

    /// What all of them take in RAM, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Records that wait for flash, and their bytes there.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting, self.waiting_bytes)
    }

    /// Those that wait, oldest first.
    pub fn waiting_records(&self) -> impl Iterator<Item = &Draft> {
        self.records.range(self.records.len() - self.waiting..).map(|held| &held.draft)
    }

    /// Since when the oldest of them waits.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.records.get(self.records.len() - self.waiting).map(|held| held.since)
    }

    /// The oldest `count` of those that wait are on flash.
    pub fn on_written(&mut self, count: usize) {
        let first = self.records.len() - self.waiting;
        self.waiting_bytes -= self.records.range(first..first + count).map(|held| record_bytes(&held.draft)).sum::<usize>();
        self.waiting -= count;
    }

    /// Forgets everything up to `position`, whether it waits or not.
    pub fn trim(&mut self, position: u64) {
        while self.first <= position && !self.records.is_empty() {
            self.pop();
        }
    }

    /// Forgets the oldest of those on flash until the rest takes no more than `bytes_max`.
    pub fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && self.records.len() > self.waiting {
            self.pop();
        }
    }

    fn pop(&mut self) {
        let waits = self.records.len() == self.waiting;
        let Some(held) = self.records.pop_front() else { return };
        self.first += 1;
        self.bytes -= held.bytes();
        if waits {
            self.waiting -= 1;
            self.waiting_bytes -= record_bytes(&held.draft);
        }
    }

    /// Gives back what waits from `position` on.
    pub fn split_off(&mut self, position: u64) -> Vec<(Draft, Instant)> {
        let mut taken = Vec::new();
        while self.waiting > 0 && self.end() > position {
            let Some(held) = self.records.pop_back() else { break };
            self.bytes -= held.bytes();
            self.waiting -= 1;
            self.waiting_bytes -= record_bytes(&held.draft);
            taken.push((held.draft, held.since));
        }
        taken.reverse();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Body;

    fn draft(text: &str) -> Draft {
        let body = Body::Text(text.into());
        Draft { at: None, boot: 1, boot_ms: 1, ttl_s: 0, topic: String::new(), key: None, body }
    }

    fn three() -> Recent {
        let mut recent = Recent::default();
        for (position, text) in [(5, "a"), (6, "b"), (7, "c")] {
            recent.push(position, draft(text), Instant::from_micros(position));
        }
        recent
    }

    #[test]
    fn a_record_waits_until_it_is_written_or_acked() {
        let mut recent = three();
        assert_eq!((recent.waiting().0, recent.waiting_since()), (3, Some(Instant::from_micros(5))));
        recent.on_written(1);
        assert_eq!((recent.waiting().0, recent.waiting_since()), (2, Some(Instant::from_micros(6))));
        recent.trim(6);
        assert_eq!(recent.waiting(), (1, record_bytes(&draft("c"))));
        assert_eq!((recent.get(6), recent.get(7)), (None, Some(&draft("c"))));
        recent.trim(9);
        assert_eq!((recent, three().bytes() > 0), (Recent { first: 8, ..Recent::default() }, true));
    }

    #[test]
    fn only_what_is_on_flash_is_forgotten_for_room() {
        let mut recent = three();
        recent.on_written(2);
        recent.shrink(0);
        assert_eq!(recent.oldest(), Some((7, &draft("c"))));
    }

    #[test]
    fn what_waits_is_given_back_from_a_position_on() {
        let mut recent = three();
        recent.on_written(1);
        let given: Vec<Draft> = recent.split_off(3).into_iter().map(|(draft, _)| draft).collect();
        assert_eq!(given, [draft("b"), draft("c")]);
        assert_eq!((recent.waiting(), recent.get(5)), ((0, 0), Some(&draft("a"))));
    }

    #[test]
    fn goes_on_behind_skipped_numbers() {
        let mut recent = three();
        recent.on_written(3);
        recent.push(70, draft("d"), Instant::default());
        assert_eq!((recent.get(5), recent.get(70), recent.waiting().0), (None, Some(&draft("d")), 1));
    }
}
