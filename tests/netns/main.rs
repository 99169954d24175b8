//! The agent in network namespaces of its own, over interfaces that really lose their carrier, their routes and their
//! addresses: what it makes of local causes, of black holes and of a resolver that hangs. Needs root, iproute2 and
//! nftables; says `NOT RUN` without.
#![cfg(feature = "receiver")]

mod dns;
mod lab;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use backhaul::config::{Config, Endpoint, Heartbeat};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;
use socket2::SockRef;

use lab::Lab;
use support::agent::{failures, sessions, state};
use support::producer::Producer;
use support::{DEADLINE, wait_until};

/// Longer than any test here takes: what comes back within one was not waiting for this.
const HOUR_MS: u64 = 3_600_000;

/// A link that, left to its timers, comes back in an hour.
fn patient(config: &mut Config) {
    let reconnect = &mut config.upstream.reconnect;
    (reconnect.backoff_ms_min, reconnect.backoff_ms_max, reconnect.spread_ms) = (HOUR_MS, HOUR_MS, HOUR_MS);
    (reconnect.slow_ms_min, reconnect.slow_ms_max) = (HOUR_MS, HOUR_MS);
    // What the kernel says is known long before.
    config.upstream.heartbeat.timeout_ms = 1000;
}

fn attempts(status: &Value) -> u64 {
    status["link"]["attempts"].as_u64().expect("attempts are counted")
}

#[test]
fn a_carrier_that_comes_back_brings_the_link_back_at_once() {
    if !lab::possible("a_carrier_that_comes_back_brings_the_link_back_at_once") {
        return;
    }
    let mut lab = Lab::new("carrier", patient);
    lab.agent.start();
    let before = lab.agent.wait_up();
    for round in 1..=3 {
        // Else it would be a session that flaps.
        lab.wait_stable();
        lab.world.run("ip link set w0 down");
        lab.agent.wait_status("the link is gone", |status| state(status) != "up");
        // Nothing to wait for: that it does not try is seen by waiting.
        thread::sleep(Duration::from_millis(1500));
        let gone = lab.agent.status().expect("the agent answers");
        assert_eq!(attempts(&gone), attempts(&before) + round - 1, "no attempt without a carrier: {gone:#}");
        lab.world.run("ip link set w0 up");
        let back = lab.agent.wait_up();
        assert_eq!(attempts(&back), attempts(&before) + round, "the first attempt is the one: {back:#}");
        assert_eq!(sessions(&back), sessions(&before) + round);
        assert_eq!(failures(&back, "local"), round, "{back:#}");
        let wait_ms = back["link"]["backoff_ms"].as_u64().expect("it waited");
        assert!(wait_ms < HOUR_MS / 2, "no backoff was drawn: {back:#}");
    }
}

#[test]
fn a_route_that_comes_back_brings_the_link_back_at_once() {
    if !lab::possible("a_route_that_comes_back_brings_the_link_back_at_once") {
        return;
    }
    let mut lab = Lab::new("route", patient);
    lab.agent.start();
    let before = lab.agent.wait_up();
    lab.wait_stable();
    lab.gateway.run("ip route del default");
    lab.agent.wait_status("the link is gone", |status| state(status) != "up");
    thread::sleep(Duration::from_millis(1500));
    let gone = lab.agent.status().expect("the agent answers");
    assert_eq!(attempts(&gone), attempts(&before), "no attempt without a route: {gone:#}");
    lab.gateway.run("ip route add default via 10.0.1.1");
    let back = lab.agent.wait_up();
    assert_eq!(attempts(&back), attempts(&before) + 1, "{back:#}");
}

// FoldingAtHome/fah-client-bastet#223: started while the network was down, a resolver was given up for ever.
#[test]
fn started_without_a_network_it_waits_for_one_and_burns_no_attempt() {
    if !lab::possible("started_without_a_network_it_waits_for_one_and_burns_no_attempt") {
        return;
    }
    let mut lab = Lab::new("down", |config| {
        patient(config);
        config.upstream.attempts_max = 2;
    });
    lab.gateway.run("ip link set eth0 down");
    lab.agent.start();
    lab.agent.wait_status("the link waits", |status| state(status) == "waiting");
    thread::sleep(Duration::from_millis(1500));
    let waiting = lab.agent.status().expect("the agent answers");
    assert_eq!(attempts(&waiting), 0, "{waiting:#}");
    lab.gateway.run("ip link set eth0 up; ip route add default via 10.0.1.1");
    let up = lab.agent.wait_up();
    assert_eq!(attempts(&up), 1, "{up:#}");
}

