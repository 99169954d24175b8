//! Who is given which command, and when it is done: when everyone who was given it is, or when the wait is over.
//!
//! - Everyone who asked for a topic is given what comes on it, in ascending order, and each command once however many
//!   of their filters match. Who comes later is given what is not done yet.
//! - A command that nobody asks for within the wait is done.
//! - A subscriber has the wait for each command, and the wait again whenever it says `done`: who works off a queue
//!   slowly is not taken for dead. What it does not answer in that time is done without it.
//! - The part of a subscriber that went in the middle is for the next one that comes, until the wait is over since the
//!   first one went: one that dies of a command again and again does not hold up the others for ever.
//! - `done` is cumulative, so that it comes up to the lowest that is not done.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::commands::filter::Filter;
use crate::commands::{COMMANDS_MAX, Command};
use crate::dialect::message::CommandCursor;
use crate::time::Instant;

/// Filters of one subscriber, at most.
pub const FILTERS_MAX: usize = 16;

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commands that somebody was given.
    pub delivered: u64,
    /// Commands that nobody asked for in time.
    pub unclaimed: u64,
    /// Answers that did not come in time.
    pub timed_out: u64,
}

/// The desk.
#[derive(Debug)]
pub struct Desk {
    wait: Duration,
    stream: u64,
    /// Ascending; the first one is never over.
    held: VecDeque<Held>,
    subscribers: Vec<Subscriber>,
    done: Option<CommandCursor>,
    counts: Counts,
}

#[derive(Debug)]
struct Subscriber {
    client: u64,
    filters: Vec<Filter>,
    /// It always answers, however long that takes.
    patient: bool,
    /// When it last said `done` of what it was given.
    answered: Instant,
    /// The highest number it was given.
    highest: u64,
}

#[derive(Debug)]
struct Held {
    command: Arc<Command>,
    came: Instant,
    /// Somebody asked for it.
    claimed: bool,
    /// Somebody was given it.
    delivered: bool,
    over: bool,
    parts: Vec<Part>,
}

/// What one subscriber has to do with one command.
#[derive(Debug)]
struct Part {
    state: State,
    /// When whose it was first went; then it is for another one until the wait is over.
    lost: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For whoever comes.
    Lost,
    /// For this client, since then.
    Queued(u64, Instant),
    /// With this client, since it was queued.
    Given(u64, Instant),
    /// Done by this client.
    Done(u64),
}

impl State {
    fn client(self) -> Option<u64> {
        match self {
            Self::Lost => None,
            Self::Queued(client, _) | Self::Given(client, _) | Self::Done(client) => Some(client),
        }
    }
}

