//! Commands on their way down. CORE: no I/O, no clock.
//!
//! | module | what it owns |
//! |---|---|
//! | [`filter`] | which topics a program asked for, by MQTT's rules |
//! | [`intake`] | the upstream's side: what is new, what is known, what has no room and stays with the server |
//! | [`desk`] | the programs' side: who is given what, and when a command is done |
//! | [`cursor`] | the last command done, as it lies on flash |
//!
//! The way of a command: the session hands it to the intake, which passes on what is new; the desk gives it to those
//! who asked for its topic; when all of them are done, or `command_wait_ms` is over, the cursor goes to flash and then
//! up. What is held lies in RAM: until `done` is up the server keeps it and sends it again.

pub mod cursor;
pub mod desk;
pub mod filter;
pub mod intake;

use crate::record::Body;

/// Commands beyond the last one done, at most (protocol rule 8).
pub const COMMANDS_MAX: usize = 16;
/// Bytes of topic and body held, at most; a lone command may exceed it. What has no room stays with the server.
pub const COMMANDS_BYTES_MAX: usize = 2 << 20;

/// Something that a local program is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The server's numbering.
    pub stream: u64,
    /// Its number in it.
    pub seq: u64,
    /// What it is about.
    pub topic: String,
    /// What it says.
    pub body: Body,
}
