//! A receiver as a process on a free port, its store as anybody sees it, and a client of a few lines that knows the
//! messages and nothing else.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use backhaul::config::Encoding;
use backhaul::dialect::codec::{decode, encode};
use backhaul::dialect::message::{AgentMessage, Frame, FrameRef, Hello, HelloLane, ServerMessage, Welcome};
use backhaul::record::{Body, Epoch, LaneName, Record, Seq};
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::Response;
use tungstenite::http::HeaderValue;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use crate::support::TempDir;

/// Far beyond what anything here takes, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes when the test does.
pub struct Folder(pub TempDir);

impl Folder {
    pub fn new(name: &str) -> Self {
        Self(TempDir::new(&format!("receiver-{name}")))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store.db")
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// A certificate for localhost that vouches for itself, and its key.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&cert)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (cert, key)
    }

    /// The store as anybody else sees it.
    pub fn sqlite(&self) -> Connection {
        Connection::open_with_flags(self.store(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// (seq, body) of a device in the order of the table, all lanes and epochs.
    pub fn records(&self, device: &str) -> Vec<(Seq, String)> {
        let sqlite = self.sqlite();
        let mut select = sqlite.prepare("SELECT seq, body FROM records WHERE device = ?1").unwrap();
        let row = |row: &rusqlite::Row<'_>| {
            let body: Vec<u8> = row.get(1)?;
            Ok((row.get::<_, i64>(0)? as Seq, String::from_utf8(body).unwrap()))
        };
        select.query_map([device], row).unwrap().map(Result::unwrap).collect()
    }

    pub fn seqs(&self, device: &str) -> Vec<Seq> {
        self.records(device).into_iter().map(|(seq, _)| seq).collect()
    }

    pub fn count(&self, sql: &str) -> i64 {
        self.sqlite().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

pub struct Receiver {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub address: String,
    /// It was told to go; otherwise it must still be there at the end.
    left: bool,
}

impl Receiver {
    pub fn start(folder: &Folder, extra: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_backhaul-receiver")), folder, extra)
    }

    /// With so many descriptors and no more.
    pub fn start_with(descriptors: u32, folder: &Folder, extra: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {descriptors}; exec \"$@\""), "sh"]);
        shell.arg(env!("CARGO_BIN_EXE_backhaul-receiver"));
        Self::start_by(shell, folder, extra)
    }

    fn start_by(mut command: Command, folder: &Folder, extra: &[&str]) -> Self {
        command.args(["--listen", "127.0.0.1:0", "--store"]).arg(folder.store()).args(extra).env("RUST_LOG", "warn");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        if extra.contains(&"--watch") {
            command.stderr(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("said {line:?}")).into();
        Self { child, stdout, address, left: false }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its page is; once, and only where it was told to have one.
    pub fn page(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let page = line.trim().strip_prefix("page on http://").and_then(|rest| rest.strip_suffix('/'));
        page.unwrap_or_else(|| panic!("said {line:?}")).into()
    }

    /// What it says on stderr; once, and only where it was told to be watched.
    pub fn stderr(&mut self) -> BufReader<ChildStderr> {
        BufReader::new(self.child.stderr.take().unwrap())
    }

    /// Power off, as far as a process can feel it.
    pub fn kill(mut self) {
        self.left = true;
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.left = true;
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "the receiver does not leave");
            std::thread::yield_now();
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.left && !std::thread::panicking() {
            assert!(matches!(ended, Ok(None)), "the receiver fell over: {ended:?}");
        }
    }
}

pub trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

pub struct Client {
    pub socket: WebSocket<Box<dyn Wire>>,
    pub encoding: Encoding,
}

pub struct Knock<'a> {
    pub address: &'a str,
    pub offers: &'a str,
    pub token: Option<&'a str>,
    /// Trust this certificate; none: no TLS.
    pub tls: Option<&'a Path>,
}

impl<'a> Knock<'a> {
    pub fn at(receiver: &'a Receiver) -> Self {
        Self { address: &receiver.address, offers: "backhaul.v1.postcard, backhaul.v1.json", token: None, tls: None }
    }

    /// The client, or the HTTP status of the refusal.
    pub fn try_open(self) -> Result<Client, u16> {
        self.ask().map_err(|answer| answer.status().as_u16())
    }

