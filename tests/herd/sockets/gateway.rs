//! One agent as the network sees it: the core's upstream over the transport of the agent's own shell, driven as its
//! uplink thread drives it, but for what blocks (its address is a literal) and for flash (its records are made up).

use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use backhaul::config::target::Target;
use backhaul::config::{Encoding, Endpoint};
use backhaul::dialect;
use backhaul::link::{self, Class, Failure};
use backhaul::record::{Body, Epoch, Fetch, Item, LaneName, Offer, Record, Seq};
use backhaul::shell::prepare::{self, Prepared};
use backhaul::shell::transport::{Handshake, Incoming, Meter, Open, Progress, Reach};
use backhaul::time::Instant;
use backhaul::upstream::cap::Cap;
use backhaul::upstream::{Input, Output, Setup, Upstream};
use mio::{Registry, Token};

/// How all of them are configured, and what it takes to dial.
pub struct Kit {
    link: Arc<link::Config>,
    dialect: Arc<dialect::Config>,
    url: String,
    reach: Reach,
    prepared: Prepared,
    lane: LaneName,
}

impl Kit {
    /// For a receiver that listens here. Its links are those of `link`, at one endpoint without TLS.
    pub fn new(address: &str, link: Arc<link::Config>, dialect: dialect::Config) -> Self {
        let url = format!("ws://{address}/");
        let reach = Reach {
            target: Target::try_new(&url).unwrap(),
            endpoint: Endpoint { url: url.clone(), ..Endpoint::default() },
            encodings: vec![Encoding::Postcard, Encoding::Json],
            agent: "herd/1".into(),
            // The kernel gives up on nobody here.
            silence: Duration::from_secs(300),
            proxy: Ok(None),
            credential_timeout: Duration::ZERO,
        };
        let prepare::Answer::Ready(prepared) = prepare::prepare(&reach, &Default::default(), None, || true) else {
            panic!("{url} cannot be dialed");
        };
        let lane = LaneName::try_new("default").unwrap();
        Self { link, dialect: Arc::new(dialect), url, reach, prepared: *prepared, lane }
    }
}

#[derive(Default)]
enum Transport {
    #[default]
    None,
    /// TCP is not connected yet.
    Dialing(Box<Handshake>),
    Handshake(Box<Handshake>),
    Open(Box<Open>),
}

/// See above.
pub struct Gateway {
    kit: Rc<Kit>,
    pub device: String,
    token: Token,
    upstream: Upstream,
    transport: Transport,
    meter: Rc<Meter>,
    epoch: Epoch,
    /// Records handed in so far, numbered from 1.
    records: Seq,
    pub acked: Seq,
    /// `connect(2)` was called so often.
    pub dials: u32,
    /// And so often nothing listened.
    pub refused: u32,
}

impl Gateway {
    /// One that has just booted.
    pub fn new(kit: &Rc<Kit>, index: usize, seed: u64, now: Instant) -> Self {
        let device = format!("gw-{index:05}");
        let setup = Setup {
            link: Arc::clone(&kit.link),
            dialect: Arc::clone(&kit.dialect),
            device: device.clone(),
            agent: "herd/1".into(),
            boot: format!("{seed:016x}"),
            endpoints: vec![kit.url.clone()],
            seed,
            saved: None,
            fresh_boot: true,
            cap: Cap::default(),
        };
        Self {
            kit: Rc::clone(kit),
            device,
            token: Token(index),
            upstream: Upstream::new(setup, now),
            transport: Transport::None,
            meter: Rc::default(),
            epoch: index as Epoch + 1,
            records: 0,
            acked: 0,
            dials: 0,
            refused: 0,
        }
    }

    pub fn is_up(&self) -> bool {
        self.upstream.is_up()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.upstream.poll_timeout().map(|(at, _)| at)
    }

    /// What went wrong so far, by class.
    pub fn failures(&self) -> Vec<(&'static str, u64)> {
        self.upstream.view().failures
    }

    /// Local programs hand in so many records more.
    pub fn put(&mut self, records: u64, registry: &Registry, now: Instant) {
        self.records += records;
        let offers = self.offers();
        self.upstream.handle_input(Input::Offers(&offers), now);
        self.perform(registry, now);
    }

    /// What a record says.
    pub fn body(&self, seq: Seq) -> String {
        format!("{} says {seq}", self.device)
    }

    /// Its socket has something for it, or takes something again.
    pub fn on_ready(&mut self, registry: &Registry, now: Instant) {
        self.drive(now);
        self.perform(registry, now);
    }

    /// Its time has come.
    pub fn on_deadline(&mut self, registry: &Registry, now: Instant) {
        self.upstream.handle_timeout(now);
        self.perform(registry, now);
    }

    fn offers(&self) -> Vec<Offer> {
        let Self { epoch, records, acked, .. } = *self;
        vec![Offer { lane: self.kit.lane.clone(), epoch, first: acked + 1, next: records + 1, sent_max: records }]
    }

