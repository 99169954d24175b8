//! What a cut left of a run, and what that says of the storage. Number k was flushed before k+1 began: where anything
//! of k+1 is there, all of k has to be. What only a witness saw, the last numbers, has to be there, too.

use std::io;

use super::bench::{
    Content, KEPT_RECORDS, MADE_EVERY, RING, SECTOR_BYTES, SLOT_BYTES, SLOT_SECTORS, SLOTS, content, made_name,
    outbox_config, records, slot_offset,
};
use crate::outbox::Outbox;
use crate::outbox::disk::Disk;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// The last number that a witness saw.
    pub seen: Option<u64>,
    /// The highest number of which anything is on the storage.
    pub top: u64,
    /// Everything up to here was flushed, for certain.
    pub flushed: u64,
    /// Flushed numbers behind `top`: gone without a trace.
    pub tail_missing: u64,
    /// Flushed numbers of which older content is there although a later number is.
    pub reordered: Vec<u64>,
    /// Flushed numbers whose place holds neither old nor new.
    pub damaged: Vec<u64>,
    /// What said that the run had begun is gone.
    pub state_missing: bool,
    /// Files that were made, synced and entered in their folder, and are not there, by number.
    pub files_missing: Vec<u64>,
    /// Records that our outbox had committed and lost.
    pub records_missing: Vec<u64>,
    /// What became of the number that was being written.
    pub in_flight: InFlight,
}

/// The number being written when the power went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct InFlight {
    /// Sectors as they were to be.
    pub new: u32,
    /// Sectors that are neither old nor new.
    pub garbage: u32,
    /// What it tore at multiples of, in bytes; `None`: it did not tear.
    pub torn_at: Option<u32>,
}

/// What it says of the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is there.
    Kept,
    /// Flushed data is not there.
    Lies,
    /// Flushed data is damaged.
    Damages,
    /// The storage kept everything and our own outbox did not.
    OurFault,
}

impl Verdict {
    /// For the report.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Lies => "lies",
            Self::Damages => "damages",
            Self::OurFault => "our fault",
        }
    }
}

impl Findings {
    /// What it says.
    pub fn verdict(&self) -> Verdict {
        let files = self.state_missing || !self.files_missing.is_empty();
        if self.tail_missing > 0 || !self.reordered.is_empty() || files {
            Verdict::Lies
        } else if !self.damaged.is_empty() {
            Verdict::Damages
        } else if !self.records_missing.is_empty() {
            Verdict::OurFault
        } else {
            Verdict::Kept
        }
    }
}

/// Looks at what is left of a run. `disk` and `outbox` are the same folder.
pub(super) fn judge<D: Disk>(disk: &mut D, outbox: D, run: u32, seen: Option<u64>, seed: u64) -> Findings {
    let mut ring = vec![0; SLOTS as usize * SLOT_BYTES];
    // What cannot be read is missing.
    let read = disk.read_at(RING, 0, &mut ring).unwrap_or(0);
    ring[read..].fill(0);
    let sector = |at: usize| content(&ring[at..at + SECTOR_BYTES], (at % SLOT_BYTES / SECTOR_BYTES) as u32);
    let slot =
        |number: u64| (0..SLOT_SECTORS).map(move |nth| sector(slot_offset(number) as usize + nth * SECTOR_BYTES));
    let numbers = (0..ring.len()).step_by(SECTOR_BYTES).filter_map(|at| match sector(at) {
        Content::Number(of, number) if of == run => Some(number),
        Content::Number(..) | Content::Zero | Content::Garbage => None,
    });
    let top = numbers.max().unwrap_or(0);
    let mut outbox = Outbox::open(outbox, &outbox_config(), seed).0;
    let kept: Vec<u64> = records(&mut outbox).into_iter().map(|(number, ..)| number).collect();
    let made = disk.list().unwrap_or_default();
    let made = made.iter().filter_map(|file| file.name.strip_prefix("prove.made.")?.parse::<u64>().ok()).max();
    // Each of these was begun, or done, only after all before it.
    let flushed = [
        seen.unwrap_or(0),
        top.saturating_sub(1),
        made.unwrap_or(0) * MADE_EVERY,
        kept.iter().copied().max().unwrap_or(0),
    ];
    let flushed = flushed.into_iter().max().unwrap_or(0);
    let mut findings =
        Findings { seen, top, flushed, tail_missing: flushed.saturating_sub(top), ..Findings::default() };
    // The slot of the number after the last flushed one may hold anything.
    for number in (flushed + 2).saturating_sub(SLOTS).max(1)..=flushed.min(top) {
        let is_new = |content: Content| content == Content::Number(run, number);
        if slot(number).any(|content| content == Content::Garbage) {
            findings.damaged.push(number);
        } else if !slot(number).all(is_new) {
            findings.reordered.push(number);
        }
    }
    findings.in_flight = in_flight(slot(flushed + 1), run, flushed + 1);
    let begun = top.max(flushed);
    if begun > 0 {
        // The number after the last flushed one may have removed an older one.
        let expected = (flushed / MADE_EVERY).saturating_sub(1)..=(begun - 1) / MADE_EVERY;
        findings.files_missing = expected.filter(|nth| !is_made(disk, run, *nth).unwrap_or(false)).collect();
    }
    let expected = (flushed + 1).saturating_sub(KEPT_RECORDS).max(1)..=flushed;
    findings.records_missing = expected.filter(|number| !kept.contains(number)).collect();
    findings
}

/// The newest run that anything in the ring is of.
pub(super) fn newest_run<D: Disk>(disk: &mut D) -> Option<u32> {
    let mut slot = vec![0; SLOT_BYTES];
    let mut newest = None;
    for number in 0..SLOTS {
        let read = disk.read_at(RING, slot_offset(number), &mut slot).unwrap_or(0);
        slot[read..].fill(0);
        for (nth, bytes) in (0..).zip(slot.chunks_exact(SECTOR_BYTES)) {
            if let Content::Number(run, _) = content(bytes, nth) {
                newest = newest.max(Some(run));
            }
        }
    }
    newest
}

fn in_flight(slot: impl Iterator<Item = Content>, run: u32, number: u64) -> InFlight {
    let mut found = InFlight::default();
    let mut before = None;
    for (nth, content) in (0u32..).zip(slot) {
        let is_new = content == Content::Number(run, number);
        found.new += u32::from(is_new);
        found.garbage += u32::from(content == Content::Garbage);
        if before.is_some_and(|before| before != is_new) {
            let at = nth * SECTOR_BYTES as u32;
            let piece = 1 << at.trailing_zeros();
            found.torn_at = Some(found.torn_at.map_or(piece, |smallest: u32| smallest.min(piece)));
        }
        before = Some(is_new);
    }
    found
}

fn is_made<D: Disk>(disk: &mut D, run: u32, nth: u64) -> io::Result<bool> {
    let mut bytes = [0; SECTOR_BYTES];
    let read = disk.read_at(&made_name(nth), 0, &mut bytes)?;
    Ok(read == SECTOR_BYTES && content(&bytes, 0) == Content::Number(run, nth * MADE_EVERY + 1))
}
