//! What storage itself takes: a file that was filled with zeros is written in place, record behind record, and
//! synced once a commit. It could not be recovered, and no later write spares a page that holds durable records.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{RECORD_BYTES, Store, value};
use crate::Result;
use crate::metered::metered;

const PAGE_BYTES: u64 = 4096;

/// The file: one page that says what is acked, then records.
pub struct Raw {
    file: File,
    bytes: u64,
    offset: u64,
    staged: Vec<[u8; RECORD_BYTES]>,
    scratch: Vec<u8>,
    next: u64,
    acked: u64,
    acked_written: u64,
    files_cpu_s: f64,
}

impl Raw {
    /// With so many bytes of zeros, synced.
    pub fn try_new(dir: &Path, bytes: u64) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(dir.join("raw"))?;
        for offset in (0..bytes).step_by(1 << 20) {
            file.write_all_at(&[0; 1 << 20], offset)?;
        }
        file.sync_all()?;
        let (staged, scratch) = (Vec::new(), Vec::new());
        Ok(Self { file, bytes, offset: PAGE_BYTES, staged, scratch, next: 0, acked: 0, acked_written: 0, files_cpu_s: 0.0 })
    }
}

impl Store for Raw {
    fn stage(&mut self, count: usize) {
        self.staged.extend((self.next..).take(count).map(value));
        self.next += count as u64;
    }

    fn commit(&mut self) -> Result<()> {
        self.scratch.clear();
        for value in self.staged.drain(..) {
            self.scratch.extend_from_slice(&crc32c::crc32c(&value).to_le_bytes());
            self.scratch.extend_from_slice(&value);
        }
        if self.offset + self.scratch.len() as u64 > self.bytes {
            self.offset = PAGE_BYTES;
        }
        metered(&mut self.files_cpu_s, || -> Result<()> {
            self.file.write_all_at(&self.scratch, self.offset)?;
            self.offset += self.scratch.len() as u64;
            if self.acked_written < self.acked {
                self.file.write_all_at(&self.acked.to_le_bytes(), 0)?;
                self.acked_written = self.acked;
            }
            Ok(self.file.sync_data()?)
        })
    }

    fn ack(&mut self, count: usize) -> Result<()> {
        self.acked += count as u64;
        Ok(())
    }

    fn files_cpu_s(&mut self) -> Option<f64> {
        Some(self.files_cpu_s)
    }
}
