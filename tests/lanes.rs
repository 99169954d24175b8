//! What a lane promises, seen from outside: a real agent at its socket, killed at any time, and an upstream that
//! refuses. Keys, time to live, dead letters.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use backhaul::config::{Commit, Config};
use serde_json::{Value, json};
use support::agent::{self, Agent};
use support::fault_server::{Fault, FaultServer};
use support::{DEADLINE, TempDir, wait_for};

const LANE: &str = "telemetry";

/// An agent and its upstream. Dropped in this order: the folder last.
struct Bench {
    agent: Agent,
    server: FaultServer,
    _dir: TempDir,
}

impl Bench {
    fn new(fault: Fault, adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new("lanes");
        let server = FaultServer::new();
        server.set(fault);
        let mut config = agent::quick(&dir, &server.url());
        adjust(&mut config);
        let mut agent = Agent::new(&dir, &config);
        agent.start();
        agent.wait_listening();
        Self { agent, server, _dir: dir }
    }

    fn connect(&mut self) -> BufReader<UnixStream> {
        let agent = &mut self.agent;
        let stream = wait_for(DEADLINE, "the socket takes connections", || {
            agent.assert_runs();
            UnixStream::connect(agent.socket()).ok()
        });
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        BufReader::new(stream)
    }

    /// One put, and its answer.
    fn put(&mut self, put: Value) -> Value {
        let mut stream = self.connect();
        hand_in(&mut stream, put);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn restart(&mut self) {
        self.agent.kill9();
        self.agent.start();
        self.agent.wait_listening();
    }

    fn wait_lane(&mut self, name: &str, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let lane = |status: &Value| status["lanes"].as_array()?.iter().find(|lane| lane["name"] == name).cloned();
        let status = self.agent.wait_status(what, |status| lane(status).is_some_and(|lane| wanted(&lane)));
        lane(&status).unwrap()
    }

    /// What the upstream has stored, in order, but for the agent's own events.
    fn stored(&self) -> Vec<String> {
        let text = |body: &Vec<u8>| String::from_utf8_lossy(body).into_owned();
        let bodies: Vec<_> = self.server.books(|books| books.records.values().map(text).collect());
        bodies.into_iter().filter(|body: &String| !body.starts_with("{\"")).collect()
    }

    /// Nothing that the agent sent was against the protocol.
    fn assert_kept_the_protocol(&self) {
        self.server.books(|books| assert_eq!(books.breaches, Vec::<String>::new()));
    }
}

/// `false`: the agent is gone.
fn hand_in(stream: &mut BufReader<UnixStream>, put: Value) -> bool {
    let line = format!("{}\n", json!({ "put": put }));
    stream.get_mut().write_all(line.as_bytes()).is_ok()
}

#[test]
fn a_put_whose_answer_was_lost_is_one_record_however_often_it_comes() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(std::process::id()));
    eprintln!("SEED={seed} cargo test --features receiver --test lanes however_often for the same pauses");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bench = Bench::new(Fault::None, |config| {
        // In the second lane an answer comes before the record is on flash.
        let mut meter = agent::lane("meter");
        (meter.commit, meter.commit_ms) = (Commit::Group, 50);
        config.lanes.push(meter);
    });
    let mut named: BTreeMap<String, Value> = BTreeMap::new();
    for round in 0..12 {
        let lane = [LANE, "meter"][round % 2];
        let puts: Vec<(String, Value)> = (0..8)
            .map(|n| {
                let key = format!("{round}-{n}");
                let put = json!({ "lane": lane, "key": key, "text": format!("<{key}>"), "wait": "committed" });
                (key, put)
            })
            .collect();
        // The producer goes away without reading an answer; the agent dies somewhere in between.
        let mut stream = bench.connect();
        puts.iter().all(|(_, put)| hand_in(&mut stream, put.clone()));
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        if round % 3 == 2 {
            stream.get_mut().shutdown(Shutdown::Both).unwrap();
        } else {
            bench.restart();
        }
        // Again and again until every one is answered; then once more, for the answer says the same.
        for (key, put) in puts.iter().chain(&puts) {
            let answer = bench.put(put.clone());
            let name = answer["committed"].clone();
            assert!(name["seq"].is_u64(), "{answer}");
            let first = named.entry(key.clone()).or_insert(name.clone());
            assert_eq!(*first, name, "{key}");
        }
    }
    bench.agent.wait_drained();
    let bodies = bench.stored();
    for key in named.keys() {
        let copies = bodies.iter().filter(|body| **body == format!("<{key}>")).count();
        assert_eq!(copies, 1, "{key} is stored {copies} times");
    }
    // Put once more when it has long arrived: still the same, and already delivered.
    let (key, name) = named.last_key_value().unwrap();
    let lane = name["lane"].clone();
    let answer = bench.put(json!({ "lane": lane, "key": key, "text": "other", "wait": "delivered", "id": 7 }));
    assert_eq!((&answer["delivered"]["seq"], &answer["delivered"]["id"]), (&name["seq"], &json!(7)), "{answer}");
    bench.assert_kept_the_protocol();
}

