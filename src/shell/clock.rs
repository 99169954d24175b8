//! The clocks. Timers use `CLOCK_BOOTTIME`, which no one can set and which counts suspend (oxidezap/whatsapp-rust#1376,
//! xmidt-org/parodus#371); wall time is data, and known only from a floor on: a gateway without a battery starts in
//! 1970, or where it was switched off.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

use crate::time::{CLOCK_SET_FLOOR_MS, Instant};

/// When this program was built, Unix ms.
const BUILD_MS: u64 = match u64::from_str_radix(env!("BACKHAUL_BUILD_S"), 10) {
    Ok(s) => s.saturating_mul(1000),
    Err(_) => 0,
};

const YEAR_MS: u64 = 365 * 86_400_000;

/// How long after its build a program may run, at most: a later time is a mistake, and must not become the floor.
const LIFE_MS_MAX: u64 = 20 * YEAR_MS;

/// How long after the build a file may have been written, at most, to say something of the time. Beyond, a clock that
/// was wrong (2036 and 2038 are where clocks overflow) would keep every right one unset.
const FILES_MS_MAX: u64 = 10 * YEAR_MS;

/// So near two clocks are that are both right.
const AGREEMENT_MS_MAX: u64 = 3_600_000;

/// What no time before can be now, Unix ms.
static FLOOR_MS: AtomicU64 = AtomicU64::new(floor_of_build());

const fn floor_of_build() -> u64 {
    if BUILD_MS > CLOCK_SET_FLOOR_MS { BUILD_MS } else { CLOCK_SET_FLOOR_MS }
}

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
    Some(wall_ms()).filter(|ms| *ms >= floor_ms())
}

/// Whether this can be the time now: neither before the floor nor when nobody runs this program any more.
pub fn is_plausible(ms: u64) -> bool {
    (floor_ms()..floor_of_build().saturating_add(LIFE_MS_MAX)).contains(&ms)
}

fn floor_ms() -> u64 {
    FLOOR_MS.load(Ordering::Relaxed)
}

/// Time has passed since these were written, the files in the folder and the one file (arendst/Tasmota#9757): nothing
/// more is written for it. Called at the start.
pub fn learn_floor(folder: &Path, file: &Path) {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.metadata());
    let written = files.chain([fs::metadata(file)]).flatten().filter(Metadata::is_file).filter_map(written_ms);
    let latest = floor_of_build().saturating_add(FILES_MS_MAX);
    if let Some(newest) = written.filter(|ms| *ms < latest).max() {
        FLOOR_MS.fetch_max(newest, Ordering::Relaxed);
    }
}

/// The upstream says what time it is. Where the clock here says the same, it is set, whatever the files say: they were
/// written while it was wrong and ahead. True when that is news. The upstream alone sets nothing.
pub fn confirm(upstream_ms: u64) -> bool {
    let wall_ms = wall_ms();
    let agrees = wall_ms >= floor_of_build() && wall_ms.abs_diff(upstream_ms) <= AGREEMENT_MS_MAX;
    agrees && FLOOR_MS.fetch_min(wall_ms, Ordering::Relaxed) > wall_ms
}

fn written_ms(metadata: Metadata) -> Option<u64> {
    let since = metadata.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

/// Becomes readable when the wall clock reaches the floor, by itself or because someone set it: no polling.
pub struct Watch {
    timer: OwnedFd,
    was_set: bool,
}

impl Watch {
    /// A watch over the wall clock.
    pub fn try_new(registry: &Registry, token: Token) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        let mut watch = Self { timer, was_set: false };
        watch.was_set = watch.arm()?;
        Ok(watch)
    }

    /// The timer is readable: someone set the clock, or it has reached the floor. True when the time has just become known.
    pub fn on_ready(&mut self) -> bool {
        // ECANCELED where someone set the clock; what it says now is all that counts.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let is_set = self.arm().unwrap_or_else(|_| wall_ms_if_set().is_some());
        is_set && !std::mem::replace(&mut self.was_set, is_set)
    }

    /// Waits for the floor, or where it is passed for a step alone; says whether the clock is set.
    fn arm(&self) -> io::Result<bool> {
        loop {
            let (set_ms, wall_ms) = (wall_ms_if_set(), wall_ms());
            let due_ms = if set_ms.is_some() { wall_ms.saturating_add(YEAR_MS) } else { floor_ms() };
            let tv_nsec = (due_ms % 1000 * 1_000_000) as _;
            let at = Itimerspec {
                it_interval: Timespec::default(),
                it_value: Timespec { tv_sec: (due_ms / 1000) as i64, tv_nsec },
            };
            match timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &at) {
                // Armed, but the clock was set meanwhile.
                Ok(_) | Err(Errno::CANCELED) => {}
                Err(error) => return Err(error.into()),
            }
            if wall_ms_if_set().is_some() == set_ms.is_some() {
                return Ok(set_ms.is_some());
            }
        }
    }
}
