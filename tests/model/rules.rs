//! The configurations that are searched: each as small as it can be and still turn its segments over.

use std::sync::Arc;

use backhaul::config::{self, Commit, Overflow};
use backhaul::dialect;
use backhaul::outbox;
use backhaul::record::LaneName;

use super::world::{Act, Broken, Budget, Rules};

const PAGE_BYTES: u32 = 4096;

fn outbox(pages: u32, lanes: Vec<config::Lane>) -> outbox::Config {
    outbox::Config {
        segment_bytes: pages * PAGE_BYTES,
        headroom_bytes_min: 0,
        record_bytes_max: 1024,
        lanes,
        device: "device 0".into(),
        machine: String::new(),
    }
}

/// A lane of two segments of so many pages.
fn lane(pages: u32, overflow: Overflow) -> config::Lane {
    config::Lane { bytes_max: u64::from(2 * pages * PAGE_BYTES), overflow, ..config::Lane::default() }
}

fn base(name: &'static str, pages: u32, overflow: Overflow) -> Rules {
    Rules {
        name,
        outbox: outbox(pages, vec![lane(pages, overflow)]),
        dialect: Arc::new(dialect::Config {
            window_records: 2,
            window_bytes: 20_000,
            batch_bytes_max: 10_000,
            ack_timeout_ms: 1000,
            ..dialect::Config::default()
        }),
        batch_records_max: 2,
        puts_max: 4,
        group_max: 2,
        threads: false,
        server_syncs: true,
        budget: Budget::default(),
        broken: None,
        prelude: &[Act::Start],
    }
}

/// A backlog that fills the lane, nothing of it sent.
const FULL: &[Act] =
    &[Act::Start, Act::Put { lane: 0, count: 1 }, Act::Put { lane: 0, count: 1 }, Act::Put { lane: 0, count: 1 }];

/// Power cuts at every call while a lane is young.
pub fn young() -> Rules {
    let budget = Budget { power_cuts: 2, ..Budget::default() };
    Rules { budget, puts_max: 3, prelude: &[], ..base("young", 2, Overflow::DropOldest) }
}

/// Power cuts and kills on a lane that gives up its oldest.
pub fn drop_oldest() -> Rules {
    let budget = Budget { power_cuts: 1, kills: 1, resets: 1, ..Budget::default() };
    Rules { budget, puts_max: 6, prelude: FULL, ..base("drop_oldest", 2, Overflow::DropOldest) }
}

/// The same with pages enough that a segment holds several batches.
pub fn roomy() -> Rules {
    let budget = Budget { power_cuts: 2, resets: 1, ..Budget::default() };
    Rules { budget, puts_max: 7, prelude: FULL, ..base("roomy", 3, Overflow::DropOldest) }
}

/// Power cuts and kills on a lane that refuses what it has no room for.
pub fn reject() -> Rules {
    let budget = Budget { power_cuts: 1, kills: 1, resets: 1, ..Budget::default() };
    Rules { budget, puts_max: 6, prelude: FULL, ..base("reject", 2, Overflow::Reject) }
}

/// Records that wait in RAM for company.
pub fn group() -> Rules {
    let budget = Budget { power_cuts: 1, kills: 1, resets: 1, ..Budget::default() };
    let mut rules = base("group", 3, Overflow::DropOldest);
    rules.outbox.lanes[0].commit = Commit::Group;
    Rules { budget, puts_max: 5, ..rules }
}

/// Records that leave before they are on flash.
pub fn ram_first() -> Rules {
    let budget = Budget { power_cuts: 1, kills: 1, resets: 1, ..Budget::default() };
    let mut rules = base("ram_first", 3, Overflow::DropOldest);
    rules.outbox.lanes[0].commit = Commit::RamFirst;
    Rules { budget, puts_max: 5, ..rules }
}

/// The same on a full lane, and a server that forgets.
pub fn ram_first_full() -> Rules {
    let budget = Budget { power_cuts: 1, server_restores: 1, resets: 1, ..Budget::default() };
    let mut rules = base("ram_first_full", 2, Overflow::Reject);
    rules.outbox.lanes[0].commit = Commit::RamFirst;
    Rules { budget, puts_max: 5, ..rules }
}

/// Records that leave before they are on flash, and storage that fails.
pub fn ram_first_storage() -> Rules {
    let budget = Budget { failures: 1, breakdowns: 1, power_cuts: 1, ..Budget::default() };
    let mut rules = base("ram_first_storage", 2, Overflow::DropOldest);
    rules.outbox.lanes[0].commit = Commit::RamFirst;
    Rules { budget, ..rules }
}

/// Storage that fails, a server that refuses, and a link that breaks: epochs in RAM beside those on flash.
pub fn storage_refusals() -> Rules {
    let budget = Budget { breakdowns: 1, refusals: 1, resets: 1, kills: 1, ..Budget::default() };
    Rules { budget, group_max: 1, ..base("storage_refusals", 2, Overflow::DropOldest) }
}

/// Storage that fails under a restored image.
pub fn storage_image() -> Rules {
    let budget = Budget { images: 1, kills: 1, breakdowns: 1, failures: 1, ..Budget::default() };
    Rules { budget, puts_max: 3, group_max: 1, ..base("storage_image", 2, Overflow::DropOldest) }
}

/// Storage that fails while outbox and uplink take turns in every order.
pub fn storage_threads() -> Rules {
    let budget = Budget { breakdowns: 1, resets: 1, ..Budget::default() };
    Rules { budget, threads: true, puts_max: 3, group_max: 1, ..base("storage_threads", 2, Overflow::Reject) }
}

