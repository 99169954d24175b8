//! The outbox thread on a real folder, with the test in the place of the local and the uplink thread.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;
use std::thread::JoinHandle;

use super::*;
use crate::config::{self, Overflow};
use crate::outbox::sim_disk::SimDisk;
use crate::outbox::{Config, Draft};
use crate::record::{Body, LaneName};
use crate::shell::disk::RealDisk;
use crate::temp_dir::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

struct Bench {
    dir: TempDir,
    config: Config,
    inbox: Arc<Port<ForOutbox>>,
    uplink: Arc<Port<ForUplink>>,
    local: Arc<Port<ForLocal>>,
    board: Arc<Board>,
    events: Arc<Mutex<Vec<String>>>,
    /// Of the flash budget: bytes a day and the longest window.
    budget: Option<(u64, Duration)>,
    thread: Option<JoinHandle<()>>,
}

fn lane(name: &str, commit: Commit, overflow: Overflow) -> config::Lane {
    let name = LaneName::try_new(name).unwrap();
    let bytes_max = 4 * 16_384;
    config::Lane { name, commit, overflow, bytes_max, commit_ms: 3_600_000, ..config::Lane::default() }
}

impl Bench {
    fn new() -> Self {
        Self::with_budget(None)
    }

    fn with_budget(budget: Option<(u64, Duration)>) -> Self {
        let dir = TempDir::new("outbox");
        let lanes = vec![
            lane("sync", Commit::Sync, Overflow::DropOldest),
            lane("group", Commit::Group, Overflow::DropOldest),
            lane("strict", Commit::Sync, Overflow::Reject),
        ];
        let config = Config {
            segment_bytes: 16_384,
            headroom_bytes_min: 0,
            record_bytes_max: 2000,
            lanes,
            device: "d".into(),
            machine: String::new(),
        };
        let mut bench = Self {
            dir,
            config,
            inbox: Arc::default(),
            uplink: Arc::default(),
            local: Arc::default(),
            board: Arc::default(),
            events: Arc::default(),
            budget,
            thread: None,
        };
        bench.start();
        bench
    }

    fn start(&mut self) {
        let disk = RealDisk::new(&self.dir);
        let sync_times = disk.sync_times();
        self.start_on(disk, sync_times, |_| ());
    }

    /// On any disk, changed once the outbox is open.
    fn start_on<D: Disk + Send + 'static>(&mut self, disk: D, sync_times: Arc<SyncTimes>, then: impl FnOnce(&mut D)) {
        let events = Arc::clone(&self.events);
        let setup = Setup {
            boot: 1,
            inbox: Arc::clone(&self.inbox),
            uplink: Arc::clone(&self.uplink),
            local: Arc::clone(&self.local),
            board: Arc::clone(&self.board),
            sync_times,
            lifetime: lifetime::Reader::new(&self.dir),
            spending: self.budget.map(|(bytes, window)| Spending::new(bytes, window, self.dir.join("budget"))),
            done: DoneFile::new(self.dir.join("link/commands"), "gw"),
            event: Arc::new(move |kind, detail| events.lock().unwrap().push(format!("{kind} {detail}"))),
        };
        let (mut outbox, _) = Outbox::open(disk, &self.config, 7);
        then(outbox.disk_mut());
        self.thread = Some(std::thread::spawn(move || run(outbox, setup)));
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.inbox.give(|cell| cell.stop = true);
            thread.join().unwrap();
        }
    }

    fn put(&self, puts: Vec<Put>) {
        self.inbox.give(|cell| cell.puts.extend(puts));
    }

    fn outcomes(&self, count: usize) -> Vec<Outcome> {
        let cell = self.local.lock();
        let few = |cell: &mut ForLocal| cell.outcomes.len() < count;
        let (mut cell, late) = self.local.filled.wait_timeout_while(cell, DEADLINE, few).unwrap();
        assert!(!late.timed_out(), "only {:?}", cell.outcomes);
        assert_eq!(cell.outcomes.len(), count);
        mem::take(&mut cell.outcomes)
    }

    fn offer(&self, lane: &str) -> Offer {
        let cell = self.uplink.lock();
        let none = |cell: &mut ForUplink| !cell.offers.iter().any(|offer| offer.lane.as_str() == lane);
        let (cell, late) = self.uplink.filled.wait_timeout_while(cell, DEADLINE, none).unwrap();
        assert!(!late.timed_out(), "no offer");
        cell.offers.iter().find(|offer| offer.lane.as_str() == lane).unwrap().clone()
    }

    fn fetch(&self, offer: &Offer, from: Seq) -> Vec<Item> {
        let fetch = Fetch {
            session: 1,
            lane: offer.lane.clone(),
            epoch: offer.epoch,
            from,
            records_max: 100,
            bytes_max: 1 << 20,
        };
        self.inbox.give(|cell| cell.fetches.push(fetch.clone()));
        let cell = self.uplink.lock();
        let none = |cell: &mut ForUplink| cell.items.is_empty();
        let (mut cell, late) = self.uplink.filled.wait_timeout_while(cell, DEADLINE, none).unwrap();
        assert!(!late.timed_out(), "no items");
        let (answered, items) = cell.items.pop().unwrap();
        assert_eq!(answered, fetch);
        items
    }

    fn ack(&self, offer: &Offer, seq: Seq) {
        self.inbox.give(|cell| cell.acks.insert((offer.lane.clone(), offer.epoch), seq));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn put(request: u64, lane: &str, wait: Option<Wait>) -> Put {
    let body = Body::Text(format!("record {request} {}", "x".repeat(1000)));
    let boot_ms = clock::now().as_millis();
    let draft = Draft { at: None, boot: 1, boot_ms, ttl_s: 0, topic: "t".into(), key: None, body };
    Put { ticket: Some(Ticket { client: 1, request }), lane: Some(lane.into()), draft, wait }
}

fn seqs(outcomes: &[Outcome], answer: &Answer) -> Vec<Seq> {
    assert!(outcomes.iter().all(|outcome| outcome.answer == *answer), "{outcomes:?}");
    outcomes.iter().map(|outcome| outcome.seq).collect()
}

fn code(outcome: &Outcome) -> &'static str {
    match &outcome.answer {
        Answer::Error(code, _) => code,
        Answer::Accepted | Answer::Committed | Answer::Delivered => panic!("no error: {outcome:?}"),
    }
}

