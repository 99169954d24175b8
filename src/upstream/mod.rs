//! Link and dialect wired together: the one upstream as a single machine. CORE: no I/O, no clock. The reactor
//! (`shell::uplink`) and the simulator drive the very same code.
//!
//! It turns transport events into [`link::Input`]s, begins a [`dialect::Session`] at the upgrade and drops it with
//! everything of it at the session's end, and keeps what outlives a session: the class that ended the last one
//! (`hello.last`), the batch limit that halves after connections without progress (rule 6), the record that the far end
//! finds too large, the session number, and the numberings that are not ours until the outbox has drawn new ones (rule 7).

pub mod cap;
mod too_large;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::commands::Command;
use crate::commands::intake::{Intake, Verdict};
use crate::config::Encoding;
use crate::dialect::message::{CommandCursor, Frame};
use crate::dialect::{self, Greeting, InFlight, Purpose, Session};
use crate::link::{self, Class, Failure, Link};
use crate::record::{Body, Epoch, Fetch, Item, LaneName, Offer, Seq};
use crate::status::{LinkView, Quality};
use crate::time::Instant;
use cap::Cap;
use too_large::TooLarge;

/// What the upstream is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// For the link.
    pub link: Arc<link::Config>,
    /// For each session.
    pub dialect: Arc<dialect::Config>,
    /// Who this gateway is.
    pub device: String,
    /// Name and version of this program: `backhaul/0.1.0`.
    pub agent: String,
    /// Random per start of the process, in hexadecimal.
    pub boot: String,
    /// URLs of the endpoints, in order of preference.
    pub endpoints: Vec<String>,
    /// For all that is drawn.
    pub seed: u64,
    /// What an earlier process of this machine left.
    pub saved: Option<link::Saved>,
    /// The machine has just started: the first attempt has a start delay.
    pub fresh_boot: bool,
    /// What may go over the wire in a day, less what has.
    pub cap: Cap,
}

/// What a reload changes.
#[derive(Debug, Clone)]
pub struct Reconfiguration {
    /// For the link.
    pub link: Arc<link::Config>,
    /// For each later session.
    pub dialect: Arc<dialect::Config>,
    /// URLs of the endpoints, in order of preference.
    pub endpoints: Vec<String>,
    /// For each of them its index before, where it is the same endpoint.
    pub was: Vec<Option<u8>>,
    /// Bytes on the wire in any 24 hours; 0: any number.
    pub bytes_per_day_max: u64,
}

