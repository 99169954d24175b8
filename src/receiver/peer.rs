//! One connection, and what it is to the loop: its session, its deadline, its place. It takes what comes, up to a bound,
//! and puts it into the turn; the loop commits and answers.

use std::net::SocketAddr;

use log::Level;
use tungstenite::Message;

use crate::dialect::codec::encode;
use crate::dialect::message::{FrameRef, ServerMessage};
use crate::time::Instant;

use super::commands::Command;
use super::connection::{Connection, Event};
use super::session::{Close, Introduction, Session, Step};
use super::store::{Store, StoreError};
use super::upgrade::Gate;

/// A session that was silent for so many intervals is closed.
const SILENT_INTERVALS_MAX: u32 = 3;
/// Messages (or steps of a handshake) of one connection before the next has its turn.
const STEPS_PER_VISIT_MAX: usize = 64;
/// Bytes of one connection before the next has its turn.
const BYTES_PER_VISIT_MAX: u64 = 1 << 20;

/// What the visits of one turn collect.
#[derive(Default)]
pub(super) struct Turn {
    /// Unix time in ms: when what comes in this turn was received.
    pub(super) now_ms: u64,
    /// Who said `hello`, in that order.
    pub(super) greetings: Vec<(usize, Introduction)>,
    /// From whom something was taken.
    pub(super) taken: Vec<usize>,
    /// Who may be sent commands.
    pub(super) commands: Vec<usize>,
}

/// One connection and what it is to us.
pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) address: SocketAddr,
    /// From the upgrade to the close.
    pub(super) session: Option<Session>,
    /// From `hello` on.
    pub(super) device: String,
    /// From `welcome` on.
    pub(super) name: String,
    /// Of the phase it is in: to `hello`, to the next ping, to the end of the close.
    pub(super) deadline: Instant,
    /// What it holds of the door's.
    pub(super) place: Place,
    /// It is in `ready`.
    pub(super) queued: bool,
    /// [`Connection::bytes_read`] at the last ping.
    pub(super) bytes_read: u64,
    /// Pings since the last sign of life.
    pub(super) silent_intervals: u32,
    /// The last command sent on this connection.
    command_sent: u64,
    /// There may be more, once it has read what waits.
    more_commands: bool,
}

/// What a connection holds of the door's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// One that it may come to use.
    Reserved,
    /// None: it is told to come back.
    Refused,
    /// None any more: it has used it, or given it back.
    Used,
}

/// How a visit ended.
pub(super) enum Visit {
    Blocked,
    /// There is more, but others wait.
    More,
    Refused,
    /// Before it said a word.
    Left,
    Close(Close),
    Ended(String),
    Failed(StoreError),
}

impl Peer {
    /// One just accepted.
    pub(super) fn new(connection: Connection, address: SocketAddr, place: Place, deadline: Instant) -> Self {
        Self {
            connection,
            address,
            session: None,
            device: String::new(),
            name: String::new(),
            deadline,
            place,
            queued: false,
            bytes_read: 0,
            silent_intervals: 0,
            command_sent: 0,
            more_commands: false,
        }
    }

    /// Takes what the connection brings, up to a bound.
    pub(super) fn visit(&mut self, id: usize, gate: &Gate, store: &mut Store, turn: &mut Turn) -> Visit {
        let bytes_before = self.connection.bytes_read();
        for _ in 0..STEPS_PER_VISIT_MAX {
            if self.connection.bytes_read().saturating_sub(bytes_before) >= BYTES_PER_VISIT_MAX {
                break;
            }
            match self.connection.poll(gate) {
                Event::Blocked => {
                    if self.more_commands {
                        turn.commands.push(id);
                    }
                    return Visit::Blocked;
                }
                Event::Moved => {}
                Event::Opened(admitted) => {
                    self.session = Some(Session::new(admitted.encoding, admitted.grant));
                    self.place = Place::Used;
                }
                Event::Refused(refusal) => {
                    // A herd is told of in one line a second.
                    let level = if self.place == Place::Refused { Level::Debug } else { Level::Info };
                    log::log!(target: "receiver", level, "refused address={} status={:?}", self.address, refusal.status());
                    return Visit::Refused;
                }
                Event::Left => return Visit::Left,
                Event::Broken(close) => return Visit::Close(close),
                Event::Ended(why) => return Visit::Ended(why),
                Event::Data(message) => match self.on_data(id, &message, store, turn) {
                    Ok(()) => {}
                    Err(visit) => return visit,
                },
            }
        }
        Visit::More
    }

