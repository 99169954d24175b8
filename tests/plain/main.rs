//! The plain dialect against servers that nobody here wrote: Debian's `python3-websockets` and `node-ws`, alone and
//! behind nginx; the agent and the server are killed in mid-stream. Nothing that was promised is missing; copies are
//! allowed, and counted. What is not installed is not checked, loudly.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use backhaul::config::{Dialect, Heartbeat};
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::{DEADLINE, TempDir, free_port, mortal, not_run, wait_until};

/// A process that listens on a port of its own, through all its starts.
struct Server {
    command: Vec<String>,
    log: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// `None`, said loudly: it is not installed.
    fn new(dir: &Path, probe: &[&str], command: impl FnOnce(u16) -> Vec<String>) -> Option<Self> {
        let has = Command::new(probe[0]).args(&probe[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !has.is_ok_and(|status| status.success()) {
            not_run(&probe.join(" "), "it is not installed");
            return None;
        }
        let port = free_port();
        let mut server = Self { command: command(port), log: dir.join(format!("{port}.log")), port, child: None };
        server.start();
        Some(server)
    }

    fn python(dir: &Path, file: &Path, message_bytes_max: u32) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plain/server.py");
        Self::new(dir, &["/usr/bin/python3", "-c", "import websockets"], |port| {
            let (script, port, file, max) =
                (text(&script), port.to_string(), text(file), message_bytes_max.to_string());
            ["/usr/bin/python3", "-B", &script, &port, &file, &max].map(Into::into).into()
        })
    }

    fn node(dir: &Path, file: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plain/server.js");
        Self::new(dir, &["/usr/bin/env", "NODE_PATH=/usr/share/nodejs", "node", "-e", "require('ws')"], |port| {
            let (script, port, file) = (text(&script), port.to_string(), text(file));
            ["/usr/bin/env", "NODE_PATH=/usr/share/nodejs", "node", &script, &port, &file].map(Into::into).into()
        })
    }

    /// In front of another one.
    fn nginx(dir: &Path, behind: u16) -> Option<Self> {
        let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().find(|path| Path::new(path).exists());
        let nginx = nginx.unwrap_or("/usr/sbin/nginx");
        Self::new(dir, &[nginx, "-v"], |port| {
            let (dir, file) = (text(dir), dir.join("nginx.conf"));
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|part| format!("{part}_temp_path {dir}/nginx_{part};\n"))
                .concat();
            let server = format!(
                "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://127.0.0.1:{behind}; \
                 proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
                 proxy_set_header Connection upgrade; }} }}"
            );
            let config = format!(
                "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\n\
                 events {{}}\nhttp {{ access_log off;\n{temporary}{server} }}\n"
            );
            fs::write(&file, config).unwrap();
            [nginx, "-p", &dir, "-c", &text(&file)].map(Into::into).into()
        })
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = mortal(Path::new(&self.command[0]));
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        wait_until(DEADLINE, "the server listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ended_already = child.kill();
            let _ended_already = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the server's last words:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().into()
}

/// An agent, a producer, and the file that the server writes. Dropped in this order: the folder last.
struct Bench {
    agent: Agent,
    producer: Producer,
    file: PathBuf,
    put: u64,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new("plain");
        let file = dir.join("messages");
        fs::write(&file, "").unwrap();
        let config = agent::quick(&dir, "ws://127.0.0.1:1/");
        let agent = Agent::new(&dir, &config);
        let producer = Producer::new(agent.socket(), None);
        Self { agent, producer, file, put: 0, dir }
    }

    fn start(&mut self, port: u16) {
        let mut config = agent::quick(&self.dir, &format!("ws://127.0.0.1:{port}/"));
        config.upstream.dialect = Dialect::Plain;
        config.upstream.window_records = 64;
        config.upstream.handshake_timeout_ms = 5000;
        // Servers of a language with a slow start, on a machine with other work.
        config.upstream.heartbeat =
            Heartbeat { interval_ms: 300, timeout_ms: 2000, misses_max: 3, ..Heartbeat::default() };
        self.agent.configure(&config);
        self.agent.start();
        self.agent.wait_listening();
    }

    fn put(&mut self, batches: u64) {
        for _ in 0..batches {
            let records = (0..40).map(|n| {
                let n = self.put + n;
                let body = if n % 10 == 9 { vec![0xff, (n >> 8) as u8, n as u8] } else { format!("<{n:06}>").into() };
                ("t".to_owned(), body)
            });
            let records = records.collect();
            self.put += 40;
            assert_ne!(self.producer.put_all(records), Handed::NoAgent);
        }
    }

    /// What the server has, with how often.
    fn arrived(&self) -> BTreeMap<String, u32> {
        let mut arrived = BTreeMap::new();
        for line in fs::read_to_string(&self.file).unwrap().lines() {
            *arrived.entry(line.to_owned()).or_default() += 1;
        }
        arrived
    }

    /// A server that confirms before it writes is a moment behind.
    fn wait_arrived(&self, promised: &[String], case: &str) {
        wait_until(DEADLINE, format!("{case}: everything promised has arrived"), || {
            let arrived = self.arrived();
            promised.iter().all(|body| arrived.contains_key(body))
        });
    }

    /// Everything promised is there; text as text, bytes as bytes, and first copies in the order in which they were put.
    fn check(&mut self, case: &str) {
        self.agent.wait_drained();
        let promised: Vec<_> = self.producer.committed.iter().map(|record| line(&record.body)).collect();
        self.wait_arrived(&promised, case);
        let handed_in: u32 = self.arrived().values().sum();
        let known: Vec<_> =
            promised.iter().cloned().chain(self.producer.uncertain.iter().map(|body| line(body))).collect();
        assert!(self.arrived().keys().all(|line| known.contains(line)), "{case}: nothing else came");
        let first_copies = |lines: &str| {
            let mut seen = BTreeMap::new();
            for (at, line) in lines.lines().enumerate() {
                seen.entry(line.to_owned()).or_insert(at);
            }
            promised.iter().map(|body| seen[body]).collect::<Vec<_>>()
        };
        assert!(first_copies(&fs::read_to_string(&self.file).unwrap()).is_sorted(), "{case}: in order");
        eprintln!(
            "{case}: promised={} arrived={handed_in} copies={}",
            promised.len(),
            handed_in as usize - self.arrived().len()
        );
    }
}

