//! One socket on the server's side, as a sequence of moved stages: TLS, the upgrade, frames, the close.
//!
//! It performs and does not decide: the gate says who may come in, the loop says what is sent and when to close. It
//! must not know sessions or the store. Never blocks; every `poll` does a bounded piece of work.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsAcceptor, TlsStream};
use tungstenite::error::ProtocolError;
use tungstenite::handshake::machine::{HandshakeMachine, RoundResult, StageResult};
use tungstenite::handshake::server::Request;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use crate::dialect::codec::MESSAGE_BYTES_MAX;
use crate::dialect::message::Frame;
use crate::fleet::TurnedAway;

use super::session::Close;
use super::upgrade::{Admitted, Gate, Refusal};

/// What one `read` takes, per connection and for its life.
const READ_BYTES: usize = 16 * 1024;
/// Collected before a write; an explicit flush sends less.
const WRITE_BYTES: usize = 4 * 1024;
/// What a far end that does not read may leave with us: one message and a few acks.
const WRITE_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 64 * 1024;

const _: () = assert!(WRITE_BYTES_MAX > WRITE_BYTES + MESSAGE_BYTES_MAX);

/// One connection.
pub struct Connection {
    stage: Stage,
    /// Whatever it asks for, the answer is no.
    turned_away: Option<TurnedAway>,
}

/// What `poll` found.
pub enum Event {
    /// Nothing more until the socket is ready again.
    Blocked,
    /// A step was made, nothing to tell; poll again.
    Moved,
    /// The upgrade is done: frames from now on. Its `answer` is sent already.
    Opened(Admitted),
    /// It went before it said a word, so that it has cost nothing; drop the connection.
    Left,
    /// The upgrade was refused; the far end is told.
    Refused(Refusal),
    /// A data frame.
    Data(Message),
    /// What came is no WebSocket (RFC 6455 § 7.1.7): close with this.
    Broken(Close),
    /// It is over; drop the connection.
    Ended(String),
}

enum Stage {
    /// Not a byte came yet, and nothing is spent on it.
    Silent(TcpStream, Option<TlsAcceptor>),
    Securing(MidHandshakeTlsStream<TcpStream>),
    /// Reads the upgrade request.
    Asked(HandshakeMachine<Stream>),
    /// Writes the answer to it; `rest` came behind the request.
    Answering(HandshakeMachine<Stream>, Result<(Admitted, Vec<u8>), Refusal>),
    Open(Box<WebSocket<Stream>>),
    /// What came is no WebSocket. Never read from it again: after an error tungstenite 0.30 has lost its place
    /// (`FrameCodec::read_in` asserts a capacity that a message too long left unreserved). It waits for `close`.
    Broken(Box<WebSocket<Stream>>),
    /// Our close frame is out or on its way.
    Closing(Box<WebSocket<Stream>>),
    /// Nothing more is sent; what still comes is thrown away until the far end is gone, since a socket dropped with
    /// unread bytes resets the connection and may take our last words with it (RFC 9293 § 3.10.4).
    Lingering(Stream),
    Ended(String),
    /// While a stage is being moved.
    Moving,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("stage", &self.stage()).finish()
    }
}

impl Connection {
    /// A socket just accepted; non-blocking. Who is turned away is told so in answer to its request:
    /// before TLS it could not read it.
    pub fn new(socket: TcpStream, tls: Option<&TlsAcceptor>, turned_away: Option<TurnedAway>) -> Self {
        Self { stage: Stage::Silent(socket, tls.cloned()), turned_away }
    }

