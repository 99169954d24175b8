//! `backhaul outbox verify`: reads every page and every record, and says what is lost.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Count, Fault, Found, Lost, epoch_json};
use crate::cli::print;
use crate::cli::status::Size;
use crate::outbox::inspect::{self, LaneView, Pages, Stored};

/// Lines of one kind for people; JSON has them all.
const LINES_MAX: usize = 12;

/// What was read.
struct Verdict {
    lanes: Vec<LaneView>,
    lost: Lost,
    records: u64,
    letters: u64,
    letters_lost: u64,
    record_bytes: u64,
    acked: u64,
    bytes: u64,
    pages: u64,
    /// File and page.
    damaged: Vec<(String, u32)>,
}

/// Runs the command.
pub(super) fn run(dir: &Path, json: bool) -> Result<ExitCode, Fault> {
    let mut found = Found::open(dir)?;
    let verdict = read(&mut found);
    let code = found.code(&verdict.lost);
    let text = if json { format!("{:#}\n", as_json(&found, &verdict)) } else { screen(dir, &found, &verdict) };
    let printed = print(&text);
    Ok(if printed == ExitCode::SUCCESS { ExitCode::from(code) } else { printed })
}

fn read(found: &mut Found) -> Verdict {
    let (mut records, mut record_bytes, mut letters) = (0, 0, 0);
    for lane in found.lanes() {
        for epoch in &lane.epochs {
            let mut from = epoch.acked + 1;
            while let Some(stored) = found.outbox.stored(&lane.name, epoch.epoch, from) {
                match stored {
                    Stored::Record(seq, draft) => {
                        if lane.dead_letters {
                            letters += 1;
                        } else {
                            records += 1;
                            record_bytes += draft.bytes() as u64;
                        }
                        from = seq + 1;
                    }
                    Stored::Gap(gap) => from = gap.to + 1,
                }
            }
        }
    }
    let (mut pages, mut damaged) = (0, Vec::new());
    for file in &found.files {
        let Some((_, number)) = inspect::segment_of(&file.name) else { continue };
        let read = inspect::pages(found.outbox.disk_mut().base_mut(), file, number);
        let Pages { written, zero, damaged: bad } = read;
        pages += u64::from(written) + u64::from(zero) + bad.len() as u64;
        damaged.extend(bad.into_iter().map(|page| (file.name.clone(), page)));
    }
    // Afterwards: what was found damaged on the way is a gap now.
    let lanes = found.lanes();
    Verdict {
        lost: Lost::in_lanes(&lanes),
        records,
        letters,
        letters_lost: Lost::letters(&lanes),
        record_bytes,
        acked: lanes.iter().flat_map(|lane| &lane.epochs).map(|epoch| epoch.acked).sum(),
        bytes: found.files.iter().map(|file| file.bytes).sum(),
        pages,
        damaged,
        lanes,
    }
}

