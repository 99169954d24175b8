//! What a revived outbox has to hold: what was promised before the cut and not acked since, byte for byte, and nothing
//! that was never put.

use std::collections::{BTreeMap, BTreeSet};

use backhaul::record::{Item, Why};

use super::revive::Revived;
use super::support::producer::Committed;

/// A lane and an epoch.
pub type Name = (String, u64);

/// An answer, and how much of the film had been shot when it had been read.
#[derive(Debug)]
pub struct Promise {
    /// Where in the film.
    pub at: usize,
    /// What was promised.
    pub record: Committed,
}

/// What the receiver had acknowledged between two places in the film.
#[derive(Debug)]
pub struct AckSample {
    /// Before it was asked.
    pub before: usize,
    /// Its answer.
    pub acked: BTreeMap<Name, u64>,
    /// After it had answered.
    pub after: usize,
}

/// What everyone was told.
#[derive(Debug, Default)]
pub struct Books {
    /// In the order of the film.
    pub promises: Vec<Promise>,
    /// Every body that may have been taken.
    pub put: BTreeSet<Vec<u8>>,
    /// In the order of the film.
    pub acks: Vec<AckSample>,
}

/// What was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Promised records that had to be there, and were.
    pub held: u64,
    /// Gaps that say `torn` or `unknown`: numbers skipped.
    pub gaps: u64,
    /// Records that nobody had been told of before the cut.
    pub torn_off: u64,
    /// Lanes reported as lost in which nothing had been promised: the first header of their life was torn, and looks as
    /// one would that rotted.
    pub false_alarms: u64,
    /// Times that the kernel would not mount what the cut had left.
    pub unmountable: u64,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.held += other.held;
        self.gaps += other.gaps;
        self.torn_off += other.torn_off;
        self.false_alarms += other.false_alarms;
        self.unmountable += other.unmountable;
    }
}

impl Books {
    /// Judges what a cut at `at` left.
    pub fn check(&self, at: usize, revived: &Revived) -> Result<Tally, String> {
        let mut tally = Tally::default();
        let promised_in = |lane: &String| self.promises.iter().any(|p| p.at <= at && p.record.lane == *lane);
        if let Some(lane) = revived.lost_lanes.iter().find(|lane| promised_in(lane)) {
            return Err(format!("not one header of lane {lane} is left, and records were committed there"));
        }
        tally.false_alarms = revived.lost_lanes.len() as u64;
        let mut found = BTreeMap::new();
        for (name, items) in &revived.logs {
            for item in items {
                match item {
                    Item::Record(record) => {
                        let body = record.body.as_bytes();
                        if record.topic != "$event" && !self.put.contains(body) {
                            return Err(format!("{name:?} {}: never put: {:?}", record.seq, shown(body)));
                        }
                        found.insert((name, record.seq), body);
                    }
                    Item::Gap(gap) if matches!(gap.why, Why::Torn | Why::Unknown) => tally.gaps += 1,
                    Item::Gap(gap) => return Err(format!("{name:?}: a loss that no one caused: {gap:?}")),
                }
            }
        }
        let may_be_acked = self.acks.iter().find(|sample| sample.before >= at);
        let may_be_acked = |name: &Name| may_be_acked.and_then(|sample| sample.acked.get(name)).copied().unwrap_or(0);
        let mut promised = 0;
        for Promise { record, .. } in self.promises.iter().take_while(|promise| promise.at <= at) {
            let name = (record.lane.clone(), record.epoch);
            match found.get(&(&name, record.seq)) {
                Some(body) if *body == record.body => promised += 1,
                Some(body) => {
                    let (body, was) = (shown(body), shown(&record.body));
                    return Err(format!("{name:?} {} says {body:?}, and was committed as {was:?}", record.seq));
                }
                None if record.seq <= may_be_acked(&name) => continue,
                None => return Err(format!("{name:?} {} was committed and is gone", record.seq)),
            }
            tally.held += u64::from(record.seq > may_be_acked(&name));
        }
        tally.torn_off = found.len() as u64 - promised;
        Ok(tally)
    }

