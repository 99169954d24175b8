//! The outbox: records on flash until the upstream has them. CORE over a small disk trait: no file, thread or
//! clock in here. `open` is total, power loss is the only shutdown, no loss is silent and none is invented.

pub mod budget;
pub mod dead;
pub mod disk;
pub mod expiry;
mod failing;
pub mod format;
pub mod inspect;
pub mod keys;
mod lane;
mod leftovers;
mod live;
mod log;
#[cfg(feature = "mutants")]
pub mod mutants;
#[cfg(not(feature = "mutants"))]
mod mutants;
pub mod overlay;
mod read;
mod recent;
mod recover;
mod runs;
mod search;
mod segments;
pub mod sim_disk;

use std::collections::VecDeque;
use std::hash::Hasher;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use crate::config;
use crate::record::{Body, Epoch, Fetch, Item, LaneName, Offer, Seq};
use crate::status;
use crate::time::Instant;
use dead::{DEAD_LANE, DeadLetters};
use disk::{Disk, Entry};
use expiry::Clock;
use keys::KEYS_BYTES_MAX;
use lane::{ACK_LAG_MS_MAX, Io, Lane, Purpose, TAIL_BYTES_MAX, waiting_bytes_max};
use log::Leave;
use mutants::mutant;
use segments::{batch_bytes_max, parse_segment_name};

/// What the outbox needs of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[outbox] segment_bytes`
    pub segment_bytes: u32,
    /// `[outbox] headroom_bytes_min`
    pub headroom_bytes_min: u64,
    /// `[local] record_bytes_max`
    pub record_bytes_max: u32,
    /// `[[lane]]`; the default lane is the one that says so, else the first. Last, where they are kept, the dead
    /// letters ([`dead::with_dead_letters`]).
    pub lanes: Vec<config::Lane>,
    /// Who this gateway is: a folder written by another one is a copied image.
    pub device: String,
    /// The machine's id, likewise; empty where there is none. Behind a slash in it: which board, where that is known to
    /// have changed.
    pub machine: String,
}

/// Index of a configured lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(pub u16);

/// A record as it is handed in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Draft {
    /// Unix ms, or null while no clock was ever known.
    pub at: Option<u64>,
    /// Which boot it arrived in (the boot id, folded).
    pub boot: u32,
    /// Boot clock at its arrival, in ms.
    pub boot_ms: u64,
    /// Time to live in seconds; 0: for ever.
    pub ttl_s: u32,
    /// What it is about.
    pub topic: String,
    /// The producer's own name for it.
    pub key: Option<String>,
    /// What it says.
    pub body: Body,
}

impl Draft {
    /// Topic, key and body: what its producer handed in.
    pub fn bytes(&self) -> usize {
        self.wire_bytes() + self.key.as_ref().map_or(0, String::len)
    }

    /// Topic and body: what goes upstream.
    pub fn wire_bytes(&self) -> usize {
        self.topic.len() + self.body.as_bytes().len()
    }
}

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PushError {
    /// The lane is full and its overflow policy is `reject`.
    Full,
    /// Topic and body exceed `record_bytes_max`.
    TooLarge,
    /// Flash does not take it now: it is kept in RAM only, and sent if the power stays.
    Degraded,
}

/// What `open` found, for the log and for events upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One line each, for people.
    pub notes: Vec<String>,
    /// The folder was another device's, machine's or board's: every lane has a new epoch.
    pub copied_image: bool,
    /// Not another device's: what waited keeps its names.
    pub moved: bool,
    /// Of these not one header is intact: what they held has no numbers left to name in a gap. A new epoch begins.
    pub lost_lanes: Vec<LaneName>,
}

/// Something that should be known upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What, in one word: `storage_degraded`, `storage_recovered`.
    pub kind: &'static str,
    /// More of it, for people.
    pub detail: String,
}

/// Why a deadline is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A `group` lane's records are due on flash.
    Commit,
    /// Acks not yet on flash are due there.
    Acks,
    /// Storage that failed is tried again.
    Storage,
}

/// The outbox. `Outbox` alone is one on any disk: what it does is compiled once for all of them.
#[derive(Clone)]
pub struct Outbox<D: ?Sized = dyn Disk> {
    /// Configured lanes in the order of the configuration, then those that are only on flash.
    lanes: Vec<Lane>,
    default: LaneId,
    record_bytes_max: u32,
    dead: DeadLetters,
    /// The budget's window: no group commit comes sooner than that after its first record.
    commit_ms_min: u64,
    io: Io<D>,
}

