//! What a lane promises beyond order and durability: time to live, keys, dead letters, headroom; each against a
//! simulated disk, through restarts and power cuts.

#[path = "support/dead_letters.rs"]
mod dead_letters;

use std::time::Duration;

use backhaul::config::{self, Overflow};
use backhaul::outbox::dead::{DEAD_LANE, with_dead_letters};
use backhaul::outbox::expiry::Clock;
use backhaul::outbox::sim_disk::{Doubt, Fate, SimDisk};
use backhaul::outbox::{Config, Draft, LaneId, Outbox, PushError};
use backhaul::record::{Body, Fetch, Item, Offer, Why};
use backhaul::status;
use backhaul::time::{CLOCK_SET_FLOOR_MS, Instant};

const LANE: LaneId = LaneId(0);
const SEGMENT_BYTES: u32 = 65_536;
/// The clock was set then.
const SET_MS: u64 = CLOCK_SET_FLOOR_MS + 1_000_000_000;

fn lane(segments: u64, overflow: Overflow) -> config::Lane {
    config::Lane { bytes_max: segments * u64::from(SEGMENT_BYTES), overflow, ..config::Lane::default() }
}

/// One lane that is opened again and again.
struct Bench {
    config: Config,
    outbox: Outbox<SimDisk>,
    starts: u64,
}

impl Bench {
    fn new(lane: config::Lane) -> Self {
        Self::with_dead_letters(lane, 0)
    }

    fn with_dead_letters(lane: config::Lane, bytes_max: u64) -> Self {
        let config = Config {
            segment_bytes: SEGMENT_BYTES,
            headroom_bytes_min: 0,
            record_bytes_max: 4096,
            lanes: with_dead_letters(&[lane], bytes_max),
            device: "test".into(),
            machine: String::new(),
        };
        let (outbox, _) = Outbox::open(SimDisk::default(), &config, 1);
        Self { config, outbox, starts: 1 }
    }

    /// The process dies.
    fn kill(self) -> Self {
        self.restart(SimDisk::kill)
    }

    /// The power goes: nothing that is pending gets through.
    fn power_cut(self) -> Self {
        self.restart(|disk| disk.power_cut(&mut fastrand::Rng::with_seed(1), |_| Fate::Old))
    }

    fn restart(mut self, happens: impl FnOnce(&mut SimDisk)) -> Self {
        let mut disk = self.outbox.into_disk();
        happens(&mut disk);
        self.starts += 1;
        let (outbox, _) = Outbox::open(disk, &self.config, self.starts);
        Self { outbox, ..self }
    }

    fn push(&mut self, draft: Draft) -> (u64, u64) {
        self.outbox.push(LANE, draft, Instant::default()).expect("room")
    }

    fn put(&mut self, draft: Draft) -> (u64, u64) {
        let name = self.push(draft);
        self.outbox.commit(LANE).expect("a disk that works");
        name
    }

    fn put_key(&mut self, key: &str, text: &str) -> (u64, u64) {
        self.put(Draft { key: Some(key.into()), ..draft(text) })
    }

    fn offer(&self) -> Offer {
        self.outbox.offers()[0].clone()
    }

    fn fetch(&mut self, from: u64) -> Vec<Item> {
        self.fetch_some(from, 10_000)
    }

    fn fetch_some(&mut self, from: u64, records_max: u32) -> Vec<Item> {
        let Offer { lane, epoch, .. } = self.offer();
        self.outbox.fetch(&Fetch { session: 1, lane, epoch, from, records_max, bytes_max: 1 << 20 })
    }

    fn ack(&mut self, seq: u64) {
        let Offer { lane, epoch, .. } = self.offer();
        self.outbox.acked(&lane, epoch, seq, Instant::default());
    }

    fn reject(&mut self, seq: u64, reason: &str) {
        let Offer { lane, epoch, .. } = self.offer();
        self.outbox.rejected(&lane, epoch, seq, reason);
    }

    fn status(&self) -> status::Lane {
        self.outbox.lanes_status(None)[0].clone()
    }

    /// The dead letters: their keys and texts, oldest first.
    fn letters(&mut self) -> Vec<(String, String)> {
        dead_letters::on(self.outbox.disk_mut())
    }
}

fn draft(text: &str) -> Draft {
    let (at, body) = (Some(SET_MS), Body::Text(text.into()));
    Draft { at, boot: 1, boot_ms: 100_000, ttl_s: 0, topic: "t".into(), key: None, body }
}

