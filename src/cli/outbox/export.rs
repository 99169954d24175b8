//! `backhaul outbox export`: what waits, as NDJSON on standard output.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::{Count, Fault, Found, GapJson, Lost};
use crate::exit;
use crate::outbox::Draft;
use crate::outbox::inspect::Stored;
use crate::record::{Body, Epoch, Gap, LaneName, Seq};

/// A record's line.
#[derive(Serialize)]
struct RecordLine<'a> {
    lane: &'a str,
    epoch: Epoch,
    seq: Seq,
    at: Option<u64>,
    /// Where no clock was known: which boot, and when in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_ms: Option<u64>,
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_s: Option<u32>,
    #[serde(flatten)]
    body: &'a Body,
}

/// A gap's line.
#[derive(Serialize)]
struct GapLine<'a> {
    lane: &'a str,
    epoch: Epoch,
    gap: GapJson,
}

/// Runs the command.
pub(super) fn run(dir: &Path, lane: Option<&str>) -> Result<ExitCode, Fault> {
    let mut found = Found::open(dir)?;
    let mut lanes = found.lanes();
    if let Some(wanted) = lane {
        let names: Vec<_> = lanes.iter().map(|lane| lane.name.to_string()).collect();
        lanes.retain(|lane| lane.name.as_str() == wanted);
        if lanes.is_empty() {
            let there = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(Fault::new(exit::NO_INPUT, format!("{}: no lane '{wanted}'; there is {there}", dir.display())));
        }
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let mut records = 0;
    for lane in &lanes {
        for epoch in &lane.epochs {
            let written = export(&mut found, &lane.name, (epoch.epoch, epoch.acked + 1), &mut out);
            match written.and_then(|count| out.flush().map(|()| count)) {
                Ok(count) => records += count,
                // Whoever reads has read enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
                Err(error) => return Err(Fault::new(exit::IO, format!("standard output: {error}"))),
            }
        }
    }
    let mut exported = found.lanes();
    exported.retain(|view| lanes.iter().any(|lane| lane.name == view.name));
    let lost = Lost::in_lanes(&exported);
    let lost_words = if lost == Lost::default() { String::new() } else { format!("; never to come: {lost}") };
    eprintln!("backhaul: {} exported{lost_words}", Count(records, "record"));
    for lane in found.report.lost_lanes.iter().filter(|name| lanes.iter().any(|lane| lane.name == **name)) {
        eprintln!("backhaul: lane {lane}: not one header is intact, what it held cannot be read");
    }
    Ok(ExitCode::from(found.code(&lost)))
}

/// One epoch, from a number on. Returns how many records that were.
fn export(
    found: &mut Found,
    lane: &LaneName,
    (epoch, mut from): (Epoch, Seq),
    out: &mut impl Write,
) -> io::Result<u64> {
    let mut records = 0;
    // Neighbours of one cause are one line, however they were found.
    let mut gap: Option<Gap> = None;
    loop {
        let stored = found.outbox.stored(lane, epoch, from);
        if let Some(Stored::Gap(next)) = &stored
            && let Some(held) = gap.as_mut().filter(|held| held.why == next.why)
        {
            held.to = next.to;
            from = next.to + 1;
            continue;
        }
        if let Some(gap) = gap.take() {
            line(out, &GapLine { lane: lane.as_str(), epoch, gap: GapJson(gap) })?;
        }
        match stored {
            Some(Stored::Gap(next)) => {
                from = next.to + 1;
                gap = Some(next);
            }
            Some(Stored::Record(seq, draft)) => {
                line(out, &record(lane, epoch, seq, &draft))?;
                records += 1;
                from = seq + 1;
            }
            None => return Ok(records),
        }
    }
}

fn record<'a>(lane: &'a LaneName, epoch: Epoch, seq: Seq, draft: &'a Draft) -> RecordLine<'a> {
    let clockless = draft.at.is_none();
    RecordLine {
        lane: lane.as_str(),
        epoch,
        seq,
        at: draft.at,
        boot: clockless.then_some(draft.boot),
        boot_ms: clockless.then_some(draft.boot_ms),
        topic: &draft.topic,
        key: draft.key.as_deref(),
        ttl_s: Some(draft.ttl_s).filter(|&ttl| ttl > 0),
        body: &draft.body,
    }
}

fn line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_that_was_handed_in() {
        let lane = LaneName::try_new("temp").unwrap();
        let draft = Draft {
            at: Some(7),
            boot: 1,
            boot_ms: 2,
            ttl_s: 0,
            topic: "a\"b".into(),
            key: None,
            body: Body::Text("x\ny\u{1}".into()),
        };
        let text = |draft: &Draft| serde_json::to_string(&record(&lane, 300, 17, draft)).unwrap();
        assert_eq!(text(&draft), r#"{"lane":"temp","epoch":300,"seq":17,"at":7,"topic":"a\"b","text":"x\ny\u0001"}"#);
        let keyed = Draft { at: None, ttl_s: 9, key: Some("k".into()), body: Body::Bytes(vec![0, 255]), ..draft };
        assert_eq!(
            text(&keyed),
            r#"{"lane":"temp","epoch":300,"seq":17,"at":null,"boot":1,"boot_ms":2,"topic":"a\"b","key":"k","ttl_s":9,"base64":"AP8="}"#
        );
    }
}
