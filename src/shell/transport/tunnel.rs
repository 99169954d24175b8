//! The tunnel through a proxy: HTTP CONNECT (RFC 9110 § 9.3.6), its answer, and what an answer other than yes means.
//! Over any stream, blocking or not.

use std::io::{ErrorKind, Read, Write};

use tungstenite::http::header::{DATE, RETRY_AFTER};

use crate::config::target::Target;
use crate::link::{self, Class, Failure};

/// Longest head of a proxy's answer, in bytes: nginx, Squid and Go's server take no longer ones either.
const HEAD_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;

/// The stage's name in a failure's detail.
const STAGE: &str = "proxy";

/// A CONNECT on its way.
pub struct Tunnel {
    request: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
}

impl Tunnel {
    /// To `target`, whose name is the proxy's to resolve. `authorization` is a header's value.
    pub fn new(target: &Target, agent: &str, authorization: Option<&str>) -> Self {
        let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
        let place = format!("{host}:{}", target.port);
        let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: {agent}\r\n");
        if let Some(authorization) = authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        Self { request: request.into_bytes(), sent: 0, head: Vec::new() }
    }

    /// Goes on as far as it can; true when the tunnel stands. What follows the answer's head stays in the stream.
    pub fn advance(&mut self, stream: &mut (impl Read + Write)) -> Result<bool, Failure> {
        let closed = || Failure::new(Class::Reset, format!("{STAGE}: closed without an answer"));
        while self.sent < self.request.len() {
            match stream.write(&self.request[self.sent..]) {
                Ok(0) => return Err(closed()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::from_io(&error, STAGE)),
            }
        }
        loop {
            // One by one, once an attempt: the byte behind the head is not ours.
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(0) => return Err(closed()),
                Ok(_) => self.head.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::from_io(&error, STAGE)),
            }
            if self.is_answered()? {
                return Ok(true);
            }
        }
    }

    fn is_answered(&self) -> Result<bool, Failure> {
        let garbage = |what: &str| Failure::new(Class::Protocol, format!("{STAGE}: {what}"));
        if !b"HTTP/1.".iter().zip(&self.head).all(|(expected, byte)| expected == byte) {
            return Err(garbage("the answer is no HTTP/1"));
        }
        if self.head.len() > HEAD_BYTES_MAX {
            return Err(garbage("the answer's head has no end"));
        }
        if !self.head.ends_with(b"\n") {
            return Ok(false);
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        match answer.parse(&self.head) {
            Ok(httparse::Status::Partial) => Ok(false),
            Ok(httparse::Status::Complete(_)) => judge(&answer).map(|()| true),
            Err(error) => Err(garbage(&format!("the answer is no HTTP: {error}"))),
        }
    }
}

