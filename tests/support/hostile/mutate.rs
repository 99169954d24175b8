//! A mutator that knows the format: much of what it writes is intact and absurd rather than merely damaged. What it
//! does is up to the bytes that it is given.

use arbitrary::{Result, Unstructured};
use backhaul::config;
use backhaul::outbox::IDENTITY_FILE;
use backhaul::outbox::format::{self, Header, PAGE_BYTES, PAYLOAD_BYTES, Place, RecordArea, Run, Slot};
use backhaul::record::Why;

use super::images::{SEGMENT_BYTES, draft};
use crate::patch_disk::PatchDisk;

/// Where a page's header keeps its integers: offset and width.
const FIELDS: [(usize, usize); 13] =
    [(6, 1), (8, 2), (12, 4), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (56, 8), (64, 8), (72, 8), (80, 8)];
/// Largest lap and position that a header may name.
const LAP_MAX: u32 = u32::MAX / 2;
const POSITION_MAX: u64 = (1 << 52) - 1;

/// Makes a folder hostile; what it does is up to the bytes of `u`. Whether something in it is forged: intact, and not
/// written there by an agent.
pub fn mutate(disk: &mut PatchDisk, u: &mut Unstructured) -> Result<bool> {
    let forges = u.ratio(2, 3)?;
    for _ in 0..u.int_in_range(1..=6)? {
        let Some(at) = any_page(disk, u)? else { continue };
        let written = page_of(disk, &at)[..4] == *b"BHOB";
        match u.int_in_range(0..=10)? {
            0..=2 if forges && written => change_field(disk, &at, u)?,
            3 if forges && written => change_record(disk, &at, u)?,
            4 | 5 if forges => write_batch(disk, &at, &at, u)?,
            6 | 7 => {
                let Some(to) = any_page(disk, u)? else { continue };
                match u.int_in_range(0..=2)? {
                    0 if forges => write_batch(disk, &at, &to, u)?,
                    1 if forges => copy_page(disk, &at, &to, true),
                    _ => copy_page(disk, &at, &to, false),
                }
            }
            8 => change_files(disk, &at, u)?,
            _ => damage(disk, &at, u)?,
        }
    }
    strike_out_the_last_of_their_kind(disk);
    Ok(forges)
}

/// A page in another's place; sealed: as if it had been written there.
fn copy_page(disk: &mut PatchDisk, from: &At, to: &At, sealed: bool) {
    let page = page_of(disk, from).to_vec();
    disk.patch(&to.name, to.offset(), PAGE_BYTES, |there| {
        there.copy_from_slice(&page);
        if sealed {
            seal(there, to.place());
        }
    });
}

/// A known limit (`docs/outbox.md`): nothing is read back that was written behind the last lap or position there is.
fn strike_out_the_last_of_their_kind(disk: &mut PatchDisk) {
    let last = |header: Header| header.lap > LAP_MAX - (1 << 16) || header.reserved > POSITION_MAX - (1 << 32);
    let mut found = Vec::new();
    for (name, file) in disk.files().iter().filter(|(name, _)| name.ends_with(".seg")) {
        let segment = segment_of(name);
        for (page, bytes) in (0..).zip(file.chunks_exact(PAGE_BYTES)) {
            let place = Place { segment, page };
            if bytes[..4] == *b"BHOB" && Header::decode(&bytes[..PAYLOAD_BYTES], place).is_some_and(last) {
                found.push((name.clone(), page as usize * PAGE_BYTES));
            }
        }
    }
    for (name, offset) in found {
        disk.patch(&name, offset, 1, |bytes| bytes[0] = 0);
    }
}

