//! When storage fails: the lane goes on in RAM, bounded, under an epoch that no flash knows, and tries a new segment
//! with backoff. What was promised stays where it is; what is in RAM only is never called committed.

use std::time::Duration;

use super::disk::Entry;
use super::lane::{Io, Lane, Reach, TAIL_BYTES_MAX};
use super::log::{Leave, Log};
use super::segments::parse_segment_name;
use super::{Draft, Event, PushError, Report};
use crate::record::Why;
use crate::time::Instant;

/// First wait before flash is tried again: a card that was busy, a file system that was remounted.
const RETRY_MS_MIN: u64 = 1_000;
/// Longest: two pages for each try, 300 a day, are no wear.
const RETRY_MS_MAX: u64 = 300_000;
/// Logs on flash at once; a lane whose storage failed as often stays in RAM until one of them is drained.
pub(super) const LOGS_MAX: usize = 4;

/// A lane of which flash takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    /// When it is tried again.
    pub retry_at: Instant,
    wait: Duration,
}

impl Failing {
    fn begin(now: Instant) -> Self {
        let wait = Duration::from_millis(RETRY_MS_MIN);
        Self { retry_at: now + wait, wait }
    }

    fn again(self, now: Instant) -> Self {
        let wait = (self.wait * 2).min(Duration::from_millis(RETRY_MS_MAX));
        Self { retry_at: now + wait, wait }
    }
}

impl Lane {
    /// Flash does not take what waits: it moves to a log in RAM. What may have left keeps its number in the old one.
    pub(super) fn go_on_in_ram(&mut self, io: &mut Io) {
        let waiting = self.logs.last_mut().map(Log::seal).unwrap_or_default();
        self.logs.iter_mut().for_each(|log| log.recent.shrink(0));
        // A segment in which nothing could be written holds no log's newest header.
        self.segments.iter_mut().filter(|segment| segment.is_blank()).for_each(|segment| segment.used = None);
        let mut log = Log::new(io.draw(), io.draw(), Leave::AtOnce);
        for (draft, since) in waiting {
            self.keys.on_moved(&draft, (log.epoch, log.next));
            log.push(draft, since);
        }
        self.logs.push(log);
        if self.failing.is_none() {
            self.failing = Some(Failing::begin(self.now));
            let why = if io.last_error.is_empty() { "no segment can be had" } else { &io.last_error };
            let detail = format!("lane {}: {why}; what comes is kept in RAM only", self.name);
            io.events.push_back(Event { kind: "storage_degraded", detail });
        }
    }

    /// A record more in RAM: over the bound the oldest goes, or this one is not taken.
    pub(super) fn make_room_in_ram(&mut self, draft: &Draft, reject: bool) -> Result<(), PushError> {
        while self.log().recent.bytes() + draft.bytes() > TAIL_BYTES_MAX {
            let Some((oldest, _)) = self.log().recent.oldest() else { break };
            if reject {
                return Err(PushError::Full);
            }
            self.counters.overflowed += self.log_mut().give_up(oldest, Why::Overflow);
        }
        Ok(())
    }

    /// Tries flash again when it is time, or, at a stop, at once.
    pub(super) fn retry(&mut self, io: &mut Io, now: Instant, at_once: bool) {
        self.now = self.now.max(now);
        let Some(failing) = self.failing.filter(|failing| at_once || failing.retry_at <= now) else { return };
        if self.return_to_flash(io) {
            self.failing = None;
            self.close_drained(io);
            let detail = format!("lane {}: records go to flash again", self.name);
            io.events.push_back(Event { kind: "storage_recovered", detail });
        } else {
            self.failing = Some(failing.again(now));
        }
    }

    /// Begins a new log on flash and moves there what waits in RAM and has not left.
    fn return_to_flash(&mut self, io: &mut Io) -> bool {
        if self.unlisted && !self.recover_late(io) {
            return false;
        }
        self.close_drained(io);
        let on_flash = self.logs.iter().filter(|log| log.leave != Leave::AtOnce).count();
        if self.log().leave == Leave::AtOnce && (on_flash >= LOGS_MAX || self.begin(io).is_err()) {
            return false;
        }
        let newest = self.logs.len() - 1;
        self.reserve(io, newest, Reach::Spare);
        for log in 0..newest {
            if self.logs[log].leave == Leave::AtOnce {
                for (draft, since) in self.logs[log].seal() {
                    let to = &mut self.logs[newest];
                    self.keys.on_moved(&draft, (to.epoch, to.next - to.base));
                    to.push(draft, since);
                }
            }
        }
        self.write_waiting(io);
        self.failed = None;
        self.log().leave != Leave::AtOnce
    }

    /// The folder could not be listed at the start: what lies there comes first, lest it be overwritten.
    fn recover_late(&mut self, io: &mut Io) -> bool {
        let Ok(files) = io.disk.list() else { return false };
        let own = |file: &Entry| parse_segment_name(&file.name).filter(|(name, _)| *name == self.name);
        let segments: Vec<(u32, u64)> = files.iter().filter_map(|file| Some((own(file)?.1, file.bytes))).collect();
        self.unlisted = false;
        self.keys.read_again();
        let mut in_ram = std::mem::take(&mut self.logs);
        self.recover(io, &segments, &mut Report::default());
        if self.log().leave == Leave::AtOnce {
            // Nothing could be begun: the log that is there already goes on.
            self.logs.pop();
            self.logs.append(&mut in_ram);
            return false;
        }
        in_ram.append(&mut self.logs);
        self.logs = in_ram;
        true
    }
}
