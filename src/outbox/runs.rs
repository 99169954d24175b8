//! Positions that will never come: sorted, disjoint ranges with a cause each. Exact per position, so that an ack may
//! cut a run anywhere.

use super::format::{RUNS_MAX, Run};
use crate::record::Why;

/// True for what a start finds again by itself where it is still so: damage, age, a record that no server takes.
pub const fn is_found_again(why: Why) -> bool {
    match why {
        Why::Corrupt | Why::Expired | Why::Rejected => true,
        Why::Overflow | Why::Torn | Why::Unknown | Why::Settled => false,
    }
}

/// The runs of one log above what is acked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// From a header: what overlaps or is out of order was never written by us and is left out.
    pub fn from_header(runs: &[Run]) -> Self {
        let mut kept: Vec<Run> = Vec::with_capacity(runs.len());
        for run in runs {
            if run.from <= run.to && kept.last().is_none_or(|last| last.to < run.from) {
                kept.push(*run);
            }
        }
        Self(kept)
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[Run] {
        &self.0
    }

    /// The run that covers `position`.
    pub fn at(&self, position: u64) -> Option<Run> {
        let index = self.0.partition_point(|run| run.to < position);
        self.0.get(index).copied().filter(|run| run.from <= position)
    }

    /// The first position from `position` on that a run covers.
    pub fn next_from(&self, position: u64) -> Option<u64> {
        let index = self.0.partition_point(|run| run.to < position);
        self.0.get(index).map(|run| run.from.max(position))
    }

    /// Gives up whatever of `from..=to` no run covers yet. Returns how many positions that were.
    pub fn fill(&mut self, from: u64, to: u64, why: Why) -> u64 {
        let mut filled = 0;
        let mut at = from;
        while at <= to {
            if let Some(run) = self.at(at) {
                at = run.to + 1;
                continue;
            }
            let end = self.next_from(at).map_or(to, |next| to.min(next - 1));
            let index = self.0.partition_point(|run| run.to < at);
            self.0.insert(index, Run { from: at, to: end, why });
            filled += end - at + 1;
            at = end + 1;
        }
        self.join();
        filled
    }

    /// Forgets everything up to `acked`.
    pub fn trim(&mut self, acked: u64) {
        self.0.retain(|run| run.to > acked);
        if let Some(first) = self.0.first_mut() {
            first.from = first.from.max(acked + 1);
        }
    }

    /// Positions covered in `from..=to` for which `which` holds.
    pub fn covered(&self, from: u64, to: u64, which: impl Fn(Why) -> bool) -> u64 {
        self.0
            .iter()
            .filter(|run| which(run.why) && from <= to && run.to >= from && run.from <= to)
            .map(|run| run.to.min(to) - run.from.max(from) + 1)
            .sum()
    }

    /// Joins neighbours of one cause. Where even so there are more than a header holds, the two oldest that touch
    /// become one: `overflow` where each number of both was a record, so that the count stays exact, else `unknown`.
    fn join(&mut self) {
        self.0.dedup_by(|next, run| {
            let joins = next.why == run.why && next.from == run.to + 1;
            if joins {
                run.to = next.to;
            }
            joins
        });
        while self.in_header() > RUNS_MAX {
            let touching = self.0.windows(2).position(|pair| pair[0].to + 1 == pair[1].from);
            let Some(index) = touching else { break };
            let next = self.0.remove(index + 1);
            let run = &mut self.0[index];
            let why = if run.why.counts() && next.why.counts() { Why::Overflow } else { Why::Unknown };
            *run = Run { from: run.from, to: next.to, why };
        }
    }

    /// Runs that a header may have to hold: up to the floor every number is in one, so these touch.
    fn in_header(&self) -> usize {
        let touching = self.0.windows(2).take_while(|pair| pair[0].to + 1 == pair[1].from).count();
        let beyond = self.0.iter().skip(touching + 1).filter(|run| !is_found_again(run.why)).count();
        self.0.len().min(touching + 1) + beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_only_what_is_free_and_joins_neighbours() {
        let mut runs = Runs::default();
        assert_eq!(runs.fill(5, 7, Why::Torn), 3);
        assert_eq!(runs.fill(1, 10, Why::Overflow), 7);
        assert_eq!(runs.fill(11, 12, Why::Overflow), 2);
        let expected = [(1, 4, Why::Overflow), (5, 7, Why::Torn), (8, 12, Why::Overflow)];
        assert_eq!(runs.as_slice(), expected.map(|(from, to, why)| Run { from, to, why }));
        assert_eq!(runs.covered(3, 9, Why::counts), 4);
        assert_eq!(runs.covered(9, 3, Why::counts), 0, "nothing lies in an empty range");
    }

    #[test]
    fn an_ack_may_cut_a_run_anywhere() {
        let mut runs = Runs::default();
        runs.fill(1, 10, Why::Overflow);
        runs.trim(4);
        assert_eq!(runs.as_slice(), [Run { from: 5, to: 10, why: Why::Overflow }]);
        assert_eq!(runs.at(4), None);
        assert_eq!(runs.next_from(2), Some(5));
        runs.trim(10);
        assert_eq!(runs, Runs::default());
    }

    #[test]
    fn stays_within_a_header() {
        let mut runs = Runs::default();
        for n in 0..1000u64 {
            let why = if n % 2 == 0 { Why::Torn } else { Why::Overflow };
            runs.fill(n + 1, n + 1, why);
        }
        assert!(runs.as_slice().len() <= RUNS_MAX);
        assert_eq!(runs.covered(1, 1000, |_| true), 1000);
    }
}
