//! The architecture as a test: the core performs no I/O and has no clock, the layers know each other one way only,
//! every file opens with its charter.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

/// The half that decides.
const CORE: &[&str] = &[
    "src/link",
    "src/dialect",
    "src/commands",
    "src/fleet",
    "src/insight",
    "src/outbox",
    "src/record.rs",
    "src/time.rs",
    "src/upstream",
    "src/status.rs",
];

/// What the core may not name, and why.
const PERFORMS: &[(&str, &str)] = &[
    ("mio", "the core has no sockets"),
    ("socket2", "the core has no sockets"),
    ("tungstenite", "the core says what to send, the shell frames it"),
    ("native_tls", "the core has no sockets"),
    ("rustix", "the core makes no system calls"),
    ("signal_hook", "the core makes no system calls"),
    ("std::net", "the core has no sockets"),
    ("std::fs", "the core reaches flash through outbox::disk::Disk"),
    ("std::os", "the core makes no system calls"),
    ("std::env", "the core is told what it needs"),
    ("std::process", "the core runs in someone else's process"),
    ("std::thread", "the core is called, it does not run"),
    ("std::time::Instant", "time is an argument: crate::time::Instant"),
    ("std::time::SystemTime", "wall time is data"),
    ("Instant::now", "time is an argument"),
    ("SystemTime", "wall time is data"),
    ("fastrand::Rng::new", "randomness is an argument: a seed"),
    ("Rng::new", "randomness is an argument: a seed"),
    ("rand", "randomness is an argument: a seed"),
    ("crate::config::load", "the core is given values"),
    ("crate::config::device", "the core is given values"),
    ("crate::config::secret", "the core is given values"),
    ("crate::config::bounds", "the core is given values"),
    ("crate::shell", "the core does not know the shell"),
    ("crate::agent", "the core does not know the shell"),
    ("crate::cli", "the core does not know the shell"),
    ("crate::receiver", "the agent does not know the receiver"),
];

/// Who may not know whom, beyond that.
const LAYERS: &[(&str, &[&str])] = &[
    ("src/link", &["crate::dialect", "crate::outbox", "crate::upstream"]),
    ("src/dialect", &["crate::commands", "crate::outbox", "crate::upstream"]),
    ("src/commands", &["crate::link", "crate::outbox", "crate::upstream"]),
    ("src/fleet", &["crate::dialect", "crate::outbox", "crate::upstream"]),
    ("src/outbox", &["crate::dialect", "crate::link", "crate::upstream"]),
    ("src/shell", &["crate::agent", "crate::cli", "crate::receiver"]),
    ("src/config", &["crate::agent", "crate::cli", "crate::receiver", "crate::link", "crate::dialect"]),
    ("src/agent", &["crate::cli", "crate::receiver"]),
    ("src/receiver", &["crate::agent", "crate::cli", "crate::link", "crate::outbox", "crate::upstream"]),
];

/// Who reads wall time, and what for: never for a timer (oxidezap/whatsapp-rust#1376, xmidt-org/parodus#371).
const WALL_TIME: &[(&str, &str)] = &[
    ("src/shell/clock.rs", "the clocks"),
    ("src/shell/entropy.rs", "one more thing that differs"),
    ("src/shell/local/mod.rs", "a record's time"),
    ("src/shell/local/handling.rs", "a report's time"),
    ("src/agent/setup.rs", "an event's time"),
    ("src/shell/outbox/mod.rs", "the time of records that came without, their age across boots"),
    ("src/shell/snapshot.rs", "whether the clock is set"),
    ("src/shell/transport/mod.rs", "whether a certificate can be judged"),
    ("src/shell/uplink/mod.rs", "the end of a certificate"),
    ("src/receiver/net.rs", "the time of arrival, which `welcome` tells"),
    ("src/receiver/cli.rs", "when a command was put"),
];

#[test]
fn wall_time_is_data_and_sets_no_timer() {
    let files = rust_files("src").into_iter();
    let reads = |file: &PathBuf| paths(&code(file)).iter().any(|(_, path)| reads_wall_time(path));
    let readers: Vec<_> = files.filter(|file| file.ends_with("src/shell/clock.rs") || reads(file)).collect();
    for file in &readers {
        let known = WALL_TIME.iter().any(|(name, _)| file.ends_with(name));
        assert!(known, "{}: reads wall time: for data only, and then its reason stands in this file", file.display());
    }
    assert_eq!(readers.len(), WALL_TIME.len(), "one of them reads it no more");
}

fn reads_wall_time(path: &str) -> bool {
    path.contains("SystemTime::now") || path.ends_with("clock::wall_ms") || path.ends_with("clock::wall_ms_if_set")
}

