//! Where a batch may go: a lane's segments on flash, which of them may be written again, and how many there may be.

use std::io;

use super::PushError;
use super::format::{HEADER_BYTES_MAX, PAGE_BYTES, PAYLOAD_BYTES, SEGMENT_RECORDS_MAX};
use super::lane::{Io, Lane, Purpose, Reach};
use super::log::Log;
use super::mutants::mutant;
use crate::config;
use crate::record::{LaneName, Why};

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Its number; stands in its name and in every checksum.
    pub number: u32,
    /// Its pages, the spare one included. A segment keeps the size it was made with.
    pub pages: u32,
    /// What lies in it; `None`: may be written.
    pub used: Option<Use>,
    /// The newest lap on flash in it: what is left of a log that is done with goes in this order, its newest header
    /// last. Else a start would find an older one and take it for the newest.
    pub lap: u32,
    /// From this page on no leftovers of another process are in it (see `leftovers`).
    pub cleared: u32,
}

/// What lies in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Use {
    /// Whose log.
    pub origin: u64,
    /// When it was taken.
    pub lap: u32,
    /// Its first position.
    pub first: u64,
    /// The position after its last.
    pub end: u64,
    /// Records written.
    pub records: u32,
    /// Batches written, or found by the walk.
    pub batches: u32,
    /// Pages written: the newest segment of a log goes on here.
    pub page: u32,
    /// The page behind the last one with records.
    pub records_end: u32,
}

impl Segment {
    /// Pages for batches with records; the last one is kept for the header that frees the next segment.
    pub fn data_pages(&self) -> u32 {
        self.pages - u32::from(!mutant!(SpareTaken))
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES as u64
    }

    /// Taken, and nothing of it is on flash.
    pub(super) fn is_blank(&self) -> bool {
        self.used.is_some_and(|used| used.page == 0)
    }

    /// No records lie on the last page but one: two pages are there for headers that are written again and again.
    pub(super) fn ends_in_headers(&self) -> bool {
        self.used.is_some_and(|used| used.records_end < self.data_pages())
    }

    /// Whether a batch of so many pages and records still goes in.
    fn fits(&self, pages: u32, records: u32) -> bool {
        self.used
            .is_some_and(|used| used.page + pages <= self.data_pages() && used.records + records <= SEGMENT_RECORDS_MAX)
    }
}

/// Most bytes of records in one batch of a segment of this size: the header may be at its largest.
pub const fn batch_bytes_max(segment_bytes: u32) -> usize {
    (segment_bytes as usize / PAGE_BYTES - 1) * PAYLOAD_BYTES - HEADER_BYTES_MAX
}

impl Lane {
    /// The segment that a log writes to.
    pub(super) fn current(&self, origin: u64) -> Option<usize> {
        // Nearly always the one that was taken last: a lane may have thousands, and every commit asks.
        let last = self.segments.get(self.last_taken).and_then(|segment| segment.used);
        if last.is_some_and(|used| used.lap == self.lap && used.origin == origin) {
            return Some(self.last_taken);
        }
        let newest = |index: &usize| self.segments[*index].used.map_or(0, |used| used.lap);
        (0..self.segments.len())
            .filter(|&index| self.segments[index].used.is_some_and(|used| used.origin == origin))
            .max_by_key(newest)
    }

    /// The segment that was taken first, but for those in which a log's newest header lies. One pass for each log: a
    /// lane may have thousands.
    pub(super) fn oldest(&self) -> Option<usize> {
        self.oldest_where(|_| true)
    }

    /// The same among those that fit: what is live may be through before an older log's backlog is.
    pub(super) fn oldest_where(&self, fits: impl Fn(usize) -> bool) -> Option<usize> {
        let newest: Vec<_> = self.logs.iter().map(|log| (log.origin, self.newest(log.origin))).collect();
        let is_kept = |used: Use, turn| newest.iter().any(|(origin, newest)| *origin == used.origin && *newest <= turn);
        let turns = self.turns().filter(|(used, turn)| !is_kept(*used, *turn));
        turns.map(|(_, turn)| turn).filter(|(_, index)| fits(*index)).min().map(|(_, index)| index)
    }

    /// When the segment was taken that a log writes to; where nothing could be written there yet, the one before it.
    fn newest(&self, origin: u64) -> (u32, usize) {
        let written = self.turns().filter(|(used, _)| used.origin == origin && used.page > 0);
        written.map(|(_, turn)| turn).max().unwrap_or_default()
    }

