//! Metrics that travel upstream as records, for a gateway that nobody scrapes: when one is made, and what it says.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::status::{Lane, Status};
use crate::time::Instant;

/// However long the link is away, one an hour is made where `every_s` is less.
const GAP_MAX: Duration = Duration::from_secs(3600);

/// When the next one is made. While the link is away, or flash is short, they become rarer: each gap is twice the one
/// before, so that a week offline is some hundred records and not ten thousand.
#[derive(Debug, Clone)]
pub struct Sampler {
    every: Duration,
    gap: Duration,
    due: Instant,
}

impl Sampler {
    /// The first one is due after `every`.
    pub fn new(every: Duration, now: Instant) -> Self {
        Self { every, gap: every, due: now + every }
    }

    /// When to ask.
    pub const fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// Whether one is to be made now.
    pub fn take(&mut self, status: impl FnOnce() -> Status, now: Instant) -> Option<Status> {
        if now < self.due {
            return None;
        }
        let status = status();
        let budget = status.flash.budget.as_ref().map_or("ok", |budget| budget.state.as_str());
        let scarce = status.link.state != "up" || budget != "ok";
        self.gap = if scarce { (self.gap * 2).min(GAP_MAX).max(self.every) } else { self.every };
        self.due = now + self.gap;
        // A budget that is exceeded is for what producers put.
        (budget != "exceeded").then_some(status)
    }
}

/// What it says, on one line: short names, for it is paid for by the byte. Counters are since the process started, and
/// `up_s` says when that was.
pub fn text(status: &Status) -> String {
    let link = &status.link;
    let lane = |lane: &Lane| {
        let values = json!([lane.depth, lane.oldest_s, lane.bytes, lane.put_total, lane.acked_total, lane.lost()]);
        (lane.name.clone(), values)
    };
    let lanes: Map<String, Value> = status.lanes.iter().map(lane).collect();
    json!({
        "up_s": status.agent.uptime_s,
        "state": link.state,
        "since_s": link.since_s,
        "sessions": link.sessions,
        "attempts": link.attempts,
        "failures": link.failures,
        "rtt_ms": link.rtt_ms.map(|ms| ms.round()),
        "lanes": lanes,
        "flash": [status.flash.bytes_written, status.flash.syncs],
        "wire": [status.wire.bytes_sent, status.wire.bytes_received],
        "rss": status.memory.rss_bytes,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::FlashBudget;

    fn status(state: &str, budget: &str) -> Status {
        let mut status = Status::default();
        status.link.state = state.into();
        status.flash.budget = Some(FlashBudget { state: budget.into(), ..FlashBudget::default() });
        status
    }

    /// Records made in so many seconds.
    fn made(every_s: u64, seconds: u64, state: &str, budget: &str) -> usize {
        let mut sampler = Sampler::new(Duration::from_secs(every_s), Instant::default());
        let at = |s: u64| Instant::from_micros(s * 1_000_000);
        (1..=seconds).filter(|s| sampler.take(|| status(state, budget), at(*s)).is_some()).count()
    }

    #[test]
    fn they_come_in_time_and_become_rare_where_link_or_flash_is_short() {
        assert_eq!(made(60, 3600, "up", "ok"), 60);
        let week = 7 * 86_400;
        assert!((160..=180).contains(&made(60, week, "waiting", "ok")), "{}", made(60, week, "waiting", "ok"));
        assert_eq!(made(60, week, "up", "widened"), made(60, week, "waiting", "ok"));
        assert_eq!(made(60, 86_400, "up", "exceeded"), 0);
        // Rarer than that was asked for, and stays.
        assert_eq!(made(7200, 72_000, "waiting", "ok"), 10);
    }

    #[test]
    fn one_says_what_matters_and_is_short() {
        let mut status = status("up", "ok");
        status.lanes = vec![Lane { name: "telemetry".into(), depth: 3, put_total: 9, ..Lane::default() }];
        let said: Value = serde_json::from_str(&text(&status)).unwrap_or_default();
        assert_eq!(said["lanes"]["telemetry"], json!([3, null, 0, 9, 0, 0]));
        assert_eq!(said["state"], "up");
        assert!(text(&status).len() < 250, "{}", text(&status));
    }
}