/// The file that says whose folder this is.
pub const IDENTITY_FILE: &str = "lock";

/// The device is that of `identity`, only the machine or the board is not: upstream, what waits has its old names.
fn is_moved(identity: &str, config: &Config) -> bool {
    identity.lines().next() == Some(config.device.as_str())
}

impl<D: Disk> Outbox<D> {
    /// Opens whatever lies on `disk`. Total: any bytes at all give a working outbox and a report.
    pub fn open(disk: D, config: &Config, seed: u64) -> (Self, Report) {
        let io = Io {
            rng: fastrand::Rng::with_seed(seed),
            clock: None,
            purposes: Default::default(),
            payload_bytes: 0,
            syncs: Default::default(),
            area: format::RecordArea::default(),
            scratch: Vec::new(),
            last_error: String::new(),
            events: VecDeque::new(),
            disk,
        };
        let default = config.lanes.iter().position(|lane| lane.default).unwrap_or(0);
        let mut outbox = Self {
            lanes: Vec::new(),
            default: LaneId(default as u16),
            record_bytes_max: config.record_bytes_max,
            dead: DeadLetters::new(config),
            commit_ms_min: 0,
            io,
        };
        let report = outbox.recover(config);
        (outbox, report)
    }

    /// The disk, for tests and for the shell's own figures.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.io.disk
    }

    /// The disk, to look at.
    pub fn disk(&self) -> &D {
        &self.io.disk
    }

    /// Gives the disk back: what a power cut leaves.
    pub fn into_disk(self) -> D {
        self.io.disk
    }
}

impl<D: Disk> Deref for Outbox<D> {
    type Target = Outbox;

    fn deref(&self) -> &Outbox {
        self
    }
}

impl<D: Disk> DerefMut for Outbox<D> {
    fn deref_mut(&mut self) -> &mut Outbox {
        self
    }
}

impl Outbox {
    fn recover(&mut self, config: &Config) -> Report {
        let io = &mut self.io;
        let mut report = Report::default();
        let listed = io.disk.list();
        if let Err(error) = &listed {
            report.notes.push(format!("the folder cannot be listed: {error}"));
            io.last_error = error.to_string();
        }
        let unlisted = listed.is_err();
        let files = listed.unwrap_or_default();
        let lanes = &mut self.lanes;
        let new = |name: LaneName, lane| Lane::new(name, lane, config.segment_bytes, config.headroom_bytes_min);
        for lane in config.lanes.iter().filter(|lane| lane.name.as_str() != DEAD_LANE) {
            lanes.push(new(lane.name.clone(), Some(lane.clone())));
        }
        let segment = |file: &Entry| parse_segment_name(&file.name).map(|(lane, number)| (lane, number, file.bytes));
        let segments: Vec<(LaneName, u32, u64)> = files.iter().filter_map(segment).collect();
        drop(files);
        for (name, ..) in &segments {
            if lanes.iter().all(|lane| lane.name != *name) && name.as_str() != DEAD_LANE {
                lanes.push(new(name.clone(), None));
            }
        }
        for lane in lanes {
            if unlisted {
                lane.go_on_in_ram(io);
                lane.unlisted = true;
            } else {
                let own = segments.iter().filter(|(name, ..)| *name == lane.name);
                let own: Vec<(u32, u64)> = own.map(|(_, number, bytes)| (*number, *bytes)).collect();
                lane.recover(io, &own, &mut report);
            }
        }
        self.dead.recover(io, &segments, &mut report);
        self.check_identity(config, &mut report);
        self.remove_drained();
        report
    }

