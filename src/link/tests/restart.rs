//! What outlives the process.

use super::*;

#[test]
fn a_saved_state_bounds_a_crash_loop() {
    for seed in 0..SEEDS {
        for crash_in in ["resolving", "greeting", "up"] {
            let mut rig = Rig::new(config(), seed);
            let (from, mut attempts) = (rig.now, 0u64);
            while rig.now.since(from) < s(3600) {
                rig.attempt();
                rig.reach(crash_in, 1);
                attempts += 1;
                rig.restart(seed + attempts);
            }
            assert!(attempts <= 3 + 3600 / 28, "seed {seed}: {attempts} attempts in an hour, dying in {crash_in}");
        }
    }
}

#[test]
fn a_crash_in_a_stable_session_costs_no_wait() {
    let mut rig = Rig::new(config(), 1);
    rig.connect_stably();
    rig.restart(2);
    assert_eq!(rig.attempt(), Duration::ZERO);
    rig.restart(3);
    assert_eq!(rig.attempt(), Duration::ZERO, "nor does the first death in an attempt");
    rig.restart(4);
    assert!(rig.attempt() >= s(14), "the second does");
}

#[test]
fn a_restart_does_not_bypass_the_backoff() {
    for (class, least) in [(Class::Refused, s(28)), (Class::WrongPlace, s(420))] {
        let mut rig = Rig::new(config(), 1);
        for _ in 0..2 {
            rig.attempt();
            rig.input(failed(class));
        }
        rig.restart(2);
        assert!(rig.attempt() >= least, "{class:?}: the wait");
        rig.input(failed(class));
        assert!(rig.attempt() >= least, "{class:?}: the exponent");
    }
}

#[test]
fn a_restart_keeps_the_cause_so_that_a_hint_does_not_bypass_it_and_a_cure_helps() {
    let mut rig = Rig::new(config(), 1);
    rig.attempt();
    rig.reach("upgrading", 1);
    let busy = Failure { server_wait_ms: Some(3_000_000), ..Failure::new(Class::Overload, "503") };
    rig.input(Input::Failed(busy));
    rig.restart(2);
    rig.input(Input::Network { usable: u16::MAX, changed: true });
    assert!(rig.attempt() >= s(2_990), "not before the server's word");

    let mut rig = Rig::new(config(), 1);
    for _ in 0..2 {
        rig.attempt();
        rig.input(failed(Class::Certificate));
    }
    rig.restart(2);
    rig.input(Input::Network { usable: u16::MAX, changed: true });
    rig.input(Input::SourcesChanged);
    assert!(rig.attempt() <= s(2), "other files are at hand");
}

#[test]
fn the_word_of_each_endpoint_outlives_a_restart() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, 1);
    let bound_until = rig.now + s(3000);
    rig.attempt();
    rig.reach("upgrading", 1);
    rig.input(Input::Failed(Failure::from_http(503, Some(3_000_000), Some(0))));
    assert!(rig.attempt() <= s(40), "the reserve is for those who would have to wait for long");
    assert_eq!(rig.link.view().endpoint, Some(1));
    let mut attempts = 0;
    while rig.now < bound_until - s(41) {
        rig.input(failed(Class::Refused));
        attempts += 1;
        rig.restart(attempts);
        rig.attempt();
        assert_eq!(rig.link.view().endpoint, Some(1), "attempt {attempts}, {:?} early", bound_until.since(rig.now));
    }
    assert!(attempts > 50);
    // A reboot voids it, as it voids all instants.
    rig.link = Link::new(rig.config.clone(), 1, rig.saved, true, Instant::default() + s(5));
    assert_eq!(rig.link.endpoints_word(0), Instant::default());
}

#[test]
fn a_damaged_saved_state_is_bounded() {
    for fresh_boot in [false, true] {
        let mut rig = Rig::new(config(), 1);
        let saved = Saved {
            backoff_exponent: u8::MAX,
            slow_exponent: u8::MAX,
            not_before_boot_ms: u64::MAX,
            words_boot_s: [u32::MAX; ENDPOINTS_MAX],
            ..Saved::default()
        };
        rig.link = Link::new(rig.config.clone(), 1, Some(saved), fresh_boot, rig.now);
        assert!(rig.attempt() <= if fresh_boot { s(30) } else { s(7200) });
        rig.input(failed(Class::Refused));
        assert!(rig.attempt() <= s(40));
        rig.input(failed(Class::Credentials));
        assert!(rig.attempt() <= s(3600));
    }
}

#[test]
fn saves_before_it_tries_and_never_the_same_twice() {
    let mut rig = Rig::new(config(), 1);
    let mut last = None;
    for _ in 0..50 {
        let (_, outputs) = rig.next();
        let save = outputs.iter().position(|output| matches!(output, Output::Save(_))).unwrap();
        let resolve = outputs.iter().position(|output| matches!(output, Output::Resolve { .. })).unwrap();
        assert!(save < resolve, "{outputs:?}");
        for output in outputs.into_iter().chain(rig.input(failed(Class::Refused))) {
            if let Output::Save(saved) = output {
                assert_ne!(last.replace(saved), Some(saved));
            }
        }
    }
}