    /// What lies in each segment, with what orders them: when it was taken, and where it lies in `segments`.
    fn turns(&self) -> impl Iterator<Item = (Use, (u32, usize))> {
        let used = self.segments.iter().enumerate();
        used.filter_map(|(index, segment)| segment.used.map(|used| (used, (used.lap, index))))
    }

    /// The oldest segment turn that any log still needs.
    pub(super) fn alive(&self) -> u32 {
        self.segments.iter().filter_map(|segment| segment.used).map(|used| used.lap).min().unwrap_or(self.lap)
    }

    /// Holds what is left of a log that is done with, and no header says so yet.
    fn is_undead(&self, segment: &Segment) -> bool {
        segment.used.is_none() && segment.lap > 0 && segment.lap >= self.durable_alive && self.log().is_named()
    }

    /// A segment that may be written: never used, or covered whole by a header that is on flash.
    pub(super) fn free(&self) -> Option<usize> {
        let unused = self.unused().filter(|&index| !self.is_small(&self.segments[index]));
        let by = if mutant!(ReusedBeforeDurable) { Log::covered } else { Log::covered_durably };
        let fits = |index: usize| !self.is_small(&self.segments[index]) && self.is_covered(index, by);
        unused.or_else(|| self.oldest_where(fits))
    }

    /// Of the segments that hold nothing any more the one that goes first: what a closed log's segments still say goes
    /// in its order.
    fn unused(&self) -> Option<usize> {
        let may_go = |index: &usize| {
            let segment = &self.segments[*index];
            segment.used.is_none() && !self.is_undead(segment) && (segment.lap > 0 || !self.is_small(segment))
        };
        (0..self.segments.len()).filter(may_go).min_by_key(|index| self.segments[*index].lap)
    }

    /// Made under another configuration, it does not hold every batch.
    fn is_small(&self, segment: &Segment) -> bool {
        segment.bytes() < u64::from(self.segment_bytes)
    }

    pub(super) fn is_covered(&self, index: usize, by: impl Fn(&Log) -> u64) -> bool {
        let Some(used) = self.segments[index].used else { return true };
        self.logs.iter().find(|log| log.origin == used.origin).is_none_or(|log| used.end <= by(log) + 1)
    }

    /// Whether a batch of so many pages and records has a place without giving anything up.
    pub(super) fn has_room(&self, io: &mut Io, pages: u32, records: u32) -> bool {
        let current = self.current(self.log().origin);
        if current.is_some_and(|current| self.segments[current].fits(pages, records)) || self.free().is_some() {
            return true;
        }
        let held = self.held(false);
        self.may_grow(&held) && (held.len() < self.segments.len() || self.has_headroom(io).is_ok_and(|has| has))
    }

    /// Whether there can be so many segments beside those in use, giving up what the lane's policy allows.
    pub(super) fn has_segments(&self, io: &mut Io, count: usize) -> bool {
        let drops = self.config.as_ref().is_some_and(|config| config.overflow == config::Overflow::DropOldest);
        let held = self.held(drops);
        let bytes: u64 = held.iter().map(|index| self.segments[*index].bytes()).sum();
        let new = count.saturating_sub(self.segments.len() - held.len()) as u64;
        let bytes_new = new * u64::from(self.segment_bytes);
        let has_headroom = |io: &mut Io| {
            io.disk.free_bytes().is_ok_and(|free| free >= self.headroom_bytes_min.saturating_add(bytes_new))
        };
        bytes + count as u64 * u64::from(self.segment_bytes) <= self.bytes_max() && (new == 0 || has_headroom(io))
    }

    /// The segments that cannot be had for anything else: the one in use, an older log's newest header, which stays
    /// where it is until the log is done with, and, but where it is given up, what is not covered.
    fn held(&self, given_up: bool) -> Vec<usize> {
        let current = self.current(self.log().origin);
        let older = &self.logs[..self.logs.len() - 1];
        let kept: Vec<usize> = older
            .iter()
            .map(|log| self.newest(log.origin))
            .filter_map(|(lap, index)| (lap > 0).then_some(index))
            .collect();
        let is_held = |index: &usize| {
            let waits = !given_up && !self.is_covered(*index, Log::covered);
            waits || Some(*index) == current || kept.contains(index)
        };
        (0..self.segments.len()).filter(is_held).collect()
    }

