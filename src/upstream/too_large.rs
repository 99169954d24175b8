//! Which record it is at which the far end closes with 1009 (message too big, RFC 6455 § 7.4.1), and when it is enough.
//! Knows numbers, nothing of sessions. It outlives them: a record that no server takes would hold up its lane for ever.
//!
//! The code names no message. So what was in flight then goes one at a time on the next connection, until the close
//! comes with one record in flight alone.

use crate::dialect::InFlight;
use crate::record::{Epoch, LaneName, Offer, Seq};

/// So often a record in flight alone is answered by 1009 at one endpoint before it is given up: the far end may be about
/// to learn, and another may take more.
const TRIES: usize = 3;
/// And so often wherever it is: endpoints may be many, and others each time.
const TRIES_IN_ALL: usize = 12;

/// A record.
type Named = (LaneName, Epoch, Seq);

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct TooLarge {
    lone_records: u32,
    /// With the URL of each try.
    suspect: Option<(Named, Vec<String>)>,
}

impl TooLarge {
    /// So many records go one at a time on the next connection.
    pub(super) const fn lone_records(&self) -> u32 {
        self.lone_records
    }

    /// A session ended; so many were left to go one at a time.
    pub(super) fn on_end(&mut self, lone_left: u32) {
        // A suspect may come late: other lanes have their turns as well.
        if self.suspect.is_none() {
            self.lone_records = lone_left;
        }
    }

    /// It ended with 1009, at the endpoint with this URL. The record that is to be given up.
    pub(super) fn on_too_large(&mut self, in_flight: InFlight, url: &str) -> Option<Named> {
        self.lone_records = self.lone_records.max(u32::try_from(in_flight.records).unwrap_or(u32::MAX));
        let lone = in_flight.lone?;
        let known = self.suspect.take().filter(|(suspect, _)| *suspect == lone);
        let mut tries = known.map(|(_, tries)| tries).unwrap_or_default();
        tries.push(url.to_owned());
        let here = tries.iter().filter(|at| *at == url).count();
        if here < TRIES && tries.len() < TRIES_IN_ALL {
            self.suspect = Some((lone, tries));
            return None;
        }
        *self = Self::default();
        Some(lone)
    }

    /// What may go up. A suspect whose numbering is not among it will never be acked.
    pub(super) fn on_offers(&mut self, offers: &[Offer]) {
        let has = |lane: &LaneName, epoch| offers.iter().any(|offer| offer.epoch == epoch && offer.lane == *lane);
        self.suspect.take_if(|((lane, epoch, _), _)| !has(lane, *epoch));
    }

    /// Everything up to `seq` got through.
    pub(super) fn on_acked(&mut self, lane: &LaneName, epoch: Epoch, seq: Seq) {
        self.suspect.take_if(|((name, of, number), _)| (&*name, *of) == (lane, epoch) && *number <= seq);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn record() -> Named {
        (LaneName::try_new("a").unwrap(), 1, 5)
    }

    /// It was in flight alone at this endpoint: true once it is given up.
    fn is_given_up(too_large: &mut TooLarge, url: &str) -> bool {
        let in_flight = InFlight { records: 1, lone: Some(record()) };
        let given_up = too_large.on_too_large(in_flight, url);
        assert!(given_up.as_ref().is_none_or(|given_up| *given_up == record()));
        given_up.is_some()
    }

    #[test]
    fn tries_count_where_they_were_made() {
        let mut too_large = TooLarge::default();
        let given_up: Vec<_> = ["b", "b", "a", "c", "a", "a"].map(|url| is_given_up(&mut too_large, url)).into();
        assert_eq!(given_up, [false, false, false, false, false, true]);
        assert!(!is_given_up(&mut too_large, "a"), "it begins anew");
    }

    #[test]
    fn at_another_endpoint_each_time_it_is_given_up_in_the_end() {
        let mut too_large = TooLarge::default();
        let tries = (1..100).find(|n| is_given_up(&mut too_large, &n.to_string()));
        assert_eq!(tries, Some(TRIES_IN_ALL));
    }
}
