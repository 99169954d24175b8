//! The notice board: each thread pins its own part of the status here, `local` reads them all. No part is ever
//! held while another is taken.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::insight::figures::Histogram;
use crate::status;
use crate::time::Instant;

/// A cell that one thread writes and others read.
#[derive(Debug, Default)]
pub struct Pinned<T>(Mutex<T>);

impl<T> Pinned<T> {
    /// The content, to read or to replace.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All parts.
#[derive(Debug, Default)]
pub struct Board {
    /// Written by uplink.
    pub link: Pinned<status::LinkView>,
    /// Written by uplink: the certificate in use that ends first.
    pub certificate: Pinned<Option<status::CertificateView>>,
    /// Written by uplink.
    pub wire: Pinned<status::Wire>,
    /// Written by outbox.
    pub lanes: Pinned<Vec<status::Lane>>,
    /// Written by outbox: when it wrote `lanes`.
    pub lanes_at: Pinned<Instant>,
    /// Written by outbox: when a record was given up last.
    pub lost_at: Pinned<Option<Instant>>,
    /// Written by outbox.
    pub flash: Pinned<status::Flash>,
    /// Written by outbox.
    pub delay: Pinned<status::Delay>,
    /// Written by uplink (received, done) and local (the rest).
    pub commands: Pinned<status::Commands>,
    /// Written by outbox: from a put to its ack.
    pub put_to_delivered: Pinned<Histogram>,
    /// Written by uplink: round trips of the pings.
    pub rtt: Pinned<Histogram>,
    /// Written by outbox: syncs.
    pub sync: Pinned<Histogram>,
    /// Written by local: bytes in its queues and buffers.
    pub local_bytes: AtomicU64,
    /// Written by outbox: bytes of records that it holds in RAM.
    pub outbox_bytes: AtomicU64,
}
