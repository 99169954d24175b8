//! The unix socket for the gateway's own programs: newline-delimited JSON, a thread and a poll for all of them. It
//! reads requests, hands puts to the outbox thread, writes answers, and gives commands to clients and handlers as the
//! desk decides. It knows no flash and no network.
//!
//! Bounds, and who loses when one is reached: a client beyond `clients_max` hears `busy` and is closed; a line beyond
//! [`line_bytes_max`] ends its connection; a client with too many requests in flight, or one that does not read its
//! answers, is not read until that changes; and nobody is read while [`PUTS_BYTES_MAX`] or [`PUTS_MAX`] wait for the
//! outbox. Nothing here waits: backpressure reaches a producer as a full socket.

mod client;
mod downlink;
mod handling;
mod pieces;
mod request;
#[cfg(test)]
mod tests;

use std::io::{self, Write as _};
use std::mem;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::commands::desk::{Counts, Desk, FILTERS_MAX};
use crate::commands::filter::{FILTER_BYTES_MAX, Filter};
use crate::commands::{COMMANDS_BYTES_MAX, COMMANDS_MAX, Command};
use crate::config;
use crate::config::group::group_id;
use crate::insight::record::{self, Sampler};
use crate::record::MESSAGE_BYTES_MAX;
use crate::shell::clock;
use crate::shell::handler::{Report, Runs};
use crate::shell::port::{ForLocal, ForOutbox, Outcome, PUTS_BYTES_MAX, PUTS_MAX, Port, Put, Wait};
use crate::shell::snapshot::Source;
use crate::shell::{EventHook, TextHook};
use crate::time::Instant;
use client::{Client, Facts, Next, Supply};
use handling::Handling;
use request::{PutRequest, Refusal, Request, Terms};

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Requests in flight, all clients together; each has an equal share.
const REQUESTS_MAX: usize = 16_384;
/// A client's share of them, at most and at least.
const REQUESTS_CLIENT: (usize, usize) = (16, 256);
/// Bytes read from a client in a turn, so that a flood of one delays the others by no more than that.
const TURN_BYTES_MAX: usize = 64 << 10;
/// Connections accepted in a turn.
const TURN_ACCEPTS_MAX: usize = 64;
/// Lines longer than usual, all clients together, beside the two longest there may be.
const LONG_BYTES: usize = 4 << 20;
/// Commands that are not done: what is held at most, or a single one that is larger, and what goes with each.
const COMMANDS_BYTES_HELD_MAX: usize = COMMANDS_BYTES_MAX + COMMANDS_MAX * (size_of::<Command>() + 256);
const _: () = assert!(MESSAGE_BYTES_MAX <= COMMANDS_BYTES_MAX);

/// JSON around a record: keys, numbers, the client's id, white space.
const LINE_SLACK_BYTES: usize = 4096;

/// What the local thread is given.
pub struct Setup {
    /// `[local]`
    pub config: config::Local,
    /// The boot's id, folded: stands in every record.
    pub boot: u32,
    /// Where puts go.
    pub outbox: Arc<Port<ForOutbox>>,
    /// Where `status` comes from.
    pub source: Source,
    /// How long a command waits for subscribers, and for their answers.
    pub command_wait: Duration,
    /// Called with kind and detail of what is worth a record on topic `$event`.
    pub event: EventHook,
    /// Programs that are given commands.
    pub handlers: Vec<config::Handler>,
    /// Where reports of those go that have no lane for them; empty: the default lane.
    pub events_lane: String,
    /// Metrics that travel upstream: when, and what takes them.
    pub metrics: Option<(Sampler, TextHook)>,
    /// Called in each turn of the loop: a sign of life. Waking the port makes a turn.
    pub turned: Arc<dyn Fn() + Send + Sync>,
}

/// The local socket.
pub struct Local {
    setup: Setup,
    poll: Poll,
    port: Arc<Port<ForLocal>>,
    socket: Socket,
    /// Connections may be waiting.
    accepting: bool,
    /// A client's index is its token.
    clients: Vec<Option<Client>>,
    clients_open: usize,
    /// Clients there ever were.
    clients_ever: u64,
    requests_max: usize,
    supply: Supply,
    /// Puts of this turn, and their bytes.
    puts: Vec<Put>,
    puts_bytes: usize,
    /// Turns there ever were: a different client begins each, so that scarce room goes round.
    turns: usize,
    /// Clients of this turn that are gone while they wait for `delivered`.
    gone: Vec<u64>,
    outcomes: Vec<Outcome>,
    desk: Desk,
    /// As told last, and when.
    counts: Counts,
    told_at: Option<Instant>,
    handlers: Vec<Handling>,
    runs: Runs,
    reports: Vec<Report>,
}

