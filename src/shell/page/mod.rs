//! The page for a person at the gateway, and the metrics for a machine: a thread of its own, which there is only where
//! `[page] listen` says so. It looks at the agent every few seconds and keeps a day of that in RAM. Nothing that is asked
//! here changes anything, and no visitor can hold up anything but this page.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::{info, warn};
use mio::net::TcpListener;
use mio::{Events, Poll, Token, Waker};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::clock;
use super::http::{Http, Reply, Request};
use super::port::{ForPage, Port};
use super::snapshot::Source;
use crate::insight::history::{History, Row, SLOT};
use crate::insight::metrics;
use crate::insight::notes::{Notes, Seen};
use crate::status::Status;
use crate::time::Instant;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
const FIRST_VISITOR: usize = 2;

/// How often the agent is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often an address is tried that cannot be had.
const BIND_INTERVAL: Duration = Duration::from_secs(10);
/// A snapshot answers whoever asks in this time: a flood of visitors costs little.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted: behind a scan that fills it a visitor would wait a second for its next SYN.
const BACKLOG: i32 = 1024;

const HTML: &str = include_str!("index.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// What the page is made of.
pub struct Setup {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Names that it may be asked for by, beside addresses, `localhost` and the machine's own name.
    pub hosts: Vec<String>,
    /// Where snapshots come from.
    pub source: Source,
    /// What happened of late.
    pub notes: Arc<Mutex<Notes>>,
    /// The effective configuration, without secrets.
    pub config: String,
}

/// The page, not yet running.
pub struct Page {
    setup: Setup,
    poll: Poll,
    port: Arc<Port<ForPage>>,
    http: Option<Http>,
    /// When to try to listen again.
    bind_at: Instant,
    /// What was wrong the last time, which is told once.
    told: String,
    facts: Facts,
}

/// What is shown.
struct Facts {
    history: History,
    look_at: Instant,
    /// The last snapshot, and when it was taken.
    last: Option<(Instant, Status)>,
}

/// What `/history.json` shows.
#[derive(Serialize)]
struct Day<'a> {
    slot_s: u64,
    open_s: u64,
    slots: Vec<Row>,
    notes: Vec<Seen<'a>>,
}

impl Page {
    /// Makes the loop; the address is taken when it runs.
    pub fn try_new(mut setup: Setup) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let port = Arc::new(Port::with_wake(move || drop(waker.wake())));
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        setup.hosts.extend([format!("{name}.local"), name, "localhost".into()]);
        let now = clock::now();
        let facts = Facts { history: History::default(), look_at: now, last: None };
        Ok(Self { setup, poll, port, http: None, bind_at: now, told: String::new(), facts })
    }

    /// Where it is told to stop.
    pub fn port(&self) -> Arc<Port<ForPage>> {
        Arc::clone(&self.port)
    }

    /// Serves until told to stop.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut next_id = FIRST_VISITOR;
        while !self.port.lock().stop {
            let now = clock::now();
            if self.http.is_none() && self.bind_at <= now {
                self.listen(now);
            }
            if self.facts.look_at <= now {
                self.facts.look(&self.setup.source, now);
            }
            if let Some(http) = &mut self.http {
                let (setup, facts) = (&self.setup, &mut self.facts);
                http.handle_turn(self.poll.registry(), &mut next_id, now, |request| facts.reply(setup, request, now));
            }
            let is_busy = self.http.as_ref().is_some_and(Http::has_work);
            let due = self.http.as_ref().map_or(Some(self.bind_at), Http::deadline);
            let due = due.into_iter().chain([self.facts.look_at]).min();
            let timeout = if is_busy { Some(Duration::ZERO) } else { due.map(|at| at.since(clock::now())) };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match (event.token(), &mut self.http) {
                    (LISTENER, Some(http)) => http.handle_listener_ready(),
                    (Token(id), Some(http)) => http.handle_ready(id),
                    (_, None) => {}
                }
            }
        }
        Ok(())
    }

    fn listen(&mut self, now: Instant) {
        let bound = listener(self.setup.listen);
        match bound.and_then(|listener| Http::try_new(listener, self.poll.registry(), LISTENER)) {
            Ok(http) => {
                info!(target: "page", "page on http://{}/", http.local_addr());
                self.http = Some(http);
            }
            Err(error) => {
                self.bind_at = now + BIND_INTERVAL;
                let error = error.to_string();
                if error != self.told {
                    warn!(target: "page", "cannot listen, trying again listen={} error={error}", self.setup.listen);
                    self.told = error;
                }
            }
        }
    }
}

