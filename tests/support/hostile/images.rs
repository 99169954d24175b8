//! Folders as an agent leaves them: what is mutated.

use std::collections::BTreeMap;

use backhaul::config::{self, Overflow};
use backhaul::outbox::disk::Disk;
use backhaul::outbox::sim_disk::{Fate, SimDisk};
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::{Body, Fetch, LaneName};
use backhaul::time::Instant;

/// Size of the segments in the images.
pub const SEGMENT_BYTES: u32 = 16_384;
/// What lanes may take on flash.
pub const BYTES_MAX: u64 = 4 * SEGMENT_BYTES as u64;

/// The configuration that every image is opened with; its one lane takes new records.
pub fn config(overflow: Overflow) -> Config {
    let lane = config::Lane { bytes_max: BYTES_MAX, overflow, ..config::Lane::default() };
    Config {
        segment_bytes: SEGMENT_BYTES,
        headroom_bytes_min: 0,
        record_bytes_max: 4096,
        lanes: vec![lane],
        device: "test".into(),
        machine: String::new(),
    }
}

/// A record.
pub fn draft(text: String) -> Draft {
    Draft { at: Some(1), boot: 1, boot_ms: 1, ttl_s: 0, topic: "t".into(), key: None, body: Body::Text(text) }
}

fn fill<D: Disk>(outbox: &mut Outbox<D>, lane: LaneId, records: usize, bytes: usize) {
    for n in 0..records {
        outbox.push(lane, draft(format!("{n:0>bytes$}")), Instant::default()).expect("room");
        if n % 3 > 0 {
            outbox.commit(lane).expect("a disk that works");
        }
    }
    outbox.commit(lane).expect("a disk that works");
}

fn drain<D: Disk>(outbox: &mut Outbox<D>) {
    for offer in outbox.offers() {
        let (lane, epoch, from) = (offer.lane.clone(), offer.epoch, offer.first);
        outbox.fetch(&Fetch { session: 1, lane, epoch, from, records_max: 1000, bytes_max: 1 << 20 });
        outbox.acked(&offer.lane, offer.epoch, offer.next - 1, Instant::default());
    }
}

/// Folders as an agent leaves them: what is mutated.
pub fn images() -> Vec<BTreeMap<String, Vec<u8>>> {
    let mut images = Vec::new();
    let drops = config(Overflow::DropOldest);
    // Empty but for its first headers.
    let (outbox, _) = Outbox::open(SimDisk::default(), &drops, 1);
    images.push(outbox.into_disk().image());
    // A backlog, a reused segment, acks.
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &drops, 2);
    fill(&mut outbox, LaneId(0), 20, 700);
    drain(&mut outbox);
    fill(&mut outbox, LaneId(0), 20, 700);
    images.push(outbox.into_disk().image());
    // Full, with a run of what was given up; small records in large batches.
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &drops, 3);
    fill(&mut outbox, LaneId(0), 60, 1500);
    fill(&mut outbox, LaneId(0), 200, 20);
    images.push(outbox.into_disk().image());
    // Cut in the middle of a write, with a second epoch, beside a lane that is not configured any more.
    let mut two = drops.clone();
    two.lanes.push(config::Lane { name: LaneName::try_new("old").expect("a name"), ..drops.lanes[0].clone() });
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &two, 4);
    fill(&mut outbox, LaneId(0), 10, 300);
    fill(&mut outbox, LaneId(1), 10, 300);
    let offer = outbox.offers()[0].clone();
    outbox.renumber(&offer.lane, offer.epoch);
    outbox.push(LaneId(0), draft("x".repeat(4000)), Instant::default()).expect("room");
    let cut = outbox.disk_mut().calls + 1;
    outbox.disk_mut().cut_after = Some(cut);
    let _ = outbox.commit(LaneId(0));
    let mut disk = outbox.into_disk();
    let fates = [Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff];
    disk.power_cut(&mut fastrand::Rng::with_seed(4), |rng| *rng.choice(fates.iter()).expect("five"));
    images.push(disk.image());
    images
}