/// What happened. The shell reports only of the lookup and the transport asked for last.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<'a> {
    /// The resolver found so many addresses.
    Resolved {
        /// How many.
        addresses: u8,
    },
    /// TCP is connected, and the other sockets are dropped.
    Dialed {
        /// The index in the last resolution.
        address: u8,
    },
    /// One of the racing sockets failed and is dropped.
    DialFailed {
        /// The index in the last resolution.
        address: u8,
        /// Why.
        failure: Failure,
    },
    /// TLS is up.
    Secured,
    /// The upgrade succeeded.
    Upgraded {
        /// The subprotocol that the server picked; `None`: the plain dialect.
        encoding: Option<Encoding>,
        /// What the outbox offers at this moment.
        offers: &'a [Offer],
    },
    /// A redirect to the host of a configured endpoint, whose path the shell keeps for this attempt.
    Redirected {
        /// The endpoint's index.
        endpoint: u8,
    },
    /// The attempt or the session failed; the transport is gone.
    Failed(Failure),
    /// Bytes came in, or a send queue that was stuck shrank.
    Received,
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// All bytes that were on the wire since the process started, in both directions.
    Wire(u64),
    /// The ping with this number has left our buffer, or the one without.
    PingFlushed(Option<u64>),
    /// The outbox has something new.
    Offers(&'a [Offer]),
    /// The outbox's answer.
    Items(&'a Fetch, Vec<Item>),
    /// Every command up to there is done, on flash.
    Done(CommandCursor),
    /// What this machine knows of its network: see [`link::Input::Network`].
    Network {
        /// Bit i: endpoint i can be dialed.
        usable: u16,
        /// Something changed on the path in use.
        changed: bool,
    },
    /// The answer to [`Output::Probe`].
    Probed {
        /// Which one.
        endpoint: u8,
        /// TCP connected.
        ok: bool,
    },
    /// The answer to a `recheck`: what is at hand is what was refused.
    CredentialsUnchanged,
    /// A credential or a certificate changed on disk, or someone asks for a reload.
    SourcesChanged,
    /// See [`link::Input::RemedyDropped`].
    RemedyDropped {
        /// Its index in the configuration.
        step: u8,
    },
    /// Wall time has just become known.
    ClockSet,
    /// The agent is stopping.
    Stop,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Resolve this endpoint's name.
    Resolve {
        /// Its index.
        endpoint: u8,
        /// Its credentials were refused: are they still the same?
        recheck: bool,
    },
    /// Dial an address of it, beside those already under way.
    Dial {
        /// The index in the last resolution.
        address: u8,
    },
    /// Look whether TCP connects to this endpoint.
    Probe {
        /// Its index.
        endpoint: u8,
    },
    /// Run this remedy.
    Remedy {
        /// Its index.
        step: u8,
    },
    /// Send a frame, in this order. All that are not yet on the wire fit into one window and one batch.
    Transmit {
        /// The message.
        frame: Frame,
        /// What it is for.
        purpose: Purpose,
    },
    /// Send a ping.
    Ping {
        /// Behind all frames that wait, with this number as its payload; `None`: ahead of them, with none.
        counter: Option<u64>,
    },
    /// Drop the transport and what waits to be sent, after a close frame where a code is given.
    Drop {
        /// RFC 6455 § 7.4.
        close: Option<u16>,
    },
    /// Ask the outbox.
    Fetch(Fetch),
    /// Tell the outbox: everything up to `seq` is stored upstream.
    Acked {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The number.
        seq: Seq,
    },
    /// Tell the outbox: this record is refused for ever.
    Rejected {
        /// The lane.
        lane: LaneName,
        /// Its epoch.
        epoch: Epoch,
        /// The record's number.
        seq: Seq,
        /// The server's words, or ours.
        reason: String,
        /// Not by the server but here (protocol rule 6).
        ours: bool,
    },
    /// Tell the outbox: draw a new epoch for this lane.
    Foreign {
        /// The lane.
        lane: LaneName,
        /// The epoch that is not ours.
        epoch: Epoch,
    },
    /// Tell the outbox the upstream's time: it stamps records while the own clock is not set.
    ServerTime {
        /// Unix ms.
        now_ms: u64,
    },
    /// For status and the log: read the state from [`Upstream::view`].
    Changed,
    /// Worth a record on topic `$event` and a warning.
    Event {
        /// One word, for machines.
        kind: &'static str,
        /// One line, for people.
        detail: String,
    },
    /// For local programs: a command that is new, at most [`COMMANDS_MAX`](crate::commands::COMMANDS_MAX) beyond the
    /// last [`Input::Done`].
    Command(Command),
    /// Keep beside the socket.
    Save(link::Saved),
    /// Keep beside the socket, too: what was spent of the day's bytes.
    SaveDay(cap::Saved),
    /// Leave with exit code 69.
    GiveUp,
}

/// What a deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The link's.
    Link(link::Timer),
    /// The session's.
    Session(dialect::Timer),
    /// An hour ends, and the day's bytes may not be spent any more.
    Day,
}

/// The one upstream.
#[derive(Debug)]
pub struct Upstream {
    link: Link,
    dialect: Arc<dialect::Config>,
    device: String,
    agent: String,
    boot: String,
    endpoints: Vec<String>,
    /// From the upgrade to the end.
    session: Option<Live>,
    /// Sessions begun; the number of the last one.
    sessions: u64,
    /// Records in one message, at most (rule 6).
    batch_records_max: u32,
    /// Numberings that are not ours and that the outbox still offers: they stay out of every `hello`.
    foreign: Vec<(LaneName, Epoch)>,
    /// Refused and not yet acked: a `welcome` repeats refusals, and each counts once. What a connection may refuse is
    /// in its window, or in its `welcome`.
    refused: BTreeSet<(LaneName, Epoch, Seq)>,
    too_large: TooLarge,
    /// Commands that came and are not done.
    intake: Intake,
    /// Commands done, all together.
    done: u64,
    cap: Cap,
    /// The boot that has taken a session over, where the server named it.
    taken_over_by: Option<String>,
    outputs: VecDeque<Output>,
}

