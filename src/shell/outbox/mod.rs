//! The outbox thread: the only one that touches flash. It takes all that lies in its port at once, commits once a
//! lane for everyone in that load (group commit; a flash budget that runs low makes it wait for further loads),
//! answers in the order of the puts, then serves the uplink. Flash that stalls holds up this thread and no lock.

mod done;
mod spending;
#[cfg(test)]
mod tests;
mod waiters;

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::config::Commit;
use crate::insight::figures::Rate;
use crate::outbox::dead::DEAD_LANE;
use crate::outbox::disk::Disk;
use crate::outbox::expiry::Clock;
use crate::outbox::{Event, LaneId, Outbox, PushError};
use crate::record::{Epoch, Fetch, Item, LaneName, Offer, Seq, Why};
use crate::shell::EventHook;
use crate::shell::board::Board;
use crate::shell::clock;
use crate::shell::disk::SyncTimes;
use crate::shell::lifetime;
use crate::shell::port::{Answer, ForLocal, ForOutbox, ForUplink, Outcome, Port, Put, Refusal, Ticket, Wait};
use crate::shell::saved::Written;
use crate::status::{Delay, Lane, Samples};
use crate::time::Instant;
pub use done::DoneFile;
pub use spending::Spending;
use waiters::{Waiters, Watched};

/// Shortest time between two computations of percentiles: they are up to date at once or after so long.
const MEASURE_INTERVAL: Duration = Duration::from_millis(50);
/// What the load's lists keep between loads.
const LOAD_KEPT: usize = 256;

/// The answer to a put that flash did not take.
const IN_RAM_ONLY: &str = "the storage fails: kept in RAM only, and sent if the power stays";

/// Whom the outbox thread talks to.
pub struct Setup {
    /// The boot's id, folded.
    pub boot: u32,
    /// What it is told.
    pub inbox: Arc<Port<ForOutbox>>,
    /// Offers and items go there.
    pub uplink: Arc<Port<ForUplink>>,
    /// Outcomes go there.
    pub local: Arc<Port<ForLocal>>,
    /// Its part of the status goes there.
    pub board: Arc<Board>,
    /// How long the disk's syncs take.
    pub sync_times: Arc<SyncTimes>,
    /// Asks the flash how worn it is.
    pub lifetime: lifetime::Reader,
    /// The flash budget, where there is one.
    pub spending: Option<Spending>,
    /// The last command done.
    pub done: DoneFile,
    /// Called with kind and detail of what is worth a record on topic `$event`.
    pub event: EventHook,
}

/// Runs the thread's life: until told to stop, then everything in RAM goes to flash.
pub fn run<D: Disk>(outbox: Outbox<D>, setup: Setup) {
    let epochs = outbox.lane_ids().map(|lane| (lane, outbox.committed(lane).0)).collect();
    let mut keeper = Keeper {
        outbox,
        epochs,
        setup,
        load: ForOutbox::default(),
        taken: Vec::new(),
        held: Vec::new(),
        hurry: false,
        beside: Written::default(),
        waiters: Waiters::default(),
        to_committed: Samples::default(),
        to_delivered: Samples::default(),
        offers: Vec::new(),
        measured: None,
        stale: false,
        rates: Vec::new(),
        lost: 0,
        server_ahead_ms: None,
    };
    keeper.setup.uplink.lock().done = keeper.setup.done.open();
    keeper.publish(Vec::new(), false);
    keeper.spend(clock::now());
    keeper.show(clock::now());
    while !keeper.turn() {}
    keeper.outbox.flush();
    keeper.measured = None;
    keeper.spend(clock::now());
    keeper.show(clock::now());
}

struct Keeper<D: Disk> {
    outbox: Outbox<D>,
    /// Each lane's, as those who wait know it.
    epochs: Vec<(LaneId, Epoch)>,
    setup: Setup,
    /// What this turn works on; swapped with the port's content, so that its lists are used again.
    load: ForOutbox,
    taken: Vec<Taken>,
    /// Lanes that want a commit, and since when.
    held: Vec<(LaneId, Instant)>,
    /// No commit is held back any more.
    hurry: bool,
    /// What others wrote to flash.
    beside: Written,
    waiters: Waiters,
    to_committed: Samples,
    to_delivered: Samples,
    /// As the uplink knows them.
    offers: Vec<Offer>,
    /// When percentiles were computed last.
    measured: Option<Instant>,
    /// They may have changed since.
    stale: bool,
    /// Of each lane, records put and acked a second.
    rates: Vec<(Rate, Rate)>,
    /// Records given up so far, as shown last.
    lost: u64,
    /// How far the upstream's time was ahead of the boot clock at the last `welcome`.
    server_ahead_ms: Option<u64>,
}

