//! The words of the local socket: one line of JSON in, one line out. It knows nothing of clients or threads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::commands::filter::Filter;
use crate::outbox::Draft;
use crate::record::{Body, INTEGER_MAX, LaneName};
use crate::shell::port::{Answer, Outcome, Wait};

/// A producer's own name for a record.
const KEY_BYTES_MAX: usize = 128;
/// A request's name, where it is a string.
const ID_BYTES_MAX: usize = 64;
/// A complaint repeats what it complains about, within reason.
const MESSAGE_BYTES_MAX: usize = 200;

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// Take a record.
    Put(PutRequest),
    /// Show the snapshot.
    Status {
        /// Repeated in the answer.
        id: Option<Id>,
    },
    /// Tell of the link now and at each change.
    Watch {
        /// Repeated in each answer.
        id: Option<Id>,
    },
    /// Give the commands on these topics.
    Subscribe {
        /// The topics.
        filter: Filter,
        /// With one it is answered.
        id: Option<Id>,
    },
    /// This command is done.
    Done {
        /// Its number.
        seq: u64,
        /// Its numbering; `None`: the present one.
        stream: Option<u64>,
        /// Repeated in an error.
        id: Option<Id>,
    },
}

/// A record, and what to say of it when.
#[derive(Debug, PartialEq)]
pub struct PutRequest {
    /// `None`: the default lane.
    pub lane: Option<String>,
    /// The record.
    pub draft: Draft,
    /// `None`: as the lane's mode has it.
    pub wait: Option<Wait>,
    /// Repeated in the answer.
    pub id: Option<Id>,
}

/// The client's name for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Id {
    /// An integer from 0.
    Number(u64),
    /// One below 0.
    Negative(i64),
    /// A string.
    Text(Box<str>),
}

/// Why a line gets an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A code of the local socket.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// Of the request, as far as it could be read.
    pub id: Option<Id>,
}

/// What a record gets that does not bring it, and how large it may be.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Topic and body together.
    pub record_bytes_max: usize,
    /// Unix ms; `None` while the clock is not set.
    pub wall_ms: Option<u64>,
    /// The boot's id, folded.
    pub boot: u32,
    /// Boot clock in ms.
    pub boot_ms: u64,
}

/// Reads one line, without its end.
pub fn parse(line: &[u8], terms: &Terms) -> Result<Request, Refusal> {
    let request = match serde_json::from_slice::<Line<'_>>(line) {
        Ok(request) => request,
        Err(error) => {
            let id = serde_json::from_slice::<AnyLine<'_>>(line).ok().and_then(AnyLine::id);
            return Err(Refusal::new("bad_request", error.to_string(), id));
        }
    };
    match request {
        Line::Put(Object(fields)) => fields.check(terms).map(Request::Put),
        Line::Status(Object(Bare { id })) => Ok(Request::Status { id }),
        Line::Subscribe(Object(SubscribeFields { topic: Text(topic), id })) => match Filter::try_new(&topic) {
            Ok(filter) => Ok(Request::Subscribe { filter, id }),
            Err(fault) => Err(Refusal::new("bad_request", fault.into(), id)),
        },
        Line::Done(Object(DoneFields { seq, stream, id })) => Ok(Request::Done { seq, stream, id }),
        Line::Watch(Object(Bare { id })) => Ok(Request::Watch { id }),
    }
}

impl Refusal {
    /// A refusal whose message has a bound.
    pub fn new(code: &'static str, mut message: String, id: Option<Id>) -> Self {
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
            message.push('…');
        }
        Self { code, message, id }
    }
}

/// Adds the line that answers a put.
pub fn write_outcome(out: &mut Vec<u8>, outcome: &Outcome, id: Option<&Id>) {
    let word: &[u8] = match &outcome.answer {
        Answer::Accepted => b"{\"accepted\":{\"lane\":\"",
        Answer::Committed => b"{\"committed\":{\"lane\":\"",
        Answer::Delivered => b"{\"delivered\":{\"lane\":\"",
        Answer::Error(code, message) => return write_error(out, code, message, id),
    };
    out.extend_from_slice(word);
    // A lane's name needs no escapes.
    out.extend_from_slice(outcome.lane.as_ref().map_or("", LaneName::as_str).as_bytes());
    out.extend_from_slice(b"\",\"epoch\":");
    write_integer(out, outcome.epoch);
    out.extend_from_slice(b",\"seq\":");
    write_integer(out, outcome.seq);
    write_id(out, id);
    out.extend_from_slice(b"}}\n");
}

