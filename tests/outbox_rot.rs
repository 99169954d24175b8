//! Bit rot: every bit of a full segment flipped, one at a time, with later batches present. A flipped bit costs the
//! record whose bytes it hits, the rest of a batch if it hits a length, a batch if it hits a header, and nothing
//! anywhere else; all of that is counted exactly and everything else comes with equal bytes in order.
//! `SEGMENT_BYTES=n` takes another segment than 32 KiB, `STEP=n` one bit in n, `BIT=n` replays one.

use std::ops::Range;
use std::thread;

use backhaul::config;
use backhaul::outbox::format::{Header, PAGE_BYTES, PAYLOAD_BYTES, Place, RecordArea};
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::{Body, Fetch, Gap, Item, Offer, Record, Seq, Why};
use backhaul::time::Instant;

use patch_disk::PatchDisk;

#[path = "support/patch_disk.rs"]
mod patch_disk;

const LANE: LaneId = LaneId(0);

/// Where the later batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Later {
    /// In the next segment: what is flipped is backlog, of which opening reads one page.
    NextSegment,
    /// In the same one: what is flipped is walked by recovery.
    SameSegment,
}

/// What a flipped bit takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    /// A tag, padding, a header without records.
    Nothing,
    /// The bytes of one record, or the header of a batch: all of these.
    All(Seq, Seq),
    /// A length: the first of these, and of the rest of the batch what is not found again by luck.
    From(Seq, Seq),
}

impl Cost {
    fn range(self) -> Range<Seq> {
        match self {
            Self::Nothing => 0..0,
            Self::All(from, to) | Self::From(from, to) => from..to + 1,
        }
    }
}

/// An image, what was put into it, and the segment whose bits are flipped.
struct Image {
    config: Config,
    disk: PatchDisk,
    /// What is held, from seq `first` on.
    drafts: Vec<Draft>,
    first: Seq,
    target: String,
    /// What each byte of the target costs if it is damaged.
    costs: Vec<Cost>,
    bytes: usize,
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

fn draft(n: usize, bytes: usize) -> Draft {
    let key = n.is_multiple_of(7).then(|| format!("key-{n}"));
    let body =
        if n.is_multiple_of(3) { Body::Bytes(vec![n as u8; bytes]) } else { Body::Text(format!("{n:0>bytes$}")) };
    Draft {
        at: Some(1_767_225_600_000 + n as u64),
        boot: 7,
        boot_ms: 12 * n as u64,
        ttl_s: 0,
        topic: "t".into(),
        key,
        body,
    }
}

fn fetch(offer: &Offer, from: Seq) -> Fetch {
    let (lane, epoch) = (offer.lane.clone(), offer.epoch);
    Fetch { session: 1, lane, epoch, from, records_max: 10_000, bytes_max: u32::MAX }
}

fn page_of(file: &[u8], number: u32, page: u32) -> Option<Header> {
    let start = page as usize * PAGE_BYTES;
    Header::decode(&file[start..start + PAYLOAD_BYTES], Place { segment: number, page })
}

/// The batches of a segment: page and header.
fn batches(file: &[u8], number: u32) -> Vec<(u32, Header)> {
    let pages = (file.len() / PAGE_BYTES) as u32;
    let (mut page, mut found) = (0, Vec::new());
    while page < pages {
        let header = page_of(file, number, page);
        page += header.as_ref().map_or(1, Header::pages);
        found.extend(header.map(|header| (page - header.pages(), header)));
    }
    found
}

impl Image {
    /// Three segments: the first half acked, the second full, the third begun or, where the later batch lies in the
    /// same one, not there.
    fn new(segment_bytes: usize, later: Later) -> Self {
        let lane = config::Lane { bytes_max: 8 * segment_bytes as u64, ..config::Lane::default() };
        let config = Config {
            segment_bytes: segment_bytes as u32,
            headroom_bytes_min: 0,
            record_bytes_max: 4096,
            lanes: vec![lane],
            device: "test".into(),
            machine: String::new(),
        };
        let (mut outbox, _) = Outbox::open(PatchDisk::default(), &config, 1);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut drafts = Vec::new();
        let data_pages = (segment_bytes / PAGE_BYTES) as u32 - 1;
        let target = "telemetry.0001.seg";
        loop {
            assert!(drafts.len() * 8 < 8 * segment_bytes, "the target fills");
            // Batches of all sizes; at the end of the target, of one page each, until it is full.
            let used = outbox
                .disk_mut()
                .files()
                .get(target)
                .map_or(0, |file| batches(file, 1).last().map_or(0, |(page, header)| page + header.pages()));
            let ends = used + 3 >= data_pages;
            let records = if ends { 26 } else { rng.usize(1..40) };
            for _ in 0..records {
                let bytes =
                    *rng.choice([8, 100, 100, 100, 118, 119, 120, 121, 122, 300, 1500].iter()).expect("not empty");
                drafts.push(draft(drafts.len() + 1, if ends { 100 } else { bytes }));
                outbox.push(LANE, drafts[drafts.len() - 1].clone(), Instant::default()).expect("room");
            }
            outbox.commit(LANE).expect("a disk that works");
            let done = match later {
                Later::NextSegment => outbox.disk_mut().files().get("telemetry.0002.seg").is_some_and(|f| f[0] != 0),
                Later::SameSegment => used + 1 == data_pages,
            };
            if done {
                break;
            }
        }
        // Acked up to the middle of the first segment; a later batch says so.
        let offer = outbox.offers()[0].clone();
        let acked = drafts.len() as u64 / 5;
        outbox.acked(&offer.lane, offer.epoch, acked, Instant::default());
        if later == Later::NextSegment {
            drafts.push(draft(drafts.len() + 1, 50));
            outbox.push(LANE, drafts[drafts.len() - 1].clone(), Instant::default()).expect("room");
            outbox.commit(LANE).expect("a disk that works");
        }
        let files = outbox.into_disk().files().clone();
        let costs = costs(&files[target], &drafts);
        let bytes = match later {
            Later::NextSegment => segment_bytes,
            Later::SameSegment => batches(&files[target], 1).last().expect("batches").0 as usize * PAGE_BYTES,
        };
        let first = if later == Later::NextSegment { acked + 1 } else { 1 };
        drafts.drain(..first as usize - 1);
        Self { config, disk: PatchDisk::new(files), drafts, first, target: target.into(), costs, bytes }
    }

