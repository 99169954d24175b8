//! What the screen says, to the letter, and what the check makes of a snapshot.

use super::screen::{line, screen};
use super::*;
use crate::insight::words::{WaitCause, why_ended, why_waiting};
use crate::link::Class;
use crate::status::{
    Certificate, Endpoint, Flash, FlashBudget, Lane, LastFailure, Lifetime, Path, Percentiles, Quality,
};

/// A gateway that waits, with all there can be to say.
fn waiting() -> Status {
    let mut status = Status::default();
    status.agent.device = "gw-17".into();
    status.agent.version = "0.1.0".into();
    status.agent.uptime_s = 90_061;
    status.agent.pid = 412;
    status.link.clock = "set".into();
    status.link.state = "waiting".into();
    status.link.since_s = 5;
    status.link.next_attempt_ms = Some(12_340);
    status.link.next_attempt_why = Some(why_waiting(WaitCause::Backoff).into());
    status.link.endpoint = Some("wss://ingest.example.com/v1".into());
    status.link.failures.insert("silent".into(), 2);
    let detail = "3 pings unanswered".into();
    status.link.last_failure =
        Some(LastFailure { class: "silent".into(), why: why_ended(Class::Silent).into(), detail, s_ago: 125 });
    let endpoint = |url: &str, breaker: &str, open_ms| Endpoint { url: url.into(), breaker: breaker.into(), open_ms };
    status.link.endpoints = vec![
        endpoint("wss://first.example.com/v1", "open", Some(185_000)),
        endpoint("wss://second.example.com/v1", "half_open", None),
        endpoint("wss://third.example.com/v1", "closed", None),
    ];
    status.link.quality = Quality { ping_loss: Some(0.25), bytes_per_s: Some(2048), ..Quality::default() };
    status.link.certificate = Some(Certificate {
        of: "client".into(),
        not_after: "2027-01-01T00:00:00Z".into(),
        not_after_s: 1_798_761_600,
        days_left: Some(9),
        ends_soon: true,
    });
    status.flash.state = "ok".into();
    status.flash.budget =
        Some(FlashBudget { bytes_per_day: 100 << 20, bytes_left: 0, window_ms: 10_000, state: "exceeded".into() });
    status.flash.lifetime = Some(Lifetime {
        device: "mmcblk0".into(),
        kind: "emmc".into(),
        capacity_bytes: 8 << 30,
        used_percent: Some(20),
        reserve: Some("normal".into()),
        years: Some(30),
        ..Lifetime::default()
    });
    status.memory.rss_bytes = 6 << 20;
    status.memory.rss_bytes_max = 20 << 20;
    status.memory.queues_bytes_max = 12 << 20;
    let lane = |name: &str, depth, overflowed| Lane {
        name: name.into(),
        depth,
        overflowed,
        oldest_s: Some(61),
        bytes: 3 << 20,
        bytes_max: 16 << 20,
        ..Lane::default()
    };
    status.lanes = vec![lane("telemetry", 12_345, 7), lane("alarm", 0, 0)];
    status
}

/// A usual gateway on a good day.
fn up() -> Status {
    let mut status = waiting();
    let link = &mut status.link;
    (link.state, link.since_s, link.session) = ("up".into(), 11_530, Some("s-17".into()));
    (link.next_attempt_ms, link.next_attempt_why, link.endpoints) = (None, None, Vec::new());
    (link.rtt_ms, link.sessions, link.attempts) = (Some(43.2), 4, 7);
    link.path = Some(Path {
        address: "203.0.113.9:443".into(),
        local: "192.0.2.7".into(),
        interface: "wwan0".into(),
        proxy: None,
    });
    link.certificate = link.certificate.take().map(|end| Certificate { days_left: Some(99), ends_soon: false, ..end });
    status.flash = Flash {
        state: "ok".into(),
        bytes_written: 52_428_800,
        bytes_payload: 31_457_280,
        syncs: 4711,
        sync_ms_p50: 2.14,
        sync_ms_max: 187.3,
        ..Flash::default()
    };
    let lane = |lane: Lane| Lane { overflowed: 0, oldest_s: None, bytes: 256 << 10, ..lane };
    status.lanes = status.lanes.into_iter().map(lane).collect();
    let telemetry = &mut status.lanes[0];
    (telemetry.depth, telemetry.oldest_s) = (3, Some(0));
    (telemetry.put_per_s, telemetry.acked_per_s) = (12.34, 12.01);
    (status.wire.bytes_sent, status.wire.bytes_received, status.wire.day_bytes) = (40 << 20, 900 << 10, 41 << 20);
    let both = |p50, p99| Percentiles { p50: Some(p50), p99: Some(p99) };
    (status.delay.put_to_committed_ms, status.delay.put_to_delivered_ms) = (both(2.3, 9.9), both(81.0, 1312.0));
    status.memory.queues_bytes = 40 << 10;
    status
}

#[test]
fn a_usual_screen_is_this() {
    assert_eq!(screen(&up(), false), UP);
}