/// A put that waits for its lane's commit.
struct Taken {
    ticket: Option<Ticket>,
    lane: LaneId,
    epoch: Epoch,
    seq: Seq,
    boot_ms: u64,
}

impl<D: Disk> Keeper<D> {
    /// Waits for a load and works it off; true when it was the last.
    fn turn(&mut self) -> bool {
        self.wait();
        let now = clock::now();
        let stop = self.load.stop;
        self.hurry |= stop || mem::take(&mut self.load.hurry);
        let Written { bytes, syncs } = mem::take(&mut self.load.beside);
        (self.beside.bytes, self.beside.syncs) = (self.beside.bytes + bytes, self.beside.syncs + syncs);
        let mut outcomes = Vec::new();
        if !self.load.foreign.is_empty() {
            // Who waits for a commit hears of it under the name that his record has now.
            self.commit_held(&mut outcomes);
        }
        self.settle(now, &mut outcomes);
        let served = !self.load.puts.is_empty();
        self.take_puts(now, &mut outcomes);
        self.tell_moved(&mut outcomes);
        let lanes = self.due(now);
        // After the puts: its last ones may be in the same load.
        for client in mem::take(&mut self.load.gone) {
            self.waiters.forget(client);
        }
        if !lanes.is_empty() && !outcomes.is_empty() {
            // What needs no flash does not wait for it.
            let ready = mem::take(&mut outcomes);
            self.setup.local.give(|local| local.outcomes.extend(ready));
        }
        self.commit(&lanes, &mut outcomes);
        let now = clock::now();
        if self.outbox.poll_timeout().is_some_and(|(at, _)| at <= now) {
            // It may commit a lane as well, and tells nobody.
            self.commit_held(&mut outcomes);
            self.outbox.handle_timeout(now);
            self.tell_moved(&mut outcomes);
        }
        let prepare = mem::take(&mut self.load.prepare_offers);
        if prepare {
            self.begin_live(&mut outcomes);
        }
        self.keep_done(now);
        self.spend(now);
        while let Some(Event { kind, detail }) = self.outbox.poll_event() {
            log::warn!(target: "outbox", "{kind} {detail}");
            (self.setup.event)(kind, &detail);
        }
        let (boot, boot_ms) = (self.setup.boot, now.as_millis());
        let wall_ms = clock::wall_ms_if_set();
        if let Some((server_ms, at)) = self.load.server_time.take() {
            self.server_ahead_ms = server_ms.checked_sub(at.as_millis()).filter(|_| clock::is_plausible(server_ms));
        }
        let server_ms = self.server_ahead_ms.map(|ahead_ms| ahead_ms.saturating_add(boot_ms));
        self.outbox.handle_clock(Clock { boot, boot_ms, wall_ms, server_ms });
        let items = self.fetch(&mut outcomes);
        self.publish(items, prepare);
        self.show(now);
        if served || !outcomes.is_empty() {
            self.setup.local.give(|local| local.outcomes.append(&mut outcomes));
        }
        stop
    }

