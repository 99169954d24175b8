//! A TCP front that reads one HTTP head, keeps it, and then does as it is told: a proxy that misbehaves, a server that
//! wants credentials, one that redirects. What it lets through goes to an upstream elsewhere.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::listen;

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// These bytes, then the end.
    Bytes(Vec<u8>),
    /// These bytes again and again, until the other side has enough.
    Endless(&'static str),
    /// Nothing, until the other side has enough.
    Hang,
    /// To this address, the head first.
    Forward(String),
    /// These bytes in one write with the first ones from this address; the head is not passed on.
    Tunnel(String, &'static str),
}

impl Reply {
    /// A whole answer without a body; each of `headers` ends in CRLF.
    pub fn http(status: u16, headers: &str) -> Self {
        let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n");
        Self::Bytes(head.into_bytes())
    }

    /// Yes to a CONNECT, and to this address.
    pub fn tunnel(to: &str) -> Self {
        Self::Tunnel(to.into(), "HTTP/1.1 200 Connection established\r\n\r\n")
    }
}

/// How long a pump sits in `read` before it looks whether it has to stop.
const READ_TIMEOUT: Duration = Duration::from_millis(20);

type Decide = Box<dyn Fn(&str) -> Reply + Send>;

struct State {
    decide: Decide,
    heads: Vec<(Instant, String)>,
    /// Connections begun before the last cut carry a lower number, and end.
    generation: u64,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    port: u16,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self, generation: u64) -> bool {
        self.lock().generation != generation
    }
}

/// The front. Every connection is closed when it is dropped.
pub struct Gate {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Gate {
    /// Each head is answered as `decide` says.
    pub fn new(decide: impl Fn(&str) -> Reply + Send + 'static) -> Self {
        let (port, listener) = listen();
        let state = State { decide: Box::new(decide), heads: Vec::new(), generation: 0, stop: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), port });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, &listener)
        });
        Self { shared, acceptor: Some(acceptor) }
    }

    /// From the next connection on.
    pub fn set(&self, decide: impl Fn(&str) -> Reply + Send + 'static) {
        self.shared.lock().decide = Box::new(decide);
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.shared.port)
    }

    /// Each head, in the order of arrival.
    pub fn heads(&self) -> Vec<String> {
        self.shared.lock().heads.iter().map(|(_, head)| head.clone()).collect()
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.shared.lock().heads.len()
    }

    /// When each came.
    pub fn times(&self) -> Vec<Instant> {
        self.shared.lock().heads.iter().map(|(at, _)| *at).collect()
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        self.shared.lock().generation += 1;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stop = true;
            state.generation += 1;
        }
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.shared.port)));
        if let Some(acceptor) = self.acceptor.take() {
            let _panicked = acceptor.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        let generation = {
            let state = shared.lock();
            if state.stop {
                return;
            }
            state.generation
        };
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(&shared, stream, generation));
    }
}

fn serve(shared: &Arc<Shared>, mut stream: TcpStream, generation: u64) {
    let _refused = stream.set_read_timeout(Some(READ_TIMEOUT));
    let Some(head) = read_head(shared, &mut stream, generation) else { return };
    let reply = {
        let mut state = shared.lock();
        state.heads.push((Instant::now(), head.clone()));
        (state.decide)(&head)
    };
    match reply {
        Reply::Bytes(bytes) => {
            let _gone = stream.write_all(&bytes);
            // A close with bytes unread would be a reset, and might overtake the answer.
            let _gone = stream.shutdown(Shutdown::Write);
            wait_for_end(shared, &mut stream, generation);
        }
        Reply::Endless(bytes) => while !shared.is_over(generation) && stream.write_all(bytes.as_bytes()).is_ok() {},
        Reply::Hang => wait_for_end(shared, &mut stream, generation),
        Reply::Forward(to) => {
            let Ok(mut server) = TcpStream::connect(to) else { return };
            if server.write_all(head.as_bytes()).is_ok() {
                carry(shared, stream, server, generation);
            }
        }
        Reply::Tunnel(to, answer) => {
            let Ok(server) = TcpStream::connect(to) else { return };
            if stream.write_all(answer.as_bytes()).is_ok() {
                carry(shared, stream, server, generation);
            }
        }
    }
}

fn read_head(shared: &Shared, stream: &mut TcpStream, generation: u64) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(0) => return None,
            Ok(_) => head.push(byte[0]),
            Err(error) if is_timeout(&error) && !shared.is_over(generation) => {}
            Err(_) => return None,
        }
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn wait_for_end(shared: &Shared, stream: &mut TcpStream, generation: u64) {
    let mut buffer = [0; 1024];
    while !shared.is_over(generation) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

fn carry(shared: &Arc<Shared>, client: TcpStream, server: TcpStream, generation: u64) {
    let _refused = server.set_read_timeout(Some(READ_TIMEOUT));
    let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { return };
    let upward = thread::spawn({
        let shared = Arc::clone(shared);
        move || pump(&shared, from_client, server, generation)
    });
    pump(shared, from_server, client, generation);
    let _panicked = upward.join();
}

fn pump(shared: &Shared, mut from: TcpStream, mut to: TcpStream, generation: u64) {
    let mut buffer = [0; 16 * 1024];
    while !shared.is_over(generation) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) if to.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if is_timeout(&error) => {}
            Ok(_) | Err(_) => break,
        }
    }
    let _closed_already = to.shutdown(Shutdown::Both);
    let _closed_already = from.shutdown(Shutdown::Both);
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
