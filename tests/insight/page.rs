//! The page: what it answers and to whom, that nothing that happens there disturbs the agent, and that a real browser
//! draws it.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{DEADLINE, free_port, listen, not_run, poll_until, program, wait_for, wait_until};
use crate::{Bench, text};

fn with_page() -> Bench {
    Bench::new(|config| config.page.listen = format!("127.0.0.1:{}", free_port()))
}

impl Bench {
    /// Resident memory of the agent, in bytes, and its descriptors.
    fn weight(&self) -> (u64, usize) {
        let status = self.agent.status().unwrap();
        let descriptors = fs::read_dir(format!("/proc/{}/fd", status["agent"]["pid"])).unwrap().count();
        (status["memory"]["rss_bytes"].as_u64().unwrap(), descriptors)
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path)).unwrap()
    }
}

#[test]
fn the_page_shows_the_snapshot_a_history_what_happened_and_the_configuration_without_secrets() {
    let mut bench = Bench::new(|config| {
        config.page.listen = format!("127.0.0.1:{}", free_port());
        config.upstream.endpoints[0].url += "v1?key=geheim";
        config.upstream.endpoints[0].token_command = vec!["/bin/echo".into(), "geheim".into()];
    });
    bench.put(9);
    let socket = bench.agent.wait_drained();
    // A snapshot answers whoever asks within a tenth of a second.
    wait_until(DEADLINE, "the page knows of them", || bench.json("/status.json")["lanes"][0]["acked_total"] == 9);
    let shown = bench.json("/status.json");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((keys(&shown), keys(&shown["link"])), (keys(&socket), keys(&socket["link"])));
    let config = bench.get("/config.toml");
    assert!(config.contains("[upstream.reconnect]") && config.contains("/bin/echo"), "{config}");
    bench.receiver.kill9();
    let history = wait_for(DEADLINE, "the end of the session is noted", || {
        let history = bench.json("/history.json");
        let kinds: Vec<_> = history["notes"].as_array().unwrap().iter().map(|note| note["kind"].clone()).collect();
        (kinds.contains(&"up".into()) && kinds.contains(&"refused".into())).then_some(history)
    });
    let slots = history["slots"].as_array().unwrap();
    assert_eq!((history["slot_s"].as_u64(), slots.last().unwrap().as_array().unwrap().len()), (Some(300), 7));
    for path in ["/", "/page.js", "/page.css", "/status.json", "/history.json", "/config.toml", "/metrics"] {
        assert!(!bench.get(path).contains("geheim"), "{path}");
    }
}

#[test]
fn every_answer_carries_the_policy_and_what_is_no_question_or_asked_under_a_strange_name_is_refused() {
    let bench = with_page();
    let page = bench.page().to_owned();
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\nHost: {page}\r\n\r\n"), 200),
        ("GET / HTTP/1.1\r\nHost: localhost:9550\r\n\r\n".into(), 200),
        ("GET /metrics HTTP/1.0\r\n\r\n".into(), 200),
        ("GET /status.json HTTP/1.1\r\nHost: evil.example\r\n\r\n".into(), 421),
        (format!("GET /else HTTP/1.1\r\nHost: {page}\r\n\r\n"), 404),
        (format!("POST / HTTP/1.1\r\nHost: {page}\r\n\r\n"), 405),
        (format!("DELETE /config.toml HTTP/1.1\r\nHost: {page}\r\n\r\n"), 405),
        ("\u{16}\u{3}\u{1}\u{2} no HTTP\r\n\r\n".into(), 400),
        (format!("GET / HTTP/1.1\r\na: {}", "b".repeat(20_000)), 431),
    ] {
        let (head, _) = bench.ask(&request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert!(head.contains("Content-Security-Policy: default-src 'none'; script-src 'self';"), "{head}");
        assert!(head.contains("\r\nX-Content-Type-Options: nosniff\r\n"), "{head}");
    }
    let (head, body) = bench.ask(&format!("HEAD / HTTP/1.1\r\nHost: {page}\r\n\r\n"));
    assert!(
        head.starts_with("HTTP/1.1 200 ") && !head.contains("Content-Length: 0") && body.is_empty(),
        "{head}{body}"
    );
}

#[test]
fn every_address_at_once_is_refused_and_one_that_is_taken_is_waited_for() {
    let (port, taken) = listen();
    let mut bench = Bench::new(|config| config.page.listen = format!("127.0.0.1:{port}"));
    // Records flow without it.
    bench.put(3);
    bench.agent.wait_drained();
    assert!(bench.agent.log().contains("cannot listen, trying again"), "{}", bench.agent.log());
    drop(taken);
    wait_until(DEADLINE, "the page comes", || TcpStream::connect(bench.page()).is_ok());
    wait_until(DEADLINE, "it knows of them", || bench.json("/status.json")["lanes"][0]["put_total"] == 3);
    for (everywhere, complaint) in
        [("0.0.0.0:9550", "every address"), ("[::]:9550", "every address"), ("x", "not an address")]
    {
        let mut config = bench.config.clone();
        config.page.listen = everywhere.into();
        let file = bench.dir.join("refused.toml");
        crate::agent::write(&file, &config);
        let output = Command::new(program("backhaul")).arg("check").arg("--config").arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(78));
        assert!(text(output.stderr).contains(complaint), "{everywhere}");
    }
}

