//! Where the long run was stopped: phase, string, counts and the filter of states, in files under `target/`.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{Campaign, Counts};

/// Between two savings: the filter is large.
const SAVE_INTERVAL: Duration = Duration::from_secs(600);

/// How far it is.
pub struct Resume {
    /// Phase to go on with.
    pub phase: usize,
    /// First string of it that is not done.
    pub unit: u64,
    kept_in: Option<PathBuf>,
    seconds_before: f64,
    begun: Instant,
    saved: Instant,
}

impl Default for Resume {
    fn default() -> Self {
        let now = Instant::now();
        Self { phase: 0, unit: 0, kept_in: None, seconds_before: 0.0, begun: now, saved: now }
    }
}

fn counters(counts: &Counts) -> [&AtomicU64; 6] {
    [&counts.visited, &counts.distinct, &counts.deduplicated, &counts.second, &counts.kills, &counts.damaged]
}

impl Resume {
    /// What was saved, if anything; the campaign's counts and filter are filled with it.
    pub fn load(campaign: &Campaign) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("powercut");
        fs::create_dir_all(&folder).expect("target can be written");
        let mut resume = Self { kept_in: Some(folder.clone()), ..Self::default() };
        let Ok(text) = fs::read_to_string(folder.join("progress")) else { return resume };
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [phase, unit, seconds, counts @ ..] = numbers.as_slice() else { panic!("{folder:?}: remove it") };
        // The filter last written belongs to the progress last written: both are replaced, the progress last.
        campaign.seen.load(&folder.join("filter")).unwrap_or_else(|error| panic!("{folder:?}: {error}: remove it"));
        for (counter, count) in counters(&campaign.counts).into_iter().zip(counts) {
            counter.store(*count, Ordering::Relaxed);
        }
        (resume.phase, resume.unit, resume.seconds_before) = (*phase as usize, *unit, *seconds as f64);
        eprintln!("goes on with string {unit} of phase {phase}, after {seconds} s");
        resume
    }

    /// Whether it is kept in files.
    pub fn is_kept(&self) -> bool {
        self.kept_in.is_some()
    }

    /// The phase begins, or goes on.
    pub fn enter(&mut self, phase: usize) {
        if phase != self.phase {
            (self.phase, self.unit) = (phase, 0);
        }
    }

    /// Time that the campaign took, over all runs.
    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.begun.elapsed().as_secs_f64()
    }

    /// Saves it now and then.
    pub fn save_if_due(&mut self, campaign: &Campaign) {
        if self.is_kept() && self.saved.elapsed() > SAVE_INTERVAL {
            self.save(campaign);
        }
    }

    /// Saves it, whatever interrupts: a state in the filter that the progress does not count yet is counted too few.
    pub fn save(&mut self, campaign: &Campaign) {
        let Some(folder) = &self.kept_in else { return };
        let counts = counters(&campaign.counts).map(|counter| counter.load(Ordering::Relaxed).to_string());
        let text = format!("{} {} {:.0} {}", self.phase, self.unit, self.seconds(), counts.join(" "));
        let replace = |name: &str, write: &dyn Fn(&PathBuf) -> std::io::Result<()>| {
            let new = folder.join(format!("{name}.new"));
            write(&new).and_then(|()| fs::rename(&new, folder.join(name)))
        };
        let saved = replace("filter", &|path| campaign.seen.save(path));
        let saved = saved.and_then(|()| replace("progress", &|path| fs::write(path, &text)));
        saved.unwrap_or_else(|error| eprintln!("{folder:?}: {error}"));
        self.saved = Instant::now();
    }
}
