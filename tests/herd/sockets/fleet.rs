//! Many gateways in one thread: one mio loop, the machine's own clock.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use backhaul::shell::clock;
use backhaul::time::Instant;
use mio::{Events, Poll};

use super::gateway::{Gateway, Kit};

/// How often what the loop waits for is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// See above.
pub struct Fleet {
    poll: Poll,
    events: Events,
    seats: Vec<Seat>,
    /// One for each gateway that has a deadline.
    timers: BTreeSet<(Instant, usize)>,
    up: usize,
    /// Of each `connect(2)`.
    dialed_at: Vec<Instant>,
    late_max: Duration,
    /// The time that refusals by the kernel took, and how many there were.
    answered_after: (Duration, u32),
}

struct Seat {
    gateway: Gateway,
    timer: Option<Instant>,
    /// When the last attempt was due.
    due_at: Instant,
    /// Since when it has its session.
    up_at: Option<Instant>,
}

/// What was counted of the fleet up to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Attempts: calls of `connect(2)`.
    pub dials: u64,
    /// Of these, refused because nothing listened.
    pub refused: u64,
}

impl Counts {
    /// Attempts that somebody accepted.
    pub fn knocked(self) -> u64 {
        self.dials - self.refused
    }
}

impl Fleet {
    /// So many gateways that boot now, each with a seed of its own.
    pub fn booting(kit: Kit, gateways: usize, seed: u64) -> Self {
        let (kit, now) = (Rc::new(kit), clock::now());
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut fleet = Self {
            poll: Poll::new().expect("an epoll"),
            events: Events::with_capacity(1024),
            seats: Vec::with_capacity(gateways),
            timers: BTreeSet::new(),
            up: 0,
            dialed_at: Vec::new(),
            late_max: Duration::ZERO,
            answered_after: (Duration::ZERO, 0),
        };
        for index in 0..gateways {
            let gateway = Gateway::new(&kit, index, rng.u64(..), now);
            fleet.seats.push(Seat { gateway, timer: None, due_at: now, up_at: None });
            fleet.touch(index, now, |_, _| {});
        }
        fleet
    }

    pub fn len(&self) -> usize {
        self.seats.len()
    }

    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        self.seats.iter().map(|seat| &seat.gateway)
    }

    /// So many have a session.
    pub fn up(&self) -> usize {
        self.up
    }

    pub fn counts(&self) -> Counts {
        let sum = |count: fn(&Gateway) -> u32| self.gateways().map(|gateway| u64::from(count(gateway))).sum();
        Counts { dials: sum(|gateway| gateway.dials), refused: sum(|gateway| gateway.refused) }
    }

    /// When the last of those that have a session got it.
    pub fn last_up_at(&self) -> Option<Instant> {
        self.seats.iter().filter_map(|seat| seat.up_at).max()
    }

    /// Most attempts in a second, the seconds counted from `begin`.
    pub fn peak(&self, begin: Instant) -> u64 {
        let mut seconds = BTreeMap::<u64, u64>::new();
        for at in self.dialed_at.iter().filter(|at| **at >= begin) {
            *seconds.entry(at.since(begin).as_secs()).or_default() += 1;
        }
        seconds.into_values().max().unwrap_or(0)
    }

    /// How late a gateway was called at worst, since this was asked last.
    pub fn take_late_max(&mut self) -> Duration {
        std::mem::take(&mut self.late_max)
    }

    /// From the moment at which an attempt was due to the kernel's answer that nothing listens, on average, since this
    /// was asked last.
    pub fn take_answer_time(&mut self) -> Duration {
        let (sum, count) = std::mem::take(&mut self.answered_after);
        sum / count.max(1)
    }

    /// Everybody hands in so many records.
    pub fn put(&mut self, records: u64) {
        let now = clock::now();
        for index in 0..self.seats.len() {
            self.touch(index, now, |gateway, poll| gateway.put(records, poll.registry(), now));
        }
    }

    /// Runs until `holds`.
    ///
    /// # Panics
    /// After `patience`, naming `what` was awaited.
    #[track_caller]
    pub fn run_until(&mut self, patience: Duration, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let begun = clock::now();
        let mut looked = begun;
        while !holds(self) {
            assert!(clock::now().since(begun) < patience, "{what}: not within {patience:?}; {}", self.describe());
            while clock::now().since(looked) < LOOK_INTERVAL {
                self.turn();
            }
            looked = clock::now();
        }
    }

    /// How it stands, in a line.
    pub fn describe(&self) -> String {
        let mut failures = BTreeMap::<_, u64>::new();
        for (class, count) in self.gateways().flat_map(Gateway::failures) {
            *failures.entry(class).or_default() += count;
        }
        format!("{} of {} up, {:?}, failures {failures:?}", self.up, self.len(), self.counts())
    }

    /// One turn of the loop. What lies in a socket already is in time, however late this thread is.
    fn turn(&mut self) {
        let next = self.timers.first().map_or(LOOK_INTERVAL, |(at, _)| at.since(clock::now()).min(LOOK_INTERVAL));
        match self.poll.poll(&mut self.events, Some(next)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            Err(error) => panic!("our own epoll: {error}"),
        }
        let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for index in ready {
            let now = clock::now();
            self.touch(index, now, |gateway, poll| gateway.on_ready(poll.registry(), now));
        }
        while let Some((at, index)) = self.timers.first().copied() {
            let now = clock::now();
            if at > now {
                return;
            }
            self.late_max = self.late_max.max(now.since(at));
            self.seats[index].due_at = at;
            self.touch(index, now, |gateway, poll| gateway.on_deadline(poll.registry(), now));
        }
    }

    /// Does something to a gateway and notes what came of it.
    fn touch(&mut self, index: usize, now: Instant, act: impl FnOnce(&mut Gateway, &Poll)) {
        let seat = &mut self.seats[index];
        let Gateway { dials, refused, .. } = seat.gateway;
        act(&mut seat.gateway, &self.poll);
        if seat.gateway.refused > refused {
            self.answered_after.0 += clock::now().since(seat.due_at);
            self.answered_after.1 += 1;
        }
        self.dialed_at.extend((dials..seat.gateway.dials).map(|_| now));
        match (seat.up_at, seat.gateway.is_up()) {
            (None, true) => {
                seat.up_at = Some(now);
                self.up += 1;
            }
            (Some(_), false) => {
                seat.up_at = None;
                self.up -= 1;
            }
            (None, false) | (Some(_), true) => {}
        }
        let timer = seat.gateway.deadline();
        if timer != seat.timer {
            if let Some(at) = seat.timer {
                self.timers.remove(&(at, index));
            }
            self.timers.extend(timer.map(|at| (at, index)));
            seat.timer = timer;
        }
    }
}
