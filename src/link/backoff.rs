//! How long to wait before the next attempt. Owns the exponents, the one random generator of the link and every
//! draw. It must not know states, endpoints or the time of day: a cause goes in, a duration comes out.
//!
//! The exponent counts what went wrong since a session last proved stable; only [`Backoff::on_stable`] lowers it
//! (pladaria/reconnecting-websocket#200). Every draw is made in microseconds, so that it is still random where the
//! configured bounds are a few milliseconds, and afresh at every wait, so that it is still random at the cap.

use std::time::Duration;

use fastrand::Rng;

use super::{Class, Disposition, Saved};
use crate::config::Reconnect;

/// A backoff of ceiling d is drawn from [f·d, d] with this f, in percent: with the defaults of `[upstream.reconnect]`
/// the one of a sweep that brings a fleet back soonest whatever the length of the outage (`docs/herd.md`). The draw
/// never exceeds the ceiling, so the cap is one (thin-edge/thin-edge.io#2935).
pub const JITTER_FLOOR_PERCENT: u64 = 80;

/// "Promptly" is uniform in [0, this], and never wider than `spread_ms`: gateways behind one switch, mast or fuse
/// see the same cause in the same instant.
const PROMPT_MS_MAX: u64 = 1_000;

/// First ceiling of the waits that bound a hint or a server's word which, repeated, would make a busy loop; doubled
/// at each repetition of a hint, and at each [`WORDS_PER_DOUBLING`] of a word, up to `backoff_ms_max`. Never more than
/// `backoff_ms_min`.
const FLOOR_MS_MIN: u64 = 1_000;

/// A server at its limit turns one device in a thousand away six times: that one must not pay for it with a wait
/// longer than the word (the last of 100,000 was back at 1.31 of the bound when each word doubled the floor).
const WORDS_PER_DOUBLING: u8 = 4;

/// Doublings, at most: from 10 ms, the least configurable, this is beyond any cap.
pub(super) const EXPONENT_MAX: u8 = 40;

/// The server's word on when to come back, not yet capped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    /// Not before this, in ms from now.
    pub(super) after_ms: u64,
    /// How it spreads its clients, in ms; `None`: as we do.
    pub(super) spread_ms: Option<u64>,
}

/// The exponents and the random generator.
#[derive(Debug)]
pub(super) struct Backoff {
    rng: Rng,
    /// 0: nothing went wrong since a session was last stable; n: the n-th ordinary wait is next.
    exponent: u8,
    /// Waits in the slow class since a session was last stable.
    slow_exponent: u8,
    /// The one prompt attempt since a session was last stable is spent.
    prompted: bool,
    /// Waits that a hint shortened since a session was last stable.
    hints: u8,
}

