//! One lane: the records in RAM, the logs, and when a batch or a header is written. Where it goes is `segments`',
//! what the bytes mean is `format`'s, numbering is `log`'s, reading is `read`'s and starting is `recover`'s.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::io;

use super::disk::Disk;
use super::expiry::Clock;
use super::failing::Failing;
use super::format::{self, HEADER_BYTES_MAX, PAGE_BYTES, Place, RecordArea, SEGMENT_RECORDS_MAX, record_bytes};
use super::keys::Keys;
use super::log::{Leave, Log};
use super::mutants::mutant;
use super::read::Cursor;
use super::segments::{Segment, batch_bytes_max, segment_name};
use super::{Draft, Event, PushError};
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

/// Bytes of RAM for the records of one lane that wait for flash and the newest ones on it.
pub const fn waiting_bytes_max(segment_bytes: u32) -> usize {
    2 * segment_bytes as usize + TAIL_BYTES_MAX
}

/// The disk with what all lanes share. A lane takes an `Io` of any disk, and is compiled once for all of them.
#[derive(Clone)]
pub struct Io<D: ?Sized = dyn Disk> {
    /// Draws origins and epochs.
    pub rng: fastrand::Rng,
    /// What the clocks say; `None`: never told, nothing expires.
    pub clock: Option<Clock>,
    /// Bytes written, by purpose.
    pub purposes: FlashPurposes,
    /// Bytes of records as handed in.
    pub payload_bytes: u64,
    /// Syncs of files and of the folder, by purpose.
    pub syncs: FlashPurposes,
    /// The records of one batch, encoded here.
    pub area: RecordArea,
    /// One batch, built here.
    pub scratch: Vec<u8>,
    /// The last error of the disk, for people.
    pub last_error: String,
    /// What someone should know, oldest first; one a change of a lane's state.
    pub events: VecDeque<Event>,
    /// The folder.
    pub disk: D,
}

impl Io {
    /// A number for an epoch or an origin.
    pub fn draw(&mut self) -> u64 {
        self.rng.u64(1..=INTEGER_MAX)
    }

    /// `fdatasync`, counted.
    pub fn sync(&mut self, name: &str, purpose: Purpose) -> io::Result<()> {
        *purpose.of(&mut self.syncs) += 1;
        let result = if mutant!(SyncLeftOut) { Ok(()) } else { self.disk.sync(name) };
        if mutant!(SyncErrorIgnored) { Ok(()) } else { result }
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
#[derive(Clone)]
pub struct Lane {
    /// Its name.
    pub name: LaneName,
    /// `None`: on flash but no longer configured; it is drained, then removed.
    pub config: Option<config::Lane>,
    pub(super) segment_bytes: u32,
    pub(super) headroom_bytes_min: u64,
    pub(super) segments: Vec<Segment>,
    /// Where the segment of the newest turn lies in `segments`, if none was removed since.
    pub(super) last_taken: usize,
    /// There may be segments that are too small, or too many.
    pub(super) may_shed: bool,
    /// Oldest first; the last one takes records.
    pub(super) logs: Vec<Log>,
    /// The newest segment turn.
    pub(super) lap: u32,
    /// `alive` of the newest log's newest synced header.
    pub(super) durable_alive: u32,
    pub(super) cursor: Cursor,
    pub(super) keys: Keys,
    acks_since: Option<Instant>,
    /// When something was asked of this lane last.
    pub(super) now: Instant,
    /// Records committed since the start, and their bytes.
    records: u64,
    records_bytes: u64,
    /// The folder could not be listed: what lies in it is not known yet.
    pub(super) unlisted: bool,
    /// Flash takes nothing: what comes is in a log in RAM.
    pub(super) failing: Option<Failing>,
    /// What went wrong since the last [`Lane::commit`].
    pub(super) failed: Option<PushError>,
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
            last_taken: 0,
            may_shed: true,
            logs: Vec::new(),
            lap: 0,
            durable_alive: 0,
            cursor: Cursor::default(),
            keys: Keys::default(),
            acks_since: None,
            now: Instant::default(),
            records: 0,
            records_bytes: 0,
            unlisted: false,
            failing: None,
            failed: None,
            counters,
        }
    }

    /// Begins a log with its first, empty batch. An error: there is no such log.
    pub fn begin(&mut self, io: &mut Io) -> Result<(), PushError> {
        let log = Log::new(io.draw(), io.draw(), self.leave());
        let origin = log.origin;
        self.logs.push(log);
        let begun = self.make_room(io, 1, 0).and_then(|_| self.write_first_header(io));
        if begun.is_err() {
            let failed = self.current(origin).map(|index| self.segments[index].number);
            self.close(self.logs.len() - 1);
            if let Some(number) = failed {
                // A new file has other blocks.
                self.remove(io, number);
            }
        }
        begun
    }

