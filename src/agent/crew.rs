//! The threads of one configuration: wired together, started together, stopped together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io, thread};

use super::bell::{Bell, Handle};
use super::setup::{self, Process};
use crate::config::{Config, Endpoint};
use crate::exit;
use crate::outbox::{Outbox, Report};
use crate::shell::board::Board;
use crate::shell::disk::RealDisk;
use crate::shell::lifetime;
use crate::shell::local::Local;
use crate::shell::outbox as keeper;
use crate::shell::port::{ForLocal, ForOutbox, ForPage, ForUplink, Port};
use crate::shell::uplink::{Exit, Uplink};
use crate::shell::{clock, entropy};

/// Enough for the deepest of them, TLS included, with much to spare.
const STACK_BYTES: usize = 256 << 10;
/// How long the local thread may wait for answers to what it took.
const ANSWERS_TIMEOUT: Duration = Duration::from_millis(500);

/// How long each thread may still take at a reload once someone asks for a stop.
const IMPATIENCE: Duration = Duration::from_millis(500);
/// How long those threads of a crew may take to end that run where another one cannot be had.
const PARTIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// A thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Outbox,
    Uplink,
    Local,
    Page,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbox => "outbox",
            Self::Uplink => "uplink",
            Self::Local => "local",
            Self::Page => "page",
        })
    }
}

/// How a thread ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to, or it thinks so.
    Left,
    /// `attempts_max` is reached.
    GaveUp,
    /// An error that it cannot go on with.
    Failed(io::Error),
    /// A bug.
    Panicked,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("left"),
            Self::GaveUp => f.write_str("gave up"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked => f.write_str("panicked"),
        }
    }
}

/// Why a crew did not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// The local socket.
    Socket(io::Error, PathBuf),
    /// The uplink's poll, or a thread.
    System(io::Error),
    /// A thread of the crew before does not end.
    Stuck,
    /// The same, and someone asks for a stop.
    Stopped,
    /// Someone removed the outbox's folder, and another agent has made it its own since.
    Locked,
}

impl StartError {
    /// As sysexits(3) has it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Socket(error, _) if error.kind() == io::ErrorKind::PermissionDenied => exit::PERMISSION,
            Self::Socket(..) => exit::CANNOT_CREATE,
            Self::System(_) => exit::SYSTEM,
            Self::Stuck => exit::SOFTWARE,
            Self::Stopped => 0,
            Self::Locked => exit::TRY_AGAIN,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error, path) => write!(f, "cannot listen socket={} error={error}", path.display()),
            Self::System(error) => write!(f, "cannot start error={error}"),
            Self::Stuck => f.write_str("a thread does not end"),
            Self::Stopped => {
                f.write_str("stopping in the midst of a reload, leaving a thread behind that does not end")
            }
            Self::Locked => f.write_str("another agent owns the outbox"),
        }
    }
}

/// The threads.
pub(super) struct Crew {
    number: u64,
    inbox: Arc<Port<ForOutbox>>,
    uplink: Arc<Port<ForUplink>>,
    local: Arc<Port<ForLocal>>,
    page: Option<Arc<Port<ForPage>>>,
    /// Set in each turn of the thread's loop. The outbox has none: flash that stalls is no reason to be shot.
    uplink_lives: Arc<AtomicBool>,
    local_lives: Arc<AtomicBool>,
}

impl Crew {
    /// Starts all threads, or none. The bell rings when one of them ends.
    pub fn start(
        config: &Config,
        device: &str,
        process: &Process,
        bell: &Bell,
        number: u64,
    ) -> Result<Self, StartError> {
        let inbox: Arc<Port<ForOutbox>> = Arc::default();
        let board = Arc::new(setup::board(config));
        let (uplink_lives, local_lives) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let source = setup::source(config, device, process, &board);
        let page = setup::page(config, process, source.clone()).map_err(StartError::System)?;
        let setup = setup::local(config, process, source, &inbox, &local_lives);
        let local = Local::try_new(setup).map_err(|error| StartError::Socket(error, config.local.socket.clone()))?;
        let setup = setup::uplink(config, device, process, &inbox, &uplink_lives, local.port());
        let uplink = Uplink::try_new(setup).map_err(StartError::System)?;
        let crew = Self {
            number,
            inbox: Arc::clone(&inbox),
            uplink: uplink.port(),
            local: local.port(),
            page: page.as_ref().map(|(port, _)| Arc::clone(port)),
            uplink_lives,
            local_lives,
        };
        let outbox_life = crew.outbox_life(config, device, process, &board);
        let uplink_life = move || match uplink.run(inbox, board) {
            Exit::Stopped => End::Left,
            Exit::GaveUp => End::GaveUp,
        };
        let local_life = move || local.run().map_or_else(End::Failed, |()| End::Left);
        let mut lives: Vec<(Role, Life)> = vec![
            (Role::Outbox, Box::new(outbox_life)),
            (Role::Uplink, Box::new(uplink_life)),
            (Role::Local, Box::new(local_life)),
        ];
        lives.extend(page.map(|(_, life)| -> (Role, Life) {
            (Role::Page, Box::new(move || life().map_or_else(End::Failed, |()| End::Left)))
        }));
        crew.spawn_all(bell, lives, spawn)?;
        Ok(crew)
    }

