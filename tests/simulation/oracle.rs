//! What is true: every put, what its producer was told, and what may be missing for a reason.

use std::collections::{BTreeMap, BTreeSet};

use super::server::{Entry, Server};

/// A text without its padding.
fn brief(text: &str) -> &str {
    text.trim_start_matches('x')
}

/// What became of one put.
#[derive(Debug, Clone)]
pub struct Fact {
    pub name: (u64, u64),
    pub committed: bool,
    /// It has a time to live.
    pub expires: bool,
    /// The server had it and lost it: not the agent's doing.
    pub lost_by_server: bool,
    /// It was on a disk that was replaced by an older image.
    pub lost_by_restore: bool,
}

#[derive(Debug, Default)]
pub struct Oracle {
    /// By text, which is unique.
    pub facts: BTreeMap<String, Fact>,
    /// Which text left the gateway under a name.
    sent: BTreeMap<(u64, u64), String>,
    /// A clone or a restored image was there: copies are the server's to live with.
    pub copies_allowed: bool,
    /// Ranges that the server once stored as gaps and then lost.
    pub gaps_lost_by_server: Vec<(u64, u64, u64)>,
}

impl Oracle {
    pub fn put(&mut self, text: String, name: (u64, u64), expires: bool) {
        let (committed, lost_by_server, lost_by_restore) = (false, false, false);
        self.facts.insert(text, Fact { name, committed, expires, lost_by_server, lost_by_restore });
    }

    pub fn committed(&mut self, text: &str) {
        self.facts.get_mut(text).expect("it was put").committed = true;
    }

    /// A record leaves the gateway.
    pub fn on_sent(&mut self, name: (u64, u64), text: &str) -> Result<(), String> {
        if !self.facts.contains_key(text) {
            return Err(format!("never put: {text:?} as {name:?}"));
        }
        match self.sent.insert(name, text.into()) {
            // A restored image goes on below what its original sent; what counts is what is stored.
            Some(before) if before != text && !self.copies_allowed => {
                Err(format!("{name:?} named {} and now {}", brief(&before), brief(text)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A log was numbered anew: `first` of `old` became 1 of `new`.
    pub fn on_renumbered(&mut self, old: u64, first: u64, new: u64) {
        for fact in self.facts.values_mut().filter(|fact| fact.name.0 == old && fact.name.1 >= first) {
            fact.name = (new, fact.name.1 + 1 - first);
        }
    }

    pub fn on_server_lost(&mut self, lost: &[Entry]) {
        for entry in lost {
            match entry {
                Entry::Record { text, .. } | Entry::Refusal { text, .. } => {
                    if let Some(fact) = self.facts.get_mut(text) {
                        fact.lost_by_server = true;
                    }
                }
                Entry::Gap { epoch, from, to, .. } => self.gaps_lost_by_server.push((*epoch, *from, *to)),
            }
        }
    }

    /// What holds at any time of what the server has.
    pub fn check_stored(&self, server: &Server) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        let mut last: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (name, text) in server.stored() {
            if !self.facts.contains_key(text) {
                return Err(format!("stored but never put: {text:?} as {name:?}"));
            }
            if !seen.insert(text) && !self.copies_allowed {
                return Err(format!("stored twice: {text:?}"));
            }
            let order: u64 = text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0);
            let before = last.insert(name.0, (name.1, order)).unwrap_or((0, 0));
            if order <= before.1 {
                return Err(format!("out of order in epoch {}: {order} after {}", name.0, before.1));
            }
        }
        let greeted = server.peers.iter().filter(|peer| peer.greeted).count();
        if greeted > 1 { Err(format!("{greeted} sessions at once")) } else { Ok(()) }
    }

    /// Every refused record has one copy among the dead letters; `may_be_gone`: what is given up to make room while it
    /// is under way leaves none.
    pub fn check_letters(
        &self,
        server: &Server,
        letters: &[(String, String)],
        may_be_gone: bool,
    ) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        if let Some((key, _)) = letters.iter().find(|(key, _)| !seen.insert(key)) {
            return Err(format!("two letters of one record: {key}"));
        }
        for entry in &server.log {
            let Entry::Refusal { epoch, seq, text } = entry else { continue };
            let identity = format!("telemetry/{epoch}/{seq} ");
            let letter = letters.iter().find(|(key, _)| key.starts_with(&identity));
            if letter.is_some_and(|(_, of)| of != text) || letter.is_none() && !may_be_gone {
                return Err(format!("refused {epoch}/{seq}, letter {letter:?}"));
            }
        }
        Ok(())
    }

    /// What holds when all faults are over and the link has drained.
    pub fn check_end(&self, server: &Server) -> Result<(), String> {
        let stored: BTreeSet<&str> = server.stored().into_values().collect();
        let gap_of = |name: (u64, u64)| {
            server.log.iter().find_map(|entry| match entry {
                Entry::Gap { epoch, from, to, why, count } if *epoch == name.0 && (*from..=*to).contains(&name.1) => {
                    Some((why.as_str(), *count, *to - *from + 1))
                }
                Entry::Gap { .. } | Entry::Record { .. } | Entry::Refusal { .. } => None,
            })
        };
        let refused: BTreeSet<&str> = server
            .log
            .iter()
            .filter_map(|entry| match entry {
                Entry::Refusal { text, .. } => Some(text.as_str()),
                Entry::Gap { .. } | Entry::Record { .. } => None,
            })
            .collect();
        for (text, fact) in &self.facts {
            let gap = gap_of(fact.name);
            if stored.contains(text.as_str()) || refused.contains(text.as_str()) {
                if matches!(gap, Some((_, count, _)) if count > 0) && !self.copies_allowed {
                    return Err(format!("stored and reported lost: {text:?} {fact:?} {gap:?}"));
                }
                if stored.contains(text.as_str()) && refused.contains(text.as_str()) {
                    return Err(format!("stored and refused: {text:?} {fact:?}"));
                }
                continue;
            }
            if !fact.committed || fact.lost_by_server || fact.lost_by_restore {
                continue;
            }
            let (epoch, seq) = fact.name;
            if self.gaps_lost_by_server.iter().any(|(of, from, to)| *of == epoch && (*from..=*to).contains(&seq)) {
                continue;
            }
            match gap {
                Some(("overflow", count, numbers)) if count == numbers => {}
                Some(("expired", count, numbers)) if count == numbers && fact.expires => {}
                other => return Err(format!("committed, not stored, not reported: {text:?} {fact:?} {other:?}")),
            }
        }
        Ok(())
    }
}