/// What stands on the pages: for the eye of who replays a seed.
pub fn describe(disk: &PatchDisk) -> String {
    let mut lines = Vec::new();
    for (name, file) in disk.files() {
        let segment = segment_of(name);
        lines.push(format!("{name}: {} bytes", file.len()));
        for (page, bytes) in (0..).zip(file.chunks_exact(PAGE_BYTES)) {
            let place = Place { segment, page };
            lines.push(match Header::decode(&bytes[..PAYLOAD_BYTES], place) {
                Some(header) => format!("  {page}: {header:?}"),
                None => format!("  {page}: {:?}", format::page(bytes, place)),
            });
        }
    }
    lines.join("\n")
}

fn segment_of(name: &str) -> u32 {
    name.rsplit('.').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A page of a segment file.
struct At {
    name: String,
    segment: u32,
    page: u32,
}

impl At {
    fn place(&self) -> Place {
        Place { segment: self.segment, page: self.page }
    }

    fn offset(&self) -> usize {
        self.page as usize * PAGE_BYTES
    }
}

fn any_page(disk: &PatchDisk, u: &mut Unstructured) -> Result<Option<At>> {
    let names: Vec<&String> = disk.files().keys().filter(|name| name.ends_with(".seg")).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let name = (*u.choose(&names)?).clone();
    let pages = (disk.files()[&name].len() / PAGE_BYTES) as u32;
    if pages == 0 {
        return Ok(None);
    }
    let segment = segment_of(&name);
    Ok(Some(At { name, segment, page: u.int_in_range(0..=pages.min(8) - 1)? }))
}

fn page_of<'a>(disk: &'a PatchDisk, at: &At) -> &'a [u8] {
    &disk.files()[&at.name][at.offset()..at.offset() + PAGE_BYTES]
}

/// An integer near a limit, near the old one, or a power of two.
fn odd(old: u64, u: &mut Unstructured) -> Result<u64> {
    let near = u64::from(u.arbitrary::<u8>()?);
    Ok(match u.int_in_range(0..=8)? {
        0 => near,
        1 => u64::MAX - near,
        2 => (1 << 53) - near,
        3 => POSITION_MAX.wrapping_add(3) - near,
        4 => u64::from(u32::MAX) - near,
        5 => u64::from(LAP_MAX) + 3 - near % 6,
        6 => old.wrapping_add(near).wrapping_sub(128),
        7 => old.wrapping_add(near << 16),
        _ => 1 << (near % 64),
    })
}

