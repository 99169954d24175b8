//! The rules of one connection (docs: wire protocol, rules 1 to 3 and 10), from the upgrade to its end.
//!
//! Pure: frames in, steps out; the caller stores, commits and sends. It must not know the store, the socket or the
//! other connections. What a step asks to be stored counts as taken at once; [`Session::poll_ack`] tells the agent and
//! may be called only after the commit that holds it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::config::Encoding;
use crate::dialect::codec::{MESSAGE_BYTES_MAX, decode};
use crate::dialect::message::{Acked, AgentMessage, CommandCursor, FrameRef, Hello, Lost, ServerMessage, Welcome};
use crate::record::{Epoch, LaneName, Record, Seq};

use super::tokens::Grant;

/// The longest device name, in bytes.
pub const DEVICE_BYTES_MAX: usize = 128;
/// The longest `boot`, in bytes: it must fit the reason of a close frame (RFC 6455 § 5.5).
pub const BOOT_BYTES_MAX: usize = 123;
/// (lane, epoch) pairs in one `hello`, at most.
pub const LANES_MAX: usize = 1024;

/// A lane in one epoch.
pub type LaneEpoch = (LaneName, Epoch);

/// The far end did what it must not, or a newer connection took over: close with this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// Close code (RFC 6455 § 7.4, IANA's registry, protocol rule 11).
    pub code: u16,
    /// For the far end's log; at most 123 bytes.
    pub reason: Cow<'static, str>,
}

impl Close {
    /// A close with a fixed reason.
    pub const fn new(code: u16, reason: &'static str) -> Self {
        Self { code, reason: Cow::Borrowed(reason) }
    }

    /// Not allowed at that point (rule 10).
    const fn policy(reason: &'static str) -> Self {
        Self::new(1008, reason)
    }
}

/// What a frame asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: all known already, or a message from the future.
    Ignore,
    /// `hello`: fence the older connections of the device, commit, read `acked`, then [`Session::greet`] (rule 2).
    Greet(Introduction),
    /// Store these; contiguous, new, at least one.
    Store {
        /// The lane.
        lane: LaneName,
        /// The epoch.
        epoch: Epoch,
        /// Ascending by one.
        records: Vec<Record>,
    },
    /// Note that these will never come; new.
    Lose {
        /// The lane.
        lane: LaneName,
        /// The epoch.
        epoch: Epoch,
        /// First number.
        from: Seq,
        /// Last number, included.
        to: Seq,
        /// At least one cause, each once.
        lost: Vec<Lost>,
    },
    /// Note that every command up to there is done.
    Done {
        /// The last of them.
        seq: u64,
    },
}

/// What `hello` said that others need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Checked: 1 to [`DEVICE_BYTES_MAX`] bytes, no control characters.
    pub device: String,
    /// Name and version of the agent.
    pub agent: String,
    /// Random per start of the agent; at most [`BOOT_BYTES_MAX`] bytes.
    pub boot: String,
    /// Why the session before ended.
    pub last: Option<String>,
    /// The (lane, epoch) pairs of this connection, each once.
    pub lanes: Vec<LaneEpoch>,
    /// The last command done, and in which numbering.
    pub commands: Option<CommandCursor>,
}

/// What `welcome` says beside `acked`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// The session's name in both logs.
    pub session: String,
    /// Unix time in ms.
    pub now_ms: u64,
    /// Which numbering of commands this is.
    pub command_stream: u64,
}

/// One connection after its upgrade.
#[derive(Debug)]
pub struct Session {
    encoding: Encoding,
    grant: Grant,
    /// As `welcome` said.
    command_stream: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for `hello`.
    Expecting,
    /// `hello` came, `welcome` has not left (rule 1).
    Greeting,
    /// `welcome` has left.
    Up {
        /// How far each (lane, epoch) of `hello` is.
        lanes: BTreeMap<LaneEpoch, Progress>,
        /// Those with something taken and not acked, each once.
        unacked: Vec<LaneEpoch>,
    },
    /// Closed or fenced: nothing more is taken.
    Over,
}

#[derive(Debug)]
struct Progress {
    /// Everything up to here is taken.
    taken: Seq,
    /// Everything up to here the agent was told.
    acked: Seq,
}

