//! The uplink thread on real sockets: a server of a few lines that keeps the protocol or does not, an outbox that is a
//! list, and the ports between.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/temp_dir.rs"]
mod temp_dir;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backhaul::config::{Encoding, Endpoint, Heartbeat, Reconnect};
use backhaul::dialect;
use backhaul::dialect::message::{Acked, AgentMessage, ServerMessage, Welcome};
use backhaul::link;
use backhaul::record::{Body, Fetch, Item, LaneName, Offer, Record, Seq};
use backhaul::shell::board::Board;
use backhaul::shell::port::{ForOutbox, ForUplink, Port};
use backhaul::shell::uplink::{Exit, Setup, Uplink};
use backhaul::upstream;
use temp_dir::TempDir;
use tungstenite::handshake::server::{Request, Response};
use tungstenite::{Message, WebSocket};

/// Long enough for a machine under any load; nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

// The server.

/// Listens on loopback and gives each connection, with its number from 1, to a thread.
struct Server {
    address: SocketAddr,
    accepts: Arc<Mutex<Vec<Instant>>>,
}

impl Server {
    fn start(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepts = Arc::new(Mutex::new(Vec::new()));
        let (noted, serve) = (Arc::clone(&accepts), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = {
                    let mut noted = noted.lock().unwrap();
                    noted.push(Instant::now());
                    noted.len()
                };
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(number, stream.unwrap()));
            }
        });
        Self { address, accepts }
    }

    fn url(&self) -> String {
        format!("ws://{}/v1", self.address)
    }

    fn accepts(&self) -> usize {
        self.accepts.lock().unwrap().len()
    }
}

/// Upgrades to the first subprotocol offered.
fn upgrade<S: Read + Write>(stream: S) -> Option<(WebSocket<S>, Encoding)> {
    let mut encoding = Encoding::Postcard;
    #[expect(clippy::result_large_err, reason = "tungstenite's callback")]
    let callback = |request: &Request, mut response: Response| {
        let offered = request.headers().get("sec-websocket-protocol").unwrap().to_str().unwrap().to_owned();
        let first = offered.split(", ").next().unwrap();
        encoding = if first == Encoding::Json.token() { Encoding::Json } else { Encoding::Postcard };
        response.headers_mut().insert("sec-websocket-protocol", first.parse().unwrap());
        Ok(response)
    };
    let socket = tungstenite::accept_hdr(stream, callback).ok()?;
    Some((socket, encoding))
}

fn say<S: Read + Write>(socket: &mut WebSocket<S>, message: &ServerMessage, encoding: Encoding) {
    let message = match encoding {
        Encoding::Postcard => Message::Binary(postcard::to_stdvec(message).unwrap().into()),
        Encoding::Json => Message::Text(serde_json::to_string(message).unwrap().into()),
    };
    drop(socket.send(message));
}

/// The agent's next message; `None` once it is gone.
fn hear<S: Read + Write>(socket: &mut WebSocket<S>) -> Option<AgentMessage> {
    loop {
        match socket.read().ok()? {
            Message::Binary(bytes) => return Some(postcard::from_bytes(&bytes).unwrap()),
            Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => (),
            Message::Close(_) => return None,
        }
    }
}

/// What the server has stored, by seq.
type Store = Arc<Mutex<BTreeMap<Seq, Record>>>;

/// Waits for `hello` and says `welcome` with what is stored.
fn greet<S: Read + Write>(socket: &mut WebSocket<S>, encoding: Encoding, store: &Store) -> Option<()> {
    let AgentMessage::Hello(hello) = hear(socket)? else { panic!("hello comes first") };
    let seq = store.lock().unwrap().len() as u64;
    let acked = hello.lanes.into_iter().map(|lane| Acked { lane: lane.lane, epoch: lane.epoch, seq });
    let welcome = Welcome {
        session: "session-1".into(),
        features: vec![],
        now: 1,
        message_bytes_max: 1 << 20,
        acked: acked.collect(),
        rejected: vec![],
        command_stream: 1,
    };
    say(socket, &ServerMessage::Welcome(welcome), encoding);
    Some(())
}

