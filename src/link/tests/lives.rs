//! Ten thousand random lives of a link: whatever happens, in whatever order, it is never stuck, never impatient and
//! never contradicts itself.

use fastrand::Rng;

use super::*;

/// A random but valid configuration.
fn random_config(rng: &mut Rng) -> Config {
    let mut ms = |least: u64, most: u64| least << rng.u32(0..=(most / least).ilog2());
    let reconnect = Reconnect {
        start_delay_ms_max: ms(1, 60_000),
        spread_ms: ms(1, 60_000),
        backoff_ms_min: ms(10, 20_000),
        backoff_ms_max: ms(10, 80_000),
        slow_ms_min: ms(40_000, 600_000),
        slow_ms_max: ms(40_000, 3_600_000),
        stable_after_ms: ms(10, 120_000),
        ..Reconnect::default()
    };
    let heartbeat = Heartbeat {
        interval_ms: ms(10, 60_000),
        timeout_ms: ms(10, 10_000),
        misses_max: rng.u32(1..5),
        ..Heartbeat::default()
    };
    Config {
        reconnect,
        heartbeat,
        handshake_timeout_ms: 10 << rng.u32(0..12),
        server_wait_ms_max: 10 << rng.u32(0..19),
        session_age_s_max: rng.u64(0..3) * 1000,
        attempts_max: 0,
        endpoints_tls: (0..rng.usize(1..4)).map(|_| rng.bool()).collect(),
        ..Config::default()
    }
}

/// The input that moves a link on from this state; `None`: only time does.
fn fitting_input(rng: &mut Rng, state: &str) -> Option<Input> {
    Some(match state {
        "resolving" => Input::Resolved { addresses: rng.u8(1..5) },
        "dialing" => Input::Dialed { address: 0 },
        "securing" => Input::Secured,
        "upgrading" => Input::Upgraded,
        "greeting" => Input::Greeted,
        "up" => return rng.choice([None, Some(Input::Proved), Some(Input::PingFlushed), Some(Input::Pong)]).flatten(),
        _ => return None,
    })
}

/// Any input, fitting or not.
fn blind_input(rng: &mut Rng) -> Input {
    match rng.u8(0..13) {
        0 => Input::Resolved { addresses: rng.u8(..) },
        1 => Input::Dialed { address: 0 },
        2 => Input::Secured,
        3 => Input::Upgraded,
        4 => Input::Greeted,
        5 => Input::Proved,
        6 => Input::Received,
        7 => Input::PingFlushed,
        8 => Input::Pong,
        9 => Input::Network { usable: u16::MAX, changed: true },
        10 => Input::Retry {
            after_ms: rng.u64(..) >> rng.u32(0..64),
            spread_ms: rng.u64(..) >> rng.u32(0..64),
            endpoint: rng.bool().then(|| rng.u8(0..4)),
        },
        _ => {
            let class = Class::ALL[rng.usize(0..Class::COUNT - 1)]; // but Stopped
            let failure = Failure::new(class, "seen");
            let server_wait_ms = (rng.u8(..) < 50).then(|| rng.u64(..) >> rng.u32(0..64));
            Input::Failed(Failure {
                server_wait_ms,
                server_spread_ms: rng.bool().then(|| rng.u64(0..100_000)),
                ..failure
            })
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "tests")]
/// The server's word in an input, and the endpoint that it names.
fn word_of(input: &Input) -> Option<(u64, Option<u8>)> {
    match input {
        Input::Retry { after_ms, endpoint, .. } => Some((*after_ms, *endpoint)),
        Input::Failed(failure) => failure.server_wait_ms.map(|after_ms| (after_ms, None)),
        _other => None,
    }
}

/// One life of a few hundred random steps; returns its sessions and how many were stable. Panics with the seed,
/// which replays it.
fn random_life(seed: u64) -> (u64, u64) {
    let mut rng = Rng::with_seed(seed);
    let mut rig = Rig::new(random_config(&mut rng), seed);
    let from = rig.now;
    let (mut sessions, mut stables, mut restarts, mut attempts) = (0u64, 0u64, 0u64, 0u64);
    let (mut bound, mut tried) = ([Instant::default(); 4], 0);
    // How often things go on as they should, of 256: blind steps alone hardly ever finish a handshake.
    let luck = rng.u8(..);
    for step in 0..rng.u32(1..300) {
        let before = rig.state();
        let outputs = match rng.u8(0..16) {
            _ if rng.u8(..) < luck => match fitting_input(&mut rng, before) {
                Some(input) => rig.input(input),
                None => rig.next().1,
            },
            0..8 => {
                let input = blind_input(&mut rng);
                let (now, word) = (rig.now, word_of(&input));
                let outputs = rig.input(input);
                if let Some((after_ms, named)) = word.filter(|_| before != "waiting" && rig.state() == "waiting") {
                    let named = named.filter(|index| usize::from(*index) < rig.config.endpoints_tls.len());
                    bound[usize::from(named.unwrap_or(tried))] = now + ms(after_ms.min(rig.config.server_wait_ms_max));
                }
                outputs
            }
            8..12 => rig.next().1,
            _ => {
                // Time passes, deadline or not; or the process dies.
                rig.now = rig.now + ms(rng.u64(0..2000));
                if rng.u8(..) < 20 {
                    rig.restart(seed + u64::from(step));
                    (restarts, bound) = (restarts + 1, [Instant::default(); 4]);
                }
                rig.link.handle_timeout(rig.now);
                rig.outputs()
            }
        };
        sessions += u64::from(before == "greeting" && rig.link.is_up());
        assert!(rig.link.poll_timeout().is_some(), "seed {seed} step {step}: stuck in {}", rig.state());
        for output in outputs {
            match output {
                Output::Resolve { endpoint, .. } => {
                    assert!(
                        rig.now >= bound[usize::from(endpoint)],
                        "seed {seed} step {step}: before the server's word"
                    );
                    (attempts, tried) = (attempts + 1, endpoint);
                }
                Output::Save(saved) => {
                    stables += u64::from((saved.backoff_exponent, saved.not_before_boot_ms) == (0, 0))
                }
                Output::GiveUp => panic!("seed {seed} step {step}: gave up"),
                Output::Dial { .. } | Output::Ping | Output::Drop { .. } | Output::Changed => {}
                Output::Probe { .. } | Output::Remedy { .. } => {}
            }
        }
    }
    let limits = &rig.config.reconnect;
    let wait_us = limits.backoff_ms_min.min(limits.backoff_ms_max) * 1000 * JITTER_FLOOR_PERCENT / 100;
    let waits = rig.now.since(from).as_micros() as u64 / wait_us;
    // Each stable session and each restart grants one prompt and one spread attempt, and a few that a hint or a
    // zero of the server hastened; beyond that, with failover, at most every third goes without a whole wait.
    let granted = (1 + stables + restarts) * (4 + 2 * 6);
    assert!(attempts <= granted + waits * 3 / 2, "seed {seed}: {attempts} attempts, {granted} granted, {waits} waits");
    rig.input(Input::Stop);
    assert_eq!((rig.state(), rig.link.poll_timeout()), ("stopped", None), "seed {seed}");
    (sessions, stables)
}

#[test]
fn ten_thousand_random_lives_are_never_stuck_never_impatient_and_never_contradict_themselves() {
    let (sessions, stables) = (0..10_000).map(random_life).fold((0, 0), |sum, life| (sum.0 + life.0, sum.1 + life.1));
    assert!(sessions > 30_000 && stables > 10_000, "lives that reach nothing prove nothing: {sessions}, {stables}");
}
