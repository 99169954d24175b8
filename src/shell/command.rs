//! A program of the operator's that prints one thing: run with a deadline, its output bounded, and its process group
//! gone when this returns. What it prints is known to the caller alone; its errors go nowhere, because they may quote
//! a secret.

use std::fs::File;
use std::io::{self, PipeReader, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::shell::clock;

/// How often it is looked whether the program has left or nobody waits for it any more.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Why there is no output.
#[derive(Debug)]
pub enum Fault {
    /// It could not be started or waited for.
    Io(io::Error),
    /// It left with this.
    Failed(ExitStatus),
    /// It was killed at the deadline.
    TimedOut,
    /// It was killed because it printed too much.
    TooLong,
    /// It was killed because nobody waits for it any more.
    Abandoned,
}

/// What the program prints, at most so many bytes, within `timeout` and as long as it is `wanted`.
pub fn output(
    command: &[String],
    bytes_max: usize,
    timeout: Duration,
    wanted: impl Fn() -> bool,
) -> Result<Vec<u8>, Fault> {
    let (pipe, writer) = io::pipe().map_err(Fault::Io)?;
    let mut process = process(command)?;
    process.stdout(writer).stderr(Stdio::null());
    let reader = Reader { pipe: Some(pipe), bytes: Vec::new(), bytes_max, cut: false };
    let (status, bytes) = to_its_end(process, reader, timeout, wanted)?;
    if status.success() { Ok(bytes) } else { Err(Fault::Failed(status)) }
}

/// How the program left, and the beginning of what it said, errors included.
pub fn run(
    command: &[String],
    environment: &[(&str, String)],
    bytes_max: usize,
    timeout: Duration,
) -> Result<(ExitStatus, Vec<u8>), Fault> {
    let (pipe, writer) = io::pipe().map_err(Fault::Io)?;
    let mut process = process(command)?;
    process.envs(environment.iter().map(|(name, value)| (name, value)));
    process.stderr(writer.try_clone().map_err(Fault::Io)?).stdout(writer);
    let reader = Reader { pipe: Some(pipe), bytes: Vec::new(), bytes_max, cut: true };
    to_its_end(process, reader, timeout, || true)
}

/// How a program left to which this was given as its standard input, and the beginning of what it printed.
pub fn feed(
    command: &[String],
    environment: &[(&str, String)],
    input: &[u8],
    bytes_max: usize,
    timeout: Duration,
    wanted: impl Fn() -> bool,
) -> Result<(ExitStatus, Vec<u8>), Fault> {
    let (pipe, writer) = io::pipe().map_err(Fault::Io)?;
    let mut process = process(command)?;
    process.envs(environment.iter().map(|(name, value)| (name, value)));
    process.stdin(file_of(input).map_err(Fault::Io)?).stdout(writer).stderr(Stdio::null());
    let reader = Reader { pipe: Some(pipe), bytes: Vec::new(), bytes_max, cut: true };
    to_its_end(process, reader, timeout, wanted)
}

/// A file in memory: unlike a pipe it takes everything, whether the program reads or not.
fn file_of(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("backhaul-command", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

fn process(command: &[String]) -> Result<Command, Fault> {
    let (program, arguments) = command.split_first().ok_or_else(|| Fault::Io(io::ErrorKind::InvalidInput.into()))?;
    let mut process = Command::new(program);
    process.args(arguments).stdin(Stdio::null()).process_group(0);
    Ok(process)
}

/// More than a pipe holds (pipe(7)), however small a read is.
const READS_AT_END_MAX: usize = 64;

fn to_its_end(
    mut process: Command,
    mut reader: Reader,
    timeout: Duration,
    wanted: impl Fn() -> bool,
) -> Result<(ExitStatus, Vec<u8>), Fault> {
    let group = Group(process.spawn().map_err(Fault::Io)?);
    // Our ends of the pipe that it writes to.
    drop(process);
    let deadline = clock::now() + timeout;
    loop {
        let left = deadline.since(clock::now());
        reader.read(left.min(LOOK_INTERVAL))?;
        if group.has_left().map_err(Fault::Io)? {
            // What it said last; a child of its own may hold the pipe open, and write into it for ever.
            for _ in 0..READS_AT_END_MAX {
                if !reader.read(Duration::ZERO)? {
                    break;
                }
            }
            break;
        }
        if left.is_zero() {
            return Err(Fault::TimedOut);
        }
        if !wanted() {
            return Err(Fault::Abandoned);
        }
    }
    let status = group.end().map_err(Fault::Io)?;
    Ok((status, reader.bytes))
}

struct Reader {
    /// `None` at its end.
    pipe: Option<PipeReader>,
    bytes: Vec<u8>,
    bytes_max: usize,
    /// What is beyond is dropped; else it is an error.
    cut: bool,
}

impl Reader {
    /// True when something was read.
    fn read(&mut self, wait: Duration) -> Result<bool, Fault> {
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
        let Some(pipe) = &mut self.pipe else {
            // It has closed its output, and has not left yet.
            poll(&mut [], Some(&wait)).map(drop).or_else(interrupted).map_err(Fault::Io)?;
            return Ok(false);
        };
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&wait)).map(drop).or_else(interrupted).map_err(Fault::Io)?;
        if fds[0].revents().is_empty() {
            return Ok(false);
        }
        let mut buffer = [0; 4096];
        let count = pipe.read(&mut buffer).map_err(Fault::Io)?;
        if count == 0 {
            self.pipe = None;
        }
        self.bytes.extend_from_slice(&buffer[..count]);
        if self.cut {
            self.bytes.truncate(self.bytes_max);
        }
        if self.bytes.len() > self.bytes_max { Err(Fault::TooLong) } else { Ok(count > 0) }
    }
}

fn interrupted(error: rustix::io::Errno) -> io::Result<()> {
    if error == rustix::io::Errno::INTR { Ok(()) } else { Err(error.into()) }
}

/// A process that leads a group of its own. The whole group is killed when this goes.
struct Group(Child);

impl Group {
    /// It has left, and is not reaped: its id stays its own until the group is killed.
    fn has_left(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        Ok(waitid(WaitId::Pid(Pid::from_child(&self.0)), options)?.is_some())
    }

    fn end(mut self) -> io::Result<ExitStatus> {
        self.kill();
        self.0.wait()
    }

    fn kill(&self) {
        // It may have no members any more.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After `end` it is reaped, and its id may be another's.
        if matches!(self.0.try_wait(), Ok(None)) {
            self.kill();
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    const LONG: Duration = Duration::from_secs(30);

    fn sh(script: &str, timeout: Duration) -> Result<Vec<u8>, Fault> {
        output(&["/bin/sh".into(), "-c".into(), script.into()], 1000, timeout, || true)
    }

    #[test]
    fn gives_what_it_prints_and_nothing_of_its_errors() {
        assert_eq!(sh("printf one; echo two >&2; printf three", LONG).unwrap(), b"onethree");
        assert_eq!(sh("read x; echo \"<$x>\"", LONG).unwrap(), b"<>\n", "there is nothing to read");
    }

    #[test]
    fn an_exit_status_is_told_without_the_output() {
        let Err(Fault::Failed(status)) = sh("echo secret; exit 3", LONG) else { panic!("it failed") };
        assert_eq!(status.code(), Some(3));
        assert!(matches!(sh("kill -9 $$", LONG), Err(Fault::Failed(status)) if status.code().is_none()));
        assert!(matches!(output(&["/no/such/program".into()], 9, LONG, || true), Err(Fault::Io(_))));
    }

    #[test]
    fn too_much_output_ends_it() {
        assert!(matches!(sh("yes", LONG), Err(Fault::TooLong)));
        assert_eq!(sh("printf %01000d 1", LONG).unwrap().len(), 1000);
    }

    /// Waits until the process whose id stands in this file has ended.
    fn wait_ended(file: &std::path::Path) {
        let id = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", id.trim());
        let begin = std::time::Instant::now();
        // Where nobody reaps orphans it stays as a zombie.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(begin.elapsed() < LONG, "it lives on");
            std::thread::yield_now();
        }
    }

    /// A shell and a child of it that would outlive it, whose id is in the file.
    fn family(file: &std::path::Path, then: &str) -> [String; 3] {
        ["/bin/sh".into(), "-c".into(), format!("sleep 1000 & echo $! > {}; {then}", file.display())]
    }

    #[test]
    fn at_the_deadline_the_whole_group_is_killed() {
        let dir = TempDir::new("command");
        let file = dir.join("pid");
        // However long the machine takes, it has begun when the deadline comes.
        let begun = || {
            while std::fs::read_to_string(&file).unwrap_or_default().is_empty() {
                std::thread::yield_now();
            }
            true
        };
        let (begin, timeout) = (std::time::Instant::now(), Duration::from_millis(300));
        assert!(matches!(output(&family(&file, "wait"), 9, timeout, begun), Err(Fault::TimedOut)));
        assert!(begin.elapsed() >= timeout);
        wait_ended(&file);
    }

    #[test]
    fn what_it_leaves_behind_does_not_hold_it_up_and_is_killed() {
        let dir = TempDir::new("command");
        let file = dir.join("pid");
        assert_eq!(output(&family(&file, "echo word"), 9, LONG, || true).unwrap(), b"word\n");
        wait_ended(&file);
    }

    #[test]
    fn a_program_that_closes_its_output_is_waited_for() {
        assert_eq!(sh("echo word; exec >&-; sleep 0.2; exit 0", LONG).unwrap(), b"word\n");
        assert!(matches!(sh("exec >&-; sleep 0.2; exit 4", LONG), Err(Fault::Failed(_))));
    }

    #[test]
    fn one_that_nobody_waits_for_is_killed() {
        let wanted = std::cell::Cell::new(3);
        let still = || wanted.replace(wanted.get() - 1) > 0;
        let result = output(&["/bin/sleep".into(), "1000".into()], 9, Duration::from_secs(1000), still);
        assert!(matches!(result, Err(Fault::Abandoned)));
    }
}