#[test]
fn a_load_of_producers_shares_one_sync_and_hears_of_it_in_order() {
    let bench = Bench::new();
    bench.put(vec![put(0, "sync", None)]);
    bench.outcomes(1);
    let before = bench.board.flash.lock().syncs;
    bench.put((1..=8).map(|request| put(request, "sync", None)).collect());
    let outcomes = bench.outcomes(8);
    assert_eq!(seqs(&outcomes, &Answer::Committed), (2..=9).collect::<Vec<_>>());
    assert_eq!(outcomes.iter().map(|outcome| outcome.ticket.request).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    let mut bench = bench;
    bench.stop();
    let flash = bench.board.flash.lock().clone();
    // One for the eight; a full batch or the clean stop may add their own.
    assert!(flash.syncs - before <= 4, "{} syncs", flash.syncs - before);
    assert!(flash.sync_ms_max > 0.0);
    assert!(bench.board.delay.lock().put_to_committed_ms.p50.is_some());
    assert_eq!(bench.board.lanes.lock()[0].depth, 9);
}

#[test]
fn says_no_more_than_the_lane_and_the_producer_ask_for() {
    let bench = Bench::new();
    bench.put(vec![
        put(1, "group", None),
        put(2, "sync", Some(Wait::Accepted)),
        put(3, "group", Some(Wait::Committed)),
        put(4, "sync", Some(Wait::Committed)),
        put(5, "nowhere", None),
        put(6, "group", Some(Wait::Delivered)),
    ]);
    let mut outcomes = bench.outcomes(5);
    outcomes.sort_by_key(|outcome| outcome.ticket.request);
    assert_eq!(seqs(&outcomes[..2], &Answer::Accepted), [1, 1]);
    assert_eq!(seqs(&outcomes[2..4], &Answer::Committed), [2, 2]);
    assert_eq!(code(&outcomes[4]), "unknown_lane");
    let offer = bench.offer("group");
    let items = bench.fetch(&offer, 1);
    assert!(items.len() >= 2, "{items:?}");
    bench.ack(&offer, 3);
    let outcomes = bench.outcomes(1);
    assert_eq!((outcomes[0].ticket.request, &outcomes[0].answer), (6, &Answer::Delivered));
    assert_eq!((outcomes[0].epoch, outcomes[0].seq), (offer.epoch, 3));
    assert!(bench.offer("group").epoch == offer.epoch);
}

#[test]
fn a_full_lane_rejects_or_drops_as_it_is_told_and_a_waiter_hears_of_it() {
    let bench = Bench::new();
    let all = |lane: &str, wait| (1..=100).map(|request| put(request, lane, wait)).collect::<Vec<_>>();
    bench.put(all("strict", None));
    let outcomes = bench.outcomes(100);
    let (taken, refused): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|outcome| outcome.answer == Answer::Committed);
    assert!(taken.len() > 20 && refused.len() > 20, "{} taken", taken.len());
    assert!(refused.iter().all(|outcome| code(outcome) == "full"));

    bench.put(all("sync", Some(Wait::Delivered)));
    // Until the oldest are gone.
    let mut last = put(200, "sync", None);
    last.ticket = Some(Ticket { client: 2, request: 200 });
    bench.put(vec![last]);
    bench.outcomes(1);
    let offer = bench.offer("sync");
    let items = bench.fetch(&offer, offer.first);
    let Item::Gap(gap) = &items[0] else { panic!("no gap: {items:?}") };
    let dropped = bench.outcomes((gap.to - gap.from + 1) as usize);
    assert!(dropped.iter().all(|outcome| code(outcome) == "full"), "{dropped:?}");
    bench.ack(&offer, 100);
    let delivered = bench.outcomes(100 - dropped.len());
    assert_eq!(seqs(&delivered, &Answer::Delivered), (gap.to + 1..=100).collect::<Vec<_>>());
}

