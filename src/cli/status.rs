//! `backhaul status`: what the agent is doing and why, on one screen, as JSON, or as an exit code.

use std::fmt::{self, Write as _};
use std::io;
use std::process::ExitCode;

use super::args::{StatusArgs, View};
use super::{client, print, socket};
use crate::exit;
use crate::status::{Flash, Lane, Lifetime, Link, Percentiles, Quality, Status};

/// `--check`: link up, but flash, loss, a clone or a certificate near its end wants a look.
const CHECK_DEGRADED: u8 = 1;
/// `--check`: link not up.
const CHECK_DOWN: u8 = 2;
/// `--check`: no agent.
const CHECK_NO_AGENT: u8 = 3;
/// How long loss keeps the check from saying *well*.
const LOSS_S: u64 = 3600;

/// Runs the command.
pub fn run(args: &StatusArgs) -> ExitCode {
    let path = match socket(&args.agent) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let status = match client::status(&path) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("backhaul: {}", client::words(&path, &error));
            return ExitCode::from(match (args.view, error.kind()) {
                (View::Check, _) => CHECK_NO_AGENT,
                (View::Text | View::Json, io::ErrorKind::PermissionDenied) => exit::PERMISSION,
                (View::Text | View::Json, _) => exit::UNAVAILABLE,
            });
        }
    };
    match args.view {
        View::Text => print(&screen(&status)),
        View::Json => {
            let json = serde_json::to_string_pretty(&status).expect("plain data with string keys");
            print(&(json + "\n"))
        }
        View::Check => ExitCode::from(check(&status)),
    }
}

/// The exit code of `--check`.
fn check(status: &Status) -> u8 {
    let clone = status.link.last_failure.as_ref();
    let clone = clone.is_some_and(|failure| failure.class == "clone" && failure.s_ago < LOSS_S);
    let ends_soon = status.link.certificate.as_ref().is_some_and(|certificate| certificate.ends_soon);
    let lost = status.agent.loss_s_ago.is_some_and(|s| s < LOSS_S);
    if status.link.state != "up" {
        CHECK_DOWN
    } else if status.flash.state != "ok" || clone || lost || ends_soon {
        CHECK_DEGRADED
    } else {
        0
    }
}

/// One screen for people.
fn screen(status: &Status) -> String {
    let mut text = String::new();
    write(&mut text, status).expect("a String takes everything");
    text
}

fn write(out: &mut String, status: &Status) -> fmt::Result {
    let Status { agent, flash, wire, delay, memory, .. } = status;
    let fallback = if agent.config == "fallback" { ", on an EARLIER configuration" } else { "" };
    writeln!(
        out,
        "agent   {} {}, pid {}, up {}{fallback}",
        agent.device,
        agent.version,
        agent.pid,
        Ago(agent.uptime_s)
    )?;
    write_link(out, status)?;
    write_lanes(out, &status.lanes)?;
    writeln!(
        out,
        "flash   {}, {} written for {} of records, {} syncs, median {:.1} ms, longest {:.1} ms",
        flash.state,
        Size(flash.bytes_written),
        Size(flash.bytes_payload),
        flash.syncs,
        flash.sync_ms_p50,
        flash.sync_ms_max
    )?;
    write_wear(out, flash)?;
    let purposes = &wire.by_purpose;
    let sum = |both: crate::status::Bytes| Size(both.sent + both.received);
    writeln!(
        out,
        "wire    {} out, {} in: records {}, acks {}, heartbeat {}, handshake {}",
        Size(wire.bytes_sent),
        Size(wire.bytes_received),
        sum(purposes.records),
        sum(purposes.acks),
        sum(purposes.heartbeat),
        sum(purposes.handshake)
    )?;
    writeln!(
        out,
        "delay   to flash {}, to upstream {} (median, 99 of 100)",
        Both(delay.put_to_committed_ms),
        Both(delay.put_to_delivered_ms)
    )?;
    writeln!(
        out,
        "memory  {} resident, {} of {} in queues",
        Size(memory.rss_bytes),
        Size(memory.queues_bytes),
        Size(memory.queues_bytes_max)
    )
}

