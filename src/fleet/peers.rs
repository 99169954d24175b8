//! How other programs come back, as formulas with their defaults: to be laid beside ours. None of them knows
//! `Retry-After`, a start delay or a stable session; each begins anew with every connect.

use std::time::Duration;

use fastrand::Rng;

use super::device::{Answer, Device, Wants};
use crate::time::Instant;

/// An attempt that nothing answers is given up after this (Python `websockets`: `open_timeout` 10 s).
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// A formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// 5 s, always (ezsockets, MicroOcpp).
    Fixed,
    /// Doubles from 1 s to 60 s, without jitter (Vector's `websocket` sink, but for its 250 ms).
    Exponential,
    /// socket.io-client: doubles from 1 s to 5 s, ±50 %, cut off at 5 s after the jitter.
    SocketIo,
    /// python-socketio with 1 s to 30 s: adds ±0.5 s instead of scaling.
    PythonSocketIo,
    /// Python `websockets`: at once, then uniform in [0, 5 s], then 3.1 s · 1.618ⁿ up to 90 s without jitter.
    PythonWebsockets,
    /// At once, then uniform in [0, d], d doubling from 1 s to 60 s.
    FullJitter,
    /// Uniform in [d/2, d], d doubling from 1 s to 60 s.
    EqualJitter,
    /// mosquitto's bridge: uniform in [5 s, 3 · the last], at most 30 s.
    Decorrelated,
    /// parodus: 3 s, then uniform in [0, 2ⁿ − 1 s] up to 511 s, but never less than 3 s.
    Parodus,
    /// netdata's ACLK without a word from its cloud: 0, then 2ⁿ s plus up to half of it, up to 512 s, then 1.024 s.
    NetdataAclk,
    /// EVerest's libocpp: 1 s plus up to 2 s; twice doubled with another up to 2 s; then that very number for ever.
    Libocpp,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Fixed,
        Self::Exponential,
        Self::SocketIo,
        Self::PythonSocketIo,
        Self::PythonWebsockets,
        Self::FullJitter,
        Self::EqualJitter,
        Self::Decorrelated,
        Self::Parodus,
        Self::NetdataAclk,
        Self::Libocpp,
    ];

    /// As a table names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed 5 s",
            Self::Exponential => "exponential 1-60 s, no jitter",
            Self::SocketIo => "socket.io-client 1-5 s",
            Self::PythonSocketIo => "python-socketio 1-30 s",
            Self::PythonWebsockets => "Python websockets",
            Self::FullJitter => "full jitter 1-60 s",
            Self::EqualJitter => "equal jitter 1-60 s",
            Self::Decorrelated => "decorrelated jitter 5-30 s (mosquitto)",
            Self::Parodus => "parodus",
            Self::NetdataAclk => "netdata ACLK",
            Self::Libocpp => "libocpp",
        }
    }

    /// The wait before the n-th attempt since the last session, from 0; `last` is the wait before that, in s.
    fn wait_s(self, n: u32, last: f64, rng: &mut Rng) -> f64 {
        let doubled = |first: f64, max: f64| (first * 2f64.powi(n.min(60) as i32)).min(max);
        let mut within = |low: f64, high: f64| low + rng.f64() * (high - low);
        match self {
            Self::Fixed => 5.0,
            Self::Exponential => doubled(1.0, 60.0),
            Self::SocketIo => (doubled(1.0, f64::MAX) * within(0.5, 1.5)).min(5.0),
            Self::PythonSocketIo => doubled(1.0, 30.0) + within(-0.5, 0.5),
            Self::PythonWebsockets => match n {
                0 => 0.0,
                1 => within(0.0, 5.0),
                _ => (3.1 * 1.618f64.powi((n - 2).min(60) as i32)).min(90.0),
            },
            Self::FullJitter if n == 0 => 0.0,
            Self::FullJitter => within(0.0, 1.0) * (doubled(0.5, 60.0)),
            Self::EqualJitter => within(0.5, 1.0) * doubled(1.0, 60.0),
            Self::Decorrelated => within(5.0, (last * 3.0).max(5.0)).min(30.0),
            Self::Parodus if n == 0 => 3.0,
            Self::Parodus => within(0.0, doubled(4.0, 512.0) - 1.0).max(3.0),
            Self::NetdataAclk if n == 0 => 0.0,
            Self::NetdataAclk if n > 10 => 1.024,
            Self::NetdataAclk => {
                let base = doubled(0.5, 512.0);
                base + within(0.0, (base / 2.0).max(1.0))
            }
            Self::Libocpp if n == 0 => within(1.0, 3.0),
            Self::Libocpp if n > 2 => last,
            Self::Libocpp => last * 2.0 + within(0.0, 2.0),
        }
    }
}

