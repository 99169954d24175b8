//! The flash budget's shell: tells the core what was written, keeps what is left across restarts, and says it where
//! the state changes.

use std::path::PathBuf;
use std::time::Duration;

use crate::outbox::budget::{Budget, Saved, State};
use crate::shell::{EventHook, clock, saved};
use crate::status::FlashBudget;
use crate::time::Instant;

/// A budget that is watched.
pub struct Spending {
    budget: Budget,
    /// On a tmpfs as a rule, where it costs no flash.
    file: PathBuf,
}

impl Spending {
    /// So many bytes a day, less what an earlier process of this boot has spent.
    pub fn new(bytes_per_day: u64, window_max: Duration, file: PathBuf) -> Self {
        let saved = saved::read::<Saved>(&file).filter(|(_, this_boot)| *this_boot).map(|(saved, _)| saved);
        let budget = Budget::new(bytes_per_day, window_max, saved, clock::now());
        Self { budget, file }
    }

    /// How long a commit is held back now.
    pub(super) fn window(&self, now: Instant) -> Duration {
        self.budget.window(now)
    }

    /// When the state changes though nothing is written.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.budget.poll_timeout()
    }

    /// Counts what the outbox has written by now; a SIGKILL loses no more than the commit that it hits. A change of
    /// state goes to the log and upstream.
    pub(super) fn count(&mut self, bytes_total: u64, now: Instant, event: &EventHook) {
        if self.budget.handle_written(bytes_total, now)
            && let Err(error) = saved::write(&self.file, self.budget.saved())
        {
            log::debug!(target: "outbox", "budget not kept path={} error={error}", self.file.display());
        }
        if let Some(state) = self.budget.poll_change(now) {
            self.tell(state, now, event);
        }
    }

    /// For the status.
    pub(super) fn status(&self, now: Instant) -> FlashBudget {
        self.budget.status(now)
    }

    fn tell(&self, state: State, now: Instant, event: &EventHook) {
        let FlashBudget { bytes_per_day, bytes_left, window_ms, .. } = self.budget.status(now);
        let numbers = format!("bytes_per_day={bytes_per_day} bytes_left={bytes_left} window_ms={window_ms}");
        match state {
            State::Ok => log::info!(target: "outbox", "flash budget holds, commits do not wait {numbers}"),
            State::Widened => log::info!(target: "outbox", "flash budget runs low, commits wait {numbers}"),
            State::Exceeded => log::warn!(target: "outbox", "flash budget exceeded {numbers}"),
        }
        event("flash_budget", &format!("{} {numbers}", state.as_str()));
    }
}
