//! Commands and the clients that asked for them: the desk decides, this hands over.

use std::time::Duration;

use super::Local;
use super::client::Client;
use super::request::{Id, Refusal};
use crate::commands::desk::Counts;
use crate::commands::filter::Filter;
use crate::shell::clock;
use crate::time::Instant;

/// Between two events of this kind: a server may send what nobody wants all day.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

impl Local {
    pub(super) fn subscribe(&mut self, client: &mut Client, filter: Filter, id: Option<Id>) {
        match self.desk.handle_subscribe(client.name, filter, false, clock::now()) {
            Ok(()) => client.expect_commands(id),
            Err(fault) => client.refuse(Refusal::new("bad_request", fault.into(), id)),
        }
    }

    pub(super) fn take_done(&mut self, client: &mut Client, seq: u64, stream: Option<u64>, id: Option<Id>) {
        // Of another numbering: it was given it, and the server that sent it is no more.
        if stream.is_some_and(|stream| stream != self.desk.stream()) {
            return;
        }
        if !self.desk.handle_done(client.name, seq, clock::now()) {
            let message = format!("no command {seq} was given to this connection");
            client.refuse(Refusal::new("bad_request", message, id));
        }
    }

    /// When it is to be told that commands are done without an answer: now and then, not of each.
    pub(super) fn losses_due(&self) -> Option<Instant> {
        let (now, told) = (self.desk.counts(), self.counts);
        let is_news = (now.unclaimed, now.timed_out) != (told.unclaimed, told.timed_out);
        is_news.then(|| self.told_at.map_or_else(Instant::default, |at| at + TELL_INTERVAL))
    }

    /// Answers and commands, as far as the client's socket takes them.
    pub(super) fn serve(&mut self, client: &mut Client) {
        client.flush(self);
        while client.wants_command()
            && let Some(command) = self.desk.poll_next(client.name)
        {
            client.give_command(command);
            client.flush(self);
        }
    }

    /// What became of commands goes to the status, and upstream where somebody should know.
    pub(super) fn show_commands(&mut self) {
        let (counts, waiting) = (self.desk.counts(), self.desk.waiting() as u64);
        let Counts { delivered, unclaimed, timed_out } = counts;
        {
            let mut board = self.setup.source.board.commands.lock();
            (board.delivered, board.waiting) = (delivered, waiting);
            (board.unclaimed, board.timed_out) = (unclaimed, timed_out);
        }
        let now = clock::now();
        if self.losses_due().is_none_or(|due| due > now) {
            return;
        }
        self.told_at = Some(now);
        let before = std::mem::replace(&mut self.counts, counts);
        let wait_ms = self.setup.command_wait.as_millis();
        let tell = |kind, count: u64, what: &str| {
            if count > 0 {
                let detail = format!("commands={count} {what} within command_wait_ms={wait_ms}");
                log::warn!(target: "local", "{kind} {detail}");
                (self.setup.event)(kind, &detail);
            }
        };
        tell("command_unclaimed", unclaimed - before.unclaimed, "that nobody subscribed to");
        tell("command_timed_out", timed_out - before.timed_out, "that a subscriber did not answer");
    }
}
