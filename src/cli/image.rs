//! `backhaul check --image`: a root file system before it is copied to many boards. What belongs to one board alone is
//! named, and how to remove it. Changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{config_errors, outbox, print};
use crate::config::load;
use crate::exit;

/// Runs the command.
pub fn run(root: &Path) -> ExitCode {
    let Ok(root) = fs::canonicalize(root) else {
        eprintln!("backhaul: {}: no such folder", root.display());
        return ExitCode::from(exit::NO_INPUT);
    };
    let config = root.join(load::DEFAULT_PATH.trim_start_matches('/'));
    if !config.is_file() {
        eprintln!("backhaul: {}: no configuration, so no image with backhaul in it", config.display());
        return ExitCode::from(exit::NO_INPUT);
    }
    let places = match load::places(&config) {
        Ok(places) => places,
        Err(errors) => return config_errors(&errors),
    };
    let mut image = Image { root, found: Vec::new() };
    image.outbox(&places.outbox);
    image.left_by_a_run(&places.socket);
    image.machine();
    image.provisioned(&config);
    for secret in &places.secrets {
        image.file(secret, "a secret that every board would have: give each its own by `backhaul provision`");
    }
    let literal = !["file:", "mac:"].iter().any(|kind| places.device.starts_with(kind)) && places.device != "hostname";
    if literal {
        let id = places.device;
        image.tell(&config, &format!("[device] id = \"{id}\": every board would have this name"), "remove the key");
    }
    if image.found.is_empty() {
        return print("nothing in this image belongs to one board alone\n");
    }
    print(&image.found.concat());
    ExitCode::from(exit::CONFIG)
}

struct Image {
    root: PathBuf,
    found: Vec<String>,
}

impl Image {
    fn tell(&mut self, path: &Path, what: &str, remedy: &str) {
        self.found.push(format!("{}: {what}\n    {remedy}\n", path.display()));
    }

    /// Where a path of the image is here; `None`: not there. A link that leads out of the image is named, not followed.
    fn here(&mut self, path: &Path) -> Option<PathBuf> {
        let inside = self.root.join(path.strip_prefix("/").unwrap_or(path));
        match fs::canonicalize(&inside) {
            Ok(found) if found.starts_with(&self.root) => Some(inside),
            Ok(_) => {
                let what = "leads out of this image and was not looked at";
                self.tell(&inside, what, "look at the partition that is mounted there");
                None
            }
            Err(_) => None,
        }
    }

    /// A file that must not be there, or must be empty.
    fn file(&mut self, path: &Path, what: &str) {
        if let Some(here) = self.here(path)
            && fs::metadata(&here).is_ok_and(|metadata| metadata.len() > 0)
        {
            self.tell(&here, what, &format!("rm {}", here.display()));
        }
    }

    fn outbox(&mut self, dir: &Path) {
        let Some(here) = self.here(dir) else { return };
        if fs::read_dir(&here).into_iter().flatten().next().is_none() {
            return;
        }
        let what = match outbox::waiting(&here) {
            Some(records) => format!(
                "an outbox with {records} records that wait, its numbering and its backoff: each board would go on \
                 with them"
            ),
            None => "an outbox that cannot be read".into(),
        };
        self.tell(&here, &what, &format!("find {} -mindepth 1 -delete", here.display()));
    }

    /// What is beside the local socket: of use in one boot of one machine.
    fn left_by_a_run(&mut self, socket: &Path) {
        let Some(here) = socket.parent().and_then(|run| self.here(run)) else { return };
        let mut entries: Vec<_> = fs::read_dir(&here).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            self.tell(&path, "left by an agent that ran in this image", &format!("rm {}", path.display()));
        }
    }

    fn machine(&mut self) {
        for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
            let Some(here) = self.here(path.as_ref()) else { continue };
            let id = fs::read_to_string(&here).unwrap_or_default();
            // machine-id(5): the first boot sets it then. A link to the other one goes with it.
            if !["", "uninitialized"].contains(&id.trim()) && !here.is_symlink() {
                let what = "a machine id that every board would have";
                // An empty file, because a read-only root cannot get one.
                self.tell(&here, what, &format!(": > {}", here.display()));
            }
        }
        for seed in ["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/seedrng/seed.credit"] {
            self.file(seed.as_ref(), "a seed of random numbers that every board would have");
        }
    }

    fn provisioned(&mut self, config: &Path) {
        let folder = config.with_file_name("conf.d");
        let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for path in entries.iter().map(fs::DirEntry::path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if super::provision::is_ours(&name) {
                self.tell(&path, "provisioned already", &format!("rm {}", path.display()));
            }
        }
    }
}
