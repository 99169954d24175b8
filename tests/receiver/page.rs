//! The page of the fleet: what it answers, that nothing that happens there disturbs a session, and that a real browser
//! draws it.

use std::fs;
use std::io::{BufRead as _, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::rig::{Folder, Knock, PATIENCE, Receiver, records};
use crate::support::{DEADLINE, not_run, wait_for, wait_until};

/// The whole answer to this request, sent at once.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: &str, path: &str) -> (String, String) {
    let answer = ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    (head.into(), body.into())
}

fn fleet(address: &str) -> Value {
    let (head, body) = get(address, "/fleet.json");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    serde_json::from_str(&body).unwrap()
}

/// A column of the seconds, added up.
fn sum(fleet: &Value, column: usize) -> u64 {
    fleet["seconds"].as_array().unwrap().iter().map(|second| second[column].as_u64().unwrap()).sum()
}

#[test]
fn the_page_shows_who_came_who_was_turned_away_and_who_is_connected() {
    let folder = Folder::new("page");
    let mut receiver = Receiver::start(&folder, &["--accept-rate", "1", "--burst", "3", "--page", "127.0.0.1:0"]);
    let page = receiver.page();
    assert_eq!(fleet(&page)["attempts"], 0);
    let mut inside = Vec::new();
    let mut refused = 0;
    for index in 0..12 {
        match Knock::at(&receiver).ask() {
            Ok(mut client) => {
                client.hello(&format!("gw-{index}"), "b", &[("a", 7)]);
                client.send(&records("a", 7, [1]));
                client.acked_up_to(1);
                inside.push(client);
            }
            Err(_) => refused += 1,
        }
    }
    let sessions = inside.len() as u64;
    // Into the history they come when their second is over.
    let is_past = |shown: &Value| {
        let last = shown["seconds"].as_array().unwrap().last();
        sum(shown, 0) == 12 && last.is_some_and(|last| last[2] == sessions)
    };
    let shown = wait_for(DEADLINE, "the seconds are over", || Some(fleet(&page)).filter(is_past));
    assert_eq!((sum(&shown, 1), &shown["refused"], &shown["dropped"]), (refused, &refused.into(), &0.into()));
    assert_eq!((&shown["sessions"], &shown["devices"]), (&sessions.into(), &sessions.into()));
    assert_eq!(shown["accept_rate"], 1);
    drop(inside);
    wait_until(DEADLINE, "they are gone", || fleet(&page)["sessions"] == 0);
    assert_eq!(fleet(&page)["devices"], sessions, "known all the same");
    // The next receiver knows them from the store.
    receiver.kill();
    receiver = Receiver::start(&folder, &["--page", "127.0.0.1:0"]);
    let shown = fleet(&receiver.page());
    assert_eq!(
        (&shown["devices"], &shown["sessions"], &shown["accept_rate"]),
        (&sessions.into(), &0.into(), &Value::Null)
    );
}