/// Keeps the protocol until the agent is gone.
fn serve<S: Read + Write>(stream: S, store: &Store) {
    serve_up_to(stream, store, usize::MAX);
}

/// Keeps the protocol until so many records are stored; the last batch is not acked.
fn serve_up_to<S: Read + Write>(stream: S, store: &Store, records_max: usize) {
    let Some((mut socket, encoding)) = upgrade(stream) else { return };
    if greet(&mut socket, encoding, store).is_none() {
        return;
    }
    while let Some(message) = hear(&mut socket) {
        let AgentMessage::Records { lane, epoch, records } = message else { panic!("{message:?}") };
        let stored = {
            let mut store = store.lock().unwrap();
            for record in records {
                assert_eq!(record.seq, store.len() as u64 + 1, "contiguous");
                store.insert(record.seq, record);
            }
            store.len()
        };
        if stored >= records_max {
            return;
        }
        say(&mut socket, &ServerMessage::Ack { lane, epoch, seq: stored as u64 }, encoding);
    }
}

// The agent's side.

/// An uplink on its thread, and an outbox thread that holds `count` records of one lane.
struct Agent {
    port: Arc<Port<ForUplink>>,
    outbox: Arc<Port<ForOutbox>>,
    board: Arc<Board>,
    acked: Arc<Mutex<Seq>>,
    uplink: JoinHandle<Exit>,
    dir: TempDir,
}

fn lane() -> LaneName {
    LaneName::try_new("telemetry").unwrap()
}

fn record(seq: Seq) -> Record {
    Record { seq, at: Some(seq), topic: "a/topic".into(), body: Body::Text(format!("{seq:0>200}")) }
}

fn setup(url: &str, dir: &Path) -> Setup {
    let heartbeat = Heartbeat { interval_ms: 10_000, timeout_ms: 10_000, misses_max: 3, ..Heartbeat::default() };
    let link = link::Config {
        reconnect: Reconnect {
            start_delay_ms_max: 0,
            spread_ms: 20,
            backoff_ms_min: 20,
            backoff_ms_max: 40,
            slow_ms_min: 40,
            slow_ms_max: 80,
            stable_after_ms: 60_000,
            ..Reconnect::default()
        },
        heartbeat,
        handshake_timeout_ms: 30_000,
        server_wait_ms_max: 3_600_000,
        session_age_s_max: 0,
        attempts_max: 0,
        endpoints_tls: vec![url.starts_with("wss")],
        ..link::Config::default()
    };
    let dialect = dialect::Config {
        window_records: 500,
        window_bytes: 1 << 18,
        batch_bytes_max: 32_768,
        ack_timeout_ms: 30_000,
        ..dialect::Config::default()
    };
    Setup {
        upstream: upstream::Setup {
            link: Arc::new(link),
            dialect: Arc::new(dialect),
            device: "gw-1".into(),
            agent: "backhaul/0.1.0".into(),
            boot: "c0ffee".into(),
            endpoints: vec![url.into()],
            seed: 1,
            saved: None,
            fresh_boot: false,
            cap: upstream::cap::Cap::default(),
        },
        endpoints: vec![Endpoint { url: url.into(), ..Endpoint::default() }],
        endpoints_file: None,
        remedies: Vec::new(),
        runner: Arc::default(),
        flash_file: dir.join("flash/backoff"),
        encodings: vec![Encoding::Postcard, Encoding::Json],
        live: false,
        no_proxy: Vec::new(),
        credential_timeout: Duration::from_secs(10),
        heartbeat,
        backoff_file: dir.join("backoff"),
        day_file: dir.join("day"),
        watchdog: Arc::new(|| ()),
        command: Arc::new(|_| ()),
        link_changed: Arc::new(|| ()),
        event: Arc::new(|_, _| ()),
        note: Arc::new(|_, _| ()),
    }
}

