//! What wakes the main thread: signals and threads that end. It waits in one place, on one pipe.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::crew::{End, Role};
use crate::shell::clock;
use crate::time::Instant;

/// The main thread's side.
#[derive(Debug)]
pub(super) struct Bell {
    heard: UnixStream,
    rung: Arc<UnixStream>,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    /// Threads that are no more.
    ended: Arc<Mutex<Vec<Ended>>>,
}

/// A thread that is no more.
#[derive(Debug)]
struct Ended {
    crew: u64,
    role: Role,
    /// `None`: told.
    end: Option<End>,
}

/// A thread's side.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    crew: u64,
    rung: Arc<UnixStream>,
    ended: Arc<Mutex<Vec<Ended>>>,
}

impl Bell {
    /// Listens to SIGTERM, SIGINT and SIGHUP from here on.
    pub fn try_new() -> io::Result<Self> {
        let bell = Self::without_signals()?;
        for (signal, set) in [(SIGTERM, &bell.stop), (SIGINT, &bell.stop), (SIGHUP, &bell.reload)] {
            // In this order: whoever is woken finds the flag.
            flag::register(signal, Arc::clone(set))?;
            low_level::pipe::register(signal, bell.rung.try_clone()?)?;
        }
        Ok(bell)
    }

    fn without_signals() -> io::Result<Self> {
        let (heard, rung) = UnixStream::pair()?;
        // A full pipe rings already.
        rung.set_nonblocking(true)?;
        Ok(Self { heard, rung: Arc::new(rung), stop: Arc::default(), reload: Arc::default(), ended: Arc::default() })
    }

    /// Until something happens, or `timeout` is over.
    pub fn wait(&self, timeout: Option<Duration>) {
        // Zero would be for ever, and an error.
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        if self.heard.set_read_timeout(timeout).is_err() {
            return;
        }
        // Woken for nothing or by an error: the caller looks at the flags in any case.
        let _ = (&self.heard).read(&mut [0; 64]);
    }

    /// SIGTERM or SIGINT has come, and [`Bell::take_stop`] has not been asked since.
    pub fn stop_is_asked(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// SIGTERM or SIGINT came.
    pub fn take_stop(&self) -> bool {
        self.stop.swap(false, Ordering::SeqCst)
    }

    /// SIGHUP came.
    pub fn take_reload(&self) -> bool {
        self.reload.swap(false, Ordering::SeqCst)
    }

    /// A thread of this crew that has ended, and how; each one once.
    pub fn take_end(&self, crew: u64) -> Option<(Role, End)> {
        let mut ended = lock(&self.ended);
        let mut of_crew = ended.iter_mut().filter(|ended| ended.crew == crew);
        of_crew.find_map(|ended| Some((ended.role, ended.end.take()?)))
    }

    /// Waits for the end of a thread until this instant; false when it did not come in time. `impatience`: how much
    /// longer than to this moment where someone asks for a stop.
    pub fn wait_for_end(&self, crew: u64, role: Role, mut until: Instant, impatience: Duration) -> bool {
        let has_ended = || lock(&self.ended).iter().any(|ended| ended.crew == crew && ended.role == role);
        let mut asked = false;
        let found = loop {
            if has_ended() {
                break true;
            }
            let now = clock::now();
            if !asked && self.stop_is_asked() {
                (asked, until) = (true, until.min(now + impatience));
            }
            if now >= until {
                break false;
            }
            self.wait(Some(until.since(now)));
        };
        // What rang meanwhile was perhaps for another one.
        let _ = (&*self.rung).write(b"a");
        found
    }

    /// For the threads of a crew; what is known of earlier ones is forgotten.
    pub fn handle(&self, crew: u64) -> Handle {
        lock(&self.ended).retain(|ended| ended.crew >= crew);
        Handle { crew, rung: Arc::clone(&self.rung), ended: Arc::clone(&self.ended) }
    }
}

impl Handle {
    /// A thread has ended.
    pub fn ring(&self, role: Role, end: End) {
        let ended = Ended { crew: self.crew, role, end: Some(end) };
        lock(&self.ended).push(ended);
        let _ = (&*self.rung).write(b"e");
    }
}

fn lock(ended: &Mutex<Vec<Ended>>) -> MutexGuard<'_, Vec<Ended>> {
    ended.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// One that no signal rings.
    pub fn bell() -> Bell {
        Bell::without_signals().unwrap()
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_thread_soon_and_is_still_known_afterwards() {
        let bell = bell();
        let (stop, rung) = (Arc::clone(&bell.stop), Arc::clone(&bell.rung));
        let begin = clock::now();
        // As SIGTERM does.
        std::thread::spawn(move || {
            stop.store(true, Ordering::SeqCst);
            (&*rung).write_all(b"t").unwrap();
        });
        assert!(!bell.wait_for_end(1, Role::Outbox, begin + LONG, Duration::from_millis(50)));
        let took = clock::now().since(begin);
        assert!(took >= Duration::from_millis(50) && took < LONG, "{took:?}");
        bell.wait(None);
        assert!(bell.take_stop() && !bell.take_stop());
    }

    #[test]
    fn a_thread_that_ends_is_found_and_what_rang_for_others_rings_again() {
        let bell = bell();
        let handle = bell.handle(3);
        handle.ring(Role::Local, End::Left);
        handle.ring(Role::Uplink, End::Left);
        assert!(bell.wait_for_end(3, Role::Uplink, clock::now() + LONG, LONG));
        assert!(!bell.wait_for_end(4, Role::Uplink, clock::now(), LONG), "another crew's");
        bell.wait(None);
        assert!(matches!(bell.take_end(3), Some((Role::Local, End::Left))));
        assert!(matches!(bell.take_end(3), Some((Role::Uplink, End::Left))));
        assert!(bell.take_end(3).is_none());
    }
}
