//! The uplink thread: one mio reactor that performs what the core's [`Upstream`] decides. Owns the transport, the way
//! to it (`dialing`) and the thread's side of the ports; never touches flash, never resolves names, never blocks but in its
//! one poll.

mod dialing;
mod elsewhere;
mod expiry;
mod keeping;

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, mem};

use log::{debug, info, trace, warn};
use mio::{Events, Poll, Token, Waker};

use super::board::Board;
use super::clock;
use super::netlink::{News, Watch};
use super::port::{ForOutbox, ForUplink, Port, Refusal};
use super::prepare::ADDRESSES_MAX;
use super::remedy::{Run, Runner};
use super::saved;
use super::transport::{BUFFERS_BYTES_MAX, Handshake, Incoming, Location, Meter, Open, Progress, Reach};
use crate::config::proxy::{Environment, proxy_for};
use crate::config::target::Target;
use crate::config::{self, Encoding, Endpoint, Heartbeat, Remedy};
use crate::dialect::Purpose;
use crate::dialect::message::SERVER_MESSAGE_BYTES_MAX;
use crate::link::{self, Class, DETAIL_BYTES_MAX, Failure};
use crate::record::{Fetch, Item, Seq};
use crate::status;
use crate::upstream::{self, Input, Output, Upstream};
use dialing::{Dialing, Race};
use elsewhere::EndpointsFile;
use expiry::Expiry;
use keeping::Keeping;

const WAKE: Token = Token(0);
const UPSTREAM: Token = Token(1);
const SOURCES: Token = Token(2);
const NETWORK: Token = Token(usize::MAX - 1);
const CLOCK: Token = Token(usize::MAX);

/// Messages taken in one turn of the loop, at most: pings, timers and the outbox get their turn between them.
const MESSAGES_PER_TURN_MAX: usize = 64;

const _: () = assert!(ADDRESSES_MAX <= u8::MAX as usize, "addresses are counted in a byte");

/// What the agent wants to be told.
pub type Hook = Arc<dyn Fn() + Send + Sync>;

/// What the uplink is made of.
#[derive(Clone)]
pub struct Setup {
    /// For the core. `endpoints` are the URLs of `endpoints` below, in the same order; `saved` and `fresh_boot` give
    /// way to what the backoff file says.
    pub upstream: upstream::Setup,
    /// In order of preference; [`Setup::set_endpoints`] changes them.
    pub endpoints: Vec<Endpoint>,
    /// Where others are, which stand in for them.
    pub endpoints_file: Option<PathBuf>,
    /// What to run where nothing else helps.
    pub remedies: Vec<Remedy>,
    /// Runs it, one after the other in the whole process.
    pub runner: Arc<Runner>,
    /// Offered in this order.
    pub encodings: Vec<Encoding>,
    /// A lane lets live records go ahead of its backlog: the outbox is asked what to offer before a session begins.
    pub live: bool,
    /// Hosts reached without the proxy.
    pub no_proxy: Vec<String>,
    /// How long a program may take that prints a credential.
    pub credential_timeout: Duration,
    /// When a silent connection is dead, for the kernel too.
    pub heartbeat: Heartbeat,
    /// Where the backoff is kept: `backoff` in the local socket's folder.
    pub backoff_file: PathBuf,
    /// Where the bytes of the day are kept, beside it. `upstream.cap` gives way to what it says.
    pub day_file: PathBuf,
    /// Where it is kept on flash, for the time after a reboot.
    pub flash_file: PathBuf,
    /// Called in each turn of the loop: a sign of life for the watchdog. Waking the port makes a turn.
    pub watchdog: Hook,
    /// Called after [`Board::link`] has changed.
    pub link_changed: Hook,
    /// Called with kind and detail of what is worth a record on topic `$event`.
    pub event: crate::shell::EventHook,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("upstream", &self.upstream).field("endpoints", &self.endpoints).finish()
    }
}

impl Setup {
    /// Other endpoints, wherever they are named.
    pub fn set_endpoints(&mut self, endpoints: Vec<Endpoint>) {
        let tls = |endpoint: &Endpoint| Target::try_new(&endpoint.url).is_ok_and(|target| target.tls);
        let urls: Vec<_> = endpoints.iter().map(|endpoint| endpoint.url.clone()).collect();
        Arc::make_mut(&mut self.upstream.link).endpoints_tls = endpoints.iter().map(tls).collect();
        Arc::make_mut(&mut self.upstream.dialect).endpoint_urls.clone_from(&urls);
        self.upstream.endpoints = urls;
        self.endpoints = endpoints;
    }
}

