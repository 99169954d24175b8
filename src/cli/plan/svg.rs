//! A plan as a picture: attempts in each second and the share of devices back, the bound and the recovery drawn in.
//! Today's settings are solid, recommended ones dashed, so that it reads in black and white.

use std::fmt::Write as _;

use crate::fleet::{Outcome, Scenario, Start};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const PANEL: f64 = 210.0;
const TOPS: [f64; 2] = [70.0, 350.0];
const HEIGHT: f64 = 620.0;
/// Points of a line, at most: more than the picture has columns says nothing more.
const POINTS_MAX: usize = 900;

/// Keeps a label readable where a line runs through it.
const HALO: &str = "paint-order='stroke' stroke='#fff' stroke-width='4'";

/// The two panels.
pub(super) fn draw(scenario: &Scenario, outcome: &Outcome, recommended: Option<&Outcome>) -> String {
    let runs: Vec<_> = [Some(outcome), recommended].into_iter().flatten().collect();
    let seconds = runs.iter().map(|run| run.attempts.len().max(run.connected.len())).max().unwrap_or(1).max(2);
    let bound = outcome.recovery_s as f64 + outcome.bound_s;
    let since = match scenario.start {
        Start::Outage { .. } => "seconds since the loss",
        Start::Planned { .. } => "seconds since the first retry",
        Start::PowerCut { .. } => "seconds since the power is back",
    };
    let axis = Axis { seconds: (seconds as f64).max(bound * 1.02), since };
    let mut svg = head(scenario, recommended.is_some());

    let rate = f64::from(scenario.server.accept_rate);
    let peak = runs.iter().map(|run| f64::from(run.attempts_per_s_peak)).fold(rate, f64::max);
    let top = round_up(peak);
    panel(&mut svg, &axis, TOPS[0], "attempts in a second", top);
    level(&mut svg, TOPS[0], rate / top, &format!("accept rate: {rate} a second"));
    panel(&mut svg, &axis, TOPS[1], "devices connected, in percent", 100.0);
    let devices = f64::from(scenario.devices);
    for (run, style) in
        runs.iter().zip(["stroke='#000' stroke-width='1.6'", "stroke='#777' stroke-width='1.6' stroke-dasharray='6 4'"])
    {
        let attempts = run.attempts.iter().map(|count| f64::from(*count) / top);
        line(&mut svg, &axis, TOPS[0], attempts.collect(), style, f64::max);
        let connected = run.connected.iter().map(|count| f64::from(*count) / devices);
        line(&mut svg, &axis, TOPS[1], connected.collect(), style, |_, last| last);
    }
    let recovery = outcome.recovery_s as f64;
    if recovery > 0.0 {
        mark(&mut svg, &axis, recovery, "recovery", 18.0);
    }
    mark(&mut svg, &axis, bound, "bound: devices / accept rate", 32.0);
    svg += "</svg>\n";
    svg
}

/// Seconds to the right.
struct Axis {
    seconds: f64,
    /// What they are.
    since: &'static str,
}

impl Axis {
    fn x(&self, second: f64) -> f64 {
        LEFT + second / self.seconds * (WIDTH - LEFT - RIGHT)
    }
}

fn head(scenario: &Scenario, recommended: bool) -> String {
    let what = match scenario.start {
        Start::Outage { seconds, .. } => format!("after {seconds} s of outage"),
        Start::Planned { .. } => "after a planned restart".into(),
        Start::PowerCut { .. } => "when the power returns".into(),
    };
    let (devices, rate) = (scenario.devices, scenario.server.accept_rate);
    let legend = if recommended { "solid: the settings as they are; dashed: the recommended ones" } else { "" };
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' font-family='sans-serif' \
         font-size='13'>\n<title>{devices} devices {what}</title>\n<rect width='{WIDTH}' height='{HEIGHT}' \
         fill='#fff'/>\n<text x='{LEFT}' y='24' font-size='17'>{devices} devices {what}; the server accepts {rate} a \
         second</text>\n<text x='{LEFT}' y='44' fill='#444'>{legend}</text>\n"
    )
}

