//! A file system of one's own: ext4 in an image file behind a loop device, and what that device has counted. Counters
//! of processes mislead, since a large folio is counted whole.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// What a block device wrote since it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Bytes, the file system's own included.
    pub bytes: u64,
    /// Flushes of its cache.
    pub flushes: u64,
}

impl std::ops::Sub for Counted {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self { bytes: self.bytes - before.bytes, flushes: self.flushes - before.flushes }
    }
}

/// A mounted image; unmounted and removed at the end.
#[derive(Debug)]
pub struct Device {
    image: PathBuf,
    node: String,
    mount: PathBuf,
}

impl Device {
    /// Makes an image of so many bytes, as ext4 with 4 KiB blocks and everything initialised, and mounts it.
    pub fn try_new(work: &Path, name: &str, bytes: u64) -> Result<Self> {
        let image = work.join(format!("{name}.img"));
        let mount = work.join(name);
        fs::create_dir_all(&mount)?;
        let file = File::create(&image)?;
        // Its blocks are there, so that the file system below adds nothing of its own to a flush.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        file.sync_all()?;
        run("mkfs.ext4", ["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"], &image)?;
        let node = run("losetup", ["--find", "--show"], &image)?.trim().to_owned();
        let device = Self { image, node, mount };
        run("mount", [device.node.as_str()], &device.mount)?;
        Ok(device)
    }

    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.mount
    }

    /// Writes out what the kernel still holds back, and reads the counters: fields 7 (sectors written) and 16
    /// (flushes) of Linux's `Documentation/block/stat.rst`.
    pub fn counted(&self) -> Result<Counted> {
        rustix::fs::syncfs(File::open(&self.mount)?)?;
        let name = Path::new(&self.node).file_name().unwrap_or_default().to_string_lossy();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat"))?;
        let field = |index: usize| stat.split_ascii_whitespace().nth(index - 1).and_then(|field| field.parse().ok());
        match (field(7), field(16)) {
            (Some(sectors), Some(flushes)) => Ok(Counted { bytes: sectors * 512_u64, flushes }),
            (Some(_) | None, _) => Err("this kernel does not count flushes (Linux 5.5 and later do)".into()),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = run("umount", [], &self.mount);
        let _ = run("losetup", ["--detach", self.node.as_str()], Path::new(""));
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_dir(&self.mount);
    }
}

fn run<const N: usize>(program: &str, args: [&str; N], path: &Path) -> Result<String> {
    let path = Some(path.as_os_str()).filter(|path| *path != OsStr::new(""));
    let output = Command::new(program).args(args).args(path).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}
