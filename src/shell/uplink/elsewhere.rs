//! Endpoints from elsewhere: `endpoints_file`, looked at before each attempt and read when it has changed. What is
//! wrong with it is said once; until it is good again the endpoints stay as they are.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use log::{info, warn};

use crate::config::{Endpoint, load};

/// The file.
pub(super) struct EndpointsFile {
    path: PathBuf,
    /// As seen last; `None` before the first look.
    seen: Option<Stamp>,
}

/// What changes with a file's content: device, inode, size, and when it was changed, in ns. `None`: no file.
type Stamp = Option<(u64, u64, u64, i64, i64, i64)>;

impl EndpointsFile {
    /// Not looked at yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None }
    }

    /// What it says, where it has changed since the last look and is good.
    pub fn look(&mut self) -> Option<Vec<Endpoint>> {
        let stamp = stamp(&self.path);
        if self.seen.replace(stamp) == Some(stamp) {
            return None;
        }
        let file = self.path.display();
        match load::endpoints(&self.path) {
            Ok((endpoints, warnings)) => {
                for warning in warnings {
                    warn!(target: "config", "{warning}");
                }
                info!(target: "config", "endpoints read file={file} endpoints={}", endpoints.len());
                Some(endpoints)
            }
            Err(errors) => {
                let first = errors.first().map(ToString::to_string).unwrap_or_default();
                let faults = errors.len();
                warn!(target: "config", "the endpoints stay as they are: {first} faults={faults}");
                None
            }
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
        let mut file = EndpointsFile::new(&path);
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
}
