//! What the clocks make of a record: its age and its time of arrival. Only time that was proved ages a record: boot-time within a boot, wall time between two instants at
//! which the clock was set. Time that nobody measured does not age, so that no record is given up on a guess.

use super::Draft;
use crate::time::CLOCK_SET_FLOOR_MS;

/// What the clocks say, as the shell reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Which boot this is (the boot id, folded).
    pub boot: u32,
    /// Boot clock, in ms.
    pub boot_ms: u64,
    /// Unix ms; `None` while the clock is not set.
    pub wall_ms: Option<u64>,
    /// Unix ms as the upstream told in this boot, carried on by the boot clock: a stamp, never a proof of age.
    pub server_ms: Option<u64>,
}

impl Clock {
    /// When a record was handed in, Unix ms. One that came while no clock was set is stamped as soon as the time is
    /// known in the same boot; how long another boot lasted nobody knows (evercam/ex_nvr#404).
    pub fn at(&self, draft: &Draft) -> Option<u64> {
        let later = || {
            let now = self.wall_ms.or(self.server_ms).filter(|_| draft.boot == self.boot)?;
            now.checked_sub(self.boot_ms.saturating_sub(draft.boot_ms))
        };
        draft.at.or_else(later)
    }

    /// How long ago a record was handed in, in ms, as far as that is proved.
    pub fn age_ms(&self, draft: &Draft) -> u64 {
        if draft.boot == self.boot {
            return self.boot_ms.saturating_sub(draft.boot_ms);
        }
        // A time that no clock can have shown (a producer said so) proves nothing.
        let at = draft.at.filter(|at| *at >= CLOCK_SET_FLOOR_MS);
        at.zip(self.wall_ms).map_or(0, |(at, now)| now.saturating_sub(at))
    }

    /// Whether its time to live is over.
    pub fn has_expired(&self, draft: &Draft) -> bool {
        draft.ttl_s > 0 && self.age_ms(draft) >= u64::from(draft.ttl_s) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Body;

    const SET: u64 = CLOCK_SET_FLOOR_MS + 5_000_000;

    fn draft(at: Option<u64>) -> Draft {
        Draft { at, boot: 7, boot_ms: 10_000, ttl_s: 60, topic: String::new(), key: None, body: Body::Text("".into()) }
    }

    #[test]
    fn within_a_boot_the_boot_clock_counts_whatever_the_wall_clock_says() {
        let clock = |boot_ms, wall_ms| Clock { boot: 7, boot_ms, wall_ms, server_ms: None };
        for wall_ms in [None, Some(SET), Some(SET + 1_000_000_000)] {
            assert!(!clock(69_999, wall_ms).has_expired(&draft(Some(SET))));
            assert!(clock(70_000, wall_ms).has_expired(&draft(Some(SET))));
            assert!(clock(70_000, wall_ms).has_expired(&draft(None)));
        }
        assert_eq!(clock(9_000, None).age_ms(&draft(None)), 0, "a clock that stands before it ages nothing");
    }

    #[test]
    fn across_boots_only_two_readings_of_a_clock_that_was_set_count() {
        let clock = |wall_ms| Clock { boot: 8, boot_ms: u64::MAX, wall_ms, server_ms: None };
        assert_eq!(clock(Some(SET + 59_999)).age_ms(&draft(Some(SET))), 59_999);
        assert!(clock(Some(SET + 60_000)).has_expired(&draft(Some(SET))));
        assert_eq!(clock(None).age_ms(&draft(Some(SET))), 0, "not set now");
        assert_eq!(clock(Some(SET)).age_ms(&draft(None)), 0, "not set then");
        assert_eq!(clock(Some(SET)).age_ms(&draft(Some(1))), 0, "no clock ever showed that");
        assert_eq!(clock(Some(SET)).age_ms(&draft(Some(SET + 1))), 0, "set back since");
    }

    #[test]
    fn zero_is_for_ever() {
        let forever = Draft { ttl_s: 0, ..draft(Some(SET)) };
        assert!(!Clock { boot: 7, boot_ms: u64::MAX, wall_ms: Some(u64::MAX), server_ms: None }.has_expired(&forever));
    }

    #[test]
    fn a_record_without_a_time_is_stamped_once_the_time_is_known_in_its_boot() {
        let clock = |boot, wall_ms, server_ms| Clock { boot, boot_ms: 70_000, wall_ms, server_ms };
        let (own, server) = (Some(SET), Some(SET + 9_000_000));
        assert_eq!(clock(7, None, None).at(&draft(None)), None);
        assert_eq!(clock(7, own, None).at(&draft(None)), Some(SET - 60_000));
        assert_eq!(clock(7, None, server).at(&draft(None)), Some(SET + 9_000_000 - 60_000));
        assert_eq!(clock(7, own, server).at(&draft(None)), Some(SET - 60_000), "a set clock is never overridden");
        assert_eq!(clock(8, own, server).at(&draft(None)), None, "another boot");
        assert_eq!(clock(7, own, server).at(&draft(Some(5))), Some(5), "its producer said so");
        assert_eq!(clock(7, Some(59_999), None).at(&draft(None)), None, "before 1970");
    }

    #[test]
    fn what_the_upstream_says_ages_nothing() {
        let clock = Clock { boot: 8, boot_ms: 0, wall_ms: None, server_ms: Some(SET + 1_000_000_000) };
        assert!(!clock.has_expired(&draft(Some(SET))));
    }
}
