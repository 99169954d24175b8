//! The rig: real processes in a folder of their own, for the tests and the demo. It knows the command line, the local
//! socket and the receiver's tables, and nothing of what happens inside.
//!
//! A process started here dies with the thread that started it (where util-linux's `setpriv` is present), so that not
//! even a killed test run leaves anything behind.

pub mod agent;
pub mod authority;
pub mod fault_server;
pub mod gate;
pub mod producer;
pub mod proxy;
#[cfg(feature = "receiver")]
pub mod receiver;
pub mod stopped;
mod temp_dir;
pub mod tls_front;

pub use temp_dir::TempDir;

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for something that has to happen: generous, for it is only ever used up by a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often something that has to happen is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Looks again and again until `look` finds something; `None` after `deadline`.
pub fn poll_until<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begin.elapsed() > deadline {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Looks again and again until `look` finds something.
///
/// # Panics
/// After `deadline`, naming `what` was awaited.
#[track_caller]
pub fn wait_for<T>(deadline: Duration, what: impl fmt::Display, look: impl FnMut() -> Option<T>) -> T {
    match poll_until(deadline, look) {
        Some(found) => found,
        None => panic!("{what}: not within {deadline:?}"),
    }
}

/// Asks again and again until `holds` is true.
///
/// # Panics
/// After `deadline`, naming `what` was awaited.
#[track_caller]
pub fn wait_until(deadline: Duration, what: impl fmt::Display, mut holds: impl FnMut() -> bool) {
    wait_for(deadline, what, || holds().then_some(()));
}

/// Says that a test, or a part of it, cannot be run here, past the captured output.
pub fn not_run(what: &str, why: &str) {
    let _closed = writeln!(std::io::stderr(), "\nNOT RUN: {what}: {why}\n");
}

/// Listens on a free port of loopback.
pub fn listen() -> (u16, TcpListener) {
    // Free a moment ago: another test may be trying it, too.
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(|listener| (port, listener));
    (0..100).find_map(|_| bind(free_port())).expect("one of a hundred ports stays free")
}

/// A TCP port on loopback that is free now and that no outgoing connection will be given: below the ephemeral range
/// (`ip_local_port_range`), so that it can be bound again after every kill, and that a dial to it while nobody
/// listens cannot connect to itself.
pub fn free_port() -> u16 {
    const FIRST: u32 = 15_000;
    const COUNT: u32 = 15_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + number % COUNT).expect("15,000 to 29,999");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port from {FIRST} on");
}

/// One of this package's programs: as cargo names it to a test, else beside the folder of this example. `BACKHAUL_AGENT`
/// names another agent, one of another architecture, say (`tests/arm/run`).
pub fn program(name: &str) -> PathBuf {
    if let Some(other) = std::env::var_os("BACKHAUL_AGENT").filter(|_| name == "backhaul") {
        return other.into();
    }
    let named = match name {
        "backhaul" => option_env!("CARGO_BIN_EXE_backhaul"),
        "backhaul-receiver" => option_env!("CARGO_BIN_EXE_backhaul-receiver"),
        other => panic!("{other} is none of our programs"),
    };
    let beside = || {
        let this = std::env::current_exe().expect("this program has a path");
        this.ancestors().nth(2).map(|target| target.join(name)).expect("an example lies two folders deep")
    };
    named.map_or_else(beside, PathBuf::from)
}

/// A command whose process is killed by the kernel when the thread that started it ends.
pub fn mortal(program: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let have_setpriv = *SETPRIV.get_or_init(|| {
        let probe = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).stderr(Stdio::null()).status();
        probe.is_ok_and(|status| status.success())
    });
    if !have_setpriv {
        return Command::new(program);
    }
    // It replaces itself by the program: same process, same id.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// [`mortal`], for a program that is run by another one (`nsenter …`); by none where `through` is empty.
pub fn mortal_through(through: &[String], program: &Path) -> Command {
    let Some((runner, arguments)) = through.split_first() else { return mortal(program) };
    let mut command = mortal(Path::new(runner));
    command.args(arguments).arg(program);
    command
}

/// The last lines of a log, for a failure's report.
fn tail(path: &Path) -> String {
    const LINES: usize = 60;
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