    /// The stage's name, for logs.
    pub fn stage(&self) -> &'static str {
        match &self.stage {
            Stage::Silent(..) => "silent",
            Stage::Securing(_) => "securing",
            Stage::Asked(_) | Stage::Answering(..) => "upgrading",
            Stage::Open(_) | Stage::Broken(_) => "open",
            Stage::Closing(_) | Stage::Lingering(_) => "closing",
            Stage::Ended(_) | Stage::Moving => "ended",
        }
    }

    /// Bytes read since the upgrade began; rises with every sign of life, also in the middle of a message.
    pub fn bytes_read(&self) -> u64 {
        match &self.stage {
            Stage::Asked(machine) | Stage::Answering(machine, _) => machine.get_ref().bytes_read,
            Stage::Open(socket) | Stage::Broken(socket) | Stage::Closing(socket) => socket.get_ref().bytes_read,
            Stage::Lingering(stream) => stream.bytes_read,
            Stage::Silent(..) | Stage::Securing(_) | Stage::Ended(_) | Stage::Moving => 0,
        }
    }

    /// Does one step: of the handshake, or reads one message.
    pub fn poll(&mut self, gate: &Gate) -> Event {
        let (stage, event) = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Silent(socket, tls) => silent(socket, tls),
            Stage::Securing(middle) => secured(middle.handshake()),
            Stage::Asked(machine) => asked(machine, gate, self.turned_away),
            Stage::Answering(machine, verdict) => answering(machine, verdict),
            Stage::Open(socket) => open(socket),
            Stage::Broken(socket) => (Stage::Broken(socket), Event::Blocked),
            Stage::Closing(socket) => closing(socket),
            Stage::Lingering(stream) => lingering(stream),
            Stage::Ended(why) => (Stage::Ended(why.clone()), Event::Ended(why)),
            Stage::Moving => unreachable!("a stage is put back before poll returns"),
        };
        self.stage = stage;
        event
    }

    /// Queues a message. An `Err` says why the connection is of no more use.
    pub fn send(&mut self, frame: Frame) -> Result<(), String> {
        let message = match frame {
            Frame::Text(text) => Message::Text(text.into()),
            Frame::Binary(bytes) => Message::Binary(bytes.into()),
        };
        self.write(message)
    }

    /// Queues a ping and sends what is queued.
    pub fn ping(&mut self) -> Result<(), String> {
        self.write(Message::Ping(Vec::new().into()))?;
        self.flush()
    }

    /// Sends what is queued, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), String> {
        match &mut self.stage {
            Stage::Open(socket) | Stage::Closing(socket) => unblocked(socket.flush()),
            Stage::Silent(..) | Stage::Securing(_) | Stage::Asked(_) | Stage::Answering(..) => Ok(()),
            Stage::Broken(_) | Stage::Lingering(_) | Stage::Ended(_) | Stage::Moving => Ok(()),
        }
    }

    /// Sends what is queued; true where nothing waits any more.
    pub fn is_flushed(&mut self) -> Result<bool, String> {
        match &mut self.stage {
            Stage::Open(socket) => match socket.flush() {
                Ok(()) => Ok(true),
                Err(error) if would_block(&error) => Ok(false),
                Err(error) => Err(in_words(&error)),
            },
            Stage::Silent(..) | Stage::Securing(_) | Stage::Asked(_) | Stage::Answering(..) => Ok(false),
            Stage::Broken(_) | Stage::Closing(_) | Stage::Lingering(_) | Stage::Ended(_) | Stage::Moving => Ok(false),
        }
    }

    /// Says goodbye. Data that still comes is thrown away; `poll` until it ends, with a deadline.
    pub fn close(&mut self, close: &Close) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Moving) {
            Stage::Open(mut socket) => match unblocked(socket.close(Some(close_frame(close)))) {
                Ok(()) => Stage::Closing(socket),
                Err(why) => Stage::Ended(why),
            },
            // One try: who sends garbage and does not read either is not owed more.
            Stage::Broken(mut socket) => match socket.close(Some(close_frame(close))) {
                Ok(()) => lingers(*socket),
                Err(error) => Stage::Ended(in_words(&error)),
            },
            // Not upgraded yet: there is no frame to say it with.
            Stage::Silent(..) | Stage::Securing(_) | Stage::Asked(_) | Stage::Answering(..) => {
                Stage::Ended(close.reason.to_string())
            }
            stage @ (Stage::Closing(_) | Stage::Lingering(_) | Stage::Ended(_) | Stage::Moving) => stage,
        };
    }

    fn write(&mut self, message: Message) -> Result<(), String> {
        match &mut self.stage {
            Stage::Open(socket) => unblocked(socket.write(message)),
            Stage::Silent(..) | Stage::Securing(_) | Stage::Asked(_) | Stage::Answering(..) => Ok(()),
            Stage::Broken(_) | Stage::Closing(_) => Ok(()),
            Stage::Lingering(_) | Stage::Ended(_) | Stage::Moving => Ok(()),
        }
    }
}

