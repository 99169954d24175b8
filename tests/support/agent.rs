//! `backhaul run` as a process: configured, started, asked for its status, killed.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use backhaul::config::{Config, Device, Endpoint, Heartbeat, Lane, Reconnect};
use backhaul::record::LaneName;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{DEADLINE, mortal_through, poll_until, program, tail, wait_for};

/// A configuration whose timings are milliseconds, so that a test sees many lives of the link in a second.
pub fn quick(dir: &Path, url: &str) -> Config {
    let mut config =
        Config { device: Device { id: "rig".into() }, lanes: vec![lane("telemetry")], ..Config::default() };
    config.upstream.endpoints = vec![Endpoint { url: url.into(), ..Endpoint::default() }];
    config.upstream.handshake_timeout_ms = 1000;
    config.upstream.ack_timeout_ms = 3000;
    config.upstream.reconnect = Reconnect {
        start_delay_ms_max: 0,
        spread_ms: 100,
        backoff_ms_min: 50,
        backoff_ms_max: 200,
        slow_ms_min: 100,
        slow_ms_max: 300,
        stable_after_ms: 500,
        ..Reconnect::default()
    };
    config.upstream.heartbeat = Heartbeat { interval_ms: 200, timeout_ms: 200, misses_max: 2, ..Heartbeat::default() };
    config.outbox.dir = dir.join("outbox");
    config.outbox.segment_bytes = 65_536;
    config.local.record_bytes_max = 16_384;
    config.local.socket = dir.join("agent.sock");
    config
}

/// Writes a configuration file.
pub fn write(file: &Path, config: &Config) {
    let text = toml::to_string(config).expect("a configuration is a TOML table");
    fs::write(file, text).expect("the configuration can be written");
}

/// A lane of 4 MiB that otherwise is as the defaults have it.
pub fn lane(name: &str) -> Lane {
    Lane { name: LaneName::try_new(name).expect("a lane's name"), bytes_max: 4 << 20, ..Lane::default() }
}

/// An agent: its files, and its process while there is one.
pub struct Agent {
    config_file: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    through: Vec<String>,
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Agent {
    /// An agent that is configured and not yet started. Its files are in `dir`.
    pub fn new(dir: &Path, config: &Config) -> Self {
        let config_file = dir.join("backhaul.toml");
        let (socket, log) = (config.local.socket.clone(), dir.join("agent.log"));
        let mut agent = Self { config_file, socket, log, through: Vec::new(), env: Vec::new(), child: None };
        agent.configure(config);
        agent
    }

    /// Writes its configuration; read at the next start.
    pub fn configure(&mut self, config: &Config) {
        self.socket.clone_from(&config.local.socket);
        write(&self.config_file, config);
    }

    /// From the next start on run by this command.
    pub fn run_through(&mut self, command: &[String]) {
        self.through = command.to_vec();
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.into(), value.into()));
    }

    /// SIGHUP.
    pub fn hup(&mut self) {
        self.assert_runs();
        let child = self.child.as_ref().expect("asserted to run");
        kill_process(Pid::from_child(child), Signal::HUP).expect("our own child takes a signal");
    }

    /// Its local socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts the process and does not wait for it. What it logs is appended to one file.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log can be written");
        writeln!(log, "--- start").expect("the log can be written");
        let mut command = mortal_through(&self.through, &program("backhaul"));
        // What the machine says of proxies is not part of any test.
        for name in ["https_proxy", "HTTPS_PROXY", "http_proxy", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.arg("run").arg("--config").arg(&self.config_file);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program("backhaul").display())));
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

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.assert_runs();
        let child = self.child.as_ref().expect("asserted to run");
        kill_process(Pid::from_child(child), signal).expect("our own child takes a signal");
    }

    /// SIGTERM; how it left, `None` when it had not within `deadline` (and was killed).
    pub fn term(&mut self, deadline: Duration) -> Option<ExitStatus> {
        self.assert_runs();
        let mut child = self.child.take().expect("asserted to run");
        kill_process(Pid::from_child(&child), Signal::TERM).expect("our own child takes a signal");
        let status = poll_until(deadline, || child.try_wait().expect("our own child can be waited for"));
        if status.is_none() {
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
        }
        status
    }

    /// True while there is a process that has not ended.
    pub fn runs(&mut self) -> bool {
        let alive = |child: &mut Child| child.try_wait().expect("our own child can be waited for").is_none();
        self.child.as_mut().is_some_and(alive)
    }

    /// How it left by itself; `None` while it has not.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.as_mut()?.try_wait().expect("our own child can be waited for")?.code()
    }

    /// # Panics
    /// When the process has ended by itself, or was never started.
    #[track_caller]
    pub fn assert_runs(&mut self) {
        let child = self.child.as_mut().expect("the agent was started");
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            panic!("the agent ended by itself: {status}");
        }
    }

    /// The snapshot as the local socket gives it; `None` while nobody answers.
    pub fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(b"{\"status\":{}}\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        let answer: Value = serde_json::from_str(&line).ok()?;
        answer.get("status").cloned()
    }

    /// Waits until the status is as wanted, and returns it.
    ///
    /// # Panics
    /// After [`DEADLINE`], or when the process ends.
    #[track_caller]
    pub fn wait_status(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = poll_until(DEADLINE, || {
            self.assert_runs();
            last = self.status()?;
            wanted(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("{what}: not within {DEADLINE:?}; status is {last:#}"))
    }

    /// Waits until the link is up.
    #[track_caller]
    pub fn wait_up(&mut self) -> Value {
        self.wait_status("the link is up", |status| state(status) == "up")
    }

    /// Waits until the link has failed `times` with this class since the process started.
    #[track_caller]
    pub fn wait_failures(&mut self, class: &str, times: u64) -> Value {
        let what = format!("the link has failed {times} times with class {class}");
        self.wait_status(&what, |status| failures(status, class) >= times)
    }

    /// Waits until nothing is left to be acked.
    #[track_caller]
    pub fn wait_drained(&mut self) -> Value {
        self.wait_status("the outbox is drained", |status| state(status) == "up" && depth(status) == 0)
    }

    /// Waits until its local socket takes connections.
    #[track_caller]
    pub fn wait_listening(&mut self) {
        wait_for(DEADLINE, "the local socket answers", || {
            self.assert_runs();
            UnixStream::connect(&self.socket).ok()
        });
    }

    /// Bytes of its log, all starts together.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ended_already = child.kill();
            let _ended_already = child.wait();
        }
        if thread::panicking() && File::open(&self.log).is_ok() {
            eprintln!("the agent's last words ({}):\n{}", self.log.display(), tail(&self.log));
        }
    }
}

/// The link's state in a status.
pub fn state(status: &Value) -> &str {
    status["link"]["state"].as_str().unwrap_or("?")
}

/// Sessions greeted since the process started.
pub fn sessions(status: &Value) -> u64 {
    status["link"]["sessions"].as_u64().unwrap_or(0)
}

/// Failures of a class since the process started.
pub fn failures(status: &Value, class: &str) -> u64 {
    status["link"]["failures"][class].as_u64().unwrap_or(0)
}

/// Records not yet acked, all lanes together.
pub fn depth(status: &Value) -> u64 {
    sum_over_lanes(status, "depth")
}

/// A counter of the lanes, added up.
pub fn sum_over_lanes(status: &Value, counter: &str) -> u64 {
    let lanes = status["lanes"].as_array().map_or(&[][..], Vec::as_slice);
    lanes.iter().filter_map(|lane| lane[counter].as_u64()).sum()
}