/// A device that comes back like that.
pub(super) struct PeerDevice {
    peer: Peer,
    rng: Rng,
    /// Attempts since the last session.
    n: u32,
    /// The wait before the last attempt, in s.
    last: f64,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Waiting(Instant),
    Attempting(Instant),
    Up,
}

impl PeerDevice {
    /// With a session, or just booted: its first attempt is at once.
    pub(super) fn new(peer: Peer, seed: u64, boots: bool, now: Instant) -> Self {
        let state = if boots { State::Waiting(now) } else { State::Up };
        Self { peer, rng: Rng::with_seed(seed), n: 0, last: 0.0, state }
    }

    fn wait(&mut self, now: Instant) {
        self.last = self.peer.wait_s(self.n, self.last, &mut self.rng);
        self.n += 1;
        self.state = State::Waiting(now + Duration::from_secs_f64(self.last));
    }
}

impl Device for PeerDevice {
    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(at) | State::Attempting(at) => Some(at),
            State::Up => None,
        }
    }

    fn on_deadline(&mut self, now: Instant) -> Wants {
        match self.state {
            State::Waiting(_) => {
                self.state = State::Attempting(now + ATTEMPT_TIMEOUT);
                Wants { attempt: true, ..Wants::default() }
            }
            State::Attempting(_) => {
                self.wait(now);
                Wants { abandon: true, ..Wants::default() }
            }
            State::Up => Wants::default(),
        }
    }

    fn on_answer(&mut self, answer: Answer, now: Instant) -> Wants {
        match answer {
            Answer::Welcome => (self.n, self.last, self.state) = (0, 0.0, State::Up),
            // They do not know it: a close like any other.
            Answer::Failed(_) | Answer::Lost | Answer::Retry { .. } => self.wait(now),
            Answer::Pong => {}
        }
        Wants::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first waits of one device, in s.
    fn waits(peer: Peer, seed: u64) -> Vec<f64> {
        let (mut rng, mut last) = (Rng::with_seed(seed), 0.0);
        let wait = |n| {
            last = peer.wait_s(n, last, &mut rng);
            last
        };
        (0..14).map(wait).collect()
    }

    #[test]
    fn each_formula_stays_within_its_bounds_and_reaches_its_end() {
        let doubled = |first: f64, max: f64| move |n: i32| (first * 2f64.powi(n)).min(max);
        for seed in 0..500 {
            let of = |peer| waits(peer, seed);
            let within = |peer, low: &dyn Fn(i32) -> f64, high: &dyn Fn(i32) -> f64| {
                for (n, wait) in (0..).zip(of(peer)) {
                    assert!((low(n)..=high(n)).contains(&wait), "{peer:?} {n}: {wait}");
                }
            };
            let minute = doubled(1.0, 60.0);
            assert!(of(Peer::Fixed).iter().all(|wait| *wait == 5.0));
            within(Peer::Exponential, &minute, &minute);
            within(Peer::EqualJitter, &|n| minute(n) / 2.0, &minute);
            within(Peer::FullJitter, &|_| 0.0, &|n| if n == 0 { 0.0 } else { minute(n - 1) });
            // Cut off after the jitter: many at exactly the cap.
            within(Peer::SocketIo, &|n| doubled(0.5, 5.0)(n), &|n| doubled(1.5, 5.0)(n));
            within(Peer::PythonSocketIo, &|n| doubled(1.0, 30.0)(n) - 0.5, &|n| doubled(1.0, 30.0)(n) + 0.5);
            within(Peer::Decorrelated, &|_| 5.0, &|_| 30.0);
            within(Peer::Parodus, &|_| 3.0, &|n| if n == 0 { 3.0 } else { doubled(4.0, 512.0)(n) - 1.0 });
            let websockets = of(Peer::PythonWebsockets);
            assert!(websockets[0] == 0.0 && websockets[1] <= 5.0 && websockets[2] == 3.1 && websockets[13] == 90.0);
            let netdata = of(Peer::NetdataAclk);
            assert!(netdata[0] == 0.0 && (512.0..=768.0).contains(&netdata[10]) && netdata[11] == 1.024, "{netdata:?}");
            let libocpp = of(Peer::Libocpp);
            assert!((1.0..=3.0).contains(&libocpp[0]) && (4.0..=18.0).contains(&libocpp[2]), "{libocpp:?}");
            assert!(libocpp[3..].iter().all(|wait| *wait == libocpp[2]), "frozen: {libocpp:?}");
        }
    }
}