/// So many seconds after the drafts were handed in, in the same boot.
fn later(s: u64) -> Clock {
    Clock { boot: 1, boot_ms: 100_000 + s * 1000, wall_ms: None, server_ms: None }
}

fn texts(items: &[Item]) -> Vec<String> {
    let text = |item: &Item| match item {
        Item::Record(record) => String::from_utf8_lossy(record.body.as_bytes()).into_owned(),
        Item::Gap(gap) => format!("{}..={} {}", gap.from, gap.to, gap.why.as_str()),
    };
    items.iter().map(text).collect()
}

// ---------------------------------------------------------------- RAM first

fn ram_first(commit_bytes: u32) -> config::Lane {
    let commit = config::Commit::RamFirst;
    config::Lane { commit, commit_ms: 5_000, commit_bytes, ..lane(8, Overflow::DropOldest) }
}

#[test]
fn what_is_acked_in_time_costs_flash_a_reservation_now_and_then() {
    const RECORDS: u64 = 150_000;
    let mut bench = Bench::new(ram_first(1 << 20));
    let begun = bench.outbox.flash_status().by_purpose;
    let mut now = Instant::default();
    for to in (50..=RECORDS).step_by(50) {
        for n in 0..50 {
            bench.outbox.push(LANE, draft(&format!("{n}")), now).expect("room");
        }
        now = now + Duration::from_millis(10);
        bench.outbox.handle_timeout(now);
        assert!(!bench.outbox.is_due(LANE), "{to}");
        assert_eq!(bench.fetch(to - 49).len(), 50, "they leave before they are on flash");
        bench.ack(to);
    }
    let spent = bench.outbox.flash_status().by_purpose;
    assert_eq!((spent.records, spent.acks, spent.segments), (0, 0, begun.segments), "{spent:?}");
    let pages = (spent.reserve - begun.reserve) / 4096;
    assert!((2..=2 * RECORDS.div_ceil(65_536)).contains(&pages), "{pages} pages");
}

#[test]
fn what_is_not_acked_in_time_is_on_flash_and_no_number_that_left_comes_again() {
    let mut bench = Bench::new(ram_first(1 << 20));
    for n in 1..=3 {
        bench.push(draft(&format!("{n}")));
    }
    bench.outbox.handle_timeout(Instant::default() + Duration::from_millis(4_999));
    assert!(bench.fetch(1).len() == 3 && bench.outbox.flash_status().by_purpose.records == 0);
    bench.outbox.handle_timeout(Instant::default() + Duration::from_millis(5_000));
    assert!(bench.outbox.flash_status().by_purpose.records > 0);
    // Two more leave from RAM, and the power goes.
    for n in 4..=5 {
        bench.push(draft(&format!("{n}")));
    }
    assert_eq!(bench.fetch(4).len(), 2);
    let epoch = bench.offer().epoch;
    let mut bench = bench.power_cut();
    assert_eq!(bench.offer().epoch, epoch);
    let found = bench.fetch(1);
    assert_eq!(texts(&found)[..3], ["1", "2", "3"]);
    assert!(matches!(found[3..], [Item::Gap(gap)] if gap.why == Why::Torn && gap.from == 4), "{found:?}");
    let (_, seq) = bench.put(draft("new"));
    assert!(seq > 5 && seq == found[3].last() + 1, "{seq}");
    // Who waits for `committed` gets it.
    let mut bench = bench.power_cut();
    assert_eq!(texts(&bench.fetch(seq))[0], "new");
}

#[test]
fn more_than_commit_bytes_in_ram_want_a_commit() {
    let mut bench = Bench::new(ram_first(1000));
    bench.push(draft("x"));
    assert!(!bench.outbox.is_due(LANE));
    bench.push(draft(&"x".repeat(1000)));
    assert!(bench.outbox.is_due(LANE));
    bench.outbox.commit(LANE).expect("a disk that works");
    assert!(!bench.outbox.is_due(LANE));
    assert_eq!(texts(&bench.power_cut().fetch(1))[..2], ["x".to_owned(), "x".repeat(1000)]);
}

// ---------------------------------------------------------------- time to live