    /// Flips one bit, opens, fetches all there is and checks it against what the bit costs.
    fn check(&mut self, bit: usize) {
        let mut disk = std::mem::take(&mut self.disk);
        disk.patch(&self.target, bit / 8, 1, |byte| byte[0] ^= 1 << (bit % 8));
        let cost = self.costs[bit / 8];
        let (mut outbox, report) = Outbox::open(disk, &self.config, 2);
        assert_eq!(report, Default::default(), "nothing is in doubt");
        let offer = outbox.offers()[0].clone();
        let next = self.first + self.drafts.len() as u64;
        assert_eq!((offer.first, offer.next), (self.first, next), "no number is skipped");
        let (mut from, mut gaps) = (offer.first, Vec::new());
        while from < next {
            let items = outbox.fetch(&fetch(&offer, from));
            assert!(!items.is_empty(), "all that is offered comes");
            for item in items {
                assert_eq!(item.first(), from, "in order");
                from = item.last() + 1;
                match item {
                    Item::Record(record) => self.check_record(&record, cost),
                    Item::Gap(gap) => gaps.push(gap),
                }
            }
        }
        let lost = check_gaps(&gaps, cost);
        let status = &outbox.lanes_status(None)[0];
        assert_eq!((status.corrupt, status.torn, status.overflowed), (lost, 0, 0), "counted exactly");
        let mut disk = if bit.is_multiple_of(61) {
            self.check_it_goes_on(outbox, bit / 8 < PAGE_BYTES)
        } else {
            outbox.into_disk()
        };
        disk.restore();
        self.disk = disk;
    }

    fn check_record(&self, record: &Record, cost: Cost) {
        assert!(!matches!(cost, Cost::All(from, to) if (from..=to).contains(&record.seq)), "{} was hit", record.seq);
        let draft = &self.drafts[(record.seq - self.first) as usize];
        assert_eq!((record.at, &record.topic, &record.body), (draft.at, &draft.topic, &draft.body), "equal bytes");
    }

