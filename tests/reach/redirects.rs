//! Redirects: one, to a configured endpoint, with that endpoint's credentials.

use backhaul::config::Endpoint;

use crate::bench::{Bench, endpoint, secret};
use crate::support::agent;
use crate::support::gate::{Gate, Reply};
use crate::support::{DEADLINE, wait_until};

fn url(gate: &Gate) -> String {
    format!("ws://{}/v1", gate.address())
}

/// Two endpoints behind gates: the first redirects, the second leads to the server.
fn two(location: impl Fn(&Gate, &Gate) -> String) -> (Gate, Gate, Bench) {
    let (first, second) = (Gate::new(|_| Reply::Hang), Gate::new(|_| Reply::Hang));
    let mut bench =
        Bench::new(|_, dir| Endpoint { token_file: secret(dir, "a", "token-a\n"), ..endpoint(&url(&first)) });
    bench.adjust(|config| {
        let token_file = secret(&bench_dir(config), "b", "token-b\n");
        config.upstream.endpoints.push(Endpoint { token_file, ..endpoint(&url(&second)) });
    });
    let header = format!("Location: {}\r\n", location(&first, &second));
    first.set(move |_| Reply::http(307, &header));
    let to = format!("127.0.0.1:{}", bench.server.port());
    second.set(move |_| Reply::Forward(to.clone()));
    (first, second, bench)
}

fn bench_dir(config: &backhaul::config::Config) -> std::path::PathBuf {
    config.local.socket.parent().unwrap().to_owned()
}

#[test]
fn one_to_a_configured_endpoint_is_followed_in_the_same_attempt() {
    let (first, second, mut bench) = two(|_, second| format!("http://{}/elsewhere?x=1", second.address()));
    bench.start();
    bench.assert_delivers();
    let (asked, followed) = (first.heads(), second.heads());
    assert_eq!((asked.len(), followed.len()), (1, 1));
    assert!(asked[0].starts_with("GET /v1 "), "{}", asked[0]);
    assert!(followed[0].starts_with("GET /elsewhere?x=1 "), "{}", followed[0]);
    assert!(asked[0].contains("Bearer token-a") && !asked[0].contains("token-b"));
    assert!(followed[0].contains("Bearer token-b") && !followed[0].contains("token-a"), "each host its own");
    let status = bench.agent.wait_up();
    assert_eq!(status["link"]["attempts"], 1);
    bench.assert_secret(&["token-a", "token-b"]);
}

#[test]
fn another_path_of_the_same_host_is_followed() {
    let gate = Gate::new(|_| Reply::Hang);
    let mut bench = Bench::new(|_, _| endpoint(&url(&gate)));
    let to = format!("127.0.0.1:{}", bench.server.port());
    gate.set(move |head| match head.starts_with("GET /v1 ") {
        true => Reply::http(308, "Location: /v2\r\n"),
        false => Reply::Forward(to.clone()),
    });
    bench.start();
    bench.assert_delivers();
    assert!(gate.heads()[1].starts_with("GET /v2 "));
    // The next attempt begins where the configuration says.
    bench.server.kick();
    bench.assert_delivers();
    let heads = gate.heads();
    assert!(heads[2].starts_with("GET /v1 ") && heads[3].starts_with("GET /v2 "), "{heads:?}");
}

#[test]
fn one_to_a_stranger_is_the_wrong_place_and_hears_nothing() {
    let stranger = Gate::new(|_| Reply::Hang);
    let gate = Gate::new(|_| Reply::Hang);
    let place = stranger.address();
    let mut bench =
        Bench::new(|_, dir| Endpoint { token_file: secret(dir, "a", "token-a\n"), ..endpoint(&url(&gate)) });
    bench.start();
    for (location, expected) in [
        (format!("http://{place}/v1?secret=word"), format!("upgrading: http 302 to {place}, which is")),
        (format!("http://user:word@{}/v1", gate.address()), "upgrading: http 302 to a location that is none".into()),
        ("ftp://x/".into(), "upgrading: http 302 to a location that is none".into()),
    ] {
        let header = format!("Location: {location}\r\n");
        gate.set(move |_| Reply::http(302, &header));
        bench.agent.wait_status(&expected, |status| {
            status["link"]["last_failure"]["class"] == "wrong_place"
                && status["link"]["last_failure"]["detail"].as_str().is_some_and(|detail| detail.starts_with(&expected))
        });
    }
    gate.set(|_| Reply::http(302, ""));
    bench.agent.wait_status("a redirect to nowhere", |status| {
        status["link"]["last_failure"]["detail"].as_str() == Some("upgrading: http 302")
    });
    assert_eq!(stranger.count(), 0);
    bench.assert_secret(&["word", "token-a"]);
}

#[test]
fn a_loop_is_followed_once_an_attempt() {
    let (first, second, mut bench) = two(|_, second| url(second).replace("ws:", "http:"));
    let back = format!("Location: http://{}/v1\r\n", first.address());
    second.set(move |_| Reply::http(302, &back));
    bench.start();
    wait_until(DEADLINE, "four attempts", || {
        bench.agent.status().is_some_and(|status| agent::failures(&status, "wrong_place") >= 4)
    });
    let asked = first.count() + second.count();
    let status = bench.agent.status().unwrap();
    let attempts = usize::try_from(status["link"]["attempts"].as_u64().unwrap()).unwrap();
    assert!(asked <= 2 * (attempts + 1), "{asked} requests in {attempts} attempts");
    assert_eq!(bench.server.attempts(), 0);
}
