//! The bytes of `backhaul.v1`, frozen: every message in both encodings. A change here is a change of the protocol.
//! `docs/protocol.md` shows the same bytes, and a test holds it to that.

#![expect(clippy::unwrap_used, reason = "tests")]

use backhaul::config::Encoding::{Json, Postcard};
use backhaul::dialect::codec::{self, DecodeErrorKind, Frame, FrameRef, MESSAGE_BYTES_MAX, Message};
use backhaul::dialect::message::{
    Acked, AgentMessage, CommandCursor, Hello, HelloLane, LIST_LEN_MAX, Lost, Rejected, ServerMessage, Welcome,
};
use backhaul::record::{Body, INTEGER_MAX, LaneName, Record};

/// A message, its JSON, its postcard as hex (blanks separate fields).
type Golden<M> = (M, &'static str, &'static str);

fn lane() -> LaneName {
    LaneName::try_new("temp").unwrap()
}

fn agent_messages() -> Vec<Golden<AgentMessage>> {
    vec![
        (
            AgentMessage::Hello(Hello {
                device: "gw-1".into(),
                agent: "backhaul/1.0.0".into(),
                boot: "b7".into(),
                features: vec!["x".into()],
                lanes: vec![HelloLane { lane: lane(), epoch: 300, first: 17, next: 20 }],
                commands: Some(CommandCursor { stream: 3, seq: 2 }),
                last: Some("silent".into()),
            }),
            r#"{"hello":{"device":"gw-1","agent":"backhaul/1.0.0","boot":"b7","features":["x"],"lanes":[{"lane":"temp","epoch":300,"first":17,"next":20}],"commands":{"stream":3,"seq":2},"last":"silent"}}"#,
            "00 0467772d31 0e6261636b6861756c2f312e302e30 026237 01 0178 01 0474656d70 ac02 11 14 01 03 02 01 0673696c656e74",
        ),
        (
            AgentMessage::Hello(Hello {
                device: "gw-1".into(),
                agent: "backhaul/1.0.0".into(),
                boot: "b7".into(),
                features: vec![],
                lanes: vec![],
                commands: None,
                last: None,
            }),
            r#"{"hello":{"device":"gw-1","agent":"backhaul/1.0.0","boot":"b7","features":[],"lanes":[],"commands":null,"last":null}}"#,
            "00 0467772d31 0e6261636b6861756c2f312e302e30 026237 00 00 00 00",
        ),
        (
            AgentMessage::Records {
                lane: lane(),
                epoch: 300,
                records: vec![
                    Record { seq: 17, at: Some(1_700_000_000_000), topic: "t".into(), body: Body::Text("21.5".into()) },
                    Record { seq: 18, at: None, topic: "é".into(), body: Body::Bytes(vec![0, 255]) },
                ],
            },
            r#"{"records":{"lane":"temp","epoch":300,"records":[{"seq":17,"at":1700000000000,"topic":"t","body":{"text":"21.5"}},{"seq":18,"at":null,"topic":"é","body":{"base64":"AP8="}}]}}"#,
            "01 0474656d70 ac02 02 11 01 80d095ffbc31 0174 00 0432312e35 12 00 02c3a9 01 0200ff",
        ),
        (
            AgentMessage::Gap {
                lane: lane(),
                epoch: 300,
                from: 19,
                to: 25,
                lost: vec![Lost { why: "overflow".into(), count: 5 }, Lost { why: "torn".into(), count: 0 }],
            },
            r#"{"gap":{"lane":"temp","epoch":300,"from":19,"to":25,"lost":[{"why":"overflow","count":5},{"why":"torn","count":0}]}}"#,
            "02 0474656d70 ac02 13 19 02 086f766572666c6f77 05 04746f726e 00",
        ),
        (
            AgentMessage::Done { stream: INTEGER_MAX, seq: 4 },
            r#"{"done":{"stream":9007199254740991,"seq":4}}"#,
            "03 ffffffffffffff0f 04",
        ),
    ]
}

