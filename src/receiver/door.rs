//! Who may come in now: decided when a connection is accepted, before TLS or an upgrade has cost anything, and counted.
//! Pure: time is an argument. It must not know sockets.

use crate::fleet::{Admission, TurnedAway};
use crate::time::Instant;

/// Those turned away that may be in the middle of TLS at once: a handshake is what they cost, in CPU and some 40 KiB
/// each. Who comes beyond is reset.
const REFUSALS_AT_ONCE_MAX_TLS: usize = 1024;
/// The same without TLS: a descriptor each, and from the first byte on the 8 KiB that tungstenite reads a request with
/// (a chunk and a vector of 4 KiB), so 32 MiB for all.
const REFUSALS_AT_ONCE_MAX: usize = 4096;

/// How many at once after a pause, and how many a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Connections a second.
    pub rate: u32,
    /// Connections at once.
    pub burst: u32,
}

/// What becomes of a connection that was just accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It may upgrade.
    Come,
    /// It is told to come back.
    Wait(TurnedAway),
    /// It is reset: too many are being told already.
    Drop,
}

/// Counted from the start on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted from the system.
    pub attempts: u64,
    /// Of these, told to come back.
    pub refused: u64,
    /// Of these, reset.
    pub dropped: u64,
}

/// The door.
#[derive(Debug)]
pub struct Door {
    /// `None`: everybody may come in.
    admission: Option<Admission>,
    refusals_max: usize,
    /// Those that are being told.
    refusals: usize,
    counts: Counts,
}

impl Door {
    /// A door for at most `connections_max` at once; half of them may be on their way out.
    pub fn new(rate: Option<Rate>, tls: bool, connections_max: usize, now: Instant) -> Self {
        let at_once = if tls { REFUSALS_AT_ONCE_MAX_TLS } else { REFUSALS_AT_ONCE_MAX };
        Self {
            admission: rate.map(|Rate { rate, burst }| Admission::new(rate, burst, now)),
            refusals_max: at_once.min(connections_max / 2),
            refusals: 0,
            counts: Counts::default(),
        }
    }

    /// Someone is here.
    pub fn handle_knock(&mut self, now: Instant) -> Entry {
        self.counts.attempts += 1;
        let Some(admission) = &mut self.admission else { return Entry::Come };
        if admission.take(now) {
            return Entry::Come;
        }
        if self.refusals >= self.refusals_max {
            self.counts.dropped += 1;
            return Entry::Drop;
        }
        self.refusals += 1;
        self.counts.refused += 1;
        Entry::Wait(admission.turn_away(now))
    }

    /// One that was told to wait is gone.
    pub fn handle_refused_gone(&mut self) {
        debug_assert!(self.refusals > 0, "each is counted when it comes");
        self.refusals = self.refusals.saturating_sub(1);
    }

    /// One that might come in turned out to be no agent of ours before it cost anything: its place is free again, so
    /// that neither health checks nor strangers keep the fleet out.
    pub fn handle_stranger(&mut self) {
        if let Some(admission) = &mut self.admission {
            admission.give_back();
        }
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How far the virtual queue reaches, in ms.
    pub fn queue_ms(&self, now: Instant) -> u64 {
        let queue = self.admission.as_ref().map(|admission| admission.queue(now)).unwrap_or_default();
        u64::try_from(queue.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_micros(7_000_000);

    fn door(rate: u32, burst: u32, connections_max: usize) -> Door {
        Door::new(Some(Rate { rate, burst }), true, connections_max, NOW)
    }

    #[test]
    fn without_a_rate_everybody_comes_in() {
        let mut door = Door::new(None, false, 10, NOW);
        assert!((0..1000).all(|_| door.handle_knock(NOW) == Entry::Come));
        assert_eq!((door.counts().attempts, door.queue_ms(NOW)), (1000, 0));
    }

    #[test]
    fn tells_so_many_at_once_and_resets_the_rest() {
        let mut door = door(10, 2, 8);
        let entries: Vec<_> = (0..10).map(|_| door.handle_knock(NOW)).collect();
        assert_eq!(entries[..2], [Entry::Come; 2]);
        assert!(entries[2..6].iter().all(|entry| matches!(entry, Entry::Wait(_))), "{entries:?}");
        assert_eq!(entries[6..], [Entry::Drop; 4]);
        assert_eq!(door.counts(), Counts { attempts: 10, refused: 4, dropped: 4 });
        // Who is reset takes no slot: it will not wait for one.
        assert_eq!(door.queue_ms(NOW), 400);
        door.handle_refused_gone();
        assert!(matches!(door.handle_knock(NOW), Entry::Wait(_)));
        assert_eq!(door.handle_knock(NOW), Entry::Drop);
    }

    #[test]
    fn a_stranger_uses_up_nobodys_place() {
        let mut door = door(10, 2, 8);
        for _ in 0..100 {
            assert_eq!(door.handle_knock(NOW), Entry::Come);
            door.handle_stranger();
        }
        // And never makes room for more than the burst.
        door.handle_stranger();
        let come = (0..5).filter(|_| door.handle_knock(NOW) == Entry::Come).count();
        assert_eq!(come, 2);
    }
}
