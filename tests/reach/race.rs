//! Addresses that do not answer, beside one that does (RFC 8305).

use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, process};

use socket2::{Domain, Socket, Type};

use crate::bench::{Bench, endpoint};
use crate::support::agent;
use crate::support::not_run;

/// An address where SYNs go unanswered: a listener whose backlog is full.
struct BlackHole {
    _listener: Socket,
    _filling: Vec<Socket>,
}

impl BlackHole {
    fn new(address: SocketAddr) -> Self {
        let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let mut filling = Vec::new();
        // Until a connect no longer comes through.
        while TcpStream::connect_timeout(&address, Duration::from_millis(300))
            .map(|stream| filling.push(stream.into()))
            .is_ok()
        {
            assert!(filling.len() < 100, "the backlog has no end");
        }
        Self { _listener: listener, _filling: filling }
    }
}

#[test]
fn an_address_that_swallows_everything_does_not_hold_up_the_next_one() {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let can_mount = process::Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success());
    let has_v6 = fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| text.contains(" lo\n"));
    if !can_mount || !has_v6 {
        let why = format!("it takes the right to mount ({can_mount}) and IPv6 on loopback ({has_v6})");
        not_run("an_address_that_swallows_everything_does_not_hold_up_the_next_one", &why);
        return;
    }
    let mut bench = Bench::new(|server, _| endpoint(&format!("ws://both.test:{}/v1", server.port())));
    let port = bench.server.port();
    let _hole = BlackHole::new(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port));
    bench.adjust(|config| {
        config.upstream.handshake_timeout_ms = TIMEOUT.as_millis().try_into().unwrap();
        config.upstream.endpoints[0].insecure = true;
    });
    let hosts = bench.dir.join("hosts");
    // IPv6 goes first (RFC 6724 § 2.1).
    fs::write(&hosts, "::1 both.test\n127.0.0.1 both.test\n").unwrap();
    bench.agent.run_through(&with_hosts(&hosts));
    let begin = Instant::now();
    bench.start();
    let status = bench.agent.wait_up();
    assert!(begin.elapsed() < TIMEOUT / 3, "an address waited for its share of the time: {:?}", begin.elapsed());
    assert_eq!((&status["link"]["attempts"], agent::failures(&status, "timeout")), (&1.into(), 0));
    bench.assert_delivers();
    let log = bench.agent.log();
    let dialed: Vec<_> = log.lines().filter(|line| line.contains("dialing address=")).collect();
    assert!(
        dialed[0].contains(&format!("[::1]:{port}")) && dialed[1].contains(&format!("127.0.0.1:{port}")),
        "{dialed:?}"
    );
    assert_eq!((dialed.len(), bench.server.attempts()), (2, 1), "one session");
}

/// A command that runs another one with this file as its `/etc/hosts`.
fn with_hosts(hosts: &Path) -> Vec<String> {
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    ["unshare", "-m", "sh", "-c", script, &hosts.display().to_string()].map(str::to_owned).to_vec()
}
