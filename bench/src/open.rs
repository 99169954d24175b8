//! Opening a gigabyte of backlog, warm, in a process of its own; reading it back as a session does, and committing
//! with so many segments at hand.

use std::path::Path;
use std::time::Instant;

use backhaul::outbox::disk::Disk;
use backhaul::outbox::format::PAGE_BYTES;
use backhaul::outbox::{LaneId, Outbox};
use backhaul::record::{Fetch, Item};
use backhaul::shell::disk::RealDisk;
use backhaul::time;

use crate::Result;
use crate::append::median;
use crate::child::{Child, memory_mib};
use crate::device::Device;
use crate::metered::{Metered, cpu_s};
use crate::store::{Ours, RECORD_BYTES, Store, config, draft};

const BACKLOG_BYTES: u64 = 1 << 30;
/// The file system, beside the backlog.
const DEVICE_BYTES: u64 = 512 << 20;
/// As many as fill a segment in one commit.
const GROUP: usize = 2400;
/// What a session fetches at once, and how many bytes of the backlog are read here.
const FETCH_RECORDS: u32 = 512;
const READ_BYTES: usize = 128 << 20;
/// How often it is opened.
const TURNS: usize = 5;

/// What opening took.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    pub ms: f64,
    /// Of which on a CPU: what is left when the machine does nothing else.
    pub cpu_ms: f64,
    pub memory_mib: f64,
    pub segments: f64,
    /// Pages read of each segment but the newest, which is walked.
    pub pages_per_segment: f64,
    /// Afterwards, at 256 records a commit.
    pub cpu_us_per_record: f64,
    /// Bytes of records fetched a second, from the page cache.
    pub read_mib_per_s: f64,
    /// What fetching one took on a CPU.
    pub read_cpu_us_per_record: f64,
    /// After all of it.
    pub read_memory_mib: f64,
}

/// Fills a lane and opens it.
pub fn measure(work: &Path, scale: usize) -> Result<Opened> {
    let bytes = BACKLOG_BYTES / scale as u64;
    let device = Device::try_new(work, "backlog", DEVICE_BYTES + bytes)?;
    let dir = device.dir().to_string_lossy().into_owned();
    eprintln!("filling a lane with {} MiB", bytes >> 20);
    let mut child = Child::spawn(&["fill", &dir, &bytes.to_string()])?;
    let records = child.expect("records")?;
    child.finish()?;
    eprintln!("opening it, {records} records, {TURNS} times");
    let mut turns = Vec::new();
    for _ in 0..TURNS {
        let mut child = Child::spawn(&["open", &dir, &bytes.to_string()])?;
        turns.push(Opened {
            ms: child.expect("ms")?,
            cpu_ms: child.expect("cpu_ms")?,
            memory_mib: child.expect("memory_mib")?,
            segments: child.expect("segments")?,
            pages_per_segment: child.expect("pages_per_segment")?,
            cpu_us_per_record: child.expect("cpu_us_per_record")?,
            read_mib_per_s: child.expect("read_mib_per_s")?,
            read_cpu_us_per_record: child.expect("read_cpu_us_per_record")?,
            read_memory_mib: child.expect("read_memory_mib")?,
        });
        child.finish()?;
    }
    let middle = |field: fn(&Opened) -> f64| median(turns.iter().map(field).collect());
    Ok(Opened {
        ms: middle(|turn| turn.ms),
        cpu_ms: middle(|turn| turn.cpu_ms),
        memory_mib: middle(|turn| turn.memory_mib),
        segments: middle(|turn| turn.segments),
        pages_per_segment: middle(|turn| turn.pages_per_segment),
        cpu_us_per_record: middle(|turn| turn.cpu_us_per_record),
        read_mib_per_s: middle(|turn| turn.read_mib_per_s),
        read_cpu_us_per_record: middle(|turn| turn.read_cpu_us_per_record),
        read_memory_mib: middle(|turn| turn.read_memory_mib),
    })
}

/// In a child: records up to so many bytes. Returns how many.
pub fn fill(dir: &Path, bytes: u64) -> Result<usize> {
    let mut ours = Ours::open(dir, bytes)?;
    let mut records = 0;
    // The last segment stays half empty, so that what follows finds room in it.
    while ours.committed_bytes() + (256 << 10) <= bytes {
        ours.stage(GROUP);
        ours.commit()?;
        records += GROUP;
    }
    Ok(records)
}

/// In a child: opens it and says what that took, then commits a little.
pub fn open(dir: &Path, bytes: u64) -> Result<()> {
    let disk = Metered::new(RealDisk::new(dir));
    let (begun, cpu) = (Instant::now(), cpu_s());
    let (mut outbox, report) = Outbox::open(disk, &config(bytes), 1);
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    let cpu_ms = (cpu_s() - cpu) * 1e3;
    let memory_mib = memory_mib()?;
    if !report.notes.is_empty() {
        return Err(report.notes.join("; ").into());
    }
    let pages = outbox.disk_mut().pages_read as f64;
    let newest = f64::from(config(bytes).segment_bytes) / PAGE_BYTES as f64;
    let segments = outbox.disk_mut().list()?.iter().filter(|entry| entry.name.ends_with(".seg")).count() as f64;
    println!("ms {ms}\ncpu_ms {cpu_ms}\nmemory_mib {memory_mib}\nsegments {segments}");
    println!("pages_per_segment {}", (pages - newest).max(0.0) / (segments - 1.0));
    let (mut cpu, mut number, mut records) = (0.0, 0, 0);
    for _ in 0..2 {
        let drafts: Vec<_> = (0..256).map(|n| draft(number + n)).collect();
        number += 256;
        let begun = cpu_s();
        for draft in drafts {
            outbox.push(LaneId(0), draft, time::Instant::default()).map_err(|error| format!("push: {error:?}"))?;
        }
        outbox.commit(LaneId(0)).map_err(|error| format!("commit: {error:?}"))?;
        cpu += cpu_s() - begun;
        records += 256;
    }
    println!("cpu_us_per_record {}", cpu * 1e6 / f64::from(records));
    read_back(&mut outbox)
}

/// Fetches the oldest of the backlog. Nothing is acked: the next turn finds all of it again.
fn read_back(outbox: &mut Outbox<Metered>) -> Result<()> {
    let offer = outbox.offers().swap_remove(0);
    let (mut from, mut bytes, mut records) = (offer.first, 0, 0);
    let (begun, cpu) = (Instant::now(), cpu_s());
    while bytes < READ_BYTES && from < offer.next {
        let fetch = Fetch {
            session: 1,
            lane: offer.lane.clone(),
            epoch: offer.epoch,
            from,
            records_max: FETCH_RECORDS,
            bytes_max: 64 << 10,
        };
        let items = outbox.fetch(&fetch);
        let Some(last) = items.last() else { return Err(format!("nothing comes at {from}").into()) };
        from = last.last() + 1;
        // Filling it to the brim gave up the oldest: that is one gap.
        let read = items.iter().filter(|item| matches!(item, Item::Record(_))).count();
        records += read;
        bytes += read * RECORD_BYTES;
    }
    println!("read_mib_per_s {}", bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64());
    println!("read_cpu_us_per_record {}", (cpu_s() - cpu) * 1e6 / records as f64);
    println!("read_memory_mib {}", memory_mib()?);
    Ok(())
}
