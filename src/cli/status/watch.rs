//! `status --watch`: the screen drawn again on each change of the link and each second; a line for each change where
//! standard output is no terminal. An agent that goes is waited for. SIGINT, SIGTERM or a reader that goes end it.

use std::io::{self, BufReader, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::tcgetwinsize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use super::screen;
use crate::cli::client::{self, Answer};
use crate::exit;
use crate::shell::clock;
use crate::time::Instant;

/// How often the screen is drawn at least, and an agent that is not there is looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// An agent that answers so late does not run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Watches until told to stop.
pub fn run(socket: &Path, colours: bool) -> ExitCode {
    match Watch::try_new(socket, colours).and_then(|mut watch| watch.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backhaul: {}", client::words(socket, &error));
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            ExitCode::from(if denied { exit::PERMISSION } else { exit::IO })
        }
    }
}

struct Watch<'a> {
    socket: &'a Path,
    colours: bool,
    /// Standard output is a terminal: the screen is drawn, else a line a change is written.
    draws: bool,
    signals: UnixStream,
    agent: Option<BufReader<UnixStream>>,
    /// A snapshot was asked for and has not come.
    asked: bool,
    /// When to ask next.
    due: Instant,
    /// What was written last.
    shown: String,
}

impl<'a> Watch<'a> {
    fn try_new(socket: &'a Path, colours: bool) -> io::Result<Self> {
        let (signals, told) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM] {
            pipe::register(signal, told.try_clone()?)?;
        }
        let draws = io::stdout().is_terminal();
        let due = clock::now();
        Ok(Self { socket, colours, draws, signals, agent: None, asked: false, due, shown: String::new() })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            if clock::now() >= self.due {
                self.due = clock::now() + INTERVAL;
                self.look()?;
            }
            if !self.wait()? {
                return Ok(());
            }
            while self.agent.as_ref().is_some_and(|agent| !agent.buffer().is_empty()) {
                self.take_answer()?;
            }
        }
    }

    /// Asks the agent, or looks for it.
    fn look(&mut self) -> io::Result<()> {
        let asked = match &mut self.agent {
            Some(_) if self.asked || !self.draws => Ok(()),
            Some(agent) => agent.get_ref().write_all(b"{\"status\":{}}\n").map(|()| self.asked = true),
            None => UnixStream::connect(self.socket).and_then(|mut stream| {
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                stream.write_all(b"{\"watch\":{}}\n")?;
                (self.agent, self.asked) = (Some(BufReader::new(stream)), false);
                Ok(())
            }),
        };
        match asked {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            Err(error) => self.lost(&error),
            Ok(()) => Ok(()),
        }
    }

    /// Until something comes or is due; false: it is time to go. An answer that has begun is taken.
    fn wait(&mut self) -> io::Result<bool> {
        let out = io::stdout();
        // Without events it tells of a reader that is gone, and of that alone.
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&out, PollFlags::empty())];
        fds.extend(self.agent.as_ref().map(|agent| PollFd::new(agent.get_ref(), PollFlags::IN)));
        let timeout = Timespec::try_from(self.due.since(clock::now())).expect("at most a second");
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) => {}
            Err(error) if error == rustix::io::Errno::INTR => return Ok(true),
            Err(error) => return Err(error.into()),
        }
        let is = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        if is(0) || is(1) {
            return Ok(false);
        }
        if is(2) {
            self.take_answer()?;
        }
        Ok(true)
    }

    fn take_answer(&mut self) -> io::Result<()> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        match client::read_answer(agent, &mut Vec::new()) {
            Ok(Some(Answer::Link(link))) if !self.draws => self.show(screen::line(&link)),
            // The change is on the screen at once.
            Ok(Some(Answer::Link(_))) => {
                self.due = clock::now();
                Ok(())
            }
            Ok(Some(Answer::Status(status))) => {
                self.asked = false;
                self.show(screen::screen(&status, self.colours))
            }
            Ok(Some(Answer::Error(fault))) => self.lost(&io::Error::other(fault.message)),
            Ok(Some(Answer::Accepted(_) | Answer::Committed(_) | Answer::Delivered(_))) => Ok(()),
            Ok(None) => self.lost(&io::Error::from(io::ErrorKind::NotFound)),
            Err(error) => self.lost(&error),
        }
    }

    /// There is no agent now.
    fn lost(&mut self, error: &io::Error) -> io::Result<()> {
        (self.agent, self.asked) = (None, false);
        self.show(client::words(self.socket, error) + "\n")
    }

    fn show(&mut self, text: String) -> io::Result<()> {
        if text == self.shown {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        if self.draws {
            let rows = tcgetwinsize(&out).map_or(0, |size| usize::from(size.ws_row));
            let rows = if rows == 0 { usize::MAX } else { rows };
            // Home, each line cleared behind its end, then all below: nothing flickers.
            let clear = if self.shown.is_empty() { "\x1b[2J\x1b[H" } else { "\x1b[H" };
            let lines: Vec<&str> = text.lines().take(rows - 1).collect();
            let frame = format!("{clear}{}\x1b[K\r\n\x1b[J", lines.join("\x1b[K\r\n"));
            out.write_all(frame.as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()?;
        drop(out);
        self.shown = text;
        Ok(())
    }
}
