//! Client certificates that a server wants, and the certificates of servers: what is wrong with them, and that it is
//! noticed when it is put right. The far end of TLS is Python's ssl.

use std::fs;
use std::path::{Path, PathBuf};

use backhaul::config::Endpoint;

use crate::bench::{Bench, detail, endpoint, replace};
use crate::support::agent;
use crate::support::authority::Authority;
use crate::support::gate::{Gate, Reply};
use crate::support::tls_front::{Strictness, TlsFront};
use crate::support::{TempDir, free_port};

const NAMES: &str = "DNS:localhost,IP:127.0.0.1";

type Identity = (PathBuf, PathBuf);

/// Certificate and key at the place of the agent's.
fn install(dir: &Path, identity: &Identity) {
    // The key first: between the two they do not match, which is an error like any other.
    for (from, to) in [(&identity.1, "client.key"), (&identity.0, "client.pem")] {
        replace(&dir.join(to), &fs::read_to_string(from).unwrap());
    }
}

/// An agent that trusts `ca` and shows `identity`, for a front on this port.
fn bench(port: u16, ca: &Authority, identity: Option<&Identity>) -> Bench {
    let mut bench = Bench::new(|_, dir| {
        let ca_file = Some(ca.path("ca.pem"));
        let mut endpoint = Endpoint { ca_file, ..endpoint(&format!("wss://localhost:{port}/v1")) };
        if let Some(identity) = identity {
            install(dir, identity);
            endpoint.cert_file = Some(dir.join("client.pem"));
            endpoint.key_file = Some(dir.join("client.key"));
        }
        endpoint
    });
    bench.wait_long_after_refusals();
    bench
}

struct Pki {
    dir: TempDir,
    servers: Authority,
    clients: Authority,
}

impl Pki {
    fn new() -> Self {
        let dir = TempDir::new("pki");
        let (servers, clients) = (Authority::new(&dir, "servers"), Authority::new(&dir, "clients"));
        Self { dir, servers, clients }
    }

    /// A front that wants certificates of our clients.
    fn strict(&self, versions: (&'static str, &'static str)) -> Strictness {
        let client_ca = Some(self.clients.path("ca.pem"));
        Strictness { client_ca, versions, ..Strictness::of(self.servers.issue("server", NAMES)) }
    }
}

#[test]
fn a_client_certificate_opens_and_its_end_is_watched() {
    let pki = Pki::new();
    for (days, ends_first) in [(3, true), (300, false)] {
        let identity = pki.clients.issue_for("gateway", "DNS:gateway", days);
        let port = free_port();
        let mut bench = bench(port, &pki.servers, Some(&identity));
        let _front = TlsFront::start(&bench.dir, port, bench.server.port(), &pki.strict(("TLSv1_2", "TLSv1_3")));
        bench.start();
        bench.assert_delivers();
        let status = bench.agent.wait_up();
        let certificate = &status["link"]["certificate"];
        // The server's is valid for 30 days, the last of them not whole but in its first second.
        let (of, whole) = if ends_first { ("client", i64::from(days)) } else { ("server", 30) };
        let days_left = certificate["days_left"].as_i64().unwrap();
        assert!(certificate["of"] == of && (whole - 1..=whole).contains(&days_left), "{certificate}");
        assert!(certificate["not_after"].as_str().unwrap().ends_with('Z'));
        assert!(!bench.agent.log().contains("certificate_expiry"), "more than a third of its life is left");
    }
}

#[test]
fn a_certificate_near_its_end_is_an_event_and_a_warning() {
    let pki = Pki::new();
    let identity = pki.clients.issue_between("gateway", "DNS:gateway", "20200101000000Z", &in_days(5));
    let port = free_port();
    let mut bench = bench(port, &pki.servers, Some(&identity));
    let _front = TlsFront::start(&bench.dir, port, bench.server.port(), &pki.strict(("TLSv1_2", "TLSv1_3")));
    bench.start();
    bench.assert_delivers();
    let status = bench.agent.wait_up();
    assert_eq!(status["link"]["certificate"]["ends_soon"], true, "{status:#}");
    bench.server.kick();
    bench.assert_delivers();
    let log = bench.agent.log();
    assert_eq!(log.matches("event kind=certificate_expiry").count(), 1, "once a day, however many attempts: {log}");
    let told = bench.server.books(|books| {
        books.records.values().filter(|body| String::from_utf8_lossy(body).contains("certificate_expiry")).count()
    });
    assert_eq!(told, 1);
}

/// So many days from now, as openssl takes it.
fn in_days(days: u32) -> String {
    let output =
        std::process::Command::new("date").args(["-u", "+%Y%m%d%H%M%SZ", "-d", &format!("{days} days")]).output();
    String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned()
}

