//! What `prove` writes: numbers, each flushed before the next one begins, in every way in which an outbox relies on
//! its storage. Nothing here knows a terminal or a clock.
//!
//! ```text
//!  number k:  every 16th: a new file, written, synced, its folder synced; one from before removed
//!             a slot of 16 KiB written in place in a ring of 64, synced
//!             a record into an outbox of ours, committed
//!             only then k is said to be flushed
//!
//!  sector     0 magic "BHPROVE1"   8 run u32   12 sector u32   16 number u64   24 pattern   508 CRC32C u32
//! ```

use std::collections::VecDeque;
use std::io;

use crate::config;
use crate::outbox::disk::Disk;
use crate::outbox::inspect::Stored;
use crate::outbox::{Config, Draft, LaneId, Outbox};
use crate::record::{Body, Epoch, LaneName, Seq};
use crate::time::Instant;

/// What storage is expected to write whole.
pub(super) const SECTOR_BYTES: usize = 512;
/// A number's place in the ring: several pages, so that a torn one shows where it tears.
pub(super) const SLOT_BYTES: usize = 16_384;
/// Sectors of a slot.
pub(super) const SLOT_SECTORS: usize = SLOT_BYTES / SECTOR_BYTES;
/// Slots in the ring.
pub(super) const SLOTS: u64 = 64;
/// Numbers between two new files.
pub(super) const MADE_EVERY: u64 = 16;
/// So many of the newest records are never acked in the outbox.
pub(super) const KEPT_RECORDS: u64 = 48;
/// The ring's file.
pub(super) const RING: &str = "prove.ring";

const MAGIC: &[u8; 8] = b"BHPROVE1";
const LANE: LaneId = LaneId(0);
const SEGMENT_BYTES: u32 = 65_536;
/// A record takes a page, and twice [`KEPT_RECORDS`] wait at most: never full.
const SEGMENTS_MAX: u64 = 16;
const _: () = assert!((SEGMENTS_MAX - 2) * (SEGMENT_BYTES as u64 / 4096 - 1) > 3 * KEPT_RECORDS);

/// Bytes that a run writes but for its numbers: the ring, and the outbox's segments.
pub(super) const BEGIN_BYTES: u64 = SLOTS * SLOT_BYTES as u64 + SEGMENTS_MAX * SEGMENT_BYTES as u64;
/// Bytes that a number takes: its slot, a page of the outbox with its acks, a share of a file.
pub(super) const NUMBER_BYTES: u64 = SLOT_BYTES as u64 + 4096 + 512;

/// The writer of one run.
pub(super) struct Bench<D: Disk> {
    disk: D,
    outbox: Outbox<D>,
    run: u32,
    /// Records in the outbox that are not acked.
    held: VecDeque<(Epoch, Seq)>,
    bytes: u64,
}

impl<D: Disk> Bench<D> {
    /// Begins a run from nothing: what an earlier one left is removed. `disk` and `outbox` are the same folder.
    pub fn begin(mut disk: D, outbox: D, run: u32, seed: u64) -> io::Result<Self> {
        for file in disk.list()?.into_iter().filter(|file| file.name.starts_with("prove.made.")) {
            disk.remove(&file.name)?;
        }
        for slot in 0..SLOTS {
            disk.write_at(RING, slot * SLOT_BYTES as u64, &[0; SLOT_BYTES])?;
        }
        disk.sync(RING)?;
        let mut old = Outbox::open(outbox, &outbox_config(), seed).0;
        old.wipe()?;
        let outbox = Outbox::open(old.into_disk(), &outbox_config(), seed ^ 1).0;
        Ok(Self { disk, outbox, run, held: VecDeque::new(), bytes: SLOTS * SLOT_BYTES as u64 })
    }

    /// Goes on with a run whose process was killed.
    pub fn go_on(disk: D, outbox: D, run: u32, seed: u64) -> Self {
        let mut outbox = Outbox::open(outbox, &outbox_config(), seed).0;
        let held = records(&mut outbox).into_iter().map(|(_, epoch, seq)| (epoch, seq)).collect();
        Self { disk, outbox, run, held, bytes: 0 }
    }