#[test]
fn the_core_performs_nothing() {
    let mut faults = Vec::new();
    for file in CORE.iter().flat_map(|part| rust_files(part)) {
        for (line, path) in paths(&code(&file)) {
            if let Some(why) = performed(&path) {
                faults.push(format!("{}:{line}: {path}: {why}", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn layers_know_each_other_one_way_only() {
    let mut faults = Vec::new();
    for (part, strangers) in LAYERS {
        for file in rust_files(part) {
            for (line, path) in paths(&code(&file)) {
                if strangers.iter().any(|stranger| within(&path, stranger)) {
                    faults.push(format!("{}:{line}: {part} does not know {path}", file.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_file_opens_with_its_charter_and_allows_no_lint() {
    let mut faults = Vec::new();
    // In two pieces, or this file would name itself.
    let exception = ["#[", "allow("].concat();
    let inner_exception = ["#![", "allow("].concat();
    for file in ["src", "tests", "examples"].iter().flat_map(|part| rust_files(part)) {
        let text = fs::read_to_string(&file).unwrap();
        if !text.starts_with("//! ") {
            faults.push(format!("{}:1: opens without a charter (//!)", file.display()));
        }
        for (index, line) in text.lines().enumerate() {
            if line.contains(&exception) || line.contains(&inner_exception) {
                faults.push(format!("{}:{}: #[expect(.., reason = \"..\")] instead", file.display(), index + 1));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn these_tests_see_what_is_forbidden() {
    for (source, forbidden) in [
        ("use mio::Poll;", true),
        ("use std::{fmt, fs};", true),
        ("use std::{fmt, time::{Duration, Instant as Now}};", true),
        ("use std::time::Duration;", false),
        ("use crate::time::Instant;", false),
        ("let now = std::time::Instant::now();", true),
        ("let now = Instant::now();", true),
        ("let file = ::std::fs::File::open(path);", true),
        ("let x = fastrand::u64(..);", true),
        ("let x = fastrand::Rng::with_seed(7);", false),
        ("use crate::{record::Seq, shell::clock};", true),
        ("// as mio::Poll does it\nlet url = \"std::fs\";", false),
        ("fn f() {}\n#[cfg(test)]\nmod tests {\n use std::fs;\n}\n", false),
        ("#[cfg(test)]\nmod tests;\nuse std::fs;\n", true),
    ] {
        let found = paths(&without_tests(source)).iter().any(|(_, path)| performed(path).is_some());
        assert_eq!(found, forbidden, "{source}");
    }
    let lines: Vec<_> = paths("a::b\n\nuse c::{d,\n e::*};").into_iter().collect();
    let expected = [(1, "a::b"), (3, "use"), (3, "c::d"), (4, "c::e")].map(|(line, path)| (line, path.to_owned()));
    assert_eq!(lines, expected);
}

fn performed(path: &str) -> Option<&'static str> {
    let global = path.strip_prefix("fastrand::").is_some_and(|name| name.starts_with(|c: char| c.is_lowercase()));
    if global {
        return Some("randomness is an argument: a seed");
    }
    // A name alone is somebody's variable.
    let rules = PERFORMS.iter().filter(|(rule, _)| path.contains("::") || rule.contains("Time"));
    rules.into_iter().find(|(rule, _)| within(path, rule)).map(|(_, why)| *why)
}

fn within(path: &str, rule: &str) -> bool {
    path.strip_prefix(rule).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// All Rust files below a path, relative to the package.
fn rust_files(part: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
    if path.is_file() {
        return vec![path];
    }
    // A part that has moved must not pass unseen.
    let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("{part}: {error}"));
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let inner = names.iter().flat_map(|name| rust_files(&format!("{part}/{name}")));
    inner.filter(|file| file.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// What of this file is not a test: those may use what they like.
fn code(file: &Path) -> String {
    let test = file.components().any(|part| part.as_os_str() == "tests.rs" || part.as_os_str() == "tests");
    let below = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
    if test && below.starts_with("src") { String::new() } else { without_tests(&fs::read_to_string(file).unwrap()) }
}

/// The text in front of an inline module of tests, which comes last in a file.
fn without_tests(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let begins = |index: &usize| {
        let mut following = lines[index + 1..].iter().skip_while(|line| line.starts_with("#["));
        lines[*index] == "#[cfg(test)]"
            && following.next().is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let end = (0..lines.len()).find(begins).unwrap_or(lines.len());
    lines[..end].join("\n")
}

#[derive(Debug, PartialEq)]
enum Token {
    Name(String),
    Join,
    Open,
    Close,
    Comma,
    Other,
}

/// Every path that the code names, groups expanded, with its line.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut tokens = tokens(code).into_iter().peekable();
    let mut found = Vec::new();
    while tokens.peek().is_some() {
        tree("", &mut tokens, &mut found);
    }
    found
}

/// One `a::b::{c, d::e}`, or one token that is no path.
fn tree(prefix: &str, tokens: &mut Peekable<IntoIter<(usize, Token)>>, found: &mut Vec<(usize, String)>) {
    let Some((line, Token::Name(name))) = tokens.next() else { return };
    let path = if prefix.is_empty() { name } else { format!("{prefix}::{name}") };
    if !matches!(tokens.peek(), Some((_, Token::Join))) {
        found.push((line, path));
        return;
    }
    tokens.next();
    match tokens.peek() {
        Some((_, Token::Name(_))) => tree(&path, tokens, found),
        Some((_, Token::Open)) => {
            tokens.next();
            while let Some((_, token)) = tokens.peek() {
                match token {
                    Token::Close => {
                        tokens.next();
                        break;
                    }
                    Token::Name(_) => tree(&path, tokens, found),
                    Token::Join | Token::Open | Token::Comma | Token::Other => drop(tokens.next()),
                }
            }
        }
        _ => found.push((line, path)),
    }
}

/// Names and what joins them; comments and strings are left out.
fn tokens(code: &str) -> Vec<(usize, Token)> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            string_bytes(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (text, behind) = rest.split_at(length);
        let token = match text {
            "::" => Some(Token::Join),
            "{" => Some(Token::Open),
            "}" => Some(Token::Close),
            "," => Some(Token::Comma),
            _ if first.is_alphabetic() || first == '_' => Some(Token::Name(text.to_owned())),
            _ if first.is_whitespace() || text.starts_with("//") => None,
            _ => Some(Token::Other),
        };
        tokens.extend(token.map(|token| (line, token)));
        line += text.matches('\n').count();
        rest = behind;
    }
    tokens
}

fn string_bytes(text: &str) -> usize {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return index + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}
