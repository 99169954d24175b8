//! The page that shows the fleet: a handful of files over HTTP, from the receiver's own loop. It reads a request, answers,
//! and closes; what it shows is the caller's. Everything is bounded (visitors, bytes of a request, time, work in a
//! turn), so that nothing that happens here can disturb a session.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use crate::time::Instant;

/// At once; a newer one takes the place of the oldest.
const VISITORS_MAX: usize = 16;
/// From the accept to the end.
const VISIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a request's head.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Of a request's head.
const HEADERS_MAX: usize = 64;
/// New visitors in a turn, and steps of them.
const STEPS_PER_TURN_MAX: usize = 16;

const HTML: &str = include_str!("index.html");
const SCRIPT: &str = include_str!("fleet.js");
const STYLE: &str = include_str!("fleet.css");

/// For every answer: only what comes from here runs, and nobody keeps a copy.
const HEADERS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src \
    'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-store\r\n\
    Connection: close\r\n";

/// Listens, and answers its visitors.
pub struct Page {
    listener: TcpListener,
    local_addr: SocketAddr,
    /// The listener may have more.
    accepting: bool,
    /// By their ids, which rise: the first is the oldest.
    visitors: BTreeMap<usize, Visitor>,
    /// To be visited.
    ready: BTreeSet<usize>,
}

struct Visitor {
    socket: TcpStream,
    stage: Stage,
    deadline: Instant,
}

enum Stage {
    /// What came of the request.
    Asking(Vec<u8>),
    /// The answer, and how much of it is written.
    Answering(Vec<u8>, usize),
    /// Until the far end is gone: a socket dropped with unread bytes takes the answer with it (RFC 9293 § 3.10.4).
    Lingering,
}

/// How a step ended.
enum Step {
    Again,
    Blocked,
    Over,
}

impl Page {
    /// Wakes the loop with `token`.
    pub fn try_new(mut listener: TcpListener, registry: &Registry, token: Token) -> io::Result<Self> {
        registry.register(&mut listener, token, Interest::READABLE)?;
        let local_addr = listener.local_addr()?;
        Ok(Self { listener, local_addr, accepting: true, visitors: BTreeMap::new(), ready: BTreeSet::new() })
    }

    /// Where it listens; the port is the real one.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Someone is at the listener.
    pub fn handle_listener_ready(&mut self) {
        self.accepting = true;
    }

    /// A socket is ready; not necessarily one of ours.
    pub fn handle_ready(&mut self, id: usize) {
        if self.visitors.contains_key(&id) {
            self.ready.insert(id);
        }
    }

    /// Is there more to do?
    pub fn has_work(&self) -> bool {
        self.accepting || !self.ready.is_empty()
    }

    /// When the next visitor's time is over.
    pub fn deadline(&self) -> Option<Instant> {
        // The oldest is due first.
        self.visitors.values().next().map(|visitor| visitor.deadline)
    }

    /// A bounded piece of work. `fleet` is what `/fleet.json` shows; ids are taken from `next_id`.
    pub fn handle_turn(
        &mut self,
        registry: &Registry,
        next_id: &mut usize,
        now: Instant,
        mut fleet: impl FnMut() -> String,
    ) {
        self.visitors.retain(|_, visitor| visitor.deadline > now);
        for _ in 0..STEPS_PER_TURN_MAX {
            if !self.accepting {
                break;
            }
            match self.listener.accept() {
                Ok((socket, _)) => self.welcome(socket, registry, next_id, now),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                // For want of descriptors, too: the next visitor wakes us again.
                Err(_) => self.accepting = false,
            }
        }
        for _ in 0..STEPS_PER_TURN_MAX {
            let Some(id) = self.ready.pop_first() else { break };
            let Some(visitor) = self.visitors.get_mut(&id) else { continue };
            match visitor.step(&mut fleet) {
                Ok(Step::Again) => _ = self.ready.insert(id),
                Ok(Step::Blocked) => {}
                Ok(Step::Over) | Err(_) => _ = self.visitors.remove(&id),
            }
        }
    }

    fn welcome(&mut self, mut socket: TcpStream, registry: &Registry, next_id: &mut usize, now: Instant) {
        let id = *next_id;
        *next_id += 1;
        if registry.register(&mut socket, Token(id), Interest::READABLE | Interest::WRITABLE).is_err() {
            return;
        }
        if self.visitors.len() >= VISITORS_MAX {
            self.visitors.pop_first();
        }
        self.visitors.insert(id, Visitor { socket, stage: Stage::Asking(Vec::new()), deadline: now + VISIT_TIMEOUT });
        self.ready.insert(id);
    }
}

