//! Scripted sequences: a far end made of messages, an outbox made of numbered texts, time that jumps to the next
//! deadline.

use std::time::Duration;

use super::*;
use crate::config::{Heartbeat, Reconnect};
use crate::dialect::message::{Acked, AgentMessage, Hello, ServerMessage, Welcome};
use crate::record::Record;

const NEAR: &str = "ws://near.example/v1";
const FAR: &str = "ws://far.example/v1";

/// The machine, and what it wanted since the script last looked.
struct Script {
    upstream: Upstream,
    now: Instant,
    outputs: Vec<Output>,
    offers: Vec<Offer>,
    answers: bool,
}

impl Script {
    fn new() -> Self {
        Self::at(&[NEAR, FAR])
    }

    fn at(endpoints: &[&str]) -> Self {
        let link = link::Config {
            reconnect: Reconnect { start_delay_ms_max: 0, ..Reconnect::default() },
            heartbeat: Heartbeat::default(),
            handshake_timeout_ms: 30_000,
            server_wait_ms_max: 3_600_000,
            session_age_s_max: 0,
            attempts_max: 0,
            endpoints_tls: vec![false; endpoints.len()],
            ..link::Config::default()
        };
        let dialect = dialect::Config {
            window_records: 64,
            window_bytes: 1 << 20,
            batch_bytes_max: 65_536,
            ack_timeout_ms: 30_000,
            start_bytes: u32::MAX,
            ..dialect::Config::default()
        };
        let setup = Setup {
            link: Arc::new(link),
            dialect: Arc::new(dialect),
            device: "gw-1".into(),
            agent: "backhaul/0.1.0".into(),
            boot: "c0ffee".into(),
            endpoints: endpoints.iter().copied().map(Into::into).collect(),
            seed: 7,
            saved: None,
            fresh_boot: false,
            cap: Cap::default(),
        };
        let now = Instant::from_micros(1_000_000);
        Self { upstream: Upstream::new(setup, now), now, outputs: vec![], offers: vec![offer(1, 41)], answers: true }
    }

    /// All outputs so far; the outbox answers its questions meanwhile.
    fn drain(&mut self) {
        while let Some(output) = self.upstream.poll_output() {
            match &output {
                Output::Fetch(fetch) if self.answers => {
                    let items = items(fetch, &self.offers);
                    self.upstream.handle_input(Input::Items(fetch, items), self.now);
                }
                _other => self.outputs.push(output),
            }
        }
    }

    fn tell(&mut self, input: Input<'_>) {
        self.upstream.handle_input(input, self.now);
        self.drain();
    }

    fn say(&mut self, message: &ServerMessage) {
        let text = serde_json::to_string(message).unwrap();
        self.tell(Input::Text(&text));
    }

    /// To the next attempt: past every deadline until a name is to be resolved.
    fn run_to_attempt(&mut self) -> u8 {
        for _ in 0..10 {
            self.drain();
            let resolve = self.outputs.iter().find_map(|output| match output {
                Output::Resolve { endpoint, .. } => Some(*endpoint),
                _other => None,
            });
            if let Some(endpoint) = resolve {
                return endpoint;
            }
            let (at, _) = self.upstream.poll_timeout().expect("there is always a deadline");
            self.now = self.now.max(at);
            self.upstream.handle_timeout(self.now);
        }
        panic!("no attempt: {:?}", self.outputs);
    }

    /// A new connection up to the upgrade; what `hello` says.
    fn upgrade(&mut self) -> Hello {
        self.run_to_attempt();
        self.outputs.clear();
        self.tell(Input::Resolved { addresses: 1 });
        assert!(self.take(|output| matches!(output, Output::Dial { address: 0 })).is_some());
        self.tell(Input::Dialed { address: 0 });
        let offers = self.offers.clone();
        self.tell(Input::Upgraded { encoding: Some(Encoding::Json), offers: &offers });
        match self.sent().into_iter().next() {
            Some(AgentMessage::Hello(hello)) => hello,
            other => panic!("no hello: {other:?}"),
        }
    }

    fn welcome(&mut self, acked: Seq) {
        let acked = self.offers.iter().map(|offer| Acked { lane: offer.lane.clone(), epoch: offer.epoch, seq: acked });
        let welcome = Welcome {
            session: "s-1".into(),
            features: vec![],
            now: 1,
            message_bytes_max: 1 << 20,
            acked: acked.collect(),
            rejected: vec![],
            command_stream: 1,
        };
        self.say(&ServerMessage::Welcome(welcome));
    }

