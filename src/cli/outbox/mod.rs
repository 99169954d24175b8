//! `backhaul outbox`: what lies on flash, without an agent. One module a command. They open a folder by the agent's
//! own recovery, its writes kept in RAM; only `wipe` and `prove` write, and `wipe` takes the agent's lock first.

mod export;
mod list;
mod prove;
mod verify;
mod wipe;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::args::{OutboxAction, OutboxArgs};
use crate::exit;
use crate::outbox::dead::DEAD_LANE;
use crate::outbox::disk::{Disk, Entry};
use crate::outbox::inspect::{EpochView, LaneView, config_found, segment_of};
use crate::outbox::overlay::Overlay;
use crate::outbox::{IDENTITY_FILE, Outbox, Report};
use crate::record::{Gap, INTEGER_MAX, LaneName, Why};
use crate::shell::disk::{RealDisk, is_owned, newer};

/// Longest record that is looked at; an agent's own limit is far below.
const RECORD_BYTES_MAX: u32 = 1 << 20;
/// Where epochs come from that an offline look draws: they are not on flash and are not shown.
const SEED: u64 = 0x6c6f_6f6b;

/// Runs the command.
pub fn run(args: &OutboxArgs) -> ExitCode {
    let dir = &args.dir;
    let result = match &args.action {
        OutboxAction::List { json } => list::run(dir, *json),
        OutboxAction::Verify { json } => verify::run(dir, *json),
        OutboxAction::Export { lane } => export::run(dir, lane.as_deref()),
        OutboxAction::Wipe { lane, yes } => wipe::run(dir, lane.as_deref(), *yes),
        OutboxAction::Prove(args) => prove::run(dir, args),
    };
    result.unwrap_or_else(|Fault { message, code }| {
        eprintln!("backhaul: {message}");
        ExitCode::from(code)
    })
}

/// Records that wait in this folder; `None` where it cannot be read.
pub fn waiting(dir: &Path) -> Option<u64> {
    let found = Found::open(dir).ok()?;
    Some(held(&found.lanes()).0)
}

/// What ends a command, and its exit code.
#[derive(Debug)]
struct Fault {
    message: String,
    code: u8,
}

impl Fault {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), code }
    }

    fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let is_one_of = |kinds: [io::ErrorKind; 2]| kinds.contains(&error.kind());
        let code = if is_one_of([io::ErrorKind::NotFound, io::ErrorKind::NotADirectory]) {
            exit::NO_INPUT
        } else if is_one_of([io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem]) {
            exit::PERMISSION
        } else {
            exit::IO
        };
        Self::new(code, format!("{what}: {error}"))
    }
}

/// An outbox that was opened for a look.
struct Found {
    /// Whose it is, as its lock file says; empty where it says nothing.
    device: String,
    /// An agent runs here: what is seen is a snapshot that may be out of step with itself.
    live: bool,
    /// The segments' files.
    files: Vec<Entry>,
    /// Opened as by an agent's start, nothing written.
    outbox: Outbox<Overlay<RealDisk>>,
    /// What the start found.
    report: Report,
    drawn: BTreeSet<u64>,
}

impl Found {
    /// Opens a folder. Says on stderr when an agent runs there.
    fn open(dir: &Path) -> Result<Self, Fault> {
        let (files, device) = survey(dir)?;
        let live = is_owned(dir);
        if live {
            let dir = dir.display();
            eprintln!(
                "backhaul: an agent runs on {dir}: this is a snapshot, and what it writes meanwhile looks damaged"
            );
        }
        let config = config_found(&files, RECORD_BYTES_MAX);
        let (outbox, report) = Outbox::open(Overlay::new(RealDisk::read_only(dir)), &config, SEED);
        let mut rng = fastrand::Rng::with_seed(SEED);
        let drawn = (0..64 + 8 * config.lanes.len()).map(|_| rng.u64(1..=INTEGER_MAX)).collect();
        Ok(Self { device, live, files, outbox, report, drawn })
    }

    /// The lanes, without epochs that begin only now.
    fn lanes(&self) -> Vec<LaneView> {
        let mut lanes = self.outbox.look();
        for lane in &mut lanes {
            lane.epochs
                .retain(|epoch| epoch.records > 0 || !epoch.gaps.is_empty() || !self.drawn.contains(&epoch.epoch));
        }
        lanes
    }

    /// The files of a lane.
    fn files_of(&self, lane: &LaneName) -> impl Iterator<Item = &Entry> {
        self.files.iter().filter(move |file| segment_of(&file.name).is_some_and(|(name, _)| name == *lane))
    }

    /// Lanes that held promises, and of which not one header is intact.
    fn lost_lanes(&self) -> impl Iterator<Item = &LaneName> {
        self.report.lost_lanes.iter().filter(|lane| lane.as_str() != DEAD_LANE)
    }

    /// Nothing that was promised is missing for certain.
    fn is_intact(&self, lost: &Lost) -> bool {
        lost.corrupt == 0 && lost.unknown == 0 && self.lost_lanes().next().is_none()
    }

    /// The exit code that says so. Damage beside a running agent may be a write in progress.
    fn code(&self, lost: &Lost) -> u8 {
        match (self.is_intact(lost), self.live) {
            (true, _) => 0,
            (false, true) => exit::TRY_AGAIN,
            (false, false) => exit::DATA,
        }
    }
}

/// A lane was named that is not there.
fn no_lane<'a>(dir: &Path, wanted: &str, lanes: impl Iterator<Item = &'a LaneName>) -> Fault {
    let lanes: Vec<_> = lanes.map(|lane| lane.as_str()).collect();
    let there = if lanes.is_empty() { "none".into() } else { lanes.join(", ") };
    Fault::new(exit::NO_INPUT, format!("{}: no lane '{wanted}'; there is {there}", dir.display()))
}

