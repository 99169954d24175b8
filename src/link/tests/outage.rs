//! What a long outage and a reload bring: remedies, and another configuration in place.

use super::*;

fn remedy(after_s: u64, again_after_s: u64, id: u16) -> Remedy {
    Remedy { after_s, again_after_s, id }
}

fn with_remedies() -> Config {
    let remedies = vec![remedy(1800, 0, 7), remedy(7200, 86_400, 8)];
    Config { remedies, ..config() }
}

/// An outage of so long; which remedies were run when, in seconds from its begin.
fn outage(rig: &mut Rig, duration: Duration) -> Vec<(u64, u8)> {
    let (from, mut run) = (rig.now, Vec::new());
    while rig.link.poll_timeout().unwrap().0.since(from) < duration {
        let (_, outputs) = rig.next();
        let save = outputs.iter().position(|output| matches!(output, Output::Save(_)));
        if let Some(index) = outputs.iter().position(|output| matches!(output, Output::Remedy { .. })) {
            assert!(save.is_some_and(|save| save < index), "a crash must not run it again: {outputs:?}");
            let Output::Remedy { step } = outputs[index] else { unreachable!() };
            run.push((rig.now.since(from).as_secs(), step));
        }
        if rig.state() == "resolving" {
            rig.input(failed(Class::Name));
        }
    }
    rig.now = from + duration;
    run
}

#[test]
fn each_remedy_is_run_once_an_outage_and_again_only_when_told_so() {
    let mut rig = Rig::new(with_remedies(), 1);
    let run = outage(&mut rig, s(200_000));
    assert_eq!(run, [(1800, 0), (7200, 1), (93_600, 1), (180_000, 1)]);
    rig.connect_stably();
    rig.input(failed(Class::Reset));
    assert_eq!(outage(&mut rig, s(8_000)), [(1800, 0), (7200, 1)], "another outage");
}

#[test]
fn a_session_that_is_not_stable_starts_the_time_over_but_not_the_count() {
    let mut rig = Rig::new(with_remedies(), 1);
    assert_eq!(outage(&mut rig, s(1_900)), [(1800, 0)]);
    rig.connect();
    rig.input(failed(Class::Reset));
    assert_eq!(outage(&mut rig, s(8_000)), [(7200, 1)]);
}

#[test]
fn no_remedy_is_run_while_a_session_is_up() {
    let mut rig = Rig::new(with_remedies(), 1);
    rig.connect();
    rig.stay_up(s(100_000));
    assert!(rig.link.is_up());
}

#[test]
fn neither_a_restart_nor_a_reboot_repeats_a_remedy() {
    for fresh_boot in [false, true] {
        let mut rig = Rig::new(with_remedies(), 1);
        assert_eq!(outage(&mut rig, s(2_000)), [(1800, 0)]);
        if fresh_boot {
            rig.now = Instant::default() + s(5);
        }
        rig.link = Link::new(rig.config.clone(), 2, rig.saved, fresh_boot, rig.now);
        let second = if fresh_boot { 7200 } else { 5200 };
        assert_eq!(outage(&mut rig, s(10_000)), [(second, 1)], "fresh boot: {fresh_boot}");
    }
}

#[test]
fn a_restart_does_not_start_the_time_over() {
    let mut rig = Rig::new(with_remedies(), 1);
    for _ in 0..3 {
        outage(&mut rig, s(500));
        rig.restart(2);
    }
    assert_eq!(outage(&mut rig, s(1_000)), [(300, 0)]);
}

#[test]
fn no_remedy_is_run_before_an_attempt_has_failed_in_this_process() {
    let mut rig = Rig::new(with_remedies(), 1);
    assert_eq!(outage(&mut rig, s(1_000)), []);
    // Killed, and started again when all of them are due: the first attempt may well succeed.
    rig.now = rig.now + s(100_000);
    rig.restart(2);
    let (timer, outputs) = rig.next();
    assert_eq!(timer, Timer::Retry);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Remedy { .. })), "{outputs:?}");
    rig.input(failed(Class::Name));
    let (timer, outputs) = rig.next();
    assert_eq!((timer, outputs.contains(&Output::Remedy { step: 0 })), (Timer::Remedy, true));
}

#[test]
fn a_remedy_that_was_not_run_because_a_session_came_is_due_in_the_next_outage() {
    let mut rig = Rig::new(with_remedies(), 1);
    assert_eq!(outage(&mut rig, s(8_000)), [(1800, 0), (7200, 1)]);
    rig.connect();
    rig.input(Input::RemedyDropped { step: 1 });
    rig.input(failed(Class::Reset));
    // The session was not stable: what was run was run in this outage.
    assert_eq!(outage(&mut rig, s(8_000)), [(7200, 1)]);
}

#[test]
fn what_was_run_goes_with_the_remedy_and_not_with_its_place() {
    let [first, second, new] = [remedy(1800, 0, 7), remedy(7200, 0, 8), remedy(600, 0, 9)];
    let of = |remedies: &[Remedy]| Config { remedies: remedies.to_vec(), ..config() };
    for restart in [false, true] {
        let mut rig = Rig::new(of(&[first, second]), 1);
        assert_eq!(outage(&mut rig, s(2_000)), [(1800, 0)]);
        let other = Arc::new(of(&[new, first, second, first]));
        if restart {
            rig.config = other;
            rig.restart(2);
        } else {
            reload(&mut rig, other, &[Some(0)]);
        }
        // The new one is overdue; the same program listed twice has been run once.
        let run = outage(&mut rig, s(6_000));
        let mut steps: Vec<_> = run.iter().map(|(_, step)| *step).collect();
        steps.sort_unstable();
        assert_eq!((steps, run.last()), (vec![0, 2, 3], Some(&(5200, 2))), "restart: {restart}, {run:?}");
    }
}

