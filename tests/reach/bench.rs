//! An agent, an upstream that keeps the protocol, and a producer; what stands between them is each test's.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use backhaul::config::{Config, Endpoint, Heartbeat};
use serde_json::Value;

use crate::support::agent::{self, Agent};
use crate::support::fault_server::FaultServer;
use crate::support::producer::{Handed, Producer};
use crate::support::{DEADLINE, TempDir, wait_until};

/// Dropped in this order: the folder last.
pub struct Bench {
    pub agent: Agent,
    pub producer: Producer,
    pub server: FaultServer,
    pub config: Config,
    pub dir: TempDir,
}

impl Bench {
    /// Configured with one endpoint, nothing started.
    pub fn new(endpoint: impl FnOnce(&FaultServer, &Path) -> Endpoint) -> Self {
        let dir = TempDir::new("reach");
        let server = FaultServer::new();
        let mut config = agent::quick(&dir, "");
        config.log.level = "trace".into();
        config.upstream.handshake_timeout_ms = 5000;
        // A machine that stands still for a moment ends no session.
        config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 5000, ..config.upstream.heartbeat };
        config.upstream.endpoints = vec![endpoint(&server, &dir)];
        let agent = Agent::new(&dir, &config);
        let producer = Producer::new(agent.socket(), None);
        Self { agent, producer, server, config, dir }
    }

    /// Configures the agent anew; for its next start.
    pub fn adjust(&mut self, adjust: impl FnOnce(&mut Config)) {
        adjust(&mut self.config);
        self.agent.configure(&self.config);
    }

    /// Refusals wait for longer than any test: what happens meanwhile has another reason than time.
    pub fn wait_long_after_refusals(&mut self) {
        self.adjust(|config| {
            config.upstream.reconnect.slow_ms_min = 3_600_000;
            config.upstream.reconnect.slow_ms_max = 3_600_000;
        });
    }

    pub fn start(&mut self) {
        self.agent.start();
        self.agent.wait_listening();
    }

    /// Commits a few records, and waits until the upstream has stored each of them.
    #[track_caller]
    pub fn assert_delivers(&mut self) {
        for _ in 0..5 {
            let number = self.producer.handed_in();
            assert_eq!(self.producer.put("reach", format!("record {number}")), Handed::Answered);
        }
        for record in &self.producer.committed {
            let name = (record.lane.clone(), record.epoch, record.seq);
            wait_until(DEADLINE, format!("{record:?} is stored"), || {
                self.agent.assert_runs();
                self.server.books(|books| books.records.get(&name) == Some(&record.body))
            });
        }
        self.server.books(|books| assert_eq!(books.breaches, [""; 0]));
    }

    /// Waits until it has failed with this class, and returns what the status says of it.
    #[track_caller]
    pub fn wait_failed(&mut self, class: &str) -> String {
        let status = self.agent.wait_status(&format!("it has failed with class {class}"), |status| {
            status["link"]["last_failure"]["class"] == class
        });
        detail(&status)
    }

    /// # Panics
    /// Where one of these words is in the log or in the status.
    #[track_caller]
    pub fn assert_secret(&self, secrets: &[&str]) {
        let status = self.agent.status().unwrap_or_default().to_string();
        let log = self.agent.log();
        assert!(!log.is_empty() && !status.is_empty(), "there is something to look at");
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} is in the log");
            assert!(!status.contains(secret), "{secret} is in the status");
        }
    }
}

pub fn detail(status: &Value) -> String {
    status["link"]["last_failure"]["detail"].as_str().unwrap_or_default().to_owned()
}

/// Writes a secret as an installer does: a new file, moved to its place.
pub fn replace(file: &Path, content: &str) {
    let new = file.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, file).unwrap();
}

/// A file in `dir` with a secret in it.
pub fn secret(dir: &Path, name: &str, content: &str) -> Option<PathBuf> {
    let file = dir.join(name);
    replace(&file, content);
    Some(file)
}

pub fn endpoint(url: &str) -> Endpoint {
    Endpoint { url: url.into(), ..Endpoint::default() }
}
