//! The life of the one upstream link: state, timers, backoff, liveness, failure classes. CORE: no I/O, no clock,
//! no global randomness. It decides when to try, where, and when to give a session up; it knows nothing of records.
//!
//! Drive it so: [`Link::handle_input`] for what happened, [`Link::handle_timeout`] when [`Link::poll_timeout`] is
//! due, and after each of the two [`Link::poll_output`] until it is empty. `docs/link.md` has the states on one page.

mod backoff;
mod endpoints;
mod failure;
mod liveness;
mod machine;
mod retry_after;
#[cfg(test)]
mod tests;

pub use backoff::JITTER_FLOOR_PERCENT;
pub(crate) use failure::one_line;
pub use failure::{Class, DETAIL_BYTES_MAX, Disposition, Failure};
pub use machine::Link;
pub use retry_after::retry_after_ms;

use std::time::Duration;

use crate::config::{Heartbeat, Reconnect};

/// What the link needs of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `[upstream.reconnect]`
    pub reconnect: Reconnect,
    /// `[upstream.heartbeat]`
    pub heartbeat: Heartbeat,
    /// From the start of an attempt to `welcome`, in ms.
    pub handshake_timeout_ms: u64,
    /// Cap on what the server may ask us to wait, in ms.
    pub server_wait_ms_max: u64,
    /// Longest session in seconds; 0: unlimited.
    pub session_age_s_max: u64,
    /// Failed attempts in a row before [`Output::GiveUp`]; 0: never.
    pub attempts_max: u32,
    /// True for each endpoint (in order of preference) that speaks TLS. At least one.
    pub endpoints_tls: Vec<bool>,
}

/// What happened. The shell reports only of the lookup and the transport asked for last; what does not fit the
/// present state is ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The resolver found so many addresses (at least one; the first 255 count).
    Resolved {
        /// How many.
        addresses: u8,
    },
    /// TCP is connected.
    Dialed,
    /// TLS is up.
    Secured,
    /// The WebSocket upgrade succeeded.
    Upgraded,
    /// The far end greeted (`welcome`).
    Greeted,
    /// The session did useful work: a first ack, or nothing to send.
    Proved,
    /// Bytes came in, or the send queue shrank: proof of life.
    Received,
    /// The ping asked for has left our buffer.
    PingFlushed,
    /// A pong came.
    Pong,
    /// The lookup, the address dialed, or the session failed; the shell has dropped the transport.
    Failed(Failure),
    /// The server asked us to leave and come back (`retry`).
    Retry {
        /// Not before this, in ms, not yet capped.
        after_ms: u64,
        /// Plus uniform in [0, this], in ms, not yet capped.
        spread_ms: u64,
        /// The configured endpoint that it named.
        endpoint: Option<u8>,
    },
    /// Something changed in the network: a hint, never a verdict.
    NetworkChanged,
    /// The agent is stopping.
    Stop,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Resolve this endpoint's name, afresh.
    Resolve {
        /// Its index in the configuration.
        endpoint: u8,
    },
    /// Dial this address of the last resolution.
    Dial {
        /// Its index, from 0.
        address: u8,
    },
    /// Send a ping; report [`Input::PingFlushed`] when it has left.
    Ping,
    /// Abandon the lookup, drop the transport.
    Drop {
        /// First try to send a close frame with this code, if the upgrade is through; never wait for it.
        close: Option<u16>,
    },
    /// The state changed: [`Link::view`] has what `status` shows. The link itself has logged it.
    Changed,
    /// Keep this beside the local socket, so that a restart cannot bypass the backoff.
    Save(Saved),
    /// `attempts_max` is reached: leave with exit code 69.
    GiveUp,
}

/// Why a deadline is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Timer {
    /// The random delay after boot.
    StartDelay,
    /// The wait before the next attempt.
    Retry,
    /// An attempt's whole handshake, or one address's share of it.
    Handshake,
    /// The next ping is due.
    Heartbeat,
    /// A pong is due.
    Pong,
    /// The session may be proved stable.
    Stable,
    /// The session has reached its maximum age.
    SessionAge,
}

/// What outlives a restart of the process (not a reboot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Saved {
    /// Exponent of the ordinary backoff.
    pub backoff_exponent: u8,
    /// Exponent of the slow class.
    pub slow_exponent: u8,
    /// Earliest next attempt on the boot clock, in ms.
    pub not_before_boot_ms: u64,
}

impl Config {
    /// The longest wait that any class can draw.
    pub(crate) fn wait_max(&self) -> Duration {
        let r = &self.reconnect;
        let server_ms = self.server_wait_ms_max.saturating_mul(2);
        let overload_ms = r.backoff_ms_max.saturating_add(r.spread_ms);
        Duration::from_millis(server_ms.max(overload_ms).max(r.slow_ms_max))
    }
}