/// A server that refuses, and that may lose what it has not synced.
pub fn refusals() -> Rules {
    let budget = Budget { refusals: 2, kills: 1, resets: 1, server_crashes: 1, ..Budget::default() };
    Rules { budget, server_syncs: false, ..base("refusals", 3, Overflow::DropOldest) }
}

/// A server that goes back to an earlier state.
pub fn server_restored() -> Rules {
    let budget = Budget { server_restores: 1, refusals: 1, kills: 1, resets: 1, ..Budget::default() };
    Rules { budget, ..base("server_restored", 2, Overflow::DropOldest) }
}

/// A disk that goes back to an earlier image: the numbering is not ours any more.
pub fn image_restored() -> Rules {
    let budget = Budget { images: 1, kills: 2, power_cuts: 1, ..Budget::default() };
    Rules { budget, puts_max: 5, group_max: 1, ..base("image_restored", 2, Overflow::DropOldest) }
}

/// The same on a lane that refuses what it has no room for: a new epoch, and no page to say so.
pub fn image_restored_full() -> Rules {
    let budget = Budget { images: 1, kills: 2, power_cuts: 1, ..Budget::default() };
    Rules { budget, puts_max: 5, group_max: 1, prelude: FULL, ..base("image_restored_full", 2, Overflow::Reject) }
}

/// A disk that goes on in another device.
pub fn copied() -> Rules {
    let budget = Budget { copies: 1, kills: 2, power_cuts: 1, ..Budget::default() };
    Rules { budget, group_max: 1, ..base("copied", 2, Overflow::DropOldest) }
}

/// Two lanes on one connection.
pub fn two_lanes() -> Rules {
    let budget = Budget { power_cuts: 1, resets: 1, refusals: 1, ..Budget::default() };
    let mut rules = base("two_lanes", 2, Overflow::DropOldest);
    let name = LaneName::try_new("alarm").expect("a literal lane name");
    rules.outbox.lanes.push(config::Lane { name, ..lane(2, Overflow::Reject) });
    Rules { budget, group_max: 1, ..rules }
}

/// Storage that fails once, or until it is healed.
pub fn storage() -> Rules {
    let budget = Budget { failures: 2, breakdowns: 1, power_cuts: 1, ..Budget::default() };
    Rules { budget, ..base("storage", 2, Overflow::DropOldest) }
}

/// The same on a full lane that refuses what it has no room for.
pub fn storage_full() -> Rules {
    let budget = Budget { failures: 2, breakdowns: 1, kills: 1, ..Budget::default() };
    Rules { budget, puts_max: 5, prelude: FULL, ..base("storage_full", 2, Overflow::Reject) }
}

/// Outbox and uplink as threads of their own, in every order.
pub fn threads() -> Rules {
    let budget = Budget { kills: 1, resets: 1, refusals: 1, ..Budget::default() };
    Rules { budget, threads: true, group_max: 1, ..base("threads", 2, Overflow::DropOldest) }
}

/// Threads, and a numbering that is not ours.
pub fn threads_foreign() -> Rules {
    let budget = Budget { images: 1, kills: 2, ..Budget::default() };
    Rules { budget, threads: true, group_max: 1, ..base("threads_foreign", 2, Overflow::DropOldest) }
}

/// A lane that goes on in a new epoch ahead of its backlog, with room for both.
fn with_live(mut rules: Rules) -> Rules {
    let lane = &mut rules.outbox.lanes[0];
    lane.live_share = 0.5;
    lane.bytes_max *= 2;
    rules
}

/// Live epochs, and power cuts and kills at every call.
pub fn live() -> Rules {
    let budget = Budget { power_cuts: 1, kills: 1, resets: 1, ..Budget::default() };
    with_live(Rules { budget, ..base("live", 2, Overflow::Reject) })
}

/// The same twice on a lane whose backlog fills it.
pub fn live_full() -> Rules {
    let budget = Budget { power_cuts: 2, ..Budget::default() };
    with_live(Rules { budget, puts_max: 6, prelude: FULL, ..base("live_full", 2, Overflow::DropOldest) })
}

/// Live epochs, a server that refuses and one that forgets.
pub fn live_refusals() -> Rules {
    let budget = Budget { refusals: 1, server_restores: 1, resets: 1, kills: 1, ..Budget::default() };
    with_live(Rules { budget, group_max: 1, ..base("live_refusals", 2, Overflow::Reject) })
}

/// Live epochs, and storage that fails.
pub fn live_storage() -> Rules {
    let budget = Budget { failures: 1, breakdowns: 1, power_cuts: 1, ..Budget::default() };
    with_live(Rules { budget, group_max: 1, ..base("live_storage", 2, Overflow::DropOldest) })
}

/// A server that breaks the protocol.
pub fn broken(broken: Broken) -> Rules {
    let budget = Budget { resets: 1, server_crashes: 1, refusals: 1, ..Budget::default() };
    let rules = base("broken", 2, Overflow::DropOldest);
    Rules { budget, server_syncs: false, puts_max: 2, group_max: 1, broken: Some(broken), ..rules }
}

/// Storage that fails, an agent that is killed and starts from what only the page cache has, and then no power.
pub fn storage_lies() -> Rules {
    let budget = Budget { failures: 1, kills: 1, power_cuts: 1, ..Budget::default() };
    Rules { budget, puts_max: 3, group_max: 1, ..base("storage_lies", 2, Overflow::DropOldest) }
}
