//! What is done to the outbox between two cuts: one letter an operation. The driver does it to the real outbox and to
//! the model alike, and notes the disk at every call that leaves something pending.

use std::io;
use std::rc::Rc;

use backhaul::config::Overflow;
use backhaul::outbox::disk::{Disk, Entry};
use backhaul::outbox::expiry::Clock;
use backhaul::outbox::format::{Header, PAGE_BYTES, PAYLOAD_BYTES, Place};
use backhaul::outbox::sim_disk::{Fate, SimDisk};
use backhaul::outbox::{Config, Draft, LaneId, Outbox, PushError};
use backhaul::record::{Body, Fetch, Item, Offer, Why};
use backhaul::time::Instant;

use super::model::{Found, Model, text};

const LANE: LaneId = LaneId(0);

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Puts a record that takes two sectors with its header.
    Small,
    /// Puts a record that takes each sector of a page.
    Medium,
    /// Puts a record of two pages.
    Large,
    /// Commits.
    Commit,
    /// Everything that may leave leaves and is stored; half of what is not acked yet is acked.
    Ack,
    /// Commits so often that the next batch needs the next segment.
    Rotate,
    /// The process dies and starts again.
    Reopen,
    /// The power goes in the middle of a commit, any sectors get through, and the process starts again.
    Cut,
    /// A connection is about to begin, long after anything was put: what is live goes on in an epoch of its own.
    Live,
}

impl Op {
    /// Those whose strings are enumerated.
    pub const ALPHABET: [Self; 8] =
        [Self::Small, Self::Medium, Self::Large, Self::Commit, Self::Ack, Self::Rotate, Self::Reopen, Self::Live];

    /// Its letter.
    pub const fn letter(self) -> char {
        match self {
            Self::Small => 's',
            Self::Medium => 'm',
            Self::Large => 'l',
            Self::Commit => 'c',
            Self::Ack => 'a',
            Self::Rotate => 'r',
            Self::Reopen => 'o',
            Self::Cut => 'x',
            Self::Live => 'v',
        }
    }

    /// The operation of a letter.
    pub fn from_letter(letter: char) -> Option<Self> {
        Self::ALPHABET.into_iter().chain([Self::Cut]).find(|op| op.letter() == letter)
    }
}

/// Reads a string of operations.
pub fn parse(letters: &str) -> Vec<Op> {
    letters.chars().map(|letter| Op::from_letter(letter).unwrap_or_else(|| panic!("no operation {letter}"))).collect()
}

/// A disk that is copied after each call that leaves something pending.
#[derive(Default)]
pub struct Recorder {
    /// The disk.
    pub disk: SimDisk,
    /// Its copies, while `recording`.
    pub copies: Vec<SimDisk>,
    /// Whether they are wanted.
    pub recording: bool,
    /// It says that it has synced and has not.
    lies: bool,
}

impl Recorder {
    /// On this disk.
    pub fn new(disk: SimDisk, recording: bool, lies: bool) -> Self {
        Self { disk, copies: Vec::new(), recording, lies }
    }

    fn note(&mut self, result: io::Result<()>) -> io::Result<()> {
        if self.recording && self.disk.has_doubts() {
            self.copies.push(self.disk.clone());
        }
        result
    }
}

impl Disk for Recorder {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        self.disk.list()
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(name, offset, buf)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let result = self.disk.write_at(name, offset, bytes);
        self.note(result)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let result = if self.lies { Ok(()) } else { self.disk.sync(name) };
        self.note(result)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let result = self.disk.sync_dir();
        self.note(result)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let result = self.disk.remove(name);
        self.note(result)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

/// A moment at which the power may go.
pub struct Moment {
    /// The disk then.
    pub disk: SimDisk,
    /// What was promised by then.
    pub model: Rc<Model>,
}

/// An outbox and its model.
pub struct Driver {
    /// The outbox; `None` only while it is opened.
    outbox: Option<Outbox<Recorder>>,
    /// The truth.
    pub model: Model,
    config: Config,
    /// Seeds what outbox and cuts draw: the same history is the same image.
    seed: u64,
    opened: u64,
    /// The moments of the operations since [`Driver::record`].
    pub moments: Vec<Moment>,
}

impl Driver {
    /// Opens what lies on `disk`.
    pub fn open(disk: Recorder, model: Model, config: &Config, seed: u64) -> Self {
        let config = config.clone();
        let mut driver = Self { outbox: None, model, config, seed, opened: 0, moments: Vec::new() };
        driver.start(disk);
        driver
    }

