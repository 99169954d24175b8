//! The outbox thread: the only one that touches flash. It takes all that lies in its port at once, commits once a
//! lane for everyone in that load (group commit), answers in the order of the puts, then serves the uplink. Flash
//! that stalls holds up this thread and no lock.

#[cfg(test)]
mod tests;
mod waiters;

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::config::Commit;
use crate::outbox::disk::Disk;
use crate::outbox::{Event, LaneId, Outbox, PushError};
use crate::record::{Epoch, Fetch, Item, LaneName, Offer, Seq, Why};
use crate::shell::EventHook;
use crate::shell::board::Board;
use crate::shell::clock;
use crate::shell::disk::SyncTimes;
use crate::shell::port::{Answer, ForLocal, ForOutbox, ForUplink, Outcome, Port, Put, Ticket, Wait};
use crate::status::{Delay, Lane, Samples};
use crate::time::Instant;
use waiters::{Waiters, Watched};

/// Shortest time between two computations of percentiles: they are up to date at once or after so long.
const MEASURE_INTERVAL: Duration = Duration::from_millis(50);
/// What the load's lists keep between loads.
const LOAD_KEPT: usize = 256;

/// The answer to a put that flash did not take.
const IN_RAM_ONLY: &str = "the storage fails: kept in RAM only, and sent if the power stays";

/// Whom the outbox thread talks to.
pub struct Setup {
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
    /// Called with kind and detail of what is worth a record on topic `$event`.
    pub event: EventHook,
}

/// Runs the thread's life: until told to stop, then everything in RAM goes to flash.
pub fn run<D: Disk>(outbox: Outbox<D>, setup: Setup) {
    let mut keeper = Keeper {
        outbox,
        setup,
        load: ForOutbox::default(),
        taken: Vec::new(),
        waiters: Waiters::default(),
        to_committed: Samples::default(),
        to_delivered: Samples::default(),
        offers: Vec::new(),
        measured: None,
        stale: false,
        lost: 0,
    };
    keeper.publish(Vec::new());
    keeper.show(clock::now());
    while !keeper.turn() {}
    keeper.outbox.flush();
    keeper.measured = None;
    keeper.show(clock::now());
}

