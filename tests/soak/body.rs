//! What a record says: its number, and as many bytes as were drawn.

/// The body of the record of this number.
pub fn of(count: u64, filler: usize) -> Vec<u8> {
    format!("{count} {}", ".".repeat(filler)).into_bytes()
}

/// The number that a body names.
pub fn count(body: &[u8]) -> u64 {
    let text = std::str::from_utf8(body).ok();
    text.and_then(|text| text.split(' ').next()?.parse().ok()).expect("every body begins with its number")
}
