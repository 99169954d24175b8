//! The snapshot that `status`, metrics and the page show. Plain data: each thread keeps its own part up to date.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::insight::figures::Histograms;
use crate::insight::words::{self, WaitCause};
use crate::link::Class;
use crate::time::Instant;

/// Everything, one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub agent: Agent,
    /// The upstream link.
    pub link: Link,
    /// One entry a lane.
    pub lanes: Vec<Lane>,
    /// Wear.
    pub flash: Flash,
    /// Bytes on the wire.
    pub wire: Wire,
    /// How long things took.
    pub delay: Delay,
    /// Downlink.
    pub commands: Commands,
    /// Memory and its bound.
    pub memory: Memory,
    /// How long things took, in buckets.
    #[serde(default)]
    pub histograms: Histograms,
}

/// The process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Of this program.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Since the process started.
    pub uptime_s: u64,
    /// Who this gateway is.
    pub device: String,
    /// Random per start of the process; stands in `hello`.
    pub boot: String,
    /// `current` or `fallback`.
    pub config: String,
    /// How long ago a record was given up; null while none was since the process started.
    pub loss_s_ago: Option<u64>,
}

/// The upstream link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Its name, see [`LinkView::state`].
    pub state: String,
    /// How long it has been in this state.
    pub since_s: u64,
    /// URL of the endpoint in use or tried last.
    pub endpoint: Option<String>,
    /// The session's name as the server gave it, while it is up.
    pub session: Option<String>,
    /// Sessions greeted since the process started.
    pub sessions: u64,
    /// Attempts since the process started.
    pub attempts: u64,
    /// Failures by class since the process started.
    pub failures: BTreeMap<String, u64>,
    /// Sessions per attempt, 0 to 1.
    pub success_ratio: f64,
    /// Why the last attempt or session ended.
    pub last_failure: Option<LastFailure>,
    /// From now; null while no attempt is planned.
    pub next_attempt_ms: Option<u64>,
    /// What that wait is for, in words.
    #[serde(default)]
    pub next_attempt_why: Option<String>,
    /// The wait that was drawn last.
    pub backoff_ms: u64,
    /// Smoothed round trip of the pings.
    pub rtt_ms: Option<f64>,
    /// A pong is late: the session may be dead.
    pub suspect: bool,
    /// How good the path is.
    pub quality: Quality,
    /// The way that the connection takes; null without one.
    #[serde(default)]
    pub path: Option<Path>,
    /// `set` or `unset`.
    pub clock: String,
    /// Of the certificates in use (ours, and the server's) the one that ends first; null without TLS.
    #[serde(default)]
    pub certificate: Option<Certificate>,
    /// All endpoints, in order of preference.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// The way that a connection takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Address and port that it goes to: the endpoint's, or the proxy's.
    pub address: String,
    /// Address here that it leaves from.
    pub local: String,
    /// The interface that it leaves by; empty where that is not known.
    pub interface: String,
    /// Host and port of the proxy on the way; null without one.
    pub proxy: Option<String>,
}

/// One of the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its URL.
    pub url: String,
    /// `closed`: it is tried as it comes; `open`: it has failed, others are tried first; `half_open`: it has one attempt
    /// to show that it works again.
    pub breaker: String,
    /// How long it is still open; null while it is not.
    pub open_ms: Option<u64>,
}

/// The breaker of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerView {
    /// `closed`, `open` or `half_open`.
    pub state: &'static str,
    /// How long it is open.
    pub until: Option<Instant>,
}

/// A certificate's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// `client` or `server`.
    pub of: String,
    /// Its last second, as RFC 3339 writes it.
    pub not_after: String,
    /// The same in Unix seconds.
    #[serde(default)]
    pub not_after_s: u64,
    /// Whole days until then, negative once it is over; null while the clock is not set.
    pub days_left: Option<i64>,
    /// It is time to renew it.
    pub ends_soon: bool,
}

/// The same, as the uplink knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateView {
    /// `client` or `server`.
    pub of: &'static str,
    /// As RFC 3339 writes it.
    pub not_after: String,
    /// Unix seconds.
    pub not_after_s: u64,
    /// From so many seconds before the end on it is time to renew it.
    pub notice_s: u64,
}

