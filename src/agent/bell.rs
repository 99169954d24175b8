//! What wakes the main thread: signals and threads that end. It waits in one place, on one pipe.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::crew::{End, Role};

/// The main thread's side.
#[derive(Debug)]
pub(super) struct Bell {
    heard: UnixStream,
    rung: Arc<UnixStream>,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    list: Arc<List>,
}

#[derive(Debug, Default)]
struct List {
    ended: Mutex<Vec<Ended>>,
    longer: Condvar,
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
    list: Arc<List>,
}

impl Bell {
    /// Listens to SIGTERM, SIGINT and SIGHUP from here on.
    pub fn try_new() -> io::Result<Self> {
        let (heard, rung) = UnixStream::pair()?;
        // A full pipe rings already.
        rung.set_nonblocking(true)?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, set) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &reload)] {
            // In this order: whoever is woken finds the flag.
            flag::register(signal, Arc::clone(set))?;
            low_level::pipe::register(signal, rung.try_clone()?)?;
        }
        Ok(Self { heard, rung: Arc::new(rung), stop, reload, list: Arc::default() })
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
        let mut ended = self.list.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of_crew = ended.iter_mut().filter(|ended| ended.crew == crew);
        of_crew.find_map(|ended| Some((ended.role, ended.end.take()?)))
    }

    /// Waits for the end of a thread; false when it did not come in time.
    pub fn wait_for_end(&self, crew: u64, role: Role, timeout: Duration) -> bool {
        let ended = self.list.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let lives = |ended: &mut Vec<Ended>| !ended.iter().any(|ended| ended.crew == crew && ended.role == role);
        let waited = self.list.longer.wait_timeout_while(ended, timeout, lives);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// For the threads of a crew; what is known of earlier ones is forgotten.
    pub fn handle(&self, crew: u64) -> Handle {
        self.list.ended.lock().unwrap_or_else(PoisonError::into_inner).retain(|ended| ended.crew >= crew);
        Handle { crew, rung: Arc::clone(&self.rung), list: Arc::clone(&self.list) }
    }
}

impl Handle {
    /// The crew that it was made for.
    pub fn crew(&self) -> u64 {
        self.crew
    }

    /// A thread has ended.
    pub fn ring(&self, role: Role, end: End) {
        let ended = Ended { crew: self.crew, role, end: Some(end) };
        self.list.ended.lock().unwrap_or_else(PoisonError::into_inner).push(ended);
        self.list.longer.notify_all();
        let _ = (&*self.rung).write(b"e");
    }
}