#[test]
fn a_foreign_numbering_is_renumbered_and_its_waiters_hear_that_no_one_can_tell() {
    let bench = Bench::new();
    bench.put(vec![put(1, "sync", Some(Wait::Delivered)), put(2, "sync", None)]);
    bench.outcomes(1);
    let offer = bench.offer("sync");
    bench.inbox.give(|cell| cell.foreign.push((offer.lane.clone(), offer.epoch)));
    assert_eq!(code(&bench.outcomes(1)[0]), "degraded");
    let renumbered = bench.offer("sync");
    assert_ne!(renumbered.epoch, offer.epoch);
    assert_eq!((renumbered.first, bench.fetch(&renumbered, 1).len()), (1, 2));
}

#[test]
fn nobody_is_told_for_a_client_that_has_left() {
    let bench = Bench::new();
    bench.put(vec![put(1, "sync", Some(Wait::Delivered))]);
    bench.inbox.give(|cell| cell.gone.push(1));
    let mut other = put(2, "sync", Some(Wait::Delivered));
    other.ticket = Some(Ticket { client: 2, request: 2 });
    bench.put(vec![other, put(3, "sync", None)]);
    // Whether it left before or after its put was taken: one waiter at most is left over.
    bench.outcomes(1);
    bench.inbox.give(|cell| cell.gone.push(1));
    bench.ack(&bench.offer("sync"), 3);
    let outcomes = bench.outcomes(1);
    assert_eq!(outcomes[0].ticket.client, 2);
}

#[test]
fn what_was_only_accepted_is_on_flash_after_a_clean_stop() {
    let mut bench = Bench::new();
    bench.put(vec![put(1, "group", None), put(2, "group", None)]);
    assert_eq!(seqs(&bench.outcomes(2), &Answer::Accepted), [1, 2]);
    bench.stop();
    bench.start();
    let offer = bench.offer("group");
    let items = bench.fetch(&offer, 1);
    let texts: Vec<_> = items.iter().filter(|item| matches!(item, Item::Record(_))).collect();
    assert_eq!(texts.len(), 2, "{items:?}");
}

/// A budget that opening the outbox has used up, with commits held back for longer than any test takes.
fn spent() -> Option<(u64, Duration)> {
    Some((1, Duration::from_secs(3600)))
}

