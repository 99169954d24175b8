//! `backhaul plan` as an operator types it: the numbers that programs read, the fragment that a configuration takes, the
//! picture.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use support::{TempDir, program};

const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;

/// Enough devices for a shape, few enough for a slow machine.
const FLEET: &[&str] = &["--devices", "2000", "--accept-rate", "20"];

fn plan(args: &[&str]) -> Output {
    Command::new(program("backhaul")).arg("plan").args(FLEET).args(args).output().unwrap()
}

fn text(args: &[&str]) -> String {
    let output = plan(args);
    assert!(output.status.success(), "{output:?}");
    // Nobody watches: nothing ticks.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

fn numbers(args: &[&str]) -> Value {
    serde_json::from_str(&text(&[args, &["--json"]].concat())).unwrap()
}

fn number(of: &Value, key: &str) -> f64 {
    of[key].as_f64().unwrap_or_else(|| panic!("{key} in {of}"))
}

#[test]
fn tells_programs_what_they_ask_for() {
    let outage = numbers(&["--outage", "60"]);
    assert!(number(&outage, "attempts_per_s_peak") >= number(&outage, "attempts_per_s_peak_after"));
    assert!(number(&outage, "attempts_per_device") > 1.0);
    let back = ["p50", "p99", "p100"].map(|key| number(&outage["back_s"], key));
    assert!(back.is_sorted() && back[0] > 0.0, "{back:?}");
    assert_eq!(number(&outage, "bound_s"), 100.0);
    let settings = &outage["settings"];
    let keys = ["start_delay_ms_max", "spread_ms", "backoff_ms_min", "backoff_ms_max"];
    assert_eq!(keys.map(|key| number(settings, key)), [30_000.0, 35_000.0, 35_000.0, 40_000.0]);

    let planned = numbers(&["--planned"]);
    assert_eq!(number(&planned, "attempts_per_device"), 1.0);
    // The virtual queue is what keeps the last one from waiting for its backoff.
    let bare = numbers(&["--no-retry-after"]);
    assert!(number(&bare["back_s"], "p100") > number(&outage["back_s"], "p100"));
    assert_eq!(numbers(&["--seed", "7"]), numbers(&["--seed", "7"]));
    assert_ne!(numbers(&["--seed", "7"]), outage);
}

#[test]
fn a_recommendation_is_a_configuration_that_reaches_the_goal() {
    let dir = TempDir::new("plan");
    let goal = ["--recommend", "--peak", "60"];
    let told = text(&goal);
    let fragment = &told[told.find("[upstream.reconnect]").unwrap()..];
    let file = dir.join("herd.toml");
    fs::write(&file, fragment).unwrap();
    let with = numbers(&["--config", file.to_str().unwrap()]);
    assert!(number(&with, "attempts_per_s_peak") <= 60.0, "{with}");
    assert!(number(&numbers(&[]), "attempts_per_s_peak") > 60.0, "it took other settings");
    let found = &numbers(&goal)["recommended"];
    assert_eq!((&found["settings"], &found["back_s"]), (&with["settings"], &with["back_s"]));

    let missed = plan(&["--recommend", "--back-within", "1"]);
    assert_eq!(missed.status.code(), Some(UNAVAILABLE));
    assert!(String::from_utf8_lossy(&missed.stderr).contains("none of the settings"), "{missed:?}");
}

#[test]
fn a_bad_file_is_told_with_its_line() {
    let dir = TempDir::new("plan-bad");
    let file = dir.join("bad.toml");
    fs::write(&file, "[upstream.reconnect]\nspread_ms = \"soon\"\n").unwrap();
    let output = plan(&["--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(CONFIG));
    assert!(String::from_utf8_lossy(&output.stderr).contains("bad.toml:2:"), "{output:?}");
}

#[test]
fn the_picture_is_well_formed_and_shows_the_bound_and_both_settings() {
    let dir = TempDir::new("plan-svg");
    let file = dir.join("herd.svg");
    let path = file.to_str().unwrap();
    text(&["--svg", path, "--recommend", "--peak", "60"]);
    let parse = "import sys, xml.dom.minidom as d; e = d.parse(sys.argv[1]).documentElement; print(e.tagName)";
    let output = Command::new("python3").args(["-c", parse, path]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "svg\n", "{output:?}");
    let svg = fs::read_to_string(&file).unwrap();
    for part in
        ["2000 devices after 60 s of outage", "bound: devices / accept rate", "recovery", "seconds since", "dashed"]
    {
        assert!(svg.contains(part), "{part}");
    }
}

#[test]
fn other_programs_are_laid_beside_it() {
    let told = text(&["--compare", "--rtt", "0", "--no-retry-after"]);
    for name in ["backhaul", "fixed 5 s", "Python websockets", "parodus", "libocpp", "socket.io-client"] {
        assert!(told.lines().any(|line| line.starts_with(name)), "{name} in {told}");
    }
}
