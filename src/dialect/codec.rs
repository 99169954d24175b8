//! Messages to bytes and back, both encodings, both directions. Knows the bytes, nothing of the rules.
//!
//! What decodes is valid: integers below 2^53, lane names checked, no trailing bytes. An error tells length and
//! message name, never content (protocol rule 10). A hostile length prefix allocates no more than the message holds:
//! postcard takes strings from the bytes it has, and lists grow item by item, up to a bound.

use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeStructVariant;
use serde::{Deserializer, Serialize, Serializer};

use super::message::{AgentMessage, ServerMessage};
pub use super::message::{Frame, FrameRef};
use crate::config::Encoding;
pub use crate::record::MESSAGE_BYTES_MAX;
use crate::record::{Epoch, LaneName, Record};

/// One of the two enums of `backhaul.v1`.
pub trait Message: Serialize + DeserializeOwned + sealed::Sealed {
    /// The messages' names in JSON, in the order of their variants in postcard.
    const NAMES: &'static [&'static str];
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::AgentMessage {}
    impl Sealed for super::ServerMessage {}
}

impl Message for AgentMessage {
    const NAMES: &'static [&'static str] = &["hello", "records", "gap", "done"];
}

impl Message for ServerMessage {
    const NAMES: &'static [&'static str] = &["welcome", "ack", "reject", "command", "retry", "pace"];
}

/// Why a message was not understood. Carries nothing of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeError {
    /// What is wrong.
    pub kind: DecodeErrorKind,
    /// Length of the message, in bytes.
    pub bytes_len: usize,
    /// The message's name, as far as it could be told.
    pub variant: Option<&'static str>,
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeErrorKind {
    /// Longer than [`MESSAGE_BYTES_MAX`].
    TooLarge,
    /// Not a message in this encoding.
    Malformed,
}

impl DecodeErrorKind {
    /// The close code that tells the far end (RFC 6455 § 7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            Self::TooLarge => 1009,
            Self::Malformed => 1002,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            DecodeErrorKind::TooLarge => "too large a message",
            DecodeErrorKind::Malformed => "a message that cannot be decoded",
        };
        write!(f, "{what} bytes={} variant={}", self.bytes_len, self.variant.unwrap_or("unknown"))
    }
}

impl std::error::Error for DecodeError {}

/// The message as a frame.
pub fn encode<M: Message>(message: &M, encoding: Encoding) -> Frame {
    encode_value(message, encoding)
}

/// An [`AgentMessage::Records`] of borrowed records, byte for byte the same.
pub fn encode_records(lane: &LaneName, epoch: Epoch, records: &[Record], encoding: Encoding) -> Frame {
    encode_value(&Records { lane, epoch, records }, encoding)
}

/// The message in the frame; `None`: of an unknown name or variant, to be ignored.
pub fn decode<M: Message>(frame: &FrameRef<'_>) -> Result<Option<M>, DecodeError> {
    let bytes_len = frame.bytes_len();
    if bytes_len > MESSAGE_BYTES_MAX {
        return Err(DecodeError { kind: DecodeErrorKind::TooLarge, bytes_len, variant: None });
    }
    // One pass for what is known; only what fails is looked at again.
    let decoded = match frame {
        // From bytes, as the local socket reads: one copy of the parser.
        FrameRef::Text(text) => serde_json::from_slice(text.as_bytes()).ok(),
        FrameRef::Binary(bytes) => match postcard::take_from_bytes(bytes) {
            Ok((message, [])) => Some(message),
            Ok(_) | Err(_) => None,
        },
    };
    if decoded.is_some() {
        return Ok(decoded);
    }
    let variant = match frame {
        FrameRef::Text(text) => named::<M>(text),
        FrameRef::Binary(bytes) => numbered::<M>(bytes),
    };
    match variant {
        Variant::Unknown => Ok(None),
        Variant::Known(name) => Err(DecodeError { kind: DecodeErrorKind::Malformed, bytes_len, variant: Some(name) }),
        Variant::Unreadable => Err(DecodeError { kind: DecodeErrorKind::Malformed, bytes_len, variant: None }),
    }
}

/// Which message it would have been.
enum Variant {
    Known(&'static str),
    Unknown,
    Unreadable,
}

/// The only key of a JSON object.
fn named<M: Message>(text: &str) -> Variant {
    struct OnlyKey;
    impl<'de> Visitor<'de> for OnlyKey {
        type Value = Option<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with one key")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let first = map.next_entry::<String, IgnoredAny>()?.map(|(key, _)| key);
            let second = map.next_entry::<IgnoredAny, IgnoredAny>()?;
            Ok(first.filter(|_| second.is_none()))
        }
    }
    let mut json = serde_json::Deserializer::from_slice(text.as_bytes());
    let key = json.deserialize_map(OnlyKey).and_then(|key| json.end().map(|()| key));
    match key {
        Ok(Some(key)) => {
            M::NAMES.iter().find(|name| **name == key).map_or(Variant::Unknown, |name| Variant::Known(name))
        }
        Ok(None) | Err(_) => Variant::Unreadable,
    }
}

/// The number that leads a postcard enum.
fn numbered<M: Message>(bytes: &[u8]) -> Variant {
    match postcard::take_from_bytes::<u32>(bytes) {
        Ok((number, _)) => M::NAMES.get(number as usize).map_or(Variant::Unknown, |name| Variant::Known(name)),
        Err(_) => Variant::Unreadable,
    }
}

fn encode_value<T: Serialize>(value: &T, encoding: Encoding) -> Frame {
    // Neither encoder can fail: our types have no map with odd keys, and a Vec takes every byte. Frames may wait by the
    // window, so they keep no more memory than they fill.
    match encoding {
        Encoding::Postcard => {
            let mut bytes = postcard::to_stdvec(value).expect("messages encode in postcard");
            bytes.shrink_to_fit();
            Frame::Binary(bytes)
        }
        Encoding::Json => {
            let mut text = serde_json::to_string(value).expect("messages encode in JSON");
            text.shrink_to_fit();
            Frame::Text(text)
        }
    }
}

/// [`AgentMessage::Records`], borrowed.
struct Records<'a> {
    lane: &'a LaneName,
    epoch: Epoch,
    records: &'a [Record],
}

impl Serialize for Records<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct_variant("AgentMessage", 1, "records", 3)?;
        fields.serialize_field("lane", self.lane)?;
        fields.serialize_field("epoch", &self.epoch)?;
        fields.serialize_field("records", self.records)?;
        fields.end()
    }
}
