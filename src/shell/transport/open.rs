//! The last stage: an open WebSocket. Owns the frames that wait for the socket; what they may add up to is the
//! session's business (its window), how much of it is in tungstenite's hands at once is decided here: one frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::Duration;

use tungstenite::error::Error as WsError;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Message, Utf8Bytes, WebSocket};

use super::wire::{Meter, Stream};
use super::{dial, failure};
use crate::dialect::Purpose;
use crate::dialect::message::Frame;
use crate::link::Failure;
use crate::record::MESSAGE_BYTES_MAX;

/// Room for control frames and headers beside the one frame in the write buffer.
const WRITE_SLACK_BYTES: usize = 4 << 10;
/// One read takes so many bytes at most; downstream there are acks and a rare command.
const READ_BYTES: usize = 16 << 10;

/// tungstenite's defaults are without bound or too large for a gateway (tokio-tungstenite#286): all five are set.
pub(super) fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(MESSAGE_BYTES_MAX + WRITE_SLACK_BYTES)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// Most bytes that tungstenite's buffers hold: a frame that comes in and the fragments before it, a frame that leaves,
/// each in a buffer that may just have doubled.
pub const BUFFERS_BYTES_MAX: usize = 2 * (READ_BYTES + 3 * MESSAGE_BYTES_MAX + WRITE_SLACK_BYTES);

/// An open WebSocket.
pub struct Open {
    socket: WebSocket<Stream>,
    /// Frames that wait for the one before them to leave.
    waiting: VecDeque<Waiting>,
    /// The socket took no more: its readiness says when to go on.
    stuck: bool,
    /// Pings that are written and not yet flushed, by number.
    pings: Vec<Option<u64>>,
    meter: Rc<Meter>,
}

/// What waits for the socket.
enum Waiting {
    Frame(Frame, Purpose),
    /// With this number.
    Ping(u64),
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message.
    Text(Utf8Bytes),
    /// A message.
    Binary(tungstenite::Bytes),
    /// A ping; its pong leaves by itself.
    Ping,
    /// A pong, and its payload.
    Pong(tungstenite::Bytes),
}

/// What a flush achieved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flushed {
    /// These pings have left, by number.
    pub pings: Vec<Option<u64>>,
    /// The socket was stuck, and took something again: a sign of life.
    pub shrank: bool,
}

impl Open {
    pub(super) fn new(socket: WebSocket<Stream>, meter: Rc<Meter>) -> Self {
        Self { socket, waiting: VecDeque::new(), stuck: false, pings: Vec::new(), meter }
    }

    /// From now on the kernel waits so long for an acknowledgement of what it has sent.
    pub fn set_silence(&self, silence: Duration) -> io::Result<()> {
        dial::set_silence(self.socket.get_ref().tcp(), silence)
    }

    /// Puts a frame behind the others; it leaves with [`Open::flush`].
    pub fn send(&mut self, frame: Frame, purpose: Purpose) {
        self.waiting.push_back(Waiting::Frame(frame, purpose));
    }

    /// Puts a ping behind the frames.
    pub fn ping_behind(&mut self, counter: u64) {
        self.waiting.push_back(Waiting::Ping(counter));
    }

    /// Writes a ping, behind the frame that is on its way and ahead of those that wait.
    pub fn ping(&mut self) -> Result<(), Failure> {
        self.pings.push(None);
        self.meter.set_sending(Purpose::Heartbeat);
        let result = self.socket.write(Message::Ping(tungstenite::Bytes::new()));
        self.stuck |= !self.done(result)?;
        Ok(())
    }

    /// Writes what the socket takes.
    pub fn flush(&mut self) -> Result<Flushed, Failure> {
        let (was_stuck, sent_before) = (self.stuck, self.meter.wire().bytes_sent);
        let mut pings = Vec::new();
        self.stuck = loop {
            let result = self.socket.flush();
            if !self.done(result)? {
                break true;
            }
            pings.append(&mut self.pings);
            let (message, purpose) = match self.waiting.pop_front() {
                None => {
                    // What tungstenite sends by itself is a pong.
                    self.meter.set_sending(Purpose::Heartbeat);
                    break false;
                }
                Some(Waiting::Frame(frame, purpose)) => (message(frame), purpose),
                Some(Waiting::Ping(counter)) => {
                    self.pings.push(Some(counter));
                    (Message::Ping(counter.to_string().into()), Purpose::Heartbeat)
                }
            };
            self.meter.set_sending(purpose);
            let result = self.socket.write(message);
            if !self.done(result)? {
                break true;
            }
        };
        Ok(Flushed { pings, shrank: was_stuck && self.meter.wire().bytes_sent > sent_before })
    }

    /// The next message; `None`: nothing more for now. A close frame is answered and ends as a failure.
    pub fn read(&mut self) -> Result<Option<Incoming>, Failure> {
        loop {
            return match self.socket.read() {
                Ok(Message::Text(text)) => Ok(Some(Incoming::Text(text))),
                Ok(Message::Binary(bytes)) => Ok(Some(Incoming::Binary(bytes))),
                Ok(Message::Ping(_)) => Ok(Some(Incoming::Ping)),
                Ok(Message::Pong(payload)) => Ok(Some(Incoming::Pong(payload))),
                Ok(Message::Close(frame)) => {
                    // The answer, best effort.
                    let _ = self.socket.flush();
                    let (code, reason) = frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
                    Err(Failure::from_close(code, &reason))
                }
                // "Will never come from a read", says tungstenite.
                Ok(Message::Frame(_)) => continue,
                Err(error) => self.done(Err(error)).map(|_| None),
            };
        }
    }

    /// Says goodbye with this code, as far as that is possible without waiting.
    pub fn close(mut self, code: u16) {
        self.say_close(code);
        self.socket.get_mut().shutdown();
    }

    fn say_close(&mut self, code: u16) {
        // Best effort: the socket may be full or gone.
        let _ = self.socket.close(Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from_static("") }));
    }

    /// False where the socket took or gave no more. What breaks RFC 6455 is answered with the code for it (§ 7.4.1).
    fn done(&mut self, result: Result<(), WsError>) -> Result<bool, Failure> {
        let Err(error) = result else { return Ok(true) };
        let code = match &error {
            WsError::Io(io) if io.kind() == ErrorKind::WouldBlock => return Ok(false),
            WsError::Io(_)
            | WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Tls(_)
            | WsError::WriteBufferFull(_)
            | WsError::Url(_)
            | WsError::Http(_)
            | WsError::HttpFormat(_) => None,
            WsError::Protocol(_) | WsError::AttackAttempt => Some(1002),
            WsError::Utf8(_) => Some(1007),
            WsError::Capacity(_) => Some(1009),
        };
        if let Some(code) = code {
            self.say_close(code);
        }
        Err(failure(&error, "up"))
    }
}

fn message(frame: Frame) -> Message {
    match frame {
        Frame::Text(text) => Message::Text(text.into()),
        Frame::Binary(bytes) => Message::Binary(bytes.into()),
    }
}