    /// Whether one more segment is within the bound, beside these.
    fn may_grow(&self, held: &[usize]) -> bool {
        let bytes: u64 = held.iter().map(|index| self.segments[*index].bytes()).sum();
        // One holds a log's newest header while another is written.
        held.len() < 2 * self.logs.len() || bytes + u64::from(self.segment_bytes) <= self.bytes_max()
    }

    /// What its files may take. Each log needs two segments.
    fn bytes_max(&self) -> u64 {
        let bytes_min = 2 * u64::from(self.segment_bytes) * self.logs.len() as u64;
        self.config.as_ref().map_or(0, |config| config.bytes_max).max(bytes_min)
    }

    fn has_headroom(&self, io: &mut Io) -> io::Result<bool> {
        Ok(io.disk.free_bytes()? >= self.headroom_bytes_min + u64::from(self.segment_bytes))
    }

    /// Removes free segments that are no use: made under another configuration, they are too small, or more than the
    /// lane may have by now. Two headers stay that say so, so that one damaged page brings nothing back.
    pub(super) fn shed(&mut self, io: &mut Io) {
        if !self.may_shed {
            return;
        }
        let mut bytes: u64 = self.segments.iter().map(Segment::bytes).sum();
        if bytes <= self.bytes_max() && !self.segments.iter().any(|segment| self.is_small(segment)) {
            self.may_shed = false;
            return;
        }
        let current: Vec<_> = self.logs.iter().map(|log| self.current(log.origin)).collect();
        let newest = current.last().copied().flatten().and_then(|index| self.segments[index].used);
        if newest.is_none_or(|used| used.batches < 2) {
            return;
        }
        let free = |index: &usize| {
            let covered = self.is_covered(*index, Log::covered_twice) && !self.is_undead(&self.segments[*index]);
            covered && !current.contains(&Some(*index))
        };
        let mut free: Vec<usize> = (0..self.segments.len()).filter(free).collect();
        free.sort_by_key(|index| self.segments[*index].lap);
        let mut gone = Vec::new();
        for index in free {
            let segment = &self.segments[index];
            if self.is_small(segment) || bytes > self.bytes_max() {
                bytes -= segment.bytes();
                gone.push(segment.number);
            } else if segment.used.is_none() && segment.lap > 0 {
                break;
            }
        }
        for number in gone {
            if !self.remove(io, number) {
                break;
            }
        }
    }

    /// Removes a segment for good. Segments go in an order, and no power cut may bring an older one back alone; false:
    /// it might.
    pub(super) fn remove(&mut self, io: &mut Io, number: u32) -> bool {
        if io.disk.remove(&segment_name(&self.name, number)).is_err() {
            return false;
        }
        self.segments.retain(|segment| segment.number != number);
        self.cursor.forget();
        io.sync_dir(Purpose::Segment).is_ok()
    }

    /// Finds the segment for a batch of the newest log, in this order: the one in use; one that flash says is free;
    /// one that is free once a header says so; a new one; the oldest, given up.
    pub(super) fn make_room(&mut self, io: &mut Io, pages: u32, records: u32) -> Result<usize, PushError> {
        let index = self.logs.len() - 1;
        let origin = self.logs[index].origin;
        // Each turn covers, takes, removes or makes one.
        for _ in 0..3 * self.segments.len() + 4 {
            if let Some(current) = self.current(origin).filter(|&current| self.segments[current].fits(pages, records)) {
                return Ok(current);
            }
            if let Some(free) = self.free() {
                self.take(free, index);
                continue;
            }
            if let Some(small) = self.unused() {
                if self.remove(io, self.segments[small].number) {
                    continue;
                }
                return Err(PushError::Degraded);
            }
            // Of an older log that is still alive no header can say so yet.
            let alive = self.alive();
            if self.segments.iter().any(|segment| self.is_undead(segment) && segment.lap < alive) {
                self.cover(io, index)?;
                continue;
            }
            if let Some(index) = self.oldest_where(|index| self.is_covered(index, Log::covered)) {
                let small = self.is_small(&self.segments[index]);
                let by = if small { Log::covered_twice } else { Log::covered_durably };
                if let Some(owner) = self.owner(index).filter(|_| !self.is_covered(index, by)) {
                    self.cover(io, owner)?;
                    continue;
                }
                if small && self.remove(io, self.segments[index].number) {
                    continue;
                }
            }
            // Storage that fails is not a full lane: what it holds can still be sent.
            if self.grow(io).map_err(|error| self.refusal(&error))? {
                continue;
            }
            match (self.config.as_ref().map(|config| config.overflow), self.oldest()) {
                (Some(config::Overflow::Reject), _) => return Err(PushError::Full),
                (Some(config::Overflow::DropOldest), Some(oldest)) => self.drop_segment(io, oldest)?,
                (Some(config::Overflow::DropOldest), None) | (None, _) => return Err(PushError::Degraded),
            }
        }
        Err(PushError::Degraded)
    }

