//! One connection to the upstream as a sequence of moved stages: dialing (by a proxy: and its tunnel) → securing →
//! upgrading → open. Owns the socket, never blocks, decides nothing: what goes wrong leaves as a [`Failure`] for the
//! link to judge.
//!
//! The socket is registered once, for both directions, edge-triggered; every stage runs until it would block, so a
//! spurious or a stale event does no harm.

pub mod dial;
mod open;
mod redirect;
pub mod tls;
mod tunnel;
mod validity;
mod wire;

pub use open::{BUFFERS_BYTES_MAX, Flushed, Incoming, Open};
pub use redirect::Location;
pub use tunnel::Tunnel;
pub use validity::Validity;
pub use wire::{Meter, Stream, Wire};

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use mio::{Interest, Registry, Token};
use native_tls::{MidHandshakeTlsStream, TlsConnector};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::error::{Error as WsError, ProtocolError};
use tungstenite::handshake::client::{ClientHandshake, Request, Response};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::http::header::{AUTHORIZATION, DATE, LOCATION, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL, USER_AGENT};
use tungstenite::http::{HeaderValue, Uri};

use crate::config::proxy::Proxy;
use crate::config::target::Target;
use crate::config::{Encoding, Endpoint};
use crate::dialect::Purpose;
use crate::link::{self, Class, Failure};
use crate::shell::clock;
use crate::shell::prepare::Prepared;

/// How to reach an endpoint.
#[derive(Debug)]
pub struct Reach {
    /// Its URL, taken apart.
    pub target: Target,
    /// Its part of the configuration.
    pub endpoint: Endpoint,
    /// Offered in this order; none in the plain dialect.
    pub encodings: Vec<Encoding>,
    /// For `User-Agent`.
    pub agent: String,
    /// When the kernel gives up on bytes that nobody acknowledges (TCP_USER_TIMEOUT).
    pub silence: Duration,
    /// The proxy on the way to it, or why it cannot be told.
    pub proxy: Result<Option<Proxy>, String>,
    /// How long a program may take that prints a credential.
    pub credential_timeout: Duration,
}

impl Reach {
    /// Whom to dial: the endpoint, or the proxy on the way to it.
    pub fn first_hop(&self) -> Result<(&str, u16), Failure> {
        match &self.proxy {
            Ok(None) => Ok((&self.target.host, self.target.port)),
            Ok(Some(proxy)) => Ok((&proxy.host, proxy.port)),
            Err(fault) => Err(Failure::new(Class::WrongPlace, format!("proxy: {fault}"))),
        }
    }

    /// The files that credentials and certificates are read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let Endpoint { ca_file, token_file, basic_file, cert_file, key_file, proxy_basic_file, .. } = &self.endpoint;
        let files = [ca_file, token_file, basic_file, cert_file, key_file, proxy_basic_file];
        files.into_iter().filter_map(Option::as_deref)
    }
}

/// A connection up to the upgrade.
pub struct Handshake {
    stage: Stage,
    plan: Plan,
}

/// What the stages to come need.
struct Plan {
    host: String,
    request: Request,
    encodings: Vec<Encoding>,
    /// `wss`.
    tls: Option<TlsConnector>,
    /// By a proxy.
    tunnel: Option<Tunnel>,
    /// How long the server's certificate is valid.
    server: Option<Validity>,
    meter: Rc<Meter>,
}

enum Stage {
    Dialing(Wire),
    Tunnelling(Wire, Tunnel),
    Dialed(Wire),
    Securing(MidHandshakeTlsStream<Wire>),
    Secured(Stream),
    Upgrading(MidHandshake<ClientHandshake<Stream>>),
}

/// How far it got.
pub enum Progress {
    /// Nothing more until the socket is ready.
    Waiting(Handshake),
    /// TCP is connected, and the proxy's tunnel stands; go on.
    Dialed(Handshake),
    /// TLS is up; go on.
    Secured(Handshake),
    /// The upgrade succeeded; the server picked this encoding, or none was offered (the plain dialect).
    Upgraded(Box<Open>, Option<Encoding>),
    /// The upgrade was answered with this status and a location.
    Redirected(u16, Location),
}

