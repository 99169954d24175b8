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
    jobs: VecDeque<Job>,
    busy: bool,
}

enum Job {
    Run(Run),
    Errand(Errand),
}

impl Runner {
    /// Behind what it was given before.
    pub fn run(self: &Arc<Self>, run: Run) {
        self.add(Job::Run(run));
    }

    /// The same for anything else that may take a while.
    pub fn give(self: &Arc<Self>, errand: Errand) {
        self.add(Job::Errand(errand));
    }

    /// Runs that have not begun are not begun any more; step and program of each. What runs goes on: a modem that is
    /// being reset is not left half reset.
    pub fn drop_runs(&self) -> Vec<(u8, Vec<String>)> {
        let mut queue = self.lock();
        let (mut dropped, mut kept) = (Vec::new(), VecDeque::new());
        for job in queue.jobs.drain(..) {
            match job {
                Job::Run(run) => dropped.push((run.step, run.exec)),
                Job::Errand(errand) => kept.push_back(Job::Errand(errand)),
            }
        }
        queue.jobs = kept;
        dropped
    }

    fn add(self: &Arc<Self>, job: Job) {
        let mut queue = self.lock();
        queue.jobs.push_back(job);
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
            let Some(job) = queue.jobs.pop_front() else {
                queue.busy = false;
                return;
            };
            drop(queue);
            match job {
                Job::Run(run) => perform(run),
                Job::Errand(errand) => errand(),
            }
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn a_run_that_waits_can_be_called_off_and_what_else_waits_is_done() {
        let dir = TempDir::new("runner");
        let ran = dir.join("ran");
        let runner = Arc::new(Runner::default());
        let run = |script: String, before: Errand| Run {
            step: 0,
            exec: ["/bin/sh".into(), "-c".into(), script].to_vec(),
            timeout: Duration::from_secs(60),
            environment: [("A", String::new()), ("B", String::new())],
            before,
        };
        let (begun, has_begun) = sync_channel(1);
        let (go_on, may_go_on) = sync_channel::<()>(1);
        let wait = Box::new(move || {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
        });
        runner.run(run(format!("echo first >> {}", ran.display()), wait));
        has_begun.recv().unwrap();
        let second = format!("echo second >> {}", ran.display());
        runner.run(run(second.clone(), Box::new(|| panic!("called off with its run"))));
        let (done, is_done) = sync_channel(1);
        runner.give(Box::new(move || done.send(()).unwrap()));
        assert_eq!(runner.drop_runs(), [(0, vec!["/bin/sh".to_owned(), "-c".into(), second])]);
        assert_eq!(runner.drop_runs(), Vec::new(), "once; not the one that runs");
        go_on.send(()).unwrap();
        is_done.recv().unwrap();
        assert_eq!(fs::read_to_string(&ran).unwrap(), "first\n");
    }
}
