//! `backhaul check`: validates the configuration and prints what is effective and what follows from it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::ExitCode;

use super::args::CheckArgs;
use super::{config_errors, image, print};
use crate::config::bounds::{self, Bounds};
use crate::config::load::{self, Loaded};
use crate::exit;

/// Runs the command.
pub fn run(args: &CheckArgs) -> ExitCode {
    if let Some(root) = &args.image {
        return image::run(root);
    }
    if args.fix_permissions
        && let Err(code) = fix_permissions(&args.config)
    {
        return code;
    }
    match load::load(&args.config) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            print(&report(&loaded))
        }
        Err(errors) => config_errors(&errors),
    }
}

/// Takes the secrets of all endpoints away from others.
fn fix_permissions(config: &Path) -> Result<(), ExitCode> {
    let places = load::places(config).map_err(|errors| config_errors(&errors))?;
    for path in places.secrets {
        // One that is not there is an error of the configuration, and told as one.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let mode = metadata.mode() & 0o7777;
        if !metadata.is_file() || mode & 0o007 == 0 {
            continue;
        }
        let mut permissions = metadata.permissions();
        permissions.set_mode(mode & !0o007);
        fs::set_permissions(&path, permissions).map_err(|error| {
            eprintln!("backhaul: {}: {error}", path.display());
            ExitCode::from(exit::PERMISSION)
        })?;
        eprintln!("{}: mode {:04o}, was {mode:04o}", path.display(), mode & !0o007);
    }
    Ok(())
}

/// The effective configuration and its bounds, as a whole again a configuration file.
fn report(loaded: &Loaded) -> String {
    let mut text = String::new();
    for file in &loaded.files {
        text += &format!("# read {}\n", file.display());
    }
    text += &format!("# device {}\n\n", loaded.device);
    text += &toml::to_string(&loaded.config).expect("strings, numbers and lists of tables, all of which TOML has");
    if let Some((file, endpoints)) = loaded.config.upstream.endpoints_file.as_ref().zip(loaded.endpoints.as_ref()) {
        text += &format!("\n# endpoints now, of {}\n", file.display());
        text.extend(endpoints.iter().map(|endpoint| format!("#   {}\n", endpoint.url)));
    }
    let Bounds { memory, flash } = bounds::bounds(&loaded.config);
    section(&mut text, "memory, at most", memory.iter().map(|(part, bytes)| (*part, *bytes)));
    section(&mut text, "flash, at most", flash.iter().map(|(part, bytes)| (part.as_str(), *bytes)));
    text
}

fn section<'a>(text: &mut String, title: &str, parts: impl Iterator<Item = (&'a str, u64)> + Clone) {
    let sum = bounds::together(parts.clone().map(|(_, bytes)| bytes));
    let all = parts.chain([("together", sum)]);
    let lines = all.map(|(part, bytes)| format!("#   {part:32} {bytes:>14} bytes\n"));
    write!(text, "\n# {title}\n").expect("a String takes everything");
    text.extend(lines);
}
