//! The agent's disk, which counts pages read and tells the kernel's share of the CPU from the outbox's own.

use std::io;

use backhaul::outbox::disk::{Disk, Entry};
use backhaul::outbox::format::PAGE_BYTES;
use backhaul::shell::disk::RealDisk;
use rustix::time::{ClockId, clock_gettime};

/// The real disk, and what its calls took.
pub struct Metered {
    disk: RealDisk,
    /// Pages read so far.
    pub pages_read: usize,
    /// CPU time of all writes and syncs so far.
    pub cpu_s: f64,
}

impl Metered {
    /// Around the agent's disk.
    pub fn new(disk: RealDisk) -> Self {
        Self { disk, pages_read: 0, cpu_s: 0.0 }
    }
}

/// The thread's time on a CPU: /proc/self/stat counts in ticks of 10 ms, longer than most commits.
pub fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What `call` takes is added to `sum`.
pub fn metered<T>(sum: &mut f64, call: impl FnOnce() -> T) -> T {
    let begun = cpu_s();
    let done = call();
    *sum += cpu_s() - begun;
    done
}

impl Disk for Metered {
    fn list(&mut self) -> io::Result<Vec<Entry>> {
        self.disk.list()
    }

    fn read_at(&mut self, name: &str, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.disk.read_at(name, offset, buf)?;
        self.pages_read += read.div_ceil(PAGE_BYTES);
        Ok(read)
    }

    fn write_at(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        metered(&mut self.cpu_s, || self.disk.write_at(name, offset, bytes))
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        metered(&mut self.cpu_s, || self.disk.sync(name))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.disk.sync_dir()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}