#[test]
fn what_has_outlived_its_time_is_one_exact_gap() {
    let mut bench = Bench::new(config::Lane { ttl_s: 60, ..lane(8, Overflow::Reject) });
    for n in 1..=5 {
        // The lane's time, but for two that name their own.
        let ttl_s = [0, 0, 3600, 10, 0][n - 1];
        bench.put(Draft { ttl_s, ..draft(&format!("{n}")) });
    }
    bench.outbox.handle_clock(later(59));
    assert_eq!(texts(&bench.fetch(1)), ["1", "2", "3", "4..=4 expired", "5"]);
    // A new session, a moment later.
    bench.outbox.handle_clock(later(60));
    assert_eq!(texts(&bench.fetch(1)), ["1..=2 expired", "3", "4..=5 expired"]);
    let status = bench.status();
    assert_eq!((status.expired, status.depth), (4, 1));
    bench.ack(5);
    let status = bench.status();
    assert_eq!((status.expired, status.depth, status.acked), (4, 0, 5));
}

#[test]
fn what_was_sent_on_this_connection_is_never_covered_by_a_gap() {
    let mut bench = Bench::new(config::Lane { ttl_s: 60, ..lane(8, Overflow::Reject) });
    for n in 1..=4 {
        bench.put(draft(&format!("{n}")));
    }
    bench.outbox.handle_clock(later(0));
    assert_eq!(texts(&bench.fetch_some(1, 2)), ["1", "2"]);
    bench.outbox.handle_clock(later(61));
    assert_eq!(texts(&bench.fetch(3)), ["3..=4 expired"], "the connection goes on behind what it has sent");
    bench.ack(4);
    assert_eq!(bench.status().expired, 2);
}

#[test]
fn time_that_nobody_measured_does_not_age() {
    let mut bench = Bench::new(config::Lane { ttl_s: 60, ..lane(8, Overflow::Reject) });
    bench.put(draft("set"));
    bench.put(Draft { at: None, ..draft("unset") });
    let mut bench = bench.power_cut();
    let another_boot = |wall_ms| Clock { boot: 2, boot_ms: 1 << 40, wall_ms, server_ms: None };
    bench.outbox.handle_clock(another_boot(None));
    assert_eq!(texts(&bench.fetch(1)), ["set", "unset"]);
    bench.outbox.handle_clock(another_boot(Some(SET_MS + 59_999)));
    assert_eq!(texts(&bench.fetch(1)), ["set", "unset"]);
    bench.outbox.handle_clock(another_boot(Some(SET_MS + 60_000)));
    assert_eq!(texts(&bench.fetch(1)), ["1..=1 expired", "unset"]);
}

#[test]
fn a_long_backlog_expires_piece_by_piece_and_nothing_is_read_ahead() {
    let mut bench = Bench::new(config::Lane { ttl_s: 60, ..lane(40, Overflow::Reject) });
    for n in 0..2000 {
        bench.push(draft(&format!("{n:0>200}")));
    }
    bench.put(Draft { ttl_s: 3600, ..draft("fresh") });
    let mut bench = bench.kill();
    bench.outbox.handle_clock(later(61));
    let mut from = 1;
    let mut asked = 0;
    let last = loop {
        let items = bench.fetch_some(from, 100);
        let Some(Item::Gap(gap)) = items.first() else { break texts(&items) };
        asked += 1;
        assert!(gap.to < from + 100, "a hundred at a time");
        assert_eq!(bench.status().expired, gap.to, "exactly those that were looked at");
        assert_eq!(items.len(), 1);
        from = gap.to + 1;
    };
    assert_eq!(last, ["fresh"]);
    assert_eq!(asked, 20);
    assert_eq!(bench.status().expired, 2000);
}

#[test]
fn a_mixture_of_times_to_live_is_counted_exactly_even_when_it_is_given_up_later() {
    let mut bench = Bench::new(lane(4, Overflow::DropOldest));
    for n in 0..400 {
        bench.push(Draft { ttl_s: [60, 0][n % 2], ..draft(&format!("{n:0>100}")) });
    }
    bench.outbox.commit(LANE).expect("a disk that works");
    bench.outbox.handle_clock(later(61));
    bench.fetch(1);
    assert_eq!((bench.status().expired, bench.status().overflowed), (200, 0));
    // All of it, 200 runs of one number each, is given up for newer records.
    for n in 0..800 {
        bench.put(draft(&format!("{n:0>100}")));
    }
    let mut bench = bench.kill();
    let items = bench.fetch(1);
    let lost: u64 = items.iter().map(|item| if let Item::Gap(gap) = item { gap.count() } else { 0 }).sum();
    let held = items.iter().filter(|item| matches!(item, Item::Record(_))).count() as u64;
    assert_eq!(lost + held, 1200, "{:?}", texts(&items).iter().take(5).collect::<Vec<_>>());
}

// ---------------------------------------------------------------- keys

