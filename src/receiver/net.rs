//! The receiver's loop: one thread, mio, a bounded piece of work a turn.
//!
//! A turn: visit the connections that are ready and put what they brought into one transaction; fence the older
//! connections of each device that said `hello`; commit; only then ack and welcome. So one sync of the disk serves all
//! sessions, an ack never runs ahead of the disk, and never lags a second behind it: a turn is bounded by time, and
//! commits whatever it got. The rules of a session are in [`super::session`], the tables in [`super::store`].

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};
use native_tls::TlsAcceptor;
use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::{flag, low_level};
use socket2::SockRef;

use crate::dialect::message::ServerMessage;
use crate::shell::clock;
use crate::shell::http::Request;
use crate::time::Instant;

use super::connection::Connection;
use super::door::{Counts, Door, Entry, Rate};
use super::meter::Meter;
use super::page::{self, Page};
use super::peer::{Peer, Place, Turn, Visit};
use super::restart::Restart;
use super::session::{Close, Greeting, Introduction, Session};
use super::store::{Store, StoreError};
use super::upgrade::Gate;

/// How often a session is pinged unless the command line says otherwise: shorter than the 30 s after which the
/// meanest carrier NATs forget a quiet connection.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);
/// From the accept to `hello`; a far end that takes longer holds a descriptor for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for those that are told to come back: they hold places that others could be told at.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// From our close frame to the far end's.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// From the signal to the exit.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two lines on a herd that is turned away, at least.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// After an accept that failed for want of something (descriptors, memory).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Reading stops and the turn commits after so long; a fifth of the second that an ack may take.
const TURN_MAX: Duration = Duration::from_millis(200);
/// How often it is looked whether another process has put commands into the store.
const COMMANDS_INTERVAL: Duration = Duration::from_secs(1);
/// Of a turn, for those that are told to come back.
const REFUSALS_TURN_MAX: Duration = Duration::from_millis(20);
/// New connections a turn.
const ACCEPTS_PER_TURN_MAX: usize = 128;
/// Descriptors kept back for the store, the log and the loop itself.
const DESCRIPTORS_RESERVED: u64 = 64;
/// Connections where the system sets no limit to descriptors.
const CONNECTIONS_MAX: u64 = 1 << 20;

const LISTENER: usize = 0;
const SIGNALS: usize = 1;
const PAGE: usize = 2;
const FIRST_PEER: usize = 3;

/// What the command line decides.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often a session is pinged.
    pub ping_interval: Duration,
    /// Random: tells the sessions of this run from those of another.
    pub run: u32,
    /// How many may come in; `None`: all.
    pub accept: Option<Rate>,
    /// How it sends its sessions away.
    pub restart: Restart,
    /// A line on stderr, once a second while something changes.
    pub watch: bool,
}

/// The receiver, bound and ready to run.
pub struct Server {
    poll: Poll,
    listener: TcpListener,
    local_addr: SocketAddr,
    /// A byte for each signal.
    signals: UnixStream,
    /// One of them was SIGINT.
    interrupted: Arc<AtomicBool>,
    tls: Option<TlsAcceptor>,
    gate: Gate,
    door: Door,
    /// What was counted when the log was last told of it.
    reported: (Instant, Counts),
    meter: Meter,
    /// When who watches is told next; `None`: when something changes.
    watch_at: Option<Instant>,
    page: Option<Page>,
    store: Store,
    settings: Settings,
    peers: HashMap<usize, Peer>,
    peers_max: usize,
    /// Never used twice, so that an event of a connection that is gone finds nobody.
    next_peer: usize,
    /// Sessions greeted so far.
    sessions: u64,
    /// The newest session of each device.
    newest: HashMap<String, usize>,
    /// To be visited; each peer once.
    ready: VecDeque<usize>,
    /// The same of those that are told to come back: they are visited when the others have been.
    ready_refused: VecDeque<usize>,
    /// One for each peer; and one for the listener while it pauses.
    deadlines: BTreeSet<(Instant, usize)>,
    /// The listener may have more.
    accepting: bool,
    /// When it is looked for new commands, while there are sessions.
    commands_at: Instant,
    /// Set by a signal: leave by then.
    leave_by: Option<Instant>,
    turn: Turn,
}

