//! Commands on their way down, on real processes: receiver, agent, and whoever listens on the socket.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod handlers;
mod kills;
mod listen;
mod rig;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;
use std::time::Instant;

use backhaul::config::Encoding;
use backhaul::record::{Body, MESSAGE_BYTES_MAX};
use rig::{Bench, text};

#[test]
fn a_command_goes_to_whoever_asked_for_its_topic_and_is_done_when_they_say_so() {
    for encoding in [Encoding::Postcard, Encoding::Json] {
        let mut bench = Bench::new(|config| config.upstream.encodings = vec![encoding]);
        let mut valve = bench.subscribe("valve/+");
        let mut all = bench.subscribe("#");
        assert_eq!(bench.command(&["rig", "valve/1", "open"]), (0, "1\n".into()));
        assert_eq!(bench.command(&["rig", "pump", "\"stop\"\n"]), (0, "2\n".into()));
        assert_eq!(bench.command(&["another", "valve/1", "no"]), (0, "1\n".into()));
        assert_eq!(valve.hear(), (1, "valve/1".into(), text("open")));
        assert_eq!(all.hear(), (1, "valve/1".into(), text("open")));
        assert_eq!(all.hear(), (2, "pump".into(), text("\"stop\"\n")));
        all.done(2);
        all.done(1);
        let (code, list) = bench.command(&["--list"]);
        assert_eq!((code, list.lines().count()), (0, 3), "{list}");
        assert_eq!(bench.done(), 0, "one of two has not answered");
        valve.done(1);
        bench.wait_done(2);
        let status = bench.agent.wait_status("the commands are done", |status| status["commands"]["done"] == 2);
        let commands = &status["commands"];
        assert_eq!(
            (&commands["received"], &commands["delivered"], &commands["waiting"]),
            (&2.into(), &2.into(), &0.into())
        );
        assert_eq!(bench.command(&["--list", "rig"]), (0, String::new()));
    }
}

