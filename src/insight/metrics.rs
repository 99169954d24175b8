//! The snapshot for Prometheus: its text format 0.0.4, names and base units by its conventions. What is not known has
//! no sample. Labels take their values from closed lists and from the configuration, so that series are bounded.

use std::fmt::Write as _;

use super::figures::Histogram;
use crate::link::Class;
use crate::status::{Bytes, FlashPurposes, Lane, Link, LinkView, Status};

/// Of the text that [`text`] makes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// What is said where nobody answers.
pub const NO_AGENT: &str = "\
    # HELP backhaul_agent_up Whether the agent answers.\n\
    # TYPE backhaul_agent_up gauge\n\
    backhaul_agent_up 0\n";

/// All metrics of this snapshot.
pub fn text(status: &Status) -> String {
    let mut out = Text(String::with_capacity(16 << 10));
    agent(&mut out, status);
    link(&mut out, &status.link);
    lanes(&mut out, &status.lanes);
    flash(&mut out, status);
    rest(&mut out, status);
    out.0
}

fn agent(out: &mut Text, Status { agent, link, .. }: &Status) {
    out.gauge("agent_up", "Whether the agent answers.", Some(1.0));
    out.family("info", "gauge", "Who this is.");
    out.sample("info", &[("device", &agent.device), ("version", &agent.version)], 1.0);
    out.gauge("uptime_seconds", "Since the process started.", Some(agent.uptime_s as f64));
    out.gauge("config_fallback", "Whether it runs on an earlier configuration.", is(agent.config == "fallback"));
    out.gauge("clock_set", "Whether the wall clock is set.", is(link.clock == "set"));
    let age = agent.loss_s_ago.map(|s| s as f64);
    out.gauge("loss_age_seconds", "Since a record was given up last; absent while none was.", age);
}

fn link(out: &mut Text, link: &Link) {
    out.gauge("link_up", "Whether a session is up.", is(link.state == "up"));
    out.family("link_state", "gauge", "The state of the link: 1 for the one it is in.");
    for state in LinkView::STATES {
        out.sample("link_state", &[("state", state)], f64::from(u8::from(link.state == state)));
    }
    out.gauge("link_state_seconds", "How long it has been in this state.", Some(link.since_s as f64));
    out.gauge("link_suspect", "Whether a pong is late.", is(link.suspect));
    out.counter("link_sessions_total", "Sessions greeted.", link.sessions);
    out.counter("link_attempts_total", "Attempts to get a session.", link.attempts);
    out.family("link_failures_total", "counter", "Ends of attempts and sessions by class.");
    for class in Class::ALL.map(Class::name) {
        let count = link.failures.get(class).copied().unwrap_or(0);
        out.sample("link_failures_total", &[("class", class)], count as f64);
    }
    let seconds = |ms: u64| ms as f64 / 1000.0;
    out.gauge("link_next_attempt_seconds", "Until the next attempt.", link.next_attempt_ms.map(seconds));
    out.gauge("link_ping_loss_ratio", "Share of the last pings that were lost.", link.quality.ping_loss);
    let open = link.endpoints.iter().filter(|endpoint| endpoint.breaker != "closed").count();
    out.gauge("link_breakers_open", "Endpoints that others are preferred to.", Some(open as f64));
    let end = "certificate_not_after_timestamp_seconds";
    out.family(end, "gauge", "End of the certificate in use that ends first.");
    if let Some(certificate) = &link.certificate {
        out.sample(end, &[("of", &certificate.of)], certificate.not_after_s as f64);
    }
}

