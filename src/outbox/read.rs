//! Reading a lane back: from RAM while the link keeps up, else batch by batch from flash. Damage costs what is
//! damaged and is counted; the reader always advances (vectordotdev/vector#17644).

use std::collections::VecDeque;
use std::io;

use super::Draft;
use super::format::{self, Header, PAGE_BYTES, Page, Place, Slot};
use super::lane::{Io, Lane};
use super::mutants::mutant;
use super::segments::{Segment, Use, segment_name};
use crate::record::{Gap, Item, Record, Why};

/// Where the reader stands on flash, and the batch it stands in.
#[derive(Debug, Clone, Default)]
pub struct Cursor {
    /// Which segment turn.
    lap: u32,
    /// The page after the batch.
    page: u32,
    /// Position of `records`' front.
    first: u64,
    /// What is left of the batch.
    records: VecDeque<Slot>,
    /// When the record read last was handed in, Unix ms: the oldest there is, about.
    pub oldest_at: Option<u64>,
}

impl Cursor {
    /// Segments changed hands: start over.
    pub fn forget(&mut self) {
        *self = Self { oldest_at: self.oldest_at, ..Self::default() };
    }
}

impl Lane {
    /// What comes next from `from` on, contiguous: records and gaps in seqs, only what may leave. Counts as sent.
    pub fn fetch(&mut self, io: &mut Io, log: usize, from: u64, records_max: usize, bytes_max: usize) -> Vec<Item> {
        let base = self.logs[log].base;
        let may_leave = self.logs[log].may_leave();
        let mut items = Vec::new();
        let (mut records, mut bytes) = (0, 0);
        let mut at = from;
        // A bound on what is read where all is damaged.
        let steps_max = records_max.max(1);
        let mut steps = 0;
        while at <= may_leave && steps < steps_max {
            if let Some(run) = self.logs[log].runs.at(at) {
                let gap = Gap { from: at - base, to: run.to.min(may_leave) - base, why: run.why };
                at = gap.to + base + 1;
                self.logs[log].on_gap_sent(at - 1);
                match items.last_mut() {
                    // Found damaged piece by piece.
                    Some(Item::Gap(last)) if last.why == gap.why => last.to = gap.to,
                    Some(Item::Gap(_) | Item::Record(_)) | None => items.push(Item::Gap(gap)),
                }
                steps += 1;
                continue;
            }
            let Some(draft) = self.record_at(io, log, at) else {
                if mutant!(ReaderStandsAtDamage) {
                    break;
                }
                continue;
            };
            if io.clock.is_some_and(|clock| clock.has_expired(&draft)) {
                self.lose(log, at, at, Why::Expired);
                continue;
            }
            if records == records_max || (records > 0 && bytes + draft.wire_bytes() > bytes_max) {
                break;
            }
            records += 1;
            bytes += draft.wire_bytes();
            let stamp = io.clock.map_or(draft.at, |clock| clock.at(&draft));
            items.push(Item::Record(Record { seq: at - base, at: stamp, topic: draft.topic, body: draft.body }));
            at += 1;
        }
        if !items.is_empty() {
            self.on_sent(log, at - 1, records as u64, &items);
        }
        items
    }

    fn on_sent(&mut self, log: usize, last: u64, records: u64, items: &[Item]) {
        let log = &mut self.logs[log];
        let last_record = items.iter().rev().find_map(|item| match item {
            Item::Record(record) => Some(record.seq + log.base),
            Item::Gap(_) => None,
        });
        let new = last_record.unwrap_or(0).saturating_sub(log.sent_record_max).min(records);
        self.counters.sent += records;
        self.counters.resent += records - new;
        log.sent_record_max = log.sent_record_max.max(last_record.unwrap_or(0));
        log.sent_max = log.sent_max.max(last);
    }

    /// The record at a position that no run covers, if it can be read; else a run covers it now.
    pub(super) fn record_at(&mut self, io: &mut Io, log: usize, position: u64) -> Option<Draft> {
        if let Some(draft) = self.logs[log].recent.get(position) {
            return Some(draft.clone());
        }
        if !self.load(io, log, position) {
            return None;
        }
        let index = (position - self.cursor.first) as usize;
        match self.cursor.records.get(index) {
            Some(Slot::Intact(draft)) => {
                let draft = draft.clone();
                self.cursor.oldest_at = io.clock.map_or(draft.at, |clock| clock.at(&draft));
                Some(draft)
            }
            Some(Slot::Damaged(_)) | None => {
                self.lose(log, position, position, Why::Corrupt);
                None
            }
        }
    }

    fn lose(&mut self, log: usize, from: u64, to: u64, why: Why) {
        if mutant!(ReaderStandsAtDamage) {
            return;
        }
        let lost = self.logs[log].runs.fill(from, to, why);
        match why {
            Why::Corrupt => self.counters.corrupt += if mutant!(LossNotCounted) { 0 } else { lost },
            Why::Expired => self.counters.expired += lost,
            Why::Torn | Why::Unknown => self.counters.torn += lost,
            Why::Overflow | Why::Rejected | Why::Settled => {}
        }
    }

