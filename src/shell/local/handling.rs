//! Handlers: subscribers of the desk that are programs. One command at a time each; it is done when its report is on
//! flash, under a key that makes one record of it however often it is handed in.

use std::sync::Arc;
use std::time::Duration;

use super::Local;
use crate::commands::filter::Filter;
use crate::config::Handler;
use crate::outbox::Draft;
use crate::record::Body;
use crate::shell::clock;
use crate::shell::handler::{self, Report};
use crate::shell::port::{Answer, Outcome, Put, Ticket, Wait};
use crate::time::Instant;

/// Handlers are the desk's clients from here down: far above any client's name.
const FIRST: u64 = u64::MAX;
/// From one try to the next to put a report on flash.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A handler and what it does now.
#[derive(Debug)]
pub(super) struct Handling {
    handler: Handler,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    Running,
    /// Its report of this command is with the outbox thread.
    Reporting(u64, Box<Put>),
    /// The outbox did not take it; again from then on.
    Refused(u64, Box<Put>, Instant),
}

impl Local {
    /// Each handler asks for its topics, and always answers.
    pub(super) fn hire(&mut self, handlers: Vec<Handler>) {
        for (number, handler) in handlers.into_iter().enumerate() {
            match Filter::try_new(&handler.topic) {
                Ok(filter) => {
                    let hired = self.desk.handle_subscribe(client_of(number), filter, true, clock::now());
                    debug_assert!(hired.is_ok(), "one filter each");
                }
                Err(fault) => log::error!(target: "local", "no handler for topic={:?} error={fault}", handler.topic),
            }
            self.handlers.push(Handling { handler, state: State::Idle });
        }
    }

    /// Which handler a name is of.
    pub(super) fn handler_of(&self, client: u64) -> Option<usize> {
        usize::try_from(FIRST - client).ok().filter(|number| *number < self.handlers.len())
    }

    /// Gives commands to those that are idle, and reports to the outbox that it did not take before.
    pub(super) fn serve_handlers(&mut self, now: Instant) {
        for number in 0..self.handlers.len() {
            let Handling { handler, state } = &mut self.handlers[number];
            match std::mem::replace(state, State::Idle) {
                State::Idle => {
                    let Some(command) = self.desk.poll_next(client_of(number)) else { continue };
                    let port = Arc::clone(&self.port);
                    let tell = move |report| port.give(|cell| cell.handled.push(report));
                    self.runs.start(number, handler, command, tell);
                    *state = State::Running;
                }
                State::Refused(seq, put, at) if at <= now => self.hand_in(number, seq, put),
                other @ (State::Running | State::Reporting(..) | State::Refused(..)) => *state = other,
            }
        }
    }

    /// When [`Local::serve_handlers`] wants to be called.
    pub(super) fn handlers_due(&self) -> Option<Instant> {
        let due = self.handlers.iter().filter_map(|handling| match handling.state {
            State::Refused(_, _, at) => Some(at),
            State::Idle | State::Running | State::Reporting(..) => None,
        });
        due.min()
    }

    /// A program has ended: its report goes to the outbox.
    pub(super) fn take_report(&mut self, report: &Report) {
        let number = report.handler;
        let Some(Handling { handler, .. }) = self.handlers.get(number) else { return };
        let (stream, seq) = (report.command.stream, report.command.seq);
        let how = match &report.end {
            Ok(end) => format!("{:?} bytes={}", end.code, end.output.len()),
            Err(fault) => format!("{fault:?}"),
        };
        let program = handler.exec.first().map_or("", String::as_str);
        log::info!(target: "local", "handler ended program={program} seq={seq} how={how}");
        let reply = !handler.reply_topic.is_empty();
        let lane = if reply { &handler.reply_lane } else { &self.setup.events_lane };
        let draft = Draft {
            at: clock::wall_ms_if_set(),
            boot: self.setup.boot,
            boot_ms: clock::now().as_millis(),
            ttl_s: 0,
            topic: if reply { handler.reply_topic.replace("{seq}", &seq.to_string()) } else { "$event".into() },
            key: Some(format!("command-{stream}-{seq}-{number}")),
            body: Body::Text(handler::body(report, reply)),
        };
        let lane = Some(lane.clone()).filter(|lane| !lane.is_empty());
        let ticket = Some(Ticket { client: client_of(number), request: seq });
        self.hand_in(number, seq, Box::new(Put { ticket, lane, draft, wait: Some(Wait::Committed) }));
    }

    /// What became of a report.
    pub(super) fn take_report_outcome(&mut self, number: usize, outcome: Outcome) {
        let Some(handling) = self.handlers.get_mut(number) else { return };
        let State::Reporting(seq, put) = std::mem::replace(&mut handling.state, State::Idle) else { return };
        match outcome.answer {
            Answer::Accepted | Answer::Committed | Answer::Delivered => {}
            Answer::Error("unknown_lane" | "too_large" | "bad_request", message) => {
                // It never will be taken.
                log::warn!(target: "local", "a handler's report is dropped seq={seq} error={message:?}");
            }
            Answer::Error(code, message) => {
                log::debug!(target: "local", "a handler's report waits seq={seq} code={code} error={message:?}");
                handling.state = State::Refused(seq, put, clock::now() + RETRY_INTERVAL);
                return;
            }
        }
        self.desk.handle_done(client_of(number), seq, clock::now());
    }

    fn hand_in(&mut self, number: usize, seq: u64, put: Box<Put>) {
        self.puts_bytes += put.draft.bytes();
        self.puts.push(Put::clone(&put));
        self.handlers[number].state = State::Reporting(seq, put);
    }
}

fn client_of(number: usize) -> u64 {
    FIRST - number as u64
}
