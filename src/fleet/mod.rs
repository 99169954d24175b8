//! A fleet in virtual time: many devices, each of them the very same [`crate::link`] that an agent runs, against a
//! model of a server. CORE: no I/O, no clock, one seed. It answers what no single gateway can: how many attempts a
//! second an outage provokes, and when the last device is back.
//!
//! A run: [`Scenario`] says what happens, [`run`] plays it, [`Outcome`] says how it went. The server's way of turning
//! devices away, [`Admission`], is what the receiver does on real sockets.

mod admission;
mod device;
mod events;
mod outcome;
mod peers;
mod recommend;
mod scenario;
mod server;
mod simulation;
#[cfg(test)]
mod tests;

pub use admission::{Admission, TurnedAway};
pub use outcome::{Back, Outcome};
pub use peers::Peer;
pub use recommend::{Goal, Recommendation, recommend};
pub use scenario::{Down, Over, Scenario, ServerModel, Start};
pub use simulation::{run, run_peers};
