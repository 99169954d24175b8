//! The real `backhaul-receiver` on a real socket, told by a client written here: protocol rules 1 to 4, 10 and 11,
//! kills, TLS, tokens and a crowd; and, in files of their own, admission, planned restarts and the page. Waits for events with generous deadlines, never for time to pass.

#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

mod admission;
mod page;
mod proxies;
mod restart;
mod rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use backhaul::config::Encoding;
use backhaul::dialect::codec::encode;
use backhaul::dialect::message::{AgentMessage, Frame, Lost};
use backhaul::record::{Body, Record, Seq};
use rig::{Client, Folder, Knock, PATIENCE, Receiver, acked, hello, lane, records};
use rustix::process::Signal;
use tungstenite::Message;

// ---- storing -----------------------------------------------------------------------------------------------------

#[test]
fn stores_and_acks_in_both_encodings() {
    let folder = Folder::new("encodings");
    let receiver = Receiver::start(&folder, &[]);
    for (offers, encoding) in
        [("backhaul.v1.json, backhaul.v1.postcard", Encoding::Json), ("backhaul.v1.postcard", Encoding::Postcard)]
    {
        let mut client = Knock { offers, ..Knock::at(&receiver) }.open();
        assert_eq!(client.encoding, encoding);
        let device = encoding.token();
        let welcome = client.hello(device, "b", &[("a", 7)]);
        assert_eq!((acked(&welcome), welcome.message_bytes_max), (vec![], 1 << 20));
        client.send(&records("a", 7, 1..=3));
        client.acked_up_to(3);
        let bytes = Record { seq: 4, at: None, topic: "ü/x".into(), body: Body::Bytes(vec![0xc3, 0x9f, 0x00]) };
        client.send(&AgentMessage::Records { lane: lane("a"), epoch: 7, records: vec![bytes] });
        client.acked_up_to(4);
        let expected: Vec<_> = (1..=3).map(|seq| (seq, format!("a7:{seq}"))).chain([(4, "\u{df}\0".into())]).collect();
        assert_eq!(folder.records(device), expected);
        let sql = format!("SELECT count(*) FROM records WHERE device = '{device}' AND at IS NULL AND topic = 'ü/x'");
        assert_eq!(folder.count(&sql), 1);
    }
}

#[test]
fn stores_once_what_is_sent_again_after_a_reconnect() {
    let folder = Folder::new("resend");
    let receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    client.send(&records("a", 7, 1..=5));
    client.acked_up_to(5);
    drop(client);
    let mut client = Knock::at(&receiver).open();
    let welcome = client.hello("gw", "b", &[("a", 7)]);
    assert_eq!(acked(&welcome), [("a".into(), 7, 5)]);
    client.send(&records("a", 7, 1..=8));
    client.acked_up_to(8);
    assert_eq!(folder.seqs("gw"), (1..=8).collect::<Vec<_>>());
}

#[test]
fn keeps_two_epochs_of_a_lane_and_two_devices_apart() {
    let folder = Folder::new("epochs");
    let receiver = Receiver::start(&folder, &[]);
    let mut one = Knock::at(&receiver).open();
    let mut two = Knock::at(&receiver).open();
    one.hello("gw-1", "b", &[("a", 7), ("a", 8)]);
    two.hello("gw-2", "b", &[("a", 7)]);
    one.send(&records("a", 8, 1..=2));
    one.send(&records("a", 7, 1..=3));
    two.send(&records("a", 7, 1..=1));
    two.acked_up_to(1);
    let mut highest = [0, 0];
    while highest != [3, 2] {
        let (_, epoch, seq) = one.ack();
        highest[usize::from(epoch == 8)] = seq;
    }
    let mut again = Knock::at(&receiver).open();
    let welcome = again.hello("gw-1", "b", &[("a", 8), ("a", 7), ("a", 9)]);
    assert_eq!(acked(&welcome), [("a".into(), 7, 3), ("a".into(), 8, 2)]);
    assert_eq!(folder.seqs("gw-1"), [1, 2, 3, 1, 2]);
    assert_eq!(folder.seqs("gw-2"), [1]);
}