/// Records that wait for the upstream, and dead letters.
fn held(lanes: &[LaneView]) -> (u64, u64) {
    let (letters, records) = lanes.iter().partition::<Vec<_>, _>(|lane| lane.dead_letters);
    let sum = |lanes: Vec<&LaneView>| lanes.iter().flat_map(|lane| &lane.epochs).map(|epoch| epoch.records).sum();
    (sum(records), sum(letters))
}

/// The segments' files and the device of a folder that can be read.
fn survey(dir: &Path) -> Result<(Vec<Entry>, String), Fault> {
    if let Some(why) = newer(dir) {
        return Err(Fault::new(exit::DATA, why));
    }
    let mut disk = RealDisk::read_only(dir);
    let mut files = disk.list().map_err(|error| Fault::io(dir.display(), &error))?;
    files.retain(|file| segment_of(&file.name).is_some());
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for file in &files {
        // What one may not read is not damaged.
        let path = dir.join(&file.name);
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Fault::io(path.display(), &error));
            }
            Ok(_) | Err(_) => {}
        }
    }
    let mut bytes = vec![0; 1024];
    let read = disk.read_at(IDENTITY_FILE, 0, &mut bytes).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..read]);
    let device = text.lines().next().unwrap_or("").chars().filter(|c| !c.is_control()).collect::<String>();
    Ok((files, device.trim().to_owned()))
}

/// Numbers that will never come, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lost {
    corrupt: u64,
    unknown: u64,
    torn: u64,
    overflow: u64,
    expired: u64,
    rejected: u64,
    settled: u64,
}

impl Lost {
    fn of<'a>(gaps: impl IntoIterator<Item = &'a Gap>) -> Self {
        let mut lost = Self::default();
        for gap in gaps {
            let cause = match gap.why {
                Why::Overflow => &mut lost.overflow,
                Why::Expired => &mut lost.expired,
                Why::Corrupt => &mut lost.corrupt,
                Why::Rejected => &mut lost.rejected,
                Why::Torn => &mut lost.torn,
                Why::Unknown => &mut lost.unknown,
                Why::Settled => &mut lost.settled,
            };
            *cause += gap.to - gap.from + 1;
        }
        lost
    }

    /// In all lanes; dead letters apart, for what became of their records is known upstream.
    fn in_lanes(lanes: &[LaneView]) -> Self {
        let promised = lanes.iter().filter(|lane| !lane.dead_letters);
        Self::of(promised.flat_map(|lane| &lane.epochs).flat_map(|epoch| &epoch.gaps))
    }

    /// Dead letters that cannot be read any more; those of the newest batch, too, of which damage leaves in doubt
    /// whether they were ever complete.
    fn letters(lanes: &[LaneView]) -> u64 {
        let letters = lanes.iter().filter(|lane| lane.dead_letters);
        let lost = Self::of(letters.flat_map(|lane| &lane.epochs).flat_map(|epoch| &epoch.gaps));
        lost.corrupt + lost.unknown
    }
}

/// `3 damaged, 7 given up (full)`. What is in doubt or unused are numbers, not records.
impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = |count, cause| (count > 0).then(|| format!("{count} {cause}"));
        let number = |count, cause| (count > 0).then(|| format!("{} {cause}", Count(count, "number")));
        let causes = [
            record(self.corrupt, "damaged"),
            number(self.unknown, "in doubt"),
            record(self.overflow, "given up (full)"),
            record(self.expired, "expired"),
            record(self.rejected, "rejected"),
            number(self.torn, "unused"),
            record(self.settled, "settled"),
        ];
        let causes: Vec<_> = causes.into_iter().flatten().collect();
        if causes.is_empty() { f.write_str("-") } else { f.write_str(&causes.join(", ")) }
    }
}

/// A gap as JSON: the wire's words.
struct GapJson(Gap);

impl Serialize for GapJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields {
            from: u64,
            to: u64,
            why: &'static str,
            count: u64,
        }
        let Gap { from, to, why } = self.0;
        Fields { from, to, why: why.as_str(), count: self.0.count() }.serialize(serializer)
    }
}

/// An epoch as `list` and `verify` give it to programs.
fn epoch_json(epoch: &EpochView) -> Value {
    let EpochView { epoch, acked, last, records, gaps } = epoch;
    let gaps: Vec<_> = gaps.iter().map(|gap| GapJson(*gap)).collect();
    json!({ "epoch": epoch, "acked": acked, "last": last, "records": records, "gaps": gaps })
}

/// A number of things: `1 record`, `2 records`.
struct Count(u64, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

/// Unix ms as UTC, to the second.
struct Utc(u64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0 / 1000;
        let (days, of_day) = (s / 86_400, s % 86_400);
        // The calendar in eras of 400 years from 1 March of year 0, so that a leap day comes last.
        let days = days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = year + era * 400 + next;
        write!(f, "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", of_day / 3600, of_day % 3600 / 60, of_day % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_agree_with_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (784_111_777, "1994-11-06 08:49:37"),
            (946_684_799, "1999-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_767_225_600, "2026-01-01 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(Utc(seconds * 1000).to_string(), text);
        }
    }

    #[test]
    fn a_loss_is_told_by_cause() {
        let gap = |from, to, why| Gap { from, to, why };
        let lost = Lost::of(&[
            gap(1, 3, Why::Corrupt),
            gap(9, 9, Why::Overflow),
            gap(10, 10, Why::Corrupt),
            gap(11, 11, Why::Unknown),
        ]);
        assert_eq!(lost.to_string(), "4 damaged, 1 number in doubt, 1 given up (full)");
        assert_eq!(Lost::default().to_string(), "-");
    }
}
