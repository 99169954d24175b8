//! Opens what a configuration names: regular files only. A pipe or a device in a file's place would hold up whoever
//! reads it, for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens it to be read.
pub fn open(path: &Path) -> io::Result<File> {
    let not_a_file = || Err(io::Error::other("not a file"));
    // Some devices do something when they are opened.
    if !std::fs::metadata(path)?.is_file() {
        return not_a_file();
    }
    // And a pipe that nobody writes to would block in `open` already, should it come just now.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return not_a_file();
    }
    Ok(file)
}

/// Its content, at most so many bytes of it.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    #[test]
    fn what_is_no_file_is_refused_at_once_and_never_read() {
        let dir = TempDir::new("file");
        let pipe = dir.join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [pipe.as_path(), Path::new("/dev/zero"), &dir] {
            assert_eq!(read(path, 10).unwrap_err().to_string(), "not a file", "{}", path.display());
        }
        std::fs::write(dir.join("file"), "0123456789").unwrap();
        assert_eq!(read(&dir.join("file"), 4).unwrap(), b"0123");
    }
}