const UP: &str = "\
agent   gw-17, backhaul 0.1.0, pid 412, running for 1 d 1 h, clock set
link    up for 3 h 12 min, session s-17, round trip 43 ms
        wss://ingest.example.com/v1, by wwan0 from 192.0.2.7 to 203.0.113.9:443,
        25 % of the last pings lost, 2.0 KiB a second when busy
        4 sessions in 7 attempts, failures: 2 silent
last    2 min ago: the far end fell silent: pings went unanswered
        silent: 3 pings unanswered
tls     certificate of the client ends 2027-01-01, in 99 days
lane    name      waiting    oldest   in/s  out/s  on flash  full     lost
        telemetry       3       0 s     12     12 256.0 KiB   1 %        0
        alarm           0         -      0      0 256.0 KiB   1 %        0
flash   ok, 50.0 MiB written for 30.0 MiB of records, 4711 syncs, median 2.1 ms,
        longest 187 ms
wire    40.0 MiB out, 900.0 KiB in, 41.0 MiB in 24 hours
delay   to flash 2.3 ms (9.9 ms), to upstream 81 ms (1.3 s), median (99 of 100)
memory  6.0 MiB of at most 20.0 MiB, 40.0 KiB of 12.0 MiB in queues
";

#[test]
fn a_screen_of_a_bad_day_is_this() {
    assert_eq!(screen(&waiting(), false), WAITING);
}

const WAITING: &str = "\
agent   gw-17, backhaul 0.1.0, pid 412, running for 1 d 1 h, clock set
link    waiting for 5 s
        wss://ingest.example.com/v1, 25 % of the last pings lost,
        2.0 KiB a second when busy
        0 sessions in 0 attempts, failures: 2 silent
next    in 12.3 s: a random backoff, lest a fleet stampedes the server
last    2 min ago: the far end fell silent: pings went unanswered
        silent: 3 pings unanswered
        breaker of wss://first.example.com/v1 open, for another 3 min
        breaker of wss://second.example.com/v1 half open
tls     certificate of the client ends 2027-01-01, in 9 days: RENEW IT
lane    name      waiting    oldest   in/s  out/s  on flash  full     lost
        telemetry   12345     1 min      0      0   3.0 MiB  18 %        7
        alarm           0     1 min      0      0   3.0 MiB  18 %        0
flash   ok, 0 B written for 0 B of records, 0 syncs
        budget 100.0 MiB a day: exceeded, 0 B left, commits wait up to 10.0 s
        emmc mmcblk0, 8.0 GiB, up to 20 % of its life used, spare blocks normal,
        about 30 years left at this rate
wire    0 B out, 0 B in, 0 B in 24 hours
delay   to flash -, to upstream -, median (99 of 100)
memory  6.0 MiB of at most 20.0 MiB, 0 B of 12.0 MiB in queues
";

#[test]
fn a_screen_is_24_lines_of_80_columns_and_colours_change_nothing_else() {
    for status in [up(), waiting()] {
        let text = screen(&status, false);
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let mut coloured = screen(&status, true);
        for code in ["1", "31", "32", "33", "0"] {
            coloured = coloured.replace(&format!("\x1b[{code}m"), "");
        }
        assert_eq!(coloured, text);
    }
    assert!(screen(&up(), true).contains("\x1b[32mup for 3 h 12 min,\x1b[0m"));
    assert!(
        screen(&waiting(), true).contains("\x1b[31m        telemetry")
            || screen(&waiting(), true).contains("\x1b[31mtelemetry")
    );
}

#[test]
fn what_a_far_end_names_is_no_command_to_the_terminal_and_no_line_is_too_long() {
    let mut status = up();
    status.link.session = Some("\x1b[2Jevil".into());
    status.link.endpoint = Some(format!("wss://{}.example.com/v1", "long".repeat(40)));
    status.lanes[0].name = "a-lane-with-the-longest-of-names".into();
    let text = screen(&status, true);
    assert!(text.contains("session ?[2Jevil"), "{text}");
    let text = screen(&status, false);
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(text.contains("a-lane-with-the… "), "{text}");
    status.link.last_failure = None;
    assert_eq!(line(&up().link), "up for 3 h 12 min, wss://ingest.example.com/v1, session s-17\n");
    assert_eq!(
        line(&waiting().link),
        "waiting for 5 s, next attempt in 12.3 s, wss://ingest.example.com/v1, silent: 3 pings unanswered\n"
    );
}

#[test]
fn the_check_is_an_exit_code() {
    let mut status = waiting();
    assert_eq!(check(&status), CHECK_DOWN);
    status.link.state = "up".into();
    assert_eq!(check(&status), CHECK_DEGRADED, "the certificate ends soon");
    status.link.certificate = None;
    assert_eq!(check(&status), 0);
    status.agent.loss_s_ago = Some(3599);
    assert_eq!(check(&status), CHECK_DEGRADED);
    status.agent.loss_s_ago = Some(3600);
    assert_eq!(check(&status), 0, "that loss is an hour old");
    status.flash.state = "degraded".into();
    assert_eq!(check(&status), CHECK_DEGRADED);
}
