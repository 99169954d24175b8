//! `backhaul listen`: prints commands from upstream as they come. One is done when it is printed; whoever needs more
//! than that talks to the socket, or is a `[[handler]]`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::args::ListenArgs;
use super::client::{self, Fault};
use super::socket;
use crate::commands::COMMANDS_MAX;
use crate::exit;

/// An agent that was never there is waited for so long; one that was, for ever.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// A command of 1 MiB that JSON writes as six, and its keys.
const LINE_BYTES_MAX: u64 = 8 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Heard {
    Command(Command),
    Error(Fault),
}

#[derive(Deserialize)]
struct Command {
    seq: u64,
    stream: u64,
    topic: String,
    text: Option<String>,
    base64: Option<String>,
}

/// Why a connection is of no more use.
enum Over {
    /// The agent is gone: it is waited for.
    Gone(io::Error),
    /// Leave with this code.
    Leave(u8),
}

struct Listening<'a> {
    args: &'a ListenArgs,
    /// Printed last: an agent that was killed may give them again.
    printed: VecDeque<(u64, u64)>,
    count: u64,
}

/// Runs the command.
pub fn run(args: &ListenArgs) -> ExitCode {
    let path = match socket(&args.agent) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let mut listening = Listening { args, printed: VecDeque::with_capacity(COMMANDS_MAX), count: 0 };
    let mut first = Some(Instant::now() + FIRST_TIMEOUT);
    let mut told = false;
    loop {
        let error = match UnixStream::connect(&path) {
            Ok(stream) => {
                first = None;
                let before = listening.count;
                match listening.hear(&stream) {
                    Over::Leave(code) => return ExitCode::from(code),
                    Over::Gone(error) => {
                        told &= listening.count == before;
                        error
                    }
                }
            }
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::PermissionDenied {
            return leave(&path, &error, exit::PERMISSION);
        }
        if first.is_some_and(|until| Instant::now() >= until) {
            return leave(&path, &error, exit::UNAVAILABLE);
        }
        if !std::mem::replace(&mut told, true) {
            tell(&format!("waiting for the agent: {}", client::words(&path, &error)));
        }
        thread::sleep(RETRY_INTERVAL);
    }
}

fn leave(path: &Path, error: &io::Error, code: u8) -> ExitCode {
    tell(&client::words(path, error));
    ExitCode::from(code)
}

fn tell(message: &str) {
    // Where stderr is gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "backhaul: {message}");
}

impl Listening<'_> {
    fn hear(&mut self, stream: &UnixStream) -> Over {
        let topic = serde_json::to_string(&self.args.topic).expect("a string");
        let mut say = stream;
        if let Err(error) = writeln!(say, "{{\"subscribe\":{{\"topic\":{topic}}}}}") {
            return Over::Gone(error);
        }
        let (mut lines, mut line) = (BufReader::new(stream), Vec::new());
        loop {
            line.clear();
            match lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => {}
                Ok(_) => return Over::Gone(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return Over::Gone(error),
            }
            match serde_json::from_slice(&line) {
                Ok(Heard::Command(command)) => {
                    if let Err(over) = self.take(&command, &line, say) {
                        return over;
                    }
                }
                Ok(Heard::Error(Fault { code, message, .. })) => {
                    tell(&format!("{code}: {message}"));
                    return match code.as_str() {
                        "busy" | "shutting_down" => Over::Gone(io::Error::other(code)),
                        _ => Over::Leave(exit::USAGE),
                    };
                }
                Err(error) => {
                    tell(&format!("the agent says what this version does not know: {error}"));
                    return Over::Leave(exit::DATA);
                }
            }
        }
    }

    fn take(&mut self, command: &Command, line: &[u8], mut say: &UnixStream) -> Result<(), Over> {
        let name = (command.stream, command.seq);
        if !self.printed.contains(&name) {
            let text = if self.args.json { object(line) } else { words(command) };
            let mut out = io::stdout().lock();
            match out.write_all(&text).and_then(|()| out.flush()) {
                Ok(()) => {}
                // A reader that went away has read enough; what it did not get is for the next one.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Over::Leave(0)),
                Err(error) => {
                    tell(&format!("standard output: {error}"));
                    return Err(Over::Leave(exit::IO));
                }
            }
            self.printed.truncate(COMMANDS_MAX - 1);
            self.printed.push_front(name);
            self.count += 1;
        }
        let (stream, seq) = name;
        writeln!(say, "{{\"done\":{{\"seq\":{seq},\"stream\":{stream}}}}}").map_err(Over::Gone)?;
        if self.args.count.is_some_and(|count| self.count >= count) {
            // It has heard us when it closes, too.
            let _ = say.shutdown(Shutdown::Write);
            let _ = say.set_read_timeout(Some(FIRST_TIMEOUT));
            while matches!(say.read(&mut [0; 4096]), Ok(1..)) {}
            return Err(Over::Leave(0));
        }
        Ok(())
    }
}

/// What stands in the line that the agent wrote.
fn object(line: &[u8]) -> Vec<u8> {
    let inner = line.strip_prefix(b"{\"command\":").and_then(|rest| rest.strip_suffix(b"}\n"));
    [inner.unwrap_or(line), b"\n"].concat()
}

/// A line for people and for `while read -r topic body`: nothing in a command makes a second one of it.
fn words(command: &Command) -> Vec<u8> {
    let mut line = String::new();
    escape(&mut line, &command.topic);
    line.push(' ');
    match (&command.text, &command.base64) {
        (Some(text), _) => escape(&mut line, text),
        (None, base64) => {
            line.push_str("base64:");
            line.push_str(base64.as_deref().unwrap_or_default());
        }
    }
    line.push('\n');
    line.into_bytes()
}

fn escape(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() || c == '\\' {
            let _infallible = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_line_whatever_is_in_it() {
        let command = |text: Option<&str>, base64: Option<&str>| Command {
            seq: 3,
            stream: 7,
            topic: "valve/\n1".into(),
            text: text.map(ToOwned::to_owned),
            base64: base64.map(ToOwned::to_owned),
        };
        assert_eq!(words(&command(Some("öffnen \"1\"\r\n\\"), None)), "valve/\\n1 öffnen \"1\"\\r\\n\\\\\n".as_bytes());
        assert_eq!(words(&command(None, Some("AP8="))), b"valve/\\n1 base64:AP8=\n");
        assert_eq!(object(b"{\"command\":{\"seq\":3}}\n"), b"{\"seq\":3}\n");
    }
}
