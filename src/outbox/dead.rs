//! Dead letters: records that were refused for ever, kept for a person in a small lane of their own. It is never sent,
//! gives up its oldest when it is full, and is not there before the first refusal.
//!
//! A letter is the record as it was handed in; its key says what it was and why it is here, as
//! `LANE/EPOCH/SEQ {"reason":"…","key":"…"}`. What stands before the space is a key as producers use them: a refusal
//! that is repeated after a restart finds its letter and makes no second one.

use serde::Deserialize;

use super::disk::Entry;
use super::format::{HEADER_BYTES_MAX, PAGE_BYTES, RECORD_OVERHEAD_BYTES_MAX, pages_for};
use super::lane::{Io, Lane};
use super::segments::parse_segment_name;
use super::{Config, Draft, Outbox, PushError, Report};
use crate::config;
use crate::record::{Epoch, LaneName, Seq, Why};
use crate::time::Instant;

/// The dead letters' lane; no lane can be configured under this name.
pub const DEAD_LANE: &str = "dead";
/// Most bytes of a letter's key; a reason or a key that would be longer is left out.
const KEY_BYTES_MAX: usize = 1024;

/// The lanes with the dead letters' own behind them; 0: without.
pub fn with_dead_letters(lanes: &[config::Lane], bytes_max: u64) -> Vec<config::Lane> {
    let dead = config::Lane {
        name: name(),
        default: false,
        bytes_max,
        overflow: config::Overflow::DropOldest,
        commit: config::Commit::Sync,
        ..config::Lane::default()
    };
    lanes.iter().cloned().chain((bytes_max > 0).then_some(dead)).collect()
}

/// Most bytes of files that the dead letters take: whole segments, at least two.
pub fn dead_letters_bytes_max(bytes_max: u64, record_bytes_max: u32) -> u64 {
    let segment = u64::from(segment_bytes(record_bytes_max));
    if bytes_max == 0 { 0 } else { (bytes_max / segment).max(2) * segment }
}

/// The smallest segment that takes every letter.
fn segment_bytes(record_bytes_max: u32) -> u32 {
    let letter = record_bytes_max as usize + KEY_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX;
    // One page more for the header that frees the next segment; not below what can be configured.
    (pages_for(HEADER_BYTES_MAX + letter) + 1).max(4) * PAGE_BYTES as u32
}

/// Number and size, if it is one of ours.
fn own_segment(file: &Entry) -> Option<(u32, u64)> {
    let (lane, number) = parse_segment_name(&file.name)?;
    (lane.as_str() == DEAD_LANE).then_some((number, file.bytes))
}

fn name() -> LaneName {
    LaneName::try_new(DEAD_LANE).expect("a literal lane name")
}

/// The dead letters' lane, if it may be there or is.
#[derive(Clone)]
pub struct DeadLetters {
    /// `None`: switched off; what lies there stays.
    config: Option<config::Lane>,
    segment_bytes: u32,
    headroom_bytes_min: u64,
    /// From the first letter on.
    pub(super) lane: Option<Lane>,
    /// Some wait for [`DeadLetters::commit`].
    pending: bool,
}

impl DeadLetters {
    /// None known yet.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.lanes.iter().find(|lane| lane.name.as_str() == DEAD_LANE).cloned(),
            segment_bytes: segment_bytes(config.record_bytes_max),
            headroom_bytes_min: config.headroom_bytes_min,
            lane: None,
            pending: false,
        }
    }

    /// Reads what lies there.
    pub fn recover(&mut self, io: &mut Io, segments: &[(LaneName, u32, u64)], report: &mut Report) {
        let own_files = segments.iter().filter(|(lane, ..)| lane.as_str() == DEAD_LANE);
        let files: Vec<(u32, u64)> = own_files.map(|(_, number, bytes)| (*number, *bytes)).collect();
        if !files.is_empty() {
            self.begin(io, &files, report);
        }
    }

    fn begin(&mut self, io: &mut Io, files: &[(u32, u64)], report: &mut Report) {
        let mut lane = Lane::new(name(), self.config.clone(), self.segment_bytes, self.headroom_bytes_min);
        lane.recover(io, files, report);
        self.lane = Some(lane);
    }

    /// Takes a letter; on flash with the next [`DeadLetters::commit`]. Its record was handed in as `draft`.
    fn push(&mut self, io: &mut Io, identity: &str, draft: Draft, reason: &str) -> Result<(), PushError> {
        if self.config.is_none() {
            return Ok(());
        }
        if self.lane.is_none() {
            // The folder may not have been readable at the start: what lies in it is never overwritten.
            let files = io.disk.list().map_err(|_| PushError::Degraded)?;
            let files: Vec<(u32, u64)> = files.iter().filter_map(own_segment).collect();
            self.begin(io, &files, &mut Report::default());
        }
        let Some(lane) = &mut self.lane else { return Ok(()) };
        if lane.known(io, identity).is_some() {
            return Ok(());
        }
        let key = Some(letter_key(identity, draft.key.as_deref(), reason));
        let position = lane.push(io, Draft { key, ..draft }, Instant::default())?;
        let log = lane.log();
        lane.keys.insert(identity, (log.epoch, position - log.base));
        self.pending = true;
        Ok(())
    }

    /// Puts the letters on flash: before the acks that cover their records are acted on.
    pub fn commit(&mut self, io: &mut Io) {
        let Some(lane) = self.lane.as_mut().filter(|_| std::mem::take(&mut self.pending)) else { return };
        // Storage that failed before: letters are rare enough to try it with each of them.
        lane.retry(io, Instant::default(), true);
        if let Err(error) = lane.commit(io) {
            log::warn!(target: "outbox", "dead letters not stored error={error:?}");
        }
    }
}

