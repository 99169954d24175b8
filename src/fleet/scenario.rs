//! What happens to the fleet: how large it is, what goes wrong, and what the server can bear. Values alone.

use crate::config::Upstream;

/// A run in which not all come back ends after so many times the bound, or a day and thrice the bound.
const HORIZON_PER_BOUND: u64 = 100;
const HORIZON_S_MAX: u64 = 86_400;

/// Attempts that may come within a second of a fleet at rest, in units of the accept rate.
const BURST_S: u32 = 1;

/// One run.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Devices, at least one.
    pub devices: u32,
    /// Of every draw.
    pub seed: u64,
    /// What goes wrong.
    pub start: Start,
    /// The server.
    pub server: ServerModel,
    /// Round trip of each device, uniform in this, in ms.
    pub rtt_ms: (u32, u32),
    /// The clock of each device runs wrong by up to this, in parts per million; oscillators of cheap boards: 100.
    pub drift_ppm_max: u32,
    /// The run ends when all are back, or after so many seconds.
    pub horizon_s: u64,
}

/// What goes wrong, at second 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The server is lost without a word and is back after a while.
    Outage {
        /// How long, in seconds.
        seconds: u64,
        /// How it looks meanwhile.
        down: Down,
        /// The devices notice within this, uniform, in ms. Not used where the server falls silent.
        loss_spread_ms: u64,
    },
    /// The server sends each session `retry`, restarts, and is back before the first is due.
    Planned {
        /// The last one is sent away for so long, in ms.
        restart_spread_ms: u64,
    },
    /// The power of a town returns: all devices boot, the server was there all the time.
    PowerCut {
        /// They boot within this, uniform, in ms.
        boot_spread_ms: u64,
    },
}

/// What an attempt meets while the server is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// Nothing listens.
    Refused,
    /// Connections are reset.
    Reset,
    /// Nothing answers; those with a session are not told either.
    Silent,
    /// A balancer answers 503, without a word on when.
    Unavailable,
}

/// What an attempt over the accept rate meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// 503 with `Retry-After` and `Backhaul-Spread-Ms` from a virtual queue.
    RetryAfter,
    /// A bare 503.
    Unavailable,
    /// The connection is reset.
    Reset,
    /// Nothing answers.
    Silent,
}

/// What the server can bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerModel {
    /// Sessions that it can begin in a second.
    pub accept_rate: u32,
    /// Attempts it can take at once after a pause.
    pub burst: u32,
    /// Attempts that wait for their turn rather than being turned away.
    pub backlog: u32,
    /// What those meet that are turned away.
    pub over: Over,
    /// It falls over when so many attempts come in a second; 0: never.
    pub falls_over_at: u32,
    /// Until it stands again, in seconds.
    pub stands_up_s: u32,
}

impl ServerModel {
    /// A server that accepts so many a second, answers `Retry-After` above that and never falls over.
    pub fn new(accept_rate: u32) -> Self {
        Self {
            accept_rate: accept_rate.max(1),
            burst: accept_rate.max(1).saturating_mul(BURST_S),
            backlog: 0,
            over: Over::RetryAfter,
            falls_over_at: 0,
            stands_up_s: 30,
        }
    }
}

impl Scenario {
    /// An unplanned outage: the server's process is gone, its machine answers that nothing listens.
    pub fn outage(devices: u32, accept_rate: u32, seconds: u64) -> Self {
        let start = Start::Outage { seconds, down: Down::Refused, loss_spread_ms: 0 };
        Self::new(devices, accept_rate, start)
    }

    /// A planned restart that sends the fleet away exactly as fast as it can take it back.
    pub fn planned(devices: u32, accept_rate: u32) -> Self {
        let restart_spread_ms = u64::from(devices) * 1000 / u64::from(accept_rate.max(1));
        // As the receiver does: agents obey no longer wait.
        let restart_spread_ms = restart_spread_ms.min(Upstream::default().server_wait_ms_max);
        Self::new(devices, accept_rate, Start::Planned { restart_spread_ms })
    }

    /// Power returns to a town: all boot within 3 s.
    pub fn power_cut(devices: u32, accept_rate: u32) -> Self {
        Self::new(devices, accept_rate, Start::PowerCut { boot_spread_ms: 3_000 })
    }

    fn new(devices: u32, accept_rate: u32, start: Start) -> Self {
        let mut scenario = Self {
            devices,
            seed: 1,
            start,
            server: ServerModel::new(accept_rate),
            // A town's wired and mobile gateways.
            rtt_ms: (20, 200),
            drift_ppm_max: 100,
            horizon_s: 0,
        };
        let bound_s = scenario.bound_s().ceil() as u64;
        let patience_s = (HORIZON_PER_BOUND * bound_s + 3_600).min(HORIZON_S_MAX + 3 * bound_s);
        scenario.horizon_s = scenario.recovery_s() + patience_s;
        scenario
    }

    /// From the loss to the server's return, in seconds.
    pub fn recovery_s(&self) -> u64 {
        match self.start {
            Start::Outage { seconds, .. } => seconds,
            Start::Planned { .. } | Start::PowerCut { .. } => 0,
        }
    }

    /// All devices boot.
    pub fn boots(&self) -> bool {
        matches!(self.start, Start::PowerCut { .. })
    }

    /// The same with about so many devices at most, the server scaled with them: devices / accept rate stays the same,
    /// so there are more where the rate would fall below one.
    pub fn scaled(&self, devices_max: u32) -> Self {
        let [all, most, rate] = [self.devices, devices_max, self.server.accept_rate].map(u64::from);
        let rate_scaled = (rate * most / all).clamp(1, rate);
        let devices = (all * rate_scaled / rate).max(1) as u32;
        let scale = |n: u32| (u64::from(n) * u64::from(devices)).div_ceil(all) as u32;
        let server = ServerModel {
            accept_rate: rate_scaled as u32,
            burst: scale(self.server.burst),
            backlog: scale(self.server.backlog),
            falls_over_at: scale(self.server.falls_over_at),
            ..self.server
        };
        Self { devices, server, ..self.clone() }
    }

    /// No policy brings the last device back earlier, but for a burst: devices / accept rate, in seconds.
    pub fn bound_s(&self) -> f64 {
        f64::from(self.devices) / f64::from(self.server.accept_rate)
    }
}