    /// Where one cannot be had, those that run already end: no outbox is ever held by two.
    fn spawn_all(&self, bell: &Bell, lives: Vec<(Role, Life)>, spawn: Spawn) -> Result<(), StartError> {
        let handle = bell.handle(self.number);
        let mut failed = None;
        for (role, life) in lives {
            if failed.is_none() {
                failed = spawn(role, &handle, life).err();
            }
            if failed.is_some() {
                handle.ring(role, End::Left);
            }
        }
        let Some(error) = failed else { return Ok(()) };
        Err(if self.stop(bell, PARTIAL_TIMEOUT) { StartError::System(error) } else { StartError::Stuck })
    }

    /// The outbox thread's life: opening may take a while, and whoever puts meanwhile waits for it.
    fn outbox_life(
        &self,
        config: &Config,
        device: &str,
        process: &Process,
        board: &Arc<Board>,
    ) -> impl FnOnce() -> End + Send + 'static {
        let dir = config.outbox.dir.clone();
        let disk = RealDisk::new(&dir);
        let event = setup::event_hook(config, process, &self.inbox);
        let keeper = keeper::Setup {
            boot: process.boot,
            inbox: Arc::clone(&self.inbox),
            uplink: Arc::clone(&self.uplink),
            local: Arc::clone(&self.local),
            board: Arc::clone(board),
            sync_times: disk.sync_times(),
            lifetime: lifetime::Reader::new(&dir),
            spending: setup::spending(config),
            done: keeper::DoneFile::new(dir.join("link").join("commands"), device),
            event: Arc::clone(&event),
        };
        let config_outbox = setup::outbox(config, device, process);
        move || {
            let (outbox, report) = Outbox::open(disk, &config_outbox, entropy::draw());
            tell(&report, &dir, &*keeper.event);
            keeper::run(outbox, keeper);
            End::Left
        }
    }

    /// The uplink goes on with another configuration, in which nothing else has changed. `found`: what its
    /// `endpoints_file` says, if that is good.
    pub fn take_up(&self, config: &Config, device: &str, process: &Process, found: Option<Vec<Endpoint>>) {
        let (inbox, lives, local) = (&self.inbox, &self.uplink_lives, Arc::clone(&self.local));
        let setup = setup::uplink(config, device, process, inbox, lives, local);
        self.uplink.give(|cell| cell.setup = Some((Box::new(setup), found)));
    }

    /// Credentials may have changed, or whatever else an attempt reads afresh.
    pub fn look_again(&self) {
        self.uplink.give(|cell| cell.sources_changed = true);
    }

    /// True when every loop has turned since the last call, and makes it turn again.
    pub fn lives(&self) -> bool {
        let lives = self.uplink_lives.swap(false, Ordering::Relaxed) & self.local_lives.swap(false, Ordering::Relaxed);
        self.uplink.give(|_| ());
        self.local.give(|_| ());
        lives
    }

    /// First no more comes in and what came in is answered, then it goes to flash, then the link is closed. False
    /// when a thread has not ended by `timeout`; it is left behind.
    pub fn stop(&self, bell: &Bell, timeout: Duration) -> bool {
        let deadline = clock::now() + timeout;
        let wait = |role, timeout: Duration| {
            let until = deadline.min(clock::now() + timeout);
            bell.wait_for_end(self.number, role, until, IMPATIENCE)
        };
        self.inbox.give(|cell| cell.hurry = true);
        if let Some(page) = &self.page {
            page.give(|cell| cell.stop = true);
        }
        self.local.give(|cell| cell.stop = true);
        if !wait(Role::Local, ANSWERS_TIMEOUT) {
            self.local.give(|cell| cell.leave = true);
        }
        self.inbox.give(|cell| cell.stop = true);
        // Flash that stalls must not keep the link from being closed.
        let flushed = wait(Role::Outbox, timeout / 2);
        self.uplink.give(|cell| cell.stop = true);
        let closed = wait(Role::Uplink, timeout);
        let flushed = flushed || wait(Role::Outbox, timeout);
        log::debug!(target: "agent", "stopped crew={} flushed={flushed} closed={closed}", self.number);
        let shown = self.page.is_none() || wait(Role::Page, timeout);
        flushed && closed && shown && wait(Role::Local, timeout)
    }
}

