//! A planned restart: each session learns its slot, what was taken is committed, and a real agent comes back in one
//! attempt with everything it had.

use backhaul::config::Heartbeat;
use backhaul::dialect::message::ServerMessage;
use rustix::process::Signal;

use crate::rig::{Client, Folder, Knock, Receiver, records};
use crate::support::agent::{self, Agent};
use crate::support::producer::{Handed, Producer};
use crate::support::{self, TempDir};

/// Sessions of `gw-0`, `gw-1`, …, in that order, each with three records stored.
fn sessions(receiver: &Receiver, count: usize) -> Vec<Client> {
    let open = |index| {
        let mut client = Knock::at(receiver).open();
        client.hello(&format!("gw-{index}"), "b", &[("a", 7)]);
        client.send(&records("a", 7, 1..=3));
        client.acked_up_to(3);
        client
    };
    (0..count).map(open).collect()
}

/// The slot that a session is told before the close, in ms.
fn slot(client: &mut Client) -> u64 {
    let message = client.next_message();
    let ServerMessage::Retry { after_ms, spread_ms: 0, endpoint: None } = message else { panic!("{message:?}") };
    let close = client.closed();
    assert_eq!(u16::from(close.code), 1001);
    after_ms
}

#[test]
fn sigterm_and_sigusr1_give_each_session_a_slot_of_its_own_in_the_order_they_came() {
    for (signal, flags, expected) in [
        (Signal::TERM, &["--restart-spread", "10", "--restart-gap", "1"][..], [1000, 3000, 5000, 7000, 9000]),
        (Signal::USR1, &["--restart-spread", "10", "--restart-gap", "1"], [1000, 3000, 5000, 7000, 9000]),
        // As fast as the next one accepts; five at once came in by the burst.
        (Signal::TERM, &["--accept-rate", "2", "--burst", "5"], [2000, 2500, 3000, 3500, 4000]),
        (Signal::TERM, &[], [2000, 8000, 14_000, 20_000, 26_000]),
    ] {
        let folder = Folder::new("slots");
        let mut receiver = Receiver::start(&folder, flags);
        let mut clients = sessions(&receiver, 5);
        receiver.signal(signal);
        let slots: Vec<u64> = clients.iter_mut().map(slot).collect();
        assert_eq!(slots, expected, "{signal:?} {flags:?}");
        drop(clients);
        assert!(receiver.wait().success());
        assert_eq!(folder.count("SELECT count(*) FROM records"), 15);
        assert_eq!(folder.count("SELECT sum(acked) FROM lanes"), 15);
    }
}

#[test]
fn a_restart_acks_nothing_that_is_not_stored_and_takes_nothing_after_it_has_said_so() {
    let folder = Folder::new("last-words");
    let mut receiver = Receiver::start(&folder, &[]);
    let mut client = sessions(&receiver, 1).remove(0);
    for seq in 4..=200 {
        client.send(&records("a", 7, [seq]));
    }
    receiver.signal(Signal::TERM);
    let mut acked = 3;
    loop {
        match client.next_message() {
            ServerMessage::Ack { seq, .. } => acked = seq,
            ServerMessage::Retry { .. } => break,
            other @ (ServerMessage::Welcome(_)
            | ServerMessage::Reject { .. }
            | ServerMessage::Command { .. }
            | ServerMessage::Pace { .. }) => panic!("{other:?}"),
        }
    }
    assert_eq!(u16::from(client.closed().code), 1001, "nothing between the slot and the close");
    drop(client);
    assert!(receiver.wait().success());
    assert_eq!(folder.seqs("gw-0"), (1..=acked).collect::<Vec<_>>(), "what is stored is what was acked");
}

#[test]
fn without_sessions_it_leaves_at_once() {
    for signal in [Signal::TERM, Signal::USR1, Signal::INT] {
        let folder = Folder::new("nobody");
        let mut receiver = Receiver::start(&folder, &[]);
        receiver.signal(signal);
        assert!(receiver.wait().success(), "{signal:?}");
    }
}

#[test]
fn sigint_closes_without_a_slot() {
    let folder = Folder::new("sigint");
    let mut receiver = Receiver::start(&folder, &[]);
    let mut client = sessions(&receiver, 1).remove(0);
    receiver.signal(Signal::INT);
    match client.next() {
        tungstenite::Message::Close(Some(close)) => assert_eq!(u16::from(close.code), 1001),
        other => panic!("not a close: {other:?}"),
    }
    drop(client);
    assert!(receiver.wait().success());
}

#[test]
fn a_real_agent_comes_back_in_one_attempt_and_loses_nothing() {
    let dir = TempDir::new("planned");
    let mut receiver = support::receiver::Receiver::new(&dir);
    // Enough for the next one to start on a machine that stands still for a moment.
    receiver.set_flags(&["--restart-gap", "6"]);
    receiver.start();
    receiver.wait_listening();
    let mut config = agent::quick(&dir, &format!("ws://{}/v1", receiver.address()));
    config.upstream.handshake_timeout_ms = 20_000;
    config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 20_000, ..config.upstream.heartbeat };
    let mut agent = Agent::new(&dir, &config);
    let mut producer = Producer::new(agent.socket(), None);
    agent.start();
    agent.wait_up();
    for signal in [Signal::TERM, Signal::USR1] {
        let mut put = |count: usize| {
            for _ in 0..count {
                let number = producer.handed_in();
                assert_eq!(producer.put("planned", format!("record {number}")), Handed::Answered);
            }
        };
        put(50);
        let before = agent.wait_up();
        assert!(receiver.leave(signal).success());
        put(50);
        receiver.start();
        receiver.wait_listening();
        put(50);
        let sessions = agent::sessions(&before);
        let after = agent.wait_status("the next session", |status| agent::sessions(status) > sessions);
        assert_eq!(agent::sessions(&after), sessions + 1);
        let attempts = |status: &serde_json::Value| status["link"]["attempts"].as_u64().unwrap();
        assert_eq!(attempts(&after) - attempts(&before), 1, "{after:#}");
        receiver.wait_acked([&producer]);
    }
    let failures = agent.wait_up()["link"]["failures"].clone();
    let failed: Vec<_> = failures.as_object().unwrap().iter().filter(|(_, count)| **count != 0).collect();
    assert_eq!(failed, [(&"server_retry".to_owned(), &serde_json::json!(2))]);
    let stored: Vec<_> = receiver.records().into_iter().filter(|record| record.topic == "planned").collect();
    let bodies: Vec<_> = stored.iter().map(|record| String::from_utf8(record.body.clone()).unwrap()).collect();
    assert_eq!(bodies, (0..300).map(|number| format!("record {number}")).collect::<Vec<_>>());
    assert_eq!(receiver.gaps(), []);
}