#[test]
fn every_answer_carries_the_policy_and_other_requests_are_refused() {
    let folder = Folder::new("page-http");
    let mut receiver = Receiver::start(&folder, &["--page", "127.0.0.1:0"]);
    let page = receiver.page();
    for (path, status) in [("/", 200), ("/fleet.js", 200), ("/fleet.css", 200), ("/fleet.json", 200), ("/else", 404)] {
        let (head, body) = get(&page, path);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        assert!(head.contains("Content-Security-Policy: default-src 'none'; script-src 'self';"), "{path}: {head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{path}: {head}");
    }
    assert!(ask(&page, "POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask(&page, "\u{16}\u{3}\u{1}\u{2} no HTTP\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(ask(&page, &format!("GET / HTTP/1.1\r\na: {}", "b".repeat(20_000))).starts_with("HTTP/1.1 431 "));
    // Byte by byte is as good.
    let mut slow = TcpStream::connect(&page).unwrap();
    slow.set_nodelay(true).unwrap();
    for byte in b"GET / HTTP/1.1\r\n\r\n" {
        slow.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("</html>\n"), "{answer}");
    // No page unless asked for: the other port speaks of WebSockets.
    assert!(ask(&receiver.address, "GET /fleet.json HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 426 "));
}

#[test]
fn who_loiters_or_throws_garbage_at_the_page_disturbs_nobody_and_is_bounded() {
    let folder = Folder::new("loris");
    let mut receiver = Receiver::start(&folder, &["--page", "127.0.0.1:0"]);
    let page = receiver.page();
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", receiver.id())).unwrap().count();
    let before = descriptors();
    let mut loiterers = Vec::new();
    for round in 1..=10 {
        for index in 0..40 {
            let mut stream = TcpStream::connect(&page).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            // It may be gone already: a newer one has taken its place.
            let _gone = match index % 3 {
                0 => stream.write_all(b"GET / HTTP/1.1\r\nHost: "),
                1 => stream.write_all(&[0xff; 70_000]),
                _ => Ok(()),
            };
            loiterers.push(stream);
        }
        client.send(&records("a", 7, [round]));
        client.acked_up_to(round);
        assert!(fleet(&page)["sessions"] == 1, "the page answers whoever asks");
        assert!(descriptors() <= before + 16, "{} descriptors, {before} before", descriptors());
    }
    // And all of them are gone after a while, by themselves.
    for mut stream in loiterers {
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
    wait_until(DEADLINE, "nothing of them is left", || descriptors() <= before);
    client.send(&records("a", 7, [11]));
    client.acked_up_to(11);
}

#[test]
fn a_real_browser_draws_the_page() {
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(browser) = places.iter().map(Path::new).find(|path| path.exists()) else {
        return not_run("the page in a browser", "there is none (apt-get install chromium)");
    };
    let folder = Folder::new("browser");
    let mut receiver = Receiver::start(&folder, &["--accept-rate", "5", "--burst", "3", "--page", "127.0.0.1:0"]);
    let page = receiver.page();
    let knocks: Vec<_> = (0..20).map(|_| Knock::at(&receiver).ask()).collect();
    wait_until(DEADLINE, "the seconds are over", || sum(&fleet(&page), 0) == 20);
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", folder.path("profile").display()))
        .args(["--virtual-time-budget=3000", "--dump-dom"])
        .arg(format!("http://{page}/"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    drop(knocks);
    let drawn = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    for word in [
        "<title>Fleet: the last ten minutes</title>",
        "since the start 20 attempts",
        "aria-label=\"attempts and refusals per second\"",
        "aria-label=\"percent of the devices that are connected\"",
        "<path class=\"attempts\" d=\"M",
        "<path class=\"share\" d=\"M",
        "<path class=\"rate\" d=\"M",
        ">minutes</text>",
    ] {
        assert!(drawn.contains(word), "no {word:?} in\n{drawn}\n{said}");
    }
    assert!(!said.contains("Content Security Policy"), "{said}");
}

#[test]
fn who_watches_gets_a_line_while_something_changes_and_none_while_nothing_does() {
    let folder = Folder::new("watch");
    let mut receiver = Receiver::start(&folder, &["--watch"]);
    let mut lines = receiver.stderr().lines();
    let mut watched = move || loop {
        let line = lines.next().unwrap().unwrap();
        if line.starts_with("sessions ") {
            return line;
        }
    };
    let mut client = Knock::at(&receiver).open();
    client.hello("gw", "b", &[("a", 7)]);
    // Up to one that says that nothing happens any more, though the session lives on.
    let quiet = "sessions      1  attempts     0/s  refused     0/s  virtual queue 0.0 s";
    let mut seen = 0;
    while watched() != quiet {
        seen += 1;
        assert!(seen < 100, "it never becomes quiet");
    }
    thread::sleep(Duration::from_secs(3));
    // The next line is about the next thing.
    drop(client);
    assert!(watched().starts_with("sessions      0 "));
}
