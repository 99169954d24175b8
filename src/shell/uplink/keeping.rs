//! What of the link outlives the process, and when it is written where: beside the local socket whenever it changes, on
//! flash rarely. Beside the socket it goes with a reboot; then flash says what a reboot must not bypass: how far the
//! backoff has come, and which remedies this outage has had.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::debug;
use serde::{Deserialize, Serialize};

use super::Setup;
use crate::config::file;
use crate::link::Saved;
use crate::shell::port::{ForOutbox, Port};
use crate::shell::remedy::Errand;
use crate::shell::saved::Written;
use crate::shell::{clock, entropy, saved};
use crate::time::Instant;

/// Between two writes to flash of what is of use and nothing more.
const FLASH_INTERVAL: Duration = Duration::from_secs(3600);

/// Of the digest: one change in 65,536 is not seen, and as many guesses fit each.
const DIGEST_BITS: u32 = 16;
/// Of each file; what comes behind is no credential.
const CREDENTIAL_BYTES_MAX: u64 = 64 << 10;

/// What was written.
pub(super) struct Keeping {
    saved: Saved,
    on_flash: Saved,
    /// See [`Saved::credentials`]: a salt, and a digest of them.
    credentials: u64,
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
        (Self { saved, on_flash, flash_at: clock::now(), credentials: saved.credentials }, found)
    }

    /// A credential or a certificate says something else than when an earlier process wrote down what it waits for: that
    /// may be what it waited for. Each attempt writes it down anew, so this holds once a change, however often the
    /// process is started, and whoever writes the same again at each start.
    pub fn has_other_credentials<'a>(&mut self, files: impl Iterator<Item = &'a Path>) -> bool {
        let before = self.saved.credentials;
        let salt = if before == 0 { entropy::draw() } else { before } >> DIGEST_BITS << DIGEST_BITS;
        self.credentials = salt | digest(salt, files);
        before != 0 && before != self.credentials
    }

    /// The link wants this kept.
    pub fn keep(&mut self, saved: Saved, setup: &Setup, outbox: &Arc<Port<ForOutbox>>) {
        let saved = Saved { credentials: self.credentials, ..saved };
        self.saved = saved;
        saved::keep(&setup.backoff_file, saved);
        // Which remedies were run is written by the errand that runs them.
        let (now, new, old) = (clock::now(), lasting(&saved), lasting(&self.on_flash));
        let due = now.since(self.flash_at) >= FLASH_INTERVAL;
        let over = new.remedies_boot_s == [0; _] && old.remedies_boot_s != [0; _];
        if new.slow_exponent != old.slow_exponent || over || (new != old && due) {
            let errand = self.errand(setup, outbox);
            setup.runner.give(errand);
        }
    }

    /// Writes to flash what there is now, and tells the outbox, which keeps the books of flash.
    pub fn errand(&mut self, setup: &Setup, outbox: &Arc<Port<ForOutbox>>) -> Errand {
        (self.on_flash, self.flash_at) = (self.saved, clock::now());
        let (path, kept) =
            (setup.flash_file.clone(), OnFlash { device: setup.upstream.device.clone(), saved: self.saved });
        let outbox = Arc::clone(outbox);
        Box::new(move || match saved::write_durably(&path, kept) {
            Ok(Written { bytes, syncs }) => outbox.give(|cell| {
                cell.beside.bytes += bytes;
                cell.beside.syncs += syncs;
            }),
            Err(error) => debug!(target: "uplink", "backoff not kept on flash path={} error={error}", path.display()),
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

/// Tells one content from another and helps nobody who guesses at it.
fn digest<'a>(salt: u64, files: impl Iterator<Item = &'a Path>) -> u64 {
    let mut hasher = DefaultHasher::new();
    salt.hash(&mut hasher);
    for path in files {
        file::read(path, CREDENTIAL_BYTES_MAX).ok().hash(&mut hasher);
    }
    hasher.finish() & ((1 << DIGEST_BITS) - 1)
}

/// What a reboot leaves of it.
fn lasting(saved: &Saved) -> Saved {
    Saved { not_before_boot_ms: 0, offline_since_boot_ms: 0, words_boot_s: [0; _], ..*saved }
}
