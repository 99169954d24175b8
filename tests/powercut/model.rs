//! The truth about one lane: what was put, told, sent and acked under which name, whatever lies on flash. It knows no
//! disk; a state of the campaign is an image and one of these.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use backhaul::record::{Gap, Item, Offer, Record, Why};

/// One put record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seat {
    /// Its number of put: stands in its text.
    pub put: u32,
    /// Length of its text.
    pub bytes: u32,
    /// In which commit it went.
    pub commit: u32,
    /// Its producer heard `committed`.
    pub told: bool,
    /// It left the gateway.
    pub left: bool,
}

/// One numbering of the lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    /// Its epoch.
    pub epoch: u64,
    /// Who sits at which seq. What a cut took has no seat any more.
    pub seats: BTreeMap<u64, Seat>,
    /// Seqs that left as a gap.
    pub gaps_left: Vec<(u64, u64)>,
    /// Everything up to here is stored upstream.
    pub server: u64,
    /// Everything up to here the agent knows to be stored upstream.
    pub heard: u64,
    /// Everything up to here stands as acked in a header on flash, at least.
    pub durable_acked: u64,
    /// Nothing above this was given up for want of room.
    pub floor_max: u64,
}

/// One lane's truth.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Model {
    /// Oldest first.
    pub logs: Vec<Log>,
    /// Records put.
    pub puts: u32,
    /// Commits asked for.
    pub commits: u32,
    /// Names given out that nobody was told of yet.
    pub pending: Vec<(u64, u64)>,
    /// The lane gives up its oldest when it is full, or did under an earlier configuration.
    pub drops: bool,
    /// Damaged pages: what lay there may be missing.
    pub media_faults: u32,
}

/// One log as it was found: its offer and everything behind it.
pub type Found = Vec<(Offer, Vec<Item>)>;

/// Digits of a put's number at the end of its text.
const DIGITS: usize = 10;
/// What texts are filled up with.
static FILL: [u8; 9_000] = [b'0'; 9_000];

/// The text of a put: its number, filled up to its length.
pub fn text(put: u32, bytes: u32) -> String {
    let mut text = "0".repeat((bytes as usize).saturating_sub(DIGITS));
    text.push_str(&format!("{put:0>10}"));
    text
}

fn is_text(record: &Record, seat: &Seat) -> bool {
    let Some((fill, digits)) = record.body.as_bytes().split_last_chunk::<DIGITS>() else { return false };
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit.wrapping_sub(b'0')));
    let filled = fill.len() + DIGITS == seat.bytes as usize && *fill == FILL[..fill.len()];
    filled && number == u64::from(seat.put) && record.topic == "t" && record.at == Some(1)
}

impl Model {
    /// Nothing was put yet.
    pub fn new() -> Self {
        Self { logs: Vec::new(), puts: 0, commits: 0, pending: Vec::new(), drops: false, media_faults: 0 }
    }

    /// What tells states with the same image apart.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Nothing was promised and nothing left, ever.
    pub fn is_unused(&self) -> bool {
        !self.logs.iter().any(Log::is_used)
    }

    /// The log of this epoch, which may be new.
    pub fn log_mut(&mut self, epoch: u64) -> &mut Log {
        let index = self.logs.iter().position(|log| log.epoch == epoch).unwrap_or_else(|| {
            self.logs.push(Log {
                epoch,
                seats: BTreeMap::new(),
                gaps_left: Vec::new(),
                server: 0,
                heard: 0,
                durable_acked: 0,
                floor_max: 0,
            });
            self.logs.len() - 1
        });
        &mut self.logs[index]
    }

    /// A record was taken under this name.
    pub fn on_put(&mut self, epoch: u64, seq: u64, bytes: u32) {
        let (put, commit) = (self.puts, self.commits);
        let log = self.log_mut(epoch);
        log.assert_unused(seq);
        log.seats.insert(seq, Seat { put, bytes, commit, told: false, left: false });
        self.pending.push((epoch, seq));
    }

    /// Everything taken was told committed. If the commit `wrote`, its header carried the acks: full batches went to
    /// flash before, perhaps before the acks came.
    pub fn on_committed(&mut self, wrote: bool) {
        for (epoch, seq) in std::mem::take(&mut self.pending) {
            let log = self.log_mut(epoch);
            if wrote {
                log.durable_acked = log.heard;
            }
            log.seats.get_mut(&seq).expect("a seat was given").told = true;
        }
        self.commits += 1;
    }

    /// These left the gateway.
    pub fn on_left(&mut self, epoch: u64, items: &[Item]) {
        let log = self.log_mut(epoch);
        for item in items {
            match item {
                Item::Record(record) => log.seats.get_mut(&record.seq).expect("checked").left = true,
                Item::Gap(gap) => log.gaps_left.push((gap.from, gap.to)),
            }
        }
    }

