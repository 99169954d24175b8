//! The local socket of a real agent, and the commands that use it: what hostile clients send, what full lanes answer,
//! how the agent leaves. The upstream is away unless a test says otherwise, so that nothing leaves the outbox.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backhaul::config::{Commit, Config, Overflow};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, free_port, program, wait_until};

struct Bench {
    agent: Agent,
    config: Config,
    dir: TempDir,
}

impl Bench {
    /// A running agent whose upstream is away.
    fn new(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new("local");
        let mut config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
        adjust(&mut config);
        let mut agent = Agent::new(&dir, &config);
        agent.start();
        agent.wait_listening();
        Self { agent, config, dir }
    }

    fn connect(&self) -> Peer {
        Peer::new(self.agent.socket())
    }

    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let config = self.dir.join("backhaul.toml");
        let mut command = Command::new(program("backhaul"));
        command.args(args).arg("--config").arg(config).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // A command that leaves early does not read everything.
        let _broken_pipe = writer.join().unwrap();
        output
    }

    /// Runs `send`: exit code and what it said.
    fn send(&self, args: &[&str], input: &[u8]) -> (i32, String) {
        let output = self.run(&[&["send"], args].concat(), input);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// The bound on memory that `check` prints, the program itself included.
    fn memory_bytes_max(&self) -> u64 {
        let output = String::from_utf8(self.run(&["check"], b"").stdout).unwrap();
        let memory = output.split_once("# memory").unwrap().1;
        let together = memory.lines().find(|line| line.contains("together")).unwrap();
        together.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    fn lane(&self, name: &str) -> Value {
        let status = self.agent.status().unwrap();
        status["lanes"].as_array().unwrap().iter().find(|lane| lane["name"] == name).unwrap().clone()
    }
}

/// A connection that says and hears lines.
struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn new(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { lines: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// The error code of the next line.
    fn hear_error(&mut self) -> String {
        let answer = self.hear();
        answer["error"]["code"].as_str().unwrap_or_else(|| panic!("no error: {answer}")).to_owned()
    }

    fn ended(&mut self) -> bool {
        let mut rest = Vec::new();
        self.lines.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }
}

/// Keeps handing in records until told to stop; panics if one is refused or the connection breaks.
fn well_behaved(socket: &Path, stop: &Arc<AtomicBool>) -> thread::JoinHandle<Producer> {
    let mut producer = Producer::new(socket, None);
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let batch = (count..count + 10).map(|nth| ("t".into(), format!("good {nth}").into_bytes())).collect();
            assert_eq!(producer.put_all(batch), Handed::Answered);
            count += 10;
        }
        producer
    })
}

#[test]
fn hostile_clients_hear_a_clear_error_and_harm_nobody() {
    let mut bench = Bench::new(|config| config.local.clients_max = 40);
    let bound = bench.memory_bytes_max();
    let stop = Arc::new(AtomicBool::new(false));
    let good = well_behaved(bench.agent.socket(), &stop);

    // Garbage of every kind, a line each; the connection lives on.
    let mut rng = fastrand::Rng::with_seed(1);
    let mut peer = bench.connect();
    for _ in 0..2000 {
        let mut line: Vec<u8> = (0..rng.usize(0..300)).map(|_| rng.u8(..)).collect();
        line.retain(|byte| *byte != b'\n');
        line.push(b'\n');
        peer.say(&line);
        assert_eq!(peer.hear_error(), "bad_request", "seed 1: {line:?}");
    }
    peer.say("{\"status\":{\"id\":1}}\n");
    assert_eq!(peer.hear()["status"]["id"], 1);

    // Half a line and gone, killed in the middle of one.
    for _ in 0..100 {
        let mut peer = bench.connect();
        peer.say("{\"put\":{\"text\":\"never whole");
    }
    // 10 MiB without an end: one error, then the end.
    let mut peer = bench.connect();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..10 {
        peer.say(&piece);
    }
    peer.say("\n{\"put\":{\"text\":\"behind it\"}}\n");
    assert_eq!(peer.hear_error(), "too_large");
    assert!(peer.ended());

    // Many long lines at once that never end: whoever comes too late hears so; nobody else notices.
    let long = vec![b'x'; 90_000];
    let mut holders: Vec<_> = (0..30).map(|_| bench.connect()).collect();
    holders.iter_mut().for_each(|peer| peer.say(&long));

    // A flood that reads no answer is not read, and can be killed in the middle.
    let flood = UnixStream::connect(bench.agent.socket()).unwrap();
    flood.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let lines = "{\"put\":{\"text\":\"flood\",\"topic\":\"flood\"}}\n{\"status\":{}}\nnonsense\n".repeat(1000);
    let mut sent = 0;
    let stuck = loop {
        match (&flood).write(lines.as_bytes()) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
        assert!(sent < 64 << 20, "it is read for ever");
    };
    assert_eq!(stuck.kind(), ErrorKind::WouldBlock);

    // 500 more connections: those beyond the limit hear so and are closed.
    let mut refused = 0;
    let mut taken = Vec::new();
    for _ in 0..500 {
        let mut peer = bench.connect();
        // Refused before it has said anything, or taken and asked to speak.
        let cut = peer.stream.write_all(b"{\"status\":{}}\n").is_err();
        if cut || peer.hear().get("error").is_some() {
            refused += 1;
        } else {
            taken.push(peer);
        }
    }
    assert!(refused >= 460 && taken.len() <= 40, "{refused} refused, {} taken", taken.len());
    let full = bench.connect().hear_error();
    assert_eq!(full, "busy");
    drop((taken, holders, flood));

    wait_until(DEADLINE, "everyone else is served again", || bench.agent.status().is_some());
    stop.store(true, Ordering::Relaxed);
    let producer = good.join().unwrap();
    assert!(producer.refused.is_empty() && producer.uncertain.is_empty());
    assert!(producer.committed.len() >= 20, "{}", producer.committed.len());
    let ascending = producer.committed.windows(2).all(|pair| pair[0].seq < pair[1].seq);
    assert!(ascending, "in the order of handing in");
    let status = bench.agent.wait_status("it shows itself", |_| true);
    let (rss, queues) = (&status["memory"]["rss_bytes"], &status["memory"]["queues_bytes"]);
    assert!(rss.as_u64().unwrap() <= bound, "{rss} bytes resident, {bound} printed");
    assert!(queues.as_u64().unwrap() <= status["memory"]["queues_bytes_max"].as_u64().unwrap());
    bench.agent.assert_runs();
}

