//! `backhaul run`: loads the configuration, starts logging, hands over to the agent.

use std::process::ExitCode;

use log::LevelFilter;

use super::args::RunArgs;
use super::{config_errors, logger};
use crate::agent::{self, Options};
use crate::config::load;

/// Runs the command.
pub fn run(args: &RunArgs) -> ExitCode {
    let loaded = match load::load(&args.config) {
        Ok(loaded) => loaded,
        Err(errors) => return config_errors(&errors),
    };
    logger::start(loaded.config.log.level_filter().unwrap_or(LevelFilter::Info));
    for warning in &loaded.warnings {
        log::warn!(target: "config", "{warning}");
    }
    agent::run(loaded.config, Options { config_path: args.config.clone(), device: loaded.device })
}