impl Session {
    /// A connection that has just been upgraded.
    pub fn new(encoding: Encoding, grant: Grant) -> Self {
        Self { encoding, grant, command_stream: 0, state: State::Expecting }
    }

    /// The encoding of both directions.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Has `welcome` left, and is the session not over?
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }

    /// A data frame came. After an `Err` the session is over.
    pub fn handle_frame(&mut self, frame: &FrameRef<'_>) -> Result<Step, Close> {
        if matches!(self.state, State::Over) {
            return Ok(Step::Ignore);
        }
        let step = self.on_frame(frame);
        if step.is_err() {
            self.state = State::Over;
        }
        step
    }

    /// Nothing more of this connection is taken (rule 2).
    pub fn fence(&mut self) {
        self.state = State::Over;
    }

    /// Answers `hello`, with what is stored of each of its lanes. `None`: the session is over meanwhile.
    pub fn greet(&mut self, acked: Vec<(LaneEpoch, Seq)>, greeting: Greeting) -> Option<ServerMessage> {
        if !matches!(self.state, State::Greeting) {
            return None;
        }
        self.command_stream = greeting.command_stream;
        let stored = acked.iter().filter(|(_, seq)| *seq > 0);
        let stored = stored.map(|((lane, epoch), seq)| Acked { lane: lane.clone(), epoch: *epoch, seq: *seq });
        let welcome = Welcome {
            session: greeting.session,
            features: Vec::new(),
            now: greeting.now_ms,
            message_bytes_max: MESSAGE_BYTES_MAX as u64,
            acked: stored.collect(),
            rejected: Vec::new(),
            command_stream: greeting.command_stream,
        };
        let lanes = acked.into_iter().map(|(key, seq)| (key, Progress { taken: seq, acked: seq })).collect();
        self.state = State::Up { lanes, unacked: Vec::new() };
        Some(ServerMessage::Welcome(welcome))
    }

    /// The next ack to send; call until `None`, only after the commit of all that was taken (rule 4).
    pub fn poll_ack(&mut self) -> Option<ServerMessage> {
        let State::Up { lanes, unacked } = &mut self.state else { return None };
        let key = unacked.pop()?;
        let progress = lanes.get_mut(&key).expect("only lanes of the map become unacked, and none is removed");
        progress.acked = progress.taken;
        let (lane, epoch) = key;
        Some(ServerMessage::Ack { lane, epoch, seq: progress.taken })
    }

    fn on_frame(&mut self, frame: &FrameRef<'_>) -> Result<Step, Close> {
        match (self.encoding, frame) {
            (Encoding::Postcard, FrameRef::Binary(_)) | (Encoding::Json, FrameRef::Text(_)) => {}
            (Encoding::Postcard, FrameRef::Text(_)) => return Err(Close::new(1002, "text where postcard was agreed")),
            (Encoding::Json, FrameRef::Binary(_)) => return Err(Close::new(1002, "binary where JSON was agreed")),
        }
        let message = match decode::<AgentMessage>(frame) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Step::Ignore),
            Err(error) => return Err(Close { code: error.kind.close_code(), reason: error.to_string().into() }),
        };
        match message {
            AgentMessage::Hello(hello) => self.on_hello(hello),
            AgentMessage::Records { lane, epoch, records } => self.on_records(lane, epoch, records),
            AgentMessage::Gap { lane, epoch, from, to, lost } => self.on_gap(lane, epoch, from, to, lost),
            // Of another numbering: whatever an agent remembers is of another store.
            AgentMessage::Done { stream, seq } => {
                self.lanes()?;
                Ok(if stream == self.command_stream { Step::Done { seq } } else { Step::Ignore })
            }
        }
    }

    fn on_hello(&mut self, hello: Hello) -> Result<Step, Close> {
        if !matches!(self.state, State::Expecting) {
            return Err(Close::policy("a second hello"));
        }
        let device_fits = (1..=DEVICE_BYTES_MAX).contains(&hello.device.len());
        if !device_fits || hello.device.chars().any(char::is_control) {
            return Err(Close::policy("a device is 1 to 128 bytes without control characters"));
        }
        if hello.boot.len() > BOOT_BYTES_MAX {
            return Err(Close::policy("a boot is at most 123 bytes"));
        }
        if hello.lanes.len() > LANES_MAX {
            return Err(Close::policy("a hello names at most 1024 lanes and epochs"));
        }
        if !self.grant.allows(&hello.device) {
            return Err(Close::new(3003, "the token is of another device"));
        }
        let mut lanes: Vec<_> = hello.lanes.into_iter().map(|offer| (offer.lane, offer.epoch)).collect();
        lanes.sort();
        lanes.dedup();
        self.state = State::Greeting;
        let Hello { device, agent, boot, last, commands, .. } = hello;
        Ok(Step::Greet(Introduction { device, agent, boot, last, lanes, commands }))
    }

    fn on_records(&mut self, lane: LaneName, epoch: Epoch, mut records: Vec<Record>) -> Result<Step, Close> {
        let key = (lane, epoch);
        let progress = self.progress(&key)?;
        if records.first().is_some_and(|record| record.seq == 0) {
            return Err(Close::policy("a record without a number: they begin at 1"));
        }
        // What is taken already is no news: of two copies the first stored wins.
        let known = records.iter().take_while(|record| record.seq <= progress.taken).count();
        records.drain(..known);
        let Some(last) = records.last().map(|record| record.seq) else { return Ok(Step::Ignore) };
        let contiguous = records.iter().zip(progress.taken + 1..).all(|(record, seq)| record.seq == seq);
        if !contiguous {
            return Err(Close::policy("a hole in the records of a lane"));
        }
        self.take(&key, last);
        let (lane, epoch) = key;
        Ok(Step::Store { lane, epoch, records })
    }

    fn on_gap(&mut self, lane: LaneName, epoch: Epoch, from: Seq, to: Seq, lost: Vec<Lost>) -> Result<Step, Close> {
        let key = (lane, epoch);
        let progress = self.progress(&key)?;
        if lost.is_empty() {
            return Err(Close::policy("a gap without a cause"));
        }
        if from == 0 || from > to {
            return Err(Close::policy("a gap that ends before it begins"));
        }
        if to <= progress.taken {
            return Ok(Step::Ignore);
        }
        if from > progress.taken + 1 {
            return Err(Close::policy("a hole before a gap of a lane"));
        }
        // A gap that has grown since it was acked: only what is new of it.
        let from = progress.taken + 1;
        let lost = settle(lost, to - from + 1);
        self.take(&key, to);
        let (lane, epoch) = key;
        Ok(Step::Lose { lane, epoch, from, to, lost })
    }

    /// The lanes, where `welcome` has left (rule 1).
    fn lanes(&self) -> Result<&BTreeMap<LaneEpoch, Progress>, Close> {
        match &self.state {
            State::Expecting => Err(Close::policy("a message before hello")),
            State::Greeting => Err(Close::policy("a message between hello and welcome")),
            State::Up { lanes, .. } => Ok(lanes),
            State::Over => Err(Close::policy("a message after the end")),
        }
    }

    fn progress(&self, key: &LaneEpoch) -> Result<&Progress, Close> {
        self.lanes()?.get(key).ok_or(Close::policy("a lane and epoch that hello did not name"))
    }

    /// Everything of a lane up to `seq` is taken.
    fn take(&mut self, key: &LaneEpoch, seq: Seq) {
        let State::Up { lanes, unacked } = &mut self.state else { return };
        let Some(progress) = lanes.get_mut(key) else { return };
        debug_assert!(seq > progress.taken);
        if progress.taken == progress.acked {
            unacked.push(key.clone());
        }
        progress.taken = seq;
    }
}