/// Makes both checksums of a page good again.
fn seal(page: &mut [u8], place: Place) {
    let crc = crc32c::crc32c_append(0x6268_6f62, &place.segment.to_le_bytes());
    let place = crc32c::crc32c_append(crc, &place.page.to_le_bytes());
    let end = 88 + usize::from(page[7]) + 17 * usize::from(u16::from_le_bytes([page[8], page[9]]));
    if end + 4 <= PAYLOAD_BYTES && page[..4] == *b"BHOB" {
        let crc = crc32c::crc32c_append(place, &page[..end]);
        page[end..end + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(place, &page[..PAYLOAD_BYTES + 4]);
    page[PAYLOAD_BYTES + 4..].copy_from_slice(&crc.to_le_bytes());
}

/// A header's field or a run's, changed; the checksums are good again.
fn change_field(disk: &mut PatchDisk, at: &At, u: &mut Unstructured) -> Result<()> {
    let page = page_of(disk, at);
    let runs = usize::from(u16::from_le_bytes([page[8], page[9]]));
    let run = 88 + usize::from(page[7]);
    let (offset, width) = if (1..200).contains(&runs) && u.ratio(1, 4)? {
        (run + u.choose_index(runs)? * 17 + *u.choose(&[0, 8, 16])?, 8)
    } else {
        *u.choose(&FIELDS)?
    };
    if u.ratio(1, 8)? {
        // Many records: as a batch that goes on far behind the segment's end.
        let count = u.int_in_range(0..=40_000u32)?;
        let length = count.saturating_mul(u.int_in_range(5..=140)?);
        disk.patch(&at.name, at.offset(), PAGE_BYTES, |page| {
            page[12..16].copy_from_slice(&count.to_le_bytes());
            page[16..20].copy_from_slice(&length.to_le_bytes());
            seal(page, at.place());
        });
        return Ok(());
    }
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&page[offset..offset + width]);
    let new = odd(u64::from_le_bytes(bytes), u)?;
    disk.patch(&at.name, at.offset(), PAGE_BYTES, |page| {
        page[offset..offset + width].copy_from_slice(&new.to_le_bytes()[..width]);
        seal(page, at.place());
    });
    Ok(())
}

/// A header that is sane in itself, whatever it says.
fn sane_header(old: Option<Header>, u: &mut Unstructured) -> Result<Header> {
    let mut header = old.unwrap_or(Header {
        eager: false,
        count: 0,
        length: 0,
        lap: 1,
        origin: 1,
        epoch: 1,
        base: 0,
        first: 1,
        acked: 0,
        floor: 0,
        durable: 0,
        reserved: 65_536,
        lane: config::Lane::default().name,
        runs: Vec::new(),
    });
    for _ in 0..u.int_in_range(1..=3)? {
        match u.int_in_range(0..=9)? {
            0 => header.eager = !header.eager,
            1 => header.lap = (odd(u64::from(header.lap), u)? as u32).min(LAP_MAX),
            2 => header.origin = odd(header.origin, u)?,
            3 => header.epoch = odd(header.epoch, u)?.clamp(1, (1 << 53) - 1),
            4 => header.base = odd(header.base, u)?,
            5 => header.acked = odd(header.acked, u)?,
            6 => header.floor = odd(header.floor, u)?,
            7 => header.durable = odd(header.durable, u)?,
            8 => header.reserved = odd(header.reserved, u)?,
            _ => {
                let whys = [Why::Overflow, Why::Corrupt, Why::Torn, Why::Unknown, Why::Settled, Why::Expired];
                let from = odd(header.durable, u)?;
                header.runs.push(Run { from, to: from.saturating_add(odd(0, u)? % 4096), why: *u.choose(&whys)? });
            }
        }
    }
    Ok(header)
}

/// Brings a header's numbers into the order that a decoder asks for.
fn settle(header: &mut Header) {
    header.durable = header.durable.min(POSITION_MAX - 70_000);
    header.floor = header.floor.min(header.durable);
    header.acked = header.acked.min(header.floor);
    header.base = header.base.min(header.acked);
    header.first = header.durable + 1;
    header.reserved = header.reserved.clamp(header.next(), POSITION_MAX);
    header.runs.retain(|run| run.from <= run.to && run.to <= header.durable);
    header.runs.truncate(format::RUNS_MAX);
}

/// A whole batch, intact, with a header that says something else: where it stood, or in another place.
fn write_batch(disk: &mut PatchDisk, from: &At, to: &At, u: &mut Unstructured) -> Result<()> {
    let old = Header::decode(&page_of(disk, from)[..PAYLOAD_BYTES], from.place());
    let mut area = RecordArea::default();
    if let Some(header) = &old
        && header.pages() <= 4
    {
        let file = &disk.files()[&from.name];
        let end = (from.offset() + header.pages() as usize * PAGE_BYTES).min(file.len());
        let mut pages = file[from.offset()..end].to_vec();
        format::strip_tags(&mut pages);
        if header.count < 1000 {
            for slot in format::records(header, &pages) {
                match slot {
                    Slot::Intact(draft) => area.push(&draft),
                    Slot::Damaged(_) => {}
                }
            }
        }
    }
    for _ in 0..u.int_in_range(0..=2)? {
        area.push(&draft("y".repeat(usize::from(u.arbitrary::<u8>()?))));
    }
    let mut header = sane_header(old, u)?;
    (header.count, header.length) = (area.count(), area.bytes() as u32);
    settle(&mut header);
    let mut bytes = Vec::new();
    area.batch(&header, to.place(), &mut bytes);
    let room = disk.files()[&to.name].len() - to.offset();
    bytes.truncate(room);
    disk.patch(&to.name, to.offset(), bytes.len(), |there| there.copy_from_slice(&bytes));
    Ok(())
}

/// The fields of a batch's first record changed, its checksum and its page's good again.
fn change_record(disk: &mut PatchDisk, at: &At, u: &mut Unstructured) -> Result<()> {
    let page = page_of(disk, at);
    let Some(header) = Header::decode(&page[..PAYLOAD_BYTES], at.place()).filter(|header| header.count > 0) else {
        return Ok(());
    };
    let start = header.bytes();
    let (length, frame) = if page[start] < 0x80 {
        (usize::from(page[start]), 1)
    } else {
        (usize::from(page[start] & 0x7f) | usize::from(page[start + 1]) << 7, 2)
    };
    let bytes = start + frame + 4;
    if length == 0 || bytes + length > PAYLOAD_BYTES {
        return Ok(());
    }
    let offset = bytes + u.choose_index(length.min(48))?;
    let value = *u.choose(&[0, 1, 2, 0x7f, 0x80, 0xff])?;
    disk.patch(&at.name, at.offset(), PAGE_BYTES, |page| {
        page[offset] = value;
        let mut crc = 0x6268_6f62;
        for part in [
            &header.epoch.to_le_bytes()[..],
            &header.lap.to_le_bytes(),
            header.lane.as_str().as_bytes(),
            &header.first.to_le_bytes(),
            &(length as u32).to_le_bytes(),
            &page[bytes..bytes + length],
        ] {
            crc = crc32c::crc32c_append(crc, part);
        }
        page[bytes - 4..bytes].copy_from_slice(&crc.to_le_bytes());
        seal(page, at.place());
    });
    Ok(())
}

/// Bytes that no checksum covers for: a bit, a sector, a page.
fn damage(disk: &mut PatchDisk, at: &At, u: &mut Unstructured) -> Result<()> {
    let (offset, length) = match u.int_in_range(0..=3)? {
        0 => (at.offset() + u.choose_index(PAGE_BYTES)?, 1),
        1 => (at.offset() + 512 * u.choose_index(8)?, 512),
        2 => (at.offset(), 96),
        _ => (at.offset(), PAGE_BYTES),
    };
    let value = *u.choose(&[0, 1, 0x80, 0xff])?;
    let noise = u.ratio(1, 2)?;
    disk.patch(&at.name, offset, length, |bytes| {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = if noise { *byte ^ value ^ (index as u8).wrapping_mul(167) } else { value };
        }
    });
    Ok(())
}

