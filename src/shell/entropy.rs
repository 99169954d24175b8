//! Where seeds and nonces come from. Two devices must never share one, and those that boot first after a town's power
//! cut are alike in everything: the image, the machine id that was cloned with it, the instant, and a kernel that has
//! gathered nothing yet. So what the kernel gives is mixed with what no two boards share.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::rand::{GetRandomFlags, getrandom};

use super::clock;

/// Of one mark; serial numbers and addresses are shorter.
const MARK_BYTES_MAX: u64 = 256;
/// Interfaces and disks that are asked.
const MARKS_MAX: usize = 32;

/// What tells this draw from that of any other device, process or instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Mix<'a> {
    /// From the kernel: not yet random where it has just booted.
    kernel: u64,
    /// Of the board: addresses and serial numbers.
    marks: &'a [Vec<u8>],
    boot_us: u64,
    wall_ms: u64,
    process: u32,
    /// Draws of this process before.
    draws: u64,
}

impl Mix<'_> {
    fn seed(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// 64 bits. Seeds and names need no more than to differ, so this never waits.
pub fn draw() -> u64 {
    static MARKS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    static DRAWS: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 8];
    let kernel = match getrandom(&mut bytes, GetRandomFlags::INSECURE) {
        Ok(_) => u64::from_ne_bytes(bytes),
        // A kernel without it.
        Err(_) => 0,
    };
    let mix = Mix {
        kernel,
        marks: MARKS.get_or_init(|| marks(Path::new("/"))),
        boot_us: clock::now().as_micros(),
        wall_ms: clock::wall_ms(),
        process: std::process::id(),
        draws: DRAWS.fetch_add(1, Ordering::Relaxed),
    };
    mix.seed()
}

/// What is burnt into this board, under `root`: MAC addresses, the cards' and disks' serial numbers, the board's own.
fn marks(root: &Path) -> Vec<Vec<u8>> {
    let entries = |folder: &str, file: &str| -> Vec<PathBuf> {
        let read = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<_> = read.take(MARKS_MAX).map(|entry| entry.path().join(file)).collect();
        paths.sort_unstable();
        paths
    };
    let fixed = ["sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_uuid", "etc/machine-id"];
    let paths = [
        entries("sys/class/net", "address"),
        // eMMC and SD cards: unlike a serial number, never left at zero.
        entries("sys/class/block", "device/cid"),
        fixed.iter().map(|path| root.join(path)).collect(),
    ];
    paths.into_iter().flatten().filter_map(|path| read_mark(&path)).collect()
}

fn read_mark(path: &Path) -> Option<Vec<u8>> {
    let mut mark = Vec::new();
    File::open(path).ok()?.take(MARK_BYTES_MAX).read_to_end(&mut mark).ok()?;
    (!mark.is_empty()).then_some(mark)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::link::{Config, Link};
    use crate::temp_dir::TempDir;
    use crate::time::Instant;

    /// All that is the same on the first boot of one image: the kernel's first bytes, the machine id, the instant.
    fn image(marks: &[Vec<u8>]) -> Mix<'_> {
        Mix { kernel: 0x5eed, marks, boot_us: 3_000_000, wall_ms: 0, process: 17, draws: 0 }
    }

    fn mac(device: u32) -> Vec<Vec<u8>> {
        let [_, a, b, c] = device.to_be_bytes();
        vec![format!("b8:27:eb:{a:02x}:{b:02x}:{c:02x}\n").into_bytes(), b"one machine id for all\n".to_vec()]
    }

    #[test]
    fn ten_thousand_identical_images_that_boot_in_one_instant_share_no_seed_and_no_delay() {
        const DEVICES: u32 = 10_000;
        const BINS: usize = 30;
        let config = Arc::new(Config::default());
        let delay_us = |seed| {
            let now = Instant::from_micros(3_000_000);
            let link = Link::new(Arc::clone(&config), seed, None, true, now);
            link.poll_timeout().unwrap().0.since(now).as_micros() as u64
        };
        let seeds: Vec<_> = (0..DEVICES).map(|device| image(&mac(device)).seed()).collect();
        let mut distinct = seeds.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), seeds.len());

        let mut bins = [0u32; BINS];
        let width = config.reconnect.start_delay_ms_max * 1000 / BINS as u64 + 1;
        for seed in seeds {
            bins[(delay_us(seed) / width) as usize] += 1;
        }
        // 333 on average; six standard deviations of 18.
        assert!(bins.iter().all(|count| (225..442).contains(count)), "{bins:?}");
    }

    #[test]
    fn each_part_alone_makes_another_seed() {
        let (marks, others) = (mac(1), mac(2));
        let image = image(&marks);
        let each = [
            image,
            Mix { kernel: 1, ..image },
            Mix { marks: &others, ..image },
            Mix { boot_us: 3_000_001, ..image },
            Mix { wall_ms: 1, ..image },
            Mix { process: 18, ..image },
            Mix { draws: 1, ..image },
        ];
        let mut seeds: Vec<_> = each.iter().map(Mix::seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), each.len());
    }

    #[test]
    fn a_board_is_known_by_its_addresses_and_cards() {
        let root = TempDir::new("marks");
        assert!(marks(&root).is_empty(), "and one without any is none to fail on");
        for (file, text) in [
            ("sys/class/net/eth0/address", "b8:27:eb:00:00:01\n"),
            ("sys/class/block/mmcblk0/device/cid", "035344\n"),
            ("sys/firmware/devicetree/base/serial-number", "00000000\0"),
            ("sys/class/net/lo/address", ""),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = marks(&root);
        assert_eq!(found, [&b"b8:27:eb:00:00:01\n"[..], b"035344\n", b"00000000\0"]);
    }

    #[test]
    fn no_two_draws_are_the_same() {
        let mut draws: Vec<_> = (0..1_000).map(|_| draw()).collect();
        draws.sort_unstable();
        draws.dedup();
        assert_eq!(draws.len(), 1_000);
    }
}