/// Each cause once, together at most `numbers`: the table shows no more loss than there are numbers, even where a
/// part of the gap was stored before.
fn settle(lost: Vec<Lost>, numbers: u64) -> Vec<Lost> {
    let mut left = numbers;
    let mut settled: Vec<Lost> = Vec::new();
    for Lost { why, count } in lost {
        let count = count.min(left);
        left -= count;
        match settled.iter_mut().find(|known| known.why == why) {
            Some(known) => known.count += count,
            None => settled.push(Lost { why, count }),
        }
    }
    settled
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::dialect::codec::encode;
    use crate::dialect::message::HelloLane;
    use crate::record::Body;

    fn lane(name: &str) -> LaneName {
        LaneName::try_new(name).unwrap()
    }

    fn hello(lanes: &[(&str, Epoch)]) -> AgentMessage {
        AgentMessage::Hello(Hello {
            device: "gw-1".into(),
            agent: "test/1".into(),
            boot: "b1".into(),
            features: vec![],
            lanes: lanes
                .iter()
                .map(|(l, epoch)| HelloLane { lane: lane(l), epoch: *epoch, first: 1, next: 1 })
                .collect(),
            commands: None::<CommandCursor>,
            last: None,
        })
    }

    fn records(name: &str, epoch: Epoch, seqs: impl IntoIterator<Item = Seq>) -> AgentMessage {
        let record = |seq| Record { seq, at: None, topic: "t".into(), body: Body::Text(seq.to_string()) };
        AgentMessage::Records { lane: lane(name), epoch, records: seqs.into_iter().map(record).collect() }
    }

    fn gap(from: Seq, to: Seq, lost: &[(&str, u64)]) -> AgentMessage {
        let lost = lost.iter().map(|(why, count)| Lost { why: (*why).into(), count: *count }).collect();
        AgentMessage::Gap { lane: lane("a"), epoch: 7, from, to, lost }
    }

    fn say(session: &mut Session, message: &AgentMessage) -> Result<Step, Close> {
        let frame = encode(message, session.encoding());
        session.handle_frame(&frame.as_ref())
    }

    fn code(result: Result<Step, Close>) -> u16 {
        result.expect_err("should close").code
    }

    fn greeting() -> Greeting {
        Greeting { session: "s".into(), now_ms: 5, command_stream: 9 }
    }

    /// A session of lane `a`, epoch 7, of which `acked` is stored.
    fn up(acked: Seq) -> Session {
        let mut session = Session::new(Encoding::Postcard, Grant::Any);
        assert!(matches!(say(&mut session, &hello(&[("a", 7)])), Ok(Step::Greet(_))));
        session.greet(vec![((lane("a"), 7), acked)], greeting()).unwrap();
        session
    }

    fn stored(step: Result<Step, Close>) -> Vec<Seq> {
        let Ok(Step::Store { records, .. }) = step else { panic!("not stored: {step:?}") };
        records.iter().map(|record| record.seq).collect()
    }

    fn acks(session: &mut Session) -> Vec<Seq> {
        let ack = |message| if let ServerMessage::Ack { seq, .. } = message { seq } else { panic!("{message:?}") };
        std::iter::from_fn(|| session.poll_ack()).map(ack).collect()
    }

    #[test]
    fn answers_hello_with_what_is_stored_and_leaves_out_zero() {
        let mut session = Session::new(Encoding::Json, Grant::Any);
        let step = say(&mut session, &hello(&[("b", 2), ("a", 1), ("a", 1)])).unwrap();
        let Step::Greet(introduction) = step else { panic!("{step:?}") };
        assert_eq!((introduction.device.as_str(), introduction.boot.as_str()), ("gw-1", "b1"));
        assert_eq!(introduction.lanes, [(lane("a"), 1), (lane("b"), 2)]);
        let acked = introduction.lanes.into_iter().zip([0, 4]).collect();
        let Some(ServerMessage::Welcome(welcome)) = session.greet(acked, greeting()) else { panic!("no welcome") };
        assert_eq!(welcome.acked, [Acked { lane: lane("b"), epoch: 2, seq: 4 }]);
        assert_eq!((welcome.session.as_str(), welcome.now, welcome.command_stream), ("s", 5, 9));
        assert_eq!(welcome.message_bytes_max, 1 << 20);
        assert!(session.is_up());
    }

    #[test]
    fn takes_only_hello_first_and_only_once() {
        let done = AgentMessage::Done { stream: 1, seq: 1 };
        for early in [records("a", 7, [1]), gap(1, 1, &[("torn", 0)]), done.clone()] {
            assert_eq!(code(say(&mut Session::new(Encoding::Json, Grant::Any), &early)), 1008);
        }
        assert_eq!(code(say(&mut up(0), &hello(&[]))), 1008);
        assert_eq!(say(&mut up(0), &done), Ok(Step::Ignore), "of another stream");
        assert_eq!(say(&mut up(0), &AgentMessage::Done { stream: 9, seq: 4 }), Ok(Step::Done { seq: 4 }));
    }

    #[test]
    fn takes_nothing_between_hello_and_welcome() {
        let mut session = Session::new(Encoding::Postcard, Grant::Any);
        say(&mut session, &hello(&[("a", 7)])).unwrap();
        assert_eq!(code(say(&mut session, &records("a", 7, [1]))), 1008);
        assert_eq!(session.greet(vec![((lane("a"), 7), 0)], greeting()), None);
    }

    #[test]
    fn stores_what_follows_acked_and_acks_it_once() {
        let mut session = up(4);
        assert_eq!(stored(say(&mut session, &records("a", 7, [5, 6]))), [5, 6]);
        assert_eq!(stored(say(&mut session, &records("a", 7, [7]))), [7]);
        assert_eq!(acks(&mut session), [7]);
        assert!(acks(&mut session).is_empty());
        assert_eq!(stored(say(&mut session, &records("a", 7, [8]))), [8]);
        assert_eq!(acks(&mut session), [8]);
    }

    #[test]
    fn ignores_what_it_has_and_stores_only_the_rest_of_a_batch() {
        let mut session = up(4);
        assert_eq!(say(&mut session, &records("a", 7, [3, 4])), Ok(Step::Ignore));
        assert_eq!(stored(say(&mut session, &records("a", 7, 1..=6))), [5, 6]);
        assert_eq!(say(&mut session, &records("a", 7, [6])), Ok(Step::Ignore));
        assert_eq!(say(&mut session, &records("a", 7, [])), Ok(Step::Ignore));
        assert_eq!(acks(&mut session), [6]);
    }

    #[test]
    fn closes_with_1008_on_a_hole_and_stores_nothing_of_that_message() {
        for seqs in [vec![6], vec![5, 7], vec![5, 5], vec![6, 5], vec![4, 6], vec![5, 6, 4], vec![0], vec![0, 5]] {
            let mut session = up(4);
            assert_eq!(code(say(&mut session, &records("a", 7, seqs.clone()))), 1008, "{seqs:?}");
            assert_eq!(say(&mut session, &records("a", 7, [5])), Ok(Step::Ignore), "over after {seqs:?}");
            assert!(acks(&mut session).is_empty());
        }
        assert_eq!(code(say(&mut up(4), &gap(6, 9, &[("overflow", 4)]))), 1008);
    }

    #[test]
    fn closes_with_1008_on_a_lane_or_epoch_that_hello_did_not_name() {
        assert_eq!(code(say(&mut up(0), &records("b", 7, [1]))), 1008);
        assert_eq!(code(say(&mut up(0), &records("a", 8, [1]))), 1008);
    }

    #[test]
    fn keeps_two_epochs_of_a_lane_apart() {
        let mut session = Session::new(Encoding::Postcard, Grant::Any);
        say(&mut session, &hello(&[("a", 7), ("a", 8)])).unwrap();
        session.greet(vec![((lane("a"), 7), 2), ((lane("a"), 8), 0)], greeting()).unwrap();
        assert_eq!(stored(say(&mut session, &records("a", 8, [1]))), [1]);
        assert_eq!(stored(say(&mut session, &records("a", 7, [3]))), [3]);
        let acks: Vec<_> = std::iter::from_fn(|| session.poll_ack()).collect();
        assert_eq!(acks.len(), 2);
        assert!(acks.contains(&ServerMessage::Ack { lane: lane("a"), epoch: 7, seq: 3 }));
        assert!(acks.contains(&ServerMessage::Ack { lane: lane("a"), epoch: 8, seq: 1 }));
    }

    #[test]
    fn a_gap_advances_like_records() {
        let mut session = up(4);
        let step = say(&mut session, &gap(5, 9, &[("overflow", 3), ("expired", 2)])).unwrap();
        let Step::Lose { from, to, lost, .. } = step else { panic!("{step:?}") };
        assert_eq!((from, to, lost.len()), (5, 9, 2));
        assert_eq!(stored(say(&mut session, &records("a", 7, [10]))), [10]);
        assert_eq!(acks(&mut session), [10]);
        assert_eq!(say(&mut session, &gap(5, 9, &[("overflow", 5)])), Ok(Step::Ignore), "sent again");
    }

    #[test]
    fn of_a_gap_that_has_grown_only_the_new_part_counts() {
        let step = say(&mut up(4), &gap(1, 9, &[("overflow", 9)])).unwrap();
        let Step::Lose { from, to, lost, .. } = step else { panic!("{step:?}") };
        assert_eq!((from, to), (5, 9));
        assert_eq!(lost, [Lost { why: "overflow".into(), count: 5 }]);
    }

    #[test]
    fn shows_each_cause_once_and_no_more_loss_than_numbers() {
        let lost = [("overflow", 2), ("expired", 1), ("overflow", 1), ("corrupt", 9), ("torn", 0)];
        let step = say(&mut up(0), &gap(1, 5, &lost)).unwrap();
        let Step::Lose { lost, .. } = step else { panic!("{step:?}") };
        let lost: Vec<_> = lost.iter().map(|lost| (lost.why.as_str(), lost.count)).collect();
        assert_eq!(lost, [("overflow", 3), ("expired", 1), ("corrupt", 1), ("torn", 0)]);
    }

    #[test]
    fn refuses_a_gap_that_says_nothing() {
        assert_eq!(code(say(&mut up(0), &gap(1, 5, &[]))), 1008);
        assert_eq!(code(say(&mut up(3), &gap(5, 4, &[("torn", 0)]))), 1008);
        assert_eq!(code(say(&mut up(0), &gap(0, 1, &[("torn", 0)]))), 1008);
    }

    #[test]
    fn closes_with_1002_on_what_it_cannot_decode() {
        for garbage in [FrameRef::Binary(&[1, 2, 3]), FrameRef::Binary(&[]), FrameRef::Text("{}")] {
            assert_eq!(code(up(0).handle_frame(&garbage)), 1002);
        }
        let mut json = Session::new(Encoding::Json, Grant::Any);
        assert_eq!(code(json.handle_frame(&FrameRef::Text("{\"hello\":{}}"))), 1002);
        let mut json = Session::new(Encoding::Json, Grant::Any);
        assert_eq!(code(json.handle_frame(&FrameRef::Binary(b"{}"))), 1002);
    }

    #[test]
    fn ignores_messages_of_the_future_in_both_encodings() {
        assert_eq!(up(0).handle_frame(&FrameRef::Binary(&[200, 1, 9, 9])), Ok(Step::Ignore));
        let mut json = Session::new(Encoding::Json, Grant::Any);
        assert_eq!(json.handle_frame(&FrameRef::Text("{\"sing\":{\"loud\":true}}")), Ok(Step::Ignore));
    }

    #[test]
    fn closes_with_3003_on_the_token_of_another_device() {
        let mut session = Session::new(Encoding::Postcard, Grant::Devices(["gw-2".into()].into()));
        assert_eq!(code(say(&mut session, &hello(&[]))), 3003);
        let mut session = Session::new(Encoding::Postcard, Grant::Devices(["gw-2".into(), "gw-1".into()].into()));
        assert!(say(&mut session, &hello(&[])).is_ok());
    }

    #[test]
    fn refuses_names_that_would_not_fit() {
        let altered = |alter: fn(&mut Hello)| {
            let AgentMessage::Hello(mut hello) = hello(&[]) else { panic!("no hello") };
            alter(&mut hello);
            say(&mut Session::new(Encoding::Postcard, Grant::Any), &AgentMessage::Hello(hello))
        };
        assert_eq!(code(altered(|hello| hello.device.clear())), 1008);
        assert_eq!(code(altered(|hello| hello.device = "x".repeat(129))), 1008);
        assert_eq!(code(altered(|hello| hello.device = "gw\n1".into())), 1008);
        assert_eq!(code(altered(|hello| hello.boot = "x".repeat(124))), 1008);
        assert!(altered(|hello| hello.device = "x".repeat(128)).is_ok());
        let many = |hello: &mut Hello| {
            let lane = LaneName::try_new("a").unwrap();
            hello.lanes = (1..=1025).map(|epoch| HelloLane { lane: lane.clone(), epoch, first: 1, next: 1 }).collect();
        };
        assert_eq!(code(altered(many)), 1008);
    }

    #[test]
    fn a_fenced_session_takes_and_acks_nothing_more() {
        let mut session = up(0);
        assert_eq!(stored(say(&mut session, &records("a", 7, [1]))), [1]);
        session.fence();
        assert_eq!(say(&mut session, &records("a", 7, [2])), Ok(Step::Ignore));
        assert!(acks(&mut session).is_empty());
        assert!(!session.is_up());
    }
}
