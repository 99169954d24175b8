//! TLS: whom we trust, and what its errors mean. The handshake itself is a stage of the transport.

use std::error::Error as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use native_tls::{Certificate, Protocol, TlsConnector};

use crate::link::{Class, Failure};

/// Largest file of CA certificates, in bytes: the system's own bundle is a quarter of it.
const CA_BYTES_MAX: u64 = 1 << 20;

/// A connector that trusts the CA of this file, or the system's roots without one. Made anew on each dial, so that
/// renewed certificates are picked up (thin-edge.io#3157).
pub fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, Failure> {
    let mut builder = TlsConnector::builder();
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    if let Some(path) = ca_file {
        let fault = |error: String| Failure::new(Class::Certificate, format!("ca_file {}: {error}", path.display()));
        let pem = read(path).map_err(|error| fault(error.to_string()))?;
        let certificates = Certificate::stack_from_pem(&pem).map_err(|error| fault(error.to_string()))?;
        if certificates.is_empty() {
            return Err(fault("no certificate in it".into()));
        }
        builder.disable_built_in_roots(true);
        for certificate in certificates {
            builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| Failure::new(Class::Tls, format!("securing: {error}")))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(CA_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a failed TLS handshake means.
pub fn failure(error: &native_tls::Error, clock_set: bool) -> Failure {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(io_error) => Failure::from_io(io_error, "securing"),
        None => judge(&error.to_string(), clock_set),
    }
}

/// OpenSSL keeps the reason of a refused certificate in text alone: `… certificate verify failed … (reason)`.
fn judge(text: &str, clock_set: bool) -> Failure {
    if !text.contains("certificate verify failed") {
        return Failure::new(Class::Tls, format!("securing: {text}"));
    }
    let reason = text.rsplit_once('(').map_or(text, |(_, reason)| reason.trim_end_matches(')'));
    let class = if reason.contains("not yet valid") && !clock_set { Class::ClockUnset } else { Class::Certificate };
    Failure::new(class, format!("securing: certificate: {reason}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
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
            "error:0A000126:SSL routines::unexpected eof while reading:../ssl/record/rec_layer_s3.c:317:",
            "error:0A00010B:SSL routines::wrong version number:../ssl/record/ssl3_record.c:354:",
            "the SSL session has been shut down",
        ] {
            assert_eq!(judge(text, true).class, Class::Tls, "{text}");
        }
    }

    #[test]
    fn not_yet_valid_waits_for_time_only_while_the_clock_is_unset() {
        let text = format!("{VERIFY} (certificate is not yet valid)");
        assert_eq!(judge(&text, false).class, Class::ClockUnset);
        assert_eq!(judge(&text, true).class, Class::Certificate);
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let dir = TempDir::new("tls");
        let empty = dir.join("empty.pem");
        std::fs::write(&empty, "nothing here\n").unwrap();
        for path in [empty, dir.join("missing.pem")] {
            assert_eq!(connector(Some(&path)).unwrap_err().class, Class::Certificate);
        }
    }
}
