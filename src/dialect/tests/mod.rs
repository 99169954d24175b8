//! A session's rules, one test a sentence of the protocol. [`model`] drives whole sessions at random.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

mod model;
mod plain;
mod weak;
mod weights;

use std::sync::Arc;

use super::codec::{self, Frame};
use super::message::{Acked, AgentMessage, CommandCursor, Rejected, ServerMessage, Welcome};
use super::{Config, Greeting, Input, LaneConfig, Output, Purpose, Session, Timer};
use crate::config::Encoding;
use crate::link::Class;
use crate::record::{Body, Epoch, Fetch, Gap, Item, LaneName, Offer, Record, Seq, Why};
use crate::time::Instant;

const EPOCH: Epoch = 70;
const ACK_TIMEOUT_MS: u64 = 30_000;

fn lane(name: &str) -> LaneName {
    LaneName::try_new(name).unwrap()
}

fn config() -> Config {
    Config {
        window_records: 100,
        window_bytes: 10_000,
        batch_bytes_max: 2_000,
        ack_timeout_ms: ACK_TIMEOUT_MS,
        start_bytes: u32::MAX,
        ..Config::default()
    }
}

/// Numbers `first` to `next` - 1 are on offer, nothing above can have been sent.
fn offer(name: &str, first: Seq, next: Seq) -> Offer {
    Offer { lane: lane(name), epoch: EPOCH, first, next, sent_max: next - 1 }
}

fn greeting(offers: Vec<Offer>, encoding: Encoding) -> Greeting {
    Greeting {
        device: "gw-1".into(),
        agent: "backhaul/1.0.0".into(),
        boot: "b7".into(),
        offers,
        commands: Some(CommandCursor { stream: 3, seq: 2 }),
        last: Some("silent".into()),
        session: 5,
        encoding: Some(encoding),
        capped: false,
        batch_records_max: 40,
        lone_records: 0,
    }
}

fn welcome() -> Welcome {
    Welcome {
        session: "s9".into(),
        features: vec![],
        now: 1_700_000_000_000,
        message_bytes_max: 1 << 20,
        acked: vec![],
        rejected: vec![],
        command_stream: 0,
    }
}

fn acked(name: &str, seq: Seq) -> Welcome {
    Welcome { acked: vec![Acked { lane: lane(name), epoch: EPOCH, seq }], ..welcome() }
}

fn ack(name: &str, seq: Seq) -> ServerMessage {
    ServerMessage::Ack { lane: lane(name), epoch: EPOCH, seq }
}

fn reject(name: &str, seq: Seq) -> ServerMessage {
    ServerMessage::Reject { lane: lane(name), epoch: EPOCH, seq, reason: "schema".into() }
}

fn record(seq: Seq, bytes: usize) -> Item {
    Item::Record(Record { seq, at: Some(seq), topic: String::new(), body: Body::Text("x".repeat(bytes)) })
}

fn records(range: std::ops::RangeInclusive<Seq>, bytes: usize) -> Vec<Item> {
    range.map(|seq| record(seq, bytes)).collect()
}

/// A session and its clock; what it does is read as short lines.
struct Rig {
    session: Session,
    now: Instant,
    encoding: Encoding,
    /// The last question of each lane.
    fetches: Vec<Fetch>,
}

impl Rig {
    fn of(config: Config, greeting: Greeting) -> Self {
        let now = Instant::from_micros(1_000_000);
        let encoding = greeting.encoding.unwrap_or(Encoding::Json);
        Self { session: Session::new(Arc::new(config), greeting, now), now, encoding, fetches: Vec::new() }
    }

    fn greets(offers: Vec<Offer>) -> Self {
        let mut rig = Self::of(config(), greeting(offers, Encoding::Json));
        assert_eq!(rig.did(), ["hello"]);
        rig
    }

    /// Past `welcome`, with nothing acked before.
    fn open(offers: Vec<Offer>) -> Self {
        let mut rig = Self::greets(offers);
        rig.hears(&ServerMessage::Welcome(welcome()));
        rig
    }

