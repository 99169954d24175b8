//! Starts, supervises and stops the threads; the only place that knows all of them.
//!
//! The threads of one configuration are a [`Crew`]: they start together and they stop together, so that no thread
//! ever meets another's leftovers. One that panics ends its crew; a new crew starts, a few times, then the process
//! leaves with an error and the service manager takes over. A reload that the uplink can take up in place changes
//! no thread and ends no session; any other one is a new crew, with the new configuration.

mod bell;
mod crew;
mod setup;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::config::{Config, load};
use crate::exit;
use crate::shell::clock;
use crate::shell::disk::{self, Lock, Locked};
use crate::shell::notify::Notify;
use crate::time::Instant;
use bell::Bell;
use crew::{Crew, End, Role, StartError};
use setup::Process;

/// Crews that may end unasked in [`RESTARTS_WINDOW`]; the next one takes the process with it.
const RESTARTS_MAX: usize = 3;
/// Over which restarts are counted.
const RESTARTS_WINDOW: Duration = Duration::from_secs(600);
/// How long a stop may take, whatever flash and network do: within it, the process is told to leave by 2 s.
const STOP_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the old crew may take at a reload: there is no hurry, but two crews on one outbox must not be. Once someone
/// asks for a stop there is.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(20);

/// What is not in the configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the configuration was read, for a reload.
    pub config_path: PathBuf,
    /// Who this gateway is, resolved.
    pub device: String,
}

/// The agent's life.
pub fn run(config: Config, options: Options) -> ExitCode {
    // A dump would hold records and the token.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // Nor may another process of the same user look into this one (ptrace, /proc/PID/mem).
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let bell = match Bell::try_new() {
        Ok(bell) => bell,
        Err(error) => return leave(exit::SYSTEM, &format!("cannot watch signals error={error}")),
    };
    let lock = match lock(&config.outbox.dir) {
        Ok(lock) => lock,
        Err(code) => return code,
    };
    clock::learn_floor(&config.outbox.dir, &config.local.socket.with_file_name("backoff"));
    let process = Process::new();
    let mut agent = Agent {
        crew: None,
        crews: 0,
        told_alive: Instant::default(),
        restarts: Restarts::default(),
        notify: Notify::from_env(),
        config,
        options,
        process,
        bell,
        lock,
    };
    if let Err(error) = agent.start() {
        return leave(error.code(), &error.to_string());
    }
    agent.notify.ready();
    let (version, device, socket) =
        (env!("CARGO_PKG_VERSION"), &agent.options.device, agent.config.local.socket.display());
    log::info!(target: "agent", "ready version={version} device={device:?} socket={socket}");
    agent.supervise()
}

/// When crews ended unasked.
#[derive(Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// One more; how many there were in the window, this one included.
    fn count(&mut self, now: Instant) -> usize {
        self.0.retain(|at| now.since(*at) < RESTARTS_WINDOW);
        self.0.push_back(now);
        self.0.len()
    }
}

struct Agent {
    config: Config,
    options: Options,
    process: Process,
    bell: Bell,
    lock: Lock,
    notify: Notify,
    crew: Option<Crew>,
    /// Crews there ever were.
    crews: u64,
    told_alive: Instant,
    restarts: Restarts,
}

impl Agent {
    fn start(&mut self) -> Result<(), StartError> {
        self.lock.renew(&self.config.outbox.dir).map_err(|Locked| StartError::Locked)?;
        self.crews += 1;
        let crew = Crew::start(&self.config, &self.options.device, &self.process, &self.bell, self.crews)?;
        self.crew = Some(crew);
        Ok(())
    }

    /// Until it is told to stop or gives up.
    fn supervise(mut self) -> ExitCode {
        loop {
            self.bell.wait(self.notify.alive_interval());
            self.tell_alive();
            if self.bell.take_stop() {
                log::info!(target: "agent", "stopping");
                return self.stop(ExitCode::SUCCESS);
            }
            if self.bell.take_reload()
                && let Err(code) = self.reload()
            {
                return code;
            }
            if let Some((role, end)) = self.bell.take_end(self.crews) {
                match end {
                    End::GaveUp => {
                        log::error!(target: "agent", "the upstream cannot be reached, giving up as configured");
                        return self.stop(ExitCode::from(exit::UNAVAILABLE));
                    }
                    End::Left | End::Failed(_) | End::Panicked if role == Role::Page => {
                        // Records flow without it.
                        log::error!(target: "agent", "the page has ended how={end}");
                    }
                    End::Left | End::Failed(_) | End::Panicked => {
                        log::error!(target: "agent", "a thread has ended thread={role} how={end}");
                        if let Err(code) = self.restart() {
                            return code;
                        }
                    }
                }
            }
        }
    }

    /// The watchdog hears of us once an interval while every loop turns.
    fn tell_alive(&mut self) {
        let now = clock::now();
        let due = self.notify.alive_interval().is_some_and(|interval| now.since(self.told_alive) >= interval);
        if due && self.crew.as_ref().is_some_and(Crew::lives) {
            self.notify.alive();
        }
        if due {
            self.told_alive = now;
        }
    }

