//! Refusals and what cures them: other credentials, another certificate, a clock.

use super::*;

/// Refused once, in the upgrade.
fn refused(class: Class, seed: u64) -> Rig {
    let mut rig = Rig::new(config(), seed);
    rig.attempt();
    rig.reach("upgrading", 1);
    rig.input(failed(class));
    assert_eq!(rig.state(), "waiting");
    rig
}

#[test]
fn refused_credentials_are_compared_before_they_are_tried_again() {
    // OpenVPN/openvpn#932: a refused login was repeated every 5 s for hours.
    for class in [Class::Credentials, Class::ProxyCredentials] {
        let mut rig = refused(class, 1);
        let from = rig.now;
        assert!(rig.attempt() <= s(1));
        assert_eq!(rig.link.view().attempts, 1, "a look is no attempt");
        rig.input(Input::CredentialsUnchanged);
        assert_eq!(rig.state(), "waiting");
        rig.attempt();
        let wait = rig.now.since(from);
        assert!((s(210)..=s(300)).contains(&wait), "{wait:?}");
        rig.reach("upgrading", 1);
        rig.input(failed(class));
        let wait = rig.link.view().next_attempt.unwrap().since(rig.now);
        assert!((s(420)..=s(600)).contains(&wait), "no second look, and slower: {wait:?}");
    }
}

#[test]
fn changed_credentials_are_tried_promptly_once() {
    // perspective-dev/perspective#2902: a reconnect reused the old token.
    let mut rig = refused(Class::Credentials, 1);
    let (_, outputs) = rig.next();
    assert!(outputs.contains(&Output::Resolve { endpoint: 0, recheck: true }));
    rig.reach("upgrading", 1);
    assert_eq!(rig.link.view().attempts, 2);
    rig.input(failed(Class::Credentials));
    let wait = rig.link.view().next_attempt.unwrap().since(rig.now);
    assert!((s(210)..=s(300)).contains(&wait), "{wait:?}");
}

#[test]
fn a_restart_between_refusal_and_recheck_does_not_bypass_the_slow_class() {
    let mut rig = refused(Class::Credentials, 1);
    rig.restart(2);
    assert!(rig.attempt() >= s(210));
}

#[test]
fn new_sources_end_the_wait_of_a_refusal_and_of_nothing_else() {
    // thin-edge/thin-edge.io#3157: a renewed certificate was used only after a restart.
    for class in Class::ALL {
        let cured = matches!(class, Class::Credentials | Class::ProxyCredentials | Class::Certificate);
        for _ in [0; 3].into_iter().filter(|_| class != Class::Stopped) {
            let mut rig = refused(class, 3);
            if matches!(class, Class::Credentials | Class::ProxyCredentials) {
                rig.attempt();
                rig.input(Input::CredentialsUnchanged);
            }
            let was = rig.link.view().next_attempt;
            rig.now = rig.now + s(2);
            rig.input(Input::SourcesChanged);
            if cured {
                let (wait, outputs) = (rig.link.view().next_attempt.unwrap().since(rig.now), rig.next().1);
                assert!(wait <= s(1), "{class:?}: {wait:?}");
                assert!(outputs.contains(&Output::Resolve { endpoint: 0, recheck: false }));
            } else {
                assert_eq!(rig.link.view().next_attempt, was, "{class:?}");
            }
        }
    }
}

#[test]
fn a_clock_that_is_set_ends_the_wait_for_it() {
    // arendst/Tasmota#9757: "certificate is not yet valid" for ever.
    let mut rig = refused(Class::ClockUnset, 1);
    rig.input(Input::SourcesChanged);
    assert!(rig.link.view().next_attempt.unwrap().since(rig.now) >= s(210));
    rig.now = rig.now + s(3);
    rig.input(Input::ClockSet);
    assert!(rig.attempt() <= s(1));
    let mut rig = refused(Class::Credentials, 1);
    rig.attempt();
    rig.input(Input::CredentialsUnchanged);
    rig.input(Input::ClockSet);
    assert!(rig.attempt() >= s(200));
}

#[test]
fn what_changes_during_the_attempt_that_is_refused_counts() {
    for (cure, class) in [
        (Input::SourcesChanged, Class::Credentials),
        (Input::SourcesChanged, Class::Certificate),
        (Input::ClockSet, Class::ClockUnset),
    ] {
        let mut rig = Rig::new(config(), 1);
        rig.attempt();
        rig.reach("upgrading", 1);
        rig.now = rig.now + s(2);
        rig.input(cure);
        rig.input(failed(class));
        assert!(rig.attempt() <= s(1), "{class:?}");
        rig.reach("upgrading", 1);
        rig.input(failed(class));
        rig.next();
        rig.input(Input::CredentialsUnchanged);
        assert!(rig.state() == "resolving" || rig.link.view().next_attempt.unwrap().since(rig.now) > s(200));
    }
}

#[test]
fn sources_that_change_all_the_time_make_no_busy_loop() {
    let mut rig = refused(Class::Certificate, 1);
    let from = rig.now;
    while rig.now.since(from) < s(3600) {
        if rig.state() == "resolving" {
            rig.reach("upgrading", 1);
            rig.input(failed(Class::Certificate));
        }
        rig.input(Input::SourcesChanged);
        rig.now = rig.now + ms(100);
        rig.link.handle_timeout(rig.now);
        rig.outputs();
    }
    assert!(rig.link.view().attempts <= 10 + 3600 / 28, "{}", rig.link.view().attempts);
}
