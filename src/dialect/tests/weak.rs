//! Weak links in virtual time: a backlog drains over a path that carries little, and an alarm comes in the midst of it.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;

/// Of a frame, beside its payload: WebSocket, TLS, TCP and IP.
const FRAME_COST: u64 = 60;

/// A path of so many bytes a second and so long a round trip. A loss holds up all that is behind it until TCP has sent
/// it again.
struct Path {
    bytes_per_s: u64,
    round_trip: Duration,
    /// One frame in so many is lost once; 0: none.
    loss: u32,
}

struct Weak {
    path: Path,
    random: fastrand::Rng,
    session: Session,
    now: Instant,
    /// The path takes the next byte then.
    free: Instant,
    /// What is under way, and when it arrives.
    up: VecDeque<(Instant, Up)>,
    down: VecDeque<(Instant, Down)>,
    /// Arrived.
    arrived: Vec<(Instant, LaneName, Seq)>,
    bytes: u64,
    pings: u32,
    batch_bytes_max: usize,
    /// The far end stores, and acks nothing.
    mute: bool,
    /// Something on the path swallows pings.
    swallows_pings: bool,
}

enum Up {
    Records(LaneName, Vec<Seq>),
    Ping(u64),
}

enum Down {
    Message(ServerMessage),
    Pong(u64),
}

impl Weak {
    fn of(path: Path, config: Config, seed: u64) -> Self {
        let now = Instant::from_micros(1_000_000);
        let offers = vec![offer("alarm", 1, 1), Offer { sent_max: 0, ..offer("telemetry", 1, 1 << 40) }];
        let greeting = Greeting { batch_records_max: 4096, ..greeting(offers, Encoding::Postcard) };
        let mut weak = Self {
            path,
            random: fastrand::Rng::with_seed(seed),
            session: Session::new(Arc::new(config), greeting, now),
            now,
            free: now,
            up: VecDeque::new(),
            down: VecDeque::new(),
            arrived: Vec::new(),
            bytes: 0,
            pings: 0,
            batch_bytes_max: 0,
            mute: false,
            swallows_pings: false,
        };
        weak.hear(&ServerMessage::Welcome(welcome()));
        weak
    }

    fn hear(&mut self, message: &ServerMessage) {
        let Frame::Binary(bytes) = codec::encode(message, Encoding::Postcard) else { panic!("postcard is binary") };
        self.session.handle_input(Input::Binary(&bytes), self.now);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match &output {
                Output::Fetch(fetch) => {
                    let (mut items, mut bytes) = (Vec::new(), 0);
                    let last = if fetch.lane.as_str() == "alarm" { 1 } else { u64::MAX };
                    for seq in (fetch.from..=last).take(fetch.records_max as usize) {
                        bytes += 100;
                        if !items.is_empty() && bytes > fetch.bytes_max {
                            break;
                        }
                        items.push(record(seq, 100));
                    }
                    self.session.handle_input(Input::Items(fetch, items), self.now);
                }
                Output::Transmit { frame, .. } => {
                    let Some(AgentMessage::Records { lane, records, .. }) = message(frame) else { continue };
                    self.batch_bytes_max = self.batch_bytes_max.max(frame.bytes_len());
                    self.bytes += frame.bytes_len() as u64 + FRAME_COST;
                    let numbers = records.iter().map(|record| record.seq).collect();
                    self.send(frame.bytes_len(), Up::Records(lane, numbers));
                }
                Output::Ping(counter) => {
                    self.pings += 1;
                    self.send(counter.to_string().len(), Up::Ping(*counter));
                }
                Output::End { failure, .. } => panic!("{failure:?} at {:?}", self.now),
                _ => {}
            }
        }
    }

    fn send(&mut self, bytes: usize, what: Up) {
        let cost = bytes as u64 + FRAME_COST;
        self.free = self.free.max(self.now) + Duration::from_micros(cost * 1_000_000 / self.path.bytes_per_s);
        if self.path.loss > 0 && self.random.u32(..self.path.loss) == 0 {
            self.free = self.free + self.path.round_trip * 2 + Duration::from_millis(200);
        }
        self.up.push_back((self.free + self.path.round_trip / 2, what));
    }

    /// So long.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let up = self.up.front().map(|(at, _)| *at);
            let down = self.down.front().map(|(at, _)| *at);
            let due = self.session.poll_timeout().map(|(at, _)| at);
            let Some(next) = [up, down, due].into_iter().flatten().min().filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if up == Some(next) {
                let answer = match self.up.pop_front().unwrap().1 {
                    Up::Records(lane, numbers) => {
                        let seq = *numbers.last().unwrap();
                        self.arrived.extend(numbers.into_iter().map(|seq| (self.now, lane.clone(), seq)));
                        // Stored at once, and acked.
                        (!self.mute).then_some(Down::Message(ServerMessage::Ack { lane, epoch: EPOCH, seq }))
                    }
                    Up::Ping(counter) => (!self.swallows_pings).then_some(Down::Pong(counter)),
                };
                let at = self.now + self.path.round_trip / 2;
                self.down.extend(answer.map(|answer| (at, answer)));
            } else if down == Some(next) {
                match self.down.pop_front().unwrap().1 {
                    Down::Message(message) => self.hear(&message),
                    Down::Pong(counter) => {
                        self.session.handle_input(Input::Pong(counter.to_string().as_bytes()), self.now);
                        self.perform();
                    }
                }
            } else {
                self.session.handle_timeout(self.now);
                self.perform();
            }
        }
        self.now = end;
    }

    /// The far end acks whatever has arrived.
    fn ack_all(&mut self) {
        let seq = self.arrived.last().unwrap().2;
        self.hear(&ServerMessage::Ack { lane: lane("telemetry"), epoch: EPOCH, seq });
    }

    /// How long an alarm takes that is put now.
    fn alarm(&mut self) -> Duration {
        let put = self.now;
        self.session.handle_input(Input::Offers(&[offer("alarm", 1, 2), offer("telemetry", 1, 1 << 40)]), self.now);
        self.perform();
        self.run(Duration::from_secs(120));
        let arrived = self.arrived.iter().find(|(_, lane, _)| lane.as_str() == "alarm");
        arrived.expect("it arrives").0.since(put)
    }
}