    fn ack(&mut self, seq: Seq) {
        self.say(&ServerMessage::Ack { lane: lane(), epoch: self.offers[0].epoch, seq });
    }

    fn take(&mut self, wanted: impl Fn(&Output) -> bool) -> Option<Output> {
        let index = self.outputs.iter().position(wanted)?;
        Some(self.outputs.remove(index))
    }

    fn sent(&mut self) -> Vec<AgentMessage> {
        let mut sent = Vec::new();
        while let Some(Output::Transmit { frame: Frame::Text(text), .. }) =
            self.take(|output| matches!(output, Output::Transmit { .. }))
        {
            sent.push(serde_json::from_str(&text).unwrap());
        }
        sent
    }

    /// Sizes of the batches sent since the last look.
    fn batches(&mut self) -> Vec<usize> {
        let size = |message| match message {
            AgentMessage::Records { records, .. } => Some(records.len()),
            AgentMessage::Hello(_) | AgentMessage::Gap { .. } | AgentMessage::Done { .. } => None,
        };
        self.sent().into_iter().filter_map(size).collect()
    }

    fn events(&mut self) -> Vec<&'static str> {
        let kinds = self.outputs.iter().filter_map(|output| match output {
            Output::Event { kind, .. } => Some(*kind),
            _other => None,
        });
        let kinds = kinds.collect();
        self.outputs.retain(|output| !matches!(output, Output::Event { .. }));
        kinds
    }

    fn reset(&mut self) {
        self.tell(Input::Failed(Failure::new(Class::Reset, "up: reset")));
    }
}

fn lane() -> LaneName {
    LaneName::try_new("telemetry").unwrap()
}

fn offer(epoch: Epoch, next: Seq) -> Offer {
    Offer { lane: lane(), epoch, first: 1, next, sent_max: next - 1 }
}

fn items(fetch: &Fetch, offers: &[Offer]) -> Vec<Item> {
    let offer = offers.iter().find(|offer| offer.epoch == fetch.epoch);
    let end = offer.map_or(0, |offer| offer.next).min(fetch.from + u64::from(fetch.records_max));
    let record = |seq| Record { seq, at: None, topic: "t".into(), body: Body::Text("x".into()) };
    (fetch.from..end).map(|seq| Item::Record(record(seq))).collect()
}

#[test]
fn greets_at_the_upgrade_sends_after_welcome_and_passes_acks_on() {
    let mut script = Script::new();
    let hello = script.upgrade();
    assert_eq!((hello.device.as_str(), hello.boot.as_str(), hello.last), ("gw-1", "c0ffee", None));
    assert_eq!((hello.lanes[0].first, hello.lanes[0].next), (1, 41));
    assert_eq!(script.upstream.view().session, None);
    script.welcome(0);
    assert!(script.upstream.is_up());
    assert_eq!(script.upstream.view().session.as_deref(), Some("s-1"));
    let position = |wanted: fn(&Output) -> bool| script.outputs.iter().position(wanted).unwrap();
    let told = position(|output| matches!(output, Output::ServerTime { now_ms: 1 }));
    assert!(told < position(|output| matches!(output, Output::Transmit { .. })), "before the first records");
    assert_eq!(script.batches().iter().sum::<usize>(), 40);
    script.ack(40);
    assert!(script.outputs.contains(&Output::Acked { lane: lane(), epoch: 1, seq: 40 }));
}

#[test]
fn nothing_of_a_session_outlives_it() {
    let mut script = Script::new();
    script.upgrade();
    script.answers = false;
    let welcome = ServerMessage::Welcome(Welcome {
        session: "s".into(),
        features: vec![],
        now: 1,
        message_bytes_max: 1 << 20,
        acked: vec![],
        rejected: vec![],
        command_stream: 1,
    });
    // Told without draining: its fetch is still in the queue when the connection breaks.
    let text = serde_json::to_string(&welcome).unwrap();
    script.upstream.handle_input(Input::Text(&text), script.now);
    script.upstream.handle_input(Input::Failed(Failure::new(Class::Reset, "gone")), script.now);
    script.drain();
    let of_the_session =
        |output: &Output| matches!(output, Output::Fetch(_) | Output::Transmit { .. } | Output::Ping { .. });
    assert!(script.take(of_the_session).is_none());
    assert_eq!(script.upstream.view().session, None);
    // Its answer comes late, and means nothing to the next session.
    let late = Fetch { session: 1, lane: lane(), epoch: 1, from: 1, records_max: 9, bytes_max: 999 };
    script.answers = true;
    assert_eq!(script.upgrade().last.as_deref(), Some("reset"));
    script.tell(Input::Items(&late, items(&late, &[offer(1, 41)])));
    script.welcome(0);
    assert_eq!(script.batches().iter().sum::<usize>(), 40, "each record once");
}

