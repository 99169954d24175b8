//! The `backhaul` command: what was typed, what it means, run it. Performs nothing itself; each command has a
//! module of its own.

pub mod args;
pub mod check;
pub mod client;
mod help;
mod image;
mod logger;
pub mod outbox;
#[cfg(feature = "plan")]
pub mod plan;
pub mod provision;
pub mod run;
pub mod send;
pub mod status;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::load;
use crate::exit;
use args::{Agent, Command, UsageError};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Print(text)) => print(text),
        Ok(Command::Run(args)) => run::run(&args),
        Ok(Command::Check(args)) => check::run(&args),
        Ok(Command::Provision(args)) => provision::run(&args),
        Ok(Command::Send(args)) => send::run(&args),
        Ok(Command::Status(args)) => status::run(&args),
        Ok(Command::Outbox(args)) => outbox::run(&args),
        #[cfg(feature = "plan")]
        Ok(Command::Plan(args)) => plan::run(&args),
        Ok(Command::NotBuilt(command)) => {
            eprintln!("backhaul: this build has no '{command}'");
            ExitCode::from(exit::UNAVAILABLE)
        }
        Err(UsageError(message)) => {
            eprintln!("backhaul: {message}");
            ExitCode::from(exit::USAGE)
        }
    }
}

/// Writes to standard output. A reader that went away has read enough: that is no error.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backhaul: standard output: {error}");
            ExitCode::from(exit::IO)
        }
    }
}

/// The agent's socket; an error is told on stderr and is the exit code to leave with.
pub fn socket(agent: &Agent) -> Result<PathBuf, ExitCode> {
    let found = match agent {
        Agent::Socket(path) => Ok(path.clone()),
        Agent::Config(file) => load::socket(file),
        Agent::Usual => {
            let file = Path::new(load::DEFAULT_PATH);
            // A program may use the socket without being allowed to read the configuration.
            if std::fs::File::open(file).is_ok() { load::socket(file) } else { Ok(load::socket_default()) }
        }
    };
    found.map_err(|errors| config_errors(&errors))
}

/// Tells a line for each error, and the exit code.
fn config_errors(errors: &[load::ConfigError]) -> ExitCode {
    for error in errors {
        eprintln!("{error}");
    }
    ExitCode::from(exit::CONFIG)
}