fn as_shipped() -> Config {
    Config { ack_timeout_ms: 10_000, batch_ms_max: 1000, ..Config::default() }
}

#[test]
fn an_alarm_leaves_within_seconds_while_a_weak_link_drains_a_backlog() {
    for (bytes_per_s, trip_ms, loss) in
        [(2_000, 600, 0), (2_000, 100, 20), (8_000, 300, 0), (8_000, 300, 10), (250_000, 40, 0), (250_000, 600, 50)]
    {
        for seed in 0..10 {
            let round_trip = Duration::from_millis(trip_ms);
            let mut weak = Weak::of(Path { bytes_per_s, round_trip, loss }, as_shipped(), seed);
            weak.run(Duration::from_secs(120));
            let drained = weak.bytes;
            let waited = weak.alarm();
            let case = format!("bytes_per_s={bytes_per_s} trip_ms={trip_ms} loss={loss} seed={seed}");
            let lost = if loss > 0 { (round_trip * 2 + Duration::from_millis(200)) * 4 } else { Duration::ZERO };
            assert!(waited <= Duration::from_secs(5) + round_trip * 2 + lost, "{case}: {waited:?}");
            // It is not slow for being careful: the path is nearly always busy.
            let used = drained * 100 / (120 * bytes_per_s);
            assert!(used >= if loss > 0 { 40 } else { 85 }, "{case}: {used} % used");
            let second = usize::try_from(bytes_per_s).unwrap();
            assert!(weak.batch_bytes_max <= (second * 2).clamp(6000, 80_000), "{case}: {}", weak.batch_bytes_max);
        }
    }
}

#[test]
fn an_alarm_early_in_a_session_waits_for_the_first_window_at_most_whether_the_far_end_acks_or_not() {
    for (bytes_per_s, trip_ms) in [(500, 200), (500, 1500), (1000, 200), (1000, 1500)] {
        for (put_ms, mute) in
            [0, 1_000, 5_000, 9_000, 15_000, 40_000].into_iter().flat_map(|ms| [(ms, true), (ms, false)])
        {
            let round_trip = Duration::from_millis(trip_ms);
            let config = Config { ack_timeout_ms: 200_000, ..as_shipped() };
            let mut weak = Weak::of(Path { bytes_per_s, round_trip, loss: 0 }, config, 1);
            weak.mute = mute;
            weak.run(Duration::from_millis(put_ms));
            let waited = weak.alarm();
            // The window before anything is known, a quarter more for what frames and pings add, and itself.
            let bytes = u64::from(Config::default().start_bytes) * 5 / 4 + 100 + 2 * FRAME_COST;
            let bound = Duration::from_millis(bytes * 1000 / bytes_per_s) + round_trip * 2;
            let case = format!("bytes_per_s={bytes_per_s} trip_ms={trip_ms} put_ms={put_ms} mute={mute}");
            assert!(waited <= bound, "{case}: {waited:?}, allowed {bound:?}");
        }
    }
}