    fn drive(&mut self, now: Instant) {
        loop {
            let (progress, dialing) = match mem::take(&mut self.transport) {
                Transport::None => return,
                Transport::Dialing(handshake) => (handshake.advance(), true),
                Transport::Handshake(handshake) => (handshake.advance(), false),
                Transport::Open(open) => {
                    self.transport = Transport::Open(open);
                    return self.read(now);
                }
            };
            match progress {
                Ok(Progress::Waiting(handshake)) => {
                    let stage = if dialing { Transport::Dialing } else { Transport::Handshake };
                    return self.transport = stage(handshake.into());
                }
                Ok(Progress::Dialed(handshake)) => {
                    self.transport = Transport::Handshake(handshake.into());
                    self.upstream.handle_input(Input::Dialed { address: 0 }, now);
                }
                Ok(Progress::Upgraded(open, encoding)) => {
                    self.transport = Transport::Open(open);
                    let offers = self.offers();
                    self.upstream.handle_input(Input::Upgraded { encoding, offers: &offers }, now);
                }
                Ok(Progress::Secured(_) | Progress::Redirected(..)) => panic!("the receiver does neither"),
                Err(failure) if dialing => self.dial_failed(failure, now),
                Err(failure) => self.fail(failure, now),
            }
        }
    }

    fn read(&mut self, now: Instant) {
        let received_before = self.meter.wire().bytes_received;
        loop {
            let Transport::Open(open) = &mut self.transport else { return };
            match open.read() {
                Ok(Some(Incoming::Text(text))) => self.upstream.handle_input(Input::Text(&text), now),
                Ok(Some(Incoming::Binary(bytes))) => self.upstream.handle_input(Input::Binary(&bytes), now),
                Ok(Some(Incoming::Pong(payload))) => self.upstream.handle_input(Input::Pong(&payload), now),
                Ok(Some(Incoming::Ping)) => {}
                Ok(None) => break,
                Err(failure) => return self.fail(failure, now),
            }
        }
        if self.meter.wire().bytes_received > received_before {
            self.upstream.handle_input(Input::Received, now);
        }
    }

    /// Performs what the core wants, until it wants nothing more.
    fn perform(&mut self, registry: &Registry, now: Instant) {
        loop {
            while let Some(output) = self.upstream.poll_output() {
                self.perform_one(output, registry, now);
            }
            if !self.flush(now) {
                return;
            }
        }
    }

    /// True where that gave the core something to think about.
    fn flush(&mut self, now: Instant) -> bool {
        let Transport::Open(open) = &mut self.transport else { return false };
        match open.flush() {
            Ok(flushed) => {
                let news = flushed.shrank || !flushed.pings.is_empty();
                if flushed.shrank {
                    self.upstream.handle_input(Input::Received, now);
                }
                for counter in flushed.pings {
                    self.upstream.handle_input(Input::PingFlushed(counter), now);
                }
                news
            }
            Err(failure) => {
                self.fail(failure, now);
                true
            }
        }
    }

    fn perform_one(&mut self, output: Output, registry: &Registry, now: Instant) {
        match output {
            Output::Resolve { .. } => self.upstream.handle_input(Input::Resolved { addresses: 1 }, now),
            Output::Dial { .. } => self.dial(registry, now),
            Output::Transmit { frame, purpose } => {
                if let Transport::Open(open) = &mut self.transport {
                    open.send(frame, purpose);
                }
            }
            Output::Ping { counter } => {
                let Transport::Open(open) = &mut self.transport else { return };
                match counter.map(|counter| open.ping_behind(counter)).map_or_else(|| open.ping(), Ok) {
                    Ok(()) => {}
                    Err(failure) => self.fail(failure, now),
                }
            }
            Output::Drop { close } => match (mem::take(&mut self.transport), close) {
                (Transport::Open(open), Some(code)) => open.close(code),
                (Transport::None | Transport::Dialing(_) | Transport::Handshake(_) | Transport::Open(_), _) => {}
            },
            Output::Fetch(fetch) => {
                let items = self.items(&fetch);
                self.upstream.handle_input(Input::Items(&fetch, items), now);
            }
            Output::Acked { seq, .. } => {
                assert!(seq <= self.records, "{}: acked {seq} of {}", self.device, self.records);
                self.acked = self.acked.max(seq);
                let offers = self.offers();
                self.upstream.handle_input(Input::Offers(&offers), now);
            }
            Output::Rejected { .. } | Output::Foreign { .. } | Output::Probe { .. } | Output::Remedy { .. } => {
                panic!("{}: {output:?}", self.device);
            }
            Output::Event { kind, detail } => panic!("{}: {kind}: {detail}", self.device),
            Output::GiveUp => panic!("{}: gave up", self.device),
            Output::ServerTime { .. } | Output::Changed | Output::Command(_) | Output::Save(_) | Output::SaveDay(_) => {
            }
        }
    }

    fn dial(&mut self, registry: &Registry, now: Instant) {
        self.dials += 1;
        let kit = Rc::clone(&self.kit);
        let meter = Rc::clone(&self.meter);
        let to = kit.prepared.addresses[0];
        match Handshake::dial(to, &kit.reach, &kit.prepared, None, meter, registry, self.token) {
            Ok(handshake) => self.transport = Transport::Dialing(handshake.into()),
            Err(failure) => self.dial_failed(failure, now),
        }
    }

    fn dial_failed(&mut self, failure: Failure, now: Instant) {
        self.refused += u32::from(failure.class == Class::Refused);
        self.upstream.handle_input(Input::DialFailed { address: 0, failure }, now);
    }

    fn fail(&mut self, failure: Failure, now: Instant) {
        self.transport = Transport::None;
        self.upstream.handle_input(Input::Failed(failure), now);
    }

    fn items(&self, fetch: &Fetch) -> Vec<Item> {
        let last = self.records.min(fetch.from + u64::from(fetch.records_max) - 1);
        let record = |seq| Record { seq, at: None, topic: "herd".into(), body: Body::Text(self.body(seq)) };
        (fetch.from..=last).map(|seq| Item::Record(record(seq))).collect()
    }
}