impl Backoff {
    pub(super) fn new(seed: u64, saved: Saved) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            exponent: saved.backoff_exponent.min(EXPONENT_MAX),
            slow_exponent: saved.slow_exponent.min(EXPONENT_MAX),
            prompted: false,
            hints: 0,
        }
    }

    /// Both exponents, ordinary and slow.
    pub(super) fn exponents(&self) -> (u8, u8) {
        (self.exponent, self.slow_exponent)
    }

    /// Uniform in [0, `ms_max`].
    pub(super) fn uniform(&mut self, ms_max: u64) -> Duration {
        Duration::from_micros(self.rng.u64(0..=ms_max.saturating_mul(1000)))
    }

    /// Somewhat below `ms_max`: uniform in [f·`ms_max`, `ms_max`].
    pub(super) fn at_most(&mut self, ms_max: u64) -> Duration {
        self.draw(ms_max, 0, ms_max)
    }

    /// A session proved stable: everything starts over.
    pub(super) fn on_stable(&mut self) {
        (self.exponent, self.slow_exponent, self.prompted, self.hints) = (0, 0, false, 0);
    }

    /// The wait after a failure; `None`: no further attempt. `upgraded`: the far end had accepted the upgrade.
    pub(super) fn wait(&mut self, limits: &Reconnect, class: Class, upgraded: bool) -> Option<Duration> {
        Some(match class.disposition() {
            // Once. Whatever makes it necessary again before a session was stable takes its turn with the others.
            Disposition::Promptly if !self.prompted => {
                self.prompted = true;
                self.prompt(limits)
            }
            Disposition::Promptly => self.ordinary(limits),
            // The edge from connected to disconnected is what a whole fleet shares: the widest spread is there
            // (elastic/elastic-agent#13874). Without a stable session since, it is a flap and backs off
            // (moq-dev/moq#1806).
            Disposition::Spread if upgraded && self.exponent == 0 => {
                self.exponent = 1;
                self.uniform(limits.spread_ms)
            }
            Disposition::Spread => self.ordinary(limits),
            // Close 1013.
            Disposition::Backoff if upgraded => self.ordinary(limits) + self.uniform(limits.spread_ms),
            Disposition::Backoff => self.ordinary(limits),
            Disposition::Slow => self.slow(limits),
            Disposition::Stop => return None,
        })
    }

    /// The wait that the server asks for, each of its numbers capped. Its word stands in for our backoff (it knows
    /// its queue, we do not), but zeros that repeat make no busy loop.
    pub(super) fn server_wait(&mut self, limits: &Reconnect, word: Word, server_wait_ms_max: u64) -> Duration {
        let after = Duration::from_millis(word.after_ms.min(server_wait_ms_max));
        let spread = self.uniform(word.spread_ms.unwrap_or(limits.spread_ms).min(server_wait_ms_max));
        // The first word is obeyed to the letter: slots of a planned restart would else fall together.
        let floor = match self.exponent {
            0 => Duration::ZERO,
            _ => self.floor(limits, self.level() / WORDS_PER_DOUBLING),
        };
        self.exponent = self.next_exponent();
        (after + spread).max(floor)
    }

    /// At once, but not in step with the neighbours.
    pub(super) fn prompt(&mut self, limits: &Reconnect) -> Duration {
        self.uniform(PROMPT_MS_MAX.min(limits.spread_ms))
    }

    /// From the start of the last attempt to the one that a hint may provoke, at least.
    pub(super) fn hint_gap(&mut self, limits: &Reconnect) -> Duration {
        let gap = self.floor(limits, self.hints);
        self.hints = self.hints.saturating_add(1).min(EXPONENT_MAX);
        gap
    }

    /// What to remember at the start of an attempt, in case the process dies in it: the exponent, and the wait from
    /// now. The first such death costs nothing, like any first local cause.
    pub(super) fn presumed_death(&mut self, limits: &Reconnect) -> (u8, Duration) {
        match self.exponent {
            0 => (1, Duration::ZERO),
            _ => (self.next_exponent(), self.draw(limits.backoff_ms_min, self.level(), limits.backoff_ms_max)),
        }
    }

    /// Between two looks at a preferred endpoint, and as long as a breaker stays open; doubled for each time that going
    /// back failed.
    pub(super) fn probe_wait(&mut self, limits: &Reconnect, doublings: u8) -> Duration {
        self.draw(limits.failback_ms, doublings.min(EXPONENT_MAX), limits.slow_ms_max.max(limits.failback_ms))
    }

    /// Before an attempt although this machine has no path.
    pub(super) fn path_wait(&mut self, limits: &Reconnect) -> Duration {
        self.draw(limits.slow_ms_min, 0, limits.slow_ms_max)
    }

    /// The next wait of the slow class, not yet spent.
    pub(super) fn slow_ahead(&mut self, limits: &Reconnect) -> Duration {
        self.draw(limits.slow_ms_min, self.slow_exponent, limits.slow_ms_max)
    }

    /// That wait is waited.
    pub(super) fn spend_slow(&mut self) {
        self.slow_exponent = (self.slow_exponent + 1).min(EXPONENT_MAX);
    }

    pub(super) fn ordinary(&mut self, limits: &Reconnect) -> Duration {
        let wait = self.draw(limits.backoff_ms_min, self.level(), limits.backoff_ms_max);
        self.exponent = self.next_exponent();
        wait
    }

    pub(super) fn slow(&mut self, limits: &Reconnect) -> Duration {
        let wait = self.slow_ahead(limits);
        self.spend_slow();
        wait
    }

    fn floor(&mut self, limits: &Reconnect, doublings: u8) -> Duration {
        self.draw(FLOOR_MS_MIN.min(limits.backoff_ms_min), doublings, limits.backoff_ms_max)
    }

    /// Doublings of the next ordinary wait: none for the first, whether or not a spread attempt preceded it.
    fn level(&self) -> u8 {
        self.exponent.saturating_sub(1)
    }

    fn next_exponent(&self) -> u8 {
        (self.exponent.max(1) + 1).min(EXPONENT_MAX)
    }

    /// Uniform in [f·d, d], d = min(`ms_min` · 2^`doublings`, `ms_max`).
    fn draw(&mut self, ms_min: u64, doublings: u8, ms_max: u64) -> Duration {
        let ceiling_us = ms_min.saturating_mul(1 << doublings).min(ms_max).saturating_mul(1000);
        let floor_us = ceiling_us / 100 * JITTER_FLOOR_PERCENT;
        Duration::from_micros(self.rng.u64(floor_us..=ceiling_us))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const SEEDS: u64 = 2_000;

    fn limits() -> Reconnect {
        Reconnect::default()
    }

    fn fresh(seed: u64) -> Backoff {
        Backoff::new(seed, Saved::default())
    }

    /// Asserts that every draw lies in [floor, ceiling] ms and that the draws use the whole of it.
    fn assert_fills(draws: &[Duration], floor_ms: u64, ceiling_ms: u64) {
        let (low, high) = (Duration::from_millis(floor_ms), Duration::from_millis(ceiling_ms));
        let (least, most) = (*draws.iter().min().unwrap(), *draws.iter().max().unwrap());
        assert!(least >= low && most <= high, "[{least:?}, {most:?}] outside [{low:?}, {high:?}]");
        let margin = (high - low) / 20;
        assert!(
            least < low + margin && most > high - margin,
            "[{least:?}, {most:?}] does not fill [{low:?}, {high:?}]"
        );
    }

    /// The n-th wait of every seed, when each failure is of this class.
    fn nth_waits(class: Class, upgraded: bool, n: usize) -> Vec<Duration> {
        let nth = |seed| {
            let mut backoff = fresh(seed);
            (0..=n).map(|_| backoff.wait(&limits(), class, upgraded).unwrap()).last().unwrap()
        };
        (0..SEEDS).map(nth).collect()
    }

    #[test]
    fn each_disposition_shows_its_own_sequence() {
        // xmidt-org/parodus#264: what was documented as exponential was constant. Observe every step.
        let ordinary = [(28_000, 35_000), (32_000, 40_000), (32_000, 40_000)];
        let with = |first, rest: &[(u64, u64)]| [&[first], rest].concat();
        let slow = [(240_000, 300_000), (480_000, 600_000), (960_000, 1_200_000), (1_920_000, 2_400_000)];
        let cases = [
            (Class::Refused, false, ordinary.to_vec()),
            (Class::Name, false, ordinary.to_vec()),
            (Class::Overload, false, ordinary.to_vec()),
            (Class::Reset, true, with((0, 35_000), &ordinary)),
            (Class::Silent, true, with((0, 35_000), &ordinary)),
            (Class::Replaced, true, with((0, 35_000), &ordinary)),
            (Class::Local, true, with((0, 1_000), &ordinary)),
            (Class::Renewed, true, with((0, 1_000), &ordinary)),
            (Class::Credentials, false, with(slow[0], &[slow[1], slow[2], slow[3], (2_880_000, 3_600_000)])),
        ];
        for (class, upgraded, expected) in cases {
            for (n, (floor, ceiling)) in expected.into_iter().enumerate() {
                assert_fills(&nth_waits(class, upgraded, n), floor, ceiling);
            }
        }
    }

    #[test]
    fn close_1013_adds_the_spread_to_the_backoff() {
        let waits = nth_waits(Class::Overload, true, 0);
        assert!(waits.iter().all(|wait| (28_000..=70_000).contains(&wait.as_millis())));
        assert!(waits.iter().any(|wait| wait.as_millis() > 60_000));
    }

    #[test]
    fn it_is_still_random_at_the_cap() {
        let mut backoff = fresh(1);
        let at_cap: Vec<_> =
            (0..1_100).map(|_| backoff.wait(&limits(), Class::Refused, false).unwrap()).skip(100).collect();
        assert_fills(&at_cap, 32_000, 40_000);
        let mut distinct = at_cap.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > at_cap.len() * 99 / 100, "{} distinct draws", distinct.len());
    }

    #[test]
    fn no_draw_leaves_its_bounds_whatever_the_limits() {
        for seed in 0..SEEDS {
            let mut rng = Rng::with_seed(seed);
            let mut ms = || 1u64 << rng.u32(3..50);
            let (spread_ms, backoff_ms_min, backoff_ms_max) = (ms(), ms(), ms());
            let (slow_ms_min, slow_ms_max) = (ms(), ms());
            let limits = Reconnect { spread_ms, backoff_ms_min, backoff_ms_max, slow_ms_min, slow_ms_max, ..limits() };
            let mut backoff = fresh(seed);
            for round in 0..100 {
                let ordinary = backoff.ordinary(&limits);
                let slow = backoff.slow(&limits);
                let (_, presumed) = backoff.presumed_death(&limits);
                let low = Duration::from_millis(backoff_ms_min.min(backoff_ms_max)) / 100 * 79;
                for (wait, max) in [(ordinary, backoff_ms_max), (slow, slow_ms_max), (presumed, backoff_ms_max)] {
                    assert!(wait <= Duration::from_millis(max), "seed {seed} round {round}: {wait:?} > {max} ms");
                }
                assert!(ordinary >= low, "seed {seed} round {round}: {ordinary:?} < {low:?}");
                assert!(backoff.exponent <= EXPONENT_MAX && backoff.slow_exponent <= EXPONENT_MAX);
            }
        }
    }

    #[test]
    fn two_seeds_never_share_a_sequence() {
        let mut sequences: Vec<_> = (0..SEEDS)
            .map(|seed| {
                let mut backoff = fresh(seed);
                [(); 3].map(|()| backoff.wait(&limits(), Class::Refused, false).unwrap())
            })
            .collect();
        sequences.sort_unstable();
        sequences.dedup();
        assert_eq!(sequences.len() as u64, SEEDS);
    }

    #[test]
    fn the_servers_word_is_a_lower_bound_and_its_spread_is_used() {
        let word = Word { after_ms: 7_000, spread_ms: Some(5_000) };
        let waits: Vec<_> = (0..SEEDS).map(|seed| fresh(seed).server_wait(&limits(), word, 3_600_000)).collect();
        assert_fills(&waits, 7_000, 12_000);
        let ours: Vec<_> = (0..SEEDS)
            .map(|seed| fresh(seed).server_wait(&limits(), Word { spread_ms: None, ..word }, 3_600_000))
            .collect();
        assert_fills(&ours, 7_000, 42_000);
    }

    #[test]
    fn the_servers_word_is_capped_and_still_random_at_the_cap() {
        let word = Word { after_ms: u64::MAX, spread_ms: Some(u64::MAX) };
        let waits: Vec<_> = (0..SEEDS).map(|seed| fresh(seed).server_wait(&limits(), word, 60_000)).collect();
        assert_fills(&waits, 60_000, 120_000);
    }

    #[test]
    fn a_server_that_says_zero_again_and_again_makes_no_busy_loop() {
        let mut backoff = fresh(3);
        let word = Word { after_ms: 0, spread_ms: Some(0) };
        let mut wait =
            |times: u32| (0..times).map(|_| backoff.server_wait(&limits(), word, 3_600_000)).sum::<Duration>();
        let (first, second) = (wait(20), wait(20));
        assert!(first > Duration::from_secs(60) && second > Duration::from_secs(600), "{first:?} {second:?}");
    }

    #[test]
    fn only_stability_lowers_the_exponent() {
        let mut backoff = fresh(5);
        for class in Class::ALL.into_iter().cycle().take(500) {
            let before = backoff.exponents();
            backoff.wait(&limits(), class, true);
            let after = backoff.exponents();
            assert!(after.0 >= before.0 && after.1 >= before.1, "{class:?}: {before:?} → {after:?}");
        }
        backoff.on_stable();
        assert_eq!(backoff.exponents(), (0, 0));
    }
}
