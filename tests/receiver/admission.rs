//! Over the rate: who comes in, what the others are told, and that they come in when they do as they are told.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tungstenite::handshake::client::Response;

use crate::rig::{Client, Folder, Knock, PATIENCE, Receiver, records};

/// `Retry-After` in seconds and `Backhaul-Spread-Ms` of a refusal.
fn word(answer: &Response) -> (u64, u64) {
    assert_eq!(answer.status().as_u16(), 503);
    let number = |name| answer.headers()[name].to_str().unwrap().parse().unwrap();
    (number("Retry-After"), number("Backhaul-Spread-Ms"))
}

/// Knocks so often, and asserts that who is in and what the others are told is what a bucket of 3 and one a second
/// say. Holds who came in, as `gw-0`, `gw-1`, ….
fn knock_at_one_a_second<'a>(times: u32, knock: impl Fn() -> Knock<'a>) -> Vec<Client> {
    let begin = Instant::now();
    let mut inside = Vec::new();
    let mut told = 0;
    for _ in 0..times {
        match knock().ask() {
            Ok(mut client) => {
                client.hello(&format!("gw-{}", inside.len()), "b", &[("a", 7)]);
                inside.push(client);
            }
            Err(answer) => {
                told += 1;
                let (after_s, spread_ms) = word(&answer);
                // The queue grows by a second with each, and shrinks with time.
                let passed_s = begin.elapsed().as_secs() + 1;
                assert!(after_s <= told && after_s + passed_s + 1 >= told, "{told}: {after_s} s after {passed_s} s");
                assert_eq!(spread_ms, 1000);
            }
        }
        let most = 3 + begin.elapsed().as_secs() as usize + 1;
        assert!(inside.len() <= most, "{} inside, at most {most}", inside.len());
    }
    assert!(inside.len() >= 3, "the burst comes in: {}", inside.len());
    assert!(told >= 1, "someone was told to come back");
    inside
}

#[test]
fn over_the_rate_each_is_told_the_next_slot_of_the_queue() {
    let folder = Folder::new("over");
    let receiver = Receiver::start(&folder, &["--accept-rate", "1", "--burst", "3"]);
    let mut inside = knock_at_one_a_second(60, || Knock::at(&receiver));
    // Who is in is none the worse for it.
    for client in &mut inside {
        client.send(&records("a", 7, [1]));
        client.acked_up_to(1);
    }
}

#[test]
fn over_tls_the_refusal_comes_over_tls() {
    let folder = Folder::new("over-tls");
    let (cert, key) = folder.certificate();
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let receiver = Receiver::start(&folder, &[&["--accept-rate", "1", "--burst", "3"], &tls[..]].concat());
    let mut inside = knock_at_one_a_second(30, || Knock { tls: Some(&cert), ..Knock::at(&receiver) });
    for client in &mut inside {
        client.send(&records("a", 7, [1]));
        client.acked_up_to(1);
    }
}

#[test]
fn who_waits_for_its_slot_comes_in() {
    let folder = Folder::new("slot");
    let receiver = Receiver::start(&folder, &["--accept-rate", "1", "--burst", "1"]);
    let begin = Instant::now();
    let mut inside = 0;
    // On a machine that stands still more than one may come in.
    let (after_s, spread_ms) = loop {
        match Knock::at(&receiver).ask() {
            Ok(_) => inside += 1,
            Err(answer) => break word(&answer),
        }
        assert!(inside <= 1 + begin.elapsed().as_secs() + 1);
    };
    thread::sleep(Duration::from_secs(after_s) + Duration::from_millis(spread_ms));
    Knock::at(&receiver).open().hello("gw", "b", &[]);
}

#[test]
fn a_fleet_that_obeys_comes_in_at_the_rate_and_never_above() {
    const DEVICES: usize = 40;
    let folder = Folder::new("fleet");
    let begin = Instant::now();
    let receiver = Receiver::start(&folder, &["--accept-rate", "20", "--burst", "5"]);
    let fleet = (0..DEVICES).map(|index| fastrand::Rng::with_seed(index as u64));
    let mut came_in: Vec<Duration> = thread::scope(|scope| {
        let come = |mut random: fastrand::Rng| {
            let receiver = &receiver;
            scope.spawn(move || {
                while begin.elapsed() < PATIENCE {
                    match Knock::at(receiver).ask() {
                        Ok(_) => return begin.elapsed(),
                        Err(answer) => {
                            let (after_s, spread_ms) = word(&answer);
                            thread::sleep(Duration::from_millis(after_s * 1000 + random.u64(..=spread_ms)));
                        }
                    }
                }
                panic!("never let in");
            })
        };
        let devices: Vec<_> = fleet.map(come).collect();
        devices.into_iter().map(|device| device.join().unwrap()).collect()
    });
    came_in.sort_unstable();
    // The bucket was full when the receiver started, which was after `begin`.
    for (index, at) in came_in.iter().enumerate().skip(5) {
        let earliest = Duration::from_millis((index as u64 - 4) * 50);
        assert!(*at >= earliest, "{index}: in after {at:?}, not before {earliest:?}");
    }
}

