//! The rows. A failure that no single machine can stage without a network of its own is in `tests/netns`.

use backhaul::config::Config;

use crate::support::fault_server::{Act, Fault, Then};

/// A failure: where it strikes, what the far end does, and what the agent makes of it.
pub struct Row {
    /// What is seen, as the first column of `docs/failures.md` has it.
    pub name: &'static str,
    /// The stage that it strikes, as `status` names it.
    pub stage: &'static str,
    pub fault: Fault,
    /// The class in `status`, log and `hello.last`.
    pub class: &'static str,
    /// Classes that may lead to it.
    pub on_the_way: &'static [&'static str],
    pub wait: Wait,
    /// Words in `last_failure.detail`.
    pub detail: &'static str,
    /// True: the endpoint is `wss`.
    pub tls: bool,
    /// True: there are records to send all the while.
    pub busy: bool,
    /// What the configuration needs besides.
    pub adjust: fn(&mut Config),
}

/// How long the agent keeps away, failure after failure.
#[derive(Clone, Copy)]
pub enum Wait {
    Backoff,
    /// Backoff, plus the spread each time (close 1013).
    BackoffAndSpread,
    Slow,
    /// Slow, but for a look at the credentials, which are still the same: nothing is dialed.
    Refused,
    /// Not before `after_ms`, nor later than that and `spread_ms`.
    ServersWord {
        after_ms: u64,
        spread_ms: u64,
    },
    /// At once, each session having been stable.
    Promptly,
    /// Backoff until a clone is suspected, then slow.
    Takeovers,
}

use Wait::{Backoff, BackoffAndSpread, Promptly, Refused, ServersWord, Slow, Takeovers};

const fn row(
    stage: &'static str,
    name: &'static str,
    fault: Fault,
    class: &'static str,
    wait: Wait,
    detail: &'static str,
) -> Row {
    Row { name, stage, fault, class, on_the_way: &[], wait, detail, tls: false, busy: true, adjust: |_| {} }
}

/// All of them.
pub fn rows() -> Vec<Row> {
    let mut rows = connecting();
    rows.extend(securing());
    rows.extend(upgrading());
    rows.extend(answers());
    rows.extend(sessions("greeting", Fault::InsteadOfWelcome));
    rows.extend(sessions("up", Fault::AfterWelcome));
    rows.extend(closes());
    rows.extend(alone_in_their_stage());
    rows
}

fn connecting() -> Vec<Row> {
    vec![
        row("dialing", "connection refused", Fault::Refuses, "refused", Backoff, "dialing: Connection refused"),
        row("upgrading", "accepted and closed", Fault::Closes, "reset", Backoff, "upgrading: "),
        row("upgrading", "accepted and reset", Fault::Resets, "reset", Backoff, "ing: "),
    ]
}

fn securing() -> Vec<Row> {
    /// Alert, TLS 1.2, two bytes: fatal, and this description (RFC 8446 § 6).
    macro_rules! alert {
        ($code:literal) => {
            Fault::Answers(&[0x15, 3, 3, 0, 2, 2, $code], Then::Close)
        };
    }
    const NO_TLS: Fault = Fault::Answers(b"HTTP/1.1 400 Bad Request\r\n\r\n", Then::Close);
    const HALF: Fault = Fault::Answers(&[0x16, 3, 3, 0x40, 0, 2, 0], Then::Silence);
    let rows = [
        row("securing", "silence in place of TLS", Fault::NeverAnswers, "timeout", Backoff, "securing: "),
        row("securing", "half a TLS record, then silence", HALF, "timeout", Backoff, "securing: "),
        row(
            "securing",
            "closed in the TLS handshake",
            Fault::Answers(b"", Then::Close),
            "reset",
            Backoff,
            "securing: ",
        ),
        row("securing", "reset in the TLS handshake", Fault::Resets, "reset", Backoff, "ing: "),
        row("securing", "no TLS at all", NO_TLS, "tls", Backoff, "securing: "),
        row("securing", "TLS alert handshake_failure", alert!(40), "tls", Backoff, "securing: "),
        row("securing", "TLS alert internal_error", alert!(80), "tls", Backoff, "securing: "),
        row("securing", "TLS alert protocol_version", alert!(70), "tls", Backoff, "securing: "),
        row("securing", "TLS alert bad_certificate", alert!(42), "credentials", Refused, "securing: "),
        row("securing", "TLS alert unknown_ca", alert!(48), "credentials", Refused, "securing: "),
        row("securing", "TLS alert access_denied", alert!(49), "credentials", Refused, "securing: "),
    ];
    rows.into_iter().map(|row| Row { tls: true, ..row }).collect()
}

