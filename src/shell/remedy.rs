//! Remedies: programs that a person configured for an outage that nothing else ends. Each is run off the uplink's
//! thread, one at a time in the whole process, with a deadline at which its process group is killed. Which one and
//! when, the link decides.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::{info, warn};

use super::command;

/// Of what a remedy prints, bytes that reach the log.
const OUTPUT_BYTES_MAX: usize = 1024;
/// Enough for a process to be started and watched.
const STACK_BYTES: usize = 128 << 10;

/// Something to do off the uplink's thread.
pub type Errand = Box<dyn FnOnce() + Send>;

/// A run.
pub struct Run {
    /// For the log.
    pub step: u8,
    /// Program and arguments.
    pub exec: Vec<String>,
    /// It is killed after so long.
    pub timeout: Duration,
    /// What it is told.
    pub environment: [(&'static str, String); 2],
    /// Done before, on the same thread.
    pub before: Errand,
}

/// Runs what it is given, in order. Its thread is there only while there is something to do.
#[derive(Default)]
pub struct Runner {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    errands: VecDeque<Errand>,
    busy: bool,
}

impl Runner {
    /// Behind what it was given before.
    pub fn run(self: &Arc<Self>, run: Run) {
        self.give(Box::new(move || perform(run)));
    }

    /// The same for anything else that may take a while.
    pub fn give(self: &Arc<Self>, errand: Errand) {
        let mut queue = self.lock();
        queue.errands.push_back(errand);
        if queue.busy {
            return;
        }
        let runner = Arc::clone(self);
        let spawned = thread::Builder::new().name("remedy".into()).stack_size(STACK_BYTES).spawn(move || runner.work());
        match spawned {
            Ok(_) => queue.busy = true,
            Err(error) => warn!(target: "remedy", "no thread for it error={error}"),
        }
    }

    fn work(&self) {
        loop {
            let mut queue = self.lock();
            let Some(errand) = queue.errands.pop_front() else {
                queue.busy = false;
                return;
            };
            drop(queue);
            errand();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn perform(run: Run) {
    let Run { step, exec, timeout, environment, before } = run;
    before();
    let program = exec.first().map_or("", String::as_str);
    match command::run(&exec, &environment, OUTPUT_BYTES_MAX, timeout) {
        Ok((status, output)) => {
            let output = String::from_utf8_lossy(&output);
            info!(target: "remedy", "ended step={step} program={program} status={status:?} output={output:?}");
        }
        Err(fault) => warn!(target: "remedy", "failed step={step} program={program} fault={fault:?}"),
    }
}
