//! What is said over the upstream WebSocket. CORE: no I/O, no clock.

pub mod codec;
mod cursor;
pub mod message;
mod pace;
mod session;
mod shares;
mod surface;
#[cfg(test)]
mod tests;

pub use session::Session;
pub use surface::{Config, Greeting, Input, Output, Purpose, Timer};
