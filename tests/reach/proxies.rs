//! HTTP CONNECT: a proxy that people run, and one of our own that does what proxies do on bad days.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};

use backhaul::config::Endpoint;

use crate::bench::{Bench, detail, endpoint, replace, secret};
use crate::support::agent;
use crate::support::authority::Authority;
use crate::support::fault_server::FaultServer;
use crate::support::gate::{Gate, Reply};
use crate::support::producer::{Handed, Producer};
use crate::support::receiver::Receiver;
use crate::support::{DEADLINE, TempDir, free_port, mortal, wait_until};

/// Debian's tinyproxy, killed when dropped.
struct Tinyproxy {
    port: u16,
    log: std::path::PathBuf,
    child: Child,
}

impl Tinyproxy {
    fn new(dir: &Path, basic: Option<(&str, &str)>) -> Self {
        let port = free_port();
        let (config, log) = (dir.join("tinyproxy.conf"), dir.join("tinyproxy.log"));
        let basic = basic.map(|(user, password)| format!("BasicAuth {user} {password}\n")).unwrap_or_default();
        let text = format!("Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nTimeout 600\nMaxClients 50\n{basic}");
        fs::write(&config, text).unwrap();
        let mut command = mortal(Path::new("tinyproxy"));
        let out = File::create(&log).unwrap();
        command.arg("-d").arg("-c").arg(&config);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = command.spawn().expect("tinyproxy is installed");
        let proxy = Self { port, log, child };
        wait_until(DEADLINE, "tinyproxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        proxy
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ended_already = self.child.wait();
    }
}

#[test]
fn tinyproxy_leads_to_the_upstream() {
    let dir = TempDir::new("tinyproxy");
    let proxy = Tinyproxy::new(&dir, None);
    let mut bench = Bench::new(|server, _| Endpoint { proxy: proxy.url(), ..endpoint(&server.url()) });
    bench.start();
    bench.assert_delivers();
    let place = format!("127.0.0.1:{}", bench.server.port());
    assert!(proxy.log().contains(&format!("CONNECT {place}")), "{}", proxy.log());
}

#[test]
fn tinyproxys_407_is_a_class_of_its_own_and_ends_with_other_credentials() {
    let dir = TempDir::new("tinyproxy");
    let proxy = Tinyproxy::new(&dir, Some(("gateway", "sesame")));
    let mut bench = Bench::new(|server, dir| Endpoint {
        proxy: proxy.url(),
        proxy_basic_file: secret(dir, "proxy", "gateway:simsala\n"),
        ..endpoint(&server.url())
    });
    bench.wait_long_after_refusals();
    bench.start();
    // To a wrong password it answers 401.
    let detail = bench.wait_failed("proxy_credentials");
    assert!(["proxy: http 401", "proxy: http 407"].contains(&detail.as_str()), "{detail}");
    assert_eq!(bench.server.attempts(), 0);
    replace(&bench.dir.join("proxy"), "gateway:sesame\n");
    bench.assert_delivers();
    bench.assert_secret(&["sesame", "simsala", "Z2F0ZXdheTpzZXNhbWU=", "Proxy-Authorization"]);
}

#[test]
fn tls_in_the_tunnel_verifies_the_upstream_and_not_the_proxy() {
    let dir = TempDir::new("tinyproxy");
    let proxy = Tinyproxy::new(&dir, None);
    let authority = Authority::new(&dir, "ours");
    let mut receiver = Receiver::new(&dir);
    let port = receiver.address().rsplit(':').next().unwrap().to_owned();
    let mut config = agent::quick(&dir, &format!("wss://localhost:{port}/v1"));
    config.upstream.handshake_timeout_ms = 5000;
    config.upstream.endpoints[0].ca_file = Some(authority.path("ca.pem"));
    config.upstream.endpoints[0].proxy = proxy.url();
    let mut agent = agent::Agent::new(&dir, &config);
    let (certificate, key) = authority.issue("other", "DNS:other.example");
    receiver.set_tls(&certificate, &key);
    receiver.start();
    receiver.wait_listening();
    agent.start();
    agent.wait_listening();
    let status = agent.wait_failures("certificate", 2);
    assert_eq!((agent::sessions(&status), receiver.count()), (0, 0), "nothing is said to a stranger");
    receiver.kill9();
    let (certificate, key) = authority.issue("right", "DNS:localhost");
    receiver.set_tls(&certificate, &key);
    receiver.start();
    receiver.wait_listening();
    let mut producer = Producer::new(agent.socket(), None);
    assert_eq!(producer.put("reach", "record"), Handed::Answered);
    receiver.wait_acked([&producer]);
}

/// An answer of the proxy; what comes of it: class, and what its detail begins with.
fn rows() -> Vec<(Reply, &'static str, &'static str)> {
    vec![
        (Reply::http(407, "Proxy-Authenticate: Basic\r\n"), "proxy_credentials", "proxy: http 407"),
        (Reply::http(403, ""), "wrong_place", "proxy: http 403"),
        (Reply::http(404, ""), "wrong_place", "proxy: http 404"),
        (Reply::http(302, "Location: http://portal.example/\r\n"), "closed", "proxy: http 302"),
        (Reply::http(400, ""), "closed", "proxy: http 400"),
        (Reply::http(500, ""), "closed", "proxy: http 500"),
        (Reply::http(429, ""), "overload", "proxy: http 429"),
        (Reply::http(503, ""), "overload", "proxy: http 503"),
        (Reply::http(502, ""), "unreachable", "proxy: http 502"),
        (Reply::http(504, ""), "unreachable", "proxy: http 504"),
        (Reply::Bytes(Vec::new()), "reset", "proxy: closed without an answer"),
        (Reply::Bytes(b"HTTP/1.1 200 OK\r\nVia: x".to_vec()), "reset", "proxy: closed without an answer"),
        (Reply::Bytes(b"220 mail.example.com ESMTP\r\n".to_vec()), "protocol", "proxy: the answer is no HTTP"),
        (Reply::Bytes(b"HTTP/1.1 two hundred\r\n\r\n".to_vec()), "protocol", "proxy: the answer is no HTTP"),
        (Reply::Endless("HTTP/1.1 200 OK\r\nX: "), "protocol", "proxy: the answer"),
        (Reply::Endless("HTTP/1.1 200"), "protocol", "proxy: the answer's head has no end"),
        (Reply::Hang, "timeout", "dialing: "),
    ]
}

#[test]
fn whatever_a_proxy_answers_has_its_class_and_is_overcome() {
    let proxy = Gate::new(|_| Reply::Hang);
    let mut bench =
        Bench::new(|server, _| Endpoint { proxy: format!("http://{}", proxy.address()), ..endpoint(&server.url()) });
    bench.adjust(|config| config.upstream.handshake_timeout_ms = 500);
    bench.start();
    for (reply, class, expected) in rows() {
        let told = reply.clone();
        proxy.set(move |_| told.clone());
        let status = bench.agent.wait_status(&format!("{reply:?} is {class}"), |status| {
            status["link"]["last_failure"]["class"] == class && detail(status).starts_with(expected)
        });
        assert_eq!(agent::sessions(&status), 0);
    }
    assert_eq!(bench.server.attempts(), 0, "nothing went past the proxy");
    let to = bench.server.url().replace("ws://", "").replace("/v1", "");
    let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: backhaul/");
    assert!(proxy.heads().iter().all(|seen| seen.starts_with(&head)), "{:?}", proxy.heads());
    assert!(proxy.heads().iter().all(|seen| !seen.contains("Authorization")));
    proxy.set(move |_| Reply::tunnel(&to));
    bench.assert_delivers();
}

#[test]
fn retry_after_of_a_proxy_is_a_lower_bound() {
    let proxy = Gate::new(|_| Reply::http(503, "Retry-After: 1\r\nBackhaul-Spread-Ms: 0\r\n"));
    let mut bench =
        Bench::new(|server, _| Endpoint { proxy: format!("http://{}", proxy.address()), ..endpoint(&server.url()) });
    bench.start();
    wait_until(DEADLINE, "three attempts", || proxy.count() >= 3);
    for pair in proxy.times().windows(2) {
        assert!((pair[1] - pair[0]).as_millis() >= 990, "asked for 1 s");
    }
}

/// A proxy that leads every name to this port of ours.
fn open_proxy(port: u16) -> Gate {
    Gate::new(move |_| Reply::tunnel(&format!("127.0.0.1:{port}")))
}

#[test]
fn the_environment_names_the_proxy_which_resolves_the_name() {
    for (variable, other) in [("http_proxy", "https_proxy"), ("all_proxy", "HTTPS_PROXY")] {
        let mut bench = Bench::new(|_, _| Endpoint { insecure: true, ..endpoint("ws://upstream.invalid:81/v1") });
        let proxy = open_proxy(bench.server.port());
        bench.agent.set_env(variable, &format!("http://me:open%3asesame@{}", proxy.address()));
        bench.agent.set_env(other, "http://127.0.0.1:1");
        bench.start();
        bench.assert_delivers();
        let head = &proxy.heads()[0];
        assert!(head.starts_with("CONNECT upstream.invalid:81 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Proxy-Authorization: Basic bWU6b3BlbjpzZXNhbWU=\r\n"), "{head}");
        bench.assert_secret(&["sesame", "bWU6b3BlbjpzZXNhbWU="]);
    }
}

#[test]
fn no_proxy_and_none_lead_past_the_proxy() {
    let proxy = Gate::new(|_| Reply::http(502, ""));
    let url = format!("http://{}", proxy.address());
    // In the configuration.
    let mut bench = Bench::new(|server, _| Endpoint { proxy: url.clone(), ..endpoint(&server.url()) });
    bench.adjust(|config| config.upstream.no_proxy = vec!["127.0.0.0/8".into()]);
    bench.start();
    bench.assert_delivers();
    // A proxy of the environment is not for what stays on this machine.
    let mut bench = Bench::new(|server, _| endpoint(&server.url()));
    bench.agent.set_env("all_proxy", &url);
    bench.start();
    bench.assert_delivers();
    // A name that does not resolve shows which way it went.
    for (proxy_key, variable) in [("", "upstream.invalid"), ("", "*"), ("none", "")] {
        let mut bench = Bench::new(|_, _| Endpoint {
            insecure: true,
            proxy: proxy_key.into(),
            ..endpoint("ws://upstream.invalid:81/v1")
        });
        bench.agent.set_env("http_proxy", &url);
        bench.agent.set_env("no_proxy", variable);
        bench.start();
        bench.agent.wait_status("the name was looked up here", |status| {
            agent::failures(status, "name") + agent::failures(status, "timeout") >= 1
        });
    }
    assert_eq!(proxy.count(), 0);
}

#[test]
fn an_environment_that_cannot_be_obeyed_is_told_and_not_passed_by() {
    let mut bench = Bench::new(|_, _| Endpoint { insecure: true, ..endpoint("ws://upstream.invalid:81/v1") });
    bench.agent.set_env("all_proxy", "socks5://me:sesame@127.0.0.1:1");
    bench.start();
    let detail = bench.wait_failed("wrong_place");
    assert!(detail.starts_with("proxy: all_proxy of the environment is socks5://"), "{detail}");
    bench.assert_secret(&["sesame"]);
}

#[test]
fn a_preferred_endpoint_behind_a_proxy_is_looked_at_through_it() {
    let proxy = Gate::new(|_| Reply::http(502, ""));
    let reserve = FaultServer::new();
    let mut bench =
        Bench::new(|server, _| Endpoint { proxy: format!("http://{}", proxy.address()), ..endpoint(&server.url()) });
    bench.adjust(|config| {
        config.upstream.endpoints.push(endpoint(&reserve.url()));
        config.upstream.reconnect.failback_ms = 200;
        config.upstream.reconnect.slow_ms_max = 400;
    });
    bench.start();
    let at = |status: &serde_json::Value, url: &str| {
        agent::state(status) == "up" && status["link"]["endpoint"].as_str() == Some(url)
    };
    let status = bench.agent.wait_status("it is up at the reserve", |status| at(status, &reserve.url()));
    // The proxy lives, and what is behind it does not: looks go on, the session stays.
    let (sessions, looks) = (agent::sessions(&status), proxy.count());
    wait_until(DEADLINE, "it is looked at", || proxy.count() >= looks + 4);
    let status = bench.agent.wait_up();
    assert!(at(&status, &reserve.url()) && agent::sessions(&status) == sessions, "{status:#}");
    assert_eq!(bench.server.attempts(), 0, "nothing went past the proxy");
    let to = format!("127.0.0.1:{}", bench.server.port());
    proxy.set(move |_| Reply::tunnel(&to));
    let status = bench.agent.wait_status("it is back", |status| at(status, &bench.server.url()));
    assert_eq!(agent::failures(&status, "failback"), 1, "{status:#}");
    let head = format!("CONNECT 127.0.0.1:{} HTTP/1.1\r\n", bench.server.port());
    assert!(proxy.heads().iter().all(|seen| seen.starts_with(&head)), "{:?}", proxy.heads());
}
