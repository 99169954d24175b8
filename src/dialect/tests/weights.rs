//! Lanes that share a link too narrow for all of them: each gets its weight's share, none waits for ever, and inside a
//! lane the order stays. Weights, windows, sizes, the server's pace and the order of answers and acks are drawn.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::super::cursor::RECORD_COST;
use super::*;

const SEEDS: u64 = 60;
const NAMES: [&str; 3] = ["alarm", "telemetry", "log"];

fn of_weight(name: &str, weight: u32) -> LaneConfig {
    LaneConfig { name: lane(name), weight, live_permille: 0, cap_exempt: false }
}

/// A session whose lanes never run dry, and a link that carries little.
struct Narrow {
    random: fastrand::Rng,
    now: Instant,
    session: Session,
    config: Config,
    weights: Vec<u32>,
    /// Bodies of each lane, at most.
    bytes_max: Vec<usize>,
    fetches: Vec<Fetch>,
    /// On the wire: lane, last number, cost.
    wire: VecDeque<(usize, Seq, u64)>,
    /// Numbers and costs that the server has of each lane.
    stored: Vec<Seq>,
    given: Vec<u64>,
}

impl Narrow {
    fn of(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let lanes = random.usize(2..=3);
        let weights: Vec<u32> = (0..lanes).map(|_| random.u32(1..=8)).collect();
        let batch_bytes_max = random.u32(200..3000);
        let config = Config {
            window_records: random.u32(8..200),
            window_bytes: batch_bytes_max * random.u32(2..8),
            batch_bytes_max,
            lanes: NAMES.iter().zip(&weights).map(|(name, weight)| of_weight(name, *weight)).collect(),
            ..config()
        };
        let offers = NAMES[..lanes].iter().map(|name| Offer { sent_max: 0, ..offer(name, 1, 1 << 40) }).collect();
        let now = Instant::from_micros(1_000_000);
        let greeting = Greeting { batch_records_max: random.u32(1..100), ..greeting(offers, Encoding::Postcard) };
        let mut narrow = Self {
            now,
            session: Session::new(Arc::new(config.clone()), greeting, now),
            config,
            bytes_max: (0..lanes).map(|_| random.usize(1..batch_bytes_max as usize)).collect(),
            weights,
            fetches: Vec::new(),
            wire: VecDeque::new(),
            stored: vec![0; lanes],
            given: vec![0; lanes],
            random,
        };
        narrow.hear(ServerMessage::Welcome(welcome()));
        if narrow.random.u8(..3) == 0 {
            let records_per_s = narrow.random.u64(20..2000);
            narrow.hear(ServerMessage::Pace { records_per_s });
        }
        narrow
    }