#[test]
fn a_put_under_a_known_key_is_the_first_record_whatever_it_says() {
    let mut bench = Bench::new(lane(8, Overflow::Reject));
    let first = bench.put_key("a", "first");
    assert_ne!(bench.put_key("b", "other"), first);
    assert_eq!(bench.put_key("a", "second"), first);
    assert_eq!(texts(&bench.fetch(1)), ["first", "other"]);
    // Not before it is on flash is it called committed.
    let pending = bench.push(Draft { key: Some("c".into()), ..draft("pending") });
    assert_eq!(bench.push(Draft { key: Some("c".into()), ..draft("again") }), pending);
    assert!(!bench.outbox.is_committed(LANE, pending.0, pending.1));
    bench.outbox.commit(LANE).expect("a disk that works");
    assert!(bench.outbox.is_committed(LANE, pending.0, pending.1));
}

#[test]
fn keys_outlive_the_process_and_the_power() {
    let mut bench = Bench::new(lane(8, Overflow::Reject));
    let key = |n: usize| Draft { key: Some(format!("k{n}")), ..draft(&format!("{n:0>100}")) };
    let mut names: Vec<_> = (0..30).map(|n| bench.push(key(n))).collect();
    bench.outbox.commit(LANE).expect("a disk that works");
    bench.ack(20);
    for round in 0..4 {
        bench = if round % 2 == 0 { bench.kill() } else { bench.power_cut() };
        for (n, name) in names.iter().enumerate() {
            assert_eq!(bench.put_key(&format!("k{n}"), "again"), *name, "round {round}");
        }
        names.push(bench.put_key(&format!("k{}", names.len()), "new"));
    }
    assert_eq!(bench.offer().next, 35);
}

#[test]
fn a_key_is_known_when_the_next_segment_has_just_been_begun() {
    let mut bench = Bench::new(lane(4, Overflow::Reject));
    for n in 0..40 {
        let name = bench.put_key(&format!("k{n}"), "text");
        // Now and then it begins a segment.
        let (_, last) = bench.put(draft("without a key"));
        bench = bench.kill();
        assert_eq!(bench.put_key(&format!("k{n}"), "again"), name);
        bench.ack(last);
    }
    let headers = dead_letters::headers(bench.outbox.disk_mut(), "telemetry");
    assert!(headers.last().expect("a header").lap > 2, "several were begun");
}

#[test]
fn a_record_that_was_lost_or_refused_is_taken_again_under_its_key() {
    let mut bench = Bench::new(config::Lane { ttl_s: 60, ..lane(8, Overflow::Reject) });
    let expired = bench.put_key("expired", "1");
    bench.outbox.handle_clock(later(61));
    assert_eq!(texts(&bench.fetch(1)), ["1..=1 expired"]);
    assert_ne!(bench.put_key("expired", "2"), expired);
    let refused = bench.put(Draft { key: Some("refused".into()), ttl_s: 3600, ..draft("3") });
    bench.fetch(2);
    bench.reject(refused.1, "schema");
    assert_ne!(bench.put_key("refused", "4"), refused);
    // Also after its gap is acked.
    let gone = bench.put_key("gone", "7");
    bench.outbox.handle_clock(later(200));
    bench.fetch(1);
    bench.ack(gone.1);
    assert_ne!(bench.put_key("gone", "8"), gone);
}

#[test]
fn a_key_answers_with_the_name_that_its_record_has_now() {
    let mut bench = Bench::new(lane(8, Overflow::Reject));
    let names: Vec<_> = (0..4).map(|n| bench.put_key(&format!("k{n}"), "text")).collect();
    bench.fetch(1);
    bench.ack(2);
    let Offer { lane, epoch, .. } = bench.offer();
    bench.outbox.renumber(&lane, epoch);
    let new = bench.offer().epoch;
    let expected = [names[0], names[1], (new, 1), (new, 2)];
    for (n, expected) in expected.into_iter().enumerate() {
        assert_eq!(bench.put_key(&format!("k{n}"), "again"), expected);
    }
    let mut bench = bench.kill();
    for (n, expected) in expected.into_iter().enumerate().skip(2) {
        assert_eq!(bench.put_key(&format!("k{n}"), "again"), expected);
    }
}

