//! The way to the agent's socket, for the commands that talk to it.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::status::{Link, Status};

/// Longest answer taken, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// An agent that takes longer to say how it is does not run.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// A line of the agent.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Numbered.
    Accepted(Named),
    /// On flash.
    Committed(Named),
    /// Stored upstream.
    Delivered(Named),
    /// Not taken.
    Error(Fault),
    /// The snapshot.
    Status(Box<Status>),
    /// Its link, at each change.
    Link(Box<Link>),
}

/// Which request an answer is for.
#[derive(Debug, Deserialize)]
pub struct Named {
    /// As the request had it.
    pub id: u64,
}

/// Why a request was not taken.
#[derive(Debug, Deserialize)]
pub struct Fault {
    /// One of the socket's error codes.
    pub code: String,
    /// For people.
    pub message: String,
    /// As the request had it; `None`: the connection as a whole.
    pub id: Option<u64>,
}

/// The next answer; `None`: the agent has ended the connection.
pub fn read_answer(lines: &mut impl BufRead, buf: &mut Vec<u8>) -> io::Result<Option<Answer>> {
    buf.clear();
    lines.take(ANSWER_BYTES_MAX).read_until(b'\n', buf)?;
    if buf.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(buf).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Why the socket cannot be used, for people.
pub fn words(socket: &Path, error: &io::Error) -> String {
    let (socket, kind) = (socket.display(), error.kind());
    if kind == io::ErrorKind::PermissionDenied {
        format!("{socket}: {error}; its group and root may use it (ls -l {socket})")
    } else if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&kind) {
        format!("no agent at {socket}: {error}")
    } else {
        format!("{socket}: {error}")
    }
}

/// Asks the agent how it is.
pub fn status(socket: &Path) -> io::Result<Status> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(STATUS_TIMEOUT))?;
    stream.write_all(b"{\"status\":{}}\n")?;
    match read_answer(&mut BufReader::new(stream), &mut Vec::new())? {
        Some(Answer::Status(status)) => Ok(*status),
        Some(Answer::Error(fault)) => Err(io::Error::other(format!("{}: {}", fault.code, fault.message))),
        Some(Answer::Accepted(_) | Answer::Committed(_) | Answer::Delivered(_) | Answer::Link(_)) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
        }
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