fn screen(dir: &Path, found: &Found, verdict: &Verdict) -> String {
    let records = verdict.records;
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").expect("a String takes everything");
    let of = if found.device.is_empty() { String::new() } else { format!(", of {}", found.device) };
    line(format!("outbox   {}{of}", dir.display()));
    line(format!(
        "read     {} with {}, {}",
        Count(found.files.len() as u64, "segment"),
        Count(verdict.pages, "page"),
        Size(verdict.bytes)
    ));
    line(format!(
        "records  {records} intact and waiting ({} of them), {} acknowledged before",
        Size(verdict.record_bytes),
        verdict.acked
    ));
    if verdict.letters + verdict.letters_lost > 0 {
        let damaged =
            if verdict.letters_lost > 0 { format!(", {} damaged", verdict.letters_lost) } else { String::new() };
        line(format!("letters  {}{damaged}", Count(verdict.letters, "dead letter")));
    }
    let gaps = verdict.lanes.iter().flat_map(|lane| {
        lane.epochs.iter().flat_map(move |epoch| epoch.gaps.iter().map(move |gap| (&lane.name, epoch.epoch, gap)))
    });
    let gaps: Vec<_> = gaps.collect();
    for (lane, epoch, gap) in gaps.iter().take(LINES_MAX) {
        let seqs =
            if gap.from == gap.to { format!("seq {}", gap.from) } else { format!("seq {} to {}", gap.from, gap.to) };
        line(format!("gap      {lane}, epoch {epoch}, {seqs}: {}", Lost::of([*gap])));
    }
    if let Some(more) = gaps.len().checked_sub(LINES_MAX + 1) {
        line(format!("         and {} (--json has them all)", Count(more as u64 + 1, "more gap")));
    }
    for lane in &found.report.lost_lanes {
        line(format!("lost     lane {lane}: not one header is intact, what it held has no numbers any more"));
    }
    if !verdict.damaged.is_empty() {
        let pages: Vec<_> =
            verdict.damaged.iter().take(LINES_MAX).map(|(file, page)| format!("{file}:{page}")).collect();
        let more = if verdict.damaged.len() > LINES_MAX { ", …" } else { "" };
        line(format!("damage   {}: {}{more}", Count(verdict.damaged.len() as u64, "page"), pages.join(", ")));
    }
    for note in &found.report.notes {
        line(format!("note     {note}"));
    }
    line(format!("verdict  {}", words(found, verdict)));
    out
}

fn words(found: &Found, verdict: &Verdict) -> String {
    let lost = &verdict.lost;
    if !found.is_intact(lost) && found.live {
        return "not to be told from a write in progress: an agent runs here; stop it, or verify a copy".into();
    }
    if lost.corrupt > 0 {
        let too = if lost.unknown > 0 { ", and there may be more" } else { "" };
        return format!("LOST: {} damaged beyond reading{too}", Count(lost.corrupt, "promised record"));
    }
    if found.lost_lanes().next().is_some() {
        return "LOST: all that a lane held".into();
    }
    if lost.unknown > 0 {
        return "IN DOUBT: there is damage where promised records may have been; the numbers behind it are skipped"
            .into();
    }
    if found.files.is_empty() {
        return "no segments: nothing was ever put here, it was wiped, or it is not the folder of [outbox] dir".into();
    }
    if verdict.damaged.is_empty() {
        return "intact".into();
    }
    if verdict.letters_lost > 0 {
        return "intact, but for dead letters: what became of their records is known upstream".into();
    }
    "intact: the damage lies where nothing waits".into()
}

fn as_json(found: &Found, verdict: &Verdict) -> Value {
    let Verdict { lost, damaged, .. } = verdict;
    let lane = |lane: &LaneView| {
        json!({
            "lane": lane.name.as_str(),
            "records": lane.epochs.iter().map(|epoch| epoch.records).sum::<u64>(),
            "dead_letters": lane.dead_letters,
            "segments": found.files_of(&lane.name).count(),
            "epochs": lane.epochs.iter().map(epoch_json).collect::<Vec<_>>(),
        })
    };
    json!({
        "intact": found.is_intact(lost),
        "records": verdict.records,
        "acked": verdict.acked,
        "lost_promised": lost.corrupt,
        "lost_unknown": lost.unknown,
        "lost_torn": lost.torn,
        "lost_lanes": found.lost_lanes().map(|lane| lane.as_str()).collect::<Vec<_>>(),
        "dead_letters": verdict.letters,
        "dead_letters_lost": verdict.letters_lost,
        "given_up": { "overflow": lost.overflow, "expired": lost.expired, "rejected": lost.rejected },
        "segments": found.files.len(),
        "bytes": verdict.bytes,
        "pages": verdict.pages,
        "pages_damaged": damaged.iter().map(|(file, page)| json!({ "file": file, "page": page })).collect::<Vec<_>>(),
        "agent_runs": found.live,
        "lanes": verdict.lanes.iter().map(lane).collect::<Vec<_>>(),
        "notes": found.report.notes,
    })
}