/// A body, as the server writes it.
fn line(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("hex:{}", body.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// Puts while the agent is killed three times.
fn kill_agents(bench: &mut Bench, port: u16) {
    for _ in 0..3 {
        bench.put(6);
        bench.agent.kill9();
        bench.start(port);
    }
    bench.put(4);
}

#[test]
fn nothing_is_missing_at_a_python_server_however_often_the_agent_is_killed() {
    let mut bench = Bench::new();
    let Some(server) = Server::python(&bench.dir, &bench.file, 1 << 20) else { return };
    bench.start(server.port);
    bench.put(1);
    bench.agent.wait_up();
    kill_agents(&mut bench, server.port);
    bench.check("python");
}

/// A record that the server always answers by 1009 would hold up its lane for ever.
#[test]
fn a_record_that_the_server_takes_in_no_size_is_given_up_counted_and_named_and_the_others_arrive() {
    let mut bench = Bench::new();
    let Some(server) = Server::python(&bench.dir, &bench.file, 1000) else { return };
    bench.start(server.port);
    bench.put(1);
    assert_eq!(bench.producer.put_all(vec![("t".into(), vec![b'x'; 5000])]), Handed::Answered);
    bench.put(2);
    bench.agent.wait_status("a record is given up", |status| agent::sum_over_lanes(status, "rejected") == 1);
    bench.put(1);
    bench.producer.committed.retain(|record| record.body.len() < 1000);
    let promised: Vec<_> = bench.producer.committed.iter().map(|record| line(&record.body)).collect();
    assert_eq!(promised.len(), 160);
    bench.wait_arrived(&promised, "too big");
    let mut others = BTreeMap::new();
    wait_until(DEADLINE, "the event arrives", || {
        others = bench.arrived();
        others.retain(|line, _| !promised.contains(line));
        !others.is_empty()
    });
    assert!(others.len() == 1 && others.keys().all(|line| line.contains("record_rejected")), "{others:?}");
    let status = bench.agent.status().unwrap();
    assert_eq!(agent::sum_over_lanes(&status, "rejected"), 1);
    // At first among others, then three times alone.
    assert!(agent::failures(&status, "protocol") >= 3, "{status}");
    let log = bench.agent.log();
    let named: Vec<_> = log.lines().filter(|line| line.contains("record rejected lane=")).collect();
    assert!(matches!(named[..], [line] if line.contains(" seq=41 ") && line.contains("1009")), "{named:?}");
}

/// `ws` hands a message on before it looks at the ping behind it: a pong of it says that the message was written, so
/// that even the server may be killed.
#[test]
fn nothing_is_missing_at_a_node_server_whoever_is_killed() {
    let mut bench = Bench::new();
    let Some(mut server) = Server::node(&bench.dir, &bench.file) else { return };
    bench.start(server.port);
    bench.put(1);
    bench.agent.wait_up();
    kill_agents(&mut bench, server.port);
    for _ in 0..3 {
        bench.put(6);
        server.kill9();
        bench.put(2);
        server.start();
    }
    bench.put(1);
    bench.check("node");
}

#[test]
fn nothing_is_missing_behind_nginx_whoever_is_killed() {
    let mut bench = Bench::new();
    let Some(mut server) = Server::node(&bench.dir, &bench.file) else { return };
    let Some(mut nginx) = Server::nginx(&bench.dir, server.port) else { return };
    bench.start(nginx.port);
    bench.put(1);
    bench.agent.wait_up();
    kill_agents(&mut bench, nginx.port);
    bench.put(6);
    server.kill9();
    bench.put(2);
    // 502, while nobody is behind it.
    bench.agent.wait_status("a 502 of nginx", |status| {
        status["link"]["last_failure"]["detail"].as_str().is_some_and(|detail| detail.contains("502"))
    });
    server.start();
    bench.put(6);
    nginx.kill9();
    bench.put(2);
    nginx.start();
    bench.check("nginx");
}
