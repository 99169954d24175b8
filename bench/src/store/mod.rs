//! Who is compared: each puts groups of records durably on flash, one group a commit, and lets go of acked ones.

mod ours;
mod peers;
mod raw;

use std::path::Path;

use backhaul::outbox::Draft;
use backhaul::outbox::format::RecordArea;
use backhaul::record::Body;

pub use ours::{Ours, config};
pub use peers::{Queue, Redb, Sqlite};
pub use raw::Raw;

use crate::Result;

/// Bytes of a record as it is encoded: ours in postcard, for the others the value itself.
pub const RECORD_BYTES: usize = 100;

/// A store of records, oldest first.
pub trait Store {
    /// Takes the next records in, outside of any measurement; they go to flash with [`Store::commit`].
    fn stage(&mut self, count: usize);
    /// Puts what is staged on flash: when it returns, a power cut does not take it.
    fn commit(&mut self) -> Result<()>;
    /// The oldest records are not needed any more. May be put on flash by the next commit.
    fn ack(&mut self, count: usize) -> Result<()>;
    /// CPU time of the file's writes and syncs so far: the kernel's share. `None`: cannot be told apart.
    fn files_cpu_s(&mut self) -> Option<f64> {
        None
    }
}

/// The contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The outbox of the agent on its real disk.
    Ours,
    /// A file of zeros, written in place, a CRC32C for each record, packed.
    Raw,
    /// WAL, synchronous=FULL: durable at every commit.
    SqliteFull,
    /// WAL, synchronous=NORMAL: not durable at a commit, only at a checkpoint.
    SqliteNormal,
    /// Durability::Immediate.
    Redb,
    /// Syncs on.
    QueueFile,
}

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Self; 6] =
        [Self::Ours, Self::Raw, Self::SqliteFull, Self::SqliteNormal, Self::Redb, Self::QueueFile];

    /// As it is called on the command line and in file names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "backhaul",
            Self::Raw => "raw",
            Self::SqliteFull => "sqlite-full",
            Self::SqliteNormal => "sqlite-normal",
            Self::Redb => "redb",
            Self::QueueFile => "queue-file",
        }
    }

    /// As people read it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Ours => "backhaul",
            Self::Raw => "raw file",
            Self::SqliteFull => "SQLite FULL",
            Self::SqliteNormal => "SQLite NORMAL",
            Self::Redb => "redb",
            Self::QueueFile => "queue-file",
        }
    }

    /// A store of its own in `dir`, with room for so many bytes of records made beforehand where that is its way.
    pub fn store(self, dir: &Path, bytes: u64) -> Result<Box<dyn Store>> {
        Ok(match self {
            Self::Ours => Box::new(Ours::try_new(dir, bytes)?),
            Self::Raw => Box::new(Raw::try_new(dir, bytes)?),
            Self::SqliteFull => Box::new(Sqlite::try_new(dir, "FULL")?),
            Self::SqliteNormal => Box::new(Sqlite::try_new(dir, "NORMAL")?),
            Self::Redb => Box::new(Redb::try_new(dir)?),
            Self::QueueFile => Box::new(Queue::try_new(dir, bytes)?),
        })
    }
}

/// What a sensor says, the `number`-th time: [`RECORD_BYTES`] in postcard.
pub fn draft(number: u64) -> Draft {
    let body = format!(r#"{{"unit":"C","value":{:>9.3},"n":{number:>23},"ok":true}}"#, number as f64 / 7.0 % 1e5);
    Draft {
        at: Some(1_767_225_600_000 + number),
        boot: 0x1234_5678,
        boot_ms: 3_000_000 + number,
        ttl_s: 0,
        topic: "boiler/temp".into(),
        key: None,
        body: Body::Text(body),
    }
}

/// Every draft takes [`RECORD_BYTES`] in postcard, and a length byte and a CRC before it.
pub fn check_size() -> Result<()> {
    for number in [0, 1_000_000, 20_000_000] {
        let mut area = RecordArea::default();
        area.push(&draft(number));
        if area.bytes() != RECORD_BYTES + 1 + 4 {
            return Err(format!("a record takes {} bytes with its frame", area.bytes()).into());
        }
    }
    Ok(())
}

/// The same as bytes.
fn value(number: u64) -> [u8; RECORD_BYTES] {
    let text = format!(r#"boiler/temp {{"unit":"C","value":{:>9.3},"n":{number:>20},"ok":true}}"#, number as f64 / 7.0);
    let mut value = [b' '; RECORD_BYTES];
    let bytes = &text.as_bytes()[..text.len().min(RECORD_BYTES)];
    value[..bytes.len()].copy_from_slice(bytes);
    value
}
