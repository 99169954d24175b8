//! `backhaul outbox list`: what waits in which lane, as far as a start of the agent would know it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Count, Fault, Found, Lost, Utc, epoch_json};
use crate::cli::print;
use crate::cli::status::Size;
use crate::outbox::inspect::{EpochView, LaneView, Stored};
use crate::record::{Epoch, LaneName, Seq};

/// Numbers looked at for the newest record: damage there must not make a list read the backlog.
const NEWEST_TRIES_MAX: u32 = 64;

/// A lane's row.
struct Row {
    lane: LaneView,
    files: usize,
    bytes: u64,
    oldest: Option<u64>,
    newest: Option<u64>,
    lost_whole: bool,
}

/// Runs the command.
pub(super) fn run(dir: &Path, json: bool) -> Result<ExitCode, Fault> {
    let mut found = Found::open(dir)?;
    let ends: Vec<_> = found.lanes().iter().map(|lane| (oldest(&mut found, lane), newest(&mut found, lane))).collect();
    // Afterwards: looking for those may have found damage.
    let rows: Vec<Row> = found
        .lanes()
        .into_iter()
        .zip(ends)
        .map(|(lane, (oldest, newest))| Row {
            files: found.files_of(&lane.name).count(),
            bytes: found.files_of(&lane.name).map(|file| file.bytes).sum(),
            lost_whole: found.report.lost_lanes.contains(&lane.name),
            oldest,
            newest,
            lane,
        })
        .collect();
    if json {
        let value = as_json(&found, &rows);
        Ok(print(&format!("{value:#}\n")))
    } else {
        Ok(print(&screen(dir, &found, &rows)))
    }
}

fn screen(dir: &Path, found: &Found, rows: &[Row]) -> String {
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{}", text.trim_end()).expect("a String takes everything");
    let of = if found.device.is_empty() { String::new() } else { format!(", of {}", found.device) };
    line(format!("outbox  {}{of}", dir.display()));
    if rows.is_empty() {
        line("        no segments: nothing was ever put here, or it was wiped".into());
        return out;
    }
    let width = rows.iter().map(|row| row.lane.name.as_str().len()).max().unwrap_or(0).max(4);
    line(format!(
        "lane    {:width$} {:>9} {:>13} {:>10}  {:19}  {:19}",
        "name", "waiting", "segments", "on flash", "oldest (UTC)", "newest (UTC)"
    ));
    for row in rows {
        let time = |at: Option<u64>| at.map_or_else(|| "-".into(), |ms| Utc(ms).to_string());
        line(format!(
            "        {:width$} {:>9} {:>13} {:>10}  {:19}  {:19}",
            row.lane.name.as_str(),
            row.waiting(),
            format!("{} of {}", row.lane.segments_held, row.files),
            Size(row.bytes).to_string(),
            time(row.oldest),
            time(row.newest)
        ));
    }
    line(format!(
        "epoch   {:width$} {:>16}  {:>11}  {:23}  {}",
        "lane", "epoch", "acked up to", "waiting", "never to come"
    ));
    for row in rows {
        let name = row.lane.name.as_str();
        if row.lost_whole {
            line(format!(
                "        {name:width$} LOST: not one header is intact, so nothing here has a number any more"
            ));
        } else if row.lane.epochs.is_empty() {
            line(format!("        {name:width$} {:>16}  the first record begins one", "none yet"));
        }
        for epoch in &row.lane.epochs {
            let EpochView { epoch: number, acked, gaps, .. } = epoch;
            let waiting = waiting(epoch).map_or_else(|| "nothing".into(), |(from, to)| format!("{from} to {to}"));
            line(format!("        {name:width$} {number:>16}  {acked:>11}  {waiting:23}  {}", Lost::of(gaps)));
        }
    }
    let records: u64 = waiting_rows(rows).map(Row::waiting).sum();
    let lanes = waiting_rows(rows).count() as u64;
    line(format!("sum     {} waiting in {}", Count(records, "record"), Count(lanes, "lane")));
    if let Some(dead) = rows.iter().find(|row| row.lane.dead_letters) {
        let name = &dead.lane.name;
        line(format!(
            "letters {} in lane {name}: refused, never sent; see export",
            Count(dead.waiting(), "dead letter")
        ));
    }
    for note in &found.report.notes {
        line(format!("note    {note}"));
    }
    out
}