    fn hears(&mut self, message: &ServerMessage) {
        match codec::encode(message, self.encoding) {
            Frame::Text(text) => self.session.handle_input(Input::Text(&text), self.now),
            Frame::Binary(bytes) => self.session.handle_input(Input::Binary(&bytes), self.now),
        }
    }

    fn offers(&mut self, offers: &[Offer]) {
        self.session.handle_input(Input::Offers(offers), self.now);
    }

    /// Answers the lane's last question.
    fn answers(&mut self, name: &str, items: Vec<Item>) {
        let fetch = self.fetches.iter().rfind(|fetch| fetch.lane.as_str() == name).unwrap().clone();
        self.session.handle_input(Input::Items(&fetch, items), self.now);
    }

    fn waits_ms(&mut self, ms: u64) {
        self.now = self.now + std::time::Duration::from_millis(ms);
        self.session.handle_timeout(self.now);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.session.poll_output()).collect()
    }

    fn did(&mut self) -> Vec<String> {
        let outputs = self.outputs();
        self.fetches.extend(
            outputs.iter().filter_map(
                |output| {
                    if let Output::Fetch(fetch) = output { Some(fetch.clone()) } else { None }
                },
            ),
        );
        outputs.iter().map(line).collect()
    }

    /// The records' numbers of each message, whatever else is done.
    fn sent(&mut self) -> Vec<Vec<Seq>> {
        let outputs = self.outputs();
        let messages = outputs.iter().filter_map(frame_of).filter_map(message);
        let numbers = messages.filter_map(|message| {
            let AgentMessage::Records { records, .. } = message else { return None };
            Some(records.iter().map(|record| record.seq).collect())
        });
        numbers.collect()
    }
}

fn frame_of(output: &Output) -> Option<&Frame> {
    if let Output::Transmit { frame, .. } = output { Some(frame) } else { None }
}

fn message(frame: &Frame) -> Option<AgentMessage> {
    codec::decode(&frame.as_ref()).unwrap()
}

fn line(output: &Output) -> String {
    match output {
        Output::Transmit { frame, purpose } => {
            let (line, expected) = match message(frame).unwrap() {
                AgentMessage::Hello(_) => ("hello".into(), Purpose::Handshake),
                AgentMessage::Records { lane, records, .. } => {
                    let (first, last) = (records.first().unwrap().seq, records.last().unwrap().seq);
                    assert!(records.iter().map(|record| record.seq).eq(first..=last), "no hole inside");
                    (format!("records {lane} {first}-{last}"), Purpose::Records)
                }
                AgentMessage::Gap { lane, from, to, lost, .. } => {
                    let lost: Vec<_> = lost.iter().map(|lost| format!("{}:{}", lost.why, lost.count)).collect();
                    (format!("gap {lane} {from}-{to} {}", lost.join(",")), Purpose::Records)
                }
                AgentMessage::Done { stream, seq } => (format!("done {stream} {seq}"), Purpose::Commands),
            };
            assert_eq!(*purpose, expected);
            line
        }
        Output::Ping(counter) => format!("ping {counter}"),
        Output::Fetch(fetch) => format!("fetch {} {}", fetch.lane, fetch.from),
        Output::Greeted { name, server_now_ms, .. } => format!("greeted {name} {}", server_now_ms.unwrap_or(0)),
        Output::Proved => "proved".into(),
        Output::Acked { lane, seq, .. } => format!("acked {lane} {seq}"),
        Output::Rejected { lane, seq, reason, .. } => format!("rejected {lane} {seq} {reason}"),
        Output::Foreign { lane, .. } => format!("foreign {lane}"),
        Output::Forgotten { lane, acked, had, .. } => format!("forgotten {lane} {acked}<{had}"),
        Output::Command { seq, topic, .. } => format!("command {seq} {topic}"),
        Output::Retry { after_ms, spread_ms, endpoint } => format!("retry {after_ms} {spread_ms} {endpoint:?}"),
        Output::End { failure, close } => format!("end {:?} {}", failure.class, close.unwrap_or(0)),
    }
}

const GREETED: &str = "greeted s9 1700000000000";

