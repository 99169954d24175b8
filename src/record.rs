//! The words that everything shares: lane, epoch, seq, record, gap. No behaviour beyond their own validity.

use std::fmt;
use std::sync::Arc;

use serde::de::{self, EnumAccess, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Integers on the wire stay below 2^53, so that a JSON peer can hold them in a double (RFC 8259 § 6).
pub const INTEGER_MAX: u64 = (1 << 53) - 1;

/// A message on the wire is at most so long, encoded, either way, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Reads an integer of the wire: refuses what exceeds [`INTEGER_MAX`].
pub(crate) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = u64::deserialize(deserializer)?;
    if value <= INTEGER_MAX { Ok(value) } else { Err(de::Error::custom("an integer of 2^53 or more")) }
}

/// [`integer`], or null. Wants `default` beside it: a missing JSON option is null.
pub(crate) fn integer_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Option::<u64>::deserialize(deserializer)? {
        Some(value) if value > INTEGER_MAX => Err(de::Error::custom("an integer of 2^53 or more")),
        value => Ok(value),
    }
}

/// A record's number in its lane and epoch: from 1, rising by one for each record accepted.
pub type Seq = u64;

/// A random integer drawn whenever a lane's numbering starts; at most [`INTEGER_MAX`], never 0.
pub type Epoch = u64;

/// The name of a lane: `[a-z0-9_-]{1,32}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LaneName(Arc<str>);

/// Why a string is no lane name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneNameError;

impl fmt::Display for LaneNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a lane's name is 1 to 32 of a-z, 0-9, _ and -")
    }
}

impl std::error::Error for LaneNameError {}

impl LaneName {
    /// Longest name, in bytes.
    pub const BYTES_MAX: usize = 32;

    /// A checked name.
    pub fn try_new(name: &str) -> Result<Self, LaneNameError> {
        let fits = (1..=Self::BYTES_MAX).contains(&name.len());
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if fits && name.bytes().all(allowed) { Ok(Self(name.into())) } else { Err(LaneNameError) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for LaneName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LaneName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::try_new(&name).map_err(de::Error::custom)
    }
}

/// What a record carries. Postcard: variant 0 with a string, 1 with bytes. JSON: `{"text": "…"}` or
/// `{"base64": "…"}` (standard alphabet, padded; RFC 4648 § 4).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Body {
    /// UTF-8 text.
    Text(String),
    /// Any bytes.
    Bytes(Vec<u8>),
}

impl Body {
    /// The content, in bytes as handed in.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_newtype_variant("Body", 0, "text", text),
            Self::Bytes(bytes) if serializer.is_human_readable() => {
                let encoded = data_encoding::BASE64.encode(bytes);
                serializer.serialize_newtype_variant("Body", 1, "base64", &encoded)
            }
            Self::Bytes(bytes) => serializer.serialize_newtype_variant("Body", 1, "base64", &Raw(bytes)),
        }
    }
}

/// Bytes as serde's byte string rather than as a sequence of integers (the same in postcard, and faster).
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

struct RawBuf(Vec<u8>);

impl<'de> Deserialize<'de> for RawBuf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = RawBuf;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RawBuf, E> {
                Ok(RawBuf(bytes.to_vec()))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<RawBuf, E> {
                Ok(RawBuf(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(variant_identifier, rename_all = "lowercase")]
        enum Variant {
            Text,
            Base64,
        }
        struct BodyVisitor {
            human: bool,
        }
        impl<'de> Visitor<'de> for BodyVisitor {
            type Value = Body;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a body: text or base64")
            }
            fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Body, A::Error> {
                match data.variant()? {
                    (Variant::Text, value) => Ok(Body::Text(value.newtype_variant()?)),
                    (Variant::Base64, value) if self.human => {
                        let encoded: String = value.newtype_variant()?;
                        let bytes = data_encoding::BASE64.decode(encoded.as_bytes()).map_err(de::Error::custom)?;
                        Ok(Body::Bytes(bytes))
                    }
                    (Variant::Base64, value) => Ok(Body::Bytes(value.newtype_variant::<RawBuf>()?.0)),
                }
            }
        }
        let human = deserializer.is_human_readable();
        deserializer.deserialize_enum("Body", &["text", "base64"], BodyVisitor { human })
    }
}

/// A record as it goes upstream.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    #[serde(deserialize_with = "integer")]
    pub seq: Seq,
    /// Unix time in ms at which it was handed in; null where no clock was ever known.
    #[serde(default, deserialize_with = "integer_or_null")]
    pub at: Option<u64>,
    /// What it is about.
    pub topic: String,
    /// What it says.
    pub body: Body,
}

/// Why records will never come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Why {
    /// The lane was full and gave up its oldest.
    Overflow,
    /// Older than its time to live.
    Expired,
    /// Damaged on flash; a later intact batch proves that it was there.
    Corrupt,
    /// The agent itself gave it up (protocol rule 6).
    Rejected,
    /// Numbers skipped behind a tail of zeros or stale pages: nothing was promised.
    Torn,
    /// Numbers skipped behind a damaged tail: promised records may be among them.
    Unknown,
    /// Acked before; the server forgot.
    Settled,
}

impl Why {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Expired => "expired",
            Self::Corrupt => "corrupt",
            Self::Rejected => "rejected",
            Self::Torn => "torn",
            Self::Unknown => "unknown",
            Self::Settled => "settled",
        }
    }

    /// True where each number of the range was a record that is lost; false where the count is 0 by definition.
    pub const fn counts(self) -> bool {
        match self {
            Self::Overflow | Self::Expired | Self::Corrupt | Self::Rejected => true,
            Self::Torn | Self::Unknown | Self::Settled => false,
        }
    }
}

/// A closed range of numbers that will never come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap {
    /// First number.
    pub from: Seq,
    /// Last number, included.
    pub to: Seq,
    /// Why.
    pub why: Why,
}

impl Gap {
    /// How many promised records the gap stands for.
    pub const fn count(&self) -> u64 {
        if self.why.counts() { self.to - self.from + 1 } else { 0 }
    }
}

/// What comes next in an epoch: a record, or the statement that some will never come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A record.
    Record(Record),
    /// A gap.
    Gap(Gap),
}

impl Item {
    /// The last number that the item accounts for.
    pub const fn last(&self) -> Seq {
        match self {
            Self::Record(record) => record.seq,
            Self::Gap(gap) => gap.to,
        }
    }

    /// The first number that the item accounts for.
    pub const fn first(&self) -> Seq {
        match self {
            Self::Record(record) => record.seq,
            Self::Gap(gap) => gap.from,
        }
    }
}

/// What the outbox holds of one (lane, epoch); what a session's `hello` says of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// The lane.
    pub lane: LaneName,
    /// The epoch.
    pub epoch: Epoch,
    /// The lowest number not yet acked, held or still to be reported as a gap.
    pub first: Seq,
    /// One above the highest number that may be sent now.
    pub next: Seq,
    /// The highest number that this agent can have sent, ever (protocol rule 7).
    pub sent_max: Seq,
}

/// Asks the outbox for what comes next in one (lane, epoch). `session` guards against answers to an older session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// The session that asks; an answer with another number is dropped.
    pub session: u64,
    /// The lane.
    pub lane: LaneName,
    /// The epoch.
    pub epoch: Epoch,
    /// The first number wanted; the answer is contiguous from here.
    pub from: Seq,
    /// At most so many records.
    pub records_max: u32,
    /// At most so many bytes of topic and body together, but at least one record.
    pub bytes_max: u32,
}
