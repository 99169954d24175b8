//! One connection of the local socket: its bytes in, the order of its answers, its bytes out. Every buffer has a
//! bound; a client that does not read its answers is not read either.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead as _, Read, Write};
use std::mem;
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::UnixStream;

use super::pieces::Pieces;
use super::request::{self, Id, Refusal};
use crate::commands::Command;
use crate::shell::port::{Outcome, Ticket};

/// Read at once; a client's input buffer where no line is longer.
const INPUT_BYTES: usize = 16 << 10;
/// Answers written but not yet taken by the client; no further one is written, and no request read, from there on.
const OUTPUT_BYTES_MAX: usize = 32 << 10;
/// A `status`, the longest answer there is; longer than a piece of a command.
const ANSWER_BYTES: usize = 8 << 10;
/// What an idle client's output buffer may keep.
const OUTPUT_BYTES_KEPT: usize = 4 << 10;
/// What comes behind a line that is too long is thrown away, so that a client that writes it all reads why.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// Requests for `delivered` are numbered from here: their answers come in no order.
const DELIVERED_FIRST: u64 = 1 << 63;
/// An id and a message of a request that waits for its turn.
const REQUEST_HEAP_BYTES: usize = 320;

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    /// Its socket.
    pub stream: UnixStream,
    /// Names it among all clients there ever were.
    pub name: u64,
    /// There may be something to read, or a whole line lies in `input`.
    pub ready: bool,
    phase: Phase,
    input: Vec<u8>,
    /// What lies before is done with.
    start: usize,
    /// No line ends between `start` and here.
    scanned: usize,
    /// Answered in this order.
    asked: VecDeque<Asked>,
    /// Number of the first of `asked`.
    asked_first: u64,
    /// Of `asked`, those that wait for the outbox.
    waiting: usize,
    /// Not yet delivered.
    delivered: BTreeMap<u64, Option<Id>>,
    delivered_next: u64,
    /// Delivered, not yet said.
    late: VecDeque<Asked>,
    /// It wants to hear of the link, under this id.
    watch: Option<Option<Id>>,
    /// The link has changed since it heard of it.
    link_changed: bool,
    /// It has asked for commands.
    subscribed: bool,
    /// On its way out; nothing else is before its end.
    command: Option<Pieces>,
    output: Vec<u8>,
    written: usize,
    /// We have ended our side.
    shut: bool,
    /// Nobody reads an answer; what was sent before is a request all the same.
    deaf: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more comes; what was asked is answered.
    Ended,
    /// It broke the rules: what it sends is thrown away, so many bytes.
    Discarding(usize),
    /// The connection is dead.
    Gone,
}

/// A request whose answer has a place in the order.
#[derive(Debug)]
struct Asked {
    id: Option<Id>,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    Done(Outcome),
    Refused(&'static str, String),
    Status,
    Link,
    Subscribed,
}

/// What goes into answers about the agent itself.
pub(super) trait Facts {
    /// The status, as JSON.
    fn snapshot(&self) -> Vec<u8>;
    /// Its link alone.
    fn link(&self) -> Vec<u8>;
}

/// What a client has to say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line of so many bytes: look at [`Client::line`], then [`Client::consume`].
    Line(usize),
    /// Nothing until its socket is ready again.
    Nothing,
    /// Its share of this turn is used up.
    More,
}

/// What all clients share.
#[derive(Debug)]
pub(super) struct Supply {
    /// Longest line, without its end.
    pub line_bytes_max: usize,
    /// Input buffers may exceed [`INPUT_BYTES`] by so much more, all together.
    pub long_bytes_left: usize,
    /// An empty buffer for whoever reads next.
    pub spare: Vec<u8>,
}

