//! The race of an attempt's addresses (RFC 8305 § 5), redirects, and the handshake's timeout.

use super::*;

fn dial_failed(address: u8, class: Class) -> Input {
    Input::DialFailed { address, failure: Failure::new(class, "seen") }
}

/// The addresses dialed, in these outputs.
fn dialed(outputs: &[Output]) -> Vec<u8> {
    let address = |output: &Output| if let Output::Dial { address } = output { Some(*address) } else { None };
    outputs.iter().filter_map(address).collect()
}

#[test]
fn the_next_address_joins_after_250_ms_or_at_once_when_one_failed() {
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    assert_eq!(dialed(&rig.input(Input::Resolved { addresses: 4 })), [0]);
    let from = rig.now;
    let (timer, outputs) = rig.next();
    assert_eq!((timer, rig.now.since(from), dialed(&outputs)), (Timer::Race, ms(250), vec![1]));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Drop { .. })), "the first one goes on");
    rig.now = rig.now + ms(10);
    assert_eq!(dialed(&rig.input(dial_failed(0, Class::Refused))), [2]);
    let (timer, outputs) = rig.next();
    assert_eq!((timer, rig.now.since(from), dialed(&outputs)), (Timer::Race, ms(510), vec![3]));
    for address in [2, 1] {
        assert_eq!(rig.input(dial_failed(address, Class::Refused)), [], "there is one more under way");
        assert_eq!(rig.state(), "dialing");
    }
    rig.input(dial_failed(3, Class::Unreachable));
    assert_eq!((rig.state(), rig.link.last_class()), ("waiting", Some(Class::Unreachable)));
}

#[test]
fn one_wins_and_what_it_has_beaten_is_tried_should_it_come_to_nothing() {
    // firezone/firezone#12138: one address that accepts and never goes on must not hide the others for ever.
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    let from = rig.now;
    rig.input(Input::Resolved { addresses: 3 });
    rig.next();
    rig.input(Input::Dialed { address: 1 });
    assert_eq!(rig.state(), "securing");
    assert_eq!(rig.input(Input::Dialed { address: 0 }), [], "one winner");
    assert_eq!(rig.input(dial_failed(0, Class::Refused)), [], "the race is over");
    let (timer, outputs) = rig.next();
    assert_eq!((timer, &outputs[0]), (Timer::Handshake, &Output::Drop { close: None }));
    assert!(rig.now.since(from) < s(11), "a third of what is left, for two more");
    assert_eq!(dialed(&outputs), [0]);
    assert_eq!(dialed(&rig.next().1), [2]);
    rig.input(Input::Dialed { address: 2 });
    assert_eq!(dialed(&rig.input(failed(Class::Tls))), [0], "beaten, not failed");
    rig.input(dial_failed(0, Class::Refused));
    assert_eq!((rig.state(), rig.link.view().attempts), ("waiting", 1));
}

#[test]
fn what_no_other_address_could_do_better_ends_the_race() {
    for class in [Class::Credentials, Class::ProxyCredentials, Class::Name] {
        let mut rig = Rig::new(config(), 1);
        rig.attempt();
        rig.input(Input::Resolved { addresses: 3 });
        rig.next();
        let outputs = rig.input(dial_failed(0, class));
        assert_eq!(outputs[0], Output::Drop { close: None }, "the others are dropped: {class:?}");
        assert_eq!(rig.state(), "waiting");
    }
}

#[test]
fn black_holes_at_every_address_end_with_the_handshakes_time() {
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    let from = rig.now;
    rig.input(Input::Resolved { addresses: 200 });
    let mut begun = 1;
    while rig.state() == "dialing" {
        begun += dialed(&rig.next().1).len();
    }
    assert_eq!((begun, rig.now.since(from)), (ADDRESSES_MAX, s(30)));
    assert_eq!(rig.link.last_class(), Some(Class::Timeout));
}

#[test]
fn a_redirect_is_followed_once_an_attempt_and_only_to_what_is_configured() {
    for (second, ends) in [(Input::Redirected { endpoint: 0 }, true), (Input::Upgraded, false)] {
        let mut rig = Rig::new(Config { endpoints_tls: vec![true, false], ..config() }, 1);
        rig.attempt();
        let from = rig.now;
        rig.reach("upgrading", 1);
        rig.now = rig.now + s(5);
        let outputs = rig.input(Input::Redirected { endpoint: 1 });
        assert!(outputs.contains(&Output::Resolve { endpoint: 1, recheck: false }), "{outputs:?}");
        assert_eq!(rig.link.poll_timeout(), Some((from + s(30), Timer::Handshake)), "one attempt, one time");
        rig.reach("upgrading", 1);
        assert_eq!((rig.link.view().attempts, rig.link.view().endpoint), (1, Some(1)));
        rig.input(second);
        assert_eq!(rig.state() == "waiting", ends);
        if ends {
            assert_eq!(rig.link.last_class(), Some(Class::WrongPlace));
        }
    }
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    rig.reach("upgrading", 1);
    rig.input(Input::Redirected { endpoint: 1 });
    assert_eq!((rig.state(), rig.link.last_class()), ("waiting", Some(Class::WrongPlace)));
}

#[test]
fn a_redirect_does_not_lead_past_the_word_of_the_server_it_leads_to() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, 1);
    rig.attempt();
    rig.reach("upgrading", 1);
    rig.input(Input::Redirected { endpoint: 1 });
    rig.reach("upgrading", 1);
    let said = rig.now;
    rig.input(Input::Failed(Failure::from_http(503, Some(60_000), Some(0))));
    // Who sent us there would do so again.
    assert!(rig.attempt() >= s(60) && rig.now.since(said) >= s(60));
}

#[test]
fn the_handshakes_time_grows_where_it_was_too_short_and_falls_back() {
    let mut rig = Rig::new(config(), 1);
    let timeout = |rig: &mut Rig| {
        rig.attempt();
        let from = rig.now;
        rig.reach("greeting", 1);
        rig.next();
        rig.now.since(from)
    };
    let grown: Vec<_> = (0..5).map(|_| timeout(&mut rig)).collect();
    assert_eq!(grown, [s(30), s(60), s(120), s(120), s(120)], "four times what is configured, at most");
    rig.connect();
    rig.input(failed(Class::Reset));
    assert_eq!(timeout(&mut rig), s(30));
}

#[test]
fn the_handshakes_time_follows_the_round_trip_of_the_last_session() {
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    rig.input(Input::Network { usable: u16::MAX, changed: true });
    rig.input(Input::PingFlushed);
    rig.now = rig.now + s(2); // a satellite, and a queue before it
    rig.input(Input::Pong);
    rig.input(failed(Class::Reset));
    rig.attempt();
    let (at, _) = rig.link.poll_timeout().unwrap();
    assert!((s(31)..=s(120)).contains(&at.since(rig.now)), "{:?}", at.since(rig.now));
}
