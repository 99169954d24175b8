//! Where seeds and nonces come from.

use rustix::rand::{GetRandomFlags, getrandom};

use super::clock;

/// 64 bits from the kernel. Seeds and names need no more than to differ, so this never waits.
pub fn draw() -> u64 {
    let mut bytes = [0; 8];
    match getrandom(&mut bytes, GetRandomFlags::INSECURE) {
        Ok(_) => u64::from_ne_bytes(bytes),
        // Too early in a boot, or a kernel without it.
        Err(_) => clock::now().as_micros() ^ u64::from(std::process::id()) << 40 ^ clock::wall_ms() << 20,
    }
}
