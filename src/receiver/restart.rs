//! The slots of a planned restart: which session comes back when. Pure.

use std::time::Duration;

/// Over how long a fleet is spread unless something better is known.
const SPREAD_DEFAULT: Duration = Duration::from_secs(30);
/// From the signal to the first slot unless the command line says otherwise: we leave within a second, and the next
/// one needs a moment to start.
const GAP_DEFAULT: Duration = Duration::from_secs(2);
/// And for each session, since telling it and closing takes its time: twice what was measured.
const GAP_PER_SESSION: Duration = Duration::from_micros(100);
/// No agent obeys a longer wait (`server_wait_ms_max`): slots beyond would fall together.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);

/// What the command line says of planned restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// From the signal to the first slot: who comes earlier finds nobody.
    pub gap: Option<Duration>,
    /// From the first slot to the end of the last.
    pub spread: Option<Duration>,
    /// Connections a second that the next one accepts; where there is no `spread` the slots follow each other so.
    pub accept_rate: Option<u32>,
}

impl Restart {
    /// The slots of so many sessions, in ms from now: rising, all within gap and spread.
    pub fn slots_ms(&self, sessions: usize) -> impl Iterator<Item = u64> + use<> {
        let sessions = sessions as u64;
        let spread_ms = match (self.spread, self.accept_rate) {
            (Some(spread), _) => millis(spread),
            (None, Some(rate)) => sessions.saturating_mul(1000) / u64::from(rate.max(1)),
            (None, None) => millis(SPREAD_DEFAULT),
        };
        let gap_ms = match self.gap {
            Some(gap) => millis(gap),
            None => millis(GAP_DEFAULT) + sessions.saturating_mul(micros(GAP_PER_SESSION)) / 1000,
        };
        let spread_ms = spread_ms.min(millis(WAIT_MAX).saturating_sub(gap_ms));
        (0..sessions).map(move |index| gap_ms + index.saturating_mul(spread_ms) / sessions)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(spread_s: Option<u64>, accept_rate: Option<u32>, sessions: usize) -> Vec<u64> {
        let restart =
            Restart { gap: Some(Duration::from_secs(2)), spread: spread_s.map(Duration::from_secs), accept_rate };
        restart.slots_ms(sessions).collect()
    }

    #[test]
    fn slots_are_even_over_the_spread() {
        assert_eq!(slots(Some(10), Some(1), 4), [2000, 4500, 7000, 9500]);
        assert_eq!(slots(None, Some(100), 4), [2000, 2010, 2020, 2030], "as fast as they are accepted");
        assert_eq!(slots(None, None, 3), [2000, 12_000, 22_000]);
        assert_eq!(slots(Some(0), None, 2), [2000, 2000]);
        assert_eq!(slots(None, None, 0), [0; 0]);
        assert_eq!(slots(None, Some(1), 10_000)[5_000], 2000 + 3_598_000 / 2, "never longer than an agent waits");
    }

    #[test]
    fn a_big_fleet_takes_longer_to_be_told() {
        let first = |sessions| Restart { gap: None, spread: None, accept_rate: None }.slots_ms(sessions).next();
        assert_eq!((first(1), first(1000), first(100_000)), (Some(2000), Some(2100), Some(12_000)));
    }

    #[test]
    fn a_hundred_thousand_come_back_at_the_accept_rate() {
        let slots = slots(None, Some(1000), 100_000);
        assert!(
            slots
                .chunks(1000)
                .enumerate()
                .all(|(second, chunk)| { chunk.iter().all(|slot| (*slot - 2000) / 1000 == second as u64) })
        );
    }
}