    /// Writes and flushes a number. When this returns, all of it is promised to be durable.
    pub fn number(&mut self, number: u64) -> io::Result<()> {
        if number % MADE_EVERY == 1 {
            let nth = number / MADE_EVERY;
            let name = made_name(nth);
            self.disk.write_at(&name, 0, &sector(self.run, number, 0))?;
            self.disk.sync(&name)?;
            self.disk.sync_dir()?;
            self.bytes += SECTOR_BYTES as u64;
            if let Some(old) = nth.checked_sub(2) {
                match self.disk.remove(&made_name(old)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        let bytes: Vec<u8> = (0..SLOT_SECTORS as u32).flat_map(|nth| sector(self.run, number, nth)).collect();
        self.disk.write_at(RING, slot_offset(number), &bytes)?;
        self.disk.sync(RING)?;
        self.bytes += SLOT_BYTES as u64;
        self.put(number)
    }

    fn put(&mut self, number: u64) -> io::Result<()> {
        let body = Body::Text(format!("{} {number}", self.run));
        let draft = Draft { at: None, boot: 0, boot_ms: 0, ttl_s: 0, topic: "prove".into(), key: None, body };
        let name = self.outbox.push(LANE, draft, Instant::default());
        let name = name.and_then(|name| self.outbox.commit(LANE).map(|()| name));
        self.held.push_back(name.map_err(|error| io::Error::other(format!("the outbox took no record: {error:?}")))?);
        if self.held.len() as u64 >= 2 * KEPT_RECORDS {
            let acked = self.held.drain(..KEPT_RECORDS as usize).next_back();
            if let Some((epoch, seq)) = acked {
                let lane = self.outbox.lane_name(LANE).clone();
                self.outbox.acked(&lane, epoch, seq, Instant::default());
            }
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.outbox.flash_status().bytes_written
    }
}

/// The outbox that is written along.
pub(super) fn outbox_config() -> Config {
    let name = LaneName::try_new("prove").expect("a literal lane name");
    let lane = config::Lane { name, bytes_max: SEGMENTS_MAX * u64::from(SEGMENT_BYTES), ..config::Lane::default() };
    Config {
        segment_bytes: SEGMENT_BYTES,
        headroom_bytes_min: 0,
        record_bytes_max: 4096,
        lanes: vec![lane],
        device: "prove".into(),
        machine: String::new(),
    }
}

/// The records in the outbox: number, epoch, seq.
pub(super) fn records<D: Disk>(outbox: &mut Outbox<D>) -> Vec<(u64, Epoch, Seq)> {
    let mut found = Vec::new();
    for lane in outbox.look() {
        for epoch in &lane.epochs {
            let mut from = epoch.acked + 1;
            while let Some(stored) = outbox.stored(&lane.name, epoch.epoch, from) {
                match stored {
                    Stored::Gap(gap) => from = gap.to + 1,
                    Stored::Record(seq, draft) => {
                        from = seq + 1;
                        let text = std::str::from_utf8(draft.body.as_bytes()).unwrap_or("");
                        let number = text.split_once(' ').and_then(|(_, number)| number.parse().ok());
                        found.extend(number.map(|number| (number, epoch.epoch, seq)));
                    }
                }
            }
        }
    }
    found
}

/// The nth file that a run makes.
pub(super) fn made_name(nth: u64) -> String {
    format!("prove.made.{nth}")
}

/// Where a number lies in the ring.
pub(super) const fn slot_offset(number: u64) -> u64 {
    number % SLOTS * SLOT_BYTES as u64
}

/// A sector's content: no two are alike, none compresses.
pub(super) fn sector(run: u32, number: u64, nth: u32) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&run.to_le_bytes());
    bytes[12..16].copy_from_slice(&nth.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.to_le_bytes());
    let seed = number << 16 ^ u64::from(run) << 8 ^ u64::from(nth);
    fastrand::Rng::with_seed(seed).fill(&mut bytes[24..SECTOR_BYTES - 4]);
    let crc = crc32c::crc32c(&bytes[..SECTOR_BYTES - 4]);
    bytes[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a sector says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeros: of no number.
    Zero,
    /// The sector of this run and number that belongs here.
    Number(u32, u64),
    /// Anything else.
    Garbage,
}

/// Reads a sector.
pub(super) fn content(bytes: &[u8], nth: u32) -> Content {
    if bytes.iter().all(|&byte| byte == 0) {
        return Content::Zero;
    }
    let (body, crc) = bytes.split_at(SECTOR_BYTES - 4);
    if body[..8] != *MAGIC || crc32c::crc32c(body).to_le_bytes() != crc || body[12..16] != nth.to_le_bytes() {
        return Content::Garbage;
    }
    let run = u32::from_le_bytes(body[8..12].try_into().expect("4 bytes"));
    Content::Number(run, u64::from_le_bytes(body[16..24].try_into().expect("8 bytes")))
}
