//! `backhaul-receiver command`: sends something down to a device, beside a running receiver.

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::PathBuf;

use super::commands::{Beside, Waiting};
use super::session::DEVICE_BYTES_MAX;
use crate::config::Encoding;
use crate::dialect::codec::encode;
use crate::dialect::message::ServerMessage;
use crate::record::{Body, INTEGER_MAX, MESSAGE_BYTES_MAX};

/// `command --help`
pub const HELP: &str = "\
usage: backhaul-receiver command --store FILE DEVICE TOPIC [BODY|-]
       backhaul-receiver command --store FILE --list [DEVICE]

Puts a command for DEVICE into the store and prints its number. The receiver on
that store, if one runs, sends it within two seconds; else it waits. It is sent
again after each reconnect, at most 16 beyond the last one done, until the
device says that it is done. Programs on the device get it by its topic
(`backhaul listen`, [[handler]]).

  BODY     what it says, a text; nothing unless given; -: standard input, as
           text where it is UTF-8
  --list   what waits: device, number, seconds since it was put, bytes, topic

exit codes: 0 done, 64 usage, 65 too large a body, 66 no such store, 69 the
            store cannot be used, 77 permission
";

/// What was asked for.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// The SQLite file.
    pub store: PathBuf,
    /// What to do with it.
    pub action: Action,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Show what waits.
    List(Option<String>),
    /// Put a command.
    Put {
        /// For whom.
        device: String,
        /// What it is about.
        topic: String,
        /// What it says; `None`: standard input.
        body: Option<String>,
    },
}

/// Reads what stands behind `command`; `None`: it asks for help.
pub fn parse(parser: &mut lexopt::Parser) -> Result<Option<Asked>, String> {
    use lexopt::prelude::*;
    let (mut store, mut list, mut words) = (None, false, Vec::new());
    let wrong = |error: lexopt::Error| error.to_string();
    while let Some(argument) = parser.next().map_err(wrong)? {
        match argument {
            Long("store") => store = Some(parser.value().map_err(wrong)?.into()),
            Long("list") => list = true,
            Short('h') | Long("help") => return Ok(None),
            Value(word) if words.len() < 3 => words.push(word.string().map_err(wrong)?),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().to_string()),
        }
    }
    let store = store.ok_or("--store is missing")?;
    let mut words = words.into_iter();
    let (device, topic, body) = (words.next(), words.next(), words.next());
    let action = match (list, device, topic) {
        (true, device, None) => Action::List(device),
        (false, Some(device), Some(topic)) => {
            let body = Some(body.unwrap_or_default()).filter(|body| body != "-");
            check(&device, &topic)?;
            Action::Put { device, topic, body }
        }
        (true, _, Some(_)) => return Err("--list takes a device and nothing else".into()),
        (false, None, _) | (false, _, None) => return Err("for which device, on which topic?".into()),
    };
    Ok(Some(Asked { store, action }))
}

fn check(device: &str, topic: &str) -> Result<(), String> {
    let device_fits = (1..=DEVICE_BYTES_MAX).contains(&device.len()) && !device.chars().any(char::is_control);
    if !device_fits {
        return Err("a device has 1 to 128 bytes and no control characters".into());
    }
    if topic.is_empty() || topic.contains(['+', '#', '\0']) {
        return Err(format!("\"{topic}\" is no topic: + and # are for those who listen"));
    }
    Ok(())
}

/// Standard input, as text where it is; `None`: more than any message holds.
pub fn read_body() -> io::Result<Option<Body>> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MESSAGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Ok(None);
    }
    Ok(Some(String::from_utf8(bytes).map_or_else(|error| Body::Bytes(error.into_bytes()), Body::Text)))
}

/// It fits into a message, whichever encoding a device speaks.
pub fn fits(topic: &str, body: &Body) -> bool {
    let command = ServerMessage::Command { seq: INTEGER_MAX, topic: topic.into(), body: body.clone() };
    let bytes = |encoding| encode(&command, encoding).bytes_len();
    bytes(Encoding::Json).max(bytes(Encoding::Postcard)) <= MESSAGE_BYTES_MAX
}

/// The lines of `--list`.
pub fn list(store: &Beside, device: Option<&str>, now_ms: u64) -> Result<String, super::store::StoreError> {
    let mut text = String::new();
    for Waiting { device, seq, topic, bytes, created_ms } in store.waiting(device)? {
        let age_s = now_ms.saturating_sub(created_ms) / 1000;
        let _infallible = writeln!(text, "{device} {seq} {age_s} {bytes} {}", topic.escape_debug());
    }
    Ok(text)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Option<Asked>, String> {
        parse(&mut lexopt::Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn reads_what_was_typed() {
        let put = |body: Option<&str>| {
            let action =
                Action::Put { device: "gw".into(), topic: "valve/1".into(), body: body.map(ToOwned::to_owned) };
            Ok(Some(Asked { store: "s".into(), action }))
        };
        assert_eq!(typed("--store s gw valve/1 open"), put(Some("open")));
        assert_eq!(typed("gw valve/1 --store=s"), put(Some("")));
        assert_eq!(typed("--store s gw valve/1 -"), put(None));
        let list = |device: Option<&str>| {
            let action = Action::List(device.map(ToOwned::to_owned));
            Ok(Some(Asked { store: "s".into(), action }))
        };
        assert_eq!(typed("--store s --list"), list(None));
        assert_eq!(typed("--list --store s gw"), list(Some("gw")));
        assert_eq!(typed("--help"), Ok(None));
        for (line, word) in [
            ("gw t b", "--store"),
            ("--store s", "which device"),
            ("--store s gw", "which topic"),
            ("--store s gw a/# b", "no topic"),
            ("--store s gw t b c", "\"c\""),
            ("--store s --list gw t", "nothing else"),
            ("--store s --frob", "--frob"),
        ] {
            assert!(typed(line).unwrap_err().contains(word), "{line}");
        }
    }

    #[test]
    fn what_fits_is_known_before_it_is_sent() {
        assert!(fits("t", &Body::Text("x".repeat(1_000_000))));
        assert!(!fits("t", &Body::Text("x".repeat(MESSAGE_BYTES_MAX))));
        assert!(!fits("t", &Body::Text("\u{1}".repeat(300_000))), "JSON writes six for one");
        assert!(!fits("t", &Body::Bytes(vec![0; 800_000])), "base64");
    }

    #[test]
    fn help_fits_a_screen() {
        assert!(HELP.lines().count() <= 24 && HELP.lines().all(|line| line.len() <= 80), "{HELP}");
    }
}
