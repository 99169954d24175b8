//! The uplink thread: one mio reactor that performs what the core's [`Upstream`] decides. Owns the transport, the way
//! to it (`dialing`) and the thread's side of the ports; never touches flash, reads no file of the operator's, never
//! resolves names, never blocks but in its one poll.

mod dialing;
mod elsewhere;
mod expiry;
mod keeping;
mod perform;
mod reload;
mod setup;

use std::io::{self, ErrorKind};
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, info, trace, warn};
use mio::{Events, Poll, Token, Waker};

use super::board::Board;
use super::clock;
use super::netlink::{News, Watch};
use super::port::{ForOutbox, ForUplink, Port};
use super::prepare::ADDRESSES_MAX;
use super::saved;
use super::transport::{Handshake, Incoming, Location, Meter, Open, Progress, Reach};
use crate::config::Encoding;
use crate::dialect::Purpose;
use crate::link::{Class, Failure};
use crate::status;
use crate::time::Instant;
use crate::upstream::{Input, Upstream};
use dialing::{Dialing, Race};
use elsewhere::EndpointsFile;
use expiry::Expiry;
use keeping::Keeping;
pub use setup::{Hook, Setup, memory_bytes_max};
use setup::{path, place, reach};

const WAKE: Token = Token(0);
const UPSTREAM: Token = Token(1);
const SOURCES: Token = Token(2);
const NETWORK: Token = Token(usize::MAX - 1);
const CLOCK: Token = Token(usize::MAX);

/// Messages taken in one turn of the loop, at most: pings, timers and the outbox get their turn between them.
const MESSAGES_PER_TURN_MAX: usize = 64;

const _: () = assert!(ADDRESSES_MAX <= u8::MAX as usize, "addresses are counted in a byte");

/// Why [`Uplink::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop.
    Stopped,
    /// `attempts_max` is reached.
    GaveUp,
}

/// The uplink, not yet running.
pub struct Uplink {
    poll: Poll,
    waker: Arc<Waker>,
    port: Arc<Port<ForUplink>>,
    reaches: Vec<Arc<Reach>>,
    elsewhere: Option<EndpointsFile>,
    keeping: Keeping,
    /// Files have changed since the process before wrote down what it waits for.
    mended: bool,
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
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let mut elsewhere = setup.endpoints_file.as_deref().map(|path| EndpointsFile::new(path, wake(&waker)));
        if let Some(endpoints) = elsewhere.as_mut().and_then(EndpointsFile::look) {
            setup.set_endpoints(endpoints);
        }
        let reaches = setup.endpoints.iter().map(|endpoint| reach(endpoint, &setup)).collect::<io::Result<Vec<_>>>()?;
        let (mut keeping, found) = Keeping::begin(&setup);
        // Of all endpoints: which of them is tried next is another matter.
        let changed = keeping.has_other_credentials(reaches.iter().flat_map(|reach| reach.files()));
        let mut mended = false;
        if let Some((saved, this_boot)) = found {
            mended = changed && this_boot;
            setup.upstream.saved = Some(saved);
            setup.upstream.fresh_boot = !this_boot;
        }
        if let Some((day, true)) = saved::read(&setup.day_file) {
            setup.upstream.cap = setup.upstream.cap.with(day);
        }
        let port = Port::with_wake(wake(&waker));
        Ok(Self { poll, waker, port: Arc::new(port), reaches, elsewhere, keeping, mended, setup })
    }

    /// Where the other threads leave what is for this one.
    pub fn port(&self) -> Arc<Port<ForUplink>> {
        Arc::clone(&self.port)
    }

    /// Runs until told to stop, on the calling thread. The first attempt waits for the first offers.
    pub fn run(self, outbox: Arc<Port<ForOutbox>>, board: Arc<Board>) -> Exit {
        let Self { poll, waker, port, reaches, elsewhere, keeping, mended, setup } = self;
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
            waker,
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
            failed_at: None,
            path: None,
            rtts: 0,
            exit: None,
            port,
            outbox,
            board,
            setup,
        };
        if mended {
            reactor.tell(Input::SourcesChanged);
        }
        let mut events = Events::with_capacity(8);
        loop {
            if let Some(exit) = reactor.turn() {
                return exit;
            }
            reactor.wait(&mut events);
        }
    }
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
    waker: Arc<Waker>,
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
    /// When the last failure was that is noted.
    failed_at: Option<Instant>,
    /// The way of the present connection.
    path: Option<status::Path>,
    /// Round trips measured in the present session.
    rtts: u32,
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
            if self.look_elsewhere() {
                self.upstream.handle_timeout(clock::now());
            }
            self.perform();
        }
        self.flush();
        self.count();
        self.publish();
        self.exit
    }

    /// Sleeps until something happens or is due.
    fn wait(&mut self, events: &mut Events) {
        let own = self.upstream.poll_timeout().filter(|_| self.offered).map(|(at, _)| at);
        // An attempt that is due may wait for a look.
        let is_due = own.is_some_and(|at| at <= clock::now());
        let look = self.elsewhere.as_ref().and_then(EndpointsFile::poll_timeout).filter(|_| is_due);
        let deadline = look.or(own);
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
        match self.dialing.take_answer(self.endpoint, self.poll.registry()) {
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
        let (offers, items, prepared, done, setup, sources_changed, stop) = {
            let mut port = self.port.lock();
            let changed = mem::take(&mut port.offers_changed);
            let offers = changed.then(|| port.offers.clone());
            let prepared = mem::take(&mut port.offers_prepared);
            let (setup, sources_changed) = (port.setup.take(), mem::take(&mut port.sources_changed));
            let done = port.done.take();
            (offers, mem::take(&mut port.items), prepared, done, setup, sources_changed, port.stop)
        };
        if stop {
            self.tell(Input::Stop);
            self.exit = Some(Exit::Stopped);
            return;
        }
        if let Some((setup, found)) = setup {
            self.take_up(*setup, found);
        }
        if sources_changed {
            self.tell(Input::SourcesChanged);
        }
        // Before the offers, with which the first attempt begins: its `hello` says what was done.
        if let Some(done) = done {
            self.tell(Input::Done(done));
            self.board.commands.lock().done = self.upstream.commands_done();
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
                self.path = Some(path(&self.reaches[self.endpoint], &handshake));
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
        // Where the link did not follow, the next attempt knows nothing of it.
        self.dialing.forget_redirect();
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
                if let Some((rtt, count)) = self.upstream.rtt_last()
                    && count != mem::replace(&mut self.rtts, count)
                {
                    self.board.rtt.lock().push(rtt);
                }
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
                for counter in flushed.pings {
                    self.tell(Input::PingFlushed(counter));
                }
            }
            Err(failure) => self.fail(failure),
        }
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
        let view = status::LinkView { path: self.path.clone(), ..self.upstream.view() };
        let is_up = self.upstream.is_up();
        if is_up && !mem::replace(&mut self.was_up, is_up) {
            let (session, url) =
                (view.session.as_deref().unwrap_or_default(), &self.reaches[self.endpoint].endpoint.url);
            info!(target: "uplink", "link up session={session:?} endpoint={url}");
            // A query may hold a token.
            (self.setup.note)("up", url.split('?').next().unwrap_or_default());
            self.drop_remedies();
        }
        self.was_up = is_up;
        if let Some((class, detail, at)) = &view.last_failure
            && self.failed_at.replace(*at) != Some(*at)
        {
            (self.setup.note)(class.name(), detail);
        }
        *self.board.link.lock() = view;
        (self.setup.link_changed)();
    }
}
