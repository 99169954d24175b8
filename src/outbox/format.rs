//! The bytes on flash. A specification: version 1 is frozen, its images are fixtures under `tests/fixtures/outbox`.
//! Everything little-endian. Pure functions over byte slices; where the bytes lie is `lane`'s business.
//!
//! A segment is a file of pages. Each page ends in a tag, so that what was never written, what an earlier lap left
//! and what is damaged can be told apart without context:
//!
//! ```text
//!  page   ┌────────────────────────────────────────────┬─────────┬─────────┐
//!         │ payload                        4088 bytes  │ lap u32 │ crc u32 │
//!         └────────────────────────────────────────────┴─────────┴─────────┘
//!          crc: CRC32C over segment number, page number, payload, lap
//!
//!  batch  the payloads of one page or more, joined:
//!         ┌────────┬──────────┬───────────────┬───────┬─────────┬─────────┬──────┐
//!         │ header │ lane     │ runs          │ crc   │ record  │ record  │ 0 …  │
//!         │ 92     │ 1..32    │ 17 each       │ u32   │ …       │ …       │      │
//!         └────────┴──────────┴───────────────┴───────┴─────────┴─────────┴──────┘
//!          crc: CRC32C over segment number, page number, header, lane, runs
//!
//!  header  0 magic "BHOB"      4 version u8      5 page shift u8   6 flags u8     7 lane length u8
//!          8 runs u16         10 zero u16       12 count u32      16 length u32  20 lap u32
//!         24 origin u64       32 epoch u64      40 base u64       48 first u64   56 acked u64
//!         64 floor u64        72 durable u64    80 reserved u64   88 alive u32
//!
//!  run     0 from u64          8 to u64         16 why u8
//!
//!  record ┌────────────────┬─────────┬──────────────────────────────────────────────┐
//!         │ length varint  │ crc u32 │ postcard: at, boot, boot_ms, ttl_s, topic,   │
//!         │ (LEB128, ≥ 1)  │         │           key, body                          │
//!         └────────────────┴─────────┴──────────────────────────────────────────────┘
//!          crc: CRC32C over epoch, lap, lane, position, length, bytes
//! ```
//!
//! A *position* is a record's place in its log and never changes; its seq upstream is `position - base`. Drawing a
//! new epoch for a whole lane (protocol rule 7) is therefore one header with another epoch and base: one page, atomic.
//! `origin` names the log; `lap` counts the lane's segment turns, so that it orders segments and dates pages.

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use super::Draft;
use super::mutants::mutant;
use crate::record::{Body, INTEGER_MAX, LaneName, Why};

/// Size of a page, in bytes. Stored as a shift in every header.
pub const PAGE_BYTES: usize = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u8 = 12;
/// Bytes of a page that carry a batch.
pub const PAYLOAD_BYTES: usize = PAGE_BYTES - TAG_BYTES;
const TAG_BYTES: usize = LAP_BYTES + CRC_BYTES;
const LAP_BYTES: usize = 4;
/// Runs in a header, at most; more are merged (see [`super::runs`]).
pub const RUNS_MAX: usize = 128;
/// Largest header with its lane, runs and CRC, in bytes.
pub const HEADER_BYTES_MAX: usize = FIXED_BYTES + LaneName::BYTES_MAX + RUNS_MAX * RUN_BYTES + 4;
/// Most bytes that a record's frame and fields add to its topic, key and body.
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 4 + 11 + 5 + 10 + 5 + 5 + 6 + 6;

/// Largest segment that can be configured, in bytes. A lane holds four times this in RAM, at worst.
pub const SEGMENT_BYTES_MAX: u32 = 4 << 20;
/// Records in one segment, at most.
pub const SEGMENT_RECORDS_MAX: u32 = 32_768;

const FIXED_BYTES: usize = 92;
/// A checksum.
const CRC_BYTES: usize = 4;
/// Length, CRC and eight fields of a byte each, body's kind and length among them.
const RECORD_BYTES_MIN: u32 = 1 + 4 + 8;
/// No lane takes as many segment turns: flash would have worn out long before.
const LAP_MAX: u32 = u32::MAX / 2;
/// No log has as many positions, and seqs stay below 2^53.
const POSITION_MAX: u64 = INTEGER_MAX / 2;
const RUN_BYTES: usize = 17;
const MAGIC: [u8; 4] = *b"BHOB";
/// The version of the format that is written here, and the newest that is read.
pub const VERSION: u8 = 1;
/// Not zero, so that a page of zeros never passes.
const CRC_SEED: u32 = 0x6268_6f62;