#[test]
fn a_flood_whose_answers_are_read_is_taken_whole_and_in_order() {
    const LINES: u64 = 200_000;
    let bench = Bench::new(|config| config.lanes[0].bytes_max = 64 << 20);
    let peer = bench.connect();
    let Peer { mut stream, mut lines } = peer;
    let writer = thread::spawn(move || {
        let mut text = String::new();
        for nth in 0..LINES {
            text.push_str(&format!("{{\"put\":{{\"text\":\"{nth}\",\"id\":{nth}}}}}\n"));
            if text.len() > 1 << 16 || nth == LINES - 1 {
                stream.write_all(text.as_bytes()).unwrap();
                text.clear();
            }
        }
    });
    let mut last = 0;
    let mut line = String::new();
    for nth in 0..LINES {
        line.clear();
        lines.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        let committed = &answer["committed"];
        assert_eq!(committed["id"], nth, "{line}");
        let seq = committed["seq"].as_u64().unwrap();
        assert!(seq > last);
        last = seq;
    }
    writer.join().unwrap();
    assert_eq!(last, LINES);
    let rss = bench.agent.status().unwrap()["memory"]["rss_bytes"].as_u64().unwrap();
    assert!(rss <= bench.memory_bytes_max(), "{rss} bytes resident");
}

#[test]
fn says_accepted_committed_and_delivered_each_when_it_is_true() {
    let dir = TempDir::new("local");
    let mut receiver = Receiver::new(&dir);
    let bench = Bench::new(|config| {
        config.upstream.endpoints[0].url = format!("ws://{}/", receiver.address());
        let mut group = agent::lane("group");
        (group.commit, group.commit_ms) = (Commit::Group, 600_000);
        config.lanes.push(group);
    });
    let mut peer = bench.connect();
    peer.say(concat!(
        "{\"put\":{\"lane\":\"group\",\"text\":\"a\",\"wait\":\"delivered\",\"id\":\"later\"}}\n",
        "{\"put\":{\"lane\":\"group\",\"text\":\"b\"}}\n",
        "{\"put\":{\"lane\":\"group\",\"text\":\"c\",\"wait\":\"committed\"}}\n",
        "{\"put\":{\"text\":\"d\"}}\n",
        "{\"put\":{\"text\":\"e\",\"wait\":\"delivered\"}}\n",
        "{\"put\":{\"text\":\"f\",\"lane\":\"nowhere\",\"id\":6}}\n",
    ));
    assert_eq!(peer.hear()["accepted"]["seq"], 2);
    assert_eq!(peer.hear()["committed"]["seq"], 3);
    assert_eq!(peer.hear()["committed"]["lane"], "telemetry");
    assert_eq!(peer.hear_error(), "bad_request", "delivered without an id");
    let answer = peer.hear();
    assert_eq!((&answer["error"]["code"], &answer["error"]["id"]), (&"unknown_lane".into(), &6.into()));
    // Nobody upstream yet.
    assert_eq!(bench.lane("group")["acked"], 0);
    receiver.start();
    let delivered = peer.hear();
    assert_eq!((&delivered["delivered"]["id"], &delivered["delivered"]["seq"]), (&"later".into(), &1.into()));
    assert!(bench.lane("group")["acked"].as_u64() >= Some(1));
}

