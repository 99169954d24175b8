//! The configuration's values: one struct a section of `/etc/backhaul/backhaul.toml`, every default with its
//! unit and source. Pure data; reading files is [`load`]'s business. A module is given its own part, never the whole.

pub mod bounds;
pub mod device;
pub mod file;
pub mod group;
pub mod load;
pub mod overlay;
pub mod proxy;
mod read;
pub mod secret;
mod section;
pub mod target;
pub mod tree;

use std::path::PathBuf;

use log::LevelFilter;
use serde::{Deserialize, Serialize};

use crate::record::LaneName;

/// Everything the file can say.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this gateway is.
    pub device: Device,
    /// The one connection.
    pub upstream: Upstream,
    /// Records on flash.
    pub outbox: Outbox,
    /// Independent FIFOs; none configured: one `telemetry` lane.
    #[serde(rename = "lane")]
    pub lanes: Vec<Lane>,
    /// The unix socket.
    pub local: Local,
    /// What to try where nothing else helps, in order of `after_s`.
    #[serde(rename = "remedy")]
    pub remedies: Vec<Remedy>,
    /// Programs that are given commands.
    #[serde(rename = "handler")]
    pub handlers: Vec<Handler>,
    /// The page for a person at the gateway.
    pub page: Page,
    /// Metrics as records.
    pub metrics: Metrics,
    /// Logging.
    pub log: Log,
}

impl Config {
    /// With the lane that is there when none is configured, and with exactly one default lane: the first that says
    /// so, else the first.
    #[must_use]
    pub fn completed(mut self) -> Self {
        if self.lanes.is_empty() {
            self.lanes.push(Lane::default());
        }
        let default = self.lanes.iter().position(|lane| lane.default).unwrap_or(0);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.default = index == default;
        }
        self
    }
}

/// `[device]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// `file:/etc/machine-id`, `hostname`, `mac:eth0`, or the name itself.
    pub id: String,
}

impl Default for Device {
    fn default() -> Self {
        Self { id: "file:/etc/machine-id".into() }
    }
}

/// What is said over the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// `backhaul.v1`: exactly once.
    #[default]
    Backhaul,
    /// Each record one message, to any WebSocket server: at least once.
    Plain,
}

/// An encoding of `backhaul.v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// `backhaul.v1.postcard`, binary frames.
    Postcard,
    /// `backhaul.v1.json`, text frames.
    Json,
}