#[test]
fn a_gap_is_a_row_for_each_cause_and_is_acked() {
    let folder = Folder::new("gaps");
    let receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    let lost = |why: &str, count| Lost { why: why.into(), count };
    let gap = AgentMessage::Gap {
        lane: lane("a"),
        epoch: 7,
        from: 1,
        to: 10,
        lost: vec![lost("overflow", 4), lost("expired", 6), lost("torn", 0)],
    };
    client.send(&gap);
    client.send(&records("a", 7, [11]));
    client.acked_up_to(11);
    drop(client);
    // The ack may be lost on the way: the gap comes again and is one.
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    client.send(&gap);
    client.send(&records("a", 7, [12]));
    client.acked_up_to(12);
    assert_eq!(folder.seqs("gw"), [11, 12]);
    let rows = r#"SELECT count(*) FROM gaps WHERE device = 'gw' AND "from" = 1 AND "to" = 10"#;
    assert_eq!(folder.count(rows), 3);
    assert_eq!(folder.count("SELECT sum(count) FROM gaps"), 10);
}

// ---- durability --------------------------------------------------------------------------------------------------

#[test]
fn what_was_acked_survives_sigkill_and_the_rest_resumes() {
    let folder = Folder::new("sigkill");
    let mut next = 1;
    let mut stream = None;
    for _ in 0..5 {
        let receiver = Receiver::start(&folder, &[]);
        let mut client = Knock::at(&receiver).open();
        let welcome = client.hello("gw", "b", &[("a", 7)]);
        let had = welcome.acked.first().map_or(0, |acked| acked.seq);
        assert!(had + 1 >= next, "acked up to {} before the kill, {had} after it", next - 1);
        assert_eq!(*stream.get_or_insert(welcome.command_stream), welcome.command_stream);
        for seq in had + 1..=had + 200 {
            client.send(&records("a", 7, [seq]));
        }
        let (_, _, seq) = client.ack();
        receiver.kill();
        next = seq + 1;
        let stored = folder.seqs("gw");
        assert!(stored.len() as u64 >= seq, "acked {seq}, stored {}", stored.len());
        assert_eq!(stored, (1..=stored.len() as u64).collect::<Vec<_>>());
    }
}

#[test]
fn an_ack_never_runs_ahead_of_the_commit() {
    let folder = Folder::new("ahead");
    let receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    let sqlite = folder.sqlite();
    for seq in 1..=100 {
        client.send(&records("a", 7, [seq]));
        let (_, _, acked) = client.ack();
        let stored: i64 = sqlite.query_row("SELECT max(seq) FROM records", [], |row| row.get(0)).unwrap();
        assert!(stored as Seq >= acked, "acked {acked}, another process sees {stored}");
    }
}

#[test]
fn sigterm_commits_says_goodbye_and_leaves() {
    let folder = Folder::new("sigterm");
    let mut receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    let mut half_open = TcpStream::connect(&receiver.address).unwrap();
    half_open.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    client.send(&records("a", 7, 1..=9));
    client.acked_up_to(9);
    let begin = Instant::now();
    receiver.signal(Signal::TERM);
    assert_eq!(u16::from(client.closed().code), 1001);
    assert!(receiver.wait().success());
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(folder.seqs("gw").len(), 9);
}

#[test]
fn a_second_receiver_on_the_same_store_is_told_to_try_again() {
    let folder = Folder::new("second");
    let _first = Receiver::start(&folder, &[]);
    let second = Command::new(env!("CARGO_BIN_EXE_backhaul-receiver"))
        .args(["--listen", "127.0.0.1:0", "--store"])
        .arg(folder.store())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another receiver"));
}

// ---- takeover ----------------------------------------------------------------------------------------------------

#[test]
fn the_newest_connection_of_a_device_wins_and_nothing_of_the_older_is_stored() {
    let folder = Folder::new("takeover");
    let receiver = Receiver::start(&folder, &[]);
    let mut older = Knock::at(&receiver).open();
    older.hello("gw", "boot-of-the-older", &[("a", 7)]);
    older.send(&records("a", 7, 1..=2));
    older.acked_up_to(2);

    let mut newer = Knock::at(&receiver).open();
    let welcome = newer.hello("gw", "boot-of-the-newer", &[("a", 7)]);
    assert_eq!(acked(&welcome), [("a".into(), 7, 2)]);
    // Not read yet: the older does not know, and goes on.
    for seq in 3..=50 {
        older.send(&records("a", 7, [seq]));
    }
    let close = older.closed();
    assert_eq!((u16::from(close.code), close.reason.as_str()), (4009, "boot-of-the-newer"));

    newer.send(&AgentMessage::Gap {
        lane: lane("a"),
        epoch: 7,
        from: 3,
        to: 60,
        lost: vec![Lost { why: "overflow".into(), count: 58 }],
    });
    newer.acked_up_to(60);
    assert_eq!(folder.seqs("gw"), [1, 2]);
}

