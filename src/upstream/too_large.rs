//! Which record it is at which the far end closes with 1009 (message too big, RFC 6455 § 7.4.1), and when it is enough.
//! Knows numbers, nothing of sessions. It outlives them: a record that no server takes would hold up its lane for ever.
//!
//! The code names no message. So what was in flight then goes one at a time on the next connection, until the close
//! comes with one record in flight alone.

use crate::dialect::InFlight;
use crate::record::{Epoch, LaneName, Seq};

/// So often a record in flight alone is answered by 1009 before it is given up: the far end may be about to learn.
const TRIES: u32 = 3;

/// A record.
type Named = (LaneName, Epoch, Seq);

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct TooLarge {
    lone_records: u32,
    suspect: Option<(Named, u32)>,
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

    /// It ended with 1009. The record that is to be given up.
    pub(super) fn on_too_large(&mut self, in_flight: InFlight) -> Option<Named> {
        self.lone_records = self.lone_records.max(u32::try_from(in_flight.records).unwrap_or(u32::MAX));
        let lone = in_flight.lone?;
        let tries = match &self.suspect {
            Some((suspect, tries)) if *suspect == lone => tries + 1,
            Some(_) | None => 1,
        };
        if tries < TRIES {
            self.suspect = Some((lone, tries));
            return None;
        }
        *self = Self::default();
        Some(lone)
    }

    /// Everything up to `seq` got through.
    pub(super) fn on_acked(&mut self, lane: &LaneName, epoch: Epoch, seq: Seq) {
        self.suspect.take_if(|((name, of, number), _)| (&*name, *of) == (lane, epoch) && *number <= seq);
    }
}