/// What a letter says of the record that it is a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its lane.
    pub lane: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
    /// Why it was refused; empty where that was too long to be kept.
    pub reason: String,
    /// The key that its producer gave it; none, too, where it was too long to be kept.
    pub key: Option<String>,
}

impl Origin {
    /// Reads a letter's key; `None`: it is none.
    pub fn parse(key: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Words {
            reason: String,
            key: Option<String>,
        }
        let (identity, words) = key.split_once(' ')?;
        let mut parts = identity.split('/');
        let (lane, epoch, seq) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let Words { reason, key } = serde_json::from_slice(words.as_bytes()).ok()?;
        Some(Self { lane: lane.into(), epoch, seq, reason, key })
    }
}

/// What a letter's key says, within its bound.
fn letter_key(identity: &str, key: Option<&str>, reason: &str) -> String {
    let whole = |reason: &str, key| format!("{identity} {}", serde_json::json!({ "reason": reason, "key": key }));
    let candidates = [whole(reason, key), whole(reason, None)];
    let fits = candidates.into_iter().find(|text| text.len() <= KEY_BYTES_MAX);
    fits.unwrap_or_else(|| whole("", None))
}

impl Lane {
    pub(super) fn is_dead_letters(&self) -> bool {
        self.name.as_str() == DEAD_LANE
    }

    /// What of a record's key names the record.
    pub(super) fn identity<'a>(&self, key: &'a str) -> &'a str {
        if self.is_dead_letters() { key.split(' ').next().unwrap_or_default() } else { key }
    }
}

impl Outbox {
    /// A copy of a refused record goes to the dead letters, on flash with the next ack.
    pub(super) fn bury(&mut self, lane: usize, log: usize, position: u64, reason: &str) {
        let held = &mut self.lanes[lane];
        let (epoch, seq) = (held.logs[log].epoch, position - held.logs[log].base);
        let identity = format!("{}/{epoch}/{seq}", held.name);
        let Some(draft) = held.look_up(&mut self.io, log, position) else {
            log::warn!(target: "outbox", "refused record not readable name={identity}");
            return;
        };
        if let Err(error) = self.dead.push(&mut self.io, &identity, draft, reason) {
            log::warn!(target: "outbox", "dead letter not taken name={identity} error={error:?}");
        }
    }

    /// This agent itself refuses the record for ever (protocol rule 6): it is given up under a `rejected` gap.
    pub fn refuse(&mut self, lane: &LaneName, epoch: Epoch, seq: Seq, reason: &str) {
        let Some((lane, log)) = self.find(lane, epoch) else { return };
        let position = seq + self.lanes[lane].logs[log].base;
        let held = &self.lanes[lane].logs[log];
        if position <= held.acked || position >= held.next || held.runs.at(position).is_some() {
            return;
        }
        self.note_refusal(lane, log, position, reason);
        self.lanes[lane].logs[log].runs.fill(position, position, Why::Rejected);
        // Nobody repeats this refusal, as a server does its own.
        self.dead.commit(&mut self.io);
    }

    /// Counts a refusal and keeps the record.
    pub(super) fn note_refusal(&mut self, lane: usize, log: usize, position: u64, reason: &str) {
        let held = &mut self.lanes[lane];
        let (epoch, seq) = (held.logs[log].epoch, position - held.logs[log].base);
        held.counters.rejected += 1;
        held.keys.forget(epoch, seq..=seq);
        log::warn!(target: "outbox", "record rejected lane={} seq={seq} reason={reason:?}", held.name);
        self.bury(lane, log, position, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letters_key_is_read_as_it_was_written() {
        let origin = |reason: &str, key: Option<&str>| Origin {
            lane: "temp".into(),
            epoch: 5,
            seq: 17,
            reason: reason.into(),
            key: key.map(Into::into),
        };
        let long = "x".repeat(KEY_BYTES_MAX);
        for (reason, key, kept) in [
            ("bad", Some("a b/\"c"), origin("bad", Some("a b/\"c"))),
            ("of two words", None, origin("of two words", None)),
            ("bad", Some(long.as_str()), origin("bad", None)),
            (long.as_str(), Some("k"), origin("", None)),
        ] {
            let written = letter_key("temp/5/17", key, reason);
            assert!(written.len() <= KEY_BYTES_MAX);
            assert_eq!(Origin::parse(&written), Some(kept));
        }
        for other in ["", "k", "temp/5 {}", "temp/5/x {\"reason\":\"\"}", "temp/5/17 {", "temp/5/17"] {
            assert_eq!(Origin::parse(other), None, "{other}");
        }
    }
}
