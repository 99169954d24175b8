//! What lies on a simulated disk, read by the format alone: an outbox never shows its dead letters.

use std::collections::BTreeMap;

use backhaul::outbox::dead::DEAD_LANE;
use backhaul::outbox::format::{self, Header, PAGE_BYTES, Place, Slot};
use backhaul::outbox::sim_disk::SimDisk;

/// Every intact dead letter: its key and its text, oldest first.
pub fn on(disk: &mut SimDisk) -> Vec<(String, String)> {
    let mut letters = BTreeMap::new();
    for (header, payload) in batches(disk, DEAD_LANE) {
        for (position, slot) in (header.first..).zip(format::records(&header, &payload)) {
            let Slot::Intact(draft) = slot else { continue };
            let text = String::from_utf8_lossy(draft.body.as_bytes()).into_owned();
            letters.insert((header.origin, position), (draft.key.expect("a letter has a key"), text));
        }
    }
    letters.into_values().collect()
}

/// The headers of a lane's batches, in the order in which they were written.
pub fn headers(disk: &mut SimDisk, lane: &str) -> Vec<Header> {
    batches(disk, lane).into_iter().map(|(header, _)| header).collect()
}

fn batches(disk: &mut SimDisk, lane: &str) -> Vec<(Header, Vec<u8>)> {
    let mut batches = Vec::new();
    for (name, bytes) in disk.image() {
        let number = name.strip_prefix(lane).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".seg"));
        let Some(segment) = number.and_then(|number| number.parse().ok()) else { continue };
        for page in 0..bytes.len() / PAGE_BYTES {
            let mut payload = bytes[page * PAGE_BYTES..].to_vec();
            let Some(header) = Header::decode(&payload, Place { segment, page: page as u32 }) else { continue };
            format::strip_tags(&mut payload);
            batches.push(((header.lap, page), header, payload));
        }
    }
    batches.sort_by_key(|(turn, ..)| *turn);
    batches.into_iter().map(|(_, header, payload)| (header, payload)).collect()
}
