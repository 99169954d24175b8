//! A folder of a test's own. A file apart from the rest of the rig, so that the tests inside the crate have it, too.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// A folder of its own. Gone when dropped, but kept and named when its test fails.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    /// Keeps it, for a look.
    pub keep: bool,
}

impl TempDir {
    /// A fresh folder below the system's temporary one. Its path is short: a unix socket's has 108 bytes at most.
    pub fn new(name: &str) -> Self {
        Self::below(&std::env::temp_dir(), name)
    }

    /// A fresh folder below this one.
    pub fn below(parent: &Path, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("backhaul-{name}-{}-{number}", std::process::id()));
        let _stale = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the temporary folder takes a folder");
        Self { path, keep: false }
    }
}

impl Deref for TempDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.keep || thread::panicking() {
            eprintln!("kept for a look: {}", self.path.display());
        } else {
            let _gone_already = fs::remove_dir_all(&self.path);
        }
    }
}