impl CertificateView {
    /// Relative to this wall time.
    pub fn status(&self, wall_ms: Option<u64>) -> Certificate {
        const DAY_S: i64 = 86_400;
        let left_s =
            wall_ms.map(|ms| i64::try_from(self.not_after_s).unwrap_or(i64::MAX).saturating_sub_unsigned(ms / 1000));
        Certificate {
            of: self.of.into(),
            not_after: self.not_after.clone(),
            not_after_s: self.not_after_s,
            days_left: left_s.map(|s| s.div_euclid(DAY_S)),
            ends_soon: left_s.is_some_and(|s| s < i64::try_from(self.notice_s).unwrap_or(i64::MAX)),
        }
    }
}

/// How good the path of the session is; null where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Smoothed round trip of the pings (RFC 6298 § 2).
    pub rtt_ms: Option<f64>,
    /// Its variation.
    pub rttvar_ms: Option<f64>,
    /// Share of the last 32 pings whose pong was late or never came, 0 to 1.
    pub ping_loss: Option<f64>,
    /// Bytes of records a second that it delivers when it is busy, about.
    pub bytes_per_s: Option<u64>,
}

/// Why the last attempt or session ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastFailure {
    /// Its class, one word.
    pub class: String,
    /// The same in words.
    #[serde(default)]
    pub why: String,
    /// What was seen, one line.
    pub detail: String,
    /// How long ago.
    pub s_ago: u64,
}

/// One epoch of a lane (the newest; older ones are added up into its counters).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// Its newest epoch.
    pub epoch: u64,
    /// Records not yet acked.
    pub depth: u64,
    /// Bytes of its files on flash.
    pub bytes: u64,
    /// Bound of its files on flash.
    pub bytes_max: u64,
    /// Age of the oldest record not yet acked; null when there is none or its age is not known.
    pub oldest_s: Option<u64>,
    /// Lowest number not yet acked.
    pub first: u64,
    /// The number that the next record gets.
    pub next: u64,
    /// Highest number on flash.
    pub committed: u64,
    /// Highest number acked.
    pub acked: u64,
    /// Records sent, repeats included.
    pub sent: u64,
    /// Of these, repeats.
    pub resent: u64,
    /// Records dropped because the lane was full.
    pub overflowed: u64,
    /// Records dropped because their time to live was over.
    pub expired: u64,
    /// Records that could not be read back.
    pub corrupt: u64,
    /// Records that the upstream refused for ever.
    pub rejected: u64,
    /// Numbers skipped behind a torn tail.
    pub torn: u64,
    /// Records taken since the process started.
    #[serde(default)]
    pub put_total: u64,
    /// Records acked since the process started.
    #[serde(default)]
    pub acked_total: u64,
    /// Records taken a second, about, of late.
    #[serde(default)]
    pub put_per_s: f64,
    /// Records acked a second, about, of late.
    #[serde(default)]
    pub acked_per_s: f64,
}

impl Lane {
    /// Records that will never come.
    pub const fn lost(&self) -> u64 {
        self.overflowed + self.expired + self.corrupt + self.rejected
    }
}

/// Wear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flash {
    /// All bytes handed to the file system since the process started.
    pub bytes_written: u64,
    /// Of these, topic and body.
    pub bytes_payload: u64,
    /// Calls of fdatasync and fsync.
    pub syncs: u64,
    /// Median of the recent syncs.
    pub sync_ms_p50: f64,
    /// Longest sync since the process started.
    pub sync_ms_max: f64,
    /// `ok` or `degraded`.
    pub state: String,
    /// What the device says of its wear, and an estimate; null where it says nothing.
    pub lifetime: Option<Lifetime>,
    /// What the bytes were written for.
    pub by_purpose: FlashPurposes,
    /// What the syncs were for.
    pub syncs_by_purpose: FlashPurposes,
    /// `[outbox] budget_bytes_per_day`; null where there is none.
    pub budget: Option<FlashBudget>,
}

