//! An upstream of our own that keeps the protocol, or breaks it in one of the ways of [`Fault`]. It keeps its books in
//! memory, and notes every breach of the protocol by the agent. Written against the protocol's specification alone:
//! messages go through serde, not through the agent's codec.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backhaul::dialect::message::{Acked, AgentMessage, Hello, Rejected, ServerMessage, Welcome};
use backhaul::record::{Epoch, LaneName, Record, Seq};
use native_tls::{TlsAcceptor, TlsStream};
use socket2::SockRef;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::http::HeaderValue;
use tungstenite::http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error, Message, WebSocket};

use super::listen;

/// A way to misbehave. It applies to connections accepted while it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: the protocol is kept.
    None,
    /// Nobody listens.
    Refuses,
    /// Accepts, and closes.
    Closes,
    /// Accepts, and resets.
    Resets,
    /// Accepts, and says nothing: where TLS is spoken it is never up, else the upgrade is never answered.
    NeverAnswers,
    /// Answers the first bytes with these, before any TLS, and then does this.
    Answers(&'static [u8], Then),
    /// Refuses the upgrade with this status and these headers (each line ends in CRLF).
    Http(u16, &'static str),
    /// Upgrades with a `Sec-WebSocket-Accept` that is not the answer to the key.
    WrongAcceptKey,
    /// Upgrades without picking a subprotocol.
    PicksNoSubprotocol,
    /// Upgrades with a subprotocol that was not offered.
    PicksStrangeSubprotocol,
    /// Upgrades, answers pings, and does this in place of saying `welcome`.
    InsteadOfWelcome(Act),
    /// Says `welcome`, and then does this.
    AfterWelcome(Act),
    /// Stores, and never acks. The next `welcome` tells the truth.
    NeverAcks,
    /// Acks so much more than it was sent.
    AcksBeyond(u64),
    /// Refuses for ever every record that contains this, and repeats its refusals in each `welcome`.
    Rejects(&'static str),
    /// Takes messages of so many bytes at most.
    TakesAtMost(u64),
}

/// What a session does that has gone wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing: stores nothing, says nothing, answers pings.
    Silence,
    /// Nothing at all: pings are not answered either.
    Deafness,
    /// Sends a text frame that is no JSON.
    GarbageText,
    /// Sends a binary frame that is no postcard value.
    GarbageBinary,
    /// Sends these bytes in place of a WebSocket frame.
    Bytes(&'static [u8]),
    /// Sends these bytes, and then falls deaf.
    BytesThenDeafness(&'static [u8]),
    /// Says `welcome` (again).
    Welcome,
    /// Asks to leave and come back: `after_ms`, `spread_ms`.
    Retry(u64, u64),
    /// Closes with this code and reason.
    Close(u16, &'static str),
    /// Closes TCP, without a close frame.
    Vanish,
    /// Resets TCP.
    Reset,
}

/// How an answer that is none goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The connection is closed.
    Close,
    /// It stays open, and nothing more is said.
    Silence,
    /// It is reset.
    Reset,
}

/// A gap as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapSeen {
    pub lane: String,
    pub epoch: Epoch,
    pub from: Seq,
    pub to: Seq,
    /// Causes and counts.
    pub lost: Vec<(String, u64)>,
}

/// What the server knows.
#[derive(Default)]
pub struct Books {
    /// When each connection was accepted.
    pub attempts: Vec<Instant>,
    /// Each `hello`, in the order of arrival.
    pub hellos: Vec<Hello>,
    /// What `welcome` says; may be tampered with.
    pub acked: BTreeMap<(String, Epoch), Seq>,
    /// What was stored.
    pub records: BTreeMap<(String, Epoch, Seq), Vec<u8>>,
    /// When that was handed in, as sent (`at`).
    pub stamps: BTreeMap<(String, Epoch, Seq), Option<u64>>,
    /// The time that `welcome` tells, in Unix ms; else any.
    pub now_ms: Option<u64>,
    /// Each gap, in the order of arrival.
    pub gaps: Vec<GapSeen>,
    /// What was refused for ever.
    pub rejected: BTreeSet<(String, Epoch, Seq)>,
    /// Close codes that the agent sent.
    pub closes: Vec<u16>,
    /// What the agent did against the protocol.
    pub breaches: Vec<String>,
}

impl Books {
    /// Forgets what is above `seq`: acks and records, as a server whose storage was restored from a copy.
    pub fn forget_above(&mut self, lane: &str, epoch: Epoch, seq: Seq) {
        self.acked.insert((lane.into(), epoch), seq);
        self.records.retain(|name, _| name.0 != lane || name.1 != epoch || name.2 <= seq);
    }

    /// The epochs of a lane that any `hello` has named.
    pub fn epochs_offered(&self, lane: &str) -> BTreeSet<Epoch> {
        let lanes = self.hellos.iter().flat_map(|hello| &hello.lanes);
        lanes.filter(|offered| offered.lane.as_str() == lane).map(|offered| offered.epoch).collect()
    }
}

struct State {
    fault: Fault,
    /// False while the port is closed.
    listening: bool,
    /// Where TLS is spoken: with this certificate.
    tls: Option<TlsAcceptor>,
    /// Sessions begun before the last kick carry a lower number, and end.
    generation: u64,
    stop: bool,
    books: Books,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    port: u16,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self, generation: u64) -> bool {
        self.lock().generation != generation
    }
}

/// The server. Every connection is closed when it is dropped.
pub struct FaultServer {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultServer {
    /// A server that keeps the protocol, for now.
    pub fn new() -> Self {
        let (port, listener) = listen();
        let state = State {
            fault: Fault::None,
            listening: true,
            tls: None,
            generation: 0,
            stop: false,
            books: Books::default(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), port });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, listener)
        });
        Self { shared, acceptor: Some(acceptor) }
    }

    /// What an agent is to be configured with.
    pub fn url(&self) -> String {
        let scheme = if self.shared.lock().tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://127.0.0.1:{}/v1", self.shared.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Speaks TLS from the next connection on.
    pub fn set_tls(&self, acceptor: TlsAcceptor) {
        self.shared.lock().tls = Some(acceptor);
    }

    /// Misbehaves from the next connection on.
    pub fn set(&self, fault: Fault) {
        self.misbehave(fault, 0);
    }

    /// Drops every connection there is, without a close frame.
    pub fn kick(&self) {
        self.shared.lock().generation += 1;
        self.shared.changed.notify_all();
    }

    /// Misbehaves at once: sets the fault and drops what there is.
    pub fn strike(&self, fault: Fault) {
        self.misbehave(fault, 1);
    }

    /// In force when this returns, the port closed or open.
    fn misbehave(&self, fault: Fault, generations: u64) {
        let mut state = self.shared.lock();
        let refuses = fault == Fault::Refuses;
        state.fault = fault;
        state.generation += generations;
        let closes = refuses && state.listening;
        drop(state);
        self.shared.changed.notify_all();
        if closes {
            drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.shared.port)));
        }
        let wait = self.shared.changed.wait_while(self.shared.lock(), |state| state.listening == refuses);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Drops every connection there is and tampers with the books, in one step: nothing is stored in between.
    pub fn restart(&self, tamper: impl FnOnce(&mut Books)) {
        let mut state = self.shared.lock();
        state.generation += 1;
        tamper(&mut state.books);
        self.shared.changed.notify_all();
    }

    /// Reads, or tampers with, the books.
    pub fn books<R>(&self, use_them: impl FnOnce(&mut Books) -> R) -> R {
        use_them(&mut self.shared.lock().books)
    }

    /// Connections accepted so far.
    pub fn attempts(&self) -> usize {
        self.books(|books| books.attempts.len())
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stop = true;
        state.generation += 1;
        drop(state);
        self.shared.changed.notify_all();
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.shared.port)));
        if let Some(acceptor) = self.acceptor.take() {
            let _panicked = acceptor.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else {
            let wait = shared.changed.wait_while(shared.lock(), |state| state.fault == Fault::Refuses && !state.stop);
            if wait.unwrap_or_else(PoisonError::into_inner).stop {
                return;
            }
            // It was ours a moment ago, and its range is given to nobody.
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, shared.port)).ok();
            match &listener {
                Some(_) => shared.lock().listening = true,
                None => thread::sleep(Duration::from_millis(20)),
            }
            shared.changed.notify_all();
            continue;
        };
        let Ok((stream, _)) = open.accept() else { return };
        let mut state = shared.lock();
        if state.stop {
            return;
        }
        if state.fault == Fault::Refuses {
            listener = None;
            state.listening = false;
            drop(state);
            shared.changed.notify_all();
            continue;
        }
        state.books.attempts.push(Instant::now());
        let (fault, generation) = (state.fault.clone(), state.generation);
        drop(state);
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(&shared, stream, &fault, generation));
    }
}

