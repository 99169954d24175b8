//! Any bytes in the folder: headers that are intact and absurd, batches that were never written there, damage, files
//! that are not ours. `make hostile` tries many, `IMAGES=n` so many, `SEED=n` replays one; `fuzz/` does the same under
//! libFuzzer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use hostile::Folders;

#[path = "support/hostile/mod.rs"]
mod hostile;
#[path = "support/patch_disk.rs"]
mod patch_disk;

const IMAGES: u64 = 20_000;
/// Bytes of choices for one image.
const CHOICES_BYTES: usize = 160;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
pub(crate) fn any_image_opens_within_bounds_and_the_lane_works_afterwards() {
    let seeds = number("SEED").map_or(0..number("IMAGES").unwrap_or(IMAGES), |seed| seed..seed + 1);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let run = |part: usize| {
        let seeds = seeds.clone();
        move || {
            let mut folders = Folders::new();
            let mut choices = [0; CHOICES_BYTES];
            for seed in seeds.skip(part).step_by(threads) {
                fastrand::Rng::with_seed(seed).fill(&mut choices);
                let result = catch_unwind(AssertUnwindSafe(|| folders.check(&choices)));
                assert!(result.is_ok(), "replay with: SEED={seed} cargo test --test outbox_hostile");
            }
            (folders.allocated_bytes_max, folders.read_percent_max)
        }
    };
    let worst = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|part| scope.spawn(run(part))).collect();
        let worst = running.into_iter().map(|thread| thread.join().expect("replay as said above"));
        worst.fold((0, 0), |worst, this| (worst.0.max(this.0), worst.1.max(this.1)))
    });
    eprintln!(
        "images {}: opening held at most {} bytes and read {} % of the files",
        seeds.end - seeds.start,
        worst.0,
        worst.1
    );
}
