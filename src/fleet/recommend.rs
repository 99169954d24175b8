//! Looks for the settings that meet a goal at the least price. The price of a setting is what one device pays when its
//! session alone is closed: half its spread; of two with one spread the one with the shorter backoff is cheaper.

use std::sync::Arc;

use super::outcome::Outcome;
use super::scenario::Scenario;
use super::simulation::run;
use crate::config::Reconnect;
use crate::link::Config;

/// The search looks at so many devices, the server scaled with them: enough to tell settings apart.
const SCREENED_DEVICES: u32 = 10_000;
/// A small fleet's peak is noisier; what passes is looked at again with all devices.
const SCREEN_PERCENT: u64 = 120;
/// Where no peak is asked for, it may be so many times the accept rate: what the defaults make of a large fleet.
const PEAK_PER_ACCEPT_RATE: u32 = 7;
/// Attempts of a device, at most, in units of what the settings as they are cost it: those of a mobile gateway are paid.
const ATTEMPTS_FACTOR: f64 = 2.0;
/// Seeds with which a setting has to meet the goal.
const SEEDS: u64 = 3;

/// What may be drawn: the first attempt is spread over so many seconds.
const SPREADS_S: [u64; 16] = [1, 2, 5, 10, 15, 20, 25, 30, 35, 45, 60, 90, 120, 180, 300, 600];
/// First backoff, in seconds.
const BACKOFFS_S: [u64; 7] = [5, 10, 20, 35, 60, 120, 300];
/// The cap, in eighths of the first backoff: nearly flat spreads a wave, doubling sheds load.
const CAPS_EIGHTHS: [u64; 3] = [9, 16, 32];

/// What the settings have to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Attempts in a second, at most; `None`: seven times the accept rate.
    pub attempts_per_s_max: Option<u32>,
    /// The last is back so many seconds after recovery.
    pub back_within_s: Option<f64>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Recommendation {
    /// The settings.
    pub reconnect: Reconnect,
    /// What they do, with the scenario's seed.
    pub outcome: Outcome,
}

impl Goal {
    fn is_met(&self, outcome: &Outcome, percent: u64) -> bool {
        let peak_max = self.attempts_per_s_max.map_or(u64::MAX, |peak| u64::from(peak) * percent / 100);
        let within = self
            .back_within_s
            .is_none_or(|within| outcome.back_s.p100.is_some_and(|back| back <= within * percent as f64 / 100.0));
        u64::from(outcome.attempts_per_s_peak) <= peak_max && within
    }
}

/// The cheapest settings that meet `goal` in `scenario`; the others stay as `config` has them. `progress` is called
/// with each candidate. `None`: none of those that were tried.
pub fn recommend(
    scenario: &Scenario,
    config: &Config,
    goal: Goal,
    progress: &mut dyn FnMut(&Reconnect),
) -> Option<Recommendation> {
    let candidates = if scenario.boots() { start_delays(config) } else { backoffs(config) };
    let small = scenario.scaled(SCREENED_DEVICES);
    let scale = f64::from(small.server.accept_rate) / f64::from(scenario.server.accept_rate);
    let peak_max = goal.attempts_per_s_max.unwrap_or(scenario.server.accept_rate.saturating_mul(PEAK_PER_ACCEPT_RATE));
    let goal = Goal { attempts_per_s_max: Some(peak_max), ..goal };
    let scaled = Goal {
        attempts_per_s_max: goal.attempts_per_s_max.map(|peak| (f64::from(peak) * scale).ceil() as u32),
        ..goal
    };
    let play = |scenario: &Scenario, reconnect: Reconnect| {
        run(scenario, &Arc::new(Config { reconnect, ..config.clone() }), &mut |_, _| {})
    };
    let attempts_max = play(&small, config.reconnect).attempts_per_device * ATTEMPTS_FACTOR;
    for reconnect in candidates {
        progress(&reconnect);
        let screened = play(&small, reconnect);
        if screened.attempts_per_device > attempts_max || !scaled.is_met(&screened, SCREEN_PERCENT) {
            continue;
        }
        let mut outcomes =
            (0..SEEDS).map(|n| play(&Scenario { seed: scenario.seed.wrapping_add(n), ..scenario.clone() }, reconnect));
        let Some(outcome) = outcomes.next().filter(|outcome| goal.is_met(outcome, 100)) else { continue };
        if outcomes.all(|outcome| goal.is_met(&outcome, 100)) {
            return Some(Recommendation { reconnect, outcome });
        }
    }
    None
}

/// Spread and backoff, the cheapest first.
fn backoffs(config: &Config) -> Vec<Reconnect> {
    let mut all = Vec::new();
    for spread_s in SPREADS_S {
        for backoff_s in BACKOFFS_S {
            for eighths in CAPS_EIGHTHS {
                let (backoff_ms_min, backoff_ms_max) = (backoff_s * 1000, backoff_s * 125 * eighths);
                let reconnect = config.reconnect;
                all.push(Reconnect { spread_ms: spread_s * 1000, backoff_ms_min, backoff_ms_max, ..reconnect });
            }
        }
    }
    all
}

/// The start delay, the shortest first.
fn start_delays(config: &Config) -> Vec<Reconnect> {
    let with = |spread_s: u64| Reconnect { start_delay_ms_max: spread_s * 1000, ..config.reconnect };
    SPREADS_S.into_iter().chain([1_200, 1_800, 3_600]).map(with).collect()
}