/// Bytes, or syncs, to flash by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlashPurposes {
    /// Batches of records.
    pub records: u64,
    /// Batches that only carry acks.
    pub acks: u64,
    /// Batches that only reserve numbers.
    pub reserve: u64,
    /// Segments written with zeros ahead of need.
    pub segments: u64,
    /// Anything else.
    pub other: u64,
}

impl FlashPurposes {
    /// All together.
    pub const fn sum(&self) -> u64 {
        self.records + self.acks + self.reserve + self.segments + self.other
    }
}

/// What the outbox's flash says of its wear, and an estimate of how long it lasts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// Its name in sysfs.
    pub device: String,
    /// `emmc`, `sd` or `ubi`.
    pub kind: String,
    /// The whole device.
    pub capacity_bytes: u64,
    /// Share of its life that is used, the upper end of what it says; null where it does not say.
    pub used_percent: Option<u8>,
    /// eMMC: state of its spare blocks: `normal`, `warning` (80 % are used) or `urgent` (90 %).
    pub reserve: Option<String>,
    /// UBI: erases of the block that has most.
    pub erases_max: Option<u64>,
    /// UBI: blocks that are bad.
    pub bad_blocks: Option<u64>,
    /// Assumed: erases that a block bears.
    pub cycles: u32,
    /// Written by us, as observed; null before an hour of it.
    pub bytes_per_day: Option<u64>,
    /// How long it lasts if nobody else writes: one digit, rounded down, at most 100; null before an hour.
    pub years: Option<u32>,
}

impl Lifetime {
    /// Assumed: bytes of flash that the device programs for one that is written. A page of 4 KiB costs it one of 16.
    pub const WRITE_AMPLIFICATION: u64 = 4;
    /// What is seen in less says nothing of a day.
    pub const OBSERVED_MIN: Duration = Duration::from_secs(3600);
    /// Beyond, other things fail first.
    pub const YEARS_MAX: u32 = 100;

    /// From what was written in the time observed: capacity × cycles / write amplification is what a new device
    /// takes, as data sheets rate it in terabytes written, and the used share is gone.
    pub fn estimate(&mut self, bytes_written: u64, observed: Duration) {
        if observed < Self::OBSERVED_MIN {
            return;
        }
        let per_day = u128::from(bytes_written) * 86_400 / u128::from(observed.as_secs());
        let unused = u128::from(100_u8.saturating_sub(self.used_percent.unwrap_or(0)));
        let whole = u128::from(self.capacity_bytes) * u128::from(self.cycles) / u128::from(Self::WRITE_AMPLIFICATION);
        let left = whole * unused / 100;
        let years = left.checked_div(per_day * 365).unwrap_or(u128::MAX);
        let years = u32::try_from(years).unwrap_or(u32::MAX).min(Self::YEARS_MAX);
        self.bytes_per_day = u64::try_from(per_day).ok();
        self.years = Some(if years < 10 { years } else { years / 10 * 10 });
    }
}

/// The flash budget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlashBudget {
    /// As configured.
    pub bytes_per_day: u64,
    /// What may be written at once before the budget is exceeded.
    pub bytes_left: u64,
    /// How long a commit is held back now.
    pub window_ms: u64,
    /// `ok`, `widened` (commits wait) or `exceeded` (they wait as long as they may, and it is not enough).
    pub state: String,
}

/// Bytes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// All bytes sent.
    pub bytes_sent: u64,
    /// All bytes received.
    pub bytes_received: u64,
    /// What they were for.
    pub by_purpose: WirePurposes,
    /// Both directions, in the last 24 hours (to the hour), restarts of the process included.
    pub day_bytes: u64,
    /// `bytes_per_day_max` is spent: only lanes that are `cap_exempt` send records.
    pub capped: bool,
}

/// Bytes on the wire by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WirePurposes {
    /// Batches of records and gaps.
    pub records: Bytes,
    /// Acks and refusals.
    pub acks: Bytes,
    /// Commands and what became of them.
    pub commands: Bytes,
    /// Pings and pongs.
    pub heartbeat: Bytes,
    /// Upgrade and greeting.
    pub handshake: Bytes,
}