    /// A folder that another device wrote is a copied image: its numbering is that device's, ours begins anew.
    fn check_identity(&mut self, config: &Config, report: &mut Report) {
        let ours = format!("{}\n{}\n", config.device, config.machine);
        let mut bytes = vec![0; 1024];
        let read = self.io.disk.read_at(IDENTITY_FILE, 0, &mut bytes).unwrap_or(0);
        bytes.truncate(read);
        // Zeros: cut in the middle of writing it, before the first record.
        let blank = bytes.iter().all(|&byte| byte == 0 || byte == b' ');
        if bytes.trim_ascii_end() == ours.trim_end().as_bytes() || mutant!(CopyUnseen) {
            return;
        }
        if !blank {
            let moved = is_moved(&String::from_utf8_lossy(&bytes), config);
            report.copied_image = true;
            report.moved = moved;
            let writer = if moved { "this device on another machine or board" } else { "another device" };
            report.notes.push(format!("this folder was written by {writer}: every lane begins a new epoch"));
            let mut renumbered = true;
            for lane in &mut self.lanes {
                if moved {
                    renumbered &= lane.leave_numbers_behind(&mut self.io);
                    continue;
                }
                for log in 0..lane.logs.len() {
                    renumbered &= lane.renumber(&mut self.io, log);
                }
            }
            if !renumbered {
                // The next start finds the other's name again, and tries again.
                return;
            }
        }
        // Blanks over a longer old name, so that no truncation is needed.
        let padded = format!("{ours:<width$}", width = read.min(1024));
        let written = self.io.disk.write_at(IDENTITY_FILE, 0, padded.as_bytes());
        self.io.purposes.other += padded.len() as u64;
        let synced = written.and_then(|()| self.io.sync(IDENTITY_FILE, Purpose::Repair));
        if let Err(error) = synced.and_then(|()| self.io.sync_dir(Purpose::Repair)) {
            report.notes.push(format!("{IDENTITY_FILE}: {error}"));
        }
    }

    /// The lane of this name; `None`: the default lane.
    pub fn lane(&self, name: Option<&str>) -> Option<LaneId> {
        let Some(name) = name else { return Some(self.default) };
        let found = self.lanes.iter().position(|lane| lane.name.as_str() == name && lane.config.is_some());
        found.map(|index| LaneId(index as u16))
    }

    /// The configured lanes.
    pub fn lane_ids(&self) -> impl Iterator<Item = LaneId> {
        let configured = self.lanes.iter().filter(|lane| lane.config.is_some()).count();
        (0..configured as u16).map(LaneId)
    }

    /// The lane's name.
    pub fn lane_name(&self, lane: LaneId) -> &LaneName {
        &self.lanes[usize::from(lane.0)].name
    }

    /// The lane's commit mode.
    pub fn commit_mode(&self, lane: LaneId) -> config::Commit {
        self.lanes[usize::from(lane.0)].config.as_ref().map_or(config::Commit::Sync, |config| config.commit)
    }

    /// What the clocks say from now on: what is fetched later may have outlived its time. Never told, nothing expires.
    pub fn handle_clock(&mut self, clock: Clock) {
        self.io.clock = Some(clock);
    }

    /// Takes a record and numbers it. It is in RAM until [`Outbox::commit`]; a full batch goes to flash at once.
    /// Under a key that the lane remembers it answers with the first record's name, and takes nothing.
    pub fn push(&mut self, lane: LaneId, mut draft: Draft, now: Instant) -> Result<(Epoch, Seq), PushError> {
        if draft.bytes() > self.record_bytes_max as usize {
            return Err(PushError::TooLarge);
        }
        let lane = &mut self.lanes[usize::from(lane.0)];
        if draft.ttl_s == 0 {
            draft.ttl_s = lane.config.as_ref().map_or(0, |config| config.ttl_s);
        }
        let key = draft.key.clone();
        if let Some(known) = key.as_deref().and_then(|key| lane.known(&mut self.io, key)) {
            return Ok(known);
        }
        let position = lane.push(&mut self.io, draft, now)?;
        let name = (lane.log().epoch, position - lane.log().base);
        if let Some(key) = key {
            lane.keys.insert(&key, name);
        }
        Ok(name)
    }

    /// Puts all that the lane holds in RAM on flash and syncs it. An error: of what was pushed since the last call,
    /// something was not taken, or is in RAM only under another number; [`Outbox::is_committed`] tells.
    pub fn commit(&mut self, lane: LaneId) -> Result<(), PushError> {
        self.lanes[usize::from(lane.0)].commit(&mut self.io)
    }

    /// The current epoch and the highest number of it that is on flash.
    pub fn committed(&self, lane: LaneId) -> (Epoch, Seq) {
        let log = self.lanes[usize::from(lane.0)].log();
        (log.epoch, log.durable - log.base)
    }

    /// The number after the last one that this epoch of the lane names: 1 where it is not there any more.
    pub fn next(&self, lane: &LaneName, epoch: Epoch) -> Seq {
        self.find(lane, epoch).map_or(1, |(lane, log)| {
            let log = &self.lanes[lane].logs[log];
            log.next - log.base
        })
    }

