//! A private certificate authority, made with the openssl command. A file apart from the rest of the rig, so that the
//! tests inside the crate have it, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Its files are in a folder of its own; `ca.pem` is what to trust.
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes the folder `name` in `dir`, and the authority's key and certificate in it.
    pub fn new(dir: &Path, name: &str) -> Self {
        let authority = Self { dir: dir.join(name) };
        fs::create_dir(&authority.dir).expect("the folder can be made");
        // The sections of `openssl ca` are for certificates between two dates of one's choice.
        let settings = "[req]\ndistinguished_name = dn\nx509_extensions = ca\n[dn]\n\
            [ca]\nbasicConstraints = critical, CA:true\nkeyUsage = critical, keyCertSign\nsubjectKeyIdentifier = hash\n\
            [issue]\nnew_certs_dir = .\ndatabase = index.txt\nrand_serial = yes\npolicy = any\ndefault_md = sha256\n\
            unique_subject = no\n[any]\ncommonName = supplied\n";
        authority.write("ca.cnf", settings);
        authority.write("index.txt", "");
        let subject = format!("/CN=rig {name}");
        authority.openssl(
            &["req", "-x509", "-config", "ca.cnf", "-subj", &subject, "-days", "30", "-nodes"],
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "ca.key", "-out", "ca.pem"],
        );
        authority
    }

    /// A certificate, valid for 30 days, and its key, for a server of these names (`DNS:…,IP:…`).
    pub fn issue(&self, name: &str, names: &str) -> (PathBuf, PathBuf) {
        self.issue_for(name, names, 30)
    }

    /// The same, valid for so many days from now on.
    pub fn issue_for(&self, name: &str, names: &str, days: u32) -> (PathBuf, PathBuf) {
        let [key, request, certificate] = self.request(name, names);
        self.openssl(
            &["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"],
            &["-days", &days.to_string(), "-extfile", "leaf.cnf", "-out", &certificate],
        );
        (self.path(&certificate), self.path(&key))
    }

    /// The same, valid from then to then (`YYYYMMDDHHMMSSZ`).
    pub fn issue_between(&self, name: &str, names: &str, from: &str, until: &str) -> (PathBuf, PathBuf) {
        let [key, request, certificate] = self.request(name, names);
        self.openssl(
            &["ca", "-batch", "-config", "ca.cnf", "-name", "issue", "-cert", "ca.pem", "-keyfile", "ca.key"],
            &[
                "-in",
                &request,
                "-notext",
                "-extfile",
                "leaf.cnf",
                "-startdate",
                from,
                "-enddate",
                until,
                "-out",
                &certificate,
            ],
        );
        (self.path(&certificate), self.path(&key))
    }

    /// Where one of its files is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Key, request and certificate-to-be, in this order.
    fn request(&self, name: &str, names: &str) -> [String; 3] {
        let files = ["key", "csr", "pem"].map(|kind| format!("{name}.{kind}"));
        self.write("leaf.cnf", &format!("subjectAltName = {names}\n"));
        self.openssl(
            &["req", "-new", "-config", "ca.cnf", "-subj", &format!("/CN={name}"), "-nodes"],
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", &files[0], "-out", &files[1]],
        );
        files
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).expect("its folder takes files");
    }

    fn openssl(&self, what: &[&str], with: &[&str]) {
        let output = Command::new("openssl").args(what).args(with).current_dir(&self.dir).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "openssl {what:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
