//! What has to hold after a power cut, whatever it left: recovery by the real code, then the model's questions. Each
//! state is opened four times: to look, to open again, to go on with, and to see what became of that.

use backhaul::config::Overflow;
use backhaul::outbox::sim_disk::SimDisk;
use backhaul::outbox::{Config, LaneId, Outbox, PushError};
use backhaul::record::{Item, Offer};
use backhaul::time::Instant;

use super::model::{Found, Model, text};
use super::ops::{draft, look};
use super::starts::Start;

const LANE: LaneId = LaneId(0);
/// A recovery writes at most so many headers and scrubbed pages beside segments that it makes anew.
const REPAIR_PAGES_MAX: u64 = 12;

/// Opens the disk and asks everything. Panics where an answer is wrong.
pub fn check(disk: SimDisk, model: &Model, start: &Start) {
    let config = &start.config;
    let was_pending = disk.has_doubts();
    let (mut outbox, report) = Outbox::open(disk, config, 11);
    let written = outbox.flash_status().by_purpose;
    let repairs = written.acks + written.reserve + written.other + written.records;
    assert!(repairs <= REPAIR_PAGES_MAX * 4096, "recovery writes too much: {written:?}");
    // The folder's name torn at its very first writing looks like another's: then nothing was put yet.
    assert!(!report.copied_image || model.is_unused(), "it is this device's folder: {report:?}");
    assert!(report.lost_lanes.is_empty() || model.is_unused(), "headers are there: {report:?}");
    let again = outbox.disk_mut().clone();
    let found = look(&mut outbox);
    model.check(&found);
    check_status(&outbox, &found);
    // Where nothing was written, it is the very image that was just opened.
    if outbox.flash_status().bytes_written > 0 || was_pending {
        opens_the_same_again(again, &found, config);
    }
    goes_on(outbox, &found, model.clone(), start);
}

fn check_status(outbox: &Outbox<SimDisk>, found: &Found) {
    let records =
        |(_, items): &(_, Vec<Item>)| items.iter().filter(|item| matches!(item, Item::Record(_))).count() as u64;
    let status = &outbox.lanes_status(None)[0];
    assert_eq!(status.depth, found.iter().map(records).sum::<u64>(), "the depth is what there is: {status:?}");
    assert_eq!(status.corrupt, 0, "nothing was damaged: {status:?}");
}

fn opens_the_same_again(disk: SimDisk, found: &Found, config: &Config) {
    let (mut again, _) = Outbox::open(disk, config, 12);
    // Two headers of an epoch in two segments are one to a start: it reads the newest segment, and writes another.
    let written = again.flash_status();
    let repairs = written.bytes_written - written.by_purpose.reserve;
    assert!(repairs == 0 && written.by_purpose.reserve <= 4096, "a start after recovery repairs nothing: {written:?}");
    let same = |(offer, items): &(Offer, Vec<Item>)| (offer.epoch, offer.first, offer.next, items.clone());
    let twice: Vec<_> = look(&mut again).iter().map(same).collect();
    assert_eq!(twice, found.iter().map(same).collect::<Vec<_>>(), "opening twice gives the same");
}

/// It takes a record, commits it, and has it after the next cut; everything else, too.
fn goes_on(mut outbox: Outbox<SimDisk>, found: &Found, mut model: Model, start: &Start) {
    let config = &start.config;
    model.on_restart(found);
    for (offer, items) in found {
        model.on_left(offer.epoch, items);
        let stored = model.log_mut(offer.epoch).server;
        outbox.acked(&offer.lane, offer.epoch, stored, Instant::default());
        let log = model.log_mut(offer.epoch);
        log.heard = log.heard.max(stored);
    }
    model.puts += 1;
    let put = |outbox: &mut Outbox<SimDisk>| outbox.push(LANE, draft(text(model.puts, 20)), Instant::default());
    let name = match put(&mut outbox) {
        Err(PushError::Full) if config.lanes[0].overflow == Overflow::Reject => {
            for (offer, _) in found {
                let log = model.log_mut(offer.epoch);
                log.heard = log.heard.max(offer.next - 1);
                log.server = log.heard;
                outbox.acked(&offer.lane, offer.epoch, log.heard, Instant::default());
            }
            outbox.push(LANE, draft(text(model.puts, 20)), Instant::default())
        }
        taken => taken,
    };
    let (epoch, seq) = name.unwrap_or_else(|error| panic!("after recovery it takes records: {error:?}"));
    model.on_put(epoch, seq, 20);
    assert_eq!(outbox.commit(LANE), Ok(()), "after recovery it commits");
    assert!(outbox.is_committed(LANE, epoch, seq), "what was committed is called so");
    model.on_committed(true);
    // Which were given up for it is not asked here; that only the oldest were, is.
    model.logs.iter_mut().for_each(|log| log.floor_max = u64::MAX);
    let held = outbox.lanes_status(None)[0].bytes;
    let bytes_max = config.lanes[0].bytes_max.max(2 * found.len() as u64 * u64::from(config.segment_bytes));
    assert!(held <= bytes_max || start.had_more, "its files keep to their bound: {held} of {bytes_max}");
    let mut disk = outbox.into_disk();
    disk.cut(&[], &mut fastrand::Rng::with_seed(0));
    let (mut after, _) = Outbox::open(disk, config, 13);
    model.check(&look(&mut after));
}