#[test]
fn a_full_lane_answers_full_where_it_is_told_to_and_drops_the_oldest_elsewhere() {
    let bench = Bench::new(|config| {
        config.lanes[0].bytes_max = 2 * 65_536;
        let mut strict = agent::lane("strict");
        (strict.overflow, strict.bytes_max) = (Overflow::Reject, 2 * 65_536);
        config.lanes.push(strict);
    });
    let body = "x".repeat(1000);
    let mut strict = Producer::new(bench.agent.socket(), Some("strict"));
    let mut loose = Producer::new(bench.agent.socket(), None);
    for nth in 0..20 {
        let batch = || (0..20).map(|n| ("t".into(), format!("{nth} {n} {body}").into_bytes())).collect();
        assert_eq!(strict.put_all(batch()), Handed::Answered);
        assert_eq!(loose.put_all(batch()), Handed::Answered);
    }
    assert!(strict.committed.len() > 30 && strict.refused.len() > 100, "{}", strict.committed.len());
    assert!(strict.refused.iter().all(|(_, code)| code == "full"));
    assert_eq!(bench.lane("strict")["depth"].as_u64().unwrap(), strict.committed.len() as u64);
    assert_eq!((loose.committed.len(), loose.refused.len()), (400, 0));
    let lane = bench.lane("telemetry");
    let (depth, dropped) = (lane["depth"].as_u64().unwrap(), lane["overflowed"].as_u64().unwrap());
    assert!(dropped > 100 && lane["bytes"].as_u64().unwrap() <= 2 * 65_536, "{lane}");
    assert_eq!(depth + dropped, 400);

    let (code, said) = bench.send(&["-l", "strict", "--timeout", "0.3"], format!("{body}\n").as_bytes());
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("0 committed, 1 not: full"), "{said}");
}

#[test]
fn a_second_agent_on_the_same_outbox_is_refused_and_nothing_is_lost() {
    let mut bench = Bench::new(|_| ());
    let mut producer = Producer::new(bench.agent.socket(), None);
    assert_eq!(producer.put("t", "first"), Handed::Answered);
    let mut config = bench.config.clone();
    config.local.socket = bench.dir.join("other.sock");
    agent::write(&bench.dir.join("other.toml"), &config);
    let mut second = Command::new(program("backhaul"));
    let output = second.arg("run").arg("--config").arg(bench.dir.join("other.toml")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("another agent owns the outbox") && said.contains("outbox"), "{said}");
    // On another outbox, but on the same socket.
    config.outbox.dir = bench.dir.join("outbox2");
    config.local.socket.clone_from(&bench.config.local.socket);
    agent::write(&bench.dir.join("other.toml"), &config);
    let output = second.output().unwrap();
    assert_eq!(output.status.code(), Some(73), "{}", String::from_utf8_lossy(&output.stderr));
    bench.agent.assert_runs();
    assert_eq!(producer.put("t", "second"), Handed::Answered);
    assert_eq!(bench.lane("telemetry")["depth"], 2);
}

#[test]
fn leaves_within_two_seconds_with_everything_accepted_on_flash_whatever_the_network_does() {
    // It takes connections and never says a word.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(|config| {
        config.upstream.endpoints[0].url = format!("ws://{}/", mute.local_addr().unwrap());
        config.upstream.handshake_timeout_ms = 60_000;
        (config.lanes[0].commit, config.lanes[0].commit_ms) = (Commit::Group, 600_000);
    });
    bench.agent.wait_status("it is upgrading", |status| agent::state(status) == "upgrading");
    let mut peer = bench.connect();
    for _ in 0..100 {
        peer.say("{\"put\":{\"text\":\"only accepted\"}}\n");
    }
    for _ in 0..100 {
        assert!(peer.hear().get("accepted").is_some());
    }
    // One that does not read its answers must not hold it up.
    let idle = bench.connect();
    (&idle.stream).write_all("{\"status\":{}}\n".repeat(50).as_bytes()).unwrap();
    let begin = Instant::now();
    let status = bench.agent.term(Duration::from_secs(10)).expect("it leaves");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(status.success(), "{status}");
    assert!(!bench.agent.socket().exists());
    bench.agent.start();
    bench.agent.wait_listening();
    assert_eq!(bench.agent.wait_status("it is open", |status| agent::depth(status) > 0)["lanes"][0]["depth"], 100);
}