/// Why [`Uplink::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop.
    Stopped,
    /// `attempts_max` is reached.
    GaveUp,
}

/// Of a record in the window, beside topic and body: as an item, in a frame, or as a refusal that the outbox has not
/// taken yet.
const RECORD_BYTES: usize = 384;
const _: () = assert!(size_of::<Item>() + 128 <= RECORD_BYTES && DETAIL_BYTES_MAX + 128 <= RECORD_BYTES);

/// Most bytes that the uplink's buffers hold. A record larger than the window goes alone.
pub fn memory_bytes_max(config: &config::Upstream, record_bytes_max: u32) -> u64 {
    // JSON writes a control character as six (`\u0001`), postcard whatever it is as it is.
    let expansion = if config.encodings.contains(&Encoding::Json) { 6 } else { 1 };
    let window = u64::from(config.window_bytes.max(record_bytes_max)) * expansion
        + u64::from(config.window_records) * RECORD_BYTES as u64;
    // While it is encoded: its buffer doubles, and where the server takes less its halves stand beside it.
    let batch = 4 * u64::from(config.batch_bytes_max.max(record_bytes_max)) * expansion;
    window + batch + (BUFFERS_BYTES_MAX + SERVER_MESSAGE_BYTES_MAX) as u64
}

/// The uplink, not yet running.
pub struct Uplink {
    poll: Poll,
    waker: Arc<Waker>,
    port: Arc<Port<ForUplink>>,
    reaches: Vec<Arc<Reach>>,
    elsewhere: Option<EndpointsFile>,
    keeping: Keeping,
    setup: Setup,
}

impl Uplink {
    /// Makes the reactor. Fails where the system has no more descriptors, and for a URL that is none.
    pub fn try_new(mut setup: Setup) -> io::Result<Self> {
        if setup.endpoints.is_empty() || setup.endpoints.len() != setup.upstream.link.endpoints_tls.len() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "as many endpoints as the link knows, and at least one",
            ));
        }
        let mut elsewhere = setup.endpoints_file.as_deref().map(EndpointsFile::new);
        if let Some(endpoints) = elsewhere.as_mut().and_then(EndpointsFile::look) {
            setup.set_endpoints(endpoints);
        }
        let reaches = setup.endpoints.iter().map(|endpoint| reach(endpoint, &setup)).collect::<io::Result<_>>()?;
        let (keeping, found) = Keeping::begin(&setup);
        if let Some((saved, this_boot)) = found {
            setup.upstream.saved = Some(saved);
            setup.upstream.fresh_boot = !this_boot;
        }
        if let Some((day, true)) = saved::read(&setup.day_file) {
            setup.upstream.cap = setup.upstream.cap.with(day);
        }
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let port = Port::with_wake(wake(&waker));
        Ok(Self { poll, waker, port: Arc::new(port), reaches, elsewhere, keeping, setup })
    }

    /// Where the other threads leave what is for this one.
    pub fn port(&self) -> Arc<Port<ForUplink>> {
        Arc::clone(&self.port)
    }

    /// Runs until told to stop, on the calling thread. The first attempt waits for the first offers.
    pub fn run(self, outbox: Arc<Port<ForOutbox>>, board: Arc<Board>) -> Exit {
        let Self { poll, waker, port, reaches, elsewhere, keeping, setup } = self;
        let mut network = Watch::new(poll.registry(), NETWORK);
        network.set_places(reaches.iter().map(|reach| place(reach)), clock::now());
        let clock_watch = clock::Watch::try_new(poll.registry(), CLOCK);
        let mut reactor = Reactor {
            network,
            clock_watch: clock_watch
                .inspect_err(|error| warn!(target: "uplink", "clock not watched error={error}"))
                .ok(),
            poll,
            upstream: Upstream::new(setup.upstream.clone(), clock::now()),
            dialing: Dialing::new(|| wake(&waker), reaches.len()),
            expiry: Expiry::default(),
            reaches,
            elsewhere,
            keeping,
            endpoint: 0,
            transport: Transport::None,
            upgraded: None,
            ready: false,
            offered: false,
            meter: Rc::new(Meter::default()),
            wire: status::Wire::default(),
            counted: 0,
            commands: 0,
            view_is_stale: true,
            was_up: false,
            exit: None,
            port,
            outbox,
            board,
            setup,
        };
        let mut events = Events::with_capacity(8);
        loop {
            if let Some(exit) = reactor.turn() {
                return exit;
            }
            reactor.wait(&mut events);
        }
    }
}