fn panel(svg: &mut String, axis: &Axis, top: f64, title: &str, highest: f64) {
    let (right, bottom) = (WIDTH - RIGHT, top + PANEL);
    put(svg, format_args!("<text x='{LEFT}' y='{}'>{title}</text>\n", top - 8.0));
    put(svg, format_args!("<path d='M{LEFT} {top}V{bottom}H{right}' fill='none' stroke='#000'/>\n"));
    for quarter in 0..=4u8 {
        let share = f64::from(quarter) / 4.0;
        let y = bottom - share * PANEL;
        put(
            svg,
            format_args!(
                "<path d='M{LEFT} {y}H{right}' stroke='#ddd'/><text x='{}' y='{}' text-anchor='end'>{}</text>\n",
                LEFT - 6.0,
                y + 4.0,
                number(highest * share)
            ),
        );
    }
    let step = round_up(axis.seconds / 8.0).max(1.0);
    let mut second = 0.0;
    while second <= axis.seconds {
        let x = axis.x(second);
        put(svg, format_args!("<text x='{x:.1}' y='{}' text-anchor='middle'>{second}</text>\n", bottom + 17.0));
        second += step;
    }
    put(svg, format_args!("<text x='{right}' y='{}' text-anchor='end'>{}</text>\n", bottom + 34.0, axis.since));
}

/// `values` in [0, 1], one a second; where there are more than columns, `fold` says what stands for several.
fn line(svg: &mut String, axis: &Axis, top: f64, values: Vec<f64>, style: &str, fold: fn(f64, f64) -> f64) {
    let per_point = values.len().div_ceil(POINTS_MAX).max(1);
    let mut path = String::new();
    for (index, chunk) in values.chunks(per_point).enumerate() {
        let value = chunk.iter().copied().fold(0.0, fold);
        let x = axis.x((index * per_point) as f64 + per_point as f64 / 2.0);
        let command = if index == 0 { 'M' } else { 'L' };
        put(&mut path, format_args!("{command}{x:.1} {:.1}", top + PANEL * (1.0 - value)));
    }
    put(svg, format_args!("<path d='{path}' fill='none' {style}/>\n"));
}

/// Across one panel.
fn level(svg: &mut String, top: f64, share: f64, label: &str) {
    let y = top + PANEL * (1.0 - share);
    let right = WIDTH - RIGHT;
    put(
        svg,
        format_args!(
            "<path d='M{LEFT} {y:.1}H{right}' stroke='#000' stroke-dasharray='2 3'/><text x='{right}' y='{:.1}' \
         text-anchor='end' {HALO}>{label}</text>\n",
            y - 5.0
        ),
    );
}

/// Down both panels.
fn mark(svg: &mut String, axis: &Axis, second: f64, label: &str, below: f64) {
    let x = axis.x(second);
    for top in TOPS {
        put(svg, format_args!("<path d='M{x:.1} {top}V{}' stroke='#000' stroke-dasharray='8 3 2 3'/>\n", top + PANEL));
    }
    let anchor = if x > WIDTH * 0.7 { "end' dx='-5" } else { "start' dx='5" };
    put(svg, format_args!("<text x='{x:.1}' y='{}' text-anchor='{anchor}' {HALO}>{label}</text>\n", TOPS[1] + below));
}

/// 1, 2, 2.5 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    // Not by a logarithm: for nothing else would each agent load libm.
    let mut power = 1.0;
    while power * 10.0 <= value.min(1e30) {
        power *= 10.0;
    }
    while power > value.max(1e-9) {
        power /= 10.0;
    }
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|rounded| *rounded >= value).unwrap_or(value)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn put(svg: &mut String, arguments: std::fmt::Arguments<'_>) {
    svg.write_fmt(arguments).expect("a String takes everything");
}
