//! One thread of a process, stopped (ptrace(2)) while the others go on: what a file system or a device that hangs does
//! to it, at a moment of the test's choosing.

use std::fs;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// The thread; it goes on when this is dropped.
pub struct Stopped {
    thread: Pid,
}

impl Stopped {
    /// Stops the thread of this name. `Err`: why that cannot be; the agent lets nobody but root look into it.
    pub fn try_new(process: u64, name: &str) -> Result<Self, String> {
        let thread =
            fs::read_dir(format!("/proc/{process}/task")).map_err(|error| error.to_string())?.find_map(|entry| {
                let path = entry.ok()?.path();
                let is_it = fs::read_to_string(path.join("comm")).ok()?.trim() == name;
                let id = path.file_name()?.to_str()?.parse().ok()?;
                is_it.then_some(Pid::from_raw(id))
            });
        let thread = thread.unwrap_or_else(|| panic!("no thread {name}"));
        ptrace::seize(thread, Options::empty()).map_err(|error| format!("no thread can be traced: {error}"))?;
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it stops");
        Ok(Self { thread })
    }

    /// Where its process has been told to leave, it stays until this is asked.
    pub fn let_die(&self) {
        let _lives = waitpid(self.thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _is_dead = ptrace::detach(self.thread, None);
        self.let_die();
    }
}