fn as_json(found: &Found, rows: &[Row]) -> Value {
    let lane = |row: &Row| {
        json!({
            "lane": row.lane.name.as_str(),
            "records": row.waiting(),
            "segments": row.files,
            "segments_held": row.lane.segments_held,
            "bytes": row.bytes,
            "oldest_at": row.oldest,
            "newest_at": row.newest,
            "lost_whole": row.lost_whole,
            "dead_letters": row.lane.dead_letters,
            "epochs": row.lane.epochs.iter().map(epoch_json).collect::<Vec<_>>(),
        })
    };
    json!({
        "device": found.device,
        "agent_runs": found.live,
        "records": waiting_rows(rows).map(Row::waiting).sum::<u64>(),
        "dead_letters": rows.iter().filter(|row| row.lane.dead_letters).map(Row::waiting).sum::<u64>(),
        "lanes": rows.iter().map(lane).collect::<Vec<_>>(),
        "notes": found.report.notes,
    })
}

impl Row {
    fn waiting(&self) -> u64 {
        self.lane.epochs.iter().map(|epoch| epoch.records).sum()
    }
}

/// The lanes that are there to be sent.
fn waiting_rows(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| !row.lane.dead_letters)
}

/// The lowest and the highest number that waits: gaps at either end left out.
fn waiting(epoch: &EpochView) -> Option<(Seq, Seq)> {
    let (mut from, mut to) = (epoch.acked + 1, epoch.last);
    for gap in &epoch.gaps {
        if gap.from <= from {
            from = from.max(gap.to + 1);
        }
    }
    for gap in epoch.gaps.iter().rev() {
        if gap.to >= to {
            to = to.min(gap.from - 1);
        }
    }
    (from <= to).then_some((from, to))
}

/// When the oldest record that waits was handed in, where a clock was known.
fn oldest(found: &mut Found, lane: &LaneView) -> Option<u64> {
    lane.epochs.iter().find_map(|epoch| {
        let mut from = epoch.acked + 1;
        for _ in 0..NEWEST_TRIES_MAX {
            match found.outbox.stored(&lane.name, epoch.epoch, from)? {
                Stored::Record(_, draft) => return draft.at,
                Stored::Gap(gap) => from = gap.to + 1,
            }
        }
        None
    })
}

/// When the newest one was.
fn newest(found: &mut Found, lane: &LaneView) -> Option<u64> {
    lane.epochs.iter().rev().find_map(|epoch| {
        let mut at = epoch.last;
        for _ in 0..NEWEST_TRIES_MAX {
            if at <= epoch.acked {
                return None;
            }
            match found.outbox.stored(&lane.name, epoch.epoch, at)? {
                Stored::Record(_, draft) => return draft.at,
                Stored::Gap(_) => at = gap_begin(found, &lane.name, epoch.epoch, at)? - 1,
            }
        }
        None
    })
}

fn gap_begin(found: &Found, lane: &LaneName, epoch: Epoch, at: Seq) -> Option<Seq> {
    let lanes = found.outbox.look();
    let gaps = &lanes.iter().find(|view| view.name == *lane)?.epochs.iter().find(|view| view.epoch == epoch)?.gaps;
    gaps.iter().find(|gap| (gap.from..=gap.to).contains(&at)).map(|gap| gap.from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Gap, Why};

    #[test]
    fn what_waits_begins_and_ends_with_a_record() {
        let gap = |from, to| Gap { from, to, why: Why::Torn };
        let epoch = |gaps| EpochView { epoch: 1, acked: 10, last: 99, records: 1, gaps };
        assert_eq!(waiting(&epoch(vec![])), Some((11, 99)));
        assert_eq!(
            waiting(&epoch(vec![gap(11, 12), gap(13, 20), gap(30, 40), gap(90, 95), gap(96, 99)])),
            Some((21, 89))
        );
        assert_eq!(waiting(&epoch(vec![gap(11, 99)])), None);
    }
}
