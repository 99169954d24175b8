//! `backhaul send`: hands records to the agent and waits for its word on each. Requests are pipelined in a window;
//! what the agent cannot take now is tried again, what it can never take is told and passed over.
//!
//! A record is sent again when the connection was lost before its answer, so that nothing is missing: exactly once
//! begins with the answer.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::{SendArgs, Source};
use super::client::{self, Answer, Fault, Named};
use super::socket;
use crate::exit;
use crate::shell::port::Wait;

/// Records in flight.
const WINDOW_RECORDS: usize = 256;
/// Their bytes, but at least one record.
const WINDOW_BYTES: usize = 1 << 20;
/// Longest record that is read at all; the agent's own limit is far below.
const RECORD_BYTES_MAX: usize = 16 << 20;
/// What the helper threads may have said and nobody has heard: more than the window can cause.
const EVENTS_MAX: usize = 2 * WINDOW_RECORDS + 16;
/// Between two tries while the agent has no room or is not there.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: &SendArgs) -> ExitCode {
    let path = match socket(&args.agent) {
        Ok(path) => path,
        Err(code) => return code,
    };
    let input: Box<dyn Read + Send> = match &args.source {
        Source::Stdin => Box::new(io::stdin()),
        Source::File(file) => match File::open(file) {
            Ok(file) => Box::new(file),
            Err(error) => {
                tell(&format!("{}: {error}", file.display()));
                return ExitCode::from(exit::NO_INPUT);
            }
        },
    };
    let (inbox, window) = (Arc::<Inbox>::default(), Arc::<Window>::default());
    let (whole, to, credit) = (args.whole, Arc::clone(&inbox), Arc::clone(&window));
    // Both kinds of helper threads end with the process.
    thread::spawn(move || read_input(BufReader::new(input), whole, &to, &credit));
    let terms = Terms { lane: args.lane.clone(), topic: args.topic.clone(), wait: args.wait };
    let mut sender = Sending {
        path,
        terms,
        timeout: args.timeout,
        inbox,
        window,
        connection: None,
        connections: 0,
        pending: BTreeMap::new(),
        next_id: 1,
        done: 0,
        word: match args.wait {
            Some(Wait::Accepted) => "accepted",
            Some(Wait::Delivered) => "delivered",
            Some(Wait::Committed) | None => "committed",
        },
        refused: 0,
        not_durable: 0,
        input_ended: false,
        input_error: None,
        progress: Instant::now(),
        last_fault: String::new(),
        retry_at: None,
    };
    let ended = sender.run();
    sender.verdict(ended)
}

/// What all records have in common.
struct Terms {
    lane: Option<String>,
    topic: Option<String>,
    wait: Option<Wait>,
}

enum Event {
    /// A record.
    Record(Vec<u8>),
    /// The input is over, with an error or without.
    End(Option<String>),
    /// From the n-th connection; `None`: it has ended.
    Answer(u64, Option<Answer>),
}

/// Why it is over.
enum Ended {
    /// Everything has its answer.
    Done,
    /// Nothing moved for as long as `--timeout` allows.
    TimedOut,
    /// The agent takes nothing of this kind.
    Refused(Fault),
    /// The socket cannot be used.
    Socket(io::Error),
}

struct Sending {
    path: PathBuf,
    terms: Terms,
    timeout: Duration,
    inbox: Arc<Inbox>,
    window: Arc<Window>,
    connection: Option<UnixStream>,
    connections: u64,
    /// Not yet answered for good, by id.
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    done: u64,
    /// What the agent said of them; before it did: what is awaited.
    word: &'static str,
    refused: u64,
    /// Records that the agent has in RAM only.
    not_durable: u64,
    input_ended: bool,
    input_error: Option<String>,
    /// When something moved last, or there was nothing to move.
    progress: Instant,
    last_fault: String,
    /// Nothing is asked before: the agent had no room or was not there.
    retry_at: Option<Instant>,
}

struct Pending {
    record_bytes: usize,
    request: Vec<u8>,
    /// On the current connection, without an answer.
    asked: bool,
}