#[test]
fn a_file_that_does_not_say_which_remedies_goes_by_their_places() {
    let mut rig = Rig::new(with_remedies(), 1);
    assert_eq!(outage(&mut rig, s(2_000)), [(1800, 0)]);
    let mut text = serde_json::to_value(rig.saved.unwrap()).unwrap();
    for key in ["remedies_id", "words_boot_s"] {
        text.as_object_mut().unwrap().remove(key).unwrap();
    }
    rig.saved = Some(serde_json::from_value(text).unwrap());
    rig.restart(2);
    assert_eq!(outage(&mut rig, s(6_000)), [(5200, 1)]);
}

// A reload.

fn endpoints(tls: &[bool]) -> Arc<Config> {
    Arc::new(Config { endpoints_tls: tls.to_vec(), ..config() })
}

fn reload(rig: &mut Rig, new: Arc<Config>, was: &[Option<u8>]) -> Vec<Output> {
    rig.config = new.clone();
    rig.link.reconfigure(new, was, rig.now);
    rig.outputs()
}

#[test]
fn a_reload_keeps_the_session_whose_endpoint_is_still_there() {
    let mut rig = Rig::new(config(), 1);
    rig.connect_stably();
    let outputs = reload(&mut rig, endpoints(&[false, true]), &[None, Some(0)]);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Drop { .. })), "{outputs:?}");
    assert_eq!((rig.state(), rig.link.view().endpoint), ("up", Some(1)));
    // What is preferred now is looked at.
    let mut looked = false;
    while !looked {
        let (_, outputs) = rig.next();
        looked = outputs.contains(&Output::Probe { endpoint: 0 });
        rig.input(Input::PingFlushed);
        rig.input(Input::Pong);
        assert!(rig.link.is_up());
    }
}

#[test]
fn a_reload_again_and_again_does_not_put_off_the_way_back() {
    let mut rig = Rig::new(config(), 1);
    rig.connect_stably();
    let spared = endpoints(&[false, true]);
    reload(&mut rig, spared.clone(), &[None, Some(0)]);
    let (from, mut looks) = (rig.now, 0);
    while rig.link.is_up() {
        assert!(rig.now.since(from) < s(3_600), "after {looks} looks");
        // A minute, and someone reloads.
        let until = rig.now + s(60);
        while rig.link.is_up() && rig.link.poll_timeout().unwrap().0 <= until {
            let (_, outputs) = rig.next();
            if outputs.contains(&Output::Probe { endpoint: 0 }) {
                looks += 1;
                rig.input(Input::Probed { endpoint: 0, ok: true });
            }
            rig.input(Input::PingFlushed);
            rig.input(Input::Pong);
        }
        if rig.link.is_up() {
            rig.now = until;
            reload(&mut rig, spared.clone(), &[Some(0), Some(1)]);
        }
    }
    assert_eq!((looks, rig.link.last_class()), (2, Some(Class::Failback)));
}

#[test]
fn a_reload_ends_the_session_whose_endpoint_is_gone_promptly() {
    for stage in ["resolving", "dialing", "greeting", "up"] {
        let mut rig = Rig::new(config(), 1);
        rig.connect_stably();
        rig.input(failed(Class::Reset));
        rig.attempt();
        rig.reach(stage, 1);
        let outputs = reload(&mut rig, endpoints(&[false]), &[None]);
        assert_eq!(outputs[0], Output::Drop { close: Some(1000) }, "{stage}");
        assert_eq!(rig.link.last_class(), Some(Class::Renewed));
        assert!(rig.connect() <= s(1), "{stage}");
    }
}

#[test]
fn a_reload_while_waiting_turns_to_an_endpoint_that_is_new() {
    let mut rig = Rig::new(config(), 1);
    for _ in 0..3 {
        rig.attempt();
        rig.reach("upgrading", 1);
        rig.input(failed(Class::WrongPlace));
    }
    rig.now = rig.now + s(60);
    reload(&mut rig, endpoints(&[false]), &[None]);
    assert!(rig.attempt() <= s(1));
    rig.input(failed(Class::Refused));
    let was = rig.link.view().next_attempt;
    reload(&mut rig, endpoints(&[false]), &[Some(0)]);
    assert_eq!(rig.link.view().next_attempt, was, "nothing changed");
}

#[test]
fn a_reload_again_and_again_makes_no_busy_loop() {
    let mut rig = Rig::new(config(), 1);
    let from = rig.now;
    while rig.now.since(from) < s(3600) {
        reload(&mut rig, endpoints(&[true]), &[None]);
        rig.now = rig.now + ms(100);
        rig.link.handle_timeout(rig.now);
        rig.outputs();
    }
    assert!(rig.link.view().attempts <= 10 + 3600 / 28, "{}", rig.link.view().attempts);
}

#[test]
fn shorter_waits_of_a_new_configuration_hold_at_once() {
    let mut rig = Rig::new(config(), 1);
    rig.connect();
    rig.input(Input::Retry { after_ms: 0, spread_ms: 0, endpoint: None });
    rig.attempt();
    rig.reach("upgrading", 1);
    rig.input(failed(Class::WrongPlace));
    let reconnect = Reconnect { slow_ms_min: 1000, slow_ms_max: 1000, ..Reconnect::default() };
    let new = Config { reconnect, server_wait_ms_max: 1000, ..config() };
    reload(&mut rig, Arc::new(new), &[Some(0)]);
    assert!(rig.attempt() <= s(80));
}