/// Adds an error line.
pub fn write_error(out: &mut Vec<u8>, code: &str, message: &str, id: Option<&Id>) {
    out.extend_from_slice(b"{\"error\":{\"code\":\"");
    out.extend_from_slice(code.as_bytes());
    out.extend_from_slice(b"\",\"message\":");
    write_string(out, message);
    write_id(out, id);
    out.extend_from_slice(b"}}\n");
}

/// Adds the line that answers `status` or `watch`; `object` is a JSON object with at least one key.
pub fn write_object(out: &mut Vec<u8>, word: &str, object: &[u8], id: Option<&Id>) {
    out.extend_from_slice(b"{\"");
    out.extend_from_slice(word.as_bytes());
    out.extend_from_slice(b"\":");
    out.extend_from_slice(object.strip_suffix(b"}").unwrap_or(object));
    write_id(out, id);
    out.extend_from_slice(b"}}\n");
}

/// Adds the line that answers `subscribe`.
pub fn write_subscribed(out: &mut Vec<u8>, id: Option<&Id>) {
    out.extend_from_slice(b"{\"subscribed\":{");
    let start = out.len();
    write_id(out, id);
    // The comma that other keys would need.
    out.drain(start..out.len().min(start + 1));
    out.extend_from_slice(b"}}\n");
}

fn write_id(out: &mut Vec<u8>, id: Option<&Id>) {
    match id {
        None => {}
        Some(Id::Number(number)) => {
            out.extend_from_slice(b",\"id\":");
            write_integer(out, *number);
        }
        Some(Id::Negative(number)) => {
            out.extend_from_slice(b",\"id\":-");
            write_integer(out, number.unsigned_abs());
        }
        Some(Id::Text(text)) => {
            out.extend_from_slice(b",\"id\":");
            write_string(out, text);
        }
    }
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string into a Vec cannot fail");
}

/// Decimal digits without the machinery of `fmt`: this runs three times a record.
pub(super) fn write_integer(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    #[serde(borrow)]
    Put(Object<PutFields<'a>>),
    Status(Object<Bare>),
    #[serde(borrow)]
    Subscribe(Object<SubscribeFields<'a>>),
    Done(Object<DoneFields>),
    Watch(Object<Bare>),
}

/// Fields by name alone: serde would also read a struct from an array.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutFields<'a> {
    #[serde(borrow, default)]
    lane: Option<Text<'a>>,
    #[serde(borrow, default)]
    topic: Option<Text<'a>>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    base64: Option<Text<'a>>,
    #[serde(default)]
    at: Option<u64>,
    #[serde(default)]
    ttl_s: Option<u32>,
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(default)]
    wait: Option<WaitWord>,
    #[serde(default)]
    id: Option<Id>,
}

/// A string that borrows from the line where it has no escapes (`Option<Cow>` alone never does).
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Text<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum WaitWord {
    Accepted,
    Committed,
    Delivered,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bare {
    #[serde(default)]
    id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeFields<'a> {
    #[serde(borrow)]
    topic: Text<'a>,
    #[serde(default)]
    id: Option<Id>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DoneFields {
    seq: u64,
    #[serde(default)]
    stream: Option<u64>,
    #[serde(default)]
    id: Option<Id>,
}

#[derive(Deserialize)]
struct AnyFields {
    #[serde(default)]
    id: Option<Id>,
}

/// A line with mistakes in it: what can still be read is whose answer the error is.
#[derive(Deserialize)]
struct AnyLine<'a>(#[serde(borrow)] BTreeMap<Cow<'a, str>, Object<AnyFields>>);

impl AnyLine<'_> {
    fn id(self) -> Option<Id> {
        self.0.into_values().find_map(|Object(fields)| fields.id)
    }
}

