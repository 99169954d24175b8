//! The flash budget of a real agent: spent, it makes producers share commits and wait, and loses nothing.
#![cfg(feature = "receiver")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::thread;

use serde_json::Value;
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir};

/// Less than the first segment takes: exceeded as soon as the outbox is open.
const BYTES_PER_DAY: u64 = 100_000;
/// Producers at once, each with one record.
const PRODUCERS: usize = 16;

fn budget(status: &Value) -> (&str, u64, u64) {
    let budget = &status["flash"]["budget"];
    let number = |key: &str| budget[key].as_u64().expect("a number");
    (budget["state"].as_str().expect("a word"), number("bytes_left"), number("window_ms"))
}

fn commits(status: &Value) -> u64 {
    status["flash"]["syncs_by_purpose"]["records"].as_u64().expect("a number")
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().expect("a table").values().filter_map(Value::as_u64).sum()
}

#[test]
fn a_spent_budget_makes_commits_rare_and_loses_nothing() {
    let dir = TempDir::new("budget");
    let mut receiver = Receiver::new(&dir);
    let mut config = agent::quick(&dir, &format!("ws://{}/v1", receiver.address()));
    config.outbox.budget_bytes_per_day = BYTES_PER_DAY;
    let mut agent = Agent::new(&dir, &config);
    receiver.start();
    agent.start();
    let exceeded = |status: &Value| status["flash"]["budget"]["state"] == "exceeded";
    let before = agent.wait_status("the budget is exceeded", exceeded);
    assert_eq!(budget(&before), ("exceeded", 0, 10_000));

    let socket = agent.socket().to_owned();
    let new = || Producer::new(&socket, None);
    let mut producers: Vec<Producer> = (0..PRODUCERS).map(|_| new()).collect();
    thread::scope(|scope| {
        for (number, producer) in producers.iter_mut().enumerate() {
            scope.spawn(move || assert_eq!(producer.put("t", format!("record {number}")), Handed::Answered));
        }
    });
    let after = agent.wait_status("it is counted", |status| commits(status) > commits(&before));
    let shared = commits(&after) - commits(&before);
    assert!(shared <= PRODUCERS as u64 / 2, "{shared} commits for {PRODUCERS} producers at once");
    let flash = &after["flash"];
    assert_eq!(sum(&flash["by_purpose"]), flash["bytes_written"].as_u64().expect("a number"));
    assert_eq!(sum(&flash["syncs_by_purpose"]), flash["syncs"].as_u64().expect("a number"));

    // A stop waits for no window: the record is committed, and its producer told so.
    let next = agent::sum_over_lanes(&after, "next");
    let mut last = new();
    let last = thread::spawn(move || {
        assert_eq!(last.put("t", "the last one"), Handed::Answered);
        last
    });
    agent.wait_status("it is taken", |status| agent::sum_over_lanes(status, "next") > next);
    assert!(agent.term(DEADLINE).is_some_and(|status| status.success()));
    producers.push(last.join().expect("the producer is answered"));
    assert!(producers.iter().all(|producer| producer.committed.len() == 1 && producer.refused.is_empty()));

    // A restart is no new budget.
    agent.start();
    agent.wait_status("the budget is exceeded", exceeded);
    receiver.wait_acked(&producers);
    let records = receiver.records();
    for committed in producers.iter().flat_map(|producer| &producer.committed) {
        assert_eq!(records.iter().filter(|record| record.body == committed.body).count(), 1, "{committed:?}");
    }
    let told = |record: &&support::receiver::Stored| {
        record.topic == "$event" && String::from_utf8_lossy(&record.body).contains("\"flash_budget\"")
    };
    assert_eq!(records.iter().filter(told).count(), 1, "said once");
}
