//! One lane: the records in RAM, the logs, and when a batch or a header is written. Where it goes is `segments`',
//! what the bytes mean is `format`'s, numbering is `log`'s, reading is `read`'s and starting is `recover`'s.

use std::collections::VecDeque;
use std::io;

use super::disk::Disk;
use super::format::{self, HEADER_BYTES_MAX, PAGE_BYTES, Place, RecordArea, SEGMENT_RECORDS_MAX};
use super::log::Log;
use super::read::Cursor;
use super::segments::{Segment, batch_bytes_max, segment_name};
use super::{Draft, PushError};
use crate::config;
use crate::record::{INTEGER_MAX, LaneName};
use crate::status::{self, FlashPurposes};
use crate::time::Instant;

/// Bytes of the newest records kept in RAM, so that a healthy link never reads flash.
pub const TAIL_BYTES_MAX: usize = 256 << 10;
/// Acks not yet on flash that are worth a page of their own, in bytes of the records they cover.
pub const ACK_LAG_BYTES_MAX: u64 = 1 << 20;
/// Acks not yet on flash that are worth a page of their own, by age.
pub const ACK_LAG_MS_MAX: u64 = 60_000;

/// The disk with what all lanes share.
pub struct Io<D> {
    /// The folder.
    pub disk: D,
    /// Draws origins and epochs.
    pub rng: fastrand::Rng,
    /// Bytes written, by purpose.
    pub purposes: FlashPurposes,
    /// Bytes of records as handed in.
    pub payload_bytes: u64,
    /// Syncs of files and of the folder, by purpose.
    pub syncs: FlashPurposes,
    /// One batch, built here.
    pub scratch: Vec<u8>,
}

impl<D: Disk> Io<D> {
    /// A number for an epoch or an origin.
    pub fn draw(&mut self) -> u64 {
        self.rng.u64(1..=INTEGER_MAX)
    }

    /// `fdatasync`, counted.
    pub fn sync(&mut self, name: &str, purpose: Purpose) -> io::Result<()> {
        *purpose.of(&mut self.syncs) += 1;
        self.disk.sync(name)
    }

    /// `fsync` of the folder, counted.
    pub fn sync_dir(&mut self, purpose: Purpose) -> io::Result<()> {
        *purpose.of(&mut self.syncs) += 1;
        self.disk.sync_dir()
    }
}

/// What something is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Records.
    Records,
    /// Acks, or what was given up.
    Acks,
    /// An epoch's begin, a reservation.
    Reserve,
    /// Zeros ahead of need.
    Segment,
    /// Recovery, before damage goes; whose folder it is.
    Repair,
}

impl Purpose {
    /// Its count.
    pub const fn of(self, counts: &mut FlashPurposes) -> &mut u64 {
        match self {
            Self::Records => &mut counts.records,
            Self::Acks => &mut counts.acks,
            Self::Reserve => &mut counts.reserve,
            Self::Segment => &mut counts.segments,
            Self::Repair => &mut counts.other,
        }
    }
}

/// How far a header may go to find a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// To a page for batches.
    Data,
    /// To the page kept for the header that frees the next segment.
    Spare,
    /// To that page once more: a power cut may then take the header that stands there.
    Again,
}

/// One lane.
pub struct Lane {
    /// Its name.
    pub name: LaneName,
    /// `None`: on flash but no longer configured; it is drained, then removed.
    pub config: Option<config::Lane>,
    pub(super) segment_bytes: u32,
    pub(super) headroom_bytes_min: u64,
    pub(super) segments: Vec<Segment>,
    /// Oldest first; the last one takes records.
    pub(super) logs: Vec<Log>,
    /// The newest segment turn.
    pub(super) lap: u32,
    pending: RecordArea,
    pending_drafts: Vec<Draft>,
    pending_since: Option<Instant>,
    pub(super) tail: VecDeque<(u64, Draft)>,
    tail_bytes: usize,
    pub(super) cursor: Cursor,
    acks_since: Option<Instant>,
    /// Records committed since the start, and their bytes.
    records: u64,
    records_bytes: u64,
    pub(super) degraded: bool,
    /// What went wrong since the last [`Lane::commit`].
    failed: Option<PushError>,
    pub(super) counters: status::Lane,
}