#[test]
fn a_key_follows_its_record_into_ram_and_back_to_flash() {
    let mut bench = Bench::new(lane(8, Overflow::Reject));
    bench.put_key("before", "1");
    let key = |text: &str| Draft { key: Some("key".into()), ..draft(text) };
    bench.outbox.disk_mut().sync_failures = 1000;
    let (old, _) = bench.push(key("2"));
    assert!(bench.outbox.commit(LANE).is_err());
    let in_ram = bench.push(key("3"));
    assert_ne!(in_ram.0, old, "what is in RAM only has an epoch of its own");
    assert!(!bench.outbox.is_committed(LANE, in_ram.0, in_ram.1));
    bench.outbox.disk_mut().sync_failures = 0;
    bench.outbox.flush();
    let on_flash = bench.push(key("4"));
    assert!(bench.outbox.is_committed(LANE, on_flash.0, on_flash.1));
    let mut bench = bench.power_cut();
    assert_eq!(bench.put_key("key", "5"), on_flash);
}

#[test]
fn keys_belong_to_their_lane_and_a_full_lane_still_answers() {
    let mut bench = Bench::new(lane(2, Overflow::Reject));
    let first = bench.put_key("first", "text");
    let mut last = first;
    for n in 0.. {
        match bench.outbox.push(
            LANE,
            Draft { key: Some(format!("k{n}")), ..draft(&"x".repeat(1000)) },
            Instant::default(),
        ) {
            Ok(name) => last = name,
            Err(error) => {
                assert_eq!(error, PushError::Full);
                break;
            }
        }
        bench.outbox.commit(LANE).expect("what was taken has room");
    }
    assert_eq!(bench.put_key("first", "again"), first);
    let mut bench = bench.kill();
    assert_eq!(bench.put_key("first", "again"), first);
    assert!(last.1 > 3);
}

// ---------------------------------------------------------------- dead letters

#[test]
fn a_refused_record_is_on_flash_elsewhere_before_its_ack_is_acted_on() {
    let mut bench = Bench::with_dead_letters(lane(8, Overflow::Reject), 65_536);
    let (epoch, _) = bench.put_key("mine", "good");
    bench.put_key("mine too", "bad");
    bench.fetch(1);
    assert_eq!(bench.outbox.lanes_status(None).len(), 1, "no letter, no lane");
    bench.reject(2, "schema \"v2\"");
    bench.ack(2);
    let key = format!("telemetry/{epoch}/2 {{\"key\":\"mine too\",\"reason\":\"schema \\\"v2\\\"\"}}");
    assert_eq!(bench.letters(), [(key.clone(), "bad".into())]);
    let status = bench.outbox.lanes_status(None)[1].clone();
    assert_eq!((status.name.as_str(), status.depth), (DEAD_LANE, 1));
    assert_eq!(bench.status().rejected, 1);
    let mut bench = bench.power_cut();
    assert_eq!(bench.letters(), [(key, "bad".into())]);
    assert_eq!(bench.outbox.lanes_status(None)[1].depth, 1);
    assert_eq!(bench.outbox.offers().len(), 1, "never sent");
    assert!(bench.outbox.lane(Some(DEAD_LANE)).is_none(), "and nobody puts into it");
}

#[test]
fn a_refusal_that_is_repeated_makes_no_second_letter() {
    let mut bench = Bench::with_dead_letters(lane(8, Overflow::Reject), 65_536);
    for n in 1..=20 {
        bench.put(draft(&format!("{n}")));
    }
    bench.fetch(1);
    for round in 0..4 {
        // The ack is lost with the power, or never came; `welcome` repeats the refusals.
        for seq in 1..=20 {
            bench.reject(seq, ["schema", "another word"][round % 2]);
        }
        bench.ack(0);
        assert_eq!(bench.letters().len(), 20, "round {round}");
        bench = if round % 2 == 0 { bench.kill() } else { bench.power_cut() };
    }
    assert_eq!(bench.outbox.lanes_status(None)[1].depth, 20);
}

#[test]
fn full_dead_letters_give_up_their_oldest_and_stay_within_their_bound() {
    let mut bench = Bench::with_dead_letters(lane(8, Overflow::Reject), 1);
    let mut refused = 0;
    for _ in 0..60 {
        let (_, seq) = bench.put(draft(&"x".repeat(1500)));
        bench.fetch(seq);
        bench.reject(seq, "schema");
        bench.ack(seq);
        refused += 1;
    }
    let dead = bench.outbox.lanes_status(None)[1].clone();
    assert_eq!(dead.depth + dead.overflowed, refused);
    assert!(dead.depth >= 2 && dead.overflowed > 0, "{dead:?}");
    let sizes: Vec<usize> = bench
        .outbox
        .disk_mut()
        .image()
        .into_iter()
        .filter(|(name, _)| name.starts_with("dead."))
        .map(|(_, bytes)| bytes.len())
        .collect();
    assert_eq!(sizes.len(), 2, "two segments, whatever less is asked for: {sizes:?}");
    assert_eq!(bench.status().rejected, refused);
}