/// Files that are longer, shorter, missing, somebody else's, or no file of ours at all.
fn change_files(disk: &mut PatchDisk, at: &At, u: &mut Unstructured) -> Result<()> {
    let mut bytes = disk.files()[&at.name].clone();
    match u.int_in_range(0..=5)? {
        0 => {
            bytes.resize(u.int_in_range(0..=3 * SEGMENT_BYTES as usize)?, 0);
            disk.replace(&at.name, Some(bytes));
        }
        1 => {
            bytes.truncate(PAGE_BYTES * u.int_in_range(0..=4)?);
            disk.replace(&at.name, Some(bytes));
        }
        2 => disk.replace(&at.name, None),
        3 => {
            let names =
                ["telemetry.0003.seg", "telemetry.4294967295.seg", "telemetry.99999.seg", "old.0000.seg", "x.0000.seg"];
            disk.replace(u.choose(&names)?, Some(bytes));
        }
        4 => {
            let names = ["telemetry.1.seg", ".seg", "a.b.0000.seg", "TELEMETRY.0000.seg", "telemetry.-001.seg", "note"];
            disk.replace(u.choose(&names)?, Some(bytes));
        }
        _ => {
            let names = ["test\n\n", "another\n\n", "test", "\0\0\0\0", "     ", "\u{ff}\u{fe}long long long name"];
            disk.replace(IDENTITY_FILE, Some(u.choose(&names)?.as_bytes().to_vec()));
        }
    }
    Ok(())
}
