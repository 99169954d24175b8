//! Several endpoints: breakers, the reserve, and the way back.

use super::*;

fn three() -> Config {
    Config { endpoints_tls: vec![true, true, true], ..config() }
}

/// A stable session at endpoint 1, the breaker of endpoint 0 open.
fn at_backup(seed: u64) -> Rig {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, seed);
    for _ in 0..3 {
        rig.attempt();
        rig.input(failed(Class::Refused));
    }
    rig.connect_stably();
    assert_eq!(rig.link.view().endpoint, Some(1));
    rig
}

/// Pings are answered until the link wants something else.
fn until_probe(rig: &mut Rig) -> Duration {
    let from = rig.now;
    for _ in 0..10_000 {
        let (_, outputs) = rig.next();
        if outputs.contains(&Output::Ping) {
            rig.input(Input::PingFlushed);
            rig.input(Input::Pong);
        }
        if outputs.iter().any(|output| matches!(output, Output::Probe { .. })) {
            return rig.now.since(from);
        }
        assert!(rig.link.is_up());
    }
    panic!("never looked");
}

#[test]
fn fails_over_after_so_many_failures_spread() {
    let waits: Vec<_> = (0..SEEDS)
        .map(|seed| {
            let mut rig = Rig::new(three(), seed);
            for _ in 0..3 {
                assert_eq!(rig.link.view().endpoint.unwrap_or(0), 0);
                rig.attempt();
                rig.input(failed(Class::Refused));
            }
            let wait = rig.attempt();
            assert_eq!(rig.link.view().endpoint, Some(1));
            wait
        })
        .collect();
    assert!(waits.iter().all(|wait| *wait <= s(35)));
    assert!(waits.iter().any(|wait| *wait < s(2)) && waits.iter().any(|wait| *wait > s(33)), "the whole spread");
}

#[test]
fn with_every_breaker_open_backoff_alone_decides_when() {
    for seed in 0..SEEDS {
        let mut rig = Rig::new(three(), seed);
        for _ in 0..9 {
            rig.attempt();
            rig.input(failed(Class::Refused));
        }
        let mut visited = Vec::new();
        for _ in 0..6 {
            let wait = rig.attempt();
            assert!((s(32)..=s(40)).contains(&wait), "seed {seed}: {wait:?}");
            visited.push(rig.link.view().endpoint.unwrap());
            rig.input(failed(Class::Refused));
        }
        visited.sort_unstable();
        assert_eq!(visited, [0, 0, 1, 1, 2, 2], "each has its turn");
    }
}

#[test]
fn a_refusal_at_one_endpoint_does_not_slow_the_others() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, 1);
    let mut visits = [0, 0];
    for _ in 0..40 {
        rig.attempt();
        let endpoint = usize::from(rig.link.view().endpoint.unwrap());
        visits[endpoint] += 1;
        rig.reach("upgrading", 1);
        rig.input(failed([Class::WrongPlace, Class::Closed][endpoint]));
    }
    assert!(visits[0] <= 8 && visits[1] >= 30, "{visits:?}");
}

#[test]
fn a_long_word_of_one_server_leaves_the_reserve_free() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, 1);
    rig.connect_stably();
    rig.input(failed(Class::Reset));
    rig.attempt();
    rig.reach("upgrading", 1);
    let said = rig.now;
    let busy = Failure { server_wait_ms: Some(3_000_000), ..Failure::new(Class::Overload, "503") };
    rig.input(Input::Failed(Failure { server_spread_ms: Some(0), ..busy }));
    assert!(rig.connect() <= s(35));
    assert_eq!(rig.link.view().endpoint, Some(1));
    rig.input(Input::Proved);
    rig.stay_up(s(60));
    while rig.now.since(said) < s(2_900) {
        let (_, outputs) = rig.next();
        assert!(!outputs.iter().any(|output| matches!(output, Output::Probe { .. })), "it is bound");
        rig.input(Input::PingFlushed);
        rig.input(Input::Pong);
    }
}

#[test]
fn who_says_retry_is_who_is_come_back_to() {
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], ..config() }, 1);
    for _ in 0..10 {
        rig.connect();
        assert_eq!(rig.link.view().endpoint, Some(0));
        rig.input(Input::Retry { after_ms: 300_000, spread_ms: 0, endpoint: None });
    }
}

#[test]
fn goes_back_when_the_preferred_one_answered_twice_in_a_row() {
    for seed in 0..SEEDS {
        let mut rig = at_backup(seed);
        for ok in [true, false, true] {
            let wait = until_probe(&mut rig);
            assert!((s(210)..=s(300)).contains(&wait), "seed {seed}: {wait:?}");
            assert_eq!(rig.input(Input::Probed { endpoint: 0, ok }), []);
            assert!(rig.link.is_up());
        }
        until_probe(&mut rig);
        let outputs = rig.input(Input::Probed { endpoint: 0, ok: true });
        assert_eq!(outputs[0], Output::Drop { close: Some(1000) });
        assert_eq!(rig.link.last_class(), Some(Class::Failback));
        assert!(rig.connect() <= s(1), "promptly");
        assert_eq!(rig.link.view().endpoint, Some(0));
        rig.input(Input::Proved);
        rig.stay_up(s(3600));
    }
}

