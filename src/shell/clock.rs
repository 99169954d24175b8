//! The clocks. Timers use `CLOCK_BOOTTIME`, which no one can set and which counts suspend; wall time is data.

use rustix::time::{ClockId, clock_gettime};

use crate::time::{CLOCK_SET_FLOOR_MS, Instant};

/// Now, on the boot clock.
pub fn now() -> Instant {
    let t = clock_gettime(ClockId::Boottime);
    Instant::from_micros(t.tv_sec as u64 * 1_000_000 + t.tv_nsec as u64 / 1000)
}

/// Unix time in ms, whatever the clock says.
pub fn wall_ms() -> u64 {
    let t = clock_gettime(ClockId::Realtime);
    (t.tv_sec as u64).saturating_mul(1000) + t.tv_nsec as u64 / 1_000_000
}

/// Wall time in ms, or `None` while the clock is evidently not set.
pub fn wall_ms_if_set() -> Option<u64> {
    let ms = wall_ms();
    (ms >= CLOCK_SET_FLOOR_MS).then_some(ms)
}
