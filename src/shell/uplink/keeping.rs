//! What of the link outlives the process, and when it is written where: beside the local socket whenever it changes, on
//! flash rarely. Beside the socket it goes with a reboot; then flash says what a reboot must not bypass: how far the
//! backoff has come, and which remedies this outage has had.

use std::time::Duration;

use log::debug;
use serde::{Deserialize, Serialize};

use super::Setup;
use crate::link::Saved;
use crate::shell::remedy::Errand;
use crate::shell::{clock, saved};
use crate::time::Instant;

/// Between two writes to flash of what is of use and nothing more.
const FLASH_INTERVAL: Duration = Duration::from_secs(3600);

/// What was written.
pub(super) struct Keeping {
    saved: Saved,
    on_flash: Saved,
    /// When it was written last; the start counts, lest a crash loop write each time.
    flash_at: Instant,
}

/// On flash. Of another device (a copied image) it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OnFlash {
    device: String,
    saved: Saved,
}

impl Keeping {
    /// What an earlier process left, and whether that was in this boot.
    pub fn begin(setup: &Setup) -> (Self, Option<(Saved, bool)>) {
        let flash: Option<(OnFlash, bool)> = saved::read(&setup.flash_file);
        let flash = flash.filter(|(kept, _)| kept.device == setup.upstream.device);
        let flash = flash.map(|(kept, this_boot)| (kept.saved, this_boot));
        let on_flash = flash.map_or_else(Saved::default, |(saved, _)| saved);
        let found = saved::read::<Saved>(&setup.backoff_file).or(flash);
        let saved = found.map_or_else(Saved::default, |(saved, _)| saved);
        (Self { saved, on_flash, flash_at: clock::now() }, found)
    }

    /// The link wants this kept.
    pub fn keep(&mut self, saved: Saved, setup: &Setup) {
        self.saved = saved;
        saved::keep(&setup.backoff_file, saved);
        // Which remedies were run is written by the errand that runs them.
        let (now, new, old) = (clock::now(), lasting(&saved), lasting(&self.on_flash));
        let due = now.since(self.flash_at) >= FLASH_INTERVAL;
        let over = new.remedies_boot_s == [0; _] && old.remedies_boot_s != [0; _];
        if new.slow_exponent != old.slow_exponent || over || (new != old && due) {
            let errand = self.errand(setup);
            setup.runner.give(errand);
        }
    }

    /// Writes to flash what there is now.
    pub fn errand(&mut self, setup: &Setup) -> Errand {
        (self.on_flash, self.flash_at) = (self.saved, clock::now());
        let (path, kept) =
            (setup.flash_file.clone(), OnFlash { device: setup.upstream.device.clone(), saved: self.saved });
        Box::new(move || {
            if let Err(error) = saved::write_durably(&path, kept) {
                debug!(target: "uplink", "backoff not kept on flash path={} error={error}", path.display());
            }
        })
    }

    /// How long no session was up.
    pub fn down_s(&self, now: Instant) -> u64 {
        match self.saved.offline_since_boot_ms {
            0 => 0,
            ms => now.since(Instant::from_micros(ms.saturating_mul(1000))).as_secs(),
        }
    }
}

/// What a reboot leaves of it.
fn lasting(saved: &Saved) -> Saved {
    Saved { not_before_boot_ms: 0, offline_since_boot_ms: 0, words_boot_s: [0; _], ..*saved }
}