impl Desk {
    /// With this `command_wait_ms`.
    pub fn new(wait: Duration) -> Self {
        Self {
            wait,
            stream: 0,
            held: VecDeque::with_capacity(COMMANDS_MAX),
            subscribers: Vec::new(),
            done: None,
            counts: Counts::default(),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The numbering of what is held.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Commands that are not done.
    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    /// Bytes of topic and body held.
    pub fn bytes(&self) -> usize {
        let bytes = |held: &Held| held.command.topic.len() + held.command.body.as_bytes().len();
        self.held.iter().map(bytes).sum()
    }

    /// A command came. Those of another numbering are forgotten: no one could be told that they are done.
    pub fn handle_command(&mut self, command: Command, now: Instant) {
        if command.stream != self.stream {
            self.stream = command.stream;
            self.held.clear();
            self.done = None;
        }
        debug_assert!(self.held.len() < COMMANDS_MAX, "the intake takes no more");
        debug_assert!(self.held.back().is_none_or(|held| held.command.seq < command.seq), "ascending");
        let wanted = self.subscribers.iter().filter(|subscriber| subscriber.wants(&command.topic));
        let part = |subscriber: &Subscriber| Part { state: State::Queued(subscriber.client, now), lost: None };
        let parts: Vec<Part> = wanted.map(part).collect();
        let (claimed, command) = (!parts.is_empty(), Arc::new(command));
        self.held.push_back(Held { command, came: now, claimed, delivered: false, over: false, parts });
        self.check_invariants();
    }

    /// This client asks for topics; `patient`: it always answers. An error is for people.
    pub fn handle_subscribe(
        &mut self,
        client: u64,
        filter: Filter,
        patient: bool,
        now: Instant,
    ) -> Result<(), &'static str> {
        let index = self.subscribers.iter().position(|subscriber| subscriber.client == client);
        let index = index.unwrap_or_else(|| {
            self.subscribers.push(Subscriber { client, filters: Vec::new(), patient, answered: now, highest: 0 });
            self.subscribers.len() - 1
        });
        let filters = &mut self.subscribers[index].filters;
        if filters.contains(&filter) {
            return Ok(());
        }
        if filters.len() == FILTERS_MAX {
            return Err("a connection has at most 16 subscriptions");
        }
        for held in self.held.iter_mut().filter(|held| !held.over && filter.matches(&held.command.topic)) {
            held.hand_to(client, now);
        }
        filters.push(filter);
        self.check_invariants();
        Ok(())
    }

    /// What this client is given next.
    pub fn poll_next(&mut self, client: u64) -> Option<Arc<Command>> {
        let subscriber = self.subscribers.iter_mut().find(|subscriber| subscriber.client == client)?;
        for held in &mut self.held {
            for part in &mut held.parts {
                if let State::Queued(whose, since) = part.state
                    && whose == client
                {
                    part.state = State::Given(client, since);
                    subscriber.highest = subscriber.highest.max(held.command.seq);
                    if !std::mem::replace(&mut held.delivered, true) {
                        self.counts.delivered += 1;
                    }
                    return Some(Arc::clone(&held.command));
                }
            }
        }
        None
    }

    /// This client has done a command. False: it was never given it; what it was given and is done without it by now
    /// is no fault of the client's.
    pub fn handle_done(&mut self, client: u64, seq: u64, now: Instant) -> bool {
        let Some(subscriber) = self.subscribers.iter_mut().find(|subscriber| subscriber.client == client) else {
            return false;
        };
        let held = self.held.iter_mut().find(|held| held.command.seq == seq);
        let is_given = |part: &&mut Part| matches!(part.state, State::Given(whose, _) if whose == client);
        match held.and_then(|held| held.parts.iter_mut().find(is_given)) {
            Some(part) => {
                part.state = State::Done(client);
                subscriber.answered = now;
            }
            None => return seq <= subscriber.highest,
        }
        self.settle();
        true
    }

    /// This client has gone.
    pub fn handle_gone(&mut self, client: u64, now: Instant) {
        self.subscribers.retain(|subscriber| subscriber.client != client);
        for part in self.held.iter_mut().flat_map(|held| &mut held.parts) {
            match part.state {
                State::Queued(whose, _) | State::Given(whose, _) if whose == client => {
                    part.lost.get_or_insert(now);
                    part.state = State::Lost;
                }
                State::Lost | State::Queued(..) | State::Given(..) | State::Done(_) => {}
            }
        }
        self.handle_timeout(now);
    }

    /// Time passed; harmless when nothing is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        let (wait, subscribers, counts) = (self.wait, &self.subscribers, &mut self.counts);
        for held in self.held.iter_mut().filter(|held| !held.over) {
            if !held.claimed && held.came + wait <= now {
                held.over = true;
                counts.unclaimed += 1;
            }
            let before = held.parts.len();
            held.parts.retain(|part| part.deadline(subscribers, wait).is_none_or(|deadline| deadline > now));
            counts.timed_out += (before - held.parts.len()) as u64;
        }
        self.settle();
    }

    /// When [`Desk::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let open = self.held.iter().filter(|held| !held.over);
        open.flat_map(|held| {
            let unclaimed = (!held.claimed).then(|| held.came + self.wait);
            unclaimed
                .into_iter()
                .chain(held.parts.iter().filter_map(|part| part.deadline(&self.subscribers, self.wait)))
        })
        .min()
    }

    /// Everything up to here is done, once.
    pub fn poll_done(&mut self) -> Option<CommandCursor> {
        self.done.take()
    }

    fn settle(&mut self) {
        for held in &mut self.held {
            held.over |= held.claimed && held.parts.iter().all(|part| matches!(part.state, State::Done(_)));
        }
        while let Some(Held { over: true, command, .. }) = self.held.front() {
            self.done = Some(CommandCursor { stream: self.stream, seq: command.seq });
            self.held.pop_front();
        }
        self.check_invariants();
    }

    fn check_invariants(&self) {
        debug_assert!(self.held.front().is_none_or(|held| !held.over), "what is done is let go");
        debug_assert!(self.held.iter().all(|held| held.claimed || held.parts.is_empty()));
        debug_assert!(self.held.iter().all(|held| {
            let clients = held.parts.iter().filter_map(|part| part.state.client());
            clients.clone().count() == clients.collect::<std::collections::BTreeSet<_>>().len()
        }));
    }
}

impl Subscriber {
    fn wants(&self, topic: &str) -> bool {
        self.filters.iter().any(|filter| filter.matches(topic))
    }
}

impl Held {
    /// Someone came who asks for it.
    fn hand_to(&mut self, client: u64, now: Instant) {
        if self.parts.iter().any(|part| part.state.client() == Some(client)) {
            return;
        }
        self.claimed = true;
        let state = State::Queued(client, now);
        match self.parts.iter_mut().find(|part| part.state == State::Lost) {
            Some(part) => part.state = state,
            None => self.parts.push(Part { state, lost: None }),
        }
    }
}

impl Part {
    /// It is done without an answer from then on.
    fn deadline(&self, subscribers: &[Subscriber], wait: Duration) -> Option<Instant> {
        match self.state {
            State::Done(_) => None,
            State::Lost => self.lost.map(|at| at + wait),
            State::Queued(client, since) | State::Given(client, since) => {
                let subscriber = subscribers.iter().find(|subscriber| subscriber.client == client)?;
                (!subscriber.patient).then(|| since.max(subscriber.answered) + wait)
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