/// Longest line in bytes without its end: JSON may need six for one (`\u0001`).
pub fn line_bytes_max(config: &config::Local) -> usize {
    config.record_bytes_max as usize * 6 + LINE_SLACK_BYTES
}

/// Most bytes that the local socket's buffers hold, records on their way to the outbox included.
pub fn memory_bytes_max(config: &config::Local) -> u64 {
    let clients = config.clients_max as usize * client::bytes_max(requests_max(config));
    // One load of puts on its way while the outbox works on the one before; each may exceed its bound by a record.
    let record = config.record_bytes_max as usize + size_of::<Put>() + 256;
    let load = PUTS_BYTES_MAX + record + PUTS_MAX * (size_of::<Put>() + size_of::<Outcome>());
    let subscriptions = config.clients_max as usize * FILTERS_MAX * (FILTER_BYTES_MAX + size_of::<Filter>());
    (clients + long_bytes_max(config) + 2 * load + subscriptions + COMMANDS_BYTES_HELD_MAX) as u64
}

fn long_bytes_max(config: &config::Local) -> usize {
    LONG_BYTES + 2 * line_bytes_max(config)
}

fn requests_max(config: &config::Local) -> usize {
    (REQUESTS_MAX / (config.clients_max as usize).max(1)).clamp(REQUESTS_CLIENT.0, REQUESTS_CLIENT.1)
}

