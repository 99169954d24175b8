//! The snapshot on one screen of 80 columns, for people: what is, and why. Nothing here asks the agent or writes.

use std::fmt;

use crate::link::Class;
use crate::link::Disposition;
use crate::status::{Endpoint, Flash, Lane, Lifetime, Link, Percentiles, Quality, Status};

/// What a line holds; behind the labels begins the text.
const COLUMNS: usize = 80;
const LABEL: usize = 8;
/// Of a lane's name.
const NAME_MAX: usize = 16;
/// A lane so full (percent) wants a look.
const FULL_PERCENT: u64 = 80;

/// How a part looks where there are colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Look,
    Bad,
}

/// A part of a line; where it does not fit it stands on the next one.
type Part = (Tone, String);

/// One screen. `colours`: with ANSI colours.
pub fn screen(status: &Status, colours: bool) -> String {
    let mut screen = Screen { text: String::new(), colours };
    agent(&mut screen, status);
    link(&mut screen, &status.link);
    lanes(&mut screen, &status.lanes);
    flash(&mut screen, &status.flash);
    rest(&mut screen, status);
    screen.text
}

/// The link on one line, for who reads line by line.
pub fn line(link: &Link) -> String {
    let mut parts = vec![plain(format!("{} for {}", link.state.replace('_', " "), Ago(link.since_s)))];
    parts.extend(link.next_attempt_ms.map(|ms| plain(format!("next attempt in {}", Took(ms as f64)))));
    parts.extend(link.endpoint.clone().map(plain));
    parts.extend(link.session.as_ref().map(|session| plain(format!("session {session}"))));
    if let Some(failure) = link.last_failure.as_ref().filter(|_| link.state != "up") {
        parts.push(plain(format!("{}: {}", failure.class, failure.detail)));
    }
    let words: Vec<String> = parts.into_iter().map(|(_, text)| printable(&text)).collect();
    words.join(", ") + "\n"
}

fn plain(text: String) -> Part {
    (Tone::Plain, text)
}

fn look_if(is: bool) -> Tone {
    if is { Tone::Look } else { Tone::Plain }
}

fn agent(screen: &mut Screen, status: &Status) {
    let agent = &status.agent;
    let mut parts = vec![
        plain(agent.device.clone()),
        plain(format!("backhaul {}", agent.version)),
        plain(format!("pid {}", agent.pid)),
        plain(format!("running for {}", Ago(agent.uptime_s))),
    ];
    parts.push(match status.link.clock.as_str() {
        "unset" => (Tone::Bad, "the clock is NOT SET".into()),
        _ => plain("clock set".into()),
    });
    if agent.config == "fallback" {
        parts.push((Tone::Bad, "on an EARLIER configuration".into()));
    }
    screen.row("agent", &parts);
}

fn link(screen: &mut Screen, link: &Link) {
    let class = link.last_failure.as_ref().and_then(|last| Class::ALL.into_iter().find(|c| c.name() == last.class));
    let is_slow = class.is_some_and(|class| class.disposition() == Disposition::Slow);
    let tone = match link.state.as_str() {
        "up" if !link.suspect => Tone::Good,
        "stopped" => Tone::Bad,
        _ if is_slow => Tone::Bad,
        _ => Tone::Look,
    };
    let mut parts = vec![(tone, format!("{} for {}", link.state.replace('_', " "), Ago(link.since_s)))];
    parts.extend(link.session.as_ref().map(|session| plain(format!("session {session}"))));
    parts.extend(link.rtt_ms.map(|ms| plain(format!("round trip {}", Took(ms)))));
    if link.suspect {
        parts.push((Tone::Look, "SUSPECT: a pong is late".into()));
    }
    screen.row("link", &parts);
    path(screen, link);
    let mut parts = vec![plain(format!("{} sessions in {} attempts", link.sessions, link.attempts))];
    for (nth, (class, count)) in link.failures.iter().enumerate() {
        parts.push(plain(format!("{}{count} {class}", if nth == 0 { "failures: " } else { "" })));
    }
    screen.row("", &parts);
    if let Some(ms) = link.next_attempt_ms {
        let why = link.next_attempt_why.as_deref().unwrap_or("waiting");
        screen.row("next", &[plain(format!("in {}: {why}", Took(ms as f64)))]);
    }
    if let Some(last) = &link.last_failure {
        let why = if last.why.is_empty() { &last.class } else { &last.why };
        let tone = if link.state == "up" { Tone::Plain } else { tone };
        screen.row("last", &[(tone, format!("{} ago: {why}", Ago(last.s_ago)))]);
        screen.row("", &[plain(format!("{}: {}", last.class, last.detail))]);
    }
    for Endpoint { url, breaker, open_ms } in link.endpoints.iter().filter(|endpoint| endpoint.breaker != "closed") {
        let until = open_ms.map(|ms| plain(format!("for another {}", Ago(ms / 1000))));
        let is = (Tone::Look, format!("breaker of {url} {}", breaker.replace('_', " ")));
        screen.row("", &[is].into_iter().chain(until).collect::<Vec<_>>());
    }
    certificate(screen, link);
}