#[test]
fn batches_halve_without_progress_and_grow_back_with_it() {
    let mut script = Script::new();
    let mut largest = Vec::new();
    for _ in 0..8 {
        script.upgrade();
        script.welcome(0);
        largest.push(script.batches().into_iter().max().unwrap());
        script.reset();
    }
    assert_eq!(largest, [40, 20, 10, 5, 2, 1, 1, 1], "down to one record, never below");
    script.upgrade();
    script.welcome(0);
    script.batches();
    for seq in 1..=10 {
        script.ack(seq);
    }
    script.offers = vec![offer(1, 101)];
    let offers = script.offers.clone();
    script.tell(Input::Offers(&offers));
    script.ack(40);
    assert!(script.batches().into_iter().max().unwrap() > 16, "the way back is short");
}

#[test]
fn a_session_with_nothing_to_send_halves_nothing() {
    let mut script = Script::new();
    script.offers = vec![offer(1, 1)];
    script.upgrade();
    script.welcome(0);
    script.reset();
    script.offers = vec![offer(1, 41)];
    script.upgrade();
    script.welcome(0);
    assert_eq!(script.batches(), [40]);
}

#[test]
fn a_foreign_numbering_stays_out_of_hello_until_the_outbox_has_drawn_a_new_one() {
    let mut script = Script::new();
    script.upgrade();
    script.welcome(99);
    assert!(script.outputs.contains(&Output::Foreign { lane: lane(), epoch: 1 }));
    assert!(script.outputs.contains(&Output::Drop { close: Some(1000) }));
    assert!(!script.outputs.iter().any(|output| matches!(output, Output::Acked { .. })), "nothing is trimmed");
    assert_eq!(script.events(), ["foreign_numbering"]);
    // The outbox has not got to it: the pair is not named again.
    let hello = script.upgrade();
    assert_eq!((hello.last.as_deref(), hello.lanes), (Some("renewed"), vec![]));
    script.say(&ServerMessage::Welcome(Welcome {
        session: "s-2".into(),
        features: vec![],
        now: 1,
        message_bytes_max: 1 << 20,
        acked: vec![],
        rejected: vec![],
        command_stream: 1,
    }));
    let offers = script.offers.clone();
    script.tell(Input::Offers(&offers));
    assert!(script.upstream.is_up(), "the old offer changes nothing");
    assert!(script.batches().is_empty());
    // Now it has: a pair that hello did not name ends the session, and the next one goes on in it.
    script.offers = vec![Offer { sent_max: 0, ..offer(2, 41) }];
    let offers = script.offers.clone();
    script.tell(Input::Offers(&offers));
    assert!(!script.upstream.is_up());
    let hello = script.upgrade();
    assert_eq!((hello.last.as_deref(), hello.lanes[0].epoch), (Some("renewed"), 2));
    script.welcome(0);
    assert_eq!(script.batches().iter().sum::<usize>(), 40);
    assert_eq!(script.events(), [] as [&str; 0]);
}

#[test]
fn goes_where_the_server_sends_it_if_that_is_configured() {
    for (url, expected, events) in [
        (Some(FAR), 1, [].as_slice()),
        (Some(NEAR), 0, &[]),
        (None, 0, &[]),
        (Some("ws://else.example/"), 0, &["unknown_endpoint"]),
    ] {
        let mut script = Script::new();
        script.upgrade();
        script.welcome(0);
        script.outputs.clear();
        let endpoint = url.map(str::to_owned);
        script.say(&ServerMessage::Retry { after_ms: 5000, spread_ms: 0, endpoint });
        assert!(script.outputs.contains(&Output::Drop { close: Some(1000) }), "{url:?}");
        assert_eq!(script.events(), events, "{url:?}");
        let left_at = script.now;
        assert_eq!(script.run_to_attempt(), expected, "{url:?}");
        assert!(script.now.since(left_at) >= Duration::from_secs(5), "{url:?}: not before");
    }
}