/// An address that is not there yet can be bound (IP_FREEBIND): it works when DHCP has given it.
fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

impl Facts {
    fn look(&mut self, source: &Source, now: Instant) {
        self.look_at = now + LOOK_INTERVAL;
        self.last = None;
        let status = self.snapshot(source, now).clone();
        self.history.look(&status, now);
    }

    /// A snapshot of now, more or less.
    fn snapshot(&mut self, source: &Source, now: Instant) -> &Status {
        if self.last.as_ref().is_some_and(|(at, _)| now.since(*at) > SNAPSHOT_AGE_MAX) {
            self.last = None;
        }
        let fresh = || {
            let mut status = source.snapshot(source.board.local_bytes.load(Ordering::Relaxed));
            let link = &mut status.link;
            link.endpoint.iter_mut().chain(link.endpoints.iter_mut().map(|it| &mut it.url)).for_each(without_query);
            (now, status)
        };
        &self.last.get_or_insert_with(fresh).1
    }

    fn reply(&mut self, setup: &Setup, request: Request<'_>, now: Instant) -> Reply {
        if request.host.is_some_and(|host| !is_ours(host, &setup.hosts)) {
            // A foreign page that has its own name resolve to this address reads nothing (DNS rebinding).
            return Reply::refusal("421 Misdirected Request", "not a name of this gateway: see [page] hosts\n");
        }
        match request.path {
            "/" => Reply::ok("text/html", HTML),
            "/page.js" => Reply::ok("text/javascript", SCRIPT),
            "/page.css" => Reply::ok("text/css", STYLE),
            "/status.json" => {
                let json =
                    serde_json::to_string(self.snapshot(&setup.source, now)).expect("plain data with string keys");
                Reply::ok("application/json", json)
            }
            "/history.json" => {
                let notes = setup.notes.lock().unwrap_or_else(PoisonError::into_inner);
                let day = Day {
                    slot_s: SLOT.as_secs(),
                    open_s: History::open_s(now),
                    slots: self.history.rows(),
                    notes: notes.seen(now),
                };
                Reply::ok("application/json", serde_json::to_string(&day).expect("plain data with string keys"))
            }
            "/config.toml" => Reply::ok("text/plain", setup.config.clone()),
            "/metrics" => Reply::ok(metrics::CONTENT_TYPE, metrics::text(self.snapshot(&setup.source, now))),
            _ => Reply::refusal(
                "404 Not Found",
                "nothing here but /, /status.json, /history.json, /config.toml, /metrics\n",
            ),
        }
    }
}

/// A query may hold a token.
pub fn without_query(url: &mut String) {
    if let Some(at) = url.find('?') {
        url.truncate(at + 1);
        url.push('…');
    }
}

/// An address, or one of these names; a port behind it says nothing.
fn is_ours(host: &str, names: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    address.parse::<IpAddr>().is_ok() || names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_known_names_are_answered() {
        let names = ["gw-17".to_owned(), "localhost".to_owned()];
        for (host, ours) in [
            ("127.0.0.1:9550", true),
            ("127.0.0.1", true),
            ("[::1]:9550", true),
            ("[::1]", true),
            ("LocalHost:9550", true),
            ("gw-17:80", true),
            ("gw-17.evil.example", false),
            ("evil.example:9550", false),
            ("127.0.0.1.evil.example", false),
            ("localhost:80:80", false),
            ("", false),
        ] {
            assert_eq!(is_ours(host, &names), ours, "{host:?}");
        }
        let mut url = "wss://h/v1?token=secret".to_owned();
        without_query(&mut url);
        assert_eq!(url, "wss://h/v1?…");
    }

    #[test]
    fn all_of_it_is_below_40_kb_and_nothing_comes_from_elsewhere() {
        assert!(HTML.len() + SCRIPT.len() + STYLE.len() < 40_000);
        for file in [HTML, SCRIPT, STYLE] {
            let elsewhere = file.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("://") && !file.contains("@import"), "{file}");
            assert!(!file.contains(" style=") && !file.contains("innerHTML"), "the policy forbids it");
        }
        assert!(!HTML.contains("<script>") && !HTML.contains("<style"), "the policy forbids it");
    }

    #[test]
    fn an_address_that_is_not_there_yet_can_be_had_and_one_that_is_taken_cannot() {
        let later = "192.0.2.77:0".parse().map(listener);
        assert!(matches!(later, Ok(Ok(_))), "{later:?}");
        let first = listener(SocketAddr::from(([127, 0, 0, 1], 0)));
        let taken = first.and_then(|first| listener(first.local_addr()?).map(|second| (first, second)));
        assert!(taken.is_err());
    }
}
