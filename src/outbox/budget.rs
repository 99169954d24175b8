//! The flash budget: how many bytes a day may go to flash, and how long a commit is held back so that they suffice.
//! Pure: it is told what was written and when it is.
//!
//! A bucket holds a quarter of the day's budget and is refilled with the other three quarters, evenly over 24 hours:
//! as long as it does not run dry, no more than the budget is written in *any* 24 hours. Below one half, commits wait,
//! the longer the less there is, up to [`WINDOW_MAX`]; records that come meanwhile share the commit. Durability is
//! never given up for the budget: when even that is not enough the bucket runs dry, commits go on at the longest
//! window, and the state says `exceeded`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::status;
use crate::time::Instant;

/// Longest time that a commit is held back: a producer's answer is late by no more.
pub const WINDOW_MAX: Duration = Duration::from_secs(10);

/// The budget's period.
const DAY: Duration = Duration::from_secs(86_400);
/// Share of the budget that flows into the bucket over a day; the rest is what it holds.
const REFILL_QUARTERS: u64 = 3;
/// How far behind a full bucket is when nothing is left in it: the time in which it fills.
const LAG_DRY: Duration = Duration::from_secs(DAY.as_secs() / REFILL_QUARTERS);
/// From this lag on commits wait.
const LAG_WIDE: Duration = Duration::from_secs(LAG_DRY.as_secs() / 2);
/// Half-way back before a better state is told, so that no state comes and goes with each commit.
const LAG_WELL: Duration = Duration::from_secs(LAG_WIDE.as_secs() / 2);
/// The same, from `exceeded`.
const LAG_FAIR: Duration = Duration::from_secs(LAG_WIDE.as_secs() + LAG_WIDE.as_secs() / 2);
/// A debt is remembered for a day: what was written before is no one's budget any more.
const LAG_MAX: Duration = Duration::from_secs(LAG_DRY.as_secs() + DAY.as_secs());

// The bucket and a day's refill are the budget.
const _: () = assert!(LAG_DRY.as_secs() * REFILL_QUARTERS == DAY.as_secs());
const _: () = assert!(LAG_WELL.as_secs() < LAG_WIDE.as_secs() && LAG_WIDE.as_secs() < LAG_FAIR.as_secs());
const _: () = assert!(LAG_FAIR.as_secs() < LAG_DRY.as_secs());

/// Where the budget stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Commits do not wait.
    Ok,
    /// Commits wait so that the budget holds.
    Widened,
    /// The longest wait is not enough: more is written than the budget allows.
    Exceeded,
}

impl State {
    /// As the status has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Widened => "widened",
            Self::Exceeded => "exceeded",
        }
    }
}

/// What outlives the process: a crash loop must not get a fresh budget each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// When the bucket will be full again, on the clock of this boot.
    pub full_at_us: u64,
}

/// The bucket.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes_per_day: u64,
    window_max: Duration,
    /// When the bucket will be full again if nothing more is written: all that there is to know of its level.
    full_at: Instant,
    /// The outbox's counter, as told last.
    written: u64,
    state: State,
}

impl Budget {
    /// A budget of so many bytes a day, at least one. Where nothing is known of the time before, it is half full: no
    /// commit waits, and a boot loop has not a day's burst each time.
    pub fn new(bytes_per_day: u64, window_max: Duration, saved: Option<Saved>, now: Instant) -> Self {
        let full_at = saved.map_or(now + LAG_WIDE, |saved| Instant::from_micros(saved.full_at_us).min(now + LAG_MAX));
        let mut budget =
            Self { bytes_per_day: bytes_per_day.max(1), window_max, full_at, written: 0, state: State::Ok };
        budget.poll_change(now);
        budget
    }

    /// The outbox has written so many bytes since it was opened. True when that is news.
    pub fn handle_written(&mut self, bytes_total: u64, now: Instant) -> bool {
        let bytes = bytes_total.saturating_sub(self.written);
        self.written = bytes_total;
        let per_day = u128::from(self.bytes_per_day) * u128::from(REFILL_QUARTERS);
        let micros = (u128::from(bytes) * DAY.as_micros() * 4).div_ceil(per_day);
        let lag = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.full_at = (self.full_at.max(now) + lag).min(now + LAG_MAX);
        bytes > 0
    }