/// A session and what is remembered of it alone.
#[derive(Debug)]
struct Live {
    session: Session,
    /// As the server named it, once it greeted.
    name: Option<String>,
    /// A refusal was reported: one event a session.
    refused: bool,
    /// The number in the heartbeat's newest ping, where it has one.
    heartbeat: Option<u64>,
    /// The last command done, as the far end knows it.
    told: Option<CommandCursor>,
}

impl Upstream {
    /// An upstream that has not tried yet.
    pub fn new(setup: Setup, now: Instant) -> Self {
        let Setup { link, dialect, device, agent, boot, endpoints, seed, saved, fresh_boot, cap } = setup;
        Self {
            link: Link::new(link, seed, saved, fresh_boot, now),
            batch_records_max: dialect.window_records.max(1),
            dialect,
            device,
            agent,
            boot,
            endpoints,
            session: None,
            sessions: 0,
            foreign: Vec::new(),
            refused: BTreeSet::new(),
            too_large: TooLarge::default(),
            intake: Intake::default(),
            done: 0,
            cap,
            taken_over_by: None,
            outputs: VecDeque::new(),
        }
    }

    /// What `status` shows of the link.
    pub fn view(&self) -> LinkView {
        let session = self.session.as_ref().and_then(|live| live.name.clone());
        let bytes_per_s = self.session.as_ref().and_then(|live| live.session.bytes_per_s());
        let view = self.link.view();
        let url = view.endpoint.and_then(|index| self.endpoints.get(usize::from(index)).cloned());
        let urls = self.endpoints.clone();
        LinkView { session, url, urls, quality: Quality { bytes_per_s, ..view.quality }, ..view }
    }

    /// See [`Link::rtt_last`].
    pub fn rtt_last(&self) -> Option<(Duration, u32)> {
        self.link.rtt_last()
    }

    /// Bytes on the wire in the last 24 hours, and whether only lanes that are exempt may add to them.
    pub fn day(&self) -> (u64, bool) {
        (self.cap.day_bytes(), self.cap.is_spent())
    }

    /// Commands done since the start.
    pub fn commands_done(&self) -> u64 {
        self.done
    }

    /// The far end has greeted, and the session lives.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Another configuration, from now on; see [`Link::reconfigure`]. What concerns the dialect holds from the next
    /// session on.
    pub fn reconfigure(&mut self, new: Reconfiguration, now: Instant) {
        let Reconfiguration { link, dialect, endpoints, was, bytes_per_day_max } = new;
        self.cap.set_max(bytes_per_day_max);
        self.batch_records_max = self.batch_records_max.min(dialect.window_records.max(1));
        self.dialect = dialect;
        self.endpoints = endpoints;
        self.link.reconfigure(link, &was, now);
        self.settle(now);
    }