// A header is read from one page, wherever it stands.
const _: () = assert!(HEADER_BYTES_MAX <= PAYLOAD_BYTES);

/// Where a page stands: part of every checksum, so that misplaced bytes fail it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of the segment's file.
    pub segment: u32,
    /// Number of the page in it.
    pub page: u32,
}

impl Place {
    fn crc(self) -> u32 {
        let crc = crc32c::crc32c_append(CRC_SEED, &self.segment.to_le_bytes());
        crc32c::crc32c_append(crc, &self.page.to_le_bytes())
    }
}

/// Positions that will never come, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// First position.
    pub from: u64,
    /// Last position, included.
    pub to: u64,
    /// Why.
    pub why: Why,
}

/// A batch's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Records of this log may have left before they were synced: its tail is never proved.
    pub eager: bool,
    /// Records in the batch.
    pub count: u32,
    /// Bytes of its record area.
    pub length: u32,
    /// Which of the lane's segment turns this is.
    pub lap: u32,
    /// Names the log.
    pub origin: u64,
    /// The log's epoch upstream, from this batch on.
    pub epoch: u64,
    /// A record's seq is its position less this.
    pub base: u64,
    /// Position of the first record; in an empty batch, of the next one to be written.
    pub first: u64,
    /// Everything up to here is acked.
    pub acked: u64,
    /// Everything up to here is acked or given up.
    pub floor: u64,
    /// Highest position known to be synced when the batch was built.
    pub durable: u64,
    /// No position above this has left the gateway.
    pub reserved: u64,
    /// The oldest segment turn that the lane still needs: a log of which none is as new is done with.
    pub alive: u32,
    /// The lane.
    pub lane: LaneName,
    /// What was given up or skipped above `acked`.
    pub runs: Vec<Run>,
}

