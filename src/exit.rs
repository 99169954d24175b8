//! Exit codes, as sysexits(3) has them: what an init service and scripts rely on.

/// The command line means nothing.
pub const USAGE: u8 = 64;
/// The input is not what it should be.
pub const DATA: u8 = 65;
/// An input file cannot be opened.
pub const NO_INPUT: u8 = 66;
/// A service is not to be had.
pub const UNAVAILABLE: u8 = 69;
/// A bug: threads that panic again and again.
pub const SOFTWARE: u8 = 70;
/// The system refuses what every program needs.
pub const SYSTEM: u8 = 71;
/// The local socket cannot be made.
pub const CANNOT_CREATE: u8 = 73;
/// An error of the system.
pub const IO: u8 = 74;
/// Try again later.
pub const TRY_AGAIN: u8 = 75;
/// Not permitted.
pub const PERMISSION: u8 = 77;
/// The configuration is bad.
pub const CONFIG: u8 = 78;