#[test]
fn a_bad_request_is_answered_and_harms_nobody() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.subscribe("a");
    for (line, says) in [
        (r#"{"subscribe":{"topic":"a/#/b","id":1}}"#, "last level"),
        (r#"{"subscribe":{}}"#, "missing field"),
        (r#"{"done":{"seq":1,"id":7}}"#, "no command 1 was given"),
        (r#"{"done":{}}"#, "missing field"),
    ] {
        peer.say(line);
        let answer = peer.line();
        assert_eq!(answer["error"]["code"], "bad_request", "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{answer}");
    }
    peer.say(r#"{"subscribe":{"topic":"b","id":"x"}}"#);
    assert_eq!(peer.line(), serde_json::json!({ "subscribed": { "id": "x" } }));
    bench.put(1, "b");
    assert_eq!(peer.hear().0, 1);
    peer.done(1);
    bench.wait_done(1);
}

// thin-edge/thin-edge.io#3956 and #3462: after a reconnect pending operations were not asked for.
#[test]
fn ten_thousand_that_waited_for_a_week_come_in_order_and_each_once() {
    const COUNT: u64 = 10_000;
    let bench = Bench::offline(|_| ());
    bench.put(COUNT, "a");
    let begin = Instant::now();
    let bench = bench.online();
    let mut peer = bench.subscribe("a");
    for seq in 1..=COUNT {
        assert_eq!(peer.hear().0, seq);
        peer.done(seq);
    }
    bench.wait_done(COUNT);
    eprintln!("{COUNT} commands in {:.1} s", begin.elapsed().as_secs_f64());
    assert_eq!(bench.agent.status().unwrap()["commands"]["received"], COUNT);
}

#[test]
fn a_subscriber_that_never_says_done_costs_the_wait_and_no_more() {
    let mut bench = Bench::new(|config| config.upstream.command_wait_ms = 5000);
    let _silent = bench.subscribe("#");
    let mut deaf = bench.subscribe("#");
    let mut peer = bench.subscribe("#");
    deaf.say(r#"{"status":{}}"#);
    bench.put(20, "a");
    for seq in 1..=20 {
        assert_eq!(peer.hear().0, seq);
        peer.done(seq);
    }
    bench.wait_done(20);
    let status = bench.agent.wait_status("counted", |status| status["commands"]["timed_out"] == 40);
    assert_eq!((&status["commands"]["unclaimed"], &status["commands"]["delivered"]), (&0.into(), &20.into()));
    bench.wait_event("command_timed_out");
    // Who comes too late with it is not told off.
    let mut late = bench.subscribe("b");
    bench.put(1, "b");
    assert_eq!(late.hear().0, 21);
    bench.wait_done(21);
    late.done(21);
    late.say(r#"{"subscribe":{"topic":"c","id":1}}"#);
    assert_eq!(late.line(), serde_json::json!({ "subscribed": { "id": 1 } }));
}

#[test]
fn what_nobody_asks_for_is_done_after_the_wait_and_that_is_told() {
    let bench = Bench::new(|config| config.upstream.command_wait_ms = 300);
    bench.put(20, "a");
    bench.wait_done(20);
    bench.wait_event("command_unclaimed");
}

#[test]
fn what_a_subscriber_that_died_left_is_for_the_next_one() {
    let bench = Bench::new(|_| ());
    let mut first = bench.subscribe("a/#");
    bench.put(4, "a/b");
    (1..=4).for_each(|seq| assert_eq!(first.hear().0, seq));
    first.done(1);
    bench.wait_done(1);
    drop(first);
    let mut second = bench.subscribe("a/+");
    for seq in 2..=4 {
        assert_eq!(second.hear().0, seq);
        second.done(seq);
    }
    bench.wait_done(4);
}

#[test]
fn the_largest_ones_arrive_whole_and_the_agent_holds_no_more_than_it_has_room_for() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.subscribe("#");
    let large = "ä€".repeat(199_900);
    let control = "\u{1}".repeat(170_000);
    let bytes: Vec<u8> = (0..780_000_u32).map(|nth| (nth % 251) as u8).collect();
    for (nth, body) in [large.as_bytes(), control.as_bytes(), &bytes].into_iter().cycle().take(6).enumerate() {
        let sent = bench.command_with(&["rig", "t", "-"], body);
        assert_eq!(sent, (0, format!("{}\n", nth + 1)));
    }
    assert_eq!(bench.command_with(&["rig", "t", "-"], &vec![b'x'; MESSAGE_BYTES_MAX]).0, 65);
    for seq in 1..=6 {
        let (got, _, body) = peer.hear();
        assert_eq!(got, seq);
        let expected = match seq % 3 {
            1 => text(&large),
            2 => text(&control),
            _ => Body::Bytes(bytes.clone()),
        };
        assert!(body == expected, "command {seq} came as it was");
        peer.done(seq);
    }
    bench.wait_done(6);
    assert_eq!(bench.agent.status().unwrap()["commands"]["received"], 6);
}

#[test]
fn nothing_is_done_upstream_while_flash_does_not_take_it() {
    let mut bench = Bench::offline(|_| ());
    let file = bench.dir.join("outbox/link/commands");
    fs::create_dir_all(&file).unwrap();
    bench = bench.online();
    let mut peer = bench.subscribe("a");
    bench.put(3, "a");
    for seq in 1..=3 {
        assert_eq!(peer.hear().0, seq);
        peer.done(seq);
    }
    bench.agent.wait_status("the desk is done with them", |status| status["commands"]["waiting"] == 0);
    support::wait_until(support::DEADLINE, "it is told", || bench.agent.log().contains("is not kept"));
    assert_eq!(bench.done(), 0);
    fs::remove_dir(&file).unwrap();
    bench.wait_done(3);
    // And it is there for the next start.
    bench.agent.kill9();
    bench.agent.start();
    let mut peer = bench.subscribe("a");
    bench.put(1, "a");
    assert_eq!(peer.hear().0, 4);
}

#[test]
fn another_store_begins_anew_and_a_restored_one_repeats_no_number() {
    let mut bench = Bench::new(|_| ());
    let mut peer = bench.subscribe("a");
    bench.put(2, "a");
    (1..=2).for_each(|seq| {
        assert_eq!(peer.hear().0, seq);
        peer.done(seq);
    });
    bench.wait_done(2);
    let copy = bench.copy_store();
    bench.put(2, "a");
    (3..=4).for_each(|seq| {
        assert_eq!(peer.hear().0, seq);
        peer.done(seq);
    });
    bench.wait_done(4);
    bench.receiver.kill9();
    bench.restore_store(&copy);
    // In the copy this one is number 3, which the gateway has done.
    bench.put(1, "a");
    bench.receiver.start();
    let (seq, ..) = peer.hear();
    assert!(seq > 4, "{seq}");
    peer.done(seq);
    bench.wait_done(seq);
    bench.receiver.kill9();
    bench.remove_store();
    bench.receiver.start();
    bench.receiver.wait_listening();
    bench.put(1, "a");
    assert_eq!(peer.hear().0, 1);
    peer.done(1);
    bench.wait_done(1);
}

#[test]
fn the_command_line_of_the_receiver_says_what_is_wrong() {
    let bench = Bench::offline(|_| ());
    assert_eq!(bench.command(&["rig", "t"]).0, 66, "there is no store yet");
    let bench = bench.online();
    assert_eq!(bench.command(&["rig"]).0, 64);
    assert_eq!(bench.command(&["rig", "a/#", "x"]).0, 64);
    assert_eq!(bench.command(&["rig", "t"]), (0, "1\n".into()));
    let mut peer = bench.subscribe("t");
    assert_eq!(peer.hear(), (1, "t".into(), text("")));
}