    fn stop(&mut self, code: ExitCode) -> ExitCode {
        self.notify.stopping();
        if let Some(crew) = self.crew.take()
            && !crew.stop(&self.bell, STOP_TIMEOUT)
        {
            // What it promised is on flash; the rest of its work needs no clean end.
            log::warn!(target: "agent", "leaving a thread behind that does not end");
        }
        code
    }

    fn restart(&mut self) -> Result<(), ExitCode> {
        let now = clock::now();
        let restarts = self.restarts.count(now);
        if restarts > RESTARTS_MAX {
            let code = leave(exit::SOFTWARE, &format!("{restarts} crews ended unasked, leaving"));
            return Err(self.stop(code));
        }
        self.replace().map_err(|error| leave(error.code(), &error.to_string()))?;
        log::warn!(target: "agent", "restarted restarts={restarts} at_most={RESTARTS_MAX}");
        Ok(())
    }

    /// A new crew in the place of the old one.
    fn replace(&mut self) -> Result<(), StartError> {
        if let Some(crew) = self.crew.take()
            && !crew.stop(&self.bell, RELOAD_TIMEOUT)
        {
            if self.bell.stop_is_asked() {
                self.notify.stopping();
                return Err(StartError::Stopped);
            }
            return Err(StartError::Stuck);
        }
        self.start()
    }

    fn set_log_level(&self) {
        log::set_max_level(self.config.log.level_filter().unwrap_or(log::LevelFilter::Info));
    }

    /// A configuration that is bad leaves the running one as it is; one that turns out not to work, too.
    fn reload(&mut self) -> Result<(), ExitCode> {
        self.notify.reloading();
        let result = self.try_reload();
        self.notify.ready();
        result
    }

    fn try_reload(&mut self) -> Result<(), ExitCode> {
        let loaded = match load::load(&self.options.config_path) {
            Ok(loaded) => loaded,
            Err(errors) => {
                for error in &errors {
                    log::error!(target: "config", "{error}");
                }
                log::error!(target: "config", "the new configuration is refused, the running one stays");
                return Ok(());
            }
        };
        for warning in &loaded.warnings {
            log::warn!(target: "config", "{warning}");
        }
        if loaded.config == self.config && loaded.device == self.options.device {
            log::info!(target: "config", "nothing has changed, credentials are looked at again");
            self.crew.iter().for_each(Crew::look_again);
            return Ok(());
        }
        if let Some(crew) = &self.crew
            && loaded.device == self.options.device
            && setup::in_place(&self.config, &loaded.config)
        {
            self.config = loaded.config;
            crew.take_up(&self.config, &self.options.device, &self.process, loaded.endpoints);
            crew.look_again();
            self.set_log_level();
            log::info!(target: "config", "reloaded in place");
            return Ok(());
        }
        let new_lock = if loaded.config.outbox.dir == self.config.outbox.dir {
            None
        } else if let Some(why) = disk::newer(&loaded.config.outbox.dir) {
            log::error!(target: "config", "refused: {why}");
            return Ok(());
        } else {
            match Lock::try_new(&loaded.config.outbox.dir) {
                Ok(lock) => Some(lock),
                Err(_) => {
                    let dir = loaded.config.outbox.dir.display();
                    log::error!(target: "config", "refused, another agent owns the outbox dir={dir}");
                    return Ok(());
                }
            }
        };
        let old = (std::mem::replace(&mut self.config, loaded.config), self.options.device.clone());
        self.options.device = loaded.device;
        match self.replace() {
            Ok(()) => {
                if let Some(lock) = new_lock {
                    self.lock = lock;
                }
                self.set_log_level();
                log::info!(target: "config", "reloaded");
                Ok(())
            }
            // Two crews on one outbox must not be: neither this one nor the old one again.
            Err(error @ (StartError::Stuck | StartError::Stopped)) => Err(leave(error.code(), &error.to_string())),
            Err(error) => {
                log::error!(target: "config", "the new configuration does not work, back to the old one error={error}");
                (self.config, self.options.device) = old;
                self.start().map_err(|error| leave(error.code(), &error.to_string()))
            }
        }
    }
}

fn lock(dir: &Path) -> Result<Lock, ExitCode> {
    if let Some(why) = disk::newer(dir) {
        return Err(leave(exit::DATA, &why));
    }
    let refused = |_| {
        let dir = dir.display();
        leave(exit::TRY_AGAIN, &format!("another agent owns the outbox dir={dir}"))
    };
    Lock::try_new(dir).map_err(refused)
}

fn leave(code: u8, why: &str) -> ExitCode {
    log::error!(target: "agent", "{why}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_bounded_in_a_window_and_begin_anew_behind_it() {
        let at = |s: u64| Instant::from_micros(s * 1_000_000);
        let mut restarts = Restarts::default();
        assert_eq!([0, 1, 2, 599].map(|s| restarts.count(at(s))), [1, 2, 3, RESTARTS_MAX + 1]);
        let mut rare = Restarts::default();
        assert_eq!([0, 300, 700, 1000, 1400].map(|s| rare.count(at(s))), [1, 2, 2, 2, 2]);
    }
}
