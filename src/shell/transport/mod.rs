//! One connection to the upstream as a sequence of moved stages: dialing → securing → upgrading → open. Owns the
//! socket, never blocks, decides nothing: what goes wrong leaves as a [`Failure`] for the link to judge.
//!
//! The socket is registered once, for both directions, edge-triggered; every stage runs until it would block, so a
//! spurious or a stale event does no harm.

mod open;
mod tls;
mod wire;

pub use open::{BUFFERS_BYTES_MAX, Flushed, Incoming, Open};
pub use wire::{Meter, Stream, Wire};

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use native_tls::{MidHandshakeTlsStream, TlsConnector};
use socket2::SockRef;
use tungstenite::client::IntoClientRequest as _;
use tungstenite::error::{Error as WsError, ProtocolError};
use tungstenite::handshake::client::{ClientHandshake, Request, Response};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{AUTHORIZATION, DATE, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL, USER_AGENT};

use crate::config::target::Target;
use crate::config::{Encoding, Endpoint, secret};
use crate::dialect::Purpose;
use crate::link::{self, Class, Failure};
use crate::shell::clock;

/// What waits unsent in the kernel, at most, in bytes: a ping behind it still leaves in time, and what counts as sent
/// is (nearly) on the wire. 16 KiB is one TLS record.
const UNSENT_BYTES_MAX: u32 = 16 << 10;

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
    meter: Rc<Meter>,
}

enum Stage {
    Dialing(Wire),
    Dialed(Wire),
    Securing(MidHandshakeTlsStream<Wire>),
    Secured(Stream),
    Upgrading(MidHandshake<ClientHandshake<Stream>>),
}

/// How far it got.
pub enum Progress {
    /// Nothing more until the socket is ready.
    Waiting(Handshake),
    /// TCP is connected; go on.
    Dialed(Handshake),
    /// TLS is up; go on.
    Secured(Handshake),
    /// The upgrade succeeded; the server picked this encoding, or none was offered (the plain dialect).
    Upgraded(Box<Open>, Option<Encoding>),
}

impl Handshake {
    /// Begins to connect to `address`. The credentials are read afresh (thin-edge.io#3157).
    pub fn dial(
        address: SocketAddr,
        reach: &Reach,
        meter: Rc<Meter>,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, Failure> {
        let tls = if reach.target.tls { Some(tls::connector(reach.endpoint.ca_file.as_deref())?) } else { None };
        let request = request(reach)?;
        let tcp = connect(address, reach.silence, registry, token).map_err(|e| Failure::from_io(&e, "dialing"))?;
        meter.set_sending(Purpose::Handshake);
        let wire = Wire { tcp, meter: Rc::clone(&meter) };
        let (host, encodings) = (reach.target.host.clone(), reach.encodings.clone());
        Ok(Self { stage: Stage::Dialing(wire), plan: Plan { host, request, encodings, tls, meter } })
    }

    /// Goes on as far as it can, but at most to the end of one stage.
    pub fn advance(self) -> Result<Progress, Failure> {
        let Self { stage, plan } = self;
        let meter = Rc::clone(&plan.meter);
        let progress = match stage {
            Stage::Dialing(wire) => match connected(&wire.tcp).map_err(|e| Failure::from_io(&e, "dialing"))? {
                false => Ok(Progress::Waiting(Self { stage: Stage::Dialing(wire), plan })),
                true => Ok(Progress::Dialed(Self { stage: Stage::Dialed(wire), plan })),
            },
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

fn connect(address: SocketAddr, silence: Duration, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    let mut tcp = TcpStream::connect(address)?;
    let socket = SockRef::from(&tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    registry.register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(tcp)
}

fn connected(tcp: &TcpStream) -> io::Result<bool> {
    if let Some(error) = tcp.take_error()? {
        return Err(error);
    }
    match tcp.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

fn request(reach: &Reach) -> Result<Request, Failure> {
    let fault = |error: &dyn std::fmt::Display| Failure::new(Class::WrongPlace, format!("upgrading: {error}"));
    let mut request = reach.target.uri.clone().into_client_request().map_err(|error| fault(&error))?;
    let tokens: Vec<_> = reach.encodings.iter().map(|encoding| encoding.token()).collect();
    let headers = request.headers_mut();
    if !tokens.is_empty() {
        let tokens = HeaderValue::try_from(tokens.join(", ")).map_err(|error| fault(&error))?;
        headers.insert(SEC_WEBSOCKET_PROTOCOL, tokens);
    }
    headers.insert(USER_AGENT, HeaderValue::try_from(&reach.agent).map_err(|error| fault(&error))?);
    if let Some(path) = &reach.endpoint.token_file {
        let refused = |error: String| Failure::new(Class::Credentials, error);
        let token = secret::read(path).map_err(refused)?;
        let bearer = HeaderValue::try_from(format!("Bearer {token}"));
        let mut bearer = bearer.map_err(|_| refused(format!("{}: no token", path.display())))?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
    Ok(request)
}

/// tungstenite's own wrapper panics where a non-blocking handshake would block, so the handshake is driven here.
fn secured(
    result: Result<native_tls::TlsStream<Wire>, native_tls::HandshakeError<Wire>>,
    plan: Plan,
) -> Result<Progress, Failure> {
    match result {
        Ok(tls) => Ok(Progress::Secured(Handshake { stage: Stage::Secured(Stream::Tls(Box::new(tls))), plan })),
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
        Err(HandshakeError::Failure(error)) => Err(failure(&error, "upgrading")),
    }
}

/// What a WebSocket error means.
fn failure(error: &WsError, stage: &str) -> Failure {
    let class = match error {
        WsError::Io(error) if error.to_string().contains("unexpected eof") => Class::Reset, // OpenSSL 3, as `Other`
        WsError::Io(error) => return Failure::from_io(error, stage),
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::temp_dir::TempDir;

    fn reach(token_file: Option<std::path::PathBuf>) -> Reach {
        Reach {
            target: Target::try_new("ws://127.0.0.1:1/v1").unwrap(),
            endpoint: Endpoint { token_file, ..Endpoint::default() },
            encodings: vec![Encoding::Postcard, Encoding::Json],
            agent: "backhaul/0.1.0".into(),
            silence: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_upgrade_request_offers_the_encodings_in_order_and_names_the_agent() {
        let request = request(&reach(None)).unwrap();
        let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(text("sec-websocket-protocol"), Some("backhaul.v1.postcard, backhaul.v1.json"));
        assert_eq!(text("user-agent"), Some("backhaul/0.1.0"));
        assert_eq!(text("host"), Some("127.0.0.1:1"));
        assert_eq!(text("authorization"), None);
    }

    #[test]
    fn the_token_is_read_on_each_dial_and_refused_when_others_can_read_it() {
        let dir = TempDir::new("token");
        let path = dir.join("token");
        let authorization = || {
            let request = request(&reach(Some(path.clone())))?;
            Ok(request.headers().get("authorization").unwrap().to_str().unwrap().to_owned())
        };
        for token in ["first", "second"] {
            fs::write(&path, format!("{token}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            assert_eq!(authorization(), Ok(format!("Bearer {token}")));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let failure: Failure = authorization().unwrap_err();
        assert_eq!(failure.class, Class::Credentials);
        assert!(!failure.detail.contains("second"), "{failure}");
        fs::remove_file(&path).unwrap();
        assert_eq!(authorization().unwrap_err().class, Class::Credentials);
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