/// Most bytes that a client with so many requests holds, long lines aside.
pub(super) fn bytes_max(requests_max: usize) -> usize {
    let asked = requests_max.next_power_of_two() * size_of::<Asked>();
    // Two queues of requests; a tree's node is at least half full.
    let requests = 2 * asked + requests_max * (REQUEST_HEAP_BYTES + 2 * size_of::<(u64, Option<Id>)>());
    size_of::<Client>() + INPUT_BYTES + 2 * (OUTPUT_BYTES_MAX + ANSWER_BYTES) + requests
}

impl Client {
    pub fn new(stream: UnixStream, name: u64) -> Self {
        Self {
            stream,
            name,
            ready: true,
            phase: Phase::Open,
            input: Vec::new(),
            start: 0,
            scanned: 0,
            asked: VecDeque::new(),
            asked_first: 0,
            waiting: 0,
            delivered: BTreeMap::new(),
            delivered_next: DELIVERED_FIRST,
            late: VecDeque::new(),
            watch: None,
            link_changed: false,
            subscribed: false,
            command: None,
            output: Vec::new(),
            written: 0,
            shut: false,
            deaf: false,
        }
    }

    /// A further request may be taken.
    pub fn may_ask(&self, requests_max: usize) -> bool {
        self.requests() < requests_max && self.output.len() - self.written < OUTPUT_BYTES_MAX
    }

    /// Requests in order that wait for the outbox.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Someone waits for `delivered`.
    pub fn waits_for_delivery(&self) -> bool {
        !self.delivered.is_empty()
    }

    /// Bytes in its buffers.
    pub fn bytes(&self) -> usize {
        let asked = (self.asked.capacity() + self.late.capacity()) * size_of::<Asked>();
        self.input.capacity() + self.output.capacity() + asked
    }

