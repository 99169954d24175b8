//! TLS: whom we trust, who we are, and what its errors mean. The handshake itself is a stage of the transport.

use std::error::Error as _;
use std::io;
use std::path::Path;

use native_tls::{Certificate, Identity, Protocol, TlsConnector};

use super::Validity;
use crate::link::{Class, Failure};

/// What the endpoint's files hold: path and content.
#[derive(Default)]
pub struct Files<'a> {
    /// PEM of the CA to trust instead of the system's roots.
    pub ca: Option<(&'a Path, &'a [u8])>,
    /// PEM of the client's certificate and those between it and its CA, and of its key.
    pub client: Option<[(&'a Path, &'a [u8]); 2]>,
}

/// A connector for what the files hold. Made anew for each attempt, so that renewed certificates are picked up
/// (thin-edge.io#3157).
pub fn connector(files: &Files<'_>) -> Result<TlsConnector, Failure> {
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    if let Some((path, pem)) = files.ca {
        let fault = |error: String| Failure::new(Class::Certificate, format!("ca_file {}: {error}", path.display()));
        let certificates = Certificate::stack_from_pem(pem).map_err(|error| fault(error.to_string()))?;
        if certificates.is_empty() {
            return Err(fault("no certificate in it".into()));
        }
        builder.disable_built_in_roots(true);
        for certificate in certificates {
            builder.add_root_certificate(certificate);
        }
    }
    if let Some([(cert_file, cert), (key_file, key)]) = files.client {
        builder.identity(identity(cert_file, cert, key_file, key)?);
    }
    builder.build().map_err(|error| match files.client {
        // What OpenSSL says of a certificate and a key that do not belong together.
        Some([(cert_file, _), (key_file, _)]) if error.to_string().contains("key values mismatch") => {
            let (cert, key) = (cert_file.display(), key_file.display());
            Failure::new(Class::Credentials, format!("key_file {key} is not the key of cert_file {cert}"))
        }
        Some(_) | None => Failure::new(Class::Tls, format!("securing: {error}")),
    })
}

fn identity(cert_file: &Path, cert: &[u8], key_file: &Path, key: &[u8]) -> Result<Identity, Failure> {
    let fault = |error: String| Failure::new(Class::Credentials, error);
    match Certificate::stack_from_pem(cert) {
        Ok(stack) if !stack.is_empty() => {}
        Ok(_) => return Err(fault(format!("cert_file {}: no certificate in it", cert_file.display()))),
        Err(error) => return Err(fault(format!("cert_file {}: {error}", cert_file.display()))),
    }
    // What stands in the key's file is not in any of these errors.
    Identity::from_pkcs8(cert, key).map_err(|_| {
        let path = key_file.display();
        fault(format!(
            "key_file {path}: no PKCS#8 key in PEM without a password: openssl pkcs8 -topk8 -nodes -in {path}"
        ))
    })
}

/// How long the first certificate of this PEM is valid.
pub fn validity(pem: &[u8]) -> Option<Validity> {
    Validity::of(&Certificate::stack_from_pem(pem).ok()?.first()?.to_der().ok()?)
}

/// What a failed TLS handshake means.
pub fn failure(error: &native_tls::Error, clock_set: bool) -> Failure {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(io_error) => Failure::from_io(io_error, "securing"),
        None => judge(&error.to_string(), clock_set),
    }
}

/// The same, where a read or a write over TLS failed. A server of TLS 1.3 judges our certificate when the handshake is
/// over for us: its alert comes with the first read. `None`: it is an error of the socket.
pub fn failure_later(error: &io::Error, stage: &str) -> Option<Failure> {
    let source = error.get_ref()?;
    let text = source.to_string();
    (text.contains("SSL") || is_eof(&text)).then(|| judge_at(stage, &text, true))
}

fn judge(text: &str, clock_set: bool) -> Failure {
    judge_at("securing", text, clock_set)
}

/// OpenSSL keeps its reasons in text alone: `error:0A000086:SSL routines:…:certificate verify failed:… (reason)`.
fn judge_at(stage: &str, text: &str, clock_set: bool) -> Failure {
    let reason = text.split(':').nth(4).unwrap_or(text);
    // OpenSSL 3.2 and newer, whose clock fails on 32 bits from 2038 on, reports that error in the place of its own; the
    // verdict on the certificate follows in brackets all the same.
    if text.contains("certificate verify failed") || text.starts_with("unexpected EOF (") {
        let reason = text.rsplit_once('(').map_or(text, |(_, reason)| reason.trim_end_matches(')'));
        let class = if reason.contains("not yet valid") && !clock_set { Class::ClockUnset } else { Class::Certificate };
        return Failure::new(class, format!("{stage}: certificate: {reason}"));
    }
    if CLIENT_ALERTS.iter().any(|alert| reason.ends_with(alert)) {
        return Failure::new(Class::Credentials, format!("{stage}: the server refuses our certificate: {reason}"));
    }
    if is_eof(text) {
        return Failure::new(Class::Reset, format!("{stage}: the far end closed without a word"));
    }
    // What a port says in plain text proves nothing of who is there (a captive portal, a balancer that starts): the
    // ordinary backoff, not the slow class.
    if ["wrong version number", "packet length too long", "http request"].contains(&reason) {
        return Failure::new(Class::Tls, format!("{stage}: the far end speaks no TLS on this port: {reason}"));
    }
    Failure::new(Class::Tls, format!("{stage}: {text}"))
}

/// As OpenSSL 3 has it, and as its Rust binding has what an older one reports as an error of the socket.
fn is_eof(text: &str) -> bool {
    text.contains("unexpected eof") || text.contains("unexpected EOF")
}

