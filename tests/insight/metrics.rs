//! Metrics for Prometheus, held against Debian's own `promtool`, and metrics that travel upstream.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{DEADLINE, free_port, not_run, wait_for, wait_until};
use crate::{Bench, text};

/// Files that an operator takes over.
fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus").join(name)
}

/// Debian's `promtool`: installed, or taken out of its package, which would start a server.
fn promtool() -> Option<PathBuf> {
    let runs = |path: &Path| {
        let version = Command::new(path).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("promtool");
    let found = [PathBuf::from("promtool"), kept.clone()].into_iter().find(|path| runs(path));
    if found.is_some() {
        return found;
    }
    // Several tests may do so at once: each in a folder of its own.
    let dir = crate::support::TempDir::new("promtool");
    let script = "apt-get download -q prometheus || { apt-get update -q; apt-get download -q prometheus; } && dpkg-deb -x prometheus_*.deb . && chmod 0755 usr/bin/promtool";
    let taken = Command::new("sh").args(["-c", script]).current_dir(&*dir).stdin(Stdio::null()).output();
    let taken = taken.is_ok_and(|output| output.status.success());
    let beside = kept.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    let moved = taken && fs::copy(dir.join("usr/bin/promtool"), &beside).is_ok() && fs::rename(&beside, &kept).is_ok();
    (moved && runs(&kept)).then_some(kept)
}

/// Runs `promtool` in the folder of the rules.
#[track_caller]
fn promtool_accepts(args: &[&str], input: &str) {
    let Some(promtool) = promtool() else {
        return not_run("promtool", "it is not here (apt-get download prometheus)");
    };
    let mut command = Command::new(promtool);
    command.args(args).current_dir(deployed(".")).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(output.stdout) + &text(output.stderr);
    assert!(output.status.success(), "promtool {args:?}: {said}");
}

/// The names of all series in this text.
fn names(metrics: &str) -> BTreeSet<String> {
    let samples = metrics.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split([' ', '{']).next().unwrap_or_default().to_owned();
    let families = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    samples.map(name).chain(families.map(str::to_owned)).collect()
}

#[test]
fn promtool_accepts_what_a_real_agent_says_and_the_page_and_the_command_say_the_same() {
    let mut bench = Bench::new(|config| config.page.listen = format!("127.0.0.1:{}", free_port()));
    bench.put(5);
    bench.agent.wait_drained();
    let output = bench.status(&["--prometheus"]);
    let told = text(output.stdout);
    assert!(output.status.success());
    for line in [
        "backhaul_agent_up 1",
        "backhaul_link_up 1",
        "backhaul_link_state{state=\"up\"} 1",
        "backhaul_link_state{state=\"waiting\"} 0",
        "backhaul_lane_put_records_total{lane=\"telemetry\"} 5",
        "backhaul_lane_acked_records_total{lane=\"telemetry\"} 5",
        "backhaul_lane_waiting_records{lane=\"telemetry\"} 0",
        "backhaul_delivery_seconds_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(told.lines().any(|said| said == line) || line.contains("+Inf"), "{told}\nlacks {line}");
    }
    let counted = |name: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    assert!(counted("backhaul_delivery_seconds_count") >= 1 && counted("backhaul_flash_sync_seconds_count") >= 1);
    wait_until(DEADLINE, "a ping is measured", || {
        text(bench.status(&["--prometheus"]).stdout)
            .lines()
            .any(|line| line.strip_prefix("backhaul_link_rtt_seconds_count ").is_some_and(|count| count != "0"))
    });
    let (head, body) = bench.ask(&format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", bench.page()));
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    let both = [told, text(bench.status(&["--prometheus"]).stdout)].map(|text| names(&text));
    assert_eq!(names(&body), both[1]);
    promtool_accepts(&["check", "metrics"], &body);
    // What is gone says so, for who collects it from a file.
    bench.agent.kill9();
    let output = bench.status(&["--prometheus"]);
    assert_eq!(output.status.code(), Some(69));
    let told = text(output.stdout);
    assert!(told.ends_with("\nbackhaul_agent_up 0\n"), "{told}");
    promtool_accepts(&["check", "metrics"], &told);
}

#[test]
fn promtool_accepts_the_rules_and_they_do_what_their_tests_say() {
    promtool_accepts(&["check", "rules", "backhaul.rules.yml"], "");
    promtool_accepts(&["test", "rules", "backhaul.rules.test.yml"], "");
}

#[test]
fn rules_and_dashboard_name_only_metrics_that_there_are() {
    let known = names(&backhaul::insight::metrics::text(&Default::default()));
    let dashboard = fs::read_to_string(deployed("backhaul.dashboard.json")).unwrap();
    let panels: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(panels["panels"].as_array().unwrap().len() >= 10);
    let mut seen = 0;
    for file in ["backhaul.rules.yml", "backhaul.rules.test.yml", "backhaul.dashboard.json"] {
        let text = fs::read_to_string(deployed(file)).unwrap();
        for (at, _) in text.match_indices("backhaul_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(known.contains(&name), "{file}: there is no {name}");
            seen += 1;
        }
    }
    assert!(seen > 60, "{seen}");
    // And the page of the metrics names each family.
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
    let text = backhaul::insight::metrics::text(&Default::default());
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE backhaul_")?.split(' ').next()) {
        assert!(page.contains(&format!("`{family}`")), "docs/metrics.md lacks {family}");
    }
}

#[test]
fn metrics_travel_upstream_as_records_on_the_lane_that_was_named() {
    let mut bench = Bench::new(|config| {
        config.lanes.push(crate::agent::lane("health"));
        config.metrics.every_s = 1;
        config.metrics.lane = "health".into();
    });
    bench.put(3);
    let stored = wait_for(DEADLINE, "two of them arrive", || {
        let stored: Vec<_> = bench.receiver.records().into_iter().filter(|record| record.lane == "health").collect();
        (stored.len() >= 2).then_some(stored)
    });
    for record in &stored {
        assert_eq!(record.topic, "$metrics");
        let said: Value = serde_json::from_slice(&record.body).unwrap();
        assert_eq!(said["state"], "up");
        assert!(said["lanes"]["telemetry"].is_array(), "{said}");
    }
    bench.agent.assert_runs();
}