impl Encoding {
    /// The token in `Sec-WebSocket-Protocol` (RFC 6455 § 4.1).
    pub const fn token(self) -> &'static str {
        match self {
            Self::Postcard => "backhaul.v1.postcard",
            Self::Json => "backhaul.v1.json",
        }
    }
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upstream {
    /// What is said over the WebSocket.
    pub dialect: Dialect,
    /// Offered in this order.
    pub encodings: Vec<Encoding>,
    /// Records unacknowledged on a connection, at most.
    pub window_records: u32,
    /// Bytes (topic and body) unacknowledged on a connection, at most.
    pub window_bytes: u32,
    /// Bytes (topic and body) in one `records` message, at most.
    pub batch_bytes_max: u32,
    /// From the start of an attempt to `welcome`.
    pub handshake_timeout_ms: u64,
    /// Longest wait for an ack with records in flight.
    pub ack_timeout_ms: u64,
    /// How long a command waits for a subscriber.
    pub command_wait_ms: u64,
    /// Longest session, 0: unlimited.
    pub session_age_s_max: u64,
    /// Cap on what the server may ask us to wait.
    pub server_wait_ms_max: u64,
    /// Attempts without a session before the agent leaves with exit code 69; 0: never.
    pub attempts_max: u32,
    /// Lane of the agent's own events (topic `$event`); empty: the default lane.
    pub events_lane: String,
    /// In order of preference.
    #[serde(rename = "endpoint")]
    pub endpoints: Vec<Endpoint>,
    /// TOML file of `[[endpoint]]` tables that stand in for those above, read again before each attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints_file: Option<PathBuf>,
    /// Hosts reached without the proxy: a name (and what ends with `.name`), an address, a network (`10.0.0.0/8`), `*`.
    pub no_proxy: Vec<String>,
    /// How long a command may take that prints a credential.
    pub credential_timeout_ms: u64,
    /// `[upstream.reconnect]`
    pub reconnect: Reconnect,
    /// `[upstream.heartbeat]`
    pub heartbeat: Heartbeat,
    /// `[upstream.pace]`
    pub pace: Pace,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            dialect: Dialect::Backhaul,
            encodings: vec![Encoding::Postcard, Encoding::Json],
            // Sixteen full batches in flight keep a 100 ms path busy without a queue that an outage must repeat.
            window_records: 4096,
            window_bytes: 1 << 20,
            // One batch is a third of a second on a 1.5 Mbit/s uplink.
            batch_bytes_max: 65_536,
            // firezone dials for 15 s and cellular name resolution alone takes up to 10 s.
            handshake_timeout_ms: 30_000,
            // A receiver acks within a second of storing (protocol rule 4); the rest is the path.
            ack_timeout_ms: 30_000,
            command_wait_ms: 60_000,
            session_age_s_max: 0,
            // ecs-agent parks a refused instance for one hour, the longest wait among the peers.
            server_wait_ms_max: 3_600_000,
            attempts_max: 0,
            events_lane: String::new(),
            endpoints: Vec::new(),
            endpoints_file: None,
            no_proxy: Vec::new(),
            // As long as a pong: a token service is one round trip away.
            credential_timeout_ms: 10_000,
            reconnect: Reconnect::default(),
            heartbeat: Heartbeat::default(),
            pace: Pace::default(),
        }
    }
}

/// `[[upstream.endpoint]]`
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoint {
    /// `wss://host[:port]/path`; `ws://` only to loopback unless `insecure`.
    pub url: String,
    /// Permits `ws://` to another machine.
    pub insecure: bool,
    /// PEM file of the CA to trust instead of the system's roots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// File with the bearer token, readable by its owner (and group) alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Program and arguments that print the bearer token.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub token_command: Vec<String>,
    /// File with `user:password`, readable by its owner (and group) alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_file: Option<PathBuf>,
    /// Program and arguments that print `user:password`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub basic_command: Vec<String>,
    /// PEM file of the client's certificate and those between it and its CA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key (PKCS#8), readable by its owner (and group) alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Network interface to leave by (SO_BINDTODEVICE); empty: as the routes say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// `http://host:port` of a proxy that knows CONNECT; `none`: none; empty: as `https_proxy`, `http_proxy` and
    /// `all_proxy` say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub proxy: String,
    /// File with the proxy's `user:password`, readable by its owner (and group) alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_basic_file: Option<PathBuf>,
}

/// `[upstream.reconnect]`. Of the settings of a sweep over 100,000 simulated devices, spread and backoff are those
/// that bring a fleet back within 1.2 of the bound whatever the length of the outage and without any help from the
/// server, with at most four attempts of each device (`docs/herd.md`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconnect {
    /// Upper end of the uniform delay after boot.
    pub start_delay_ms_max: u64,
    /// Upper end of the uniform delay of the first attempt after a remote close.
    pub spread_ms: u64,
    /// First backoff, the ceiling of its draw.
    pub backoff_ms_min: u64,
    /// Largest backoff, the ceiling of its draw.
    pub backoff_ms_max: u64,
    /// The slow class (refused, wrong place, clone): first backoff.
    pub slow_ms_min: u64,
    /// The slow class: largest backoff.
    pub slow_ms_max: u64,
    /// A session is proved stable when it has lived so long and had an ack or nothing to send.
    pub stable_after_ms: u64,
    /// Failures in a row at an endpoint before the next one is tried.
    pub failover_failures: u32,
    /// While a session at another endpoint works: how often a preferred one is looked at; doubled up to `slow_ms_max`
    /// each time that going back to it failed.
    pub failback_ms: u64,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            start_delay_ms_max: 30_000,
            spread_ms: 35_000,
            backoff_ms_min: 35_000,
            backoff_ms_max: 40_000,
            slow_ms_min: 300_000,
            slow_ms_max: 3_600_000,
            // ecs-agent: 1 min; reconnecting-websocket#200: 5 s is not enough.
            stable_after_ms: 60_000,
            // libocpp: NetworkProfileConnectionAttempts 3.
            failover_failures: 3,
            failback_ms: 300_000,
        }
    }
}

