//! The messages of `backhaul.v1`, frozen: two enums numbered from 0, fields in the order of the specification.
//! What is new is a new message at the end of its enum, sent only to a peer that named it in `features`; a changed
//! field is v2. Types only: bytes are [`codec`](super::codec)'s business, rules are [`Session`](super::Session)'s.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::record::{Body, Epoch, LaneName, MESSAGE_BYTES_MAX, Record, Seq, integer};

/// Items in a list of a message, at most; of `records` as many as fit. A list of empty strings takes 24 times as much
/// memory as bytes on the wire.
pub const LIST_LEN_MAX: usize = 8192;

/// What a decoded [`ServerMessage`] takes on the heap, at most, in bytes: its strings, and the three lists of `welcome`
/// while the buffer of each is doubled, with 80 bytes a string for the allocator and a lane's name.
pub const SERVER_MESSAGE_BYTES_MAX: usize = MESSAGE_BYTES_MAX
    + LIST_LEN_MAX * (3 * (size_of::<String>() + size_of::<Acked>() + size_of::<Rejected>()) + 4 * 80);

/// Reads a list of at most [`LIST_LEN_MAX`] items.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Items<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {LIST_LEN_MAX}")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == LIST_LEN_MAX {
                    return Err(A::Error::invalid_length(LIST_LEN_MAX + 1, &self));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_seq(Items(PhantomData))
}

/// Agent to server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentMessage {
    /// First message of every connection.
    Hello(Hello),
    /// A batch.
    Records {
        /// Whose.
        lane: LaneName,
        /// Which numbering.
        #[serde(deserialize_with = "integer")]
        epoch: Epoch,
        /// In ascending order, without a hole.
        records: Vec<Record>,
    },
    /// These will never come.
    Gap {
        /// Whose.
        lane: LaneName,
        /// Which numbering.
        #[serde(deserialize_with = "integer")]
        epoch: Epoch,
        /// First number.
        #[serde(deserialize_with = "integer")]
        from: Seq,
        /// Last number, included.
        #[serde(deserialize_with = "integer")]
        to: Seq,
        /// What took them.
        #[serde(deserialize_with = "list")]
        lost: Vec<Lost>,
    },
    /// Every command up to `seq` is done.
    Done {
        /// The server's numbering of commands.
        #[serde(deserialize_with = "integer")]
        stream: u64,
        /// The last command done.
        #[serde(deserialize_with = "integer")]
        seq: u64,
    },
}

/// The agent introduces itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Unique in the fleet.
    pub device: String,
    /// `name/version`.
    pub agent: String,
    /// Random, new at each start of the agent.
    pub boot: String,
    /// Messages beyond v1's first ones that the agent understands.
    #[serde(deserialize_with = "list")]
    pub features: Vec<String>,
    /// All that this connection will carry.
    #[serde(deserialize_with = "list")]
    pub lanes: Vec<HelloLane>,
    /// The last command done, or null.
    pub commands: Option<CommandCursor>,
    /// The class of what ended the session before, or null.
    pub last: Option<String>,
}

/// One (lane, epoch) of a `hello`: the agent accounts for `first` … `next` − 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HelloLane {
    /// The lane.
    pub lane: LaneName,
    /// The epoch.
    #[serde(deserialize_with = "integer")]
    pub epoch: Epoch,
    /// The lowest number not yet acked, held or still to be reported as a gap.
    #[serde(deserialize_with = "integer")]
    pub first: Seq,
    /// One above the highest number that may be sent now.
    #[serde(deserialize_with = "integer")]
    pub next: Seq,
}

/// The last command done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommandCursor {
    /// The server's numbering of commands.
    #[serde(deserialize_with = "integer")]
    pub stream: u64,
    /// The command's number in it.
    #[serde(deserialize_with = "integer")]
    pub seq: u64,
}

/// A cause of loss and how many records it took.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lost {
    /// One of [`Why`](crate::record::Why)'s words; a word from a newer agent is kept as it is.
    pub why: String,
    /// Promised records lost, 0 where none were or none can be known.
    #[serde(deserialize_with = "integer")]
    pub count: u64,
}

