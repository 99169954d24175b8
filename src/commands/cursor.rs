//! The last command done, as it lies on flash: two slots, written in turn, so that a torn write leaves the other one.
//! Whose it is stands in it: a copied image knows nothing of what another device has done.
//!
//! ```text
//! slot 0 at 0, slot 1 at 4096; the newest intact one counts. Little-endian:
//!   0  magic "BHCD"
//!   4  version, u16: 1
//!   6  length of the device's name, u16
//!   8  generation, u64: one more with each write
//!  16  command stream, u64
//!  24  seq, u64
//!  32  the device's name
//!      CRC32C of all of it, u32
//! ```

use crate::dialect::message::CommandCursor;

/// From one slot to the next: a page, which is torn as a whole or not at all.
pub const SLOT_BYTES: usize = 4096;
/// Of both slots.
pub const FILE_BYTES: usize = 2 * SLOT_BYTES;

const MAGIC: [u8; 4] = *b"BHCD";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 32;
const CRC_BYTES: usize = 4;
/// No name of a device is longer than a configuration allows, which is far below.
const DEVICE_BYTES_MAX: usize = 1024;
const _: () = assert!(HEAD_BYTES + DEVICE_BYTES_MAX + CRC_BYTES <= SLOT_BYTES);

/// What is known of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// The last command done; `None`: none, or none of this device.
    pub cursor: Option<CommandCursor>,
    /// Of the newest slot.
    generation: u64,
}

impl Kept {
    /// From the bytes of the file, as many as there are.
    pub fn read(file: &[u8], device: &str) -> Self {
        let slots = [0, SLOT_BYTES].into_iter().filter_map(|offset| decode(file.get(offset..)?));
        let newest = slots.max_by_key(|(generation, ..)| *generation);
        newest.map_or_else(Self::default, |(generation, cursor, owner)| {
            let cursor = (owner == device.as_bytes()).then_some(cursor);
            Self { cursor, generation }
        })
    }

    /// What is to be written, and where; the slot that does not count is overwritten.
    pub fn advance(&mut self, cursor: CommandCursor, device: &str) -> (u64, Vec<u8>) {
        (self.cursor, self.generation) = (Some(cursor), self.generation + 1);
        let slot = self.generation % 2 * SLOT_BYTES as u64;
        (slot, encode(self.generation, cursor, device))
    }
}

fn encode(generation: u64, cursor: CommandCursor, device: &str) -> Vec<u8> {
    let device = &device.as_bytes()[..device.len().min(DEVICE_BYTES_MAX)];
    let mut slot = Vec::with_capacity(HEAD_BYTES + device.len() + CRC_BYTES);
    slot.extend_from_slice(&MAGIC);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    slot.extend_from_slice(&(device.len() as u16).to_le_bytes());
    for number in [generation, cursor.stream, cursor.seq] {
        slot.extend_from_slice(&number.to_le_bytes());
    }
    slot.extend_from_slice(device);
    let crc = crc32c::crc32c(&slot);
    slot.extend_from_slice(&crc.to_le_bytes());
    slot
}

/// Generation, cursor and owner, if the slot is intact.
fn decode(slot: &[u8]) -> Option<(u64, CommandCursor, &[u8])> {
    let (head, rest) = slot.split_at_checked(HEAD_BYTES)?;
    let length = usize::from(u16::from_le_bytes([head[6], head[7]]));
    let device = rest.get(..length)?;
    let crc = rest.get(length..length + CRC_BYTES)?;
    let is_intact = head.starts_with(&MAGIC)
        && head[4..6] == VERSION.to_le_bytes()
        && crc32c::crc32c(&slot[..HEAD_BYTES + length]).to_le_bytes() == *crc;
    let number = |offset: usize| head[offset..offset + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    is_intact.then(|| (number(8), CommandCursor { stream: number(16), seq: number(24) }, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(seq: u64) -> CommandCursor {
        CommandCursor { stream: 9, seq }
    }

    fn write(file: &mut [u8], kept: &mut Kept, seq: u64) -> usize {
        let (offset, bytes) = kept.advance(cursor(seq), "gw");
        let offset = offset as usize;
        file[offset..offset + bytes.len()].copy_from_slice(&bytes);
        offset
    }

    #[test]
    fn the_newest_intact_slot_counts_whatever_is_torn() {
        let mut file = vec![0; FILE_BYTES];
        let mut kept = Kept::read(&file, "gw");
        assert_eq!(kept, Kept::default());
        for seq in 1..=5 {
            let before = file.clone();
            let offset = write(&mut file, &mut kept, seq);
            assert_eq!(Kept::read(&file, "gw"), kept);
            for cut in 0..40 {
                let mut torn = before.clone();
                torn[offset..offset + cut].copy_from_slice(&file[offset..offset + cut]);
                let found = Kept::read(&torn, "gw").cursor.map_or(0, |cursor| cursor.seq);
                // Cut within what is the same in both: as before, or already as after.
                assert!(found == seq - 1 || found == seq && cut >= 38, "seq {seq} cut {cut}: {found}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_and_another_device_are_seen() {
        let mut file = vec![0; FILE_BYTES];
        let mut kept = Kept::default();
        let offset = write(&mut file, &mut kept, 3);
        assert_eq!(Kept::read(&file, "other").cursor, None);
        assert_eq!(Kept::read(&file, "other").generation, 1, "its slot is not written again");
        for bit in 0..38 * 8 {
            let mut damaged = file.clone();
            damaged[offset + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Kept::read(&damaged, "gw").cursor, None, "bit {bit}");
        }
        for length in [0, 1, 31, 40, SLOT_BYTES, SLOT_BYTES + 37] {
            assert_eq!(Kept::read(&file[..length], "gw"), Kept::default(), "{length} bytes");
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_first_version() {
        let (offset, bytes) = Kept::default().advance(CommandCursor { stream: 258, seq: 3 }, "gw");
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(offset, SLOT_BYTES as u64);
        assert!(hex.starts_with("42484344010002000100000000000000020100000000000003000000000000006777"), "{hex}");
        assert_eq!(bytes.len(), 38);
    }
}
