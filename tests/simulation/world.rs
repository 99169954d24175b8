//! The world: one agent's core (upstream and outbox, wired as the threads wire them), its disk, a network, a clock
//! and a server, all from one seed. Virtual time only: nothing here waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backhaul::config::{self, Encoding, Overflow};
use backhaul::dialect;
use backhaul::dialect::codec::{self, Frame};
use backhaul::dialect::message::AgentMessage;
use backhaul::link::{self, Class, Failure};
use backhaul::outbox::dead::with_dead_letters;
use backhaul::outbox::expiry::Clock;
use backhaul::outbox::sim_disk::{Fate, SimDisk};
use backhaul::outbox::{self, Draft, LaneId, Outbox};
use backhaul::record::{Body, Epoch, Fetch, Item, LaneName, Offer, Seq};
use backhaul::time::Instant;
use backhaul::upstream::cap::Cap;
use backhaul::upstream::{Input, Output, Setup, Upstream};

use super::dead_letters;
use super::draw::{below, pick};
use super::oracle::Oracle;
use super::server::{Answer, Server};

const LANE: LaneId = LaneId(0);

/// A sentence of the design broken on purpose: the oracle must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A number is used for another record.
    ReusedSeq,
    /// The outbox hears of an ack that never was.
    TrimmedUnacked,
    /// The old connection lives on beside the new one, at both ends.
    TwoSessions,
    /// Acks never reach the outbox of a full lane.
    WedgedFullLane,
}

/// What can go wrong, how often: weights of one draw.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub reset: u32,
    pub stall: u32,
    pub half_open: u32,
    pub refuse: u32,
    pub kill: u32,
    pub power_cut: u32,
    pub server_crash: u32,
    pub server_restore: u32,
    pub image_restore: u32,
}

impl Faults {
    pub const ALL: Self = Self {
        reset: 6,
        stall: 2,
        half_open: 2,
        refuse: 2,
        kill: 4,
        power_cut: 4,
        server_crash: 3,
        server_restore: 0,
        image_restore: 0,
    };
}

#[derive(Debug, Clone)]
enum Wire {
    Frame(Frame),
    /// With this number, or none.
    Ping(Option<u64>),
    Pong(Option<u64>),
    Close(u16),
    Reset,
}

/// A TCP connection: what is under way in each direction, with its time of arrival.
#[derive(Debug)]
struct Conn {
    id: u64,
    up: VecDeque<(Instant, Wire)>,
    down: VecDeque<(Instant, Wire)>,
    agent_open: bool,
    server_open: bool,
    stalled: bool,
    heard: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    None,
    Resolving(Instant),
    Dialing(Instant),
    Upgrading(Instant),
    Open(u64),
}

/// What passes between the threads, in order, each with its delay.
#[derive(Debug)]
enum Work {
    Fetch(Fetch),
    Acked(LaneName, Epoch, Seq),
    Rejected(LaneName, Epoch, Seq),
    Foreign(LaneName, Epoch),
    Items(Fetch, Vec<Item>),
    Offers(Vec<Offer>),
}

struct Agent {
    outbox: Outbox<SimDisk>,
    upstream: Upstream,
    transport: Transport,
    work: VecDeque<(Instant, Work)>,
    /// As the uplink thread knows them.
    offers: Vec<Offer>,
}

pub struct World {
    pub seed: u64,
    rng: fastrand::Rng,
    pub now: Instant,
    faults: Faults,
    faults_until: Instant,
    mutant: Option<Mutant>,
    config: outbox::Config,
    agent: Option<Agent>,
    /// While the agent is down.
    disk: Option<SimDisk>,
    restart_at: Instant,
    saved: Option<link::Saved>,
    starts: u64,
    image: Option<(SimDisk, usize)>,
    conns: Vec<Conn>,
    connections: u64,
    refuse_until: Instant,
    pub server: Server,
    sync_at: Option<Instant>,
    pub oracle: Oracle,
    puts: u64,
    puts_max: u64,
    put_at: Instant,
    fault_at: Instant,
    pub attempts: u64,
}