/// The budget and the flash's life, where there is something to say.
fn write_wear(out: &mut String, flash: &Flash) -> fmt::Result {
    if let Some(budget) = &flash.budget {
        writeln!(
            out,
            "        budget {} a day: {}, {} left, commits wait up to {:.1} s",
            Size(budget.bytes_per_day),
            budget.state,
            Size(budget.bytes_left),
            budget.window_ms as f64 / 1000.0
        )?;
    }
    let Some(life) = &flash.lifetime else { return Ok(()) };
    write!(out, "        {} {}, {}", life.kind, life.device, Size(life.capacity_bytes))?;
    if let Some(percent) = life.used_percent {
        write!(out, ", up to {percent} % of its life used")?;
    }
    if let Some(reserve) = &life.reserve {
        write!(out, ", spare blocks {reserve}")?;
    }
    match life.years {
        None => writeln!(out),
        Some(0) => writeln!(out, ", less than a year left at this rate"),
        Some(Lifetime::YEARS_MAX..) => writeln!(out, ", outlives us at this rate"),
        Some(years) => writeln!(out, ", about {years} years left at this rate"),
    }
}

fn write_link(out: &mut String, status: &Status) -> fmt::Result {
    let link = &status.link;
    write!(out, "link    {} for {}", link.state, Ago(link.since_s))?;
    if let Some(next) = link.next_attempt_ms {
        write!(out, ", next attempt in {:.1} s", next as f64 / 1000.0)?;
    }
    if let Some(endpoint) = &link.endpoint {
        write!(out, ", {endpoint}")?;
    }
    if let Some(session) = &link.session {
        write!(out, ", session {session}")?;
    }
    if let Some(rtt) = link.rtt_ms {
        write!(out, ", round trip {rtt:.0} ms")?;
    }
    if link.suspect {
        write!(out, ", SUSPECT: a pong is late")?;
    }
    write!(out, "\n        {} sessions in {} attempts", link.sessions, link.attempts)?;
    for (nth, (class, count)) in link.failures.iter().enumerate() {
        write!(out, "{}{count} {class}", if nth == 0 { "; failures: " } else { ", " })?;
    }
    if link.clock == "unset" {
        write!(out, "; the clock is not set")?;
    }
    writeln!(out)?;
    for endpoint in link.endpoints.iter().filter(|endpoint| endpoint.breaker != "closed") {
        write!(out, "        breaker of {} {}", endpoint.url, endpoint.breaker.replace('_', " "))?;
        match endpoint.open_ms {
            Some(ms) => writeln!(out, ", for another {}", Ago(ms / 1000))?,
            None => writeln!(out)?,
        }
    }
    write_path(out, link)?;
    match &link.last_failure {
        None => Ok(()),
        Some(failure) => {
            writeln!(out, "        last failure {} ago: {}, {}", Ago(failure.s_ago), failure.class, failure.detail)
        }
    }
}

/// How good the path is, and how long its certificates last, where that is known.
fn write_path(out: &mut String, link: &Link) -> fmt::Result {
    let Quality { ping_loss, bytes_per_s, .. } = link.quality;
    if let Some(loss) = ping_loss {
        write!(out, "        {:.0} % of the last pings lost", loss * 100.0)?;
        if let Some(bytes) = bytes_per_s {
            write!(out, ", {} a second when busy", Size(bytes))?;
        }
        writeln!(out)?;
    }
    let Some(certificate) = link.certificate.as_ref() else { return Ok(()) };
    write!(out, "        certificate of the {} ends {}", certificate.of, certificate.not_after)?;
    if let Some(days) = certificate.days_left {
        write!(out, ", {days} days left")?;
    }
    writeln!(out, "{}", if certificate.ends_soon { ": RENEW IT" } else { "" })
}

