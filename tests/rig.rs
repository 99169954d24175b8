//! The rig's own parts, tested: a proxy that does not stall, or a server that does not misbehave, would prove nothing.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use backhaul::dialect::message::{AgentMessage, Hello, HelloLane, ServerMessage};
use backhaul::record::{Body, LaneName, Record};
use serde_json::Value;
use support::agent;
use support::fault_server::{Act, Fault, FaultServer, Then};
use support::proxy::{Mode, Proxy};
use support::{DEADLINE, TempDir, program, wait_until};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, Message, WebSocket};

/// A server that sends back what it is sent.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                let _ended = std::io::copy(&mut reader, &mut stream);
            });
        }
    });
    address
}

fn dial(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends five bytes and reads them back.
fn assert_echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

/// Nothing comes, and the connection does not end either.
fn assert_silent(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let kind = stream.read(&mut [0; 5]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind:?}");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
}

#[test]
fn proxy_passes_bytes_both_ways() {
    let proxy = Proxy::new(&echo());
    assert_echoes(&mut dial(&proxy));
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn stalled_proxy_keeps_connections_and_passes_later_what_was_sent() {
    let proxy = Proxy::new(&echo());
    let mut old = dial(&proxy);
    assert_echoes(&mut old);
    proxy.set(Mode::Stall);
    old.write_all(b"while").unwrap();
    let mut new = dial(&proxy);
    new.write_all(b"stall").unwrap();
    assert_silent(&mut old);
    assert_silent(&mut new);
    proxy.set(Mode::Pass);
    for (stream, sent) in [(&mut old, b"while"), (&mut new, b"stall")] {
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, sent);
    }
}

#[test]
fn stalled_proxy_hides_that_an_end_has_closed() {
    let proxy = Proxy::new(&echo());
    let mut stream = dial(&proxy);
    assert_echoes(&mut stream);
    proxy.set(Mode::Stall);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_silent(&mut stream);
    proxy.set(Mode::Pass);
    assert_eq!(stream.read(&mut [0; 5]).unwrap(), 0);
}

#[test]
fn cut_closes_what_there_is_and_takes_new_connections() {
    let proxy = Proxy::new(&echo());
    let mut stream = dial(&proxy);
    assert_echoes(&mut stream);
    proxy.cut();
    assert!(matches!(stream.read(&mut [0; 5]), Ok(0) | Err(_)));
    assert_echoes(&mut dial(&proxy));
}

#[test]
fn cut_ends_a_stalled_connection() {
    let proxy = Proxy::new(&echo());
    let mut stream = dial(&proxy);
    assert_echoes(&mut stream);
    proxy.set(Mode::Stall);
    proxy.cut();
    assert!(matches!(stream.read(&mut [0; 5]), Ok(0) | Err(_)));
}

#[test]
fn refusing_proxy_leaves_its_port_closed_until_it_passes_again() {
    let proxy = Proxy::new(&echo());
    let mut stream = dial(&proxy);
    assert_echoes(&mut stream);
    for _ in 0..3 {
        proxy.set(Mode::Refuse);
        assert!(matches!(stream.read(&mut [0; 5]), Ok(0) | Err(_)));
        assert_eq!(TcpStream::connect(proxy.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        proxy.set(Mode::Pass);
        stream = dial(&proxy);
        assert_echoes(&mut stream);
    }
}

#[test]
fn temporary_folder_is_gone_when_dropped() {
    let dir = TempDir::new("rig");
    let path = dir.to_owned();
    std::fs::write(dir.join("file"), "x").unwrap();
    drop(dir);
    assert!(!path.exists());
}

#[test]
fn configuration_that_the_rig_writes_is_accepted() {
    let dir = TempDir::new("rig");
    let file = dir.join("backhaul.toml");
    agent::write(&file, &agent::quick(&dir, "ws://127.0.0.1:1/v1"));
    let check = Command::new(program("backhaul")).arg("check").arg("--config").arg(&file).output().unwrap();
    assert!(check.status.success(), "{}: {}", check.status, String::from_utf8_lossy(&check.stderr));
}

/// A client that speaks one encoding.
struct Client {
    socket: WebSocket<TcpStream>,
    json: bool,
}

impl Client {
    fn try_new(server: &FaultServer, json: bool) -> Result<Self, Box<Error>> {
        let url = server.url();
        let address = url.trim_start_matches("ws://").trim_end_matches("/v1");
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut request = url.as_str().into_client_request().unwrap();
        let token = if json { "backhaul.v1.json" } else { "backhaul.v1.postcard" };
        request.headers_mut().insert("Sec-WebSocket-Protocol", token.parse().unwrap());
        match tungstenite::client(request, stream) {
            Ok((socket, response)) => {
                assert_eq!(response.headers()["Sec-WebSocket-Protocol"], token);
                Ok(Self { socket, json })
            }
            Err(tungstenite::HandshakeError::Failure(error)) => Err(Box::new(error)),
            Err(tungstenite::HandshakeError::Interrupted(_)) => Err(Box::new(Error::AlreadyClosed)),
        }
    }

    fn say(&mut self, message: &AgentMessage) {
        let frame = if self.json {
            Message::text(serde_json::to_string(message).unwrap())
        } else {
            Message::binary(postcard::to_stdvec(message).unwrap())
        };
        self.socket.send(frame).unwrap();
    }

    fn hear(&mut self) -> ServerMessage {
        let message = self.socket.read().unwrap();
        assert_eq!(message.is_text(), self.json);
        let bytes = message.into_data();
        if self.json { serde_json::from_slice(&bytes).unwrap() } else { postcard::from_bytes(&bytes).unwrap() }
    }

    fn greet(&mut self, next: u64) -> ServerMessage {
        self.say(&AgentMessage::Hello(Hello {
            device: "rig".into(),
            agent: "rig/1".into(),
            boot: "b".into(),
            features: Vec::new(),
            lanes: vec![HelloLane { lane: lane(), epoch: 7, first: 1, next }],
            commands: None,
            last: None,
        }));
        self.hear()
    }

    fn send_records(&mut self, seqs: std::ops::RangeInclusive<u64>) {
        let record = |seq| Record { seq, at: None, topic: "t".into(), body: Body::Text(format!("record {seq}")) };
        self.say(&AgentMessage::Records { lane: lane(), epoch: 7, records: seqs.map(record).collect() });
    }
}

fn lane() -> LaneName {
    LaneName::try_new("telemetry").unwrap()
}

fn acked(message: &ServerMessage) -> u64 {
    let message: Value = serde_json::to_value(message).unwrap();
    message["ack"]["seq"].as_u64().or(message["welcome"]["acked"][0]["seq"].as_u64()).unwrap_or(0)
}

#[test]
fn well_behaved_fault_server_stores_acks_and_remembers() {
    for json in [false, true] {
        let server = FaultServer::new();
        let mut client = Client::try_new(&server, json).unwrap();
        assert_eq!(acked(&client.greet(4)), 0);
        client.send_records(1..=3);
        assert_eq!(acked(&client.hear()), 3);
        drop(client);
        let mut client = Client::try_new(&server, json).unwrap();
        assert_eq!(acked(&client.greet(4)), 3);
        server.books(|books| {
            assert_eq!(books.records[&("telemetry".into(), 7, 2)], b"record 2");
            assert_eq!((books.attempts.len(), books.hellos.len(), books.breaches.len()), (2, 2, 0));
        });
    }
}

#[test]
fn fault_server_notes_a_hole() {
    let server = FaultServer::new();
    let mut client = Client::try_new(&server, true).unwrap();
    client.greet(9);
    client.send_records(2..=3);
    wait_until(DEADLINE, "the breach is noted", || server.books(|books| books.breaches.len() == 2));
}

#[test]
fn faults_before_the_upgrade_refuse_it() {
    let server = FaultServer::new();
    server.set(Fault::Http(503, "Retry-After: 1\r\n"));
    let refused = *Client::try_new(&server, true).err().unwrap();
    let Error::Http(response) = refused else { panic!("{refused:?}") };
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["Retry-After"], "1");
    server.set(Fault::Answers(b"220 mail.example.com ESMTP\r\n", Then::Close));
    assert!(Client::try_new(&server, true).is_err());
    server.set(Fault::NeverAnswers);
    let begin = Instant::now();
    assert!(Client::try_new(&server, true).is_err());
    assert!(begin.elapsed() >= Duration::from_secs(2), "the client's own timeout ends it");
    assert_eq!(server.attempts(), 3);
}

#[test]
fn faults_after_the_upgrade_are_as_named() {
    let server = FaultServer::new();
    let greet = |fault: Fault| {
        server.set(fault);
        let mut client = Client::try_new(&server, true).unwrap();
        client.say(&AgentMessage::Done { stream: 0, seq: 0 });
        drop(client);
        let mut client = Client::try_new(&server, true).unwrap();
        let hello = serde_json::json!({"hello": {"device": "rig", "agent": "rig/1", "boot": "b", "features": [],
            "lanes": [], "commands": null, "last": null}});
        client.socket.send(Message::text(hello.to_string())).unwrap();
        client
    };
    let mut client = greet(Fault::InsteadOfWelcome(Act::Silence));
    assert!(matches!(client.socket.read(), Err(Error::Io(_))), "silence");
    let mut client = greet(Fault::InsteadOfWelcome(Act::GarbageText));
    assert!(matches!(client.socket.read(), Ok(Message::Text(_))));
    let mut client = greet(Fault::AfterWelcome(Act::GarbageBinary));
    assert!(matches!(client.hear(), ServerMessage::Welcome(_)));
    assert!(matches!(client.socket.read(), Ok(Message::Binary(_))));
    let mut client = greet(Fault::InsteadOfWelcome(Act::Bytes(&[0x83, 0x01, 0x2a])));
    assert!(matches!(client.socket.read(), Err(Error::Protocol(_))));
    let mut client = greet(Fault::AfterWelcome(Act::Close(4009, "boot x")));
    assert!(matches!(client.hear(), ServerMessage::Welcome(_)));
    assert!(matches!(client.socket.read(), Ok(Message::Close(Some(frame))) if u16::from(frame.code) == 4009));
    let mut client = greet(Fault::AfterWelcome(Act::Vanish));
    assert!(matches!(client.hear(), ServerMessage::Welcome(_)));
    assert!(client.socket.read().is_err());
    // A first message that is no hello is noted each time.
    wait_until(DEADLINE, "all breaches are noted", || server.books(|books| books.breaches.len() == 6));
}

#[test]
fn kick_ends_a_session_without_a_close_frame() {
    let server = FaultServer::new();
    let mut client = Client::try_new(&server, false).unwrap();
    client.greet(1);
    server.kick();
    assert!(!matches!(client.socket.read(), Ok(Message::Close(_))));
}
