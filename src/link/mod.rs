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
mod race;
mod remedies;
mod retry_after;
#[cfg(test)]
mod tests;

pub use backoff::JITTER_FLOOR_PERCENT;
pub(crate) use failure::one_line;
pub use failure::{Class, DETAIL_BYTES_MAX, Disposition, Failure};
pub use machine::Link;
pub(crate) use retry_after::days_since_1970;
pub use retry_after::retry_after_ms;

use std::time::Duration;

use crate::config::{Heartbeat, Reconnect, Upstream};

/// Endpoints, at most: later ones are never tried.
pub const ENDPOINTS_MAX: usize = 16;

/// Addresses of one resolution that are tried, at most.
pub const ADDRESSES_MAX: usize = 32;

/// Remedies, at most: later ones are never run.
pub const REMEDIES_MAX: usize = 8;

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
    /// What to run when no session was up for long.
    pub remedies: Vec<Remedy>,
}

impl Default for Config {
    /// The configuration's defaults.
    fn default() -> Self {
        Self::from(&Upstream::default())
    }
}

impl From<&Upstream> for Config {
    /// With one endpoint that speaks TLS, and no remedies.
    fn from(upstream: &Upstream) -> Self {
        Self {
            reconnect: upstream.reconnect,
            heartbeat: upstream.heartbeat,
            handshake_timeout_ms: upstream.handshake_timeout_ms,
            server_wait_ms_max: upstream.server_wait_ms_max,
            session_age_s_max: upstream.session_age_s_max,
            attempts_max: upstream.attempts_max,
            endpoints_tls: vec![true],
            remedies: Vec::new(),
        }
    }
}

/// When a remedy is run; what it is, the shell knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remedy {
    /// Seconds without a session.
    pub after_s: u64,
    /// Seconds until it may be run again in the same outage; 0: never.
    pub again_after_s: u64,
    /// Which one it is, whatever its place in the list: drawn from what is run; not 0.
    pub id: u16,
}

/// What happened. The shell reports only of the lookup and the sockets that it was last asked for; what does not fit
/// the present state is ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The resolver found so many addresses (at least one; the first [`ADDRESSES_MAX`] count).
    Resolved {
        /// How many.
        addresses: u8,
    },
    /// TCP is connected: this one won the race. The shell has dropped the other sockets.
    Dialed {
        /// Its index in the resolution.
        address: u8,
    },
    /// One of the racing sockets failed; the shell has dropped that one.
    DialFailed {
        /// Its index in the resolution.
        address: u8,
        /// Why.
        failure: Failure,
    },
    /// TLS is up.
    Secured,
    /// The WebSocket upgrade succeeded.
    Upgraded,
    /// The upgrade was answered with a redirect to the host of a configured endpoint. The shell keeps the path for
    /// this one attempt, has dropped the transport, and never reports one from `wss` to `ws`.
    Redirected {
        /// The endpoint's index.
        endpoint: u8,
    },
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
    /// The lookup, the attempt as a whole, or the session failed; the shell has dropped whatever there was.
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
    /// What this machine knows of its network, at the start and whenever it changes: a hint, never a verdict.
    Network {
        /// Bit i: endpoint i can be dialed as far as this machine can tell (carrier, address, route).
        usable: u16,
        /// Something changed on the path in use: worth a ping.
        changed: bool,
    },
    /// The answer to [`Output::Probe`].
    Probed {
        /// Which one.
        endpoint: u8,
        /// TCP connected.
        ok: bool,
    },
    /// The answer to [`Output::Resolve`] with `recheck`: what is at hand is what was refused; nothing was dialed.
    CredentialsUnchanged,
    /// A credential or a certificate changed on disk, or someone asks for a reload: worth one prompt attempt where
    /// that is what the link waits for.
    SourcesChanged,
    /// Wall time has just become known.
    ClockSet,
    /// A remedy that was to be run was not: a session came first.
    RemedyDropped {
        /// Its index in the configuration.
        step: u8,
    },
    /// The agent is stopping.
    Stop,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, taken at once: nothing is to be allocated for it")]
pub enum Output {
    /// Resolve this endpoint's name, afresh, and prepare its credentials.
    Resolve {
        /// Its index in the configuration.
        endpoint: u8,
        /// Its credentials were refused: report [`Input::CredentialsUnchanged`] where they are still the same.
        recheck: bool,
    },
    /// Dial this address of the last resolution, beside those already under way (RFC 8305 § 5).
    Dial {
        /// Its index, from 0.
        address: u8,
    },
    /// Does TCP connect to this endpoint? Beside a session at another one; no session is opened.
    Probe {
        /// Its index in the configuration.
        endpoint: u8,
    },
    /// Send a ping; report [`Input::PingFlushed`] when it has left.
    Ping,
    /// Abandon the lookup, drop every socket of the attempt or session.
    Drop {
        /// First try to send a close frame with this code, if the upgrade is through; never wait for it.
        close: Option<u16>,
    },
    /// The state changed: [`Link::view`] has what `status` shows. The link itself has logged it.
    Changed,
    /// Keep this beside the local socket, so that a restart cannot bypass the backoff.
    Save(Saved),
    /// Run this remedy.
    Remedy {
        /// Its index in the configuration.
        step: u8,
    },
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
    /// The next address joins the race.
    Race,
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
    /// A preferred endpoint is to be looked at.
    Probe,
    /// A remedy is due.
    Remedy,
}

/// What outlives a restart of the process; all but the instants outlives a reboot, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Saved {
    /// Exponent of the ordinary backoff.
    pub backoff_exponent: u8,
    /// Exponent of the slow class.
    pub slow_exponent: u8,
    /// Earliest next attempt on the boot clock, in ms.
    pub not_before_boot_ms: u64,
    /// Index of the endpoint in use, or next.
    pub endpoint: u8,
    /// For each endpoint the ping interval that its path bears, in ms; 0: not known.
    pub intervals_ms: [u32; ENDPOINTS_MAX],
    /// Since when no session is up, on the boot clock, in ms; 0: one is.
    pub offline_since_boot_ms: u64,
    /// For each remedy that was run in this outage, when, on the boot clock, in s; 0: it was not.
    pub remedies_boot_s: [u32; REMEDIES_MAX],
    /// Which remedies those are; all 0: only the place in the list says.
    pub remedies_id: [u16; REMEDIES_MAX],
    /// For each endpoint the server's word: not before this, on the boot clock, in s.
    pub words_boot_s: [u32; ENDPOINTS_MAX],
    /// What the wait until then is for.
    pub cause: Option<Class>,
    /// What the shell knows the credentials by that were at hand; the link does not look at it.
    pub credentials: u64,
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
