//! Keys of the newest records: a producer that lost an answer puts again under the same key and hears of the first
//! record. Of two puts under one key the first wins, whatever the second says.
//!
//! A key is remembered as 128 bits of a hash with a secret seed, so that memory is bounded however long keys are. Two
//! keys that share a hash would cost the second one's record: among 4,096 that is less likely than 2^-100, and a
//! producer cannot search for such a pair. Nothing of it is on flash but the records themselves.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::ops::RangeInclusive;

use super::Draft;
use super::format::Slot;
use super::lane::{Io, Lane};
use super::segments::Segment;
use crate::record::{Epoch, Seq};

/// Keys that a lane remembers.
pub const KEYS_MAX: usize = 4096;
/// Most bytes of RAM that they take: an entry in a tree that is half full at worst, and one in a queue.
pub const KEYS_BYTES_MAX: usize = KEYS_MAX * 3 * size_of::<(KeyHash, Name)>();
/// Segments that are read for them, the newest ones: an answer that was lost is not an old one. Two, since the newest
/// one may have been begun by a header alone.
const SEGMENTS_READ: usize = 2;

/// What is kept of a key.
type KeyHash = u128;
/// What a record is called.
type Name = (Epoch, Seq);

/// The keys of one lane.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Drawn when the first key is asked for.
    seeds: Option<[u64; 2]>,
    /// What flash knows of them was read.
    read: bool,
    names: BTreeMap<KeyHash, Name>,
    /// In the order in which they came; one that stands in `names` with another name was put again since.
    order: VecDeque<(KeyHash, Name)>,
}

impl Keys {
    fn hash(&self, key: &str) -> KeyHash {
        let [high, low] = self.seeds.unwrap_or_default().map(|seed| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed);
            hasher.write(key.as_bytes());
            u128::from(hasher.finish())
        });
        high << 64 | low
    }

    /// The record that came under this key.
    pub fn get(&self, key: &str) -> Option<Name> {
        if self.names.is_empty() {
            return None;
        }
        self.names.get(&self.hash(key)).copied()
    }

    /// A record came under this key.
    pub fn insert(&mut self, key: &str, name: Name) {
        let hash = self.hash(key);
        self.names.insert(hash, name);
        self.order.push_back((hash, name));
        if self.order.len() > KEYS_MAX
            && let Some((hash, name)) = self.order.pop_front()
            && self.names.get(&hash) == Some(&name)
        {
            self.names.remove(&hash);
        }
        debug_assert!(self.names.len() <= self.order.len() && self.order.len() <= KEYS_MAX);
    }

    /// Storage failed, or does not fail any more: a record that waits for flash has another name.
    pub fn on_moved(&mut self, draft: &Draft, name: Name) {
        if let Some(key) = draft.key.as_deref().filter(|_| self.seeds.is_some()) {
            self.insert(key, name);
        }
    }

    /// Only now the lane's files are known.
    pub fn read_again(&mut self) {
        self.read = false;
    }

    /// These are lost or refused: handed in again they are new records.
    pub fn forget(&mut self, epoch: Epoch, seqs: RangeInclusive<Seq>) {
        let stays = |name: &Name| name.0 != epoch || !seqs.contains(&name.1);
        self.names.retain(|_, name| stays(name));
        self.order.retain(|(_, name)| stays(name));
    }

    /// What an epoch held above `acked` goes on in a new one, from 1.
    pub fn renumber(&mut self, epoch: Epoch, acked: Seq, new: Epoch) {
        let rename = |name: &mut Name| {
            if name.0 == epoch && name.1 > acked {
                *name = (new, name.1 - acked);
            }
        };
        self.names.values_mut().for_each(rename);
        self.order.iter_mut().for_each(|(_, name)| rename(name));
    }
}

impl Lane {
    /// The record that came under this key, if it is not lost. The first question reads what flash knows of keys: a
    /// start has no use for it, and lanes whose producers use no keys never read it.
    pub(super) fn known(&mut self, io: &mut Io, key: &str) -> Option<Name> {
        if self.keys.seeds.is_none() {
            self.keys.seeds = Some([io.rng.u64(..), io.rng.u64(..)]);
        }
        if !std::mem::replace(&mut self.keys.read, true) {
            self.read_keys(io);
        }
        let (epoch, seq) = self.keys.get(key)?;
        let log = self.logs.iter().find(|log| log.epoch == epoch);
        let lost = log.is_some_and(|log| log.runs.at(seq + log.base).is_some());
        (!lost).then_some((epoch, seq))
    }

    fn read_keys(&mut self, io: &mut Io) {
        let mut used: Vec<Segment> = self.segments.iter().filter(|segment| segment.used.is_some()).cloned().collect();
        used.sort_by_key(|segment| segment.used.map_or(0, |used| used.lap));
        let read = if self.is_dead_letters() { used.len() } else { SEGMENTS_READ };
        for segment in &used[used.len().saturating_sub(read)..] {
            for (page, header) in self.batches(io, segment) {
                for (position, slot) in (header.first..).zip(self.records(io, segment, page, &header)) {
                    let Slot::Intact(draft) = slot else { continue };
                    let Some(key) = &draft.key else { continue };
                    let log = self.logs.iter().find(|log| log.origin == header.origin && log.base < position);
                    let (epoch, base) = log.map_or((header.epoch, header.base), |log| (log.epoch, log.base));
                    self.keys.insert(self.identity(key), (epoch, position - base));
                }
            }
        }
    }

    /// Everything up to `position` of a log is acked: those of it that were given up are no answer to a later put.
    pub(super) fn forget_lost_keys(&mut self, log: usize, position: u64) {
        if self.keys.names.is_empty() {
            return;
        }
        let log = &self.logs[log];
        for run in log.runs.as_slice().iter().filter(|run| run.from <= position) {
            self.keys.forget(log.epoch, run.from - log.base..=run.to.min(position) - log.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_keys_are_known_and_no_more() {
        let mut keys = Keys::default();
        for seq in 1..=KEYS_MAX as u64 + 10 {
            keys.insert(&format!("k{seq}"), (5, seq));
        }
        assert_eq!(keys.get("k10"), None);
        assert_eq!(keys.get("k11"), Some((5, 11)));
        assert_eq!(keys.get(&format!("k{}", KEYS_MAX + 10)), Some((5, KEYS_MAX as u64 + 10)));
        assert_eq!((keys.names.len(), keys.order.len()), (KEYS_MAX, KEYS_MAX));
    }

    #[test]
    fn a_key_that_was_put_again_outlives_its_first_record() {
        let mut keys = Keys::default();
        keys.insert("again", (5, 1));
        keys.insert("again", (5, 2));
        for seq in 3..=KEYS_MAX as u64 + 1 {
            keys.insert(&format!("k{seq}"), (5, seq));
        }
        assert_eq!(keys.get("again"), Some((5, 2)), "the first one's turn to go takes only the first one");
        keys.insert("one more", (5, 9999));
        assert_eq!(keys.get("again"), None);
    }

    #[test]
    fn forgets_and_renames_by_name() {
        let mut keys = Keys::default();
        for seq in 1..=6 {
            keys.insert(&format!("k{seq}"), (5, seq));
        }
        keys.forget(5, 2..=3);
        keys.renumber(5, 4, 9);
        let names: Vec<_> = (1..=6).map(|seq| keys.get(&format!("k{seq}"))).collect();
        assert_eq!(names, [Some((5, 1)), None, None, Some((5, 4)), Some((9, 1)), Some((9, 2))]);
    }
}