    fn on_data(&mut self, id: usize, message: &Message, store: &mut Store, turn: &mut Turn) -> Result<(), Visit> {
        let frame = match message {
            Message::Text(text) => FrameRef::Text(text.as_str()),
            Message::Binary(bytes) => FrameRef::Binary(bytes),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => return Ok(()),
        };
        let Some(session) = &mut self.session else { return Ok(()) };
        let put = match session.handle_frame(&frame).map_err(Visit::Close)? {
            Step::Ignore => return Ok(()),
            Step::Greet(introduction) => {
                self.device = introduction.device.clone();
                turn.greetings.push((id, introduction));
                return Ok(());
            }
            Step::Store { lane, epoch, records } => {
                log::trace!(target: "receiver", "records device={:?} lane={lane} count={}", self.device, records.len());
                store.put_records(&self.device, &lane, epoch, &records, turn.now_ms)
            }
            Step::Lose { lane, epoch, from, to, lost } => {
                log::info!(target: "receiver", "gap device={:?} lane={lane} epoch={epoch} from={from} to={to}", self.device);
                store.put_gap(&self.device, (&lane, epoch), (from, to), &lost, turn.now_ms)
            }
            Step::Done { seq } => {
                log::debug!(target: "receiver", "done device={:?} seq={seq}", self.device);
                turn.commands.push(id);
                return store.put_done(&self.device, seq, turn.now_ms).map_err(Visit::Failed);
            }
        };
        put.map_err(Visit::Failed)?;
        if turn.taken.last() != Some(&id) {
            turn.taken.push(id);
        }
        Ok(())
    }

    pub(super) fn send(&mut self, message: &ServerMessage) -> Result<(), String> {
        let Some(session) = &self.session else { return Ok(()) };
        self.connection.send(encode(message, session.encoding()))
    }

    /// Sends what waits for it, one after the other as it reads them: a command may be as large as all that may wait to
    /// be read. The inner error is about the connection.
    pub(super) fn send_commands(&mut self, store: &Store) -> Result<Result<(), String>, StoreError> {
        if !self.session.as_ref().is_some_and(Session::is_up) {
            return Ok(Ok(()));
        }
        loop {
            self.more_commands = match self.connection.is_flushed() {
                Ok(is_flushed) => !is_flushed,
                Err(why) => return Ok(Err(why)),
            };
            if self.more_commands {
                return Ok(Ok(()));
            }
            let Some(Command { seq, topic, body }) = store.next_command(&self.device, self.command_sent)? else {
                return Ok(Ok(()));
            };
            log::debug!(target: "receiver", "command device={:?} seq={seq}", self.device);
            self.command_sent = seq;
            if let Err(why) = self.send(&ServerMessage::Command { seq, topic, body }) {
                return Ok(Err(why));
            }
        }
    }

    /// Acks all that was taken from it; the caller has committed.
    pub(super) fn send_acks(&mut self) -> Result<(), String> {
        while let Some(ack) = self.session.as_mut().and_then(Session::poll_ack) {
            self.send(&ack)?;
        }
        self.connection.flush()
    }

    /// An interval has passed. Counted, not measured: a loop that was itself asleep must not blame its peers.
    pub(super) fn ping(&mut self) -> Result<(), String> {
        let bytes_read = self.connection.bytes_read();
        self.silent_intervals = if bytes_read == self.bytes_read { self.silent_intervals + 1 } else { 0 };
        self.bytes_read = bytes_read;
        if self.silent_intervals >= SILENT_INTERVALS_MAX {
            self.connection.close(&Close::new(1001, "silent for three intervals"));
            return Err(format!("silent for {SILENT_INTERVALS_MAX} intervals"));
        }
        self.connection.ping()
    }
}