impl Handshake {
    /// Begins to connect to `address`. `url`: what to ask for instead, after a redirect.
    pub fn dial(
        address: SocketAddr,
        reach: &Reach,
        prepared: &Prepared,
        url: Option<&Uri>,
        meter: Rc<Meter>,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, Failure> {
        let request = request(reach, prepared.authorization.as_ref(), url)?;
        let mut tcp = dial::begin(address, &reach.endpoint.interface, reach.silence)?;
        let registered = registry.register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE);
        registered.map_err(|error| Failure::from_io(&error, "dialing"))?;
        meter.set_sending(Purpose::Handshake);
        let wire = Wire { tcp, meter: Rc::clone(&meter) };
        let (host, encodings) = (reach.target.host.clone(), reach.encodings.clone());
        let tunnel = matches!(reach.proxy, Ok(Some(_)))
            .then(|| Tunnel::new(&reach.target, &reach.agent, prepared.proxy_authorization.as_deref()));
        let plan = Plan { host, request, encodings, tls: prepared.tls.clone(), tunnel, server: None, meter };
        Ok(Self { stage: Stage::Dialing(wire), plan })
    }

    /// How long the server's certificate is valid, once that is known.
    pub fn server(&self) -> Option<&Validity> {
        self.plan.server.as_ref()
    }

    /// Address here and at the other end, once TCP is connected and before TLS is.
    pub fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        match &self.stage {
            Stage::Dialing(wire) | Stage::Tunnelling(wire, _) | Stage::Dialed(wire) => {
                wire.tcp.local_addr().ok().zip(wire.tcp.peer_addr().ok())
            }
            Stage::Securing(_) | Stage::Secured(_) | Stage::Upgrading(_) => None,
        }
    }

    /// Goes on as far as it can, but at most to the end of one stage.
    pub fn advance(self) -> Result<Progress, Failure> {
        let Self { stage, mut plan } = self;
        let meter = Rc::clone(&plan.meter);
        let progress = match stage {
            Stage::Dialing(wire) => match (dial::connected(&wire.tcp)?, plan.tunnel.take()) {
                (false, tunnel) => {
                    plan.tunnel = tunnel;
                    Ok(Progress::Waiting(Self { stage: Stage::Dialing(wire), plan }))
                }
                (true, None) => Ok(Progress::Dialed(Self { stage: Stage::Dialed(wire), plan })),
                (true, Some(tunnel)) => tunnelled(wire, tunnel, plan),
            },
            Stage::Tunnelling(wire, tunnel) => tunnelled(wire, tunnel, plan),
            Stage::Dialed(wire) => match &plan.tls {
                None => upgrade(Stream::Plain(wire), plan),
                Some(connector) => secured(connector.connect(&plan.host, wire), plan),
            },
            Stage::Securing(mid) => secured(mid.handshake(), plan),
            Stage::Secured(stream) => upgrade(stream, plan),
            Stage::Upgrading(mid) => upgraded(mid.handshake(), plan),
        };
        meter.claim_received(Purpose::Handshake);
        progress
    }
}

fn tunnelled(mut wire: Wire, mut tunnel: Tunnel, plan: Plan) -> Result<Progress, Failure> {
    Ok(match tunnel.advance(&mut wire)? {
        false => Progress::Waiting(Handshake { stage: Stage::Tunnelling(wire, tunnel), plan }),
        true => Progress::Dialed(Handshake { stage: Stage::Dialed(wire), plan }),
    })
}

fn request(reach: &Reach, authorization: Option<&HeaderValue>, url: Option<&Uri>) -> Result<Request, Failure> {
    let fault = |error: &dyn std::fmt::Display| Failure::new(Class::WrongPlace, format!("upgrading: {error}"));
    let mut request = url.unwrap_or(&reach.target.uri).clone().into_client_request().map_err(|error| fault(&error))?;
    let tokens: Vec<_> = reach.encodings.iter().map(|encoding| encoding.token()).collect();
    let headers = request.headers_mut();
    if !tokens.is_empty() {
        let tokens = HeaderValue::try_from(tokens.join(", ")).map_err(|error| fault(&error))?;
        headers.insert(SEC_WEBSOCKET_PROTOCOL, tokens);
    }
    headers.insert(USER_AGENT, HeaderValue::try_from(&reach.agent).map_err(|error| fault(&error))?);
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    Ok(request)
}

/// tungstenite's own wrapper panics where a non-blocking handshake would block, so the handshake is driven here.
fn secured(
    result: Result<native_tls::TlsStream<Wire>, native_tls::HandshakeError<Wire>>,
    mut plan: Plan,
) -> Result<Progress, Failure> {
    match result {
        Ok(tls) => {
            let certificate = tls.peer_certificate().ok().flatten().and_then(|certificate| certificate.to_der().ok());
            plan.server = certificate.and_then(|der| Validity::of(&der));
            Ok(Progress::Secured(Handshake { stage: Stage::Secured(Stream::Tls(Box::new(tls))), plan }))
        }
        Err(native_tls::HandshakeError::WouldBlock(mid)) => {
            Ok(Progress::Waiting(Handshake { stage: Stage::Securing(mid), plan }))
        }
        Err(native_tls::HandshakeError::Failure(error)) => Err(tls::failure(&error, clock::wall_ms_if_set().is_some())),
    }
}