/// One connection, from the upgrade to its end.
fn serve(shared: &Shared, mut stream: TcpStream, fault: &Fault, generation: u64) {
    let _refused = stream.set_nodelay(true);
    let _refused = stream.set_read_timeout(Some(Duration::from_secs(5)));
    match fault {
        // The one that the port was being closed before.
        Fault::Refuses | Fault::Closes => return,
        Fault::Resets => return reset(&stream),
        Fault::NeverAnswers => return idle(shared, generation),
        Fault::Answers(bytes, then) => {
            let plain = shared.lock().tls.is_none();
            answer(&mut stream, bytes, plain);
            return match then {
                Then::Close => (),
                Then::Silence => idle(shared, generation),
                Then::Reset => reset(&stream),
            };
        }
        Fault::None
        | Fault::Http(..)
        | Fault::WrongAcceptKey
        | Fault::PicksNoSubprotocol
        | Fault::PicksStrangeSubprotocol
        | Fault::InsteadOfWelcome(_)
        | Fault::AfterWelcome(_)
        | Fault::NeverAcks
        | Fault::AcksBeyond(_)
        | Fault::Rejects(_)
        | Fault::TakesAtMost(_) => {}
    }
    let Some(mut wire) = Wire::try_new(stream, shared.lock().tls.clone()) else { return };
    if let Fault::Http(status, headers) = fault {
        let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n");
        return answer(&mut wire, head.as_bytes(), true);
    }
    if let Some(mut session) = Session::upgrade(shared, wire, fault, generation) {
        // An error here is a send to an agent that has gone, which is its right.
        let _gone = session.run(fault);
    }
}