/// What a thread does.
type Life = Box<dyn FnOnce() -> End + Send>;
/// How it becomes a thread.
type Spawn = fn(Role, &Handle, Life) -> io::Result<()>;

/// Starts a thread that rings at its end.
fn spawn(role: Role, handle: &Handle, life: Life) -> io::Result<()> {
    let handle = handle.clone();
    let life = move || {
        // What the thread shared lies behind ports and boards, which stay valid; the rest dies with it.
        let end = catch_unwind(AssertUnwindSafe(life)).unwrap_or(End::Panicked);
        handle.ring(role, end);
    };
    let builder = thread::Builder::new().name(role.to_string()).stack_size(STACK_BYTES);
    builder.spawn(life).map(drop)
}

/// What was found goes to the log, and what someone should know of upstream, too.
fn tell(report: &Report, dir: &Path, event: &dyn Fn(&'static str, &str)) {
    log::info!(target: "outbox", "open dir={} notes={}", dir.display(), report.notes.len());
    for note in &report.notes {
        log::warn!(target: "outbox", "{note}");
    }
    if report.copied_image {
        let whose = if report.moved { "this device's on another machine or board" } else { "another device's" };
        log::warn!(target: "outbox", "it was {whose}: every lane starts a new epoch dir={}", dir.display());
        event("copied_image", &format!("the outbox was {whose}"));
    }
    for lane in &report.lost_lanes {
        log::warn!(target: "outbox", "no intact header is left, a new epoch begins lane={lane}");
        event("lane_lost", &format!("no intact header of lane {lane} is left: what it held cannot be told"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::bell::tests::bell as tests_bell;
    use super::*;

    fn crew() -> Crew {
        Crew {
            number: 1,
            inbox: Arc::default(),
            uplink: Arc::default(),
            local: Arc::default(),
            page: None,
            uplink_lives: Arc::new(AtomicBool::new(true)),
            local_lives: Arc::new(AtomicBool::new(true)),
        }
    }

    #[test]
    fn a_thread_that_cannot_be_had_ends_those_that_were_started_before() {
        for missing in [Role::Outbox, Role::Uplink, Role::Local] {
            let (crew, bell, left) = (crew(), tests_bell(), Arc::new(AtomicBool::new(false)));
            let (inbox, has_left) = (Arc::clone(&crew.inbox), Arc::clone(&left));
            let outbox = move || {
                let cell = inbox.filled.wait_while(inbox.lock(), |cell| !cell.stop);
                has_left.store(cell.is_ok_and(|cell| cell.stop), Ordering::SeqCst);
                End::Left
            };
            let uplink = Arc::clone(&crew.uplink);
            let uplink = move || {
                drop(uplink.filled.wait_while(uplink.lock(), |cell| !cell.stop));
                End::Left
            };
            let lives: Vec<(Role, Life)> = vec![
                (Role::Outbox, Box::new(outbox)),
                (Role::Uplink, Box::new(uplink)),
                (Role::Local, Box::new(|| End::Left)),
            ];
            let spawn: Spawn = match missing {
                Role::Outbox => |_, _, _| Err(io::ErrorKind::WouldBlock.into()),
                Role::Uplink => |role, handle, life| match role {
                    Role::Outbox => spawn(role, handle, life),
                    Role::Uplink | Role::Local | Role::Page => Err(io::ErrorKind::WouldBlock.into()),
                },
                Role::Local | Role::Page => |role, handle, life| match role {
                    Role::Outbox | Role::Uplink => spawn(role, handle, life),
                    Role::Local | Role::Page => Err(io::ErrorKind::WouldBlock.into()),
                },
            };
            let result = crew.spawn_all(&bell, lives, spawn);
            assert!(matches!(result, Err(StartError::System(_))), "{missing}: {result:?}");
            assert_eq!(left.load(Ordering::SeqCst), missing != Role::Outbox, "{missing}");
        }
    }

    #[test]
    fn the_watchdog_is_fed_only_while_both_loops_turn() {
        let crew = crew();
        assert!(crew.lives());
        assert!(!crew.lives(), "neither has turned since");
        // Each thread that stands still is enough.
        for (uplink, local) in [(true, false), (false, true), (true, true)] {
            crew.uplink_lives.store(uplink, Ordering::Relaxed);
            crew.local_lives.store(local, Ordering::Relaxed);
            assert_eq!(crew.lives(), uplink && local, "uplink {uplink} local {local}");
        }
    }
}
