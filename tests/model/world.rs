//! One state of the search and the steps that lead from it: disk, agent, wire and server, what is true, and what may
//! still go wrong.

use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use backhaul::config::Overflow;
use backhaul::dialect;
use backhaul::outbox::disk::Disk;
use backhaul::outbox::{self, IDENTITY_FILE, LaneId, Outbox};
use backhaul::record::Offer;

use super::agent::Agent;
use super::facts::Facts;
use super::flash::{Fate, Flash, Trouble};
use super::search::Digest;
use super::server::{Conn, Entry, Server};

/// How often each thing may go wrong on one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub kills: u8,
    pub power_cuts: u8,
    /// One call to storage fails.
    pub failures: u8,
    /// Storage fails from some call on, until it is healed.
    pub breakdowns: u8,
    pub resets: u8,
    pub refusals: u8,
    pub server_crashes: u8,
    /// The server goes back to an earlier durable state.
    pub server_restores: u8,
    /// The disk goes back to an earlier image.
    pub images: u8,
    /// The disk goes on in another device.
    pub copies: u8,
}

/// One configuration of the model: what there is and how much of it.
#[derive(Debug, Clone)]
pub struct Rules {
    pub name: &'static str,
    pub outbox: outbox::Config,
    pub dialect: Arc<dialect::Config>,
    /// Records in one message, at most.
    pub batch_records_max: u32,
    /// Records ever put.
    pub puts_max: u8,
    /// Records put at once, at most.
    pub group_max: u8,
    /// Outbox and uplink threads take turns in every order; else mail is taken as it comes.
    pub threads: bool,
    /// The server syncs what it takes at once; else that is a step of its own.
    pub server_syncs: bool,
    pub budget: Budget,
    /// A sentence of the protocol that the server breaks: the search must notice.
    pub broken: Option<Broken>,
    /// Taken before the search begins, with nothing going wrong.
    pub prelude: &'static [Act],
}

/// What a server must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Rule 4: it acks what it has not synced.
    AcksUnsynced,
    /// Rule 2: an older connection goes on beside the new one.
    WithoutFence,
    /// A refusal is not stored: a crash forgets it although it was acked.
    ForgetsRefusals,
}

/// What someone does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Producers put so many records into a lane; a `sync` lane commits them.
    Put { lane: u8, count: u8 },
    /// The outbox's next deadline passes.
    Deadline,
    /// The outbox thread empties its mailbox.
    OutboxTurn,
    /// The uplink thread empties its mailbox.
    UplinkTurn,
    /// The agent dials and says `hello`.
    Connect,
    /// The agent reads the next message.
    Read,
    /// The agent sees that the server closed.
    SeesClose,
    /// The connection breaks at the agent's end; what is under way may still arrive.
    Leaves,
    /// Nothing: something may happen meanwhile.
    Idle,
    /// The agent starts.
    Start,
    /// Storage works again.
    Heal,
    /// An image of the disk is taken.
    TakeImage,
    /// It is put back.
    RestoreImage,
    /// The disk is put into another device.
    CopyDisk,
    /// The server takes the next message; of the connection before, if `old`.
    Takes { old: bool },
    /// The same, and the first record in it is refused for ever.
    Refuses { old: bool },
    /// The server syncs and acks.
    Syncs,
    /// The server closes a connection.
    Closes { old: bool },
    /// The server loses what it has not synced, and its connections.
    Crashes,
    /// The server keeps only so many of its entries.
    Restores { len: u8 },
}

/// What goes wrong in the middle of it, at which call to storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mishap {
    pub call: u8,
    pub kind: Kind,
}

/// How.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The agent is gone, and the disk as this leaves it.
    Cut(Fate),
    /// The call fails.
    Fails,
    /// It fails, and so do all that follow.
    Breaks,
}

/// A step of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    pub act: Act,
    pub mishap: Option<Mishap>,
}

impl From<Act> for Step {
    fn from(act: Act) -> Self {
        Self { act, mishap: None }
    }
}

/// All there is at one moment.
#[derive(Clone)]
pub struct World {
    rules: Arc<Rules>,
    agent: Option<Agent>,
    /// While the agent is down.
    disk: Option<Flash>,
    /// The connection before, of which something may still arrive.
    old: Option<Conn>,
    live: Option<Conn>,
    server: Server,
    facts: Facts,
    budget: Budget,
    image: Option<(Flash, u8)>,
    /// Which device the disk is in.
    device: u8,
}

