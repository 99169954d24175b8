//! Secrets: files of their own, refused when others can read them. No message and no log line holds what stands in
//! one.

use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::file;

/// Longest secret, in bytes; of a file with one, too.
pub const SECRET_BYTES_MAX: u64 = 16_384;
/// Longest file of a private key, in bytes.
const KEY_BYTES_MAX: u64 = 65_536;

/// The token in this file. An error is one line that names the file.
pub fn read(path: &Path) -> Result<String, String> {
    named(path, private(path, SECRET_BYTES_MAX).and_then(|bytes| token(&bytes)))
}

/// The `user:password` in this file.
pub fn read_basic(path: &Path) -> Result<String, String> {
    named(path, private(path, SECRET_BYTES_MAX).and_then(|bytes| basic(&bytes)))
}

/// The private key in this file, not yet looked at.
pub fn read_key(path: &Path) -> Result<Vec<u8>, String> {
    named(path, private(path, KEY_BYTES_MAX))
}

/// What becomes the value of a header (RFC 6750 § 2.1): one printable word, blanks around it aside.
pub fn token(bytes: &[u8]) -> Result<String, String> {
    let token = text(bytes)?.trim();
    match token {
        "" => Err("holds no secret".into()),
        _ if token.bytes().any(|byte| !byte.is_ascii_graphic()) => Err("holds more than one printable word".into()),
        _ => Ok(token.into()),
    }
}

/// `user:password` on one line (RFC 7617 § 2: no control characters).
pub fn basic(bytes: &[u8]) -> Result<String, String> {
    let line = text(bytes)?;
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line.split_once(':') {
        None => Err("is not user:password".into()),
        Some(_) if line.contains(char::is_control) => Err("holds more than one line of text".into()),
        Some(_) => Ok(line.into()),
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    // std's error names no byte of it.
    std::str::from_utf8(bytes).map_err(|_| "is no text in UTF-8".into())
}

fn named<T>(path: &Path, result: Result<T, String>) -> Result<T, String> {
    result.map_err(|fault| format!("{}: {fault}", path.display()))
}

fn private(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let text_of = |error: io::Error| error.to_string();
    let file = file::open(path).map_err(text_of)?;
    let metadata = file.metadata().map_err(text_of)?;
    if metadata.mode() & 0o007 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(format!("others may get at this secret (mode {mode:04o}): chmod o-rwx {}", path.display()));
    }
    if metadata.len() > bytes_max {
        return Err(format!("longer than {bytes_max} bytes"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(text_of)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word() {
        assert_eq!(token(b" abc.DEF-1 \n"), Ok("abc.DEF-1".into()));
        for bytes in [&b""[..], b"\n", b"a b", b"a\nb", b"a\0", b"\xff\xfe", "ä".as_bytes()] {
            assert!(token(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn basic_is_a_user_and_a_password_that_may_hold_blanks_and_colons() {
        assert_eq!(basic("mé:pass: word \r\n".as_bytes()), Ok("mé:pass: word ".into()));
        for bytes in [&b""[..], b"me\n", b"me:a\nb", b"me:a\tb", b"me:\xff"] {
            assert!(basic(bytes).is_err(), "{bytes:?}");
        }
    }
}