    /// From now on the moments are noted.
    pub fn record(&mut self) {
        self.outbox().disk_mut().recording = true;
    }

    /// Does it.
    pub fn run(&mut self, op: Op) {
        match op {
            Op::Small => self.push(20),
            Op::Medium => self.push(3_000),
            Op::Large => self.push(6_000),
            Op::Commit => self.commit(),
            Op::Ack => self.ack(),
            Op::Rotate => self.rotate(),
            Op::Reopen => {
                let disk = self.stop();
                self.start(disk);
            }
            Op::Cut => self.cut(),
            Op::Live => self.live(),
        }
    }

    /// Ends the process; the disk is as reads see it.
    pub fn stop(&mut self) -> Recorder {
        let mut disk = self.outbox.take().expect("open between operations").into_disk();
        disk.disk.kill();
        disk
    }

    fn outbox(&mut self) -> &mut Outbox<Recorder> {
        self.outbox.as_mut().expect("open between operations")
    }

    fn next_seed(&mut self) -> u64 {
        self.opened += 1;
        self.seed * 1000 + self.opened
    }

    fn start(&mut self, disk: Recorder) {
        let seed = self.next_seed();
        let (mut looked, _) = Outbox::open(disk.disk.clone(), &self.config, seed);
        let found = look(&mut looked);
        self.model.check(&found);
        self.model.on_restart(&found);
        let (outbox, _) = Outbox::open(disk, &self.config, seed);
        self.outbox = Some(outbox);
        self.model.drops |= self.config.lanes[0].overflow == Overflow::DropOldest;
        let before = self.model.clone();
        self.note(before);
        self.welcome();
    }

    /// The server says up to where it has everything.
    fn welcome(&mut self) {
        for offer in self.outbox().offers() {
            let log = self.model.log_mut(offer.epoch);
            log.heard = log.heard.max(log.server);
            let stored = log.server;
            let before = self.model.clone();
            self.outbox().acked(&offer.lane, offer.epoch, stored, Instant::default());
            self.note(before);
        }
    }

