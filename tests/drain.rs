//! What goes up after an outage, how fast, and what it costs: live ahead of the backlog, ceilings, a weak link, the
//! bytes of a day. A real agent, the real receiver, and a cable that carries little.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use backhaul::config::{Config, Heartbeat};
use rusqlite::Connection;
use serde_json::Value;
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::proxy::{Proxy, Weak};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, wait_until};

const LANE: &str = "telemetry";

/// Dropped in this order: the folder last.
struct Bench {
    agent: Agent,
    receiver: Receiver,
    config: Config,
    store: PathBuf,
    _dir: TempDir,
}

impl Bench {
    /// The receiver does not run yet, the agent does.
    fn new(adjust: impl FnOnce(&mut Config, &str)) -> Self {
        let dir = TempDir::new("drain");
        let receiver = Receiver::new(&dir);
        let mut config = agent::quick(&dir, &format!("ws://{}/v1", receiver.address()));
        config.upstream.heartbeat =
            Heartbeat { interval_ms: 1000, timeout_ms: 5000, misses_max: 3, ..Heartbeat::default() };
        config.upstream.handshake_timeout_ms = 10_000;
        config.upstream.ack_timeout_ms = 10_000;
        adjust(&mut config, &receiver.address());
        let mut agent = Agent::new(&dir, &config);
        agent.start();
        agent.wait_listening();
        Self { agent, receiver, config, store: dir.join("receiver.sqlite"), _dir: dir }
    }

    fn producer(&self, lane: &str) -> Producer {
        Producer::new(self.agent.socket(), Some(lane))
    }

    fn begin(&mut self) {
        self.receiver.start();
        self.receiver.wait_listening();
    }

