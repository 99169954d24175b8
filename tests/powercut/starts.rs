//! The images that the operations start from: four of them from an empty folder reach little.

use std::sync::Arc;

use backhaul::config::{self, Commit, Overflow};
use backhaul::outbox::Config;
use backhaul::outbox::sim_disk::SimDisk;

use super::model::Model;
use super::ops::{self, Driver, Recorder};

/// How a start is made.
struct Recipe {
    name: &'static str,
    overflow: Overflow,
    commit: Commit,
    /// Of the lane, in segments.
    segments: u64,
    /// What is done before: operations, in order; behind a `/` under the start's own configuration, before it under
    /// one with segments of twice the size and so many of them.
    before: &'static str,
    earlier_segments: u64,
}

const fn recipe(name: &'static str, overflow: Overflow, segments: u64, before: &'static str) -> Recipe {
    Recipe { name, overflow, commit: Commit::Sync, segments, before, earlier_segments: 0 }
}

use Overflow::{DropOldest, Reject};

const RECIPES: &[Recipe] = &[
    recipe("fresh", DropOldest, 3, ""),
    recipe("opened", Reject, 3, "o"),
    recipe("midlife", Reject, 4, "smcrscmc"),
    recipe("full-drop", DropOldest, 3, "rmcrmcrmcrmc"),
    recipe("full-drop-two", DropOldest, 2, "rmcrmcrscr"),
    recipe("full-reject", Reject, 3, "rmcrmcrmcm"),
    recipe("full-reject-two", Reject, 2, "rmcscr"),
    recipe("laps", Reject, 3, "rmcaaaarmcaaaarmcaaaarmcaaaascaaaa"),
    recipe("laps-full-pages", DropOldest, 3, "rlcaaaarmcaaaarmcaaaarmcaaaarmcaaaamc"),
    recipe("acked-part", Reject, 4, "rscmcascmca"),
    recipe("runs", DropOldest, 3, "scxmcxrmcrxmcrmcx"),
    recipe("runs-reject", Reject, 4, "scxmcxscaxsc"),
    Recipe { commit: Commit::Group, ..recipe("group", DropOldest, 3, "rmcrscas") },
    Recipe { earlier_segments: 3, ..recipe("smaller-segments", Reject, 4, "rmcscr/") },
    Recipe { earlier_segments: 5, ..recipe("fewer-segments", DropOldest, 2, "rmcrscr/sc") },
    recipe("live-fresh", Reject, 5, "rmcscv"),
    recipe("live", Reject, 5, "rmcscvscmcas"),
    recipe("live-full-drop", DropOldest, 4, "rmcrmcvscrmcrmc"),
];

/// Where strings of operations start.
pub struct Start {
    /// Its name.
    pub name: &'static str,
    /// The configuration.
    pub config: Config,
    /// The disk, the process stopped.
    pub disk: SimDisk,
    /// What is true of it.
    pub model: Arc<Model>,
    /// It was larger under an earlier configuration: until it is drained it may be.
    pub had_more: bool,
    /// Seeds what its outbox draws.
    pub seed: u64,
}

/// All of them.
pub fn all() -> Vec<Start> {
    RECIPES.iter().zip(1..).map(|(recipe, seed)| recipe.make(seed)).collect()
}

impl Start {
    /// Whether a live epoch can begin: there is room for one.
    pub fn may_live(&self) -> bool {
        let lane = &self.config.lanes[0];
        lane.live_share > 0.0 && lane.bytes_max >= 4 * u64::from(self.config.segment_bytes)
    }
}

impl Recipe {
    fn make(&self, seed: u64) -> Start {
        let config = self.config(16_384, self.segments);
        let (mut disk, mut model) = (SimDisk::default(), Model::new());
        let (earlier, later) = self.before.split_once('/').unwrap_or(("", self.before));
        let earlier_config = self.config(32_768, self.earlier_segments);
        for (before, config) in [(earlier, &earlier_config), (later, &config)] {
            if !before.is_empty() {
                let mut driver = Driver::open(Recorder::new(disk, false, false), model, config, seed);
                ops::parse(before).into_iter().for_each(|op| driver.run(op));
                disk = driver.stop().disk;
                model = driver.model;
            }
        }
        Start { name: self.name, config, disk, model: Arc::new(model), had_more: self.earlier_segments > 0, seed }
    }

    fn config(&self, segment_bytes: u32, segments: u64) -> Config {
        let lane = config::Lane {
            bytes_max: segments * u64::from(segment_bytes),
            overflow: self.overflow,
            commit: self.commit,
            live_share: 0.5,
            ..config::Lane::default()
        };
        Config {
            segment_bytes,
            headroom_bytes_min: 0,
            record_bytes_max: 9_000,
            lanes: vec![lane],
            device: "test".into(),
            machine: String::new(),
        }
    }
}