#[test]
fn an_island_without_a_default_route_reaches_its_own_server() {
    if !lab::possible("an_island_without_a_default_route_reaches_its_own_server") {
        return;
    }
    let mut lab = Lab::new("island", |config| {
        patient(config);
        let url = config.upstream.endpoints[0].url.replace(lab::UPSTREAM, "10.0.1.1");
        config.upstream.endpoints[0].url = url;
    });
    lab.gateway.run("ip route del default; ip -6 route del default");
    lab.agent.start();
    lab.agent.wait_up();
}

// gbaranski/ezsockets#104: the address changed, and a dead connection was held for good.
#[test]
fn an_address_that_changes_is_noticed_at_once() {
    if !lab::possible("an_address_that_changes_is_noticed_at_once") {
        return;
    }
    let mut lab = Lab::new("address", |config| {
        // Left to itself it pings in an hour; what is lost in a ping is noticed soon.
        config.upstream.heartbeat.interval_ms = HOUR_MS;
        config.upstream.heartbeat.timeout_ms = 500;
    });
    lab.agent.start();
    let before = lab.agent.wait_up();
    lab.gateway.run(
        "ip addr add 10.0.1.3/24 dev eth0; ip addr del 10.0.1.2/24 dev eth0
        ip addr add 10.0.1.3/24 dev eth0 2>/dev/null || true; ip route replace default via 10.0.1.1",
    );
    let back = lab
        .agent
        .wait_status("another session", |status| state(status) == "up" && sessions(status) > sessions(&before));
    assert_eq!(failures(&back, "silent") + failures(&back, "local"), 1, "by its own name: {back:#}");
}

// warmcat/libwebsockets#3015, #2871: an address was deleted, and good connections were closed.
#[test]
fn an_address_that_is_of_no_concern_closes_nothing() {
    if !lab::possible("an_address_that_is_of_no_concern_closes_nothing") {
        return;
    }
    let mut lab = Lab::new("unrelated", |config| {
        config.upstream.heartbeat.interval_ms = HOUR_MS;
        config.upstream.heartbeat.timeout_ms = 500;
    });
    lab.gateway.cable("wwan0", &["10.0.2.2/24"], &lab.world, "w1", &["10.0.2.1/24"]);
    lab.gateway.run("ip addr add 10.0.1.77/24 dev eth0");
    lab.agent.start();
    let before = lab.agent.wait_up();
    lab.gateway.run("ip addr del 10.0.1.77/24 dev eth0; ip addr del 10.0.2.2/24 dev wwan0; ip link set wwan0 down");
    // A change of the route in use, to and fro: worth a ping, and the ping is answered.
    lab.gateway.run("ip route add 10.9.0.1/32 via 10.0.1.1; ip route del 10.9.0.1/32");
    thread::sleep(Duration::from_secs(2));
    let after = lab.agent.status().expect("the agent answers");
    assert_eq!((state(&after), sessions(&after)), ("up", sessions(&before)), "{after:#}");
    let mut producer = Producer::new(lab.agent.socket(), None);
    producer.put("t", "still there");
    lab.receiver.wait_acked([&producer]);
    assert_eq!(sessions(&lab.agent.wait_drained()), sessions(&before));
}

#[test]
fn a_black_hole_is_noticed_by_the_heartbeat() {
    if !lab::possible("a_black_hole_is_noticed_by_the_heartbeat") {
        return;
    }
    let mut lab = Lab::new("hole", |_| ());
    lab.agent.start();
    lab.agent.wait_up();
    lab.world.run(
        "nft add table inet hole
        nft add chain inet hole in '{ type filter hook prerouting priority 0; }'
        nft add rule inet hole in iifname w0 drop",
    );
    let gone = lab.agent.wait_failures("silent", 1);
    assert_eq!(failures(&gone, "local"), 0, "{gone:#}");
    // Whoever dials into the hole hears nothing either.
    lab.agent.wait_failures("timeout", 2);
    lab.world.run("nft delete table inet hole");
    lab.agent.wait_up();
}

