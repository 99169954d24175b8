//! What people and machines are shown of the snapshot: figures that need a past ([`figures`], [`history`]), why things
//! are as they are, in words ([`words`]), metrics for Prometheus ([`metrics`]) and as records upstream ([`record`]).
//! CORE: no I/O, no clock.

pub mod figures;
#[cfg(feature = "page")]
pub mod history;
pub mod metrics;
pub mod notes;
pub mod record;
pub mod words;