impl Local {
    /// Listens. An error is about the socket's path.
    pub fn try_new(setup: Setup) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        // A wake-up that fails is made up for by the next one: what lies in the port stays there.
        let port = Arc::new(Port::with_wake(move || drop(waker.wake())));
        let mut socket = Socket::bind(&setup.config)?;
        poll.registry().register(&mut socket.listener, LISTENER, Interest::READABLE)?;
        let supply = Supply {
            line_bytes_max: line_bytes_max(&setup.config),
            long_bytes_left: long_bytes_max(&setup.config),
            spare: Vec::new(),
        };
        let mut local = Self {
            poll,
            port,
            socket,
            accepting: true,
            clients: Vec::new(),
            clients_open: 0,
            clients_ever: 0,
            requests_max: requests_max(&setup.config),
            supply,
            puts: Vec::new(),
            puts_bytes: 0,
            turns: 0,
            gone: Vec::new(),
            outcomes: Vec::new(),
            desk: Desk::new(setup.command_wait),
            counts: Counts::default(),
            told_at: None,
            handlers: Vec::new(),
            runs: Runs::default(),
            reports: Vec::new(),
            setup,
        };
        let handlers = mem::take(&mut local.setup.handlers);
        local.hire(handlers);
        Ok(local)
    }

    /// Where outcomes come in.
    pub fn port(&self) -> Arc<Port<ForLocal>> {
        Arc::clone(&self.port)
    }

    /// Serves until told to stop; then no new request is taken and what was taken is answered.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut more = true;
        loop {
            let metrics_due = self.setup.metrics.as_ref().map(|(sampler, _)| sampler.poll_timeout());
            let due = self.desk.poll_timeout().into_iter().chain(self.handlers_due()).chain(self.losses_due());
            let due = due.chain(metrics_due).min().map(|due| due.since(clock::now()));
            match self.poll.poll(&mut events, if more { Some(Duration::ZERO) } else { due }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
            (self.setup.turned)();
            for event in &events {
                self.handle_event(event);
            }
            self.report();
            let (stop, leave) = self.take_outcomes();
            self.desk.handle_timeout(clock::now());
            more = self.turn(stop);
            if stop || leave {
                self.socket.remove();
            } else {
                self.accept();
                more |= self.accepting;
            }
            if leave || stop && self.clients.iter().flatten().all(|client| client.waiting() == 0) {
                return Ok(());
            }
        }
    }

    fn handle_event(&mut self, event: &Event) {
        match event.token() {
            LISTENER => self.accepting = true,
            WAKER => {}
            Token(index) => {
                if let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) {
                    client.ready |= event.is_readable() || event.is_read_closed();
                    if event.is_write_closed() || event.is_error() {
                        client.handle_hang_up();
                    }
                }
            }
        }
    }

    /// Whether to stop, and whether to do so at once.
    fn take_outcomes(&mut self) -> (bool, bool) {
        let told = {
            let mut cell = self.port.lock();
            mem::swap(&mut cell.outcomes, &mut self.outcomes);
            self.reports.append(&mut cell.handled);
            for command in cell.commands.drain(..) {
                self.desk.handle_command(command, clock::now());
            }
            if mem::take(&mut cell.link_changed) {
                self.clients.iter_mut().flatten().for_each(Client::handle_link_changed);
            }
            (cell.stop, cell.leave)
        };
        for report in mem::take(&mut self.reports) {
            self.take_report(&report);
        }
        let mut outcomes = mem::take(&mut self.outcomes);
        for outcome in outcomes.drain(..) {
            if let Some(number) = self.handler_of(outcome.ticket.client) {
                self.take_report_outcome(number, outcome);
                continue;
            }
            let (index, name) = (index_of(outcome.ticket.client), outcome.ticket.client);
            match self.clients.get_mut(index).and_then(Option::as_mut) {
                Some(client) if client.name == name => client.handle_outcome(outcome),
                Some(_) | None => {}
            }
        }
        outcomes.shrink_to(REQUESTS_CLIENT.1);
        self.outcomes = outcomes;
        told
    }

    /// Serves every client once; true when one of them has more to say.
    fn turn(&mut self, stop: bool) -> bool {
        let (mut room, mut room_bytes) = {
            let cell = self.setup.outbox.lock();
            (PUTS_MAX.saturating_sub(cell.puts.len()), PUTS_BYTES_MAX.saturating_sub(cell.puts_bytes))
        };
        let terms = Terms {
            record_bytes_max: self.setup.config.record_bytes_max as usize,
            wall_ms: clock::wall_ms_if_set(),
            boot: self.setup.boot,
            boot_ms: clock::now().as_millis(),
        };
        let count = self.clients.len();
        self.turns = self.turns.wrapping_add(1);
        let mut more = false;
        if !stop {
            self.serve_handlers(clock::now());
        }
        for nth in 0..count {
            let index = (self.turns % count + nth) % count;
            let Some(mut client) = self.clients[index].take() else { continue };
            let mut budget = TURN_BYTES_MAX;
            while client.ready && room > 0 && room_bytes > 0 && client.may_ask(self.requests_max) {
                match client.poll_line(&mut self.supply, &mut budget) {
                    Next::Line(bytes) => {
                        let parsed = request::parse(client.line(bytes), &terms);
                        client.consume(bytes);
                        let before = (self.puts.len(), self.puts_bytes);
                        self.handle_request(&mut client, parsed, stop);
                        room -= self.puts.len() - before.0;
                        room_bytes = room_bytes.saturating_sub(self.puts_bytes - before.1);
                    }
                    Next::Nothing => {}
                    Next::More => break,
                }
            }
            self.serve(&mut client);
            if client.is_over() {
                self.close(client);
            } else {
                more |= client.ready && room > 0 && room_bytes > 0 && client.may_ask(self.requests_max);
                self.clients[index] = Some(client);
            }
        }
        self.give();
        more
    }

    fn handle_request(&mut self, client: &mut Client, parsed: Result<Request, Refusal>, stop: bool) {
        let put = match parsed {
            Ok(Request::Put(put)) if stop => {
                return client.refuse(Refusal::new("shutting_down", "the agent is stopping".into(), put.id));
            }
            Ok(Request::Put(put)) => put,
            Ok(Request::Status { id }) => return client.expect_status(id),
            Ok(Request::Watch { id }) => return client.expect_watch(id),
            Ok(Request::Subscribe { filter, id }) => return self.subscribe(client, filter, id),
            Ok(Request::Done { seq, stream, id }) => return self.take_done(client, seq, stream, id),
            Err(refusal) => return client.refuse(refusal),
        };
        let PutRequest { lane, draft, wait, id } = put;
        let ticket = match wait {
            Some(Wait::Delivered) => client.expect_delivery(id),
            Some(Wait::Accepted | Wait::Committed) | None => client.expect(id),
        };
        self.puts_bytes += draft.topic.len() + draft.body.as_bytes().len() + draft.key.as_ref().map_or(0, String::len);
        self.puts.push(Put { ticket: Some(ticket), lane, draft, wait });
    }

    /// Hands this turn's puts over, with one wake-up.
    fn give(&mut self) {
        let done = self.desk.poll_done();
        self.show_commands();
        if self.puts.is_empty() && self.gone.is_empty() && done.is_none() {
            return;
        }
        let (puts, bytes) = (&mut self.puts, mem::take(&mut self.puts_bytes));
        let gone = &mut self.gone;
        self.setup.outbox.give(|cell| {
            cell.puts.append(puts);
            cell.puts_bytes += bytes;
            cell.gone.append(gone);
            cell.done = done.or(cell.done);
        });
        self.puts.shrink_to(REQUESTS_CLIENT.1);
    }

    fn accept(&mut self) {
        let mut taken = 0;
        for _ in 0..TURN_ACCEPTS_MAX {
            if !self.accepting {
                return;
            }
            if taken > 0 && self.is_full() {
                // Some may have said their word and left by now: nobody is refused for the sake of the dead.
                self.turn(false);
                taken = 0;
            }
            match self.socket.listener.accept() {
                Ok((stream, _)) => taken += usize::from(self.welcome(stream)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.accepting = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // No file handle left, most likely: the next connection or the next close tries again.
                    log::warn!(target: "local", "cannot accept a connection error={error}");
                    self.accepting = false;
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.clients_open >= self.setup.config.clients_max as usize
    }

    /// A new client; false: refused.
    fn welcome(&mut self, mut stream: UnixStream) -> bool {
        if self.is_full() {
            let mut line = Vec::new();
            let message = format!("{} connections are open, no more are taken", self.clients_open);
            request::write_error(&mut line, "busy", &message, None);
            // A new socket has room for a line.
            let _ = stream.write_all(&line);
            return false;
        }
        let index = self.clients.iter().position(Option::is_none).unwrap_or(self.clients.len());
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(index), interest) {
            log::warn!(target: "local", "cannot watch a connection error={error}");
            return false;
        }
        self.clients_ever += 1;
        self.clients_open += 1;
        let client = Client::new(stream, name_of(self.clients_ever, index));
        if index == self.clients.len() {
            self.clients.push(Some(client));
        } else {
            self.clients[index] = Some(client);
        }
        true
    }

    fn close(&mut self, client: Client) {
        if client.waits_for_delivery() {
            self.gone.push(client.name);
        }
        if client.is_subscribed() {
            self.desk.handle_gone(client.name, clock::now());
        }
        client.close(&mut self.supply);
        self.clients_open -= 1;
        self.accepting = true;
    }
}

impl Local {
    /// What lies in queues and buffers.
    fn bytes(&self) -> u64 {
        let clients: usize = self.clients.iter().flatten().map(Client::bytes).sum();
        (clients + self.setup.outbox.lock().puts_bytes + self.desk.bytes()) as u64
    }

    /// Metrics that are due go upstream as a record.
    fn report(&mut self) {
        let bytes = self.bytes();
        self.setup.source.board.local_bytes.store(bytes, Ordering::Relaxed);
        let Some((sampler, put)) = &mut self.setup.metrics else { return };
        let source = &self.setup.source;
        if let Some(status) = sampler.take(|| source.snapshot(bytes), clock::now()) {
            put(record::text(&status));
        }
    }
}

impl Facts for Local {
    fn snapshot(&self) -> Vec<u8> {
        let status = self.setup.source.snapshot(self.bytes());
        serde_json::to_vec(&status).expect("plain data with string keys")
    }

    fn link(&self) -> Vec<u8> {
        serde_json::to_vec(&self.setup.source.link()).expect("plain data with string keys")
    }
}

/// A client's index below, and above what tells it from those that had it before.
fn name_of(nth: u64, index: usize) -> u64 {
    nth << 20 | index as u64
}

fn index_of(name: u64) -> usize {
    (name & 0xf_ffff) as usize
}

/// The listening socket's file.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    config: config::Local,
    /// Ours, unless someone has replaced it.
    inode: u64,
}

impl Socket {
    fn bind(config: &config::Local) -> io::Result<Self> {
        let path = &config.socket;
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        let mode = u32::from_str_radix(&config.mode, 8).map_err(|_| io::Error::other("mode is no octal number"))?;
        if !config.group.is_empty() {
            // Not being root or a group that does not exist is no reason to stay dark.
            if let Err(error) = give_to_group(path, &config.group) {
                log::warn!(target: "local", "cannot give the socket to a group group={} error={error}", config.group);
            }
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        let inode = std::fs::symlink_metadata(path)?.ino();
        Ok(Self { listener, config: config.clone(), inode })
    }

    fn remove(&self) {
        let path = &self.config.socket;
        if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.ino() == self.inode) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.remove();
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another program answers there")),
        Err(_) => std::fs::remove_file(path),
    }
}

fn give_to_group(path: &Path, name: &str) -> io::Result<()> {
    let gid = group_id(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such group"))?;
    std::os::unix::fs::chown(path, None, Some(gid))
}