fn upgrade(stream: Stream, plan: Plan) -> Result<Progress, Failure> {
    upgraded(tungstenite::client::client_with_config(plan.request.clone(), stream, Some(open::limits())), plan)
}

type Upgrade = Result<(tungstenite::WebSocket<Stream>, Response), HandshakeError<ClientHandshake<Stream>>>;

fn upgraded(result: Upgrade, plan: Plan) -> Result<Progress, Failure> {
    match result {
        Ok((socket, response)) => {
            let picked = response.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
            match plan.encodings.iter().find(|encoding| Some(encoding.token()) == picked) {
                None if plan.encodings.is_empty() => {
                    Ok(Progress::Upgraded(Box::new(Open::new(socket, plan.meter)), None))
                }
                Some(encoding) => Ok(Progress::Upgraded(Box::new(Open::new(socket, plan.meter)), Some(*encoding))),
                None => Err(Failure::new(Class::WrongPlace, "upgrading: no subprotocol in common")),
            }
        }
        Err(HandshakeError::Interrupted(mid)) => {
            Ok(Progress::Waiting(Handshake { stage: Stage::Upgrading(mid), plan }))
        }
        Err(HandshakeError::Failure(error)) => match redirect(&error) {
            Some((status, location)) => Ok(Progress::Redirected(status, location)),
            None => Err(failure(&error, "upgrading")),
        },
    }
}

fn redirect(error: &WsError) -> Option<(u16, Location)> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other error is an answer")]
    match error {
        WsError::Http(response) if response.status().is_redirection() => {
            let location = response.headers().get(LOCATION)?.to_str().ok()?;
            Some((response.status().as_u16(), Location::new(location)))
        }
        _ => None,
    }
}

/// What a WebSocket error means.
fn failure(error: &WsError, stage: &str) -> Failure {
    let class = match error {
        WsError::Io(error) => {
            return tls::failure_later(error, stage).unwrap_or_else(|| Failure::from_io(error, stage));
        }
        WsError::Http(response) => return refusal(response),
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Class::WrongPlace,
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete)
        | WsError::ConnectionClosed
        | WsError::AlreadyClosed => {
            return Failure::new(Class::Reset, format!("{stage}: the far end closed without a word"));
        }
        WsError::Url(_) | WsError::HttpFormat(_) => Class::WrongPlace,
        WsError::Tls(_) => Class::Tls,
        WsError::Protocol(_)
        | WsError::Capacity(_)
        | WsError::WriteBufferFull(_)
        | WsError::Utf8(_)
        | WsError::AttackAttempt => Class::Protocol,
    };
    Failure::new(class, format!("{stage}: {error}"))
}

/// An HTTP answer other than 101 (protocol rule 11).
fn refusal<T>(response: &tungstenite::http::Response<T>) -> Failure {
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let wait_ms = text(RETRY_AFTER.as_str()).and_then(|value| link::retry_after_ms(value, text(DATE.as_str())));
    let spread_ms = text("Backhaul-Spread-Ms").and_then(|value| value.trim().parse().ok());
    Failure::from_http(response.status().as_u16(), wait_ms, spread_ms)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn reach() -> Reach {
        Reach {
            target: Target::try_new("ws://127.0.0.1:1/v1").unwrap(),
            endpoint: Endpoint::default(),
            encodings: vec![Encoding::Postcard, Encoding::Json],
            agent: "backhaul/0.1.0".into(),
            silence: Duration::from_secs(1),
            proxy: Ok(None),
            credential_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_upgrade_request_offers_the_encodings_in_order_and_names_the_agent() {
        let request = request(&reach(), None, None).unwrap();
        let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(text("sec-websocket-protocol"), Some("backhaul.v1.postcard, backhaul.v1.json"));
        assert_eq!(text("user-agent"), Some("backhaul/0.1.0"));
        assert_eq!(text("host"), Some("127.0.0.1:1"));
        assert_eq!(text("authorization"), None);
    }

    #[test]
    fn a_refusal_keeps_the_servers_word() {
        let response = tungstenite::http::Response::builder()
            .status(503)
            .header("date", "Tue, 29 Feb 2028 12:00:00 GMT")
            .header("retry-after", "Tue, 29 Feb 2028 12:00:07 GMT")
            .header("backhaul-spread-ms", "250")
            .body(())
            .unwrap();
        let failure = refusal(&response);
        assert_eq!(failure.class, Class::Overload);
        assert_eq!((failure.server_wait_ms, failure.server_spread_ms), (Some(7000), Some(250)));
    }
}