fn write_lanes(out: &mut String, lanes: &[Lane]) -> fmt::Result {
    let longest = lanes.iter().map(|lane| lane.name.len()).max().unwrap_or(0).max(4);
    writeln!(
        out,
        "lane    {:longest$} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "name", "waiting", "oldest", "on flash", "at most", "sent", "again", "lost"
    )?;
    for lane in lanes {
        writeln!(
            out,
            "        {:longest$} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            lane.name,
            lane.depth,
            lane.oldest_s.map_or_else(|| "-".into(), |s| Ago(s).to_string()),
            Size(lane.bytes).to_string(),
            Size(lane.bytes_max).to_string(),
            lane.sent,
            lane.resent,
            lane.lost()
        )?;
    }
    Ok(())
}

/// A duration in its two largest units.
struct Ago(u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            s @ 0..60 => write!(f, "{s} s"),
            s @ 60..3600 => write!(f, "{} min", s / 60),
            s @ 3600..86_400 => write!(f, "{} h {} min", s / 3600, s % 3600 / 60),
            s => write!(f, "{} d {} h", s / 86_400, s % 86_400 / 3600),
        }
    }
}

/// Bytes for people.
pub(super) struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 0..1024 => write!(f, "{bytes} B"),
            bytes @ 1024..1_048_576 => write!(f, "{:.1} KiB", bytes as f64 / 1024.0),
            bytes @ 1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", bytes as f64 / 1_048_576.0),
            bytes => write!(f, "{:.1} GiB", bytes as f64 / 1_073_741_824.0),
        }
    }
}

/// Median and 99th percentile.
struct Both(Percentiles);

impl fmt::Display for Both {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.p50, self.0.p99) {
            (Some(p50), Some(p99)) => write!(f, "{p50:.1} / {p99:.1} ms"),
            (None, _) | (_, None) => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Certificate, Endpoint, FlashBudget, LastFailure};

    fn status() -> Status {
        let mut status = Status::default();
        status.agent.device = "gw-17".into();
        status.agent.version = "0.1.0".into();
        status.agent.uptime_s = 90_061;
        status.link.state = "waiting".into();
        status.link.since_s = 5;
        status.link.next_attempt_ms = Some(12_340);
        status.link.endpoint = Some("wss://ingest.example.com/v1".into());
        status.link.failures.insert("silent".into(), 2);
        let detail = "3 pings unanswered".into();
        status.link.last_failure = Some(LastFailure { class: "silent".into(), detail, s_ago: 125 });
        status.link.suspect = true;
        let endpoint =
            |url: &str, breaker: &str, open_ms| Endpoint { url: url.into(), breaker: breaker.into(), open_ms };
        status.link.endpoints = vec![
            endpoint("wss://first.example.com/v1", "open", Some(185_000)),
            endpoint("wss://second.example.com/v1", "half_open", None),
            endpoint("wss://third.example.com/v1", "closed", None),
        ];
        status.link.quality = Quality { ping_loss: Some(0.25), bytes_per_s: Some(2048), ..Quality::default() };
        status.link.certificate = Some(Certificate {
            of: "client".into(),
            not_after: "2027-01-01T00:00:00Z".into(),
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

    #[test]
    fn a_screen_says_what_and_why() {
        let text = screen(&status());
        for says in [
            "gw-17 0.1.0",
            "up 1 d 1 h",
            "link    waiting for 5 s, next attempt in 12.3 s, wss://ingest.example.com/v1",
            "SUSPECT: a pong is late",
            "25 % of the last pings lost, 2.0 KiB a second when busy",
            "certificate of the client ends 2027-01-01T00:00:00Z, 9 days left: RENEW IT",
            "failures: 2 silent",
            "last failure 2 min ago: silent, 3 pings unanswered",
            "breaker of wss://first.example.com/v1 open, for another 3 min\n",
            "breaker of wss://second.example.com/v1 half open\n",
            "budget 100.0 MiB a day: exceeded, 0 B left, commits wait up to 10.0 s",
            "emmc mmcblk0, 8.0 GiB, up to 20 % of its life used, spare blocks normal, about 30 years left at this rate",
            "telemetry     12345     1 min   3.0 MiB  16.0 MiB         0         0         7\n",
            "alarm             0     1 min",
        ] {
            assert!(text.contains(says), "{text}\nlacks: {says}");
        }
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.len() <= 120), "{text}");
    }

    #[test]
    fn the_check_is_an_exit_code() {
        let mut status = status();
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
}