/// Both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Out.
    pub sent: u64,
    /// In.
    pub received: u64,
}

/// How long things took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Delay {
    /// From a put to its record being on flash.
    pub put_to_committed_ms: Percentiles,
    /// From a put to its ack from upstream.
    pub put_to_delivered_ms: Percentiles,
}

/// Of the recent past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median; null before the first sample.
    pub p50: Option<f64>,
    /// 99 of 100 took no longer.
    pub p99: Option<f64>,
}

/// Downlink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Commands that came.
    pub received: u64,
    /// Commands that a local program was given.
    pub delivered: u64,
    /// Commands reported done.
    pub done: u64,
    /// Commands that are not done now.
    pub waiting: u64,
    /// Commands done because nobody asked for them in time.
    pub unclaimed: u64,
    /// Answers that subscribers owed and did not give in time.
    pub timed_out: u64,
}

/// Memory and its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// Bytes in queues and buffers now.
    pub queues_bytes: u64,
    /// Their bound.
    pub queues_bytes_max: u64,
    /// The bound of the resident memory: the program and its queues.
    #[serde(default)]
    pub rss_bytes_max: u64,
}

/// The link as the core sees it, in instants; [`LinkView::status`] makes it relative to a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkView {
    /// The state's name, one of [`LinkView::STATES`].
    pub state: &'static str,
    /// When it was entered.
    pub since: Instant,
    /// Index of the endpoint in use or tried last.
    pub endpoint: Option<u8>,
    /// Its URL.
    pub url: Option<String>,
    /// The breaker of each endpoint.
    pub breakers: Vec<BreakerView>,
    /// The URL of each endpoint.
    pub urls: Vec<String>,
    /// The session's name as the server gave it, while it is up.
    pub session: Option<String>,
    /// Sessions greeted since the process started.
    pub sessions: u64,
    /// Attempts since the process started.
    pub attempts: u64,
    /// Failures by class since the process started.
    pub failures: Vec<(&'static str, u64)>,
    /// Class, detail and instant of the last one.
    pub last_failure: Option<(Class, String, Instant)>,
    /// When the next attempt is planned.
    pub next_attempt: Option<Instant>,
    /// What that wait is for.
    pub wait_cause: Option<WaitCause>,
    /// The wait that was drawn last, in ms.
    pub backoff_ms: u64,
    /// Smoothed round trip of the pings (RFC 6298 § 2).
    pub rtt: Option<Duration>,
    /// A pong is late.
    pub suspect: bool,
    /// How good the path is.
    pub quality: Quality,
    /// The way that the connection takes.
    pub path: Option<Path>,
}

impl LinkView {
    /// All that [`LinkView::state`] can be.
    pub const STATES: [&str; 11] = [
        "idle",
        "start_delay",
        "resolving",
        "dialing",
        "securing",
        "upgrading",
        "greeting",
        "up",
        "draining",
        "waiting",
        "stopped",
    ];

    /// The same, relative to `now`.
    pub fn status(&self, now: Instant, clock_set: bool) -> Link {
        // Collecting would bring a sort along, and its code.
        let mut failures = BTreeMap::new();
        failures.extend(self.failures.iter().map(|(class, count)| ((*class).to_owned(), *count)));
        let ratio = if self.attempts == 0 { 0.0 } else { self.sessions as f64 / self.attempts as f64 };
        Link {
            state: self.state.into(),
            since_s: now.since(self.since).as_secs(),
            endpoint: self.url.clone(),
            session: self.session.clone(),
            sessions: self.sessions,
            attempts: self.attempts,
            failures,
            success_ratio: ratio,
            last_failure: self.last_failure.as_ref().map(|(class, detail, at)| LastFailure {
                class: class.name().into(),
                why: words::why_ended(*class).into(),
                detail: detail.clone(),
                s_ago: now.since(*at).as_secs(),
            }),
            next_attempt_ms: self.next_attempt.map(|at| at.since(now).as_millis() as u64),
            next_attempt_why: self.wait_cause.map(|cause| words::why_waiting(cause).into()),
            backoff_ms: self.backoff_ms,
            rtt_ms: self.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
            suspect: self.suspect,
            quality: self.quality,
            path: self.path.clone(),
            clock: if clock_set { "set" } else { "unset" }.into(),
            certificate: None,
            endpoints: self.urls.iter().zip(&self.breakers).map(|(url, breaker)| breaker.status(url, now)).collect(),
        }
    }
}