#[test]
fn a_breach_of_the_protocol_closes_with_its_code_and_is_counted_once() {
    let mut script = Script::new();
    script.upgrade();
    script.tell(Input::Text("no json"));
    assert!(script.outputs.contains(&Output::Drop { close: Some(1002) }));
    script.tell(Input::Text("no json"));
    assert_eq!(script.upstream.view().failures, [("protocol", 1)]);
}

#[test]
fn takeovers_in_a_row_raise_an_event() {
    let mut script = Script::new();
    let mut events = Vec::new();
    for _ in 0..3 {
        script.upgrade();
        script.welcome(0);
        script.tell(Input::Failed(Failure::from_close(4009, "boot beef")));
        events.extend(script.events());
    }
    assert_eq!(events, ["clone_suspected"]);
}

/// The classes of so many sessions that end with 4009 and one of these reasons each, none of them stable.
fn taken_over(reasons: &[&str]) -> Vec<Option<Class>> {
    closed(&reasons.iter().map(|reason| (4009, *reason)).collect::<Vec<_>>())
}

/// The same for any close code.
fn closed(closes: &[(u16, &str)]) -> Vec<Option<Class>> {
    let mut script = Script::new();
    let ended = |(code, reason): &(u16, &str)| {
        script.upgrade();
        script.welcome(0);
        script.tell(Input::Failed(Failure::from_close(*code, reason)));
        script.upstream.link.last_class()
    };
    closes.iter().map(ended).collect()
}

#[test]
fn a_boot_that_takes_over_again_is_a_clone_and_a_reboot_is_none() {
    // emqx/emqx#151: each of the two connects with success, for ever.
    let (once, again) = (Some(Class::Replaced), Some(Class::Clone));
    assert_eq!(taken_over(&["7f3a9c01", "7f3a9c01"]), [once, again]);
    assert_eq!(taken_over(&["7f3a9c01", "55aa0102"]), [once, once], "it rebooted in between");
    assert_eq!(taken_over(&["replaced", "replaced"]), [once, once], "a word is no nonce");
    assert_eq!(taken_over(&["c0ffee"; 2]), [once; 2], "our own, come late");
}

#[test]
fn a_session_that_is_accepted_and_closed_with_another_boot_is_one_taken_over() {
    // knolleary/pubsubclient#129: the server closes the older connection, and does not say with a code of its own why.
    let (once, again) = (Some(Class::Replaced), Some(Class::Clone));
    for code in [1000, 1001, 1008, 4000] {
        assert_eq!(closed(&[(code, "a1b2c3"), (code, "a1b2c3")]), [once, again], "{code}: the same one comes back");
        assert_eq!(closed(&[(code, "boot=a1b2c3"), (4009, "a1b2c3")]), [once, again], "{code}: whatever the code");
        let reboots = ["newer boot a1b2c3", "newer boot a1b2c4", "newer boot a1b2c5"].map(|reason| (code, reason));
        assert_eq!(closed(&reboots), [once, once, again], "{code}: three in a row, none of them stable");
        assert_eq!(closed(&[(code, "c0ffee"); 3]).last(), closed(&[(code, ""); 3]).last(), "{code}: our own");
    }
    // What only looks like it: a release, a trace, a word. And what says something else is heard.
    for reason in ["release 4f3a2b", "deploy 2024.10", "facade", "rebooting"] {
        assert_eq!(closed(&[(1012, reason); 3]), [Some(Class::Closed); 3], "{reason}");
    }
    for code in [1011, 1012] {
        assert_eq!(closed(&[(code, "a1b2c3"); 3]), [Some(Class::Closed); 3], "{code}: a trace of the server's trouble");
    }
    assert_eq!(closed(&[(1013, "a1b2c3"); 3]), [Some(Class::Overload); 3]);
    assert_eq!(closed(&[(3000, "a1b2c3"); 3]), [Some(Class::Credentials); 3]);
}

#[test]
fn lost_server_state_and_refusals_are_events() {
    let mut script = Script::new();
    script.offers = vec![Offer { first: 10, ..offer(1, 41) }];
    script.upgrade();
    script.welcome(5);
    assert_eq!(script.events(), ["acks_forgotten"]);
    for seq in [11, 12, 13] {
        script.say(&ServerMessage::Reject { lane: lane(), epoch: 1, seq, reason: "no".into() });
    }
    assert_eq!(script.events(), ["record_rejected"], "one a session");
    let rejected = script.outputs.iter().filter(|output| matches!(output, Output::Rejected { .. })).count();
    assert_eq!(rejected, 3);
}

