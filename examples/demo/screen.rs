//! What a person sees: lines of what happens, a live line under them that is drawn again and again on a terminal (else
//! printed once a second), and a table at the end.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Colours, by meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Strong,
    Good,
    Bad,
    Faint,
}

impl Tone {
    /// Select Graphic Rendition (ECMA-48 § 8.3.117).
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Strong => "1",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Faint => "2",
        }
    }
}

/// What the live line shows.
#[derive(Debug)]
pub struct Live<'a> {
    pub state: &'a str,
    pub depth: Option<u64>,
    pub sampled: usize,
    pub committed: usize,
    pub stored: u64,
}

/// The screen.
pub struct Screen {
    begin: Instant,
    terminal: bool,
    colours: bool,
    drawn: Option<Instant>,
}

impl Screen {
    /// Standard output; in colours where it is a terminal and `NO_COLOR` is not set.
    pub fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { begin: Instant::now(), terminal, colours, drawn: None }
    }

    /// A line that stays.
    pub fn say(&mut self, tone: Tone, text: &str) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        let text = self.paint(tone, text);
        self.print(&format!("{clear}{text}\n"));
    }

    /// A line that stays, with the time.
    pub fn event(&mut self, tone: Tone, head: &str, text: &str) {
        let at = self.begin.elapsed().as_secs_f64();
        let head = self.paint(tone, &format!("{head:<9}"));
        self.say(Tone::Plain, &format!("  {at:5.1} s   {head} {text}"));
    }

    /// The line that moves.
    pub fn live(&mut self, live: &Live<'_>) {
        let due = self.drawn.is_none_or(|at| at.elapsed() >= Duration::from_secs(1));
        if !self.terminal && !due {
            return;
        }
        self.drawn = Some(Instant::now());
        let at = self.begin.elapsed().as_secs_f64();
        let tone = if live.state == "up" { Tone::Good } else { Tone::Bad };
        let state = self.paint(tone, &format!("{:<9}", live.state));
        let depth = live.depth.map_or("–".into(), |depth| grouped(depth as usize));
        let line = format!(
            "  {at:5.1} s   {state} depth {depth:>6}   sampled {:>6}   committed {:>6}   stored {:>6}",
            grouped(live.sampled),
            grouped(live.committed),
            grouped(live.stored as usize),
        );
        let line = if self.terminal { format!("\r\x1b[2K{line}") } else { format!("{line}\n") };
        self.print(&line);
    }

    /// A row of the final table: what, how many, what that means.
    pub fn row(&mut self, tone: Tone, what: &str, count: usize, note: &str) {
        let count = self.paint(tone, &format!("{:>10}", grouped(count)));
        let note = self.paint(Tone::Faint, note);
        self.say(Tone::Plain, &format!("  {what:<16}{count}   {note}"));
    }

    fn paint(&self, tone: Tone, text: &str) -> String {
        if self.colours && tone != Tone::Plain { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.into() }
    }

    /// A reader that has gone (`| head`) is no reason to stop.
    fn print(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// `1234567` → `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