    /// Moves the cursor to the batch that holds `position`; false: there is none, and what is missing is lost.
    fn load(&mut self, io: &mut Io, log: usize, position: u64) -> bool {
        let origin = self.logs[log].origin;
        let holds = |used: &Use| used.origin == origin && used.first <= position && position < used.end;
        let found = self.segments.iter().find_map(|segment| Some((segment.clone(), segment.used.filter(&holds)?)));
        let Some((segment, used)) = found else {
            // Between two segments: a batch at the end of one or the start of the other is gone.
            let next = self.segments.iter().filter_map(|s| s.used).filter(|u| u.origin == origin && u.first > position);
            let end = next.map(|used| used.first).min().unwrap_or(self.logs[log].durable + 1);
            self.lose(log, position, end.max(position + 1) - 1, Why::Corrupt);
            return false;
        };
        let end = self.cursor.first + self.cursor.records.len() as u64;
        if self.cursor.lap == used.lap && (self.cursor.first..end).contains(&position) {
            return true;
        }
        let onward = self.cursor.lap == used.lap && end == position;
        let mut page = if onward { self.cursor.page } else { 0 };
        self.cursor = Cursor { lap: used.lap, oldest_at: self.cursor.oldest_at, ..Cursor::default() };
        let written = if used.page == 0 { segment.pages } else { used.page.min(segment.pages) };
        while page < written {
            // Intact and absurd: what lies here ends before the next segment's first, or before what comes next.
            let ours = |h: &Header| h.lap == used.lap && h.origin == origin && h.first < used.end;
            let Some(header) = self.read_header(io, &segment, page).filter(ours) else {
                page += 1;
                continue;
            };
            let pages = header.pages();
            if header.first > position {
                // Everything before it that is not there was synced before it was written: `durable` says so.
                let why = if header.durable + 1 >= header.first { Why::Corrupt } else { Why::Unknown };
                let end = if mutant!(DamageLosesTheSegment) { used.end } else { header.first };
                self.lose(log, position, end - 1, why);
                return false;
            }
            if header.next() > position {
                let payload = self.read_batch(io, &segment, page, pages);
                self.cursor.first = header.first;
                self.cursor.records = format::records(&header, &payload).into();
                self.cursor.page = page + pages;
                return true;
            }
            page += pages.max(1);
        }
        self.lose(log, position, used.end - 1, Why::Corrupt);
        false
    }

    /// The intact header that stands on a page.
    pub(super) fn read_header(&self, io: &mut Io, segment: &Segment, page: u32) -> Option<Header> {
        let (bytes, _) = self.read_page(io, segment, page);
        let place = Place { segment: segment.number, page };
        Header::decode(&bytes[..format::PAYLOAD_BYTES], place).filter(|header| header.lane == self.name)
    }

    /// One page and what its tag says; a page that cannot be read is bad. Twice, since an error may pass, and what a
    /// start does not see it goes on without.
    pub(super) fn read_page(&self, io: &mut Io, segment: &Segment, page: u32) -> (Box<[u8; PAGE_BYTES]>, Page) {
        for _ in 0..2 {
            if let Ok(read) = self.try_read_page(io, segment, page) {
                return read;
            }
        }
        (Box::new([0; PAGE_BYTES]), Page::Bad)
    }

    /// The same for who has to know damage from what cannot be read now: an error, or less than a page.
    pub(super) fn try_read_page(
        &self,
        io: &mut Io,
        segment: &Segment,
        page: u32,
    ) -> io::Result<(Box<[u8; PAGE_BYTES]>, Page)> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        let name = segment_name(&self.name, segment.number);
        let read = io.disk.read_at(&name, u64::from(page) * PAGE_BYTES as u64, bytes.as_mut_slice())?;
        if read < PAGE_BYTES {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let kind = format::page(bytes.as_slice(), Place { segment: segment.number, page });
        Ok((bytes, kind))
    }

    /// The joined payload of a batch, as far as it lies in the segment.
    pub(super) fn read_batch(&self, io: &mut Io, segment: &Segment, page: u32, pages: u32) -> Vec<u8> {
        let pages = pages.min(segment.pages - page);
        let mut bytes = vec![0; pages as usize * PAGE_BYTES];
        let name = segment_name(&self.name, segment.number);
        let offset = u64::from(page) * PAGE_BYTES as u64;
        if !io.disk.read_at(&name, offset, &mut bytes).is_ok_and(|read| read == bytes.len()) {
            // Page by page, so that one unreadable page costs its own records.
            for (index, chunk) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
                if !io.disk.read_at(&name, offset + (index * PAGE_BYTES) as u64, chunk).is_ok_and(|n| n == PAGE_BYTES) {
                    chunk.fill(0);
                }
            }
        }
        format::strip_tags(&mut bytes);
        bytes
    }
}
