//! One device of the fleet: how it wants to be driven, and the one that counts, an agent's own link.

use std::sync::Arc;

use fastrand::Rng;

use super::TurnedAway;
use crate::link::{Class, Config, Failure, Input, Link, Output};
use crate::time::Instant;

/// What reaches a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The session is up.
    Welcome,
    /// The attempt failed like this.
    Failed(Refusal),
    /// The session was reset.
    Lost,
    /// The server asks it to leave and come back after so many ms.
    Retry { after_ms: u64 },
    /// A pong.
    Pong,
}

/// Why an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing listens.
    Refused,
    /// The connection was reset.
    Reset,
    /// 503, with the server's word on when to come back if it gave one.
    Unavailable(Option<TurnedAway>),
}

/// What a device wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wants {
    /// What was under way is given up.
    pub(super) abandon: bool,
    /// Dial.
    pub(super) attempt: bool,
    /// Send a ping.
    pub(super) ping: bool,
}

/// One way of coming back. Times are the simulation's.
pub(super) trait Device {
    /// When to call [`Device::on_deadline`]; `None`: never again.
    fn deadline(&self) -> Option<Instant>;
    /// Its time has come.
    fn on_deadline(&mut self, now: Instant) -> Wants;
    /// Something reached it.
    fn on_answer(&mut self, answer: Answer, now: Instant) -> Wants;
}

/// An agent's link, behind a clock that is not quite right.
pub(super) struct LinkDevice {
    link: Link,
    tls: bool,
    clock: Clock,
}

/// A boot clock: when it began and how wrong it runs.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// Behind the simulation's, in µs.
    behind: u64,
    /// Parts per million.
    drift: i64,
}

impl Clock {
    fn at(self, now: Instant) -> Instant {
        let passed = i128::from(now.as_micros().saturating_sub(self.behind));
        Instant::from_micros((passed + passed * i128::from(self.drift) / 1_000_000).max(0) as u64)
    }

    /// The first instant at which it shows `local`, or a little later.
    fn when(self, local: Instant) -> Instant {
        let local = local.as_micros();
        let passed = (i128::from(local) * 1_000_000 / i128::from(1_000_000 + self.drift)) as u64;
        let mut at = Instant::from_micros(self.behind.saturating_add(passed));
        while self.at(at).as_micros() < local {
            at = Instant::from_micros(at.as_micros() + local - self.at(at).as_micros());
        }
        at
    }
}

impl LinkDevice {
    /// A device that boots at `now`.
    pub(super) fn booting(config: &Arc<Config>, seed: u64, drift_ppm_max: u32, now: Instant) -> Self {
        Self::new(config, seed, drift_ppm_max, true, now, now)
    }

    /// A device whose session has proved stable by `now`, each at another point of its heartbeat.
    pub(super) fn stable(config: &Arc<Config>, seed: u64, drift_ppm_max: u32, now: Instant) -> Self {
        let mut rng = Rng::with_seed(seed ^ 0x6865_7264);
        let phase_ms = rng.u64(0..=config.heartbeat.interval_ms.min(3_600_000));
        let age_us = (config.reconnect.stable_after_ms.min(3_600_000) + phase_ms + 1_000) * 1_000;
        let up_at = Instant::from_micros(now.as_micros().saturating_sub(age_us));
        let booted = Instant::from_micros(up_at.as_micros().saturating_sub(rng.u64(0..3_600_000_000)));
        let mut device = Self::new(config, seed, drift_ppm_max, false, booted, up_at);
        while let Some(at) = device.deadline().filter(|at| *at < now) {
            let wants = device.on_deadline(at);
            if wants.attempt {
                device.on_answer(Answer::Welcome, at);
            }
            if wants.ping {
                device.on_answer(Answer::Pong, at);
            }
        }
        device
    }

    fn new(
        config: &Arc<Config>,
        seed: u64,
        drift_ppm_max: u32,
        fresh_boot: bool,
        booted: Instant,
        now: Instant,
    ) -> Self {
        let drift_ppm_max = i64::from(drift_ppm_max);
        let drift = Rng::with_seed(seed ^ 0x636c_6f63).i64(-drift_ppm_max..=drift_ppm_max);
        let clock = Clock { behind: booted.as_micros(), drift };
        Self {
            link: Link::new(config.clone(), seed, None, fresh_boot, clock.at(now)),
            tls: config.endpoints_tls.first().copied().unwrap_or(true),
            clock,
        }
    }

    /// Does what the link asks for where that needs no server.
    fn pump(&mut self, now: Instant) -> Wants {
        let mut wants = Wants::default();
        while let Some(output) = self.link.poll_output() {
            match output {
                Output::Resolve { .. } => self.link.handle_input(Input::Resolved { addresses: 1 }, now),
                Output::Dial { .. } => wants.attempt = true,
                Output::Ping => {
                    self.link.handle_input(Input::PingFlushed, now);
                    wants.ping = true;
                }
                Output::Drop { .. } => wants.abandon = true,
                Output::Probe { .. } | Output::Changed | Output::Save(_) | Output::Remedy { .. } | Output::GiveUp => {}
            }
        }
        wants
    }
}

impl Device for LinkDevice {
    fn deadline(&self) -> Option<Instant> {
        self.link.poll_timeout().map(|(at, _)| self.clock.when(at))
    }

    fn on_deadline(&mut self, now: Instant) -> Wants {
        let now = self.clock.at(now);
        self.link.handle_timeout(now);
        self.pump(now)
    }

    fn on_answer(&mut self, answer: Answer, now: Instant) -> Wants {
        let now = self.clock.at(now);
        match answer {
            Answer::Welcome => {
                self.link.handle_input(Input::Dialed { address: 0 }, now);
                if self.tls {
                    self.link.handle_input(Input::Secured, now);
                }
                for input in [Input::Upgraded, Input::Greeted, Input::Proved] {
                    self.link.handle_input(input, now);
                }
            }
            Answer::Failed(refusal) => {
                let failure = match refusal {
                    Refusal::Refused => Failure::new(Class::Refused, "dialing: refused"),
                    Refusal::Reset => Failure::new(Class::Reset, "upgrading: reset"),
                    Refusal::Unavailable(word) => {
                        let word = word.map(|word| (word.after_s.saturating_mul(1000), word.spread_ms));
                        Failure::from_http(
                            503,
                            word.map(|(after_ms, _)| after_ms),
                            word.map(|(_, spread_ms)| spread_ms),
                        )
                    }
                };
                self.link.handle_input(Input::Failed(failure), now);
            }
            Answer::Lost => self.link.handle_input(Input::Failed(Failure::new(Class::Reset, "up: reset")), now),
            Answer::Retry { after_ms } => {
                self.link.handle_input(Input::Retry { after_ms, spread_ms: 0, endpoint: None }, now);
            }
            Answer::Pong => self.link.handle_input(Input::Pong, now),
        }
        self.pump(now)
    }
}