    /// The connection can be dropped.
    pub fn is_over(&self) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Discarding(_) => self.deaf,
            Phase::Ended => self.deaf || (self.requests() == 0 && self.output.is_empty() && self.command.is_none()),
            Phase::Gone => true,
        }
    }

    /// The peer has closed both ways.
    pub fn handle_hang_up(&mut self) {
        self.deaf = true;
    }

    /// The next line, read from the socket where none lies here. `budget`: bytes that it may still read in this turn.
    pub fn poll_line(&mut self, supply: &mut Supply, budget: &mut usize) -> Next {
        loop {
            match self.phase {
                Phase::Open => {}
                Phase::Discarding(left) => return self.discard(left, budget),
                Phase::Ended | Phase::Gone => return self.nothing(supply),
            }
            let line = self.scan();
            if line.unwrap_or(self.input.len() - self.start) > supply.line_bytes_max {
                let message = format!("a line has at most {} bytes", supply.line_bytes_max);
                self.refuse_for_good("too_large", message, supply);
            } else if let Some(bytes) = line {
                return Next::Line(bytes);
            } else if *budget == 0 {
                return Next::More;
            } else if !self.make_room(supply) {
                self.refuse_for_good("busy", "too many long lines at once".into(), supply);
            } else {
                match self.read() {
                    // Half a line is nothing.
                    Ok(0) => self.phase = Phase::Ended,
                    Ok(count) => *budget = budget.saturating_sub(count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.nothing(supply),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => self.phase = Phase::Gone,
                }
            }
        }
    }

    /// The line that [`Next::Line`] spoke of.
    pub fn line(&self, bytes: usize) -> &[u8] {
        &self.input[self.start..self.start + bytes]
    }

    /// That line is done with.
    pub fn consume(&mut self, bytes: usize) {
        self.start += bytes + 1;
        self.scanned = self.start;
    }

    /// Expects an outcome for a put, in order.
    pub fn expect(&mut self, id: Option<Id>) -> Ticket {
        let request = self.asked_first + self.asked.len() as u64;
        self.asked.push_back(Asked { id, state: State::Waiting });
        self.waiting += 1;
        Ticket { client: self.name, request }
    }

    /// Expects an outcome for a put, whenever it comes.
    pub fn expect_delivery(&mut self, id: Option<Id>) -> Ticket {
        let request = self.delivered_next;
        self.delivered_next += 1;
        self.delivered.insert(request, id);
        Ticket { client: self.name, request }
    }

    /// Answers with the snapshot, in order.
    pub fn expect_status(&mut self, id: Option<Id>) {
        self.asked.push_back(Asked { id, state: State::Status });
    }

    /// Answers with the link's state, in order, and from there on at each change.
    pub fn expect_watch(&mut self, id: Option<Id>) {
        self.watch = Some(id.clone());
        self.asked.push_back(Asked { id, state: State::Link });
    }

    /// It has asked for commands; only who gave the request an id wants to hear that it has.
    pub fn expect_commands(&mut self, id: Option<Id>) {
        self.subscribed = true;
        if id.is_some() {
            self.asked.push_back(Asked { id, state: State::Subscribed });
        }
    }

    /// It has asked for commands.
    pub fn is_subscribed(&self) -> bool {
        self.subscribed
    }

    /// It can be given another command.
    pub fn wants_command(&self) -> bool {
        let has_room = self.command.is_none() && self.output.len() - self.written < OUTPUT_BYTES_MAX;
        self.subscribed && self.phase == Phase::Open && !self.deaf && has_room
    }

    /// It is given one.
    pub fn give_command(&mut self, command: Arc<Command>) {
        debug_assert!(self.command.is_none(), "asked for by `wants_command`");
        self.command = Some(Pieces::new(command));
    }

    /// The link has changed.
    pub fn handle_link_changed(&mut self) {
        self.link_changed = self.watch.is_some();
    }

    /// Answers with an error, in order.
    pub fn refuse(&mut self, refusal: Refusal) {
        let state = State::Refused(refusal.code, refusal.message);
        self.asked.push_back(Asked { id: refusal.id, state });
    }

    /// An outcome came.
    pub fn handle_outcome(&mut self, outcome: Outcome) {
        let request = outcome.ticket.request;
        if let Some(id) = self.delivered.remove(&request) {
            return self.late.push_back(Asked { id, state: State::Done(outcome) });
        }
        let index = request.checked_sub(self.asked_first).and_then(|index| usize::try_from(index).ok());
        if let Some(asked) = index.and_then(|index| self.asked.get_mut(index)) {
            debug_assert!(matches!(asked.state, State::Waiting), "one outcome a request");
            asked.state = State::Done(outcome);
            self.waiting -= 1;
        }
    }

    /// Writes what can be answered, as far as the socket takes it.
    pub fn flush(&mut self, facts: &impl Facts) {
        loop {
            self.render(facts);
            if self.deaf {
                self.written = self.output.len();
            }
            if self.written == self.output.len() {
                return self.finish_output();
            }
            match self.stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.deaf = true,
            }
        }
        self.output.drain(..self.written);
        self.written = 0;
    }

    /// Gives back what it took from the supply.
    pub fn close(mut self, supply: &mut Supply) {
        self.release_input(supply);
    }

    fn requests(&self) -> usize {
        self.asked.len() + self.delivered.len() + self.late.len()
    }

    fn scan(&mut self) -> Option<usize> {
        let mut rest = &self.input[self.scanned..];
        // std's own memchr hides behind this.
        let skipped = rest.skip_until(b'\n').unwrap_or(0);
        let end = self.scanned + skipped;
        if skipped > 0 && self.input[end - 1] == b'\n' {
            self.scanned = end - 1;
            Some(end - 1 - self.start)
        } else {
            self.scanned = end;
            None
        }
    }

    /// Room to read into; false when the supply for long lines is used up.
    fn make_room(&mut self, supply: &mut Supply) -> bool {
        self.compact();
        if self.input.capacity() == 0 {
            self.input = mem::take(&mut supply.spare);
            self.input.reserve_exact(INPUT_BYTES);
        }
        let capacity = self.input.capacity();
        if self.input.len() < capacity {
            return true;
        }
        let more = capacity.min(supply.line_bytes_max + INPUT_BYTES - capacity.min(supply.line_bytes_max));
        if more > supply.long_bytes_left {
            return false;
        }
        self.input.reserve_exact(more);
        supply.long_bytes_left = supply.long_bytes_left.saturating_sub(self.input.capacity() - capacity);
        true
    }

    fn read(&mut self) -> io::Result<usize> {
        let held = self.input.len();
        self.input.resize(self.input.capacity().min(held + INPUT_BYTES), 0);
        let result = self.stream.read(&mut self.input[held..]);
        self.input.truncate(held + *result.as_ref().unwrap_or(&0));
        result
    }

    fn compact(&mut self) {
        self.input.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
    }

    fn nothing(&mut self, supply: &mut Supply) -> Next {
        self.ready = false;
        if self.start == self.input.len() || self.phase != Phase::Open {
            self.release_input(supply);
        }
        Next::Nothing
    }

    fn release_input(&mut self, supply: &mut Supply) {
        let mut input = mem::take(&mut self.input);
        (self.start, self.scanned) = (0, 0);
        input.clear();
        supply.long_bytes_left += input.capacity().saturating_sub(INPUT_BYTES);
        if input.capacity() == INPUT_BYTES {
            supply.spare = input;
        }
    }

    fn refuse_for_good(&mut self, code: &'static str, message: String, supply: &mut Supply) {
        self.refuse(Refusal::new(code, message, None));
        self.release_input(supply);
        self.phase = Phase::Discarding(DISCARD_BYTES_MAX);
    }

    fn discard(&mut self, mut left: usize, budget: &mut usize) -> Next {
        let mut scrap = [0; INPUT_BYTES];
        while *budget > 0 {
            match self.stream.read(&mut scrap) {
                Ok(count) => {
                    left = if count == 0 { 0 } else { left.saturating_sub(count) };
                    *budget = budget.saturating_sub(count);
                    self.phase = if left == 0 { Phase::Ended } else { Phase::Discarding(left) };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return Next::Nothing;
                }
                Err(_) => self.phase = Phase::Gone,
            }
            if !matches!(self.phase, Phase::Discarding(_)) {
                self.ready = false;
                return Next::Nothing;
            }
        }
        Next::More
    }

    fn render(&mut self, facts: &impl Facts) {
        while self.output.len() - self.written < OUTPUT_BYTES_MAX {
            if let Some(pieces) = &mut self.command {
                if !pieces.write(&mut self.output) {
                    self.command = None;
                }
                continue;
            }
            let asked = match self.late.pop_front() {
                Some(asked) => asked,
                None if self.asked.front().is_some_and(|asked| !matches!(asked.state, State::Waiting)) => {
                    self.asked_first += 1;
                    self.asked.pop_front().expect("looked at just now")
                }
                None if self.link_changed => {
                    self.link_changed = false;
                    Asked { id: self.watch.clone().flatten(), state: State::Link }
                }
                None => break,
            };
            let (out, id) = (&mut self.output, asked.id.as_ref());
            match asked.state {
                State::Waiting => unreachable!("not taken while it waits"),
                State::Done(outcome) => request::write_outcome(out, &outcome, id),
                State::Refused(code, message) => request::write_error(out, code, &message, id),
                State::Status => request::write_object(out, "status", &facts.snapshot(), id),
                State::Link => request::write_object(out, "link", &facts.link(), id),
                State::Subscribed => request::write_subscribed(out, id),
            }
        }
    }

    fn finish_output(&mut self) {
        self.written = 0;
        self.output.clear();
        self.output.shrink_to(OUTPUT_BYTES_KEPT);
        if self.requests() == 0 {
            self.asked.shrink_to(16);
            if matches!(self.phase, Phase::Discarding(_)) && !self.shut {
                // The end of the connection, for a client that reads up to there.
                self.shut = true;
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
    }
}
