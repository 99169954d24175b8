//! When nothing helps: which remedy is due. Owns how long no session was up, and which remedies were run in this
//! outage; a modem is power-cycled once, not in a loop. It must not know what they are.

use std::time::Duration;

use super::{REMEDIES_MAX, Remedy, Saved};
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Remedies {
    /// Since when no session is up.
    offline_since: Option<Instant>,
    /// When each was run since a session was last stable, in seconds of the boot clock; 0: it was not.
    run_s: [u32; REMEDIES_MAX],
}

impl Remedies {
    /// What an earlier process left, of this boot or of one whose clock no longer runs: then what was run counts as
    /// run now.
    pub(super) fn new(saved: &Saved, fresh_boot: bool, now: Instant) -> Self {
        let now_s = seconds(now);
        let run_s = saved.remedies_boot_s.map(|at_s| match at_s {
            0 => 0,
            _ if fresh_boot => now_s,
            at_s => at_s.min(now_s),
        });
        let since = Instant::from_micros(saved.offline_since_boot_ms.saturating_mul(1000));
        let known = !fresh_boot && saved.offline_since_boot_ms > 0;
        Self { offline_since: Some(if known { since.min(now) } else { now }), run_s }
    }

    /// A session is up.
    pub(super) fn on_up(&mut self) {
        self.offline_since = None;
    }

    /// The session is gone.
    pub(super) fn on_down(&mut self, now: Instant) {
        self.offline_since = Some(now);
    }

    /// The outage is over.
    pub(super) fn on_stable(&mut self) {
        self.run_s = [0; REMEDIES_MAX];
    }

    /// After a reload: what is another remedy now was not run.
    pub(super) fn remap(&mut self, was: &[Remedy], is: &[Remedy]) {
        for (index, run_s) in self.run_s.iter_mut().enumerate() {
            if was.get(index) != is.get(index) {
                *run_s = 0;
            }
        }
    }

    /// The next one due, and when; none while a session is up.
    pub(super) fn next(&self, remedies: &[Remedy]) -> Option<(Instant, u8)> {
        let since = self.offline_since?;
        let due = |(index, remedy): (usize, &Remedy)| {
            let first = since + Duration::from_secs(remedy.after_s);
            let again = Instant::default()
                + Duration::from_secs(u64::from(self.run_s[index]).saturating_add(remedy.again_after_s));
            match (self.run_s[index], remedy.again_after_s) {
                (0, _) => Some((first, index as u8)),
                (_, 0) => None,
                (_, _) => Some((first.max(again), index as u8)),
            }
        };
        remedies.iter().enumerate().take(REMEDIES_MAX).filter_map(due).min()
    }

    /// It is run now.
    pub(super) fn on_run(&mut self, index: u8, now: Instant) {
        if let Some(run_s) = self.run_s.get_mut(usize::from(index)) {
            *run_s = seconds(now);
        }
    }

    /// For [`Saved`].
    pub(super) fn saved(&self) -> (u64, [u32; REMEDIES_MAX]) {
        (self.offline_since.map_or(0, |since| since.as_millis().max(1)), self.run_s)
    }
}

/// Rounded up, so that nothing is due a moment early, and never 0.
fn seconds(at: Instant) -> u32 {
    u32::try_from(at.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