#[test]
fn says_hello_and_nothing_else_until_welcome() {
    let mut rig = Rig::of(config(), greeting(vec![offer("a", 3, 9), offer("b", 1, 1)], Encoding::Postcard));
    let outputs = rig.outputs();
    let [Output::Transmit { frame, purpose: Purpose::Handshake }] = &outputs[..] else { panic!("{outputs:?}") };
    let Some(AgentMessage::Hello(hello)) = message(frame) else { panic!("{frame:?}") };
    assert_eq!((hello.device.as_str(), hello.agent.as_str(), hello.boot.as_str()), ("gw-1", "backhaul/1.0.0", "b7"));
    assert_eq!((hello.lanes[0].first, hello.lanes[0].next, hello.lanes[1].next), (3, 9, 1));
    assert_eq!((hello.commands, hello.last.as_deref()), (Some(CommandCursor { stream: 3, seq: 2 }), Some("silent")));
    rig.offers(&[offer("a", 3, 12), offer("b", 1, 5)]);
    rig.waits_ms(600_000);
    assert_eq!(rig.did(), [""; 0]);
    assert_eq!(rig.session.poll_timeout(), None);
    rig.hears(&ServerMessage::Welcome(acked("a", 2)));
    assert_eq!(rig.did(), [GREETED, "fetch a 3", "fetch b 1"]);
}

#[test]
fn anything_before_welcome_and_a_second_welcome_end_it_with_1008() {
    for message in [ack("a", 1), reject("a", 1), ServerMessage::Pace { records_per_s: 1 }] {
        let mut rig = Rig::greets(vec![offer("a", 1, 5)]);
        rig.hears(&message);
        assert_eq!(rig.did(), ["end Protocol 1008"]);
    }
    let mut rig = Rig::open(vec![]);
    rig.outputs();
    rig.hears(&ServerMessage::Welcome(welcome()));
    assert_eq!(rig.did(), ["end Protocol 1008"]);
}

#[test]
fn after_the_end_there_is_nothing() {
    let mut rig = Rig::open(vec![offer("a", 1, 50)]);
    rig.did();
    rig.answers("a", records(1..=5, 10));
    rig.outputs();
    rig.hears(&ServerMessage::Welcome(welcome()));
    assert_eq!(rig.did(), ["end Protocol 1008"]);
    rig.hears(&ack("a", 5));
    rig.offers(&[offer("b", 1, 9)]);
    rig.answers("a", records(6..=7, 10));
    rig.waits_ms(2 * ACK_TIMEOUT_MS);
    assert_eq!(rig.did(), [""; 0]);
    assert_eq!(rig.session.poll_timeout(), None);
}

