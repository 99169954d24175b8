//! What is true: every record put, what its producer was told, and what may be missing for a reason.

use backhaul::outbox::Draft;
use backhaul::record::{Body, Epoch, LaneName, Record, Seq};

use super::server::{Entry, Server};

const TOPIC: &str = "t";
const AT: Option<u64> = Some(1_767_225_600_000);

/// A record's name upstream.
pub type Name = (LaneName, Epoch, Seq);

/// The record with this number, as it is put.
pub fn draft(id: u8, boot: u32) -> Draft {
    let body = Body::Text(format!("r{id}"));
    Draft { at: AT, boot, boot_ms: 1, ttl_s: 0, topic: TOPIC.into(), key: None, body }
}

/// Which record this is; an error: none that was ever put.
pub fn id_of(record: &Record) -> Result<u8, String> {
    let text = std::str::from_utf8(record.body.as_bytes()).unwrap_or_default();
    let id = text.strip_prefix('r').and_then(|id| id.parse().ok());
    id.filter(|_| record.topic == TOPIC && record.at == AT).ok_or_else(|| format!("never put: {record:?}"))
}

/// What became of one put.
#[derive(Debug, Clone, Hash)]
pub struct Fact {
    /// Every name it had: more than one where its numbering was not ours.
    names: Vec<Name>,
    /// Its producer was told.
    committed: bool,
    /// This life of the agent took it, and its producer waits.
    waits: bool,
    /// Storage failed under it: its producer heard `degraded`. It may be stored twice, once from the page whose sync
    /// failed and which a later start finds intact.
    degraded: bool,
    /// The server lost it, or the disk with it was replaced: not the agent's doing.
    excused: bool,
}

/// All of it.
#[derive(Debug, Clone, Default, Hash)]
pub struct Facts {
    /// By number.
    puts: Vec<Fact>,
    /// Which record left the gateway under a name.
    sent: Vec<(Name, u8)>,
    /// A restored or copied image was there: copies are the server's to live with.
    pub copies_allowed: bool,
    /// An image was restored and no `welcome` has come since; true: something was put meanwhile. A restart now is the
    /// known limit: the image cannot know what it is.
    pub restored: Option<bool>,
    /// The server lost durable state: what was acked may be offered as `settled`.
    server_lost: bool,
}

impl Facts {
    /// Records put so far.
    pub fn count(&self) -> u8 {
        self.puts.len() as u8
    }

    /// Taken by the outbox under this name.
    pub fn put(&mut self, name: Name) {
        self.puts.push(Fact { names: vec![name], committed: false, waits: true, degraded: false, excused: false });
        if let Some(put) = &mut self.restored {
            *put = true;
        }
    }

    /// Tells every producer that waits what `is_committed` says.
    pub fn tell(&mut self, is_committed: impl Fn(&Name) -> bool) {
        for fact in self.puts.iter_mut().filter(|fact| fact.waits) {
            if fact.names.last().is_some_and(&is_committed) {
                (fact.committed, fact.waits) = (true, false);
            }
        }
    }

    /// The producers hear an error: nothing was promised.
    pub fn degrade(&mut self) {
        for fact in self.puts.iter_mut().filter(|fact| fact.waits) {
            (fact.waits, fact.degraded) = (false, true);
        }
    }

    /// The agent is gone: what was not promised has no claim on its name.
    pub fn on_agent_gone(&mut self) {
        for fact in &mut self.puts {
            fact.waits = false;
            if !fact.committed {
                fact.names.clear();
            }
        }
    }

    /// A log was numbered anew: `first` of `old` became 1 of `new`.
    pub fn on_renumbered(&mut self, lane: &LaneName, old: Epoch, first: Seq, new: Epoch) {
        for fact in &mut self.puts {
            let renamed = fact.names.iter().find(|(of, epoch, seq)| (of, *epoch) == (lane, old) && *seq >= first);
            if let Some(name) = renamed.map(|(_, _, seq)| (lane.clone(), new, seq + 1 - first))
                && !fact.names.contains(&name)
            {
                fact.names.push(name);
            }
        }
    }

    /// A record leaves the gateway.
    pub fn on_sent(&mut self, lane: &LaneName, epoch: Epoch, record: &Record) -> Result<(), String> {
        let id = id_of(record)?;
        if id >= self.count() {
            return Err(format!("never put: r{id}"));
        }
        let name = (lane.clone(), epoch, record.seq);
        match self.sent.iter().find(|(sent, _)| *sent == name) {
            // A restored image goes on below what its original sent; what counts is what is stored.
            Some((_, before)) if *before != id && !self.copies_allowed => {
                Err(format!("{name:?} named r{before} and now r{id}"))
            }
            Some(_) => Ok(()),
            None => {
                self.sent.push((name, id));
                self.sent.sort();
                Ok(())
            }
        }
    }