    /// Whether this record reached flash: what was pushed before a commit that failed may have, or may not.
    pub fn is_committed(&self, lane: LaneId, epoch: Epoch, seq: Seq) -> bool {
        let logs = &self.lanes[usize::from(lane.0)].logs;
        logs.iter().any(|log| log.epoch == epoch && log.leave != Leave::AtOnce && log.reached_flash(seq + log.base))
    }

    /// Whether this record is acked upstream, or of an epoch that is over.
    pub fn is_acked(&self, lane: LaneId, epoch: Epoch, seq: Seq) -> bool {
        let log = self.lanes[usize::from(lane.0)].logs.iter().find(|log| log.epoch == epoch);
        log.is_none_or(|log| seq + log.base <= log.acked)
    }

    /// What a `hello` says, and what a session may fetch: changes after commits, acks and drops.
    pub fn offers(&self) -> Vec<Offer> {
        self.lanes.iter().flat_map(|lane| lane.logs.iter().map(|log| log.offer(&lane.name))).collect()
    }

    fn find(&self, lane: &LaneName, epoch: Epoch) -> Option<(usize, usize)> {
        let index = self.lanes.iter().position(|known| known.name == *lane)?;
        Some((index, self.lanes[index].logs.iter().position(|log| log.epoch == epoch)?))
    }

    /// What comes next, contiguous from `fetch.from`: records and gaps, only what may leave the gateway. Counts as
    /// sent. Empty where nothing is there, or the epoch is not ours any more.
    pub fn fetch(&mut self, fetch: &Fetch) -> Vec<Item> {
        let Some((lane, log)) = self.find(&fetch.lane, fetch.epoch) else { return Vec::new() };
        let lane = &mut self.lanes[lane];
        let from = (fetch.from + lane.logs[log].base).max(lane.logs[log].acked + 1);
        lane.fetch(&mut self.io, log, from, fetch.records_max as usize, fetch.bytes_max as usize)
    }

    /// Everything up to `seq` is stored upstream.
    pub fn acked(&mut self, lane: &LaneName, epoch: Epoch, seq: Seq, now: Instant) {
        // What was refused is covered by acks that come after: first it is on flash elsewhere.
        self.dead.commit(&mut self.io);
        if let Some((lane, log)) = self.find(lane, epoch) {
            let position = seq + self.lanes[lane].logs[log].base;
            self.lanes[lane].forget_lost_keys(log, position);
            self.lanes[lane].acked(&mut self.io, log, position, now);
            self.remove_drained();
        }
    }

    /// Lanes that are not configured any more go when they are drained. They stand last: no [`LaneId`] moves.
    fn remove_drained(&mut self) {
        let io = &mut self.io;
        self.lanes.retain_mut(|lane| lane.config.is_some() || !lane.remove_if_drained(io));
    }

    /// The server refused this record for ever: it is counted and goes to the dead letters; the ack that covers it
    /// trims it.
    pub fn rejected(&mut self, lane: &LaneName, epoch: Epoch, seq: Seq, reason: &str) {
        if let Some((lane, log)) = self.find(lane, epoch) {
            let position = seq + self.lanes[lane].logs[log].base;
            if position > self.lanes[lane].logs[log].acked {
                self.note_refusal(lane, log, position, reason);
            }
        }
    }

    /// Protocol rule 7: the numbering is not ours. Draws a new epoch, durably; all that is held is numbered from 1.
    pub fn renumber(&mut self, lane: &LaneName, epoch: Epoch) {
        if let Some((lane, log)) = self.find(lane, epoch) {
            // What is in RAM was numbered in the old epoch; on flash it moves along.
            let _ = self.lanes[lane].commit(&mut self.io);
            let held = &self.lanes[lane].logs[log];
            let acked = held.acked - held.base;
            self.lanes[lane].renumber(&mut self.io, log);
            let new = self.lanes[lane].logs[log].epoch;
            self.lanes[lane].keys.renumber(epoch, acked, new);
        }
    }

