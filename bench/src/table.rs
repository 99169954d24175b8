//! The goals, and what was measured beside them.

use std::fmt::Write;

use crate::append::{Appended, ratio};
use crate::life::Life;
use crate::open::Opened;
use crate::store::Kind;

/// What is good.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// There is none.
    Stated,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Row {
    pub what: String,
    pub unit: &'static str,
    pub goal: Goal,
    /// In the order of [`Kind::ALL`].
    pub values: Vec<Option<f64>>,
    pub decimals: usize,
}

impl Row {
    /// Ours.
    pub fn ours(&self) -> f64 {
        self.values.first().copied().flatten().unwrap_or(f64::NAN)
    }

    /// A value as it is written.
    pub fn text(&self, value: f64) -> String {
        format!("{value:.*}", self.decimals)
    }

    /// The goal as it is written.
    pub fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtMost(goal) => format!("≤ {goal}"),
            Goal::AtLeast(goal) => format!("≥ {goal}"),
            Goal::Stated => "–".into(),
        }
    }

    /// Measured by goal, and whether that is met at the written precision.
    fn verdict(&self) -> (String, &'static str) {
        let ours = self.ours();
        let shown = self.text(ours).parse().unwrap_or(ours);
        let (goal, met) = match self.goal {
            Goal::AtMost(goal) => (goal, shown <= goal),
            Goal::AtLeast(goal) => (goal, shown >= goal),
            Goal::Stated => return ("–".into(), "–"),
        };
        (format!("{:.2}", ours / goal), if met { "met" } else { "NOT MET" })
    }
}

/// The table of the goals.
pub fn rows(appended: &[Appended], lives: &[Life], opened: &Opened) -> Vec<Row> {
    let of = |group: usize| appended.iter().filter(move |one| one.group == group);
    let row = |what: String, unit, goal, decimals, values| Row { what, unit, goal, values, decimals };
    let mut rows = Vec::new();
    for (group, goal) in [(64, 1.35), (256, 1.2), (1024, 1.1)] {
        let values = of(group).map(|one| Some(one.bytes_per_byte)).collect();
        let what = format!("device bytes per payload byte, {group} records per commit");
        rows.push(row(what, "bytes", Goal::AtMost(goal), 2, values));
    }
    let flushes = of(256).map(|one| Some(one.flushes_per_commit)).collect();
    rows.push(row("flushes per commit".into(), "flushes", Goal::AtMost(1.0), 1, flushes));
    for (kind, goal) in [(Kind::SqliteFull, 6.0), (Kind::Raw, 0.8)] {
        let base = of(64).find(|one| one.kind == kind);
        let values = of(64).map(|one| base.map(|base| ratio(one, base))).collect();
        let what = format!("durable append in groups of 64, speed against {}", kind.title());
        rows.push(row(what, "times", Goal::AtLeast(goal), 2, values));
    }
    for (group, goal) in [(64, Goal::Stated), (256, Goal::Stated), (1024, Goal::Stated)] {
        let values = of(group).map(|one| Some(one.cpu_us_per_record)).collect();
        rows.push(row(format!("CPU per record, {group} records per commit"), "µs", goal, 2, values));
    }
    let raw = of(256).find(|one| one.kind == Kind::Raw).map_or(f64::NAN, |raw| raw.cpu_us_per_record);
    let values = of(256).map(|one| Some(one.cpu_us_per_record / raw)).collect();
    // 0.25 µs beside a raw file's 0.08: the ratio holds from machine to machine.
    let what = "CPU per record, 256 records per commit, against the raw file".into();
    rows.push(row(what, "times", Goal::AtMost(3.1), 2, values));
    let values = of(256).map(|one| one.own_cpu_us_per_record).collect();
    let what = "CPU per record, 256 per commit, without the kernel's writes and syncs".into();
    rows.push(row(what, "µs", Goal::AtMost(0.25), 2, values));
    let alone = |value| vec![Some(value)];
    let what = format!("CPU per record, 256 per commit, in a lane of {} segments", opened.segments);
    rows.push(row(what, "µs", Goal::Stated, 2, alone(opened.cpu_us_per_record)));
    let values = lives.iter().map(|life| Some(life.bytes_per_byte)).collect();
    rows.push(row("device bytes per payload byte over a whole life".into(), "bytes", Goal::AtMost(1.3), 2, values));
    let values = lives.iter().map(|life| Some(life.memory_mib)).collect();
    rows.push(row("peak memory over that life".into(), "MiB", Goal::AtMost(6.0), 1, values));
    rows.push(row("opening 1 GiB of backlog, warm".into(), "ms", Goal::AtMost(100.0), 0, alone(opened.ms)));
    rows.push(row("of which on a CPU".into(), "ms", Goal::Stated, 0, alone(opened.cpu_ms)));
    rows.push(row("peak memory after opening it".into(), "MiB", Goal::AtMost(6.0), 1, alone(opened.memory_mib)));
    let pages = alone(opened.pages_per_segment);
    rows.push(row("pages read per segment at opening, the newest apart".into(), "pages", Goal::AtMost(1.0), 2, pages));
    let what = "reading the backlog back, warm";
    rows.push(row(format!("{what}: MiB/s"), "MiB/s", Goal::Stated, 0, alone(opened.read_mib_per_s)));
    rows.push(row(format!("{what}: CPU per record"), "µs", Goal::Stated, 2, alone(opened.read_cpu_us_per_record)));
    rows.push(row(format!("{what}: peak memory"), "MiB", Goal::Stated, 1, alone(opened.read_memory_mib)));
    rows
}

/// All rows as a table in Markdown.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| what | goal | measured | measured/goal | |");
    for kind in &Kind::ALL[1..] {
        let _ = write!(text, " {} |", kind.title());
    }
    let _ = write!(text, "\n|---|---|---|---|---|{}", "---|".repeat(Kind::ALL.len() - 1));
    for row in rows {
        let (ratio, met) = row.verdict();
        let (goal, ours, unit) = (row.goal_text(), row.text(row.ours()), row.unit);
        let _ = write!(text, "\n| {} | {goal} | {ours} {unit} | {ratio} | {met} |", row.what);
        for index in 1..Kind::ALL.len() {
            let value = row.values.get(index).copied().flatten().map_or("–".into(), |value| row.text(value));
            let _ = write!(text, " {value} |");
        }
    }
    text
}
