//! From an image that a power cut left to what the real recovery code makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use backhaul::config;
use backhaul::outbox::{self, Draft, Outbox};
use backhaul::record::{Body, Fetch, Item};
use backhaul::shell::disk::RealDisk;
use backhaul::time::Instant;

use super::load;
use super::storage::{LoopMount, text, try_run};
use super::support::agent;
use super::verdict::Name;

/// How the file system is put in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By `e2fsck -fy`, the journal's replay included; the files are read out without a mount.
    Fsck,
    /// By the kernel, which replays the journal at the mount: a gateway that checks nothing when it boots.
    Kernel,
}

/// What the outbox holds of each lane and epoch, contiguous.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revived {
    /// By lane and epoch.
    pub logs: BTreeMap<Name, Vec<Item>>,
    /// Lanes of which it found no intact header.
    pub lost_lanes: Vec<String>,
}

/// Puts the image in order and hands over a folder in it.
pub fn with<T>(
    dir: &Path,
    image: &Path,
    mode: &str,
    way: Way,
    folder: &str,
    unmountable: &mut u64,
    judge: impl FnOnce(&Path) -> Result<T, String>,
) -> Result<T, String> {
    match way {
        Way::Fsck => {
            fsck(image)?;
            let dumped = dir.join("dumped");
            let _none_yet = fs::remove_dir_all(&dumped);
            fs::create_dir(&dumped).expect("the temporary folder takes a folder");
            // It has to be there if the cut was late enough; then so have the promises in it.
            try_run("debugfs", &["-R", &format!("rdump /{folder} {}", text(&dumped)), text(image)])?;
            judge(&dumped.join(folder))
        }
        Way::Kernel => {
            let point = dir.join("revived");
            let mount = LoopMount::try_new(image, &point, mode).or_else(|_| {
                *unmountable += 1;
                fsck(image)?;
                LoopMount::try_new(image, &point, mode)
            })?;
            judge(&mount.point().join(folder))
        }
    }
}

fn fsck(image: &Path) -> Result<(), String> {
    // 1: errors were corrected, which is what it is there for.
    try_run("sh", &["-c", "e2fsck -fy \"$0\" || test $? -eq 1", text(image)])
}

fn config() -> outbox::Config {
    let mut all = agent::quick("/nowhere".as_ref(), "ws://nowhere/v1");
    load::configure(&mut all);
    outbox::Config {
        segment_bytes: all.outbox.segment_bytes,
        headroom_bytes_min: all.outbox.headroom_bytes_min,
        record_bytes_max: all.local.record_bytes_max,
        lanes: all.lanes,
        device: all.device.id,
        machine: fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().into(),
    }
}

fn reopen(folder: &Path, seed: u64) -> Result<(Outbox<RealDisk>, Vec<String>), String> {
    // As the agent does it: the folder is made when missing.
    fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    let (outbox, report) = Outbox::open(RealDisk::new(folder), &config(), seed);
    if report.copied_image {
        return Err(format!("{report:?}"));
    }
    Ok((outbox, report.lost_lanes.iter().map(|lane| lane.as_str().to_owned()).collect()))
}

/// Opens the folder with the real recovery code, and reads all there is.
pub fn open(folder: &Path, seed: u64) -> Result<Revived, String> {
    let (mut outbox, lost_lanes) = reopen(folder, seed)?;
    Ok(Revived { logs: read_all(&mut outbox)?, lost_lanes })
}

fn read_all(outbox: &mut Outbox<RealDisk>) -> Result<BTreeMap<Name, Vec<Item>>, String> {
    let mut logs = BTreeMap::new();
    for offer in outbox.offers() {
        let mut items: Vec<Item> = Vec::new();
        let mut next = offer.first;
        while next < offer.next {
            let (records_max, bytes_max) = (100, 1 << 16);
            let fetch =
                Fetch { session: 0, lane: offer.lane.clone(), epoch: offer.epoch, from: next, records_max, bytes_max };
            let more = outbox.fetch(&fetch);
            if more.first().map(Item::first) != Some(next) {
                return Err(format!("{offer:?}: nothing comes at {next}"));
            }
            for item in more {
                if item.first() != next {
                    return Err(format!("{offer:?}: {item:?} does not begin at {next}"));
                }
                next = item.last() + 1;
                items.push(item);
            }
        }
        logs.insert((offer.lane.as_str().to_owned(), offer.epoch), items);
    }
    Ok(logs)
}

/// After any recovery: a second one finds the same, and the outbox takes records under numbers that never left.
pub fn goes_on(folder: &Path, seed: u64, revived: &Revived, left: &BTreeMap<Name, u64>) -> Result<(), String> {
    let (mut outbox, lost_lanes) = reopen(folder, seed ^ 1)?;
    // The first recovery may have begun a lane's first epoch, and that is durable.
    let again = read_all(&mut outbox)?;
    if again != revived.logs || !lost_lanes.is_empty() {
        return Err(format!("a second recovery finds {again:?} and loses {lost_lanes:?}, the first one {revived:?}"));
    }
    let mut new = Vec::new();
    for config::Lane { name, .. } in load::lanes() {
        let lane = outbox.lane(Some(name.as_str())).ok_or("a configured lane is not there")?;
        let draft = Draft {
            at: None,
            boot: 0,
            boot_ms: 0,
            ttl_s: 0,
            topic: "after".into(),
            key: None,
            body: Body::Text(format!("after the cut, in {name}")),
        };
        let pushed = outbox.push(lane, draft, Instant::default()).and_then(|(epoch, seq)| {
            outbox.commit(lane)?;
            Ok((name.as_str().to_owned(), epoch, seq))
        });
        match pushed {
            Ok(pushed) => new.push(pushed),
            // A lane that rejects may be full.
            Err(outbox::PushError::Full) => {}
            Err(error) => return Err(format!("{name} takes no record: {error:?}")),
        }
    }
    drop(outbox);
    let held = open(folder, seed ^ 2)?;
    for (lane, epoch, seq) in new {
        let name = (lane, epoch);
        if left.get(&name).is_some_and(|left| seq <= *left) {
            return Err(format!("{name:?} {seq} has left before, and names another record now"));
        }
        let is_it = |item: &Item| matches!(item, Item::Record(record) if record.seq == seq && record.topic == "after");
        if !held.logs.get(&name).is_some_and(|items| items.iter().any(is_it)) {
            return Err(format!("{name:?} {seq} was committed after the cut and is not there"));
        }
    }
    Ok(())
}
