//! Happy eyeballs (RFC 8305 § 5): the addresses of one attempt race, each begun a little after the one before it. Owns
//! which of them are under way and which are still to be tried; at most one of them ever becomes a session.

use std::time::Duration;

use super::ADDRESSES_MAX;
use crate::time::Instant;

/// Connection Attempt Delay (RFC 8305 § 8: recommended 250 ms).
pub(super) const DELAY: Duration = Duration::from_millis(250);

/// Addresses as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Race {
    /// Not dialed yet, or beaten by another one without having failed.
    untried: u32,
    /// Being dialed.
    racing: u32,
    /// When the next one joins.
    next_at: Instant,
}

const _: () = assert!(ADDRESSES_MAX <= u32::BITS as usize, "a bit each");

impl Race {
    /// Of so many addresses, none of them dialed yet.
    pub(super) fn new(addresses: u8, now: Instant) -> Self {
        let count = u32::from(addresses).min(ADDRESSES_MAX as u32);
        Self { untried: u32::MAX.checked_shr(u32::BITS - count).unwrap_or(0), racing: 0, next_at: now }
    }

    /// Addresses still to be tried.
    pub(super) fn untried(&self) -> u32 {
        self.untried.count_ones()
    }

    /// Some are under way.
    pub(super) fn is_running(&self) -> bool {
        self.racing != 0
    }

    /// When the next one joins, if there is one.
    pub(super) fn next_at(&self) -> Option<Instant> {
        (self.untried != 0).then_some(self.next_at)
    }

    /// The next one joins now.
    pub(super) fn join(&mut self, now: Instant) -> Option<u8> {
        let address = (self.untried != 0).then(|| self.untried.trailing_zeros())?;
        self.untried &= !(1 << address);
        self.racing |= 1 << address;
        self.next_at = now + DELAY;
        Some(address as u8)
    }

    /// It failed. False if it was not under way.
    pub(super) fn on_failed(&mut self, address: u8) -> bool {
        let was_racing = self.has(address);
        if was_racing {
            self.racing &= !(1 << address);
        }
        was_racing
    }

    /// It won: what it has beaten without a failure may still be tried should it come to nothing. False if it was not
    /// under way.
    pub(super) fn on_won(&mut self, address: u8) -> bool {
        let was_racing = self.has(address);
        if was_racing {
            self.untried |= self.racing & !(1 << address);
            self.racing = 0;
        }
        was_racing
    }

    fn has(&self, address: u8) -> bool {
        usize::from(address) < ADDRESSES_MAX && self.racing & (1 << address) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1000)
    }

    #[test]
    fn counts_up_to_as_many_addresses_as_it_has_bits() {
        for (given, tried) in [(0, 0), (1, 1), (2, 2), (31, 31), (32, 32), (255, 32)] {
            assert_eq!(Race::new(given, at(0)).untried(), tried);
        }
    }

    #[test]
    fn each_joins_in_order_and_the_losers_may_be_tried_again() {
        let mut race = Race::new(4, at(0));
        assert_eq!((race.join(at(0)), race.join(at(250)), race.join(at(500))), (Some(0), Some(1), Some(2)));
        assert_eq!(race.next_at(), Some(at(750)));
        assert!(race.on_failed(0) && !race.on_failed(0));
        assert!(race.on_won(2) && !race.on_won(1), "one winner");
        assert_eq!((race.untried(), race.is_running()), (2, false));
        assert_eq!((race.join(at(900)), race.join(at(1150)), race.join(at(1400))), (Some(1), Some(3), None));
    }

    #[test]
    fn an_address_that_was_never_dialed_neither_wins_nor_fails() {
        let mut race = Race::new(2, at(0));
        race.join(at(0));
        for address in [1, 2, 40, 255] {
            assert!(!race.on_won(address) && !race.on_failed(address), "{address}");
        }
    }
}