fn reach(endpoint: &Endpoint, setup: &Setup) -> io::Result<Arc<Reach>> {
    let fault = |error| io::Error::new(ErrorKind::InvalidInput, format!("endpoint {}: {error}", endpoint.url));
    let Heartbeat { interval_ms, timeout_ms, misses_max, .. } = setup.heartbeat;
    let silence_ms = timeout_ms.saturating_mul(misses_max.into()).saturating_add(interval_ms);
    let target = Target::try_new(&endpoint.url).map_err(fault)?;
    let environment = Environment::read(|name| std::env::var(name).ok());
    Ok(Arc::new(Reach {
        proxy: proxy_for(endpoint, &target, &setup.no_proxy, &environment),
        target,
        endpoint: endpoint.clone(),
        encodings: setup.encodings.clone(),
        agent: setup.upstream.agent.clone(),
        silence: Duration::from_millis(silence_ms),
        credential_timeout: setup.credential_timeout,
    }))
}

/// What the network's watch has to know of an endpoint.
fn place(reach: &Reach) -> (Option<&str>, &str, u16) {
    let interface = Some(reach.endpoint.interface.as_str()).filter(|name| !name.is_empty());
    // A proxy that cannot be told is nowhere to be reached, which the attempt will say.
    let (host, port) = reach.first_hop().unwrap_or((&reach.target.host, reach.target.port));
    (interface, host, port)
}

fn wake(waker: &Arc<Waker>) -> impl Fn() + Send + Sync + 'static {
    let waker = Arc::clone(waker);
    // It can only fail for want of kernel memory; the next one to wake tries again.
    move || drop(waker.wake())
}

/// The present connection.
#[derive(Default)]
enum Transport {
    #[default]
    None,
    Handshake(Box<Handshake>),
    Open(Box<Open>),
}

struct Reactor {
    poll: Poll,
    network: Watch,
    clock_watch: Option<clock::Watch>,
    upstream: Upstream,
    dialing: Dialing,
    expiry: Expiry,
    /// The endpoints, and which of them was resolved last.
    reaches: Vec<Arc<Reach>>,
    endpoint: usize,
    elsewhere: Option<EndpointsFile>,
    keeping: Keeping,
    transport: Transport,
    /// The upgrade is through, and the core hears of it when the outbox has prepared what to offer.
    upgraded: Option<Option<Encoding>>,
    /// The socket may have something for us, or take something.
    ready: bool,
    /// The outbox has said what it holds. A `hello` before that would name nothing, and the session end at once.
    offered: bool,
    meter: Rc<Meter>,
    /// As pinned last.
    wire: status::Wire,
    /// All bytes, as told last.
    counted: u64,
    /// Commands received since the start.
    commands: u64,
    view_is_stale: bool,
    was_up: bool,
    exit: Option<Exit>,
    port: Arc<Port<ForUplink>>,
    outbox: Arc<Port<ForOutbox>>,
    board: Arc<Board>,
    setup: Setup,
}

impl Reactor {
    /// Does whatever can be done now.
    fn turn(&mut self) -> Option<Exit> {
        (self.setup.watchdog)();
        self.take_answers();
        self.take_from_port();
        if let Some(News { usable, changed }) = self.network.look(clock::now()) {
            self.tell(Input::Network { usable, changed });
        }
        if mem::take(&mut self.ready) {
            self.drive();
        }
        // Only now: a pong that lies in the socket already is in time, however late this thread is.
        if self.offered {
            self.look_elsewhere();
            self.upstream.handle_timeout(clock::now());
            self.perform();
        }
        self.flush();
        self.count();
        self.publish();
        self.exit
    }

