//! What a person asks of an outbox that no agent runs: what lies in it, record by record, and to empty it. The very
//! recovery of an ordinary start has opened it, over an [`super::overlay::Overlay`] where nothing may be written.

use std::io;

use super::dead::DEAD_LANE;
use super::disk::{Disk, Entry};
use super::format::{self, PAGE_BYTES, Page, Place, SEGMENT_BYTES_MAX};
use super::lane::Lane;
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
    /// Copies of refused records for a person to look at: nothing here waits for the upstream.
    pub dead_letters: bool,
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

/// A segment that a later version wrote, and that version. Asked before [`Outbox::open`], which would take it for
/// damage: what cannot be read must stay as it is.
pub fn newer_format<D: Disk>(disk: &mut D) -> Option<(String, u8)> {
    let mut first = vec![0; PAGE_BYTES];
    disk.list().ok()?.into_iter().find_map(|file| {
        let (_, segment) = parse_segment_name(&file.name)?;
        let whole = disk.read_at(&file.name, 0, &mut first).is_ok_and(|read| read == PAGE_BYTES);
        let version = format::newer_version(&first, Place { segment, page: 0 }).filter(|_| whole)?;
        Some((file.name, version))
    })
}

/// A configuration with which [`Outbox::open`] takes every lane in these files as it is.
pub fn config_found(files: &[Entry], record_bytes_max: u32) -> Config {
    let mut names: Vec<LaneName> = Vec::new();
    let mut sizes: Vec<u64> = Vec::new();
    for file in files {
        let Some((name, _)) = parse_segment_name(&file.name) else { continue };
        // Those of the dead letters have a size of their own.
        if name.as_str() != DEAD_LANE {
            sizes.push(file.bytes);
        }
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
pub fn pages(disk: &mut dyn Disk, file: &Entry, number: u32) -> Pages {
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

impl Outbox {
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
        let view = |lane: &Lane| LaneView {
            name: lane.name.clone(),
            epochs: lane.logs.iter().map(epoch).collect(),
            segments_held: (0..lane.segments.len()).filter(|&index| !lane.is_covered(index, Log::covered)).count()
                as u32,
            dead_letters: lane.is_dead_letters(),
        };
        self.lanes.iter().chain(&self.dead.lane).map(view).collect()
    }

    /// What lies at the lowest number from `from` on, acknowledged ones left out; `None`: nothing more. One batch is
    /// in memory at a time. Finds damage, which [`Outbox::look`] knows from then on.
    pub fn stored(&mut self, lane: &LaneName, epoch: Epoch, from: Seq) -> Option<Stored> {
        let lane = self.lanes.iter_mut().chain(&mut self.dead.lane).find(|known| known.name == *lane)?;
        let log = lane.logs.iter().position(|log| log.epoch == epoch)?;
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
    /// go last, one lane after the other. Not to be used afterwards.
    pub fn wipe(&mut self) -> io::Result<()> {
        for lane in self.lanes.iter_mut().chain(&mut self.dead.lane) {
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
        self.io.disk.sync_dir()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::LaneId;
    use super::super::overlay::Overlay;
    use super::super::sim_disk::{Fate, SimDisk};
    use super::*;
    use crate::record::{Body, Fetch, Item};
    use crate::time::Instant;

    const LANE: LaneId = LaneId(0);
    const SEGMENT: u64 = 16_384;

    fn config() -> Config {
        let lane = config::Lane { bytes_max: 6 * SEGMENT, ..config::Lane::default() };
        Config { lanes: vec![lane], ..config_found(&[], 4096) }
    }

    fn put(outbox: &mut Outbox<SimDisk>, text: String) -> (Epoch, Seq) {
        let draft =
            Draft { at: Some(1), boot: 1, boot_ms: 1, ttl_s: 0, topic: "t".into(), key: None, body: Body::Text(text) };
        let name = outbox.push(LANE, draft, Instant::default()).unwrap();
        outbox.commit(LANE).unwrap();
        name
    }

    /// Some laps, some acks, perhaps an overflow.
    fn filled(rng: &mut fastrand::Rng) -> Outbox<SimDisk> {
        let (mut outbox, _) = Outbox::open(SimDisk::default(), &config(), rng.u64(..));
        for n in 0..rng.u64(1..40) {
            put(&mut outbox, format!("{n:0>width$}", width = rng.usize(1..2500)));
            if rng.u8(..5) == 0 {
                let offer = outbox.offers()[0].clone();
                let upto = rng.u64(offer.first - 1..offer.next);
                outbox.acked(&offer.lane, offer.epoch, upto, Instant::default());
            }
        }
        outbox
    }

    fn damaged(mut image: BTreeMap<String, Vec<u8>>, rng: &mut fastrand::Rng) -> BTreeMap<String, Vec<u8>> {
        for (_, bytes) in image.iter_mut().filter(|(name, _)| name.ends_with(".seg")) {
            for _ in 0..rng.u8(..3) {
                let page = rng.usize(..bytes.len() / PAGE_BYTES) * PAGE_BYTES;
                match rng.u8(..4) {
                    0 => bytes[page..page + PAGE_BYTES].fill(0),
                    1 => rng.fill(&mut bytes[page..page + PAGE_BYTES]),
                    2 => bytes[page + rng.usize(..PAGE_BYTES)] ^= 1,
                    _ => bytes.truncate((page + 100).max(PAGE_BYTES)),
                }
            }
        }
        image
    }

    type Records = BTreeSet<(Epoch, Seq, Vec<u8>)>;

    /// All records, and how many numbers are in gaps.
    fn walk(outbox: &mut Outbox<Overlay<SimDisk>>) -> (Records, u64) {
        let (mut records, mut gaps) = (Records::new(), 0);
        for lane in outbox.look() {
            for epoch in &lane.epochs {
                let mut from = epoch.acked + 1;
                while let Some(stored) = outbox.stored(&lane.name, epoch.epoch, from) {
                    from = match stored {
                        Stored::Record(seq, draft) => {
                            assert_eq!(seq, from);
                            records.insert((epoch.epoch, seq, draft.body.as_bytes().to_vec()));
                            seq + 1
                        }
                        Stored::Gap(gap) => {
                            assert_eq!(gap.from, from);
                            gaps += gap.to - gap.from + 1;
                            gap.to + 1
                        }
                    };
                }
            }
        }
        (records, gaps)
    }

    /// All records that a session would get.
    fn sent(outbox: &mut Outbox<SimDisk>) -> Records {
        let mut records = Records::new();
        for offer in outbox.offers() {
            let (epoch, mut from) = (offer.epoch, offer.first);
            while from < offer.next {
                let lane = offer.lane.clone();
                let fetch = Fetch { session: 1, lane, epoch, from, records_max: 99, bytes_max: 1 << 20 };
                let items = outbox.fetch(&fetch);
                from = items.last().unwrap().last() + 1;
                records.extend(items.into_iter().filter_map(|item| match item {
                    Item::Record(record) => Some((epoch, record.seq, record.body.as_bytes().to_vec())),
                    Item::Gap(_) => None,
                }));
            }
        }
        records
    }

    #[test]
    fn a_look_sees_what_a_start_would_send_and_changes_nothing() {
        let only = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        for seed in only.map_or(0..300, |seed: u64| seed..seed + 1) {
            let replay = format!("SEED={seed} cargo test --lib a_look_sees");
            let mut rng = fastrand::Rng::with_seed(seed);
            let image = damaged(filled(&mut rng).into_disk().image(), &mut rng);
            let mut disk = SimDisk::from_image(image.clone());
            let found = config_found(&disk.list().unwrap(), 4096);
            let (mut look, _) = Outbox::open(Overlay::new(disk), &found, seed);
            let (seen, gaps) = walk(&mut look);
            let views = look.look();
            let epochs = || views.iter().flat_map(|lane| &lane.epochs);
            assert_eq!(epochs().map(|epoch| epoch.records).sum::<u64>(), seen.len() as u64, "{replay}");
            let above: u64 = epochs().map(|epoch| epoch.last - epoch.acked).sum();
            assert_eq!(above, seen.len() as u64 + gaps, "each number is a record or in a gap; {replay}");
            assert_eq!(look.disk_mut().base_mut().image(), image, "{replay}");
            let (mut start, _) = Outbox::open(SimDisk::from_image(image), &config(), seed + 1);
            let sent = sent(&mut start);
            assert!(sent == seen, "{} sent, {} seen; {replay}", sent.len(), seen.len());
        }
    }

    #[test]
    fn a_wipe_that_is_cut_anywhere_never_gives_a_number_twice() {
        let only = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        for seed in only.map_or(0..60, |seed: u64| seed..seed + 1) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut image = filled(&mut rng).into_disk().image();
            if rng.bool() {
                image = damaged(image, &mut rng);
            }
            for cut in 0.. {
                let (mut outbox, _) = Outbox::open(SimDisk::from_image(image.clone()), &config(), seed + 1);
                let offers = outbox.offers();
                let calls = outbox.disk_mut().calls;
                outbox.disk_mut().cut_after = Some(calls + cut);
                let done = outbox.wipe().is_ok();
                let mut disk = outbox.into_disk();
                disk.power_cut(&mut rng, |_| Fate::Old);
                let (mut again, _) = Outbox::open(disk, &config(), 1000 + seed + cut);
                let (epoch, seq) = put(&mut again, "new".into());
                let twice = offers.iter().any(|old| old.epoch == epoch && (done || seq < old.next));
                let replay = format!("SEED={seed} cargo test --lib a_wipe_that");
                assert!(!twice, "cut {cut}: {seq} again of {offers:?}; {replay}");
                if done {
                    break;
                }
            }
        }
    }
}