/// What a proxy's answer means. It speaks of itself or of its way to the endpoint, never for the endpoint.
fn judge(answer: &httparse::Response<'_, '_>) -> Result<(), Failure> {
    let status = answer.code.unwrap_or_default();
    let class = match status {
        200..=299 => return Ok(()),
        // Some answer 401 where they mean 407.
        401 | 407 => Class::ProxyCredentials,
        // Its rules do not let us through to this host or port, or it knows no CONNECT.
        403..=405 | 451 | 501 => Class::WrongPlace,
        429 | 503 => Class::Overload,
        // It found no way to the endpoint, as we would without it.
        502 | 504 => Class::Unreachable,
        // A login page (3xx) among them: nothing here can follow it, somebody may log in.
        _ => Class::Closed,
    };
    let text = |name: &str| {
        let header = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok()
    };
    let mut failure = Failure::new(class, format!("{STAGE}: http {status}"));
    if class == Class::Overload {
        failure.server_wait_ms =
            text(RETRY_AFTER.as_str()).and_then(|value| link::retry_after_ms(value, text(DATE.as_str())));
    }
    Err(failure)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io;

    use super::*;

    /// A stream that takes and gives so many bytes at a time, and would block in between.
    struct Slow<'a> {
        given: &'a [u8],
        taken: Vec<u8>,
        step: usize,
        ready: bool,
        ends: bool,
    }

    impl Slow<'_> {
        fn blocks(&mut self) -> io::Result<()> {
            self.ready = !self.ready;
            if self.ready { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
        }
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.given.is_empty() && self.ends {
                return Ok(0);
            }
            self.blocks()?;
            if self.given.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = buffer.len().min(self.step).min(self.given.len());
            buffer[..count].copy_from_slice(&self.given[..count]);
            self.given = &self.given[count..];
            Ok(count)
        }
    }

    impl Write for Slow<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.blocks()?;
            let count = bytes.len().min(self.step);
            self.taken.extend(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn target() -> Target {
        Target::try_new("wss://ingest.example.com/v1").unwrap()
    }

    /// What comes of it, and what is left in the stream.
    fn asked(answer: &[u8], ends: bool) -> (Option<Result<(), Failure>>, Vec<u8>) {
        let mut stream = Slow { given: answer, taken: Vec::new(), step: 3, ready: false, ends };
        let mut tunnel = Tunnel::new(&target(), "backhaul/1", None);
        for _ in 0..3 * HEAD_BYTES_MAX {
            match tunnel.advance(&mut stream) {
                Ok(false) => {}
                Ok(true) => return (Some(Ok(())), stream.given.to_vec()),
                Err(failure) => return (Some(Err(failure)), stream.given.to_vec()),
            }
        }
        (None, stream.given.to_vec())
    }

    fn refused(answer: &[u8]) -> Failure {
        asked(answer, true).0.unwrap().unwrap_err()
    }

    #[test]
    fn the_request_names_the_target_and_carries_the_proxys_credentials_alone() {
        let mut stream = Slow { given: b"", taken: Vec::new(), step: 5, ready: false, ends: false };
        let mut tunnel = Tunnel::new(&target(), "backhaul/1", Some("Basic bWU6cA=="));
        for _ in 0..200 {
            assert_eq!(tunnel.advance(&mut stream), Ok(false));
        }
        let expected = "CONNECT ingest.example.com:443 HTTP/1.1\r\nHost: ingest.example.com:443\r\n\
                        User-Agent: backhaul/1\r\nProxy-Authorization: Basic bWU6cA==\r\n\r\n";
        assert_eq!(String::from_utf8(stream.taken).unwrap(), expected);
        let tunnel = Tunnel::new(&Target::try_new("ws://[::1]:9/").unwrap(), "a", None);
        assert!(tunnel.request.starts_with(b"CONNECT [::1]:9 HTTP/1.1\r\nHost: [::1]:9\r\n"));
    }

    #[test]
    fn what_follows_the_head_is_not_touched() {
        for head in
            ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n", "HTTP/1.1 204 \n\n"]
        {
            let (result, rest) = asked([head.as_bytes(), b"\r\n\0first bytes"].concat().as_slice(), false);
            assert_eq!((result, rest.as_slice()), (Some(Ok(())), &b"\r\n\0first bytes"[..]), "{head:?}");
        }
    }

    #[test]
    fn each_answer_has_its_class() {
        for (status, class) in [
            (301, Class::Closed),
            (400, Class::Closed),
            (401, Class::ProxyCredentials),
            (403, Class::WrongPlace),
            (404, Class::WrongPlace),
            (405, Class::WrongPlace),
            (407, Class::ProxyCredentials),
            (429, Class::Overload),
            (500, Class::Closed),
            (501, Class::WrongPlace),
            (502, Class::Unreachable),
            (503, Class::Overload),
            (504, Class::Unreachable),
        ] {
            let failure = refused(format!("HTTP/1.1 {status} No\r\nRetry-After: 7\r\n\r\n").as_bytes());
            assert_eq!((failure.class, failure.detail), (class, format!("proxy: http {status}")));
            assert_eq!(failure.server_wait_ms, (class == Class::Overload).then_some(7000), "{status}");
        }
    }

    #[test]
    fn garbage_is_told_at_once_and_an_endless_head_is_cut_off() {
        for garbage in [&b"SSH-2.0-OpenSSH\r\n"[..], b"\x15\x03\x01", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n"]
        {
            assert_eq!(refused(garbage).class, Class::Protocol, "{garbage:?}");
        }
        for filler in [b"a".repeat(3 * HEAD_BYTES_MAX), b"a: b\r\n".repeat(HEAD_BYTES_MAX)] {
            let (result, rest) = asked(&[b"HTTP/1.1 200 OK\r\nx: ", &filler[..]].concat(), false);
            assert_eq!(result.unwrap().unwrap_err().class, Class::Protocol);
            assert!(rest.len() >= HEAD_BYTES_MAX, "it stopped reading");
        }
    }

    #[test]
    fn an_end_before_the_answer_is_a_reset() {
        for start in ["", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\n"] {
            assert_eq!(refused(start.as_bytes()).class, Class::Reset, "{start:?}");
        }
        assert_eq!(asked(b"HTTP/1.1 200 OK\r\n", false).0, None, "it waits for the rest");
    }
}