#[test]
fn every_record_that_may_be_put_fits_into_a_letter() {
    let mut bench = Bench::with_dead_letters(lane(8, Overflow::Reject), 65_536);
    let key = "\u{1}".repeat(128);
    let text = "y".repeat(4096 - 1 - key.len());
    let (_, seq) = bench.put(Draft { key: Some(key), ..draft(&text) });
    bench.fetch(1);
    bench.reject(seq, &"\u{1}".repeat(200));
    bench.ack(seq);
    let letters = bench.letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].1, text);
}

#[test]
fn switched_off_it_only_counts_and_leaves_what_is_there() {
    let mut bench = Bench::with_dead_letters(lane(8, Overflow::Reject), 65_536);
    let refuse = |bench: &mut Bench| {
        let (_, seq) = bench.put(draft("bad"));
        bench.fetch(seq);
        bench.reject(seq, "schema");
        bench.ack(seq);
    };
    refuse(&mut bench);
    bench.config.lanes.pop();
    let mut bench = bench.kill();
    refuse(&mut bench);
    assert_eq!(bench.status().rejected, 1);
    assert_eq!(bench.letters().len(), 1);
    assert_eq!(bench.outbox.offers().len(), 1, "what lies there is not sent now, either");
}

#[test]
fn what_the_agent_itself_refuses_is_a_gap_and_a_letter_and_stays_one() {
    let mut bench = Bench::with_dead_letters(lane(8, Overflow::Reject), 65_536);
    for n in 1..=3 {
        bench.put(draft(&format!("{n}")));
    }
    bench.fetch(1);
    let Offer { lane, epoch, .. } = bench.offer();
    bench.outbox.refuse(&lane, epoch, 2, "too large for this server");
    bench.outbox.refuse(&lane, epoch, 2, "too large for this server");
    assert_eq!(texts(&bench.fetch(1)), ["1", "2..=2 rejected", "3"], "in the next session, too");
    assert_eq!((bench.status().rejected, bench.status().depth), (1, 2));
    bench.ack(3);
    assert_eq!(bench.letters().len(), 1);
}

// ---------------------------------------------------------------- headroom

/// Puts until the lane grows no more or takes no more; how many it took.
fn fill(bench: &mut Bench) -> u64 {
    let mut taken = 0;
    for _ in 0..200 {
        match bench.outbox.push(LANE, draft(&"z".repeat(1000)), Instant::default()) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_eq!(error, PushError::Full);
                break;
            }
        }
        bench.outbox.commit(LANE).expect("what was taken has room");
    }
    taken
}

fn on_shared_partition(overflow: Overflow, free: u64, headroom: u64) -> Bench {
    let mut bench = Bench::new(lane(30, overflow));
    bench.config.headroom_bytes_min = headroom;
    bench.restart(|disk| disk.free_bytes = Some(free))
}

#[test]
fn a_shared_partition_keeps_its_headroom_and_the_lane_its_policy() {
    let segment = u64::from(SEGMENT_BYTES);
    let headroom = 10 * segment;
    for overflow in [Overflow::Reject, Overflow::DropOldest] {
        let mut bench = on_shared_partition(overflow, headroom + 4 * segment + 100, headroom);
        let taken = fill(&mut bench);
        let free = bench.outbox.disk_mut().free_bytes.expect("a partition that can be full");
        assert!(free >= headroom, "{overflow:?}: {free} bytes are left of {headroom}");
        assert!(free < headroom + segment, "{overflow:?}: it grows as far as it may");
        let status = bench.status();
        match overflow {
            Overflow::Reject => assert!(taken < 200 && status.overflowed == 0 && status.depth == taken),
            Overflow::DropOldest => assert!(taken == 200 && status.overflowed > 0),
        }
        assert_eq!(status.depth + status.overflowed, taken);
        // Someone else takes the rest: nothing more is made, and nothing breaks.
        bench.outbox.disk_mut().free_bytes = Some(0);
        fill(&mut bench);
        assert_eq!(bench.outbox.disk_mut().free_bytes, Some(0));
        // They give it back, and the lane goes on growing.
        let bytes = bench.status().bytes;
        bench.outbox.disk_mut().free_bytes = Some(headroom + 8 * segment);
        fill(&mut bench);
        assert!(bench.status().bytes > bytes, "{overflow:?}");
    }
}