/// Where the link goes, and how good the way is.
fn path(screen: &mut Screen, link: &Link) {
    let mut parts: Vec<Part> = link.endpoint.clone().map(plain).into_iter().collect();
    if let Some(path) = &link.path {
        let mut by = String::new();
        if !path.interface.is_empty() {
            by += &format!("by {} ", path.interface);
        }
        if !path.local.is_empty() {
            by += &format!("from {} ", path.local);
        }
        parts.push(plain(by + &format!("to {}", path.address)));
        parts.extend(path.proxy.as_ref().map(|proxy| plain(format!("by the proxy {proxy}"))));
    }
    let Quality { ping_loss, bytes_per_s, .. } = link.quality;
    if let Some(loss) = ping_loss {
        parts.push((look_if(loss > 0.0), format!("{:.0} % of the last pings lost", loss * 100.0)));
    }
    parts.extend(bytes_per_s.map(|bytes| plain(format!("{} a second when busy", Size(bytes)))));
    if !parts.is_empty() {
        screen.row("", &parts);
    }
}

fn certificate(screen: &mut Screen, link: &Link) {
    let Some(certificate) = &link.certificate else { return };
    let day = certificate.not_after.split('T').next().unwrap_or_default();
    let left = match certificate.days_left {
        None => String::new(),
        Some(days @ ..0) => format!(", {} days ago", -days),
        Some(days) => format!(", in {days} days"),
    };
    let (tone, hint) = if certificate.ends_soon { (Tone::Bad, ": RENEW IT") } else { (Tone::Plain, "") };
    screen.row("tls", &[(tone, format!("certificate of the {} ends {day}{left}{hint}", certificate.of))]);
}

fn lanes(screen: &mut Screen, lanes: &[Lane]) {
    let longest = lanes.iter().map(|lane| lane.name.chars().count()).max().unwrap_or(0).clamp(4, NAME_MAX);
    let columns = ["waiting", "oldest", "in/s", "out/s", "on flash", "full", "lost"];
    let line = |name: &str, cells: [&str; 7]| {
        let [waiting, oldest, put, acked, flash, full, lost] = cells;
        format!("{name:longest$} {waiting:>7} {oldest:>9} {put:>6} {acked:>6} {flash:>9} {full:>5} {lost:>8}")
    };
    screen.row("lane", &[plain(line("name", columns))]);
    for lane in lanes {
        let percent = (lane.bytes * 100).checked_div(lane.bytes_max).unwrap_or(0);
        let cells = [
            lane.depth.to_string(),
            lane.oldest_s.map_or_else(|| "-".into(), |s| Ago(s).to_string()),
            PerSecond(lane.put_per_s).to_string(),
            PerSecond(lane.acked_per_s).to_string(),
            Size(lane.bytes).to_string(),
            format!("{percent} %"),
            lane.lost().to_string(),
        ];
        let tone = if lane.lost() > 0 {
            Tone::Bad
        } else {
            // A ring that drops its oldest is full for ever; what waits in it is not.
            look_if(percent >= FULL_PERCENT && lane.depth > 0)
        };
        screen.row("", &[(tone, line(&cut(&lane.name, NAME_MAX), cells.each_ref().map(String::as_str)))]);
    }
}

fn flash(screen: &mut Screen, flash: &Flash) {
    let tone = if flash.state == "ok" { Tone::Good } else { Tone::Bad };
    let mut parts = vec![
        (tone, flash.state.clone()),
        plain(format!("{} written for {} of records", Size(flash.bytes_written), Size(flash.bytes_payload))),
        plain(format!("{} syncs", flash.syncs)),
    ];
    if flash.syncs > 0 {
        parts.push(plain(format!("median {}", Took(flash.sync_ms_p50))));
        parts.push(plain(format!("longest {}", Took(flash.sync_ms_max))));
    }
    screen.row("flash", &parts);
    if let Some(budget) = &flash.budget {
        let tone = match budget.state.as_str() {
            "ok" => Tone::Plain,
            "widened" => Tone::Look,
            _ => Tone::Bad,
        };
        let budgeted = format!("budget {} a day: {}", Size(budget.bytes_per_day), budget.state);
        let mut parts = vec![(tone, budgeted), plain(format!("{} left", Size(budget.bytes_left)))];
        if budget.window_ms > 0 {
            parts.push(plain(format!("commits wait up to {}", Took(budget.window_ms as f64))));
        }
        screen.row("", &parts);
    }
    let Some(life) = &flash.lifetime else { return };
    let mut parts = vec![plain(format!("{} {}", life.kind, life.device)), plain(Size(life.capacity_bytes).to_string())];
    parts.extend(
        life.used_percent.map(|percent| (look_if(percent >= 80), format!("up to {percent} % of its life used"))),
    );
    parts
        .extend(life.reserve.as_ref().map(|reserve| (look_if(reserve != "normal"), format!("spare blocks {reserve}"))));
    parts.extend(life.years.map(|years| match years {
        0 => (Tone::Bad, "less than a year left at this rate".into()),
        Lifetime::YEARS_MAX.. => plain("outlives us at this rate".into()),
        years => plain(format!("about {years} years left at this rate")),
    }));
    screen.row("", &parts);
}

