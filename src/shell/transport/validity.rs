//! How long a certificate is valid: its `Validity` (RFC 5280 § 4.1.2.5), found by walking the DER down to it. The TLS
//! library has judged the certificate before; nothing is decided by what is read here but a warning.

use crate::link::days_since_1970;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, explicit: the version.
const VERSION: u8 = 0xa0;

/// When a certificate begins and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validity {
    /// Unix seconds.
    pub not_before_s: u64,
    /// Unix seconds.
    pub not_after_s: u64,
    /// The end, as RFC 3339 writes it.
    pub not_after: String,
}

impl Validity {
    /// That of a certificate in DER; `None` where it is no such thing.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (certificate, _) = element(der, SEQUENCE)?;
        let (mut fields, _) = element(certificate, SEQUENCE)?;
        if fields.first() == Some(&VERSION) {
            fields = any(fields)?.2;
        }
        // Serial number, signature algorithm, issuer.
        for _ in 0..3 {
            fields = any(fields)?.2;
        }
        let (validity, _) = element(fields, SEQUENCE)?;
        let (tag, not_before, rest) = any(validity)?;
        let (not_before_s, _) = time(tag, not_before)?;
        let (tag, not_after, _) = any(rest)?;
        let (not_after_s, not_after) = time(tag, not_after)?;
        Some(Self { not_before_s, not_after_s, not_after })
    }
}

/// The content of the first element, which must have this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    any(der).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// Tag and content of the first element, and what follows it (X.690 § 8.1). Tags above 30 do not occur here.
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDHHMMSSZ` until 2049, `YYYYMMDDHHMMSSZ` from then on: as Unix seconds, and as people read it.
fn time(tag: u8, content: &[u8]) -> Option<(u64, String)> {
    let text = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let text = match (tag, text.len()) {
        (UTC_TIME, 12) if text.as_bytes()[0] >= b'5' => format!("19{text}"),
        (UTC_TIME, 12) => format!("20{text}"),
        (GENERALIZED_TIME, 14) => text.to_owned(),
        _ => return None,
    };
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |at: std::ops::Range<usize>| text[at].parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(8..10)?, number(10..12)?, number(12..14)?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = ((days_since_1970(year, month - 1, day) * 24 + hour) * 60 + minute) * 60 + second;
    let date = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    Some((seconds, date))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use native_tls::Certificate;

    use super::*;
    use crate::authority::Authority;
    use crate::temp_dir::TempDir;

    /// A certificate that openssl made.
    fn made(from: &str, until: &str) -> Vec<u8> {
        let dir = TempDir::new("validity");
        let (certificate, _) = Authority::new(&dir, "rig").issue_between("leaf", "DNS:a", from, until);
        Certificate::from_pem(&std::fs::read(certificate).unwrap()).unwrap().to_der().unwrap()
    }

    #[test]
    fn reads_what_openssl_makes_in_both_forms_of_time() {
        for (from, until, not_before_s, not_after_s, not_after) in [
            ("19700102030405Z", "20491231235959Z", 97_445, 2_524_607_999, "2049-12-31T23:59:59Z"),
            ("20240229120000Z", "20500101000000Z", 1_709_208_000, 2_524_608_000, "2050-01-01T00:00:00Z"),
        ] {
            let expected = Validity { not_before_s, not_after_s, not_after: not_after.into() };
            assert_eq!(Validity::of(&made(from, until)), Some(expected));
        }
    }

    #[test]
    fn bears_whatever_is_no_certificate() {
        let der = made("20240101000000Z", "20340101000000Z");
        for end in 0..der.len() {
            assert_eq!(Validity::of(&der[..end]), None, "cut at {end}");
        }
        // Whatever comes of it, nothing panics.
        for at in 0..der.len().min(160) {
            for byte in [0, 1, 0x7f, 0x80, 0x81, 0x84, 0x85, 0xff] {
                let mut damaged = der.clone();
                damaged[at] = byte;
                let _any = Validity::of(&damaged);
            }
        }
        for garbage in [&b""[..], b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"-----BEGIN CERTIFICATE-----"] {
            assert_eq!(Validity::of(garbage), None);
        }
    }
}
