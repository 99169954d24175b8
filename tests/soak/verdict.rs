//! What was promised against what is stored.

use std::collections::{BTreeMap, BTreeSet};

use crate::body;
use crate::support::producer::Producer;
use crate::support::receiver::{Stored, StoredGap};

/// Every promise is stored under its name, once, in order, and nothing that was never put.
pub fn verify<'a>(producer: &Producer, stored: impl Iterator<Item = &'a Stored>) {
    // The agent's own events are records too, and no producer's.
    let stored: Vec<&Stored> = stored.filter(|record| record.topic != "$event").collect();
    let names: BTreeMap<(&str, u64, u64), &[u8]> =
        stored.iter().map(|record| ((record.lane.as_str(), record.epoch, record.seq), &record.body[..])).collect();
    for promised in &producer.committed {
        let found = names.get(&(promised.lane.as_str(), promised.epoch, promised.seq)).copied();
        assert!(found == Some(&promised.body[..]), "{promised:?} is stored as {found:?}");
    }
    let put: BTreeSet<&[u8]> = producer.committed.iter().map(|record| &record.body[..]).collect();
    let put: BTreeSet<&[u8]> = put.into_iter().chain(producer.uncertain.iter().map(Vec::as_slice)).collect();
    let mut last = 0;
    // In the order of their names: a second copy of a body would stand behind the first.
    for (name, body) in names {
        assert!(put.contains(body), "{name:?} was never put: {:?}", String::from_utf8_lossy(body));
        let count = body::count(body);
        assert!(count > last, "{name:?}: record {count} stands behind record {last}");
        last = count;
    }
    assert!(producer.refused.iter().all(|(_, code)| code == "full"), "{:?}", producer.refused.first());
}

/// A kill may cost numbers (`torn`, `unknown`), never a record.
pub fn assert_no_loss(gaps: &[StoredGap]) {
    for gap in gaps {
        assert!(["torn", "unknown"].contains(&gap.why.as_str()) && gap.count == 0, "{gap:?}");
    }
}
