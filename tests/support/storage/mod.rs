//! Storage to break: mounts of a test's own, and a folder over FUSE whose every read, write and sync passes through our
//! hands. Apart from the rest of the rig, since only the tests of real file systems pay for `fuser`.

pub mod fuse;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::support::{mortal, not_run};

/// Set in the process that has its mounts for itself.
const INSIDE: &str = "BACKHAUL_OWN_MOUNTS";

/// Runs the test `name` (this one) once more in a mount namespace of its own: whatever becomes of it, a panic, Ctrl-C
/// or SIGKILL, the kernel takes its mounts down with its last process, and loop devices with their last mount. True in
/// there: go on. False: it has run and passed, or it cannot be run here, which is said past the test's captured output.
///
/// # Panics
/// When the test failed in there.
pub fn own_mounts(name: &str, programs: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if let Err(why) = possible(programs) {
        not_run(name, &why);
        return false;
    }
    let this = std::env::current_exe().expect("this program has a path");
    let mut command = mortal("unshare".as_ref());
    command.args(["--mount", "--propagation", "private", "--"]).arg(this);
    command.args([name, "--exact", "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null());
    let status = command.status().expect("unshare was there a moment ago");
    assert!(status.success(), "{name}, in a mount namespace of its own: {status}");
    false
}

/// What is missing here.
fn possible(programs: &[&str]) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("it mounts, and only root may".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Err(format!("/dev/fuse: {error}"));
    }
    for program in programs.iter().chain(&["unshare"]) {
        if let Err(error) = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()
        {
            return Err(format!("{program}: {error}"));
        }
    }
    let probe = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) { Ok(()) } else { Err("no mount namespace is to be had".into()) }
}

/// Runs a program that has to succeed.
///
/// # Panics
/// When it does not, with all that it said.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) {
    if let Err(words) = try_run(program, arguments) {
        panic!("{words}");
    }
}

/// Runs a program; what it said when it failed.
pub fn try_run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{program} {}: {}\n{out}{err}", arguments.join(" "), output.status))
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a test's folder has a plain name")
}

/// An image file, mounted through a loop device until dropped.
pub struct LoopMount {
    point: PathBuf,
}

impl LoopMount {
    /// Mounts `image` at `point`, a folder made when missing. The device goes with the mount.
    pub fn try_new(image: &Path, point: &Path, options: &str) -> Result<Self, String> {
        std::fs::create_dir_all(point).expect("the test's folder takes a folder");
        let options = format!("loop,{options}");
        // Devices are taken by others, too: between two of them asking for a free one, one loses.
        let mut result = Err(String::new());
        for _ in 0..5 {
            result = try_run("mount", &["-t", "ext4", "-o", &options, text(image), text(point)]);
            if !result.as_ref().is_err_and(|words| words.contains("failed to setup loop device")) {
                break;
            }
        }
        result.map(|()| Self { point: point.into() })
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Changes its options.
    #[track_caller]
    pub fn remount(&self, options: &str) {
        run("mount", &["-o", &format!("remount,{options}"), text(&self.point)]);
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        if try_run("umount", &[text(&self.point)]).is_err() {
            // A failing test's agent may still have a file open: the mount goes with it.
            let _namespace_goes = try_run("umount", &["--lazy", text(&self.point)]);
        }
    }
}
