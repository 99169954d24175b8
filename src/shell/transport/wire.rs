//! The bytes below everything: a TCP socket that is metered, and TLS over it or not. What the meter shows includes
//! TLS and framing, because that is what a metered link is charged for (aws-greengrass-lite#1029).

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};
use std::rc::Rc;

use mio::net::TcpStream;
use native_tls::TlsStream;

use crate::dialect::Purpose;
use crate::status;

/// Counts the bytes of all connections of the process, each for what it was for.
#[derive(Debug)]
pub struct Meter {
    wire: RefCell<status::Wire>,
    /// What is written now is for this.
    sending: Cell<Purpose>,
    /// Received, and not yet known what for.
    unclaimed: Cell<u64>,
}

impl Default for Meter {
    fn default() -> Self {
        let wire = RefCell::default();
        Self { wire, sending: Cell::new(Purpose::Handshake), unclaimed: Cell::new(0) }
    }
}

impl Meter {
    /// What was counted.
    pub fn wire(&self) -> status::Wire {
        *self.wire.borrow()
    }

    /// From now on what is written is for this.
    pub fn set_sending(&self, purpose: Purpose) {
        self.sending.set(purpose);
    }

    /// What came in since the last claim was for this. TLS and messages share reads, so this is exact in the sum and
    /// close enough in its parts.
    pub fn claim_received(&self, purpose: Purpose) {
        bytes_for(&mut self.wire.borrow_mut().by_purpose, purpose).received += self.unclaimed.take();
    }

    fn on_sent(&self, count: usize) {
        let mut wire = self.wire.borrow_mut();
        wire.bytes_sent += count as u64;
        bytes_for(&mut wire.by_purpose, self.sending.get()).sent += count as u64;
    }

    fn on_received(&self, count: usize) {
        self.wire.borrow_mut().bytes_received += count as u64;
        self.unclaimed.set(self.unclaimed.get() + count as u64);
    }
}

fn bytes_for(purposes: &mut status::WirePurposes, purpose: Purpose) -> &mut status::Bytes {
    match purpose {
        Purpose::Records => &mut purposes.records,
        Purpose::Acks => &mut purposes.acks,
        Purpose::Commands => &mut purposes.commands,
        Purpose::Heartbeat => &mut purposes.heartbeat,
        Purpose::Handshake => &mut purposes.handshake,
    }
}

/// A metered TCP socket.
#[derive(Debug)]
pub struct Wire {
    /// The socket.
    pub tcp: TcpStream,
    /// Its meter.
    pub meter: Rc<Meter>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.tcp.read(buffer)?;
        self.meter.on_received(count);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.tcp.write(bytes)?;
        self.meter.on_sent(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// What the WebSocket runs over.
#[derive(Debug)]
pub enum Stream {
    /// `ws`.
    Plain(Wire),
    /// `wss`. Boxed: it would make every stage as large as itself.
    Tls(Box<TlsStream<Wire>>),
}

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(wire) => &wire.tcp,
            Self::Tls(tls) => &tls.get_ref().tcp,
        }
    }

    /// Says goodbye, as far as that is possible without waiting.
    pub fn shutdown(&mut self) {
        // Best effort: the far end may be gone, and we do not wait for it.
        let _ = match self {
            Self::Plain(wire) => wire.tcp.shutdown(std::net::Shutdown::Write),
            Self::Tls(tls) => tls.shutdown(),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(wire) => wire.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(wire) => wire.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}