/// Changes the link's configuration of a setup.
fn with_link(setup: &mut Setup, change: impl FnOnce(&mut link::Config)) {
    change(Arc::make_mut(&mut setup.upstream.link));
}

fn with_heartbeat(setup: &mut Setup, heartbeat: Heartbeat) {
    setup.heartbeat = heartbeat;
    with_link(setup, |link| link.heartbeat = heartbeat);
}

impl Agent {
    fn start(url: &str, count: u64, change: impl FnOnce(&mut Setup)) -> Self {
        let dir = TempDir::new("uplink");
        let mut setup = setup(url, &dir);
        change(&mut setup);
        let uplink = Uplink::try_new(setup).unwrap();
        let (port, board) = (uplink.port(), Arc::new(Board::default()));
        let outbox = Arc::new(Port::<ForOutbox>::new());
        let acked = Arc::new(Mutex::new(0));
        {
            let (port, outbox, acked) = (Arc::clone(&port), Arc::clone(&outbox), Arc::clone(&acked));
            thread::spawn(move || keep_outbox(&outbox, &port, count, &acked));
        }
        let (for_outbox, pinned) = (Arc::clone(&outbox), Arc::clone(&board));
        let uplink = thread::spawn(move || uplink.run(for_outbox, pinned));
        Self { port, outbox, board, acked, uplink, dir }
    }