impl Header {
    /// Position after the batch's last record.
    pub fn next(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Its size with lane, runs and CRC.
    pub fn bytes(&self) -> usize {
        FIXED_BYTES + self.lane.as_str().len() + self.runs.len() * RUN_BYTES + 4
    }

    /// Pages of the whole batch.
    pub fn pages(&self) -> u32 {
        pages_for(self.bytes() + self.length as usize)
    }

    fn encode(&self, place: Place, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, PAGE_SHIFT, u8::from(self.eager), self.lane.as_str().len() as u8]);
        out.extend_from_slice(&(self.runs.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        for value in [self.count, self.length, self.lap] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for value in
            [self.origin, self.epoch, self.base, self.first, self.acked, self.floor, self.durable, self.reserved]
        {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.alive.to_le_bytes());
        debug_assert_eq!(out.len() - start, FIXED_BYTES);
        out.extend_from_slice(self.lane.as_str().as_bytes());
        for run in &self.runs {
            out.extend_from_slice(&run.from.to_le_bytes());
            out.extend_from_slice(&run.to.to_le_bytes());
            out.push(why_to_byte(run.why));
        }
        let crc = crc32c::crc32c_append(place.crc(), &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// The header that a page's payload begins with, if it is intact and belongs there.
    pub fn decode(payload: &[u8], place: Place) -> Option<Self> {
        let fixed = payload.get(..FIXED_BYTES)?;
        if fixed[..4] != MAGIC || fixed[4] != VERSION || fixed[5] != PAGE_SHIFT || fixed[6] > 1 {
            return None;
        }
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        let runs = usize::from(u16::from_le_bytes([fixed[8], fixed[9]]));
        let lane_end = FIXED_BYTES + usize::from(fixed[7]);
        let end = lane_end + runs * RUN_BYTES;
        let crc = payload.get(end..end + 4)?;
        if crc32c::crc32c_append(place.crc(), &payload[..end]).to_le_bytes() != crc && !mutant!(HeaderCrcUnchecked) {
            return None;
        }
        let lane = std::str::from_utf8(&payload[FIXED_BYTES..lane_end]).ok()?;
        let runs = payload[lane_end..end].chunks_exact(RUN_BYTES).map(decode_run).collect::<Option<Vec<_>>>()?;
        let header = Self {
            eager: fixed[6] == 1,
            count: u32_at(12),
            length: u32_at(16),
            lap: u32_at(20),
            origin: u64_at(24),
            epoch: u64_at(32),
            base: u64_at(40),
            first: u64_at(48),
            acked: u64_at(56),
            floor: u64_at(64),
            durable: u64_at(72),
            reserved: u64_at(80),
            alive: u32_at(88),
            lane: LaneName::try_new(lane).ok()?,
            runs,
        };
        header.is_sane().then_some(header)
    }

    /// What every header of ours is. Intact but absurd is hostile: positions and laps stay where arithmetic on them
    /// cannot overflow, and what is allocated for a batch stays small.
    fn is_sane(&self) -> bool {
        let ordered = self.base <= self.acked && self.acked <= self.floor && self.floor <= self.durable;
        let runs = self.runs.iter().all(|run| run.from <= run.to && run.to <= self.durable);
        let numbered = self.durable.checked_add(1) == Some(self.first) && self.next() <= self.reserved;
        let named = (1..=INTEGER_MAX).contains(&self.epoch)
            && self.lap <= LAP_MAX
            && self.alive <= self.lap
            && self.reserved <= POSITION_MAX;
        let filled = self.count <= SEGMENT_RECORDS_MAX
            && (self.count * RECORD_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.length);
        ordered && runs && numbered && named && filled
    }
}

fn decode_run(bytes: &[u8]) -> Option<Run> {
    let from = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let to = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
    Some(Run { from, to, why: why_from_byte(bytes[16])? })
}

const fn why_to_byte(why: Why) -> u8 {
    match why {
        Why::Overflow => 1,
        Why::Expired => 2,
        Why::Corrupt => 3,
        Why::Rejected => 4,
        Why::Torn => 5,
        Why::Unknown => 6,
        Why::Settled => 7,
    }
}

const fn why_from_byte(byte: u8) -> Option<Why> {
    Some(match byte {
        1 => Why::Overflow,
        2 => Why::Expired,
        3 => Why::Corrupt,
        4 => Why::Rejected,
        5 => Why::Torn,
        6 => Why::Unknown,
        7 => Why::Settled,
        _ => return None,
    })
}

/// Pages that so many bytes of header and records take.
pub const fn pages_for(bytes: usize) -> u32 {
    bytes.div_ceil(PAYLOAD_BYTES) as u32
}

/// What a page is, by its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Never written.
    Zero,
    /// Written.
    Written {
        /// In this lap of the lane.
        lap: u32,
    },
    /// Damaged, or torn.
    Bad,
}

/// Reads a page's tag.
pub fn page(bytes: &[u8], place: Place) -> Page {
    let Some((payload, tag)) = bytes.split_at_checked(PAYLOAD_BYTES) else { return Page::Bad };
    let Some((lap, crc)) = tag.split_at_checked(4) else { return Page::Bad };
    if crc32c::crc32c_append(crc32c::crc32c_append(place.crc(), payload), lap).to_le_bytes() == crc {
        return Page::Written { lap: u32::from_le_bytes(lap.try_into().expect("4 bytes")) };
    }
    if bytes == [0; PAGE_BYTES] { Page::Zero } else { Page::Bad }
}

/// The version of a batch that a later version of this program began here. Its page is intact by its tag, so no damage
/// looks like it: every version keeps page, tag, magic and the version's place, and begins with a segment of its own.
pub fn newer_version(bytes: &[u8], place: Place) -> Option<u8> {
    let is_batch = matches!(page(bytes, place), Page::Written { .. }) && bytes[..4] == MAGIC;
    (is_batch && bytes[4] > VERSION).then_some(bytes[4])
}

/// Makes a page one that no batch wrote: its first `kept` bytes stay, a header's perhaps, the rest is zeros under a tag
/// of lap 0, which none has. Not zeros alone: it can be told apart from a page that was never written.
pub fn clear_page(bytes: &mut [u8; PAGE_BYTES], place: Place, kept: usize) {
    bytes[kept..].fill(0);
    let crc = crc32c::crc32c_append(place.crc(), &bytes[..PAYLOAD_BYTES + LAP_BYTES]);
    bytes[PAYLOAD_BYTES + LAP_BYTES..].copy_from_slice(&crc.to_le_bytes());
}

/// A record's fields on flash.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    at: Option<u64>,
    boot: u32,
    boot_ms: u64,
    ttl_s: u32,
    topic: String,
    key: Option<String>,
    body: Body,
}

/// What a record takes in a batch, framed: to the byte what [`RecordArea::push`] appends.
pub fn record_bytes(draft: &Draft) -> usize {
    let encoded = encoded_bytes(draft);
    varint_bytes(encoded as u64) + CRC_BYTES + encoded
}

fn encoded_bytes(draft: &Draft) -> usize {
    let text = |text: &[u8]| varint_bytes(text.len() as u64) + text.len();
    1 + draft.at.map_or(0, varint_bytes)
        + varint_bytes(draft.boot.into())
        + varint_bytes(draft.boot_ms)
        + varint_bytes(draft.ttl_s.into())
        + text(draft.topic.as_bytes())
        + 1
        + draft.key.as_ref().map_or(0, |key| text(key.as_bytes()))
        + 1
        + text(draft.body.as_bytes())
}

fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// The checksum's part that all records of a batch share.
fn record_crc_prefix(header: &Header) -> u32 {
    let crc = crc32c::crc32c_append(CRC_SEED, &header.epoch.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &header.lap.to_le_bytes());
    crc32c::crc32c_append(crc, header.lane.as_str().as_bytes())
}

fn record_crc(prefix: u32, position: u64, bytes: &[u8]) -> u32 {
    let mut name = [0; 12];
    name[..8].copy_from_slice(&position.to_le_bytes());
    name[8..].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(prefix, &name), bytes)
}

