//! Traces that broke an earlier draft of the design, step by step: each is the shortest that an explicit-state model
//! of one lane, its flash, the wire and the server had found.

use backhaul::config::Overflow;
use backhaul::outbox::format::{Header, PAGE_BYTES, PAYLOAD_BYTES, Place};
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::outbox::{Config, Draft, LaneId, Outbox};
use backhaul::record::{Body, Fetch, Gap, Item, Offer, Why};
use backhaul::time::Instant;

use crate::world::outbox_config;

const LANE: LaneId = LaneId(0);

/// One lane that is opened again and again.
struct Lane {
    config: Config,
    outbox: Outbox<SimDisk>,
    starts: u64,
}

impl Lane {
    fn new(segments: u64, overflow: Overflow) -> Self {
        let config = outbox_config(segments, overflow);
        let (outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
        Self { config, outbox, starts: 1 }
    }

    fn put(&mut self) -> u64 {
        let body = Body::Text("x".repeat(100));
        let draft = Draft { at: None, boot: 1, boot_ms: 1, ttl_s: 0, topic: String::new(), key: None, body };
        let (_, seq) = self.outbox.push(LANE, draft, Instant::default()).expect("room");
        self.outbox.commit(LANE).expect("a disk that works");
        seq
    }

    fn offer(&self) -> Offer {
        self.outbox.offers()[0].clone()
    }

    /// Sends everything from `from` on.
    fn send(&mut self, from: u64) -> Vec<Item> {
        let Offer { lane, epoch, .. } = self.offer();
        self.outbox.fetch(&Fetch { session: 1, lane, epoch, from, records_max: 999, bytes_max: 1 << 20 })
    }

    fn ack(&mut self, seq: u64) {
        let Offer { lane, epoch, .. } = self.offer();
        self.outbox.acked(&lane, epoch, seq, Instant::default());
    }

    /// The process dies; `media` happens while it is down.
    fn restart(self, media: impl FnOnce(&mut SimDisk)) -> Self {
        let mut disk = self.outbox.into_disk();
        disk.kill();
        media(&mut disk);
        let starts = self.starts + 1;
        let (outbox, _) = Outbox::open(disk, &self.config, starts);
        Self { outbox, starts, ..self }
    }
}

/// Where the lane's batches lie, in the order in which they were written.
fn batches(disk: &SimDisk) -> Vec<(String, usize, Header)> {
    let mut found = Vec::new();
    for (name, bytes) in disk.image() {
        let Some(number) = name.split('.').nth(1).and_then(|number| number.parse().ok()) else { continue };
        for (page, bytes) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
            let place = Place { segment: number, page: page as u32 };
            if let Some(header) = Header::decode(&bytes[..PAYLOAD_BYTES], place) {
                found.push((name.clone(), page, header));
            }
        }
    }
    found.sort_by_key(|(_, page, header)| (header.lap, *page));
    found
}

fn damage_newest(disk: &mut SimDisk) {
    let (name, page, _) = batches(disk).pop().expect("a batch");
    disk.damage(&name, |bytes| bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].fill(0xa5));
}

#[test]
fn one_damaged_page_loses_neither_the_epoch_nor_a_number_that_left() {
    let mut lane = Lane::new(4, Overflow::Reject);
    let last = lane.put();
    assert_eq!(lane.send(1).len() as u64, last, "two headers stand: the record may leave");
    let epoch = lane.offer().epoch;
    let mut lane = lane.restart(damage_newest);
    assert_eq!(lane.offer().epoch, epoch);
    assert!(lane.offer().sent_max >= last);
    assert!(lane.put() > last, "the number of the damaged record is not given again");
    let why = |item: &Item| matches!(item, Item::Gap(Gap { why: Why::Unknown, from: 1, .. }));
    assert!(why(&lane.send(1)[0]), "behind a damaged tail promised records may be among the skipped ones");
}

#[test]
fn a_number_leaves_only_when_two_synced_headers_reserve_it() {
    let mut lane = Lane::new(4, Overflow::Reject);
    let headers = batches(lane.outbox.disk_mut());
    assert_eq!(headers.len(), 1, "an epoch begins with an empty batch");
    assert_eq!((headers[0].2.count, headers[0].2.reserved), (0, 65_536));
    lane.put();
    let headers = batches(lane.outbox.disk_mut());
    assert!(headers.iter().all(|(_, _, header)| header.reserved >= 1) && headers.len() == 2);
    assert_eq!(lane.send(1).len(), 1);
}

#[test]
fn a_damaged_first_page_of_the_segment_due_next_puts_the_tail_in_doubt() {
    let mut lane = Lane::new(2, Overflow::Reject);
    while batches(lane.outbox.disk_mut()).last().is_none_or(|(_, _, header)| header.lap < 2) {
        let seq = lane.put();
        lane.send(seq);
        lane.ack(seq);
    }
    // The newest batch stands alone at the start of a segment whose damage leaves only what is acked.
    let last = lane.put();
    lane.send(last);
    let newest = |disk: &SimDisk| batches(disk).pop().expect("a batch").2.lap;
    let lap = newest(lane.outbox.disk_mut());
    let mut lane = lane.restart(|disk| {
        let of_lap = batches(disk).into_iter().filter(|(_, _, header)| header.lap == lap);
        for (name, page, _) in of_lap.collect::<Vec<_>>() {
            disk.damage(&name, |bytes| bytes[page * PAGE_BYTES..(page + 1) * PAGE_BYTES].fill(0xa5));
        }
    });
    // Damage took the newest acks, too; the server still knows them.
    lane.ack(last - 1);
    assert!(lane.put() > last, "a number that left is not given again");
}