fn lanes(out: &mut Text, lanes: &[Lane]) {
    let mut each = |name: &str, kind: &str, help: &str, value: fn(&Lane) -> Option<f64>| {
        out.family(name, kind, help);
        for lane in lanes {
            if let Some(value) = value(lane) {
                out.sample(name, &[("lane", &lane.name)], value);
            }
        }
    };
    each("lane_waiting_records", "gauge", "Records not yet acked.", |lane| Some(lane.depth as f64));
    each("lane_oldest_seconds", "gauge", "Age of the oldest record not yet acked.", |lane| {
        lane.oldest_s.map(|s| s as f64)
    });
    each("lane_flash_bytes", "gauge", "Bytes of its files.", |lane| Some(lane.bytes as f64));
    each("lane_flash_limit_bytes", "gauge", "Bound of its files.", |lane| Some(lane.bytes_max as f64));
    each("lane_put_records_total", "counter", "Records taken.", |lane| Some(lane.put_total as f64));
    each("lane_acked_records_total", "counter", "Records acked.", |lane| Some(lane.acked_total as f64));
    each("lane_sent_records_total", "counter", "Records sent, repeats included.", |lane| Some(lane.sent as f64));
    each("lane_resent_records_total", "counter", "Records sent again.", |lane| Some(lane.resent as f64));
    out.family("lane_lost_records_total", "counter", "Records that will never come, by cause.");
    for lane in lanes {
        let causes = [
            ("overflowed", lane.overflowed),
            ("expired", lane.expired),
            ("corrupt", lane.corrupt),
            ("rejected", lane.rejected),
        ];
        for (why, count) in causes {
            out.sample("lane_lost_records_total", &[("lane", &lane.name), ("why", why)], count as f64);
        }
    }
}

fn flash(out: &mut Text, Status { flash, histograms, .. }: &Status) {
    out.gauge("flash_degraded", "Whether storage fails.", is(flash.state != "ok"));
    let purposes = |of: &FlashPurposes| {
        [
            ("records", of.records),
            ("acks", of.acks),
            ("reserve", of.reserve),
            ("segments", of.segments),
            ("other", of.other),
        ]
    };
    for (name, help, of) in [
        ("flash_written_bytes_total", "Bytes handed to the file system, by purpose.", &flash.by_purpose),
        ("flash_syncs_total", "Syncs, by purpose.", &flash.syncs_by_purpose),
    ] {
        out.family(name, "counter", help);
        for (purpose, count) in purposes(of) {
            out.sample(name, &[("purpose", purpose)], count as f64);
        }
    }
    out.counter("flash_payload_bytes_total", "Topic and body of the records taken.", flash.bytes_payload);
    out.histogram("flash_sync_seconds", "How long syncs took.", &histograms.sync);
    let budget = flash.budget.as_ref();
    out.gauge("flash_budget_bytes", "Bytes a day, as configured.", budget.map(|of| of.bytes_per_day as f64));
    out.gauge("flash_budget_left_bytes", "What is left of it.", budget.map(|of| of.bytes_left as f64));
    let exceeded = budget.and_then(|of| is(of.state == "exceeded"));
    out.gauge("flash_budget_exceeded", "Whether it is exceeded.", exceeded);
    let used = flash.lifetime.as_ref().and_then(|life| life.used_percent);
    out.gauge("flash_life_used_ratio", "Share of the device's life that is used.", used.map(|p| f64::from(p) / 100.0));
}

fn rest(out: &mut Text, status: &Status) {
    let Status { wire, commands, memory, histograms, .. } = status;
    let of = &wire.by_purpose;
    out.family("wire_bytes_total", "counter", "Bytes on the wire, by purpose and direction.");
    for (purpose, Bytes { sent, received }) in [
        ("records", of.records),
        ("acks", of.acks),
        ("commands", of.commands),
        ("heartbeat", of.heartbeat),
        ("handshake", of.handshake),
    ] {
        for (direction, bytes) in [("sent", sent), ("received", received)] {
            out.sample("wire_bytes_total", &[("purpose", purpose), ("direction", direction)], bytes as f64);
        }
    }
    out.gauge("wire_day_bytes", "Bytes of the last 24 hours, both directions.", Some(wire.day_bytes as f64));
    out.gauge("wire_capped", "Whether the day's bytes are spent.", is(wire.capped));
    out.histogram("link_rtt_seconds", "Round trips of the pings.", &histograms.rtt);
    out.histogram("delivery_seconds", "From a put to its ack, of a sample.", &histograms.put_to_delivered);
    out.counter("commands_received_total", "Commands that came.", commands.received);
    out.counter("commands_delivered_total", "Commands that a local program was given.", commands.delivered);
    out.counter("commands_done_total", "Commands reported done.", commands.done);
    out.gauge("resident_memory_bytes", "Resident memory of the process.", Some(memory.rss_bytes as f64));
    out.gauge("resident_memory_limit_bytes", "Its bound.", Some(memory.rss_bytes_max as f64));
    out.gauge("queues_bytes", "Bytes in queues and buffers.", Some(memory.queues_bytes as f64));
    out.gauge("queues_limit_bytes", "Their bound.", Some(memory.queues_bytes_max as f64));
}

