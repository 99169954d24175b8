//! The model of a server: down, up, at its limit, or fallen over. It decides what an attempt meets; when the answer
//! arrives is the simulation's.

use std::collections::VecDeque;
use std::mem;

use super::device::Refusal;
use super::{Admission, Down, Over, ServerModel, TurnedAway};
use crate::time::Instant;

/// What an attempt meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meets {
    Welcome,
    /// It waits in the backlog.
    Queued,
    Refusal(Refusal),
    /// Nothing.
    Silence,
}

#[derive(Debug)]
pub(super) struct Server {
    model: ServerModel,
    admission: Admission,
    /// How it looks while it is down; `None`: it is up.
    down: Option<Down>,
    /// Times it went down: a session belongs to one of its lives.
    pub(super) life: u32,
    /// Device and generation of those that wait.
    backlog: VecDeque<(u32, u16)>,
    /// Attempts in the current second.
    second: (u64, u32),
}

impl Server {
    pub(super) fn new(model: ServerModel, now: Instant) -> Self {
        let admission = Admission::new(model.accept_rate, model.burst, now);
        Self { model, admission, down: None, life: 0, backlog: VecDeque::new(), second: (0, 0) }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down.is_some()
    }

    pub(super) fn is_silent(&self) -> bool {
        self.down == Some(Down::Silent)
    }

    /// Everything it held is gone: those that waited.
    pub(super) fn go_down(&mut self, down: Down) -> VecDeque<(u32, u16)> {
        self.down = Some(down);
        self.life += 1;
        mem::take(&mut self.backlog)
    }

    pub(super) fn come_up(&mut self, now: Instant) {
        self.down = None;
        self.admission = Admission::new(self.model.accept_rate, self.model.burst, now);
    }

    /// An attempt arrives. `true`: it was the one too many, and the server falls over.
    pub(super) fn on_attempt(&mut self, device: u32, generation: u16, now: Instant) -> (Meets, bool) {
        match self.down {
            Some(Down::Refused) => return (Meets::Refusal(Refusal::Refused), false),
            Some(Down::Reset) => return (Meets::Refusal(Refusal::Reset), false),
            Some(Down::Silent) => return (Meets::Silence, false),
            Some(Down::Unavailable) => return (Meets::Refusal(Refusal::Unavailable(None)), false),
            None => {}
        }
        if self.is_too_much(now) {
            return (Meets::Refusal(Refusal::Reset), true);
        }
        if self.backlog.is_empty() && self.admission.take(now) {
            return (Meets::Welcome, false);
        }
        if self.backlog.len() < self.model.backlog as usize {
            self.backlog.push_back((device, generation));
            return (Meets::Queued, false);
        }
        let word = self.admission.turn_away(now);
        (self.turn_away(word), false)
    }

    fn turn_away(&self, word: TurnedAway) -> Meets {
        match self.model.over {
            Over::RetryAfter => Meets::Refusal(Refusal::Unavailable(Some(word))),
            Over::Unavailable => Meets::Refusal(Refusal::Unavailable(None)),
            Over::Reset => Meets::Refusal(Refusal::Reset),
            Over::Silent => Meets::Silence,
        }
    }

    fn is_too_much(&mut self, now: Instant) -> bool {
        let second = now.as_micros() / 1_000_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        self.second.1 += 1;
        self.model.falls_over_at > 0 && self.second.1 > self.model.falls_over_at
    }

    /// When the next of the backlog may come in, if one waits.
    pub(super) fn backlog_at(&self) -> Option<Instant> {
        (!self.backlog.is_empty()).then(|| self.admission.next())
    }

    /// The next of the backlog, if it is its turn. It may have given up meanwhile: the work is done all the same.
    pub(super) fn on_turn(&mut self, now: Instant) -> Option<(u32, u16)> {
        if self.backlog.is_empty() || !self.admission.take(now) {
            return None;
        }
        self.backlog.pop_front()
    }
}
