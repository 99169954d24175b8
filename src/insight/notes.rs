//! What happened of late, for the page: the agent's events, sessions that came and why they went. The same again is one
//! note with a count, lest an outage pushes out everything else.

use std::collections::VecDeque;

use serde::Serialize;

use crate::link::one_line;
use crate::time::Instant;

/// Kept.
pub const NOTES_MAX: usize = 50;
/// The same among so many of the newest is the same again: what alternates between endpoints, too.
const FOLDED_MAX: usize = 4;

/// The newest notes.
#[derive(Debug, Default)]
pub struct Notes(VecDeque<Note>);

#[derive(Debug)]
struct Note {
    kind: &'static str,
    detail: String,
    first: Instant,
    last: Instant,
    times: u32,
}

/// A note, relative to now.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Seen<'a> {
    kind: &'static str,
    detail: &'a str,
    s_ago: u64,
    first_s_ago: u64,
    times: u32,
}

impl Notes {
    /// Something happened.
    pub fn add(&mut self, kind: &'static str, detail: &str, now: Instant) {
        let detail = one_line(detail.to_owned());
        let newest = self.0.len().saturating_sub(FOLDED_MAX)..self.0.len();
        let same = newest.rev().find(|nth| self.0[*nth].kind == kind && self.0[*nth].detail == detail);
        if let Some(note) = same.and_then(|nth| self.0.remove(nth)) {
            return self.0.push_back(Note { last: now, times: note.times.saturating_add(1), ..note });
        }
        if self.0.len() >= NOTES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Note { kind, detail, first: now, last: now, times: 1 });
    }

    /// All of them, the newest first.
    pub fn seen(&self, now: Instant) -> Vec<Seen<'_>> {
        let seen = self.0.iter().rev().map(|note| Seen {
            kind: note.kind,
            detail: &note.detail,
            s_ago: now.since(note.last).as_secs(),
            first_s_ago: now.since(note.first).as_secs(),
            times: note.times,
        });
        seen.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Instant {
        Instant::from_micros(s * 1_000_000)
    }

    #[test]
    fn the_same_again_is_counted_and_the_oldest_goes() {
        let mut notes = Notes::default();
        for s in 0..100 {
            notes.add("down", if s % 2 == 0 { "a" } else { "b" }, at(s));
        }
        let seen = notes.seen(at(100));
        assert_eq!(seen[0], Seen { kind: "down", detail: "b", s_ago: 1, first_s_ago: 99, times: 50 });
        assert_eq!((seen[1].detail, seen.len()), ("a", 2));
        for s in 100..160 {
            notes.add("event", &format!("{s}\n{}", "x".repeat(500)), at(s));
        }
        let seen = notes.seen(at(160));
        assert_eq!((seen.len(), seen[0].s_ago, seen[49].s_ago), (NOTES_MAX, 1, 50));
        assert!(seen.iter().all(|note| note.detail.len() <= 200 && !note.detail.contains('\n')));
    }
}