#[test]
fn acks_make_room_where_the_partition_does_not() {
    let segment = u64::from(SEGMENT_BYTES);
    let mut bench = on_shared_partition(Overflow::Reject, 3 * segment, segment);
    let taken = fill(&mut bench);
    bench.fetch(1);
    bench.ack(taken);
    assert!(fill(&mut bench) >= taken - 4, "the lane's own segments are written again");
    let free = bench.outbox.disk_mut().free_bytes.expect("a partition that can be full");
    assert!(free >= segment);
}

// ---------------------------------------------------------------- live ahead of backlog

fn live(segments: u64, overflow: Overflow) -> config::Lane {
    config::Lane { live_share: 0.5, ..lane(segments, overflow) }
}

impl Bench {
    fn fetch_of(&mut self, offer: &Offer) -> Vec<Item> {
        let Offer { lane, epoch, first, .. } = offer.clone();
        self.outbox.fetch(&Fetch { session: 1, lane, epoch, from: first, records_max: 10_000, bytes_max: 1 << 22 })
    }
}

#[test]
fn a_lane_with_a_backlog_goes_on_in_a_new_epoch_for_one_page() {
    let mut bench = Bench::new(live(8, Overflow::Reject));
    for n in 0..10 {
        bench.put(draft(&format!("old {n}")));
    }
    bench.outbox.handle_clock(later(4));
    assert_eq!(bench.outbox.begin_live(), [], "few and fresh: no backlog");
    bench.outbox.handle_clock(later(5));
    let before = bench.outbox.flash_status().by_purpose;
    assert_eq!(bench.outbox.begin_live().len(), 1);
    let after = bench.outbox.flash_status().by_purpose;
    assert_eq!((after.reserve - before.reserve, after.records, after.acks), (4096, before.records, before.acks));
    assert_eq!(after.segments - before.segments, u64::from(SEGMENT_BYTES), "a segment that it would soon have taken");
    // Once an outage: there are two now.
    assert_eq!(bench.outbox.begin_live(), []);
    for n in 0..5 {
        bench.put(draft(&format!("new {n}")));
    }
    for restart in 0..3 {
        let offers = bench.outbox.offers();
        let [old, new] = &offers[..] else { panic!("{offers:?}") };
        assert_eq!((old.first, old.next, new.first, new.next), (1, 11, 1, 6), "restart {restart}");
        assert_eq!(texts(&bench.fetch_of(old)), (0..10).map(|n| format!("old {n}")).collect::<Vec<_>>());
        assert_eq!(texts(&bench.fetch_of(new)), (0..5).map(|n| format!("new {n}")).collect::<Vec<_>>());
        bench = if restart == 1 { bench.kill() } else { bench.power_cut() };
    }
    // The backlog is through: what is live is the lane, and the next outage begins another.
    let old = bench.outbox.offers()[0].clone();
    bench.outbox.acked(&old.lane, old.epoch, 10, Instant::default());
    assert_eq!(bench.outbox.offers().len(), 1);
    bench.outbox.handle_clock(later(60));
    assert_eq!(bench.outbox.begin_live().len(), 1);
    assert_eq!(bench.status().depth, 5);
}

#[test]
fn a_lane_that_is_drained_too_small_or_does_not_ask_for_it_keeps_its_epoch() {
    for (lane, records) in
        [(live(8, Overflow::Reject), 0), (live(3, Overflow::Reject), 10), (lane(8, Overflow::Reject), 10)]
    {
        let mut bench = Bench::new(lane);
        for n in 0..records {
            bench.put(draft(&format!("{n}")));
        }
        bench.outbox.handle_clock(later(1000));
        assert_eq!((bench.outbox.begin_live(), bench.outbox.offers().len()), (vec![], 1));
    }
}

#[test]
fn what_waits_in_ram_stays_with_the_backlog() {
    let mut bench = Bench::new(config::Lane { live_share: 0.5, ..ram_first(1 << 20) });
    for n in 0..4 {
        bench.push(draft(&format!("old {n}")));
    }
    bench.outbox.handle_clock(later(5));
    assert_eq!(bench.outbox.begin_live().len(), 1);
    bench.push(draft("new"));
    let offers = bench.outbox.offers();
    assert_eq!(texts(&bench.fetch_of(&offers[0])), ["old 0", "old 1", "old 2", "old 3"]);
    assert_eq!(texts(&bench.fetch_of(&offers[1])), ["new"]);
}