/// Server to agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMessage {
    /// Answers `hello`.
    Welcome(Welcome),
    /// Everything up to `seq` is stored durably.
    Ack {
        /// Whose.
        lane: LaneName,
        /// Which numbering.
        #[serde(deserialize_with = "integer")]
        epoch: Epoch,
        /// The last number stored, gaps and refusals included.
        #[serde(deserialize_with = "integer")]
        seq: Seq,
    },
    /// This record will never be stored.
    Reject {
        /// Whose.
        lane: LaneName,
        /// Which numbering.
        #[serde(deserialize_with = "integer")]
        epoch: Epoch,
        /// The record's number.
        #[serde(deserialize_with = "integer")]
        seq: Seq,
        /// Why, for people.
        reason: String,
    },
    /// For the gateway's local programs.
    Command {
        /// Its number in the command stream.
        #[serde(deserialize_with = "integer")]
        seq: u64,
        /// What it is about.
        topic: String,
        /// What it says.
        body: Body,
    },
    /// Leave, and come back after `after_ms` + uniform(0, `spread_ms`).
    Retry {
        /// Not before, in ms.
        #[serde(deserialize_with = "integer")]
        after_ms: u64,
        /// The width of the spread, in ms.
        #[serde(deserialize_with = "integer")]
        spread_ms: u64,
        /// The `url` of a configured endpoint to come back to, or null.
        endpoint: Option<String>,
    },
    /// Keep all lanes together below this.
    Pace {
        /// Records a second; 0: as many as you like.
        #[serde(deserialize_with = "integer")]
        records_per_s: u64,
    },
}

/// The server's side of the greeting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The session's name in both logs.
    pub session: String,
    /// Messages beyond v1's first ones that the server understands.
    #[serde(deserialize_with = "list")]
    pub features: Vec<String>,
    /// Unix time, in ms. Stamps records, never sets a clock.
    #[serde(deserialize_with = "integer")]
    pub now: u64,
    /// Largest message that the server takes, encoded, in bytes.
    #[serde(deserialize_with = "integer")]
    pub message_bytes_max: u64,
    /// What is stored already; absent is 0.
    #[serde(deserialize_with = "list")]
    pub acked: Vec<Acked>,
    /// Refusals in what the agent still holds.
    #[serde(deserialize_with = "list")]
    pub rejected: Vec<Rejected>,
    /// The server's numbering of commands.
    #[serde(deserialize_with = "integer")]
    pub command_stream: u64,
}

/// What the server has of one (lane, epoch).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Acked {
    /// The lane.
    pub lane: LaneName,
    /// The epoch.
    #[serde(deserialize_with = "integer")]
    pub epoch: Epoch,
    /// Everything up to here is stored durably.
    #[serde(deserialize_with = "integer")]
    pub seq: Seq,
}

/// A record that the server refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rejected {
    /// The lane.
    pub lane: LaneName,
    /// The epoch.
    #[serde(deserialize_with = "integer")]
    pub epoch: Epoch,
    /// The record's number.
    #[serde(deserialize_with = "integer")]
    pub seq: Seq,
    /// Why, for people.
    pub reason: String,
}

/// A message on the wire: a text frame (JSON) or a binary one (postcard).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// JSON.
    Text(String),
    /// postcard.
    Binary(Vec<u8>),
}

impl Frame {
    /// Encoded length, in bytes.
    pub fn bytes_len(&self) -> usize {
        self.as_ref().bytes_len()
    }

    /// The frame, borrowed.
    pub fn as_ref(&self) -> FrameRef<'_> {
        match self {
            Self::Text(text) => FrameRef::Text(text),
            Self::Binary(bytes) => FrameRef::Binary(bytes),
        }
    }
}

/// A [`Frame`], borrowed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FrameRef<'a> {
    /// JSON.
    Text(&'a str),
    /// postcard.
    Binary(&'a [u8]),
}

impl FrameRef<'_> {
    /// Encoded length, in bytes.
    pub const fn bytes_len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}
