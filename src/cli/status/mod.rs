//! `backhaul status`: what the agent is doing and why, on one screen (once, or again and again), as JSON, or as an
//! exit code.

mod screen;
#[cfg(test)]
mod tests;
mod watch;

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use super::args::{StatusArgs, View};
use super::{client, print, socket};
use crate::exit;
use crate::insight::metrics;
use crate::status::Status;
pub use screen::Size;

/// `--check`: link up, but flash, loss, a clone or a certificate near its end wants a look.
const CHECK_DEGRADED: u8 = 1;
/// `--check`: link not up.
const CHECK_DOWN: u8 = 2;
/// `--check`: no agent.
const CHECK_NO_AGENT: u8 = 3;
/// How long loss keeps the check from saying *well*.
const LOSS_S: u64 = 3600;

/// Runs the command.
pub fn run(args: &StatusArgs) -> ExitCode {
    let path = match socket(&args.agent) {
        Ok(path) => path,
        Err(code) => return code,
    };
    if args.view == View::Watch {
        return watch::run(&path, colours());
    }
    let status = match client::status(&path) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("backhaul: {}", client::words(&path, &error));
            if args.view == View::Prometheus {
                // Whoever collects it shall see that, and not the last good numbers.
                print(metrics::NO_AGENT);
            }
            return ExitCode::from(match (args.view, error.kind()) {
                (View::Check, _) => CHECK_NO_AGENT,
                (View::Text | View::Watch | View::Json | View::Prometheus, io::ErrorKind::PermissionDenied) => {
                    exit::PERMISSION
                }
                (View::Text | View::Watch | View::Json | View::Prometheus, _) => exit::UNAVAILABLE,
            });
        }
    };
    match args.view {
        View::Text | View::Watch => print(&screen::screen(&status, colours())),
        View::Json => {
            let json = serde_json::to_string_pretty(&status).expect("plain data with string keys");
            print(&(json + "\n"))
        }
        View::Prometheus => print(&metrics::text(&status)),
        View::Check => ExitCode::from(check(&status)),
    }
}

/// Colours are for terminals, and not for who does not want them (no-color.org).
fn colours() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The exit code of `--check`.
fn check(status: &Status) -> u8 {
    let clone = status.link.last_failure.as_ref();
    let clone = clone.is_some_and(|failure| failure.class == "clone" && failure.s_ago < LOSS_S);
    let ends_soon = status.link.certificate.as_ref().is_some_and(|certificate| certificate.ends_soon);
    let lost = status.agent.loss_s_ago.is_some_and(|s| s < LOSS_S);
    if status.link.state != "up" {
        CHECK_DOWN
    } else if status.flash.state != "ok" || clone || lost || ends_soon {
        CHECK_DEGRADED
    } else {
        0
    }
}
