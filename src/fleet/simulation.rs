//! Plays a scenario: takes out what happens next, hands it to the device or the server that it concerns, and counts.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;

use super::device::{Answer, Device, LinkDevice, Refusal, Wants};
use super::events::{Event, Events, Kind};
use super::outcome::{Back, Outcome};
use super::peers::{Peer, PeerDevice};
use super::scenario::{Down, Scenario, Start};
use super::server::{Meets, Server};
use crate::link::Config;
use crate::time::Instant;

/// Second 0 of a run: late enough that whatever came before has a time.
const LOSS: Instant = Instant::from_micros(100 * 3_600 * 1_000_000);

/// Round trips from the first SYN to a refusal by HTTP: TCP, TLS 1.3, the request.
const ROUND_TRIPS_REFUSED: u32 = 3;
/// To the greeting.
const ROUND_TRIPS_WELCOME: u32 = 4;

/// Plays `scenario` with devices whose link is configured so. `progress` is called once for each of its seconds with
/// the second and the number of devices that are connected.
pub fn run(scenario: &Scenario, config: &Arc<Config>, progress: &mut dyn FnMut(u64, u32)) -> Outcome {
    let drift = scenario.drift_ppm_max;
    Simulation::new(scenario, |seed, at| match scenario.boots() {
        true => LinkDevice::booting(config, seed, drift, at),
        false => LinkDevice::stable(config, seed, drift, at),
    })
    .play(progress)
}

/// The same with devices that follow another program's formula.
pub fn run_peers(scenario: &Scenario, peer: Peer, progress: &mut dyn FnMut(u64, u32)) -> Outcome {
    Simulation::new(scenario, |seed, at| PeerDevice::new(peer, seed, scenario.boots(), at)).play(progress)
}

struct Simulation<'a, D> {
    scenario: &'a Scenario,
    seats: Vec<Seat<D>>,
    server: Server,
    events: Events,
    rng: Rng,
    connected: u32,
    /// The backlog's next turn is among the events.
    turn_awaited: bool,
    tally: Tally,
}

/// A device and what the simulation knows of it.
struct Seat<D> {
    device: D,
    rtt_us: u32,
    attempts: u32,
    /// Of the attempt or session under way; what is of an earlier one is of no concern.
    generation: u16,
    /// The life of the server that its session is of.
    session: Option<u32>,
    /// The server has that session, too.
    online: bool,
    /// What it will be answered.
    answer: Option<Answer>,
    /// The timer entry that counts.
    timer_at: u64,
    /// When it was last welcomed, in µs.
    back_at: u64,
    /// Without a session so far, in µs; up to `back_at`.
    offline_us: u64,
    /// Since when it is without one.
    lost_at: u64,
}

#[derive(Default)]
struct Tally {
    attempts: Vec<u32>,
    connected: Vec<u32>,
    fell_over: u32,
}

impl<'a, D: Device> Simulation<'a, D> {
    fn new(scenario: &'a Scenario, device: impl Fn(u64, Instant) -> D) -> Self {
        let mut rng = Rng::with_seed(scenario.seed);
        let boot_spread_us = match scenario.start {
            Start::PowerCut { boot_spread_ms } => boot_spread_ms * 1000,
            Start::Outage { .. } | Start::Planned { .. } => 0,
        };
        let seats = (0..scenario.devices).map(|_| Seat {
            device: device(rng.u64(..), LOSS + Duration::from_micros(rng.u64(0..=boot_spread_us))),
            rtt_us: rng.u32(scenario.rtt_ms.0..=scenario.rtt_ms.1.max(scenario.rtt_ms.0)) * 1000,
            attempts: 0,
            generation: 0,
            session: None,
            online: false,
            answer: None,
            timer_at: u64::MAX,
            back_at: 0,
            offline_us: 0,
            lost_at: LOSS.as_micros(),
        });
        Self {
            seats: seats.collect(),
            server: Server::new(scenario.server, LOSS),
            events: Events::default(),
            rng,
            connected: 0,
            turn_awaited: false,
            tally: Tally::default(),
            scenario,
        }
    }

    fn play(mut self, progress: &mut dyn FnMut(u64, u32)) -> Outcome {
        self.begin();
        let end = LOSS + Duration::from_secs(self.scenario.horizon_s);
        let (mut second, mut now) = (0, LOSS);
        while let Some(event) = self.events.pop() {
            now = Instant::from_micros(event.at);
            while second < now.since(LOSS).as_secs() {
                self.tally.connected.push(self.connected);
                progress(second, self.connected);
                second += 1;
            }
            if now > end || self.is_over(second) {
                break;
            }
            self.handle(event, now);
        }
        self.tally.connected.push(self.connected);
        self.outcome(now)
    }

    /// All are back, and it is past the recovery.
    fn is_over(&self, second: u64) -> bool {
        self.connected == self.scenario.devices && second >= self.scenario.recovery_s()
    }

