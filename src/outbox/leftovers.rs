//! What a power cut left of a batch that no header names. A start does not find it, so the next batch gets the same
//! place, lap and positions; cut in its turn, it would take the leftovers' records for its own: nobody was told of
//! either, but a record that is gone must not come back under another one's name. So they are cleared before a process
//! first writes records where another one may have been. Nothing is written where there are none.

use std::io;
use std::ops::Range;

use super::format::{self, Header, PAGE_BYTES, PAYLOAD_BYTES, Page, Place};
use super::lane::{Io, Lane, Purpose};
use super::segments::segment_name;

impl Lane {
    /// Clears a segment from `page` on for records of `lap`, unless that was done.
    pub(super) fn clear_leftovers(&mut self, io: &mut Io, index: usize, page: u32, lap: u32) -> io::Result<()> {
        let segment = &self.segments[index];
        let pages = page..segment.cleared.min(segment.data_pages());
        if !pages.is_empty() {
            self.clear_pages(io, index, pages, lap)?;
            self.segments[index].cleared = page;
        }
        Ok(())
    }

    /// A page may stay that is zeros or, whole, of an earlier lap: a record's checksum covers the lap. So may an earlier
    /// lap's header, without which a start would not know how old the segment is. One that cannot be read stays, too:
    /// what lies there is not known to be worth nothing.
    pub(super) fn clear_pages(&self, io: &mut Io, index: usize, pages: Range<u32>, lap: u32) -> io::Result<()> {
        let segment = &self.segments[index];
        let name = segment_name(&self.name, segment.number);
        let mut cleared = false;
        for page in pages {
            let Ok((mut bytes, kind)) = self.try_read_page(io, segment, page) else { continue };
            match kind {
                Page::Zero => continue,
                // Cleared by a process that may have died before its sync.
                Page::Written { lap: 0 } => {
                    cleared = true;
                    continue;
                }
                Page::Written { lap: of } if of < lap => continue,
                Page::Written { .. } | Page::Bad => {}
            }
            let place = Place { segment: segment.number, page };
            let kept = Header::decode(&bytes[..PAYLOAD_BYTES], place).filter(|header| header.lap < lap);
            format::clear_page(&mut bytes, place, kept.map_or(0, |header| header.bytes()));
            io.disk.write_at(&name, u64::from(page) * PAGE_BYTES as u64, bytes.as_slice())?;
            io.purposes.other += PAGE_BYTES as u64;
            cleared = true;
        }
        if cleared { io.sync(&name, Purpose::Repair) } else { Ok(()) }
    }
}