#[test]
fn what_a_server_refuses_of_a_client_is_refused_credentials_in_both_versions_of_tls() {
    let pki = Pki::new();
    let stranger = Authority::new(&pki.dir, "stranger").issue("gateway", "DNS:gateway");
    let expired = pki.clients.issue_between("expired", "DNS:gateway", "20200101000000Z", "20200201000000Z");
    let good = pki.clients.issue("gateway", "DNS:gateway");
    for (versions, identity, expected) in [
        (("TLSv1_3", "TLSv1_3"), None, "certificate required"),
        (("TLSv1_3", "TLSv1_3"), Some(&stranger), "unknown ca"),
        (("TLSv1_2", "TLSv1_2"), Some(&stranger), "unknown ca"),
        (("TLSv1_3", "TLSv1_3"), Some(&expired), "certificate expired"),
        (("TLSv1_2", "TLSv1_2"), Some(&expired), "certificate expired"),
    ] {
        let port = free_port();
        let mut bench = bench(port, &pki.servers, identity);
        let _front = TlsFront::start(&bench.dir, port, bench.server.port(), &pki.strict(versions));
        bench.start();
        let detail = bench.wait_failed("credentials");
        assert!(detail.contains("the server refuses our certificate") && detail.contains(expected), "{detail}");
        assert_eq!(bench.server.attempts(), 0);
        if identity.is_some() {
            // Renewed on disk, noticed without a restart (thin-edge/thin-edge.io#3157).
            install(&bench.dir, &good);
            bench.assert_delivers();
        }
    }
}

#[test]
fn a_key_of_another_certificate_is_told_and_its_right_one_noticed() {
    let pki = Pki::new();
    let (mine, other) = (pki.clients.issue("mine", "DNS:a"), pki.clients.issue("other", "DNS:b"));
    let port = free_port();
    let mut bench = bench(port, &pki.servers, Some(&(mine.0.clone(), other.1)));
    let _front = TlsFront::start(&bench.dir, port, bench.server.port(), &pki.strict(("TLSv1_2", "TLSv1_3")));
    bench.start();
    let detail = bench.wait_failed("credentials");
    assert!(detail.contains("is not the key of cert_file"), "{detail}");
    install(&bench.dir, &mine);
    bench.assert_delivers();
}

#[test]
fn what_is_wrong_with_a_servers_certificate_has_its_class() {
    let pki = Pki::new();
    let between = |name, from, until| pki.servers.issue_between(name, NAMES, from, until);
    let stranger = Authority::new(&pki.dir, "stranger");
    for (identity, expected) in [
        (stranger.issue("server", NAMES), "unable to get local issuer certificate"),
        (pki.servers.issue("name", "DNS:other.example"), "ostname mismatch"),
        (between("expired", "20200101000000Z", "20200201000000Z"), "certificate has expired"),
        // The clock is set: it is the server's fault.
        (between("early", "20980101000000Z", "20990101000000Z"), "certificate is not yet valid"),
    ] {
        let port = free_port();
        let mut bench = bench(port, &pki.servers, None);
        let _front = TlsFront::start(&bench.dir, port, bench.server.port(), &Strictness::of(identity));
        bench.start();
        let detail = bench.wait_failed("certificate");
        assert!(detail.starts_with("securing: certificate: ") && detail.contains(expected), "{detail}");
        assert_eq!(bench.server.attempts(), 0, "nothing is said to a stranger");
    }
}

#[test]
fn a_server_without_a_common_version_of_tls_or_without_tls_is_told() {
    let pki = Pki::new();
    let port = free_port();
    let mut old = bench(port, &pki.servers, None);
    let strictness =
        Strictness { versions: ("TLSv1_1", "TLSv1_1"), ..Strictness::of(pki.servers.issue("server", NAMES)) };
    let _front = TlsFront::start(&old.dir, port, old.server.port(), &strictness);
    old.start();
    let detail = old.wait_failed("tls");
    assert!(detail.contains("version"), "{detail}");

    let gate = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let talker = std::thread::spawn({
        let gate = gate.try_clone().unwrap();
        move || {
            while let Ok((mut stream, _)) = gate.accept() {
                use std::io::{Read as _, Write as _};
                let mut buffer = [0; 16];
                if stream.read(&mut buffer).unwrap_or(0) < 16 {
                    return;
                }
                let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
                let _rest = std::io::copy(&mut stream, &mut std::io::sink());
            }
        }
    });
    let url = format!("wss://{}/v1", gate.local_addr().unwrap());
    let mut plain = Bench::new(|_, _| endpoint(&url));
    plain.start();
    let detail = plain.wait_failed("tls");
    assert!(detail.contains("speaks no TLS on this port"), "{detail}");
    drop(plain);
    drop(std::net::TcpStream::connect(gate.local_addr().unwrap()));
    talker.join().unwrap();
}

#[test]
fn an_end_in_the_handshake_is_a_reset_and_silence_a_timeout() {
    let proxy = Gate::new(|_| Reply::Hang);
    let closer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closer.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        while let Ok((mut stream, _)) = closer.accept() {
            use std::io::Read as _;
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).unwrap_or(0) == 0 {
                return;
            }
        }
    });
    let mut bench = Bench::new(|_, _| endpoint(&format!("wss://{address}/v1")));
    bench.start();
    let told = bench.wait_failed("reset");
    assert!(told.starts_with("securing: "), "{told}");
    drop(bench);
    drop(std::net::TcpStream::connect(address));
    thread.join().unwrap();

    let mut bench = Bench::new(|_, _| endpoint(&format!("wss://{}/v1", proxy.address())));
    bench.adjust(|config| config.upstream.handshake_timeout_ms = 500);
    bench.start();
    // On a busy machine the lookup may take that long, too.
    let status = bench.agent.wait_status("silence after the dial is a timeout", |status| {
        status["link"]["last_failure"]["class"] == "timeout" && detail(status).starts_with("securing: ")
    });
    assert_eq!((agent::sessions(&status), &status["link"]["certificate"]), (0, &serde_json::Value::Null));
}
