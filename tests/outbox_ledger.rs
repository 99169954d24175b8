//! The loss ledger: whatever is dropped, expires, is damaged or refused while the power goes again and again, each
//! committed record ends in exactly one place: stored, refused by the server, or covered by one gap of the right
//! cause. `SEED=n cargo test --test outbox_ledger` replays one seed, `SEEDS=n` runs so many.

#[path = "support/dead_letters.rs"]
#[expect(dead_code, reason = "headers are another test's")]
mod dead_letters;

use std::collections::{BTreeMap, BTreeSet};

use backhaul::config::{self, Commit, Overflow};
use backhaul::outbox::dead::with_dead_letters;
use backhaul::outbox::expiry::Clock;
use backhaul::outbox::sim_disk::{Fate, SimDisk};
use backhaul::outbox::{Config, Draft, LaneId, Outbox, PushError};
use backhaul::record::{Body, Fetch, Gap, Item, LaneName, Offer, Why};
use backhaul::status;
use backhaul::time::{CLOCK_SET_FLOOR_MS, Instant};

const LANE: LaneId = LaneId(0);
const SEGMENT_BYTES: u32 = 16_384;

/// A record's epoch and number.
type Name = (u64, u64);

/// What is known of one put.
#[derive(Clone)]
struct Put {
    draft: Draft,
    committed: bool,
    /// Its bytes on flash were damaged.
    damaged: bool,
}

/// Where a record has ended at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stored,
    Refused,
    Given(Why),
}

/// What the server has of one epoch.
#[derive(Default)]
struct Stored {
    ends: BTreeMap<u64, End>,
    taken: u64,
}

