//! What a power cut left of a batch that no header names. A start does not find it, so the next batch gets the same
//! place, lap and positions; cut in its turn, it would take the leftovers' records for its own: nobody was told of
//! either, but a record that is gone must not come back under another one's name. So they are cleared before a process
//! first writes records where another one may have been. Nothing is written where there are none.

use std::io;
use std::ops::Range;

use super::disk::Disk;
use super::format::{self, Header, PAGE_BYTES, PAYLOAD_BYTES, Page, Place};
use super::lane::{Io, Lane, Purpose};
use super::segments::segment_name;

impl Lane {
    /// Clears a segment from `page` on for records of `lap`, unless that was done.
    pub(super) fn clear_leftovers<D: Disk>(
        &mut self,
        io: &mut Io<D>,
        index: usize,
        page: u32,
        lap: u32,
    ) -> io::Result<()> {
        let segment = &self.segments[index];
        let pages = page..segment.cleared.min(segment.data_pages());
        if !pages.is_empty() {
            self.clear_pages(io, index, pages, lap)?;
            self.segments[index].cleared = page;
        }
        Ok(())
    }

    /// A page may stay that is zeros or, whole, of an earlier lap: a record's checksum covers the lap. So may an earlier
    /// lap's header, without which a start would not know how old the segment is.
    pub(super) fn clear_pages<D: Disk>(
        &self,
        io: &mut Io<D>,
        index: usize,
        pages: Range<u32>,
        lap: u32,
    ) -> io::Result<()> {
        let segment = &self.segments[index];
        let name = segment_name(&self.name, segment.number);
        let mut written = false;
        for page in pages {
            let (mut bytes, kind) = self.read_page(io, segment, page);
            match kind {
                Page::Zero => continue,
                Page::Written { lap: of } if (1..lap).contains(&of) => continue,
                // Cleared by a process that may have died before its sync: again.
                Page::Written { .. } | Page::Bad => {}
            }
            let place = Place { segment: segment.number, page };
            let kept = Header::decode(&bytes[..PAYLOAD_BYTES], place).filter(|header| header.lap < lap);
            format::clear_page(&mut bytes, place, kept.map_or(0, |header| header.bytes()));
            io.disk.write_at(&name, u64::from(page) * PAGE_BYTES as u64, bytes.as_slice())?;
            io.purposes.other += PAGE_BYTES as u64;
            written = true;
        }
        if written { io.sync(&name, Purpose::Repair) } else { Ok(()) }
    }
}
