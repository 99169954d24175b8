//! Watches the files that an endpoint's credentials come from, by inotify: a token that is replaced while the link
//! waits after a refusal is worth an attempt. A file that is read anew in each attempt needs nothing else.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// The name under which Kubernetes swaps the files of a secret: a link from which all of them hang.
const SWAPPED: &str = "..data";

/// The files of one endpoint, watched. No longer, once dropped.
pub struct Sources {
    inotify: OwnedFd,
    /// Names of files whose change counts.
    names: BTreeSet<OsString>,
}

impl Sources {
    /// Watches these files: their folders, because a file is replaced rather than written.
    /// A file system that is ill may hold it up.
    pub fn watch<'a>(files: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut names = BTreeSet::from([SWAPPED.into()]);
        for file in files {
            // Where it is a link, both ends.
            let real: Option<PathBuf> = file.canonicalize().ok();
            for path in [Some(file), real.as_deref()].into_iter().flatten() {
                let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
                names.insert(name.to_owned());
                // ATTRIB: it may have been refused for its mode.
                let events = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::ATTRIB;
                // A folder that is not there yet cannot be watched; the next attempt looks again.
                let _ = inotify::add_watch(&inotify, folder, events);
            }
        }
        Ok(Self { inotify, names })
    }

    /// Readable when there may be something that [`Sources::changed`] tells; what came before counts.
    pub fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.inotify.as_raw_fd()), token, Interest::READABLE)
    }

    /// Whether one has changed since it was asked last.
    pub fn changed(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut changed = false;
        // Edge-triggered: until there is no more.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            changed |= name.is_some_and(|name| self.names.contains(name));
        }
        changed
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use mio::{Events, Poll};

    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn tells_each_way_to_change_a_file_and_nothing_else() {
        let dir = TempDir::new("sources");
        let token = dir.join("token");
        fs::write(&token, "a").unwrap();
        let sources = Sources::watch([token.as_path()].into_iter()).unwrap();
        assert!(!sources.changed());
        fs::read(&token).unwrap();
        fs::write(dir.join("other"), "b").unwrap();
        assert!(!sources.changed(), "neither a look at it nor another file");
        fs::write(&token, "b").unwrap();
        assert!(sources.changed());
        assert!(!sources.changed(), "once");
        fs::rename(dir.join("other"), &token).unwrap();
        assert!(sources.changed());
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(sources.changed());
        fs::remove_file(&token).unwrap();
        assert!(!sources.changed());
        symlink("other", &token).unwrap();
        assert!(sources.changed());
    }

    #[test]
    fn follows_a_link_to_where_the_file_is() {
        let (dir, elsewhere) = (TempDir::new("sources"), TempDir::new("sources"));
        fs::write(elsewhere.join("real"), "a").unwrap();
        symlink(elsewhere.join("real"), dir.join("token")).unwrap();
        let files = [dir.join("token"), PathBuf::from("/no/such/folder/file")];
        let sources = Sources::watch(files.iter().map(PathBuf::as_path)).unwrap();
        fs::write(elsewhere.join("real"), "b").unwrap();
        // It was watched before it was registered.
        let mut poll = Poll::new().unwrap();
        sources.register(poll.registry(), Token(7)).unwrap();
        poll.poll(&mut Events::with_capacity(1), None).unwrap();
        assert!(sources.changed());
        symlink("x", dir.join(SWAPPED)).unwrap();
        assert!(sources.changed());
    }
}
