//! What this machine says of itself in /proc and /sys, as metrics: load, memory, processors, temperatures, network
//! and disk counters. What a machine does not have is left out.

use std::fs;
use std::path::Path;

/// One reading: a topic such as `net/eth0/rx_bytes`, and a number as the kernel wrote it.
#[derive(Debug)]
pub struct Metric {
    pub topic: String,
    pub value: String,
}

/// Interfaces, processors, disks and sensors that are read, each kind at most: a big machine is no gateway.
const KIND_MAX: usize = 4;

/// All of them, now.
pub fn sample() -> Vec<Metric> {
    let mut metrics = Vec::new();
    load(&mut metrics);
    memory(&mut metrics);
    processors(&mut metrics);
    temperatures(&mut metrics);
    network(&mut metrics);
    disks(&mut metrics);
    metrics
}

fn load(metrics: &mut Vec<Metric>) {
    let text = read("/proc/loadavg");
    for (name, value) in ["1min", "5min", "15min", "running"].iter().zip(text.split_whitespace()) {
        push(metrics, format!("load/{name}"), value.split('/').next());
    }
    push(metrics, "uptime_s".into(), read("/proc/uptime").split_whitespace().next());
}

/// `MemAvailable:    4711 kB`
fn memory(metrics: &mut Vec<Metric>) {
    const WANTED: [&str; 8] =
        ["MemFree", "MemAvailable", "Buffers", "Cached", "Dirty", "Writeback", "AnonPages", "Slab"];
    for line in read("/proc/meminfo").lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().trim_end_matches(':');
        if WANTED.contains(&name) {
            push(metrics, format!("memory/{name}_kb"), words.next());
        }
    }
}

/// `cpu0 user nice system idle iowait …`, in ticks since boot; `ctxt N`; `processes N`.
fn processors(metrics: &mut Vec<Metric>) {
    for line in read("/proc/stat").lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let number = name.strip_prefix("cpu").and_then(|number| number.parse().ok());
        if number.is_some_and(|number: usize| number < KIND_MAX) {
            for (what, value) in ["user", "nice", "system", "idle", "iowait"].iter().zip(words) {
                push(metrics, format!("{name}/{what}_ticks"), Some(value));
            }
        } else if ["ctxt", "processes"].contains(&name) {
            push(metrics, format!("kernel/{name}"), words.next());
        }
    }
}

/// Thousandths of a degree, from thermal zones and from hardware monitors.
fn temperatures(metrics: &mut Vec<Metric>) {
    for zone in entries("/sys/class/thermal", "thermal_zone") {
        push(metrics, format!("temperature/{zone}_mc"), Some(&read(format!("/sys/class/thermal/{zone}/temp"))));
    }
    for monitor in entries("/sys/class/hwmon", "hwmon") {
        let path = format!("/sys/class/hwmon/{monitor}/temp1_input");
        push(metrics, format!("temperature/{monitor}_mc"), Some(&read(path)));
    }
}

/// `eth0: rx_bytes rx_packets (6 more) tx_bytes tx_packets …`, behind two lines of headings.
fn network(metrics: &mut Vec<Metric>) {
    for line in read("/proc/net/dev").lines().skip(2).take(KIND_MAX) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let counters: Vec<&str> = counters.split_whitespace().collect();
        for (what, column) in [("rx_bytes", 0), ("rx_packets", 1), ("tx_bytes", 8), ("tx_packets", 9)] {
            push(metrics, format!("net/{}/{what}", name.trim()), counters.get(column).copied());
        }
    }
}

/// `major minor name reads merged sectors ms writes merged sectors ms …`
fn disks(metrics: &mut Vec<Metric>) {
    let text = read("/proc/diskstats");
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let real = rows.filter(|row| row.get(2).is_some_and(|name| !name.starts_with("loop") && !name.starts_with("ram")));
    for row in real.take(KIND_MAX) {
        for (what, column) in [("sectors_read", 5), ("sectors_written", 9)] {
            push(metrics, format!("disk/{}/{what}", row[2]), row.get(column).copied());
        }
    }
}

/// Adds a metric where there is a number.
fn push(metrics: &mut Vec<Metric>, topic: String, value: Option<&str>) {
    let value = value.unwrap_or_default().trim();
    if value.parse::<f64>().is_ok_and(f64::is_finite) {
        metrics.push(Metric { topic, value: value.into() });
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Names in a folder that begin so, in order.
fn entries(folder: &str, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names.truncate(KIND_MAX);
    names
}
