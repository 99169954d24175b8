//! What `prove` remembers in its folder: which run there is, and what each cut said.

use std::io;

use serde::{Deserialize, Serialize};

use super::judge::{Findings, Verdict};
use crate::outbox::disk::Disk;

/// A line for each run that was judged.
const REPORT: &str = "prove.report";
/// Longest report that is read.
const REPORT_BYTES_MAX: u64 = 1 << 20;
const STATE_BYTES: usize = 512;

/// A run, as written down before its first number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// Which run, from 1.
    pub run: u32,
    /// In which boot it began.
    pub boot: String,
    /// It ended by itself.
    pub finished: bool,
}

/// What a cut said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Which run.
    pub run: u32,
    /// `cut`, `same boot`, `kill` or `finished`.
    pub cause: String,
    /// Nothing is missing, or what.
    pub verdict: String,
    /// Numbers flushed for certain.
    pub flushed: u64,
    /// The last number that a witness saw.
    pub seen: Option<u64>,
    /// What the number in flight tore at multiples of, in bytes.
    pub torn_at: Option<u32>,
}

impl Line {
    /// What these findings say.
    pub fn new(run: u32, cause: &str, findings: &Findings) -> Self {
        Self {
            run,
            cause: cause.into(),
            verdict: findings.verdict().as_str().into(),
            flushed: findings.flushed,
            seen: findings.seen,
            torn_at: findings.in_flight.torn_at,
        }
    }
}

/// The newest run written down. Two files take turns: a cut while one is written leaves the other.
pub(super) fn state<D: Disk>(disk: &mut D) -> Option<State> {
    let read = |name: &str| {
        let mut bytes = vec![0; STATE_BYTES];
        let read = disk.read_at(name, 0, &mut bytes).ok()?;
        serde_json::from_slice::<State>(bytes[..read].trim_ascii_end()).ok()
    };
    ["prove.state.0", "prove.state.1"].into_iter().filter_map(read).max_by_key(|state| (state.run, state.finished))
}

/// Writes a run down, durably.
pub(super) fn set_state<D: Disk>(disk: &mut D, state: &State) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(state)?;
    bytes.resize(STATE_BYTES, b' ');
    let name = format!("prove.state.{}", state.run % 2);
    disk.write_at(&name, 0, &bytes)?;
    disk.sync(&name)?;
    disk.sync_dir()
}

/// Everything that was judged so far; what a cut tore is passed over.
pub(super) fn report<D: Disk>(disk: &mut D) -> Vec<Line> {
    let size = size(disk).min(REPORT_BYTES_MAX);
    let mut bytes = vec![0; size as usize];
    let read = disk.read_at(REPORT, 0, &mut bytes).unwrap_or(0);
    bytes[..read].split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// Adds a line, durably.
pub(super) fn add<D: Disk>(disk: &mut D, line: &Line) -> io::Result<()> {
    // A new line first: the one before may have been torn.
    let mut bytes = b"\n".to_vec();
    serde_json::to_writer(&mut bytes, line)?;
    bytes.push(b'\n');
    let end = size(disk);
    disk.write_at(REPORT, end, &bytes)?;
    disk.sync(REPORT)?;
    disk.sync_dir()
}

fn size<D: Disk>(disk: &mut D) -> u64 {
    let files = disk.list().unwrap_or_default();
    files.iter().find(|file| file.name == REPORT).map_or(0, |file| file.bytes)
}

/// All runs in one line.
pub(super) fn summary(lines: &[Line]) -> String {
    let cuts: Vec<_> = lines.iter().filter(|line| line.cause == "cut").collect();
    if cuts.is_empty() {
        return "no power cut yet".into();
    }
    let with = |verdict: Verdict| cuts.iter().filter(|line| line.verdict == verdict.as_str()).count();
    let mut text =
        format!("{} judged: {} kept everything", super::Count(cuts.len() as u64, "cut"), with(Verdict::Kept));
    let others = [
        (Verdict::Lies, "lost what was flushed"),
        (Verdict::Damages, "damaged what was flushed"),
        (Verdict::OurFault, "lost a record that the storage had kept"),
    ];
    for (verdict, words) in others.into_iter().filter(|(verdict, _)| with(*verdict) > 0) {
        text += &format!(", {} {words}", with(verdict));
    }
    if let Some(piece) = cuts.iter().filter_map(|line| line.torn_at).min() {
        text += &format!("; smallest piece torn off: {piece} bytes");
    }
    text
}
