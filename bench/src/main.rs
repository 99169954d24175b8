//! The outbox beside a raw file, SQLite, redb and queue-file: bytes and flushes that reach the device, durable speed,
//! CPU, memory, and opening a gigabyte. One run, in turns, each on an ext4 of its own behind a loop device.
//!
//!     make bench-outbox        needs root and loop devices; prints a table and writes docs/outbox-bench.svg

mod append;
mod child;
mod device;
mod life;
mod metered;
mod open;
mod picture;
mod store;
mod table;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use device::Device;

/// Nothing here is worth more than a line for people.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: backhaul-bench [--quick] [--work DIR] [--svg FILE]";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["child", what @ ..] => child::run(what),
        _ => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backhaul-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let mut work = env::temp_dir();
    let mut svg = None;
    let mut scale = 1;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => scale = 10,
            "--work" => work = PathBuf::from(args.next().ok_or(USAGE)?),
            "--svg" => svg = Some(PathBuf::from(args.next().ok_or(USAGE)?)),
            _ => return Err(USAGE.into()),
        }
    }
    let work = work.join(format!("backhaul-bench-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    let measured = measure(&work, scale);
    let _ = std::fs::remove_dir(&work);
    let rows = measured?;
    println!("{}", table::markdown(&rows));
    if let Some(svg) = svg {
        std::fs::write(&svg, picture::svg(&rows))?;
        println!("drawn: {}", svg.display());
    }
    Ok(())
}

fn measure(work: &Path, scale: usize) -> Result<Vec<table::Row>> {
    store::check_size()?;
    // Said at once and loudly, not after minutes.
    Device::try_new(work, "probe", 64 << 20).map_err(|error| {
        format!("NOT RUN: no ext4 behind a loop device can be made here, which takes root and /dev/loop*: {error}")
    })?;
    let appended = append::measure(work, scale)?;
    let lives = life::measure(work, scale)?;
    let opened = open::measure(work, scale)?;
    Ok(table::rows(&appended, &lives, &opened))
}
