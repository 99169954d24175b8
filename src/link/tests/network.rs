//! What the machine knows of its network: paths that go and come.

use super::*;

const NONE: Input = Input::Network { usable: 0, changed: true };
const ALL: Input = Input::Network { usable: u16::MAX, changed: true };

fn two() -> Config {
    Config { endpoints_tls: vec![true, true], ..config() }
}

#[test]
fn without_a_path_it_stops_dialing_but_for_a_slow_probe() {
    // FoldingAtHome/fah-client-bastet#223: started with the network down, it stayed dead for ever.
    for seed in 0..SEEDS {
        let mut rig = Rig::new(Config { attempts_max: 3, ..config() }, seed);
        rig.input(NONE);
        for _ in 0..20 {
            let wait = rig.attempt();
            assert!((s(210)..=s(300)).contains(&wait), "seed {seed}: {wait:?}");
            let outputs = rig.input(failed(Class::Local));
            assert!(!outputs.contains(&Output::GiveUp), "no attempt is burnt");
        }
        assert_eq!(rig.saved.unwrap().backoff_exponent, 0, "nor an exponent");
        rig.input(ALL);
        assert!(rig.attempt() <= s(1), "back: at once");
    }
}

#[test]
fn a_slow_probe_that_gets_through_brings_the_link_up() {
    // A hint is never a verdict.
    let mut rig = Rig::new(config(), 1);
    rig.input(NONE);
    rig.connect();
    assert!(rig.link.is_up());
    rig.input(failed(Class::Closed));
    assert!(rig.attempt() <= s(40), "there was a path");
}

#[test]
fn a_session_lost_with_its_path_is_a_local_cause() {
    for class in [Class::Silent, Class::Stalled, Class::Local] {
        let mut rig = Rig::new(config(), 1);
        rig.connect_stably();
        assert_eq!(rig.input(NONE), [Output::Ping], "judged by the answer");
        assert!(rig.link.is_up());
        rig.now = rig.now + s(30);
        rig.input(failed(class));
        assert_eq!(rig.link.last_class(), Some(Class::Local));
        rig.now = rig.now + s(120);
        rig.input(ALL);
        assert!(rig.attempt() <= s(1), "{class:?}");
    }
}

#[test]
fn a_path_that_comes_back_does_not_cure_a_refusal() {
    for class in [Class::WrongPlace, Class::Certificate, Class::Clone] {
        let mut rig = Rig::new(config(), 1);
        rig.attempt();
        rig.reach("upgrading", 1);
        rig.input(failed(class));
        let refused = rig.now;
        for _ in 0..5 {
            rig.now = rig.now + s(1);
            rig.input(NONE);
            rig.now = rig.now + s(1);
            rig.input(ALL);
        }
        rig.attempt();
        assert!(rig.now.since(refused) >= s(210), "{class:?}");
    }
}

#[test]
fn the_other_path_is_taken_at_once_and_nothing_counts_as_failed() {
    for seed in 0..SEEDS {
        let mut rig = Rig::new(two(), seed);
        rig.connect_stably();
        rig.input(Input::Network { usable: 0b10, changed: true });
        rig.input(failed(Class::Silent));
        assert!(rig.connect() <= s(1), "seed {seed}");
        assert_eq!(rig.link.view().endpoint, Some(1));
        assert_eq!(rig.saved.unwrap().backoff_exponent, 1, "as after any first attempt");
    }
}

#[test]
fn a_path_lost_while_waiting_moves_the_next_attempt() {
    let mut rig = Rig::new(two(), 1);
    for _ in 0..2 {
        rig.attempt();
        rig.input(failed(Class::Refused));
    }
    rig.now = rig.now + s(5);
    rig.input(Input::Network { usable: 0b10, changed: true });
    assert!(rig.attempt() <= s(1));
    assert_eq!(rig.link.view().endpoint, Some(1));
}

#[test]
fn a_preferred_path_that_comes_back_is_looked_at_soon() {
    let mut rig = Rig::new(two(), 1);
    rig.input(Input::Network { usable: 0b10, changed: true });
    rig.connect_stably();
    assert_eq!(rig.link.view().endpoint, Some(1));
    rig.now = rig.now + s(1);
    rig.input(Input::Network { usable: 0b11, changed: false });
    let (at, timer) = rig.link.poll_timeout().unwrap();
    assert_eq!(timer, Timer::Probe);
    assert!(at.since(rig.now) <= s(1));
    assert!(rig.next().1.contains(&Output::Probe { endpoint: 0 }));
}

#[test]
fn a_start_without_a_path_waits_for_one() {
    let mut rig = Rig::new(config(), 1);
    rig.link = Link::new(rig.config.clone(), 1, None, true, rig.now);
    rig.input(NONE);
    let (timer, outputs) = rig.next();
    assert_eq!(timer, Timer::StartDelay);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Resolve { .. })), "{outputs:?}");
    rig.input(ALL);
    assert!(rig.attempt() <= s(1));
}

#[test]
fn paths_that_flap_for_an_hour_make_no_busy_loop() {
    let mut rig = Rig::new(two(), 1);
    let from = rig.now;
    let mut usable = 1u16;
    while rig.now.since(from) < s(3600) {
        if rig.state() == "resolving" {
            rig.input(failed(Class::Local));
        }
        usable = [0, 1, 2, 3, 2, 0][usize::from(usable % 6)] + 6 * (usable / 6 % 5) + 6;
        rig.input(Input::Network { usable: usable & 3, changed: true });
        rig.now = rig.now + ms(100);
        rig.link.handle_timeout(rig.now);
        rig.outputs();
    }
    assert!(rig.link.view().attempts <= 60 + 3600 / 28, "{}", rig.link.view().attempts);
}