impl Server {
    /// Listens and takes SIGTERM, SIGUSR1 and SIGINT; raises the limit of descriptors to what the system allows.
    pub fn try_new(
        mut listener: TcpListener,
        tls: Option<TlsAcceptor>,
        gate: Gate,
        store: Store,
        page: Option<TcpListener>,
        settings: Settings,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, Token(LISTENER), Interest::READABLE)?;
        let (receive, send) = std::os::unix::net::UnixStream::pair()?;
        receive.set_nonblocking(true)?;
        let interrupted = Arc::new(AtomicBool::new(false));
        // The flag first: it is set when the byte is there.
        flag::register(SIGINT, Arc::clone(&interrupted))?;
        for signal in [SIGTERM, SIGUSR1, SIGINT] {
            low_level::pipe::register(signal, send.try_clone()?)?;
        }
        let mut signals = UnixStream::from_std(receive);
        poll.registry().register(&mut signals, Token(SIGNALS), Interest::READABLE)?;
        let (peers_max, now) = (connections_max(), clock::now());
        let page = page.map(|listener| Page::try_new(listener, poll.registry(), Token(PAGE))).transpose()?;
        Ok(Self {
            poll,
            local_addr: listener.local_addr()?,
            listener,
            signals,
            interrupted,
            door: Door::new(settings.accept, tls.is_some(), peers_max, now),
            reported: (now, Counts::default()),
            meter: Meter::new(store.devices().unwrap_or_default(), now),
            watch_at: None,
            page,
            tls,
            gate,
            store,
            settings,
            peers: HashMap::new(),
            peers_max,
            next_peer: FIRST_PEER,
            sessions: 0,
            newest: HashMap::new(),
            ready: VecDeque::new(),
            ready_refused: VecDeque::new(),
            deadlines: BTreeSet::new(),
            accepting: true,
            commands_at: now,
            leave_by: None,
            turn: Turn::default(),
        })
    }

    /// Where it listens; the port is the real one.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where the page is, if there is one.
    pub fn page_addr(&self) -> Option<SocketAddr> {
        self.page.as_ref().map(Page::local_addr)
    }

    /// Runs until a signal; then everything taken is committed and every session told.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        log::info!(target: "receiver", "listening address={} connections_max={}", self.local_addr, self.peers_max);
        while self.leave_by.is_none_or(|leave_by| !self.peers.is_empty() && clock::now() < leave_by) {
            self.wait(&mut events)?;
            self.turn.now_ms = clock::wall_ms();
            let now = clock::now();
            self.accept(now);
            self.report(now);
            let settled =
                self.visit_ready(now).and_then(|()| self.look_for_commands(now)).and_then(|()| self.settle(now));
            if let Err(error) = settled {
                self.on_store_error(&error, now);
            }
            self.handle_deadlines(clock::now());
            self.show(clock::now());
        }
        let Counts { attempts, refused, dropped } = self.door.counts();
        log::info!(
            target: "receiver",
            "leaving sessions={} attempts={attempts} refused={refused} dropped={dropped}", self.sessions
        );
        Ok(())
    }

    /// Waits until there is something to do, and notes for whom.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let more = !self.ready.is_empty()
            || !self.ready_refused.is_empty()
            || self.page.as_ref().is_some_and(Page::has_work)
            || (self.accepting && self.peers.len() < self.peers_max);
        let next = self.deadlines.first().map(|(deadline, _)| *deadline);
        let page = self.page.as_ref().and_then(Page::deadline);
        let commands = (!self.newest.is_empty()).then_some(self.commands_at);
        let wake = [next, self.leave_by, page, self.watch_at, commands].into_iter().flatten().min();
        let timeout = if more { Some(Duration::ZERO) } else { wake.map(|wake| wake.since(clock::now())) };
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        for event in events.iter() {
            match event.token() {
                Token(LISTENER) => self.accepting = self.leave_by.is_none(),
                Token(SIGNALS) => self.on_signal(clock::now()),
                Token(PAGE) => self.page.iter_mut().for_each(Page::handle_listener_ready),
                Token(id) => {
                    self.queue(id);
                    self.page.iter_mut().for_each(|page| page.handle_ready(id));
                }
            }
        }
        Ok(())
    }

    fn queue(&mut self, id: usize) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !peer.queued
        {
            peer.queued = true;
            match peer.place {
                Place::Reserved | Place::Used => self.ready.push_back(id),
                Place::Refused => self.ready_refused.push_back(id),
            }
        }
    }

    fn on_signal(&mut self, now: Instant) {
        let mut bytes = [0; 16];
        while matches!(self.signals.read(&mut bytes), Ok(count) if count > 0) {}
        if self.leave_by.is_some() {
            return;
        }
        self.accepting = false;
        // Between two turns all that was taken is committed and acked.
        let mut peers: Vec<usize> = self.peers.keys().copied().collect();
        peers.sort_unstable();
        if self.interrupted.load(Ordering::Relaxed) {
            log::info!(target: "receiver", "interrupted sessions={}", self.newest.len());
        } else {
            self.send_slots(&peers);
        }
        for id in peers {
            self.close(id, &Close::new(1001, "the receiver leaves"), now);
        }
        // To tell a big fleet takes a while itself.
        self.leave_by = Some(clock::now() + LEAVE_TIMEOUT);
    }

    /// Each session, in the order in which they came, learns when to come back.
    fn send_slots(&mut self, peers: &[usize]) {
        let is_up =
            |id: &usize| self.peers.get(id).is_some_and(|peer| peer.session.as_ref().is_some_and(Session::is_up));
        let sessions: Vec<usize> = peers.iter().copied().filter(is_up).collect();
        log::info!(target: "receiver", "told to leave sessions={}", sessions.len());
        for (id, after_ms) in sessions.iter().zip(self.settings.restart.slots_ms(sessions.len())) {
            let retry = ServerMessage::Retry { after_ms, spread_ms: 0, endpoint: None };
            if let Some(Err(why)) = self.peers.get_mut(id).map(|peer| peer.send(&retry)) {
                self.remove(*id, &why);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            // Where the table is full, who comes waits in the kernel's queue.
            if !self.accepting || self.peers.len() >= self.peers_max {
                return;
            }
            match self.listener.accept() {
                Ok((socket, address)) => self.admit(socket, address, now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.accepting = false,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    log::warn!(target: "receiver", "cannot accept error={error}");
                    self.accepting = false;
                    self.deadlines.insert((now + ACCEPT_PAUSE, LISTENER));
                }
            }
        }
    }

    fn admit(&mut self, mut socket: TcpStream, address: SocketAddr, now: Instant) {
        let (turned_away, place, timeout) = match self.door.handle_knock(now) {
            Entry::Come => (None, Place::Reserved, HANDSHAKE_TIMEOUT),
            Entry::Wait(word) => (Some(word), Place::Refused, REFUSAL_TIMEOUT),
            Entry::Drop => {
                // Reset, so that nothing of it stays; where that fails it is closed, no more.
                let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                return;
            }
        };
        let id = self.next_peer;
        self.next_peer += 1;
        // Both interests, once and for life: every stage is driven by whatever becomes ready.
        let interest = Interest::READABLE | Interest::WRITABLE;
        let watched = self.poll.registry().register(&mut socket, Token(id), interest);
        // Acks are small and someone waits for them; where it fails they are merely later.
        let _ = socket.set_nodelay(true);
        log::debug!(target: "receiver", "accepted peer={id} address={address}");
        let deadline = now + timeout;
        let connection = Connection::new(socket, self.tls.as_ref(), turned_away);
        self.peers.insert(id, Peer::new(connection, address, place, deadline));
        self.deadlines.insert((deadline, id));
        match watched {
            Ok(()) => self.queue(id),
            Err(error) => {
                log::warn!(target: "receiver", "cannot watch address={address} error={error}");
                self.remove(id, "it cannot be watched");
            }
        }
    }

    /// Tells who looks: on the page, or on stderr.
    fn show(&mut self, now: Instant) {
        let counts = self.door.counts();
        let changed = self.meter.handle_counts(counts, self.newest.len(), now);
        let (meter, queue_ms) = (&mut self.meter, self.door.queue_ms(now));
        if let Some(page) = &mut self.page {
            let accept_rate = self.settings.accept.map(|accept| accept.rate);
            let reply = |asked: Request<'_>| page::reply(asked, || meter.json(accept_rate, queue_ms, now));
            page.handle_turn(self.poll.registry(), &mut self.next_peer, now, reply);
        }
        if !self.settings.watch {
            return;
        }
        if self.watch_at.is_some_and(|at| at <= now) {
            let glance = meter.glance(queue_ms, now);
            // Where stderr is gone nobody watches.
            let _ = writeln!(io::stderr(), "{glance}");
            self.watch_at = (!glance.is_quiet()).then_some(meter.glance_at());
        }
        if changed && self.watch_at.is_none() {
            self.watch_at = Some(meter.glance_at());
        }
    }

    /// Tells the log of a herd, once a second at most.
    fn report(&mut self, now: Instant) {
        let (at, before) = self.reported;
        let counts = self.door.counts();
        if (counts.refused, counts.dropped) == (before.refused, before.dropped) || now.since(at) < REPORT_INTERVAL {
            return;
        }
        self.reported = (now, counts);
        log::info!(
            target: "receiver",
            "over the rate refused={} dropped={} queue_ms={} sessions={}",
            counts.refused - before.refused, counts.dropped - before.dropped, self.door.queue_ms(now), self.newest.len()
        );
    }

    /// Visits each peer that was ready when the turn began, as far as time allows; those that are told to come back
    /// get the rest of it, so that a herd at the door costs the sessions no more than a moment.
    fn visit_ready(&mut self, now: Instant) -> Result<(), StoreError> {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            self.visit(id, now)?;
            if clock::now().since(now) >= TURN_MAX {
                break;
            }
        }
        let begun = clock::now();
        for _ in 0..self.ready_refused.len() {
            let Some(id) = self.ready_refused.pop_front() else { break };
            self.visit(id, now)?;
            if clock::now().since(begun) >= REFUSALS_TURN_MAX {
                break;
            }
        }
        Ok(())
    }

    fn visit(&mut self, id: usize, now: Instant) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        peer.queued = false;
        match peer.visit(id, &self.gate, &mut self.store, &mut self.turn) {
            Visit::Blocked => {}
            Visit::More => self.queue(id),
            Visit::Refused => {
                if peer.place == Place::Reserved {
                    peer.place = Place::Used;
                    // Over TLS the handshake is what the rate is for, and that is spent.
                    if self.tls.is_none() {
                        self.door.handle_stranger();
                    }
                }
                self.set_deadline(id, now + CLOSE_TIMEOUT);
                self.queue(id);
            }
            Visit::Left => {
                if peer.place == Place::Reserved {
                    self.door.handle_stranger();
                }
                self.remove(id, "it left without a word");
            }
            Visit::Close(close) => self.close(id, &close, now),
            Visit::Ended(why) => self.remove(id, &why),
            Visit::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// The second half of a turn: fence, commit, and only then answer (rules 2 and 4).
    fn settle(&mut self, now: Instant) -> Result<(), StoreError> {
        let greetings = std::mem::take(&mut self.turn.greetings);
        for (id, introduction) in &greetings {
            self.fence_older(*id, introduction, now);
            if let Some(done) = introduction.commands.filter(|done| done.stream == self.store.command_stream()) {
                self.store.put_hello_done(&introduction.device, done.seq, self.turn.now_ms)?;
            }
        }
        self.store.commit()?;
        for id in std::mem::take(&mut self.turn.taken) {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if let Err(why) = peer.send_acks() {
                self.remove(id, &why);
            }
        }
        for (id, introduction) in greetings {
            self.greet(id, introduction, now)?;
            self.turn.commands.push(id);
        }
        for id in std::mem::take(&mut self.turn.commands) {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if let Err(why) = peer.send_commands(&self.store)? {
                self.remove(id, &why);
            }
        }
        Ok(())
    }

    /// Whoever has a session is sent what another process has put into the store.
    fn look_for_commands(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.newest.is_empty() || now < self.commands_at {
            return Ok(());
        }
        self.commands_at = now + COMMANDS_INTERVAL;
        if self.store.has_changed()? {
            let devices = self.store.devices_with_commands()?;
            self.turn.commands.extend(devices.iter().filter_map(|device| self.newest.get(device)));
        }
        Ok(())
    }

    /// The newest connection of a device wins; of the older ones nothing more is taken.
    fn fence_older(&mut self, id: usize, introduction: &Introduction, now: Instant) {
        let alive = self.peers.get(&id).is_some_and(|peer| peer.session.is_some());
        if !alive {
            return;
        }
        if let Some(older) = self.newest.insert(introduction.device.clone(), id) {
            let close = Close { code: 4009, reason: introduction.boot.clone().into() };
            self.close(older, &close, now);
        }
    }

    fn greet(&mut self, id: usize, introduction: Introduction, now: Instant) -> Result<(), StoreError> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        let Some(session) = &mut peer.session else { return Ok(()) };
        let Introduction { device, agent, boot, last, lanes, commands: _ } = introduction;
        let lanes_len = lanes.len();
        let acked = self.store.acked(&device, lanes)?;
        let name = format!("{:08x}-{}", self.settings.run, self.sessions + 1);
        let greeting =
            Greeting { session: name.clone(), now_ms: self.turn.now_ms, command_stream: self.store.command_stream() };
        let Some(welcome) = session.greet(acked, greeting) else { return Ok(()) };
        self.sessions += 1;
        peer.name = name;
        peer.bytes_read = peer.connection.bytes_read();
        log::info!(
            target: "receiver",
            "session up session={} device={device:?} boot={boot:?} agent={agent:?} encoding={} lanes={lanes_len} \
             last={last:?} address={}",
            peer.name, session.encoding().token(), peer.address
        );
        match peer.send(&welcome).and_then(|()| peer.connection.flush()) {
            Ok(()) => self.set_deadline(id, now + self.settings.ping_interval),
            Err(why) => self.remove(id, &why),
        }
        Ok(())
    }

    /// Nothing more is taken from this peer; it is told why, and has a moment to hear it.
    fn close(&mut self, id: usize, close: &Close, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Some(mut session) = peer.session.take() {
            session.fence();
            let Close { code, reason } = close;
            let (name, device, address) = (&peer.name, &peer.device, peer.address);
            log::info!(
                target: "receiver",
                "session ends session={name:?} device={device:?} address={address} code={code} reason={reason:?}"
            );
        }
        peer.connection.close(close);
        if self.newest.get(&peer.device) == Some(&id) {
            self.newest.remove(&peer.device);
        }
        self.set_deadline(id, now + CLOSE_TIMEOUT);
        self.queue(id);
    }

    fn remove(&mut self, id: usize, why: &str) {
        let Some(peer) = self.peers.remove(&id) else { return };
        self.deadlines.remove(&(peer.deadline, id));
        match peer.place {
            Place::Refused => self.door.handle_refused_gone(),
            // Never given back here: a loop too slow for its rate would let in the more the more of them time out.
            Place::Reserved | Place::Used => {}
        }
        if self.newest.get(&peer.device) == Some(&id) {
            self.newest.remove(&peer.device);
        }
        let Peer { name, device, address, .. } = &peer;
        if peer.session.as_ref().is_some_and(Session::is_up) {
            log::info!(target: "receiver", "session gone session={name} device={device:?} address={address} why={why:?}");
        } else {
            log::debug!(target: "receiver", "gone peer={id} address={address} why={why:?}");
        }
    }

    /// What was taken in this turn is discarded, so every session must begin anew from what is stored.
    fn on_store_error(&mut self, error: &StoreError, now: Instant) {
        log::error!(target: "receiver", "cannot store error={error}");
        self.store.rollback();
        self.turn.greetings.clear();
        self.turn.taken.clear();
        self.turn.commands.clear();
        let peers: Vec<usize> =
            self.peers.iter().filter(|(_, peer)| peer.session.is_some()).map(|(id, _)| *id).collect();
        for id in peers {
            self.close(id, &Close::new(1011, "the store failed"), now);
        }
    }

    fn set_deadline(&mut self, id: usize, deadline: Instant) {
        if let Some(peer) = self.peers.get_mut(&id) {
            self.deadlines.remove(&(peer.deadline, id));
            self.deadlines.insert((deadline, id));
            peer.deadline = deadline;
        }
    }

    fn handle_deadlines(&mut self, now: Instant) {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            if id == LISTENER {
                self.deadlines.remove(&(deadline, id));
                self.accepting = self.leave_by.is_none();
                continue;
            }
            let Some(peer) = self.peers.get_mut(&id) else {
                self.deadlines.remove(&(deadline, id));
                continue;
            };
            if !peer.session.as_ref().is_some_and(Session::is_up) {
                let why = format!("too slow while {}", peer.connection.stage());
                self.remove(id, &why);
                continue;
            }
            match peer.ping() {
                Ok(()) => self.set_deadline(id, now + self.settings.ping_interval),
                Err(why) => self.remove(id, &why),
            }
        }
    }
}

/// As many as the process may have descriptors, after asking for all that the system gives.
fn connections_max() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it is refused the old limit holds.
    let _ = setrlimit(Resource::Nofile, limit);
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(CONNECTIONS_MAX);
    let connections = descriptors.saturating_sub(DESCRIPTORS_RESERVED).clamp(1, CONNECTIONS_MAX);
    usize::try_from(connections).unwrap_or(usize::MAX)
}
