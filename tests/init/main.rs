//! The service files of `deploy/init`, each under its real init as process 1: started, asked, killed, stopped, started
//! again, on a read-only root with the outbox on a partition of its own, as user `backhaul`, provisioned from a boot
//! partition. `room` makes the root, `debs` gets the inits without installing them.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;

use rustix::process::geteuid;
use serde_json::Value;
use support::{DEADLINE, TempDir, mortal, not_run, program, wait_for, wait_until};

/// Nobody listens there, and the second attempt comes after the test: one that is made shows a backoff that was lost.
const CONFIG: &str = "[[upstream.endpoint]]\nurl = \"ws://127.0.0.1:9/\"\n[upstream.reconnect]\n\
    start_delay_ms_max = 0\nbackoff_ms_min = 900000\nbackoff_ms_max = 1800000\n\
    [[lane]]\nname = \"telemetry\"\ndefault = true\nbytes_max = 1048576\n";

const SYSTEMD: [(&str, &str); 2] = [
    ("/etc/systemd/system/backhaul.service", include_str!("../../deploy/init/systemd/backhaul.service")),
    (
        "/etc/systemd/system/backhaul-provision.service",
        include_str!("../../deploy/init/systemd/backhaul-provision.service"),
    ),
];
const SCRIPT: &str = include_str!("../../deploy/init/sysv/backhaul");
const OPENRC: &str = include_str!("../../deploy/init/openrc/backhaul");
const RUNIT: [(&str, &str); 3] = [
    ("/etc/sv/backhaul/run", include_str!("../../deploy/init/runit/backhaul/run")),
    ("/etc/sv/backhaul/finish", include_str!("../../deploy/init/runit/backhaul/finish")),
    ("/etc/sv/backhaul/log/run", include_str!("../../deploy/init/runit/backhaul/log/run")),
];

/// BusyBox's applets in the places of the machine's own programs.
const BUSYBOX_ALONE: &str = "for name in sh start-stop-daemon logger setsid grep sleep mkdir chown chmod cat rm tr; do
    ln -sf /usr/bin/busybox /usr/bin/$name; rm -f /usr/sbin/$name; done\n";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The programs of the inits; `Err`: why there are none.
fn layer() -> Result<PathBuf, String> {
    static LAYER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let lay = || {
        if !geteuid().is_root() {
            return Err("needs root for namespaces and mounts".to_owned());
        }
        let layer = folder("target/init");
        let probe = "d=$1/probe; mkdir -p $d && mount -t tmpfs t $d && mkdir $d/u $d/w $d/r && \
                     mount -t overlay o -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/r";
        let dir = TempDir::new("init-probe");
        let mut unshare = Command::new("unshare");
        let out = unshare.args(["--mount", "sh", "-c", probe, "sh"]).arg(&*dir).output().unwrap();
        if !out.status.success() {
            return Err(format!("no overlay over this root: {}", String::from_utf8_lossy(&out.stderr)));
        }
        let out = Command::new("sh").arg(folder("tests/init/debs")).arg(&layer).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(layer)
    };
    LAYER.get_or_init(lay).clone()
}

/// Writes these files, executable, in the new root.
fn files(files: &[(&str, &str)]) -> String {
    let write = |(path, text): &(&str, &str)| {
        format!("mkdir -p \"$(dirname {path})\"\ncat > {path} <<'END OF FILE'\n{text}END OF FILE\nchmod 0755 {path}\n")
    };
    files.iter().map(write).collect()
}

/// A root with an init of its own as process 1. All of it is gone when dropped.
struct Room {
    dir: TempDir,
    unshare: Child,
    init: String,
}