    /// Sleeps until something happens or is due.
    fn wait(&mut self, events: &mut Events) {
        let deadline = self.upstream.poll_timeout().filter(|_| self.offered).map(|(at, _)| at);
        let deadline = deadline.into_iter().chain(self.network.poll_timeout()).min();
        let timeout = if self.ready { Some(Duration::ZERO) } else { deadline.map(|at| at.since(clock::now())) };
        if let Err(error) = self.poll.poll(events, timeout) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "our own epoll: {error}");
            return;
        }
        for event in events.iter() {
            match event.token() {
                NETWORK => self.network.on_ready(clock::now()),
                CLOCK => self.on_clock(),
                SOURCES => self.on_sources(),
                token => self.ready |= token == UPSTREAM,
            }
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        self.upstream.handle_input(input, clock::now());
        self.perform();
    }

    fn fail(&mut self, failure: Failure) {
        self.drop_transport(None);
        self.tell(Input::Failed(failure));
    }

    // What comes in.

    fn on_clock(&mut self) {
        if self.clock_watch.as_mut().is_some_and(clock::Watch::on_ready) {
            info!(target: "uplink", "the clock is set");
            self.tell(Input::ClockSet);
        }
        self.view_is_stale = true;
    }

    fn on_sources(&mut self) {
        if self.dialing.have_sources_changed() {
            self.tell(Input::SourcesChanged);
        }
    }

    fn take_answers(&mut self) {
        match self.dialing.take_answer(self.endpoint) {
            None => {}
            Some(Input::Failed(failure)) => self.fail(failure),
            Some(input) => {
                self.expiry.set_client(self.dialing.client());
                self.network.learn(self.endpoint, self.dialing.addresses(), clock::now());
                self.tell(input);
            }
        }
        if let Some((endpoint, ok)) = self.dialing.take_probed() {
            self.tell(Input::Probed { endpoint, ok });
        }
    }

    fn take_from_port(&mut self) {
        let (offers, items, prepared, setup, sources_changed, stop) = {
            let mut port = self.port.lock();
            let changed = mem::take(&mut port.offers_changed);
            let offers = changed.then(|| port.offers.clone());
            let prepared = mem::take(&mut port.offers_prepared);
            let (setup, sources_changed) = (port.setup.take(), mem::take(&mut port.sources_changed));
            (offers, mem::take(&mut port.items), prepared, setup, sources_changed, port.stop)
        };
        if stop {
            self.tell(Input::Stop);
            self.exit = Some(Exit::Stopped);
            return;
        }
        if let Some(setup) = setup {
            self.take_up(*setup);
        }
        if sources_changed {
            self.tell(Input::SourcesChanged);
        }
        for (fetch, items) in items {
            self.tell(Input::Items(&fetch, items));
        }
        if let Some(encoding) = self.upgraded.take_if(|_| prepared) {
            self.begin_session(encoding);
        }
        if let Some(offers) = offers {
            self.offered = true;
            self.tell(Input::Offers(&offers));
        }
    }

    /// Before an attempt: are there other endpoints?
    fn look_elsewhere(&mut self) {
        let due = self.upstream.poll_timeout().filter(|(at, _)| *at <= clock::now()).map(|(_, timer)| timer);
        let attempt = matches!(due, Some(upstream::Timer::Link(link::Timer::Retry | link::Timer::StartDelay)));
        let Some(elsewhere) = self.elsewhere.as_mut().filter(|_| attempt) else { return };
        if let Some(endpoints) = elsewhere.look() {
            let mut setup = self.setup.clone();
            setup.set_endpoints(endpoints);
            self.reconfigure(setup);
        }
    }

    /// A reload. What `endpoints_file` says stands in for what the configuration says; where it says nothing good,
    /// what it said last.
    fn take_up(&mut self, mut setup: Setup) {
        let same_file = setup.endpoints_file == self.setup.endpoints_file;
        if !same_file {
            self.elsewhere = setup.endpoints_file.as_deref().map(EndpointsFile::new);
        }
        match self.elsewhere.as_mut().map(EndpointsFile::look) {
            Some(Some(endpoints)) => setup.set_endpoints(endpoints),
            Some(None) if same_file => setup.set_endpoints(self.setup.endpoints.clone()),
            Some(None) | None => {}
        }
        self.reconfigure(setup);
    }

    /// From now on like this; a session goes on where its endpoint is still there.
    fn reconfigure(&mut self, setup: Setup) {
        let reaches = setup.endpoints.iter().map(|endpoint| reach(endpoint, &setup)).collect::<io::Result<Vec<_>>>();
        let reaches = match reaches {
            Ok(reaches) => reaches,
            Err(error) => return warn!(target: "uplink", "endpoints refused error={error}"),
        };
        let before = |endpoint| self.setup.endpoints.iter().position(|old| elsewhere::is_same(old, endpoint));
        let was: Vec<_> =
            setup.endpoints.iter().map(|endpoint| before(endpoint).and_then(|at| u8::try_from(at).ok())).collect();
        self.endpoint = was.iter().position(|was| was.map(usize::from) == Some(self.endpoint)).unwrap_or(0);
        self.reaches = reaches;
        self.dialing.reorder(&was);
        self.network.set_places(self.reaches.iter().map(|reach| place(reach)), clock::now());
        let (link, dialect) = (Arc::clone(&setup.upstream.link), Arc::clone(&setup.upstream.dialect));
        let endpoints = setup.upstream.endpoints.clone();
        let bytes_per_day_max = setup.upstream.cap.max();
        self.setup = setup;
        let new = upstream::Reconfiguration { link, dialect, endpoints, was, bytes_per_day_max };
        self.upstream.reconfigure(new, clock::now());
        self.perform();
        self.view_is_stale = true;
    }

    /// Takes the transport from stage to stage, as far as it goes.
    fn drive(&mut self) {
        self.race();
        loop {
            let progress = match mem::take(&mut self.transport) {
                Transport::None => return,
                Transport::Handshake(handshake) => handshake.advance(),
                Transport::Open(open) => {
                    self.transport = Transport::Open(open);
                    return self.read();
                }
            };
            match progress {
                Ok(Progress::Waiting(handshake)) => return self.transport = Transport::Handshake(handshake.into()),
                // It goes on by itself.
                Ok(Progress::Dialed(handshake)) => self.transport = Transport::Handshake(handshake.into()),
                Ok(Progress::Redirected(status, location)) => self.redirect(status, &location),
                Ok(Progress::Secured(handshake)) => {
                    self.expiry.set_server(handshake.server());
                    self.transport = Transport::Handshake(handshake.into());
                    self.tell(Input::Secured);
                }
                Ok(Progress::Upgraded(open, encoding)) => {
                    self.transport = Transport::Open(open);
                    self.on_upgraded(encoding);
                }
                Err(failure) => self.fail(failure),
            }
        }
    }

    /// Where lanes may go on in a new epoch, the outbox is asked first: `hello` names all that the session carries.
    fn on_upgraded(&mut self, encoding: Option<Encoding>) {
        if self.setup.live {
            self.port.lock().offers_prepared = false;
            self.upgraded = Some(encoding);
            self.outbox.give(|outbox| outbox.prepare_offers = true);
        } else {
            self.begin_session(encoding);
        }
    }

    fn begin_session(&mut self, encoding: Option<Encoding>) {
        let offers = {
            let mut port = self.port.lock();
            port.offers_changed = false;
            port.offers.clone()
        };
        self.tell(Input::Upgraded { encoding, offers: &offers });
    }

    /// Takes the sockets that race as far as they go.
    fn race(&mut self) {
        match self.dialing.race() {
            Race::Won { address, handshake } => {
                self.transport = Transport::Handshake(handshake);
                self.tell(Input::Dialed { address });
            }
            Race::Lost(failure) => self.fail(failure),
            Race::On(failed) => {
                for (address, failure) in failed {
                    self.tell(Input::DialFailed { address, failure });
                }
            }
        }
    }

    /// Credentials go to the host that they are configured for, and to no other.
    fn redirect(&mut self, status: u16, location: &Location) {
        let from = &self.reaches[self.endpoint].target;
        let all = [self.endpoint].into_iter().chain(0..self.reaches.len());
        let to = all.into_iter().find(|index| location.leads(from, &self.reaches[*index].target));
        let Some((to, url)) = to.zip(location.url(from)) else {
            let place = location.place(from);
            let detail = format!("upgrading: http {status} to {place}, which is no configured endpoint's");
            return self.fail(Failure::new(Class::WrongPlace, detail));
        };
        debug!(target: "uplink", "redirected status={status} endpoint={to}");
        self.drop_transport(None);
        self.dialing.set_redirected(to, url);
        self.tell(Input::Redirected { endpoint: u8::try_from(to).unwrap_or(u8::MAX) });
    }

    fn read(&mut self) {
        let received_before = self.meter.wire().bytes_received;
        let mut drained = false;
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let Transport::Open(open) = &mut self.transport else { return };
            match open.read() {
                Ok(Some(incoming)) => self.on_incoming(incoming),
                Ok(None) => {
                    drained = true;
                    break;
                }
                Err(failure) => return self.fail(failure),
            }
        }
        self.ready |= !drained;
        if self.meter.wire().bytes_received > received_before {
            self.tell(Input::Received);
        }
    }

    fn on_incoming(&mut self, incoming: Incoming) {
        let (was_up, commands_before) = (self.upstream.is_up(), self.commands);
        let is_message = match incoming {
            Incoming::Text(text) => {
                trace!(target: "uplink", "received text bytes={}", text.len());
                self.tell(Input::Text(&text));
                true
            }
            Incoming::Binary(bytes) => {
                trace!(target: "uplink", "received binary bytes={}", bytes.len());
                self.tell(Input::Binary(&bytes));
                true
            }
            Incoming::Ping => false,
            Incoming::Pong(payload) => {
                self.tell(Input::Pong(&payload));
                self.view_is_stale = true;
                false
            }
        };
        self.meter.claim_received(match (is_message, was_up) {
            (false, _) => Purpose::Heartbeat,
            (true, false) => Purpose::Handshake,
            (true, true) if self.commands > commands_before => Purpose::Commands,
            (true, true) => Purpose::Acks,
        });
    }

    fn flush(&mut self) {
        let Transport::Open(open) = &mut self.transport else { return };
        match open.flush() {
            Ok(flushed) => {
                if flushed.shrank {
                    self.tell(Input::Received);
                }
                if flushed.ping {
                    self.tell(Input::PingFlushed);
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    // What goes out.

    /// Performs what the core wants, until it wants nothing more.
    fn perform(&mut self) {
        while let Some(output) = self.upstream.poll_output() {
            if let Err(failure) = self.perform_one(output) {
                self.drop_transport(None);
                self.upstream.handle_input(Input::Failed(failure), clock::now());
            }
        }
    }

    fn perform_one(&mut self, output: Output) -> Result<(), Failure> {
        match output {
            Output::Resolve { endpoint, recheck } => self.resolve(endpoint, recheck),
            Output::Dial { address } => self.dial(address),
            Output::Probe { endpoint } => self.probe(endpoint),
            Output::Remedy { step } => self.remedy(step),
            Output::Transmit { frame, purpose } => {
                if let Transport::Open(open) = &mut self.transport {
                    open.send(frame, purpose);
                }
            }
            Output::Ping { counter } => {
                if let Transport::Open(open) = &mut self.transport {
                    match counter {
                        Some(counter) => open.ping_behind(counter.to_string()),
                        None => open.ping()?,
                    }
                }
            }
            Output::Drop { close } => {
                self.dialing.abandon();
                self.drop_transport(close);
            }
            Output::Fetch(fetch) => self.outbox.give(|outbox| replace_fetch(&mut outbox.fetches, fetch)),
            Output::Acked { lane, epoch, seq } => self.outbox.give(|outbox| {
                let acked: &mut Seq = outbox.acks.entry((lane, epoch)).or_default();
                *acked = seq.max(*acked);
            }),
            Output::Rejected { lane, epoch, seq, reason, ours } => {
                let refusal = Refusal { reason, ours };
                self.outbox.give(|outbox| outbox.rejected.insert((lane, epoch, seq), refusal));
            }
            Output::Foreign { lane, epoch } => self.outbox.give(|outbox| outbox.foreign.push((lane, epoch))),
            Output::ServerTime { now_ms } => {
                let told = Some((now_ms, clock::now()));
                self.outbox.lock().server_time = told;
            }
            Output::Changed => self.view_is_stale = true,
            Output::Event { kind, detail } => {
                warn!(target: "uplink", "event kind={kind} detail={detail:?}");
                (self.setup.event)(kind, &detail);
            }
            Output::Command { seq, topic, body: _ } => {
                self.commands += 1;
                self.board.commands.lock().received = self.commands;
                trace!(target: "uplink", "command without subscriber seq={seq} topic={topic:?}");
            }
            Output::Save(saved) => self.keeping.keep(saved, &self.setup),
            Output::SaveDay(saved) => saved::keep(&self.setup.day_file, saved),
            Output::GiveUp => self.exit = Some(Exit::GaveUp),
        }
        Ok(())
    }

    fn resolve(&mut self, endpoint: u8, recheck: bool) {
        self.endpoint = endpoint.into();
        let reach = &self.reaches[self.endpoint];
        if let Err(failure) = self.dialing.prepare(self.endpoint, reach, recheck, self.poll.registry()) {
            self.upstream.handle_input(Input::Failed(failure), clock::now());
        }
    }

    fn dial(&mut self, address: u8) {
        let (reach, meter) = (&self.reaches[self.endpoint], Rc::clone(&self.meter));
        if let Err(failure) = self.dialing.dial(address, reach, meter, self.poll.registry(), UPSTREAM) {
            self.upstream.handle_input(Input::DialFailed { address, failure }, clock::now());
        }
    }

    fn probe(&mut self, endpoint: u8) {
        let timeout = Duration::from_millis(self.setup.upstream.link.handshake_timeout_ms);
        if !self.dialing.probe(endpoint, &self.reaches[usize::from(endpoint)], timeout) {
            self.upstream.handle_input(Input::Probed { endpoint, ok: false }, clock::now());
        }
    }

    fn drop_transport(&mut self, close: Option<u16>) {
        self.upgraded = None;
        self.dialing.drop_sockets();
        match (mem::take(&mut self.transport), close) {
            (Transport::Open(open), Some(code)) => open.close(code),
            (Transport::None | Transport::Handshake(_) | Transport::Open(_), _) => (),
        }
        self.meter.claim_received(Purpose::Handshake);
    }

    /// Tells the core what the meter shows.
    fn count(&mut self) {
        let wire = self.meter.wire();
        let bytes = wire.bytes_sent + wire.bytes_received;
        if bytes != mem::replace(&mut self.counted, bytes) {
            self.tell(Input::Wire(bytes));
            // What that allows again goes out.
            self.flush();
        }
    }

    /// That it is run is on flash before it is run: it may be what takes our power.
    fn remedy(&mut self, step: u8) {
        let Some(remedy) = self.setup.remedies.get(usize::from(step)) else { return };
        let down_s = self.keeping.down_s(clock::now());
        let class = self.upstream.view().last_failure.map_or("none", |(class, ..)| class);
        let program = remedy.exec.first().map_or("", String::as_str);
        warn!(target: "uplink", "remedy step={step} down_s={down_s} class={class} program={program}");
        (self.setup.event)("remedy", &format!("no session for {down_s} s ({class}): step {step} runs {program}"));
        self.setup.runner.run(Run {
            step,
            exec: remedy.exec.clone(),
            timeout: Duration::from_secs(remedy.timeout_s),
            environment: [("BACKHAUL_DOWN_S", down_s.to_string()), ("BACKHAUL_CLASS", class.to_owned())],
            before: self.keeping.errand(&self.setup),
        });
    }

    /// Pins to the board what has changed.
    fn publish(&mut self) {
        let mut wire = self.meter.wire();
        (wire.day_bytes, wire.capped) = self.upstream.day();
        if wire != mem::replace(&mut self.wire, wire) {
            *self.board.wire.lock() = wire;
        }
        if let Some(detail) = self.expiry.warning(clock::now(), clock::wall_ms_if_set()) {
            warn!(target: "uplink", "event kind=certificate_expiry detail={detail:?}");
            (self.setup.event)("certificate_expiry", &detail);
        }
        if self.expiry.take_changed() {
            *self.board.certificate.lock() = self.expiry.first();
        }
        if !mem::take(&mut self.view_is_stale) {
            return;
        }
        let view = self.upstream.view();
        let is_up = self.upstream.is_up();
        if is_up && !mem::replace(&mut self.was_up, is_up) {
            let (session, url) =
                (view.session.as_deref().unwrap_or_default(), &self.reaches[self.endpoint].endpoint.url);
            info!(target: "uplink", "link up session={session:?} endpoint={url}");
        }
        self.was_up = is_up;
        *self.board.link.lock() = view;
        (self.setup.link_changed)();
    }
}

/// One question a (lane, epoch): the newest stands.
fn replace_fetch(fetches: &mut Vec<Fetch>, fetch: Fetch) {
    fetches.retain(|other| other.epoch != fetch.epoch || other.lane != fetch.lane);
    fetches.push(fetch);
}
