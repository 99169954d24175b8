//! Failure classes, and what each one asks for. Owns the closed list, the disposition of each class and the
//! translation of what the shell saw (an I/O error, a close code, an HTTP status) into a class. It must not know
//! how long anything waits.

use std::fmt;
use std::io::{self, ErrorKind};

/// Longest [`Failure::detail`], in bytes.
pub const DETAIL_BYTES_MAX: usize = 200;

/// What ended an attempt or a session, as a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// No carrier, address or route here.
    Local,
    /// This side ended the session on purpose, to begin a better one (a new epoch, a reload).
    Renewed,
    /// The name does not resolve.
    Name,
    /// Connection refused.
    Refused,
    /// Host or network unreachable beyond this machine.
    Unreachable,
    /// Reset, broken pipe, end of stream without a close frame.
    Reset,
    /// The handshake did not finish in time.
    Timeout,
    /// TLS failed for a reason that a retry may cure.
    Tls,
    /// The certificate is not the server's: unknown CA, other name, expired.
    Certificate,
    /// Not yet valid while our own clock is not set.
    ClockUnset,
    /// HTTP 401/403, close 3000/3003/4001.
    Credentials,
    /// HTTP 404/426, a redirect elsewhere, no subprotocol in common.
    WrongPlace,
    /// HTTP 429/503, close 1013.
    Overload,
    /// The far end broke the protocol, or says that we did (1002, 1003, 1007–1010, garbage).
    Protocol,
    /// Pings went unanswered.
    Silent,
    /// Records in flight were not acked in time.
    Stalled,
    /// Replaced by a newer connection of the same device (4009).
    Replaced,
    /// Replaced again and again.
    Clone,
    /// The server said when to come back (`retry`).
    ServerRetry,
    /// Any other close or HTTP status: remote and transient.
    Closed,
    /// The session reached its maximum age.
    Aged,
    /// This side ended a session at a backup: a preferred endpoint is back.
    Failback,
    /// HTTP 407: the proxy wants other credentials.
    ProxyCredentials,
    /// The agent stops.
    Stopped,
}

const _: () = {
    let mut index = 0;
    while index < Class::COUNT {
        assert!(
            Class::ALL[index] as usize == index,
            "ALL is in the order of declaration: counters are indexed by class"
        );
        index += 1;
    }
};

impl Class {
    /// Number of classes.
    pub const COUNT: usize = Self::ALL.len();

    /// All classes, in the order of declaration.
    pub const ALL: [Self; 24] = [
        Self::Local,
        Self::Renewed,
        Self::Name,
        Self::Refused,
        Self::Unreachable,
        Self::Reset,
        Self::Timeout,
        Self::Tls,
        Self::Certificate,
        Self::ClockUnset,
        Self::Credentials,
        Self::WrongPlace,
        Self::Overload,
        Self::Protocol,
        Self::Silent,
        Self::Stalled,
        Self::Replaced,
        Self::Clone,
        Self::ServerRetry,
        Self::Closed,
        Self::Aged,
        Self::Failback,
        Self::ProxyCredentials,
        Self::Stopped,
    ];