impl Lane {
    /// A lane without anything; `recover` or [`Lane::begin`] fill it.
    pub fn new(name: LaneName, config: Option<config::Lane>, segment_bytes: u32, headroom_bytes_min: u64) -> Self {
        let counters = status::Lane { name: name.as_str().into(), ..status::Lane::default() };
        Self {
            name,
            config,
            segment_bytes,
            headroom_bytes_min,
            segments: Vec::new(),
            logs: Vec::new(),
            lap: 0,
            pending: RecordArea::default(),
            pending_drafts: Vec::new(),
            pending_since: None,
            tail: VecDeque::new(),
            tail_bytes: 0,
            cursor: Cursor::default(),
            acks_since: None,
            records: 0,
            records_bytes: 0,
            degraded: false,
            failed: None,
            counters,
        }
    }

    /// Begins a log with its first, empty batch.
    pub fn begin<D: Disk>(&mut self, io: &mut Io<D>) -> io::Result<()> {
        let log = Log::new(io.draw(), io.draw());
        self.logs.push(log);
        self.write_header(io, self.logs.len() - 1, Purpose::Reserve, Reach::Spare).map(|_| ())
    }

    /// The log that takes records.
    pub fn log(&self) -> &Log {
        self.logs.last().expect("a lane in use has a log")
    }

    fn log_mut(&mut self) -> &mut Log {
        self.logs.last_mut().expect("a lane in use has a log")
    }

    /// Numbers a record and keeps it in RAM until [`Lane::commit`].
    pub fn push<D: Disk>(&mut self, io: &mut Io<D>, draft: Draft, now: Instant) -> Result<u64, PushError> {
        let Some(config) = &self.config else { return Err(PushError::Full) };
        let reject = config.overflow == config::Overflow::Reject;
        let bytes = draft.bytes() + format::RECORD_OVERHEAD_BYTES_MAX;
        let batch_max = batch_bytes_max(self.segment_bytes);
        if bytes > batch_max {
            return Err(PushError::TooLarge);
        }
        if self.pending.bytes() + bytes > batch_max || self.pending.count() >= SEGMENT_RECORDS_MAX {
            self.write_pending(io);
        }
        if reject && !self.has_room(io, self.pages_for(self.pending.bytes() + bytes)) {
            return Err(PushError::Full);
        }
        self.pending.push(&draft);
        io.payload_bytes += draft.bytes() as u64;
        self.pending_drafts.push(draft);
        self.pending_since.get_or_insert(now);
        let log = self.log_mut();
        let position = log.next;
        log.next += 1;
        Ok(position)
    }

    /// Records in RAM, and their bytes.
    pub fn pending(&self) -> (u32, usize) {
        (self.pending.count(), self.pending.bytes())
    }

    /// Bytes in RAM, about.
    pub fn ram_bytes(&self) -> u64 {
        (self.pending.bytes() * 2 + self.tail_bytes) as u64
    }

    /// Since when the oldest record in RAM waits for flash.
    pub fn pending_since(&self) -> Option<Instant> {
        self.pending_since
    }

    /// Since when acks wait for flash.
    pub fn acks_since(&self) -> Option<Instant> {
        self.acks_since
    }

