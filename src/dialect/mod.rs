//! What is said over the upstream WebSocket: `backhaul.v1` or, to any server, plain messages. One surface over the two
//! ([`Session`]); what they share on the way up is `drain`'s. CORE: no I/O, no clock.

mod backhaul;
pub mod codec;
mod cursor;
mod drain;
mod flow;
pub mod message;
mod pace;
mod pings;
mod plain;
mod session;
mod shares;
mod surface;
#[cfg(test)]
mod tests;

pub use session::Session;
pub use surface::{Config, Greeting, InFlight, Input, LaneConfig, Output, Purpose, Timer};
