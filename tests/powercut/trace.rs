//! A disk and what was fetched, in a few words each, for a replay.

use std::fmt::Write;

use backhaul::outbox::format::{self, Header, PAGE_BYTES, PAYLOAD_BYTES, Page, Place};
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::record::Item;

/// Every page by what it holds.
pub fn disk(disk: &SimDisk) -> String {
    let mut text = String::new();
    for (name, bytes) in disk.image() {
        let _ = write!(text, "\n  {name}, {} bytes", bytes.len());
        let Some(segment) = name.rsplit('.').nth(1).and_then(|number| number.parse().ok()) else { continue };
        for (page, chunk) in (0..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            let place = Place { segment, page };
            let _ = write!(text, "\n    {page}: ");
            let _ = match (format::page(chunk, place), Header::decode(&chunk[..PAYLOAD_BYTES], place)) {
                (kind, Some(h)) => write!(
                    text,
                    "{}lap {} epoch {} first {} count {} acked {} floor {} durable {} reserved {} runs {:?}",
                    if kind == Page::Bad { "TORN " } else { "" },
                    (h.lap),
                    (h.epoch),
                    (h.first),
                    (h.count),
                    (h.acked),
                    (h.floor),
                    (h.durable),
                    (h.reserved),
                    (h.runs)
                ),
                (Page::Zero, None) => write!(text, "zero"),
                (Page::Bad, None) => write!(text, "bad"),
                (Page::Written { lap }, None) => write!(text, "inside of a batch, lap {lap}"),
            };
        }
    }
    text
}

/// Records by their seq, gaps by theirs and their cause.
pub fn items(items: &[Item]) -> String {
    let words = items.iter().map(|item| match item {
        Item::Record(record) => format!("{}", record.seq),
        Item::Gap(gap) => format!("{}..={} {}", gap.from, gap.to, gap.why.as_str()),
    });
    words.collect::<Vec<_>>().join(", ")
}