    /// Writes what is in RAM and syncs it. An error: of what was pushed since the last call, something was not taken.
    pub fn commit<D: Disk>(&mut self, io: &mut Io<D>) -> Result<(), PushError> {
        self.write_pending(io);
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Writes what is in RAM as one batch. A write that fails is tried once more in another segment: pages that
    /// failed are never synced again (Rebello et al., ATC 2020). After that the records are given back as not taken,
    /// their numbers burnt.
    fn write_pending<D: Disk>(&mut self, io: &mut Io<D>) {
        if self.pending.count() == 0 {
            return;
        }
        let result = self.write_records(io).or_else(|error| match error {
            PushError::Full | PushError::TooLarge => Err(error),
            PushError::Degraded => {
                if self.current(self.log().origin).is_some_and(|index| self.segments[index].is_blank()) {
                    self.next_segment(io, self.logs.len() - 1, Purpose::Records);
                }
                self.write_records(io)
            }
        });
        self.degraded = result.is_err();
        let drafts = std::mem::take(&mut self.pending_drafts);
        match result {
            Ok(()) => {
                self.records += drafts.len() as u64;
                self.records_bytes += self.pending.bytes() as u64;
                let first = self.log().durable + 1 - drafts.len() as u64;
                for (position, draft) in (first..).zip(drafts) {
                    self.tail_bytes += tail_bytes(&draft);
                    self.tail.push_back((position, draft));
                }
                self.trim_tail();
                self.reserve(io, self.logs.len() - 1, Reach::Spare);
            }
            Err(error) => {
                self.failed = Some(error);
                self.log_mut().burn();
            }
        }
        self.pending.clear(TAIL_BYTES_MAX);
        self.pending_since = None;
    }

    fn trim_tail(&mut self) {
        let acked = self.log().acked;
        while let Some((position, draft)) = self.tail.front() {
            if *position > acked && self.tail_bytes <= TAIL_BYTES_MAX {
                break;
            }
            self.tail_bytes -= tail_bytes(draft);
            self.tail.pop_front();
        }
    }

    fn write_records<D: Disk>(&mut self, io: &mut Io<D>) -> Result<(), PushError> {
        let index = self.logs.len() - 1;
        let log = &self.logs[index];
        if log.reserved[1] < log.next {
            // An epoch begins with an empty batch.
            self.write_header(io, index, Purpose::Reserve, Reach::Spare).map_err(|_| PushError::Degraded)?;
        }
        let pages = self.pages_for(self.pending.bytes());
        let slot = self.make_room(io, pages)?;
        let mut pending = std::mem::take(&mut self.pending);
        let result = self.write_batch(io, index, slot, &mut pending, Purpose::Records);
        self.pending = pending;
        result.map_err(|error| {
            log::warn!(target: "outbox", "write failed lane={} error={error}", self.name);
            PushError::Degraded
        })
    }

    /// Pages of a batch with so many bytes of records, with room for the runs that making room may add.
    fn pages_for(&self, bytes: usize) -> u32 {
        format::pages_for(HEADER_BYTES_MAX.min(300 + 17 * self.log().runs.as_slice().len()) + bytes)
    }

    /// Writes an empty batch for a log. False: there is no page for it within reach.
    pub fn write_header<D: Disk>(
        &mut self,
        io: &mut Io<D>,
        log: usize,
        purpose: Purpose,
        reach: Reach,
    ) -> io::Result<bool> {
        let current = self.current(self.logs[log].origin);
        let page = current.and_then(|index| self.segments[index].used.map(|used| (index, used.page)));
        let slot = match page {
            Some((index, page)) if page < self.segments[index].data_pages() => Some(index),
            Some((index, page)) if reach >= Reach::Spare && page < self.segments[index].pages => Some(index),
            Some(_) | None => self.next_segment(io, log, purpose),
        };
        // The spare page holds nothing that a newer header does not say again: it may be rewritten.
        let Some(slot) = slot.or(current.filter(|_| reach == Reach::Again)) else { return Ok(false) };
        self.write_batch(io, log, slot, &mut RecordArea::default(), purpose)?;
        Ok(true)
    }

    /// A segment for a header that found no page; only the log that takes records may take one, and neither acks
    /// nor repairs are worth a new file.
    fn next_segment<D: Disk>(&mut self, io: &mut Io<D>, log: usize, purpose: Purpose) -> Option<usize> {
        if log + 1 != self.logs.len() {
            return None;
        }
        let grows = matches!(purpose, Purpose::Records | Purpose::Reserve);
        let index = self.free().or_else(|| (grows && self.grow(io)).then(|| self.segments.len() - 1));
        index.inspect(|&index| self.take(index, log))
    }

    /// Writes a batch at the segment's next page and syncs it. Whatever happens, no later write touches these pages;
    /// but for a segment's first ones, where the write failed.
    fn write_batch<D: Disk>(
        &mut self,
        io: &mut Io<D>,
        log: usize,
        slot: usize,
        area: &mut RecordArea,
        purpose: Purpose,
    ) -> io::Result<()> {
        let segment = &mut self.segments[slot];
        let used = segment.used.as_mut().expect("a segment is taken before it is written");
        let header = self.logs[log].header(&self.name, used.lap, area.count(), area.bytes() as u32);
        let replaced = used.page >= segment.pages;
        let place = Place { segment: segment.number, page: used.page.min(segment.pages - 1) };
        area.batch(&header, place, &mut io.scratch);
        let name = segment_name(&self.name, segment.number);
        let bytes = io.scratch.len() as u64;
        let offset = u64::from(place.page) * PAGE_BYTES as u64;
        let result = io.disk.write_at(&name, offset, &io.scratch).and_then(|()| io.sync(&name, purpose));
        io.scratch.clear();
        io.scratch.shrink_to(TAIL_BYTES_MAX);
        *purpose.of(&mut io.purposes) += bytes;
        let segment = &mut self.segments[slot];
        let used = segment.used.as_mut().expect("a segment is taken before it is written");
        if let Err(error) = result {
            // A segment's first page dates it: behind one that may be an older lap's, a start would find nothing.
            used.page = if place.page == 0 { 0 } else { segment.pages };
            return Err(error);
        }
        used.page = place.page + header.pages();
        used.records += header.count;
        used.batches += 1;
        used.end = used.end.max(header.next());
        self.logs[log].on_synced(&header, replaced);
        if self.logs.iter().all(|log| log.acked <= log.durable_acked) {
            self.acks_since = None;
        }
        self.shed(io);
        Ok(())
    }

    /// Everything up to `position` of a log is stored upstream.
    pub fn acked<D: Disk>(&mut self, io: &mut Io<D>, log: usize, position: u64, now: Instant) {
        let spared = self.logs[log].on_acked(position);
        self.counters.overflowed = self.counters.overflowed.saturating_sub(spared);
        if self.logs[log].acked > self.logs[log].durable_acked {
            self.acks_since.get_or_insert(now);
        }
        self.trim_tail();
        if log + 1 < self.logs.len() && self.logs[log].is_drained() {
            // Best effort: without it the next start offers the log again and the server says that it has it all.
            let _ = self.write_header(io, log, Purpose::Acks, Reach::Spare);
            self.close(log);
        }
        if self.pending.count() == 0 && self.log().wants_reservation() {
            self.reserve(io, self.logs.len() - 1, self.reach());
        }
        let lag = self.log().acked - self.log().durable_acked;
        let average = self.records_bytes / self.records.max(1);
        if lag * average > ACK_LAG_BYTES_MAX {
            self.flush_acks(io, now);
        }
    }

    /// An older log that is drained goes; its segments are free.
    pub(super) fn close(&mut self, log: usize) {
        let origin = self.logs.remove(log).origin;
        self.segments.iter_mut().filter(|s| s.used.is_some_and(|u| u.origin == origin)).for_each(|s| s.used = None);
        self.cursor.forget();
    }

    /// Removes the files of a lane that has nothing left. A file that stays is found at the next start.
    pub fn remove_if_drained<D: Disk>(&mut self, io: &mut Io<D>) -> bool {
        let drained = self.logs.iter().all(Log::is_drained);
        if drained {
            let mut segments = std::mem::take(&mut self.segments);
            // The newest one last: it says that the others are done with.
            segments.sort_by_key(|segment| segment.used.map_or(0, |used| used.lap));
            for segment in segments {
                let _ = io.disk.remove(&segment_name(&self.name, segment.number));
            }
        }
        drained
    }

    /// Acks to flash in pages of their own, where there is a page. Not while records wait for flash: their batch
    /// carries the acks, and has been promised its pages.
    pub fn flush_acks<D: Disk>(&mut self, io: &mut Io<D>, now: Instant) {
        self.acks_since = None;
        if self.pending.count() > 0 {
            return;
        }
        for log in 0..self.logs.len() {
            if self.logs[log].acked > self.logs[log].durable_acked
                && let Err(error) = self.write_header(io, log, Purpose::Acks, self.reach())
            {
                log::warn!(target: "outbox", "write failed lane={} error={error}", self.name);
                self.acks_since = Some(now);
            }
            self.reserve(io, log, self.reach());
            if self.logs[log].wants_reservation() {
                self.acks_since = Some(now);
            }
        }
    }

    /// How far a header may go that carries acks: to the last page where it frees a segment.
    fn reach(&self) -> Reach {
        let frees_next = self.oldest().is_some_and(|index| self.is_covered(index, Log::covered));
        if frees_next { Reach::Again } else { Reach::Data }
    }

    /// Protocol rule 7: draws a new epoch for a log; everything it holds is numbered from 1. False: it does not
    /// stand on flash yet, and nothing leaves under it.
    pub fn renumber<D: Disk>(&mut self, io: &mut Io<D>, log: usize) -> bool {
        let epoch = io.draw();
        self.logs[log].renumber(epoch);
        self.reserve(io, log, Reach::Spare);
        self.logs[log].is_named()
    }

    /// Writes headers until all that is on flash may leave: epoch and reservation stand on two pages. A full lane may
    /// have only one page left: on that one. What fails is tried again with the acks.
    pub(super) fn reserve<D: Disk>(&mut self, io: &mut Io<D>, log: usize, reach: Reach) {
        let mut written = Ok(true);
        for _ in 0..2 {
            if self.logs[log].wants_reservation() && matches!(written, Ok(true)) {
                let reach = if self.logs[log].is_named() { reach } else { Reach::Again };
                written = self.write_header(io, log, Purpose::Reserve, reach);
            }
        }
        if let Err(error) = written {
            log::warn!(target: "outbox", "write failed lane={} error={error}", self.name);
        } else if self.logs[log].wants_reservation() {
            self.logs[log].rely_on_one_header();
        }
        if self.logs[log].wants_reservation() {
            self.acks_since.get_or_insert_default();
        }
    }

    /// The lane's part of the status. Numbers are the newest epoch's; depth is the lane's.
    pub fn status(&self, wall_ms: Option<u64>) -> status::Lane {
        let log = self.log();
        let depth = |log: &Log| log.next - 1 - log.acked - log.runs.covered(log.acked + 1, log.next - 1, |_| true);
        let bytes: u64 = self.segments.iter().map(Segment::bytes).sum();
        let oldest_at = self.cursor.oldest_at.or(self.tail.front().and_then(|(_, draft)| draft.at));
        let depth: u64 = self.logs.iter().map(depth).sum();
        status::Lane {
            epoch: log.epoch,
            depth,
            bytes,
            bytes_max: self.config.as_ref().map_or(bytes, |config| config.bytes_max),
            oldest_s: oldest_at.zip(wall_ms).filter(|_| depth > 0).map(|(at, now)| now.saturating_sub(at) / 1000),
            first: log.acked + 1 - log.base,
            next: log.next - log.base,
            committed: log.durable - log.base,
            acked: log.acked - log.base,
            ..self.counters.clone()
        }
    }
}

/// What a record in the tail takes, about.
fn tail_bytes(draft: &Draft) -> usize {
    draft.bytes() + size_of::<(u64, Draft)>()
}
