//! A TCP proxy on loopback: the cable between the agent and its upstream, with our hands on it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::free_port;

/// What the cable does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes pass both ways.
    Pass,
    /// Connections are accepted and kept, and not one byte passes either way. What was sent meanwhile passes later, as
    /// on a real path whose packets are sent again.
    Stall,
    /// Nobody listens; connections there were are reset or closed.
    Refuse,
    /// A new connection is answered with these bytes once it has sent something, and closed: a front end whose
    /// server is away. Connections there were live on.
    Answer(&'static [u8]),
}

/// How long a pump sits in `read` before it looks whether it has to stop.
const READ_TIMEOUT: Duration = Duration::from_millis(50);

struct State {
    mode: Mode,
    /// Connections begun before the last cut carry a lower number, and end.
    generation: u64,
    /// False while the port is closed.
    listening: bool,
    stop: bool,
    /// When each connection was accepted.
    accepted: Vec<Instant>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    port: u16,
    target: SocketAddr,
    weak: Option<Weak>,
}

/// A cable that carries little, and late.
#[derive(Clone, Copy, Debug)]
pub struct Weak {
    /// Each way.
    pub bytes_per_s: u64,
    /// Each way, beside the time that the bytes take.
    pub delay: Duration,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Sleeps while `condition` holds.
    fn wait_while(&self, condition: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.lock(), condition).unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `accept` return, so that the acceptor looks at the state again.
    fn nudge(&self) {
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

/// The proxy. Everything it had open is closed when it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a port of its own and passes what comes to `target` (`127.0.0.1:PORT`).
    pub fn new(target: &str) -> Self {
        Self::with(target, None)
    }

    /// The same, over a weak cable.
    pub fn weak(target: &str, weak: Weak) -> Self {
        Self::with(target, Some(weak))
    }

    fn with(target: &str, weak: Option<Weak>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                mode: Mode::Pass,
                generation: 0,
                listening: false,
                stop: false,
                accepted: Vec::new(),
            }),
            changed: Condvar::new(),
            port: free_port(),
            target: target.parse().expect("an address and a port"),
            weak,
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared)
        });
        drop(shared.wait_while(|state| !state.listening));
        Self { shared, acceptor: Some(acceptor) }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.shared.port)
    }

    /// Changes what the cable does; in force when this returns.
    pub fn set(&self, mode: Mode) {
        self.shared.change(|state| {
            state.mode = mode;
            if mode == Mode::Refuse {
                state.generation += 1;
            }
        });
        if mode == Mode::Refuse {
            self.shared.nudge();
        }
        drop(self.shared.wait_while(|state| state.listening != (state.mode != Mode::Refuse)));
    }

    /// Closes every connection there is. New ones are treated as the mode says.
    pub fn cut(&self) {
        self.shared.change(|state| state.generation += 1);
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.lock().accepted.len()
    }

    /// Connections accepted since `since`.
    pub fn accepted_since(&self, since: Instant) -> usize {
        self.shared.lock().accepted.iter().filter(|&&at| at >= since).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.stop = true;
            state.generation += 1;
        });
        self.shared.nudge();
        if let Some(acceptor) = self.acceptor.take() {
            let _panicked = acceptor.join();
        }
    }
}

/// Accepts for as long as the proxy lives; the port is closed while the mode is [`Mode::Refuse`].
fn accept(shared: &Arc<Shared>) {
    loop {
        if shared.wait_while(|state| state.mode == Mode::Refuse && !state.stop).stop {
            return;
        }
        // It was ours a moment ago, and its range is given to nobody: bound at the first go, but for a rare stranger.
        let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, shared.port)) else {
            thread::sleep(READ_TIMEOUT);
            continue;
        };
        shared.change(|state| state.listening = true);
        while let Ok((client, _)) = listener.accept() {
            let mut state = shared.lock();
            if state.stop || state.mode == Mode::Refuse {
                break;
            }
            state.accepted.push(Instant::now());
            let (mode, generation) = (state.mode, state.generation);
            drop(state);
            let shared = Arc::clone(shared);
            thread::spawn(move || match mode {
                Mode::Answer(bytes) => answer(client, bytes),
                Mode::Pass | Mode::Stall | Mode::Refuse => carry(&shared, client, generation),
            });
        }
        drop(listener);
        shared.change(|state| state.listening = false);
    }
}

