//! The local thread against an outbox thread that answers as the test says.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::record::LaneName;
use crate::shell::board::Board;
use crate::shell::port::Answer;
use crate::temp_dir::TempDir;

/// Longest wait for anything; a test that works never waits so long.
const DEADLINE: Duration = Duration::from_secs(30);

struct Bench {
    dir: TempDir,
    outbox: Arc<Port<ForOutbox>>,
    local: Arc<Port<ForLocal>>,
    board: Arc<Board>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut config::Local)) -> Self {
        let dir = TempDir::new("local");
        let mut config = config::Local { socket: dir.join("sub/s"), record_bytes_max: 1000, ..Default::default() };
        change(&mut config);
        let outbox = Arc::new(Port::new());
        let board = Arc::<Board>::default();
        let source = Source {
            board: Arc::clone(&board),
            agent: Default::default(),
            started: clock::now(),
            opened: clock::now(),
            queues_bytes_max: 77,
            rss_bytes_max: 99,
        };
        let setup = Setup {
            config,
            boot: 1,
            outbox: Arc::clone(&outbox),
            source,
            command_wait: Duration::from_secs(600),
            event: Arc::new(|_, _| ()),
            handlers: Vec::new(),
            events_lane: String::new(),
            metrics: None,
            turned: Arc::new(|| ()),
        };
        let local = Local::try_new(setup).unwrap();
        let port = local.port();
        Self { dir, outbox, local: port, board, thread: Some(std::thread::spawn(move || local.run())) }
    }

    fn connect(&self) -> Peer {
        let stream = UnixStream::connect(self.dir.join("sub/s")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Peer { lines: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    /// Waits for puts as the outbox thread does.
    fn puts(&self) -> Vec<Put> {
        let cell = self.outbox.lock();
        let (mut cell, late) =
            self.outbox.filled.wait_timeout_while(cell, DEADLINE, |cell| cell.puts.is_empty()).unwrap();
        assert!(!late.timed_out(), "no put came");
        cell.puts_bytes = 0;
        let puts = mem::take(&mut cell.puts);
        drop(cell);
        self.local.give(|_| ());
        puts
    }

    fn puts_n(&self, count: usize) -> Vec<Put> {
        let mut puts = Vec::new();
        while puts.len() < count {
            puts.extend(self.puts());
        }
        assert_eq!(puts.len(), count);
        puts
    }

    fn answer(&self, puts: &[Put], seq: u64) {
        let lane = LaneName::try_new("t").unwrap();
        let outcome = |(nth, put): (usize, &Put)| Outcome {
            ticket: put.ticket.unwrap(),
            answer: match put.wait {
                Some(Wait::Accepted) => Answer::Accepted,
                Some(Wait::Committed) | None => Answer::Committed,
                Some(Wait::Delivered) => Answer::Delivered,
            },
            lane: Some(lane.clone()),
            epoch: 9,
            seq: seq + nth as u64,
        };
        self.local.give(|cell| cell.outcomes.extend(puts.iter().enumerate().map(outcome)));
    }

    fn works(&self) {
        let mut peer = self.connect();
        peer.say("{\"put\":{\"text\":\"still\",\"id\":1}}\n");
        let puts = self.puts_n(1);
        self.answer(&puts, 4);
        assert_eq!(peer.hear(), r#"{"committed":{"lane":"t","epoch":9,"seq":4,"id":1}}"#);
    }

    fn stop(&mut self) {
        self.local.give(|cell| cell.stop = true);
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            // Nobody answers any more what it may have taken since.
            self.local.give(|cell| cell.leave = true);
            self.stop();
        }
    }
}

impl Peer {
    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// The next line; empty: the connection has ended.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

#[test]
fn answers_come_in_the_order_of_the_requests_but_for_delivered() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    peer.say(concat!(
        "{\"put\":{\"text\":\"a\",\"id\":\"one\"}}\n",
        "{\"put\":{\"text\":\"b\",\"wait\":\"delivered\",\"id\":2}}\n",
        "garbage\n",
        "{\"status\":{\"id\":3}}\n",
        "{\"put\":{\"text\":\"c\",\"wait\":\"accepted\"}}\n",
    ));
    let puts = bench.puts_n(3);
    assert_eq!(puts.iter().map(|put| put.draft.body.as_bytes()).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    // The last one first: it has to wait for its turn.
    bench.answer(&puts[2..], 3);
    bench.answer(&puts[..1], 1);
    assert_eq!(peer.hear(), r#"{"committed":{"lane":"t","epoch":9,"seq":1,"id":"one"}}"#);
    assert!(peer.hear().starts_with(r#"{"error":{"code":"bad_request""#));
    let status: serde_json::Value = serde_json::from_str(&peer.hear()).unwrap();
    assert_eq!((&status["status"]["id"], &status["status"]["memory"]["queues_bytes_max"]), (&3.into(), &77.into()));
    assert_eq!(peer.hear(), r#"{"accepted":{"lane":"t","epoch":9,"seq":3}}"#);
    bench.answer(&puts[1..2], 2);
    assert_eq!(peer.hear(), r#"{"delivered":{"lane":"t","epoch":9,"seq":2,"id":2}}"#);
}

#[test]
fn a_watcher_hears_of_the_link_now_and_at_each_change() {
    let bench = Bench::new(|_| ());
    let (mut watcher, mut other) = (bench.connect(), bench.connect());
    watcher.say("{\"watch\":{\"id\":\"w\"}}\n");
    for state in ["", "up", "waiting"] {
        if !state.is_empty() {
            bench.board.link.lock().state = state;
            bench.local.give(|cell| cell.link_changed = true);
        }
        let line: serde_json::Value = serde_json::from_str(&watcher.hear()).unwrap();
        assert_eq!((&line["link"]["state"], &line["link"]["id"]), (&state.into(), &"w".into()));
    }
    other.say("{\"status\":{}}\n");
    assert!(other.hear().starts_with("{\"status\""), "nobody else is told");
}

#[test]
fn a_line_that_comes_in_pieces_is_one_and_half_a_line_is_nothing() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    for byte in "{\"put\":{\"text\":\"pieces\"}}\n{\"put\":{\"text\":\"half".bytes() {
        peer.stream.write_all(&[byte]).unwrap();
    }
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let puts = bench.puts_n(1);
    bench.answer(&puts, 1);
    assert!(peer.hear().starts_with("{\"committed\""));
    assert_eq!(peer.hear(), "");
    bench.works();
}

#[test]
fn what_a_client_said_before_it_died_is_a_request_all_the_same() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    for _ in 0..500 {
        peer.say("{\"put\":{\"text\":\"last words\"}}\n");
    }
    drop(peer);
    let mut got = 0;
    while got < 500 {
        let puts = bench.puts();
        got += puts.len();
        bench.answer(&puts, 1);
    }
    bench.works();
}

#[test]
fn a_line_beyond_the_limit_gets_one_error_and_ends_the_connection() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    peer.say("{\"put\":{\"text\":\"before\"}}\n");
    let puts = bench.puts_n(1);
    peer.say("{\"put\":{\"text\":\"");
    let piece = "x".repeat(1 << 20);
    for _ in 0..10 {
        peer.say(&piece);
    }
    peer.say("\"}}\n{\"put\":{\"text\":\"after\"}}\n");
    bench.answer(&puts, 1);
    assert!(peer.hear().starts_with("{\"committed\""));
    assert!(peer.hear().starts_with("{\"error\":{\"code\":\"too_large\",\"message\":\"a line has at most"));
    assert_eq!(peer.hear(), "");
    bench.works();
    // One that is just within it is a record too large, and the connection lives on.
    let mut peer = bench.connect();
    let text = "x".repeat(6 * 1000);
    peer.say(&format!("{{\"put\":{{\"id\":1,\"text\":\"{text}\"}}}}\n{{\"status\":{{}}}}\n"));
    assert!(peer.hear().starts_with("{\"error\":{\"code\":\"too_large\",\"message\":\"topic and body"));
    assert!(peer.hear().starts_with("{\"status\""));
}

#[test]
fn the_largest_record_there_may_be_passes_however_it_is_escaped() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    peer.say(&format!("{{\"put\":{{\"text\":\"{}\"}}}}\n", "\\u0001".repeat(1000)));
    let puts = bench.puts_n(1);
    assert_eq!(puts[0].draft.body.as_bytes(), [1; 1000]);
    bench.answer(&puts, 1);
    assert!(peer.hear().starts_with("{\"committed\""));
}

#[test]
fn connections_beyond_the_limit_hear_busy_and_the_others_go_on() {
    let bench = Bench::new(|config| config.clients_max = 10);
    let mut peers: Vec<_> = (0..10).map(|_| bench.connect()).collect();
    for peer in &mut peers {
        peer.say("{\"status\":{}}\n");
        assert!(peer.hear().starts_with("{\"status\""));
    }
    for _ in 0..500 {
        let mut refused = bench.connect();
        assert!(refused.hear().starts_with("{\"error\":{\"code\":\"busy\""));
        assert_eq!(refused.hear(), "");
    }
    for peer in &mut peers {
        peer.say("{\"status\":{}}\n");
        assert!(peer.hear().starts_with("{\"status\""));
    }
    drop(peers.pop());
    // The place is free once the thread has seen it.
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        assert!(std::time::Instant::now() < deadline, "the place never became free");
        let mut peer = bench.connect();
        peer.say("{\"status\":{}}\n");
        if peer.hear().starts_with("{\"status\"") {
            break;
        }
    }
}

#[test]
fn a_flood_that_reads_no_answer_is_stopped_and_harms_nobody() {
    let bench = Bench::new(|_| ());
    let flood = UnixStream::connect(bench.dir.join("sub/s")).unwrap();
    flood.set_nonblocking(true).unwrap();
    let line = "{\"status\":{}}\nnonsense\n{\"put\":{\"text\":\"x\",\"id\":\"y\"}}\n";
    let mut sent = 0;
    let mut stuck = 0;
    while stuck < 50 {
        match (&flood).write(line.as_bytes()) {
            Ok(count) => (sent, stuck) = (sent + count, 0),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(sent < 16 << 20, "it is read for ever");
                stuck += 1;
                // Every put is answered at once; someone else is served each time.
                let puts = mem::take(&mut bench.outbox.lock().puts);
                bench.outbox.lock().puts_bytes = 0;
                bench.answer(&puts, 1);
                let mut peer = bench.connect();
                peer.say("{\"status\":{}}\n");
                let status: serde_json::Value = serde_json::from_str(&peer.hear()).unwrap();
                assert!(status["status"]["memory"]["queues_bytes"].as_u64().unwrap() < 1 << 20);
            }
        }
    }
    // It was stopped, not cut: what it gets when it reads at last is whole and in order.
    flood.set_nonblocking(false).unwrap();
    flood.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut lines = BufReader::new(flood);
    for nth in 0..1000 {
        let mut answer = String::new();
        while !answer.ends_with('\n') {
            let puts = mem::take(&mut bench.outbox.lock().puts);
            bench.outbox.lock().puts_bytes = 0;
            bench.answer(&puts, 1);
            lines.get_ref().set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            match lines.read_line(&mut answer) {
                Ok(count) => assert_ne!(count, 0),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        let expected = ["{\"status\":", "{\"error\":{\"code\":\"bad_request\"", "{\"committed\":"][nth % 3];
        assert!(answer.starts_with(expected), "{nth}: {answer}");
    }
}

#[test]
fn nobody_is_read_while_too_much_waits_for_the_outbox() {
    let bench = Bench::new(|config| config.record_bytes_max = 65_536);
    let text = "x".repeat(60_000);
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let mut peer = bench.connect();
            let line = format!("{{\"put\":{{\"text\":\"{text}\"}}}}\n");
            std::thread::spawn(move || {
                (0..40).for_each(|_| peer.say(&line));
                (0..40).filter(|_| peer.hear().starts_with("{\"committed\"")).count()
            })
        })
        .collect();
    let mut taken = 0;
    while taken < 8 * 40 {
        let puts = bench.puts();
        let bytes: usize = puts.iter().map(|put| put.draft.body.as_bytes().len()).sum();
        assert!(bytes < PUTS_BYTES_MAX + 65_536, "{bytes}");
        taken += puts.len();
        bench.answer(&puts, 1);
    }
    for writer in writers {
        assert_eq!(writer.join().unwrap(), 40);
    }
}

#[test]
fn a_client_that_dies_waiting_for_delivery_is_reported_gone() {
    let bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    peer.say("{\"put\":{\"text\":\"x\",\"id\":1,\"wait\":\"delivered\"}}\n");
    let puts = bench.puts_n(1);
    drop(peer);
    let cell = bench.outbox.lock();
    let (mut cell, _) = bench.outbox.filled.wait_timeout_while(cell, DEADLINE, |cell| cell.gone.is_empty()).unwrap();
    assert_eq!(mem::take(&mut cell.gone), [puts[0].ticket.unwrap().client]);
    drop(cell);
    // Its slot is another client's now; an outcome that comes too late is nobody's.
    let mut heir = bench.connect();
    heir.say("{\"put\":{\"text\":\"y\"}}\n");
    let puts_heir = bench.puts_n(1);
    bench.answer(&puts, 1);
    bench.answer(&puts_heir, 2);
    assert_eq!(heir.hear(), r#"{"committed":{"lane":"t","epoch":9,"seq":2}}"#);
}

#[test]
fn what_was_taken_is_answered_before_it_stops_and_the_socket_is_gone() {
    let mut bench = Bench::new(|_| ());
    let mut peer = bench.connect();
    peer.say("{\"put\":{\"text\":\"x\"}}\n");
    let puts = bench.puts_n(1);
    bench.local.give(|cell| cell.stop = true);
    peer.say("{\"put\":{\"text\":\"too late\",\"id\":5}}\n");
    bench.answer(&puts, 1);
    assert!(peer.hear().starts_with("{\"committed\""));
    let mut rest = String::new();
    // Refused, or not read at all: both are an end without a promise.
    let end = peer.lines.read_to_string(&mut rest);
    assert!(end.is_err() || rest.is_empty() || rest.starts_with("{\"error\":{\"code\":\"shutting_down\""), "{rest}");
    bench.thread.take().unwrap().join().unwrap().unwrap();
    assert!(!bench.dir.join("sub/s").exists());
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_and_other_files_are_not() {
    let bench = Bench::new(|config| config.mode = "0600".into());
    let path = bench.dir.join("sub/s");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(remove_stale(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let stale = bench.dir.join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    remove_stale(&stale).unwrap();
    assert!(!stale.exists());
    remove_stale(&stale).unwrap();
    std::fs::write(&stale, "a file").unwrap();
    assert_eq!(remove_stale(&stale).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}