/// `[upstream.pace]`: ceilings of what is sent, each 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pace {
    /// Records a second, all lanes together.
    pub records_per_s_max: u64,
    /// Bytes (topic and body) a second, all lanes together.
    pub bytes_per_s_max: u64,
    /// Bytes on the wire in 24 hours, in both directions; beyond it only lanes that are `cap_exempt` send.
    pub bytes_per_day_max: u64,
}

/// `[upstream.heartbeat]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heartbeat {
    /// Between the last sign of life and the next ping. 60 s: netdata and mosquitto; below the 2 min that
    /// RFC 4787 § 4.3 demands of NAT bindings.
    pub interval_ms: u64,
    /// From a ping that left our buffer to its pong.
    pub timeout_ms: u64,
    /// Pings missed in a row before the link is dead (firezone: more than 3 unanswered).
    pub misses_max: u32,
    /// The interval grows while the path bears it, and is halved at a loss.
    pub adaptive: bool,
    /// `adaptive`: longest interval.
    pub interval_ms_max: u64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        // 15 min: the least that NATs of mobile carriers were seen to keep an established connection for in Android's
        // push service; RFC 5382 § 5 asks for 2 h.
        Self { interval_ms: 60_000, timeout_ms: 10_000, misses_max: 3, adaptive: false, interval_ms_max: 900_000 }
    }
}

/// `[outbox]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outbox {
    /// Made when missing.
    pub dir: PathBuf,
    /// Size of one segment file; from 16,384 (four pages).
    pub segment_bytes: u32,
    /// Left free on a shared partition.
    pub headroom_bytes_min: u64,
    /// Bound of the dead letters' files on flash; 0: records that are refused for ever are only counted.
    pub dead_letters_bytes_max: u64,
    /// Bytes that may go to flash in 24 hours, 0: any. Commits wait up to 10 s so that it holds.
    pub budget_bytes_per_day: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        // headroom: memfaultd's min_headroom_kib
        Self {
            dir: "/var/lib/backhaul".into(),
            segment_bytes: 262_144,
            headroom_bytes_min: 10 << 20,
            dead_letters_bytes_max: 256 << 10,
            budget_bytes_per_day: 0,
        }
    }
}

/// What happens when a lane is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The oldest records go, counted and reported.
    #[default]
    DropOldest,
    /// The producer hears `full`.
    Reject,
}

/// When records reach flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Commit {
    /// Before the producer hears `committed`; concurrent producers share one sync.
    #[default]
    Sync,
    /// Within `commit_ms` or `commit_bytes`; the producer hears `accepted`.
    Group,
    /// Only what is not acked within `commit_ms`, or exceeds `commit_bytes`; the producer hears `accepted`.
    RamFirst,
}

/// `[[lane]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lane {
    /// Its name.
    pub name: LaneName,
    /// Takes records that name no lane; the first lane if none says so.
    pub default: bool,
    /// Its share of a link that is too narrow for all lanes, against the weights of the others.
    pub weight: u32,
    /// Bound of its files on flash, in whole segments, at least two.
    pub bytes_max: u64,
    /// When it is full.
    pub overflow: Overflow,
    /// Time to live, in seconds, of records whose put names none; 0: for ever.
    pub ttl_s: u32,
    /// When records reach flash.
    pub commit: Commit,
    /// `group`: longest time in RAM (VictoriaMetrics loses up to 5 s).
    pub commit_ms: u64,
    /// `group`: most bytes in RAM.
    pub commit_bytes: u32,
    /// Not held back by `bytes_per_day_max`.
    pub cap_exempt: bool,
    /// Above 0: after an outage live records go ahead of the backlog, with this share of the lane's link; below 1.
    pub live_share: f64,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            name: LaneName::try_new("telemetry").expect("a literal lane name"),
            default: false,
            weight: 1,
            bytes_max: 16 << 20,
            overflow: Overflow::DropOldest,
            ttl_s: 0,
            commit: Commit::Sync,
            commit_ms: 5_000,
            commit_bytes: 65_536,
            cap_exempt: false,
            live_share: 0.0,
        }
    }
}