    fn wait_until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !reached(self) {
            assert!(began.elapsed() < DEADLINE, "{what}: {:?}", self.board.link.lock());
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn failures(&self, class: &str) -> u64 {
        self.board.link.lock().failures.iter().find(|(name, _)| *name == class).map_or(0, |(_, count)| *count)
    }

    fn detail(&self) -> String {
        self.board.link.lock().last_failure.as_ref().map(|(_, detail, _)| detail.clone()).unwrap_or_default()
    }

    fn is_up(&self) -> bool {
        self.board.link.lock().state == "up"
    }

    fn acked(&self) -> Seq {
        *self.acked.lock().unwrap()
    }

    /// How long it took to leave.
    fn stop(self) -> Duration {
        let began = Instant::now();
        self.port.give(|port| port.stop = true);
        assert_eq!(self.uplink.join().unwrap(), Exit::Stopped);
        let took = began.elapsed();
        self.outbox.give(|outbox| outbox.stop = true);
        took
    }
}

/// The outbox thread: offers records 1 to `count`, answers what is asked, forgets nothing.
fn keep_outbox(outbox: &Port<ForOutbox>, uplink: &Port<ForUplink>, count: u64, acked: &Mutex<Seq>) {
    loop {
        let offer = {
            let first = *acked.lock().unwrap() + 1;
            Offer { lane: lane(), epoch: 7, first, next: count + 1, sent_max: count }
        };
        uplink.give(|port| {
            port.offers = vec![offer];
            port.offers_changed = true;
        });
        let mut waiting = outbox.lock();
        while waiting.is_empty() {
            waiting = outbox.filled.wait(waiting).unwrap();
        }
        let found = std::mem::take(&mut *waiting);
        drop(waiting);
        if found.stop {
            return;
        }
        for seq in found.acks.into_values() {
            *acked.lock().unwrap() = seq;
        }
        let answers: Vec<_> = found.fetches.into_iter().map(|fetch| (answer(&fetch, count), fetch)).collect();
        uplink.give(|port| port.items.extend(answers.into_iter().map(|(items, fetch)| (fetch, items))));
    }
}

fn answer(fetch: &Fetch, count: u64) -> Vec<Item> {
    let last = count.min(fetch.from + u64::from(fetch.records_max) - 1);
    let per_record = record(1).body.as_bytes().len() + record(1).topic.len();
    let fit = (fetch.bytes_max as usize / per_record).max(1);
    (fetch.from..=last).take(fit).map(|seq| Item::Record(record(seq))).collect()
}

// Tests.

#[test]
fn records_go_up_in_order_and_their_acks_come_back() {
    for encoding in [Encoding::Postcard, Encoding::Json] {
        let store = Store::default();
        let stored = Arc::clone(&store);
        let server = Server::start(move |_, stream| serve(stream, &stored));
        let agent = Agent::start(&server.url(), 5000, |setup| setup.encodings = vec![encoding]);
        agent.wait_until("all acked", |agent| agent.acked() == 5000);
        assert!(store.lock().unwrap().values().cloned().eq((1..=5000).map(record)));
        assert!(agent.is_up());
        assert_eq!(agent.board.link.lock().session.as_deref(), Some("session-1"));
        assert_eq!(server.accepts(), 1);
        let wire = *agent.board.wire.lock();
        let parts = wire.by_purpose;
        assert!(parts.records.sent > 5000 * 200 && parts.acks.received > 0, "{wire:?}");
        assert!(parts.handshake.sent > 100 && parts.handshake.received > 100, "{wire:?}");
        let all = [parts.records, parts.acks, parts.commands, parts.heartbeat, parts.handshake];
        assert_eq!(all.iter().map(|bytes| bytes.sent).sum::<u64>(), wire.bytes_sent);
        assert_eq!(all.iter().map(|bytes| bytes.received).sum::<u64>(), wire.bytes_received);
        agent.stop();
    }
}

#[test]
fn a_connection_that_breaks_is_replaced_and_nothing_is_sent_twice_or_lost() {
    let store = Store::default();
    let stored = Arc::clone(&store);
    let server = Server::start(move |number, stream| {
        let records_max = if number < 6 { number * 700 } else { usize::MAX };
        serve_up_to(stream, &stored, records_max);
    });
    let agent = Agent::start(&server.url(), 5000, |_| ());
    agent.wait_until("all acked", |agent| agent.acked() == 5000);
    assert!(store.lock().unwrap().values().cloned().eq((1..=5000).map(record)));
    assert_eq!(server.accepts(), 6);
    agent.stop();
}

#[test]
fn a_server_that_never_upgrades_is_a_timeout_and_is_tried_again() {
    let server = Server::start(|number, mut stream| match number {
        1 | 2 => drop(stream.read_to_end(&mut Vec::new())), // Until the agent gives it up.
        _ => serve(stream, &Store::default()),
    });
    let agent = Agent::start(&server.url(), 3, |setup| with_link(setup, |link| link.handshake_timeout_ms = 100));
    agent.wait_until("up by itself", Agent::is_up);
    assert_eq!(agent.failures("timeout"), 2);
    assert_eq!(agent.detail(), "upgrading: no answer in time");
    assert_eq!(server.accepts(), 3);
    agent.stop();
}

#[test]
fn http_503_with_retry_after_is_obeyed() {
    let server = Server::start(|number, mut stream| match number {
        1 => {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            let answer = "HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nBackhaul-Spread-Ms: 0\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        }
        _ => serve(stream, &Store::default()),
    });
    let agent = Agent::start(&server.url(), 3, |_| ());
    agent.wait_until("up by itself", Agent::is_up);
    assert_eq!(agent.failures("overload"), 1);
    let accepts = server.accepts.lock().unwrap().clone();
    assert_eq!(accepts.len(), 2);
    // The first instant is of the accept, a moment before the answer: the wait can only look longer than it was.
    assert!(accepts[1] - accepts[0] >= Duration::from_secs(2), "{:?}", accepts[1] - accepts[0]);
    agent.stop();
}

#[test]
fn a_server_that_picks_no_subprotocol_is_the_wrong_place() {
    let server = Server::start(|_, stream| {
        // An upgrade like any other, but without the header.
        drop(tungstenite::accept(stream).map(|mut socket| socket.read()));
    });
    let agent = Agent::start(&server.url(), 3, |_| ());
    agent.wait_until("refused", |agent| agent.failures("wrong_place") >= 2);
    agent.stop();
}

#[test]
fn a_server_that_closes_right_after_the_greeting_makes_no_busy_loop() {
    let server = Server::start(|_, stream| {
        let Some((mut socket, encoding)) = upgrade(stream) else { return };
        if greet(&mut socket, encoding, &Store::default()).is_some() {
            drop(socket.close(None));
            while socket.read().is_ok() {}
        }
    });
    let agent = Agent::start(&server.url(), 3, |setup| {
        with_link(setup, |link| {
            link.reconnect.backoff_ms_min = 50;
            link.reconnect.backoff_ms_max = 50;
        });
    });
    agent.wait_until("ten attempts", |_| server.accepts() >= 10);
    let accepts = server.accepts.lock().unwrap().clone();
    // The first reconnect is spread over [0, 20] ms; from then on the connect succeeds and the wait grows all the same.
    assert!(accepts[9] - accepts[1] >= Duration::from_millis(8 * 35), "{:?}", accepts[9] - accepts[1]);
    let attempts = agent.board.link.lock().attempts as usize;
    assert!(attempts.abs_diff(server.accepts()) <= 1, "{attempts} attempts, {} seen", server.accepts());
    agent.stop();
}

#[test]
fn a_link_that_stalls_without_closing_is_found_dead_by_the_heartbeat() {
    let server = Server::start(|number, stream| match number {
        1 => {
            let store = Store::default();
            let (mut socket, encoding) = upgrade(stream).unwrap();
            greet(&mut socket, encoding, &store).unwrap();
            thread::park_timeout(DEADLINE); // Neither reads nor closes.
            drop(socket);
        }
        _ => serve(stream, &Store::default()),
    });
    let agent = Agent::start(&server.url(), 3, |setup| {
        with_heartbeat(setup, Heartbeat { interval_ms: 50, timeout_ms: 50, misses_max: 2, ..Heartbeat::default() });
    });
    agent.wait_until("up again", |agent| agent.failures("silent") == 1 && agent.is_up());
    agent.wait_until("all acked", |agent| agent.acked() == 3);
    agent.wait_until("pongs", |agent| agent.board.link.lock().rtt.is_some());
    assert!(agent.board.wire.lock().by_purpose.heartbeat.sent > 0);
    agent.stop();
}

#[test]
fn a_server_that_does_not_read_holds_the_window_back_and_not_the_heartbeat() {
    // The socket fills, the window is larger than what it takes: the rest waits here, and the session ends as silent.
    let server = Server::start(|_, stream| {
        let (mut socket, encoding) = upgrade(stream).unwrap();
        greet(&mut socket, encoding, &Store::default()).unwrap();
        thread::park_timeout(DEADLINE);
        drop(socket);
    });
    let turns = Arc::new(AtomicU32::new(0));
    let agent = Agent::start(&server.url(), 100_000, |setup| {
        let counted = Arc::clone(&turns);
        setup.watchdog = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        with_heartbeat(setup, Heartbeat { interval_ms: 100, timeout_ms: 100, misses_max: 2, ..Heartbeat::default() });
        let dialect = Arc::make_mut(&mut setup.upstream.dialect);
        (dialect.window_records, dialect.window_bytes) = (100_000, 16 << 20);
    });
    agent.wait_until("silent", |agent| agent.failures("silent") >= 1);
    // One a fetch and a few a timer: nothing turns while the socket is full.
    let turned = turns.load(Ordering::Relaxed);
    assert!(turned < 2000, "{turned} turns of the loop");
    let took = agent.stop();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn pings_are_answered_while_nothing_else_happens() {
    let pongs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&pongs);
    let server = Server::start(move |_, stream| {
        let (mut socket, encoding) = upgrade(stream).unwrap();
        greet(&mut socket, encoding, &Store::default()).unwrap();
        for _ in 0..100 {
            socket.send(Message::Ping("p".into())).unwrap();
            while !matches!(socket.read().unwrap(), Message::Pong(_)) {}
            counted.fetch_add(1, Ordering::Relaxed);
        }
        while socket.read().is_ok() {}
    });
    let agent = Agent::start(&server.url(), 0, |_| ());
    agent.wait_until("a hundred pongs", |_| pongs.load(Ordering::Relaxed) == 100);
    agent.stop();
}

#[test]
fn garbage_ends_the_session_and_not_the_agent() {
    let server = Server::start(|number, mut stream| match number {
        1 => stream.write_all(b"\0\x01\x02 no http at all\r\n\r\n").unwrap(),
        2 => {
            let (mut socket, encoding) = upgrade(stream).unwrap();
            greet(&mut socket, encoding, &Store::default()).unwrap();
            // A frame with reserved bits and a reserved opcode (RFC 6455 § 5.2).
            socket.get_mut().write_all(&[0xff, 0x02, 1, 2]).unwrap();
            while socket.read().is_ok() {}
        }
        3 => {
            let (mut socket, encoding) = upgrade(stream).unwrap();
            greet(&mut socket, encoding, &Store::default()).unwrap();
            drop(socket.send(Message::Binary(vec![0xff; 2 << 20].into())));
            while socket.read().is_ok() {}
        }
        _ => serve(stream, &Store::default()),
    });
    let agent = Agent::start(&server.url(), 3, |_| ());
    agent.wait_until("up by itself", |agent| agent.acked() == 3);
    assert_eq!(agent.failures("protocol"), 3, "{:?}", agent.board.link.lock().failures);
    agent.stop();
}

#[test]
fn nobody_listens_and_a_name_that_does_not_resolve_have_classes_of_their_own() {
    let vacant = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, class) in [(format!("ws://{vacant}/"), "refused"), ("ws://nowhere.invalid/".into(), "name")] {
        let agent = Agent::start(&url, 3, |_| ());
        agent.wait_until(class, |agent| agent.failures(class) >= 2);
        agent.stop();
    }
}

#[test]
fn stop_waits_for_nobody() {
    // Silent before the upgrade, and silent after the greeting.
    for silent_from in [1, 2] {
        let server = Server::start(move |_, stream| {
            if silent_from == 1 {
                thread::park_timeout(DEADLINE);
                return drop(stream);
            }
            let (mut socket, encoding) = upgrade(stream).unwrap();
            greet(&mut socket, encoding, &Store::default()).unwrap();
            thread::park_timeout(DEADLINE);
            drop(socket);
        });
        let agent = Agent::start(&server.url(), 100_000, |_| ());
        agent.wait_until("connected", |agent| server.accepts() == 1 && (silent_from == 1 || agent.is_up()));
        let took = agent.stop();
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[test]
fn gives_up_only_when_told_to() {
    let vacant = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = Agent::start(&format!("ws://{vacant}/"), 3, |setup| with_link(setup, |link| link.attempts_max = 3));
    assert_eq!(agent.uplink.join().unwrap(), Exit::GaveUp);
    assert_eq!(agent.board.link.lock().attempts, 3);
    std::fs::remove_dir_all(&*agent.dir).unwrap();
}

#[test]
fn the_backoff_outlives_the_process() {
    let server = Server::start(|_, _| ()); // Accepts and closes.
    let agent = Agent::start(&server.url(), 3, |_| ());
    agent.wait_until("some attempts", |_| server.accepts() >= 4);
    let kept = std::fs::read_to_string(agent.dir.join("backoff")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert!(kept["saved"]["backoff_exponent"].as_u64().unwrap() >= 1, "{kept}");
    agent.stop();
    // Another process: it begins where this one was, not at once.
    let dir = TempDir::new("uplink");
    let later = backhaul::shell::clock::now() + Duration::from_millis(700);
    let mut content = kept;
    content["saved"]["not_before_boot_ms"] = later.as_millis().into();
    std::fs::write(dir.join("backoff"), content.to_string()).unwrap();
    let before = server.accepts();
    let agent = Agent::start(&server.url(), 3, |setup| {
        setup.backoff_file = dir.join("backoff");
        with_link(setup, |link| link.reconnect.backoff_ms_max = 5000);
    });
    agent.wait_until("an attempt", |_| server.accepts() > before);
    assert!(backhaul::shell::clock::now().as_millis() >= later.as_millis());
    agent.stop();
}

#[test]
fn the_token_goes_with_the_upgrade() {
    let heard = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&heard);
    let server = Server::start(move |_, mut stream| {
        let mut request = [0; 4096];
        let count = stream.read(&mut request).unwrap();
        *noted.lock().unwrap() = String::from_utf8_lossy(&request[..count]).into_owned();
        stream.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let agent = Agent::start(&server.url(), 3, |setup| {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = setup.backoff_file.with_file_name("token");
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(b"s3cret\n").unwrap();
        setup.endpoints[0].token_file = Some(path);
    });
    agent.wait_until("refused", |agent| agent.failures("credentials") >= 1);
    let heard = heard.lock().unwrap().to_lowercase();
    assert!(heard.contains("authorization: bearer s3cret\r\n"), "{heard}");
    assert!(heard.contains("user-agent: backhaul/0.1.0\r\n"), "{heard}");
    agent.stop();
}

// TLS.

/// A CA and a certificate for `localhost`, made with the openssl command.
fn certificates(dir: &Path) {
    let script = r#"
        set -e
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj '/CN=backhaul test CA'
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout other.key -out other.pem -subj '/CN=another CA'
        openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj '/CN=localhost'
        printf 'subjectAltName=DNS:localhost' > extension
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extension -out server.pem
        openssl pkcs8 -topk8 -nocrypt -in server.key -out server.p8
    "#;
    let status = Command::new("sh").args(["-c", script]).current_dir(dir).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "the openssl command makes certificates");
}

#[test]
fn a_private_ca_that_matches_does_and_one_that_does_not_is_a_certificate_failure() {
    let dir = TempDir::new("uplink");
    certificates(&dir);
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let identity = native_tls::Identity::from_pkcs8(&read("server.pem"), &read("server.p8")).unwrap();
    let acceptor = native_tls::TlsAcceptor::new(identity).unwrap();
    let store = Store::default();
    let stored = Arc::clone(&store);
    let server = Server::start(move |_, stream| {
        if let Ok(tls) = acceptor.accept(stream) {
            serve(tls, &stored);
        }
    });
    let port = server.address.port();

    let trusting = |name: &'static str| {
        let file = dir.join(name);
        move |setup: &mut Setup| setup.endpoints[0].ca_file = Some(file)
    };
    let right = Agent::start(&format!("wss://localhost:{port}/v1"), 2000, trusting("ca.pem"));
    right.wait_until("all acked over TLS", |agent| agent.acked() == 2000);
    assert!(store.lock().unwrap().values().cloned().eq((1..=2000).map(record)));
    right.stop();

    let wrong_ca = Agent::start(&format!("wss://localhost:{port}/v1"), 3, trusting("other.pem"));
    wrong_ca.wait_until("another CA", |agent| agent.failures("certificate") >= 1);
    assert!(wrong_ca.detail().starts_with("securing: certificate: "), "{}", wrong_ca.detail());
    wrong_ca.stop();

    let wrong_name = Agent::start(&format!("wss://127.0.0.1:{port}/v1"), 3, trusting("ca.pem"));
    wrong_name.wait_until("another name", |agent| agent.failures("certificate") >= 1);
    assert!(wrong_name.detail().contains("mismatch"), "{}", wrong_name.detail());
    wrong_name.stop();

    let system = Agent::start(&format!("wss://localhost:{port}/v1"), 3, |_| ());
    system.wait_until("not in the system's roots", |agent| agent.failures("certificate") >= 1);
    system.stop();

    // A server that does not speak TLS.
    let plain = Server::start(|_, mut stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")));
    let agent = Agent::start(&format!("wss://localhost:{}/v1", plain.address.port()), 3, trusting("ca.pem"));
    agent.wait_until("no TLS", |agent| !agent.detail().is_empty());
    assert_eq!(agent.failures("certificate"), 0, "{}", agent.detail());
    agent.stop();
}