/// One connection that gets no further.
fn answer(mut client: TcpStream, bytes: &[u8]) {
    let _refused = client.set_read_timeout(Some(Duration::from_secs(5)));
    if client.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {
        let _gone = client.write_all(bytes);
    }
}

/// One connection, from the dial of the target to its end.
fn carry(shared: &Arc<Shared>, client: TcpStream, generation: u64) {
    if !may_go_on(shared, generation) {
        return;
    }
    let Ok(server) = TcpStream::connect(shared.target) else { return };
    let (Ok(from_client), Ok(from_server)) = (client.try_clone(), server.try_clone()) else { return };
    let upward = thread::spawn({
        let shared = Arc::clone(shared);
        move || pump(&shared, from_client, server, generation)
    });
    pump(shared, from_server, client, generation);
    let _panicked = upward.join();
}

/// Carries bytes one way until either end closes or the cable is cut.
fn pump(shared: &Arc<Shared>, mut from: TcpStream, mut to: TcpStream, generation: u64) {
    if let Some(weak) = shared.weak {
        return pump_weak(shared, weak, from, to, generation);
    }
    let mut buffer = [0; 16 * 1024];
    let _refused = from.set_read_timeout(Some(READ_TIMEOUT));
    while may_go_on(shared, generation) {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        // The stall may have begun while this sat in `read`.
        if !may_go_on(shared, generation) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Half a close is a close, but not through a stalled cable.
    may_go_on(shared, generation);
    let _closed_already = to.shutdown(Shutdown::Both);
    let _closed_already = from.shutdown(Shutdown::Both);
}

/// The same over a weak cable: what comes in lies on it until it is due.
fn pump_weak(shared: &Arc<Shared>, weak: Weak, mut from: TcpStream, mut to: TcpStream, generation: u64) {
    /// Little enough that the rate is even.
    const PIECE_BYTES: usize = 256;
    // A cable holds no more than its delay and half a second: the rest waits in the sender's socket.
    let pieces = weak.bytes_per_s as f64 * (weak.delay.as_secs_f64() + 0.5) / PIECE_BYTES as f64;
    let (cable, far_end) = mpsc::sync_channel::<(Instant, Vec<u8>)>(pieces as usize + 1);
    let writer = thread::spawn({
        let shared = Arc::clone(shared);
        move || {
            loop {
                match far_end.recv_timeout(READ_TIMEOUT) {
                    Ok((due, piece)) => {
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if !may_go_on(&shared, generation) || to.write_all(&piece).is_err() {
                            break;
                        }
                    }
                    Err(RecvTimeoutError::Timeout) if may_go_on(&shared, generation) => {}
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            let _closed_already = to.shutdown(Shutdown::Both);
        }
    });
    let mut buffer = [0; PIECE_BYTES];
    let _refused = from.set_read_timeout(Some(READ_TIMEOUT));
    let mut free = Instant::now();
    while may_go_on(shared, generation) {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        free = free.max(Instant::now()) + Duration::from_secs_f64(length as f64 / weak.bytes_per_s as f64);
        if cable.send((free + weak.delay, buffer[..length].to_vec())).is_err() {
            break;
        }
    }
    drop(cable);
    let _panicked = writer.join();
    let _closed_already = from.shutdown(Shutdown::Both);
}

/// Sleeps through a stall; false when the connection has been cut.
fn may_go_on(shared: &Shared, generation: u64) -> bool {
    let state = shared.wait_while(|state| state.mode == Mode::Stall && state.generation == generation);
    state.generation == generation
}