    /// Its name in `status`, the log and `hello.last`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Renewed => "renewed",
            Self::Name => "name",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
            Self::Certificate => "certificate",
            Self::ClockUnset => "clock_unset",
            Self::Credentials => "credentials",
            Self::WrongPlace => "wrong_place",
            Self::Overload => "overload",
            Self::Protocol => "protocol",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
            Self::Replaced => "replaced",
            Self::Clone => "clone",
            Self::ServerRetry => "server_retry",
            Self::Closed => "closed",
            Self::Aged => "aged",
            Self::Failback => "failback",
            Self::ProxyCredentials => "proxy_credentials",
            Self::Stopped => "stopped",
        }
    }

    /// What it asks for.
    pub const fn disposition(self) -> Disposition {
        match self {
            Self::Local | Self::Renewed | Self::Aged | Self::Failback => Disposition::Promptly,
            Self::Refused
            | Self::Unreachable
            | Self::Reset
            | Self::Timeout
            | Self::Tls
            | Self::Protocol
            | Self::Silent
            | Self::Stalled
            | Self::Replaced
            | Self::ServerRetry
            | Self::Closed => Disposition::Spread,
            Self::Name | Self::Overload => Disposition::Backoff,
            // OpenVPN/openvpn#932: a refusal needs its own, slow class.
            Self::Certificate
            | Self::ClockUnset
            | Self::Credentials
            | Self::WrongPlace
            | Self::Clone
            | Self::ProxyCredentials => Disposition::Slow,
            Self::Stopped => Disposition::Stop,
        }
    }

    /// It speaks of one address, not of the endpoint: the next address may do better. An answer of the server
    /// itself is none of these, lest one refusal becomes one attempt an address.
    pub(super) const fn concerns_address(self) -> bool {
        match self {
            Self::Local
            | Self::Refused
            | Self::Unreachable
            | Self::Reset
            | Self::Timeout
            | Self::Tls
            | Self::Certificate => true,
            Self::Renewed
            | Self::Name
            | Self::ClockUnset
            | Self::Credentials
            | Self::WrongPlace
            | Self::Overload
            | Self::Protocol
            | Self::Silent
            | Self::Stalled
            | Self::Replaced
            | Self::Clone
            | Self::ServerRetry
            | Self::Closed
            | Self::Aged
            | Self::Failback
            | Self::ProxyCredentials
            | Self::Stopped => false,
        }
    }

    /// The cause may lie on this side, so that a change in the network here may cure it. A name that does not
    /// resolve and a neighbour that does not answer are what a pulled cable looks like from inside.
    pub(super) const fn may_be_local(self) -> bool {
        matches!(self, Self::Local | Self::Name | Self::Unreachable)
    }

    /// Nobody answered: what a pulled cable looks like, too.
    pub(super) const fn may_be_silence(self) -> bool {
        self.may_be_local() || matches!(self, Self::Timeout | Self::Silent | Self::Stalled)
    }

    /// Somebody answered.
    pub(super) const fn is_answer(self) -> bool {
        matches!(
            self,
            Self::Refused
                | Self::Tls
                | Self::Certificate
                | Self::ClockUnset
                | Self::Credentials
                | Self::ProxyCredentials
                | Self::WrongPlace
                | Self::Overload
                | Self::Protocol
                | Self::Replaced
                | Self::Clone
                | Self::ServerRetry
                | Self::Closed
        )
    }

    /// Not this side's own doing: an attempt or a session that failed.
    pub(super) const fn is_failure(self) -> bool {
        !matches!(self, Self::Renewed | Self::Aged | Self::Failback | Self::Stopped)
    }

    /// What was refused are credentials.
    pub(super) const fn is_of_credentials(self) -> bool {
        matches!(self, Self::Credentials | Self::ProxyCredentials)
    }

    /// Other files may cure it.
    pub(super) fn wants_other_sources(self) -> bool {
        self.is_of_credentials() || self == Self::Certificate
    }

    /// Something that changes on this side may cure it: files, the clock.
    pub(super) fn may_be_cured_here(self) -> bool {
        self.wants_other_sources() || self == Self::ClockUnset
    }
}

/// What a class asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// At once: it was this side's doing or cause.
    Promptly,
    /// Spread the first attempt after a session, then ordinary backoff.
    Spread,
    /// Ordinary backoff from the first attempt on.
    Backoff,
    /// The slow class, loud.
    Slow,
    /// No further attempt.
    Stop,
}

/// A class and what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The class.
    pub class: Class,
    /// What was seen, for people: one line, at most [`DETAIL_BYTES_MAX`] bytes, nothing secret.
    pub detail: String,
    /// The server's word on when to come back, in ms, not yet capped.
    pub server_wait_ms: Option<u64>,
    /// The server's word on how to spread its clients, in ms (`Backhaul-Spread-Ms`), not yet capped.
    pub server_spread_ms: Option<u64>,
    /// The code in the far end's close frame, where that was the end.
    pub close_code: Option<u16>,
}

impl Failure {
    /// A failure of this class; the detail is cut and freed of control characters.
    pub fn new(class: Class, detail: impl Into<String>) -> Self {
        let detail = one_line(detail.into());
        Self { class, detail, server_wait_ms: None, server_spread_ms: None, close_code: None }
    }

    /// What an I/O error means while doing `stage` (`dialing`, `securing`, `up`, …).
    pub fn from_io(error: &io::Error, stage: &str) -> Self {
        let class = match error.raw_os_error() {
            // ENODEV (the interface is gone), ENFILE and EMFILE have no kind. Their numbers are the same on every Linux.
            Some(19 | 23 | 24) => Class::Local,
            _other => class_of_io(error.kind()),
        };
        Self::new(class, format!("{stage}: {error}"))
    }

    /// What a close frame means (RFC 6455 § 7.4 and IANA's registry; protocol rule 11). 1005 stands for a close
    /// without a code, 1006 for an end without a close frame.
    pub fn from_close(code: u16, reason: &str) -> Self {
        let class = match code {
            1013 => Class::Overload,
            3000 | 3003 | 4001 => Class::Credentials,
            4009 => Class::Replaced,
            1002 | 1003 | 1007..=1010 => Class::Protocol,
            1006 => Class::Reset,
            1015 => Class::Tls,
            // 1000, 1001, 1011, 1012, 1014 and every code not listed: remote and transient.
            _ => Class::Closed,
        };
        let detail = if reason.is_empty() { format!("close {code}") } else { format!("close {code}: {reason}") };
        Self { close_code: Some(code), ..Self::new(class, detail) }
    }

    /// What an HTTP answer other than 101 means (protocol rule 11), with the server's word where it gave one.
    pub fn from_http(status: u16, retry_after_ms: Option<u64>, spread_ms: Option<u64>) -> Self {
        let class = match status {
            401 | 403 => Class::Credentials,
            407 => Class::ProxyCredentials,
            // 421: this server is not authoritative for the name (RFC 9110 § 15.5.20).
            404 | 421 | 426 | 300..=399 => Class::WrongPlace,
            429 | 503 => Class::Overload,
            _ => Class::Closed,
        };
        let failure = Self::new(class, format!("upgrading: http {status}"));
        Self { server_wait_ms: retry_after_ms, server_spread_ms: spread_ms, ..failure }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.name(), self.detail)
    }
}

