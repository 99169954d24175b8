//! The table as a picture: bars with their figures, the goal as a dashed line. Ours is solid, the others are outlines:
//! it can be read in black and white.

use std::fmt::Write;

use crate::store::Kind;
use crate::table::{Goal, Row};

const WIDTH: usize = 920;
const COLUMN: usize = 450;
/// Where bars begin, behind the names, and how long the longest is.
const BARS_AT: usize = 110;
const BARS_LENGTH: f64 = 260.0;
const BAR: usize = 16;
const HEAD: usize = 56;

/// The picture.
pub fn svg(rows: &[Row]) -> String {
    let mut panels = String::new();
    let mut heights = [HEAD, HEAD];
    for row in rows {
        let column = usize::from(heights[1] < heights[0]);
        heights[column] += panel(&mut panels, row, 16 + column * COLUMN, heights[column]);
    }
    let height = heights[0].max(heights[1]);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" role="img">
<title>The outbox and its peers on ext4: bytes, flushes, speed, CPU and memory, against the goals</title>
<rect width="100%" height="100%" fill="#fff"/>
<g font-family="sans-serif" font-size="11" fill="#000">
<text x="16" y="24" font-size="16" font-weight="bold">The outbox and its peers, side by side in one run on ext4</text>
<text x="16" y="41">records of {} bytes; solid: backhaul; dashed: the goal; figures are written out, bars are linear from 0</text>
{panels}</g>
</svg>
"##,
        crate::store::RECORD_BYTES
    )
}

/// One row; returns its height.
fn panel(out: &mut String, row: &Row, x: usize, y: usize) -> usize {
    let goal = match row.goal {
        Goal::AtMost(goal) | Goal::AtLeast(goal) => Some(goal),
        Goal::Stated => None,
    };
    let longest = row.values.iter().flatten().copied().chain(goal).fold(f64::MIN_POSITIVE, f64::max);
    let scale = BARS_LENGTH / longest;
    let head = match goal {
        Some(_) => format!("{} ({}; goal {})", row.what, row.unit, row.goal_text()),
        None => format!("{} ({})", row.what, row.unit),
    };
    let _ = writeln!(out, r#"<text x="{x}" y="{}" font-weight="bold">{head}</text>"#, y + 12);
    let bars_at = x + BARS_AT;
    let values = Kind::ALL.iter().zip(&row.values).filter_map(|(kind, value)| Some((kind, (*value)?)));
    let mut at = y + 18;
    for (kind, value) in values {
        let fill = if *kind == Kind::Ours { "#000" } else { "#ddd" };
        let length = value * scale;
        let text = row.text(value);
        let _ = writeln!(out, r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#, bars_at - 6, at + 11, kind.title());
        let _ = writeln!(
            out,
            r##"<rect x="{bars_at}" y="{}" width="{length:.1}" height="{}" fill="{fill}" stroke="#000"/>"##,
            at + 2,
            BAR - 5
        );
        let _ = writeln!(out, r#"<text x="{:.1}" y="{}">{text}</text>"#, bars_at as f64 + length + 5.0, at + 11);
        at += BAR;
    }
    if let Some(goal) = goal {
        let line = bars_at as f64 + goal * scale;
        let _ = writeln!(
            out,
            r##"<path d="M{line:.1} {}V{at}" stroke="#000" stroke-width="1.5" stroke-dasharray="4 2"/>"##,
            y + 16
        );
    }
    at - y + 14
}