    fn owner(&self, index: usize) -> Option<usize> {
        let used = self.segments[index].used?;
        self.logs.iter().position(|log| log.origin == used.origin)
    }

    fn drop_segment(&mut self, io: &mut Io, index: usize) -> Result<(), PushError> {
        let (Some(used), Some(owner)) = (self.segments[index].used, self.owner(index)) else { return Ok(()) };
        self.counters.overflowed += self.logs[owner].give_up(used.end - 1, Why::Overflow);
        if mutant!(OverwrittenBeforeFloor) {
            self.logs[owner].durable_floor = self.logs[owner].floor;
            return Ok(());
        }
        self.cover(io, owner)
    }

    /// Writes a header that frees the oldest segment.
    fn cover(&mut self, io: &mut Io, owner: usize) -> Result<(), PushError> {
        match self.write_header(io, owner, Purpose::Acks, Reach::Again) {
            Ok(true) => Ok(()),
            Ok(false) => Err(PushError::Degraded),
            Err(error) => Err(self.refusal(&error)),
        }
    }

    /// Takes a free segment for a log.
    pub(super) fn take(&mut self, segment: usize, log: usize) {
        self.lap += u32::from(!mutant!(LapKept) || self.lap == 0);
        self.last_taken = segment;
        let log = &self.logs[log];
        self.segments[segment].used = Some(Use {
            origin: log.origin,
            lap: self.lap,
            first: log.durable + 1,
            end: log.durable + 1,
            records: 0,
            batches: 0,
            page: 0,
            records_end: 0,
        });
        self.cursor.forget();
    }

    /// The lowest number that no segment has.
    fn unused_number(&self) -> u32 {
        let mut taken = vec![false; self.segments.len() + 1];
        for segment in &self.segments {
            if let Some(taken) = taken.get_mut(segment.number as usize) {
                *taken = true;
            }
        }
        taken.iter().position(|taken| !taken).expect("one more than there are segments") as u32
    }

    /// Makes one more segment, if it may: zeros, synced, and known to the folder, so that later writes are in place.
    /// False: there is no room for it, and the bound is what there is.
    pub(super) fn grow(&mut self, io: &mut Io) -> io::Result<bool> {
        let held: Vec<usize> = (0..self.segments.len()).collect();
        if !self.may_grow(&held) || !self.has_headroom(io)? {
            return Ok(false);
        }
        let number = self.unused_number();
        let name = segment_name(&self.name, number);
        if let Err(error) = make_segment(io, &name, self.segment_bytes) {
            self.warn(io, &error);
            // What there is of it would only take space.
            let _ = io.disk.remove(&name);
            return if error.kind() == io::ErrorKind::StorageFull { Ok(false) } else { Err(error) };
        }
        let pages = self.segment_bytes / PAGE_BYTES as u32;
        self.segments.push(Segment { number, pages, used: None, lap: 0, cleared: 0 });
        self.may_shed = true;
        Ok(true)
    }
}

/// The file's name. Lane names hold no dot, so the last two parts are ours.
pub fn segment_name(lane: &LaneName, number: u32) -> String {
    format!("{lane}.{number:04}.seg")
}

/// The lane and number that a file name stands for.
pub fn parse_segment_name(name: &str) -> Option<(LaneName, u32)> {
    let (lane, number) = name.strip_suffix(".seg")?.split_once('.')?;
    let lane = LaneName::try_new(lane).ok()?;
    let number = number.parse().ok()?;
    (segment_name(&lane, number) == name).then_some((lane, number))
}

/// Fills a segment with zeros and syncs it and the folder.
pub fn make_segment(io: &mut Io, name: &str, bytes: u32) -> io::Result<()> {
    let zeros = [0; 16 * PAGE_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let chunk = (bytes - offset).min(zeros.len() as u32);
        io.disk.write_at(name, u64::from(offset), &zeros[..chunk as usize])?;
        io.purposes.segments += u64::from(chunk);
        offset += chunk;
    }
    io.sync(name, Purpose::Segment)?;
    if mutant!(FolderNotSynced) { Ok(()) } else { io.sync_dir(Purpose::Segment) }
}