#[test]
fn a_full_lane_gives_up_the_oldest_of_its_backlog_and_counts_it() {
    let mut bench = Bench::new(live(4, Overflow::DropOldest));
    let mut put = 0;
    let mut fill = |bench: &mut Bench, records: usize| {
        for _ in 0..records {
            bench.put(draft(&format!("{put:0>2000}")));
            put += 1;
        }
    };
    fill(&mut bench, 200);
    bench.outbox.handle_clock(later(100));
    assert_eq!(bench.outbox.begin_live().len(), 1);
    fill(&mut bench, 200);
    let status = bench.status();
    assert!(status.bytes <= status.bytes_max, "{status:?}");
    let offers = bench.outbox.offers();
    let (mut records, mut given_up, mut last) = (0, 0, None);
    for offer in &offers {
        for item in bench.fetch_of(offer) {
            match item {
                Item::Record(record) => {
                    let text = String::from_utf8_lossy(record.body.as_bytes()).into_owned();
                    assert!(last.as_ref().is_none_or(|last| *last < text), "each epoch in its order");
                    last = Some(text);
                    records += 1;
                }
                Item::Gap(gap) => {
                    assert_eq!(gap.why, Why::Overflow);
                    given_up += gap.count();
                }
            }
        }
    }
    assert_eq!((records + given_up, given_up), (400, status.overflowed));
    assert!(records > 0 && given_up > 0);
}

#[test]
fn a_lane_without_room_for_a_live_epoch_gives_nothing_up_and_takes_nothing() {
    let (mut begun, mut stayed) = ([0; 2], [0; 2]);
    for puts in 8..70 {
        for (kind, overflow) in [Overflow::Reject, Overflow::DropOldest].into_iter().enumerate() {
            let mut bench = Bench::new(live(4, overflow));
            if overflow == Overflow::DropOldest {
                // The partition has room for two segments.
                bench = bench.restart(|disk| disk.free_bytes = Some(u64::from(SEGMENT_BYTES)));
            }
            for n in 0..puts {
                match bench.outbox.push(LANE, draft(&format!("{n:0>3000}")), Instant::default()) {
                    Ok(_) => bench.outbox.commit(LANE).expect("what was taken has room"),
                    Err(error) => assert_eq!((error, overflow), (PushError::Full, Overflow::Reject)),
                }
            }
            bench.outbox.handle_clock(later(1000));
            let (image, before) = (bench.outbox.disk_mut().image(), bench.status());
            if bench.outbox.begin_live().is_empty() {
                stayed[kind] += 1;
                assert!(bench.outbox.disk_mut().image() == image, "{overflow:?}, {puts} puts: written for nothing");
                assert_eq!(bench.status().depth, before.depth, "{overflow:?}, {puts} puts");
            } else {
                begun[kind] += 1;
                let status = bench.status();
                assert!(status.depth > 0, "{overflow:?}, {puts} puts: not all of the backlog goes for it");
                assert_eq!(status.depth + status.overflowed, before.depth + before.overflowed);
            }
        }
    }
    assert!(begun.into_iter().chain(stayed).all(|times| times > 0), "{begun:?} {stayed:?}");
}

#[test]
fn what_a_cut_left_is_cleared_once_however_often_the_process_starts() {
    let mut bench = Bench::new(lane(8, Overflow::Reject));
    bench.put(draft("before"));
    for _ in 0..8 {
        bench.push(draft(&"x".repeat(3000)));
    }
    let disk = bench.outbox.disk_mut();
    disk.cut_after = Some(disk.calls + 1);
    bench.outbox.commit(LANE).expect_err("the power goes before the sync");
    bench = bench.restart(|disk| {
        let sectors = disk.doubts().into_iter().filter_map(|doubt| match doubt {
            Doubt::Sector(file, sector) => Some((file, sector)),
            Doubt::Made(_) | Doubt::Removed(_) | Doubt::Size(_) => None,
        });
        let sectors: Vec<_> = sectors.collect();
        let first = sectors[0].1;
        let kept = sectors.into_iter().filter(|(_, sector)| sector / 8 > first / 8);
        let kept: Vec<_> = kept.map(|(file, sector)| (Doubt::Sector(file, sector), Fate::New)).collect();
        disk.cut(&kept, &mut fastrand::Rng::with_seed(1));
    });
    for start in 0..4 {
        bench.put(draft(&format!("start {start}")));
        let cleared = bench.outbox.flash_status().by_purpose.other;
        // All of the batch but its first page.
        assert!(if start == 0 { cleared >= 5 * 4096 } else { cleared == 0 }, "start {start}: {cleared}");
        bench = bench.kill();
    }
    assert_eq!(texts(&bench.fetch(1)), ["before", "start 0", "start 1", "start 2", "start 3"]);
}