#[test]
fn an_unknown_message_is_ignored() {
    let mut rig = Rig::open(vec![]);
    rig.outputs();
    rig.session.handle_input(Input::Text(r#"{"later":{"x":1}}"#), rig.now);
    assert_eq!(rig.did(), [""; 0]);
}

#[test]
fn what_cannot_be_decoded_ends_it_with_1002_and_too_large_a_message_with_1009() {
    let large = " ".repeat((1 << 20) + 1);
    for (input, end) in [
        (Input::Text("{"), "end Protocol 1002"),
        (Input::Text(r#"{"ack":{"lane":"a","epoch":1,"seq":9007199254740992}}"#), "end Protocol 1002"),
        (Input::Binary(&[1, 1, b'a', 1, 1]), "end Protocol 1002"),
        (Input::Text(&large), "end Protocol 1009"),
    ] {
        let mut rig = Rig::open(vec![]);
        rig.outputs();
        rig.session.handle_input(input, rig.now);
        assert_eq!(rig.did(), [end]);
    }
}

#[test]
fn records_and_gaps_go_up_contiguous_from_what_is_acked() {
    for encoding in [Encoding::Json, Encoding::Postcard] {
        let mut rig = Rig::of(config(), greeting(vec![offer("a", 3, 40)], encoding));
        rig.outputs();
        rig.hears(&ServerMessage::Welcome(acked("a", 10)));
        assert_eq!(rig.did(), ["acked a 10", GREETED, "fetch a 11"]);
        let gap = Item::Gap(Gap { from: 14, to: 20, why: Why::Overflow });
        let torn = Item::Gap(Gap { from: 21, to: 22, why: Why::Torn });
        rig.answers("a", [records(11..=13, 10), vec![gap, torn], records(23..=24, 10)].concat());
        assert_eq!(
            rig.did(),
            ["records a 11-13", "gap a 14-20 overflow:7", "gap a 21-22 torn:0", "records a 23-24", "fetch a 25"]
        );
        assert_eq!(rig.session.largest_batch(), 3);
    }
}

#[test]
fn a_hole_from_the_outbox_never_reaches_the_wire() {
    for items in [records(2..=3, 1), [records(1..=2, 1), records(4..=4, 1)].concat(), records(0..=1, 1)] {
        let mut rig = Rig::open(vec![offer("a", 1, 9)]);
        rig.did();
        rig.answers("a", items);
        assert_eq!(rig.did(), ["end Renewed 1000"]);
    }
}

#[test]
fn an_answer_to_another_question_is_dropped() {
    let mut rig = Rig::open(vec![offer("a", 1, 9)]);
    rig.did();
    let fetch = rig.fetches[0].clone();
    let stale = Fetch { session: 4, ..fetch.clone() };
    rig.session.handle_input(Input::Items(&stale, records(1..=2, 1)), rig.now);
    assert_eq!(rig.did(), [""; 0]);
    rig.session.handle_input(Input::Items(&fetch, records(1..=8, 1)), rig.now);
    assert_eq!(rig.did(), ["records a 1-8"]);
    rig.session.handle_input(Input::Items(&fetch, records(1..=8, 1)), rig.now);
    assert_eq!(rig.did(), [""; 0]);
}

#[test]
fn an_empty_answer_waits_for_an_offer_and_one_that_crossed_with_an_offer_does_not() {
    let mut rig = Rig::open(vec![offer("a", 1, 9)]);
    rig.did();
    rig.answers("a", vec![]);
    assert_eq!(rig.did(), [""; 0]);
    rig.offers(&[offer("a", 1, 9)]);
    assert_eq!(rig.did(), ["fetch a 1"]);
    rig.offers(&[offer("a", 1, 10)]);
    rig.answers("a", vec![]);
    assert_eq!(rig.did(), ["fetch a 1"]);
}

#[test]
fn lanes_are_served_in_turn() {
    let mut tight = config();
    (tight.window_records, tight.window_bytes) = (10, 1000);
    let mut greeting = greeting(vec![offer("a", 1, 1000), offer("b", 1, 1000), offer("c", 1, 4)], Encoding::Json);
    greeting.batch_records_max = 10;
    let mut rig = Rig::of(tight, greeting);
    rig.outputs();
    rig.hears(&ServerMessage::Welcome(welcome()));
    assert_eq!(rig.did(), [GREETED, "fetch a 1"]);
    rig.answers("a", records(1..=10, 10));
    assert_eq!(rig.did(), ["records a 1-10"]);
    rig.hears(&ack("a", 10));
    assert_eq!(rig.did(), ["acked a 10", "proved", "fetch b 1"]);
    rig.answers("b", records(1..=10, 10));
    rig.hears(&ack("b", 10));
    assert_eq!(rig.did(), ["records b 1-10", "acked b 10", "fetch c 1"]);
    rig.answers("c", records(1..=3, 10));
    // Seven places are free: worth a question.
    assert_eq!(rig.did(), ["records c 1-3", "fetch a 11"]);
    rig.answers("a", records(11..=17, 10));
    rig.hears(&ack("c", 3));
    assert_eq!(rig.did(), ["records a 11-17", "acked c 3", "fetch b 11"]);
}

#[test]
fn the_window_holds_over_all_lanes_in_records_and_bytes() {
    let mut rig = Rig::open(vec![offer("a", 1, 1000), offer("b", 1, 1000)]);
    rig.did();
    // Window 100, batches of 40: what is asked for has its place.
    assert_eq!(rig.fetches.iter().map(|fetch| fetch.records_max).collect::<Vec<_>>(), [40, 40]);
    assert_eq!(rig.fetches.iter().map(|fetch| fetch.bytes_max).collect::<Vec<_>>(), [2000, 2000]);
    rig.answers("a", records(1..=40, 1));
    rig.answers("b", records(1..=40, 1));
    // Twenty are left, and worth no question (a quarter of the window is).
    assert_eq!(rig.did(), ["records a 1-40", "records b 1-40"]);
    assert_eq!(rig.session.in_flight().records, 80);
    rig.hears(&ack("a", 10));
    assert_eq!(rig.did(), ["acked a 10", "proved"]);
    rig.hears(&ack("a", 40));
    assert_eq!(rig.did(), ["acked a 40", "fetch a 41"]);
    // More than was asked for waits in here.
    rig.answers("a", records(41..=110, 100));
    let messages = rig.sent();
    assert_eq!(messages, [(41..=60).collect::<Vec<_>>(), (61..=80).collect(), (81..=100).collect()]);
}

#[test]
fn a_record_beyond_the_window_goes_alone() {
    let mut rig = Rig::open(vec![offer("a", 1, 4), offer("b", 1, 2)]);
    rig.did();
    rig.answers("b", records(1..=1, 10));
    assert_eq!(rig.did(), ["records b 1-1"]);
    rig.answers("a", vec![record(1, 20_000), record(2, 0), record(3, 0)]);
    assert_eq!(rig.did(), [""; 0]);
    rig.hears(&ack("b", 1));
    assert_eq!(rig.did(), ["acked b 1", "proved", "records a 1-1"]);
    rig.hears(&ack("a", 1));
    assert_eq!(rig.did(), ["acked a 1", "records a 2-3"]);
}

#[test]
fn a_message_holds_no_more_records_and_bytes_than_a_batch() {
    let mut few = greeting(vec![offer("a", 1, 10)], Encoding::Postcard);
    few.batch_records_max = 1;
    let mut rig = Rig::of(config(), few);
    rig.hears(&ServerMessage::Welcome(welcome()));
    rig.did();
    assert_eq!(rig.fetches[0].records_max, 1);
    rig.answers("a", records(1..=3, 10));
    assert_eq!(rig.did(), ["records a 1-1", "records a 2-2", "records a 3-3", "fetch a 4"]);
    rig.answers("a", records(4..=4, 10));
    let mut rig = Rig::open(vec![offer("a", 1, 10)]);
    rig.did();
    rig.answers("a", records(1..=4, 900));
    assert_eq!(rig.did(), ["records a 1-2", "records a 3-4", "fetch a 5"]);
}

#[test]
fn a_batch_that_encodes_too_large_is_split_and_a_lone_record_counts_as_rejected() {
    for encoding in [Encoding::Json, Encoding::Postcard] {
        let mut rig = Rig::of(config(), greeting(vec![offer("a", 1, 8)], encoding));
        rig.outputs();
        rig.hears(&ServerMessage::Welcome(Welcome { message_bytes_max: 600, ..welcome() }));
        rig.did();
        assert!(rig.fetches[0].bytes_max <= 600);
        let mut items = records(1..=7, 200);
        items[4] = record(5, 601);
        rig.answers("a", items);
        let outputs = rig.outputs();
        let mut frames = outputs.iter().filter_map(frame_of).map(Frame::bytes_len);
        assert!(frames.all(|bytes| bytes <= 600));
        let lines: Vec<_> = outputs.iter().map(line).collect();
        let overhead = if encoding == Encoding::Json { 94 } else { 12 };
        let rejected = format!("rejected a 5 {} bytes encoded, the server takes 600", 601 + overhead);
        let at = lines.iter().position(|line| *line == rejected).unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!(lines[at + 1], "gap a 5-5 rejected:1");
        assert_eq!(lines.last().unwrap(), "records a 6-7");
        rig.hears(&ack("a", 7));
        assert_eq!(rig.did(), ["acked a 7", "proved"]);
        assert!(rig.session.is_idle());
    }
}

#[test]
fn a_server_that_takes_no_message_at_all_refuses_no_record() {
    let mut rig = Rig::greets(vec![offer("a", 1, 9)]);
    rig.hears(&ServerMessage::Welcome(Welcome { message_bytes_max: 255, ..welcome() }));
    assert_eq!(rig.did(), ["end Protocol 1008"]);
}

#[test]
fn a_time_that_the_wire_cannot_carry_is_no_time() {
    let mut rig = Rig::open(vec![offer("a", 1, 2)]);
    rig.did();
    rig.answers(
        "a",
        vec![Item::Record(Record { seq: 1, at: Some(1 << 53), topic: String::new(), body: Body::Bytes(vec![]) })],
    );
    let outputs = rig.outputs();
    let [Output::Transmit { frame, .. }] = &outputs[..] else { panic!("{outputs:?}") };
    let Some(AgentMessage::Records { records, .. }) = message(frame) else { panic!("{frame:?}") };
    assert_eq!(records[0].at, None);
}

#[test]
fn an_ack_no_higher_than_one_before_is_ignored() {
    let mut rig = Rig::open(vec![offer("a", 1, 6)]);
    rig.did();
    rig.answers("a", records(1..=5, 1));
    rig.outputs();
    rig.hears(&ack("a", 4));
    rig.hears(&ack("a", 3));
    rig.hears(&ack("a", 4));
    rig.hears(&ack("elsewhere", 9));
    rig.hears(&ServerMessage::Ack { lane: lane("a"), epoch: EPOCH + 1, seq: 5 });
    assert_eq!(rig.did(), ["acked a 4", "proved"]);
    rig.hears(&ack("a", 5));
    assert_eq!(rig.did(), ["acked a 5"]);
}

#[test]
fn an_ack_above_all_that_can_have_been_sent_is_foreign() {
    let mut rig = Rig::open(vec![offer("a", 1, 6)]);
    rig.did();
    rig.answers("a", records(1..=5, 1));
    rig.outputs();
    rig.hears(&ack("a", 6));
    assert_eq!(rig.did(), ["foreign a", "end Renewed 1000"]);
    assert!(!rig.session.progressed());
}

#[test]
fn an_ack_of_what_was_sent_only_on_an_older_connection_trims_nothing() {
    let mut rig = Rig::open(vec![offer("a", 1, 6)]);
    rig.did();
    rig.answers("a", records(1..=2, 1));
    rig.outputs();
    rig.hears(&ack("a", 3));
    assert_eq!(rig.did(), ["end Protocol 1008"]);
}

#[test]
fn no_ack_in_time_is_stalled_and_every_ack_that_advances_gives_new_time() {
    let mut rig = Rig::open(vec![offer("a", 1, 6), offer("b", 1, 1)]);
    rig.did();
    assert_eq!(rig.session.poll_timeout(), None);
    rig.answers("a", records(1..=5, 1));
    rig.outputs();
    let deadline =
        |rig: &Rig| rig.session.poll_timeout().map(|(at, timer)| (at.since(rig.now).as_millis() as u64, timer));
    assert_eq!(deadline(&rig), Some((ACK_TIMEOUT_MS, Timer::Ack)));
    rig.waits_ms(ACK_TIMEOUT_MS - 1);
    rig.hears(&ack("a", 4));
    assert_eq!(deadline(&rig), Some((ACK_TIMEOUT_MS, Timer::Ack)));
    rig.waits_ms(1000);
    // Neither an old ack nor more in flight gives new time.
    rig.hears(&ack("a", 4));
    rig.offers(&[offer("a", 1, 6), offer("b", 1, 2)]);
    rig.did();
    rig.answers("b", records(1..=1, 1));
    assert_eq!(deadline(&rig), Some((ACK_TIMEOUT_MS - 1000, Timer::Ack)));
    rig.waits_ms(ACK_TIMEOUT_MS - 1001);
    assert_eq!(rig.did(), ["records b 1-1"]);
    rig.waits_ms(1);
    let outputs = rig.outputs();
    let [Output::End { failure, .. }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(failure.class, Class::Stalled);
}

#[test]
fn nothing_in_flight_stalls_never() {
    let mut rig = Rig::open(vec![offer("a", 1, 6)]);
    rig.did();
    rig.answers("a", records(1..=5, 1));
    rig.hears(&ack("a", 5));
    rig.outputs();
    assert_eq!(rig.session.poll_timeout(), None);
    rig.waits_ms(10 * ACK_TIMEOUT_MS);
    assert_eq!(rig.did(), [""; 0]);
    assert!(rig.session.is_idle() && rig.session.progressed());
}

#[test]
fn welcome_says_where_to_go_on_and_unknown_lanes_in_it_are_ignored() {
    let mut rig = Rig::greets(vec![offer("a", 3, 9), offer("b", 1, 5)]);
    let mut all = acked("a", 6);
    all.acked.push(Acked { lane: lane("x"), epoch: EPOCH, seq: 50 });
    all.acked.push(Acked { lane: lane("b"), epoch: EPOCH + 1, seq: 50 });
    rig.hears(&ServerMessage::Welcome(all));
    assert_eq!(rig.did(), ["acked a 6", GREETED, "fetch a 7", "fetch b 1"]);
}

#[test]
fn a_welcome_above_all_that_can_have_been_sent_is_foreign_and_trims_nothing() {
    let mut rig = Rig::greets(vec![offer("a", 1, 9), offer("b", 1, 5)]);
    let mut all = acked("a", 3);
    all.acked.push(Acked { lane: lane("b"), epoch: EPOCH, seq: 5 });
    rig.hears(&ServerMessage::Welcome(all));
    assert_eq!(rig.did(), ["foreign b", "end Renewed 1000"]);
}

#[test]
fn a_server_that_lost_state_gets_a_settled_gap_first() {
    let mut rig = Rig::greets(vec![offer("a", 10, 20), offer("b", 8, 8)]);
    rig.hears(&ServerMessage::Welcome(acked("a", 4)));
    assert_eq!(
        rig.did(),
        ["forgotten a 4<9", "forgotten b 0<7", GREETED, "gap a 5-9 settled:0", "gap b 1-7 settled:0", "fetch a 10"]
    );
    rig.hears(&ack("b", 7));
    assert_eq!(rig.did(), ["acked b 7", "proved"]);
}

#[test]
fn what_was_refused_is_told_before_the_ack_that_covers_it() {
    let mut rig = Rig::greets(vec![offer("a", 3, 9)]);
    let refused = |seq| Rejected { lane: lane("a"), epoch: EPOCH, seq, reason: "old".into() };
    let rejected = vec![refused(2), refused(4), refused(9), Rejected { lane: lane("x"), ..refused(4) }];
    rig.hears(&ServerMessage::Welcome(Welcome { rejected, ..acked("a", 6) }));
    assert_eq!(rig.did(), ["rejected a 4 old", "acked a 6", GREETED, "fetch a 7"]);
    rig.answers("a", records(7..=8, 1));
    rig.hears(&reject("a", 6));
    rig.hears(&reject("a", 8));
    rig.hears(&reject("x", 8));
    rig.hears(&ack("a", 8));
    assert_eq!(rig.did(), ["records a 7-8", "rejected a 8 schema", "acked a 8", "proved"]);
}

#[test]
fn a_refusal_of_what_was_not_sent_ends_it_with_1008() {
    let mut rig = Rig::open(vec![offer("a", 1, 9)]);
    rig.outputs();
    rig.hears(&reject("a", 1));
    assert_eq!(rig.did(), ["end Protocol 1008"]);
}

#[test]
fn it_is_proved_at_once_with_nothing_to_send_else_by_the_first_ack() {
    let mut rig = Rig::open(vec![offer("a", 4, 4)]);
    assert_eq!(rig.did(), ["forgotten a 0<3", GREETED, "gap a 1-3 settled:0"]);
    let mut rig = Rig::greets(vec![offer("a", 4, 4)]);
    rig.hears(&ServerMessage::Welcome(acked("a", 3)));
    assert_eq!(rig.did(), [GREETED, "proved"]);
    assert!(rig.session.is_idle() && !rig.session.progressed());
    rig.offers(&[offer("a", 4, 6)]);
    assert_eq!(rig.did(), ["fetch a 4"]);
    assert!(!rig.session.is_idle());
    rig.answers("a", records(4..=5, 1));
    rig.hears(&ack("a", 5));
    assert_eq!(rig.did(), ["records a 4-5", "acked a 5"]);
}

#[test]
fn a_lane_that_hello_did_not_name_begins_a_new_session() {
    let mut rig = Rig::open(vec![offer("a", 1, 1)]);
    rig.outputs();
    rig.offers(&[offer("a", 1, 1), Offer { epoch: EPOCH + 1, ..offer("a", 1, 2) }]);
    assert_eq!(rig.did(), ["end Renewed 1000"]);
}

#[test]
fn a_lane_that_vanished_with_unsent_records_begins_a_new_session_and_a_drained_one_does_not() {
    let mut rig = Rig::open(vec![offer("a", 1, 6), offer("b", 1, 1)]);
    rig.did();
    rig.answers("a", records(1..=5, 1));
    rig.offers(&[offer("b", 1, 1)]);
    assert_eq!(rig.did(), ["records a 1-5"]);
    let mut rig = Rig::open(vec![offer("a", 1, 7), offer("b", 1, 1)]);
    rig.did();
    rig.answers("a", records(1..=5, 1));
    rig.offers(&[offer("b", 1, 1)]);
    assert_eq!(rig.did(), ["records a 1-5", "fetch a 6", "end Renewed 1000"]);
}

#[test]
fn commands_and_retry_are_handed_on_and_an_endpoint_that_is_not_configured_is_not() {
    let mut rig = Rig::open(vec![]);
    rig.outputs();
    rig.hears(&ServerMessage::Command { seq: 1, topic: "valve".into(), body: Body::Text("open".into()) });
    rig.hears(&ServerMessage::Retry { after_ms: 5, spread_ms: 6, endpoint: Some("wss://b".into()) });
    assert_eq!(rig.did(), ["command 1 valve", "retry 5 6 Some(\"wss://b\")"]);
}

#[test]
fn the_pace_binds_all_lanes_together_until_told_otherwise_and_gaps_are_free() {
    let mut rig = Rig::greets(vec![offer("a", 1, 100), offer("b", 1, 100)]);
    rig.hears(&ServerMessage::Welcome(welcome()));
    rig.hears(&ServerMessage::Pace { records_per_s: 10 });
    rig.did();
    rig.answers("a", records(1..=40, 1));
    rig.answers("b", [vec![Item::Gap(Gap { from: 1, to: 3, why: Why::Expired })], records(4..=40, 1)].concat());
    assert_eq!(rig.did(), ["records a 1-1", "gap b 1-3 expired:3"]);
    let mut lines = Vec::new();
    let start = rig.now;
    while rig.now.since(start).as_millis() < 1000 {
        let (deadline, timer) = rig.session.poll_timeout().unwrap();
        assert_eq!(timer, Timer::Pace);
        rig.waits_ms(deadline.since(rig.now).as_millis() as u64 + 1);
        lines.extend(rig.did());
    }
    assert_eq!(lines[..4], ["records a 2-2", "records b 4-4", "records a 3-3", "records b 5-5"]);
    assert_eq!(lines.len(), 10);
    rig.hears(&ServerMessage::Pace { records_per_s: 0 });
    let rest: usize = rig.sent().iter().map(Vec::len).sum();
    assert_eq!(rest, 40 + 37 - 11);
    assert!(rig.session.poll_timeout().is_some_and(|(_, timer)| timer != Timer::Pace));
}

#[test]
fn what_the_pace_holds_back_has_its_place_in_the_window() {
    let mut rig = Rig::greets(["a", "b", "c"].map(|name| offer(name, 1, 1000)).to_vec());
    rig.hears(&ServerMessage::Welcome(welcome()));
    rig.hears(&ServerMessage::Pace { records_per_s: 1 });
    assert_eq!(rig.did(), [GREETED, "fetch a 1", "fetch b 1"]);
    rig.answers("a", records(1..=40, 1));
    rig.answers("b", records(1..=40, 1));
    // 1 in flight, 79 in here: the rest is less than a quarter of the window.
    assert_eq!(rig.did(), ["records a 1-1"]);
    rig.hears(&ack("a", 1));
    assert_eq!(rig.did(), ["acked a 1", "proved"]);
}
