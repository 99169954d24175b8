//! `[[handler]]`: programs that are given commands.

use std::fs;

use backhaul::config::Handler;
use serde_json::{Value, json};

use crate::rig::Bench;
use crate::support::{DEADLINE, wait_for, wait_until};

fn handler(topic: &str, script: &str) -> Handler {
    let exec = ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec();
    Handler { topic: topic.into(), exec, ..Handler::default() }
}

/// The reports of handlers that the server has, in its order, without the stream.
fn reports(bench: &Bench, topic: &str) -> Vec<Value> {
    let records = bench.receiver.records().into_iter().filter(|record| record.topic == topic);
    let reports = records.map(|record| serde_json::from_slice::<Value>(&record.body).unwrap());
    let reports = reports.filter(|report| topic != "$event" || report["event"] == "handler");
    let without_stream = |mut report: Value| {
        assert!(report.as_object_mut().unwrap().remove("stream").is_some_and(|stream| stream.is_u64()));
        report
    };
    reports.map(without_stream).collect()
}

#[test]
fn a_program_gets_the_body_and_its_output_and_exit_code_go_up() {
    let bench = Bench::new(|config| {
        let reply = Handler {
            reply_topic: "reply/{seq}".into(),
            reply_lane: "answers".into(),
            ..handler("ask", "cat; exit 3")
        };
        let event = handler("tell/#", "test \"$(cat)\" = go");
        config.lanes.push(crate::support::agent::lane("answers"));
        config.handlers = vec![reply, event];
    });
    assert_eq!(bench.command(&["rig", "ask", "who?"]).0, 0);
    assert_eq!(bench.command(&["rig", "tell/1", "go"]).0, 0);
    assert_eq!(bench.command(&["rig", "tell/2", "$(touch /x); `y`"]).0, 0);
    bench.wait_done(3);
    // On flash before they are done; here when they are sent.
    let expected = json!({ "seq": 1, "topic": "ask", "exit": 3, "text": "who?" });
    let reply = wait_for(DEADLINE, "the reply", || reports(&bench, "reply/1").pop());
    assert_eq!(reply, expected);
    assert!(bench.receiver.records().iter().any(|record| record.lane == "answers" && record.topic == "reply/1"));
    wait_until(DEADLINE, "both events", || reports(&bench, "$event").len() == 2);
    let events = reports(&bench, "$event");
    assert_eq!(events[0], json!({ "event": "handler", "seq": 2, "topic": "tell/1", "exit": 0 }));
    assert_eq!(events[1], json!({ "event": "handler", "seq": 3, "topic": "tell/2", "exit": 1 }));
}

#[test]
fn one_that_hangs_or_floods_or_is_not_there_is_reported_and_holds_up_no_record_and_no_other_handler() {
    let bench = Bench::new(|config| {
        let quick = |topic: &str, script: &str| Handler { timeout_ms: 1000, ..handler(topic, script) };
        let missing = Handler { exec: vec!["/no/such/program".into()], ..handler("missing", "") };
        let large = Handler { reply_topic: "large".into(), ..handler("large", "printf %09000d 1") };
        config.handlers =
            vec![quick("hang", "sleep 1000 & wait"), quick("flood", "yes"), missing, large, handler("well", "true")];
    });
    for topic in ["hang", "flood", "missing", "large", "well"] {
        assert_eq!(bench.command(&["rig", topic, "x"]).0, 0);
    }
    bench.wait_done(5);
    wait_until(DEADLINE, "all reports", || reports(&bench, "$event").len() == 4 && reports(&bench, "large").len() == 1);
    let events = reports(&bench, "$event");
    let event = |topic: &str| events.iter().find(|event| event["topic"] == topic).unwrap().clone();
    assert_eq!(event("hang")["timeout"], true);
    assert_eq!(event("flood")["timeout"], true);
    assert!(event("missing")["error"].is_string());
    assert_eq!(event("well")["exit"], 0);
    let large = &reports(&bench, "large")[0];
    assert_eq!((large["text"].as_str().unwrap().len(), &large["cut"]), (8192, &true.into()));
    assert_eq!(bench.agent.status().unwrap()["commands"]["timed_out"], 0, "a handler always answers");
}

#[test]
fn one_at_a_time_and_in_order_beside_a_program_that_listens() {
    let bench = Bench::new(|config| {
        let out = config.outbox.dir.with_file_name("ran");
        let script = format!("echo begin $BACKHAUL_SEQ >> {0}; echo end >> {0}", out.display());
        config.handlers = vec![handler("#", &script)];
    });
    let mut peer = bench.subscribe("a");
    bench.put(20, "a");
    for seq in 1..=20 {
        assert_eq!(peer.hear().0, seq);
        peer.done(seq);
    }
    bench.wait_done(20);
    let ran = fs::read_to_string(bench.dir.join("ran")).unwrap();
    let expected: String = (1..=20).map(|seq| format!("begin {seq}\nend\n")).collect();
    assert_eq!(ran, expected);
}

#[test]
fn a_report_that_has_no_room_is_waited_for_and_the_command_is_not_done_before() {
    let mut bench = Bench::offline(|config| {
        let mut answers = crate::support::agent::lane("answers");
        (answers.bytes_max, answers.overflow) = (2 * 65_536, backhaul::config::Overflow::Reject);
        config.lanes.push(answers);
        let reply =
            Handler { reply_topic: "reply".into(), reply_lane: "answers".into(), ..handler("a", "printf %08000d 1") };
        config.handlers = vec![reply];
    });
    bench = bench.online();
    bench.agent.wait_up();
    // More than the lane holds: what is acked makes room again.
    bench.put(60, "a");
    bench.wait_done(60);
    wait_until(DEADLINE, "all replies", || reports(&bench, "reply").len() == 60);
    let seqs: Vec<u64> = reports(&bench, "reply").iter().map(|reply| reply["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=60).collect::<Vec<_>>());
}

#[test]
fn an_agent_that_is_killed_runs_it_again_and_reports_each_once() {
    let mut bench = Bench::new(|config| {
        config.handlers = vec![Handler { reply_topic: "reply".into(), ..handler("a", "cat") }];
    });
    for round in 1..=8_u64 {
        bench.put(5, "a");
        // At the first, and then at some moment between the first report and the last done.
        wait_until(DEADLINE, "some are done", || bench.done() > (round - 1) * 5);
        bench.agent.kill9();
        bench.agent.start();
        bench.wait_done(round * 5);
    }
    wait_until(DEADLINE, "all replies", || reports(&bench, "reply").len() >= 40);
    bench.agent.wait_drained();
    let seqs: Vec<u64> = reports(&bench, "reply").iter().map(|reply| reply["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=40).collect::<Vec<_>>());
    assert_eq!(reports(&bench, "reply")[39]["text"], "40");
}

#[test]
fn sigterm_kills_what_runs_and_the_agent_leaves_in_time() {
    let mut bench = Bench::new(|config| {
        let pid = config.outbox.dir.with_file_name("pid");
        config.handlers = vec![handler("a", &format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 1000", pid.display()))];
    });
    bench.put(1, "a");
    let pid = wait_for(DEADLINE, "it runs", || fs::read_to_string(bench.dir.join("pid")).ok());
    let left = bench.agent.term(DEADLINE).unwrap();
    assert!(left.success());
    let stat = format!("/proc/{}/stat", pid.trim());
    // Where nobody reaps orphans it stays as a zombie.
    wait_until(DEADLINE, "it is gone", || !fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")));
    assert_eq!(bench.done(), 0);
}
