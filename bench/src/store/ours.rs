//! The outbox itself, with the disk of the agent.

use std::path::Path;

use backhaul::config::Lane;
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::{Fetch, Item};
use backhaul::shell::disk::{Lock, RealDisk};
use backhaul::time::Instant;

use super::{Store, draft};
use crate::Result;
use crate::metered::Metered;

const LANE: LaneId = LaneId(0);
const SEGMENT_BYTES: u32 = 256 << 10;

/// A lane of so many bytes on flash, as the agent would open it.
pub fn config(bytes_max: u64) -> Config {
    Config {
        segment_bytes: SEGMENT_BYTES,
        headroom_bytes_min: 0,
        record_bytes_max: 64 << 10,
        lanes: vec![Lane { bytes_max, ..Lane::default() }],
        device: "bench".into(),
        machine: String::new(),
    }
}

/// An outbox with one `sync` lane, its segments made.
pub struct Ours {
    outbox: Outbox<Metered>,
    _lock: Lock,
    staged: Vec<Draft>,
    next: u64,
}

impl Ours {
    /// With segments for so many bytes of records, made, written once and acked: the state of a lane for most of its
    /// life.
    pub fn try_new(dir: &Path, bytes: u64) -> Result<Self> {
        // Half as much again: what is acked is free only when a segment is covered whole.
        let mut ours = Self::open(dir, bytes * 3 / 2)?;
        while ours.committed_bytes() < bytes {
            ours.stage(1000);
            ours.commit()?;
        }
        ours.ack(usize::MAX)?;
        Ok(ours)
    }

    /// Whatever lies in the folder.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self> {
        let lock = Lock::try_new(dir).map_err(|_| "another agent owns the folder")?;
        let (outbox, report) = Outbox::open(Metered::new(RealDisk::new(dir)), &config(bytes_max), 1);
        if !report.notes.is_empty() {
            return Err(report.notes.join("; ").into());
        }
        Ok(Self { outbox, _lock: lock, staged: Vec::new(), next: 0 })
    }

    /// Bytes of records that went to flash.
    pub fn committed_bytes(&self) -> u64 {
        self.outbox.flash_status().by_purpose.records
    }
}

impl Store for Ours {
    fn stage(&mut self, count: usize) {
        self.staged.extend((self.next..).take(count).map(draft));
        self.next += count as u64;
    }

    fn commit(&mut self) -> Result<()> {
        for draft in self.staged.drain(..) {
            self.outbox.push(LANE, draft, Instant::default()).map_err(|error| format!("push: {error:?}"))?;
        }
        self.outbox.commit(LANE).map_err(|error| format!("commit: {error:?}").into())
    }

    /// As a session does: fetched, sent, acked. `usize::MAX`: all there is, unread.
    fn ack(&mut self, count: usize) -> Result<()> {
        let offer = self.outbox.offers().swap_remove(0);
        let (lane, epoch, from) = (offer.lane, offer.epoch, offer.first);
        let mut seq = offer.next - 1;
        if count < usize::MAX {
            let fetch = Fetch { session: 1, lane: lane.clone(), epoch, from, records_max: count as u32, bytes_max: 1 << 20 };
            let items = self.outbox.fetch(&fetch);
            if items.len() != count || !items.iter().all(|item| matches!(item, Item::Record(_))) {
                return Err(format!("fetched {} of {count}", items.len()).into());
            }
            seq = from + count as u64 - 1;
        }
        self.outbox.acked(&lane, epoch, seq, Instant::default());
        Ok(())
    }

    fn files_cpu_s(&mut self) -> Option<f64> {
        Some(self.outbox.disk_mut().cpu_s)
    }
}