struct Keeper<D: Disk> {
    outbox: Outbox<D>,
    setup: Setup,
    /// What this turn works on; swapped with the port's content, so that its lists are used again.
    load: ForOutbox,
    taken: Vec<Taken>,
    waiters: Waiters,
    to_committed: Samples,
    to_delivered: Samples,
    /// As the uplink knows them.
    offers: Vec<Offer>,
    /// When percentiles were computed last.
    measured: Option<Instant>,
    /// They may have changed since.
    stale: bool,
    /// Records given up so far, as shown last.
    lost: u64,
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
        let mut outcomes = self.settle(now);
        let served = !self.load.puts.is_empty();
        let lanes = self.take_puts(now, &mut outcomes);
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
            self.outbox.handle_timeout(now);
        }
        while let Some(Event { kind, detail }) = self.outbox.poll_event() {
            log::warn!(target: "outbox", "{kind} {detail}");
            (self.setup.event)(kind, &detail);
        }
        let items = self.fetch(&mut outcomes);
        self.publish(items);
        self.show(now);
        if served || !outcomes.is_empty() {
            self.setup.local.give(|local| local.outcomes.append(&mut outcomes));
        }
        stop
    }

    fn wait(&mut self) {
        let now = clock::now();
        let due = self.outbox.poll_timeout().map(|(at, _)| at);
        let measure = self.measured.filter(|_| self.stale).map(|at| at + MEASURE_INTERVAL);
        let timeout = due.into_iter().chain(measure).min().map(|at| at.since(now));
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
    fn settle(&mut self, now: Instant) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for ((lane, epoch, seq), reason) in mem::take(&mut self.load.rejected) {
            self.outbox.rejected(&lane, epoch, seq, &reason);
            let answer = Answer::Error("bad_request", format!("refused upstream: {reason}"));
            self.waiters.answer(&(lane, epoch), seq..=seq, &answer, &mut outcomes);
        }
        for (name, seq) in mem::take(&mut self.load.acks) {
            self.outbox.acked(&name.0, name.1, seq, now);
            self.waiters.answer(&name, 0..=seq, &Answer::Delivered, &mut outcomes);
            for boot_ms in self.waiters.watched_up_to(&name, seq) {
                self.to_delivered.push(since(boot_ms, now));
            }
        }
        for name in self.load.foreign.drain(..) {
            self.outbox.renumber(&name.0, name.1);
            // The record is kept and goes up, but under a number that no one here knows.
            let answer = Answer::Error("degraded", "stored, but renumbered: its delivery cannot be told".into());
            self.waiters.answer(&name, 0..=Seq::MAX, &answer, &mut outcomes);
            self.waiters.watched_up_to(&name, Seq::MAX);
        }
        outcomes
    }

    /// Numbers the puts; what needs no commit is answered. Returns the lanes to commit.
    fn take_puts(&mut self, now: Instant, outcomes: &mut Vec<Outcome>) -> Vec<LaneId> {
        let mut lanes = Vec::new();
        let mut puts = mem::take(&mut self.load.puts);
        for put in puts.drain(..) {
            let ticket = put.ticket;
            if let Err((code, message)) = self.take_put(put, now, &mut lanes, outcomes)
                && let Some(ticket) = ticket
            {
                let answer = Answer::Error(code, message);
                outcomes.push(Outcome { ticket, answer, lane: None, epoch: 0, seq: 0 });
            }
        }
        puts.shrink_to(LOAD_KEPT);
        self.load.puts = puts;
        self.load.puts_bytes = 0;
        lanes
    }

    fn take_put(
        &mut self,
        put: Put,
        now: Instant,
        lanes: &mut Vec<LaneId>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), (&'static str, String)> {
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
        let due = sync || answer_after_commit || self.outbox.is_due(lane);
        if due && !lanes.contains(&lane) {
            lanes.push(lane);
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

    /// One commit a lane; then everyone who waited for it hears of it.
    fn commit(&mut self, lanes: &[LaneId], outcomes: &mut Vec<Outcome>) {
        for lane in lanes {
            let (epoch, _) = self.outbox.committed(*lane);
            let result = self.outbox.commit(*lane);
            let now = clock::now();
            if self.outbox.committed(*lane).0 != epoch {
                self.on_moved((self.outbox.lane_name(*lane).clone(), epoch), outcomes);
            }
            let mut sampled = false;
            for taken in self.taken.iter().filter(|taken| taken.lane == *lane) {
                // A batch that was full may have been committed before the commit that failed.
                let committed = result.is_ok() || self.outbox.is_committed(*lane, taken.epoch, taken.seq);
                let answer = match result {
                    Err(error) if !committed => {
                        let (code, message) = words(error);
                        Answer::Error(code, message)
                    }
                    Ok(()) | Err(_) => Answer::Committed,
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
        self.taken.clear();
        self.taken.shrink_to(LOAD_KEPT);
    }

    /// What was not yet on flash has other numbers now, in RAM.
    fn on_moved(&mut self, name: (LaneName, Epoch), outcomes: &mut Vec<Outcome>) {
        let next = self.outbox.next(&name.0, name.1);
        let answer = Answer::Error("degraded", IN_RAM_ONLY.into());
        self.waiters.answer(&name, next..=Seq::MAX, &answer, outcomes);
        self.waiters.unwatch_from(&name, next);
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
    fn publish(&mut self, items: Vec<(Fetch, Vec<Item>)>) {
        let offers = self.outbox.offers();
        let changed = offers != self.offers;
        if !changed && items.is_empty() {
            return;
        }
        self.setup.uplink.give(|uplink| {
            uplink.items.extend(items);
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
        let lanes = self.outbox.lanes_status(clock::wall_ms_if_set());
        let lost = lanes.iter().map(Lane::lost).sum();
        if lost > mem::replace(&mut self.lost, lost) {
            *board.lost_at.lock() = Some(now);
        }
        *board.lanes.lock() = lanes;
        *board.lanes_at.lock() = now;
        let mut flash = self.outbox.flash_status();
        board.outbox_bytes.store(self.outbox.queues_bytes(), Ordering::Relaxed);
        if self.measured.is_none_or(|at| now.since(at) >= MEASURE_INTERVAL) {
            (flash.sync_ms_p50, flash.sync_ms_max) = self.setup.sync_times.ms_p50_and_max();
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
