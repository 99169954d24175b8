//! Asks the kernel which flash the outbox lies on and how worn that is: eMMC and SD cards by their attributes in
//! sysfs (JESD84-B51 § 7.4: EXT_CSD 267 to 269), UBI by its erase counters. Other devices say nothing here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{major, minor, stat};

use crate::status::Lifetime;
use crate::time::Instant;

/// Wear is a matter of months.
const REFRESH: Duration = Duration::from_secs(3600);
/// Mappings (dm-crypt, LVM) between a file system and its disk, at most.
const MAPPINGS_MAX: usize = 8;

/// Assumed erases of a block. MLC, as eMMC has it: data sheets say 3,000 and more.
const EMMC_CYCLES: u32 = 3000;
/// TLC, as SD cards have it: 1,000.
const SD_CYCLES: u32 = 1000;
/// SLC, as raw NAND behind UBI is: 100,000.
const UBI_CYCLES: u32 = 100_000;

/// Where to ask.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    last: Option<(Instant, Option<Lifetime>)>,
}

impl Reader {
    /// For the flash on which the folder `dir` lies.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), last: None }
    }

    /// What it says, not older than an hour.
    pub fn read(&mut self, now: Instant) -> Option<Lifetime> {
        if let Some((at, lifetime)) = &self.last
            && now.since(*at) < REFRESH
        {
            return lifetime.clone();
        }
        let device = stat(&self.dir).ok().map(|stat| format!("{}:{}", major(stat.st_dev), minor(stat.st_dev)));
        let lifetime = device.and_then(|device| read(Path::new("/"), &device));
        self.last = Some((now, lifetime.clone()));
        lifetime
    }
}

/// For a device by its `MAJOR:MINOR`. `root`: of the file system, for tests.
fn read(root: &Path, device: &str) -> Option<Lifetime> {
    if let Ok(block) = root.join("sys/dev/block").join(device).canonicalize() {
        return read_disk(&whole_disk(block)?);
    }
    // UBIFS has a number of its own, and names its source among the mounts.
    let source = mount_source(root, device)?;
    let name = source.strip_prefix("/dev/").unwrap_or(&source);
    match name.strip_prefix("ubi").and_then(|rest| rest.split([':', '_']).next()) {
        Some(number) => read_ubi(&root.join("sys/class/ubi").join(format!("ubi{number}"))),
        None => read_disk(&whole_disk(root.join("sys/class/block").join(name).canonicalize().ok()?)?),
    }
}

/// What is mounted as this device: proc(5), `/proc/pid/mountinfo`.
fn mount_source(root: &Path, device: &str) -> Option<String> {
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    line.split_once(" - ")?.1.split(' ').nth(1).map(str::to_owned)
}

/// From a partition or a mapping to the disk that it lies on, the first where there are several.
fn whole_disk(mut block: PathBuf) -> Option<PathBuf> {
    for _ in 0..MAPPINGS_MAX {
        if block.join("partition").exists() {
            block.pop();
        }
        let slave = fs::read_dir(block.join("slaves")).ok().and_then(|mut slaves| slaves.next()?.ok());
        match slave {
            Some(slave) => block = slave.path().canonicalize().ok()?,
            None => return Some(block),
        }
    }
    None
}

fn read_disk(block: &Path) -> Option<Lifetime> {
    let text = |name: &str| fs::read_to_string(block.join(name)).ok().map(|text| text.trim().to_owned());
    let (kind, cycles) = match text("device/type")?.as_str() {
        "MMC" => ("emmc", EMMC_CYCLES),
        "SD" => ("sd", SD_CYCLES),
        _ => return None,
    };
    Some(Lifetime {
        device: block.file_name()?.to_str()?.to_owned(),
        kind: kind.into(),
        // Sectors of 512 bytes, whatever the device's own are.
        capacity_bytes: text("size")?.parse::<u64>().ok()?.saturating_mul(512),
        used_percent: text("device/life_time").and_then(|text| used_percent(&text)),
        reserve: text("device/pre_eol_info").and_then(|text| reserve(&text)).map(str::to_owned),
        cycles,
        ..Lifetime::default()
    })
}

