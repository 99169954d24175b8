//! How long the certificates in use are valid, ours and the server's, and when that is worth a word.

use std::time::Duration;

use crate::shell::transport::Validity;
use crate::status::{Certificate, CertificateView};
use crate::time::Instant;

/// Two weeks: a person has the time to renew it, and whatever renews by itself (Let's Encrypt's clients do it 30 days
/// before) has failed for two.
const NOTICE_S_MAX: u64 = 14 * 86_400;
/// What is issued for a few days is renewed every day: it is late in the last third of its life.
const NOTICE_PART: u64 = 3;
const WARN_INTERVAL: Duration = Duration::from_secs(86_400);
/// In a session that lasts.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// See above.
#[derive(Default)]
pub(super) struct Expiry {
    client: Option<Validity>,
    server: Option<Validity>,
    changed: bool,
    looked: Option<Instant>,
    /// What was warned of last, and when.
    warned: Option<(String, Instant)>,
}

impl Expiry {
    /// The client's certificate of this attempt. A server's is not yet known.
    pub fn set_client(&mut self, client: Option<&Validity>) {
        self.changed |= self.client.as_ref() != client || self.server.is_some();
        (self.client, self.server) = (client.cloned(), None);
    }

    /// The certificate of the server of this attempt.
    pub fn set_server(&mut self, server: Option<&Validity>) {
        self.changed |= self.server.as_ref() != server;
        self.server = server.cloned();
    }

    /// Whether [`Expiry::first`] may have changed, once.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// The one that ends first.
    pub fn first(&self) -> Option<CertificateView> {
        let both = [("client", &self.client), ("server", &self.server)];
        let known = both.into_iter().filter_map(|(of, validity)| Some((of, validity.as_ref()?)));
        let (of, validity) = known.min_by_key(|(_, validity)| validity.not_after_s)?;
        let life_s = validity.not_after_s.saturating_sub(validity.not_before_s);
        let notice_s = NOTICE_S_MAX.min(life_s / NOTICE_PART);
        let Validity { not_after_s, ref not_after, .. } = *validity;
        Some(CertificateView { of, not_after: not_after.clone(), not_after_s, notice_s })
    }

    /// What to warn of now: at most once a day, and at once of another certificate.
    pub fn warning(&mut self, now: Instant, wall_ms: Option<u64>) -> Option<String> {
        if !self.changed && self.looked.is_some_and(|at| now.since(at) < LOOK_INTERVAL) {
            return None;
        }
        self.looked = Some(now);
        let view = self.first()?;
        let status = view.status(wall_ms);
        let days = status.days_left.filter(|_| status.ends_soon)?;
        let subject = format!("{} {}", view.of, view.not_after);
        if self.warned.as_ref().is_some_and(|(of, at)| *of == subject && now.since(*at) < WARN_INTERVAL) {
            return None;
        }
        self.warned = Some((subject, now));
        let Certificate { of, not_after, .. } = status;
        Some(match days {
            0.. => format!("the {of}'s certificate ends at {not_after}, days left: {days}"),
            _ => format!("the {of}'s certificate ended at {not_after}"),
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const DAY_S: u64 = 86_400;
    const NOW_DAY: u64 = 20_000;

    /// Valid from and until so many days from now.
    fn validity(from: i64, until: i64) -> Validity {
        let at = |days: i64| NOW_DAY.saturating_add_signed(days) * DAY_S;
        Validity { not_before_s: at(from), not_after_s: at(until), not_after: format!("day {until}") }
    }

    fn wall(days: u64) -> Option<u64> {
        Some((NOW_DAY + days) * DAY_S * 1000)
    }

    fn at(days: u64) -> Instant {
        Instant::default() + Duration::from_secs(days * DAY_S)
    }

    #[test]
    fn the_one_that_ends_first_is_shown() {
        let mut expiry = Expiry::default();
        assert_eq!(expiry.first(), None);
        expiry.set_client(Some(&validity(-1, 100)));
        assert_eq!(expiry.first().unwrap().of, "client");
        expiry.set_server(Some(&validity(-1, 99)));
        assert_eq!(expiry.first().unwrap().of, "server");
        let status = expiry.first().unwrap().status(wall(0));
        assert_eq!((status.days_left, status.ends_soon), (Some(99), false));
        assert_eq!(expiry.first().unwrap().status(None).days_left, None);
        expiry.set_client(None);
        assert_eq!(expiry.first(), None, "another attempt, another server");
    }

    #[test]
    fn warns_two_weeks_before_the_end_once_a_day() {
        let mut expiry = Expiry::default();
        let mut days = Vec::new();
        for day in 0..40 {
            for _attempt in 0..3 {
                expiry.set_client(Some(&validity(-300, 30)));
                days.extend(expiry.warning(at(day), wall(day)).map(|_| day));
                expiry.take_changed();
            }
        }
        assert_eq!(days, (17..40).collect::<Vec<_>>());
    }

    #[test]
    fn warns_in_a_session_that_lasts() {
        let mut expiry = Expiry::default();
        expiry.set_client(Some(&validity(-300, 30)));
        let mut days = Vec::new();
        for day in 0..40 {
            days.extend(expiry.warning(at(day), wall(day)).map(|_| day));
            expiry.take_changed();
        }
        assert_eq!(days, (17..40).collect::<Vec<_>>());
    }

    #[test]
    fn what_lives_for_days_is_late_in_its_last_third_and_no_clock_no_word() {
        let mut expiry = Expiry::default();
        expiry.set_client(Some(&validity(-1, 2)));
        assert_eq!(expiry.warning(at(0), None), None);
        assert_eq!(expiry.warning(at(0), wall(0)), None);
        expiry.set_client(Some(&validity(-3, 1)));
        let text = expiry.warning(at(0), wall(0)).unwrap();
        assert_eq!(text, "the client's certificate ends at day 1, days left: 1");
        expiry.set_client(Some(&validity(-3, -1)));
        assert_eq!(expiry.warning(at(0), wall(0)).unwrap(), "the client's certificate ended at day -1");
    }
}
