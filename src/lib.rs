//! `backhaul`: the connectivity agent of a small Linux gateway.
//!
//! Local programs hand it records over a unix socket; it puts them on flash, keeps one WebSocket to
//! the upstream alive and delivers every record exactly once. Two halves: a **core** that decides and
//! performs no I/O (time and randomness are arguments), and a **shell** of a few threads that performs
//! and never decides.
//!
//! | module | half | what it owns |
//! |---|---|---|
//! | [`record`], [`time`] | core | the words that everything shares |
//! | [`config`] | core values, shell loader | the configuration file, every default with its source |
//! | [`link`] | core | the life of the one upstream: state, timers, backoff, liveness, failure classes |
//! | [`dialect`] | core | what is said over it: the wire protocol `backhaul.v1` |
//! | [`commands`] | core | commands on their way down: what is new, who is given what, when it is done |
//! | [`upstream`] | core | link and dialect wired together |
//! | [`outbox`] | core, over a small disk trait | records on flash: lane, segment, batch, recovery |
//! | [`fleet`] | core | many links in virtual time: the planner, and the herd's contract |
//! | [`status`] | core | the snapshot that `status` shows |
//! | [`insight`] | core | what people and machines are shown of it: words, rates, histograms, metrics |
//! | [`shell`] | shell | threads, sockets, files, clocks |
//! | [`agent`] | shell | starts, supervises and stops the threads |
//! | [`cli`] | shell | what was typed, what it means, run it |
//! | `receiver` | own binary | the reference upstream: WebSocket in, SQLite out |

pub mod agent;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dialect;
pub mod exit;
pub mod fleet;
pub mod insight;
pub mod link;
pub mod outbox;
#[cfg(feature = "receiver")]
pub mod receiver;
pub mod record;
pub mod shell;
pub mod status;
pub mod time;
pub mod upstream;

#[cfg(test)]
#[path = "../tests/support/authority.rs"]
mod authority;
#[cfg(test)]
#[path = "../tests/support/temp_dir.rs"]
mod temp_dir;
