//! The reference upstream: WebSocket in, SQLite out. A binary of its own, behind the feature `receiver`.
//!
//! | module | what it owns |
//! |---|---|
//! | [`session`] | the rules of one connection; pure, no I/O |
//! | [`upgrade`] | who may upgrade, and with which encoding; pure |
//! | [`tokens`] | the token file; pure |
//! | [`store`] | SQLite: records, gaps, lanes, one transaction a turn |
//! | [`commands`] | SQLite: commands that wait for their devices |
//! | [`door`] | who may come in now, and what was counted; pure |
//! | [`restart`] | the slots of a planned restart; pure |
//! | [`meter`] | the last ten minutes, second by second; pure |
//! | [`page`] | a few files over HTTP that show them |
//! | [`connection`] | one socket: TLS, upgrade, frames, close, as moved stages |
//! | `peer` | one connection, and what it is to the loop |
//! | [`net`] | the mio loop: fence, store, commit, then answer |
//! | [`cli`], [`command`] | what was typed |
//!
//! It knows the words and the codec of the wire protocol, and nothing of the agent; how it turns a fleet away is what
//! [`crate::fleet`] plans with.

pub mod cli;
pub mod command;
pub mod commands;
pub mod connection;
pub mod door;
pub mod meter;
pub mod net;
pub mod page;
mod peer;
pub mod restart;
pub mod session;
pub mod store;
pub mod tokens;
pub mod upgrade;