    /// The client, or the whole refusal.
    pub fn ask(self) -> Result<Client, Box<Response>> {
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let wire: Box<dyn Wire> = match self.tls {
            None => Box::new(tcp),
            Some(cert) => {
                let pem = std::fs::read(cert).unwrap();
                let certificate = native_tls::Certificate::from_pem(&pem).unwrap();
                let connector = native_tls::TlsConnector::builder().add_root_certificate(certificate).build().unwrap();
                Box::new(connector.connect("localhost", tcp).unwrap())
            }
        };
        let mut request = format!("ws://{}/any/path?x=1", self.address).into_client_request().unwrap();
        if !self.offers.is_empty() {
            request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_str(self.offers).unwrap());
        }
        if let Some(token) = self.token {
            let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
            request.headers_mut().insert("Authorization", bearer);
        }
        match tungstenite::client(request, wire) {
            Ok((socket, response)) => {
                let picked = response.headers()["Sec-WebSocket-Protocol"].to_str().unwrap();
                let known = [Encoding::Postcard, Encoding::Json].into_iter().find(|known| known.token() == picked);
                Ok(Client { socket, encoding: known.unwrap() })
            }
            Err(HandshakeError::Failure(Error::Http(response))) => Err(response),
            Err(error) => panic!("{error}"),
        }
    }

    pub fn open(self) -> Client {
        self.try_open().unwrap_or_else(|status| panic!("refused with {status}"))
    }
}

impl Client {
    pub fn send(&mut self, message: &AgentMessage) {
        let message = match encode(message, self.encoding) {
            Frame::Text(text) => Message::text(text),
            Frame::Binary(bytes) => Message::binary(bytes),
        };
        self.socket.send(message).unwrap();
    }

    pub fn next(&mut self) -> Message {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nothing but pings");
            match self.socket.read().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    pub fn next_message(&mut self) -> ServerMessage {
        let message = self.next();
        let frame = match &message {
            Message::Text(text) => FrameRef::Text(text.as_str()),
            Message::Binary(bytes) => FrameRef::Binary(bytes),
            other => panic!("not data: {other:?}"),
        };
        decode(&frame).unwrap().unwrap()
    }

    /// Reads up to the close frame; data before it is passed over.
    pub fn closed(&mut self) -> CloseFrame {
        loop {
            if let Message::Close(frame) = self.next() {
                return frame.unwrap();
            }
        }
    }

    pub fn hello(&mut self, device: &str, boot: &str, lanes: &[(&str, Epoch)]) -> Welcome {
        self.send(&hello(device, boot, lanes));
        match self.next_message() {
            ServerMessage::Welcome(welcome) => welcome,
            other => panic!("not a welcome: {other:?}"),
        }
    }

    pub fn ack(&mut self) -> (String, Epoch, Seq) {
        match self.next_message() {
            ServerMessage::Ack { lane, epoch, seq } => (lane.to_string(), epoch, seq),
            other => panic!("not an ack: {other:?}"),
        }
    }

    /// Reads acks until everything up to `seq` is acked; they must rise.
    pub fn acked_up_to(&mut self, seq: Seq) {
        let mut last = 0;
        while last < seq {
            let (_, _, acked) = self.ack();
            assert!(acked > last, "an ack of {acked} after one of {last}");
            last = acked;
        }
        assert_eq!(last, seq);
    }
}

pub fn lane(name: &str) -> LaneName {
    LaneName::try_new(name).unwrap()
}

pub fn hello(device: &str, boot: &str, lanes: &[(&str, Epoch)]) -> AgentMessage {
    let offers = lanes.iter().map(|(name, epoch)| HelloLane { lane: lane(name), epoch: *epoch, first: 1, next: 1 });
    AgentMessage::Hello(Hello {
        device: device.into(),
        agent: "test/1".into(),
        boot: boot.into(),
        features: vec![],
        lanes: offers.collect(),
        commands: None,
        last: None,
    })
}

pub fn records(name: &str, epoch: Epoch, seqs: impl IntoIterator<Item = Seq>) -> AgentMessage {
    let record =
        |seq| Record { seq, at: Some(seq), topic: "t".into(), body: Body::Text(format!("{name}{epoch}:{seq}")) };
    AgentMessage::Records { lane: lane(name), epoch, records: seqs.into_iter().map(record).collect() }
}

pub fn acked(welcome: &Welcome) -> Vec<(String, Epoch, Seq)> {
    welcome.acked.iter().map(|acked| (acked.lane.to_string(), acked.epoch, acked.seq)).collect()
}