    fn hear(&mut self, message: ServerMessage) {
        let Frame::Binary(bytes) = codec::encode(&message, Encoding::Postcard) else { panic!("postcard is binary") };
        self.session.handle_input(Input::Binary(&bytes), self.now);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match &output {
                Output::Fetch(fetch) => self.fetches.push(fetch.clone()),
                Output::Transmit { frame, .. } => {
                    let Some(AgentMessage::Records { lane, records, .. }) = message(frame) else { continue };
                    let index = NAMES.iter().position(|name| *name == lane.as_str()).unwrap();
                    let bytes = records.iter().map(|r| (r.topic.len() + r.body.as_bytes().len()) as u64);
                    let cost = bytes.sum::<u64>() + RECORD_COST * records.len() as u64;
                    let before =
                        self.wire.iter().rfind(|sent| sent.0 == index).map_or(self.stored[index], |sent| sent.1);
                    assert_eq!(records[0].seq, before + 1, "the order inside a lane stays");
                    self.wire.push_back((index, records[records.len() - 1].seq, cost));
                }
                Output::End { .. } | Output::Foreign { .. } => panic!("{output:?}"),
                Output::Greeted { .. }
                | Output::Proved
                | Output::Ping(_)
                | Output::Acked { .. }
                | Output::Rejected { .. }
                | Output::Forgotten { .. }
                | Output::Command { .. }
                | Output::Retry { .. } => {}
            }
        }
    }

    /// One of the open questions is answered, a message arrives, or the pace allows more.
    fn step(&mut self) {
        let arrives = !self.wire.is_empty() && self.random.u8(..3) == 0;
        if !self.fetches.is_empty() && !arrives {
            let fetch = self.fetches.swap_remove(self.random.usize(..self.fetches.len()));
            let items = self.items(&fetch);
            self.session.handle_input(Input::Items(&fetch, items), self.now);
            return self.perform();
        }
        if self.wire.is_empty() {
            let (at, timer) = self.session.poll_timeout().expect("something is always awaited");
            assert_eq!(timer, Timer::Pace);
            self.now = at;
            self.session.handle_timeout(self.now);
            return self.perform();
        }
        // Acks come in bulk as often as one by one.
        let mut touched = Vec::new();
        for _ in 0..self.random.usize(1..=self.wire.len()) {
            let Some((index, seq, cost)) = self.wire.pop_front() else { break };
            self.stored[index] = seq;
            self.given[index] += cost;
            touched.push(index);
        }
        self.now = self.now + Duration::from_millis(1);
        touched.sort_unstable();
        touched.dedup();
        for index in touched {
            self.hear(ack(NAMES[index], self.stored[index]));
        }
    }

    fn items(&mut self, fetch: &Fetch) -> Vec<Item> {
        let index = NAMES.iter().position(|name| *name == fetch.lane.as_str()).unwrap();
        let (mut items, mut bytes) = (Vec::new(), 0);
        for seq in (fetch.from..).take(fetch.records_max as usize) {
            let body = self.random.usize(..=self.bytes_max[index]);
            bytes += body;
            if !items.is_empty() && bytes > fetch.bytes_max as usize {
                break;
            }
            items.push(record(seq, body));
        }
        items
    }

    /// What the server has of each lane for its weight differs by no more than a few batches: at any time.
    fn check(&self) {
        // What is asked for at once, is on the wire, or is stored and not yet acked.
        let slack = u64::from(self.config.window_bytes) + 3 * u64::from(self.config.batch_bytes_max);
        let slack = slack + RECORD_COST * u64::from(self.config.window_records + 100) + 5000;
        for (one, weight) in self.given.iter().zip(&self.weights) {
            for (other, other_weight) in self.given.iter().zip(&self.weights) {
                let (one, other) = (one / u64::from(*weight), other / u64::from(*other_weight));
                assert!(one <= other + slack, "{:?} by weights {:?}", self.given, self.weights);
            }
        }
    }
}

#[test]
fn a_narrow_link_is_shared_by_weight_and_no_lane_starves() {
    let only = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    for seed in only.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let _replay = Replay(seed);
        let mut narrow = Narrow::of(seed);
        // Long against the slack, so that the shares show.
        let enough = 200 * u64::from(narrow.config.window_bytes);
        while narrow.given.iter().sum::<u64>() < enough {
            narrow.step();
            narrow.check();
        }
        let total: u64 = narrow.given.iter().sum();
        let weights: u32 = narrow.weights.iter().sum();
        for (given, weight) in narrow.given.iter().zip(&narrow.weights) {
            let (share, fair) = (*given as f64 / total as f64, f64::from(*weight) / f64::from(weights));
            // A question costs 16 bytes more, which counts where answers are small.
            assert!((share / fair - 1.0).abs() < 0.25, "{:?} by weights {:?}", narrow.given, narrow.weights);
        }
    }
}

#[test]
fn a_lane_alone_has_the_whole_link_whatever_its_weight() {
    let config = Config { lanes: vec![of_weight("a", 1), of_weight("b", 1000)], ..config() };
    let mut rig = Rig::of(config, greeting(vec![offer("a", 1, 1000), offer("b", 1, 1)], Encoding::Json));
    rig.hears(&ServerMessage::Welcome(welcome()));
    rig.did();
    for round in 0..20 {
        let from = rig.fetches.last().unwrap().from;
        assert_eq!(from, round * 5 + 1, "it is asked again and again");
        rig.answers("a", records(from..=from + 4, 10));
        rig.hears(&ack("a", from + 4));
        rig.did();
    }
}

/// Says how to replay a seed that failed.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SEED={} cargo test --lib dialect::tests::weights", self.0);
        }
    }
}