    /// Epochs in which something left, for a seed that draws none of them again.
    pub fn epochs_sent(&self) -> u64 {
        let mut epochs: Vec<Epoch> = self.sent.iter().map(|(name, _)| name.1).collect();
        epochs.dedup();
        epochs.len() as u64
    }

    /// These were durable upstream and are not any more.
    pub fn on_server_lost(&mut self, lost: &[Entry]) {
        self.server_lost |= !lost.is_empty();
        for entry in lost {
            self.excuse(entry);
        }
    }

    fn excuse(&mut self, entry: &Entry) {
        for (index, fact) in self.puts.iter_mut().enumerate() {
            fact.excused |= match entry {
                Entry::Record { id, .. } | Entry::Refused { id, .. } => usize::from(*id) == index,
                Entry::Gap { .. } => fact.names.iter().any(|name| covers(entry, name)),
            };
        }
    }

    /// The disk is now one on which only the first `kept` records ever were.
    pub fn on_restored(&mut self, kept: u8) {
        (self.copies_allowed, self.restored) = (true, Some(false));
        self.puts.iter_mut().skip(kept.into()).for_each(|fact| fact.excused = true);
    }

    /// The device goes on as another one, whose account is empty: what the old one has is done with.
    pub fn on_copied(&mut self, server: &Server) {
        self.copies_allowed = true;
        for entry in &server.log {
            self.excuse(entry);
        }
    }

    /// What holds at any time of what the server has.
    pub fn check_stored(&self, server: &Server) -> Result<(), String> {
        let mut last: Vec<((&LaneName, Epoch), u8)> = Vec::new();
        let mut seen = 0u64;
        for entry in &server.log {
            let (Entry::Record { lane, epoch, id, .. } | Entry::Refused { lane, epoch, id, .. }) = entry else {
                continue;
            };
            if *id >= self.count() {
                return Err(format!("stored but never put: r{id}"));
            }
            if seen >> id & 1 == 1 && !self.copies_allowed && !self.puts[usize::from(*id)].degraded {
                return Err(format!("stored twice: r{id}"));
            }
            seen |= 1 << id;
            match last.iter_mut().find(|(of, _)| *of == (lane, *epoch)) {
                Some((_, before)) if *before >= *id => {
                    return Err(format!("out of order in epoch {epoch}: r{id} after r{before}"));
                }
                Some((_, before)) => *before = *id,
                None => last.push(((lane, *epoch), *id)),
            }
        }
        Ok(())
    }

    /// What holds when all faults are over and everything has drained: each promise is kept, once.
    pub fn check_end(&self, server: &Server, overflow_allowed: bool) -> Result<(), String> {
        for (index, fact) in self.puts.iter().enumerate() {
            let stored = server.log.iter().any(|entry| match entry {
                Entry::Record { id, .. } | Entry::Refused { id, .. } => usize::from(*id) == index,
                Entry::Gap { .. } => false,
            });
            let gap = server.log.iter().find(|entry| fact.names.iter().any(|name| covers(entry, name)));
            let counted = match gap {
                Some(Entry::Gap { from, to, why, count, .. }) => Some((why.as_str(), *count, to - from + 1)),
                Some(Entry::Record { .. } | Entry::Refused { .. }) | None => None,
            };
            if stored {
                if matches!(counted, Some((_, 1.., _))) && !self.copies_allowed {
                    return Err(format!("stored and reported lost: r{index} {gap:?}"));
                }
                continue;
            }
            if !fact.committed || fact.excused {
                continue;
            }
            match counted {
                Some(("overflow", count, numbers)) if count == numbers && overflow_allowed => {}
                Some(("settled", 0, _)) if self.server_lost => {}
                Some(_) | None => {
                    return Err(format!("committed, not stored, not reported: r{index} {fact:?} {gap:?}"));
                }
            }
        }
        Ok(())
    }
}

fn covers(entry: &Entry, name: &Name) -> bool {
    match entry {
        Entry::Gap { lane, epoch, from, to, .. } => {
            (lane, *epoch) == (&name.0, name.1) && (*from..=*to).contains(&name.2)
        }
        Entry::Record { .. } | Entry::Refused { .. } => false,
    }
}
