//! Headers that are intact and absurd: single fields changed and every checksum made good again. Nothing may panic,
//! hang or take much memory, and the lane works afterwards. `SEED=n cargo test --test outbox_hostile` replays one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Wall};

use backhaul::config::{self, Overflow};
use backhaul::outbox::format::{PAGE_BYTES, PAYLOAD_BYTES};
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::{Body, Fetch};
use backhaul::time::Instant;

const LANE: LaneId = LaneId(0);
const SEGMENT_BYTES: u32 = 16_384;
const CASES: u64 = 20_000;

fn config(overflow: Overflow) -> Config {
    let lane = config::Lane { bytes_max: 4 * u64::from(SEGMENT_BYTES), overflow, ..config::Lane::default() };
    Config {
        segment_bytes: SEGMENT_BYTES,
        headroom_bytes_min: 0,
        record_bytes_max: 4096,
        lanes: vec![lane],
        device: "test".into(),
        machine: String::new(),
    }
}

fn draft(text: String) -> Draft {
    Draft { at: Some(1), boot: 1, boot_ms: 1, ttl_s: 0, topic: "t".into(), key: None, body: Body::Text(text) }
}

/// A lane with a backlog, a reused segment, acks, and a run.
fn image() -> BTreeMap<String, Vec<u8>> {
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config(Overflow::DropOldest), 1);
    for n in 0..40 {
        outbox.push(LANE, draft(format!("{n:0>700}")), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
        if n == 20 {
            drain(&mut outbox, 8);
        }
    }
    outbox.into_disk().image()
}

/// Fetches and acks all there is, in at most so many rounds; what is left.
fn drain(outbox: &mut Outbox<SimDisk>, rounds: usize) -> u64 {
    for _ in 0..rounds {
        for offer in outbox.offers() {
            let (lane, epoch, from) = (offer.lane.clone(), offer.epoch, offer.first);
            let fetch = Fetch { session: 1, lane, epoch, from, records_max: 100, bytes_max: 1 << 20 };
            if let Some(item) = outbox.fetch(&fetch).last() {
                outbox.acked(&offer.lane, epoch, item.last(), Instant::default());
            }
        }
    }
    outbox.offers().iter().map(|offer| offer.next - offer.first).sum()
}

/// Where a page's header keeps its integers: offset and width.
const FIELDS: [(usize, usize); 14] = [
    (6, 1),
    (8, 2),
    (12, 4),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 8),
    (40, 8),
    (48, 8),
    (56, 8),
    (64, 8),
    (72, 8),
    (80, 8),
    (0, 0), // a run's
];

fn mutate(page: &mut [u8], rng: &mut fastrand::Rng) {
    let lane_end = 88 + usize::from(page[7]);
    let runs = usize::from(u16::from_le_bytes([page[8], page[9]]));
    let (at, width) = match *rng.choice(FIELDS.iter()).expect("not empty") {
        (_, 0) if (1..200).contains(&runs) => {
            (lane_end + rng.usize(..runs) * 17 + *rng.choice([0, 8, 16].iter()).expect("three"), 8)
        }
        (_, 0) => (48, 8),
        field => field,
    };
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&page[at..at + width]);
    let old = u64::from_le_bytes(bytes);
    let near = rng.u64(..300);
    let new = match rng.u8(..8) {
        0 => near,
        1 => u64::MAX - near,
        2 => (1 << 53) - near,
        3 => (1 << 52) - near,
        4 => u64::from(u32::MAX) - near,
        5 => u64::from(u32::MAX / 2) + 1 - near.min(3),
        6 => old.wrapping_add(near).wrapping_sub(150),
        _ => 1 << rng.u8(..64),
    };
    page[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
}

/// Makes both checksums of a page good again.
fn seal(page: &mut [u8], segment: u32, number: u32) {
    let place = crc32c::crc32c_append(0x6268_6f62, &segment.to_le_bytes());
    let place = crc32c::crc32c_append(place, &number.to_le_bytes());
    let end = 88 + usize::from(page[7]) + 17 * usize::from(u16::from_le_bytes([page[8], page[9]]));
    if end + 4 <= PAYLOAD_BYTES {
        let crc = crc32c::crc32c_append(place, &page[..end]);
        page[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(place, &page[..PAYLOAD_BYTES + 4]);
    page[PAYLOAD_BYTES + 4..].copy_from_slice(&crc.to_le_bytes());
}

fn hostile(image: &BTreeMap<String, Vec<u8>>, rng: &mut fastrand::Rng) -> BTreeMap<String, Vec<u8>> {
    let mut image = image.clone();
    let segments = image.iter_mut().filter(|(name, _)| name.ends_with(".seg"));
    for (segment, (_, bytes)) in (0..).zip(segments) {
        if rng.u8(..4) == 0 {
            // Longer, shorter, no file of ours at all.
            bytes.resize(rng.usize(..3 * SEGMENT_BYTES as usize), 0);
        }
        for (number, page) in (0..).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
            if page[..4] == *b"BHOB" && rng.u8(..3) == 0 {
                (0..rng.u8(1..4)).for_each(|_| mutate(page, rng));
                seal(page, segment, number);
            }
        }
    }
    image
}

#[test]
fn intact_and_absurd_headers_neither_panic_nor_loop_nor_stop_the_lane() {
    let image = image();
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in one.map_or(0..CASES, |seed: u64| seed..seed + 1) {
        let started = Wall::now();
        let result = std::panic::catch_unwind(|| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let disk = SimDisk::from_image(hostile(&image, &mut rng));
            let config = config(if rng.bool() { Overflow::DropOldest } else { Overflow::Reject });
            let (mut outbox, _) = Outbox::open(disk, &config, seed);
            let offers = outbox.offers();
            let (mut outbox, _) = match rng.u8(..4) {
                0 => Outbox::open(outbox.into_disk(), &config, seed + 1),
                1 => {
                    offers.iter().for_each(|offer| outbox.renumber(&offer.lane, offer.epoch));
                    Outbox::open(outbox.into_disk(), &config, seed + 1)
                }
                _ => (outbox, Default::default()),
            };
            // Full of what was there, perhaps; drained, it takes records.
            let _ = outbox.push(LANE, draft("x".repeat(3000)), Instant::default());
            let _ = outbox.commit(LANE);
            drain(&mut outbox, 200);
            for n in 0..30 {
                outbox.push(LANE, draft(format!("{n:0>3000}")), Instant::default()).expect("a drained lane has room");
                outbox.commit(LANE).expect("a disk that works");
                drain(&mut outbox, 2);
            }
            assert_eq!(drain(&mut outbox, 200), 0, "all that is held leaves");
            assert!(outbox.lanes_status(None)[0].bytes <= 4 * u64::from(SEGMENT_BYTES) * 3);
        });
        assert!(result.is_ok(), "replay with: SEED={seed} cargo test --test outbox_hostile");
        assert!(started.elapsed() < Duration::from_secs(60), "seed {seed} takes for ever");
    }
}