fn upgrading() -> Vec<Row> {
    const SMTP: Fault = Fault::Answers(b"220 mail.example.com ESMTP\r\n", Then::Close);
    const SMTP_OPEN: Fault = Fault::Answers(b"220 mail.example.com ESMTP\r\n", Then::Silence);
    const ZEROS: Fault = Fault::Answers(&[0; 512], Then::Close);
    const HALF: Fault = Fault::Answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgr", Then::Silence);
    const HALF_RESET: Fault = Fault::Answers(b"HTTP/1.1 101 Switching Protocols\r\nUpgr", Then::Reset);
    const NO_UPGRADE: Fault = Fault::Answers(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", Then::Close);
    const ENDLESS: Fault = Fault::Answers(&[b'x'; 1 << 20], Then::Close);
    vec![
        row("upgrading", "no answer to the upgrade", Fault::NeverAnswers, "timeout", Backoff, "upgrading: "),
        row("upgrading", "half an answer, then silence", HALF, "timeout", Backoff, "upgrading: "),
        row("upgrading", "half an answer, then a reset", HALF_RESET, "reset", Backoff, "upgrading: "),
        row("upgrading", "an answer that is no HTTP", SMTP, "protocol", Backoff, "upgrading: "),
        row("upgrading", "an answer that is no HTTP, left open", SMTP_OPEN, "protocol", Backoff, "upgrading: "),
        row("upgrading", "zeros for an answer", ZEROS, "protocol", Backoff, "upgrading: "),
        row("upgrading", "an answer of a mebibyte", ENDLESS, "protocol", Backoff, "upgrading: "),
        row("upgrading", "101 without Upgrade", NO_UPGRADE, "protocol", Backoff, "upgrading: "),
        row("upgrading", "wrong Sec-WebSocket-Accept", Fault::WrongAcceptKey, "protocol", Backoff, "upgrading: "),
        row("upgrading", "no subprotocol", Fault::PicksNoSubprotocol, "wrong_place", Slow, "upgrading: "),
        row("upgrading", "a strange subprotocol", Fault::PicksStrangeSubprotocol, "wrong_place", Slow, "upgrading: "),
    ]
}

/// HTTP in place of 101.
fn answers() -> Vec<Row> {
    const DATE: &str = "Date: Tue, 29 Feb 2028 12:00:00 GMT\r\nRetry-After: Tue, 29 Feb 2028 12:00:02 GMT\r\n";
    macro_rules! http {
        ($($status:literal $class:literal $wait:expr),+ $(,)?) => {
            vec![$(row("upgrading", concat!("HTTP ", $status), Fault::Http($status, ""), $class, $wait,
                concat!("upgrading: http ", $status))),+]
        };
    }
    let mut rows = http![
        301 "wrong_place" Slow, 302 "wrong_place" Slow, 303 "wrong_place" Slow, 307 "wrong_place" Slow,
        308 "wrong_place" Slow, 400 "closed" Backoff, 401 "credentials" Refused, 403 "credentials" Refused,
        404 "wrong_place" Slow, 408 "closed" Backoff, 410 "closed" Backoff, 418 "closed" Backoff,
        421 "wrong_place" Slow, 426 "wrong_place" Slow, 429 "overload" Backoff, 500 "closed" Backoff, 502 "closed" Backoff,
        503 "overload" Backoff, 504 "closed" Backoff, 200 "closed" Backoff,
    ];
    let word = |after_ms, spread_ms| ServersWord { after_ms, spread_ms };
    rows.extend([
        row(
            "upgrading",
            "HTTP 503 with Retry-After in seconds",
            Fault::Http(503, "Retry-After: 1\r\n"),
            "overload",
            word(1000, 100),
            "upgrading: http 503",
        ),
        row(
            "upgrading",
            "HTTP 429 with Retry-After and a spread",
            Fault::Http(429, "Retry-After: 1\r\nBackhaul-Spread-Ms: 400\r\n"),
            "overload",
            word(1000, 400),
            "upgrading: http 429",
        ),
        row(
            "upgrading",
            "HTTP 503 with Retry-After as a date",
            Fault::Http(503, DATE),
            "overload",
            word(2000, 100),
            "upgrading: http 503",
        ),
        row(
            "upgrading",
            "HTTP 500 with Retry-After",
            Fault::Http(500, "Retry-After: 1\r\n"),
            "closed",
            word(1000, 100),
            "upgrading: http 500",
        ),
        row(
            "upgrading",
            "HTTP 503 with a Retry-After that is none",
            Fault::Http(503, "Retry-After: soon\r\n"),
            "overload",
            Backoff,
            "upgrading: http 503",
        ),
        Row {
            adjust: |config| config.upstream.server_wait_ms_max = 700,
            ..row(
                "upgrading",
                "HTTP 503 with a Retry-After beyond server_wait_ms_max",
                Fault::Http(503, "Retry-After: 86400\r\n"),
                "overload",
                word(700, 100),
                "upgrading: http 503",
            )
        },
    ]);
    rows
}

/// What can go wrong both before and after the greeting.
fn sessions(stage: &'static str, fault: fn(Act) -> Fault) -> Vec<Row> {
    const RESERVED_OPCODE: Act = Act::Bytes(&[0x83, 0x01, 0x2a]);
    const RESERVED_BIT: Act = Act::Bytes(&[0xc1, 0x01, 0x61]);
    const NO_UTF8: Act = Act::Bytes(&[0x81, 0x02, 0xc3, 0x28]);
    const FRAGMENTED_PING: Act = Act::Bytes(&[0x09, 0x00]);
    const CONTINUATION: Act = Act::Bytes(&[0x80, 0x01, 0x61]);
    const TEBIBYTE: Act = Act::Bytes(&[0x82, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0]);
    const HALF_FRAME: Act = Act::BytesThenDeafness(&[0x82, 0x7e, 0x04, 0x00, 1, 2, 3]);
    const CODE_NEVER_SENT: Act = Act::Bytes(&[0x88, 0x02, 0x03, 0xed]);
    // Registered since (bad gateway), and unknown to tungstenite, which reads it as a breach.
    const CODE_NOT_ALLOWED: Act = Act::Bytes(&[0x88, 0x02, 0x03, 0xf6]);
    const HALF_A_CODE: Act = Act::Bytes(&[0x88, 0x01, 0x03]);
    let up = stage == "up";
    macro_rules! staged {
        ($($name:literal, $act:expr, $class:expr, $wait:expr, $detail:expr;)+) => { vec![$(
            row(stage, if up { concat!($name, ", up") } else { concat!($name, ", greeting") }, fault($act),
                $class, $wait, $detail)),+]
        };
    }
    staged![
        "deafness", Act::Deafness, if up { "stalled" } else { "timeout" }, Backoff, if up { "no ack " } else { "greeting: " };
        "half a frame, then silence", HALF_FRAME, if up { "stalled" } else { "timeout" }, Backoff,
            if up { "no ack " } else { "greeting: " };
        "silence, but pongs", Act::Silence, if up { "stalled" } else { "timeout" }, Backoff,
            if up { "no ack " } else { "greeting: " };
        "TCP closed", Act::Vanish, "reset", Backoff, "up: ";
        "TCP reset", Act::Reset, "reset", Backoff, "up: ";
        "text that is no message", Act::GarbageText, "protocol", Backoff, "";
        "bytes that are no message", Act::GarbageBinary, "protocol", Backoff, "";
        "a reserved opcode", RESERVED_OPCODE, "protocol", Backoff, "up: ";
        "a reserved bit", RESERVED_BIT, "protocol", Backoff, "up: ";
        "text that is no UTF-8", NO_UTF8, "protocol", Backoff, "up: ";
        "a fragmented ping", FRAGMENTED_PING, "protocol", Backoff, "up: ";
        "a continuation of nothing", CONTINUATION, "protocol", Backoff, "up: ";
        "a frame of a tebibyte", TEBIBYTE, "protocol", Backoff, "up: ";
        "close 1005 on the wire", CODE_NEVER_SENT, "protocol", Backoff, "";
        "half a close code", HALF_A_CODE, "protocol", Backoff, "up: ";
        "a code that is not to be sent: 1014", CODE_NOT_ALLOWED, "protocol", Backoff, "close 1002: ";
    ]
}

/// Every code that may be sent (RFC 6455 § 7.4.1), the registered ones above, and one of each range.
fn closes() -> Vec<Row> {
    macro_rules! close {
        ($($code:literal $class:literal $wait:expr),+ $(,)?) => { vec![$(
            row("up", concat!("close ", $code, ", up"), Fault::AfterWelcome(Act::Close($code, "why")), $class, $wait,
                concat!("close ", $code, ": why")),
            row("greeting", concat!("close ", $code, ", greeting"), Fault::InsteadOfWelcome(Act::Close($code, "")),
                $class, $wait, concat!("close ", $code)),
        )+]};
    }
    let mut rows = close![
        1000 "closed" Backoff, 1001 "closed" Backoff, 1002 "protocol" Backoff, 1003 "protocol" Backoff,
        1007 "protocol" Backoff, 1008 "protocol" Backoff, 1009 "protocol" Backoff, 1010 "protocol" Backoff,
        1011 "closed" Backoff, 1012 "closed" Backoff, 1013 "overload" BackoffAndSpread,
        3000 "credentials" Refused, 3003 "credentials" Refused, 3008 "closed" Backoff, 4001 "credentials" Refused,
        4004 "closed" Backoff, 4500 "closed" Backoff, 4999 "closed" Backoff,
    ];
    const NO_CODE: Act = Act::Bytes(&[0x88, 0x00]);
    rows.extend([
        row("up", "close without a code, up", Fault::AfterWelcome(NO_CODE), "closed", Backoff, "close 1005"),
        Row {
            on_the_way: &["replaced"],
            ..row(
                "up",
                "close 4009 again and again, up",
                Fault::AfterWelcome(Act::Close(4009, "boot x")),
                "clone",
                Takeovers,
                "close 4009: boot x",
            )
        },
    ]);
    rows
}

fn alone_in_their_stage() -> Vec<Row> {
    vec![
        Row {
            adjust: never_stable,
            ..row("up", "records that are never acked", Fault::NeverAcks, "stalled", Backoff, "no ack ")
        },
        row("up", "a second welcome", Fault::AfterWelcome(Act::Welcome), "protocol", Backoff, "welcome"),
        row(
            "greeting",
            "retry, greeting",
            Fault::InsteadOfWelcome(Act::Retry(900, 50)),
            "protocol",
            Backoff,
            "before welcome",
        ),
        row(
            "up",
            "retry, up",
            Fault::AfterWelcome(Act::Retry(900, 50)),
            "server_retry",
            ServersWord { after_ms: 900, spread_ms: 50 },
            "retry after_ms=900 spread_ms=50",
        ),
        Row {
            busy: false,
            adjust: never_stable,
            ..row("up", "deafness at rest", Fault::AfterWelcome(Act::Deafness), "silent", Backoff, "up: pongs missed")
        },
        Row {
            adjust: |config| config.upstream.session_age_s_max = 1,
            ..row("up", "session_age_s_max", Fault::None, "aged", Promptly, "up: maximum age")
        },
    ]
}

/// A session that was of use and lives as long as its failure takes would be stable, and each failure the first.
fn never_stable(config: &mut Config) {
    config.upstream.reconnect.stable_after_ms = 60_000;
}
