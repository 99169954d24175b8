//! `backhaul-receiver` as a process, and its store read as anyone may: by SQL.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row};
use rustix::process::{Pid, Signal, kill_process};

use super::producer::Producer;
use super::{DEADLINE, free_port, mortal_through, program, tail, wait_for, wait_until};

/// A row of `records`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub device: String,
    pub lane: String,
    pub epoch: u64,
    pub seq: u64,
    pub topic: String,
    pub body: Vec<u8>,
}

/// A row of `gaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGap {
    pub lane: String,
    pub epoch: u64,
    pub from: u64,
    pub to: u64,
    pub why: String,
    pub count: u64,
}

/// A receiver: its files, its port, and its process while there is one.
pub struct Receiver {
    host: String,
    port: u16,
    through: Vec<String>,
    store: PathBuf,
    out: PathBuf,
    log: PathBuf,
    tls: Option<(PathBuf, PathBuf)>,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Receiver {
    /// A receiver that is not yet started. Its files are in `dir`; it keeps its port through all starts.
    pub fn new(dir: &Path) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: free_port(),
            through: Vec::new(),
            store: dir.join("receiver.sqlite"),
            out: dir.join("receiver.out"),
            log: dir.join("receiver.log"),
            tls: None,
            flags: Vec::new(),
            child: None,
        }
    }

    /// From the next start on with this certificate and key.
    pub fn set_tls(&mut self, cert: &Path, key: &Path) {
        self.tls = Some((cert.into(), key.into()));
    }

    /// From the next start on with these flags, too.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// From the next start on it listens on this host and is run by this command.
    pub fn run_at(&mut self, host: &str, through: &[String]) {
        self.host = host.into();
        self.through = through.to_vec();
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Starts the process and does not wait for it.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "the receiver runs already");
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log can be written");
        let out = File::create(&self.out).expect("its output can be written");
        let mut command = mortal_through(&self.through, &program("backhaul-receiver"));
        command.arg("--listen").arg(self.address()).arg("--store").arg(&self.store);
        if let Some((cert, key)) = &self.tls {
            command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
        }
        command.args(&self.flags).stdin(Stdio::null()).stdout(out).stderr(log);
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{}: {error}", program("backhaul-receiver").display())));
    }

    /// Waits until it says that it listens.
    #[track_caller]
    pub fn wait_listening(&mut self) {
        wait_until(DEADLINE, "the receiver listens", || self.is_listening());
    }

    /// It has said that it listens.
    #[track_caller]
    pub fn is_listening(&mut self) -> bool {
        self.assert_runs();
        fs::read_to_string(&self.out).is_ok_and(|out| out.contains("listening on"))
    }

    /// SIGKILL, at whatever it is doing.
    ///
    /// # Panics
    /// When it had ended by itself before.
    pub fn kill9(&mut self) {
        self.assert_runs();
        let mut child = self.child.take().expect("asserted to run");
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// Sends it a signal that ends it, and waits for that.
    #[track_caller]
    pub fn leave(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        wait_for(DEADLINE, "the receiver leaves", || self.has_left())
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        self.assert_runs();
        let child = self.child.as_ref().expect("asserted to run");
        kill_process(Pid::from_child(child), signal).expect("our own child takes a signal");
    }

    /// How it ended, if it did; then it may be started again.
    pub fn has_left(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the receiver was started");
        let status = child.try_wait().expect("our own child can be waited for");
        self.child.take_if(|_| status.is_some());
        status
    }

    /// Connections that the one that left last had accepted, as it says itself.
    pub fn accepted(&self) -> Option<u64> {
        let log = fs::read_to_string(&self.log).ok()?;
        let (_, counts) = log.lines().rev().find_map(|line| line.split_once(" leaving "))?;
        counts.split(' ').find_map(|word| word.strip_prefix("attempts="))?.parse().ok()
    }

    /// # Panics
    /// When the process has ended by itself, or was never started.
    #[track_caller]
    pub fn assert_runs(&mut self) {
        let child = self.child.as_mut().expect("the receiver was started");
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            panic!("the receiver ended by itself: {status}");
        }
    }

    /// How many records it has stored; 0 before the first start.
    pub fn count(&self) -> u64 {
        self.query("SELECT count(*) FROM records", |row| unsigned(row, 0)).first().copied().unwrap_or(0)
    }

    /// Every record, in the order of its name: device, lane, epoch, seq.
    pub fn records(&self) -> Vec<Stored> {
        let sql = "SELECT device, lane, epoch, seq, topic, body FROM records ORDER BY device, lane, epoch, seq";
        self.query(sql, |row| {
            Ok(Stored {
                device: row.get(0)?,
                lane: row.get(1)?,
                epoch: unsigned(row, 2)?,
                seq: unsigned(row, 3)?,
                topic: row.get(4)?,
                body: row.get(5)?,
            })
        })
    }

    /// Every gap.
    pub fn gaps(&self) -> Vec<StoredGap> {
        let sql = "SELECT lane, epoch, \"from\", \"to\", why, count FROM gaps ORDER BY lane, epoch, \"from\"";
        self.query(sql, |row| {
            Ok(StoredGap {
                lane: row.get(0)?,
                epoch: unsigned(row, 1)?,
                from: unsigned(row, 2)?,
                to: unsigned(row, 3)?,
                why: row.get(4)?,
                count: unsigned(row, 5)?,
            })
        })
    }

    /// What is stored durably of each (lane, epoch).
    pub fn acked(&self) -> BTreeMap<(String, u64), u64> {
        let sql = "SELECT lane, epoch, acked FROM lanes";
        self.query(sql, |row| Ok(((row.get(0)?, unsigned(row, 1)?), unsigned(row, 2)?))).into_iter().collect()
    }

    /// True when the ack of every record that these producers were told is committed is durable.
    pub fn has_acked<'a>(&self, producers: impl IntoIterator<Item = &'a Producer>) -> bool {
        let mut last: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for record in producers.into_iter().flat_map(|producer| &producer.committed) {
            let seq = last.entry((&record.lane, record.epoch)).or_default();
            *seq = record.seq.max(*seq);
        }
        let acked = self.acked();
        let acked_of = |lane: &str, epoch| acked.get(&(lane.to_owned(), epoch)).copied().unwrap_or(0);
        last.into_iter().all(|((lane, epoch), seq)| acked_of(lane, epoch) >= seq)
    }

    /// Waits until [`Receiver::has_acked`].
    #[track_caller]
    pub fn wait_acked<'a>(&mut self, producers: impl IntoIterator<Item = &'a Producer> + Clone) {
        wait_until(DEADLINE, "every committed record is acked", || {
            self.assert_runs();
            self.has_acked(producers.clone())
        });
    }

    /// Reads from the store; nothing while there is none. Opened to write, though it never does: after a SIGKILL a
    /// reader has to roll a journal back before it can see anything.
    fn query<T>(&self, sql: &str, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let Ok(store) = Connection::open_with_flags(&self.store, flags) else { return Vec::new() };
        store.busy_timeout(Duration::from_secs(10)).expect("a timeout can be set");
        let Ok(mut statement) = store.prepare(sql) else { return Vec::new() };
        let rows = statement.query_map([], read).expect("the query runs");
        rows.map(|row| row.expect("the row is as documented")).collect()
    }
}

/// Numbers of the protocol are below 2^53: SQLite's signed integers hold them all.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ended_already = child.kill();
            let _ended_already = child.wait();
        }
        if thread::panicking() && self.log.exists() {
            eprintln!("the receiver's last words ({}):\n{}", self.log.display(), tail(&self.log));
        }
    }
}