impl Sending {
    fn run(&mut self) -> Ended {
        loop {
            if self.input_ended && self.pending.is_empty() {
                return Ended::Done;
            }
            if let Err(error) = self.ask() {
                return Ended::Socket(error);
            }
            let event = if self.pending.is_empty() {
                // Nothing to wait for but the input, however long it takes.
                let event = self.inbox.take(None);
                self.progress = Instant::now();
                event
            } else {
                let left = (self.progress + self.timeout).saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ended::TimedOut;
                }
                let pause = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
                self.inbox.take(Some(pause.map_or(left, |pause| pause.min(left))))
            };
            if let Some(ended) = event.and_then(|event| self.handle(event)) {
                return ended;
            }
        }
    }

    /// Writes what is not asked yet; without a connection it tries to get one.
    fn ask(&mut self) -> io::Result<()> {
        if self.retry_at.is_some_and(|at| at > Instant::now()) || self.pending.values().all(|pending| pending.asked) {
            return Ok(());
        }
        self.retry_at = None;
        if self.connection.is_none() && !self.connect()? {
            self.pause();
            return Ok(());
        }
        let Some(stream) = &mut self.connection else { return Ok(()) };
        for pending in self.pending.values_mut().filter(|pending| !pending.asked) {
            if stream.write_all(&pending.request).is_err() {
                // The reading thread tells of the end, and what the agent said before it.
                let _ = stream.shutdown(Shutdown::Both);
                break;
            }
            pending.asked = true;
        }
        Ok(())
    }

    /// False: not yet.
    fn connect(&mut self) -> io::Result<bool> {
        let stream = match UnixStream::connect(&self.path) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                self.last_fault = client::words(&self.path, &error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        // An agent that does not read for so long is as good as none.
        stream.set_write_timeout(Some(self.timeout.max(RETRY_INTERVAL)))?;
        self.connections += 1;
        let (nth, inbox) = (self.connections, Arc::clone(&self.inbox));
        let mut lines = BufReader::new(stream.try_clone()?);
        thread::spawn(move || {
            let mut buf = Vec::new();
            while let Ok(Some(answer)) = client::read_answer(&mut lines, &mut buf) {
                inbox.put(Event::Answer(nth, Some(answer)));
            }
            inbox.put(Event::Answer(nth, None));
        });
        self.connection = Some(stream);
        Ok(true)
    }

    fn pause(&mut self) {
        self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
    }

    fn handle(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Record(record) => {
                let id = self.next_id;
                self.next_id += 1;
                if self.pending.is_empty() {
                    self.progress = Instant::now();
                }
                let request = self.terms.request(id, &record);
                self.pending.insert(id, Pending { record_bytes: record.len(), request, asked: false });
                None
            }
            Event::End(error) => {
                self.input_ended = true;
                self.input_error = error;
                None
            }
            Event::Answer(nth, _) if nth != self.connections => None,
            Event::Answer(_, Some(Answer::Accepted(named))) => self.handle_word("accepted", &named),
            Event::Answer(_, Some(Answer::Committed(named))) => self.handle_word("committed", &named),
            Event::Answer(_, Some(Answer::Delivered(named))) => self.handle_word("delivered", &named),
            Event::Answer(_, Some(Answer::Error(fault))) => self.handle_fault(fault),
            Event::Answer(_, Some(Answer::Status(_))) => None,
            Event::Answer(_, None) => {
                self.connection = None;
                if self.last_fault.is_empty() {
                    self.last_fault = "the agent has ended the connection".into();
                }
                self.pending.values_mut().for_each(|pending| pending.asked = false);
                self.pause();
                None
            }
        }
    }

    fn handle_word(&mut self, word: &'static str, named: &Named) -> Option<Ended> {
        self.word = word;
        self.done += u64::from(self.settle(named.id));
        None
    }

    fn handle_fault(&mut self, fault: Fault) -> Option<Ended> {
        self.last_fault = format!("{}: {}", fault.code, fault.message);
        match fault.code.as_str() {
            "full" | "busy" | "shutting_down" => {
                if let Some(pending) = fault.id.and_then(|id| self.pending.get_mut(&id)) {
                    pending.asked = false;
                }
                self.pause();
                None
            }
            // It has the record, and may deliver it: to hand it in again would make a copy.
            "degraded" => {
                self.not_durable += u64::from(fault.id.is_some_and(|id| self.settle(id)));
                None
            }
            "too_large" => {
                // Without an id the line was too long for the agent to look into it.
                let longest =
                    || self.pending.iter().max_by_key(|(_, pending)| pending.request.len()).map(|(id, _)| *id);
                let id = fault.id.or_else(longest)?;
                self.refused += u64::from(self.settle(id));
                tell(&format!("record {id}: {}", fault.message));
                None
            }
            _ => Some(Ended::Refused(fault)),
        }
    }

    /// A record has its last answer; false when it had one before.
    fn settle(&mut self, id: u64) -> bool {
        let Some(pending) = self.pending.remove(&id) else { return false };
        self.window.release(pending.record_bytes);
        self.progress = Instant::now();
        true
    }

    fn verdict(&self, ended: Ended) -> ExitCode {
        let (done, word, left) = (self.done, self.word, self.pending.len());
        let tally = format!("{done} {word}, {left} not");
        match ended {
            Ended::Done => {
                if let Some(error) = &self.input_error {
                    tell(&format!("input: {error}; {done} {word}"));
                    return ExitCode::from(exit::DATA);
                }
                if self.refused > 0 {
                    tell(&format!("{done} {word}, {} refused", self.refused));
                    return ExitCode::from(exit::DATA);
                }
                if self.not_durable > 0 {
                    tell(&format!("{done} {word}, {} taken but not: {}", self.not_durable, self.last_fault));
                    return ExitCode::from(exit::IO);
                }
                ExitCode::SUCCESS
            }
            Ended::TimedOut => {
                let why = if self.last_fault.is_empty() { "no answer in time" } else { &self.last_fault };
                tell(&format!("{tally}: {why}"));
                ExitCode::from(exit::TRY_AGAIN)
            }
            Ended::Refused(fault) => {
                tell(&format!("{tally}: {}: {}", fault.code, fault.message));
                ExitCode::from(if fault.code == "unknown_lane" { exit::USAGE } else { exit::DATA })
            }
            Ended::Socket(error) => {
                tell(&format!("{tally}: {}", client::words(&self.path, &error)));
                let denied = error.kind() == io::ErrorKind::PermissionDenied;
                ExitCode::from(if denied { exit::PERMISSION } else { exit::UNAVAILABLE })
            }
        }
    }
}

