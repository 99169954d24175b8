//! What `prove` tells the person.

use std::fmt::Write as _;
use std::path::Path;

use super::bench::{BEGIN_BYTES, KEPT_RECORDS, NUMBER_BYTES, SLOT_SECTORS, SLOTS};
use super::judge::{Findings, InFlight, Verdict};
use crate::cli::args::ProveArgs;
use crate::cli::status::Size;

/// Numbers of one kind that are named.
const NAMED_MAX: usize = 8;

/// Before the first number.
pub(super) fn beginning(run: u32, dir: &Path, args: &ProveArgs) -> String {
    let time = args.duration.map_or_else(String::new, |duration| format!(", for at most {} s", duration.as_secs()));
    format!(
        "run {run} on {}: writes at most {}{time} ({} to begin with, then {} and two flushes a number).\n\
         Every number below is flushed. Cut the power while it counts, keep the last number in mind,\n\
         start again and run this again.",
        dir.display(),
        Size(args.bytes_max.max(BEGIN_BYTES)),
        Size(BEGIN_BYTES),
        Size(NUMBER_BYTES)
    )
}

/// The run has ended by itself.
pub(super) fn uncut(run: u32, last: u64, bytes: u64) -> String {
    format!("\nrun {run} ended by itself at {last}, {} written: without a power cut nothing is learned", Size(bytes))
}

/// What a cut left.
pub(super) fn verdict(run: u32, found: &Findings, same_boot: bool) -> String {
    let mut out = String::new();
    let mut line = |text: &str| writeln!(out, "{text}").expect("a String takes everything");
    let seen = found.seen.map_or_else(|| "not known".into(), |seen| seen.to_string());
    line(&format!("run {run:<5} {} numbers flushed for certain, last one seen: {seen}", found.flushed));
    if same_boot {
        line("          the machine did not restart since: no power cut, unless the storage alone was unplugged");
    }
    if found.state_missing {
        line("MISSING   the file that was synced before the first number");
    }
    if found.tail_missing > 0 {
        let (from, to) = (found.top + 1, found.flushed);
        line(&format!("MISSING   {from} to {to}: flushed, and gone without a trace"));
    }
    if !found.reordered.is_empty() {
        let later = "flushed, and older content is there although later numbers are";
        line(&format!("MISSING   {}: {later}", named(&found.reordered)));
    }
    if !found.damaged.is_empty() {
        line(&format!("DAMAGED   {}: flushed, and neither old nor new content is there", named(&found.damaged)));
    }
    if !found.files_missing.is_empty() {
        line(&format!("MISSING   synced files number {}", named(&found.files_missing)));
    }
    let in_place = found.flushed.min(SLOTS - 1);
    if found.verdict() == Verdict::Kept {
        line(&format!("in place  the last {in_place} flushed numbers, the last synced files"));
    }
    if found.records_missing.is_empty() {
        line(&format!("outbox    the last {} committed records, recovered", found.flushed.min(KEPT_RECORDS)));
    } else {
        line(&format!("outbox    committed records are missing: {}", named(&found.records_missing)));
    }
    line(&format!("in flight number {}: {}", found.flushed + 1, in_flight(found.in_flight)));
    write!(out, "verdict   {}", conclusion(found)).expect("a String takes everything");
    out
}

fn in_flight(found: InFlight) -> String {
    let InFlight { new, garbage, torn_at } = found;
    let mut text = format!("{new} of {SLOT_SECTORS} sectors written");
    if garbage > 0 {
        write!(text, ", {garbage} garbage").expect("a String takes everything");
    }
    if let Some(piece) = torn_at {
        write!(text, ", torn at multiples of {piece} bytes").expect("a String takes everything");
    }
    text
}

fn conclusion(found: &Findings) -> &'static str {
    match found.verdict() {
        Verdict::Kept if found.seen.is_some() => "this storage kept what it said it wrote",
        Verdict::Kept => {
            "this storage kept the order of what it said it wrote; whether it kept the very last\n          \
             can be told only with the last number seen (--seen, --witness)"
        }
        Verdict::Lies => {
            "this storage LIES about flushing: no software can keep a promise on it. A write cache\n          \
             without power behind it, a mount without barriers, or a worn or fake card"
        }
        Verdict::Damages => {
            "this storage DAMAGES flushed data when the power goes in another write: the outbox will\n          \
             count what is lost, and cannot keep it"
        }
        Verdict::OurFault => {
            "the storage kept all else, and records of OUR OUTBOX are missing: please report this, with this folder"
        }
    }
}

fn named(numbers: &[u64]) -> String {
    let some: Vec<_> = numbers.iter().take(NAMED_MAX).map(u64::to_string).collect();
    let more = numbers.len().saturating_sub(NAMED_MAX);
    if more == 0 { some.join(", ") } else { format!("{} and {more} more", some.join(", ")) }
}