    /// All acked, one more record, and a restart. A first page that is damaged where all else is acked may have begun
    /// a new lap: there numbers are skipped.
    fn check_it_goes_on(&self, mut outbox: Outbox<PatchDisk>, first_page: bool) -> PatchDisk {
        let offer = outbox.offers()[0].clone();
        outbox.acked(&offer.lane, offer.epoch, offer.next - 1, Instant::default());
        let name = outbox.push(LANE, draft(1, 10), Instant::default()).expect("room");
        assert_eq!(name, (offer.epoch, offer.next));
        outbox.commit(LANE).expect("a disk that works");
        let (mut again, _) = Outbox::open(outbox.into_disk(), &self.config, 3);
        let after = again.offers()[0].clone();
        assert_eq!((after.epoch, after.first), (offer.epoch, offer.next));
        assert!(first_page || after.next == offer.next + 1, "no number is skipped");
        let items = again.fetch(&fetch(&after, after.first));
        assert!(matches!(&items[0], Item::Record(record) if record.body == draft(1, 10).body));
        again.into_disk()
    }
}

/// How many records the gaps say are lost: what the bit costs, no loss invented.
fn check_gaps(gaps: &[Gap], cost: Cost) -> u64 {
    let cause = |gap: &Gap| gap.why == Why::Corrupt;
    let within = |gap: &Gap| cost.range().contains(&gap.from) && cost.range().contains(&gap.to);
    assert!(gaps.iter().all(cause) && gaps.iter().all(within), "{gaps:?} for {cost:?}");
    let lost = gaps.iter().map(Gap::count).sum();
    match cost {
        Cost::Nothing => {}
        Cost::All(from, to) => assert_eq!(lost, to - from + 1),
        Cost::From(from, _) => assert!(gaps.first().is_some_and(|gap| gap.from == from)),
    }
    lost
}

/// What damage to each byte of a segment costs, by the specification in `format` and by what was put.
fn costs(file: &[u8], drafts: &[Draft]) -> Vec<Cost> {
    let mut costs = vec![Cost::Nothing; file.len()];
    for (page, header) in batches(file, 1) {
        if header.count == 0 {
            continue;
        }
        let last = header.next() - 1;
        let mut at = 0;
        let mut charge = |bytes: usize, cost: Cost| {
            for payload in at..at + bytes {
                let page = page as usize + payload / PAYLOAD_BYTES;
                costs[page * PAGE_BYTES + payload % PAYLOAD_BYTES] = cost;
            }
            at += bytes;
        };
        charge(header.bytes(), Cost::All(header.first, last));
        for seq in header.first..=last {
            let mut area = RecordArea::default();
            area.push(&drafts[seq as usize - 1]);
            // All here are shorter than 16 KiB.
            let length = if area.bytes() - 5 < 128 { 1 } else { 2 };
            charge(length, Cost::From(seq, last));
            charge(area.bytes() - length, Cost::All(seq, seq));
        }
    }
    costs
}

fn rot(later: Later, step: usize) {
    let (segment_bytes, step) = (number("SEGMENT_BYTES", 32 << 10), number("STEP", step));
    let sample = Image::new(segment_bytes, later);
    let bits = sample.bytes * 8;
    let lossy = sample.costs[..sample.bytes].iter().filter(|cost| **cost != Cost::Nothing).count();
    assert!(lossy * 2 > sample.bytes, "most of it is records");
    eprintln!(
        "{later:?}: {bits} bits, one in {step} flipped, {} records held, {lossy} of {} bytes cost something",
        sample.drafts.len(),
        sample.bytes
    );
    let one = std::env::var("BIT").ok().map(|bit| bit.parse().expect("a number"));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for part in 0..threads {
            scope.spawn(move || {
                let mut image = Image::new(segment_bytes, later);
                let (first, end) = one.map_or((part * step, bits), |bit: usize| (bit + part, bit + 1));
                for bit in (first..end).step_by(threads * step) {
                    let case = std::panic::AssertUnwindSafe(|| image.check(bit));
                    let result = std::panic::catch_unwind(case);
                    assert!(
                        result.is_ok(),
                        "{later:?}, replay with: SEGMENT_BYTES={segment_bytes} BIT={bit} cargo test --test outbox_rot"
                    );
                }
            });
        }
    });
}

#[test]
pub(crate) fn a_flipped_bit_in_the_backlog_costs_what_it_hits_and_no_more() {
    rot(Later::NextSegment, 1);
}

#[test]
pub(crate) fn a_flipped_bit_in_the_newest_segment_costs_what_it_hits_and_no_more() {
    // One in three is enough for every day; 3 and 8 have no divisor in common.
    rot(Later::SameSegment, if std::env::var_os("SEGMENT_BYTES").is_some() { 1 } else { 3 });
}