impl Visitor {
    /// One read or write.
    fn step(&mut self, fleet: &mut impl FnMut() -> String) -> io::Result<Step> {
        let mut bytes = [0; 4096];
        let stepped = match &mut self.stage {
            Stage::Asking(request) => match self.socket.read(&mut bytes) {
                Ok(0) => return Ok(Step::Over),
                Ok(count) => {
                    request.extend_from_slice(&bytes[..count]);
                    if let Some(answer) = answer(request, fleet) {
                        self.stage = Stage::Answering(answer, 0);
                    }
                    Ok(Step::Again)
                }
                Err(error) => Err(error),
            },
            Stage::Answering(answer, written) => match self.socket.write(&answer[*written..]) {
                Ok(count) => {
                    *written += count;
                    if *written == answer.len() {
                        self.socket.shutdown(Shutdown::Write)?;
                        self.stage = Stage::Lingering;
                    }
                    Ok(Step::Again)
                }
                Err(error) => Err(error),
            },
            Stage::Lingering => {
                self.socket.read(&mut bytes).map(|count| if count == 0 { Step::Over } else { Step::Again })
            }
        };
        match stepped {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Step::Blocked),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Step::Again),
            stepped => stepped,
        }
    }
}

/// The answer, once the request's head is there or will never be one.
fn answer(request: &[u8], fleet: &mut impl FnMut() -> String) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let text = |status, body: &str| Some(response(status, "text/plain", body));
    match head.parse(request) {
        Ok(httparse::Status::Partial) if request.len() > REQUEST_BYTES_MAX => {
            return text("431 Request Header Fields Too Large", "too long\n");
        }
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return text("400 Bad Request", "not HTTP\n"),
    }
    if head.method != Some("GET") {
        return text("405 Method Not Allowed\r\nAllow: GET", "only GET\n");
    }
    match head.path.unwrap_or_default() {
        "/" => Some(response("200 OK", "text/html", HTML)),
        "/fleet.js" => Some(response("200 OK", "text/javascript", SCRIPT)),
        "/fleet.css" => Some(response("200 OK", "text/css", STYLE)),
        "/fleet.json" => Some(response("200 OK", "application/json", &fleet())),
        _ => text("404 Not Found", "nothing here but / and /fleet.json\n"),
    }
}

fn response(status: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{HEADERS}Content-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn status(request: &[u8]) -> Option<String> {
        let answer = answer(request, &mut || "{}".into())?;
        Some(String::from_utf8(answer).unwrap().split(' ').nth(1).unwrap().into())
    }

    #[test]
    fn answers_get_for_what_there_is() {
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("GET /fleet.json HTTP/1.0\r\n\r\n", "200"),
            ("GET /fleet.js HTTP/1.1\r\n\r\n", "200"),
            ("GET /fleet.css HTTP/1.1\r\n\r\n", "200"),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("HEAD / HTTP/1.1\r\n\r\n", "405"),
            ("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", "405"),
            ("\u{16}\u{3}\u{1} hello", "400"),
        ] {
            assert_eq!(status(request.as_bytes()).as_deref(), Some(expected), "{request:?}");
        }
        let crowded = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(status(crowded.as_bytes()).as_deref(), Some("400"));
    }

    #[test]
    fn waits_for_the_end_of_a_request_but_not_for_ever() {
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(REQUEST_BYTES_MAX));
        assert_eq!(status(b"GET / HTTP/1.1\r\nHost:"), None);
        assert_eq!(status(&long.as_bytes()[..REQUEST_BYTES_MAX]), None);
        assert_eq!(status(long.as_bytes()).as_deref(), Some("431"));
    }

    #[test]
    fn nothing_of_it_comes_from_elsewhere() {
        for file in [HTML, SCRIPT, STYLE] {
            let elsewhere = file.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("//") || !elsewhere.contains("://"), "{file}");
            assert!(!file.contains(" style=") && !file.contains("innerHTML"), "the policy forbids it");
        }
        assert!(!HTML.contains("<script>") && !HTML.contains("<style"), "the policy forbids it");
    }
}