#[test]
fn an_ack_that_covers_half_of_what_was_given_up_leaves_an_exact_count() {
    let mut lane = Lane::new(2, Overflow::DropOldest);
    let mut last = 0;
    while !matches!(lane.send(1).first(), Some(Item::Gap(_))) {
        last = lane.put();
    }
    let Item::Gap(gap) = lane.send(1)[0] else { panic!("just seen") };
    assert!(gap.to >= 2 && gap.to < last);
    let half = gap.to / 2;
    lane.ack(half);
    let mut lane = lane.restart(|_| ());
    let from = lane.offer().first;
    let Item::Gap(rest) = lane.send(from)[0] else { panic!("the rest is still to be reported") };
    // The ack was in RAM only: the start may know less than was acked, never more.
    assert_eq!((rest.to, rest.why), (gap.to, Why::Overflow));
    assert_eq!(rest.count(), gap.to + 1 - from);
}

#[test]
fn what_was_given_up_does_not_come_back() {
    let mut lane = Lane::new(2, Overflow::DropOldest);
    while !matches!(lane.send(1).first(), Some(Item::Gap(_))) {
        lane.put();
    }
    let before = lane.send(1);
    let mut lane = lane.restart(|_| ());
    assert_eq!(lane.send(1), before);
}

#[test]
fn first_is_what_was_never_acked_not_what_is_still_held() {
    let mut lane = Lane::new(2, Overflow::DropOldest);
    while !matches!(lane.send(1).first(), Some(Item::Gap(_))) {
        lane.put();
    }
    assert_eq!(lane.offer().first, 1, "else the server's 0 would look like a lost state");
    let lane = lane.restart(|_| ());
    assert_eq!(lane.offer().first, 1);
}

#[test]
fn a_skipped_range_stays_what_it_was_through_restarts_and_later_damage() {
    let mut lane = Lane::new(8, Overflow::Reject);
    lane.put();
    let mut lane = lane.restart(damage_newest);
    lane.put();
    let before = lane.send(1);
    let Item::Gap(gap) = before[0] else { panic!("{before:?}") };
    assert_eq!((gap.from, gap.why), (1, Why::Unknown));
    let lane = lane.restart(|_| ());
    // The newest header goes, and with it what it said of the range: an older one says it, too.
    let mut lane = lane.restart(damage_newest);
    lane.put();
    let after = lane.send(1);
    let Item::Gap(again) = after[0] else { panic!("{after:?}") };
    assert_eq!((again.from, again.why), (1, Why::Unknown));
    assert!(again.to >= gap.to, "it may only grow");
}

#[test]
fn an_acked_gap_is_never_above_what_the_next_start_knows_to_have_sent() {
    let mut lane = Lane::new(4, Overflow::Reject);
    lane.put();
    let mut lane = lane.restart(damage_newest);
    let items = lane.send(1);
    let acked = items.last().map_or(0, Item::last);
    assert!(acked > 0, "the gap may leave: two headers say it");
    let lane = lane.restart(|_| ());
    assert!(lane.offer().sent_max >= acked, "rule 7 must not fire although nothing was cloned");
}

#[test]
fn a_full_lane_with_a_torn_spare_page_goes_on() {
    let mut lane = Lane::new(2, Overflow::DropOldest);
    while !matches!(lane.send(1).first(), Some(Item::Gap(_))) {
        lane.put();
    }
    let mut lane = lane.restart(|disk| {
        for number in 0..2 {
            disk.damage(&format!("telemetry.{number:04}.seg"), |bytes| bytes[3 * PAGE_BYTES..].fill(0xa5));
        }
    });
    let before = lane.offer().next;
    for _ in 0..20 {
        lane.put();
    }
    assert!(lane.offer().next >= before + 20);
}

#[test]
fn a_new_epoch_for_a_full_lane_leaves_although_there_is_one_page() {
    let mut lane = Lane::new(2, Overflow::Reject);
    let draft = Draft {
        at: None,
        boot: 1,
        boot_ms: 1,
        ttl_s: 0,
        topic: String::new(),
        key: None,
        body: Body::Text("x".repeat(3000)),
    };
    while lane.outbox.push(LANE, draft.clone(), Instant::default()).is_ok() {
        lane.outbox.commit(LANE).expect("room");
    }
    let old = lane.offer();
    lane.outbox.renumber(&old.lane, old.epoch);
    let new = lane.offer();
    assert_ne!(new.epoch, old.epoch);
    assert_eq!((new.first, new.next - new.first), (1, old.next - old.first));
    let items = lane.send(1);
    assert_eq!(items.len() as u64, new.next - 1);
    lane.ack(new.next - 1);
    lane.put();
}