fn rest(screen: &mut Screen, status: &Status) {
    let (wire, delay, memory) = (&status.wire, &status.delay, &status.memory);
    let mut parts = vec![
        plain(format!("{} out", Size(wire.bytes_sent))),
        plain(format!("{} in", Size(wire.bytes_received))),
        plain(format!("{} in 24 hours", Size(wire.day_bytes))),
    ];
    if wire.capped {
        parts.push((Tone::Look, "the day's bytes are SPENT".into()));
    }
    screen.row("wire", &parts);
    let both = |what: &str, both: Percentiles| match (both.p50, both.p99) {
        (Some(p50), Some(p99)) => plain(format!("to {what} {} ({})", Took(p50), Took(p99))),
        (None, _) | (_, None) => plain(format!("to {what} -")),
    };
    let hint = plain("median (99 of 100)".into());
    screen.row("delay", &[both("flash", delay.put_to_committed_ms), both("upstream", delay.put_to_delivered_ms), hint]);
    let most =
        if memory.rss_bytes_max > 0 { format!(" of at most {}", Size(memory.rss_bytes_max)) } else { String::new() };
    let tone = look_if(memory.rss_bytes_max > 0 && memory.rss_bytes > memory.rss_bytes_max);
    let queues = format!("{} of {} in queues", Size(memory.queues_bytes), Size(memory.queues_bytes_max));
    screen.row("memory", &[(tone, format!("{}{most}", Size(memory.rss_bytes))), plain(queues)]);
}

/// What is drawn so far.
struct Screen {
    text: String,
    colours: bool,
}

impl Screen {
    /// A row of parts with commas between them, on as many lines as it takes.
    fn row(&mut self, label: &str, parts: &[Part]) {
        self.text += &if label.is_empty() { " ".repeat(LABEL) } else { self.toned("1", &format!("{label:LABEL$}")) };
        let mut column = LABEL;
        for (nth, (tone, text)) in parts.iter().enumerate() {
            let comma = if nth + 1 < parts.len() { "," } else { "" };
            let text = printable(text) + comma;
            let length = text.chars().count();
            if column > LABEL && column + 1 + length > COLUMNS {
                self.next_line(&mut column);
            } else if column > LABEL {
                self.text.push(' ');
                column += 1;
            }
            self.flow(*tone, &text, &mut column);
        }
        self.text.push('\n');
    }

    /// One part, which may be longer than a line.
    fn flow(&mut self, tone: Tone, text: &str, column: &mut usize) {
        let mut rest = text;
        while rest.chars().count() > COLUMNS - *column {
            let room = rest.char_indices().nth(COLUMNS - *column).map_or(rest.len(), |(at, _)| at);
            let (line, next) = match rest[..room].rfind(' ') {
                Some(space) if space > 0 => (&rest[..space], &rest[space + 1..]),
                Some(_) | None => rest.split_at(room),
            };
            self.part(tone, line);
            self.next_line(column);
            rest = next;
        }
        self.part(tone, rest);
        *column += rest.chars().count();
    }

    fn part(&mut self, tone: Tone, text: &str) {
        self.text += &match tone {
            Tone::Plain => text.to_owned(),
            Tone::Good => self.toned("32", text),
            Tone::Look => self.toned("33", text),
            Tone::Bad => self.toned("31", text),
        };
    }

    fn toned(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn next_line(&mut self, column: &mut usize) {
        self.text.push('\n');
        self.text += &" ".repeat(LABEL);
        *column = LABEL;
    }
}

/// What a server or a file named reaches the terminal as text, never as a command to it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn cut(name: &str, length_max: usize) -> String {
    if name.chars().count() <= length_max {
        return printable(name);
    }
    printable(&name.chars().take(length_max - 1).collect::<String>()) + "…"
}

/// A duration in its two largest units.
struct Ago(u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            s @ 0..60 => format!("{s} s"),
            s @ 60..3600 => format!("{} min", s / 60),
            s @ 3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
            s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
        };
        f.write_str(&text)
    }
}

/// Milliseconds, in the unit that suits them.
struct Took(f64);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 10.0 => write!(f, "{ms:.1} ms"),
            ms if ms < 1000.0 => write!(f, "{ms:.0} ms"),
            ms if ms < 100_000.0 => write!(f, "{:.1} s", ms / 1000.0),
            ms => Ago((ms / 1000.0) as u64).fmt(f),
        }
    }
}

/// Events a second.
struct PerSecond(f64);

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0.0 => f.write_str("0"),
            few if few < 0.1 => f.write_str("<0.1"),
            few if few < 10.0 => write!(f, "{few:.1}"),
            many if many < 100_000.0 => write!(f, "{many:.0}"),
            many => write!(f, "{:.0} k", many / 1000.0),
        }
    }
}

/// Bytes for people.
pub struct Size(pub u64);

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