    /// How long a commit is held back now.
    pub fn window(&self, now: Instant) -> Duration {
        let short = self.lag(now).saturating_sub(LAG_WIDE);
        let share = short.as_secs_f64() / (LAG_DRY - LAG_WIDE).as_secs_f64();
        self.window_max.mul_f64(share.min(1.0))
    }

    /// A change of state that was not told yet.
    pub fn poll_change(&mut self, now: Instant) -> Option<State> {
        let lag = self.lag(now);
        let state = match self.state {
            State::Ok | State::Widened | State::Exceeded if lag >= LAG_DRY => State::Exceeded,
            State::Exceeded if lag > LAG_FAIR => State::Exceeded,
            State::Ok if lag <= LAG_WIDE => State::Ok,
            State::Ok | State::Widened | State::Exceeded if lag > LAG_WELL => State::Widened,
            State::Ok | State::Widened | State::Exceeded => State::Ok,
        };
        (std::mem::replace(&mut self.state, state) != state).then_some(state)
    }

    /// When [`Budget::poll_change`] has something to say though nothing is written.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Ok => None,
            State::Widened => Some(self.full_at - LAG_WELL),
            State::Exceeded => Some(self.full_at - LAG_FAIR),
        }
    }

    /// For the next process.
    pub fn saved(&self) -> Saved {
        Saved { full_at_us: self.full_at.as_micros() }
    }

    /// For the status.
    pub fn status(&self, now: Instant) -> status::FlashBudget {
        let room = LAG_DRY.saturating_sub(self.lag(now)).as_micros() * u128::from(REFILL_QUARTERS);
        let left = u128::from(self.bytes_per_day) * room / (DAY.as_micros() * 4);
        status::FlashBudget {
            bytes_per_day: self.bytes_per_day,
            bytes_left: u64::try_from(left).unwrap_or(u64::MAX),
            window_ms: self.window(now).as_millis() as u64,
            state: self.state.as_str().into(),
        }
    }

    fn lag(&self, now: Instant) -> Duration {
        self.full_at.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const PAGE: u64 = 4096;

    /// A producer with one small record a second, alone on a lane, through so many days; returns the bytes of each
    /// hour, the commits, and the longest wait of a record.
    fn trickle(budget: &mut Budget, days: u64, start: Instant) -> (Vec<u64>, u64, Duration) {
        let (mut written, mut commits, mut longest) = (budget.written, 0, Duration::ZERO);
        let mut waits: Option<Instant> = None;
        let mut hours = vec![0; (days * 24) as usize];
        for second in 0..days * DAY.as_secs() {
            let now = start + Duration::from_secs(second);
            let since = *waits.get_or_insert(now);
            if since + budget.window(now) <= now {
                longest = longest.max(now.since(since));
                (commits, written, waits) = (commits + 1, written + PAGE, None);
                hours[(second / 3600) as usize] += PAGE;
                budget.handle_written(written, now);
            }
        }
        (hours, commits, longest)
    }

    fn most_in_24_hours(hours: &[u64]) -> u64 {
        hours.windows(24).map(|day| day.iter().sum()).max().unwrap_or(0)
    }

    fn full(bytes_per_day: u64, now: Instant) -> Budget {
        Budget::new(bytes_per_day, WINDOW_MAX, Some(Saved { full_at_us: 0 }), now)
    }

    #[test]
    fn a_budget_that_suffices_holds_nothing_back() {
        let start = Instant::default() + 2 * DAY;
        // 86,400 pages a day are 354 MB; the refill is three quarters.
        let mut budget = full(480_000_000, start);
        let (_, commits, longest) = trickle(&mut budget, 3, start);
        assert_eq!((commits, longest), (3 * 86_400, Duration::ZERO));
        assert_eq!(budget.poll_change(start + 3 * DAY), None);
    }

    #[test]
    fn a_budget_that_is_tight_holds_in_any_24_hours_and_is_used() {
        let start = Instant::default() + 2 * DAY;
        for bytes_per_day in [300_000_000, 100_000_000, 60_000_000] {
            let mut budget = full(bytes_per_day, start);
            let (hours, commits, longest) = trickle(&mut budget, 4, start);
            let most = most_in_24_hours(&hours);
            assert!(most <= bytes_per_day, "{most} bytes in 24 hours of {bytes_per_day}");
            assert!(most > bytes_per_day / 10 * 7, "{most} bytes in 24 hours of {bytes_per_day}: that is wasted");
            assert!(commits < 4 * 86_400 && longest <= WINDOW_MAX, "{commits} commits, {longest:?}");
            assert_eq!(budget.poll_change(start + 4 * DAY), Some(State::Widened));
        }
    }

    #[test]
    fn a_budget_that_cannot_hold_is_exceeded_and_the_wait_has_its_bound() {
        let start = Instant::default() + 2 * DAY;
        let mut budget = full(4_000_000, start);
        let (hours, commits, longest) = trickle(&mut budget, 2, start);
        assert_eq!(longest, WINDOW_MAX);
        assert!(commits >= 15_000, "{commits} commits: durability was given up");
        assert!(most_in_24_hours(&hours) > 4_000_000);
        let now = start + 2 * DAY;
        assert_eq!(budget.poll_change(now), Some(State::Exceeded));
        assert_eq!(budget.poll_change(now), None, "told once");
        assert_eq!((budget.status(now).bytes_left, budget.window(now)), (0, WINDOW_MAX));
        // However much it was, a day and the time to fill are the end of it.
        assert_eq!(budget.window(now + LAG_MAX), Duration::ZERO);
    }

    #[test]
    fn each_state_is_told_once_on_the_way_down_and_up() {
        let start = Instant::default() + 2 * DAY;
        let mut budget = full(96_000, start);
        assert_eq!((budget.poll_change(start), budget.poll_timeout()), (None, None));
        assert_eq!(budget.status(start).bytes_left, 24_000);
        assert!(budget.handle_written(12_000, start) && !budget.handle_written(12_000, start));
        assert_eq!((budget.poll_change(start), budget.window(start)), (None, Duration::ZERO));
        budget.handle_written(18_000, start);
        assert_eq!(budget.poll_change(start), Some(State::Widened));
        assert_eq!((budget.window(start), budget.status(start).bytes_left), (WINDOW_MAX / 2, 6000));
        budget.handle_written(24_000, start);
        assert_eq!(budget.poll_change(start), Some(State::Exceeded));
        let mut told = Vec::new();
        while let Some(at) = budget.poll_timeout() {
            assert_eq!(budget.poll_change(at - Duration::from_secs(1)), None);
            told.push((at.since(start), budget.poll_change(at)));
        }
        assert_eq!(told, [(2 * HOUR, Some(State::Widened)), (6 * HOUR, Some(State::Ok))]);
    }

    #[test]
    fn a_crash_loop_has_one_budget_and_a_strange_file_no_more_than_a_debt_of_a_day() {
        let start = Instant::default() + 2 * DAY;
        let (mut saved, mut now, mut state) = (None, start, State::Ok);
        for _ in 0..40 {
            let mut budget = Budget::new(100_000, WINDOW_MAX, saved, now);
            budget.handle_written(PAGE, now);
            state = budget.poll_change(now).unwrap_or(budget.state);
            saved = Some(budget.saved());
            now = now + Duration::from_secs(5);
        }
        assert_eq!(state, State::Exceeded);
        let budget = Budget::new(100_000, WINDOW_MAX, Some(Saved { full_at_us: u64::MAX }), now);
        assert_eq!(budget.window(now + LAG_MAX), Duration::ZERO);
        let mut unknown = Budget::new(100_000, WINDOW_MAX, None, now);
        assert_eq!((unknown.poll_change(now), unknown.window(now)), (None, Duration::ZERO));
    }

    #[test]
    fn absurd_budgets_and_counters_are_borne() {
        let now = Instant::from_micros(u64::MAX - 1);
        for bytes_per_day in [0, 1, 1 << 60, u64::MAX] {
            let mut budget = Budget::new(bytes_per_day, WINDOW_MAX, None, now);
            budget.handle_written(u64::MAX, now);
            budget.handle_written(0, Instant::default());
            budget.poll_change(now);
            let _ = budget.status(now);
            assert!(budget.window(now) <= WINDOW_MAX);
        }
    }
}