#[test]
fn a_bad_configuration_leaves_the_running_one_and_a_good_one_takes_over() {
    let bench = Bench::new(|_| ());
    let pid = || bench.agent.status().unwrap()["agent"]["pid"].as_i64().unwrap();
    let first = pid();
    let hang_up = || kill_process(Pid::from_raw(first as i32).unwrap(), Signal::HUP).unwrap();
    let file = bench.dir.join("backhaul.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    assert_eq!(bench.send(&[], b"before\n"), (0, String::new()));

    std::fs::write(&file, format!("{good}\nspeling = 1\n")).unwrap();
    hang_up();
    wait_until(DEADLINE, "it says so", || bench.agent.log().contains("the running one stays"));
    assert_eq!(bench.lane("telemetry")["depth"], 1);

    let mut config = bench.config.clone();
    config.lanes.push(agent::lane("alarm"));
    agent::write(&file, &config);
    hang_up();
    wait_until(DEADLINE, "the new lane is there", || {
        bench.agent.status().is_some_and(|status| status["lanes"].as_array().unwrap().len() == 2)
    });
    assert_eq!(bench.send(&["-l", "alarm"], b"after\n"), (0, String::new()));
    assert_eq!((pid(), bench.lane("telemetry")["depth"].clone()), (first, 1.into()));
}

#[test]
fn send_and_status_say_by_their_exit_code_what_became_of_it() {
    let mut bench = Bench::new(|_| ());
    let many: String = (0..5000).map(|nth| format!("line {nth}\n")).collect();
    assert_eq!(bench.send(&["-t", "a/b"], many.as_bytes()), (0, String::new()));
    assert_eq!(bench.send(&[], b""), (0, String::new()));
    assert_eq!(bench.send(&["--wait", "accepted"], b"no end of line"), (0, String::new()));
    assert_eq!(bench.send(&["--whole"], &[0xff; 10_000]), (0, String::new()));
    assert_eq!(bench.lane("telemetry")["depth"], 5002);

    let large = [b"fits\n", vec![b'x'; 20_000].as_slice(), b"\nfits, too\n"].concat();
    let (code, said) = bench.send(&[], &large);
    assert_eq!(code, 65, "{said}");
    assert!(said.contains("record 2:") && said.contains("2 committed, 1 refused"), "{said}");
    // Too long for the agent to look into.
    let (code, said) = bench.send(&["--whole"], &vec![b'x'; 1 << 20]);
    assert_eq!(code, 65, "{said}");
    let (code, said) = bench.send(&["-l", "nowhere"], b"x\n");
    assert_eq!(code, 64, "{said}");
    let (code, said) = bench.send(&["--wait", "delivered", "--timeout", "0.2"], b"1\n2\n");
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("0 delivered, 2 not: no answer in time"), "{said}");
    assert_eq!(bench.lane("telemetry")["depth"], 5006);

    let status = bench.run(&["status"], b"");
    let screen = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && screen.contains("5006") && screen.contains("telemetry"), "{screen}");
    let json: Value = serde_json::from_slice(&bench.run(&["status", "--json"], b"").stdout).unwrap();
    for part in ["agent", "link", "lanes", "flash", "wire", "delay", "commands", "memory"] {
        assert!(json.get(part).is_some(), "{part} is missing");
    }
    assert_eq!(bench.run(&["status", "--check"], b"").status.code(), Some(2), "the link is not up");

    bench.agent.term(DEADLINE).expect("it leaves");
    assert_eq!(bench.run(&["status", "--check"], b"").status.code(), Some(3));
    assert_eq!(bench.run(&["status"], b"").status.code(), Some(69));
    let (code, said) = bench.send(&["--timeout", "0.2"], b"x\n");
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("no agent at"), "{said}");
}

#[test]
fn send_outlives_an_agent_that_is_killed_under_it() {
    let mut bench = Bench::new(|_| ());
    let mut child = Command::new(program("backhaul"))
        .args(["send", "--socket"])
        .arg(bench.agent.socket())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let depth = |bench: &Bench| bench.agent.status().map_or(0, |status| agent::depth(&status));
    for nth in 0..3 {
        for n in 0..1000 {
            writeln!(stdin, "record {nth} {n}").unwrap();
        }
        wait_until(DEADLINE, "all of it is on flash", || depth(&bench) >= (nth + 1) * 1000);
        bench.agent.kill9();
        bench.agent.start();
    }
    writeln!(stdin, "the last").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(depth(&bench) >= 3001, "{}", depth(&bench));
}