#[test]
fn stop_says_goodbye_and_sets_no_deadline() {
    let mut script = Script::new();
    script.upgrade();
    script.welcome(0);
    script.tell(Input::Stop);
    assert!(script.outputs.contains(&Output::Drop { close: Some(1000) }));
    assert_eq!(script.upstream.poll_timeout(), None);
}

#[test]
fn a_stalled_session_ends_by_its_own_deadline() {
    let mut script = Script::new();
    script.upgrade();
    script.welcome(0);
    script.outputs.clear();
    // Pongs keep the link alive all the while; only the ack is missing.
    let ends = script.now + Duration::from_secs(31);
    while script.upstream.is_up() && script.now < ends {
        let (at, _) = script.upstream.poll_timeout().expect("a session has deadlines");
        script.now = script.now.max(at);
        script.upstream.handle_timeout(script.now);
        script.drain();
        if script.take(|output| matches!(output, Output::Ping { .. })).is_some() {
            script.tell(Input::PingFlushed(None));
            script.tell(Input::Pong(b""));
        }
    }
    assert_eq!(script.upstream.view().last_failure.map(|(class, ..)| class), Some(Class::Stalled));
    assert!(script.outputs.contains(&Output::Drop { close: Some(1000) }));
}

#[test]
fn where_pings_are_numbered_the_heartbeats_own_pong_alone_is_its_round_trip() {
    let mut script = Script::new();
    script.answers = false;
    script.run_to_attempt();
    script.tell(Input::Resolved { addresses: 1 });
    script.tell(Input::Dialed { address: 0 });
    let offers = script.offers.clone();
    script.tell(Input::Upgraded { encoding: None, offers: &offers });
    assert!(script.upstream.is_up(), "the upgrade is the greeting");
    let counter = loop {
        let (at, _) = script.upstream.poll_timeout().expect("a session has deadlines");
        script.now = script.now.max(at);
        script.upstream.handle_timeout(script.now);
        script.drain();
        if let Some(Output::Ping { counter }) = script.take(|output| matches!(output, Output::Ping { .. })) {
            break counter.expect("numbered");
        }
    };
    script.tell(Input::PingFlushed(Some(counter)));
    script.now = script.now + Duration::from_secs(1);
    for other in ["", "0", "999"] {
        script.tell(Input::Pong(other.as_bytes()));
    }
    assert_eq!(script.upstream.view().rtt, None);
    script.tell(Input::Pong(counter.to_string().as_bytes()));
    assert_eq!(script.upstream.view().rtt, Some(Duration::from_secs(1)));
}

#[test]
fn a_ping_of_the_session_neither_begins_nor_ends_the_heartbeats_round_trip() {
    let mut script = Script::new();
    script.upgrade();
    script.welcome(40);
    script.outputs.clear();
    while script.take(|output| matches!(output, Output::Ping { counter: None })).is_none() {
        let (at, _) = script.upstream.poll_timeout().expect("a session has deadlines");
        script.now = script.now.max(at);
        script.upstream.handle_timeout(script.now);
        script.drain();
    }
    script.tell(Input::PingFlushed(Some(1)));
    script.now = script.now + Duration::from_secs(1);
    script.tell(Input::PingFlushed(None));
    script.now = script.now + Duration::from_secs(1);
    script.tell(Input::Pong(b"1"));
    assert_eq!(script.upstream.view().rtt, None);
    script.now = script.now + Duration::from_secs(1);
    script.tell(Input::Pong(b""));
    assert_eq!(script.upstream.view().rtt, Some(Duration::from_secs(2)));
}

/// The records that go out at once, in a session that begins above `acked`.
fn first_numbers(script: &mut Script, acked: Seq) -> Vec<Seq> {
    script.upgrade();
    script.welcome(acked);
    numbers(script)
}

fn numbers(script: &mut Script) -> Vec<Seq> {
    let numbers = |message| match message {
        AgentMessage::Records { records, .. } => records.into_iter().map(|record| record.seq).collect(),
        AgentMessage::Hello(_) | AgentMessage::Gap { .. } | AgentMessage::Done { .. } => Vec::new(),
    };
    script.sent().into_iter().flat_map(numbers).collect()
}