#[test]
fn a_far_end_that_acks_only_at_the_end_gets_everything_at_the_links_speed() {
    for (bytes_per_s, trip_ms) in [(500, 200), (2_000, 600), (8_000, 900), (50_000, 40)] {
        let config =
            Config { ack_timeout_ms: 200_000, window_records: 1 << 20, window_bytes: 16 << 20, ..as_shipped() };
        let round_trip = Duration::from_millis(trip_ms);
        let mut weak = Weak::of(Path { bytes_per_s, round_trip, loss: 0 }, config, 1);
        weak.mute = true;
        weak.run(Duration::from_secs(100));
        let used = weak.bytes * 100 / (100 * bytes_per_s);
        assert!(used >= 75, "bytes_per_s={bytes_per_s} trip_ms={trip_ms}: {used} % used");
        assert!(weak.pings <= 300, "bounded: {}", weak.pings);
        weak.ack_all();
        let pings = weak.pings;
        weak.mute = false;
        weak.run(Duration::from_secs(100));
        assert!(weak.pings <= pings + 5, "once it acks, pongs need say nothing: {}", weak.pings - pings);
    }
}

#[test]
fn a_full_window_whose_records_have_all_arrived_waits_for_its_ack_without_pings() {
    let path = Path { bytes_per_s: 2_000, round_trip: Duration::from_millis(600), loss: 0 };
    let config = Config { ack_timeout_ms: 200_000, window_records: 256, window_bytes: 16 << 20, ..as_shipped() };
    let mut weak = Weak::of(path, config, 1);
    weak.mute = true;
    // From the second round on the brake is on: its acks come late.
    for round in 1..=3 {
        weak.run(Duration::from_secs(70));
        assert_eq!(weak.arrived.len(), 256 * round, "the window is full");
        let pings = weak.pings;
        weak.run(Duration::from_secs(30));
        assert_eq!(weak.pings, pings, "round {round}: nothing is left to ask for");
        assert_eq!(weak.session.poll_timeout().map(|(_, timer)| timer), Some(Timer::Ack), "round {round}");
        weak.ack_all();
    }
}

#[test]
fn pings_that_are_swallowed_are_forgotten_when_acks_say_what_their_pongs_would_have() {
    let path = Path { bytes_per_s: 8_000, round_trip: Duration::from_millis(300), loss: 0 };
    let mut weak = Weak::of(path, Config { ack_timeout_ms: 200_000, ..as_shipped() }, 1);
    (weak.mute, weak.swallows_pings) = (true, true);
    weak.run(Duration::from_secs(20));
    let remembered = |weak: &Weak| format!("{:?}", weak.session).matches("Barrier {").count();
    assert!(weak.pings > 0 && remembered(&weak) > 0, "{} pings", weak.pings);
    weak.ack_all();
    assert_eq!(remembered(&weak), 0);
}

#[test]
fn the_ack_timeout_grows_with_the_path_and_only_so_far() {
    // 4 kB take 16 s of this one: more than the timeout, less than four of it.
    let path = Path { bytes_per_s: 256, round_trip: Duration::from_secs(2), loss: 0 };
    let mut weak = Weak::of(path, Config { ack_timeout_ms: 25_000, ..as_shipped() }, 1);
    weak.run(Duration::from_secs(600));
    assert!(weak.arrived.len() > 600, "{}", weak.arrived.len());
    // A far end that says nothing at all.
    weak.path.round_trip = Duration::from_secs(100_000);
    let silent = weak.now;
    weak.down.clear();
    let ended = loop {
        let (due, _) = weak.session.poll_timeout().unwrap();
        weak.session.handle_timeout(due);
        let outputs = std::iter::from_fn(|| weak.session.poll_output());
        if outputs.filter(|output| matches!(output, Output::End { .. })).count() > 0 {
            break due;
        }
    };
    assert!(ended.since(silent) <= Duration::from_secs(100), "{ended:?}");
}

