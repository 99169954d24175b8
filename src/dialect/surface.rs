//! What goes into a session and what comes out of it: values, no behaviour.

use super::message::{CommandCursor, Frame};
use crate::config::{self, Encoding};
use crate::link::Failure;
use crate::record::{Body, Epoch, Fetch, Item, LaneName, Offer, Seq};

/// What a session needs of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Records unacknowledged on the connection, at most.
    pub window_records: u32,
    /// Bytes of topic and body unacknowledged on the connection, at most; a lone larger record goes alone.
    pub window_bytes: u32,
    /// Bytes of topic and body in one message, at most; a lone larger record goes alone.
    pub batch_bytes_max: u32,
    /// Longest wait for an ack with something in flight, in ms.
    pub ack_timeout_ms: u64,
    /// Bytes of topic and body unacknowledged, at most, before the path is known (RFC 6928 § 2 allows TCP 10 segments).
    pub start_bytes: u32,
    /// What a batch may take of a slow path, in ms: a second, and a third of the heartbeat's timeout at most.
    pub batch_ms_max: u64,
    /// `[upstream.pace] records_per_s_max`
    pub records_per_s_max: u64,
    /// `[upstream.pace] bytes_per_s_max`
    pub bytes_per_s_max: u64,
    /// The lanes; one that is not here has weight 1 and nothing else.
    pub lanes: Vec<LaneConfig>,
}

/// What a session needs to know of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneConfig {
    /// Its name.
    pub name: LaneName,
    /// Its share of a link too narrow for all lanes.
    pub weight: u32,
    /// While it has several epochs, the newest one's share of that, in thousandths; 0: no epoch is preferred.
    pub live_permille: u32,
    /// It goes on though the day's bytes are spent.
    pub cap_exempt: bool,
}

impl Default for Config {
    /// As the configuration's defaults have it, for no lanes.
    fn default() -> Self {
        let upstream = config::Upstream::default();
        Self {
            window_records: upstream.window_records,
            window_bytes: upstream.window_bytes,
            batch_bytes_max: upstream.batch_bytes_max,
            ack_timeout_ms: upstream.ack_timeout_ms,
            // Two seconds of 2 kB/s; elsewhere one round trip more at a session's begin.
            start_bytes: 4096,
            batch_ms_max: 1000,
            records_per_s_max: 0,
            bytes_per_s_max: 0,
            lanes: Vec::new(),
        }
    }
}

/// What `hello` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Greeting {
    /// Unique in the fleet.
    pub device: String,
    /// `name/version`.
    pub agent: String,
    /// Random, new at each start of the agent.
    pub boot: String,
    /// All that the connection will carry.
    pub offers: Vec<Offer>,
    /// The last command done.
    pub commands: Option<CommandCursor>,
    /// The class of what ended the session before.
    pub last: Option<String>,
    /// The session's number in this process; stands in every [`Fetch`].
    pub session: u64,
    /// As negotiated; `None`: the plain dialect, in which there is no `hello`.
    pub encoding: Option<Encoding>,
    /// The day's bytes are spent.
    pub capped: bool,
    /// Records in one message, at most: halved after connections that ended before any ack advanced (rule 6).
    pub batch_records_max: u32,
    /// So many records go one at a time: the far end found one of those that were in flight too large (close 1009).
    pub lone_records: u32,
}

/// What was sent on a connection and is not known to be acked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// So many records.
    pub records: u64,
    /// Which one, where it is one.
    pub lone: Option<(LaneName, Epoch, Seq)>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<'a> {
    /// A message came.
    Text(&'a str),
    /// A message came.
    Binary(&'a [u8]),
    /// A pong came, with this payload.
    Pong(&'a [u8]),
    /// What the outbox can offer now, all of it. An offer of a (lane, epoch) that `hello` did not name ends the
    /// session ([`crate::link::Class::Renewed`]).
    Offers(&'a [Offer]),
    /// The outbox's answer to a [`Fetch`], contiguous from its `from`; empty: nothing there after all.
    Items(&'a Fetch, Vec<Item>),
}

/// What a frame is for: bytes on the wire are counted by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Records and gaps.
    Records,
    /// Acks and refusals.
    Acks,
    /// Commands and what is done of them.
    Commands,
    /// Pings and pongs.
    Heartbeat,
    /// Upgrade, `hello`, `welcome`.
    Handshake,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send this.
    Transmit {
        /// The message.
        frame: Frame,
        /// What for.
        purpose: Purpose,
    },
    /// Send a ping behind all of the above, with this number as its payload.
    Ping(u64),
    /// Ask the outbox; at most one per (lane, epoch) is outstanding.
    Fetch(Fetch),
    /// The far end is ready: `welcome` came.
    Greeted {
        /// The session's name, for the log.
        name: String,
        /// The server's Unix time, in ms, where it says.
        server_now_ms: Option<u64>,
        /// The server's numbering of commands, where it has any.
        command_stream: Option<u64>,
    },
    /// A first ack came, or there was nothing to send.
    Proved,
    /// Everything up to `seq` is stored upstream.
    Acked {
        /// The lane.
        lane: LaneName,
        /// The epoch.
        epoch: Epoch,
        /// The last number stored.
        seq: Seq,
    },
    /// A record is refused for ever; comes before the `Acked` that covers it.
    Rejected {
        /// The lane.
        lane: LaneName,
        /// The epoch.
        epoch: Epoch,
        /// The record's number.
        seq: Seq,
        /// Why, for people.
        reason: String,
        /// Not by the server but here (rule 6): a gap says so, and the outbox gives the record up.
        ours: bool,
    },
    /// Rule 7: this numbering is not ours; an `End` follows. The outbox draws a new epoch.
    Foreign {
        /// The lane.
        lane: LaneName,
        /// The epoch that is not ours.
        epoch: Epoch,
    },
    /// Rule 7: the server lost state; a `settled` gap goes up.
    Forgotten {
        /// The lane.
        lane: LaneName,
        /// The epoch.
        epoch: Epoch,
        /// What the server still has.
        acked: Seq,
        /// What it had.
        had: Seq,
    },
    /// For local programs.
    Command {
        /// Its number in the command stream.
        seq: u64,
        /// What it is about.
        topic: String,
        /// What it says.
        body: Body,
    },
    /// The server asks us to leave.
    Retry {
        /// Not before, in ms.
        after_ms: u64,
        /// The width of the spread, in ms.
        spread_ms: u64,
        /// The endpoint to come back to, which may be one that is not configured.
        endpoint: Option<String>,
    },
    /// The session is over: nothing comes after it.
    End {
        /// For the link.
        failure: Failure,
        /// Close with this code.
        close: Option<u16>,
    },
}

/// Why a deadline is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// Records in flight want an ack.
    Ack,
    /// The pace allows the next record.
    Pace,
    /// Neither ack nor pong came while something waited and a window may open: a ping asks, or more may be unacked.
    Window,
}