/// One lane of so many small segments.
pub fn outbox_config(segments: u64, overflow: Overflow) -> outbox::Config {
    let lane = config::Lane { bytes_max: 16_384 * segments, overflow, ..config::Lane::default() };
    outbox::Config {
        segment_bytes: 16_384,
        headroom_bytes_min: 0,
        record_bytes_max: 4096,
        lanes: with_dead_letters(&[lane], 4 << 20),
        device: "sim".into(),
        machine: String::new(),
    }
}

impl World {
    pub fn new(seed: u64, faults: Faults, mutant: Option<Mutant>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let overflow = if rng.bool() { Overflow::DropOldest } else { Overflow::Reject };
        let config = outbox_config(rng.u64(2..8), overflow);
        let start = Instant::from_micros(1_000_000);
        let puts_max = rng.u64(50..250);
        let mut world = Self {
            seed,
            rng,
            now: start,
            faults,
            faults_until: start + Duration::from_secs(30),
            mutant,
            config,
            agent: None,
            disk: Some(SimDisk::default()),
            restart_at: start,
            saved: None,
            starts: 0,
            image: None,
            conns: Vec::new(),
            connections: 0,
            refuse_until: start,
            server: Server { without_fence: mutant == Some(Mutant::TwoSessions), ..Server::default() },
            sync_at: None,
            oracle: Oracle::default(),
            puts: 0,
            puts_max,
            put_at: start,
            fault_at: start + Duration::from_millis(500),
            attempts: 0,
        };
        world.oracle.copies_allowed = faults.image_restore > 0;
        world
    }

    /// Runs until everything is delivered and no fault is left, or too long. An error is what was violated.
    pub fn run(&mut self) -> Result<(), String> {
        for _ in 0..400_000 {
            self.step()?;
            if self.now > self.faults_until && self.puts == self.puts_max && self.is_drained() {
                self.oracle.check_stored(&self.server)?;
                self.check_letters()?;
                return self.oracle.check_end(&self.server);
            }
            if self.now > self.faults_until + Duration::from_secs(120) {
                break;
            }
        }
        Err(format!("wedged at {:?}: {}", self.now, self.describe()))
    }

    fn check_letters(&mut self) -> Result<(), String> {
        // A server or a gateway that forgets has other numbers than those on the letters.
        let forgets = self.faults.server_restore + self.faults.image_restore > 0;
        let Some(agent) = self.agent.as_mut().filter(|_| !forgets) else { return Ok(()) };
        let letters = dead_letters::on(agent.outbox.disk_mut());
        let may_be_gone = self.config.lanes[0].overflow == Overflow::DropOldest;
        self.oracle.check_letters(&self.server, &letters, may_be_gone)
    }

    fn is_drained(&self) -> bool {
        let Some(agent) = &self.agent else { return false };
        agent.upstream.is_up()
            && agent.work.is_empty()
            && agent.outbox.offers().iter().all(|offer| offer.first == offer.next)
            && agent.outbox.lanes_status(None)[0].depth == 0
            && self.server.durable == self.server.log.len()
    }

    fn describe(&self) -> String {
        match &self.agent {
            None => "the agent is down".into(),
            Some(agent) => format!(
                "{:?} {:?} offers {:?} lanes {:?} puts {} of {}",
                agent.transport,
                agent.upstream.view(),
                agent.outbox.offers(),
                agent.outbox.lanes_status(None),
                self.puts,
                self.puts_max
            ),
        }
    }

