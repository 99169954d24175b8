//! A certificate authority of a test's own, made with the openssl command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A private certificate authority, made with the openssl command.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes it below `dir`.
    pub fn new(dir: &Path, name: &str) -> Self {
        let authority = Self { dir: dir.join(name) };
        fs::create_dir(&authority.dir).expect("the folder takes a file");
        let settings = "[req]\ndistinguished_name = dn\nx509_extensions = ca\n[dn]\n\
            [ca]\nbasicConstraints = critical, CA:true\nkeyUsage = critical, keyCertSign\nsubjectKeyIdentifier = hash\n";
        fs::write(authority.path("ca.cnf"), settings).expect("the folder takes a file");
        let subject = format!("/CN=rig {name}");
        authority.openssl(
            &["req", "-x509", "-config", "ca.cnf", "-subj", &subject, "-days", "30", "-nodes"],
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "ca.key", "-out", "ca.pem"],
        );
        authority
    }

    /// A certificate and its key for a server of these names (`DNS:…,IP:…`).
    pub fn issue(&self, name: &str, names: &str) -> (PathBuf, PathBuf) {
        let file = |kind: &str| format!("{name}.{kind}");
        let (key, request, certificate) = (file("key"), file("csr"), file("pem"));
        fs::write(self.path("leaf.cnf"), format!("subjectAltName = {names}\n")).expect("the folder takes a file");
        self.openssl(
            &["req", "-new", "-config", "ca.cnf", "-subj", "/CN=server", "-nodes"],
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", &key, "-out", &request],
        );
        self.openssl(
            &["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
            &["-days", "30", "-extfile", "leaf.cnf", "-out", &certificate],
        );
        (self.path(&certificate), self.path(&key))
    }

    /// One of its files: `ca.pem`, `ca.key`, …
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn openssl(&self, what: &[&str], with: &[&str]) {
        let output =
            Command::new("openssl").args(what).args(with).current_dir(&self.dir).output().expect("openssl runs");
        assert!(output.status.success(), "openssl {what:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
