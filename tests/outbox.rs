//! The outbox against a simulated disk: random puts, commits, acks, kills and power cuts, with a model that knows
//! the exact truth. `SEED=n cargo test --test outbox` replays one seed, `SEEDS=n` runs so many.

use std::collections::BTreeMap;

use backhaul::config::{self, Overflow};
use backhaul::outbox::expiry::Clock;
use backhaul::outbox::sim_disk::{Fate, SimDisk};
use backhaul::outbox::{Config, Draft, LaneId, Outbox, PushError, Timer};
use backhaul::record::{Body, Fetch, Gap, Item, Offer, Why};
use backhaul::time::Instant;

const LANE: LaneId = LaneId(0);

fn config(segments: u64, overflow: Overflow) -> Config {
    let lane = config::Lane { bytes_max: segments * 16_384, overflow, ..config::Lane::default() };
    Config {
        segment_bytes: 16_384,
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

fn fetch(outbox: &mut Outbox<SimDisk>, from: u64) -> Vec<Item> {
    let offer = outbox.offers()[0].clone();
    fetch_of(outbox, &offer, from)
}

fn fetch_of(outbox: &mut Outbox<SimDisk>, offer: &Offer, from: u64) -> Vec<Item> {
    let (lane, epoch) = (offer.lane.clone(), offer.epoch);
    outbox.fetch(&Fetch { session: 1, lane, epoch, from, records_max: 1000, bytes_max: 1 << 20 })
}

fn texts(items: &[Item]) -> Vec<String> {
    let text = |item: &Item| match item {
        Item::Record(record) => String::from_utf8_lossy(record.body.as_bytes()).into_owned(),
        Item::Gap(gap) => format!("{}..={} {}", gap.from, gap.to, gap.why.as_str()),
    };
    items.iter().map(text).collect()
}

/// What the server stored of one epoch.
#[derive(Default)]
struct Stored {
    records: BTreeMap<u64, String>,
    acked: u64,
}

struct World {
    seed: u64,
    rng: fastrand::Rng,
    config: Config,
    outbox: Option<Outbox<SimDisk>>,
    opened: u64,
    puts: u64,
    /// Told committed: text by name.
    committed: BTreeMap<(u64, u64), String>,
    /// Ever put: text by name, the newest put of that name.
    named: BTreeMap<(u64, u64), String>,
    uncommitted: Vec<((u64, u64), String)>,
    server: BTreeMap<u64, Stored>,
    /// Reported as given up, by epoch.
    reported: Vec<(u64, Gap)>,
    full: u64,
    /// Epochs begun so that live records go ahead.
    lives: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let overflow = if rng.bool() { Overflow::DropOldest } else { Overflow::Reject };
        let mut config = config(rng.u64(2..6), overflow);
        if rng.bool() {
            config.lanes[0].live_share = 0.5;
            config.lanes[0].bytes_max += 2 * 16_384;
        }
        let mut world = Self {
            seed,
            rng,
            config,
            outbox: None,
            opened: 0,
            puts: 0,
            committed: BTreeMap::new(),
            named: BTreeMap::new(),
            uncommitted: Vec::new(),
            server: BTreeMap::new(),
            reported: Vec::new(),
            full: 0,
            lives: 0,
        };
        world.open(SimDisk::default());
        world
    }

    fn open(&mut self, disk: SimDisk) {
        self.opened += 1;
        let seed = self.seed * 1000 + self.opened;
        let (outbox, _) = Outbox::open(disk, &self.config, seed);
        let offers = outbox.offers();
        if self.rng.u8(..4) == 0 {
            let (again, _) = Outbox::open(outbox.into_disk(), &self.config, seed + 500);
            assert_eq!(again.offers(), offers, "opening twice gives the same");
            self.outbox = Some(again);
        } else {
            self.outbox = Some(outbox);
        }
        self.uncommitted.clear();
        self.welcome();
    }

    fn outbox(&mut self) -> &mut Outbox<SimDisk> {
        self.outbox.as_mut().expect("open between steps")
    }

    fn welcome(&mut self) {
        for offer in self.outbox().offers() {
            let acked = self.server.entry(offer.epoch).or_default().acked;
            assert!(acked <= offer.sent_max, "the agent knows all that it can have sent: {acked} {offer:?}");
            self.outbox().acked(&offer.lane, offer.epoch, acked, Instant::default());
        }
    }

    fn push(&mut self) {
        self.puts += 1;
        let bytes = *self.rng.choice([10, 100, 100, 1000, 4000].iter()).expect("not empty");
        let text = format!("{:0>bytes$}", self.puts);
        match self.outbox().push(LANE, draft(text.clone()), Instant::default()) {
            Ok(name) => {
                self.named.insert(name, text.clone());
                self.uncommitted.push((name, text));
            }
            Err(PushError::Full) => self.full += 1,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// False: the power went.
    fn commit(&mut self) -> bool {
        match self.outbox().commit(LANE) {
            Ok(()) => {
                for (name, text) in std::mem::take(&mut self.uncommitted) {
                    assert_eq!(self.committed.insert(name, text), None, "a name is given once");
                }
                true
            }
            Err(_) => false,
        }
    }

    fn deliver(&mut self) {
        for offer in self.outbox().offers() {
            let from = self.server.entry(offer.epoch).or_default().acked + 1;
            let fetch = Fetch {
                session: 1,
                lane: offer.lane.clone(),
                epoch: offer.epoch,
                from,
                records_max: self.rng.u32(1..50),
                bytes_max: 20_000,
            };
            let items = self.outbox().fetch(&fetch);
            for item in &items {
                self.store(offer.epoch, item);
            }
            let acked = self.server[&offer.epoch].acked;
            if self.rng.bool() {
                self.outbox().acked(&offer.lane, offer.epoch, acked, Instant::default());
            }
        }
    }

    /// A connection is about to begin, long after anything was put.
    fn begin_live(&mut self) {
        let logs = self.outbox().offers().len();
        self.outbox().handle_clock(Clock { boot: 2, boot_ms: 1, wall_ms: None, server_ms: None });
        let begun = self.outbox().begin_live().len();
        let now = self.outbox().offers().len();
        assert!(begun == 0 || now == 2, "two of this cause at most: {logs} logs, then {now}");
        self.lives += begun as u64;
    }

    fn store(&mut self, epoch: u64, item: &Item) {
        let stored = self.server.entry(epoch).or_default();
        assert_eq!(item.first(), stored.acked + 1, "contiguous");
        stored.acked = item.last();
        match item {
            Item::Record(record) => {
                let text = String::from_utf8_lossy(record.body.as_bytes()).into_owned();
                assert_eq!(self.named.get(&(epoch, record.seq)), Some(&text), "bytes equal, never another record");
                stored.records.insert(record.seq, text);
            }
            Item::Gap(gap) => {
                let promised = self.committed.range((epoch, gap.from)..=(epoch, gap.to)).count() as u64;
                match gap.why {
                    Why::Overflow => {
                        assert!(gap.count() >= promised, "no loss is silent: {gap:?}");
                        let put = self.named.range((epoch, gap.from)..=(epoch, gap.to)).count() as u64;
                        assert!(gap.count() <= put, "none is invented: {gap:?} {put}");
                        self.reported.push((epoch, *gap));
                    }
                    Why::Torn | Why::Unknown => assert_eq!(promised, 0, "promised records are not torn: {gap:?}"),
                    Why::Expired | Why::Corrupt | Why::Rejected | Why::Settled => panic!("{gap:?}"),
                }
            }
        }
    }

    fn power_cut(&mut self) {
        let mut disk = self.outbox.take().expect("open").into_disk();
        let kind = self.rng.u8(..4);
        let fate = move |rng: &mut fastrand::Rng| match kind {
            0 => Fate::Old,
            1 => Fate::New,
            _ => *rng.choice([Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff].iter()).expect("five"),
        };
        let mut rng = self.rng.fork();
        disk.power_cut(&mut rng, fate);
        if self.rng.u8(..4) == 0 {
            // The power goes again, in the middle of recovery.
            disk.cut_after = Some(disk.calls + self.rng.u64(..6));
            let (half, _) = Outbox::open(disk, &self.config, self.seed);
            disk = half.into_disk();
            disk.power_cut(&mut rng, fate);
        }
        self.open(disk);
    }

    fn step(&mut self) {
        match self.rng.u8(..104) {
            0..50 => self.push(),
            50..70 => assert!(self.commit(), "nothing fails while the power is on"),
            70..90 => self.deliver(),
            90..94 => {
                let mut disk = self.outbox.take().expect("open").into_disk();
                disk.kill();
                self.open(disk);
            }
            94..96 => self.power_cut(),
            96..100 => {
                // Power goes at one of the next calls, in the middle of a commit or an ack.
                let calls = self.rng.u64(..4);
                let disk = self.outbox().disk_mut();
                disk.cut_after = Some(disk.calls + calls);
                for _ in 0..self.rng.u8(1..5) {
                    self.push_blind();
                }
                if self.rng.u8(..4) == 0 {
                    self.begin_live();
                    self.push_blind();
                }
                self.commit();
                self.power_cut();
            }
            100..104 => self.begin_live(),
            104.. => unreachable!(),
        }
    }

    /// A push while the power may already be off: errors are no answer then.
    fn push_blind(&mut self) {
        self.puts += 1;
        let text = format!("{:0>100}", self.puts);
        if let Ok(name) = self.outbox().push(LANE, draft(text.clone()), Instant::default()) {
            self.named.insert(name, text.clone());
            self.uncommitted.push((name, text));
        }
    }

    fn finish(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "wedged: {:?}", self.outbox().lanes_status(None));
            assert!(self.commit());
            self.deliver();
            self.welcome();
            if self.outbox().offers().iter().all(|offer| offer.first == offer.next)
                && self.outbox().lanes_status(None)[0].depth == 0
            {
                break;
            }
        }
        let stored = |name: &(u64, u64)| self.server.get(&name.0).is_some_and(|s| s.records.contains_key(&name.1));
        let reported = |(epoch, seq): &(u64, u64)| {
            self.reported.iter().any(|(of, gap)| of == epoch && (gap.from..=gap.to).contains(seq))
        };
        for name in self.committed.keys() {
            assert!(stored(name) != reported(name), "every committed record is stored or reported: {name:?}");
        }
        let missing = self.committed.keys().filter(|name| !stored(name)).count();
        if self.config.lanes[0].overflow == Overflow::Reject {
            assert_eq!(missing, 0, "a lane that rejects loses nothing");
        }
    }
}

/// Seeds that failed once.
const MENDED: &[u64] = &[
    // The newest segment began behind a damaged first page. Once covered, it was taken for one in which a new lap had
    // begun: each start skipped further numbers.
    2633,
];

#[test]
pub(crate) fn nothing_committed_is_lost_and_nothing_invented_whatever_is_cut() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(400);
    let mut lives = 0;
    let standing = MENDED.iter().copied().filter(|_| one.is_none());
    for seed in one.map_or(0..seeds, |seed: u64| seed..seed + 1).chain(standing) {
        let result = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..400 {
                world.step();
            }
            world.finish();
            world.lives
        });
        lives += result.unwrap_or_else(|_| panic!("replay with: SEED={seed} cargo test --test outbox whatever_is_cut"));
    }
    assert!(one.is_some() || lives > seeds, "live epochs begin, too: {lives}");
}

