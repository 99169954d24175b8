//! SHELL: threads, sockets, files and clocks. It performs what the core decides: no policy constant, no retry loop,
//! no sleep in here.

pub mod board;
pub mod clock;
mod command;
pub mod disk;
pub mod entropy;
mod errand;
pub(crate) mod handler;
pub mod hardware;
#[cfg(any(feature = "page", feature = "receiver"))]
pub mod http;
pub mod lifetime;
pub mod local;
pub mod netlink;
pub mod notify;
pub mod outbox;
#[cfg(feature = "page")]
pub mod page;
pub mod port;
pub mod prepare;
pub mod remedy;
mod saved;
pub mod snapshot;
mod sources;
pub mod transport;
pub mod uplink;

/// Makes a record of the agent's own of a text.
pub type TextHook = std::sync::Arc<dyn Fn(String) + Send + Sync>;

/// What a thread does when something is worth a record on topic `$event`: kind and detail.
pub type EventHook = std::sync::Arc<dyn Fn(&'static str, &str) + Send + Sync>;