impl PutFields<'_> {
    fn check(self, terms: &Terms) -> Result<PutRequest, Refusal> {
        let id = self.id;
        let refuse = |code, message: String| Err(Refusal::new(code, message, id.clone()));
        let topic = self.topic.map_or_else(String::new, |topic| topic.0.into_owned());
        if self.lane.as_ref().is_some_and(|lane| lane.len() > LaneName::BYTES_MAX) {
            return refuse("unknown_lane", "a lane's name has at most 32 characters".into());
        }
        if self.key.as_ref().is_some_and(|key| key.len() > KEY_BYTES_MAX) {
            return refuse("bad_request", format!("key has more than {KEY_BYTES_MAX} bytes"));
        }
        if self.at.is_some_and(|at| at > INTEGER_MAX) {
            return refuse("bad_request", "at is beyond 2^53".into());
        }
        let body = match (self.text, self.base64) {
            (Some(text), None) => Body::Text(text.0.into_owned()),
            (None, Some(base64)) => match data_encoding::BASE64.decode(base64.0.as_bytes()) {
                Ok(bytes) => Body::Bytes(bytes),
                Err(error) => return refuse("bad_request", format!("base64: {error}")),
            },
            (None, None) => return refuse("bad_request", "a put needs text or base64".into()),
            (Some(_), Some(_)) => return refuse("bad_request", "text or base64, not both".into()),
        };
        let bytes = topic.len() + body.as_bytes().len();
        if bytes > terms.record_bytes_max {
            let limit = terms.record_bytes_max;
            return refuse("too_large", format!("topic and body have {bytes} bytes, at most {limit}"));
        }
        let wait = self.wait.map(|word| match word {
            WaitWord::Accepted => Wait::Accepted,
            WaitWord::Committed => Wait::Committed,
            WaitWord::Delivered => Wait::Delivered,
        });
        if wait == Some(Wait::Delivered) && id.is_none() {
            return refuse("bad_request", "wait delivered needs an id".into());
        }
        let draft = Draft {
            at: self.at.or(terms.wall_ms),
            boot: terms.boot,
            boot_ms: terms.boot_ms,
            ttl_s: self.ttl_s.unwrap_or(0),
            topic,
            key: self.key.map(|key| key.0.into_owned()),
            body,
        };
        Ok(PutRequest { lane: self.lane.map(|lane| lane.0.into_owned()), draft, wait, id })
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an id: an integer or a string of at most {ID_BYTES_MAX} bytes")
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Id, E> {
                Ok(Id::Number(number))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Id, E> {
                Ok(Id::Negative(number))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                if text.len() > ID_BYTES_MAX {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Id::Text(text.into()))
            }
        }
        deserializer.deserialize_any(IdVisitor).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { record_bytes_max: 100, wall_ms: Some(5), boot: 7, boot_ms: 9 };

    fn put(line: &str) -> PutRequest {
        match parse(line.as_bytes(), &TERMS).unwrap() {
            Request::Put(put) => put,
            Request::Status { .. } | Request::Watch { .. } | Request::Subscribe { .. } | Request::Done { .. } => {
                panic!("not a put")
            }
        }
    }

    fn refusal(line: &str) -> (&'static str, String, Option<Id>) {
        let refusal = parse(line.as_bytes(), &TERMS).unwrap_err();
        (refusal.code, refusal.message, refusal.id)
    }

    #[test]
    fn reads_a_put_with_everything_and_one_with_nothing() {
        let full = put(r#"{"put":{"lane":"alarm","topic":"a\/b","base64":"AP8=","at":3,"ttl_s":60,
            "key":"k\u00e4","wait":"delivered","id":"x\"1"}}"#);
        let expected = Draft {
            at: Some(3),
            boot: 7,
            boot_ms: 9,
            ttl_s: 60,
            topic: "a/b".into(),
            key: Some("kä".into()),
            body: Body::Bytes(vec![0, 255]),
        };
        assert_eq!(full.draft, expected);
        assert_eq!((full.lane.as_deref(), full.wait), (Some("alarm"), Some(Wait::Delivered)));
        assert_eq!(full.id, Some(Id::Text("x\"1".into())));
        let bare = put("{\"put\":{\"text\":\"\",\"lane\":null}}\r");
        let expected = Draft {
            at: Some(5),
            ttl_s: 0,
            topic: String::new(),
            key: None,
            body: Body::Text(String::new()),
            ..expected
        };
        assert_eq!(bare, PutRequest { lane: None, draft: expected, wait: None, id: None });
        let status = parse(br#"{"status":{"id":-4}}"#, &TERMS).unwrap();
        assert_eq!(status, Request::Status { id: Some(Id::Negative(-4)) });
    }

    #[test]
    fn a_bad_request_names_what_is_wrong_and_repeats_the_id() {
        for (line, code, says) in [
            (r#"{"put":{"text":"x","lnae":"a","id":1}}"#, "bad_request", "unknown field `lnae`"),
            (r#"{"put":{"id":1}}"#, "bad_request", "text or base64"),
            (r#"{"put":{"id":1,"text":"x","base64":""}}"#, "bad_request", "not both"),
            (r#"{"put":{"id":1,"base64":"A"}}"#, "bad_request", "base64"),
            (r#"{"put":{"id":1,"text":4}}"#, "bad_request", "invalid type"),
            (r#"{"put":{"id":1,"text":"x","wait":"soon"}}"#, "bad_request", "unknown variant `soon`"),
            (r#"{"put":{"id":1,"text":"x","at":9007199254740992}}"#, "bad_request", "2^53"),
            (r#"{"put":{"id":1,"text":"x","at":-1}}"#, "bad_request", "u64"),
            (r#"{"put":{"id":1,"text":"x","lane":"a234567890123456789012345678901234"}}"#, "unknown_lane", "32"),
            (r#"{"frobnicate":{"id":1}}"#, "bad_request", "unknown variant `frobnicate`"),
            (r#"{"put":{"text":"x","id":1},"status":{}}"#, "bad_request", ""),
            (r#"{"status":{"id":1,"x":2}}"#, "bad_request", "unknown field `x`"),
            (r#"{"watch":{"id":1,"topic":"a"}}"#, "bad_request", "unknown field `topic`"),
            (r#"{"done":{"id":1}}"#, "bad_request", "missing field `seq`"),
            (r#"{"done":{"id":1,"seq":-3}}"#, "bad_request", "u64"),
            (r#"{"subscribe":{"id":1}}"#, "bad_request", "missing field `topic`"),
            (r#"{"subscribe":{"topic":"a/#/b","id":1}}"#, "bad_request", "last level"),
            (r#"{"subscribe":{"topic":"","id":1}}"#, "bad_request", "1 to 256 bytes"),
        ] {
            let (got_code, message, id) = refusal(line);
            assert_eq!((got_code, id), (code, Some(Id::Number(1))), "{line}: {message}");
            assert!(message.contains(says), "{line}: {message}");
        }
        let text = "y".repeat(101);
        assert_eq!(refusal(&format!(r#"{{"put":{{"text":"{text}"}}}}"#)).0, "too_large");
        assert_eq!(refusal(r#"{"put":{"text":"x","wait":"delivered"}}"#).0, "bad_request");
        let long = refusal(&format!(r#"{{"put":{{"{}":1}}}}"#, "ü".repeat(500))).1;
        assert!(long.len() <= MESSAGE_BYTES_MAX + 3 && long.ends_with('…'));
    }

    #[test]
    fn garbage_is_a_bad_request_and_no_more() {
        let deep = "[".repeat(10_000);
        let lines: [&[u8]; 12] = [
            b"",
            b"{",
            b"put",
            b"\0\xff\xfe",
            b"[]",
            b"{\"put\":{}}x",
            b"{\"pt\":{}}",
            b"\"status\"",
            b"{\"status\":[]}",
            b"{\"status\":[7]}",
            b"{\"put\":[null,\"t\",\"x\",null,null,null,null,null,7]}",
            deep.as_bytes(),
        ];
        for line in lines {
            let refusal = parse(line, &TERMS).unwrap_err();
            assert_eq!((refusal.code, refusal.id), ("bad_request", None), "{line:?}");
        }
    }

    #[test]
    fn writes_answers_that_repeat_the_id() {
        let ticket = crate::shell::port::Ticket { client: 0, request: 0 };
        let lane = Some(LaneName::try_new("telemetry").unwrap());
        let outcome = |answer| Outcome { ticket, answer, lane: lane.clone(), epoch: 1 << 52, seq: 0 };
        let mut out = Vec::new();
        write_outcome(&mut out, &outcome(Answer::Committed), None);
        write_outcome(&mut out, &outcome(Answer::Delivered), Some(&Id::Number(u64::MAX)));
        write_outcome(&mut out, &outcome(Answer::Accepted), Some(&Id::Text("a\n".into())));
        write_outcome(&mut out, &outcome(Answer::Error("full", "no \"room\"".into())), Some(&Id::Negative(-1)));
        write_object(&mut out, "status", br#"{"a":{}}"#, Some(&Id::Number(7)));
        let expected = r#"{"committed":{"lane":"telemetry","epoch":4503599627370496,"seq":0}}
{"delivered":{"lane":"telemetry","epoch":4503599627370496,"seq":0,"id":18446744073709551615}}
{"accepted":{"lane":"telemetry","epoch":4503599627370496,"seq":0,"id":"a\n"}}
{"error":{"code":"full","message":"no \"room\"","id":-1}}
{"status":{"a":{},"id":7}}
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
