//! `backhaul plan`: what a fleet does to its server, for the operator who has to size one of them. The fleet is
//! [`crate::fleet`]'s; here its numbers are told: to people, to programs, as a picture.

mod report;
mod svg;

use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use super::args::PlanArgs;
use super::{config_errors, print};
use crate::config::{Reconnect, Upstream, load};
use crate::exit;
use crate::fleet::{self, Outcome, Peer, Scenario, Start};
use crate::link::Config;
use report::{Others, Report};

/// Beside the run itself, other settings are tried with so many devices, the server scaled with them.
pub(super) const OTHERS_DEVICES: u32 = 20_000;

/// Runs the command.
pub fn run(args: &PlanArgs) -> ExitCode {
    let config = match args.config.as_deref().map(load::link) {
        None => Config::default(),
        Some(Ok(upstream)) => Config::from(&Upstream { attempts_max: 0, ..upstream }),
        Some(Err(errors)) => return config_errors(&errors),
    };
    if args.scenario.bound_s() * 1000.0 > config.server_wait_ms_max as f64 {
        eprintln!(
            "backhaul: devices / accept rate is beyond server_wait_ms_max: no device waits as long as the server would \
             have to ask for"
        );
    }
    let mut ticker = Ticker::new();
    let scenario = &args.scenario;
    let outcome = play(scenario, &config, "the fleet", &mut ticker);
    let recommended = args.goal.map(|goal| {
        let mut tried = 0;
        fleet::recommend(scenario, &config, goal, &mut |_| {
            tried += 1;
            ticker.show(|| format!("settings tried: {tried}"));
        })
    });
    // In a planned restart no setting acts.
    let alike = matches!(scenario.start, Start::Planned { .. });
    let others =
        if args.json || args.goal.is_some() || alike { Vec::new() } else { others(scenario, &config, &mut ticker) };
    let peers = if args.compare { peers(scenario, &mut ticker) } else { Vec::new() };
    ticker.clear();
    let missed = matches!(recommended, Some(None));
    let report =
        Report { scenario, config: &config, outcome: &outcome, recommended: recommended.flatten(), others, peers };
    if let Some(file) = &args.svg {
        let text = svg::draw(scenario, &outcome, report.recommended.as_ref().map(|found| &found.outcome));
        if let Err(error) = std::fs::write(file, text) {
            eprintln!("backhaul: {}: {error}", file.display());
            return ExitCode::from(exit::IO);
        }
    }
    let printed = print(&if args.json { report.json() } else { report.text() });
    if missed {
        eprintln!("backhaul: none of the settings that were tried reaches that");
        return ExitCode::from(exit::UNAVAILABLE);
    }
    printed
}

fn play(scenario: &Scenario, config: &Config, what: &str, ticker: &mut Ticker) -> Outcome {
    let devices = scenario.devices;
    fleet::run(scenario, &Arc::new(config.clone()), &mut |second, connected| {
        ticker.show(|| format!("{what}: second {second}, {connected} of {devices} connected"));
    })
}

/// What it would be with other settings.
fn others(scenario: &Scenario, config: &Config, ticker: &mut Ticker) -> Others {
    let small = scenario.scaled(OTHERS_DEVICES);
    let now = config.reconnect;
    let half = |ms: u64| (ms / 2).max(10);
    let settings: Vec<Reconnect> = if scenario.boots() {
        vec![
            now,
            Reconnect { start_delay_ms_max: half(now.start_delay_ms_max), ..now },
            Reconnect { start_delay_ms_max: now.start_delay_ms_max * 2, ..now },
        ]
    } else {
        vec![
            now,
            Reconnect { spread_ms: half(now.spread_ms), ..now },
            Reconnect { spread_ms: now.spread_ms * 2, ..now },
            Reconnect { backoff_ms_min: half(now.backoff_ms_min), ..now },
            Reconnect { backoff_ms_max: now.backoff_ms_max * 2, ..now },
            Reconnect {
                spread_ms: now.spread_ms * 2,
                backoff_ms_min: now.backoff_ms_min * 2,
                backoff_ms_max: now.backoff_ms_max * 2,
                ..now
            },
        ]
    };
    let run = |reconnect: Reconnect| {
        let config = Config { reconnect, ..config.clone() };
        (reconnect, play(&small, &config, "other settings", ticker))
    };
    settings.into_iter().map(run).collect()
}

/// What other programs' formulas do.
fn peers(scenario: &Scenario, ticker: &mut Ticker) -> Vec<(Peer, Outcome)> {
    let run = |peer: Peer| {
        let progress = &mut |second, connected| {
            ticker.show(|| format!("{}: second {second}, {connected} connected", peer.name()));
        };
        (peer, fleet::run_peers(scenario, peer, progress))
    };
    Peer::ALL.into_iter().map(run).collect()
}

/// A line on stderr that tells a person that something happens.
struct Ticker {
    is_seen: bool,
}

impl Ticker {
    fn new() -> Self {
        Self { is_seen: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, line: impl FnOnce() -> String) {
        if self.is_seen {
            eprint!("\r\x1b[K{}", line());
        }
    }

    fn clear(&mut self) {
        if self.is_seen {
            eprint!("\r\x1b[K");
            // Nobody to tell if that fails.
            let _ = std::io::stderr().flush();
        }
    }
}

/// Half of the spread: what a device pays, on average, when its session alone is closed.
fn lone_close_s(reconnect: &Reconnect) -> f64 {
    reconnect.spread_ms as f64 / 2000.0
}
