//! Live ahead of backlog: after an outage a lane that asks for it begins a new epoch for what is put from now on, and
//! its backlog drains beside it. Each of the two stays a FIFO; which of them has how much of the link is the dialect's.

use std::time::Duration;

use super::Outbox;
use super::lane::{Io, Lane, Purpose, Reach};
use super::log::{Leave, Log};
use crate::record::LaneName;

/// So much that waits is a backlog: one full batch, as the defaults have it.
const BACKLOG_BYTES_MIN: usize = 65_536;
/// What has waited so long is one, too, however little it is.
const BACKLOG_AGE_MIN: Duration = Duration::from_secs(5);
/// Logs of a lane with one that is live: what comes in a second outage before the first one's backlog is through
/// waits behind what is live by now.
const LOGS_MAX: usize = 2;

impl Outbox {
    /// A connection is about to begin: its `hello` names what the lanes have then. Returns those that go on in a new
    /// epoch. Costs such a lane a page on flash, and a segment that it would soon have taken; one more, and a page in it,
    /// where its newest segment has no pages left for headers. A full `drop_oldest` lane gives up as many for them, a
    /// full `reject` lane keeps its epoch.
    pub fn begin_live(&mut self) -> Vec<LaneName> {
        let io = &mut self.io;
        self.lanes.iter_mut().filter_map(|lane| lane.begin_live(io).then(|| lane.name.clone())).collect()
    }
}

impl Lane {
    fn begin_live(&mut self, io: &mut Io) -> bool {
        let Some(config) = self.config.as_ref().filter(|config| config.live_share > 0.0) else { return false };
        if self.logs.len() >= LOGS_MAX || !self.bears_another(config.bytes_max) || !self.has_backlog(io) {
            return false;
        }
        self.begin_beside(io)
    }

    /// The folder came from another board, which may go on numbering where this one would. What is put from now on gets
    /// a new epoch, what waits drains under its own: what of it is stored upstream already is known there by that
    /// name. Without room for two, what the newest log holds is numbered anew: then what was sent of it and not acked
    /// comes twice. An older log keeps its numbers always: nobody puts anything into it.
    /// False: it does not stand on flash yet.
    pub(super) fn leave_numbers_behind(&mut self, io: &mut Io) -> bool {
        // A lane that is only drained names nothing new.
        let Some(config) = &self.config else { return true };
        let waits = oldest_held(self.log()).is_some();
        if waits && self.bears_another(config.bytes_max) && self.begin_beside(io) {
            return true;
        }
        self.renumber(io, self.logs.len() - 1)
    }

    fn bears_another(&self, bytes_max: u64) -> bool {
        let segments_bytes = 2 * (self.logs.len() as u64 + 1) * u64::from(self.segment_bytes);
        self.failing.is_none() && segments_bytes <= bytes_max
    }

    /// A new log for what is put from now on.
    fn begin_beside(&mut self, io: &mut Io) -> bool {
        // The log that is older from now on takes nothing more: what waits in RAM goes to flash before.
        self.write_waiting(io);
        let written = self.waiting().0 == 0 && self.log().leave != Leave::AtOnce;
        // The log that is older from now on gets no further segment, but headers as it drains: two pages for them, one
        // of which is intact whenever the other is written.
        let current = self.current(self.log().origin);
        let ends_in_headers = current.is_some_and(|index| self.segments[index].ends_in_headers());
        // Both or neither: nothing is given up, nor a segment taken, for the first one alone.
        let has_room = written && self.has_segments(io, if ends_in_headers { 1 } else { 2 });
        has_room && (ends_in_headers || self.leave_room_for_headers(io)) && self.begin(io).is_ok()
    }

    fn leave_room_for_headers(&mut self, io: &mut Io) -> bool {
        let log = self.logs.len() - 1;
        self.make_room(io, 1, 0).is_ok()
            && matches!(self.write_header(io, log, Purpose::Reserve, Reach::Data), Ok(true))
    }

    fn has_backlog(&self, io: &Io) -> bool {
        let log = self.log();
        let Some(oldest) = oldest_held(log) else { return false };
        // What is not in RAM any more was put long before all that is.
        let Some(draft) = log.recent.get(oldest) else { return true };
        let aged = io.clock.is_some_and(|clock| {
            let age = Duration::from_millis(clock.boot_ms.saturating_sub(draft.boot_ms));
            clock.boot != draft.boot || age >= BACKLOG_AGE_MIN
        });
        aged || log.recent.bytes() >= BACKLOG_BYTES_MIN
    }
}

/// The first position that still has a record to send.
fn oldest_held(log: &Log) -> Option<u64> {
    let mut at = log.acked + 1;
    while let Some(run) = log.runs.at(at) {
        at = run.to + 1;
    }
    (at < log.next).then_some(at)
}