impl BreakerView {
    fn status(&self, url: &str, now: Instant) -> Endpoint {
        let open_ms = self.until.map(|until| until.since(now).as_millis() as u64);
        Endpoint { url: url.into(), breaker: self.state.into(), open_ms }
    }
}

/// The recent past of a delay: its last [`Samples::LEN_MAX`] values, in a ring.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// In microseconds.
    ring: Vec<u32>,
    oldest: usize,
    micros_max: u32,
}

impl Samples {
    /// Values kept.
    pub const LEN_MAX: usize = 512;

    /// Adds a value; the oldest one goes when the ring is full.
    pub fn push(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.micros_max = self.micros_max.max(micros);
        if self.ring.len() < Self::LEN_MAX {
            self.ring.push(micros);
        } else {
            self.ring[self.oldest] = micros;
            self.oldest = (self.oldest + 1) % Self::LEN_MAX;
        }
    }

    /// Of the values in the ring, in ms, by nearest rank.
    pub fn percentiles(&self) -> Percentiles {
        let mut sorted = self.ring.clone();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let nth = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(nth).map(|micros| f64::from(*micros) / 1000.0)
        };
        Percentiles { p50: rank(50), p99: rank(99) }
    }

    /// The largest value ever, in ms.
    pub fn ms_max(&self) -> f64 {
        f64::from(self.micros_max) / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_is_estimated_in_one_digit_and_not_before_an_hour() {
        let new = Lifetime { capacity_bytes: 4 << 30, cycles: 3000, ..Lifetime::default() };
        let hour = Lifetime::OBSERVED_MIN;
        let years = |lifetime: &Lifetime, bytes_a_day: u64| {
            let mut lifetime = lifetime.clone();
            lifetime.estimate(bytes_a_day, hour * 24);
            assert_eq!(lifetime.bytes_per_day, Some(bytes_a_day));
            lifetime.years
        };
        let mut early = new.clone();
        early.estimate(1 << 30, hour - Duration::from_secs(1));
        assert_eq!(early, new);
        // 4 GiB × 3000 / 4 are 3 TiB: 3000 days of 1 GiB.
        assert_eq!(years(&new, 1 << 30), Some(8));
        assert_eq!(years(&new, 1 << 29), Some(10));
        assert_eq!(years(&new, 300 << 20), Some(20));
        assert_eq!(years(&new, 100 << 30), Some(0));
        assert_eq!((years(&new, 1), years(&new, 0)), (Some(100), Some(100)));
        let worn = |used_percent| Lifetime { used_percent: Some(used_percent), ..new.clone() };
        assert_eq!(years(&worn(50), 1 << 30), Some(4));
        assert_eq!(years(&worn(100), 1), Some(0));
        let huge = Lifetime { capacity_bytes: u64::MAX, cycles: u32::MAX, ..new };
        assert_eq!(years(&huge, u64::MAX / 86_400), Some(100));
    }

    #[test]
    fn percentiles_are_of_the_recent_past_and_the_maximum_of_all() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentiles(), Percentiles { p50: None, p99: None });
        samples.push(Duration::from_secs(9));
        for ms in (1..=100).cycle().take(Samples::LEN_MAX - 12) {
            samples.push(Duration::from_millis(ms));
        }
        for _ in 0..12 {
            samples.push(Duration::from_millis(50));
        }
        assert_eq!(samples.percentiles(), Percentiles { p50: Some(50.0), p99: Some(99.0) });
        assert_eq!(samples.ms_max(), 9000.0);
        samples.push(Duration::MAX);
        assert_eq!(samples.ms_max(), f64::from(u32::MAX) / 1000.0);
    }
}