#[test]
fn a_crowd_of_connections_of_one_device_ends_with_one() {
    let folder = Folder::new("crowd");
    let receiver = Receiver::start(&folder, &[]);
    let mut clients: Vec<Client> = (0..20).map(|_| Knock::at(&receiver).open()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(&hello("gw", &format!("b{index}"), &[("a", 7)]));
    }
    // Each hears something once its hello was heard; only then does it show who has the session.
    let firsts: Vec<Message> = clients.iter_mut().map(Client::next).collect();
    // Whoever the receiver heard last has the session; all others are told by whom they were replaced.
    let mut survivors = 0;
    for ((index, client), first) in clients.iter_mut().enumerate().zip(firsts) {
        let message = if matches!(first, Message::Close(_)) { first } else { probe(client) };
        match message {
            Message::Close(Some(frame)) => {
                assert_eq!(u16::from(frame.code), 4009);
                assert_ne!(frame.reason.as_str(), format!("b{index}"));
            }
            _ => survivors += 1,
        }
    }
    assert_eq!(survivors, 1);
}

/// Sends what only the owner of the session gets an answer to.
fn probe(client: &mut Client) -> Message {
    let frame = match encode(&records("a", 7, [1]), client.encoding) {
        Frame::Text(text) => Message::text(text),
        Frame::Binary(bytes) => Message::binary(bytes),
    };
    // The receiver may have closed already.
    let _ = client.socket.send(frame);
    client.next()
}

/// Whatever others did to it: who comes now is served.
fn still_serves(receiver: &Receiver) {
    let mut client = Knock::at(receiver).open();
    client.hello("late", "b", &[("a", 7)]);
    client.send(&records("a", 7, [1]));
    client.acked_up_to(1);
}

// ---- faults ------------------------------------------------------------------------------------------------------

#[test]
fn a_hole_ends_the_connection_with_1008_and_what_came_before_it_stays() {
    let folder = Folder::new("hole");
    let receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    client.send(&records("a", 7, [1, 2]));
    client.send(&records("a", 7, [4]));
    assert_eq!(u16::from(client.closed().code), 1008);
    let mut client = Knock::at(&receiver).open();
    assert_eq!(acked(&client.hello("gw", "b", &[("a", 7)])), [("a".into(), 7, 2)]);
    client.send(&records("a", 7, [3]));
    client.acked_up_to(3);
    assert_eq!(folder.seqs("gw"), [1, 2, 3]);
}

#[test]
fn garbage_ends_the_connection_with_1002() {
    let folder = Folder::new("garbage");
    let receiver = Receiver::start(&folder, &[]);
    let postcard = [Message::binary(vec![1, 0xff, 0xff, 0xff]), Message::binary(vec![]), Message::text("{}")];
    for garbage in postcard {
        let mut client = Knock::at(&receiver).open();
        client.hello("gw", "b", &[]);
        client.socket.send(garbage).unwrap();
        assert_eq!(u16::from(client.closed().code), 1002);
    }
    for garbage in [Message::text("{\"records\":{}}"), Message::text("nonsense"), Message::binary(vec![0])] {
        let mut client = Knock { offers: "backhaul.v1.json", ..Knock::at(&receiver) }.open();
        client.socket.send(garbage).unwrap();
        assert_eq!(u16::from(client.closed().code), 1002);
    }
}

#[test]
fn bytes_that_are_no_websocket_end_with_1002_and_a_message_too_long_with_1009() {
    let folder = Folder::new("frames");
    let receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[]);
    client.socket.get_mut().write_all(&[0xff; 4096]).unwrap();
    assert_eq!(u16::from(client.closed().code), 1002);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[]);
    // The receiver closes at the header; the rest may meet a closed door.
    let _ = client.socket.send(Message::binary(vec![0; (1 << 20) + 1]));
    assert_eq!(u16::from(client.closed().code), 1009);
    still_serves(&receiver);
}

#[test]
fn messages_of_the_future_are_ignored() {
    let folder = Folder::new("future");
    let receiver = Receiver::start(&folder, &[]);
    let future = [
        ("backhaul.v1.postcard", Message::binary(vec![99, 1, 2])),
        ("backhaul.v1.json", Message::text("{\"sing\":{}}")),
    ];
    for (offers, message) in future {
        let mut client = Knock { offers, ..Knock::at(&receiver) }.open();
        client.socket.send(message.clone()).unwrap();
        client.hello(offers, "b", &[("a", 7)]);
        client.socket.send(message).unwrap();
        client.send(&records("a", 7, [1]));
        client.acked_up_to(1);
    }
}

