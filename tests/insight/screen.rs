//! `backhaul status`: one screen, and the screen that draws itself again.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Instant;

use rustix::process::Signal;

use crate::support::{DEADLINE, program, wait_for};
use crate::{Bench, text};

#[test]
fn the_screen_of_a_real_agent_says_where_its_link_goes_and_what_its_lane_holds() {
    let mut bench = Bench::new(|_| ());
    bench.put(7);
    let status = bench.agent.wait_drained();
    assert_eq!((&status["lanes"][0]["put_total"], &status["lanes"][0]["acked_total"]), (&7.into(), &7.into()));
    assert!(status["lanes"][0]["put_per_s"].as_f64().unwrap() > 0.0);
    assert_eq!(status["link"]["path"]["address"], bench.receiver.address());
    assert_eq!(
        (&status["link"]["path"]["interface"], &status["link"]["path"]["local"]),
        (&"lo".into(), &"127.0.0.1".into())
    );
    let output = bench.status(&[]);
    let screen = text(output.stdout);
    assert!(output.status.success());
    assert!(screen.contains("\nlink    up for "), "{screen}");
    assert!(screen.contains(&format!("by lo from 127.0.0.1 to {}", bench.receiver.address())), "{screen}");
    assert!(!screen.contains('\x1b'), "no colours in a pipe: {screen}");
    assert!(screen.lines().count() <= 24 && screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    // And why it is not, in words.
    bench.receiver.kill9();
    bench.agent.wait_failures("refused", 1);
    let screen = wait_for(DEADLINE, "the screen says why", || {
        let screen = text(bench.status(&[]).stdout);
        screen.contains(" ago: nothing listens at the server's address\n        refused: dialing: ").then_some(screen)
    });
    assert!(screen.lines().count() <= 24, "{screen}");
}

/// What comes out of a process, bit by bit.
struct Heard {
    chunks: Receiver<Vec<u8>>,
    said: String,
    /// What came before the words that were waited for last.
    before: String,
}

impl Heard {
    fn new(mut out: impl Read + Send + 'static) -> Self {
        let (give, chunks) = sync_channel(1024);
        thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut buf) {
                if give.send(buf[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { chunks, said: String::new(), before: String::new() }
    }

    /// Waits until this comes, and forgets what was before it.
    #[track_caller]
    fn wait(&mut self, words: &str) {
        let begin = Instant::now();
        loop {
            if let Some(at) = self.said.find(words) {
                self.before = self.said.drain(..at + words.len()).collect();
                return;
            }
            let left = DEADLINE.saturating_sub(begin.elapsed());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.said += &String::from_utf8_lossy(&chunk),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{words:?} did not come; {:?} did", self.said)
                }
            }
        }
    }
}

/// `status` on a terminal of its own (script(1), of every Debian), after these words of the shell.
fn on_a_terminal(bench: &Bench, before: &str, args: &str) -> (Child, Heard) {
    let socket = bench.agent.socket().display();
    let line = format!("{before} exec {} status {args} --socket {socket}", program("backhaul").display());
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-f", "-c", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let heard = Heard::new(child.stdout.take().unwrap());
    (child, heard)
}

#[test]
fn on_a_terminal_the_watch_draws_each_change_in_place_waits_for_an_agent_that_goes_and_ends_at_an_interrupt() {
    let mut bench = Bench::new(|_| ());
    let (mut child, mut heard) = on_a_terminal(&bench, "", "--watch");
    heard.wait("\x1b[2J\x1b[H");
    heard.wait("\x1b[32mup for ");
    bench.put(3);
    heard.wait("\x1b[H");
    bench.receiver.kill9();
    heard.wait("nothing listens at the server's address");
    bench.agent.kill9();
    heard.wait("no agent at ");
    bench.agent.start();
    heard.wait("nothing listens at the server's address");
    // ^C, typed: the terminal makes SIGINT of it.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"\x03").unwrap();
    let left = wait_for(DEADLINE, "it leaves", || child.try_wait().unwrap());
    assert_eq!(left.code(), Some(0));
}

#[test]
fn colours_are_for_terminals_and_not_for_who_does_not_want_them() {
    let bench = Bench::new(|_| ());
    for (before, in_colours) in [("", true), ("NO_COLOR=1", false), ("NO_COLOR=", true), ("TERM=dumb", false)] {
        let (mut child, mut heard) = on_a_terminal(&bench, before, "");
        // The last line of the screen.
        heard.wait(" in queues");
        let left = wait_for(DEADLINE, "it leaves", || child.try_wait().unwrap());
        assert_eq!(left.code(), Some(0), "{before}");
        assert_eq!(heard.before.contains("\x1b[32mup for "), in_colours, "{before}: {}", heard.before);
        assert!(in_colours || !heard.before.contains('\x1b'), "{before}: {}", heard.before);
    }
}

#[test]
fn in_a_pipe_the_watch_writes_a_line_for_each_change_and_ends_with_its_reader() {
    let mut bench = Bench::new(|_| ());
    let mut command = Command::new(program("backhaul"));
    command.args(["status", "--watch", "--socket"]).arg(bench.agent.socket());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("up for ") && line.contains(&bench.receiver.address()), "{line}");
    assert_eq!(bench.receiver.leave(Signal::TERM).code(), Some(0));
    while !line.starts_with("waiting for ") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended");
        assert!(!line.contains('\x1b'), "{line}");
    }
    bench.agent.kill9();
    while !line.starts_with("no agent at ") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended");
    }
    drop(lines);
    let left = wait_for(DEADLINE, "it leaves", || child.try_wait().unwrap());
    assert_eq!(left.code(), Some(0));
}
