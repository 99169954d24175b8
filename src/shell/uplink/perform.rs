//! What goes out: each thing that the core wants, performed.

use std::mem;
use std::rc::Rc;
use std::time::Duration;

use log::{debug, info, warn};

use super::{Exit, Reactor, Transport, UPSTREAM};
use crate::dialect::Purpose;
use crate::link::Failure;
use crate::record::{Fetch, Seq};
use crate::shell::port::Refusal;
use crate::shell::remedy::Run;
use crate::shell::{clock, saved};
use crate::upstream::{Input, Output};

impl Reactor {
    /// Performs what the core wants, until it wants nothing more.
    pub(super) fn perform(&mut self) {
        while let Some(output) = self.upstream.poll_output() {
            if let Err(failure) = self.perform_one(output) {
                self.drop_transport(None);
                self.upstream.handle_input(Input::Failed(failure), clock::now());
            }
        }
    }

    fn perform_one(&mut self, output: Output) -> Result<(), Failure> {
        match output {
            Output::Resolve { endpoint, recheck } => self.resolve(endpoint, recheck),
            Output::Dial { address } => self.dial(address),
            Output::Probe { endpoint } => self.probe(endpoint),
            Output::Remedy { step } => self.remedy(step),
            Output::Transmit { frame, purpose } => {
                if let Transport::Open(open) = &mut self.transport {
                    open.send(frame, purpose);
                }
            }
            Output::Ping { counter } => {
                if let Transport::Open(open) = &mut self.transport {
                    match counter {
                        Some(counter) => open.ping_behind(counter),
                        None => open.ping()?,
                    }
                }
            }
            Output::Drop { close } => {
                self.dialing.abandon();
                self.drop_transport(close);
            }
            Output::Fetch(fetch) => self.outbox.give(|outbox| replace_fetch(&mut outbox.fetches, fetch)),
            Output::Acked { lane, epoch, seq } => self.outbox.give(|outbox| {
                let acked: &mut Seq = outbox.acks.entry((lane, epoch)).or_default();
                *acked = seq.max(*acked);
            }),
            Output::Rejected { lane, epoch, seq, reason, ours } => {
                let refusal = Refusal { reason, ours };
                self.outbox.give(|outbox| outbox.rejected.insert((lane, epoch, seq), refusal));
            }
            Output::Foreign { lane, epoch } => self.outbox.give(|outbox| outbox.foreign.push((lane, epoch))),
            Output::ServerTime { now_ms } => {
                let told = Some((now_ms, clock::now()));
                self.outbox.lock().server_time = told;
                if clock::confirm(now_ms) {
                    warn!(target: "uplink", "the upstream confirms the clock: files of a later time were a wrong one's");
                    self.on_clock();
                }
            }
            Output::Changed => self.view_is_stale = true,
            Output::Event { kind, detail } => {
                warn!(target: "uplink", "event kind={kind} detail={detail:?}");
                (self.setup.event)(kind, &detail);
            }
            Output::Command(command) => {
                self.commands += 1;
                self.board.commands.lock().received = self.commands;
                debug!(target: "uplink", "command seq={} topic={:?}", command.seq, command.topic);
                (self.setup.command)(command);
            }
            Output::Save(saved) => self.keeping.keep(saved, &self.setup, &self.outbox),
            Output::SaveDay(saved) => saved::keep(&self.setup.day_file, saved),
            Output::GiveUp => self.exit = Some(Exit::GaveUp),
        }
        Ok(())
    }

    fn resolve(&mut self, endpoint: u8, recheck: bool) {
        self.endpoint = endpoint.into();
        let reach = &self.reaches[self.endpoint];
        if let Err(failure) = self.dialing.prepare(self.endpoint, reach, recheck) {
            self.upstream.handle_input(Input::Failed(failure), clock::now());
        }
    }

    fn dial(&mut self, address: u8) {
        let (reach, meter) = (&self.reaches[self.endpoint], Rc::clone(&self.meter));
        if let Err(failure) = self.dialing.dial(address, reach, meter, self.poll.registry(), UPSTREAM) {
            self.upstream.handle_input(Input::DialFailed { address, failure }, clock::now());
        }
    }

    fn probe(&mut self, endpoint: u8) {
        let timeout = Duration::from_millis(self.setup.upstream.link.handshake_timeout_ms);
        if !self.dialing.probe(endpoint, &self.reaches[usize::from(endpoint)], timeout) {
            self.upstream.handle_input(Input::Probed { endpoint, ok: false }, clock::now());
        }
    }

    pub(super) fn drop_transport(&mut self, close: Option<u16>) {
        self.upgraded = None;
        (self.path, self.rtts) = (None, 0);
        self.dialing.drop_sockets();
        match (mem::take(&mut self.transport), close) {
            (Transport::Open(open), Some(code)) => open.close(code),
            (Transport::None | Transport::Handshake(_) | Transport::Open(_), _) => (),
        }
        self.meter.claim_received(Purpose::Handshake);
    }

    /// Tells the core what the meter shows.
    pub(super) fn count(&mut self) {
        let wire = self.meter.wire();
        let bytes = wire.bytes_sent + wire.bytes_received;
        if bytes != mem::replace(&mut self.counted, bytes) {
            self.tell(Input::Wire(bytes));
            // What that allows again goes out.
            self.flush();
        }
    }

    /// A session is up: what waits behind the remedy that runs is not needed any more.
    pub(super) fn drop_remedies(&mut self) {
        for (step, exec) in self.setup.runner.drop_runs() {
            let program = exec.first().map_or("", String::as_str);
            info!(target: "uplink", "remedy not run, a session is up program={program}");
            // A reload may have moved it meanwhile; one program may be several steps.
            let is_at = |step: usize| self.setup.remedies.get(step).is_some_and(|remedy| remedy.exec == exec);
            let moved = || (0..self.setup.remedies.len()).find(|step| is_at(*step));
            let step = if is_at(step.into()) { Some(step.into()) } else { moved() };
            if let Some(step) = step.and_then(|step| u8::try_from(step).ok()) {
                self.tell(Input::RemedyDropped { step });
            }
        }
    }

    /// That it is run is on flash before it is run: it may be what takes our power.
    fn remedy(&mut self, step: u8) {
        let Some(remedy) = self.setup.remedies.get(usize::from(step)) else { return };
        let down_s = self.keeping.down_s(clock::now());
        let class = self.upstream.view().last_failure.map_or("none", |(class, ..)| class.name());
        let program = remedy.exec.first().map_or("", String::as_str);
        warn!(target: "uplink", "remedy step={step} down_s={down_s} class={class} program={program}");
        (self.setup.event)("remedy", &format!("no session for {down_s} s ({class}): step {step} runs {program}"));
        self.setup.runner.run(Run {
            step,
            exec: remedy.exec.clone(),
            timeout: Duration::from_secs(remedy.timeout_s),
            environment: [("BACKHAUL_DOWN_S", down_s.to_string()), ("BACKHAUL_CLASS", class.to_owned())],
            before: self.keeping.errand(&self.setup, &self.outbox),
        });
    }
}

/// One question a (lane, epoch): the newest stands.
fn replace_fetch(fetches: &mut Vec<Fetch>, fetch: Fetch) {
    fetches.retain(|other| other.epoch != fetch.epoch || other.lane != fetch.lane);
    fetches.push(fetch);
}