    /// The process is gone; what was found then is what there is. It may have told no one, but it is on flash.
    pub fn on_restart(&mut self, found: &Found) {
        self.pending.clear();
        self.commits += 1;
        for (offer, items) in found {
            let log = self.log_mut(offer.epoch);
            let mut seats: BTreeMap<u64, Seat> =
                log.seats.range(..offer.first).map(|(seq, seat)| (*seq, *seat)).collect();
            for item in items {
                let (from, to) = (item.first(), item.last());
                let kept = log.seats.range(from..=to).map(|(seq, seat)| (*seq, *seat));
                match item {
                    Item::Record(_) => seats.extend(kept.map(|(seq, seat)| (seq, Seat { told: true, ..seat }))),
                    Item::Gap(gap) if gap.why == Why::Overflow => seats.extend(kept),
                    Item::Gap(_) => {}
                }
            }
            log.seats = seats;
            log.heard = offer.first - 1;
        }
        self.logs.retain(|log| log.is_used() || found.iter().any(|(offer, _)| offer.epoch == log.epoch));
    }

    /// Looks at everything that was found after a start: nothing promised is missing, nothing is invented.
    pub fn check(&self, found: &Found) {
        for (offer, items) in found {
            let Some(log) = self.logs.iter().find(|log| log.epoch == offer.epoch) else {
                // Cut in the middle of its beginning it may be in doubt, but it holds nothing.
                let nothing = |item: &Item| match item {
                    Item::Record(_) => false,
                    Item::Gap(gap) => !gap.why.counts(),
                };
                let new = items.iter().all(nothing) && offer.first == 1;
                assert!(new, "a log that is not ours holds something: {offer:?}");
                continue;
            };
            let acked = offer.first - 1;
            assert!(acked <= log.heard, "an ack is invented: {offer:?}, heard {}", log.heard);
            assert!(
                acked >= log.durable_acked || self.media_faults > 0,
                "more copies than acks since the last header: {offer:?}, on flash {}",
                log.durable_acked
            );
            assert!(log.server <= offer.sent_max, "it forgot what it sent: {offer:?}, stored {}", log.server);
            let mut next = offer.first;
            for item in items {
                assert_eq!(item.first(), next, "contiguous in {offer:?}");
                next = item.last() + 1;
                match item {
                    Item::Record(record) => log.check_record(record),
                    Item::Gap(gap) => log.check_gap(gap, self),
                }
            }
            assert_eq!(next, offer.next, "what is offered comes: {offer:?}");
        }
        for (index, log) in self.logs.iter().enumerate() {
            let offer = found.iter().map(|(offer, _)| offer).find(|offer| offer.epoch == log.epoch);
            let newest = index + 1 == self.logs.len();
            if let Some((seq, seat)) = log.seats.iter().rev().find(|(_, seat)| seat.told || seat.left) {
                let drained = *seq <= log.heard && !newest;
                let there = offer.is_some_and(|offer| offer.next > *seq);
                assert!(there || drained, "promised and not there: {seq} of {} {seat:?}, {offer:?}", log.epoch);
            }
        }
    }
}

impl Log {
    fn is_used(&self) -> bool {
        self.seats.values().any(|seat| seat.told || seat.left) || !self.gaps_left.is_empty()
    }

    /// A name that is given out belongs to no one else.
    pub fn assert_unused(&self, seq: u64) {
        let seat = self.seats.range(seq..).next();
        assert!(seat.is_none(), "{seq} of {} is given again: {seat:?}", self.epoch);
        let gap = self.gaps_left.iter().find(|(_, to)| *to >= seq);
        assert!(gap.is_none(), "{seq} of {} left as a gap: {gap:?}", self.epoch);
        assert!(seq > self.server, "{seq} of {} is stored upstream as another: {}", self.epoch, self.server);
    }

    fn check_record(&self, record: &Record) {
        let Some(seat) = self.seats.get(&record.seq) else { panic!("{} of {} was never put", record.seq, self.epoch) };
        assert!(is_text(record, seat), "{} of {} is not what was put: {seat:?}", record.seq, self.epoch);
        let gap = self.gaps_left.iter().find(|(from, to)| (*from..=*to).contains(&record.seq));
        assert!(gap.is_none(), "{} of {} left as a gap: {gap:?}", record.seq, self.epoch);
    }

    fn check_gap(&self, gap: &Gap, model: &Model) {
        let seats = || self.seats.range(gap.from..=gap.to);
        match gap.why {
            Why::Overflow => {
                assert!(model.drops, "a lane that rejects gives nothing up: {gap:?}");
                assert!(gap.to <= self.floor_max, "given up without need: {gap:?}, at most {}", self.floor_max);
                assert_eq!(seats().count() as u64, gap.count(), "a loss is invented: {gap:?}");
            }
            Why::Torn | Why::Unknown => {
                let promised = seats().find(|(_, seat)| seat.told || seat.left);
                assert!(promised.is_none() || model.media_faults > 0, "{gap:?} holds {promised:?}");
            }
            Why::Corrupt if model.media_faults > 0 => {}
            Why::Expired | Why::Corrupt | Why::Rejected | Why::Settled => panic!("nothing happened to {gap:?}"),
        }
    }
}
