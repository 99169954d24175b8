//! What a plan found, as text for people and as JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{OTHERS_DEVICES, lone_close_s};
use crate::config::Reconnect;
use crate::fleet::{Down, Outcome, Over, Peer, Recommendation, Scenario, Start};
use crate::link::Config;

/// Settings and what they do.
pub(super) type Others = Vec<(Reconnect, Outcome)>;

/// Everything that is told.
pub(super) struct Report<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) config: &'a Config,
    pub(super) outcome: &'a Outcome,
    pub(super) recommended: Option<Recommendation>,
    pub(super) others: Others,
    pub(super) peers: Vec<(Peer, Outcome)>,
}

impl Report<'_> {
    /// For programs.
    pub(super) fn json(&self) -> String {
        let mut json = answer(&self.config.reconnect, self.outcome);
        if let Some(found) = &self.recommended {
            json["recommended"] = answer(&found.reconnect, &found.outcome);
        }
        if !self.peers.is_empty() {
            let peers = self.peers.iter().map(|(peer, outcome)| {
                let mut json = numbers(outcome);
                json["name"] = peer.name().into();
                json
            });
            json["peers"] = peers.collect();
        }
        json.to_string() + "\n"
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut text = self.headline() + "\n\n";
        let with = if self.recommended.is_some() { "with the settings as they are\n" } else { "" };
        text += with;
        describe(&mut text, self.scenario, &self.config.reconnect, self.outcome);
        if let Some(Recommendation { reconnect, outcome }) = &self.recommended {
            text += "\nwith the settings below\n";
            describe(&mut text, self.scenario, reconnect, outcome);
            text += "\n";
            fragment(&mut text, reconnect);
        }
        if !self.others.is_empty() {
            let scale = f64::from(self.scenario.devices) / f64::from(self.scenario.scaled(OTHERS_DEVICES).devices);
            text += "\nother settings (s)   spread  backoff    attempts/s  per device  last in / bound  lone close\n";
            for (reconnect, outcome) in &self.others {
                self.other(&mut text, reconnect, outcome, scale);
            }
        }
        if !self.peers.is_empty() {
            text += "\nand other programs' formulas             attempts/s  per device  last in / bound  fell over\n";
            row(&mut text, "backhaul", self.outcome);
            for (peer, outcome) in &self.peers {
                row(&mut text, peer.name(), outcome);
            }
        }
        text
    }

    fn headline(&self) -> String {
        let Scenario { devices, server, start, .. } = self.scenario;
        let over = match server.over {
            Over::RetryAfter => "answers Retry-After above that",
            Over::Unavailable => "answers a bare 503 above that",
            Over::Reset => "resets what comes above that",
            Over::Silent => "leaves what comes above that without an answer",
        };
        let what = match start {
            Start::Outage { seconds, down, .. } => {
                let down = match down {
                    Down::Refused => "nothing listens",
                    Down::Reset => "connections are reset",
                    Down::Silent => "nothing answers",
                    Down::Unavailable => "a balancer answers 503",
                };
                format!("it is down for {seconds} s, {down}")
            }
            Start::Planned { .. } => "it is restarted as planned, `retry` sent before".into(),
            Start::PowerCut { .. } => "power returns and all boot at once".into(),
        };
        format!("{devices} devices, a server that accepts {} a second and {over}: {what}.", server.accept_rate)
    }

    fn other(&self, text: &mut String, reconnect: &Reconnect, outcome: &Outcome, scale: f64) {
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let spread = if self.scenario.boots() { reconnect.start_delay_ms_max } else { reconnect.spread_ms };
        let backoff = format!("{:.0}-{:.0}", seconds(reconnect.backoff_ms_min), seconds(reconnect.backoff_ms_max));
        let is_now = if *reconnect == self.config.reconnect { "as it is" } else { "" };
        line(
            text,
            format_args!(
                "{is_now:18} {:8.1}  {backoff:>9}  {:10.0}  {:10.1}  {:>15}  {:8.1} s",
                seconds(spread),
                f64::from(outcome.attempts_per_s_peak) * scale,
                outcome.attempts_per_device,
                ratio(outcome),
                lone_close_s(reconnect),
            ),
        );
    }
}

fn describe(text: &mut String, scenario: &Scenario, reconnect: &Reconnect, outcome: &Outcome) {
    let back = |seconds: Option<f64>| seconds.map_or("not within this run".into(), |seconds| format!("{seconds:.1} s"));
    let from = if matches!(scenario.start, Start::Planned { .. }) { "the first retry" } else { "recovery" };
    line(
        text,
        format_args!(
            "  attempts in a second     {} at most; from recovery on {}",
            outcome.attempts_per_s_peak, outcome.attempts_per_s_peak_after
        ),
    );
    line(
        text,
        format_args!(
            "  attempts of a device     {:.2} on average; {} at most",
            outcome.attempts_per_device, outcome.attempts_per_device_max
        ),
    );
    line(text, format_args!("  back, from {from}:"));
    line(text, format_args!("    half of them           {}", back(outcome.back_s.p50)));
    line(text, format_args!("    99 in 100              {}", back(outcome.back_s.p99)));
    line(text, format_args!("    the last               {}", back(outcome.back_s.p100)));
    line(
        text,
        format_args!(
            "  the bound                {:.1} s (devices / accept rate); the last is in at {} of it",
            outcome.bound_s,
            ratio(outcome)
        ),
    );
    line(text, format_args!("  offline                  {:.1} s on average", outcome.offline_s_mean));
    if outcome.fell_over > 0 {
        line(text, format_args!("  the server fell over     {} times", outcome.fell_over));
    }
    line(
        text,
        format_args!(
            "  the price                a close that hits one device alone: {:.1} s offline on average",
            lone_close_s(reconnect)
        ),
    );
}

/// As a configuration file takes it.
fn fragment(text: &mut String, reconnect: &Reconnect) {
    let Reconnect { start_delay_ms_max, spread_ms, backoff_ms_min, backoff_ms_max, .. } = reconnect;
    *text += "[upstream.reconnect]\n";
    for (key, ms) in [
        ("start_delay_ms_max", start_delay_ms_max),
        ("spread_ms", spread_ms),
        ("backoff_ms_min", backoff_ms_min),
        ("backoff_ms_max", backoff_ms_max),
    ] {
        line(text, format_args!("{key} = {ms}"));
    }
}

fn row(text: &mut String, name: &str, outcome: &Outcome) {
    line(
        text,
        format_args!(
            "{name:40} {:10}  {:10.1}  {:>15}  {:9}",
            outcome.attempts_per_s_peak,
            outcome.attempts_per_device,
            ratio(outcome),
            outcome.fell_over
        ),
    );
}

fn ratio(outcome: &Outcome) -> String {
    outcome.last_in().map_or("never".into(), |ratio| format!("{ratio:.2}"))
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("a String takes everything");
}

fn answer(reconnect: &Reconnect, outcome: &Outcome) -> Value {
    let Reconnect { start_delay_ms_max, spread_ms, backoff_ms_min, backoff_ms_max, .. } = reconnect;
    let mut json = numbers(outcome);
    json["settings"] = json!({
        "start_delay_ms_max": start_delay_ms_max,
        "spread_ms": spread_ms,
        "backoff_ms_min": backoff_ms_min,
        "backoff_ms_max": backoff_ms_max,
    });
    json["lone_close_s_mean"] = lone_close_s(reconnect).into();
    json
}

fn numbers(outcome: &Outcome) -> Value {
    let mut json = serde_json::to_value(outcome).expect("numbers");
    json["last_in_per_bound"] = outcome.last_in().into();
    json
}