/// `[[remedy]]`: a program to run where the link stays away, as a modem's reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Remedy {
    /// Seconds without a session.
    pub after_s: u64,
    /// Program (an absolute path) and arguments.
    pub exec: Vec<String>,
    /// It is killed after so many seconds.
    pub timeout_s: u64,
    /// In one outage it is run again after so many seconds; 0: once an outage.
    pub again_after_s: u64,
}

impl Default for Remedy {
    fn default() -> Self {
        Self { after_s: 0, exec: Vec::new(), timeout_s: 60, again_after_s: 86_400 }
    }
}

/// `[[handler]]`: a program that is given commands, one at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// Commands on these topics; `+` and `#` as MQTT has them.
    pub topic: String,
    /// Program (an absolute path) and arguments; the command's body is its standard input.
    pub exec: Vec<String>,
    /// It is killed after so long.
    pub timeout_ms: u64,
    /// Topic of the record that says how it ended and what it printed; `{seq}` in it is the command's number. Empty:
    /// an event without the output.
    pub reply_topic: String,
    /// That record's lane; empty: the default lane.
    pub reply_lane: String,
    /// What it prints beyond is cut.
    pub output_bytes_max: u32,
}

impl Default for Handler {
    fn default() -> Self {
        Self {
            topic: String::new(),
            exec: Vec::new(),
            // As long as a command waits for a program that listens.
            timeout_ms: 60_000,
            reply_topic: String::new(),
            reply_lane: String::new(),
            output_bytes_max: 8192,
        }
    }
}

/// `[local]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Local {
    /// The unix socket's path; the backoff state lies beside it. A stale socket is replaced.
    pub socket: PathBuf,
    /// Its mode, octal.
    pub mode: String,
    /// Its group, empty: the process's.
    pub group: String,
    /// Connections at once.
    pub clients_max: u32,
    /// A record's topic and body together.
    pub record_bytes_max: u32,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            socket: "/run/backhaul/backhaul.sock".into(),
            mode: "0660".into(),
            group: String::new(),
            clients_max: 32,
            record_bytes_max: 65_536,
        }
    }
}

impl Local {
    /// The mode's permission bits; `None` where it is not octal or more than permissions.
    pub fn mode_bits(&self) -> Option<u32> {
        let digits = self.mode.bytes().all(|byte| byte.is_ascii_digit());
        u32::from_str_radix(&self.mode, 8).ok().filter(|mode| digits && *mode <= 0o777)
    }
}

/// `[page]`
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Page {
    /// Address and port that it is served at, with metrics at `/metrics`; empty: nowhere.
    pub listen: String,
    /// Names that it may be asked for by, beside addresses, `localhost` and the machine's own name.
    pub hosts: Vec<String>,
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Seconds between two records with metrics; 0: none.
    pub every_s: u64,
    /// Their lane; empty: the default lane.
    pub lane: String,
    /// Their topic.
    pub topic: String,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { every_s: 0, lane: String::new(), topic: "$metrics".into() }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into() }
    }
}

impl Log {
    /// The levels by name.
    pub const LEVELS: [(&str, LevelFilter); 5] = [
        ("error", LevelFilter::Error),
        ("warn", LevelFilter::Warn),
        ("info", LevelFilter::Info),
        ("debug", LevelFilter::Debug),
        ("trace", LevelFilter::Trace),
    ];

    /// The level; `None` where it is none of [`Log::LEVELS`].
    pub fn level_filter(&self) -> Option<LevelFilter> {
        Self::LEVELS.iter().find(|(word, _)| *word == self.level).map(|(_, level)| *level)
    }
}