/// Two estimates, for SLC and MLC blocks, each in steps of 10 %: `0x02` is 10 to 20 %, `0x0b` beyond the end, `0x00`
/// not said. The worse one, and its upper end.
fn used_percent(life_time: &str) -> Option<u8> {
    let steps = life_time.split_ascii_whitespace().filter_map(hex).filter(|step| (1..=0x0b).contains(step));
    steps.max().map(|step| step.min(10) * 10)
}

fn reserve(pre_eol_info: &str) -> Option<&'static str> {
    match hex(pre_eol_info)? {
        1 => Some("normal"),
        2 => Some("warning"),
        3 => Some("urgent"),
        _ => None,
    }
}

fn hex(text: &str) -> Option<u8> {
    u8::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn read_ubi(ubi: &Path) -> Option<Lifetime> {
    let number = |name: &str| fs::read_to_string(ubi.join(name)).ok()?.trim().parse::<u64>().ok();
    let erases_max = number("max_ec")?;
    let percent = erases_max.saturating_mul(100).div_ceil(u64::from(UBI_CYCLES)).min(100);
    Some(Lifetime {
        device: ubi.file_name()?.to_str()?.to_owned(),
        kind: "ubi".into(),
        capacity_bytes: number("total_eraseblocks")?.saturating_mul(number("eraseblock_size")?),
        used_percent: u8::try_from(percent).ok(),
        erases_max: Some(erases_max),
        bad_blocks: number("bad_peb_count"),
        cycles: UBI_CYCLES,
        ..Lifetime::default()
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::temp_dir::TempDir;

    const MMC: &str = "sys/devices/platform/mmc0/mmc0:0001";

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn link(root: &Path, name: &str, target: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(root.join(target), path).unwrap();
    }

    /// An eMMC with two partitions, as sysfs shows it; 8 GiB.
    fn emmc(dir: &str) -> TempDir {
        let root = TempDir::new(dir);
        write(
            &root,
            &[
                (&format!("{MMC}/type"), "MMC\n"),
                (&format!("{MMC}/life_time"), "0x02 0x04\n"),
                (&format!("{MMC}/pre_eol_info"), "0x01\n"),
                (&format!("{MMC}/block/mmcblk0/size"), "16777216\n"),
                (&format!("{MMC}/block/mmcblk0/mmcblk0p2/partition"), "2\n"),
                (&format!("{MMC}/block/mmcblk0/mmcblk0p2/size"), "1024\n"),
            ],
        );
        fs::create_dir(root.join(format!("{MMC}/block/mmcblk0/slaves"))).unwrap();
        link(&root, &format!("{MMC}/block/mmcblk0/device"), MMC);
        link(&root, "sys/dev/block/179:0", &format!("{MMC}/block/mmcblk0"));
        link(&root, "sys/dev/block/179:2", &format!("{MMC}/block/mmcblk0/mmcblk0p2"));
        link(&root, "sys/class/block/mmcblk0p2", &format!("{MMC}/block/mmcblk0/mmcblk0p2"));
        root
    }

    #[test]
    fn a_partition_of_an_emmc_says_how_worn_the_whole_is() {
        let root = emmc("lifetime-emmc");
        let lifetime = read(&root, "179:2").unwrap();
        assert_eq!(read(&root, "179:0").as_ref(), Some(&lifetime));
        let expected = Lifetime {
            device: "mmcblk0".into(),
            kind: "emmc".into(),
            capacity_bytes: 8 << 30,
            used_percent: Some(40),
            reserve: Some("normal".into()),
            cycles: 3000,
            ..Lifetime::default()
        };
        assert_eq!(lifetime, expected);
    }

    #[test]
    fn mappings_and_file_systems_with_numbers_of_their_own_lead_to_the_disk() {
        let root = emmc("lifetime-mapping");
        let inner = format!("{MMC}/block/mmcblk0/mmcblk0p2");
        write(&root, &[("sys/devices/virtual/block/dm-0/size", "1\n"), ("sys/devices/virtual/block/dm-1/size", "1\n")]);
        link(&root, "sys/devices/virtual/block/dm-0/slaves/mmcblk0p2", &inner);
        link(&root, "sys/devices/virtual/block/dm-1/slaves/dm-0", "sys/devices/virtual/block/dm-0");
        link(&root, "sys/dev/block/252:1", "sys/devices/virtual/block/dm-1");
        let mounts = "24 1 0:21 / /proc rw - proc proc rw\n\
                      30 1 0:25 / /var rw,noatime shared:1 - btrfs /dev/mmcblk0p2 rw\n";
        write(&root, &[("proc/self/mountinfo", mounts)]);
        for device in ["252:1", "0:25"] {
            assert_eq!(read(&root, device).unwrap().device, "mmcblk0", "{device}");
        }
        // A mapping of itself has no disk.
        link(&root, "sys/devices/virtual/block/dm-2/slaves/dm-2", "sys/devices/virtual/block/dm-2");
        link(&root, "sys/dev/block/252:2", "sys/devices/virtual/block/dm-2");
        for device in ["252:2", "0:21", "0:99", "8:0"] {
            assert_eq!(read(&root, device), None, "{device}");
        }
    }

    #[test]
    fn an_sd_card_says_its_size_alone() {
        let root = emmc("lifetime-sd");
        write(&root, &[(&format!("{MMC}/type"), "SD\n")]);
        fs::remove_file(root.join(MMC).join("life_time")).unwrap();
        fs::remove_file(root.join(MMC).join("pre_eol_info")).unwrap();
        let lifetime = read(&root, "179:2").unwrap();
        assert_eq!((lifetime.kind.as_str(), lifetime.cycles, lifetime.used_percent), ("sd", 1000, None));
    }

    #[test]
    fn ubi_is_found_by_its_mount_and_counts_erases() {
        let root = TempDir::new("lifetime-ubi");
        write(
            &root,
            &[
                ("sys/class/ubi/ubi1/max_ec", "2001\n"),
                ("sys/class/ubi/ubi1/bad_peb_count", "3\n"),
                ("sys/class/ubi/ubi1/total_eraseblocks", "1000\n"),
                ("sys/class/ubi/ubi1/eraseblock_size", "126976\n"),
            ],
        );
        for source in ["ubi1:data", "ubi1_2", "/dev/ubi1_2"] {
            write(&root, &[("proc/self/mountinfo", &format!("28 22 0:17 / /var rw - ubifs {source} rw\n"))]);
            let lifetime = read(&root, "0:17").unwrap();
            assert_eq!((lifetime.device.as_str(), lifetime.capacity_bytes), ("ubi1", 126_976_000), "{source}");
            assert_eq!(
                (lifetime.used_percent, lifetime.erases_max, lifetime.bad_blocks),
                (Some(3), Some(2001), Some(3))
            );
        }
    }

    #[test]
    fn steps_are_taken_at_their_worse_end_and_nonsense_is_unknown() {
        for (text, percent) in [
            ("0x01 0x01", Some(10)),
            ("0x0a 0x01", Some(100)),
            ("0x01 0x0b", Some(100)),
            ("0x00 0x03", Some(30)),
            ("0x00 0x00", None),
            ("0x0c 0xff", None),
            ("", None),
            ("worn out", None),
        ] {
            assert_eq!(used_percent(text), percent, "{text}");
        }
        assert_eq!(
            [reserve("0x02"), reserve("0x03"), reserve("0x00"), reserve("?")],
            [Some("warning"), Some("urgent"), None, None]
        );
    }

    #[test]
    fn this_machine_is_asked_without_harm() {
        let dir = TempDir::new("lifetime-here");
        let mut reader = Reader::new(&dir);
        let first = reader.read(Instant::default());
        assert_eq!(reader.read(Instant::default() + REFRESH), first);
        assert_eq!(Reader::new(&dir.join("missing")).read(Instant::default()), None);
    }
}
