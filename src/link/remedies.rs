//! When nothing helps: which remedy is due. Owns how long no session was up, and which remedies were run in this
//! outage; a modem is power-cycled once, not in a loop. It must not know what they are.

use std::time::Duration;

use super::{REMEDIES_MAX, Remedy, Saved};
use crate::time::Instant;

#[derive(Debug)]
pub(super) struct Remedies {
    /// Since when no session is up.
    offline_since: Option<Instant>,
    /// An attempt has failed in this process: only then a remedy is worth its price.
    tried: bool,
    /// When each was run since a session was last stable, in seconds of the boot clock; 0: it was not.
    run_s: [u32; REMEDIES_MAX],
}

impl Remedies {
    /// What an earlier process left, of this boot or of one whose clock no longer runs: then what was run counts as
    /// run now.
    pub(super) fn new(remedies: &[Remedy], saved: &Saved, fresh_boot: bool, now: Instant) -> Self {
        let now_s = seconds(now);
        let run_s = saved.remedies_boot_s.map(|at_s| match at_s {
            0 => 0,
            _ if fresh_boot => now_s,
            at_s => at_s.min(now_s),
        });
        let since = Instant::from_micros(saved.offline_since_boot_ms.saturating_mul(1000));
        let known = !fresh_boot && saved.offline_since_boot_ms > 0;
        let offline_since = Some(if known { since.min(now) } else { now });
        let was = if saved.remedies_id == [0; REMEDIES_MAX] { ids(remedies) } else { saved.remedies_id };
        Self { offline_since, tried: false, run_s: moved(run_s, was, remedies) }
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

    /// An attempt, or a session, has failed.
    pub(super) fn on_failed(&mut self) {
        self.tried = true;
    }

    /// After a reload: each goes on with what was run of it, wherever it stands now.
    pub(super) fn remap(&mut self, was: &[Remedy], is: &[Remedy]) {
        self.run_s = moved(self.run_s, ids(was), is);
    }

    /// The next one due, and when; none while a session is up.
    pub(super) fn next(&self, remedies: &[Remedy]) -> Option<(Instant, u8)> {
        let since = self.offline_since.filter(|_| self.tried)?;
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

    /// It was not run after all.
    pub(super) fn on_dropped(&mut self, index: u8) {
        if let Some(run_s) = self.run_s.get_mut(usize::from(index)) {
            *run_s = 0;
        }
    }

    /// For [`Saved`]: since when, and what was run when.
    pub(super) fn saved(&self) -> (u64, [u32; REMEDIES_MAX]) {
        (self.offline_since.map_or(0, |since| since.as_millis().max(1)), self.run_s)
    }
}

/// Which remedy stands where.
pub(super) fn ids(remedies: &[Remedy]) -> [u16; REMEDIES_MAX] {
    std::array::from_fn(|index| remedies.get(index).map_or(0, |remedy| remedy.id))
}

/// When each of these was run; `run_s` and `was` say it of the places before. The same one listed twice keeps its order.
fn moved(run_s: [u32; REMEDIES_MAX], mut was: [u16; REMEDIES_MAX], is: &[Remedy]) -> [u32; REMEDIES_MAX] {
    ids(is).map(|id| {
        let before = was.iter_mut().zip(run_s).find(|(was, _)| **was == id && id != 0);
        before.map_or(0, |(was, run_s)| {
            *was = 0;
            run_s
        })
    })
}

/// Rounded up, so that nothing is due a moment early, and never 0.
fn seconds(at: Instant) -> u32 {
    u32::try_from(at.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}
