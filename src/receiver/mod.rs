//! The reference upstream: WebSocket in, SQLite out. A binary of its own, behind the feature `receiver`.
//!
//! | module | what it owns |
//! |---|---|
//! | [`session`] | the rules of one connection; pure, no I/O |
//! | [`upgrade`] | who may upgrade, and with which encoding; pure |
//! | [`tokens`] | the token file; pure |
//! | [`store`] | SQLite: records, gaps, lanes, one transaction a turn |
//! | [`connection`] | one socket: TLS, upgrade, frames, close, as moved stages |
//! | [`net`] | the mio loop: fence, store, commit, then answer |
//! | [`cli`] | what was typed |
//!
//! It knows the words and the codec of the wire protocol, and nothing of the agent.

pub mod cli;
pub mod connection;
pub mod net;
pub mod session;
pub mod store;
pub mod tokens;
pub mod upgrade;
