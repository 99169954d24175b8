//! `backhaul outbox prove`: does this storage keep what it said it wrote? [`bench`] writes, a person cuts the power,
//! [`judge`] looks at what is left, [`history`] remembers. Here is who talks to the person.

mod bench;
mod history;
mod judge;
mod kill;
#[cfg(test)]
mod tests;
mod words;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use super::{Count, Fault, segment_of};
use crate::cli::args::ProveArgs;
use crate::exit;
use crate::outbox::disk::Disk as _;
use crate::shell::disk::{Lock, RealDisk};
use crate::shell::entropy;
use bench::{Bench, NUMBER_BYTES};
use history::{Line, State};
use judge::Verdict;

/// Runs the command.
pub(super) fn run(dir: &Path, args: &ProveArgs) -> Result<ExitCode, Fault> {
    let mut disk = RealDisk::new(dir);
    let files = disk.list().map_err(|error| Fault::io(dir.display(), &error))?;
    let foreign = files.iter().find(|file| segment_of(&file.name).is_some_and(|(lane, _)| lane.as_str() != "prove"));
    if let Some(file) = foreign {
        let text = format!("{} holds an outbox ({}): give a folder of its own beside it", dir.display(), file.name);
        return Err(Fault::new(exit::USAGE, text));
    }
    if let Some(kills) = args.sigkill {
        return kill::run(dir, kills, args);
    }
    let _lock = Lock::try_new(dir)
        .map_err(|_| Fault::new(exit::TRY_AGAIN, format!("{}: another one runs here", dir.display())))?;
    let io = |error: io::Error| Fault::io(dir.display(), &error);
    if args.child {
        return kill::child(dir, args).map_err(io);
    }
    let judged = last_cut(dir, &mut disk, args).map_err(io)?;
    if judged.is_some_and(|verdict| verdict != Verdict::Kept) {
        return Ok(ExitCode::from(exit::DATA));
    }
    if args.judge {
        if judged.is_none() {
            say("nothing to judge: no run was cut since the last verdict");
        }
        return Ok(ExitCode::SUCCESS);
    }
    count(dir, &mut disk, args).map_err(io)
}

/// Judges the run before, if it was not yet; `None`: there is nothing to judge.
fn last_cut(dir: &Path, disk: &mut RealDisk, args: &ProveArgs) -> io::Result<Option<Verdict>> {
    let state = history::state(disk);
    let begun = judge::newest_run(disk);
    let run = state.as_ref().map_or(0, |state| state.run).max(begun.unwrap_or(0));
    let mut report = history::report(disk);
    let finished = state.as_ref().is_some_and(|state| state.run == run && state.finished);
    if run == 0 || finished || report.iter().any(|line| line.run == run) {
        return Ok(None);
    }
    let same_boot = state.as_ref().is_some_and(|state| state.run == run && state.boot == boot());
    let seen = if args.seen.is_some() { args.seen } else { ask(run)? };
    let mut findings = judge::judge(disk, RealDisk::new(dir), run, seen, entropy::draw());
    findings.state_missing = state.is_none_or(|state| state.run < run);
    let line = Line::new(run, if same_boot { "same boot" } else { "cut" }, &findings);
    history::add(disk, &line)?;
    report.push(line);
    say(&words::verdict(run, &findings, same_boot));
    say(&format!("so far    {}", history::summary(&report)));
    Ok(Some(findings.verdict()))
}

/// The last number that the person saw.
fn ask(run: u32) -> io::Result<Option<u64>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    loop {
        eprint!("run {run} was cut. The last number you saw (Enter: not known): ");
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer)? == 0 || answer.trim().is_empty() {
            return Ok(None);
        }
        match answer.trim().parse() {
            Ok(number) => return Ok(Some(number)),
            Err(_) => eprintln!("a number, as it was printed"),
        }
    }
}

/// A run: numbers until the power goes, or time or bytes are used up.
fn count(dir: &Path, disk: &mut RealDisk, args: &ProveArgs) -> io::Result<ExitCode> {
    let begun = judge::newest_run(disk).unwrap_or(0);
    let run = history::state(disk).map_or(0, |state| state.run).max(begun) + 1;
    say(&words::beginning(run, dir, args));
    let mut witness = Witness::open(args.witness.as_deref());
    let mut bench = Bench::begin(RealDisk::new(dir), RealDisk::new(dir), run, entropy::draw())?;
    let mut state = State { run, boot: boot(), finished: false };
    history::set_state(disk, &state)?;
    let start = Instant::now();
    let mut last = 0;
    let in_time = || args.duration.is_none_or(|duration| start.elapsed() < duration);
    while bench.bytes() + NUMBER_BYTES <= args.bytes_max && in_time() {
        bench.number(last + 1)?;
        last += 1;
        witness.tell(run, last);
    }
    state.finished = true;
    history::set_state(disk, &state)?;
    say(&words::uncut(run, last, bench.bytes()));
    Ok(ExitCode::SUCCESS)
}

/// Where flushed numbers go: standard output and, if wanted, somewhere else.
struct Witness {
    terminal: bool,
    other: Option<Box<dyn Write>>,
}

impl Witness {
    fn open(other: Option<&str>) -> Self {
        let open = |to: &str| -> io::Result<Box<dyn Write>> {
            if to.contains(':') && !to.contains('/') {
                let stream = TcpStream::connect(to)?;
                stream.set_nodelay(true)?;
                return Ok(Box::new(stream));
            }
            let file: File = OpenOptions::new().create(true).append(true).open(to)?;
            Ok(Box::new(file))
        };
        let other = other.and_then(|to| {
            open(to).inspect_err(|error| eprintln!("backhaul: no witness at {to}: {error}; going on without")).ok()
        });
        Self { terminal: io::stdout().is_terminal(), other }
    }

    fn tell(&mut self, run: u32, number: u64) {
        let mut out = io::stdout().lock();
        // A terminal that has gone does not end the run: the cut is still to come.
        let _gone = if self.terminal { write!(out, "\rflushed {number} ") } else { writeln!(out, "{number}") };
        let _gone = out.flush();
        if let Some(other) = &mut self.other
            && let Err(error) = other.write_all(format!("run {run} number {number}\n").as_bytes())
        {
            eprintln!("\nbackhaul: the witness is gone: {error}; going on without");
            self.other = None;
        }
    }
}

fn say(text: &str) {
    let mut out = io::stdout().lock();
    // As for the numbers.
    let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