fn is(truth: bool) -> Option<f64> {
    Some(f64::from(u8::from(truth)))
}

/// The text so far. Each name is without its prefix.
struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.family(name, "gauge", help);
        if let Some(value) = value {
            self.sample(name, &[], value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value as f64);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        let bounds = Histogram::BOUNDS_S.map(|bound| bound.to_string());
        let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
        for (bound, count) in bounds.zip(histogram.counts) {
            below += count;
            self.sample(&bucket, &[("le", bound)], below as f64);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum_s);
        self.sample(&format!("{name}_count"), &[], below as f64);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        for part in ["# HELP backhaul_", name, " ", help, "\n# TYPE backhaul_", name, " ", kind, "\n"] {
            self.0.push_str(part);
        }
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str("backhaul_");
        self.0.push_str(name);
        for (nth, (label, text)) in labels.iter().enumerate() {
            self.0.push_str(if nth == 0 { "{" } else { "," });
            self.0.push_str(label);
            self.0.push_str("=\"");
            self.escaped(text);
            self.0.push('"');
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}").expect("a String takes everything");
    }

    /// A label's value, as the format wants it.
    fn escaped(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                other => self.0.push(other),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_a_label_is_escaped() {
        let mut status = Status::default();
        status.agent.device = "a\"b\\c\nd".into();
        for ms in [1, 3, 1_000_000_000] {
            status.histograms.rtt.push(Duration::from_millis(ms));
        }
        let text = text(&status);
        for line in [
            "backhaul_info{device=\"a\\\"b\\\\c\\nd\",version=\"\"} 1\n",
            "# TYPE backhaul_link_rtt_seconds histogram\nbackhaul_link_rtt_seconds_bucket{le=\"0.001\"} 1\n",
            "backhaul_link_rtt_seconds_bucket{le=\"0.005\"} 2\n",
            "backhaul_link_rtt_seconds_bucket{le=\"86400\"} 2\nbackhaul_link_rtt_seconds_bucket{le=\"+Inf\"} 3\n\
             backhaul_link_rtt_seconds_sum 1000000.004\nbackhaul_link_rtt_seconds_count 3\n",
            "backhaul_link_failures_total{class=\"silent\"} 0\n",
        ] {
            assert!(text.contains(line), "{text}\nlacks {line}");
        }
        assert!(!text.contains("next_attempt_seconds 0"), "what is not known has no sample");
    }

    #[test]
    fn every_family_is_declared_once_before_its_samples() {
        let mut status = Status { lanes: vec![Lane::default()], ..Status::default() };
        status.link.state = "up".into();
        let text = text(&status);
        let mut families: Vec<&str> = Vec::new();
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let name = family.split(' ').next().unwrap_or_default();
                assert!(!families.contains(&name), "{name} twice");
                families.push(name);
            } else if !line.starts_with('#') {
                let last = families.last().copied().unwrap_or_default();
                assert!(line.starts_with(last), "{line} is not of {last}");
            }
        }
        assert_eq!(
            text.lines().filter(|line| line.starts_with("backhaul_link_state{") && line.ends_with(" 1")).count(),
            1
        );
    }
}
