//! A gateway and its server with commands between them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use backhaul::config::Config;
use backhaul::record::Body;
use rusqlite::Connection;
use serde_json::Value;

use crate::support::agent::{self, Agent};
use crate::support::receiver::Receiver;
use crate::support::{DEADLINE, TempDir, program, wait_for, wait_until};

pub struct Bench {
    pub agent: Agent,
    pub receiver: Receiver,
    pub config: Config,
    pub dir: TempDir,
}

pub fn text(text: &str) -> Body {
    Body::Text(text.into())
}

impl Bench {
    /// Both run, and the link is up. Commands wait for a program as long as any test takes, unless it says otherwise.
    pub fn new(adjust: impl FnOnce(&mut Config)) -> Self {
        let mut bench = Self::offline(adjust).online();
        bench.agent.wait_up();
        bench
    }

    /// Neither runs, and there is no store.
    pub fn offline(adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new("commands");
        let receiver = Receiver::new(&dir);
        let mut config = agent::quick(&dir, &format!("ws://{}/v1", receiver.address()));
        config.upstream.command_wait_ms = 600_000;
        adjust(&mut config);
        let agent = Agent::new(&dir, &config);
        let bench = Self { agent, receiver, config, dir };
        fs::create_dir_all(&bench.config.outbox.dir).unwrap();
        bench
    }

    pub fn online(mut self) -> Self {
        self.receiver.start();
        self.receiver.wait_listening();
        self.agent.start();
        self.agent.wait_listening();
        self
    }

    fn store(&self) -> PathBuf {
        self.dir.join("receiver.sqlite")
    }

    /// Runs `backhaul-receiver command`: exit code and what it printed.
    pub fn command(&self, words: &[&str]) -> (i32, String) {
        self.command_with(words, b"")
    }

    /// The same with this as its standard input.
    pub fn command_with(&self, words: &[&str], input: &[u8]) -> (i32, String) {
        let mut command = Command::new(program("backhaul-receiver"));
        command.arg("command").arg("--store").arg(self.store()).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
        let writer = thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // One that refuses does not read.
        let _broken_pipe = writer.join().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }

    /// Puts so many commands for the gateway at once, as `backhaul-receiver command` would one by one. Where there is
    /// no store yet it is made as a receiver makes it.
    pub fn put(&self, count: u64, topic: &str) {
        if !self.store().exists() {
            drop(backhaul::receiver::store::Store::try_new(&self.store(), 1).unwrap());
        }
        let mut store = self.sqlite();
        let transaction = store.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        transaction
            .execute(
                "INSERT INTO command_cursors VALUES ('rig', ?1, 0) ON CONFLICT DO UPDATE SET last = last + ?1",
                [count as i64],
            )
            .unwrap();
        let last: i64 = transaction
            .query_row("SELECT last FROM command_cursors WHERE device = 'rig'", [], |row| row.get(0))
            .unwrap();
        {
            let mut insert =
                transaction.prepare("INSERT INTO commands VALUES ('rig', ?1, ?2, CAST(?1 AS TEXT), 0, NULL)").unwrap();
            for seq in last - count as i64 + 1..=last {
                insert.execute(rusqlite::params![seq, topic]).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    fn sqlite(&self) -> Connection {
        let store = Connection::open(self.store()).unwrap();
        store.busy_timeout(DEADLINE).unwrap();
        store
    }

    /// Up to where the server knows that all is done.
    pub fn done(&self) -> u64 {
        done(&self.sqlite())
    }

    #[track_caller]
    pub fn wait_done(&self, seq: u64) {
        let store = self.sqlite();
        wait_until(4 * DEADLINE, format!("commands up to {seq} are done"), || done(&store) >= seq);
        let open = "SELECT count(*) FROM commands WHERE device = 'rig' AND seq <= ?1 AND done IS NULL";
        let open: i64 = store.query_row(open, [seq as i64], |row| row.get(0)).unwrap();
        assert_eq!((done(&store), open), (seq, 0));
    }

    /// Waits until the server has an event of this kind.
    #[track_caller]
    pub fn wait_event(&self, kind: &str) -> Value {
        wait_for(DEADLINE, format!("an event {kind}"), || {
            let records = self.receiver.records().into_iter().filter(|record| record.topic == "$event");
            let mut events = records.filter_map(|record| serde_json::from_slice::<Value>(&record.body).ok());
            events.find(|event| event["event"] == kind)
        })
    }

    pub fn copy_store(&self) -> PathBuf {
        let copy = self.dir.join("copy.sqlite");
        self.sqlite().execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
        copy
    }

    /// With no receiver running.
    pub fn restore_store(&self, copy: &Path) {
        self.remove_store();
        fs::copy(copy, self.store()).unwrap();
        let store = self.sqlite();
        store.pragma_update(None, "journal_mode", "WAL").unwrap();
    }

    pub fn remove_store(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let _missing = fs::remove_file(self.dir.join(format!("receiver.sqlite{suffix}")));
        }
    }

    pub fn subscribe(&self, filter: &str) -> Peer {
        let mut peer = wait_for(DEADLINE, "the socket answers", || Peer::connect(self.agent.socket()));
        peer.subscribe(filter);
        peer
    }
}

pub fn done(store: &Connection) -> u64 {
    let done = "SELECT coalesce(max(done), 0) FROM command_cursors WHERE device = 'rig'";
    store.query_row(done, [], |row| row.get::<_, i64>(0)).unwrap() as u64
}

/// A program on the gateway.
pub struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    pub fn connect(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Some(Self { lines: BufReader::new(stream.try_clone().unwrap()), stream })
    }

    pub fn set_timeout(&self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
    }

    /// Waits until it is subscribed.
    pub fn subscribe(&mut self, filter: &str) {
        self.say(&format!(r#"{{"subscribe":{{"topic":"{filter}","id":0}}}}"#));
        assert_eq!(self.line()["subscribed"]["id"], 0);
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.stream, "{line}").unwrap();
    }

    /// The next line; null where the agent is gone or nothing comes.
    pub fn try_line(&mut self) -> Value {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(_) => serde_json::from_str(&line).unwrap_or(Value::Null),
            Err(_) => Value::Null,
        }
    }

    #[track_caller]
    pub fn line(&mut self) -> Value {
        let line = self.try_line();
        assert_ne!(line, Value::Null, "the agent says something");
        line
    }

    /// The next command: number, topic and body.
    #[track_caller]
    pub fn hear(&mut self) -> (u64, String, Body) {
        let line = self.line();
        let command = &line["command"];
        let body = match (command["text"].as_str(), command["base64"].as_str()) {
            (Some(text), None) => Body::Text(text.into()),
            (None, Some(base64)) => Body::Bytes(data_encoding::BASE64.decode(base64.as_bytes()).unwrap()),
            (_, _) => panic!("no command: {line}"),
        };
        (command["seq"].as_u64().unwrap(), command["topic"].as_str().unwrap().into(), body)
    }

    pub fn done(&mut self, seq: u64) {
        self.say(&format!(r#"{{"done":{{"seq":{seq}}}}}"#));
    }

    /// False: the agent is gone.
    pub fn try_say(&mut self, line: &str) -> bool {
        writeln!(self.stream, "{line}").is_ok()
    }

    /// The same where the agent may be gone.
    pub fn try_done(&mut self, seq: u64) -> bool {
        writeln!(self.stream, r#"{{"done":{{"seq":{seq}}}}}"#).is_ok()
    }
}
