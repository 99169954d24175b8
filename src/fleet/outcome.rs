//! How a run went, in numbers.

use serde::Serialize;

/// How a run went. Seconds count from the loss unless said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Most attempts in a second, from the loss on.
    pub attempts_per_s_peak: u32,
    /// Most attempts in a second, from recovery on.
    pub attempts_per_s_peak_after: u32,
    /// Attempts of a device until it was back, on average.
    pub attempts_per_device: f64,
    /// Attempts of the unluckiest device.
    pub attempts_per_device_max: u32,
    /// When they were back.
    pub back_s: Back,
    /// Devices / accept rate: no policy is faster but by the server's burst.
    pub bound_s: f64,
    /// Seconds without a session, on average.
    pub offline_s_mean: f64,
    /// Times that the server fell over.
    pub fell_over: u32,
    /// Attempts in each second.
    #[serde(skip)]
    pub attempts: Vec<u32>,
    /// Devices with a session at the end of each second.
    #[serde(skip)]
    pub connected: Vec<u32>,
    /// The second of the recovery.
    #[serde(skip)]
    pub recovery_s: u64,
}

/// Seconds from recovery until so many percent were back for good; `None`: not within the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Back {
    /// Half of them.
    pub p50: Option<f64>,
    /// All but one in a hundred.
    pub p99: Option<f64>,
    /// The last one.
    pub p100: Option<f64>,
}

impl Outcome {
    /// When the last was back, in units of the bound.
    pub fn last_in(&self) -> Option<f64> {
        self.back_s.p100.map(|back| back / self.bound_s)
    }
}

impl Back {
    /// Of the seconds at which each device was back; those that were not are missing.
    pub(super) fn of(mut back_s: Vec<f64>, devices: u32) -> Self {
        back_s.sort_unstable_by(f64::total_cmp);
        let at = |percent: u64| {
            let rank = (u64::from(devices) * percent).div_ceil(100).max(1);
            back_s.get(rank as usize - 1).copied()
        };
        Self { p50: at(50), p99: at(99), p100: at(100) }
    }
}