fn close_frame(close: &Close) -> CloseFrame {
    CloseFrame { code: CloseCode::from(close.code), reason: (*close.reason).into() }
}

/// The last word is written.
fn lingers(socket: WebSocket<Stream>) -> Stage {
    let mut stream = socket.into_inner();
    stream.end();
    Stage::Lingering(stream)
}

/// A write that waits for the socket is no failure: what it held is queued.
fn unblocked(result: Result<(), Error>) -> Result<(), String> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if would_block(&error) => Ok(()),
        Err(error) => Err(in_words(&error)),
    }
}

/// In words, but never with the message that did not fit.
fn in_words(error: &Error) -> String {
    if matches!(error, Error::WriteBufferFull(_)) {
        return format!("it does not read: {WRITE_BYTES_MAX} bytes wait");
    }
    error.to_string()
}

fn silent(socket: TcpStream, tls: Option<TlsAcceptor>) -> (Stage, Event) {
    match socket.peek(&mut [0]) {
        Ok(0) => (Stage::Ended("nothing came".into()), Event::Left),
        Ok(_) => match tls {
            None => (Stage::Asked(HandshakeMachine::start_read(Stream::new(Wire::Plain(socket)))), Event::Moved),
            Some(acceptor) => secured(acceptor.accept(socket)),
        },
        Err(error) if error.kind() == ErrorKind::WouldBlock => (Stage::Silent(socket, tls), Event::Blocked),
        Err(error) if error.kind() == ErrorKind::Interrupted => (Stage::Silent(socket, tls), Event::Moved),
        Err(error) => (Stage::Ended(error.to_string()), Event::Left),
    }
}

fn secured(result: Result<TlsStream<TcpStream>, HandshakeError<TcpStream>>) -> (Stage, Event) {
    match result {
        Ok(stream) => (Stage::Asked(HandshakeMachine::start_read(Stream::new(Wire::Tls(stream)))), Event::Moved),
        Err(HandshakeError::WouldBlock(middle)) => (Stage::Securing(middle), Event::Blocked),
        Err(HandshakeError::Failure(error)) => ended(format!("TLS: {error}")),
    }
}

fn asked(machine: HandshakeMachine<Stream>, gate: &Gate, turned_away: Option<TurnedAway>) -> (Stage, Event) {
    match machine.single_round::<Request>() {
        Ok(RoundResult::WouldBlock(machine)) => (Stage::Asked(machine), Event::Blocked),
        Ok(RoundResult::Incomplete(machine)) => (Stage::Asked(machine), Event::Moved),
        Ok(RoundResult::StageFinished(StageResult::DoneReading { result, stream, tail })) => {
            let verdict = match turned_away {
                Some(word) => Err(Refusal::Unavailable(word)),
                None => gate.admit(&result).map(|admitted| (admitted, tail)),
            };
            let answer = match &verdict {
                Ok((admitted, _)) => admitted.answer.clone(),
                Err(refusal) => refusal.answer(),
            };
            (Stage::Answering(HandshakeMachine::start_write(stream, answer), verdict), Event::Moved)
        }
        Ok(RoundResult::StageFinished(StageResult::DoneWriting(_))) => ended("nothing was written".into()),
        Err(error) => ended(format!("upgrade: {error}")),
    }
}

fn answering(machine: HandshakeMachine<Stream>, verdict: Result<(Admitted, Vec<u8>), Refusal>) -> (Stage, Event) {
    match machine.single_round::<Request>() {
        Ok(RoundResult::WouldBlock(machine)) => (Stage::Answering(machine, verdict), Event::Blocked),
        Ok(RoundResult::Incomplete(machine)) => (Stage::Answering(machine, verdict), Event::Moved),
        Ok(RoundResult::StageFinished(StageResult::DoneWriting(mut stream))) => match verdict {
            Ok((admitted, rest)) => {
                let socket = WebSocket::from_partially_read(stream, rest, Role::Server, Some(limits()));
                (Stage::Open(Box::new(socket)), Event::Opened(admitted))
            }
            Err(refusal) => {
                stream.end();
                (Stage::Lingering(stream), Event::Refused(refusal))
            }
        },
        Ok(RoundResult::StageFinished(StageResult::DoneReading { .. })) => ended("nothing was read".into()),
        Err(error) => ended(format!("upgrade: {error}")),
    }
}