/// Records on their way to flash: framed and encoded once, checksummed when their place is known.
#[derive(Debug, Clone, Default)]
pub struct RecordArea {
    bytes: Vec<u8>,
    /// Where each record's encoded bytes lie; its CRC stands in the four bytes before.
    spans: Vec<Span>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl RecordArea {
    /// Appends a record.
    pub fn push(&mut self, draft: &Draft) {
        // Field by field what `Stored` reads, without a copy of topic and body, straight into the area.
        let stored = (&draft.at, draft.boot, draft.boot_ms, draft.ttl_s, &draft.topic, &draft.key, &draft.body);
        let mut length = encoded_bytes(draft);
        while length >= 0x80 {
            self.bytes.push(length as u8 | 0x80);
            length >>= 7;
        }
        self.bytes.extend_from_slice(&[length as u8, 0, 0, 0, 0]);
        let start = self.bytes.len();
        postcard::serialize_with_flavor(&stored, Append(&mut self.bytes)).expect("plain data encodes");
        debug_assert_eq!(self.bytes.len() - start, encoded_bytes(draft));
        self.spans.push(Span { start: start as u32, end: self.bytes.len() as u32 });
    }

    /// Bytes of all records with their frames.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Records in it.
    pub fn count(&self) -> u32 {
        self.spans.len() as u32
    }

    /// Nothing in it any more; memory beyond `bytes_max` is given back.
    pub fn clear(&mut self, bytes_max: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(bytes_max);
        self.spans.clear();
        self.spans.shrink_to(bytes_max / size_of::<Span>());
    }

    /// The whole batch as it goes to flash: pages with their tags. `header.count` and `length` are this area's.
    pub fn batch(&mut self, header: &Header, place: Place, out: &mut Vec<u8>) {
        debug_assert_eq!((header.count, header.length as usize), (self.count(), self.bytes.len()));
        let prefix = record_crc_prefix(header);
        for (position, span) in (header.first..).zip(&self.spans) {
            let (start, end) = (span.start as usize, span.end as usize);
            let crc = record_crc(prefix, position, &self.bytes[start..end]);
            self.bytes[start - CRC_BYTES..start].copy_from_slice(&crc.to_le_bytes());
        }
        out.clear();
        let mut payload = Vec::with_capacity(header.bytes());
        header.encode(place, &mut payload);
        let mut page = place.page;
        let mut rest = self.bytes.as_slice();
        loop {
            let room = PAYLOAD_BYTES - payload.len();
            let (now, later) = rest.split_at(rest.len().min(room));
            let start = out.len();
            out.extend_from_slice(&payload);
            out.extend_from_slice(now);
            out.resize(start + PAYLOAD_BYTES, 0);
            let lap = header.lap.to_le_bytes();
            let crc = Place { segment: place.segment, page }.crc();
            let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &out[start..]), &lap);
            out.extend_from_slice(&lap);
            out.extend_from_slice(&crc.to_le_bytes());
            payload.clear();
            page += 1;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }
}

