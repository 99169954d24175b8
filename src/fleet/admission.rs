//! Who may come in now, and who is told when to come back: a token bucket, and a virtual queue behind it. Used by the
//! receiver on real sockets and by the fleet's model server, so that what is planned is what happens.

use std::time::Duration;

use crate::time::Instant;

/// How those who are turned away spread themselves, in ms: `Retry-After` counts whole seconds, so the slots of one
/// second share one number.
const SPREAD_MS: u64 = 1_000;

/// How far the virtual queue reaches, at most, in ns: no agent obeys a longer wait (`server_wait_ms_max`), so slots
/// beyond would fall together. Who comes then begins a second round; so does one that comes again and again without
/// waiting, instead of putting everybody else off for ever.
const QUEUE_NS_MAX: u64 = 3_600 * 1_000_000_000;

/// `Retry-After` and `Backhaul-Spread-Ms` of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnedAway {
    /// `Retry-After`, in seconds.
    pub after_s: u64,
    /// `Backhaul-Spread-Ms`: plus uniform in [0, this].
    pub spread_ms: u64,
}

/// A token bucket of `burst` tokens that fills at `rate` a second, and the time that the virtual queue reaches to.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Nanoseconds that a token takes.
    token_ns: u64,
    /// Most that may be saved, in ns.
    burst_ns: u64,
    /// Saved, in ns.
    saved_ns: u64,
    /// When that was so.
    at: Instant,
    /// The last slot given out, in ns on the same clock.
    tail_ns: u64,
}

impl Admission {
    /// At most `rate` a second (at least 1), and `burst` at once after a pause (at least 1).
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let token_ns = 1_000_000_000 / u64::from(rate.max(1));
        let burst_ns = token_ns * u64::from(burst.max(1));
        Self { token_ns, burst_ns, saved_ns: burst_ns, at: now, tail_ns: 0 }
    }

    /// Who finds no token: the next free slot of the virtual queue is its.
    pub fn turn_away(&mut self, now: Instant) -> TurnedAway {
        let now_ns = now.as_micros().saturating_mul(1000);
        self.tail_ns = self.tail_ns.max(now_ns) + self.token_ns;
        if self.tail_ns - now_ns > QUEUE_NS_MAX {
            self.tail_ns = now_ns + self.token_ns;
        }
        let after_s = (self.tail_ns - now_ns) / 1_000_000_000;
        TurnedAway { after_s, spread_ms: SPREAD_MS }
    }

    /// May one come in? Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed_ns = u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX);
        self.saved_ns = self.saved_ns.saturating_add(passed_ns).min(self.burst_ns);
        self.at = self.at.max(now);
        let may = self.saved_ns >= self.token_ns;
        if may {
            self.saved_ns -= self.token_ns;
        }
        may
    }

    /// A token was not needed after all.
    pub fn give_back(&mut self) {
        self.saved_ns = self.saved_ns.saturating_add(self.token_ns).min(self.burst_ns);
    }

    /// When there will be a token.
    pub fn next(&self) -> Instant {
        self.at + Duration::from_nanos(self.token_ns.saturating_sub(self.saved_ns)).max(Duration::from_micros(1))
    }

    /// How far the virtual queue reaches.
    pub fn queue(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.tail_ns.saturating_sub(now.as_micros().saturating_mul(1000)))
    }
}