    /// When each was stored, in Unix ms, in the order of its name: lane, epoch, seq, body.
    fn stored(&self) -> Vec<(String, u64, u64, String, u64)> {
        let store = Connection::open(&self.store).unwrap();
        store.busy_timeout(Duration::from_secs(10)).unwrap();
        let sql = "SELECT lane, epoch, seq, body, received FROM records WHERE topic = 't' ORDER BY lane, epoch, seq";
        let mut statement = store.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| {
            let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            let body = String::from_utf8_lossy(&row.get::<_, Vec<u8>>(3)?).into_owned();
            Ok((row.get(0)?, number(1)?, number(2)?, body, number(4)?))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    fn wait_stored(&self, what: &str, count: usize, wanted: impl Fn(&str) -> bool) {
        wait_until(DEADLINE, what, || self.stored().iter().filter(|record| wanted(&record.3)).count() >= count);
    }
}

fn put(producer: &mut Producer, name: &str, range: std::ops::Range<usize>, bytes: usize) {
    let all: Vec<_> = range.map(|n| ("t".to_owned(), format!("{name} {n:0>bytes$}").into_bytes())).collect();
    for batch in all.chunks(64) {
        assert_eq!(producer.put_all(batch.to_vec()), Handed::Answered);
    }
}

/// thingsboard/thingsboard#15685, false-systems/jalki#40: a backlog that is flushed breaks the server's limits, and
/// what happens now waits for what happened yesterday.
#[test]
fn after_an_outage_what_is_live_goes_ahead_of_the_backlog_and_nothing_goes_faster_than_the_ceiling() {
    const OLD: usize = 2400;
    const PER_S: u64 = 150;
    let mut bench = Bench::new(|config, _| {
        config.lanes[0].live_share = 0.5;
        config.upstream.pace.records_per_s_max = PER_S;
    });
    let mut producer = bench.producer(LANE);
    put(&mut producer, "old", 0..OLD, 100);
    let began = Instant::now();
    bench.begin();
    bench.agent.wait_up();
    bench.wait_stored("the backlog drains", 1, |body| body.starts_with("old"));
    put(&mut producer, "new", 0..40, 100);
    bench.wait_stored("what is live arrives", 40, |body| body.starts_with("new"));
    bench.agent.wait_drained();
    let drained = began.elapsed();
    let stored = bench.stored();
    let times = |name: &str| {
        stored.iter().filter(|record| record.3.starts_with(name)).map(|record| record.4).collect::<Vec<_>>()
    };
    let (old, new) = (times("old"), times("new"));
    assert_eq!((old.len(), new.len()), (OLD, 40), "nothing is missing, nothing twice");
    assert!(new.iter().max() < old.iter().max(), "the live ones were through before the backlog was");
    // Both in their own order, and without a hole.
    let mut epochs: BTreeMap<u64, Vec<_>> = BTreeMap::new();
    stored.iter().for_each(|record| epochs.entry(record.1).or_default().push(record));
    assert_eq!(epochs.len(), 2);
    for records in epochs.values() {
        assert!(records.iter().map(|record| record.2).eq(1..=records.len() as u64), "each number");
        assert!(records.is_sorted_by_key(|record| &record.3) && records.is_sorted_by_key(|record| record.4));
    }
    assert_eq!(bench.receiver.gaps(), []);
    // Never faster than the ceiling.
    assert!(drained >= Duration::from_secs(stored.len() as u64 / PER_S), "{} records in {drained:?}", stored.len());
    // The next connection, with nothing to catch up on, goes on in the same epoch.
    bench.receiver.kill9();
    bench.begin();
    let sessions = agent::sessions(&bench.agent.status().unwrap());
    bench.agent.wait_status("a second session", |status| agent::sessions(status) > sessions.min(1));
    put(&mut producer, "next", 0..1, 100);
    bench.agent.wait_drained();
    let epochs: std::collections::BTreeSet<u64> = bench.stored().iter().map(|record| record.1).collect();
    assert_eq!(epochs.len(), 2);
}

#[test]
fn a_backlog_that_lives_through_kills_is_drained_in_both_epochs() {
    let mut bench = Bench::new(|config, _| {
        config.lanes[0].live_share = 0.7;
        config.upstream.pace.records_per_s_max = 300;
    });
    let mut producer = bench.producer(LANE);
    put(&mut producer, "old", 0..900, 100);
    bench.begin();
    bench.agent.wait_up();
    for round in 0..3 {
        put(&mut producer, "new", round * 20..round * 20 + 20, 100);
        bench.agent.kill9();
        bench.agent.start();
        bench.agent.wait_listening();
    }
    bench.agent.wait_drained();
    bench.receiver.wait_acked([&producer]);
    let stored = bench.stored();
    for record in &producer.committed {
        let copies = stored.iter().filter(|stored| (stored.1, stored.2) == (record.epoch, record.seq));
        let bodies: Vec<_> = copies.map(|stored| stored.3.as_bytes()).collect();
        assert_eq!(bodies, [&record.body[..]], "under the name that its producer was told");
    }
    assert_eq!((stored.len(), producer.committed.len()), (960, 960));
    assert_eq!(bench.receiver.gaps(), []);
}

#[test]
fn an_alarm_overtakes_a_backlog_on_a_link_of_4_kb_a_second() {
    const BYTES_PER_S: u64 = 4000;
    const RECORDS: usize = 500;
    let cable = std::cell::OnceCell::new();
    let mut bench = Bench::new(|config, receiver| {
        let weak = Weak { bytes_per_s: BYTES_PER_S, delay: Duration::from_millis(50) };
        let proxy = cable.get_or_init(|| Proxy::weak(receiver, weak));
        config.upstream.endpoints[0].url = format!("ws://{}/v1", proxy.address());
        config.lanes.push(agent::lane("alarm"));
    });
    let (mut telemetry, mut alarm) = (bench.producer(LANE), bench.producer("alarm"));
    put(&mut telemetry, "telemetry", 0..RECORDS, 200);
    bench.begin();
    bench.agent.wait_up();
    bench.wait_stored("the backlog drains", 50, |body| body.starts_with("telemetry"));
    put(&mut alarm, "alarm", 0..1, 50);
    let before = bench.stored().len();
    bench.wait_stored("the alarm", 1, |body| body.starts_with("alarm"));
    let alarm_at = bench.stored().iter().find(|record| record.0 == "alarm").unwrap().4;
    let overtook = bench.stored().iter().filter(|record| record.0 == LANE && record.4 <= alarm_at).count();
    let overtook = overtook.saturating_sub(before);
    // What left before it: a few seconds of the link, not a batch of 64 kB and a window.
    let seconds = overtook as u64 * 230 / BYTES_PER_S;
    assert!(seconds <= 8, "{overtook} records, {seconds} s of the link, went before it");
    let status = bench.agent.wait_status("the path is known", |status| {
        let quality = &status["link"]["quality"];
        quality["bytes_per_s"].is_u64() && quality["rtt_ms"].is_f64()
    });
    let rate = status["link"]["quality"]["bytes_per_s"].as_u64().unwrap();
    assert!((BYTES_PER_S / 8..=BYTES_PER_S * 4).contains(&rate), "{rate}");
    assert!(status["link"]["quality"]["ping_loss"].as_f64().is_some_and(|loss| loss < 1.0), "{status}");
    assert_eq!(status["link"]["sessions"], 1, "a slow link is not a dead one");
}

/// aws-greengrass/aws-greengrass-lite#1029: gateways are charged for their data, and nobody knows for what.
#[test]
fn when_the_days_bytes_are_spent_only_exempt_lanes_go_on_and_a_restart_is_no_new_day() {
    const DAY: u64 = 60_000;
    let mut bench = Bench::new(|config, _| {
        config.upstream.pace.bytes_per_day_max = DAY;
        // So that the cap is met in the midst of it.
        config.upstream.pace.bytes_per_s_max = 20_000;
        let mut alarm = agent::lane("alarm");
        alarm.cap_exempt = true;
        config.lanes.push(alarm);
        config.upstream.events_lane = "alarm".into();
    });
    let (mut telemetry, mut alarm) = (bench.producer(LANE), bench.producer("alarm"));
    put(&mut telemetry, "telemetry", 0..500, 200);
    bench.begin();
    let capped = |status: &Value| status["wire"]["capped"] == true;
    let status = bench.agent.wait_status("the day's bytes are spent", capped);
    assert!(status["wire"]["day_bytes"].as_u64().unwrap() >= DAY, "{status}");
    // It lives on, and what is exempt goes up.
    put(&mut alarm, "alarm", 0..1, 50);
    bench.wait_stored("what is exempt arrives", 1, |body| body.starts_with("alarm"));
    let pings = |status: &Value| status["wire"]["by_purpose"]["heartbeat"]["received"].as_u64().unwrap();
    let before = pings(&status);
    bench.agent.wait_status("the heart beats on", |status| pings(status) > before);
    let telemetry_stored = |bench: &Bench| bench.stored().iter().filter(|record| record.0 == LANE).count();
    let held = telemetry_stored(&bench);
    assert!(held < 500, "{held}");
    bench.agent.kill9();
    bench.agent.start();
    bench.agent.wait_listening();
    let status = bench.agent.wait_up();
    assert!(capped(&status), "{status}");
    put(&mut alarm, "alarm", 1..2, 50);
    bench.wait_stored("what is exempt arrives", 2, |body| body.starts_with("alarm"));
    // What was in flight when it was killed may have been stored meanwhile, nothing more has left.
    assert_eq!(telemetry_stored(&bench), held);
    let events = bench.receiver.records().iter().filter(|record| record.topic == "$event").count();
    assert_eq!(events, 1, "told once");
    // More is allowed from now on.
    bench.agent.kill9();
    bench.config.upstream.pace.bytes_per_day_max = 100 * DAY;
    bench.agent.configure(&bench.config);
    bench.agent.start();
    bench.agent.wait_drained();
    assert_eq!(telemetry_stored(&bench), 500);
}

#[test]
fn bytes_on_the_wire_add_up_by_purpose_handshake_included() {
    let mut bench = Bench::new(|_, _| ());
    bench.begin();
    bench.agent.wait_up();
    let mut producer = bench.producer(LANE);
    put(&mut producer, "x", 0..200, 100);
    bench.agent.wait_drained();
    bench.receiver.kill9();
    bench.begin();
    bench.agent.wait_status("a second session", |status| agent::sessions(status) >= 2);
    bench.agent.wait_status("every byte has a purpose", |status| {
        let wire = &status["wire"];
        let sum = |way: &str| -> u64 {
            let purposes = wire["by_purpose"].as_object().unwrap();
            purposes.values().map(|purpose| purpose[way].as_u64().unwrap()).sum()
        };
        let (sent, received) = (wire["bytes_sent"].as_u64().unwrap(), wire["bytes_received"].as_u64().unwrap());
        assert_eq!(sum("sent"), sent, "{wire}");
        // What is not yet a whole message has no purpose yet, and the day is counted once a turn.
        sum("received") == received && wire["day_bytes"] == sent + received && sent > 20_000
    });
}

/// Bytes a second, beside records a second.
#[test]
fn the_ceiling_in_bytes_holds() {
    const BYTES_PER_S: u64 = 20_000;
    let mut bench = Bench::new(|config, _| config.upstream.pace.bytes_per_s_max = BYTES_PER_S);
    let mut producer = bench.producer(LANE);
    put(&mut producer, "x", 0..400, 250);
    let begin = Instant::now();
    bench.begin();
    bench.agent.wait_drained();
    // 100 kB at 20 kB/s: a lower bound of the time, all but the first slice.
    let least = Duration::from_millis(400 * 250 * 1000 / BYTES_PER_S - 500);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
}
