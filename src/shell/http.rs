//! A handful of answers over HTTP, from someone's loop: it reads a request, answers, and closes; what is answered is the
//! caller's. GET and HEAD alone. Everything is bounded (visitors, bytes of a request, time, work in a turn), so that
//! nothing that happens here can disturb what else the loop does.

use std::borrow::Cow;
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

/// For every answer: only what comes from here runs, and nobody keeps a copy.
const HEADERS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src \
    'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCache-Control: no-store\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\nConnection: close\r\n";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The path, and what follows it.
    pub path: &'a str,
    /// Whom the visitor thinks it asks, with the port; `None`: it does not say.
    pub host: Option<&'a str>,
}

/// What is answered.
#[derive(Debug)]
pub struct Reply {
    status: &'static str,
    kind: &'static str,
    body: Cow<'static, str>,
}

impl Reply {
    /// 200, with a content type (its charset is added).
    pub fn ok(kind: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        Self { status: "200 OK", kind, body: body.into() }
    }

    /// Anything else, with a line for people.
    pub fn refusal(status: &'static str, body: &'static str) -> Self {
        Self { status, kind: "text/plain", body: body.into() }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let Self { status, kind, body } = self;
        let (length, shown) = (body.len(), if with_body { body } else { "" });
        format!(
            "HTTP/1.1 {status}\r\n{HEADERS}Content-Type: {kind}; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{shown}"
        )
        .into_bytes()
    }
}

/// Listens, and answers its visitors.
pub struct Http {
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

impl Http {
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

    /// A bounded piece of work. Ids are taken from `next_id`.
    pub fn handle_turn(
        &mut self,
        registry: &Registry,
        next_id: &mut usize,
        now: Instant,
        mut reply: impl FnMut(Request<'_>) -> Reply,
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
            match visitor.step(&mut reply) {
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
    fn step(&mut self, reply: &mut impl FnMut(Request<'_>) -> Reply) -> io::Result<Step> {
        let mut bytes = [0; 4096];
        let stepped = match &mut self.stage {
            Stage::Asking(request) => match self.socket.read(&mut bytes) {
                Ok(0) => return Ok(Step::Over),
                Ok(count) => {
                    request.extend_from_slice(&bytes[..count]);
                    if let Some(answer) = answer(request, reply) {
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
pub fn answer(request: &[u8], reply: &mut impl FnMut(Request<'_>) -> Reply) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let refuse = |status, body| Some(Reply::refusal(status, body).bytes(true));
    match head.parse(request) {
        Ok(httparse::Status::Partial) if request.len() > REQUEST_BYTES_MAX => {
            return refuse("431 Request Header Fields Too Large", "too long\n");
        }
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(_) => return refuse("400 Bad Request", "not HTTP\n"),
    }
    let with_body = match head.method {
        Some("GET") => true,
        Some("HEAD") => false,
        Some(_) | None => return refuse("405 Method Not Allowed\r\nAllow: GET, HEAD", "only GET and HEAD\n"),
    };
    let mut hosts = head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let host = hosts.next().map(|header| std::str::from_utf8(header.value).unwrap_or("?"));
    if hosts.next().is_some() {
        return refuse("400 Bad Request", "two hosts\n");
    }
    Some(reply(Request { path: head.path.unwrap_or_default(), host }).bytes(with_body))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn answered(request: &[u8]) -> Option<String> {
        let answer = answer(request, &mut |request| match (request.path, request.host) {
            ("/", None | Some("x")) => Reply::ok("text/html", "<p>"),
            _ => Reply::refusal("404 Not Found", "nothing\n"),
        });
        Some(String::from_utf8(answer?).unwrap())
    }

    #[test]
    fn answers_get_and_head_and_nothing_else() {
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "200"),
            ("GET / HTTP/1.0\r\n\r\n", "200"),
            ("HEAD / HTTP/1.1\r\nhOST: x\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400"),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", "404"),
            ("POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", "405"),
            ("\u{16}\u{3}\u{1} hello", "400"),
        ] {
            let answer = answered(request.as_bytes()).unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(expected), "{request:?}");
            let is_head = request.starts_with("HEAD");
            assert_eq!(answer.ends_with("\r\n\r\n"), is_head, "{answer}");
            assert!(!is_head || answer.contains("Content-Length: 3\r\n"), "{answer}");
        }
        let crowded = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(answered(crowded.as_bytes()).unwrap().starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn waits_for_the_end_of_a_request_but_not_for_ever() {
        let long = format!("GET / HTTP/1.1\r\na: {}", "b".repeat(REQUEST_BYTES_MAX));
        assert_eq!(answered(b"GET / HTTP/1.1\r\nHost:"), None);
        assert_eq!(answered(&long.as_bytes()[..REQUEST_BYTES_MAX]), None);
        assert!(answered(long.as_bytes()).unwrap().starts_with("HTTP/1.1 431 "));
    }
}
