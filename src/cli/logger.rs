//! The log's writer: `LEVEL target: message key=value` on stderr, a priority in front for the journal, the boot
//! clock in front elsewhere (a gateway's wall clock may not be set, and kernel messages carry the same).

use std::io::Write as _;

use env_logger::Builder;
use log::{Level, LevelFilter};

use crate::shell::clock;

/// Starts logging at `level`; a reload changes it by [`log::set_max_level`].
pub fn start(level: LevelFilter) {
    // sd-daemon(3): with this, stderr goes to the journal, which adds the time and takes `<N>` as the priority.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    Builder::new()
        .filter_level(LevelFilter::Trace)
        // Its traces hold the upgrade request, and that holds the token.
        .filter_module("tungstenite", LevelFilter::Warn)
        .format(move |out, record| {
            let (level, target, message) = (record.level(), record.target(), record.args());
            if journal {
                writeln!(out, "<{}>{target}: {message}", priority(level))
            } else {
                let ms = clock::now().as_millis();
                writeln!(out, "{:6}.{:03} {level:5} {target}: {message}", ms / 1000, ms % 1000)
            }
        })
        .init();
    log::set_max_level(level);
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