#[test]
fn who_loiters_or_throws_garbage_at_the_page_holds_up_nobody_and_is_gone_after_a_while() {
    let bench = with_page();
    wait_until(DEADLINE, "the page listens", || TcpStream::connect(bench.page()).is_ok());
    bench.get("/");
    let (_, before) = bench.weight();
    let mut loiterers = Vec::new();
    for _ in 0..10 {
        for index in 0..40 {
            let mut stream = TcpStream::connect(bench.page()).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            // It may be gone already: a newer one has taken its place.
            let _gone = match index % 4 {
                0 => stream.write_all(b"GET / HTTP/1.1\r\nHost: "),
                1 => stream.write_all(&[0xff; 70_000]),
                // It asks and never reads.
                2 => stream.write_all(b"GET /page.js HTTP/1.1\r\n\r\n"),
                // A port scan says nothing.
                _ => Ok(()),
            };
            loiterers.push(stream);
        }
        bench.put(1);
        wait_until(DEADLINE, "the page answers whoever asks", || bench.json("/status.json")["link"]["state"] == "up");
        let (_, now) = bench.weight();
        assert!(now <= before + 18, "{now} descriptors, {before} before");
    }
    // And all of them are gone after a while, by themselves.
    for mut stream in loiterers {
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
    wait_until(DEADLINE, "nothing of them is left", || bench.weight().1 <= before);
}

#[test]
fn a_page_that_is_left_open_and_ten_thousand_strangers_in_a_row_leave_nothing_behind() {
    /// A browser asks 49,000 times a day: `POLLS=100000` is two days.
    const POLLS: usize = 5_000;
    const STRANGERS: usize = 10_000;
    let mut bench = with_page();
    wait_until(DEADLINE, "the page listens", || TcpStream::connect(bench.page()).is_ok());
    let poll = |bench: &Bench, count: usize| {
        for nth in 0..count {
            bench.get(if nth % 10 == 0 { "/history.json" } else { "/status.json" });
        }
    };
    poll(&bench, 500);
    let (rss, descriptors) = bench.weight();
    let polls = std::env::var("POLLS").map_or(POLLS, |count| count.parse().unwrap());
    poll(&bench, polls);
    for _ in 0..STRANGERS {
        drop(TcpStream::connect(bench.page()).unwrap());
    }
    bench.get("/metrics");
    let (rss_now, _) = bench.weight();
    assert!(rss_now < rss + (2 << 20), "{rss_now} bytes resident, {rss} before");
    wait_until(DEADLINE, "their descriptors are closed", || bench.weight().1 <= descriptors);
    bench.put(1);
    bench.agent.wait_drained();
}

#[test]
fn a_real_browser_draws_the_page() {
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let Some(browser) = places.iter().map(Path::new).find(|path| path.exists()) else {
        return not_run("the page in a browser", "there is none (apt-get install chromium)");
    };
    let mut bench = with_page();
    bench.put(12);
    bench.agent.wait_drained();
    // The history is looked at every ten seconds.
    wait_until(DEADLINE, "the history knows of them", || {
        bench.json("/history.json")["slots"].as_array().unwrap().iter().any(|slot| slot[2] == 12)
    });
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", bench.dir.join("profile").display()))
        .args(["--virtual-time-budget=3000", "--dump-dom"])
        .arg(format!("http://{}/", bench.page()))
        .stdin(Stdio::null())
        .stdout(fs::File::create(bench.dir.join("dom")).unwrap())
        .stderr(fs::File::create(bench.dir.join("said")).unwrap());
    let mut child = command.spawn().unwrap();
    let left = poll_until(DEADLINE + Duration::from_secs(60), || child.try_wait().unwrap());
    if left.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let read = |name: &str| String::from_utf8_lossy(&fs::read(bench.dir.join(name)).unwrap()).into_owned();
    let (drawn, said) = (read("dom"), read("said"));
    assert!(left.is_some(), "the browser does not end\n{said}");
    for word in [
        "<title>rig: up</title>",
        "<p class=\"state good\"",
        "<td>telemetry</td><td>0</td>",
        "<dt>endpoint</dt><dd>ws://127.0.0.1:",
        "aria-label=\"the link in the last day\"",
        "<rect class=\"up\"",
        "<path class=\"curve\" d=\"M",
        "<b>up</b>",
    ] {
        assert!(drawn.contains(word), "no {word:?} in\n{drawn}\n{said}");
    }
    assert!(!said.contains("Content Security Policy"), "{said}");
}
