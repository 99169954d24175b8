//! A session: its pulse, its age, changes in the network, takeovers.

use super::*;

#[test]
fn a_lost_heartbeat_has_its_own_name() {
    // gbaranski/ezsockets#104: it was reported as a normal close.
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    let from = rig.now;
    for miss in 0..3 {
        let (_, outputs) = loop {
            let (timer, outputs) = rig.next();
            if timer != Timer::Stable {
                break (timer, outputs);
            }
        };
        // Suspect from the first miss on, and that shows.
        assert_eq!(rig.link.view().suspect, miss > 0);
        let expected: &[Output] = if miss > 0 { &[Output::Ping, Output::Changed] } else { &[Output::Ping] };
        assert_eq!(outputs, expected, "miss {miss}");
        rig.input(Input::PingFlushed);
    }
    let (timer, outputs) = rig.next();
    assert_eq!((timer, rig.now.since(from)), (Timer::Pong, s(90)));
    assert_eq!(outputs[0], Output::Drop { close: None });
    assert_eq!(rig.link.last_class(), Some(Class::Silent));
}

#[test]
fn the_pongs_time_starts_at_the_flush() {
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    rig.input(Input::Network { usable: u16::MAX, changed: true });
    rig.now = rig.now + s(50); // a backlog goes first
    rig.input(Input::PingFlushed);
    assert_eq!(rig.link.poll_timeout(), Some((rig.now + s(10), Timer::Pong)));
}

#[test]
fn a_dead_sessions_timers_never_touch_the_next() {
    // firezone/firezone#4361: a heartbeat timer of the old connection killed the new one, every 30 s.
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    rig.input(Input::Network { usable: u16::MAX, changed: true });
    rig.input(Input::PingFlushed);
    rig.input(failed(Class::Local));
    rig.connect();
    let from = rig.now;
    for late in [Input::PingFlushed, Input::Dialed { address: 0 }, Input::Upgraded, Input::Resolved { addresses: 1 }] {
        assert_eq!(rig.input(late), []);
    }
    let (timer, outputs) = rig.next();
    assert_eq!((timer, rig.now.since(from)), (Timer::Heartbeat, s(60)), "a whole interval of its own");
    assert_eq!(outputs, [Output::Ping]);
    assert!(rig.link.is_up());
}

#[test]
fn tcp_giving_up_in_a_session_is_silence_not_a_late_handshake() {
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    let error = std::io::ErrorKind::TimedOut.into();
    rig.input(Input::Failed(Failure::from_io(&error, "up")));
    assert_eq!(rig.link.last_class(), Some(Class::Silent));
}

#[test]
fn a_session_ends_at_its_maximum_age_somewhat_early() {
    let ages: Vec<_> = (0..SEEDS)
        .map(|seed| {
            let mut rig = Rig::new(Config { session_age_s_max: 1800, ..config() }, seed);
            rig.connect();
            let from = rig.now;
            while rig.link.is_up() {
                let (timer, outputs) = rig.next();
                rig.input(Input::PingFlushed);
                rig.input(Input::Received);
                if timer == Timer::SessionAge {
                    assert_eq!(outputs[0], Output::Drop { close: Some(1000) });
                }
            }
            assert_eq!(rig.link.last_class(), Some(Class::Aged));
            rig.now.since(from)
        })
        .collect();
    assert!(ages.iter().all(|age| (s(1440)..=s(1800)).contains(age)));
    assert!(ages.iter().any(|age| *age < s(1470)) && ages.iter().any(|age| *age > s(1760)));
}

// Network changes.

#[test]
fn a_network_change_is_a_hint_to_ping_never_a_verdict() {
    // warmcat/libwebsockets#3015: a watch on addresses closed good connections.
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    assert_eq!(rig.input(Input::Network { usable: u16::MAX, changed: true }), [Output::Ping]);
    assert_eq!(rig.input(Input::Network { usable: u16::MAX, changed: true }), [], "one is on its way");
    assert!(rig.link.is_up());
}

#[test]
fn a_network_change_ends_the_wait_for_a_local_cause() {
    for seed in 0..SEEDS {
        for (class, helps) in
            [(Class::Local, true), (Class::Name, true), (Class::Overload, false), (Class::Credentials, false)]
        {
            let mut rig = Rig::new(config(), seed);
            for _ in 0..2 {
                rig.attempt();
                rig.input(failed(class));
            }
            rig.now = rig.now + s(2);
            rig.input(Input::Network { usable: u16::MAX, changed: true });
            let wait = rig.attempt();
            assert_eq!(wait <= s(1), helps, "seed {seed} {class:?}: {wait:?}");
        }
    }
}

#[test]
fn an_attempt_that_comes_too_early_for_the_network_is_made_once_more_soon() {
    for seed in 0..SEEDS {
        let mut rig = Rig::new(config(), seed);
        rig.connect();
        rig.input(Input::Network { usable: 0, changed: true });
        rig.input(failed(Class::Silent));
        rig.now = rig.now + s(2);
        rig.input(Input::Network { usable: u16::MAX, changed: true });
        assert!(rig.attempt() <= s(1), "seed {seed}");
        rig.input(failed(Class::Unreachable));
        let again = rig.attempt();
        assert!(again <= s(4), "seed {seed}: {again:?}");
        rig.input(failed(Class::Unreachable));
        let then = rig.attempt();
        assert!(then > s(4), "seed {seed}: once, then the backoff: {then:?}");
    }
}

#[test]
fn a_network_that_flaps_for_an_hour_makes_no_busy_loop() {
    let mut rig = Rig::new(config(), 1);
    let from = rig.now;
    let mut first_minute = 0;
    while rig.now.since(from) < s(3600) {
        if rig.state() == "resolving" {
            rig.input(failed(Class::Local));
        }
        rig.input(Input::Network { usable: u16::MAX, changed: true });
        rig.now = rig.now + ms(100);
        rig.link.handle_timeout(rig.now);
        if rig.now.since(from) == s(60) {
            first_minute = rig.link.view().attempts;
        }
    }
    assert!(first_minute >= 4, "{first_minute}: it does help");
    assert!(rig.link.view().attempts <= 10 + 3600 / 28, "{}", rig.link.view().attempts);
}

// Takeovers.

#[test]
fn a_clone_is_suspected_after_three_takeovers_in_a_row() {
    // emqx/emqx#151: two devices with one identity kick each other for ever.
    let mut rig = Rig::new(config(), 1);
    let mut classes = Vec::new();
    for _ in 0..4 {
        rig.connect();
        rig.input(Input::Failed(Failure::from_close(4009, "boot 7f")));
        classes.push(rig.link.last_class().unwrap());
    }
    assert_eq!(classes, [Class::Replaced, Class::Replaced, Class::Clone, Class::Clone]);
    assert!(rig.attempt() >= s(480), "slow, and slower");
}

#[test]
fn takeovers_of_stable_sessions_are_no_clone() {
    let mut rig = Rig::new(config(), 1);
    for _ in 0..10 {
        rig.connect_stably();
        rig.input(failed(Class::Replaced));
        assert_eq!(rig.link.last_class(), Some(Class::Replaced));
    }
}