#[test]
fn a_message_before_hello_and_a_second_hello_end_with_1008() {
    let folder = Folder::new("order");
    let receiver = Receiver::start(&folder, &[]);
    let mut client = Knock::at(&receiver).open();
    client.send(&records("a", 7, [1]));
    assert_eq!(u16::from(client.closed().code), 1008);
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[]);
    client.send(&hello("gw", "b", &[]));
    assert_eq!(u16::from(client.closed().code), 1008);
    assert_eq!(folder.count("SELECT count(*) FROM records"), 0);
}

#[test]
fn no_known_encoding_and_no_websocket_are_426() {
    let folder = Folder::new("426");
    let receiver = Receiver::start(&folder, &[]);
    for offers in ["", "mqtt", "backhaul.v2.postcard"] {
        assert_eq!(Knock { offers, ..Knock::at(&receiver) }.try_open().err(), Some(426), "{offers:?}");
    }
    let mut tcp = TcpStream::connect(&receiver.address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
}

// ---- credentials and TLS -----------------------------------------------------------------------------------------

#[test]
fn tokens_open_the_door_for_their_own_device_only() {
    let folder = Folder::new("tokens");
    let tokens = folder.write("tokens", "# fleet\ngw-1 one\ngw-2 two\n* any\n");
    let receiver = Receiver::start(&folder, &["--token-file", tokens.to_str().unwrap()]);
    assert_eq!(Knock::at(&receiver).try_open().err(), Some(401));
    assert_eq!(Knock { token: Some("three"), ..Knock::at(&receiver) }.try_open().err(), Some(401));
    for (token, device) in [("one", "gw-1"), ("two", "gw-2"), ("any", "gw-1"), ("any", "gw-9")] {
        Knock { token: Some(token), ..Knock::at(&receiver) }.open().hello(device, "b", &[]);
    }
    let mut client = Knock { token: Some("one"), ..Knock::at(&receiver) }.open();
    client.send(&hello("gw-2", "b", &[]));
    assert_eq!(u16::from(client.closed().code), 3003);
}

#[test]
fn a_thief_with_the_token_of_another_device_does_not_take_over_its_session() {
    let folder = Folder::new("thief");
    let tokens = folder.write("tokens", "gw-1 one\ngw-2 two\n");
    let receiver = Receiver::start(&folder, &["--token-file", tokens.to_str().unwrap()]);
    let mut owner = Knock { token: Some("one"), ..Knock::at(&receiver) }.open();
    owner.hello("gw-1", "b", &[("a", 7)]);
    let mut thief = Knock { token: Some("two"), ..Knock::at(&receiver) }.open();
    thief.send(&hello("gw-1", "b", &[("a", 7)]));
    assert_eq!(u16::from(thief.closed().code), 3003);
    owner.send(&records("a", 7, [1]));
    owner.acked_up_to(1);
}

#[test]
fn speaks_tls_and_bears_who_does_not() {
    let folder = Folder::new("tls");
    let (cert, key) = folder.certificate();
    let flags = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let receiver = Receiver::start(&folder, &flags);

    let mut plain = TcpStream::connect(&receiver.address).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // An alert or nothing, and the end.
    let _ = plain.read_to_end(&mut Vec::new());

    let mut client = Knock { tls: Some(&cert), ..Knock::at(&receiver) }.open();
    client.hello("gw", "b", &[("a", 7)]);
    // More than one TLS record and more than one read, so that the edge in between shows.
    for batch in 0..40 {
        client.send(&records("a", 7, batch * 500 + 1..=batch * 500 + 500));
    }
    client.acked_up_to(20_000);
    assert_eq!(folder.seqs("gw").len(), 20_000);
    let mut newer = Knock { tls: Some(&cert), ..Knock::at(&receiver) }.open();
    newer.hello("gw", "b2", &[("a", 7)]);
    assert_eq!(u16::from(client.closed().code), 4009);
    assert!(Knock { offers: "", tls: Some(&cert), ..Knock::at(&receiver) }.try_open().is_err());
}

#[test]
fn a_command_line_that_cannot_work_says_why() {
    let folder = Folder::new("cli");
    let store = folder.store();
    let store = store.to_str().unwrap();
    let tokens = folder.write("tokens", "gw-1\n");
    let junk =
        folder.write("junk", "not a database, but long enough to have a header of its own\n".repeat(40).as_str());
    let (tokens, junk) = (tokens.to_str().unwrap(), junk.to_str().unwrap());
    for (arguments, code) in [
        (vec!["--store", store], 64),
        (vec!["--listen", "127.0.0.1:0"], 64),
        (vec!["--listen", "nowhere", "--store", store], 64),
        (vec!["--listen", "192.0.2.1:1", "--store", store], 69),
        (vec!["--listen", "127.0.0.1:0", "--store", junk], 65),
        (vec!["--listen", "127.0.0.1:0", "--store", store, "--token-file", tokens], 78),
        (vec!["--listen", "127.0.0.1:0", "--store", store, "--token-file", "/nonexistent"], 78),
        (vec!["--listen", "127.0.0.1:0", "--store", store, "--tls-cert", tokens, "--tls-key", tokens], 78),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_backhaul-receiver")).args(&arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains("backhaul-receiver: "), "{arguments:?}: {stderr}");
    }
}

// ---- quiet, slow, many -------------------------------------------------------------------------------------------

#[test]
fn a_silent_session_is_freed_and_one_that_answers_pings_is_not() {
    let folder = Folder::new("silent");
    let receiver = Receiver::start(&folder, &["--ping-interval-ms", "500"]);
    let mut lively = Knock::at(&receiver).open();
    lively.hello("lively", "b", &[("a", 7)]);
    // Reads nothing, so that nothing answers.
    let mut silent = Knock::at(&receiver).open();
    silent.hello("silent", "b", &[("a", 7)]);
    let mut pings = 0;
    while pings < 8 {
        if let Message::Ping(_) = lively.socket.read().unwrap() {
            pings += 1;
        }
    }
    // Eight intervals on, the silent one is gone: two pings, a close (1001), the end.
    let mut last_words = Vec::new();
    silent.socket.get_mut().read_to_end(&mut last_words).unwrap();
    assert_eq!(last_words.windows(2).filter(|frame| *frame == [0x89, 0]).count(), 2);
    assert!(last_words.windows(4).any(|frame| frame[0] == 0x88 && frame[2..] == 1001_u16.to_be_bytes()));
    lively.send(&records("a", 7, [1]));
    lively.acked_up_to(1);
}

#[test]
fn who_does_not_say_hello_is_dropped_and_harms_nobody() {
    let folder = Folder::new("mute");
    let receiver = Receiver::start(&folder, &[]);
    let mut mute = TcpStream::connect(&receiver.address).unwrap();
    mute.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut half = TcpStream::connect(&receiver.address).unwrap();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").unwrap();
    let mut upgraded = Knock::at(&receiver).open();
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    assert_eq!(mute.read(&mut [0; 16]).unwrap_or(0), 0);
    assert_eq!(half.read(&mut [0; 16]).unwrap_or(0), 0);
    assert!(upgraded.socket.read().is_err());
    client.send(&records("a", 7, [1]));
    client.acked_up_to(1);
}

#[test]
fn two_hundred_connections_at_once_each_store_their_own() {
    const DEVICES: usize = 200;
    const BATCHES: u64 = 10;
    let folder = Folder::new("many");
    let receiver = Receiver::start(&folder, &[]);
    let mut clients: Vec<Client> = (0..DEVICES)
        .map(|index| {
            let offers = if index % 2 == 0 { "backhaul.v1.json" } else { "backhaul.v1.postcard" };
            Knock { offers, ..Knock::at(&receiver) }.open()
        })
        .collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.hello(&format!("gw-{index:03}"), "b", &[("a", 7)]);
    }
    for batch in 0..BATCHES {
        for client in &mut clients {
            client.send(&records("a", 7, batch * 20 + 1..=batch * 20 + 20));
        }
    }
    for client in &mut clients {
        client.acked_up_to(BATCHES * 20);
    }
    let per_device = "SELECT count(*) FROM (SELECT device FROM records GROUP BY device
        HAVING count(*) = 200 AND min(seq) = 1 AND max(seq) = 200)";
    assert_eq!(folder.count(per_device), DEVICES as i64);
    assert_eq!(folder.count("SELECT sum(acked) FROM lanes"), (DEVICES as u64 * BATCHES * 20) as i64);
}
