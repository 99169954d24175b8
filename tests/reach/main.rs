//! How a real agent reaches its upstream: through proxies, with credentials and certificates, after redirects, past
//! addresses that do not answer. What is asserted is what the far ends saw.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod bench;
mod certificates;
mod credentials;
mod interface;
mod proxies;
mod race;
mod redirects;

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;
