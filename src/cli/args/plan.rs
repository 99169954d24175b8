//! `plan`: what was typed → which fleet, which server, and what happens to them.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::{Command, Typed, UsageError, one_of};
use crate::cli::help;
use crate::fleet::{Down, Goal, Over, Scenario, Start};

/// A fleet that takes longer to come back needs another server.
const BOUND_S_MAX: f64 = 86_400.0;

/// A month.
const SECONDS_MAX: u64 = 31 * 86_400;

/// `backhaul plan`
#[derive(Debug, PartialEq)]
pub struct PlanArgs {
    /// What happens, but for the settings.
    pub scenario: Scenario,
    /// Whose settings; `None`: the defaults.
    pub config: Option<PathBuf>,
    /// Look for settings that meet this.
    pub goal: Option<Goal>,
    /// Beside it, what other programs' formulas do.
    pub compare: bool,
    /// For programs.
    pub json: bool,
    /// Where the plot goes.
    pub svg: Option<PathBuf>,
}

impl PlanArgs {
    /// Seconds of the outage unless `--outage` says otherwise.
    pub const OUTAGE_S_DEFAULT: u64 = 60;
    /// A million devices take a gigabyte.
    pub const DEVICES_MAX: u64 = 10_000_000;
}

impl Typed {
    pub(super) fn plan(mut self) -> Result<Command, UsageError> {
        if self.help {
            return Ok(Command::Print(help::PLAN));
        }
        let scenario = self.scenario()?;
        let recommend = self.flag("recommend");
        let goal = Goal {
            attempts_per_s_max: self.within("peak", 1..=u64::from(u32::MAX))?.map(|peak| peak as u32),
            back_within_s: self.within("back-within", 1..=SECONDS_MAX)?.map(|seconds| seconds as f64),
        };
        let compare = self.flag("compare");
        if compare && matches!(scenario.start, Start::Outage { down: Down::Silent, .. }) {
            return Err(UsageError("--compare: when others find out that nothing answers is not known".into()));
        }
        let has_goal = goal.attempts_per_s_max.is_some() || goal.back_within_s.is_some();
        match (recommend, has_goal) {
            (true, false) => return Err(UsageError("--recommend needs --peak R or --back-within S".into())),
            (false, true) => return Err(UsageError("--peak and --back-within go with --recommend".into())),
            (true, true) if matches!(scenario.start, Start::Planned { .. }) => {
                return Err(UsageError("--recommend: in a planned restart the server decides, no setting does".into()));
            }
            (true, true) | (false, false) => {}
        }
        let args = PlanArgs {
            scenario,
            config: self.value("config")?.map(PathBuf::from),
            goal: recommend.then_some(goal),
            compare,
            json: self.flag("json"),
            svg: self.value("svg")?.map(PathBuf::from),
        };
        self.finish("plan")?;
        Ok(Command::Plan(args))
    }

    fn scenario(&mut self) -> Result<Scenario, UsageError> {
        let needed = |name: &str| UsageError(format!("plan needs --{name} (see plan --help)"));
        let devices = self.within("devices", 1..=PlanArgs::DEVICES_MAX)?.ok_or_else(|| needed("devices"))? as u32;
        let rate = self.within("accept-rate", 1..=10_000_000)?.ok_or_else(|| needed("accept-rate"))? as u32;
        let outage = self.within("outage", 0..=SECONDS_MAX)?;
        let mut scenario = match (outage, self.flag("planned"), self.flag("power-cut")) {
            (None, true, false) => Scenario::planned(devices, rate),
            (None, false, true) => Scenario::power_cut(devices, rate),
            (outage, false, false) => Scenario::outage(devices, rate, outage.unwrap_or(PlanArgs::OUTAGE_S_DEFAULT)),
            _two => return Err(UsageError("one of --outage, --planned, --power-cut".into())),
        };
        if let Some(down) = self.text("down")? {
            let Start::Outage { down: is, .. } = &mut scenario.start else {
                return Err(UsageError("--down goes with --outage".into()));
            };
            *is = one_of(
                "down",
                &down,
                &[
                    ("refused", Down::Refused),
                    ("reset", Down::Reset),
                    ("silent", Down::Silent),
                    ("503", Down::Unavailable),
                ],
            )?;
        }
        if let Some(spread_s) = self.within("loss-spread", 0..=SECONDS_MAX)? {
            let Start::Outage { loss_spread_ms, .. } = &mut scenario.start else {
                return Err(UsageError("--loss-spread goes with --outage".into()));
            };
            *loss_spread_ms = spread_s * 1000;
        }
        if let Some(rtt_ms) = self.within("rtt", 0..=60_000)? {
            scenario.rtt_ms = (rtt_ms as u32, rtt_ms as u32);
        }
        if let Start::Outage { down: Down::Silent, loss_spread_ms: 1.., .. } = scenario.start {
            return Err(UsageError(
                "--loss-spread: where nothing answers, the heartbeats find out when they do".into(),
            ));
        }
        if scenario.bound_s() > BOUND_S_MAX {
            return Err(UsageError("devices / accept rate is more than a day: no plan helps there".into()));
        }
        scenario.seed = self.count("seed")?.unwrap_or(scenario.seed);
        let server = &mut scenario.server;
        let number = |typed: Option<u64>, default: u32| typed.map_or(default, |number| number as u32);
        server.burst = number(self.within("burst", 1..=10_000_000)?, server.burst);
        server.backlog = number(self.within("backlog", 0..=10_000_000)?, server.backlog);
        server.falls_over_at = number(self.within("falls-over-at", 1..=u64::from(u32::MAX))?, server.falls_over_at);
        server.over = match (self.text("over")?, self.flag("no-retry-after")) {
            (None, false) => server.over,
            (None, true) => Over::Unavailable,
            (Some(over), false) => one_of(
                "over",
                &over,
                &[
                    ("retry-after", Over::RetryAfter),
                    ("503", Over::Unavailable),
                    ("reset", Over::Reset),
                    ("silent", Over::Silent),
                ],
            )?,
            (Some(_), true) => return Err(UsageError("--over or --no-retry-after, not both".into())),
        };
        Ok(scenario)
    }

