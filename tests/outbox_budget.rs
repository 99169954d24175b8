//! What a commit costs flash: bytes for each byte of records, and syncs. Counted at the outbox's own disk calls, in a
//! lane whose segments are made; `make bench-outbox` measures the same behind a file system.

use std::io;

use backhaul::config;
use backhaul::outbox::disk::{Disk, Entry};
use backhaul::outbox::format::RecordArea;
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::Body;
use backhaul::time::Instant;

const LANE: LaneId = LaneId(0);
const SEGMENT_BYTES: u32 = 256 << 10;
const SEGMENTS: u64 = 8;
/// Of a record as it is encoded; a length byte and a checksum stand before it.
const RECORD_BYTES: usize = 100;

/// A simulated disk that counts.
#[derive(Default)]
struct Counting {
    disk: SimDisk,
    written: u64,
    writes: u64,
    syncs: u64,
    pages_read: usize,
}

impl Disk for Counting {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        self.disk.list()
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.pages_read += buf.len().div_ceil(4096);
        self.disk.read_at(name, offset, buf)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.writes += 1;
        self.disk.write_at(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.syncs += 1;
        self.disk.sync(name)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.syncs += 1;
        self.disk.sync_dir()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

fn config(segments: u64) -> Config {
    let lane = config::Lane { bytes_max: segments * u64::from(SEGMENT_BYTES), ..config::Lane::default() };
    Config {
        segment_bytes: SEGMENT_BYTES,
        headroom_bytes_min: 0,
        record_bytes_max: 4096,
        lanes: vec![lane],
        device: "test".into(),
        machine: String::new(),
    }
}

fn draft(number: u64) -> Draft {
    let body = Body::Text(format!("{number:073}"));
    Draft { at: Some(1 << 40), boot: 1, boot_ms: 1 << 20, ttl_s: 0, topic: "boiler/temp".into(), key: None, body }
}

fn commit(outbox: &mut Outbox<Counting>, records: u64) {
    for number in 0..records {
        outbox.push(LANE, draft(number), Instant::default()).expect("it fits");
    }
    outbox.commit(LANE).expect("a disk that works");
}

fn ack_all(outbox: &mut Outbox<Counting>) {
    let offer = outbox.offers().swap_remove(0);
    outbox.acked(&offer.lane, offer.epoch, offer.next - 1, Instant::default());
}

/// A lane in the middle of its life: every segment made, written once and acked.
fn aged() -> Outbox<Counting> {
    let (mut outbox, _) = Outbox::open(Counting::default(), &config(SEGMENTS), 1);
    let bytes = SEGMENTS * u64::from(SEGMENT_BYTES);
    while outbox.disk_mut().list().expect("a disk that works").iter().map(|entry| entry.bytes).sum::<u64>() < bytes {
        commit(&mut outbox, 1000);
    }
    ack_all(&mut outbox);
    outbox
}

#[test]
fn the_record_measured_with_is_a_hundred_bytes() {
    let mut area = RecordArea::default();
    area.push(&draft(7));
    assert_eq!(area.bytes(), RECORD_BYTES + 1 + 4);
}

#[test]
fn a_commit_is_one_write_one_sync_and_little_more_than_its_records() {
    for (group, goal) in [(64, 1.35), (256, 1.20), (1024, 1.10)] {
        let mut outbox = aged();
        let before = (outbox.disk_mut().written, outbox.disk_mut().writes, outbox.disk_mut().syncs);
        let mut commits = 0;
        // Three turns of the lane, acked meanwhile.
        while commits * group * (RECORD_BYTES as u64) < 3 * SEGMENTS * u64::from(SEGMENT_BYTES) {
            commit(&mut outbox, group);
            ack_all(&mut outbox);
            commits += 1;
        }
        let disk = outbox.disk_mut();
        let written = (disk.written - before.0) as f64 / (commits * group * RECORD_BYTES as u64) as f64;
        let (writes, syncs) = (disk.writes - before.1, disk.syncs - before.2);
        assert!(written <= goal, "{written:.3} bytes for each byte in groups of {group}");
        assert_eq!(writes, syncs, "every write is synced, and nothing else");
        // Headers of their own for a reservation, or for acks of a whole lane: rare.
        assert!(writes <= commits + commits / 50, "{writes} writes for {commits} commits of {group}");
    }
}

#[test]
fn opening_reads_one_page_of_each_segment_and_the_newest_segment() {
    let segments = 64;
    let (mut outbox, _) = Outbox::open(Counting::default(), &config(segments), 1);
    let bytes = (segments - 1) * u64::from(SEGMENT_BYTES);
    while outbox.disk_mut().list().expect("a disk that works").iter().map(|entry| entry.bytes).sum::<u64>() < bytes {
        commit(&mut outbox, 1000);
    }
    let made = outbox.disk_mut().list().expect("a disk that works").len() - 1;
    let disk = Counting { disk: outbox.into_disk().disk, ..Counting::default() };
    let (mut outbox, report) = Outbox::open(disk, &config(segments), 1);
    assert!(report.notes.is_empty(), "{report:?}");
    let disk = outbox.disk_mut();
    // The identity, a page each; of the newest segment all pages, and its last batch once more.
    assert!(disk.pages_read <= 1 + made + 2 * SEGMENT_BYTES as usize / 4096, "{} pages read", disk.pages_read);
    assert_eq!((disk.writes, disk.syncs), (0, 1), "an ordinary start writes nothing");
}