fn class_of_io(kind: ErrorKind) -> Class {
    #[expect(clippy::wildcard_enum_match_arm, reason = "std's list is open: what it adds is remote and transient")]
    match kind {
        ErrorKind::ConnectionRefused => Class::Refused,
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected
        | ErrorKind::UnexpectedEof => Class::Reset,
        ErrorKind::TimedOut => Class::Timeout,
        ErrorKind::HostUnreachable => Class::Unreachable,
        // No route (ENETUNREACH), no address, no carrier, a firewall rule of this machine, no memory.
        ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::AddrNotAvailable
        | ErrorKind::PermissionDenied
        | ErrorKind::OutOfMemory => Class::Local,
        ErrorKind::InvalidData => Class::Protocol,
        _ => Class::Closed,
    }
}

/// Cuts to [`DETAIL_BYTES_MAX`] and turns control characters into spaces: a far end's words reach log and terminal.
pub(crate) fn one_line(mut text: String) -> String {
    let mut end = text.len().min(DETAIL_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    if text.contains(char::is_control) {
        // A control character is one or two bytes long: this never makes the text longer.
        text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_name_of_its_own_in_snake_case() {
        let mut names: Vec<_> = Class::ALL.iter().map(|class| class.name()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Class::COUNT);
    }

    #[test]
    fn close_codes_follow_protocol_rule_11() {
        for (code, class) in [
            (1000, Class::Closed),
            (1001, Class::Closed),
            (1002, Class::Protocol),
            (1003, Class::Protocol),
            (1005, Class::Closed),
            (1006, Class::Reset),
            (1007, Class::Protocol),
            (1008, Class::Protocol),
            (1009, Class::Protocol),
            (1010, Class::Protocol),
            (1011, Class::Closed),
            (1012, Class::Closed),
            (1013, Class::Overload),
            (1014, Class::Closed),
            (1015, Class::Tls),
            (3000, Class::Credentials),
            (3003, Class::Credentials),
            (3008, Class::Closed),
            (4000, Class::Closed),
            (4001, Class::Credentials),
            (4009, Class::Replaced),
            (u16::MAX, Class::Closed),
        ] {
            assert_eq!(Failure::from_close(code, "").class, class, "{code}");
        }
    }

    #[test]
    fn every_http_status_has_a_class_and_keeps_the_servers_word() {
        for status in 100..=599 {
            let failure = Failure::from_http(status, Some(7000), Some(9));
            let expected = match status {
                401 | 403 => Class::Credentials,
                407 => Class::ProxyCredentials,
                404 | 421 | 426 | 300..=399 => Class::WrongPlace,
                429 | 503 => Class::Overload,
                _ => Class::Closed,
            };
            assert_eq!(failure.class, expected, "{status}");
            assert_eq!((failure.server_wait_ms, failure.server_spread_ms), (Some(7000), Some(9)));
        }
    }

    #[test]
    fn io_errors_tell_a_local_fault_from_a_remote_one() {
        for (raw, class) in [
            (111, Class::Refused),     // ECONNREFUSED
            (104, Class::Reset),       // ECONNRESET
            (32, Class::Reset),        // EPIPE
            (110, Class::Timeout),     // ETIMEDOUT
            (113, Class::Unreachable), // EHOSTUNREACH
            (101, Class::Local),       // ENETUNREACH
            (100, Class::Local),       // ENETDOWN
            (99, Class::Local),        // EADDRNOTAVAIL
            (1, Class::Local),         // EPERM: a firewall rule here
            (19, Class::Local),        // ENODEV: the interface is gone
            (24, Class::Local),        // EMFILE
            (71, Class::Closed),       // EPROTO: anything else
        ] {
            let error = io::Error::from_raw_os_error(raw);
            let failure = Failure::from_io(&error, "dialing");
            assert_eq!(failure.class, class, "{error}");
            assert!(failure.detail.starts_with("dialing: "), "{failure}");
        }
    }

    #[test]
    fn details_are_one_short_line_whatever_the_far_end_says() {
        let hostile = format!("a\r\n\u{1b}[2J\u{9b}{}", "ö".repeat(400));
        for failure in [Failure::new(Class::Closed, hostile.clone()), Failure::from_close(1000, &hostile)] {
            assert!(failure.detail.len() <= DETAIL_BYTES_MAX, "{}", failure.detail.len());
            assert!(!failure.detail.contains(char::is_control), "{:?}", failure.detail);
            assert!(failure.detail.contains('ö'));
        }
    }

    #[test]
    fn a_servers_answer_never_moves_on_to_the_next_address() {
        for class in [Class::Credentials, Class::WrongPlace, Class::Overload, Class::Closed, Class::ServerRetry] {
            assert!(!class.concerns_address(), "{class:?}");
        }
    }
}
