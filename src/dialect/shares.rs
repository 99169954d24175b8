//! Who may ask the outbox next: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) over what the lanes were
//! given, divided by their weights. Knows loads, weights and turns; nothing of numbers, windows or frames.
//!
//! A lane that waits is never passed by another that has had more for its weight, but for one question each; so of a
//! link that is too narrow each lane with something to send gets its weight's share, and none waits for ever. What a
//! lane leaves unused is not saved up.

use super::cursor::Load;

/// What an answer costs, whatever is in it: a gap is on the wire, too.
const QUESTION_COST: u64 = 16;
/// So that a division by the weight keeps its fraction.
const SCALE: u64 = 1 << 20;

/// One lane.
#[derive(Debug, Clone)]
struct Share {
    weight: u64,
    /// What it was given so far, by weight; while it has nothing to send it stands still.
    given: u64,
    /// What its open question may yet cost; given already.
    asked: u64,
    /// It has something to send, or asked for it.
    waits: bool,
}

/// The lanes in the order of the session's cursors.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    shares: Vec<Share>,
    /// Where the lane stood that asked last: whoever begins to wait begins there.
    now: u64,
}

impl Shares {
    pub(super) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let share = |weight: u32| Share { weight: weight.max(1).into(), given: 0, asked: 0, waits: false };
        Self { shares: weights.map(share).collect(), now: 0 }
    }

    /// Whether a lane has something to send or has asked for it.
    pub(super) fn set_waiting(&mut self, index: usize, waits: bool) {
        let share = &mut self.shares[index];
        if waits && !share.waits {
            share.given = share.given.max(self.now);
        }
        share.waits = waits;
    }

    /// True where no lane that waits has had less.
    pub(super) fn may_ask(&self, index: usize) -> bool {
        let waiting = self.shares.iter().filter(|share| share.waits);
        waiting.map(|share| share.given).min().is_none_or(|least| self.shares[index].given <= least)
    }

    /// A lane asked for so much at most.
    pub(super) fn on_asked(&mut self, index: usize, limit: Load) {
        let share = &mut self.shares[index];
        self.now = self.now.max(share.given);
        share.asked = cost(limit, share.weight);
        share.given += share.asked;
    }

    /// It got so much.
    pub(super) fn on_answered(&mut self, index: usize, load: Load) {
        let share = &mut self.shares[index];
        let cost = cost(load, share.weight);
        // A lone record may be larger than what was asked for.
        share.given = share.given - share.asked + cost;
        share.asked = 0;
    }
}

fn cost(load: Load, weight: u64) -> u64 {
    let bytes = load.cost().saturating_add(QUESTION_COST);
    // Far from overflow in a session's life: 2^43 bytes at the least weight.
    (bytes.min(u64::from(u32::MAX)) * SCALE).div_ceil(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(bytes: u64) -> Load {
        Load { records: 1, bytes }
    }

    /// What each lane was given when all of them always have something, by a link of `rounds` questions.
    fn given(weights: &[u32], rounds: usize, answer: impl Fn(&mut fastrand::Rng, usize) -> u64) -> Vec<u64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut shares = Shares::new(weights.iter().copied());
        let mut given = vec![0; weights.len()];
        for _ in 0..rounds {
            (0..weights.len()).for_each(|index| shares.set_waiting(index, true));
            let asks = (0..weights.len()).find(|index| shares.may_ask(*index)).expect("someone may always ask");
            let bytes = answer(&mut rng, asks);
            shares.on_asked(asks, load(1000));
            shares.on_answered(asks, load(bytes));
            given[asks] += bytes;
        }
        given
    }

    #[test]
    fn each_lane_gets_its_weight_whatever_the_size_of_its_records() {
        let given = given(&[1, 8, 3], 20_000, |rng, index| [1000, rng.u64(1..1000), 50][index]);
        // A record's own cost counts as well: compare what was paid.
        let total: u64 = given.iter().sum();
        assert!(total > 0 && given.iter().all(|bytes| *bytes > 0));
        let paid = [given[0] * 1048 / 1000, given[1] * 548 / 500, given[2] * 98 / 50];
        let sum: u64 = paid.iter().sum();
        for (paid, weight) in paid.iter().zip([1, 8, 3]) {
            let share = *paid as f64 / sum as f64;
            let fair = f64::from(weight) / 12.0;
            assert!((share - fair).abs() < 0.02, "{share} instead of {fair}");
        }
    }

    #[test]
    fn a_lane_that_was_silent_has_saved_nothing_up_and_is_next() {
        let mut shares = Shares::new([1, 1].into_iter());
        shares.set_waiting(0, true);
        for _ in 0..100 {
            assert!(shares.may_ask(0));
            shares.on_asked(0, load(1000));
            shares.on_answered(0, load(1000));
        }
        shares.set_waiting(1, true);
        assert!(shares.may_ask(1) && !shares.may_ask(0), "the newcomer is next");
        shares.on_asked(1, load(1000));
        shares.on_answered(1, load(1000));
        shares.on_asked(1, load(1000));
        shares.on_answered(1, load(1000));
        assert!(shares.may_ask(0) && !shares.may_ask(1), "but not for a hundred times");
    }

    #[test]
    fn a_question_that_brought_nothing_costs_next_to_nothing() {
        let mut shares = Shares::new([1, 1].into_iter());
        shares.set_waiting(0, true);
        shares.set_waiting(1, true);
        shares.on_asked(0, load(1000));
        assert!(!shares.may_ask(0), "while it is open it costs all that it may bring");
        shares.on_answered(0, Load::default());
        shares.on_asked(1, load(1000));
        shares.on_answered(1, load(1000));
        assert!(shares.may_ask(0) && !shares.may_ask(1));
    }
}
