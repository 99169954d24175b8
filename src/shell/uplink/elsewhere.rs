//! Endpoints from elsewhere: `endpoints_file`, looked at before each attempt and read when it has changed. What is
//! wrong with it is said once; until it is good again the endpoints stay as they are. A file system that is ill may
//! hold a look up: while the reactor runs each is an errand, and an attempt waits for it, but not for long.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::{info, warn};

use crate::config::{Endpoint, load};
use crate::shell::errand::Errands;
use crate::time::Instant;

/// So long an attempt waits for a look; then it goes where the last one said.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The file.
pub(super) struct EndpointsFile {
    path: PathBuf,
    /// As seen last; `None` before the first look.
    seen: Option<Stamp>,
    looks: Errands<Look>,
    /// A look is under way; waited for until then.
    looking: Option<Instant>,
}

/// What changes with a file's content: device, inode, size, and when it was changed, in ns. `None`: no file.
type Stamp = Option<(u64, u64, u64, i64, i64, i64)>;

/// What was seen, and what it says if that is new and good.
type Look = (Stamp, Option<Vec<Endpoint>>);

/// How a look before an attempt stands.
pub(super) enum Looked {
    /// The attempt waits for it.
    NotYet,
    /// The attempt goes on: there are others, or everything is as it was.
    Done(Option<Vec<Endpoint>>),
}

impl EndpointsFile {
    /// Not looked at yet. Calls `wake` when there is something to [`EndpointsFile::poll`].
    pub fn new(path: &Path, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { path: path.to_owned(), seen: None, looks: Errands::new(wake), looking: None }
    }

    /// What it says, where it has changed since the last look and is good. Blocks.
    pub fn look(&mut self) -> Option<Vec<Endpoint>> {
        let (stamp, endpoints) = look(&self.path, self.seen);
        self.seen = Some(stamp);
        endpoints
    }

    /// Somebody else has read it: the next look tells what it says even if nothing changes.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    /// The same before an attempt, without blocking: begins a look, and is to be asked again until it is done.
    pub fn poll(&mut self, now: Instant) -> Looked {
        if let Some((stamp, endpoints)) = self.looks.take() {
            (self.looking, self.seen) = (None, Some(stamp));
            return Looked::Done(endpoints);
        }
        match self.looking {
            None => {
                let (path, seen) = (self.path.clone(), self.seen);
                if let Err(error) = self.looks.run(true, move |_| look(&path, seen)) {
                    warn!(target: "config", "the endpoints stay as they are: {}: {error}", self.path.display());
                    return Looked::Done(None);
                }
                self.looking = Some(now + LOOK_TIMEOUT);
                Looked::NotYet
            }
            Some(until) if now < until => Looked::NotYet,
            Some(_) => {
                warn!(target: "config", "the endpoints stay as they are: {}: no answer", self.path.display());
                self.looks.abandon();
                self.looking = None;
                Looked::Done(None)
            }
        }
    }

    /// When to ask again, while a look is under way.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.looking
    }
}

fn look(path: &Path, seen: Option<Stamp>) -> Look {
    let stamp = stamp(path);
    if seen == Some(stamp) {
        return (stamp, None);
    }
    let file = path.display();
    match load::endpoints(path) {
        Ok((endpoints, warnings)) => {
            for warning in warnings {
                warn!(target: "config", "{warning}");
            }
            info!(target: "config", "endpoints read file={file} endpoints={}", endpoints.len());
            (stamp, Some(endpoints))
        }
        Err(errors) => {
            let first = errors.first().map(ToString::to_string).unwrap_or_default();
            let faults = errors.len();
            warn!(target: "config", "the endpoints stay as they are: {first} faults={faults}");
            (stamp, None)
        }
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()))
}

/// The same endpoint as before, whatever its credentials are now: a session there may live on.
pub(super) fn is_same(one: &Endpoint, other: &Endpoint) -> bool {
    (&one.url, &one.interface, &one.proxy) == (&other.url, &other.interface, &other.proxy)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn is_read_when_it_has_changed_and_only_then() {
        let dir = TempDir::new("elsewhere");
        let path = dir.join("endpoints.toml");
        let mut file = EndpointsFile::new(&path, || ());
        assert_eq!(file.look(), None, "missing");
        let write = |text: &str| {
            fs::write(dir.join("new"), text).unwrap();
            fs::rename(dir.join("new"), &path).unwrap();
        };
        let urls = |endpoints: Option<Vec<Endpoint>>| endpoints.unwrap().into_iter().map(|e| e.url).collect::<Vec<_>>();
        write("[[endpoint]]\nurl = \"wss://a.example/\"\n");
        assert_eq!(urls(file.look()), ["wss://a.example/"]);
        assert_eq!(file.look(), None, "the same");
        write("[[endpoint]]\nurl = \"wss://b.example/\"\n");
        assert_eq!(urls(file.look()), ["wss://b.example/"], "as long as before");
        for broken in ["", "[[endpoint]]\n", "[[endpoint]]\nurl = \"ws://far.example/\"\n", "colour = 1\n", "[["] {
            write(broken);
            assert_eq!(file.look(), None, "{broken:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(file.look(), None, "gone");
        write("[[endpoint]]\nurl = \"wss://b.example/\"\n");
        assert_eq!(urls(file.look()), ["wss://b.example/"], "back");
    }

    #[test]
    fn a_look_before_an_attempt_is_asked_for_until_it_is_there_and_not_for_ever() {
        let dir = TempDir::new("elsewhere");
        let path = dir.join("endpoints.toml");
        fs::write(&path, "[[endpoint]]\nurl = \"wss://a.example/\"\n").unwrap();
        let (woken, wakes) = std::sync::mpsc::sync_channel(8);
        let mut file = EndpointsFile::new(&path, move || woken.send(()).unwrap());
        let mut looked = |now: Instant| {
            assert!(matches!(file.poll(now), Looked::NotYet));
            assert_eq!(file.poll_timeout(), Some(now + LOOK_TIMEOUT));
            wakes.recv().unwrap();
            let Looked::Done(endpoints) = file.poll(now) else { panic!("it is there") };
            assert_eq!(file.poll_timeout(), None);
            endpoints
        };
        let at = |s: u64| Instant::from_micros(s * 1_000_000);
        assert_eq!(looked(at(1)).unwrap()[0].url, "wss://a.example/");
        assert_eq!(looked(at(2)), None, "the same");
        // A file system that hangs: the answer that comes too late is forgotten with the change that it tells of.
        fs::write(&path, "[[endpoint]]\nurl = \"wss://other.example/\"\n").unwrap();
        assert!(matches!(file.poll(at(3)), Looked::NotYet));
        file.looks.abandon();
        assert!(matches!(file.poll(at(4)), Looked::NotYet));
        assert!(matches!(file.poll(at(5)), Looked::Done(None)));
        assert_eq!(file.poll_timeout(), None);
        assert_eq!(file.look().unwrap()[0].url, "wss://other.example/");
    }
}
