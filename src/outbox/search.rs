//! Looking into a lane without moving its reader and without giving anything up: one record by its position (for the
//! dead letters), all records of a segment (for the keys).

use super::Draft;
use super::format::{self, Header, Slot};
use super::lane::{Io, Lane};
use super::segments::Segment;

impl Lane {
    /// The record at a position, from RAM or flash; `None` where it cannot be read.
    pub(super) fn look_up(&self, io: &mut Io, log: usize, position: u64) -> Option<Draft> {
        if let Some(draft) = self.logs[log].recent.get(position) {
            return Some(draft.clone());
        }
        let origin = self.logs[log].origin;
        let holds = |segment: &&Segment| {
            segment.used.is_some_and(|used| used.origin == origin && used.first <= position && position < used.end)
        };
        let segment = self.segments.iter().find(holds)?;
        let in_it = |(_, header): &(u32, Header)| header.first <= position && position < header.next();
        let (page, header) = self.batches(io, segment).into_iter().find(in_it)?;
        let slot = self.records(io, segment, page, &header).into_iter().nth((position - header.first) as usize)?;
        match slot {
            Slot::Intact(draft) => Some(draft),
            Slot::Damaged(_) => None,
        }
    }

    /// The intact batches of a segment's present turn, with the page that each begins on.
    pub(super) fn batches(&self, io: &mut Io, segment: &Segment) -> Vec<(u32, Header)> {
        let Some(used) = segment.used else { return Vec::new() };
        let written = if used.page == 0 { segment.pages } else { used.page.min(segment.pages) };
        let (mut batches, mut page) = (Vec::new(), 0);
        while page < written {
            let header = self.read_header(io, segment, page);
            let Some(header) = header.filter(|header| header.lap == used.lap && header.origin == used.origin) else {
                page += 1;
                continue;
            };
            let pages = header.pages().max(1);
            batches.push((page, header));
            page += pages;
        }
        batches
    }

    /// The records of such a batch, in the order of their positions.
    pub(super) fn records(&self, io: &mut Io, segment: &Segment, page: u32, header: &Header) -> Vec<Slot> {
        let payload = self.read_batch(io, segment, page, header.pages());
        format::records(header, &payload)
    }
}