    fn write_first_header(&mut self, io: &mut Io) -> Result<(), PushError> {
        match self.write_header(io, self.logs.len() - 1, Purpose::Reserve, Reach::Spare) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(PushError::Degraded),
        }
    }

    /// When records of a new log may leave.
    pub(super) fn leave(&self) -> Leave {
        match self.config.as_ref().map_or(config::Commit::Sync, |config| config.commit) {
            config::Commit::Sync | config::Commit::Group => Leave::Durable,
            config::Commit::RamFirst => Leave::Reserved,
        }
    }

    /// The log that takes records.
    pub fn log(&self) -> &Log {
        self.logs.last().expect("a lane in use has a log")
    }

    pub(super) fn log_mut(&mut self) -> &mut Log {
        self.logs.last_mut().expect("a lane in use has a log")
    }

    /// Numbers a record and keeps it in RAM until [`Lane::commit`].
    pub fn push(&mut self, io: &mut Io, draft: Draft, now: Instant) -> Result<u64, PushError> {
        self.now = self.now.max(now);
        let Some(config) = &self.config else { return Err(PushError::Full) };
        let reject = config.overflow == config::Overflow::Reject;
        let bytes = record_bytes(&draft);
        let batch_max = batch_bytes_max(self.segment_bytes);
        if bytes > batch_max {
            return Err(PushError::TooLarge);
        }
        let (count, waiting) = self.waiting();
        let full = waiting + bytes > batch_max || count >= SEGMENT_RECORDS_MAX as usize;
        // Small records take more in RAM than on flash.
        if full || self.log().recent.bytes() > waiting_bytes_max(self.segment_bytes) {
            self.write_waiting(io);
        }
        match self.log().leave {
            Leave::AtOnce => self.make_room_in_ram(&draft, reject)?,
            Leave::Durable | Leave::Reserved if reject => {
                let (count, waiting) = self.waiting();
                if !self.has_room(io, self.pages_for(waiting + bytes), count as u32 + 1) {
                    return Err(PushError::Full);
                }
            }
            Leave::Durable | Leave::Reserved => {}
        }
        io.payload_bytes += draft.bytes() as u64;
        self.counters.put_total += 1;
        let position = self.log_mut().push(draft, now);
        if self.log().leave == Leave::Reserved && self.log().wants_reservation() {
            self.reserve(io, self.logs.len() - 1, Reach::Spare);
        }
        Ok(position)
    }

    /// Records that wait for flash, and what they take there. In RAM mode they wait for better times.
    pub fn waiting(&self) -> (usize, usize) {
        let log = self.log();
        if log.leave == Leave::AtOnce { (0, 0) } else { log.recent.waiting() }
    }

    /// Since when the oldest of them waits.
    pub fn waiting_since(&self) -> Option<Instant> {
        self.log().recent.waiting_since().filter(|_| self.log().leave != Leave::AtOnce)
    }

    /// Bytes in RAM, about.
    pub fn ram_bytes(&self) -> u64 {
        self.logs.iter().map(|log| log.recent.bytes() as u64).sum()
    }

    /// Since when acks wait for flash.
    pub fn acks_since(&self) -> Option<Instant> {
        self.acks_since
    }

    /// Writes what is in RAM and syncs it. An error: of what was pushed since the last call, something was not taken,
    /// or is in RAM only.
    pub fn commit(&mut self, io: &mut Io) -> Result<(), PushError> {
        self.write_waiting(io);
        match self.failed.take() {
            Some(error) => Err(error),
            None if self.log().leave == Leave::AtOnce => Err(PushError::Degraded),
            None => Ok(()),
        }
    }

    /// Writes what waits, batch by batch. A write that fails is tried once more in another segment: pages that
    /// failed are never synced again (Rebello et al., ATC 2020). After that the lane goes on in RAM.
    pub(super) fn write_waiting(&mut self, io: &mut Io) {
        while self.waiting().0 > 0 {
            self.fill_area(io);
            let result = self.write_records(io).or_else(|error| match error {
                PushError::Full | PushError::TooLarge => Err(error),
                PushError::Degraded => {
                    if self.current(self.log().origin).is_some_and(|index| self.segments[index].is_blank()) {
                        self.next_segment(io, self.logs.len() - 1, Purpose::Records);
                    }
                    self.write_records(io)
                }
            });
            let (count, bytes) = (io.area.count(), io.area.bytes());
            io.area.clear(TAIL_BYTES_MAX);
            match result {
                Ok(()) => {
                    self.records += u64::from(count);
                    self.records_bytes += bytes as u64;
                    self.log_mut().recent.shrink(TAIL_BYTES_MAX);
                    self.reserve(io, self.logs.len() - 1, Reach::Spare);
                }
                Err(error) => {
                    // A full disk refuses what is answered after its commit; what was accepted before is kept.
                    let sync = self.config.as_ref().is_some_and(|config| config.commit == config::Commit::Sync);
                    let error = if sync { error } else { PushError::Degraded };
                    self.failed = if mutant!(FailureForgotten) { None } else { Some(error) };
                    if error == PushError::Full {
                        self.log_mut().burn();
                    } else {
                        self.go_on_in_ram(io);
                    }
                }
            }
        }
    }

    /// Encodes the next batch of what waits.
    fn fill_area(&self, io: &mut Io) {
        let bytes_max = batch_bytes_max(self.segment_bytes);
        for (draft, bytes) in self.log().recent.waiting_records() {
            if io.area.bytes() + bytes > bytes_max || io.area.count() >= SEGMENT_RECORDS_MAX {
                break;
            }
            io.area.push(draft);
        }
    }

    fn write_records(&mut self, io: &mut Io) -> Result<(), PushError> {
        let index = self.logs.len() - 1;
        let log = &self.logs[index];
        if log.reserved[1] < log.next {
            // An epoch begins with an empty batch.
            let written = self.write_header(io, index, Purpose::Reserve, Reach::Spare);
            written.map_err(|error| self.refusal(&error))?;
        }
        let pages = self.pages_for(io.area.bytes());
        let records = io.area.count();
        let slot = self.make_room(io, pages, records)?;
        let mut area = std::mem::take(&mut io.area);
        let result = self.write_batch(io, index, slot, &mut area, Purpose::Records);
        io.area = area;
        result.map_err(|error| self.refusal(&error))
    }

    /// What an error of the disk means to a producer: a full disk is the lane's overflow policy.
    pub(super) fn refusal(&self, error: &io::Error) -> PushError {
        let reject = self.config.as_ref().is_some_and(|config| config.overflow == config::Overflow::Reject);
        if error.kind() == io::ErrorKind::StorageFull && reject { PushError::Full } else { PushError::Degraded }
    }

    /// Pages of a batch with so many bytes of records, with room for the runs that making room may add.
    fn pages_for(&self, bytes: usize) -> u32 {
        format::pages_for(HEADER_BYTES_MAX.min(300 + 17 * self.log().runs.as_slice().len()) + bytes)
    }

    /// Writes an empty batch for a log. False: there is no page for it within reach.
    pub fn write_header(&mut self, io: &mut Io, log: usize, purpose: Purpose, reach: Reach) -> io::Result<bool> {
        let current = self.current(self.logs[log].origin);
        let page = current.and_then(|index| self.segments[index].used.map(|used| (index, used.page)));
        let slot = match page {
            Some((index, page)) if page < self.segments[index].data_pages() => Some(index),
            Some((index, page)) if reach >= Reach::Spare && page < self.segments[index].pages => Some(index),
            Some(_) | None => self.next_segment(io, log, purpose),
        };
        // The spare page holds nothing that a newer header does not say again: it may be rewritten.
        let Some(slot) = slot.or(current.filter(|_| reach == Reach::Again)) else { return Ok(false) };
        if log + 1 < self.logs.len() {
            self.write_header_before(io, log, slot, purpose)?;
        }
        self.write_batch(io, log, slot, &mut RecordArea::default(), purpose)?;
        Ok(true)
    }

    /// An older log gets no segment in which the next header would say it all: the last page but one bears the new one
    /// while the last is written again. It counts once that is done: until then a start finds the one that was there.
    fn write_header_before(&mut self, io: &mut Io, log: usize, slot: usize, purpose: Purpose) -> io::Result<()> {
        let segment = &mut self.segments[slot];
        let (pages, has_room) = (segment.pages, segment.ends_in_headers());
        let Some(used) = segment.used.as_mut().filter(|used| has_room && used.page >= pages) else { return Ok(()) };
        used.page = pages - 2;
        let known = self.logs[log].flash_knows();
        let written = self.write_batch(io, log, slot, &mut RecordArea::default(), purpose);
        if let (Err(_), Some(used)) = (&written, &mut self.segments[slot].used) {
            used.page = pages;
        }
        self.logs[log].set_flash_knows(known);
        written
    }

    /// A segment for a header that found no page; only the log that takes records may take one, and neither acks
    /// nor repairs are worth a new file.
    fn next_segment(&mut self, io: &mut Io, log: usize, purpose: Purpose) -> Option<usize> {
        if log + 1 != self.logs.len() {
            return None;
        }
        let grows = matches!(purpose, Purpose::Records | Purpose::Reserve);
        let index =
            self.free().or_else(|| (grows && self.grow(io).is_ok_and(|made| made)).then(|| self.segments.len() - 1));
        index.inspect(|&index| self.take(index, log))
    }

    /// Writes a batch at the segment's next page and syncs it. Whatever happens, no later write touches these pages;
    /// but for a segment's first ones, where the write failed.
    fn write_batch(
        &mut self,
        io: &mut Io,
        log: usize,
        slot: usize,
        area: &mut RecordArea,
        purpose: Purpose,
    ) -> io::Result<()> {
        let alive = self.alive();
        let segment = &mut self.segments[slot];
        let used = segment.used.as_mut().expect("a segment is taken before it is written");
        let header = self.logs[log].header(&self.name, used.lap, alive, area.count(), area.bytes() as u32);
        let replaced = used.page >= segment.pages;
        let place = Place { segment: segment.number, page: used.page.min(segment.pages - 1) };
        area.batch(&header, place, &mut io.scratch);
        let name = segment_name(&self.name, segment.number);
        let bytes = io.scratch.len() as u64;
        let offset = u64::from(place.page) * PAGE_BYTES as u64;
        let (page, lap) = (place.page, header.lap);
        let cleared = if header.count > 0 { self.clear_leftovers(io, slot, page, lap) } else { Ok(()) };
        let written = cleared.and_then(|()| io.disk.write_at(&name, offset, &io.scratch));
        let result = written.and_then(|()| io.sync(&name, purpose));
        io.scratch.clear();
        io.scratch.shrink_to(TAIL_BYTES_MAX);
        *purpose.of(&mut io.purposes) += bytes;
        let segment = &mut self.segments[slot];
        let used = segment.used.as_mut().expect("a segment is taken before it is written");
        if let Err(error) = result {
            // A segment's first page dates it: behind one that may be an older lap's, a start would find nothing.
            used.page = if place.page == 0 { 0 } else { segment.pages };
            self.warn(io, &error);
            return Err(error);
        }
        segment.lap = used.lap;
        used.page = place.page + header.pages() - u32::from(mutant!(DurablePageWrittenAgain));
        used.records += header.count;
        if header.count > 0 {
            used.records_end = used.page;
        }
        used.batches += 1;
        used.end = used.end.max(header.next());
        if log + 1 == self.logs.len() {
            self.durable_alive = alive;
        }
        self.logs[log].on_synced(&header, replaced);
        // What wants a reservation waits for the same deadline: a log whose storage failed at the start, say.
        if self.logs.iter().all(|log| log.acks_lag() == 0 && !log.wants_reservation()) {
            self.acks_since = None;
        }
        self.shed(io);
        Ok(())
    }

    /// Everything up to `position` of a log is stored upstream.
    pub fn acked(&mut self, io: &mut Io, log: usize, position: u64, now: Instant) {
        self.now = self.now.max(now);
        let waited = self.logs[log].depth();
        let spared = self.logs[log].on_acked(position);
        self.counters.acked_total += waited - self.logs[log].depth().min(waited);
        self.counters.overflowed = self.counters.overflowed.saturating_sub(spared);
        if self.logs[log].acks_lag() > 0 {
            self.acks_since.get_or_insert(now);
        }
        if log + 1 < self.logs.len() && self.logs[log].is_drained() {
            self.close_drained(io);
        }
        if self.waiting().0 == 0 && self.log().wants_reservation() {
            self.reserve(io, self.logs.len() - 1, self.reach());
        }
        let lag = self.log().acks_lag();
        let average = self.records_bytes / self.records.max(1);
        if lag * average > ACK_LAG_BYTES_MAX {
            self.flush_acks(io, now);
        }
    }

    /// Says what the disk said.
    pub(super) fn warn(&self, io: &mut Io, error: &io::Error) {
        log::warn!(target: "outbox", "write failed lane={} error={error}", self.name);
        io.last_error = error.to_string();
    }

    /// Older logs that are done with go. Their last header says so: best effort where a newer log's headers do, too,
    /// since without it the next start offers the log again and the server says that it has it all. Where none stands
    /// on flash it comes first: their segments are reused, and what a power cut left of them would look damaged.
    pub(super) fn close_drained(&mut self, io: &mut Io) {
        for log in (0..self.logs.len() - 1).rev().filter(|log| self.logs[*log].is_drained()).collect::<Vec<_>>() {
            let told = self.logs[log].is_drained_durably()
                || matches!(self.write_header(io, log, Purpose::Acks, Reach::Again), Ok(true));
            if told || self.log().is_named() {
                self.close(log);
            }
        }
    }

    /// A log goes; its segments are free, the newest one last (`Segment::lap`): where a start still finds the log, that
    /// one says how far it was acked and sent; of an older one alone the server would seem to know too much (rule 7).
    pub(super) fn close(&mut self, log: usize) {
        let origin = self.logs.remove(log).origin;
        self.may_shed = true;
        self.segments.iter_mut().filter(|s| s.used.is_some_and(|u| u.origin == origin)).for_each(|s| s.used = None);
        self.cursor.forget();
    }

    /// Removes the files of a lane that has nothing left. A file that stays is found at the next start.
    pub fn remove_if_drained(&mut self, io: &mut Io) -> bool {
        let drained = self.logs.iter().all(Log::is_drained);
        if drained {
            // The newest one last: it says that the others are done with.
            self.segments.sort_by_key(|segment| segment.lap);
            for number in self.segments.iter().map(|segment| segment.number).collect::<Vec<_>>() {
                if !self.remove(io, number) {
                    break;
                }
            }
        }
        drained
    }

    /// Acks to flash in pages of their own, where there is a page. Not while records wait for flash: their batch
    /// carries the acks, and has been promised its pages.
    pub fn flush_acks(&mut self, io: &mut Io, now: Instant) {
        self.acks_since = None;
        if self.waiting().0 > 0 {
            return;
        }
        for log in 0..self.logs.len() {
            // An older log gets no more pages.
            let reach = if log + 1 < self.logs.len() { Reach::Again } else { self.reach() };
            if self.logs[log].acks_lag() > 0 && self.write_header(io, log, Purpose::Acks, self.reach()).is_err() {
                self.acks_since = Some(now);
            }
            self.reserve(io, log, reach);
            if self.logs[log].wants_reservation() {
                self.acks_since = Some(now);
            }
        }
    }

    /// How far a header may go that carries acks: to the last page where it frees a segment.
    fn reach(&self) -> Reach {
        let frees_next = self.oldest_where(|index| self.is_covered(index, Log::covered)).is_some();
        if frees_next { Reach::Again } else { Reach::Data }
    }

    /// Protocol rule 7: draws a new epoch for a log; everything it holds is numbered from 1. False: it does not
    /// stand on flash yet, and nothing leaves under it.
    pub fn renumber(&mut self, io: &mut Io, log: usize) -> bool {
        let epoch = io.draw();
        self.logs[log].renumber(epoch);
        self.reserve(io, log, Reach::Spare);
        self.logs[log].is_named()
    }

    /// Writes headers until all that is on flash may leave: epoch and reservation stand on two pages. A full lane may
    /// have only one page left: on that one. What fails is tried again with the acks.
    pub(super) fn reserve(&mut self, io: &mut Io, log: usize, reach: Reach) {
        let mut written = Ok(true);
        for _ in 0..2 {
            if self.logs[log].wants_reservation() && matches!(written, Ok(true)) {
                let reach = if self.logs[log].is_named() { reach } else { Reach::Again };
                written = self.write_header(io, log, Purpose::Reserve, reach);
            }
        }
        if written.is_ok() && self.logs[log].wants_reservation() {
            self.logs[log].rely_on_one_header();
        }
        if self.logs[log].wants_reservation() {
            self.acks_since.get_or_insert_default();
        }
    }

    /// See [`super::Outbox::hash_state`].
    pub(super) fn hash_state<H: Hasher>(&self, state: &mut H) {
        (&self.segments, &self.logs, self.lap, self.unlisted, &self.failed).hash(state);
        (self.waiting_since().is_some(), self.acks_since.is_some(), self.failing.is_some()).hash(state);
    }

    /// The lane's part of the status. Numbers are the newest epoch's; depth is the lane's.
    pub fn status(&self, wall_ms: Option<u64>) -> status::Lane {
        let log = self.log();
        let bytes: u64 = self.segments.iter().map(Segment::bytes).sum();
        let newest = || self.logs.iter().find_map(|log| log.recent.oldest()).and_then(|(_, draft)| draft.at);
        let oldest_at = self.cursor.oldest_at.or_else(newest);
        let depth: u64 = self.logs.iter().map(Log::depth).sum();
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