    fn begin(&mut self) {
        match self.scenario.start {
            Start::Outage { seconds, down, loss_spread_ms } => {
                self.give_sessions();
                self.go_down(down, loss_spread_ms, LOSS);
                self.events.push_server((LOSS + Duration::from_secs(seconds)).as_micros(), Kind::ServerUp);
            }
            Start::Planned { restart_spread_ms } => {
                self.give_sessions();
                self.server.go_down(Down::Refused);
                self.server.come_up(LOSS);
                self.connected = 0;
                let devices = u64::from(self.scenario.devices);
                for index in 0..self.scenario.devices {
                    let after_ms = u64::from(index) * restart_spread_ms / devices;
                    let seat = &mut self.seats[index as usize];
                    (seat.session, seat.online, seat.answer) = (None, false, Some(Answer::Retry { after_ms }));
                    let at = LOSS.as_micros() + u64::from(seat.rtt_us / 2);
                    self.events.push(Event { at, kind: Kind::Answer, generation: seat.generation, device: index });
                }
            }
            Start::PowerCut { .. } => {}
        }
        for index in 0..self.scenario.devices {
            self.schedule(index);
        }
    }

    /// The fleet is at rest.
    fn give_sessions(&mut self) {
        for seat in &mut self.seats {
            (seat.session, seat.online) = (Some(self.server.life), true);
        }
        self.connected = self.scenario.devices;
    }

    fn handle(&mut self, event: Event, now: Instant) {
        let Event { at, kind, generation, device } = event;
        let stale = |seat: &Seat<D>| seat.generation != generation;
        match kind {
            Kind::ServerUp => self.server.come_up(now),
            Kind::Backlog => self.on_backlog(now),
            Kind::Arrive => {
                self.count_attempt(device, now);
                if !stale(&self.seats[device as usize]) {
                    self.on_arrival(device, now);
                }
            }
            Kind::Answer => {
                if !stale(&self.seats[device as usize]) {
                    self.on_answer(device, now);
                }
            }
            Kind::Lost | Kind::Pong => {
                if !stale(&self.seats[device as usize]) {
                    let answer = if kind == Kind::Pong { Answer::Pong } else { Answer::Lost };
                    self.tell(device, answer, now);
                }
            }
            Kind::Timer => {
                if self.seats[device as usize].timer_at == at {
                    let wants = self.seats[device as usize].device.on_deadline(now);
                    self.seats[device as usize].timer_at = u64::MAX;
                    self.follow(device, wants, now);
                }
            }
        }
    }

    fn count_attempt(&mut self, device: u32, now: Instant) {
        self.seats[device as usize].attempts += 1;
        let second = now.since(LOSS).as_secs() as usize;
        if self.tally.attempts.len() <= second {
            self.tally.attempts.resize(second + 1, 0);
        }
        self.tally.attempts[second] += 1;
    }

    fn on_arrival(&mut self, device: u32, now: Instant) {
        let generation = self.seats[device as usize].generation;
        let (meets, falls) = self.server.on_attempt(device, generation, now);
        match meets {
            Meets::Welcome => self.welcome(device, now),
            Meets::Queued => self.wait_for_turn(),
            Meets::Silence => {}
            Meets::Refusal(refusal) => {
                let by_http = matches!(refusal, Refusal::Unavailable(_));
                self.answer(device, Answer::Failed(refusal), if by_http { ROUND_TRIPS_REFUSED } else { 1 }, now);
            }
        }
        if falls {
            self.tally.fell_over += 1;
            self.go_down(Down::Refused, 0, now);
            let up_at = now + Duration::from_secs(self.scenario.server.stands_up_s.into());
            self.events.push_server(up_at.as_micros(), Kind::ServerUp);
        }
    }

    fn welcome(&mut self, device: u32, now: Instant) {
        self.seats[device as usize].session = Some(self.server.life);
        self.answer(device, Answer::Welcome, ROUND_TRIPS_WELCOME, now);
    }

    /// What the device is answered after so many of its round trips, of which half a one is over.
    fn answer(&mut self, device: u32, answer: Answer, round_trips: u32, now: Instant) {
        let seat = &mut self.seats[device as usize];
        seat.answer = Some(answer);
        let at = now.as_micros() + u64::from(seat.rtt_us) * u64::from(round_trips) - u64::from(seat.rtt_us / 2);
        self.events.push(Event { at, kind: Kind::Answer, generation: seat.generation, device });
    }

    fn on_answer(&mut self, device: u32, now: Instant) {
        let seat = &mut self.seats[device as usize];
        let Some(mut answer) = seat.answer.take() else { return };
        if answer == Answer::Welcome {
            if seat.session == Some(self.server.life) && !self.server.is_down() {
                self.connected += 1;
                seat.online = true;
                seat.back_at = now.as_micros();
                seat.offline_us += now.as_micros().saturating_sub(seat.lost_at);
            } else {
                // The server fell over in the middle of the handshake.
                seat.session = None;
                answer = Answer::Failed(Refusal::Reset);
            }
        }
        self.tell(device, answer, now);
    }

