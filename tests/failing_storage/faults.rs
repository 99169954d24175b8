//! Storage that fails on command.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::storage::fuse::{Backing, Medium};

/// What is wrong.
#[derive(Default)]
pub struct Switches {
    /// So many syncs fail, and what they should have made durable is lost: the kernel calls its pages clean.
    pub syncs_fail: u32,
    /// Writes fail.
    pub writes: Option<Errno>,
    /// So many bytes go in before the medium is full.
    pub room_bytes: Option<u64>,
    /// Reads fail of files whose name begins so, from here to there.
    pub unreadable: Option<(&'static str, u64, u64)>,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Calls that failed so far.
    pub failed: u64,
}

/// What a file held before the writes that were not synced, oldest first.
type Undo = BTreeMap<String, Vec<(u64, Vec<u8>)>>;

/// The medium.
#[derive(Default)]
pub struct Faults {
    state: Mutex<(Switches, Undo)>,
}

impl Faults {
    /// Turns switches.
    pub fn set(&self, set: impl FnOnce(&mut Switches)) {
        set(&mut self.lock().0);
    }

    /// All is well again.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.0 = Switches { failed: state.0.failed, ..Switches::default() };
    }

    /// Calls that failed so far.
    pub fn failed(&self) -> u64 {
        self.lock().0.failed
    }

    fn lock(&self) -> MutexGuard<'_, (Switches, Undo)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switches {
    fn fail(&mut self, error: Errno) -> io::Error {
        self.failed += 1;
        error.into()
    }
}

impl Medium for Faults {
    fn read(&self, file: &Backing, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let (switches, _) = &mut *self.lock();
        let bad = switches.unreadable.is_some_and(|(name, from, to)| {
            file.name.starts_with(name) && offset < to && offset + buf.len() as u64 > from
        });
        if bad { Err(switches.fail(Errno::IO)) } else { file.read(offset, buf) }
    }

    fn write(&self, file: &Backing, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let (switches, undo) = &mut *self.lock();
        if switches.read_only {
            return Err(switches.fail(Errno::ROFS));
        }
        if let Some(error) = switches.writes {
            return Err(switches.fail(error));
        }
        let mut count = bytes.len();
        if let Some(room) = &mut switches.room_bytes {
            if *room == 0 {
                return Err(switches.fail(Errno::NOSPC));
            }
            count = count.min(usize::try_from(*room).unwrap_or(usize::MAX));
            *room -= count as u64;
        }
        let mut old = vec![0; count];
        file.read(offset, &mut old)?;
        undo.entry(file.name.clone()).or_default().push((offset, old));
        file.file.write_all_at(&bytes[..count], offset)?;
        Ok(count)
    }

    fn sync(&self, file: &Backing) -> io::Result<()> {
        let (switches, undo) = &mut *self.lock();
        let unsynced = undo.remove(&file.name).unwrap_or_default();
        if switches.syncs_fail == 0 {
            return Ok(());
        }
        switches.syncs_fail -= 1;
        for (offset, old) in unsynced.iter().rev() {
            file.file.write_all_at(old, *offset)?;
        }
        Err(switches.fail(Errno::IO))
    }

    fn change(&self) -> io::Result<()> {
        let (switches, _) = &mut *self.lock();
        if switches.read_only { Err(switches.fail(Errno::ROFS)) } else { Ok(()) }
    }

    fn open(&self, to_write: bool) -> io::Result<()> {
        if to_write { self.change() } else { Ok(()) }
    }
}