    /// A whole number within bounds.
    fn within(&mut self, name: &str, bounds: RangeInclusive<u64>) -> Result<Option<u64>, UsageError> {
        let number = self.count(name)?;
        match number {
            Some(number) if !bounds.contains(&number) => {
                let (from, to) = bounds.into_inner();
                Err(UsageError(format!("--{name} {number}: from {from} to {to}")))
            }
            Some(_) | None => Ok(number),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::cli::args::tests::parsed;

    #[test]
    fn a_plan_is_the_scenario_that_was_typed() {
        let plan = |line: &str| match parsed(line) {
            Ok(Command::Plan(args)) => args,
            other => panic!("{other:?}"),
        };
        let usual = plan("plan --devices 500 --accept-rate 10");
        assert_eq!(usual.scenario, Scenario::outage(500, 10, 60));
        assert!(usual.goal.is_none() && usual.config.is_none() && !usual.json);
        assert_eq!(plan("plan --devices 5 --accept-rate 1 --planned").scenario, Scenario::planned(5, 1));
        assert_eq!(plan("plan --devices 5 --accept-rate 1 --power-cut").scenario, Scenario::power_cut(5, 1));
        let bare = plan("plan --devices 5 --accept-rate 1 --no-retry-after").scenario;
        assert_eq!(
            (bare.server.over, plan("plan --devices 5 --accept-rate 1 --over 503").scenario),
            (Over::Unavailable, bare)
        );
        let goal = plan("plan --devices 5 --accept-rate 1 --recommend --peak 3 --back-within 9").goal.unwrap();
        assert_eq!((goal.attempts_per_s_max, goal.back_within_s), (Some(3), Some(9.0)));
    }

    #[test]
    fn refuses_a_fleet_that_means_nothing() {
        for (line, says) in [
            ("plan", "plan needs --devices"),
            ("plan --devices 5", "plan needs --accept-rate"),
            ("plan --devices 0 --accept-rate 1", "--devices 0: from 1 to"),
            ("plan --devices 5 --accept-rate 1 --outage 5 --planned", "one of --outage, --planned, --power-cut"),
            ("plan --devices 5 --accept-rate 1 --recommend", "needs --peak R or --back-within S"),
            ("plan --devices 5 --accept-rate 1 --peak 3", "go with --recommend"),
            ("plan --devices 5 --accept-rate 1 --planned --recommend --peak 3", "the server decides"),
            ("plan --devices 5 --accept-rate 1 --down away", "--down away: one of refused, reset, silent, 503"),
            ("plan --devices 5 --accept-rate 1 --planned --down reset", "--down goes with --outage"),
            ("plan --devices 5 --accept-rate 1 --over 503 --no-retry-after", "not both"),
            ("plan --devices 5 --accept-rate 1 --down silent --compare", "is not known"),
            ("plan --devices 5 --accept-rate 1 --down silent --loss-spread 9", "the heartbeats find out"),
            ("plan --devices 1000000 --accept-rate 1", "more than a day"),
        ] {
            let message = parsed(line).unwrap_err();
            assert!(message.contains(says), "{line:?}: {message:?} lacks {says:?}");
            assert!(!message.contains('\n'));
        }
    }
}
