//! Draws that are the same on 32 and on 64 bits, so that a seed is the same life on both: `Rng::usize`, `choice` and
//! `shuffle` draw as many bits as the machine has.

use fastrand::Rng;

/// A number from 0 to `end - 1`.
pub fn below(rng: &mut Rng, end: usize) -> usize {
    rng.u64(..end as u64) as usize
}

/// One of them.
pub fn pick<T: Clone>(rng: &mut Rng, all: &[T]) -> T {
    all[below(rng, all.len())].clone()
}