#[test]
fn a_far_end_that_acks_late_gets_the_whole_window_before_the_ack_timeout() {
    let path = Path { bytes_per_s: 12_000_000, round_trip: Duration::from_millis(10), loss: 0 };
    let config = Config { ack_timeout_ms: 30_000, window_records: 100_000, window_bytes: 1 << 20, ..as_shipped() };
    let mut weak = Weak::of(path, config, 1);
    weak.mute = true;
    weak.run(Duration::from_secs(15));
    let window = (1 << 20) / 100;
    assert!((window - 40..=window).contains(&weak.arrived.len()), "{}, but for a message's rest", weak.arrived.len());
}

#[test]
fn what_the_day_does_not_allow_stays_and_exempt_lanes_go_on() {
    let exempt = LaneConfig { name: lane("alarm"), weight: 1, live_permille: 0, cap_exempt: true };
    let config = Config { lanes: vec![exempt], ..config() };
    let greeting =
        Greeting { capped: true, ..greeting(vec![offer("alarm", 1, 3), offer("log", 1, 50)], Encoding::Json) };
    let mut rig = Rig::of(config, greeting);
    rig.outputs();
    rig.hears(&ServerMessage::Welcome(welcome()));
    assert_eq!(rig.did(), [GREETED, "fetch alarm 1"]);
    rig.answers("alarm", records(1..=2, 10));
    rig.hears(&ack("alarm", 2));
    assert_eq!(rig.did(), ["records alarm 1-2", "acked alarm 2", "proved"]);
    assert!(rig.session.is_idle(), "what is held back is not waited for");
    rig.session.set_capped(false, rig.now);
    assert_eq!(rig.did(), ["fetch log 1"]);
    rig.session.set_capped(true, rig.now);
    rig.answers("log", records(1..=40, 10));
    assert_eq!(rig.did(), [""; 0], "nor does what was fetched before go");
    rig.offers(&[offer("alarm", 3, 4), offer("log", 1, 50)]);
    assert_eq!(rig.did(), ["fetch alarm 3"], "nor does it take the place of what may go");
    rig.answers("alarm", records(3..=3, 10));
    rig.hears(&ack("alarm", 3));
    assert_eq!(rig.did(), ["records alarm 3-3", "acked alarm 3"]);
    rig.session.set_capped(false, rig.now);
    assert_eq!(rig.did()[0], "records log 1-40");
}

#[test]
fn what_is_live_has_its_share_and_each_epoch_stays_in_order() {
    for (permille, expected) in [(900, 0.9), (500, 0.5), (100, 0.1)] {
        let lanes = vec![LaneConfig { name: lane("a"), weight: 3, live_permille: permille, cap_exempt: false }];
        let config = Config { window_records: 40, window_bytes: 4000, batch_bytes_max: 1000, lanes, ..config() };
        let live = EPOCH + 1;
        let offers = vec![offer("a", 1, 1 << 40), Offer { epoch: live, ..offer("a", 1, 1 << 40) }];
        let offers = offers.into_iter().map(|offer| Offer { sent_max: 0, ..offer }).collect();
        let mut rig = Rig::of(config, greeting(offers, Encoding::Json));
        rig.hears(&ServerMessage::Welcome(welcome()));
        let (mut sent, mut questions) = ([0_u64; 2], VecDeque::new());
        for _ in 0..2000 {
            for output in rig.outputs() {
                match &output {
                    Output::Fetch(fetch) => questions.push_back(fetch.clone()),
                    Output::Transmit { frame, .. } => {
                        let Some(AgentMessage::Records { epoch, records, .. }) = message(frame) else { continue };
                        let index = usize::from(epoch == live);
                        assert_eq!(records[0].seq, sent[index] + 1, "in its order");
                        sent[index] += records.len() as u64;
                        rig.hears(&ServerMessage::Ack { lane: lane("a"), epoch, seq: sent[index] });
                    }
                    _ => {}
                }
            }
            let Some(fetch) = questions.pop_front() else { continue };
            let items = records(fetch.from..=fetch.from + u64::from(fetch.bytes_max / 100).max(1) - 1, 100);
            rig.session.handle_input(Input::Items(&fetch, items), rig.now);
        }
        let share = sent[1] as f64 / (sent[0] + sent[1]) as f64;
        assert!((share - expected).abs() < 0.05, "{share} instead of {expected}: {sent:?}");
    }
}
