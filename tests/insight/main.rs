//! What people and machines are shown of a real agent: `status` on a terminal and in a pipe, the page, metrics.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod metrics;
mod page;
mod screen;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use backhaul::config::Config;
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, program, wait_for};

/// An agent and its receiver.
struct Bench {
    agent: Agent,
    receiver: Receiver,
    config: Config,
    dir: TempDir,
}

impl Bench {
    /// Both run, and the link is up.
    fn new(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new("insight");
        let mut receiver = Receiver::new(&dir);
        receiver.start();
        receiver.wait_listening();
        let mut config = agent::quick(&dir, &format!("ws://{}/", receiver.address()));
        adjust(&mut config);
        let mut agent = Agent::new(&dir, &config);
        agent.start();
        agent.wait_up();
        Self { agent, receiver, config, dir }
    }

    /// Hands in so many records.
    fn put(&self, count: usize) {
        let mut producer = Producer::new(self.agent.socket(), None);
        let batch = (0..count).map(|nth| ("t".into(), format!("record {nth}").into_bytes())).collect();
        assert_eq!(producer.put_all(batch), Handed::Answered);
    }

    /// `backhaul status` with these options.
    fn status(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("backhaul"));
        command.arg("status").args(args).arg("--socket").arg(self.agent.socket());
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Where the page is.
    fn page(&self) -> &str {
        &self.config.page.listen
    }

    /// The answer to this request, sent at once: head and body.
    fn ask(&self, request: &str) -> (String, String) {
        let mut stream = wait_for(DEADLINE, "the page listens", || TcpStream::connect(self.page()).ok());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
        (head.into(), body.into())
    }

    /// What the page has at this path.
    fn get(&self, path: &str) -> String {
        let (head, body) = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.page()));
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        body
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}