#[test]
fn what_the_upstream_refuses_is_a_dead_letter_and_only_one_through_kills() {
    let mut bench = Bench::new(Fault::Rejects("bad"), |_| ());
    for n in 0..10 {
        let text = if n % 3 == 0 { format!("bad {n}") } else { format!("good {n}") };
        assert!(bench.put(json!({ "text": text }))["committed"].is_object());
    }
    bench.agent.wait_status("all is acked", |status| status["lanes"][0]["depth"] == 0);
    assert_eq!(bench.wait_lane("dead", "four letters", |lane| lane["depth"] == 4)["rejected"], 0);
    assert_eq!(bench.wait_lane(LANE, "four refusals", |lane| lane["rejected"] == 4)["depth"], 0);
    // Killed before any ack is on flash: the refusals are told again.
    for _ in 0..2 {
        bench.restart();
        bench.agent.wait_status("all is acked", |status| status["lanes"][0]["depth"] == 0);
        bench.wait_lane("dead", "four letters", |lane| lane["depth"] == 4);
    }
    let answer = bench.put(json!({ "text": "bad again", "wait": "delivered", "id": 1 }));
    assert_eq!((&answer["error"]["code"], &answer["error"]["id"]), (&json!("bad_request"), &json!(1)), "{answer}");
    bench.wait_lane("dead", "a fifth letter", |lane| lane["depth"] == 5);
    assert_eq!(bench.stored(), [1, 2, 4, 5, 7, 8].map(|n| format!("good {n}")));
    bench.server.books(|books| assert_eq!((books.rejected.len(), books.gaps.len()), (5, 0)));
    let answer = bench.put(json!({ "lane": "dead", "text": "by hand" }));
    assert_eq!(answer["error"]["code"], "unknown_lane", "nobody puts into it");
    bench.assert_kept_the_protocol();
}

#[test]
fn a_record_too_large_for_the_upstream_is_one_gap_and_a_dead_letter() {
    let mut bench = Bench::new(Fault::TakesAtMost(1000), |_| ());
    for text in ["small", &"x".repeat(2000), "small too"] {
        assert!(bench.put(json!({ "text": text }))["committed"].is_object());
    }
    bench.agent.wait_status("all is acked", |status| status["lanes"][0]["depth"] == 0);
    bench.wait_lane("dead", "a letter", |lane| lane["depth"] == 1);
    bench.wait_lane(LANE, "a refusal", |lane| lane["rejected"] == 1);
    bench.server.books(|books| {
        let [gap] = books.gaps.as_slice() else { panic!("{:?}", books.gaps) };
        assert_eq!((gap.from, gap.to, gap.lost.as_slice()), (2, 2, [("rejected".to_owned(), 1)].as_slice()));
    });
    assert_eq!(bench.stored(), ["small", "small too"]);
    bench.assert_kept_the_protocol();
}

#[test]
fn what_outlives_its_time_while_the_upstream_is_away_is_one_exact_gap() {
    let mut bench = Bench::new(Fault::Http(503, ""), |config| config.lanes[0].ttl_s = 3600);
    for n in 0..5 {
        let ttl_s = [1, 1, 0, 1, 3600][n];
        assert!(bench.put(json!({ "text": format!("{n}"), "ttl_s": ttl_s }))["committed"].is_object());
    }
    // A second of the boot clock has to pass: through a kill, which is no other boot.
    bench.restart();
    std::thread::sleep(Duration::from_millis(1100));
    bench.server.set(Fault::None);
    bench.agent.wait_drained();
    let lane = bench.wait_lane(LANE, "three have expired", |lane| lane["expired"] == 3);
    assert_eq!(lane["acked"], 5);
    bench.server.books(|books| {
        let gaps: Vec<_> = books.gaps.iter().map(|gap| (gap.from, gap.to, gap.lost[0].clone())).collect();
        let expired = |count| ("expired".to_owned(), count);
        assert_eq!(gaps, [(1, 2, expired(2)), (4, 4, expired(1))]);
    });
    assert_eq!(bench.stored(), ["2", "4"]);
    bench.assert_kept_the_protocol();
}

#[test]
fn delivered_is_answered_for_every_put_under_one_key() {
    let mut bench = Bench::new(Fault::Http(503, ""), |_| ());
    let mut stream = bench.connect();
    for id in 1..=3 {
        assert!(hand_in(&mut stream, json!({ "text": "once", "key": "k", "wait": "delivered", "id": id })));
    }
    bench.agent.wait_status("it is held", |status| status["lanes"][0]["depth"] == 1);
    bench.server.set(Fault::None);
    let mut ids: Vec<u64> = (0..3)
        .map(|_| {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let answer: Value = serde_json::from_str(&line).unwrap();
            answer["delivered"]["id"].as_u64().unwrap_or_else(|| panic!("{answer}"))
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(bench.stored(), ["once"]);
    bench.assert_kept_the_protocol();
}
