//! `prove --sigkill`: a child writes and is killed, again and again; after each kill everything that it had said to be
//! flushed has to be there. Tries recovery on this file system; the storage's own cache is not emptied by a kill.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use super::bench::{Bench, NUMBER_BYTES};
use super::history::{self, Line, State};
use super::judge::{self, Findings, Verdict};
use super::{Count, Fault, boot, say, words};
use crate::cli::args::ProveArgs;
use crate::cli::status::Size;
use crate::exit;
use crate::outbox::disk::Disk as _;
use crate::shell::disk::{Lock, RealDisk};
use crate::shell::entropy;

/// Most numbers that a child lives for.
const NUMBERS_MAX: u64 = 48;

/// The parent: starts, reads, kills, judges.
pub(super) fn run(dir: &Path, kills: u64, args: &ProveArgs) -> Result<ExitCode, Fault> {
    let fault = |error: io::Error| Fault::io(dir.display(), &error);
    let mut disk = RealDisk::new(dir);
    let seed = entropy::draw();
    let mut rng = fastrand::Rng::with_seed(seed);
    let lock = || Lock::try_new(dir).map_err(|_| Fault::new(exit::TRY_AGAIN, "another one runs here"));
    let held = lock()?;
    let run = begin(dir, &mut disk, seed).map_err(fault)?;
    drop(held);
    let (kills_words, number) = (Count(kills, "kill"), Size(NUMBER_BYTES));
    say(&format!(
        "run {run} on {}: {kills_words}, at most {NUMBERS_MAX} numbers of {number} between two",
        dir.display()
    ));
    let start = Instant::now();
    let mut seen = 0;
    let mut torn = 0;
    let mut last = Findings::default();
    let mut done = 0;
    while done < kills && args.duration.is_none_or(|duration| start.elapsed() < duration) {
        let child = spawn(dir).map_err(fault)?;
        seen = kill_after(child, rng.u64(..NUMBERS_MAX), seen).map_err(fault)?;
        done += 1;
        let _held = lock()?;
        last = judge::judge(&mut disk, RealDisk::new(dir), run, Some(seen), entropy::draw());
        torn += u64::from(last.in_flight.torn_at.is_some());
        if last.verdict() != Verdict::Kept {
            history::add(&mut disk, &Line::new(run, "kill", &last)).map_err(fault)?;
            say(&format!("after kill {done}:\n{}", words::verdict(run, &last, true)));
            return Ok(ExitCode::from(exit::DATA));
        }
    }
    history::add(&mut disk, &Line::new(run, "kill", &last)).map_err(fault)?;
    say(&format!(
        "{}, {} flushed, none missing after any of them; {torn} in mid-write",
        Count(done, "kill"),
        Count(last.flushed, "number")
    ));
    say("verdict   recovery lost nothing here; what a power cut takes only a power cut shows");
    Ok(ExitCode::SUCCESS)
}

/// Writes a new run down, with nothing in it.
fn begin(dir: &Path, disk: &mut RealDisk, seed: u64) -> io::Result<u32> {
    let run = history::state(disk).map_or(0, |state| state.run).max(judge::newest_run(disk).unwrap_or(0)) + 1;
    drop(Bench::begin(RealDisk::new(dir), RealDisk::new(dir), run, seed)?);
    history::set_state(disk, &State { run, boot: boot(), finished: true })?;
    disk.sync_dir()?;
    Ok(run)
}

fn spawn(dir: &Path) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["outbox", "prove", "--child", "--"]).arg(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

/// Reads so many numbers, kills, and reads what had been said before: the last number, or `before`.
fn kill_after(mut child: Child, numbers: u64, before: u64) -> io::Result<u64> {
    let out = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut lines = BufReader::new(out);
    let mut last = before;
    let mut line = String::new();
    let mut read = |lines: &mut BufReader<_>| -> io::Result<Option<u64>> {
        line.clear();
        lines.read_line(&mut line)?;
        // Half a line is half a number.
        Ok(line.strip_suffix('\n').and_then(|line| line.parse().ok()))
    };
    let mut reading = Ok(());
    for _ in 0..numbers {
        match read(&mut lines) {
            Ok(Some(number)) => last = number,
            Ok(None) => break,
            Err(error) => {
                reading = Err(error);
                break;
            }
        }
    }
    child.kill()?;
    let status = child.wait()?;
    reading?;
    if let Some(code) = status.code() {
        return Err(io::Error::other(format!("the child ended by itself with {code}")));
    }
    while let Some(number) = read(&mut lines)? {
        last = number;
    }
    Ok(last)
}

/// The child: goes on where the last one was killed.
pub(super) fn child(dir: &Path, args: &ProveArgs) -> io::Result<ExitCode> {
    let mut disk = RealDisk::new(dir);
    let run = history::state(&mut disk).map_or(0, |state| state.run);
    let flushed = judge::judge(&mut disk, RealDisk::new(dir), run, None, entropy::draw()).flushed;
    let mut bench = Bench::go_on(RealDisk::new(dir), RealDisk::new(dir), run, entropy::draw());
    let mut out = io::stdout().lock();
    for number in flushed + 1.. {
        if bench.bytes() > args.bytes_max {
            break;
        }
        bench.number(number)?;
        writeln!(out, "{number}")?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}