/// Postcard's output at the end of what is there: its own flavours copy byte by byte, or allocate for each record.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Joins the payloads of whole pages, in place: what is left is the batch without tags.
pub fn strip_tags(pages: &mut Vec<u8>) {
    let count = pages.len() / PAGE_BYTES;
    for page in 1..count {
        pages.copy_within(page * PAGE_BYTES..page * PAGE_BYTES + PAYLOAD_BYTES, page * PAYLOAD_BYTES);
    }
    pages.truncate(count * PAYLOAD_BYTES);
}

/// A record read back, or what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Intact.
    Intact(Draft),
    /// Its bytes are damaged; they lie at this range of the joined payload.
    Damaged(std::ops::Range<usize>),
}

/// The `header.count` records of a batch, or as many as can lie in `payload`, which begins with its header, tags
/// stripped. A damaged length costs the rest of the batch.
pub fn records(header: &Header, payload: &[u8]) -> Vec<Slot> {
    let prefix = record_crc_prefix(header);
    let end = (header.bytes() + header.length as usize).min(payload.len());
    let mut at = header.bytes().min(end);
    // A batch that goes on behind the end of its segment is cut short, or absurd: it allocates for what is there.
    let count = (header.count as usize).min((end - at) / RECORD_BYTES_MIN as usize);
    let mut slots = Vec::with_capacity(count);
    for position in (header.first..).take(count) {
        let Some((start, next)) = frame(&payload[..end], at) else {
            slots.resize(count, Slot::Damaged(at..end));
            break;
        };
        let bytes = &payload[start..next];
        let intact = record_crc(prefix, position, bytes).to_le_bytes() == payload[start - 4..start];
        let stored =
            if intact || mutant!(RecordCrcUnchecked) { postcard::from_bytes::<Stored>(bytes).ok() } else { None };
        slots.push(match stored {
            Some(stored) => Slot::Intact(Draft {
                at: stored.at,
                boot: stored.boot,
                boot_ms: stored.boot_ms,
                ttl_s: stored.ttl_s,
                topic: stored.topic,
                key: stored.key,
                body: stored.body,
            }),
            None => Slot::Damaged(at..next),
        });
        at = next;
    }
    slots
}