    fn step(&mut self) -> Result<(), String> {
        self.now = self.next_event().max(self.now + Duration::from_micros(1));
        if self.now < self.faults_until && self.now >= self.fault_at {
            self.fault_at = self.now + Duration::from_millis(self.rng.u64(50..3000));
            self.fault()?;
        }
        if self.agent.is_none() && self.now >= self.restart_at {
            self.start();
        }
        if self.puts < self.puts_max && self.now >= self.put_at {
            self.put_at = self.now + Duration::from_millis(self.rng.u64(0..400));
            self.put();
        }
        self.step_work();
        self.step_transport();
        self.step_wire()?;
        if self.sync_at.is_some_and(|at| at <= self.now) {
            self.sync_at = None;
            let answers = self.server.sync();
            self.answer(answers);
            self.oracle.check_stored(&self.server)?;
        }
        if let Some(agent) = &mut self.agent {
            if agent.upstream.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                agent.upstream.handle_timeout(self.now);
            }
            if agent.outbox.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                agent.outbox.handle_timeout(self.now);
            }
        }
        self.perform()
    }

    fn next_event(&self) -> Instant {
        let mut next = vec![self.now + Duration::from_secs(1)];
        if self.puts < self.puts_max {
            next.push(self.put_at);
        }
        if self.now < self.faults_until {
            next.push(self.fault_at);
        }
        next.extend(self.sync_at);
        match &self.agent {
            None => next.push(self.restart_at),
            Some(agent) => {
                next.extend(agent.work.front().map(|(at, _)| *at));
                next.extend(agent.upstream.poll_timeout().map(|(at, _)| at));
                next.extend(agent.outbox.poll_timeout().map(|(at, _)| at));
                match agent.transport {
                    Transport::Resolving(at) | Transport::Dialing(at) | Transport::Upgrading(at) => next.push(at),
                    Transport::None | Transport::Open(_) => {}
                }
            }
        }
        for conn in self.conns.iter().filter(|conn| !conn.stalled) {
            next.extend(conn.up.front().map(|(at, _)| *at));
            next.extend(conn.down.front().map(|(at, _)| *at));
        }
        next.into_iter().min().expect("not empty")
    }

    fn delay(&mut self, ms_max: u64) -> Instant {
        self.now + Duration::from_micros(self.rng.u64(0..=ms_max * 1000))
    }

    // ------------------------------------------------------------ agent

    fn start(&mut self) {
        self.starts += 1;
        let disk = self.disk.take().expect("the disk is free while the agent is down");
        let seed = self.seed.wrapping_mul(1009).wrapping_add(self.starts);
        let (outbox, _) = Outbox::open(disk, &self.config, seed);
        let reconnect = config::Reconnect {
            start_delay_ms_max: 100,
            spread_ms: 200,
            backoff_ms_min: 50,
            backoff_ms_max: 400,
            slow_ms_min: 400,
            slow_ms_max: 1600,
            stable_after_ms: 300,
            ..config::Reconnect::default()
        };
        let link = link::Config {
            reconnect,
            heartbeat: config::Heartbeat {
                interval_ms: 500,
                timeout_ms: 200,
                misses_max: 2,
                ..config::Heartbeat::default()
            },
            handshake_timeout_ms: 1000,
            server_wait_ms_max: 5000,
            session_age_s_max: 0,
            attempts_max: 0,
            endpoints_tls: vec![false],
            ..link::Config::default()
        };
        let dialect = dialect::Config {
            window_records: self.rng.u32(1..40),
            window_bytes: 20_000,
            batch_bytes_max: 5000,
            ack_timeout_ms: 1000,
            ..dialect::Config::default()
        };
        let setup = Setup {
            link: Arc::new(link),
            dialect: Arc::new(dialect),
            device: "sim".into(),
            agent: "backhaul/sim".into(),
            boot: format!("{seed:x}"),
            endpoints: vec!["ws://sim".into()],
            seed,
            saved: self.saved,
            fresh_boot: self.saved.is_none(),
            cap: Cap::default(),
        };
        let offers = outbox.offers();
        let upstream = Upstream::new(setup, self.now);
        self.agent = Some(Agent { outbox, upstream, transport: Transport::None, work: VecDeque::new(), offers });
    }

    /// A few producers at once, one commit for all: as the outbox thread does it.
    fn put(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let mut texts = Vec::new();
        for _ in 0..self.rng.u64(1..6).min(self.puts_max - self.puts) {
            self.puts += 1;
            let bytes = pick(&mut self.rng, &[20, 100, 1000, 3000]);
            let text = format!("{:x>bytes$}", self.puts);
            let expires = self.rng.u8(..4) == 0;
            let draft = Draft {
                at: Some(self.now.as_millis()),
                boot: 1,
                boot_ms: self.now.as_millis(),
                ttl_s: if expires { 2 } else { 0 },
                topic: "sim".into(),
                key: None,
                body: Body::Text(text.clone()),
            };
            if let Ok(name) = agent.outbox.push(LANE, draft, self.now) {
                self.oracle.put(text.clone(), name, expires);
                texts.push(text);
            }
        }
        if agent.outbox.commit(LANE).is_ok() {
            for text in &texts {
                self.oracle.committed(text);
            }
        }
        self.publish();
    }

    /// Offers that changed go to the uplink thread.
    fn publish(&mut self) {
        let at = self.delay(3);
        let Some(agent) = &mut self.agent else { return };
        let offers = agent.outbox.offers();
        let at = agent.work.back().map_or(at, |(last, _)| at.max(*last));
        agent.work.push_back((at, Work::Offers(offers)));
    }

    fn step_work(&mut self) {
        loop {
            let Some(agent) = &mut self.agent else { return };
            if agent.work.front().is_none_or(|(at, _)| *at > self.now) {
                return;
            }
            let Some((_, work)) = agent.work.pop_front() else { return };
            let now = self.now;
            match work {
                Work::Fetch(fetch) => {
                    agent.outbox.handle_clock(Clock {
                        boot: 1,
                        boot_ms: now.as_millis(),
                        wall_ms: None,
                        server_ms: None,
                    });
                    let mut items = agent.outbox.fetch(&fetch);
                    if self.mutant == Some(Mutant::ReusedSeq) {
                        swap_bodies(&mut items);
                    }
                    let at = self.now + Duration::from_micros(self.rng.u64(0..3000));
                    let at = agent.work.back().map_or(at, |(last, _)| at.max(*last));
                    agent.work.push_back((at, Work::Items(fetch, items)));
                    self.publish();
                }
                Work::Acked(lane, epoch, seq) => {
                    let seq = match self.mutant {
                        Some(Mutant::TrimmedUnacked) => seq + 1,
                        Some(Mutant::WedgedFullLane) => 0,
                        Some(Mutant::ReusedSeq | Mutant::TwoSessions) | None => seq,
                    };
                    agent.outbox.acked(&lane, epoch, seq, now);
                    self.publish();
                }
                Work::Rejected(lane, epoch, seq) => agent.outbox.rejected(&lane, epoch, seq, "sim"),
                Work::Foreign(lane, epoch) => {
                    let first = agent.outbox.offers()[0].first;
                    agent.outbox.renumber(&lane, epoch);
                    let new = agent.outbox.offers()[0].epoch;
                    if new != epoch {
                        self.oracle.on_renumbered(epoch, first, new);
                    }
                    self.publish();
                }
                Work::Items(fetch, items) => agent.upstream.handle_input(Input::Items(&fetch, items), now),
                Work::Offers(offers) => {
                    agent.upstream.handle_input(Input::Offers(&offers), now);
                    agent.offers = offers;
                }
            }
        }
    }

    /// Performs what the core decided.
    fn perform(&mut self) -> Result<(), String> {
        while let Some(output) = self.agent.as_mut().and_then(|agent| agent.upstream.poll_output()) {
            let at = self.delay(5);
            let Some(agent) = &mut self.agent else { break };
            let mut queue = |work| {
                let at = agent.work.back().map_or(at, |(last, _): &(Instant, Work)| at.max(*last));
                agent.work.push_back((at, work));
            };
            match output {
                Output::Resolve { .. } => {
                    self.attempts += 1;
                    if agent.transport != Transport::None && self.mutant.is_none() {
                        return Err(format!("an attempt beside {:?}", agent.transport));
                    }
                    agent.transport = Transport::Resolving(at);
                }
                Output::Dial { .. } => agent.transport = Transport::Dialing(at),
                Output::Fetch(fetch) => queue(Work::Fetch(fetch)),
                Output::Acked { lane, epoch, seq } => queue(Work::Acked(lane, epoch, seq)),
                Output::Rejected { lane, epoch, seq, .. } => queue(Work::Rejected(lane, epoch, seq)),
                Output::Foreign { lane, epoch } => queue(Work::Foreign(lane, epoch)),
                Output::Save(saved) => self.saved = Some(saved),
                Output::Transmit { frame, .. } => self.transmit(frame)?,
                Output::Ping { counter } => {
                    self.send_up(Wire::Ping(counter));
                    if let Some(agent) = &mut self.agent {
                        agent.upstream.handle_input(Input::PingFlushed(counter), self.now);
                    }
                }
                Output::Drop { close } => self.drop_transport(close),
                Output::GiveUp => return Err("gave up".into()),
                Output::Probe { .. } | Output::Remedy { .. } | Output::SaveDay(_) => {}
                Output::Changed | Output::Event { .. } | Output::Command { .. } | Output::ServerTime { .. } => {}
            }
        }
        Ok(())
    }

    fn transmit(&mut self, frame: Frame) -> Result<(), String> {
        let message = codec::decode::<AgentMessage>(&frame.as_ref()).map_err(|error| error.to_string())?;
        if let Some(AgentMessage::Records { epoch, records, .. }) = &message {
            for record in records {
                self.oracle.on_sent((*epoch, record.seq), &String::from_utf8_lossy(record.body.as_bytes()))?;
            }
        }
        self.send_up(Wire::Frame(frame));
        Ok(())
    }

    fn open_conn(&mut self) -> Option<&mut Conn> {
        let Transport::Open(id) = self.agent.as_ref()?.transport else { return None };
        self.conns.iter_mut().find(|conn| conn.id == id && conn.agent_open)
    }

    fn send_up(&mut self, wire: Wire) {
        let at = self.delay(20);
        if let Some(conn) = self.open_conn() {
            let at = conn.up.back().map_or(at, |(last, _)| at.max(*last));
            conn.up.push_back((at, wire));
        }
    }

    fn drop_transport(&mut self, close: Option<u16>) {
        self.send_up(close.map_or(Wire::Reset, Wire::Close));
        let keep = self.mutant == Some(Mutant::TwoSessions);
        if let Some(conn) = self.open_conn().filter(|_| !keep) {
            conn.agent_open = false;
            conn.down.clear();
        }
        if let Some(agent) = &mut self.agent {
            agent.transport = Transport::None;
        }
    }

    // ------------------------------------------------------------ network

    fn step_transport(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let now = self.now;
        match agent.transport {
            Transport::Resolving(at) if at <= now => {
                agent.transport = Transport::None;
                if self.rng.u8(..20) == 0 {
                    let failure = Failure::new(Class::Name, "NXDOMAIN");
                    return agent.upstream.handle_input(Input::Failed(failure), now);
                }
                agent.upstream.handle_input(Input::Resolved { addresses: self.rng.u8(1..3) }, now);
            }
            Transport::Dialing(at) if at <= now => {
                agent.transport = Transport::None;
                if now < self.refuse_until {
                    let failure = Failure::new(Class::Refused, "refused");
                    return agent.upstream.handle_input(Input::DialFailed { address: 0, failure }, now);
                }
                agent.upstream.handle_input(Input::Dialed { address: 0 }, now);
                if agent.transport == Transport::None {
                    agent.transport = Transport::Upgrading(now + Duration::from_millis(self.rng.u64(0..100)));
                }
            }
            Transport::Upgrading(at) if at <= now => {
                self.connections += 1;
                let id = self.connections;
                let encoding = if self.rng.bool() { Encoding::Postcard } else { Encoding::Json };
                let (up, down) = (VecDeque::new(), VecDeque::new());
                let (agent_open, server_open, stalled) = (true, true, false);
                self.conns.push(Conn { id, up, down, agent_open, server_open, stalled, heard: now });
                self.server.connect(id, encoding);
                agent.transport = Transport::Open(id);
                let offers = agent.offers.clone();
                agent.upstream.handle_input(Input::Upgraded { encoding: Some(encoding), offers: &offers }, now);
            }
            Transport::None
            | Transport::Resolving(_)
            | Transport::Dialing(_)
            | Transport::Upgrading(_)
            | Transport::Open(_) => {}
        }
    }

    fn step_wire(&mut self) -> Result<(), String> {
        for index in 0..self.conns.len() {
            while let Some(wire) = self.arrived(index, |conn| &mut conn.up) {
                self.at_server(index, wire)?;
            }
            while let Some(wire) = self.arrived(index, |conn| &mut conn.down) {
                self.at_agent(index, wire)?;
            }
            // The server frees a session that has been silent for too long.
            let conn = &mut self.conns[index];
            if conn.server_open && self.now.since(conn.heard) > Duration::from_secs(3) {
                conn.server_open = false;
                let id = conn.id;
                self.server.disconnect(id);
            }
        }
        self.conns.retain(|conn| conn.agent_open || conn.server_open);
        Ok(())
    }

    fn arrived(&mut self, index: usize, way: impl Fn(&mut Conn) -> &mut VecDeque<(Instant, Wire)>) -> Option<Wire> {
        let conn = &mut self.conns[index];
        if conn.stalled || way(conn).front().is_none_or(|(at, _)| *at > self.now) {
            return None;
        }
        way(conn).pop_front().map(|(_, wire)| wire)
    }

    fn at_server(&mut self, index: usize, wire: Wire) -> Result<(), String> {
        let (id, open) = (self.conns[index].id, self.conns[index].server_open);
        if !open {
            // What comes to a closed connection is answered by a reset.
            self.send_down(id, Wire::Reset);
            return Ok(());
        }
        self.conns[index].heard = self.now;
        match wire {
            Wire::Frame(frame) => {
                let answers = self.server.receive(id, &frame)?;
                self.answer(answers);
                if self.server.durable < self.server.log.len() && self.sync_at.is_none() {
                    self.sync_at = Some(self.delay(200));
                }
            }
            Wire::Ping(counter) => self.send_down(id, Wire::Pong(counter)),
            Wire::Pong(_) => {}
            Wire::Close(_) | Wire::Reset => {
                self.conns[index].server_open = false;
                self.server.disconnect(id);
            }
        }
        Ok(())
    }

    fn answer(&mut self, answers: Vec<Answer>) {
        for answer in answers {
            match answer {
                Answer::Send(id, frame) => self.send_down(id, Wire::Frame(frame)),
                Answer::Close(id, code) => {
                    self.send_down(id, Wire::Close(code));
                    if let Some(conn) = self.conns.iter_mut().find(|conn| conn.id == id) {
                        conn.server_open = false;
                    }
                }
            }
        }
    }

    fn send_down(&mut self, id: u64, wire: Wire) {
        let at = self.delay(20);
        if let Some(conn) = self.conns.iter_mut().find(|conn| conn.id == id && conn.agent_open) {
            let at = conn.down.back().map_or(at, |(last, _)| at.max(*last));
            conn.down.push_back((at, wire));
        }
    }

    fn at_agent(&mut self, index: usize, wire: Wire) -> Result<(), String> {
        let id = self.conns[index].id;
        let Some(agent) = &mut self.agent else { return Ok(()) };
        if agent.transport != Transport::Open(id) {
            return Ok(());
        }
        let now = self.now;
        let upstream = &mut agent.upstream;
        let ended = match wire {
            Wire::Frame(frame) => {
                upstream.handle_input(Input::Received, now);
                match &frame {
                    Frame::Text(text) => upstream.handle_input(Input::Text(text), now),
                    Frame::Binary(bytes) => upstream.handle_input(Input::Binary(bytes), now),
                }
                None
            }
            Wire::Pong(counter) => {
                let payload = counter.map_or_else(String::new, |counter| counter.to_string());
                upstream.handle_input(Input::Received, now);
                upstream.handle_input(Input::Pong(payload.as_bytes()), now);
                None
            }
            Wire::Ping(_) => None,
            Wire::Close(code) => Some(Failure::from_close(code, "sim")),
            Wire::Reset => Some(Failure::new(Class::Reset, "reset")),
        };
        if let Some(failure) = ended {
            agent.transport = Transport::None;
            self.conns[index].agent_open = self.mutant == Some(Mutant::TwoSessions);
            agent.upstream.handle_input(Input::Failed(failure), now);
        }
        // What the core wants now comes before the next message, as in the reactor.
        self.perform()
    }

    // ------------------------------------------------------------ faults

    fn fault(&mut self) -> Result<(), String> {
        let f = self.faults;
        let weights = [
            f.reset,
            f.stall,
            f.half_open,
            f.refuse,
            f.kill,
            f.power_cut,
            f.server_crash,
            f.server_restore,
            f.image_restore,
        ];
        let total: u32 = weights.iter().sum();
        if total == 0 {
            return Ok(());
        }
        let mut draw = self.rng.u32(..total);
        let kind = weights.iter().position(|weight| {
            let hit = draw < *weight;
            draw = draw.saturating_sub(*weight);
            hit
        });
        match kind {
            Some(0) => self.reset(),
            Some(1) => self.conns.iter_mut().for_each(|conn| conn.stalled = true),
            Some(2) => self.half_open(),
            Some(3) => self.refuse_until = self.now + Duration::from_millis(self.rng.u64(100..2000)),
            Some(4) => self.kill(),
            Some(5) => self.power_cut(),
            Some(6) => self.server_crash(self.server.durable),
            Some(7) => {
                let len = below(&mut self.rng, self.server.durable + 1);
                self.server_crash(len);
            }
            Some(8) => self.image(),
            Some(_) | None => {}
        }
        Ok(())
    }

    fn reset(&mut self) {
        for index in 0..self.conns.len() {
            let id = self.conns[index].id;
            self.send_down(id, Wire::Reset);
            self.conns[index].server_open = false;
            self.server.disconnect(id);
        }
    }

    /// The agent's end dies; what is under way still reaches the server, which does not know.
    fn half_open(&mut self) {
        let now = self.now;
        if let Some(conn) = self.open_conn() {
            conn.agent_open = false;
            conn.down.clear();
        } else {
            return;
        }
        if let Some(agent) = &mut self.agent {
            agent.transport = Transport::None;
            agent.upstream.handle_input(Input::Failed(Failure::new(Class::Reset, "reset")), now);
        }
    }

    fn stop_agent(&mut self) -> Option<SimDisk> {
        let agent = self.agent.take()?;
        for conn in &mut self.conns {
            conn.agent_open = false;
            conn.down.clear();
        }
        self.restart_at = self.now + Duration::from_millis(self.rng.u64(1..500));
        Some(agent.outbox.into_disk())
    }

    fn kill(&mut self) {
        if let Some(mut disk) = self.stop_agent() {
            disk.kill();
            self.disk = Some(disk);
        }
    }

    fn power_cut(&mut self) {
        // In the middle of something, as often as not.
        if let Some(agent) = &mut self.agent {
            let calls = self.rng.u64(..6);
            let disk = agent.outbox.disk_mut();
            disk.cut_after = Some(disk.calls + calls);
        }
        if self.rng.bool() {
            self.put();
        }
        if let Some(mut disk) = self.stop_agent() {
            let mut rng = self.rng.fork();
            disk.power_cut(&mut rng, |rng| {
                pick(rng, &[Fate::Old, Fate::New, Fate::Zeros, Fate::Garbage, Fate::BitOff])
            });
            self.saved = None;
            self.disk = Some(disk);
        }
    }

    fn server_crash(&mut self, len: usize) {
        let durable = self.server.durable;
        let lost = self.server.crash(len);
        if len < durable {
            self.oracle.on_server_lost(&lost);
        }
        self.sync_at = None;
        for conn in &mut self.conns {
            conn.server_open = false;
        }
        for index in 0..self.conns.len() {
            let id = self.conns[index].id;
            self.send_down(id, Wire::Reset);
        }
    }

    /// The first time a copy of the flash is taken; the second time it is put back, as from a golden image.
    fn image(&mut self) {
        match self.image.take() {
            None => {
                if let Some(agent) = &mut self.agent {
                    self.image = Some((SimDisk::from_image(agent.outbox.disk_mut().image()), self.puts as usize));
                }
            }
            Some((disk, puts)) => {
                if self.stop_agent().is_some() {
                    self.disk = Some(disk);
                    // What was put since the image was taken went with the other disk.
                    for (text, fact) in &mut self.oracle.facts {
                        let number: usize = text.trim_start_matches('x').parse().unwrap_or(0);
                        fact.lost_by_restore |= number > puts;
                    }
                }
            }
        }
    }
}

fn swap_bodies(items: &mut [Item]) {
    if let [Item::Record(a), Item::Record(b), ..] = items {
        std::mem::swap(&mut a.body, &mut b.body);
    }
}