    fn push(&mut self, bytes: u32) {
        self.model.puts += 1;
        let draft = draft(text(self.model.puts, bytes));
        let before = self.model.clone();
        let result = self.outbox().push(LANE, draft, Instant::default());
        self.note(before);
        match result {
            Ok((epoch, seq)) => self.model.on_put(epoch, seq, bytes),
            Err(PushError::Full) => {
                let rejects = self.config.lanes[0].overflow == Overflow::Reject;
                assert!(rejects, "a lane that drops is never full");
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn commit(&mut self) {
        let before = self.model.clone();
        let (result, wrote) = self.commit_outbox();
        assert_eq!(result, Ok(()), "the disk works");
        self.model.on_committed(wrote);
        self.note(before);
    }

    /// Commits; whether that wrote anything.
    fn commit_outbox(&mut self) -> (Result<(), PushError>, bool) {
        let before = self.outbox().disk_mut().disk.calls;
        let result = self.outbox().commit(LANE);
        (result, self.outbox().disk_mut().disk.calls > before)
    }

    fn ack(&mut self) {
        for offer in self.outbox().offers() {
            let from = self.model.log_mut(offer.epoch).server + 1;
            let items = fetch(self.outbox(), &offer, from);
            let Some(last) = items.last() else { continue };
            self.model.on_left(offer.epoch, &items);
            let log = self.model.log_mut(offer.epoch);
            log.server = last.last();
            log.heard += (log.server - log.heard).div_ceil(2);
            let acked = log.heard;
            let before = self.model.clone();
            self.outbox().acked(&offer.lane, offer.epoch, acked, Instant::default());
            self.note(before);
        }
    }

    fn rotate(&mut self) {
        for _ in 0..4 {
            if is_newest_full(&self.outbox().disk_mut().disk) {
                break;
            }
            self.push(3_000);
            self.commit();
        }
    }

    fn cut(&mut self) {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ ((self.opened + 1) * 0x9e37_79b9));
        self.push(3_000);
        let disk = &mut self.outbox().disk_mut().disk;
        disk.cut_after = Some(disk.calls + rng.u64(1..4));
        let before = self.model.clone();
        if let (Ok(()), wrote) = self.commit_outbox() {
            self.model.on_committed(wrote);
        }
        self.note(before);
        // What it was about to give up may be given up.
        if self.model.drops {
            self.model.logs.iter_mut().for_each(|log| log.floor_max = u64::MAX);
        }
        let mut disk = self.stop();
        let any = [Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff];
        disk.disk.power_cut(&mut rng, |rng| any[rng.usize(..any.len())]);
        self.start(disk);
    }

    fn live(&mut self) {
        self.commit();
        let before = self.model.clone();
        self.outbox().handle_clock(Clock { boot: 2, boot_ms: 1, wall_ms: None, server_ms: None });
        let begun = self.outbox().begin_live().len();
        if let (1.., Some(offer)) = (begun, self.outbox().offers().last()) {
            self.model.log_mut(offer.epoch);
        }
        self.note(before);
    }

    /// The moments of what was just done, during which no more was promised than `before`; and the one now.
    fn note(&mut self, before: Model) {
        self.bound_floor();
        if !self.outbox().disk_mut().recording {
            return;
        }
        let copies = std::mem::take(&mut self.outbox().disk_mut().copies);
        if copies.is_empty() {
            return;
        }
        let mut before = before;
        for log in &mut before.logs {
            log.floor_max = self.model.logs.iter().find(|now| now.epoch == log.epoch).map_or(0, |now| now.floor_max);
        }
        let before = Rc::new(before);
        self.moments.extend(copies.into_iter().map(|disk| Moment { disk, model: before.clone() }));
        if self.outbox().disk_mut().disk.has_doubts() {
            let disk = self.outbox().disk_mut().disk.clone();
            self.moments.push(Moment { disk, model: Rc::new(self.model.clone()) });
        }
    }

    /// How far a full lane has given up, by what a start would find.
    fn bound_floor(&mut self) {
        if !self.model.drops {
            return;
        }
        let mut disk = self.outbox().disk_mut().disk.clone();
        disk.kill();
        let (mut looked, _) = Outbox::open(disk, &self.config, self.seed);
        for offer in looked.offers() {
            let items = fetch(&mut looked, &offer, offer.first);
            let overflow = |item: &&Item| match item {
                Item::Gap(gap) => gap.why == Why::Overflow,
                Item::Record(_) => false,
            };
            let floor = items.iter().filter(overflow).map(Item::last).max().unwrap_or(0);
            let log = self.model.log_mut(offer.epoch);
            log.floor_max = log.floor_max.max(floor);
        }
    }
}

/// The record with this text.
pub fn draft(text: String) -> Draft {
    Draft { at: Some(1), boot: 1, boot_ms: 1, ttl_s: 0, topic: "t".into(), key: None, body: Body::Text(text) }
}

/// All that an outbox holds.
pub fn look<D: Disk>(outbox: &mut Outbox<D>) -> Found {
    outbox
        .offers()
        .into_iter()
        .map(|offer| {
            let items = fetch(outbox, &offer, offer.first);
            (offer, items)
        })
        .collect()
}

fn fetch<D: Disk>(outbox: &mut Outbox<D>, offer: &Offer, from: u64) -> Vec<Item> {
    let (lane, epoch) = (offer.lane.clone(), offer.epoch);
    outbox.fetch(&Fetch { session: 1, lane, epoch, from, records_max: 1000, bytes_max: 1 << 20 })
}

/// Whether the next batch goes to another segment than the newest one.
fn is_newest_full(disk: &SimDisk) -> bool {
    let mut newest = (0, 0, 0);
    for (name, bytes) in disk.image() {
        let Some(segment) = name.rsplit('.').nth(1).and_then(|number| number.parse().ok()) else { continue };
        for (page, chunk) in (0..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            if let Some(header) = Header::decode(&chunk[..PAYLOAD_BYTES], Place { segment, page }) {
                newest = newest.max((header.lap, page + header.pages(), bytes.len() / PAGE_BYTES));
            }
        }
    }
    let (_, end, pages) = newest;
    end as usize + 1 >= pages
}