impl Terms {
    fn request(&self, id: u64, record: &[u8]) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            put: Fields<'a>,
        }
        #[derive(Serialize)]
        struct Fields<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            lane: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            topic: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            text: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            base64: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            wait: Option<&'static str>,
            id: u64,
        }
        let text = std::str::from_utf8(record).ok();
        let base64 = if text.is_none() { Some(data_encoding::BASE64.encode(record)) } else { None };
        let wait = self.wait.map(|wait| match wait {
            Wait::Accepted => "accepted",
            Wait::Committed => "committed",
            Wait::Delivered => "delivered",
        });
        let put = Fields { lane: self.lane.as_deref(), topic: self.topic.as_deref(), text, base64, wait, id };
        let mut line = serde_json::to_vec(&Line { put }).expect("strings and numbers into a Vec");
        line.push(b'\n');
        line
    }
}

/// Reads records as long as the window has room for them.
fn read_input(mut input: impl BufRead, whole: bool, inbox: &Inbox, window: &Window) {
    let mut error = None;
    loop {
        let mut record = Vec::new();
        let limit = RECORD_BYTES_MAX as u64 + 1;
        let read = if whole {
            input.by_ref().take(limit).read_to_end(&mut record)
        } else {
            input.by_ref().take(limit).read_until(b'\n', &mut record)
        };
        match read {
            Ok(0) if !whole => break,
            Ok(_) if record.len() > RECORD_BYTES_MAX => error = Some("a record has more than 16 MiB".into()),
            Ok(_) => {}
            Err(failed) => error = Some(failed.to_string()),
        }
        if error.is_some() {
            break;
        }
        if !whole && record.last() == Some(&b'\n') {
            record.pop();
        }
        window.acquire(record.len());
        inbox.put(Event::Record(record));
        if whole {
            break;
        }
    }
    inbox.put(Event::End(error));
}

/// What the helper threads say, in its order. One of std's channels would be 15 kB of machine code.
#[derive(Default)]
struct Inbox {
    events: Mutex<VecDeque<Event>>,
    /// It was empty.
    filled: Condvar,
    /// It was full.
    drained: Condvar,
}

impl Inbox {
    fn put(&self, event: Event) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |events: &mut VecDeque<Event>| events.len() >= EVENTS_MAX;
        let mut events = self.drained.wait_while(events, is_full).unwrap_or_else(PoisonError::into_inner);
        events.push_back(event);
        if events.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// The next one, when it comes; with a timeout `None` where none has come by then.
    fn take(&self, timeout: Option<Duration>) -> Option<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let is_empty = |events: &mut VecDeque<Event>| events.is_empty();
        let mut events = match timeout {
            None => self.filled.wait_while(events, is_empty).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.filled.wait_timeout_while(events, timeout, is_empty).unwrap_or_else(PoisonError::into_inner).0
            }
        };
        let event = events.pop_front();
        if events.len() + 1 == EVENTS_MAX {
            self.drained.notify_all();
        }
        event
    }
}

/// How much may be in flight.
#[derive(Default)]
struct Window {
    /// Records and bytes.
    taken: Mutex<(usize, usize)>,
    freed: Condvar,
}

impl Window {
    fn acquire(&self, bytes: usize) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let no_room =
            |taken: &mut (usize, usize)| taken.0 > 0 && (taken.0 >= WINDOW_RECORDS || taken.1 + bytes > WINDOW_BYTES);
        let mut taken = self.freed.wait_while(taken, no_room).unwrap_or_else(PoisonError::into_inner);
        taken.0 += 1;
        taken.1 += bytes;
    }

    fn release(&self, bytes: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        taken.1 -= bytes;
        self.freed.notify_one();
    }
}

/// A line on stderr, whether or not someone reads it.
fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "backhaul: {message}");
}