/// The server's alerts on a client's certificate, or its absence (RFC 8446 § 6.2: 42 to 46, 48, 49 and 116), in
/// OpenSSL's words. 40, `handshake failure`, says too many other things.
const CLIENT_ALERTS: [&str; 8] = [
    "alert bad certificate",
    "alert unsupported certificate",
    "alert certificate revoked",
    "alert certificate expired",
    "alert certificate unknown",
    "alert unknown ca",
    "alert access denied",
    "alert certificate required",
];

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::temp_dir::TempDir;

    const VERIFY: &str = "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate verify failed:\
                          ../ssl/statem/statem_clnt.c:1889:";

    #[test]
    fn certificates_that_are_not_the_servers_are_told_apart_from_transient_faults() {
        for reason in [
            "unable to get local issuer certificate",
            "self-signed certificate in certificate chain",
            "certificate has expired",
            "hostname mismatch",
            "IP address mismatch",
        ] {
            for clock_set in [true, false] {
                let failure = judge(&format!("{VERIFY} ({reason})"), clock_set);
                assert_eq!(failure.class, Class::Certificate, "{reason}");
                assert_eq!(failure.detail, format!("securing: certificate: {reason}"));
            }
        }
        for text in [
            "error:0A00010B:SSL routines::wrong version number:../ssl/record/ssl3_record.c:354:",
            "the SSL session has been shut down",
        ] {
            assert_eq!(judge(text, true).class, Class::Tls, "{text}");
        }
        let eof = "error:0A000126:SSL routines::unexpected eof while reading:../ssl/record/rec_layer_s3.c:317:";
        for text in [eof, "unexpected EOF"] {
            assert_eq!(judge(text, true).class, Class::Reset);
        }
    }

    #[test]
    fn not_yet_valid_waits_for_time_only_while_the_clock_is_unset() {
        let clock_failed = "unexpected EOF";
        for what in [VERIFY, clock_failed] {
            let text = format!("{what} (certificate is not yet valid)");
            assert_eq!(judge(&text, false).class, Class::ClockUnset);
            let failure = judge(&text, true);
            assert_eq!(failure.class, Class::Certificate);
            assert_eq!(failure.detail, "securing: certificate: certificate is not yet valid");
        }
    }

    #[test]
    fn alerts_on_our_certificate_are_refused_credentials() {
        for (alert, class) in [
            ("sslv3 alert bad certificate", Class::Credentials),
            ("sslv3 alert unsupported certificate", Class::Credentials),
            ("sslv3 alert certificate revoked", Class::Credentials),
            ("sslv3 alert certificate expired", Class::Credentials),
            ("sslv3 alert certificate unknown", Class::Credentials),
            ("tlsv1 alert unknown ca", Class::Credentials),
            ("tlsv1 alert access denied", Class::Credentials),
            ("tlsv13 alert certificate required", Class::Credentials),
            ("sslv3 alert handshake failure", Class::Tls),
            ("tlsv1 alert protocol version", Class::Tls),
            ("tlsv1 alert internal error", Class::Tls),
            ("tlsv1 unrecognized name", Class::Tls),
        ] {
            let text =
                format!("error:0A00045C:SSL routines:ssl3_read_bytes:{alert}:../ssl/record/rec_layer_s3.c:1605:");
            assert_eq!(judge(&text, true).class, class, "{alert}");
            let later = failure_later(&io::Error::other(text), "upgrading").unwrap();
            assert_eq!(later.class, class, "{alert}");
            assert!(later.detail.starts_with("upgrading: "), "{later}");
        }
        assert_eq!(failure_later(&io::Error::other("no room"), "up"), None);
        assert_eq!(failure_later(&io::Error::from_raw_os_error(104), "up"), None);
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let files = Files { ca: Some((Path::new("/ca.pem"), b"nothing here\n")), client: None };
        assert_eq!(connector(&files).unwrap_err().class, Class::Certificate);
    }

    #[test]
    fn a_certificate_needs_its_own_key_in_pkcs8() {
        let dir = TempDir::new("tls");
        let authority = Authority::new(&dir, "rig");
        let read = |(cert, key): &(std::path::PathBuf, std::path::PathBuf)| {
            (std::fs::read(cert).unwrap(), std::fs::read(key).unwrap())
        };
        let (mine, other) = (read(&authority.issue("mine", "DNS:a")), read(&authority.issue("other", "DNS:b")));
        let built = |cert: &[u8], key: &[u8]| {
            let client = Some([(Path::new("/c.pem"), cert), (Path::new("/k.pem"), key)]);
            connector(&Files { ca: None, client }).map(drop)
        };
        built(&mine.0, &mine.1).unwrap();
        let failure = built(&mine.0, &other.1).unwrap_err();
        assert_eq!(failure.class, Class::Credentials, "{failure}");
        assert_eq!(failure.detail, "key_file /k.pem is not the key of cert_file /c.pem");
        for (cert, key, named) in [
            (&b"none"[..], &mine.1[..], "cert_file /c.pem"),
            (&mine.0, b"none", "openssl pkcs8 -topk8"),
            (&mine.0, b"-----BEGIN EC PRIVATE KEY-----\nMHc=\n-----END EC PRIVATE KEY-----\n", "PKCS#8"),
        ] {
            let failure = built(cert, key).unwrap_err();
            assert_eq!(failure.class, Class::Credentials, "{failure}");
            assert!(failure.detail.contains(named), "{failure}");
        }
        let validity = validity(&mine.0).unwrap();
        assert_eq!(validity.not_after_s - validity.not_before_s, 30 * 86_400);
    }
}
