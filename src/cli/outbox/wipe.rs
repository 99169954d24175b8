//! `backhaul outbox wipe`: removes everything, or a lane, when it is meant.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write as _};
use std::path::Path;
use std::process::ExitCode;

use super::{Count, Fault, Found, RECORD_BYTES_MAX, held, no_lane, segment_of, survey};
use crate::cli::print;
use crate::exit;
use crate::outbox::disk::{Disk, Entry};
use crate::outbox::inspect::config_found;
use crate::outbox::{IDENTITY_FILE, Outbox};
use crate::shell::disk::{Lock, RealDisk, is_owned};
use crate::shell::entropy;

/// The answer was no.
const REFUSED: u8 = 1;

/// Runs the command.
pub(super) fn run(dir: &Path, lane: Option<&str>, yes: bool) -> Result<ExitCode, Fault> {
    let (mut files, device) = survey(dir)?;
    if let Some(wanted) = lane {
        let lanes: BTreeSet<_> = files.iter().filter_map(|file| segment_of(&file.name)).map(|(name, _)| name).collect();
        files.retain(|file| is_of(file, lane));
        if files.is_empty() {
            return Err(no_lane(dir, wanted, lanes.iter()));
        }
    }
    if files.is_empty() {
        return Ok(print(&format!("{}: no segments, nothing to remove\n", dir.display())));
    }
    if is_owned(dir) {
        return Err(locked(dir));
    }
    let what = what(dir, lane)?;
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
    let view = Lanes { disk: RealDisk::new(dir), only: lane.map(Into::into) };
    let (mut outbox, _) = Outbox::open(view, &config, entropy::draw());
    let rest = |error: &io::Error| Fault::io(format!("{}: not all is removed", dir.display()), error);
    outbox.wipe().map_err(|error| rest(&error))?;
    let mut disk = outbox.into_disk();
    // What recovery could not make anything of.
    for file in survey(dir)?.0.iter().filter(|file| is_of(file, lane)) {
        disk.remove(&file.name).map_err(|error| rest(&error))?;
    }
    disk.sync_dir().map_err(|error| rest(&error))?;
    let lanes = if lane.is_some() { "this lane" } else { "each lane" };
    Ok(print(&format!("removed {what}; {lanes} begins a new epoch at the next start\n")))
}

/// Whether it is a segment of this lane; `None`: of any.
fn is_of(file: &Entry, lane: Option<&str>) -> bool {
    segment_of(&file.name).is_some_and(|(name, _)| lane.is_none_or(|wanted| name.as_str() == wanted))
}

/// The folder as if only one lane were in it: opening repairs and removes, and nothing of that is the others' business.
struct Lanes {
    disk: RealDisk,
    only: Option<String>,
}

impl Disk for Lanes {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let mut files = self.disk.list()?;
        files.retain(|file| segment_of(&file.name).is_none() || is_of(file, self.only.as_deref()));
        Ok(files)
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read_at(name, offset, buf)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(name, offset, bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.disk.sync(name)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

fn locked(dir: &Path) -> Fault {
    Fault::new(exit::TRY_AGAIN, format!("{}: an agent runs here; stop it first", dir.display()))
}

/// What would go.
fn what(dir: &Path, lane: Option<&str>) -> Result<String, Fault> {
    let mut lanes = Found::open(dir)?.lanes();
    lanes.retain(|view| lane.is_none_or(|wanted| view.name.as_str() == wanted));
    let (records, letters) = held(&lanes);
    let letters = if letters > 0 { format!(" and {}", Count(letters, "dead letter")) } else { String::new() };
    let lanes = lane.map_or_else(|| Count(lanes.len() as u64, "lane").to_string(), |lane| format!("lane {lane}"));
    Ok(format!("{}{letters} in {lanes} of {}", Count(records, "waiting record"), dir.display()))
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