#[test]
fn what_was_committed_is_there_after_a_restart_in_order() {
    let config = config(8, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    for n in 0..100 {
        outbox.push(LANE, draft(format!("record {n}")), Instant::default()).expect("room");
        if n % 7 == 0 {
            outbox.commit(LANE).expect("a disk that works");
        }
    }
    outbox.commit(LANE).expect("a disk that works");
    let before = texts(&fetch(&mut outbox, 1));
    assert_eq!(before, (0..100).map(|n| format!("record {n}")).collect::<Vec<_>>());
    let (mut again, report) = Outbox::open(outbox.into_disk(), &config, 2);
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(texts(&fetch(&mut again, 1)), before);
}

#[test]
fn an_ordinary_start_writes_nothing() {
    let config = config(4, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    outbox.push(LANE, draft("one".into()), Instant::default()).expect("room");
    outbox.commit(LANE).expect("a disk that works");
    let disk = outbox.into_disk();
    let image = disk.image();
    let (outbox, _) = Outbox::open(disk, &config, 2);
    assert_eq!(outbox.flash_status().bytes_written, 0);
    assert_eq!(outbox.into_disk().image(), image);
}

#[test]
fn a_full_lane_that_rejects_says_so_and_goes_on_when_acks_come() {
    let config = config(2, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    let mut taken = 0;
    while outbox.push(LANE, draft("x".repeat(1000)), Instant::default()).is_ok() {
        outbox.commit(LANE).expect("what was taken has room");
        taken += 1;
        assert!(taken < 100);
    }
    let offer = outbox.offers()[0].clone();
    assert_eq!(fetch(&mut outbox, 1).len(), taken);
    // All acks are in RAM only: nothing was written since.
    outbox.acked(&offer.lane, offer.epoch, taken as u64, Instant::default());
    for _ in 0..50 {
        outbox.push(LANE, draft("more".into()), Instant::default()).expect("the lane goes on");
        outbox.commit(LANE).expect("room");
        let (epoch, seq) = outbox.committed(LANE);
        outbox.fetch(&Fetch { session: 1, lane: offer.lane.clone(), epoch, from: seq, records_max: 9, bytes_max: 9 });
        outbox.acked(&offer.lane, epoch, seq, Instant::default());
    }
}

#[test]
pub(crate) fn what_a_failing_disk_did_not_take_is_not_called_committed() {
    let config = config(8, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    let put = |text: &str, outbox: &mut Outbox<SimDisk>| {
        outbox.push(LANE, draft(text.into()), Instant::default()).expect("room")
    };
    let (epoch, first) = put("first", &mut outbox);
    outbox.commit(LANE).expect("a disk that works");
    // One failed sync is made good in another segment; of the next commit both attempts fail.
    outbox.disk_mut().sync_failures = 1;
    let (_, second) = put("second", &mut outbox);
    outbox.commit(LANE).expect("the second segment takes it");
    outbox.disk_mut().sync_failures = 2;
    let (_, third) = put("third", &mut outbox);
    assert_eq!(outbox.commit(LANE), Err(PushError::Degraded));
    let told = [first, second, third].map(|seq| outbox.is_committed(LANE, epoch, seq));
    assert_eq!(told, [true, true, false]);
    // The disk works again, and is tried when it is time.
    let (in_ram, _) = put("fourth", &mut outbox);
    assert_eq!(outbox.commit(LANE), Err(PushError::Degraded));
    let (retry_at, timer) = outbox.poll_timeout().expect("it is tried again");
    assert_eq!(timer, Timer::Storage);
    outbox.handle_timeout(retry_at);
    let (again, fifth) = put("fifth", &mut outbox);
    outbox.commit(LANE).expect("the disk works again");
    assert!(outbox.is_committed(LANE, again, fifth));
    assert!(epoch != in_ram && in_ram != again && again != epoch, "no number means two things");
    let mut disk = outbox.into_disk();
    disk.power_cut(&mut fastrand::Rng::with_seed(1), |_| Fate::Old);
    let (mut outbox, _) = Outbox::open(disk, &config, 2);
    let held: Vec<Vec<String>> = outbox.offers().iter().map(|offer| texts(&fetch_of(&mut outbox, offer, 1))).collect();
    assert_eq!(held, [vec!["first", "second"], vec!["third", "fourth", "fifth"]]);
}

#[test]
fn a_full_lane_that_drops_counts_every_record_in_a_gap() {
    let config = config(3, Overflow::DropOldest);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    for n in 0..100 {
        outbox.push(LANE, draft(format!("{n:0>1000}")), Instant::default()).expect("a lane that drops takes all");
        outbox.commit(LANE).expect("a disk that works");
    }
    let items = fetch(&mut outbox, 1);
    let Some(Item::Gap(gap)) = items.first() else { panic!("{items:?}") };
    assert_eq!((gap.from, gap.why), (1, Why::Overflow));
    assert_eq!(gap.count() + items.len() as u64 - 1, 100);
    assert_eq!(outbox.lanes_status(None)[0].overflowed, gap.count());
    assert_eq!(outbox.lanes_status(None)[0].depth, 100 - gap.count());
    let offer = outbox.offers()[0].clone();
    outbox.acked(&offer.lane, offer.epoch, gap.to, Instant::default());
    assert_eq!(outbox.lanes_status(None)[0].overflowed, gap.count(), "an acked gap is a loss that is known");
    let (mut again, _) = Outbox::open(outbox.into_disk(), &config, 2);
    assert_eq!(fetch(&mut again, 1), items, "the loss is on flash");
}

#[test]
fn what_had_left_before_it_was_given_up_and_is_acked_was_not_lost() {
    let config = config(2, Overflow::DropOldest);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    let mut put = 0;
    while outbox.lanes_status(None)[0].overflowed == 0 {
        // Each record leaves before the next one comes; no ack does.
        fetch(&mut outbox, put.max(1));
        outbox.push(LANE, draft(format!("{put:0>1000}")), Instant::default()).expect("a lane that drops takes all");
        outbox.commit(LANE).expect("a disk that works");
        put += 1;
    }
    let offer = outbox.offers()[0].clone();
    outbox.acked(&offer.lane, offer.epoch, put, Instant::default());
    assert_eq!(outbox.lanes_status(None)[0].overflowed, 0);
}

#[test]
pub(crate) fn a_copied_image_begins_a_new_epoch_and_numbers_from_one() {
    let config = config(3, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    for n in 0..5 {
        outbox.push(LANE, draft(format!("{n}")), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
    }
    let before = outbox.offers()[0].clone();
    fetch(&mut outbox, 1);
    outbox.acked(&before.lane, before.epoch, 2, Instant::default());
    outbox.flush();
    let other = Config { device: "another".into(), ..config };
    let (mut copy, report) = Outbox::open(outbox.into_disk(), &other, 2);
    assert!(report.copied_image);
    let offer = copy.offers()[0].clone();
    assert_ne!(offer.epoch, before.epoch);
    assert_eq!((offer.first, offer.next), (1, 4));
    assert_eq!(texts(&fetch(&mut copy, 1)), ["2", "3", "4"]);
    let (copy, report) = Outbox::open(copy.into_disk(), &other, 3);
    assert!(!report.copied_image);
    assert_eq!(copy.offers()[0].epoch, offer.epoch);
}

#[test]
fn on_another_board_new_records_begin_an_epoch_and_what_waits_keeps_its_names() {
    let config = config(8, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    for n in 0..5 {
        outbox.push(LANE, draft(format!("{n}")), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
    }
    let before = outbox.offers()[0].clone();
    fetch(&mut outbox, 1);
    outbox.acked(&before.lane, before.epoch, 2, Instant::default());
    outbox.flush();
    let image = outbox.into_disk();
    let mut epochs = vec![before.epoch];
    for (board, seed) in [("/a", 2), ("/b", 3)] {
        let other = Config { machine: board.into(), ..config.clone() };
        let (mut copy, report) = Outbox::open(image.clone(), &other, seed);
        assert!(report.copied_image);
        let (epoch, seq) = copy.push(LANE, draft(board.into()), Instant::default()).expect("room");
        copy.commit(LANE).expect("a disk that works");
        assert!(!epochs.contains(&epoch), "no other board has it");
        epochs.push(epoch);
        assert_eq!(seq, 1);
        let (copy, report) = Outbox::open(copy.into_disk(), &other, seed + 10);
        assert!(!report.copied_image, "once");
        let offers = copy.offers();
        let named: Vec<_> = offers.iter().map(|offer| (offer.epoch, offer.first, offer.next)).collect();
        assert_eq!(named, [(before.epoch, 3, 6), (epoch, 1, 2)], "what waits is what it was");
    }
}

#[test]
fn on_one_board_after_another_what_waits_keeps_its_names_though_nothing_new_was_put() {
    let config = config(8, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    for n in 0..5 {
        outbox.push(LANE, draft(format!("{n}")), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
    }
    let before = outbox.offers()[0].clone();
    fetch(&mut outbox, 1);
    outbox.acked(&before.lane, before.epoch, 2, Instant::default());
    outbox.flush();
    let mut disk = outbox.into_disk();
    let mut epochs = vec![before.epoch];
    // The machine's id alone, as a root has it that draws one at each boot; then boards.
    for (seed, machine) in ["m", "n", "n/a", "n/b"].into_iter().enumerate() {
        let other = Config { machine: machine.into(), ..config.clone() };
        let (outbox, report) = Outbox::open(disk, &other, 2 + seed as u64);
        assert!(report.copied_image && report.moved);
        let offers = outbox.offers();
        let named: Vec<_> = offers.iter().map(|offer| (offer.epoch, offer.first, offer.next)).collect();
        assert_eq!((named.len(), named[0], (named[1].1, named[1].2)), (2, (before.epoch, 3, 6), (1, 1)), "{machine}");
        assert!(!epochs.contains(&named[1].0), "{machine}: no other board has it");
        epochs.push(named[1].0);
        disk = outbox.into_disk();
    }
}

#[test]
fn on_another_board_a_lane_without_room_for_two_numbers_all_anew_and_loses_nothing() {
    let config = config(2, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    let mut put = 0;
    while outbox.push(LANE, draft(format!("{put:0>1000}")), Instant::default()).is_ok() {
        outbox.commit(LANE).expect("a disk that works");
        put += 1;
    }
    let before = outbox.offers()[0].clone();
    let other = Config { machine: "/a".into(), ..config };
    let (mut copy, report) = Outbox::open(outbox.into_disk(), &other, 2);
    assert!(report.copied_image);
    let offer = copy.offers()[0].clone();
    assert_ne!(offer.epoch, before.epoch);
    assert_eq!(texts(&fetch(&mut copy, 1)).len(), put);
}

#[test]
fn a_lane_without_an_intact_header_is_reported_and_begins_anew() {
    let config = config(3, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    outbox.push(LANE, draft("gone".into()), Instant::default()).expect("room");
    outbox.commit(LANE).expect("a disk that works");
    let epoch = outbox.offers()[0].epoch;
    let mut disk = outbox.into_disk();
    disk.damage("telemetry.0000.seg", |bytes| bytes.fill(0xa5));
    let (mut outbox, report) = Outbox::open(disk, &config, 2);
    assert_eq!(report.lost_lanes.iter().map(|lane| lane.as_str()).collect::<Vec<_>>(), ["telemetry"]);
    assert_ne!(outbox.offers()[0].epoch, epoch);
    outbox.push(LANE, draft("new".into()), Instant::default()).expect("room");
    outbox.commit(LANE).expect("a disk that works");
    assert_eq!(texts(&fetch(&mut outbox, 1)), ["new"]);
}

#[test]
fn any_bytes_in_the_folder_give_a_working_outbox() {
    let config = config(3, Overflow::DropOldest);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
    for n in 0..60 {
        outbox.push(LANE, draft(format!("{n:0>500}")), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
    }
    let image = outbox.into_disk().image();
    for seed in 0..3000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut disk = SimDisk::from_image(image.clone());
        for name in image.keys() {
            disk.damage(name, |bytes| {
                for _ in 0..rng.usize(..4) {
                    let (from, len) = (rng.usize(..bytes.len()), rng.usize(1..6000));
                    let to = (from + len).min(bytes.len());
                    match rng.u8(..4) {
                        0 => rng.fill(&mut bytes[from..to]),
                        1 => bytes[from..to].fill(0),
                        2 => bytes[from] ^= 1 << rng.u8(..8),
                        _ => {
                            let other = rng.usize(..=bytes.len() - (to - from));
                            bytes.copy_within(from..to, other);
                        }
                    }
                }
            });
        }
        let (mut outbox, _) = Outbox::open(disk, &config, seed);
        outbox.push(LANE, draft("after".into()), Instant::default()).expect("it takes records");
        outbox.commit(LANE).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        let offer = outbox.offers()[0].clone();
        let mut last = String::new();
        let mut from = offer.first;
        while from < offer.next {
            let items = fetch(&mut outbox, from);
            let Some(item) = items.last() else { panic!("seed {seed}: stuck at {from} of {offer:?}") };
            from = item.last() + 1;
            last = texts(&items).pop().expect("not empty");
        }
        assert_eq!(last, "after", "seed {seed}");
    }
}

#[test]
fn a_lane_that_is_not_configured_any_more_is_drained_then_removed() {
    let old = config(3, Overflow::Reject);
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &old, 1);
    outbox.push(LANE, draft("left over".into()), Instant::default()).expect("room");
    outbox.commit(LANE).expect("a disk that works");
    let mut new = old;
    new.lanes[0].name = backhaul::record::LaneName::try_new("other").expect("a name");
    let (mut outbox, _) = Outbox::open(outbox.into_disk(), &new, 2);
    assert!(outbox.lane(Some("telemetry")).is_none(), "it accepts nothing");
    let offer = outbox.offers()[1].clone();
    let fetch =
        Fetch { session: 1, lane: offer.lane.clone(), epoch: offer.epoch, from: 1, records_max: 9, bytes_max: 99 };
    assert_eq!(texts(&outbox.fetch(&fetch)), ["left over"]);
    outbox.acked(&offer.lane, offer.epoch, 1, Instant::default());
    assert_eq!(outbox.offers().len(), 1);
    let image = outbox.into_disk().image();
    assert!(image.keys().all(|name| !name.starts_with("telemetry")), "{:?}", image.keys());
}

/// Opens what a kill left of making a segment, commits into it, and cuts the power: the file must still be there.
#[test]
fn what_is_committed_after_a_kill_lies_in_a_file_that_the_folder_knows() {
    let config = config(2, Overflow::DropOldest);
    for (before, calls) in (0..4).flat_map(|before| (0..6).map(move |calls| (before, calls))) {
        let (mut outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
        for n in 0..before {
            outbox.push(LANE, draft(format!("{n}")), Instant::default()).expect("room");
            outbox.commit(LANE).expect("a disk that works");
        }
        let disk = outbox.disk_mut();
        disk.cut_after = Some(disk.calls + calls);
        let _ = outbox.push(LANE, draft("while it is killed".into()), Instant::default());
        let _ = outbox.commit(LANE);
        let mut disk = outbox.into_disk();
        disk.kill();
        let (mut outbox, _) = Outbox::open(disk, &config, 2);
        let (_, seq) = outbox.push(LANE, draft("committed".into()), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
        let mut disk = outbox.into_disk();
        disk.power_cut(&mut fastrand::Rng::with_seed(1), |_| Fate::Old);
        let (mut outbox, _) = Outbox::open(disk, &config, 3);
        let found = texts(&fetch(&mut outbox, seq));
        assert_eq!(found.first().map(String::as_str), Some("committed"), "{before} before, killed at call {calls}");
    }
}

/// A start in doubt on a disk that takes nothing: what it skips and gives up is reported when storage is back.
#[test]
fn what_could_not_be_reserved_at_the_start_is_when_storage_is_back() {
    let small = Config { segment_bytes: 8192, ..config(1, Overflow::DropOldest) };
    let (mut outbox, _) = Outbox::open(SimDisk::default(), &small, 1);
    outbox.push(LANE, draft("promised".into()), Instant::default()).expect("room");
    outbox.commit(LANE).expect("a disk that works");
    let disk = outbox.disk_mut();
    disk.cut_after = Some(disk.calls + 1);
    outbox.push(LANE, draft("torn".into()), Instant::default()).expect("room");
    let _ = outbox.commit(LANE);
    let mut disk = outbox.into_disk();
    disk.power_cut(&mut fastrand::Rng::with_seed(1), |_| Fate::Garbage);
    disk.read_only = true;
    let (mut outbox, _) = Outbox::open(disk, &small, 2);
    outbox.push(LANE, draft("in RAM".into()), Instant::default()).expect("kept in RAM");
    assert_eq!(outbox.commit(LANE), Err(PushError::Degraded));
    outbox.disk_mut().read_only = false;
    for _ in 0..20 {
        let Some((at, _)) = outbox.poll_timeout() else { break };
        outbox.handle_timeout(at);
    }
    for offer in outbox.offers() {
        let named = Fetch {
            session: 1,
            lane: offer.lane.clone(),
            epoch: offer.epoch,
            from: offer.first,
            records_max: 1000,
            bytes_max: 1 << 20,
        };
        assert!(!outbox.fetch(&named).is_empty() || offer.sent_max == 0, "nothing leaves of {offer:?}");
    }
    let accounted = outbox.offers().iter().map(|offer| offer.next - offer.first).max();
    assert!(accounted > Some(65_536), "what was skipped is on offer: {:?}", outbox.offers());
}

/// A log that was drained and closed while storage failed may be found again at the next start; then it must still
/// know what it sent, or the server's ack looks like someone else's and its records go up once more.
#[test]
fn a_closed_log_that_is_found_again_knows_what_it_sent() {
    let small = Config { segment_bytes: 8192, ..config(1, Overflow::DropOldest) };
    for (puts, calls) in (1..5).flat_map(|puts| (1..10).map(move |calls| (puts, calls))) {
        let (mut outbox, _) = Outbox::open(SimDisk::default(), &small, 1);
        for n in 0..puts {
            outbox.push(LANE, draft(format!("{n}")), Instant::default()).expect("room");
            outbox.commit(LANE).expect("a disk that works");
        }
        let old = outbox.offers()[0].clone();
        fetch(&mut outbox, old.first);
        outbox.disk_mut().read_only = true;
        outbox.push(LANE, draft("in RAM".into()), Instant::default()).expect("kept in RAM");
        assert_eq!(outbox.commit(LANE), Err(PushError::Degraded));
        let acked = old.next - 1;
        outbox.acked(&old.lane, old.epoch, acked, Instant::default());
        let (at, _) = outbox.poll_timeout().expect("storage is tried again");
        let disk = outbox.disk_mut();
        (disk.read_only, disk.cut_after) = (false, Some(disk.calls + calls));
        outbox.handle_timeout(at);
        let mut disk = outbox.into_disk();
        disk.kill();
        let (outbox, _) = Outbox::open(disk, &small, 2);
        for offer in outbox.offers().iter().filter(|offer| offer.epoch == old.epoch) {
            assert!(acked <= offer.sent_max, "{puts} puts, acked up to {acked}, killed at call {calls}: {offer:?}");
        }
    }
}

const SEGMENT_TWO: (&str, usize) = ("telemetry.0001.seg", 0);

/// Two segments and a piece of the third, a record a page, as texts.
fn filled(config: &Config) -> (SimDisk, Vec<String>) {
    let (mut outbox, _) = Outbox::open(SimDisk::default(), config, 1);
    let mut put = Vec::new();
    let mut n = 0;
    while outbox.disk_mut().image().len() < 2 || n % 5 != 0 {
        n += 1;
        put.push(format!("record {n}"));
        outbox.push(LANE, draft(put[n - 1].clone()), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
    }
    (outbox.into_disk(), put)
}

#[test]
fn a_read_that_fails_at_a_start_and_then_works_destroys_nothing() {
    let config = config(8, Overflow::Reject);
    for failures in 1..6 {
        let (mut disk, put) = filled(&config);
        let image = disk.image();
        disk.read_failures.insert((SEGMENT_TWO.0.into(), SEGMENT_TWO.1), failures);
        let (mut outbox, _) = Outbox::open(disk, &config, 2);
        if failures == 1 {
            assert_eq!(texts(&fetch(&mut outbox, 1)), put, "it is read once more");
        }
        let mut disk = outbox.into_disk();
        assert!(disk.image() == image, "{failures} failures, and something was written");
        disk.read_failures.clear();
        let (mut outbox, report) = Outbox::open(disk, &config, 3);
        assert_eq!((texts(&fetch(&mut outbox, 1)), report.notes), (put, vec![]), "{failures} failures");
    }
}

#[test]
fn what_is_put_after_a_read_failed_at_the_start_is_found_when_reads_work_again() {
    let config = config(8, Overflow::Reject);
    for failures in 1..8 {
        let (disk, put) = filled(&config);
        let (mut outbox, _) = Outbox::open(disk, &config, 2);
        while outbox.disk_mut().image().len() < 3 {
            outbox.push(LANE, draft("more".into()), Instant::default()).expect("room");
            outbox.commit(LANE).expect("a disk that works");
        }
        // The first two segments are covered, and the next header says so.
        let offer = outbox.offers()[0].clone();
        fetch(&mut outbox, offer.first);
        outbox.acked(&offer.lane, offer.epoch, offer.next - 1, Instant::default());
        outbox.push(LANE, draft("covers".into()), Instant::default()).expect("room");
        outbox.commit(LANE).expect("a disk that works");
        let mut disk = outbox.into_disk();
        // The last turn: as long as the process runs.
        let failures = if failures == 7 { u32::MAX } else { failures };
        disk.read_failures.insert((SEGMENT_TWO.0.into(), SEGMENT_TWO.1), failures);
        let (mut outbox, _) = Outbox::open(disk, &config, 3);
        for n in 0..3 {
            outbox.push(LANE, draft(format!("after {n}")), Instant::default()).expect("room");
            outbox.commit(LANE).expect("a disk that works");
        }
        let mut disk = outbox.into_disk();
        disk.read_failures.clear();
        let (mut outbox, _) = Outbox::open(disk, &config, 4);
        let first = outbox.offers()[0].first;
        let found = texts(&fetch(&mut outbox, first));
        let records: Vec<_> = found.iter().filter(|text| !text.contains("..=")).collect();
        assert_eq!(records, ["covers", "after 0", "after 1", "after 2"], "{failures} failures after {}", put.len());
    }
}