/// Lets the connection end in a reset, when it is closed.
fn reset(stream: &TcpStream) {
    let _refused = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The bytes below the WebSocket.
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// `None` where TLS fails.
    fn try_new(stream: TcpStream, tls: Option<TlsAcceptor>) -> Option<Self> {
        let Some(acceptor) = tls else { return Some(Self::Plain(stream)) };
        acceptor.accept(stream).ok().map(|stream| Self::Tls(Box::new(stream)))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref(),
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Sits on an open connection.
fn idle(shared: &Shared, generation: u64) {
    let wait = shared.changed.wait_while(shared.lock(), |state| state.generation == generation);
    drop(wait.unwrap_or_else(PoisonError::into_inner));
}

/// Reads the request's head (or, where it is not `plain`, whatever comes first), and answers.
fn answer(stream: &mut impl ReadWrite, bytes: &[u8], plain: bool) {
    const HEAD_BYTES_MAX: usize = 16 * 1024;
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(length) => head.extend_from_slice(&buffer[..length]),
        }
        if !plain {
            break;
        }
    }
    let _gone = stream.write_all(bytes);
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// One WebSocket.
struct Session<'a> {
    shared: &'a Shared,
    generation: u64,
    socket: WebSocket<Wire>,
    json: bool,
    /// The next number expected of each (lane, epoch) that `hello` named (rule 3).
    next: BTreeMap<(String, Epoch), Seq>,
}

