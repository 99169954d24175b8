//! What the uplink is made of, and what follows from it: how each endpoint is reached, how much memory its buffers take.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use io::ErrorKind;

use crate::commands::Command;
use crate::config::proxy::{Environment, proxy_for};
use crate::config::target::Target;
use crate::config::{self, Encoding, Endpoint, Heartbeat, Remedy};
use crate::dialect::message::SERVER_MESSAGE_BYTES_MAX;
use crate::link::DETAIL_BYTES_MAX;
use crate::record::Item;
use crate::shell::EventHook;
use crate::shell::netlink::interface_of;
use crate::shell::remedy::Runner;
use crate::shell::transport::{BUFFERS_BYTES_MAX, Handshake, Reach};
use crate::{status, upstream};

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
    /// Called with each command for local programs.
    pub command: Arc<dyn Fn(Command) + Send + Sync>,
    /// Called with kind and detail of what is worth a record on topic `$event`.
    pub event: EventHook,
    /// Called with kind and detail of what is for people here alone: sessions that come and go.
    pub note: EventHook,
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
        Arc::make_mut(&mut self.upstream.link).endpoints_tls = endpoints.iter().map(tls).collect();
        self.upstream.endpoints = endpoints.iter().map(|endpoint| endpoint.url.clone()).collect();
        self.endpoints = endpoints;
    }
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

pub(super) fn reach(endpoint: &Endpoint, setup: &Setup) -> io::Result<Arc<Reach>> {
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

/// The way that a connection takes.
pub(super) fn path(reach: &Reach, handshake: &Handshake) -> status::Path {
    let addresses = handshake.addresses();
    let bound = Some(reach.endpoint.interface.clone()).filter(|name| !name.is_empty());
    let by_routes = || addresses.and_then(|(local, _)| interface_of(local.ip().to_canonical()));
    status::Path {
        address: addresses.map(|(_, peer)| peer.to_string()).unwrap_or_default(),
        local: addresses.map(|(local, _)| local.ip().to_string()).unwrap_or_default(),
        interface: bound.or_else(by_routes).unwrap_or_default(),
        proxy: reach.proxy.iter().flatten().next().map(|proxy| format!("{}:{}", proxy.host, proxy.port)),
    }
}

/// What the network's watch has to know of an endpoint.
pub(super) fn place(reach: &Reach) -> (Option<&str>, &str, u16) {
    let interface = Some(reach.endpoint.interface.as_str()).filter(|name| !name.is_empty());
    // A proxy that cannot be told is nowhere to be reached, which the attempt will say.
    let (host, port) = reach.first_hop().unwrap_or((&reach.target.host, reach.target.port));
    (interface, host, port)
}