    /// The highest numbers that are known to have left the gateway before a place in the film.
    pub fn left_by(&self, at: usize) -> BTreeMap<Name, u64> {
        self.acks.iter().rfind(|sample| sample.after <= at).map(|sample| sample.acked.clone()).unwrap_or_default()
    }
}

/// Enough of a body to know it by.
fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(24)]).into_owned()
}

#[cfg(test)]
mod tests {
    use backhaul::record::{Body, Gap, Record};

    use super::*;

    fn name() -> Name {
        ("alarm".into(), 5)
    }

    fn record(seq: u64, body: &str) -> Item {
        Item::Record(Record { seq, at: None, topic: "load".into(), body: Body::Text(body.into()) })
    }

    /// Promises 1, 2 and 3 at 10, 20 and 30; 1 may have been acked from 15 on.
    fn books() -> Books {
        let record = |seq| Committed { body: format!("{seq}").into(), lane: "alarm".into(), epoch: 5, seq };
        let promise = |seq: u64| Promise { at: seq as usize * 10, record: record(seq) };
        let sample = |before, acked, after| AckSample { before, acked: BTreeMap::from([(name(), acked)]), after };
        Books {
            promises: (1..=3).map(promise).collect(),
            put: ["1", "2", "3", "4"].map(|body| body.into()).into(),
            acks: vec![sample(0, 0, 1), sample(14, 0, 15), sample(25, 1, 26), sample(usize::MAX, 3, usize::MAX)],
        }
    }

    fn check(at: usize, items: &[Item]) -> Result<Tally, String> {
        books().check(at, &Revived { logs: BTreeMap::from([(name(), items.to_vec())]), ..Revived::default() })
    }

    #[test]
    fn verdict_is_good_when_all_is_there() {
        let all = [record(1, "1"), record(2, "2"), record(3, "3")];
        assert_eq!(check(14, &all), Ok(Tally { held: 1, torn_off: 2, ..Tally::default() }));
        assert_eq!(check(20, &all[1..]), Ok(Tally { held: 1, torn_off: 1, ..Tally::default() }));
        assert_eq!(check(30, &[]), Ok(Tally::default()), "all acked by then");
        assert_eq!(books().left_by(24), BTreeMap::from([(name(), 0)]));
        assert_eq!(books().left_by(26), BTreeMap::from([(name(), 1)]));
    }

    #[test]
    fn verdict_sees_a_loss() {
        assert!(check(14, &[]).is_err_and(|words| words.contains("is gone")));
        assert!(check(25, &[record(1, "1")]).is_err_and(|words| words.contains("is gone")));
        let torn = Item::Gap(Gap { from: 2, to: 2, why: Why::Torn });
        assert!(check(25, &[torn]).is_err_and(|words| words.contains("is gone")), "reported is lost all the same");
    }

    #[test]
    fn verdict_sees_a_lost_lane_in_which_something_was_promised() {
        let lost = Revived { lost_lanes: vec!["alarm".into()], ..Revived::default() };
        assert_eq!(books().check(9, &lost), Ok(Tally { false_alarms: 1, ..Tally::default() }));
        assert!(books().check(10, &lost).is_err_and(|words| words.contains("not one header")));
    }

    #[test]
    fn verdict_sees_other_bytes_and_strangers_and_invented_losses() {
        assert!(check(14, &[record(1, "4")]).is_err_and(|words| words.contains("was committed as")));
        assert!(check(14, &[record(1, "1"), record(2, "x")]).is_err_and(|words| words.contains("never put")));
        let gap = Item::Gap(Gap { from: 2, to: 9, why: Why::Corrupt });
        assert!(check(14, &[record(1, "1"), gap]).is_err_and(|words| words.contains("no one caused")));
    }
}
