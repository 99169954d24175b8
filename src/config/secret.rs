//! Secrets: files of their own, one word each, refused when others can read them. No message and no log line holds
//! what stands in one.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Longest file of a secret, in bytes.
pub const SECRET_BYTES_MAX: u64 = 16_384;

/// The secret in this file. An error is one line that names the file.
pub fn read(path: &Path) -> Result<String, String> {
    checked(path).map_err(|fault| format!("{}: {fault}", path.display()))
}

fn checked(path: &Path) -> Result<String, String> {
    let text_of = |error: io::Error| error.to_string();
    // Before it is opened: a pipe would block.
    let metadata = fs::metadata(path).map_err(text_of)?;
    if !metadata.is_file() {
        return Err("not a file".into());
    }
    if metadata.mode() & 0o007 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(format!("others may get at this secret (mode {mode:04o}): chmod o-rwx {}", path.display()));
    }
    if metadata.len() > SECRET_BYTES_MAX {
        return Err(format!("longer than {SECRET_BYTES_MAX} bytes"));
    }
    let mut text = String::new();
    let file = fs::File::open(path).map_err(text_of)?;
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(text_of)?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err("holds no secret".into());
    }
    // It becomes the value of a header (RFC 6750 § 2.1).
    if secret.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("holds more than one printable word".into());
    }
    Ok(secret.to_owned())
}
