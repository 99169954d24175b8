//! `backhaul check --image`: a root file system before it is copied to many boards. What belongs to one board alone is
//! named, and how to remove it. Changes nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{config_errors, outbox, print};
use crate::config::load;
use crate::exit;

/// Runs the command.
pub fn run(root: &Path) -> ExitCode {
    let opened = fs::canonicalize(root).and_then(|path| File::open(&path).map(|file| (path, file)));
    let Ok((root, file)) = opened.inspect_err(|error| eprintln!("backhaul: {}: {error}", root.display())) else {
        return ExitCode::from(exit::NO_INPUT);
    };
    let mut image = Image { root, file, found: Vec::new() };
    let config = match image.resolve(load::DEFAULT_PATH.as_ref()) {
        Ok(config) if config.is_file() => config,
        Ok(_) | Err(_) => {
            let path = image.outside(load::DEFAULT_PATH.as_ref());
            eprintln!("backhaul: {}: no configuration, so no image with backhaul in it", path.display());
            return ExitCode::from(exit::NO_INPUT);
        }
    };
    let overlays = image.here(&Path::new(load::DEFAULT_PATH).with_file_name("conf.d"));
    let files = overlays.as_deref().map_or(Ok(Vec::new()), load::overlays);
    let places = files.map_err(|error| vec![error]).and_then(|files| {
        let inside = files.iter().filter_map(|file| image.here(&image.inside(file)));
        load::places_of([config.clone()].into_iter().chain(inside.collect::<Vec<_>>()).collect())
    });
    let places = match places {
        Ok(places) => places,
        Err(errors) => return config_errors(&errors),
    };
    image.outbox(&places.outbox);
    image.left_by_a_run(&places.socket);
    image.machine();
    if let Some(folder) = overlays {
        image.provisioned(&folder);
    }
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
    file: File,
    found: Vec<String>,
}

impl Image {
    fn tell(&mut self, path: &Path, what: &str, remedy: &str) {
        self.found.push(format!("{}: {what}\n    {remedy}\n", path.display()));
    }

    /// A path of the image, as it is called from outside of it.
    fn outside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The other way round.
    fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |inside| Path::new("/").join(inside))
    }

    /// Where a path of the image is here, every link in it followed as in the image: `/` is the image's own.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let links = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(&self.file, path, flags, Mode::empty(), links)?;
        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)))
    }

    /// The same; `None`: not there. What cannot be looked at is named, as is a link to what is not in this image.
    fn here(&mut self, path: &Path) -> Option<PathBuf> {
        let fault = match self.resolve(path) {
            Ok(found) => return Some(found),
            Err(fault) => fault,
        };
        if fault.kind() != io::ErrorKind::NotFound {
            self.tell(&self.outside(path), &format!("was not looked at: {fault}"), "look at it by hand");
            return None;
        }
        let mut way = PathBuf::from("/");
        for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
            let folder = self.resolve(&way).ok()?;
            way.push(part);
            if self.resolve(&way).is_err() {
                let link = folder.join(part);
                if link.is_symlink() {
                    let what = "leads to what is not in this image, and was not looked at";
                    self.tell(&link, what, "look at the partition that is mounted there");
                }
                return None;
            }
        }
        None
    }

    /// A file that must not be there, or must be empty.
    fn file(&mut self, path: &Path, what: &str) {
        if let Some(here) = self.here(path)
            && fs::metadata(&here).is_ok_and(|metadata| metadata.len() > 0)
        {
            self.tell(&here, what, &format!("rm {}", quoted(&here)));
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
        self.tell(&here, &what, &format!("find {} -mindepth 1 -delete", quoted(&here)));
    }

    /// What is beside the local socket: of use in one boot of one machine.
    fn left_by_a_run(&mut self, socket: &Path) {
        let Some(here) = socket.parent().and_then(|run| self.here(run)) else { return };
        let mut entries: Vec<_> = fs::read_dir(&here).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            self.tell(&path, "left by an agent that ran in this image", &format!("rm {}", quoted(&path)));
        }
    }

    fn machine(&mut self) {
        let mut seen = Vec::new();
        for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
            // Often a link to the other one, which may not be there yet.
            let Ok(here) = self.resolve(path.as_ref()) else { continue };
            let id = fs::read_to_string(&here).unwrap_or_default();
            // machine-id(5): the first boot sets it then.
            if !["", "uninitialized"].contains(&id.trim()) && !seen.contains(&here) {
                let what = "a machine id that every board would have";
                // An empty file, because a read-only root cannot get one.
                self.tell(&here, what, &format!(": > {}", quoted(&here)));
                seen.push(here);
            }
        }
        for seed in ["/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/seedrng/seed.credit"] {
            self.file(seed.as_ref(), "a seed of random numbers that every board would have");
        }
    }

    fn provisioned(&mut self, folder: &Path) {
        let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for path in entries.iter().map(fs::DirEntry::path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if super::provision::is_ours(&name) {
                self.tell(&path, "provisioned already", &format!("rm {}", quoted(&path)));
            }
        }
    }
}

/// For a shell, into which it is pasted as root.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:=%,".contains(&byte);
    if text.bytes().all(is_plain) { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
