//! Folders that no agent of ours left behind, and what must hold of each: opening neither panics nor loops, reads
//! little and allocates little, and the lane works afterwards. The bytes that choose come from a seed in
//! `tests/outbox_hostile.rs`, from libFuzzer in `fuzz/`.

mod images;
mod mutate;

use std::mem::take;

use arbitrary::Unstructured;
use backhaul::config::Overflow;
use backhaul::outbox::disk::Disk;
use backhaul::outbox::{Config, LaneId, Outbox, Report, memory_bytes_max};
use backhaul::record::{Body, Fetch, Item, Offer};
use backhaul::time::Instant;

use super::patch_disk::PatchDisk;
use images::{config, draft};

const LANE: LaneId = LaneId(0);
/// Rounds of fetches and acks after which a lane of this size must be empty.
const ROUNDS_MAX: u64 = 64;

/// The images, each ready to be made hostile.
pub struct Folders {
    disks: Vec<PatchDisk>,
    /// Most bytes that one opening held at once.
    pub allocated_bytes_max: u64,
    /// Most bytes that one opening read, in percent of what the files hold.
    pub read_percent_max: u64,
}

impl Folders {
    /// All images.
    pub fn new() -> Self {
        let disks = images::images().into_iter().map(PatchDisk::new).collect();
        Self { disks, allocated_bytes_max: 0, read_percent_max: 0 }
    }

    /// Makes an image hostile as the bytes say, and checks all that must hold.
    pub fn check(&mut self, choices: &[u8]) {
        let mut u = Unstructured::new(choices);
        // Bytes that ran out choose the first of everything.
        let image = u.choose_index(self.disks.len()).unwrap_or(0);
        let mut disk = take(&mut self.disks[image]);
        let forged = mutate::mutate(&mut disk, &mut u).unwrap_or(true);
        let config = config(if u.ratio(1, 2).unwrap_or(false) { Overflow::DropOldest } else { Overflow::Reject });
        let mut disk = self.live(disk, &config, forged, &mut u);
        disk.restore();
        self.disks[image] = disk;
    }

    fn live(&mut self, disk: PatchDisk, config: &Config, forged: bool, u: &mut Unstructured) -> PatchDisk {
        let mut outbox = self.open(disk, config);
        if u.ratio(1, 4).unwrap_or(false) {
            let held = held(&outbox);
            outbox = self.open(outbox.into_disk(), config);
            assert!(self::held(&outbox) == held || forged, "opening twice gives the same: {held:?}");
        }
        if u.ratio(1, 8).unwrap_or(false) {
            for offer in outbox.offers() {
                outbox.renumber(&offer.lane, offer.epoch);
            }
        }
        // Full of what was there, perhaps; drained, it takes records.
        let _ = outbox.push(LANE, draft("x".repeat(500)), Instant::default());
        let _ = outbox.commit(LANE);
        drain(&mut outbox);
        put_and_fetch(&mut outbox, "after");
        let mut outbox = self.open(outbox.into_disk(), config);
        // A forged header may claim to come later, and that all of it is acked.
        assert!(drain(&mut outbox) || forged, "what was committed is there after a restart");
        put_and_fetch(&mut outbox, "again");
        outbox.into_disk()
    }

    fn open(&mut self, disk: PatchDisk, config: &Config) -> Outbox<PatchDisk> {
        if std::env::var_os("SEED").is_some() {
            eprintln!("{}", mutate::describe(&disk));
        }
        let size: u64 = disk.files().values().map(|file| file.len() as u64).sum();
        let before = disk.bytes_read;
        let mut opened: Option<(Outbox<PatchDisk>, Report)> = None;
        let allocated = allocation_counter::measure(|| opened = Some(Outbox::open(disk, config, 7)));
        let (mut outbox, report) = opened.expect("opened above");
        if std::env::var_os("SEED").is_some() {
            eprintln!("{report:?}\n{:?}\n{}", outbox.offers(), mutate::describe(outbox.disk_mut()));
        }
        let bound = memory_bytes_max(config);
        assert!(allocated.bytes_max <= bound, "opening held {} bytes, more than {bound}", allocated.bytes_max);
        self.allocated_bytes_max = self.allocated_bytes_max.max(allocated.bytes_max);
        let read = outbox.disk_mut().bytes_read - before;
        let percent = read * 100 / size.max(16_384);
        assert!(percent <= 500, "opening read {read} bytes of {size}");
        self.read_percent_max = self.read_percent_max.max(percent);
        outbox
    }
}

/// What is offered; but for `sent_max`, which a start has to take for as high as can be.
fn held<D: Disk>(outbox: &Outbox<D>) -> Vec<Offer> {
    outbox.offers().into_iter().map(|offer| Offer { sent_max: 0, ..offer }).collect()
}

fn fetch<D: Disk>(outbox: &mut Outbox<D>, offer: &Offer) -> Vec<Item> {
    let (lane, epoch, from) = (offer.lane.clone(), offer.epoch, offer.first);
    let items = outbox.fetch(&Fetch { session: 1, lane, epoch, from, records_max: 1000, bytes_max: 1 << 20 });
    let mut next = from;
    for item in &items {
        assert_eq!(item.first(), next, "contiguous");
        assert!(item.last() >= item.first());
        next = item.last() + 1;
    }
    items
}

/// Fetches and acks until nothing is left. Whether the record "after" was among it.
fn drain<D: Disk>(outbox: &mut Outbox<D>) -> bool {
    let mut found = false;
    for round in 1..=ROUNDS_MAX {
        if outbox.lanes_status(None).iter().all(|lane| lane.depth == 0) {
            return found;
        }
        for offer in outbox.offers() {
            let items = fetch(outbox, &offer);
            found |= items.iter().any(|item| says(item, "after"));
            if let Some(item) = items.last() {
                outbox.acked(&offer.lane, offer.epoch, item.last(), Instant::default());
            }
        }
        // What found no page for its reservation is tried again with the acks.
        outbox.handle_timeout(Instant::from_micros(round * 120_000_000));
    }
    panic!("what is held leaves: {:?}", outbox.offers());
}

fn says(item: &Item, text: &str) -> bool {
    matches!(item, Item::Record(record) if record.body == Body::Text(text.into()))
}

/// A drained lane takes a record, commits it and gives it back.
fn put_and_fetch<D: Disk>(outbox: &mut Outbox<D>, text: &str) {
    let (epoch, seq) = outbox.push(LANE, draft(text.into()), Instant::default()).expect("a drained lane has room");
    outbox.commit(LANE).expect("a disk that works");
    let offer = outbox.offers().into_iter().find(|offer| offer.epoch == epoch).expect("the lane's own");
    let items = fetch(outbox, &offer);
    let same = |item: &Item| item.first() == seq && says(item, text);
    assert!(items.iter().any(same), "{seq} comes: {items:?}, {:?}", outbox.offers());
}
