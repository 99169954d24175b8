//! A socket that is bound to an interface, by an agent that has no rights: the service runs as a user of its own.

use std::fs;
use std::os::unix::fs::chown;
use std::process::{Command, Stdio};

use backhaul::config::Endpoint;
use rustix::process::geteuid;

use crate::bench::{Bench, detail, endpoint};
use crate::support::not_run;

/// Of nobody (Debian's, and of most others).
const NOBODY: u32 = 65_534;

/// An agent that is nobody's, with an endpoint behind the loopback interface.
fn nobodys() -> Bench {
    let mut bench = Bench::new(|server, _| Endpoint { interface: "lo".into(), ..endpoint(&server.url()) });
    if geteuid().is_root() {
        for path in
            fs::read_dir(&*bench.dir).unwrap().map(|entry| entry.unwrap().path()).chain([bench.dir.to_path_buf()])
        {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let id = NOBODY.to_string();
        let setpriv = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--pdeathsig", "KILL"];
        bench.agent.run_through(&setpriv.map(Into::into));
    }
    bench
}

/// The kernel's release is 5.7 or later.
fn binds_without_rights() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(7))
}

#[test]
fn nobody_may_bind_to_an_interface_since_linux_5_7() {
    if !binds_without_rights() {
        return not_run("nobody_may_bind_to_an_interface_since_linux_5_7", "this kernel is older");
    }
    let mut bench = nobodys();
    bench.start();
    bench.assert_delivers();
}

/// Stands before libc: as a kernel before 5.7 answers who has no CAP_NET_RAW.
const OLD_KERNEL: &str = "
    #include <errno.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
        if (level == SOL_SOCKET && name == SO_BINDTODEVICE) { errno = EPERM; return -1; }
        return syscall(SYS_setsockopt, fd, level, name, value, size);
    }";

#[test]
fn a_kernel_that_wants_rights_for_it_is_a_local_cause_that_names_them() {
    let mut bench = nobodys();
    if binds_without_rights() {
        let (source, shim) = (bench.dir.join("old.c"), bench.dir.join("old.so"));
        fs::write(&source, OLD_KERNEL).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&source).stdin(Stdio::null());
        if !cc.status().is_ok_and(|status| status.success()) {
            return not_run(
                "a_kernel_that_wants_rights_for_it_is_a_local_cause_that_names_them",
                "cc is not installed",
            );
        }
        bench.agent.set_env("LD_PRELOAD", shim.to_str().unwrap());
    }
    bench.start();
    let status = bench.agent.wait_failures("local", 2);
    assert_eq!(detail(&status), "dialing: interface lo: not permitted, it takes CAP_NET_RAW", "{status:#}");
    assert_eq!(bench.server.attempts(), 0, "it does not go another way");
}