impl<'a> Session<'a> {
    /// Answers the upgrade; picks the first subprotocol offered.
    fn upgrade(shared: &'a Shared, wire: Wire, fault: &Fault, generation: u64) -> Option<Self> {
        let mut picked = String::new();
        #[expect(clippy::result_large_err, reason = "tungstenite's callback has this type")]
        let pick = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
            picked = offered.and_then(|list| list.split(',').next()).unwrap_or_default().trim().into();
            if *fault == Fault::WrongAcceptKey {
                // The answer to the key of RFC 6455 § 1.3.
                let value = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, value);
            }
            if *fault != Fault::PicksNoSubprotocol {
                let strange = *fault == Fault::PicksStrangeSubprotocol;
                let value = if strange { "mqtt" } else { picked.as_str() };
                let value = HeaderValue::from_str(value).expect("what came in a header fits into one");
                response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, value);
            }
            Ok(response)
        };
        let socket = tungstenite::accept_hdr(wire, pick).ok()?;
        // Short, so that a kick is seen soon.
        let _refused = socket.get_ref().tcp().set_read_timeout(Some(Duration::from_millis(10)));
        let json = match picked.as_str() {
            "backhaul.v1.json" => true,
            "backhaul.v1.postcard" => false,
            other => {
                shared.lock().books.breaches.push(format!("offers {other:?}"));
                return None;
            }
        };
        Some(Self { shared, generation, socket, json, next: BTreeMap::new() })
    }

    /// Until the connection ends.
    fn run(&mut self, fault: &Fault) -> Result<(), Error> {
        match self.receive() {
            Some(AgentMessage::Hello(hello)) => {
                self.shared.lock().books.hellos.push(hello.clone());
                if let Fault::InsteadOfWelcome(act) = *fault {
                    self.act(act, &hello)?;
                    while let Some(message) = self.receive() {
                        self.breach(format!("before welcome: {}", name_of(&message)));
                    }
                    return Ok(());
                }
                self.welcome(&hello, fault)?;
                if let Fault::AfterWelcome(act) = *fault {
                    self.act(act, &hello)?;
                    while self.receive().is_some() {}
                    return Ok(());
                }
            }
            Some(other) => self.breach(format!("the first message is no hello but {}", name_of(&other))),
            None => {}
        }
        while let Some(message) = self.receive() {
            self.take(message, fault)?;
        }
        Ok(())
    }

    fn welcome(&mut self, hello: &Hello, fault: &Fault) -> Result<(), Error> {
        let message_bytes_max = if let Fault::TakesAtMost(bytes) = *fault { bytes } else { 1 << 20 };
        let (mut acked, mut rejected) = (Vec::new(), Vec::new());
        let now;
        {
            let state = self.shared.lock();
            now = state.books.now_ms.unwrap_or(1_800_000_000_000);
            for offered in &hello.lanes {
                let name = (offered.lane.to_string(), offered.epoch);
                let seq = state.books.acked.get(&name).copied().unwrap_or(0);
                self.next.insert(name, seq + 1);
                let (lane, epoch) = (offered.lane.clone(), offered.epoch);
                let held = (lane.to_string(), epoch, offered.first)..=(lane.to_string(), epoch, Seq::MAX);
                let of_these = state.books.rejected.range(held).map(|(_, _, seq)| refusal(&lane, epoch, *seq));
                rejected.extend(of_these);
                if seq > 0 {
                    acked.push(Acked { lane: offered.lane.clone(), epoch: offered.epoch, seq });
                }
            }
        }
        self.send(&ServerMessage::Welcome(Welcome {
            session: "rig".into(),
            features: Vec::new(),
            now,
            message_bytes_max,
            acked,
            rejected,
            command_stream: 1,
        }))
    }

    /// Stores, then acks.
    fn take(&mut self, message: AgentMessage, fault: &Fault) -> Result<(), Error> {
        let (lane, epoch) = match message {
            AgentMessage::Hello(_) => {
                self.breach("a second hello".into());
                return Ok(());
            }
            AgentMessage::Done { .. } => return Ok(()),
            AgentMessage::Records { lane, epoch, records } => {
                for record in records {
                    let seq = record.seq;
                    if self.store(&lane, epoch, record, fault) {
                        let Rejected { lane, epoch, seq, reason } = refusal(&lane, epoch, seq);
                        self.send(&ServerMessage::Reject { lane, epoch, seq, reason })?;
                    }
                }
                (lane, epoch)
            }
            AgentMessage::Gap { lane, epoch, from, to, lost } => {
                let lost = lost.into_iter().map(|lost| (lost.why, lost.count)).collect();
                let gap = GapSeen { lane: lane.to_string(), epoch, from, to, lost };
                self.account(&lane, epoch, from, to, |books| books.gaps.push(gap));
                (lane, epoch)
            }
        };
        let mut seq = self.shared.lock().books.acked.get(&(lane.to_string(), epoch)).copied().unwrap_or(0);
        match *fault {
            Fault::NeverAcks => return Ok(()),
            Fault::AcksBeyond(excess) => seq += excess,
            Fault::None
            | Fault::Refuses
            | Fault::Closes
            | Fault::Resets
            | Fault::NeverAnswers
            | Fault::Answers(..)
            | Fault::Http(..)
            | Fault::WrongAcceptKey
            | Fault::PicksNoSubprotocol
            | Fault::PicksStrangeSubprotocol
            | Fault::InsteadOfWelcome(_)
            | Fault::AfterWelcome(_)
            | Fault::Rejects(_)
            | Fault::TakesAtMost(_) => {}
        }
        self.send(&ServerMessage::Ack { lane, epoch, seq })
    }

    /// True where the record is refused for ever instead, which is stored likewise.
    fn store(&mut self, lane: &LaneName, epoch: Epoch, record: Record, fault: &Fault) -> bool {
        let (seq, body) = (record.seq, record.body.as_bytes().to_vec());
        let text = String::from_utf8_lossy(&body);
        let refused = matches!(*fault, Fault::Rejects(word) if text.contains(word));
        self.account(lane, epoch, seq, seq, |books| {
            let name = (lane.to_string(), epoch, seq);
            if refused {
                books.rejected.insert(name);
                return;
            }
            books.stamps.entry(name.clone()).or_insert(record.at);
            let before = books.records.insert(name.clone(), body.clone());
            if before.is_some_and(|before| before != body) {
                books.breaches.push(format!("{name:?} names two records"));
            }
        });
        refused
    }

    /// Notes that `from` to `to` are accounted for, if they are the next in line (rule 3) and the session has not been
    /// ended meanwhile (rule 2).
    fn account(&mut self, lane: &LaneName, epoch: Epoch, from: Seq, to: Seq, note: impl FnOnce(&mut Books)) {
        let mut state = self.shared.lock();
        if state.generation != self.generation {
            return;
        }
        let name = (lane.to_string(), epoch);
        let expected = self.next.get(&name).copied();
        if expected != Some(from) || to < from {
            state.books.breaches.push(format!("{name:?}: {from} to {to} where {expected:?} is next"));
            return;
        }
        self.next.insert(name.clone(), to + 1);
        let acked = state.books.acked.entry(name).or_default();
        *acked = to.max(*acked);
        note(&mut state.books);
    }

    fn act(&mut self, act: Act, hello: &Hello) -> Result<(), Error> {
        match act {
            Act::Silence => Ok(()),
            Act::Deafness => {
                idle(self.shared, self.generation);
                Err(Error::ConnectionClosed)
            }
            Act::GarbageText => self.socket.send(Message::text("}{ no JSON")),
            Act::GarbageBinary => self.socket.send(Message::binary(vec![0xff; 64])),
            Act::Bytes(bytes) => Ok(self.socket.get_mut().write_all(bytes)?),
            Act::BytesThenDeafness(bytes) => {
                self.socket.get_mut().write_all(bytes)?;
                self.act(Act::Deafness, hello)
            }
            Act::Welcome => self.welcome(hello, &Fault::None),
            Act::Retry(after_ms, spread_ms) => self.send(&ServerMessage::Retry { after_ms, spread_ms, endpoint: None }),
            Act::Close(code, reason) => {
                self.socket.close(Some(CloseFrame { code: CloseCode::from(code), reason: reason.into() }))
            }
            Act::Vanish => Ok(self.socket.get_ref().tcp().shutdown(Shutdown::Both)?),
            Act::Reset => {
                reset(self.socket.get_ref().tcp());
                Err(Error::ConnectionClosed)
            }
        }
    }

    /// The next message; `None` when the connection has ended or was kicked.
    fn receive(&mut self) -> Option<AgentMessage> {
        while !self.shared.is_over(self.generation) {
            let decoded = match self.socket.read() {
                Ok(Message::Text(text)) if self.json => serde_json::from_str(&text).map_err(|error| error.to_string()),
                Ok(Message::Binary(bytes)) if !self.json => {
                    postcard::from_bytes(&bytes).map_err(|error| error.to_string())
                }
                Ok(Message::Text(_) | Message::Binary(_)) => Err("a frame of the other encoding".into()),
                Ok(Message::Close(frame)) => {
                    let code = frame.map_or(1005, |frame| frame.code.into());
                    self.shared.lock().books.closes.push(code);
                    continue;
                }
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    continue;
                }
                // An agent may leave without a close frame: rule 5, or a kill.
                Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => return None,
                Err(Error::Protocol(error)) => {
                    self.breach(format!("WebSocket: {error}"));
                    return None;
                }
                Err(_) => return None,
            };
            match decoded {
                Ok(message) => return Some(message),
                Err(why) => self.breach(format!("a message that cannot be decoded: {why}")),
            }
        }
        None
    }

    fn send(&mut self, message: &ServerMessage) -> Result<(), Error> {
        let frame = if self.json {
            Message::text(serde_json::to_string(message).expect("a message is JSON"))
        } else {
            Message::binary(postcard::to_stdvec(message).expect("a message is postcard"))
        };
        self.socket.send(frame)
    }

    fn breach(&self, what: String) {
        self.shared.lock().books.breaches.push(what);
    }
}

fn refusal(lane: &LaneName, epoch: Epoch, seq: Seq) -> Rejected {
    Rejected { lane: lane.clone(), epoch, seq, reason: "schema".into() }
}

fn name_of(message: &AgentMessage) -> &'static str {
    match message {
        AgentMessage::Hello(_) => "hello",
        AgentMessage::Records { .. } => "records",
        AgentMessage::Gap { .. } => "gap",
        AgentMessage::Done { .. } => "done",
    }
}