// The system gives a connection up when bytes are not acknowledged for as long as the heartbeat would take: a ping that
// never leaves the send buffer is no sign of anything.
#[test]
fn the_system_gives_up_on_bytes_that_nobody_acknowledges() {
    if !lab::possible("the_system_gives_up_on_bytes_that_nobody_acknowledges") {
        return;
    }
    let mut lab = Lab::new("timeout", |config| {
        let heartbeat = &mut config.upstream.heartbeat;
        (heartbeat.interval_ms, heartbeat.timeout_ms, heartbeat.misses_max) = (20_000, 3_000, 2);
    });
    lab.agent.start();
    let up = lab.agent.wait_up();
    assert_eq!(user_timeouts(&up), [Duration::from_millis(26_000)]);
    // A reload that changes the heartbeat reaches the session that lives; more than the kernel takes is the most it takes.
    let heartbeat = lab.config.upstream.heartbeat;
    for (misses_max, expected_ms) in [(4, 32_000), (1000, i32::MAX as u64)] {
        let timeout_ms = if misses_max == 1000 { 10_000_000 } else { heartbeat.timeout_ms };
        lab.config.upstream.heartbeat = Heartbeat { misses_max, timeout_ms, ..heartbeat };
        lab.agent.configure(&lab.config);
        lab.agent.hup();
        wait_until(DEADLINE, "the socket has it", || user_timeouts(&up) == [Duration::from_millis(expected_ms)]);
    }
    assert_eq!(sessions(&lab.agent.wait_up()), 1);
}

/// TCP_USER_TIMEOUT of each TCP connection of this agent.
fn user_timeouts(status: &Value) -> Vec<Duration> {
    let id = status["agent"]["pid"].as_u64().expect("it has one");
    let pid = Pid::from_raw(i32::try_from(id).expect("a process id")).expect("not 0");
    let process = pidfd_open(pid, PidfdFlags::empty()).expect("our own child");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{id}/fd")).expect("root may look") {
        let number = entry.expect("a descriptor").file_name();
        let number = number.to_str().and_then(|name| name.parse().ok()).expect("descriptors are numbers");
        let Ok(descriptor) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { continue };
        let socket = SockRef::from(&descriptor);
        // Sockets of other kinds have no such option, or no such peer.
        let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
        seen.extend(peer.and_then(|_| socket.tcp_user_timeout().ok()).flatten());
    }
    seen
}

// A link of 2 kB/s: what is sent in one go must not take longer than the far end is waited for.
#[test]
fn a_link_of_two_kilobytes_a_second_drains_and_does_not_kill_itself() {
    if !lab::possible("a_link_of_two_kilobytes_a_second_drains_and_does_not_kill_itself") {
        return;
    }
    let mut lab = Lab::new("slow", |config| {
        let heartbeat = &mut config.upstream.heartbeat;
        (heartbeat.interval_ms, heartbeat.timeout_ms, heartbeat.misses_max) = (2_000, 3_000, 3);
        // All of it at once would take longer.
        config.upstream.ack_timeout_ms = 10_000;
    });
    lab.gateway.run("tc qdisc add dev eth0 root tbf rate 16kbit burst 2000 limit 4000");
    lab.agent.start();
    lab.agent.wait_listening();
    let mut producer = Producer::new(lab.agent.socket(), None);
    for number in 0..60 {
        producer.put("t", format!("{number:0>400}"));
    }
    let drained = lab.agent.wait_drained();
    lab.receiver.wait_acked([&producer]);
    assert_eq!(lab.receiver.count(), 60);
    assert_eq!(sessions(&drained), 1, "{drained:#}");
}