#[test]
fn when_the_budget_is_spent_commits_are_shared_until_the_agent_leaves() {
    let mut bench = Bench::with_budget(spent());
    let accepted = || bench.put(vec![put(100, "group", None)]);
    accepted();
    assert_eq!(seqs(&bench.outcomes(1), &Answer::Accepted), [1]);
    let before = bench.board.flash.lock().clone();
    for request in 1..=8 {
        bench.put(vec![put(request, "sync", None)]);
        // Answered at once, it says that the one before was taken, and was not.
        accepted();
        assert_eq!(seqs(&bench.outcomes(1), &Answer::Accepted), [request + 1]);
    }
    let budget = bench.board.flash.lock().budget.clone().unwrap();
    assert_eq!((budget.state.as_str(), budget.bytes_left, budget.window_ms), ("exceeded", 0, 3_600_000));
    assert_eq!(bench.board.flash.lock().syncs, before.syncs);
    bench.inbox.give(|cell| cell.hurry = true);
    assert_eq!(seqs(&bench.outcomes(8), &Answer::Committed), (1..=8).collect::<Vec<_>>());
    bench.stop();
    let flash = bench.board.flash.lock().clone();
    assert_eq!(flash.syncs_by_purpose.records - before.syncs_by_purpose.records, 2, "one a lane");
    assert_eq!((flash.syncs_by_purpose.sum(), flash.by_purpose.sum()), (flash.syncs, flash.bytes_written));
    let told = |bench: &Bench| bench.events.lock().unwrap().clone();
    assert!(matches!(&told(&bench)[..], [only] if only.starts_with("flash_budget exceeded ")), "{:?}", told(&bench));
    // A restart is no new budget, and no news.
    bench.start();
    bench.put(vec![put(200, "group", None)]);
    bench.outcomes(1);
    assert_eq!(bench.board.flash.lock().budget.clone().unwrap().state, "exceeded");
    assert_eq!(told(&bench).len(), 1);
}

#[test]
fn a_full_batch_ends_the_wait_for_the_budget() {
    let bench = Bench::with_budget(spent());
    bench.put((1..=30).map(|request| put(request, "sync", None)).collect());
    assert_eq!(seqs(&bench.outcomes(30), &Answer::Committed), (1..=30).collect::<Vec<_>>());
}

#[test]
fn the_window_ends_the_wait_for_the_budget() {
    let bench = Bench::with_budget(Some((1, Duration::from_millis(50))));
    for request in 1..=3 {
        bench.put(vec![put(request, "sync", None), put(100 + request, "group", Some(Wait::Committed))]);
        assert_eq!(seqs(&bench.outcomes(2), &Answer::Committed), [request, request]);
    }
}

#[test]
fn who_waits_for_the_budget_hears_of_his_record_before_it_is_renumbered() {
    let bench = Bench::with_budget(spent());
    let offer = bench.offer("sync");
    bench.put(vec![put(1, "sync", None)]);
    bench.put(vec![put(2, "group", None)]);
    bench.outcomes(1);
    bench.inbox.give(|cell| cell.foreign.push((offer.lane.clone(), offer.epoch)));
    let outcomes = bench.outcomes(1);
    assert_eq!((seqs(&outcomes, &Answer::Committed), outcomes[0].epoch), (vec![1], offer.epoch));
    assert_ne!(bench.offer("sync").epoch, offer.epoch);
}

#[test]
fn who_waits_for_delivery_hears_that_flash_did_not_take_his_record_though_no_commit_was_asked_for() {
    let mut bench = Bench::new();
    bench.stop();
    bench.start_on(SimDisk::default(), Arc::default(), |disk| disk.write_failures = u32::MAX);
    // A batch that is full is written by the put that finds it so.
    bench.put((1..=30).map(|request| put(request, "group", (request == 1).then_some(Wait::Delivered))).collect());
    let mut outcomes = bench.outcomes(30);
    outcomes.sort_by_key(|outcome| outcome.ticket.request);
    assert_eq!(code(&outcomes[0]), "degraded");
    seqs(&outcomes[1..], &Answer::Accepted);
}

#[test]
fn what_is_written_beside_the_outbox_is_in_its_books_and_costs_the_budget() {
    let mut bench = Bench::with_budget(Some((1 << 30, Duration::from_millis(50))));
    let flash_when = |bench: &Bench, exceeded: bool| {
        let begin = std::time::Instant::now();
        loop {
            let flash = bench.board.flash.lock().clone();
            if flash.budget.as_ref().is_some_and(|budget| (budget.state == "exceeded") == exceeded) {
                return flash;
            }
            assert!(begin.elapsed() < DEADLINE, "{flash:?}");
            std::thread::yield_now();
        }
    };
    let before = flash_when(&bench, false);
    bench.inbox.give(|cell| cell.beside = Written { bytes: 900 << 20, syncs: 2 });
    flash_when(&bench, true);
    bench.stop();
    let flash = bench.board.flash.lock().clone();
    assert_eq!(flash.by_purpose.other, before.by_purpose.other + (900 << 20));
    assert_eq!(flash.syncs_by_purpose.other, before.syncs_by_purpose.other + 2);
    assert_eq!((flash.syncs_by_purpose.sum(), flash.by_purpose.sum()), (flash.syncs, flash.bytes_written));
}
