//! The bounds on memory and flash that follow from a configuration: what `check` prints. The one place under
//! `config` that looks at the parts, each of which says what it holds.

use super::Config;
use crate::outbox;
use crate::outbox::dead::{dead_letters_bytes_max, with_dead_letters};
use crate::shell::{handler, local, uplink};

/// Bytes by part; all of them `together` are the bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes of RAM that a part holds beside the program itself.
    pub memory: Vec<(&'static str, u64)>,
    /// Most bytes of files on flash.
    pub flash: Vec<(String, u64)>,
}

/// The bound of all parts. Lanes may be larger together than any number of bytes that 64 bits hold.
pub fn together(parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(0, u64::saturating_add)
}

/// Program, stacks and OpenSSL: measured, not derived.
const PROGRAM_BYTES: u64 = 8 << 20;

/// Sixteen visitors with a request and an answer each, the day, the notes.
const PAGE_BYTES: u64 = 2 << 20;

/// The bounds of this configuration.
pub fn bounds(config: &Config) -> Bounds {
    Bounds { memory: memory(config), flash: flash(config) }
}

fn memory(config: &Config) -> Vec<(&'static str, u64)> {
    let outbox = outbox::Config {
        segment_bytes: config.outbox.segment_bytes,
        headroom_bytes_min: config.outbox.headroom_bytes_min,
        record_bytes_max: config.local.record_bytes_max,
        lanes: with_dead_letters(&config.lanes, config.outbox.dead_letters_bytes_max),
        device: String::new(),
        machine: String::new(),
    };
    let mut parts = vec![
        ("program", PROGRAM_BYTES),
        ("outbox", outbox::memory_bytes_max(&outbox)),
        ("local clients and their puts", local::memory_bytes_max(&config.local)),
        ("uplink", uplink::memory_bytes_max(&config.upstream, config.local.record_bytes_max)),
    ];
    if !config.handlers.is_empty() {
        parts.push(("handlers", handler::memory_bytes_max(&config.handlers)));
    }
    if !config.page.listen.is_empty() {
        parts.push(("page", PAGE_BYTES));
    }
    parts
}

fn flash(config: &Config) -> Vec<(String, u64)> {
    let segment = u64::from(config.outbox.segment_bytes);
    let lane = |lane: &super::Lane| (format!("lane {}", lane.name), lane.bytes_max / segment * segment);
    let lanes = config.lanes.iter().map(lane);
    let dead = dead_letters_bytes_max(config.outbox.dead_letters_bytes_max, config.local.record_bytes_max);
    // The lock and the commands done: a page each.
    lanes.chain([("dead letters".to_owned(), dead), ("other".to_owned(), 4 * 4096)]).collect()
}