// launchdarkly/python-server-sdk#493: a black-holed resolver blocked shutdown for days.
#[test]
fn a_resolver_that_hangs_costs_attempts_and_neither_the_stop_nor_the_return() {
    if !lab::possible("a_resolver_that_hangs_costs_attempts_and_neither_the_stop_nor_the_return") {
        return;
    }
    let mut lab = Lab::new("resolver", |config| {
        let url = config.upstream.endpoints[0].url.replace(lab::UPSTREAM, "upstream.test");
        config.upstream.endpoints[0].url = url;
    });
    lab.gateway.replace(&lab.dir, "/etc/resolv.conf", "nameserver 10.0.1.1\noptions timeout:2 attempts:2\n");
    let socket = lab.world.inside(|| UdpSocket::bind("10.0.1.1:53").expect("the world has no resolver yet"));
    lab.agent.start();
    // It reads no question, and answers none.
    let status =
        lab.agent.wait_status("attempts fail", |status| failures(status, "timeout") + failures(status, "name") >= 6);
    assert!(failures(&status, "timeout") >= 1, "nobody waits for as long as the resolver does: {status:#}");
    let left = lab.agent.term(Duration::from_secs(2)).expect("it leaves within 2 s, whatever hangs");
    assert!(left.success(), "{left}");
    lab.agent.start();
    lab.agent.wait_status("attempts fail", |status| failures(status, "timeout") + failures(status, "name") >= 1);
    let _answers = dns::serve(socket, lab::UPSTREAM);
    lab.agent.wait_up();
}

#[test]
fn a_black_hole_in_one_family_does_not_hide_the_other() {
    if !lab::possible("a_black_hole_in_one_family_does_not_hide_the_other") {
        return;
    }
    let mut lab = Lab::new("families", |config| {
        let url = config.upstream.endpoints[0].url.replace(lab::UPSTREAM, "upstream.test");
        config.upstream.endpoints[0].url = url;
        // Whoever waited for the first address to the end would wait for longer than this test does.
        config.upstream.handshake_timeout_ms = HOUR_MS;
    });
    // The router is known, so that the first dial does not wait for it.
    wait_until(DEADLINE, "the router answers over IPv6", || {
        lab.gateway.inside(|| {
            let socket = UdpSocket::bind("[::]:0").expect("IPv6 is there");
            let _no_route_yet = socket.send_to(b"hello", (lab::UPSTREAM_V6, 9));
        });
        lab.gateway.run("ip -6 neigh show fd01::1").contains("lladdr")
    });
    let hosts = format!("{} upstream.test\n{} upstream.test\n", lab::UPSTREAM_V6, lab::UPSTREAM);
    lab.gateway.replace(&lab.dir, "/etc/hosts", &hosts);
    lab.world.run(
        "nft add table ip6 hole
        nft add chain ip6 hole in '{ type filter hook prerouting priority 0; }'
        nft add rule ip6 hole in tcp dport 1024-65535 counter drop",
    );
    lab.agent.start();
    let up = lab.agent.wait_up();
    assert_eq!((attempts(&up), sessions(&up)), (1, 1), "{up:#}");
    let counted = lab.world.run("nft list table ip6 hole");
    assert!(!counted.contains("packets 0 "), "IPv6 was never tried: {counted}");
}

#[test]
fn the_reserve_takes_over_when_the_preferred_interface_is_gone_and_gives_back() {
    if !lab::possible("the_reserve_takes_over_when_the_preferred_interface_is_gone_and_gives_back") {
        return;
    }
    let mut lab = Lab::new("reserve", |config| {
        let preferred = config.upstream.endpoints[0].clone();
        // The same host by another name of it: each endpoint has a URL of its own.
        let url = preferred.url.replace("/v1", "/v1/reserve");
        let reserve = Endpoint { url, interface: "wwan0".into(), ..preferred.clone() };
        config.upstream.endpoints = vec![Endpoint { interface: "eth0".into(), ..preferred }, reserve];
        config.upstream.reconnect.failback_ms = 300;
    });
    lab.gateway.cable("wwan0", &["10.0.2.2/24"], &lab.world, "w1", &["10.0.2.1/24"]);
    lab.gateway.run("ip route add default via 10.0.2.1 metric 200");
    lab.agent.start();
    let through = |status: &Value, end: &str| {
        state(status) == "up" && status["link"]["endpoint"].as_str().is_some_and(|url| url.ends_with(end))
    };
    lab.agent.wait_status("up by eth0", |status| through(status, "/v1"));
    lab.world.run("ip link set w0 down");
    lab.agent.wait_status("up by wwan0", |status| through(status, "/reserve"));
    lab.world.run("ip link set w0 up");
    let back = lab.agent.wait_status("back on eth0", |status| through(status, "/v1"));
    assert_eq!(failures(&back, "failback"), 1, "{back:#}");
}
