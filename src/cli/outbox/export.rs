//! `backhaul outbox export`: what waits, as NDJSON on standard output.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::{Count, Fault, Found, GapJson, Lost, no_lane};
use crate::exit;
use crate::outbox::Draft;
use crate::outbox::dead::Origin;
use crate::outbox::inspect::{LaneView, Stored};
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
    /// In a dead letter: which record this was, and why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejected<'a>>,
}

/// What a dead letter is a copy of.
#[derive(Serialize)]
struct Rejected<'a> {
    lane: &'a str,
    epoch: Epoch,
    seq: Seq,
    reason: &'a str,
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
        if lanes.iter().all(|lane| lane.name.as_str() != wanted) {
            return Err(no_lane(dir, wanted, lanes.iter().map(|lane| &lane.name)));
        }
        lanes.retain(|lane| lane.name.as_str() == wanted);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut records, mut letters) = (0, 0);
    for lane in &lanes {
        for epoch in &lane.epochs {
            let written = export(&mut found, lane, (epoch.epoch, epoch.acked + 1), &mut out);
            match written.and_then(|count| out.flush().map(|()| count)) {
                Ok(count) if lane.dead_letters => letters += count,
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
    let letters_words = if letters > 0 { format!(" and {}", Count(letters, "dead letter")) } else { String::new() };
    eprintln!("backhaul: {}{letters_words} exported{lost_words}", Count(records, "record"));
    for lane in found.report.lost_lanes.iter().filter(|name| lanes.iter().any(|lane| lane.name == **name)) {
        eprintln!("backhaul: lane {lane}: not one header is intact, what it held cannot be read");
    }
    Ok(ExitCode::from(found.code(&lost)))
}

/// One epoch, from a number on. Returns how many records that were.
fn export(
    found: &mut Found,
    lane: &LaneView,
    (epoch, mut from): (Epoch, Seq),
    out: &mut impl Write,
) -> io::Result<u64> {
    let (lane, dead_letters) = (&lane.name, lane.dead_letters);
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
                // What a letter's key says of its record is no key of a producer's.
                let of = draft.key.as_deref().filter(|_| dead_letters).and_then(Origin::parse);
                line(out, &record(lane, epoch, seq, &draft, of.as_ref()))?;
                records += 1;
                from = seq + 1;
            }
            None => return Ok(records),
        }
    }
}

fn record<'a>(
    lane: &'a LaneName,
    epoch: Epoch,
    seq: Seq,
    draft: &'a Draft,
    letter: Option<&'a Origin>,
) -> RecordLine<'a> {
    let clockless = draft.at.is_none();
    RecordLine {
        lane: lane.as_str(),
        epoch,
        seq,
        at: draft.at,
        boot: clockless.then_some(draft.boot),
        boot_ms: clockless.then_some(draft.boot_ms),
        topic: &draft.topic,
        key: letter.map_or(draft.key.as_deref(), |of| of.key.as_deref()),
        ttl_s: Some(draft.ttl_s).filter(|&ttl| ttl > 0),
        body: &draft.body,
        rejected: letter.map(|Origin { lane, epoch, seq, reason, .. }| Rejected {
            lane,
            epoch: *epoch,
            seq: *seq,
            reason,
        }),
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
        let text = |draft: &Draft| serde_json::to_string(&record(&lane, 300, 17, draft, None)).unwrap();
        assert_eq!(text(&draft), r#"{"lane":"temp","epoch":300,"seq":17,"at":7,"topic":"a\"b","text":"x\ny\u0001"}"#);
        let keyed = Draft { at: None, ttl_s: 9, key: Some("k".into()), body: Body::Bytes(vec![0, 255]), ..draft };
        assert_eq!(
            text(&keyed),
            r#"{"lane":"temp","epoch":300,"seq":17,"at":null,"boot":1,"boot_ms":2,"topic":"a\"b","key":"k","ttl_s":9,"base64":"AP8="}"#
        );
        let of = Origin { lane: "gas".into(), epoch: 4, seq: 2, reason: "no".into(), key: None };
        assert_eq!(
            serde_json::to_string(&record(&lane, 300, 17, &keyed, Some(&of))).unwrap(),
            r#"{"lane":"temp","epoch":300,"seq":17,"at":null,"boot":1,"boot_ms":2,"topic":"a\"b","ttl_s":9,"base64":"AP8=","rejected":{"lane":"gas","epoch":4,"seq":2,"reason":"no"}}"#
        );
    }
}