struct World {
    rng: fastrand::Rng,
    config: Config,
    outbox: Option<Outbox<SimDisk>>,
    seed: u64,
    opened: u64,
    clock: Clock,
    /// Unix ms at boot: what a clock would show if it were set.
    boot_at: u64,
    puts: BTreeMap<Name, Put>,
    texts: u64,
    uncommitted: Vec<Name>,
    /// Of no known name.
    moved: Vec<Put>,
    server: BTreeMap<u64, Stored>,
    /// Seen by this process: it counts each once.
    expired: BTreeSet<Name>,
    corrupt: BTreeSet<Name>,
    rejected: BTreeSet<Name>,
    /// The newest keyed put that is committed: key, name, starts since.
    keyed: Option<(String, Name, u64)>,
    keys_found: u64,
    /// The upstream is there; while it is not, lanes fill up.
    up: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let overflow = if rng.bool() { Overflow::DropOldest } else { Overflow::Reject };
        let commit = if rng.u8(..3) == 0 { Commit::RamFirst } else { Commit::Sync };
        let bytes_max = rng.u64(3..7) * u64::from(SEGMENT_BYTES);
        let lane = config::Lane { bytes_max, overflow, commit, ttl_s: 100, ..config::Lane::default() };
        let config = Config {
            segment_bytes: SEGMENT_BYTES,
            headroom_bytes_min: 0,
            record_bytes_max: 4096,
            lanes: with_dead_letters(&[lane], 4 << 20),
            device: "test".into(),
            machine: String::new(),
        };
        let boot_at = CLOCK_SET_FLOOR_MS + 1_000_000_000;
        let clock = Clock { boot: 1, boot_ms: 5000, wall_ms: Some(boot_at + 5000), server_ms: None };
        let mut world = Self {
            rng,
            config,
            outbox: None,
            seed,
            opened: 0,
            clock,
            boot_at,
            puts: BTreeMap::new(),
            texts: 0,
            uncommitted: Vec::new(),
            moved: Vec::new(),
            server: BTreeMap::new(),
            expired: BTreeSet::new(),
            corrupt: BTreeSet::new(),
            rejected: BTreeSet::new(),
            keyed: None,
            keys_found: 0,
            up: true,
        };
        world.open(SimDisk::default());
        world
    }

    fn open(&mut self, disk: SimDisk) {
        self.opened += 1;
        let (outbox, _) = Outbox::open(disk, &self.config, self.seed * 1000 + self.opened);
        self.outbox = Some(outbox);
        for seen in [&mut self.expired, &mut self.corrupt, &mut self.rejected] {
            seen.clear();
        }
        self.uncommitted.clear();
        if let Some((_, _, starts)) = &mut self.keyed {
            *starts += 1;
        }
        let clock = self.clock;
        self.outbox().handle_clock(clock);
        self.welcome();
    }

    fn outbox(&mut self) -> &mut Outbox<SimDisk> {
        self.outbox.as_mut().expect("open between steps")
    }

    fn status(&mut self) -> status::Lane {
        self.outbox().lanes_status(None)[0].clone()
    }

    /// A new session: what was acked before, and every refusal of what is still held.
    fn welcome(&mut self) {
        for offer in self.outbox().offers() {
            self.refusals(&offer);
            let taken = self.server.entry(offer.epoch).or_default().taken;
            self.ack(&offer, taken);
        }
    }

    fn refusals(&mut self, offer: &Offer) {
        let stored = self.server.entry(offer.epoch).or_default();
        let refused = stored.ends.range(offer.first..).filter(|(_, end)| **end == End::Refused);
        let refused: Vec<u64> = refused.map(|(seq, _)| *seq).collect();
        for seq in refused {
            // The upstream tells of each once a process.
            if self.rejected.insert((offer.epoch, seq)) {
                self.outbox().rejected(&offer.lane, offer.epoch, seq, "schema");
            }
        }
    }

    fn ack(&mut self, offer: &Offer, seq: u64) {
        self.outbox().acked(&offer.lane, offer.epoch, seq, Instant::default());
    }

    fn draft(&mut self) -> Draft {
        self.texts += 1;
        let bytes = *self.rng.choice([10, 100, 1000, 3000].iter()).expect("four");
        let key = (self.rng.u8(..3) == 0).then(|| format!("key {}", self.texts));
        Draft {
            at: self.clock.wall_ms,
            boot: self.clock.boot,
            boot_ms: self.clock.boot_ms,
            ttl_s: *self.rng.choice([0, 20, 5000].iter()).expect("three"),
            topic: "t".into(),
            key,
            body: Body::Text(format!("<{:0>bytes$}>", self.texts)),
        }
    }

    fn push(&mut self) {
        let mut draft = self.draft();
        match self.outbox().push(LANE, draft.clone(), Instant::default()) {
            Ok(name) => {
                draft.ttl_s = if draft.ttl_s == 0 { 100 } else { draft.ttl_s };
                let put = Put { draft, committed: false, damaged: false };
                let before = self.puts.insert(name, put);
                assert!(before.is_none_or(|before| !before.committed), "a number is given twice: {name:?}");
                self.uncommitted.push(name);
            }
            Err(error) => assert_eq!(error, PushError::Full),
        }
    }

    fn commit(&mut self) {
        let all = self.outbox().commit(LANE).is_ok();
        for name in std::mem::take(&mut self.uncommitted) {
            if !self.outbox().is_committed(LANE, name.0, name.1) {
                assert!(!all, "{name:?} was to be committed");
                // Burnt, or in RAM only, under a name that the outbox alone knows.
                self.moved.extend(self.puts.remove(&name));
                continue;
            }
            let put = self.puts.get_mut(&name).expect("it was put");
            put.committed = true;
            if let Some(key) = put.draft.key.clone() {
                self.keyed = Some((key, name, 0));
            }
        }
    }

    /// The answer was lost: the newest keyed put comes again.
    fn put_again(&mut self) {
        let Some((key, name, starts)) = self.keyed.clone() else { return };
        let ended = self.server.get(&name.0).and_then(|stored| stored.ends.get(&name.1)).copied();
        let newer = self.puts.range((name.0, name.1 + 1)..=(name.0, u64::MAX)).count();
        // Only the newest segments are read at a start, and each power cut may begin one with a header.
        if ended.is_some_and(|end| end != End::Stored) || starts > 1 || starts == 1 && newer > 0 {
            return;
        }
        let draft = Draft { key: Some(key), ..self.draft() };
        match self.outbox().push(LANE, draft.clone(), Instant::default()) {
            Ok(again) if again == name => self.keys_found += 1,
            Ok(other) => {
                // Given up meanwhile, and nobody has heard of it yet: then it is a record of its own.
                let put = Put { draft: Draft { ttl_s: draft.ttl_s.max(1), ..draft }, committed: false, damaged: false };
                assert!(self.given_up(name), "{name:?} was forgotten, now {other:?}");
                self.puts.insert(other, put);
                self.uncommitted.push(other);
                self.keyed = None;
            }
            Err(error) => {
                assert_eq!(error, PushError::Full);
                assert!(self.given_up(name), "{name:?} was forgotten, and the lane is full");
            }
        }
    }

    /// The outbox says in a gap that this record will never come.
    fn given_up(&mut self, name: Name) -> bool {
        let Some(offer) = self.outbox().offers().into_iter().find(|offer| offer.epoch == name.0) else { return true };
        let fetch = fetch(&offer, name.1, 1);
        matches!(self.outbox().fetch(&fetch).first(), Some(Item::Gap(_)) | None)
    }

    /// Sends, and sometimes the acks come through.
    fn deliver(&mut self) {
        let clock = self.clock;
        self.outbox().handle_clock(clock);
        for offer in self.outbox().offers() {
            let from = self.server.entry(offer.epoch).or_default().taken + 1;
            let records_max = self.rng.u32(1..40);
            for item in self.outbox().fetch(&fetch(&offer, from, records_max)) {
                self.take(&offer, &item);
            }
            self.check_counters();
            if self.rng.u8(..3) > 0 {
                self.refusals(&offer);
                let taken = self.server[&offer.epoch].taken;
                self.ack(&offer, taken);
            }
        }
    }

    fn take(&mut self, offer: &Offer, item: &Item) {
        let (epoch, clock) = (offer.epoch, self.clock);
        let stored = self.server.entry(epoch).or_default();
        assert_eq!(item.first(), stored.taken + 1, "contiguous");
        match item {
            Item::Record(record) => {
                let moved = self.moved.iter().position(|put| put.draft.body == record.body);
                if let Some(index) = moved {
                    self.puts.insert((epoch, record.seq), self.moved.swap_remove(index));
                }
                let put = &self.puts[&(epoch, record.seq)];
                assert_eq!(record.body, put.draft.body, "never another record");
                assert!(!clock.has_expired(&put.draft), "too old: {record:?}");
                if self.rng.u8(..30) == 0 {
                    // Refused here: too large for this server, say.
                    self.outbox().refuse(&offer.lane, epoch, record.seq, "too large");
                    self.rejected.insert((epoch, record.seq));
                    return self.take(offer, &Item::Gap(Gap { from: record.seq, to: record.seq, why: Why::Rejected }));
                }
                let refused = self.rng.u8(..20) == 0;
                let stored = self.server.entry(epoch).or_default();
                stored.ends.insert(record.seq, if refused { End::Refused } else { End::Stored });
                stored.taken = record.seq;
            }
            Item::Gap(gap) => {
                stored.taken = gap.to;
                // Of numbers that were skipped, 65,536 at a time, only those that a record had.
                let seqs: Vec<u64> = match gap.why.counts() {
                    true => (gap.from..=gap.to).collect(),
                    false => self.puts.range((epoch, gap.from)..=(epoch, gap.to)).map(|(name, _)| name.1).collect(),
                };
                stored.ends.extend(seqs.iter().map(|seq| (*seq, End::Given(gap.why))));
                seqs.into_iter().for_each(|seq| self.check_given((epoch, seq), gap.why));
            }
        }
    }

    /// A gap has the right cause for each of its numbers.
    fn check_given(&mut self, name: Name, why: Why) {
        let put = self.puts.get(&name);
        match why {
            Why::Expired => {
                let put = put.unwrap_or_else(|| panic!("{name:?} expired and was never put"));
                assert!(self.expired.contains(&name) || self.clock.has_expired(&put.draft), "{name:?} was not old");
                self.expired.insert(name);
            }
            Why::Corrupt => {
                assert!(put.is_some_and(|put| put.damaged), "{name:?} was not damaged");
                self.corrupt.insert(name);
            }
            Why::Torn | Why::Unknown => {
                let promised = put.is_some_and(|put| put.committed && !put.damaged);
                assert!(!promised, "{name:?} was promised, and is {why:?}");
            }
            Why::Overflow => assert!(put.is_some(), "{name:?} is counted and was never put"),
            Why::Rejected => {}
            Why::Settled => panic!("nothing was forgotten: {name:?}"),
        }
    }

    fn check_counters(&mut self) {
        let status = self.status();
        let truth = [self.expired.len(), self.corrupt.len(), self.rejected.len()].map(|count| count as u64);
        assert_eq!([status.expired, status.corrupt, status.rejected], truth, "expired, corrupt, rejected");
    }

    /// One bit of a record on flash.
    fn damage(&mut self) {
        let offers = self.outbox().offers();
        let held = |name: &Name| offers.iter().any(|offer| offer.epoch == name.0 && name.1 >= offer.first);
        let held: Vec<Name> =
            self.puts.iter().filter(|(name, put)| put.committed && held(name)).map(|(n, _)| *n).collect();
        let Some(name) = self.rng.choice(&held).copied() else { return };
        let text = self.puts[&name].draft.body.as_bytes().to_vec();
        let image = self.outbox().disk_mut().image();
        for (file, bytes) in image.iter().filter(|(file, _)| file.starts_with("telemetry")) {
            // Whole in one page, or not at all.
            if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
                self.outbox().disk_mut().damage(file, |bytes| bytes[at + text.len() / 2] ^= 1);
                self.puts.get_mut(&name).expect("chosen among them").damaged = true;
            }
        }
    }

    fn restart(&mut self) {
        let mut disk = self.outbox.take().expect("open").into_disk();
        if self.rng.bool() {
            disk.kill();
            self.pass(1);
        } else {
            let fates = [Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff];
            let mut rng = self.rng.fork();
            disk.power_cut(&mut rng, |rng| *rng.choice(fates.iter()).expect("five"));
            // Another boot, after a time that no one measured but a clock that is set, if it is.
            let gone_ms = self.rng.u64(..50_000);
            self.boot_at += self.clock.boot_ms + gone_ms;
            self.clock.boot += 1;
            self.clock.boot_ms = self.rng.u64(1000..10_000);
            self.clock.wall_ms = self.rng.bool().then_some(self.boot_at + self.clock.boot_ms);
        }
        self.open(disk);
    }

    /// Time passes; the clock may get set.
    fn pass(&mut self, s: u64) {
        self.clock.boot_ms += s * 1000;
        let set = self.clock.wall_ms.is_some() || self.rng.u8(..10) == 0;
        self.clock.wall_ms = set.then_some(self.boot_at + self.clock.boot_ms);
    }

    fn step(&mut self) {
        if self.rng.u8(..50) == 0 {
            self.up = !self.up;
        }
        match self.rng.u8(..100) {
            0..45 => self.push(),
            45..60 => self.commit(),
            60..66 => self.put_again(),
            66..84 if self.up => self.deliver(),
            66..84 => self.push(),
            84..90 => {
                let s = self.rng.u64(..15);
                self.pass(s);
            }
            90..92 => self.damage(),
            92..95 => {
                // In the middle of a commit or an ack.
                let calls = self.rng.u64(..5);
                let disk = self.outbox().disk_mut();
                disk.cut_after = Some(disk.calls + calls);
                self.push();
                let _ = self.outbox().commit(LANE);
                self.deliver_blind();
                self.restart();
            }
            95..97 => self.restart(),
            97.. => self.commit(),
        }
    }

    /// Acks arrive while the power goes.
    fn deliver_blind(&mut self) {
        for offer in self.outbox().offers() {
            self.refusals(&offer);
            let taken = self.server.entry(offer.epoch).or_default().taken;
            self.ack(&offer, taken);
        }
    }

    fn finish(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "wedged: {:?}", self.status());
            self.commit();
            self.deliver();
            self.welcome();
            let drained = self.outbox().offers().iter().all(|offer| offer.first == offer.next);
            if drained && self.status().depth == 0 {
                break;
            }
        }
        self.check_counters();
        for (name, put) in self.puts.iter().filter(|(_, put)| put.committed) {
            let end = self.server.get(&name.0).and_then(|stored| stored.ends.get(&name.1));
            let fair = match end {
                Some(End::Stored | End::Refused | End::Given(Why::Expired | Why::Rejected)) => true,
                Some(End::Given(Why::Overflow)) => self.config.lanes[0].overflow == Overflow::DropOldest,
                Some(End::Given(Why::Corrupt | Why::Unknown | Why::Torn)) => put.damaged,
                Some(End::Given(Why::Settled)) | None => false,
            };
            assert!(fair, "{name:?} {} ends as {end:?}", put.damaged);
        }
        self.check_letters();
    }

    /// Every refused record has one letter, with its own text.
    fn check_letters(&mut self) {
        let mut letters = BTreeMap::new();
        for (key, text) in dead_letters::on(self.outbox().disk_mut()) {
            let name = key.split(' ').next().unwrap_or_default().to_owned();
            assert_eq!(letters.insert(name, text), None, "a second letter: {key}");
        }
        let lane = LaneName::try_new("telemetry").expect("a name");
        for (epoch, stored) in &self.server {
            for (seq, end) in &stored.ends {
                let letter = letters.get(&format!("{lane}/{epoch}/{seq}"));
                let put = self.puts.get(&(*epoch, *seq));
                if let (Some(letter), Some(put)) = (letter, put) {
                    assert_eq!(letter.as_bytes(), put.draft.body.as_bytes());
                }
                let refused = matches!(end, End::Refused | End::Given(Why::Rejected));
                // What was given up or damaged between its sending and its refusal cannot be read any more.
                let readable = put.is_some_and(|put| put.committed && !put.damaged)
                    && self.config.lanes[0].overflow == Overflow::Reject
                    && self.config.lanes[0].commit == Commit::Sync;
                assert!(!refused || !readable || letter.is_some(), "no letter for {epoch}/{seq}");
            }
        }
    }
}

fn fetch(offer: &Offer, from: u64, records_max: u32) -> Fetch {
    Fetch { session: 1, lane: offer.lane.clone(), epoch: offer.epoch, from, records_max, bytes_max: 20_000 }
}

#[test]
fn every_committed_record_ends_in_exactly_one_place() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(800);
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    let mut keys_found = 0;
    for seed in one.map_or(0..seeds, |seed: u64| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..500 {
                world.step();
            }
            world.finish();
            world
        });
        let Ok(world) = result else {
            panic!("replay with: SEED={seed} cargo test --test outbox_ledger");
        };
        keys_found += world.keys_found;
        for end in world.server.values().flat_map(|stored| stored.ends.values()) {
            *ends.entry(format!("{end:?}")).or_default() += 1;
        }
    }
    eprintln!("{ends:?}, found by key: {keys_found}");
    let seen = |end: &str| ends.get(end).is_some_and(|count| *count > 100);
    let all = ["Stored", "Refused", "Given(Expired)", "Given(Overflow)", "Given(Rejected)"];
    assert!(one.is_some() || seeds < 800 || all.into_iter().all(seen) && keys_found > 100, "not all of it was tried");
}