#[test]
fn a_stranger_takes_nobodys_place() {
    let folder = Folder::new("strangers");
    let tokens = folder.write("tokens", "gw-1 one\n");
    // A place comes free once an hour, about: who gets in here gets one that was given back.
    let flags = ["--token-file", tokens.to_str().unwrap(), "--accept-rate", "1", "--burst", "1"];
    let receiver = Receiver::start(&folder, &flags);
    for _ in 0..30 {
        // A health check that connects and leaves.
        let mut stream = TcpStream::connect(&receiver.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
        assert_eq!(Knock { token: Some("two"), ..Knock::at(&receiver) }.try_open().err(), Some(401));
    }
    Knock { token: Some("one"), ..Knock::at(&receiver) }.open().hello("gw-1", "b", &[]);
}

/// How many of 60 come in, as far as the rate is concerned.
fn let_in<'a>(knock: impl Fn() -> Knock<'a>) -> u64 {
    (0..60).filter(|_| knock().try_open().err() != Some(503)).count() as u64
}

#[test]
fn who_begins_tls_uses_up_its_place() {
    let folder = Folder::new("half-tls");
    let (cert, key) = folder.certificate();
    let tokens = folder.write("tokens", "gw-1 one\n");
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let rate = ["--token-file", tokens.to_str().unwrap(), "--accept-rate", "1", "--burst", "30"];
    let begin = Instant::now();
    let receiver = Receiver::start(&folder, &[&rate[..], &tls].concat());
    for _ in 0..30 {
        let mut stream = TcpStream::connect(&receiver.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // An alert comes, and the end or a reset.
        match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    let count = let_in(|| Knock { tls: Some(&cert), token: Some("two"), ..Knock::at(&receiver) });
    let passed_s = begin.elapsed().as_secs();
    assert!(count <= passed_s + 1, "{count} came in after {passed_s} s");
}

#[test]
fn who_is_too_slow_uses_up_its_place() {
    let folder = Folder::new("slow");
    let begin = Instant::now();
    let receiver = Receiver::start(&folder, &["--accept-rate", "1", "--burst", "30"]);
    let connect = |index| {
        let mut stream = TcpStream::connect(&receiver.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        if index % 2 == 0 {
            stream.write_all(b"GET / HT").unwrap();
        }
        stream
    };
    let slow: Vec<TcpStream> = (0..30).map(connect).collect();
    for mut stream in slow {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(begin.elapsed() >= Duration::from_secs(10), "they were let in, and their time was over");
    let count = let_in(|| Knock::at(&receiver));
    let passed_s = begin.elapsed().as_secs();
    assert!((1..=passed_s + 1).contains(&count), "{count} came in after {passed_s} s");
}

#[test]
fn where_too_many_are_told_at_once_the_others_are_reset_and_sessions_go_on() {
    const CROWD: usize = 90;
    let folder = Folder::new("crowded");
    let (cert, key) = folder.certificate();
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    // 100 connections, so 50 of those turned away.
    let receiver = Receiver::start_with(164, &folder, &[&["--accept-rate", "1"], &tls[..]].concat());
    let mut client = Knock { tls: Some(&cert), ..Knock::at(&receiver) }.open();
    client.hello("gw", "b", &[("a", 7)]);
    // They say nothing, so they stay for seconds.
    let connect = |_| {
        let stream = TcpStream::connect(&receiver.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut crowd: Vec<TcpStream> = (0..CROWD).map(connect).collect();
    client.send(&records("a", 7, [1]));
    client.acked_up_to(1);
    // The others are closed when their time is over.
    let reset = |stream: &mut TcpStream| match stream.read(&mut [0; 16]) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    };
    let count = crowd.iter_mut().map(reset).filter(|reset| *reset).count();
    assert!((1..=CROWD - 50).contains(&count), "{count} of {CROWD} were reset");
    client.send(&records("a", 7, [2]));
    client.acked_up_to(2);
}