    /// Something happened.
    pub fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Resolved { addresses } => self.link.handle_input(link::Input::Resolved { addresses }, now),
            Input::Dialed { address } => self.link.handle_input(link::Input::Dialed { address }, now),
            Input::DialFailed { address, failure } => {
                self.link.handle_input(link::Input::DialFailed { address, failure }, now);
            }
            Input::Secured => self.link.handle_input(link::Input::Secured, now),
            Input::Upgraded { encoding, offers } => self.on_upgraded(encoding, offers, now),
            Input::Redirected { endpoint } => self.link.handle_input(link::Input::Redirected { endpoint }, now),
            Input::Failed(failure) => self.on_failed(failure, now),
            Input::Received => self.link.handle_input(link::Input::Received, now),
            Input::Text(text) => self.tell(dialect::Input::Text(text), now),
            Input::Binary(bytes) => self.tell(dialect::Input::Binary(bytes), now),
            Input::Pong(payload) => self.on_pong(payload, now),
            Input::Wire(bytes) => self.on_wire(bytes, now),
            Input::PingFlushed(counter) => self.on_ping_flushed(counter, now),
            Input::Offers(offers) => {
                let ours = self.ours(offers);
                self.tell(dialect::Input::Offers(&ours), now);
            }
            Input::Items(fetch, items) => self.tell(dialect::Input::Items(fetch, items), now),
            Input::Done(done) => self.on_done(done),
            Input::Network { usable, changed } => {
                self.link.handle_input(link::Input::Network { usable, changed }, now);
            }
            Input::Probed { endpoint, ok } => self.link.handle_input(link::Input::Probed { endpoint, ok }, now),
            Input::CredentialsUnchanged => self.link.handle_input(link::Input::CredentialsUnchanged, now),
            Input::SourcesChanged => self.link.handle_input(link::Input::SourcesChanged, now),
            Input::ClockSet => self.link.handle_input(link::Input::ClockSet, now),
            Input::RemedyDropped { step } => self.link.handle_input(link::Input::RemedyDropped { step }, now),
            Input::Stop => self.link.handle_input(link::Input::Stop, now),
        }
        self.settle(now);
    }

    /// Time passed; harmless when nothing is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.link.handle_timeout(now);
        self.settle(now);
        self.heed_cap(now);
        if let Some(live) = &mut self.session {
            live.session.handle_timeout(now);
        }
        self.settle(now);
    }

    /// What to do next, in this order, until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Upstream::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        let link = self.link.poll_timeout().map(|(at, timer)| (at, Timer::Link(timer)));
        let session = self.session.as_ref().and_then(|live| live.session.poll_timeout());
        let session = session.map(|(at, timer)| (at, Timer::Session(timer)));
        let day = self.cap.poll_timeout().map(|at| (at, Timer::Day));
        link.into_iter().chain(session).chain(day).min_by_key(|(at, _)| *at)
    }

    fn on_upgraded(&mut self, encoding: Option<Encoding>, offers: &[Offer], now: Instant) {
        self.end_session();
        self.link.handle_input(link::Input::Upgraded, now);
        self.sessions += 1;
        let greeting = Greeting {
            device: self.device.clone(),
            agent: self.agent.clone(),
            boot: self.boot.clone(),
            offers: self.ours(offers),
            commands: self.intake.done(),
            last: self.link.last_class().map(|class| class.name().into()),
            session: self.sessions,
            encoding,
            capped: self.cap.is_spent(),
            batch_records_max: self.batch_records_max,
            lone_records: self.too_large.lone_records(),
        };
        let session = Session::new(Arc::clone(&self.dialect), greeting, now);
        let told = self.intake.done();
        self.session = Some(Live { session, name: None, refused: false, heartbeat: None, told });
    }

    fn on_wire(&mut self, bytes: u64, now: Instant) {
        if self.cap.handle_wire(bytes, now) {
            self.outputs.push_back(Output::SaveDay(self.cap.saved()));
        }
        self.heed_cap(now);
    }

    fn heed_cap(&mut self, now: Instant) {
        let Some(spent) = self.cap.poll_change(now) else { return };
        if spent {
            let (max, day) = (self.cap.bytes_per_day_max(), self.cap.day_bytes());
            self.event("day_cap", format!("bytes_per_day_max={max} are spent, bytes={day}: only exempt lanes go on"));
        }
        if let Some(live) = &mut self.session {
            live.session.set_capped(spent, now);
        }
    }

    fn on_failed(&mut self, failure: Failure, now: Instant) {
        let accepted = self.session.is_some();
        let too_large = self.session.as_ref().filter(|_| failure.close_code == Some(1009));
        let too_large = too_large.map(|live| live.session.in_flight());
        self.end_session();
        if let Some(in_flight) = too_large {
            self.on_too_large(in_flight);
        }
        let class = if accepted { self.taken_over(failure.class, &failure.detail) } else { failure.class };
        let replaced = matches!(class, Class::Replaced | Class::Clone).then(|| failure.detail.clone());
        self.link.handle_input(link::Input::Failed(Failure { class, ..failure }), now);
        if let (Some(detail), Some(Class::Clone)) = (replaced, self.link.last_class()) {
            self.event("clone_suspected", format!("another device seems to use this identity: {detail}"));
        }
    }

    /// A takeover whose reason names the newcomer's boot (rule 11), or a close of another kind that reports one. Our own
    /// is a connection of ours that came late. One that takes over, is taken over by us and comes back is no reboot,
    /// however long each session was.
    fn taken_over(&mut self, class: Class, detail: &str) -> Class {
        let boot = if class == Class::Replaced {
            // A word like any other is no nonce.
            detail.rsplit(' ').next().filter(|boot| boot.len() >= 6 && has_digit(boot))
        } else if matches!(class, Class::Closed | Class::Protocol) {
            self.reported_boot(detail)
        } else {
            None
        };
        let Some(boot) = boot.filter(|boot| *boot != self.boot) else { return class };
        let again = self.taken_over_by.as_deref() == Some(boot);
        self.taken_over_by = Some(boot.to_owned());
        if again { Class::Clone } else { Class::Replaced }
    }

    /// The boot that the reason of a close names: alone, or at its end where it speaks of one. It has the shape of ours;
    /// many a word at the end of a reason names the server's own release or trace.
    fn reported_boot<'a>(&self, detail: &'a str) -> Option<&'a str> {
        let (code, reason) = detail.strip_prefix("close ")?.split_once(": ")?;
        let boot = reason.rsplit([' ', '=', ':']).next()?;
        let like_ours = boot.len() == self.boot.len() && boot.bytes().all(|byte| byte.is_ascii_hexdigit());
        // Beside a code that tells of trouble a bare number is that trouble's.
        let is_plain_end = matches!(code.parse(), Ok(1000 | 1001 | 1008 | 4000..=4999));
        let is_meant = boot == reason && is_plain_end || reason.to_ascii_lowercase().contains("boot");
        (like_ours && has_digit(boot) && is_meant).then_some(boot)
    }

    fn on_command(&mut self, seq: u64, topic: String, body: Body) {
        match self.intake.handle_command(seq, topic.len() + body.as_bytes().len()) {
            Verdict::Take => {
                self.outputs.push_back(Output::Command(Command { stream: self.intake.stream(), seq, topic, body }));
            }
            Verdict::Known | Verdict::Later => {}
            Verdict::TooMany => self.session.iter_mut().for_each(|live| live.session.refuse_command()),
        }
    }

    fn on_done(&mut self, done: CommandCursor) {
        self.done += self.intake.handle_done(done);
        self.tell_done();
        if let Some(live) = self.session.as_mut().filter(|_| self.intake.wants_session()) {
            live.session.renew("commands that had no room wait with the server");
        }
    }

    /// The far end has greeted: it hears of what it does not know to be done.
    fn tell_done(&mut self) {
        let done = self.intake.done();
        let Some(live) = self.session.as_mut().filter(|live| live.name.is_some() && done != live.told) else { return };
        if let Some(done) = done {
            live.told = Some(done);
            live.session.send_done(done);
        }
    }

    /// The offers without the numberings that are not ours. The outbox needs a moment to draw new ones (rule 7);
    /// until then nothing of theirs is said. What it no longer offers need not be remembered.
    fn ours(&mut self, offers: &[Offer]) -> Vec<Offer> {
        let is = |(lane, epoch): &(LaneName, Epoch), offer: &Offer| offer.epoch == *epoch && offer.lane == *lane;
        self.foreign.retain(|pair| offers.iter().any(|offer| is(pair, offer)));
        let ours = offers.iter().filter(|offer| !self.foreign.iter().any(|pair| is(pair, offer)));
        let ours: Vec<_> = ours.cloned().collect();
        self.too_large.on_offers(&ours);
        ours
    }

    /// The heartbeat's round trip begins with its own ping: others are the session's.
    fn on_ping_flushed(&mut self, counter: Option<u64>, now: Instant) {
        if self.session.as_ref().is_some_and(|live| live.heartbeat == counter) {
            self.link.handle_input(link::Input::PingFlushed, now);
        }
    }

    /// And it ends with its own pong: any other is life, no more.
    fn on_pong(&mut self, payload: &[u8], now: Instant) {
        let heartbeat = self.session.as_ref().and_then(|live| live.heartbeat);
        if payload == heartbeat.map_or_else(String::new, |counter| counter.to_string()).as_bytes() {
            self.link.handle_input(link::Input::Pong, now);
            if let (Some(live), Some(rto)) = (&mut self.session, self.link.rto()) {
                live.session.set_rto(rto);
            }
        }
        self.tell(dialect::Input::Pong(payload), now);
    }

    fn heartbeat(&mut self) {
        let counter = self.session.as_mut().and_then(|live| live.session.heartbeat());
        if let Some(live) = &mut self.session {
            live.heartbeat = counter;
        }
        if counter.is_none() {
            self.outputs.push_back(Output::Ping { counter });
        }
    }

    fn tell(&mut self, input: dialect::Input<'_>, now: Instant) {
        if let Some(live) = &mut self.session {
            live.session.handle_input(input, now);
        }
    }

    /// Brings what link and session have to say to each other to its end.
    fn settle(&mut self, now: Instant) {
        loop {
            if let Some(output) = self.session.as_mut().and_then(|live| live.session.poll_output()) {
                self.on_session_output(output, now);
            } else if let Some(output) = self.link.poll_output() {
                self.on_link_output(output);
            } else {
                break;
            }
        }
        self.check_invariants();
    }

    fn on_session_output(&mut self, output: dialect::Output, now: Instant) {
        match output {
            dialect::Output::Transmit { frame, purpose } => self.outputs.push_back(Output::Transmit { frame, purpose }),
            dialect::Output::Ping(counter) => self.outputs.push_back(Output::Ping { counter: Some(counter) }),
            dialect::Output::Fetch(fetch) => self.outputs.push_back(Output::Fetch(fetch)),
            dialect::Output::Greeted { name, server_now_ms, command_stream } => {
                if let Some(live) = &mut self.session {
                    live.name = Some(name);
                }
                self.outputs.extend(server_now_ms.map(|now_ms| Output::ServerTime { now_ms }));
                if let Some(stream) = command_stream {
                    self.intake.handle_stream(stream);
                    self.tell_done();
                }
                self.link.handle_input(link::Input::Greeted, now);
            }
            dialect::Output::Proved => self.link.handle_input(link::Input::Proved, now),
            dialect::Output::Acked { lane, epoch, seq } => {
                self.refused.retain(|refused| (&refused.0, refused.1) != (&lane, epoch) || refused.2 > seq);
                self.too_large.on_acked(&lane, epoch, seq);
                self.outputs.push_back(Output::Acked { lane, epoch, seq });
                self.grow_batches();
            }
            dialect::Output::Rejected { lane, epoch, seq, reason, ours } => {
                if self.refused.insert((lane.clone(), epoch, seq)) {
                    self.on_rejected(&lane, seq, &reason);
                    self.outputs.push_back(Output::Rejected { lane, epoch, seq, reason, ours });
                }
            }
            dialect::Output::Foreign { lane, epoch } => {
                self.refused.retain(|refused| (&refused.0, refused.1) != (&lane, epoch));
                self.event("foreign_numbering", format!("lane {lane}: epoch {epoch} was used by someone else"));
                self.foreign.push((lane.clone(), epoch));
                self.outputs.push_back(Output::Foreign { lane, epoch });
            }
            dialect::Output::Forgotten { lane, epoch, acked, had } => {
                let detail = format!("lane {lane}: epoch {epoch} was acked up to {had}, now up to {acked}");
                self.event("acks_forgotten", detail);
            }
            dialect::Output::Command { seq, topic, body } => self.on_command(seq, topic, body),
            dialect::Output::Retry { after_ms, spread_ms, endpoint } => {
                let endpoint = endpoint.and_then(|url| self.endpoint_index(&url));
                self.link.handle_input(link::Input::Retry { after_ms, spread_ms, endpoint }, now);
            }
            dialect::Output::End { failure, close } => {
                self.end_session();
                self.outputs.push_back(Output::Drop { close });
                self.on_failed(failure, now);
            }
        }
    }

    fn on_link_output(&mut self, output: link::Output) {
        match output {
            link::Output::Resolve { endpoint, recheck } => {
                self.outputs.push_back(Output::Resolve { endpoint, recheck });
            }
            link::Output::Dial { address } => self.outputs.push_back(Output::Dial { address }),
            link::Output::Probe { endpoint } => self.outputs.push_back(Output::Probe { endpoint }),
            link::Output::Remedy { step } => self.outputs.push_back(Output::Remedy { step }),
            link::Output::Ping => self.heartbeat(),
            link::Output::Drop { close } => {
                self.end_session();
                self.outputs.push_back(Output::Drop { close });
            }
            link::Output::Changed => self.outputs.push_back(Output::Changed),
            link::Output::Save(saved) => self.outputs.push_back(Output::Save(saved)),
            link::Output::GiveUp => self.outputs.push_back(Output::GiveUp),
        }
    }

    fn on_too_large(&mut self, in_flight: InFlight) {
        let url = self.view().url.unwrap_or_default();
        let Some((lane, epoch, seq)) = self.too_large.on_too_large(in_flight, &url) else { return };
        if self.refused.insert((lane.clone(), epoch, seq)) {
            let reason = "the far end closes with 1009 at it, each time: too big".to_owned();
            self.event("record_rejected", format!("lane {lane}: record {seq} is refused for ever: {reason}"));
            self.outputs.push_back(Output::Rejected { lane, epoch, seq, reason, ours: true });
        }
    }

    /// One event a session, whatever the number of refusals: each of them is counted by the outbox.
    fn on_rejected(&mut self, lane: &LaneName, seq: Seq, reason: &str) {
        let Some(live) = self.session.as_mut().filter(|live| !live.refused) else { return };
        live.refused = true;
        self.event("record_rejected", format!("lane {lane}: record {seq} is refused for ever: {reason}"));
    }

    /// Rule 9: what is not configured is ignored.
    fn endpoint_index(&mut self, url: &str) -> Option<u8> {
        let index = self.endpoints.iter().position(|known| known == url).and_then(|index| u8::try_from(index).ok());
        if index.is_none() {
            let url = link::one_line(url.into());
            self.event("unknown_endpoint", format!("the server sends us to {url}, which is not configured: ignored"));
        }
        index
    }

    fn event(&mut self, kind: &'static str, detail: String) {
        self.outputs.push_back(Output::Event { kind, detail });
    }

    /// Rule 6, the way back: an ack advanced, the path bears what it bore.
    fn grow_batches(&mut self) {
        let Some(live) = self.session.as_mut().filter(|live| live.session.progressed()) else { return };
        self.batch_records_max = self.batch_records_max.saturating_mul(2).min(self.dialect.window_records.max(1));
        live.session.set_batch_records_max(self.batch_records_max);
    }

    /// Nothing of the session outlives it: what it wanted sent or fetched is forgotten with it.
    fn end_session(&mut self) {
        let Some(Live { session, .. }) = self.session.take() else { return };
        self.intake.handle_end();
        self.too_large.on_end(session.lone_records());
        if session.largest_batch() > 0 && !session.progressed() {
            // Half of what did not get through, which may have been less than what was allowed.
            self.batch_records_max = (self.batch_records_max.min(session.largest_batch()) / 2).max(1);
        }
        self.outputs.retain(|output| match output {
            Output::Transmit { .. } | Output::Ping { .. } | Output::Fetch(_) => false,
            Output::Resolve { .. }
            | Output::Dial { .. }
            | Output::Probe { .. }
            | Output::Remedy { .. }
            | Output::Drop { .. }
            | Output::Acked { .. }
            | Output::Rejected { .. }
            | Output::Foreign { .. }
            | Output::ServerTime { .. }
            | Output::Changed
            | Output::Event { .. }
            | Output::Command(_)
            | Output::Save(_)
            | Output::SaveDay(_)
            | Output::GiveUp => true,
        });
    }

    /// What always holds when link and session have settled.
    fn check_invariants(&self) {
        debug_assert!(!self.link.is_up() || self.session.is_some(), "up without a session");
        debug_assert!(
            (1..=self.dialect.window_records.max(1)).contains(&self.batch_records_max),
            "batches are bounded"
        );
    }
}

fn has_digit(word: &str) -> bool {
    word.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]
mod tests;