#[test]
fn a_record_that_is_always_answered_by_1009_is_found_and_given_up_after_three_tries_alone() {
    let mut script = Script::at(&[NEAR]);
    let refused = |script: &mut Script| script.take(|output| matches!(output, Output::Rejected { .. }));
    let too_big = || Input::Failed(Failure::from_close(1009, "message too big"));
    // It is the fifth of forty.
    assert_eq!(first_numbers(&mut script, 0), (1..=40).collect::<Vec<_>>());
    script.tell(too_big());
    assert_eq!(first_numbers(&mut script, 0), [1], "one at a time");
    for seq in 1..=4 {
        script.ack(seq);
        assert_eq!(numbers(&mut script), [seq + 1]);
    }
    for _ in 0..2 {
        script.tell(too_big());
        assert_eq!(refused(&mut script), None);
        assert_eq!(first_numbers(&mut script, 4), [5]);
        // What else ends a session meanwhile counts for nothing.
        script.reset();
        assert_eq!(first_numbers(&mut script, 4), [5]);
    }
    script.events();
    script.tell(too_big());
    assert_eq!(script.events(), ["record_rejected"]);
    let Some(Output::Rejected { seq: 5, ours: true, .. }) = refused(&mut script) else { panic!("not given up") };
    assert_eq!(refused(&mut script), None);
    assert_eq!(first_numbers(&mut script, 5), (6..=40).collect::<Vec<_>>(), "all at once again");
}

#[test]
fn a_record_that_gets_through_at_the_third_try_is_no_longer_suspect_and_other_ends_accuse_none() {
    let mut script = Script::new();
    script.offers = vec![offer(1, 2)];
    for end in [1009, 1009, 1011, 1006] {
        assert_eq!(first_numbers(&mut script, 0), [1]);
        script.tell(Input::Failed(Failure::from_close(end, "")));
    }
    assert_eq!(first_numbers(&mut script, 0), [1]);
    script.ack(1);
    script.offers = vec![offer(1, 3)];
    let offers = script.offers.clone();
    script.tell(Input::Offers(&offers));
    assert_eq!(numbers(&mut script), [2]);
    script.tell(Input::Failed(Failure::from_close(1009, "")));
    for _ in 0..9 {
        assert_eq!(first_numbers(&mut script, 1), [2]);
        script.tell(Input::Failed(Failure::from_close(1011, "")));
    }
    assert!(script.take(|output| matches!(output, Output::Rejected { .. })).is_none());
}

#[test]
fn a_suspect_whose_numbering_goes_away_holds_up_no_later_session() {
    for is_foreign in [true, false] {
        let mut script = Script::new();
        for _ in 0..2 {
            first_numbers(&mut script, 0);
            script.tell(Input::Failed(Failure::from_close(1009, "")));
        }
        if is_foreign {
            // The outbox still offers it.
            assert_eq!(first_numbers(&mut script, 99), [] as [Seq; 0]);
            assert_eq!(script.upgrade().lanes, vec![]);
            script.reset();
        }
        script.offers = vec![Offer { sent_max: 0, ..offer(2, 41) }];
        assert_eq!(first_numbers(&mut script, 0), [1], "{is_foreign}: one at a time once more");
        for seq in 1..=40 {
            script.ack(seq);
        }
        script.reset();
        script.offers = vec![Offer { first: 41, ..offer(2, 61) }];
        assert_eq!(first_numbers(&mut script, 40), (41..=60).collect::<Vec<_>>(), "{is_foreign}");
    }
}

#[test]
fn a_record_is_given_up_after_three_tries_at_one_endpoint_not_at_several() {
    let mut script = Script::new();
    script.offers = vec![offer(1, 2)];
    let too_big = || Input::Failed(Failure::from_close(1009, ""));
    for _ in 0..2 {
        assert_eq!((script.run_to_attempt(), first_numbers(&mut script, 0)), (0, vec![1]));
        script.tell(too_big());
    }
    assert_eq!(first_numbers(&mut script, 0), [1]);
    script.outputs.clear();
    script.say(&ServerMessage::Retry { after_ms: 5000, spread_ms: 0, endpoint: Some(FAR.into()) });
    assert_eq!((script.run_to_attempt(), first_numbers(&mut script, 0)), (1, vec![1]));
    script.tell(too_big());
    assert!(script.take(|output| matches!(output, Output::Rejected { .. })).is_none());
}