#[test]
fn back_at_once_where_going_back_failed_and_looks_less_often() {
    let mut rig = at_backup(7);
    for doubled in [1, 2, 4, 8, 12, 12] {
        let mut wait = Duration::ZERO;
        for _ in 0..2 {
            wait = until_probe(&mut rig);
            rig.input(Input::Probed { endpoint: 0, ok: true });
        }
        assert!((s(210) * doubled..=s(300) * doubled).contains(&wait), "{doubled}: {wait:?}");
        rig.attempt();
        assert_eq!(rig.link.view().endpoint, Some(0));
        rig.input(failed(Class::Refused));
        assert!(rig.connect() <= s(1), "at once");
        assert_eq!(rig.link.view().endpoint, Some(1));
        rig.input(Input::Proved);
        rig.stay_up(s(60));
    }
}

#[test]
fn a_look_that_is_never_answered_is_an_answer() {
    let mut rig = at_backup(1);
    until_probe(&mut rig);
    rig.input(Input::Probed { endpoint: 0, ok: true });
    until_probe(&mut rig); // no answer
    until_probe(&mut rig);
    rig.input(Input::Probed { endpoint: 0, ok: true });
    assert!(rig.link.is_up(), "not two in a row");
}

#[test]
fn a_restart_goes_on_at_the_reserve() {
    let mut rig = at_backup(1);
    rig.restart(2);
    rig.connect();
    assert_eq!(rig.link.view().endpoint, Some(1));
}

#[test]
fn a_session_that_a_redirect_led_to_the_preferred_one_looks_for_nothing_better() {
    let mut rig = at_backup(1);
    rig.input(failed(Class::Closed));
    rig.attempt();
    assert_eq!(rig.link.view().endpoint, Some(1));
    rig.reach("upgrading", 1);
    rig.input(Input::Redirected { endpoint: 0 });
    rig.reach("up", 1);
    assert_eq!(rig.link.view().endpoint, Some(0));
    rig.input(Input::Proved);
    for _ in 0..200 {
        let (_, outputs) = rig.next();
        assert!(!outputs.iter().any(|output| matches!(output, Output::Probe { .. })), "it is there already");
        rig.input(Input::PingFlushed);
        rig.input(Input::Pong);
    }
}

#[test]
fn each_path_that_comes_back_hastens_a_look_but_a_flapping_one_not_each_time() {
    let mut rig = at_backup(1);
    let flap = |rig: &mut Rig| {
        rig.input(Input::Network { usable: 0b10, changed: false });
        rig.input(Input::Network { usable: 0b11, changed: false });
    };
    for round in 0..5 {
        rig.stay_up(s(400));
        flap(&mut rig);
        assert!(until_probe(&mut rig) <= s(1), "round {round}");
        rig.input(Input::Probed { endpoint: 0, ok: false });
    }
    let (from, mut looks) = (rig.now, 0);
    while rig.now.since(from) < s(3600) {
        flap(&mut rig);
        let until = rig.now + s(5);
        while rig.link.poll_timeout().unwrap().0 <= until {
            let (_, outputs) = rig.next();
            if outputs.contains(&Output::Probe { endpoint: 0 }) {
                looks += 1;
                rig.input(Input::Probed { endpoint: 0, ok: false });
            }
            rig.input(Input::PingFlushed);
            rig.input(Input::Pong);
        }
        rig.now = until;
    }
    assert!((12..=2 * (3600 / 210 + 1)).contains(&looks), "{looks} looks in an hour");
}

#[test]
fn retry_is_counted_where_it_was_said_and_not_where_it_leads() {
    let heartbeat = Heartbeat { adaptive: true, ..Heartbeat::default() };
    let mut rig = Rig::new(Config { endpoints_tls: vec![true, true], heartbeat, ..config() }, 1);
    rig.connect_stably();
    rig.stay_up(s(3_600));
    let said = rig.now;
    rig.input(Input::Retry { after_ms: 600_000, spread_ms: 0, endpoint: Some(1) });
    let saved = rig.saved.unwrap();
    assert!(saved.intervals_ms[0] > 60_000, "what the path of the one bears: {:?}", saved.intervals_ms);
    assert_eq!(saved.intervals_ms[1], 0, "nothing is known of the other");
    // Neither is tried before the word of the one who spoke for both.
    for endpoint in [0, 1] {
        assert!(rig.link.endpoints_word(endpoint) >= said + s(600), "{endpoint}");
    }
    assert!(rig.connect() >= s(600));
    assert_eq!(rig.link.view().endpoint, Some(1));
}

#[test]
fn the_view_shows_each_breaker_and_until_when() {
    let mut rig = Rig::new(three(), 1);
    let breakers = |rig: &Rig| rig.link.view().breakers.iter().map(|breaker| breaker.state).collect::<Vec<_>>();
    assert_eq!(breakers(&rig), ["closed", "closed", "closed"]);
    for _ in 0..3 {
        rig.attempt();
        rig.input(failed(Class::Refused));
    }
    assert_eq!(breakers(&rig), ["open", "closed", "closed"]);
    let until = rig.link.view().breakers[0].until.unwrap();
    assert!((s(210)..=s(300)).contains(&until.since(rig.now)));
    while breakers(&rig)[0] != "half_open" {
        rig.attempt();
        rig.input(failed(Class::Refused));
    }
    assert_eq!(rig.link.view().breakers[0].until, None);
    rig.connect_stably();
    assert_eq!(breakers(&rig)[0], "closed");
}
