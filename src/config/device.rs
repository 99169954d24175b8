//! Who this gateway is: reads the identity that `[device] id` names.

use std::fs;

use super::{Device, file};

/// Longest identity, in bytes.
pub const DEVICE_BYTES_MAX: usize = 128;

/// Of a file that it stands in, bytes that are read.
const FILE_BYTES_MAX: u64 = 4096;

/// The device's name. An error says what is wrong, without the key.
pub fn resolve_device(device: &Device) -> Result<String, String> {
    let id = device.id.as_str();
    let name = if let Some(path) = id.strip_prefix("file:") {
        let bytes = file::read(path.as_ref(), FILE_BYTES_MAX).map_err(|error| format!("{path}: {error}"))?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let text = str::from_utf8(line).map_err(|_| format!("{path}: no text in UTF-8"))?;
        text.trim().to_owned()
    } else if let Some(interface) = id.strip_prefix("mac:") {
        mac(interface)?
    } else if id == "hostname" {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        id.to_owned()
    };
    match fault(&name) {
        None => Ok(name),
        Some(fault) => Err(format!("\"{id}\" gives {fault}")),
    }
}

fn mac(interface: &str) -> Result<String, String> {
    // netdevice(7): a name has at most 15 bytes, no slash and no white space.
    let slips_out = interface.contains('/') || interface == "." || interface == "..";
    if interface.is_empty() || interface.len() > 15 || slips_out {
        return Err(format!("\"{interface}\" is no name of a network interface"));
    }
    let path = format!("/sys/class/net/{interface}/address");
    let mac = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?.trim().to_owned();
    if mac.bytes().all(|byte| byte == b'0' || byte == b':') {
        return Err(format!("the interface {interface} has no address of its own"));
    }
    Ok(mac)
}

/// What is wrong with this name: it travels in `hello` and stands in logs.
fn fault(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("an empty name".into())
    } else if name.len() > DEVICE_BYTES_MAX {
        Some(format!("a name of {} bytes, at most {DEVICE_BYTES_MAX} are allowed", name.len()))
    } else if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        Some("a name with white space or control characters".into())
    } else if name == "uninitialized" {
        // machine-id(5): the image's first boot has not come so far.
        Some("\"uninitialized\": this machine has no id yet".into())
    } else {
        None
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    fn resolved(id: &str) -> Result<String, String> {
        resolve_device(&Device { id: id.into() })
    }

    #[test]
    fn takes_a_literal_a_file_and_the_hostname() {
        assert_eq!(resolved("gw-0042").unwrap(), "gw-0042");
        let dir = TempDir::new("device");
        let path = dir.join("id");
        fs::write(&path, "  serial-7 \nsecond line\n").unwrap();
        assert_eq!(resolved(&format!("file:{}", path.display())).unwrap(), "serial-7");
        fs::write(&path, "\n").unwrap();
        assert!(resolved(&format!("file:{}", path.display())).unwrap_err().contains("an empty name"));
        assert_eq!(resolved("hostname").unwrap(), fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    }

    #[test]
    fn refuses_what_names_no_device() {
        for (id, says) in [
            ("", "an empty name"),
            ("a b", "white space"),
            ("a\u{7}", "control"),
            (&"x".repeat(129), "129 bytes"),
            ("file:/nowhere/at/all", "No such file"),
            ("mac:", "no name of a network interface"),
            ("mac:../../etc", "no name of a network interface"),
            ("mac:nosuchif0", "No such file"),
            ("mac:lo", "no address of its own"),
        ] {
            let message = resolved(id).unwrap_err();
            assert!(message.contains(says), "{id:?}: {message}");
        }
        assert!(resolved(&"x".repeat(128)).is_ok());
    }
}