    fn wait(&mut self) {
        let now = clock::now();
        let due = self.outbox.poll_timeout().map(|(at, _)| at);
        let held = self.held.iter().map(|(_, since)| *since).min().map(|since| since + self.window(now));
        let budget = self.setup.spending.as_ref().and_then(Spending::poll_timeout);
        let measure = self.measured.filter(|_| self.stale).map(|at| at + MEASURE_INTERVAL);
        let done = self.setup.done.poll_timeout();
        let due = due.into_iter().chain(measure).chain(held).chain(budget).chain(done).min();
        let timeout = due.map(|at| at.since(now));
        let port = &self.setup.inbox;
        let cell = port.lock();
        let mut cell = match timeout {
            None => port.filled.wait_while(cell, |cell| cell.is_empty()).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = port.filled.wait_timeout_while(cell, timeout, |cell| cell.is_empty());
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        mem::swap(&mut *cell, &mut self.load);
        let was_full = self.load.is_full();
        drop(cell);
        if was_full {
            // Producers may go on while this load is put on flash.
            self.setup.local.give(|_| ());
        }
    }

    /// What the upstream said: refusals before the acks that cover them, acks before puts, since they make room.
    fn settle(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        for ((lane, epoch, seq), Refusal { reason, ours }) in mem::take(&mut self.load.rejected) {
            let by = if ours {
                self.outbox.refuse(&lane, epoch, seq, &reason);
                "here"
            } else {
                self.outbox.rejected(&lane, epoch, seq, &reason);
                "upstream"
            };
            let answer = Answer::Error("bad_request", format!("refused {by}: {reason}"));
            self.waiters.answer(&(lane, epoch), seq..=seq, &answer, outcomes);
        }
        for (name, seq) in mem::take(&mut self.load.acks) {
            self.outbox.acked(&name.0, name.1, seq, now);
            self.waiters.answer(&name, 0..=seq, &Answer::Delivered, outcomes);
            for boot_ms in self.waiters.watched_up_to(&name, seq) {
                let took = since(boot_ms, now);
                self.to_delivered.push(took);
                self.setup.board.put_to_delivered.lock().push(took);
            }
        }
        for name in self.load.foreign.drain(..) {
            self.outbox.renumber(&name.0, name.1);
            // The record is kept and goes up, but under a number that no one here knows.
            let answer = Answer::Error("degraded", "stored, but renumbered: its delivery cannot be told".into());
            self.waiters.answer(&name, 0..=Seq::MAX, &answer, outcomes);
            self.waiters.watched_up_to(&name, Seq::MAX);
        }
    }

    /// Numbers the puts; what needs no commit is answered.
    fn take_puts(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) {
        let mut puts = mem::take(&mut self.load.puts);
        for put in puts.drain(..) {
            let ticket = put.ticket;
            if let Err((code, message)) = self.take_put(put, now, outcomes)
                && let Some(ticket) = ticket
            {
                let answer = Answer::Error(code, message);
                outcomes.push(Outcome { ticket, answer, lane: None, epoch: 0, seq: 0 });
            }
        }
        puts.shrink_to(LOAD_KEPT);
        self.load.puts = puts;
        self.load.puts_bytes = 0;
    }

    fn take_put(&mut self, put: Put, now: Instant, outcomes: &mut Vec<Outcome>) -> Result<(), (&'static str, String)> {
        let Put { ticket, lane: name, draft, wait } = put;
        let Some(lane) = self.outbox.lane(name.as_deref()) else {
            return Err(("unknown_lane", format!("no lane is named '{}'", name.unwrap_or_default())));
        };
        if wait == Some(Wait::Delivered) && self.waiters.is_full() {
            return Err(("busy", "too many records wait for their delivery".into()));
        }
        let boot_ms = draft.boot_ms;
        let (epoch, seq) = self.outbox.push(lane, draft, now).map_err(words)?;
        let sync = match self.outbox.commit_mode(lane) {
            Commit::Sync => true,
            Commit::Group | Commit::RamFirst => false,
        };
        let answer_after_commit = match wait {
            None => sync,
            Some(Wait::Committed) => true,
            Some(Wait::Accepted | Wait::Delivered) => false,
        };
        if self.outbox.is_acked(lane, epoch, seq) {
            // Put again under the key of a record that has arrived.
            let answer = match wait {
                Some(Wait::Delivered) => Answer::Delivered,
                Some(Wait::Accepted | Wait::Committed) | None if answer_after_commit => Answer::Committed,
                Some(Wait::Accepted | Wait::Committed) | None => Answer::Accepted,
            };
            let lane = Some(self.outbox.lane_name(lane).clone());
            outcomes.extend(ticket.map(|ticket| Outcome { ticket, answer, lane, epoch, seq }));
            return Ok(());
        }
        let due = sync || answer_after_commit || self.outbox.is_due(lane);
        if due && !self.held.iter().any(|(held, _)| *held == lane) {
            self.held.push((lane, now));
        }
        let lane_name = || self.outbox.lane_name(lane).clone();
        if answer_after_commit {
            self.taken.push(Taken { ticket, lane, epoch, seq, boot_ms });
        } else if let (Some(Wait::Delivered), Some(ticket)) = (wait, ticket) {
            self.waiters.add((lane_name(), epoch), seq, ticket);
        } else if let Some(ticket) = ticket {
            outcomes.push(Outcome { ticket, answer: Answer::Accepted, lane: Some(lane_name()), epoch, seq });
        }
        if self.waiters.may_watch() {
            self.waiters.watch(Watched { lane: (lane_name(), epoch), seq, boot_ms });
        }
        Ok(())
    }

    /// How long a commit is held back now.
    fn window(&self, now: Instant) -> Duration {
        match &self.setup.spending {
            Some(spending) if !self.hurry => spending.window(now),
            Some(_) | None => Duration::ZERO,
        }
    }

    /// The lanes to commit now: those that have waited for the window, and those where waiting is no use, since
    /// `commit_bytes` are there or the first who waits is on flash with a batch that was full.
    fn due(&mut self, now: Instant) -> Vec<LaneId> {
        let window = self.window(now);
        let (outbox, taken) = (&self.outbox, &self.taken);
        let no_use = |lane: LaneId| {
            let first = taken.iter().find(|taken| taken.lane == lane);
            outbox.is_due(lane) || first.is_some_and(|first| outbox.is_committed(lane, first.epoch, first.seq))
        };
        let due = self.held.extract_if(.., |(lane, since)| *since + window <= now || no_use(*lane));
        due.map(|(lane, _)| lane).collect()
    }

    /// Commits all that is held back.
    fn commit_held(&mut self, outcomes: &mut Vec<Outcome>) {
        let lanes: Vec<LaneId> = self.held.drain(..).map(|(lane, _)| lane).collect();
        self.commit(&lanes, outcomes);
    }

    /// Counts what went to flash against the budget; the next group commits heed it.
    fn spend(&mut self, now: Instant) {
        if let Some(spending) = &mut self.setup.spending {
            spending.count(self.outbox.bytes_written() + self.beside.bytes, now, &self.setup.event);
            let window = self.window(now);
            self.outbox.set_commit_ms_min(window.as_millis() as u64);
        }
    }

    /// Which commands are done goes up only when it is on flash.
    fn keep_done(&mut self, now: Instant) {
        let Some((done, Written { bytes, syncs })) = self.setup.done.write(self.load.done.take(), now) else { return };
        (self.beside.bytes, self.beside.syncs) = (self.beside.bytes + bytes, self.beside.syncs + syncs);
        self.setup.uplink.give(|uplink| uplink.done = Some(done));
    }

    /// One commit a lane; then everyone who waited for it hears of it.
    fn commit(&mut self, lanes: &[LaneId], outcomes: &mut Vec<Outcome>) {
        for lane in lanes {
            let result = self.outbox.commit(*lane);
            let now = clock::now();
            let mut sampled = false;
            for taken in self.taken.iter().filter(|taken| taken.lane == *lane) {
                // A batch that was full may have been committed before the commit that failed; and what was put again
                // under its key may be in RAM only since before.
                let committed = self.outbox.is_committed(*lane, taken.epoch, taken.seq);
                let answer = if committed {
                    Answer::Committed
                } else {
                    let (code, message) = words(result.err().unwrap_or(PushError::Degraded));
                    Answer::Error(code, message)
                };
                if committed && !mem::replace(&mut sampled, true) {
                    // The first of a load has waited longest.
                    self.to_committed.push(since(taken.boot_ms, now));
                }
                if let Some(ticket) = taken.ticket {
                    let lane = Some(self.outbox.lane_name(*lane).clone());
                    outcomes.push(Outcome { ticket, answer, lane, epoch: taken.epoch, seq: taken.seq });
                }
            }
        }
        self.taken.retain(|taken| !lanes.contains(&taken.lane));
        self.taken.shrink_to(LOAD_KEPT);
        self.tell_moved(outcomes);
    }

    /// Storage may fail, or be back, in a put, a commit or a new try: each gives a lane another epoch.
    fn tell_moved(&mut self, outcomes: &mut Vec<Outcome>) {
        let mut moved = Vec::new();
        for (lane, known) in &mut self.epochs {
            let (epoch, _) = self.outbox.committed(*lane);
            if epoch != *known {
                moved.push((self.outbox.lane_name(*lane).clone(), mem::replace(known, epoch)));
            }
        }
        for name in moved {
            self.on_moved(name, outcomes);
        }
    }

    /// What was not yet on flash has other numbers now, in RAM.
    fn on_moved(&mut self, name: (LaneName, Epoch), outcomes: &mut Vec<Outcome>) {
        let next = self.outbox.next(&name.0, name.1);
        let answer = Answer::Error("degraded", IN_RAM_ONLY.into());
        self.waiters.answer(&name, next..=Seq::MAX, &answer, outcomes);
        self.waiters.unwatch_from(&name, next);
    }

    /// A connection is about to begin: lanes with a backlog go on in a new epoch.
    fn begin_live(&mut self, outcomes: &mut Vec<Outcome>) {
        // Who waits for a commit hears of it under the name that his record has.
        self.commit_held(outcomes);
        for lane in self.outbox.begin_live() {
            log::info!(target: "outbox", "live records go ahead of the backlog lane={lane}");
        }
        self.tell_moved(outcomes);
    }

    fn fetch(&mut self, outcomes: &mut Vec<Outcome>) -> Vec<(Fetch, Vec<Item>)> {
        let mut answers = Vec::with_capacity(self.load.fetches.len());
        for fetch in self.load.fetches.drain(..) {
            let items = self.outbox.fetch(&fetch);
            for item in &items {
                let Item::Gap(gap) = item else { continue };
                // The ack that covers a gap says nothing of its records.
                let code = match gap.why {
                    Why::Overflow => "full",
                    Why::Rejected => "bad_request",
                    Why::Expired | Why::Corrupt | Why::Torn | Why::Unknown | Why::Settled => "degraded",
                };
                let answer = Answer::Error(code, format!("given up before its delivery: {}", gap.why.as_str()));
                self.waiters.answer(&(fetch.lane.clone(), fetch.epoch), gap.from..=gap.to, &answer, outcomes);
            }
            answers.push((fetch, items));
        }
        answers
    }

    /// Tells the uplink what it does not know yet, with one wake-up.
    fn publish(&mut self, items: Vec<(Fetch, Vec<Item>)>, prepared: bool) {
        let offers = self.outbox.offers();
        let changed = offers != self.offers;
        if !changed && items.is_empty() && !prepared {
            return;
        }
        self.setup.uplink.give(|uplink| {
            uplink.items.extend(items);
            uplink.offers_prepared |= prepared;
            if changed {
                uplink.offers.clone_from(&offers);
                uplink.offers_changed = true;
            }
        });
        self.offers = offers;
    }

    /// Pins the counters to the board: whoever has an answer finds his record in the status. Percentiles cost a sort
    /// and may be a little late.
    fn show(&mut self, now: Instant) {
        let board = &self.setup.board;
        let mut lanes = self.outbox.lanes_status(clock::wall_ms_if_set());
        // A lane that goes or comes stands last.
        self.rates.resize_with(lanes.len(), Default::default);
        for (lane, (put, acked)) in lanes.iter_mut().zip(&mut self.rates) {
            put.count(lane.put_total, now);
            acked.count(lane.acked_total, now);
            (lane.put_per_s, lane.acked_per_s) = (put.per_s(), acked.per_s());
        }
        // What the dead letters give up was counted when it was refused.
        let lost = lanes.iter().filter(|lane| lane.name != DEAD_LANE).map(Lane::lost).sum();
        if lost > mem::replace(&mut self.lost, lost) {
            *board.lost_at.lock() = Some(now);
        }
        *board.lanes.lock() = lanes;
        *board.lanes_at.lock() = now;
        let mut flash = self.outbox.flash_status();
        let Written { bytes, syncs } = self.beside;
        (flash.bytes_written, flash.by_purpose.other) = (flash.bytes_written + bytes, flash.by_purpose.other + bytes);
        (flash.syncs, flash.syncs_by_purpose.other) = (flash.syncs + syncs, flash.syncs_by_purpose.other + syncs);
        flash.lifetime = self.setup.lifetime.read(now);
        flash.budget = self.setup.spending.as_ref().map(|spending| spending.status(now));
        board.outbox_bytes.store(self.outbox.queues_bytes(), Ordering::Relaxed);
        if self.measured.is_none_or(|at| now.since(at) >= MEASURE_INTERVAL) {
            (flash.sync_ms_p50, flash.sync_ms_max) = self.setup.sync_times.ms_p50_and_max();
            *board.sync.lock() = self.setup.sync_times.histogram();
            *board.delay.lock() = Delay {
                put_to_committed_ms: self.to_committed.percentiles(),
                put_to_delivered_ms: self.to_delivered.percentiles(),
            };
            self.measured = Some(now);
            self.stale = false;
        } else {
            let pinned = board.flash.lock();
            (flash.sync_ms_p50, flash.sync_ms_max) = (pinned.sync_ms_p50, pinned.sync_ms_max);
            self.stale = true;
        }
        *board.flash.lock() = flash;
    }
}

fn since(boot_ms: u64, now: Instant) -> Duration {
    now.since(Instant::from_micros(boot_ms.saturating_mul(1000)))
}

fn words(error: PushError) -> (&'static str, String) {
    match error {
        PushError::Full => ("full", "the lane is full".into()),
        PushError::TooLarge => ("too_large", "the record is larger than record_bytes_max".into()),
        PushError::Degraded => ("degraded", IN_RAM_ONLY.into()),
    }
}