impl World {
    pub fn new(rules: &Arc<Rules>) -> Self {
        Self {
            rules: Arc::clone(rules),
            agent: None,
            disk: Some(Flash::default()),
            old: None,
            live: None,
            server: Server::default(),
            facts: Facts::default(),
            budget: rules.budget,
            image: None,
            device: 0,
        }
    }

    /// What tells it from other states.
    pub fn key(&self) -> u128 {
        let mut digest = Digest::default();
        match &self.agent {
            Some(agent) => agent.hash(&mut digest),
            None => 0u8.hash(&mut digest),
        }
        self.flash().hash(&mut digest);
        (&self.old, &self.live, &self.server, &self.facts, self.budget, self.device).hash(&mut digest);
        self.image.hash(&mut digest);
        digest.value()
    }

    /// The same, with nothing left that may go wrong.
    pub fn calm(&self) -> Self {
        let mut calm = self.clone();
        calm.budget = Budget::default();
        calm.image = None;
        calm
    }

    fn flash(&self) -> &Flash {
        match (&self.agent, &self.disk) {
            (Some(agent), _) => agent.outbox.disk(),
            (None, Some(disk)) => disk,
            (None, None) => unreachable!("the disk is in the agent or beside it"),
        }
    }

    // ------------------------------------------------------------ which steps there are