#[test]
fn that_the_days_bytes_are_spent_is_told_once_and_kept_and_over_a_day_later() {
    let mut script = Script::new();
    script.upstream.cap.set_max(1000);
    script.upgrade();
    script.outputs.clear();
    script.tell(Input::Wire(999));
    assert_eq!((script.upstream.day(), script.events().contains(&"day_cap")), ((999, false), false));
    for bytes in 1000..1010 {
        script.tell(Input::Wire(bytes));
    }
    assert_eq!(script.upstream.day(), (1009, true));
    assert_eq!(script.events().iter().filter(|kind| **kind == "day_cap").count(), 1);
    assert!(script.take(|output| matches!(output, Output::SaveDay(_))).is_some());
    script.now = script.now + Duration::from_secs(25 * 3600);
    script.upstream.handle_timeout(script.now);
    assert_eq!(script.upstream.day(), (0, false));
}

fn command(script: &mut Script, seq: u64, bytes: usize) {
    script.say(&ServerMessage::Command { seq, topic: "t".into(), body: Body::Text("x".repeat(bytes)) });
}

/// The commands handed down since the script last looked.
fn commands(script: &mut Script) -> Vec<(u64, u64)> {
    let taken = |output: &mut Output| matches!(output, Output::Command(_));
    let commands = script.outputs.extract_if(.., taken);
    commands
        .map(|output| if let Output::Command(command) = output { (command.stream, command.seq) } else { (0, 0) })
        .collect()
}

fn done(script: &mut Script, stream: u64, seq: u64) -> Vec<AgentMessage> {
    script.sent();
    script.tell(Input::Done(CommandCursor { stream, seq }));
    script.sent()
}

// bytebeamio/uplink persists its actions: what was done before a restart is not done again after it.
#[test]
fn each_command_is_handed_down_once_and_what_is_done_is_told_when_flash_has_it() {
    let mut script = Script::new();
    // What flash says at the start.
    script.tell(Input::Done(CommandCursor { stream: 1, seq: 2 }));
    assert_eq!(script.upgrade().commands, Some(CommandCursor { stream: 1, seq: 2 }));
    script.welcome(40);
    assert!(script.sent().is_empty(), "hello has said it");
    (1..=4).for_each(|seq| command(&mut script, seq, 1));
    assert_eq!(commands(&mut script), [(1, 3), (1, 4)]);
    assert_eq!(done(&mut script, 1, 3), [AgentMessage::Done { stream: 1, seq: 3 }]);
    assert_eq!(done(&mut script, 1, 3), []);
    assert_eq!(script.upstream.commands_done(), 1);
    script.reset();
    assert_eq!(script.upgrade().commands, Some(CommandCursor { stream: 1, seq: 3 }));
    // Between hello and welcome nothing is said (rule 1), and nothing is forgotten.
    assert_eq!(done(&mut script, 1, 4), []);
    script.welcome(40);
    assert!(script.sent().contains(&AgentMessage::Done { stream: 1, seq: 4 }));
    (3..=5).for_each(|seq| command(&mut script, seq, 1));
    assert_eq!(commands(&mut script), [(1, 5)]);
}

#[test]
fn a_server_with_too_many_commands_under_way_is_left_and_one_with_too_large_ones_asked_again() {
    let mut script = Script::new();
    script.upgrade();
    script.welcome(40);
    (1..=17).for_each(|seq| command(&mut script, seq, 1));
    assert_eq!(commands(&mut script).len(), 16);
    assert!(script.take(|output| matches!(output, Output::Drop { close: Some(1008) })).is_some());
    assert_eq!(script.upgrade().commands, None);
    script.welcome(40);
    done(&mut script, 1, 16);
    (17..=20).for_each(|seq| command(&mut script, seq, 900_000));
    assert_eq!(commands(&mut script), [(1, 17), (1, 18)], "no more than there is room for");
    done(&mut script, 1, 17);
    assert!(script.upstream.is_up());
    done(&mut script, 1, 18);
    assert!(!script.upstream.is_up(), "what is left comes with a new session");
    assert_eq!(script.upgrade().commands, Some(CommandCursor { stream: 1, seq: 18 }));
    script.welcome(40);
    (19..=20).for_each(|seq| command(&mut script, seq, 900_000));
    assert_eq!(commands(&mut script), [(1, 19), (1, 20)]);
}
