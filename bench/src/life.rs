//! A whole life: a million records appended in groups of 1000 and acked meanwhile, in a process of its own, whose
//! peak memory is the contender's.

use std::path::Path;

use crate::Result;
use crate::child::Child;
use crate::device::Device;
use crate::store::{Kind, RECORD_BYTES, Store};

/// Records in a commit.
const GROUP: usize = 1000;
/// Commits.
const COMMITS: usize = 1000;
/// A lane's default size.
pub const STORE_BYTES: u64 = 16 << 20;
const DEVICE_BYTES: u64 = 512 << 20;

/// What one contender's life came to, in the order of [`Kind::ALL`].
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// Bytes that the device wrote for each byte of records.
    pub bytes_per_byte: f64,
    /// Peak resident memory of the process, its program included.
    pub memory_mib: f64,
}

/// One life after the other: neither bytes nor memory depend on the machine's mood.
pub fn measure(work: &Path, scale: usize) -> Result<Vec<Life>> {
    let commits = COMMITS / scale;
    let mut lives = Vec::new();
    for kind in Kind::ALL {
        eprintln!("a life of {} records: {}", commits * GROUP, kind.name());
        let device = Device::try_new(work, kind.name(), DEVICE_BYTES)?;
        let mut child = Child::spawn(&["life", kind.name(), &device.dir().to_string_lossy(), &commits.to_string()])?;
        child.expect("ready")?;
        let before = device.counted()?;
        child.say_go()?;
        let memory_mib = child.expect("memory_mib")?;
        let wrote = device.counted()? - before;
        child.finish()?;
        let payload = (commits * GROUP * RECORD_BYTES) as f64;
        lives.push(Life { bytes_per_byte: wrote.bytes as f64 / payload, memory_mib });
    }
    Ok(lives)
}

/// In the child: an ack lets the group before the newest go, as a healthy link does.
pub fn live(store: &mut dyn Store, commits: usize) -> Result<()> {
    for commit in 0..commits {
        store.stage(GROUP);
        store.commit()?;
        if commit > 0 {
            store.ack(GROUP)?;
        }
    }
    Ok(())
}