    /// Every act that may come next.
    pub fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        match &self.agent {
            Some(agent) => self.agent_acts(agent, &mut acts),
            None => self.disk_acts(&mut acts),
        }
        if self.flash().broken {
            acts.push(Act::Heal);
        }
        for (old, conn) in [(true, &self.old), (false, &self.live)] {
            let Some(conn) = conn.as_ref().filter(|conn| conn.server) else { continue };
            if !conn.up.is_empty() {
                acts.push(Act::Takes { old });
            }
            if self.budget.refusals > 0 && conn.records_are_next() {
                acts.push(Act::Refuses { old });
            }
            if old || self.budget.resets > 0 {
                acts.push(Act::Closes { old });
            }
        }
        if self.server.durable < self.server.log.len() {
            acts.push(Act::Syncs);
        }
        if self.budget.server_crashes > 0 {
            acts.push(Act::Crashes);
        }
        if self.budget.server_restores > 0 {
            acts.extend((0..self.server.durable).map(|len| Act::Restores { len: len as u8 }));
        }
        acts
    }

    fn agent_acts(&self, agent: &Agent, acts: &mut Vec<Act>) {
        acts.push(Act::Idle);
        for lane in 0..self.rules.outbox.lanes.len() as u8 {
            let left = self.rules.puts_max.saturating_sub(self.facts.count());
            acts.extend((1..=left.min(self.rules.group_max)).map(|count| Act::Put { lane, count }));
        }
        if agent.outbox.poll_timeout().is_some() {
            acts.push(Act::Deadline);
        }
        if agent.outbox_has_mail() {
            acts.push(Act::OutboxTurn);
        }
        if agent.uplink_has_mail() {
            acts.push(Act::UplinkTurn);
        }
        match &self.live {
            None => acts.push(Act::Connect),
            Some(conn) if !conn.down.is_empty() => acts.push(Act::Read),
            Some(conn) if !conn.server => acts.push(Act::SeesClose),
            Some(_) => {}
        }
        if self.live.is_some() && self.budget.resets > 0 {
            acts.push(Act::Leaves);
        }
        if self.budget.images > 0 && self.image.is_none() {
            acts.push(Act::TakeImage);
        }
    }

    fn disk_acts(&self, acts: &mut Vec<Act>) {
        acts.push(Act::Start);
        if self.budget.images > 0 && self.image.is_some() {
            acts.push(Act::RestoreImage);
        }
        if self.budget.copies > 0 {
            acts.push(Act::CopyDisk);
        }
    }

    /// Every step that begins with this act, and where it leads. An error is what was violated.
    pub fn steps(&self, act: Act, found: &mut impl FnMut(Step, Result<Self, String>)) {
        let mut plain = self.clone();
        let result = plain.act(act, None);
        let calls = plain.calls();
        if act != Act::Idle {
            found(act.into(), result.map(|()| plain));
        }
        if !self.touches_storage(act) {
            return;
        }
        for call in 0..calls.max(u32::from(act == Act::Idle)) {
            let call = call as u8;
            for kind in self.mishaps(act) {
                let step = Step { act, mishap: Some(Mishap { call, kind }) };
                if let Some(result) = self.apply(step) {
                    found(step, result);
                }
            }
        }
    }

    fn touches_storage(&self, act: Act) -> bool {
        match act {
            Act::Put { .. } | Act::Deadline | Act::OutboxTurn | Act::Connect | Act::Read | Act::Idle | Act::Start => {
                true
            }
            Act::UplinkTurn => !self.rules.threads,
            Act::SeesClose
            | Act::Leaves
            | Act::Heal
            | Act::TakeImage
            | Act::RestoreImage
            | Act::CopyDisk
            | Act::Takes { .. }
            | Act::Refuses { .. }
            | Act::Syncs
            | Act::Closes { .. }
            | Act::Crashes
            | Act::Restores { .. } => false,
        }
    }

    fn mishaps(&self, act: Act) -> Vec<Kind> {
        let mut kinds = Vec::new();
        // A restored image that put and restarts before its first `welcome` cannot know what it is.
        let residue =
            self.facts.restored == Some(true) || self.facts.restored.is_some() && matches!(act, Act::Put { .. });
        if !residue {
            if self.budget.kills > 0 {
                kinds.push(Kind::Cut(Fate::Kept));
            }
            if self.budget.power_cuts > 0 {
                kinds.extend(Fate::POWER.map(Kind::Cut));
            }
        }
        if act != Act::Idle {
            if self.budget.failures > 0 {
                kinds.push(Kind::Fails);
            }
            if self.budget.breakdowns > 0 {
                kinds.push(Kind::Breaks);
            }
        }
        kinds
    }

    /// Where the step leads; `None`: nothing new can come of it.
    pub fn apply(&self, step: Step) -> Option<Result<Self, String>> {
        let mut next = self.clone();
        let Some(Mishap { call, kind }) = step.mishap else { return Some(next.act(step.act, None).map(|()| next)) };
        let (trouble, spent) = match kind {
            Kind::Cut(Fate::Kept) => (Trouble::Cut, &mut next.budget.kills),
            Kind::Cut(_) => (Trouble::Cut, &mut next.budget.power_cuts),
            Kind::Fails => (Trouble::Fails, &mut next.budget.failures),
            Kind::Breaks => (Trouble::Breaks, &mut next.budget.breakdowns),
        };
        *spent -= 1;
        if let Err(error) = next.act(step.act, Some((call.into(), trouble))) {
            return Some(Err(error));
        }
        if let Kind::Cut(fate) = kind {
            // With nothing pending, one power cut is like another.
            if fate != Fate::Old && fate != Fate::Kept && !next.flash().is_pending() {
                return None;
            }
            next.agent_goes(fate);
        }
        Some(Ok(next))
    }

    fn calls(&self) -> u32 {
        self.flash().calls
    }

    // ------------------------------------------------------------ what they do

    fn act(&mut self, act: Act, trouble: Option<(u32, Trouble)>) -> Result<(), String> {
        self.with_disk(|disk| (disk.calls, disk.trouble) = (0, trouble));
        let done = catch_unwind(AssertUnwindSafe(|| self.perform(act).and_then(|()| self.settle())));
        let done = done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(format!("panic: {text}"))
        });
        self.with_disk(|disk| disk.trouble = None);
        done?;
        self.facts.check_stored(&self.server)
    }

    fn with_disk(&mut self, change: impl FnOnce(&mut Flash)) {
        match (&mut self.agent, &mut self.disk) {
            (Some(agent), _) => change(agent.outbox.disk_mut()),
            (None, Some(disk)) => change(disk),
            (None, None) => {}
        }
    }

    fn perform(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Put { lane, count } => self.put(lane, count),
            Act::Deadline => self.with_agent(|agent, facts| agent.outbox_timeout(facts)),
            Act::OutboxTurn => self.with_agent(|agent, facts| {
                agent.outbox_turn(None, facts);
            }),
            Act::UplinkTurn => return self.uplink_turn(),
            Act::Connect => return self.connect(),
            Act::Read => {
                if let (Some(agent), Some(conn)) = (&mut self.agent, &mut self.live) {
                    agent.read(conn, &mut self.facts)?;
                }
                self.tidy();
            }
            Act::SeesClose => self.hang_up(),
            Act::Leaves => {
                self.budget.resets -= 1;
                self.hang_up();
            }
            Act::Idle => {}
            Act::Start => self.start(),
            Act::Heal => self.with_disk(|disk| disk.broken = false),
            Act::TakeImage => self.image = Some((self.flash().clone(), self.facts.count())),
            Act::RestoreImage => self.restore_image(),
            Act::CopyDisk => self.copy_disk(),
            Act::Takes { old } => return self.server_takes(old, false),
            Act::Refuses { old } => {
                self.budget.refusals -= 1;
                return self.server_takes(old, true);
            }
            Act::Syncs => self.server.sync([self.old.as_mut(), self.live.as_mut()]),
            Act::Closes { old } => {
                self.budget.resets -= u8::from(!old);
                if let Some(conn) = if old { &mut self.old } else { &mut self.live } {
                    conn.close();
                }
                self.tidy();
            }
            Act::Crashes => {
                self.budget.server_crashes -= 1;
                self.server_loses(self.server.durable);
            }
            Act::Restores { len } => {
                self.budget.server_restores -= 1;
                self.server_loses(len.into());
            }
        }
        Ok(())
    }

    fn with_agent(&mut self, act: impl FnOnce(&mut Agent, &mut Facts)) {
        if let Some(agent) = &mut self.agent {
            act(agent, &mut self.facts);
        }
    }

    fn put(&mut self, lane: u8, count: u8) {
        self.with_agent(|agent, facts| {
            agent.outbox_turn(Some((LaneId(lane.into()), count)), facts);
        });
    }

    fn uplink_turn(&mut self) -> Result<(), String> {
        let done = match &mut self.agent {
            Some(agent) => agent.uplink_turn(self.live.as_mut(), &mut self.facts),
            None => Ok(()),
        };
        self.tidy();
        done
    }

    /// Without threads: mail is taken as it comes.
    fn settle(&mut self) -> Result<(), String> {
        while !self.rules.threads {
            let Some(agent) = &mut self.agent else { break };
            if agent.outbox_has_mail() {
                agent.outbox_turn(None, &mut self.facts);
            } else if agent.uplink_has_mail() {
                self.uplink_turn()?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), String> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        let mut conn = Conn::new();
        let done = agent.connect(&mut conn, &mut self.facts);
        self.live = Some(conn);
        done
    }

    fn start(&mut self) {
        let Some(disk) = self.disk.take() else { return };
        let seed = disk.seed(self.facts.epochs_sent());
        let mut config = self.rules.outbox.clone();
        if self.device > 0 {
            config.device = format!("device {}", self.device);
        }
        // The numbering as it was: a copied disk begins a new one.
        let before = (self.device > 0).then(|| {
            let mut copy = disk.clone();
            (copy.trouble, copy.broken) = (None, false);
            let _ = copy.remove(IDENTITY_FILE);
            Outbox::open(copy, &self.rules.outbox, seed).0.offers()
        });
        let (outbox, _) = Outbox::open(disk, &config, seed);
        self.rename(&before.unwrap_or_default(), &outbox.offers());
        let live = self.rules.outbox.lanes.iter().any(|lane| lane.live_share > 0.0);
        self.agent = Some(Agent::new(outbox, Arc::clone(&self.rules.dialect), self.rules.batch_records_max, live));
    }

    fn rename(&mut self, before: &[Offer], after: &[Offer]) {
        for (old, new) in before.iter().zip(after).filter(|(old, new)| old.lane == new.lane && old.epoch != new.epoch) {
            self.facts.on_renumbered(&old.lane, old.epoch, old.first, new.epoch);
        }
    }

    fn hang_up(&mut self) {
        if let (Some(agent), Some(conn)) = (&mut self.agent, &mut self.live) {
            agent.hang_up(conn);
        }
        self.tidy();
    }

    /// A connection that the agent left becomes the old one while something of it may still arrive.
    fn tidy(&mut self) {
        if self.live.as_ref().is_some_and(|conn| !conn.agent) {
            self.old = self.live.take();
        }
        if self.old.as_ref().is_some_and(|conn| !conn.server || conn.up.is_empty()) {
            self.old = None;
        }
    }

    fn agent_goes(&mut self, fate: Fate) {
        let running = self.agent.take().map(|agent| agent.outbox.into_disk());
        if let Some(mut disk) = running.or_else(|| self.disk.take()) {
            disk.cut(fate);
            self.disk = Some(disk);
        }
        if let Some(conn) = &mut self.live {
            conn.leave();
        }
        self.facts.on_agent_gone();
        self.tidy();
    }

    fn restore_image(&mut self) {
        self.budget.images -= 1;
        if let Some((mut disk, puts)) = self.image.take() {
            disk.cut(Fate::Old);
            self.disk = Some(disk);
            self.facts.on_restored(puts);
        }
    }

    fn copy_disk(&mut self) {
        self.budget.copies -= 1;
        self.device += 1;
        self.facts.on_copied(&self.server);
        self.server = Server::default();
        self.old = None;
    }

    fn server_takes(&mut self, old: bool, refuse: bool) -> Result<(), String> {
        let (conn, other) = if old { (&mut self.old, &mut self.live) } else { (&mut self.live, &mut self.old) };
        if let Some(conn) = conn {
            let other = other.as_mut().filter(|_| self.rules.broken != Some(Broken::WithoutFence));
            self.server.receive(conn, other, refuse)?;
        }
        if self.rules.server_syncs {
            self.server.sync([self.old.as_mut(), self.live.as_mut()]);
        } else if self.rules.broken == Some(Broken::AcksUnsynced) {
            let durable = self.server.durable;
            self.server.sync([self.old.as_mut(), self.live.as_mut()]);
            self.server.durable = durable;
        }
        self.tidy();
        Ok(())
    }

    fn server_loses(&mut self, len: usize) {
        let mut lost = self.server.truncate(len);
        if self.rules.broken == Some(Broken::ForgetsRefusals) {
            self.server.log.retain(|entry| !matches!(entry, Entry::Refused { .. }));
            self.server.durable = self.server.log.len();
            lost.retain(|entry| !matches!(entry, Entry::Refused { .. }));
        }
        self.facts.on_server_lost(&lost);
        for conn in [&mut self.old, &mut self.live].into_iter().flatten() {
            conn.close();
        }
        self.tidy();
    }

    // ------------------------------------------------------------ to the end

    /// What happens next when nothing goes wrong any more; `None`: all is done.
    pub fn calm_act(&self) -> Option<Act> {
        if self.flash().broken {
            return Some(Act::Heal);
        }
        let Some(agent) = &self.agent else { return Some(Act::Start) };
        if agent.outbox_has_mail() {
            return Some(Act::OutboxTurn);
        }
        if agent.uplink_has_mail() {
            return Some(Act::UplinkTurn);
        }
        if self.old.is_some() {
            return Some(Act::Closes { old: true });
        }
        let Some(conn) = &self.live else { return Some(Act::Connect) };
        if !conn.down.is_empty() {
            return Some(Act::Read);
        }
        if !conn.server {
            return Some(Act::SeesClose);
        }
        if !conn.up.is_empty() {
            return Some(Act::Takes { old: false });
        }
        if self.server.durable < self.server.log.len() {
            return Some(Act::Syncs);
        }
        agent.outbox.poll_timeout().is_some().then_some(Act::Deadline)
    }

    /// What holds when all is done: each promise kept once, and the lane takes more.
    pub fn check_end(&self) -> Result<(), String> {
        if !self.agent.as_ref().is_some_and(Agent::is_drained) {
            return Err("wedged: storage, link and server work, and yet not everything is delivered".into());
        }
        let drops = self.rules.outbox.lanes.iter().any(|lane| lane.overflow == Overflow::DropOldest);
        self.facts.check_end(&self.server, drops)
    }

    /// One more record for each lane, from a state where all is done: it must be taken. Once: else there is no end.
    pub fn probe(&self) -> Result<Vec<Self>, String> {
        let mut worlds = Vec::new();
        if self.facts.count() > self.rules.puts_max {
            return Ok(worlds);
        }
        for lane in 0..self.rules.outbox.lanes.len() as u8 {
            let mut world = self.clone();
            let before = world.facts.count();
            world.act(Act::Put { lane, count: 1 }, None)?;
            if world.facts.count() == before {
                return Err(format!("wedged: lane {lane} is drained and takes nothing"));
            }
            worlds.push(world);
        }
        Ok(worlds)
    }

    /// One line, for a trace.
    pub fn describe(&self) -> String {
        let entry = |entry: &Entry| match entry {
            Entry::Record { epoch, seq, id, .. } => format!("{:x}.{seq}=r{id}", epoch % 4096),
            Entry::Refused { epoch, seq, id, .. } => format!("{:x}.{seq}=r{id} refused", epoch % 4096),
            Entry::Gap { epoch, from, to, why, count, .. } => {
                format!("{:x}.{from}..={to} {why} {count}", epoch % 4096)
            }
        };
        let conn = |conn: &Option<Conn>| match conn {
            None => "-".into(),
            Some(conn) => format!("{}↑ {}↓", conn.up.len(), conn.down.len()),
        };
        let log: Vec<_> = self.server.log.iter().map(entry).collect();
        format!(
            "agent {} | flash {} | live {} old {} | server {} (durable {})",
            self.agent.as_ref().map_or("down".into(), Agent::describe),
            self.flash().describe(),
            conn(&self.live),
            conn(&self.old),
            log.join(", "),
            self.server.durable
        )
    }
}