    /// Something reaches the device.
    fn tell(&mut self, device: u32, answer: Answer, now: Instant) {
        let wants = self.seats[device as usize].device.on_answer(answer, now);
        self.follow(device, wants, now);
    }

    /// Does what the device wants.
    fn follow(&mut self, device: u32, wants: Wants, now: Instant) {
        let (silent, down, life) = (self.server.is_silent(), self.server.is_down(), self.server.life);
        let seat = &mut self.seats[device as usize];
        if wants.abandon || wants.attempt {
            seat.generation = seat.generation.wrapping_add(1);
            seat.answer = None;
            seat.session = None;
            if std::mem::take(&mut seat.online) {
                // It left a session that the server still had.
                self.connected -= 1;
                seat.lost_at = now.as_micros();
            }
        }
        let (rtt_us, generation) = (u64::from(seat.rtt_us), seat.generation);
        if wants.attempt {
            let at = now.as_micros() + rtt_us / 2;
            self.events.push(Event { at, kind: Kind::Arrive, generation, device });
        }
        if wants.ping && !silent {
            let known = seat.session == Some(life) && !down;
            let kind = if known { Kind::Pong } else { Kind::Lost };
            self.events.push(Event { at: now.as_micros() + rtt_us, kind, generation, device });
        }
        self.schedule(device);
    }

    fn schedule(&mut self, device: u32) {
        let seat = &mut self.seats[device as usize];
        let at = seat.device.deadline().map_or(u64::MAX, Instant::as_micros);
        if at != seat.timer_at && at != u64::MAX {
            self.events.push(Event { at, kind: Kind::Timer, generation: 0, device });
        }
        seat.timer_at = at;
    }

    /// All sessions are gone. Unless the server falls silent, each device notices within the spread.
    fn go_down(&mut self, down: Down, loss_spread_ms: u64, now: Instant) {
        for (device, generation) in self.server.go_down(down) {
            if down != Down::Silent && self.seats[device as usize].generation == generation {
                self.answer(device, Answer::Failed(Refusal::Reset), 1, now);
            }
        }
        for index in 0..self.scenario.devices {
            let seat = &mut self.seats[index as usize];
            // One whose welcome is still under way finds out by itself.
            if !std::mem::take(&mut seat.online) {
                continue;
            }
            seat.lost_at = now.as_micros();
            if down != Down::Silent {
                seat.session = None;
                let spread_us = self.rng.u64(0..=loss_spread_ms * 1000);
                let at = now.as_micros() + u64::from(seat.rtt_us / 2) + spread_us;
                self.events.push(Event { at, kind: Kind::Lost, generation: seat.generation, device: index });
            }
        }
        self.connected = 0;
    }

    /// One turn is waited for at a time, however many wait.
    fn wait_for_turn(&mut self) {
        if self.turn_awaited {
            return;
        }
        if let Some(at) = self.server.backlog_at() {
            self.turn_awaited = true;
            self.events.push_server(at.as_micros(), Kind::Backlog);
        }
    }

    fn on_backlog(&mut self, now: Instant) {
        self.turn_awaited = false;
        while let Some((device, generation)) = self.server.on_turn(now) {
            if self.seats[device as usize].generation == generation {
                self.welcome(device, now);
            }
        }
        self.wait_for_turn();
    }

    fn outcome(self, now: Instant) -> Outcome {
        let recovery_s = self.scenario.recovery_s();
        let recovery = LOSS + Duration::from_secs(recovery_s);
        let devices = f64::from(self.scenario.devices);
        let back_s = self.seats.iter().filter(|seat| seat.online);
        let back_s = back_s.map(|seat| Instant::from_micros(seat.back_at).since(recovery).as_secs_f64()).collect();
        let offline_us = |seat: &Seat<D>| {
            let still_us = if seat.online { 0 } else { now.as_micros().saturating_sub(seat.lost_at) };
            (seat.offline_us + still_us) as f64
        };
        let attempts = self.tally.attempts;
        let after = attempts.get(recovery_s as usize..).unwrap_or_default();
        Outcome {
            attempts_per_s_peak: attempts.iter().copied().max().unwrap_or(0),
            attempts_per_s_peak_after: after.iter().copied().max().unwrap_or(0),
            attempts_per_device: self.seats.iter().map(|seat| f64::from(seat.attempts)).sum::<f64>() / devices,
            attempts_per_device_max: self.seats.iter().map(|seat| seat.attempts).max().unwrap_or(0),
            back_s: Back::of(back_s, self.scenario.devices),
            bound_s: self.scenario.bound_s(),
            offline_s_mean: self.seats.iter().map(offline_us).sum::<f64>() / devices / 1e6,
            fell_over: self.tally.fell_over,
            attempts,
            connected: self.tally.connected,
            recovery_s,
        }
    }
}