fn server_messages() -> Vec<Golden<ServerMessage>> {
    vec![
        (
            ServerMessage::Welcome(Welcome {
                session: "s9".into(),
                features: vec![],
                now: 1_700_000_000_000,
                message_bytes_max: 1 << 20,
                acked: vec![Acked { lane: lane(), epoch: 300, seq: 16 }],
                rejected: vec![Rejected { lane: lane(), epoch: 300, seq: 12, reason: "old".into() }],
                command_stream: 3,
            }),
            r#"{"welcome":{"session":"s9","features":[],"now":1700000000000,"message_bytes_max":1048576,"acked":[{"lane":"temp","epoch":300,"seq":16}],"rejected":[{"lane":"temp","epoch":300,"seq":12,"reason":"old"}],"command_stream":3}}"#,
            "00 027339 00 80d095ffbc31 808040 01 0474656d70 ac02 10 01 0474656d70 ac02 0c 036f6c64 03",
        ),
        (
            ServerMessage::Ack { lane: lane(), epoch: 300, seq: 18 },
            r#"{"ack":{"lane":"temp","epoch":300,"seq":18}}"#,
            "01 0474656d70 ac02 12",
        ),
        (
            ServerMessage::Reject { lane: lane(), epoch: 300, seq: 18, reason: "schema".into() },
            r#"{"reject":{"lane":"temp","epoch":300,"seq":18,"reason":"schema"}}"#,
            "02 0474656d70 ac02 12 06736368656d61",
        ),
        (
            ServerMessage::Command { seq: 3, topic: "valve/1".into(), body: Body::Text("open".into()) },
            r#"{"command":{"seq":3,"topic":"valve/1","body":{"text":"open"}}}"#,
            "03 03 0776616c76652f31 00 046f70656e",
        ),
        (
            ServerMessage::Command { seq: 4, topic: "fw".into(), body: Body::Bytes(vec![1, 2, 3]) },
            r#"{"command":{"seq":4,"topic":"fw","body":{"base64":"AQID"}}}"#,
            "03 04 026677 01 03010203",
        ),
        (
            ServerMessage::Retry { after_ms: 5000, spread_ms: 60_000, endpoint: Some("wss://b.example/v1".into()) },
            r#"{"retry":{"after_ms":5000,"spread_ms":60000,"endpoint":"wss://b.example/v1"}}"#,
            "04 8827 e0d403 01 127773733a2f2f622e6578616d706c652f7631",
        ),
        (
            ServerMessage::Retry { after_ms: 0, spread_ms: 0, endpoint: None },
            r#"{"retry":{"after_ms":0,"spread_ms":0,"endpoint":null}}"#,
            "04 00 00 00",
        ),
        (ServerMessage::Pace { records_per_s: 100 }, r#"{"pace":{"records_per_s":100}}"#, "05 64"),
    ]
}

fn bytes(hex: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(hex.replace(' ', "").as_bytes()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn json<M: Message>(text: &str) -> Result<Option<M>, codec::DecodeError> {
    codec::decode(&FrameRef::Text(text))
}

fn postcard<M: Message>(bytes: &[u8]) -> Result<Option<M>, codec::DecodeError> {
    codec::decode(&FrameRef::Binary(bytes))
}

fn holds<M: Message + PartialEq + std::fmt::Debug>(golden: Vec<Golden<M>>) {
    for (message, text, in_hex) in golden {
        assert_eq!(codec::encode(&message, Json), Frame::Text(text.into()));
        assert_eq!(codec::encode(&message, Postcard), Frame::Binary(bytes(in_hex)), "{text}");
        let message = Ok(Some(message));
        assert_eq!(json(text), message);
        assert_eq!(postcard(&bytes(in_hex)), message);
    }
}

#[test]
fn every_message_has_its_bytes_and_comes_back_from_them() {
    holds(agent_messages());
    holds(server_messages());
}

#[test]
fn the_documentation_shows_the_same_bytes() {
    let page = include_str!("../docs/protocol.md");
    let agent = agent_messages().into_iter().map(|(_, text, in_hex)| (text, in_hex));
    let server = server_messages().into_iter().map(|(_, text, in_hex)| (text, in_hex));
    let mut shown = std::collections::BTreeSet::new();
    for (text, in_hex) in agent.chain(server) {
        if shown.insert(text.split('"').nth(1)) {
            assert!(page.contains(&format!("{text}\n    {in_hex}\n")), "{text}");
        }
    }
    assert_eq!(shown.len(), AgentMessage::NAMES.len() + ServerMessage::NAMES.len());
}

#[test]
fn every_variant_is_among_the_golden_messages_under_its_name() {
    fn names<M: Message>(golden: &[Golden<M>]) -> Vec<&'static str> {
        let mut names: Vec<_> = golden.iter().map(|(_, text, _)| text.split('"').nth(1).unwrap()).collect();
        names.dedup();
        names
    }
    assert_eq!(names(&agent_messages()), AgentMessage::NAMES);
    assert_eq!(names(&server_messages()), ServerMessage::NAMES);
    // A message beyond the last name is unknown: the enums hold no more variants than there are names.
    for (count, unknown) in [
        (AgentMessage::NAMES.len(), postcard::<AgentMessage>(&[AgentMessage::NAMES.len() as u8]).map(|m| m.is_none())),
        (
            ServerMessage::NAMES.len(),
            postcard::<ServerMessage>(&[ServerMessage::NAMES.len() as u8]).map(|m| m.is_none()),
        ),
    ] {
        assert_eq!(unknown, Ok(true), "{count}");
    }
}

#[test]
fn borrowed_records_encode_to_the_same_bytes() {
    for (message, _, _) in agent_messages() {
        if let AgentMessage::Records { lane, epoch, records } = &message {
            for encoding in [Postcard, Json] {
                assert_eq!(codec::encode_records(lane, *epoch, records, encoding), codec::encode(&message, encoding));
                let empty = AgentMessage::Records { lane: lane.clone(), epoch: *epoch, records: vec![] };
                assert_eq!(codec::encode_records(lane, *epoch, &[], encoding), codec::encode(&empty, encoding));
            }
        }
    }
}

#[test]
fn an_unknown_message_is_ignored_in_both_encodings() {
    assert_eq!(json::<ServerMessage>(r#"{"later":{"seq":1,"deep":[[{"x":null}]]}}"#), Ok(None));
    assert_eq!(json::<ServerMessage>(r#"{"hello":{}}"#), Ok(None));
    assert_eq!(json::<AgentMessage>(r#"{"ack":5}"#), Ok(None));
    assert_eq!(postcard::<ServerMessage>(&[6, 1, 2, 3]), Ok(None));
    assert_eq!(postcard::<AgentMessage>(&[4]), Ok(None));
    assert_eq!(postcard::<AgentMessage>(&[0x80, 0x01, 0xff]), Ok(None));
}

#[test]
fn unknown_json_fields_are_ignored_and_a_missing_option_is_null() {
    let seen = json(r#" {"retry": {"spread_ms": 2, "later": {"a": [1]}, "after_ms": 1}} "#);
    assert_eq!(seen, Ok(Some(ServerMessage::Retry { after_ms: 1, spread_ms: 2, endpoint: None })));
    let seen = json(r#"{"records":{"lane":"temp","epoch":1,"records":[{"seq":1,"topic":"","body":{"text":""}}]}}"#);
    let record = Record { seq: 1, at: None, topic: String::new(), body: Body::Text(String::new()) };
    assert_eq!(seen, Ok(Some(AgentMessage::Records { lane: lane(), epoch: 1, records: vec![record] })));
    let seen = json(r#"{"hello":{"device":"d","agent":"a/1","boot":"b","features":[],"lanes":[]}}"#);
    let Ok(Some(AgentMessage::Hello(hello))) = seen else { panic!("{seen:?}") };
    assert_eq!((hello.commands, hello.last), (None, None));
}

/// Every integer of every golden message in turn is set to 2^53 (and to 2^53 - 1, which passes).
#[test]
fn an_integer_of_two_to_the_53_is_refused_wherever_it_stands() {
    fn numbers(text: &str) -> Vec<(usize, usize)> {
        let mut found = Vec::new();
        let (mut start, mut in_string) = (None, false);
        for (at, byte) in text.bytes().enumerate() {
            in_string ^= byte == b'"';
            match (byte.is_ascii_digit() && !in_string, start) {
                (true, None) => start = Some(at),
                (false, Some(from)) => {
                    found.push((from, at));
                    start = None;
                }
                (true, Some(_)) | (false, None) => (),
            }
        }
        found
    }
    fn refuses<M: Message + std::fmt::Debug>(golden: Vec<Golden<M>>) -> usize {
        let mut tried = 0;
        for (_, text, _) in golden {
            for (from, to) in numbers(text) {
                let with = |number: &str| format!("{}{number}{}", &text[..from], &text[to..]);
                let largest: M = json(&with("9007199254740991")).unwrap().unwrap();
                let Frame::Binary(largest) = codec::encode(&largest, Postcard) else { panic!("postcard is binary") };
                assert!(json::<M>(&with("9007199254740992")).is_err(), "{text}");
                assert!(json::<M>(&with("-1")).is_err() && json::<M>(&with("1.5")).is_err(), "{text}");
                assert!(postcard::<M>(&largest).unwrap().is_some(), "{text}");
                // The same in postcard: 2^53 - 1 is ff…ff0f, 2^53 is 80…8010.
                let largest = hex(&largest);
                let refused = largest.replace("ffffffffffffff0f", "8080808080808010");
                assert_ne!(largest, refused);
                assert!(postcard::<M>(&bytes(&refused)).is_err(), "{text}");
                tried += 1;
            }
        }
        tried
    }
    assert_eq!(refuses(agent_messages()), 16);
    assert_eq!(refuses(server_messages()), 18);
}

#[test]
fn a_malformed_message_is_told_by_length_and_name_and_never_by_content() {
    for text in [
        r#"{"command":{"seq":1,"topic":"secret","body":{"text":7}}}"#,
        r#"{"command":{"seq":"secret","topic":"t","body":{"text":""}}}"#,
        r#"{"command":{"seq":1,"topic":"secret","body":{"base64":"AP8"}}}"#,
        r#"{"command":{"seq":1,"topic":"secret"}}"#,
        r#"{"command":"secret"}"#,
    ] {
        let error = json::<ServerMessage>(text).unwrap_err();
        assert_eq!(
            (error.kind, error.bytes_len, error.variant),
            (DecodeErrorKind::Malformed, text.len(), Some("command"))
        );
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
    for text in [
        "",
        "{}",
        "null",
        "\"ack\"",
        "[]",
        r#"{"ack":{}"#,
        r#"{"later":1,"more":2}"#,
        r#"{"later":1} x"#,
        "{\"later\":}",
    ] {
        let error = json::<ServerMessage>(text).unwrap_err();
        assert_eq!((error.kind, error.variant), (DecodeErrorKind::Malformed, None), "{text}");
    }
    for text in
        [r#"{"ack":{"lane":"temp","epoch":1,"seq":1},"later":1}"#, r#"{"ack":{"lane":"temp","epoch":1,"seq":1}}{}"#]
    {
        assert!(json::<ServerMessage>(text).is_err(), "{text}");
    }
    assert_eq!(postcard::<ServerMessage>(&[]).unwrap_err().variant, None);
    assert_eq!(postcard::<ServerMessage>(&[0x80; 6]).unwrap_err().variant, None);
}

#[test]
fn every_cut_and_every_trailing_byte_of_a_postcard_message_is_refused() {
    fn refuses<M: Message + PartialEq + std::fmt::Debug>(golden: Vec<Golden<M>>) {
        for (_, text, in_hex) in golden {
            let whole = bytes(in_hex);
            for cut in 0..whole.len() {
                assert!(postcard::<M>(&whole[..cut]).is_err(), "{text} cut at {cut}");
            }
            let longer = [&whole[..], &[0]].concat();
            assert!(postcard::<M>(&longer).is_err(), "{text} with a trailing byte");
        }
    }
    refuses(agent_messages());
    refuses(server_messages());
}

#[test]
fn a_lane_of_another_alphabet_or_length_is_refused() {
    for (name, fits) in [("a_-9", true), ("", false), ("A", false), ("a b", false), ("é", false), ("a/b", false)] {
        let text = format!(r#"{{"ack":{{"lane":"{name}","epoch":1,"seq":1}}}}"#);
        assert_eq!(json::<ServerMessage>(&text).is_ok(), fits, "{name}");
        let binary = [&[1, name.len() as u8], name.as_bytes(), &[1, 1]].concat();
        assert_eq!(postcard::<ServerMessage>(&binary).is_ok(), fits, "{name}");
    }
    for (length, fits) in [(32, true), (33, false)] {
        let binary = [&[1, length as u8][..], &vec![b'a'; length], &[1, 1]].concat();
        assert_eq!(postcard::<ServerMessage>(&binary).is_ok(), fits, "{length}");
    }
}

#[test]
fn a_message_over_one_mebibyte_is_refused_whatever_it_says() {
    let fits = format!("{}{}", " ".repeat(MESSAGE_BYTES_MAX - 5), r#"{"x":"#).replace(r#"{"x":"#, "{\"x\":0}");
    let cut = fits.len() - MESSAGE_BYTES_MAX;
    assert_eq!(json::<ServerMessage>(&fits[cut..]), Ok(None));
    let over = json::<ServerMessage>(&fits).unwrap_err();
    assert_eq!((over.kind, over.kind.close_code()), (DecodeErrorKind::TooLarge, 1009));
    let mut binary = vec![6; MESSAGE_BYTES_MAX];
    assert_eq!(postcard::<ServerMessage>(&binary), Ok(None));
    binary.push(6);
    assert_eq!(postcard::<ServerMessage>(&binary).unwrap_err().bytes_len, MESSAGE_BYTES_MAX + 1);
}

#[test]
fn a_hostile_length_prefix_is_an_error() {
    // Lists and strings that claim 2^32 and 2^63 elements.
    for claim in [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
        let lane = [&[1, 1, b'a', 1], claim].concat();
        assert!(postcard::<AgentMessage>(&lane).is_err());
        assert!(postcard::<AgentMessage>(&[&[0], claim].concat()).is_err());
        assert!(postcard::<ServerMessage>(&[&[0, 0], claim].concat()).is_err());
        assert!(postcard::<ServerMessage>(&[&[3, 1, 0, 1], claim].concat()).is_err());
    }
}

#[test]
fn a_list_has_a_bound_because_memory_has_one() {
    for (length, fits) in [(LIST_LEN_MAX, true), (LIST_LEN_MAX + 1, false)] {
        let features = vec![String::new(); length];
        let welcome = Welcome {
            session: String::new(),
            features,
            now: 0,
            message_bytes_max: 256,
            acked: vec![],
            rejected: vec![],
            command_stream: 0,
        };
        let message = ServerMessage::Welcome(welcome);
        for encoding in [Json, Postcard] {
            let decoded = codec::decode(&codec::encode(&message, encoding).as_ref());
            let expected = if fits { Ok(Some(&message)) } else { Err(DecodeErrorKind::Malformed) };
            assert_eq!(decoded.as_ref().map(Option::as_ref).map_err(|error| error.kind), expected, "{length}");
        }
    }
}

#[test]
fn no_bytes_make_the_decoder_panic() {
    const INPUTS: usize = 100_000;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("replay with SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let good: Vec<(Vec<u8>, String)> = agent_messages()
        .into_iter()
        .map(|(_, text, in_hex)| (bytes(in_hex), text.to_owned()))
        .chain(server_messages().into_iter().map(|(_, text, in_hex)| (bytes(in_hex), text.to_owned())))
        .collect();
    let mut decoded = 0;
    for _ in 0..INPUTS {
        let (binary, text) = &good[random.usize(..good.len())];
        let (mut binary, mut text) = (binary.clone(), text.clone().into_bytes());
        if random.bool() {
            binary = (0..random.usize(..64)).map(|_| random.u8(..)).collect();
            binary.insert(0, random.u8(..8));
        }
        for damaged in [&mut binary, &mut text] {
            for _ in 0..random.usize(..4) {
                let at = random.usize(..damaged.len());
                match random.u8(..3) {
                    0 => damaged[at] = random.u8(..),
                    1 => damaged[at] ^= 1 << random.u8(..8),
                    _ => damaged.truncate(at.max(1)),
                }
            }
        }
        let text = String::from_utf8_lossy(&text);
        decoded += usize::from(matches!(postcard::<AgentMessage>(&binary), Ok(Some(_))));
        decoded += usize::from(matches!(postcard::<ServerMessage>(&binary), Ok(Some(_))));
        decoded += usize::from(matches!(json::<AgentMessage>(&text), Ok(Some(_))));
        decoded += usize::from(matches!(json::<ServerMessage>(&text), Ok(Some(_))));
    }
    assert!(decoded > INPUTS / 10, "the inputs are near enough to messages: {decoded}");
}
