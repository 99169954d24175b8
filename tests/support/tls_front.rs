//! TLS in front of an upstream, ended by Python's ssl module (`tls_front.py`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::{DEADLINE, free_port, mortal, wait_until};

/// How strict it is.
#[derive(Clone, Debug)]
pub struct Strictness {
    /// Certificate and key.
    pub identity: (PathBuf, PathBuf),
    /// Clients must show a certificate of this authority.
    pub client_ca: Option<PathBuf>,
    /// Oldest and newest version: `TLSv1_1`, `TLSv1_2`, `TLSv1_3`.
    pub versions: (&'static str, &'static str),
}

impl Strictness {
    /// Asks nothing of clients, and speaks what is usual.
    pub fn of(identity: (PathBuf, PathBuf)) -> Self {
        Self { identity, client_ca: None, versions: ("TLSv1_2", "TLSv1_3") }
    }
}

/// The process, killed when dropped.
pub struct TlsFront {
    port: u16,
    out: PathBuf,
    child: Child,
}

impl TlsFront {
    /// Listens on `port` and passes on to `target`, a port on loopback. Its output is kept in `dir`.
    pub fn start(dir: &Path, port: u16, target: u16, strictness: &Strictness) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/tls_front.py");
        let out = dir.join(format!("tls-front-{port}.out"));
        let client_ca = strictness.client_ca.clone().unwrap_or_else(|| "-".into());
        let mut command = mortal(Path::new("python3"));
        command.arg(script).arg(port.to_string()).arg(target.to_string());
        command.args([&strictness.identity.0, &strictness.identity.1, &client_ca]);
        command.args([strictness.versions.0, strictness.versions.1]);
        let file = File::create(&out).expect("its output can be written");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = command.spawn().expect("python3 is installed");
        let front = Self { port, out, child };
        wait_until(DEADLINE, "the TLS front listens", || front.output().contains("listening"));
        front
    }

    /// The same on a port of its own.
    pub fn new(dir: &Path, target: u16, strictness: &Strictness) -> Self {
        Self::start(dir, free_port(), target, strictness)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it said: one line a connection, `accepted VERSION` or `refused WHY`.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}
