//! `backhaul outbox wipe`: removes everything, when it is meant.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;

use super::{Count, Fault, Found, RECORD_BYTES_MAX, survey};
use crate::cli::print;
use crate::exit;
use crate::outbox::disk::Disk as _;
use crate::outbox::inspect::config_found;
use crate::outbox::{IDENTITY_FILE, Outbox};
use crate::shell::disk::{Lock, RealDisk, is_owned};
use crate::shell::entropy;

/// The answer was no.
const REFUSED: u8 = 1;

/// Runs the command.
pub(super) fn run(dir: &Path, yes: bool) -> Result<ExitCode, Fault> {
    let (files, device) = survey(dir)?;
    if files.is_empty() {
        return Ok(print(&format!("{}: no segments, nothing to remove\n", dir.display())));
    }
    if is_owned(dir) {
        return Err(locked(dir));
    }
    let what = what(dir)?;
    if !yes && !ask(&format!("remove {what}{}? Type yes: ", of(&device)))? {
        eprintln!("backhaul: nothing was removed");
        return Ok(ExitCode::from(REFUSED));
    }
    // Held until the process ends.
    let _lock = Lock::try_new(dir).map_err(|_| locked(dir))?;
    // A folder that takes no change is left as it is.
    let first = dir.join(&files[0].name);
    OpenOptions::new().write(true).open(&first).map_err(|error| Fault::io(first.display(), &error))?;
    let mut config = config_found(&files, RECORD_BYTES_MAX);
    (config.device, config.machine) = (device, machine(dir));
    // For good: recovery writes what is in doubt first, so that not even a cut in the middle gives a number twice.
    let (mut outbox, _) = Outbox::open(RealDisk::new(dir), &config, entropy::draw());
    let rest = |error: &io::Error| Fault::io(format!("{}: not all is removed", dir.display()), error);
    outbox.wipe().map_err(|error| rest(&error))?;
    let mut disk = outbox.into_disk();
    // What recovery could not make anything of.
    for file in survey(dir)?.0 {
        disk.remove(&file.name).map_err(|error| rest(&error))?;
    }
    disk.sync_dir().map_err(|error| rest(&error))?;
    Ok(print(&format!("removed {what}; each lane begins a new epoch at the next start\n")))
}

fn locked(dir: &Path) -> Fault {
    Fault::new(exit::TRY_AGAIN, format!("{}: an agent runs here; stop it first", dir.display()))
}

/// What would go.
fn what(dir: &Path) -> Result<String, Fault> {
    let lanes = Found::open(dir)?.lanes();
    let records: u64 = lanes.iter().flat_map(|lane| &lane.epochs).map(|epoch| epoch.records).sum();
    let lanes = Count(lanes.len() as u64, "lane");
    Ok(format!("{} in {lanes} of {}", Count(records, "waiting record"), dir.display()))
}

fn of(device: &str) -> String {
    if device.is_empty() { String::new() } else { format!(" (of {device})") }
}

/// The second line of the file that says whose folder it is.
fn machine(dir: &Path) -> String {
    let text = std::fs::read(dir.join(IDENTITY_FILE)).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().nth(1).unwrap_or("").trim().to_owned()
}

/// Only a person can say yes.
fn ask(question: &str) -> Result<bool, Fault> {
    if !io::stdin().is_terminal() {
        return Err(Fault::new(exit::USAGE, "nobody to ask here: say --yes if it is meant"));
    }
    let mut err = io::stderr().lock();
    let asked = err.write_all(question.as_bytes()).and_then(|()| err.flush());
    let mut answer = String::new();
    asked
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|error| Fault::io("the terminal", &error))?;
    Ok(answer.trim() == "yes")
}
