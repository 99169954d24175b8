//! What a person asks of an outbox that no agent runs: what lies in it, record by record, and to empty it. The very
//! recovery of an ordinary start has opened it, over an [`super::overlay::Overlay`] where nothing may be written.

use std::io;

use super::disk::{Disk, Entry};
use super::format::{self, PAGE_BYTES, Page, Place, SEGMENT_BYTES_MAX};
use super::log::Log;
use super::segments::{Segment, parse_segment_name, segment_name};
use super::{Config, Draft, Outbox};
use crate::config;
use crate::record::{Epoch, Gap, LaneName, Seq};

/// A lane as it lies in its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Its name.
    pub name: LaneName,
    /// Oldest first; the last one takes records.
    pub epochs: Vec<EpochView>,
    /// Segments that hold something that is not yet acknowledged or given up.
    pub segments_held: u32,
}

/// One epoch of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochView {
    /// The epoch.
    pub epoch: Epoch,
    /// Everything up to here is acknowledged, as far as flash knows.
    pub acked: Seq,
    /// The highest number on flash.
    pub last: Seq,
    /// Records above `acked`. Damage that nobody has read yet is not known.
    pub records: u64,
    /// What of the numbers above `acked` will never come, likewise.
    pub gaps: Vec<Gap>,
}

/// What lies at a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// A record.
    Record(Seq, Draft),
    /// Nothing any more, up to the gap's end.
    Gap(Gap),
}

/// The pages of a segment file by their tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages {
    /// Intact.
    pub written: u32,
    /// Never written.
    pub zero: u32,
    /// Damaged, torn or not to be read: their numbers.
    pub damaged: Vec<u32>,
}

/// A configuration with which [`Outbox::open`] takes every lane in these files as it is.
pub fn config_found(files: &[Entry], record_bytes_max: u32) -> Config {
    let mut names: Vec<LaneName> = Vec::new();
    let mut sizes: Vec<u64> = Vec::new();
    for file in files {
        let Some((name, _)) = parse_segment_name(&file.name) else { continue };
        sizes.push(file.bytes);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    // The size most files have: one that is shorter was cut while it was made, or truncated since.
    let often = |size: &u64| (sizes.iter().filter(|other| *other == size).count(), *size);
    let size = sizes.iter().copied().max_by_key(often).unwrap_or(0).min(u64::from(SEGMENT_BYTES_MAX)) as u32;
    let page = PAGE_BYTES as u32;
    let lane = |name| config::Lane { name, bytes_max: u64::MAX / 4, ..config::Lane::default() };
    Config {
        segment_bytes: (size / page * page).max(4 * page),
        headroom_bytes_min: 0,
        record_bytes_max,
        lanes: names.into_iter().map(lane).collect(),
        device: String::new(),
        machine: String::new(),
    }
}

/// The lane and number of a segment's file; `None`: it is none.
pub fn segment_of(file: &str) -> Option<(LaneName, u32)> {
    parse_segment_name(file)
}

/// Reads every page of a segment's file and checks its tag.
pub fn pages<D: Disk>(disk: &mut D, file: &Entry, number: u32) -> Pages {
    let mut pages = Pages::default();
    let mut bytes = vec![0; PAGE_BYTES];
    for page in 0..(file.bytes.min(u64::from(SEGMENT_BYTES_MAX)) / PAGE_BYTES as u64) as u32 {
        let read = disk.read_at(&file.name, u64::from(page) * PAGE_BYTES as u64, &mut bytes);
        let kind = match read {
            Ok(PAGE_BYTES) => format::page(&bytes, Place { segment: number, page }),
            Ok(_) | Err(_) => Page::Bad,
        };
        match kind {
            Page::Zero => pages.zero += 1,
            Page::Written { .. } => pages.written += 1,
            Page::Bad => pages.damaged.push(page),
        }
    }
    pages
}

impl<D: Disk> Outbox<D> {
    /// The lanes and their epochs. Reads nothing.
    pub fn look(&self) -> Vec<LaneView> {
        let epoch = |log: &Log| {
            let gap = |run: &format::Run| Gap { from: run.from - log.base, to: run.to - log.base, why: run.why };
            EpochView {
                epoch: log.epoch,
                acked: log.acked - log.base,
                last: log.durable - log.base,
                records: log.durable - log.acked - log.runs.covered(log.acked + 1, log.durable, |_| true),
                gaps: log.runs.as_slice().iter().map(gap).collect(),
            }
        };
        let lanes = self.lanes.iter().map(|lane| LaneView {
            name: lane.name.clone(),
            epochs: lane.logs.iter().map(epoch).collect(),
            segments_held: (0..lane.segments.len()).filter(|&index| !lane.is_covered(index, Log::covered)).count()
                as u32,
        });
        lanes.collect()
    }

    /// What lies at the lowest number from `from` on, acknowledged ones left out; `None`: nothing more. One batch is
    /// in memory at a time. Finds damage, which [`Outbox::look`] knows from then on.
    pub fn stored(&mut self, lane: &LaneName, epoch: Epoch, from: Seq) -> Option<Stored> {
        let (lane, log) = self.find(lane, epoch)?;
        let lane = &mut self.lanes[lane];
        let base = lane.logs[log].base;
        let at = from.saturating_add(base).max(lane.logs[log].acked + 1);
        while at <= lane.logs[log].durable {
            if let Some(run) = lane.logs[log].runs.at(at) {
                let to = run.to.min(lane.logs[log].durable) - base;
                return Some(Stored::Gap(Gap { from: at - base, to, why: run.why }));
            }
            // Either the record, or a run covers the number from now on.
            if let Some(draft) = lane.record_at(&mut self.io, log, at) {
                return Some(Stored::Record(at - base, draft));
            }
        }
        None
    }

    /// Removes everything that it holds, durably: the next start draws a new epoch for each lane. Whenever the power
    /// goes, no number that has left is used again: recovery has put every doubt into the newest segments, and these
    /// go last, one lane after the other.
    pub fn wipe(mut self) -> io::Result<D> {
        for lane in &mut self.lanes {
            let mut segments: Vec<Segment> = std::mem::take(&mut lane.segments);
            segments.sort_by_key(|segment| segment.used.map_or(0, |used| used.lap));
            let newest = segments.pop();
            for segment in &segments {
                self.io.disk.remove(&segment_name(&lane.name, segment.number))?;
            }
            self.io.disk.sync_dir()?;
            if let Some(newest) = newest {
                self.io.disk.remove(&segment_name(&lane.name, newest.number))?;
            }
        }
        self.io.disk.sync_dir()?;
        Ok(self.io.disk)
    }
}