impl Room {
    fn boot(layer: &Path, setup: &str, data: &str, init: &[&str]) -> Self {
        let dir = TempDir::new("init");
        for name in ["root", "mnt"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::write(dir.join("setup"), setup).unwrap();
        fs::write(dir.join("backhaul.toml"), CONFIG).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = mortal(Path::new("unshare"));
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net", "sh"]);
        command.arg(folder("tests/init/room")).arg(&*dir).arg(layer).arg(program("backhaul"));
        command.arg(dir.join("backhaul.toml")).arg(data).args(init);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut unshare = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let child = wait_for(DEADLINE, "a first process", || {
            assert!(unshare.try_wait().unwrap().is_none(), "{}", fs::read_to_string(dir.join("log")).unwrap());
            Some(fs::read_to_string(&children).ok()?.trim().to_owned()).filter(|child| !child.is_empty())
        });
        let room = Self { dir, unshare, init: child };
        wait_until(DEADLINE, "the root is the room's own", || {
            room.sh("test -e /etc/backhaul-room && ! test -e /mnt/root").status.success()
        });
        room
    }

    /// Runs this in the room.
    fn sh(&self, script: &str) -> Output {
        let mut command = mortal(Path::new("nsenter"));
        command.args(["-t", &self.init, "-m", "-p", "-n", "-u", "-i", "-r", "-w", "env", "-i"]);
        command.args([
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "SVDIR=/etc/service.d",
            "/usr/bin/busybox",
            "sh",
            "-c",
            script,
        ]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// The same; it has to succeed.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let out = self.sh(script);
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{script}: {} {said}", out.status);
        said
    }

    fn status(&self) -> Option<Value> {
        let out = self.sh("backhaul status --json");
        serde_json::from_slice(&out.stdout).ok()
    }

    #[track_caller]
    fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait_for(DEADLINE, what, || self.status().filter(|status| wanted(status)))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if thread::panicking() {
            let look = "ps; ls -l /run /run/backhaul /var/lib/backhaul; cat /dev/console /var/log/backhaul/current; \
                        journalctl --no-pager | tail -n 40";
            let out = self.sh(look);
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            eprintln!("the room's last words:\n{log}\n{}", String::from_utf8_lossy(&out.stdout));
        }
        let _ended_already = self.unshare.kill();
        let _ended_already = self.unshare.wait();
        // Empty by now, but for those that the service manager made below.
        let group = format!("backhaul-{}", self.dir.file_name().unwrap().to_string_lossy());
        let remove = "for d in /sys/fs/cgroup/systemd/$0 /sys/fs/cgroup/$0; do
            for try in 1 2 3 4 5; do [ ! -d $d ] || find $d -depth -type d -exec rmdir {} + 2> /dev/null || sleep 1; done; done";
        let _is_for_neatness = Command::new("sh").args(["-c", remove, &group]).status();
    }
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {status:#}"))
}

fn pid(status: &Value) -> u64 {
    number(status, "/agent/pid")
}

/// What every init owes the agent. `stop`, `start` and `reload` are what a person types.
fn lives_as_a_service(room: &Room, [stop, start, reload]: [&str; 3]) {
    let first = room.wait_status("it starts, and tries once", |status| number(status, "/link/attempts") == 1);
    assert_eq!(first["agent"]["device"], "from-the-card", "provisioned before it ran");
    assert!(!room.sh("test -e /boot/backhaul/token").status.success(), "the secret is gone from the boot partition");
    assert_eq!(room.run("stat -c '%a %U' /data/conf.d/*-token").trim(), "600 backhaul");
    let owner = room.run(&format!("stat -c %U /proc/{}", pid(&first)));
    assert_eq!(owner.trim(), "backhaul");
    assert_eq!(room.run("stat -c '%a %U' /var/lib/backhaul").trim(), "750 backhaul");
    assert!(!room.sh("touch /anywhere").status.success(), "the root is read-only");
    room.run("echo 21.5 | backhaul send -t boiler --wait committed --timeout 60");

    room.run(&format!("kill -9 {}", pid(&first)));
    let second = room.wait_status("it is started again", |status| {
        pid(status) != pid(&first) && status["link"]["state"] == "waiting"
    });
    assert_eq!(number(&second, "/link/attempts"), 0, "the backoff is kept: {second:#}");
    assert!(number(&second, "/link/next_attempt_ms") > 0);
    let depth = |status: &Value| number(status, "/lanes/0/depth");
    room.wait_status("the record is there", |status| depth(status) == 1);

    room.run(reload);
    let reloaded = room.wait_status("it answers after a reload", |_| true);
    assert_eq!(pid(&reloaded), pid(&second), "without a restart");

    // SIGTERM was enough: whoever kills says so, and runit never does.
    let said = room.run(stop);
    assert!(!said.contains("killed") && !said.contains("timeout"), "{said}");
    wait_until(DEADLINE, "it is stopped", || room.sh("backhaul status --check").status.code() == Some(3));
    let gone = || !room.sh(&format!("test -d /proc/{}", pid(&second))).status.success();
    wait_until(DEADLINE, "its process is gone", gone);
    room.run(start);
    let third = room.wait_status("it is started by hand", |status| status["link"]["state"] == "waiting");
    assert_eq!(number(&third, "/link/attempts"), 0, "and still waits");
    room.wait_status("the record is there", |status| depth(status) == 1);
}

#[test]
fn systemd() {
    let layer = match layer() {
        Ok(layer) => layer,
        Err(why) => return not_run("systemd", &why),
    };
    // Nothing but the service: what else a machine starts has no business in a test.
    let setup = files(&SYSTEMD)
        + "rm -rf /etc/systemd/system/*.wants /lib/systemd/system/*.wants /etc/fstab
           printf '[Unit]\\nWants=systemd-journald.service backhaul.service\\n' > /etc/systemd/system/room.target\n";
    let disk = TempDir::new("init-data");
    let image = disk.join("ext4");
    let make = "truncate -s 64M \"$0\" && PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q \"$0\"";
    assert!(Command::new("sh").args(["-c", make]).arg(&image).status().unwrap().success());
    let init = ["/lib/systemd/systemd", "--unit=room.target", "--log-target=journal"];
    let room = Room::boot(&layer, &setup, image.to_str().unwrap(), &init);
    lives_as_a_service(&room, ["systemctl stop backhaul", "systemctl start backhaul", "systemctl reload backhaul"]);
    // By the journal: no stop timed out, and nothing was killed by the manager.
    let journal = room.run("journalctl --no-pager");
    assert!(!journal.contains("State 'stop-sigterm' timed out"), "{journal}");
    // READY=1 came, or it would not be active; the watchdog is armed.
    let shown = room.run("systemctl show -p ActiveState -p WatchdogUSec -p NRestarts backhaul");
    assert!(shown.contains("ActiveState=active") && shown.contains("WatchdogUSec=1min"), "{shown}");
    let score = room.run("systemd-analyze security --offline=true --threshold=20 /etc/systemd/system/backhaul.service");
    eprintln!("INIT systemd: {}", score.lines().last().unwrap_or_default());
    room.run("systemd-analyze verify /etc/systemd/system/backhaul.service");
}

#[test]
fn sysv_init() {
    let layer = match layer() {
        Ok(layer) => layer,
        Err(why) => return not_run("SysV init", &why),
    };
    let setup = files(&[("/etc/init.d/backhaul", SCRIPT)])
        + "printf 'id:2:initdefault:\\nl2:2:wait:/etc/init.d/backhaul start\\n' > /etc/inittab\n";
    let room = Room::boot(&layer, &setup, "tmpfs", &["/sbin/init"]);
    lives_as_a_service(
        &room,
        ["stop", "start", "reload"].map(|word| format!("/etc/init.d/backhaul {word}")).each_ref().map(String::as_str),
    );
    room.run("/etc/init.d/backhaul status");
    // The loop itself is killed: the agent that it left is stopped before another one starts, and has a loop again.
    for word in ["start", "restart"] {
        let left = room.wait_status("it runs", |_| true);
        room.run(&format!("kill -9 $(cat /run/backhaul-loop.pid) && /etc/init.d/backhaul {word}"));
        let next = room.wait_status("another one runs", |status| pid(status) != pid(&left));
        let running = "for exe in /proc/[0-9]*/exe; do readlink $exe; done | grep -c '^/usr/bin/backhaul$'";
        assert_eq!(room.run(running).trim(), "1", "after {word}");
        room.run(&format!("kill -9 {}", pid(&next)));
        room.wait_status("its loop starts it again", |status| pid(status) != pid(&next));
    }
    // Ids come again: whose process it is by now is neither taken for the agent nor stopped.
    room.run("/etc/init.d/backhaul stop");
    let stranger = room.run("sleep 1000 > /dev/null 2>&1 & echo $! | tee /run/backhaul.pid /run/backhaul-loop.pid");
    assert_eq!(room.sh("/etc/init.d/backhaul status").status.code(), Some(3));
    assert_eq!(room.sh("/etc/init.d/backhaul reload").status.code(), Some(7));
    room.run("/etc/init.d/backhaul stop");
    room.run(&format!(
        "kill -0 {} && echo {0} > /run/backhaul.pid && echo {0} > /run/backhaul-loop.pid",
        stranger.trim()
    ));
    room.run("/etc/init.d/backhaul start");
    room.wait_status("it is started", |_| true);
    room.run(&format!("kill {}", stranger.trim()));
}

#[test]
fn busybox_init_with_the_scripts_own_loop() {
    let layer = match layer() {
        Ok(layer) => layer,
        Err(why) => return not_run("BusyBox init", &why),
    };
    let setup = files(&[("/etc/init.d/S50backhaul", SCRIPT)])
        + BUSYBOX_ALONE
        + "printf '::sysinit:/etc/init.d/S50backhaul start\\n' > /etc/inittab\n";
    let room = Room::boot(&layer, &setup, "tmpfs", &["/usr/bin/busybox", "init"]);
    lives_as_a_service(
        &room,
        ["stop", "start", "reload"]
            .map(|word| format!("/etc/init.d/S50backhaul {word}"))
            .each_ref()
            .map(String::as_str),
    );
}

#[test]
fn busybox_init_that_respawns_it() {
    let layer = match layer() {
        Ok(layer) => layer,
        Err(why) => return not_run("BusyBox init, respawn", &why),
    };
    // /etc/inittab is where it can be changed, as a person would to stop it.
    let setup = files(&[("/etc/init.d/S50backhaul", SCRIPT)])
        + BUSYBOX_ALONE
        + "printf '::sysinit:/etc/init.d/S50backhaul start\\n::respawn:/etc/init.d/S50backhaul run\\n' > /data/inittab
           ln -s /data/inittab /etc/inittab\n";
    let room = Room::boot(&layer, &setup, "tmpfs", &["/usr/bin/busybox", "init"]);
    // The script leaves to init what is init's.
    let running = "/etc/init.d/S50backhaul stop && /etc/init.d/S50backhaul start && ";
    let stop = format!("{running}sed -i 's/^::respawn/#&/' /data/inittab && kill -HUP 1");
    let start = "sed -i 's/^#::respawn/::respawn/' /data/inittab && kill -HUP 1";
    lives_as_a_service(&room, [&stop, start, "/etc/init.d/S50backhaul reload"]);
    let before = room.wait_status("it runs", |_| true);
    room.run("/etc/init.d/S50backhaul restart");
    room.wait_status("its loop starts it again", |status| pid(status) != pid(&before));
}

#[test]
fn openrc() {
    let layer = match layer() {
        Ok(layer) => layer,
        Err(why) => return not_run("OpenRC", &why),
    };
    // What `openrc sysinit` makes, without all else that it does to a machine.
    let start = "#!/bin/sh
cd /run && mkdir openrc && cd openrc && echo default > softlevel
mkdir started starting stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled tmp
exec rc-service backhaul start
";
    let local = "#!/sbin/openrc-run\nstart() { return 0; }\n";
    // supervise-daemon closes each descriptor that it could have: on this machine a thousand million, perhaps.
    let limit = "mkdir -p /etc/conf.d; echo 'rc_ulimit=\"-n 4096\"' > /etc/conf.d/backhaul\n";
    let setup =
        files(&[("/etc/init.d/backhaul", OPENRC), ("/etc/init.d/localmount", local), ("/etc/room-start", start)])
            + limit
            + "printf '::sysinit:/etc/room-start\\n' > /etc/inittab\n";
    let room = Room::boot(&layer, &setup, "tmpfs", &["/usr/bin/busybox", "init"]);
    let words = ["stop", "start", "reload"].map(|word| format!("rc-service backhaul {word}"));
    lives_as_a_service(&room, words.each_ref().map(String::as_str));
}

#[test]
fn runit() {
    let layer = match layer() {
        Ok(layer) => layer,
        Err(why) => return not_run("runit", &why),
    };
    // runsv keeps its state beside `run`; on a read-only root by links into /run.
    let setup = files(&RUNIT)
        + "ln -s /run/runit/backhaul /etc/sv/backhaul/supervise
           ln -s /run/runit/backhaul-log /etc/sv/backhaul/log/supervise
           mkdir -p /etc/service.d && ln -s /etc/sv/backhaul /etc/service.d/backhaul
           printf '::sysinit:/bin/mkdir -p /run/runit\\n::respawn:/usr/bin/runsvdir /etc/service.d\\n' > /etc/inittab\n";
    let room = Room::boot(&layer, &setup, "tmpfs", &["/usr/bin/busybox", "init"]);
    lives_as_a_service(&room, ["sv -w 20 stop backhaul", "sv -w 30 start backhaul", "sv reload backhaul"]);
    room.run("grep -q 'ready version' /var/log/backhaul/current");
}