    /// When [`Outbox::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let commits = self.lanes.iter().filter_map(|lane| {
            let config = lane.config.as_ref()?;
            let commit_ms = config.commit_ms.max(self.commit_ms_min);
            Some((lane.waiting_since()? + Duration::from_millis(commit_ms), Timer::Commit))
        });
        let acks = self
            .lanes
            .iter()
            .filter_map(|lane| Some((lane.acks_since()? + Duration::from_millis(ACK_LAG_MS_MAX), Timer::Acks)));
        let retries =
            self.lanes.iter().filter_map(|lane| lane.failing.map(|failing| (failing.retry_at, Timer::Storage)));
        commits.chain(acks).chain(retries).min_by_key(|(at, _)| *at)
    }

    /// Commits, ack flushes and new tries that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            lane.retry(&mut self.io, now, false);
            let due = |since: Option<Instant>, ms| since.is_some_and(|since| since + Duration::from_millis(ms) <= now);
            if let Some(config) = &lane.config
                && due(lane.waiting_since(), config.commit_ms.max(self.commit_ms_min))
            {
                // Nobody waits for it; what failed is counted and said in the status.
                let _ = lane.commit(&mut self.io);
            }
            if due(lane.acks_since(), ACK_LAG_MS_MAX) {
                lane.flush_acks(&mut self.io, now);
            }
        }
    }

    /// The flash budget's window, from now on: a group commit waits at least so long.
    pub fn set_commit_ms_min(&mut self, ms: u64) {
        self.commit_ms_min = ms;
    }

    /// A `group` or `ram_first` lane holds more in RAM than `commit_bytes`: it wants a commit now.
    pub fn is_due(&self, lane: LaneId) -> bool {
        let lane = &self.lanes[usize::from(lane.0)];
        lane.config.as_ref().is_some_and(|config| lane.waiting().1 >= config.commit_bytes as usize)
    }

    /// A clean stop: everything in RAM goes to flash, acks too. Never needed for safety.
    pub fn flush(&mut self) {
        self.dead.commit(&mut self.io);
        for lane in &mut self.lanes {
            lane.retry(&mut self.io, Instant::default(), true);
            let _ = lane.commit(&mut self.io);
            lane.flush_acks(&mut self.io, Instant::default());
        }
    }

    /// What someone should know, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.io.events.pop_front()
    }

    /// The lanes' part of the status; the dead letters stand last, once there are any.
    pub fn lanes_status(&self, wall_ms: Option<u64>) -> Vec<status::Lane> {
        self.lanes.iter().chain(&self.dead.lane).map(|lane| lane.status(wall_ms)).collect()
    }

    /// The flash's part of the status; times of syncs are the shell's to add.
    pub fn flash_status(&self) -> status::Flash {
        let degraded = self.lanes.iter().any(|lane| lane.failing.is_some());
        status::Flash {
            bytes_written: self.bytes_written(),
            bytes_payload: self.io.payload_bytes,
            syncs: self.io.syncs.sum(),
            state: if degraded { "degraded" } else { "ok" }.into(),
            by_purpose: self.io.purposes,
            syncs_by_purpose: self.io.syncs,
            ..status::Flash::default()
        }
    }

    /// Bytes written since it was opened, whatever for.
    pub fn bytes_written(&self) -> u64 {
        self.io.purposes.sum()
    }

    /// Bytes in RAM: records waiting for flash, and the newest ones kept.
    pub fn queues_bytes(&self) -> u64 {
        self.lanes.iter().chain(&self.dead.lane).map(Lane::ram_bytes).sum()
    }

    /// What decides how it goes on, but for caches, counters and the random generator: for tests that tell states
    /// apart. The disk is the caller's.
    pub fn hash_state<H: Hasher>(&self, state: &mut H) {
        self.lanes.iter().for_each(|lane| lane.hash_state(state));
    }
}

/// Most bytes of RAM that an outbox with this configuration holds: for each lane the records that wait for flash and
/// the newest ones on it, what is in RAM only where storage failed, a batch read back and the keys; for all of them
/// one batch, encoded and as pages.
pub fn memory_bytes_max(config: &Config) -> u64 {
    let segment = u64::from(config.segment_bytes);
    let in_ram = (TAIL_BYTES_MAX * failing::LOGS_MAX) as u64;
    let lane = waiting_bytes_max(config.segment_bytes) as u64 + in_ram + 2 * segment + KEYS_BYTES_MAX as u64;
    lane * config.lanes.len() as u64 + 2 * segment
}

/// Largest record (topic, key and body) that fits into one segment of this size beside its header and last page.
pub const fn record_bytes_max(segment_bytes: u32) -> u32 {
    (batch_bytes_max(segment_bytes) - format::RECORD_OVERHEAD_BYTES_MAX) as u32
}