/// Where the bytes of the record framed at `at` start and end, if they can lie in `payload`.
fn frame(payload: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = *payload.get(at)?;
        at += 1;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let start = at + 4;
            return (length > 0 && start + length <= payload.len()).then_some((start, start + length));
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn header(area: &RecordArea) -> Header {
        Header {
            eager: false,
            count: area.count(),
            length: area.bytes() as u32,
            lap: 3,
            origin: 11,
            epoch: 12,
            base: 5,
            first: 40,
            acked: 30,
            floor: 35,
            durable: 39,
            reserved: 65_536,
            alive: 2,
            lane: LaneName::try_new("telemetry").unwrap(),
            runs: vec![Run { from: 31, to: 35, why: Why::Overflow }],
        }
    }

    fn draft(text: &str) -> Draft {
        Draft {
            at: Some(1_767_225_600_000),
            boot: 7,
            boot_ms: 12_345,
            ttl_s: 0,
            topic: "boiler/temp".into(),
            key: None,
            body: Body::Text(text.into()),
        }
    }

    const PLACE: Place = Place { segment: 2, page: 9 };

    #[test]
    fn says_to_the_byte_what_a_record_takes() {
        for bytes in [0, 1, 99, 100, 126, 127, 128, 200, 16_380, 70_000] {
            let body = if bytes % 2 == 0 { Body::Text("x".repeat(bytes)) } else { Body::Bytes(vec![7; bytes]) };
            for key in [None, Some("k".repeat(bytes / 3))] {
                let (at, boot) = (key.as_ref().map(|_| u64::MAX >> (bytes % 60)), u32::MAX >> (bytes % 31));
                let draft =
                    Draft { at, boot, boot_ms: 1 << (bytes % 50), ttl_s: boot, key, body: body.clone(), ..draft("") };
                let mut area = RecordArea::default();
                area.push(&draft);
                assert_eq!(record_bytes(&draft), area.bytes(), "{draft:?}");
            }
        }
    }

    fn batch(drafts: &[Draft]) -> (Header, Vec<u8>) {
        let mut area = RecordArea::default();
        drafts.iter().for_each(|draft| area.push(draft));
        let header = header(&area);
        let mut out = Vec::new();
        area.batch(&header, PLACE, &mut out);
        (header, out)
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        let drafts: Vec<Draft> =
            [1, 100, 127, 128, 5000, 9000].into_iter().map(|bytes| draft(&"x".repeat(bytes))).collect();
        let (written, mut pages) = batch(&drafts);
        assert_eq!(pages.len(), written.pages() as usize * PAGE_BYTES);
        for (index, bytes) in pages.chunks(PAGE_BYTES).enumerate() {
            let place = Place { page: PLACE.page + index as u32, ..PLACE };
            assert_eq!(page(bytes, place), Page::Written { lap: 3 });
            assert_eq!(page(bytes, PLACE) == Page::Bad, index != 0, "a page elsewhere is bad");
        }
        strip_tags(&mut pages);
        let read = Header::decode(&pages, PLACE).unwrap();
        assert_eq!(read, written);
        assert_eq!(Header::decode(&pages, Place { segment: 3, ..PLACE }), None);
        let slots = records(&read, &pages);
        assert_eq!(slots, drafts.into_iter().map(Slot::Intact).collect::<Vec<_>>());
    }

    #[test]
    fn every_flipped_bit_costs_at_most_one_record_or_the_batch() {
        let drafts: Vec<Draft> = (0..5).map(|n| draft(&format!("value {n}"))).collect();
        let (written, pages) = batch(&drafts);
        let area_end = written.bytes() + written.length as usize;
        for bit in 0..pages.len() * 8 {
            let mut damaged = pages.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(page(&damaged, PLACE), Page::Bad);
            strip_tags(&mut damaged);
            let Some(read) = Header::decode(&damaged, PLACE) else {
                assert!(bit / 8 < written.bytes(), "only the header can lose the batch whole");
                continue;
            };
            assert_eq!(read, written);
            let slots = records(&read, &damaged);
            assert_eq!(slots.len(), drafts.len());
            let lost = slots.iter().zip(&drafts).filter(|(slot, draft)| **slot != Slot::Intact((*draft).clone()));
            assert!(lost.clone().all(|(slot, _)| matches!(slot, Slot::Damaged(_))), "never another record");
            assert_eq!(lost.count() > 0, bit / 8 >= written.bytes() && bit / 8 < area_end);
        }
    }

    #[test]
    fn zeros_are_an_empty_page_and_never_a_batch() {
        assert_eq!(page(&[0; PAGE_BYTES], PLACE), Page::Zero);
        assert_eq!(Header::decode(&[0; PAYLOAD_BYTES], PLACE), None);
        assert_eq!(frame(&[0; 64], 0), None);
    }

    #[test]
    fn any_bytes_decode_without_panic() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (written, pages) = batch(&[draft("a"), draft("b")]);
        for _ in 0..20_000 {
            let mut bytes = pages.clone();
            for _ in 0..rng.usize(1..20) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            page(&bytes, PLACE);
            let _ = Header::decode(&bytes, PLACE);
            let hostile = Header { count: rng.u32(..100), length: rng.u32(..10_000), ..written.clone() };
            assert!(records(&hostile, &bytes).len() <= hostile.count as usize);
        }
    }
}