/// All five set: tungstenite's own are for a few big clients, not for many small ones.
fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_write_buffer_size(WRITE_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

fn open(mut socket: Box<WebSocket<Stream>>) -> (Stage, Event) {
    let broken = match socket.read() {
        Ok(message @ (Message::Text(_) | Message::Binary(_))) => return (Stage::Open(socket), Event::Data(message)),
        Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => return (Stage::Open(socket), Event::Moved),
        // The far end's close; our answer to it leaves with the next read.
        Ok(Message::Close(_)) => return (Stage::Closing(socket), Event::Moved),
        // Read to the end; what is queued may still wait for the socket.
        Err(error) if would_block(&error) => match unblocked(socket.flush()) {
            Ok(()) => return (Stage::Open(socket), Event::Blocked),
            Err(why) => return ended(why),
        },
        Err(Error::Capacity(_)) => Close::new(1009, "a message is at most 1 MiB"),
        Err(Error::Utf8(_)) => Close::new(1007, "text that is not UTF-8"),
        Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => {
            return ended("the far end is gone".into());
        }
        Err(Error::Protocol(_)) => Close::new(1002, "not a WebSocket frame"),
        Err(error) => return ended(in_words(&error)),
    };
    (Stage::Broken(socket), Event::Broken(broken))
}

fn closing(mut socket: Box<WebSocket<Stream>>) -> (Stage, Event) {
    match socket.read() {
        Ok(_) => (Stage::Closing(socket), Event::Moved),
        Err(error) if would_block(&error) => match unblocked(socket.flush()) {
            Ok(()) => (Stage::Closing(socket), Event::Blocked),
            Err(why) => ended(why),
        },
        Err(Error::ConnectionClosed | Error::AlreadyClosed) => {
            let mut stream = socket.into_inner();
            stream.end();
            ended("closed".into())
        }
        // What comes is no WebSocket any more: our close frame is out, wait for the end.
        Err(Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_)) => (lingers(*socket), Event::Moved),
        Err(error) => ended(in_words(&error)),
    }
}

fn lingering(mut stream: Stream) -> (Stage, Event) {
    let mut thrown_away = [0; 4096];
    match stream.read(&mut thrown_away) {
        Ok(0) => ended("closed".into()),
        Ok(_) => (Stage::Lingering(stream), Event::Moved),
        Err(error) if error.kind() == ErrorKind::WouldBlock => (Stage::Lingering(stream), Event::Blocked),
        Err(error) if error.kind() == ErrorKind::Interrupted => (Stage::Lingering(stream), Event::Moved),
        Err(error) => ended(error.to_string()),
    }
}

fn ended(why: String) -> (Stage, Event) {
    (Stage::Ended(why.clone()), Event::Ended(why))
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Bytes, with or without TLS, and how many came.
struct Stream {
    wire: Wire,
    bytes_read: u64,
}

enum Wire {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
}

impl Stream {
    fn new(wire: Wire) -> Self {
        Self { wire, bytes_read: 0 }
    }

    /// Nothing more will be written. The far end may be gone already; then there is nobody to tell.
    fn end(&mut self) {
        let _ = match &mut self.wire {
            Wire::Plain(socket) => socket.shutdown(Shutdown::Write),
            // First the word that tells an end from a cut (RFC 8446 § 6.1).
            Wire::Tls(stream) => stream.shutdown().and_then(|()| stream.get_ref().shutdown(Shutdown::Write)),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.wire {
            Wire::Plain(socket) => socket.read(buffer)?,
            Wire::Tls(stream) => stream.read(buffer)?,
        };
        self.bytes_read += count as u64;
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.wire {
            Wire::Plain(socket) => socket.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.wire {
            Wire::Plain(socket) => socket.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}
