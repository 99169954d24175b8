//! Where 32 bits are too few: sizes and offsets beyond 4 GiB, bounds that add up, times beyond 2038-01-19 03:14:07 UTC.
//! Run on this machine and, by `tests/arm/run`, as armv7, whose `usize` and C `time_t` have 32 bits. A board's clock
//! beyond that second is `tests/vm`'s.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use backhaul::config::Config;
use backhaul::config::bounds::{bounds, together};
use backhaul::config::load::load;
use backhaul::outbox::Draft;
use backhaul::outbox::disk::Disk as _;
use backhaul::outbox::expiry::Clock;
use backhaul::record::Body;
use backhaul::shell::disk::RealDisk;

#[path = "support/temp_dir.rs"]
mod temp_dir;

use temp_dir::TempDir;

const GIB: u64 = 1 << 30;

fn configured(dir: &Path, text: &str) -> Config {
    let file = dir.join("backhaul.toml");
    let head = "[device]\nid = \"wide\"\n[[upstream.endpoint]]\nurl = \"wss://h/v1\"\n";
    std::fs::write(&file, format!("{head}{text}")).expect("the configuration can be written");
    load(&file).unwrap_or_else(|errors| panic!("{errors:?}")).config
}

fn memory(config: &Config) -> u64 {
    together(bounds(config).memory.iter().map(|(_, bytes)| *bytes))
}

#[test]
fn a_lane_of_8_gib_is_bounded_by_8_gib() {
    let dir = TempDir::new("wide-lane");
    let text = "[outbox]\ndir = \"/data\"\n[[lane]]\nname = \"big\"\ndefault = true\nbytes_max = 8589934592\n";
    let config = configured(&dir, text);
    assert_eq!(config.lanes[0].bytes_max, 8 * GIB);
    assert_eq!(bounds(&config).flash[0], ("lane big".into(), 8 * GIB));
}

/// Memory would wrap in an `usize` of 32 bits, flash in 64 bits, and both look small: the tests' build panics then.
#[test]
fn the_bound_of_the_largest_configuration_does_not_wrap() {
    let dir = TempDir::new("wide-bound");
    let lanes =
        (0..64).map(|n| format!("[[lane]]\nname = \"l{n}\"\ndefault = {}\nbytes_max = {}\n", n == 0, GIB << 30));
    let text = "[outbox]\nsegment_bytes = 4194304\n[local]\nclients_max = 4096\nrecord_bytes_max = 1000000\n";
    let largest = configured(&dir, &(text.to_owned() + &lanes.collect::<String>()));
    assert!(memory(&largest) > 64 * 2 * 4_194_304, "two segments of each lane, at the least: {}", memory(&largest));
    let flash = bounds(&largest).flash;
    assert_eq!(flash.iter().filter(|(_, bytes)| *bytes == GIB << 30).count(), 64, "{flash:?}");
    assert_eq!(together(flash.iter().map(|(_, bytes)| *bytes)), u64::MAX, "2⁶⁶ bytes and more");
}

#[test]
fn a_byte_beyond_4_gib_of_a_file_is_the_one_that_was_written_there() {
    let dir = TempDir::new("wide-file");
    let mut disk = RealDisk::new(&dir);
    let far = 5 * GIB + 7;
    disk.write_at("sparse", 0, b"near").expect("a file");
    disk.write_at("sparse", far, b"far").expect("a file system with large files");
    disk.sync("sparse").expect("a file system that syncs");
    let mut buf = [0; 3];
    assert_eq!(disk.read_at("sparse", far, &mut buf).expect("readable"), 3);
    assert_eq!(&buf, b"far");
    assert_eq!(disk.read_at("sparse", 7, &mut buf).expect("readable"), 3);
    assert_eq!(buf, [0; 3], "not folded down");
    let listed = disk.list().expect("a readable folder");
    assert!(listed.iter().any(|entry| entry.name == "sparse" && entry.bytes == far + 3), "{listed:?}");
}

/// The clock's floor is learned from such files.
#[test]
fn a_file_of_2039_keeps_its_time() {
    let dir = TempDir::new("wide-time");
    let written = SystemTime::UNIX_EPOCH + Duration::from_secs(2_177_452_800);
    let file = File::create(dir.join("later")).expect("a file");
    match file.set_modified(written) {
        Ok(()) => {}
        // What a system without 64-bit times answers; a file system without them says nothing and keeps another time.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OVERFLOW.raw_os_error()) => {
            let _closed = writeln!(std::io::stderr(), "\nNOT RUN: a_file_of_2039_keeps_its_time: {error}\n");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    assert_eq!(file.metadata().and_then(|metadata| metadata.modified()).expect("a time"), written);
}

/// Stamped in the seconds after C's `time_t` of 32 bits has gone round to 1901, or with the clock set only then.
#[test]
fn a_record_of_the_day_after_2038_01_19_is_stamped_and_ages_as_on_any_other() {
    let overflow_ms = (1_u64 << 31) * 1000;
    let clock = Clock { boot: 7, boot_ms: 90_000, wall_ms: Some(overflow_ms + 30_000), server_ms: None };
    let draft = |at, boot_ms| Draft {
        at,
        boot: 7,
        boot_ms,
        ttl_s: 60,
        topic: "t".into(),
        key: None,
        body: Body::Text(String::new()),
    };
    let before = draft(None, 59_000);
    assert_eq!(clock.at(&before), Some(overflow_ms - 1000), "no clock was set then");
    assert_eq!(clock.age_ms(&before), 31_000);
    assert!(!clock.has_expired(&before));
    let elsewhen = Draft { boot: 6, ..draft(Some(overflow_ms - 31_000), 1) };
    assert_eq!(clock.age_ms(&elsewhen), 61_000, "by the clock alone, from another boot");
    assert!(clock.has_expired(&elsewhen));
}
