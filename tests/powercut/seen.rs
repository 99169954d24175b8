//! Which states were there before. Exact while it fits into memory; for the long run a filter of fixed size, which may
//! take a new state for an old one, never an old one for a new one: it counts too few, not too many.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS: usize = 64;

/// The states that were there.
pub enum Seen {
    /// Each by its 64-bit hash.
    Exact(Vec<Mutex<HashSet<u64, BuildHasherDefault<Identity>>>>),
    /// Four bits of one word each, set at once: two threads cannot both be the first.
    Filter(Vec<AtomicU64>),
}

/// A hash is its own hash.
#[derive(Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

impl Seen {
    /// Remembers each.
    pub fn exact() -> Self {
        Self::Exact((0..SHARDS).map(|_| Mutex::default()).collect())
    }

    /// Remembers what fits into so many bytes.
    pub fn filter(bytes: usize) -> Self {
        Self::Filter((0..bytes / 8).map(|_| AtomicU64::new(0)).collect())
    }

    /// True: it was not there before.
    pub fn insert(&self, key: u64) -> bool {
        // The keys' bits are xor sums: mix them, so that any of them may choose the place.
        let key = (key ^ key >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let key = (key ^ key >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let key = key ^ key >> 32;
        match self {
            Self::Exact(shards) => shards[key as usize % SHARDS].lock().expect("no thread panics in here").insert(key),
            Self::Filter(words) => {
                let word = (u128::from(key) * words.len() as u128 >> 64) as usize;
                let bits = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mask = (0..4).fold(0, |mask, n| mask | 1 << (bits >> (40 + 6 * n) & 63));
                words[word].fetch_or(mask, Ordering::Relaxed) & mask != mask
            }
        }
    }
}
