//! First boot: a board that is provisioned once, an image that is copied to many.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use backhaul::config::{Config, Device};
use rustix::process::geteuid;
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, free_port, not_run, program, wait_for};

fn backhaul(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(program("backhaul"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_running_agent_takes_up_what_is_provisioned_at_sighup() {
    let dir = TempDir::new("provision");
    let mut receiver = Receiver::new(&dir);
    fs::write(dir.join("tokens"), "gw-0042 first-boot-token\n").unwrap();
    receiver.set_flags(&["--token-file", text(&dir.join("tokens"))]);
    receiver.start();
    let config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    agent.wait_listening();
    let mut producer = Producer::new(agent.socket(), None);
    assert_eq!(producer.put("t", "before it was anyone"), Handed::Answered);
    let (file, url) = (dir.join("backhaul.toml"), format!("ws://{}/", receiver.address()));
    let line = ["provision", "--config", text(&file), "--device-id", "gw-0042", "--url", &url, "--token-file", "-"];
    let out = backhaul(&[&line[..], &["--user", "root"]].concat(), "first-boot-token\n");
    assert!(out.status.success(), "{}", said(&out));
    agent.hup();
    agent.wait_drained();
    let stored = receiver.records();
    assert!(stored.iter().all(|record| record.device == "gw-0042"), "{stored:?}");
    assert_eq!(stored.iter().filter(|record| record.body == b"before it was anyone").count(), 1);
    let again = backhaul(&[&line[..], &["--user", "root"]].concat(), "first-boot-token\n");
    assert!(again.status.success() && said(&again).contains("already"), "{}", said(&again));
    let other = backhaul(&[&line[..], &["--user", "root"]].concat(), "another\n");
    assert_eq!(other.status.code(), Some(73), "{}", said(&other));
}

#[test]
fn permissions_are_mended_when_asked() {
    let dir = TempDir::new("permissions");
    let mut config = agent::quick(&dir, "wss://there/v1");
    config.upstream.endpoints[0].token_file = Some(dir.join("token"));
    agent::write(&dir.join("backhaul.toml"), &config);
    fs::write(dir.join("token"), "abc\n").unwrap();
    fs::set_permissions(dir.join("token"), fs::Permissions::from_mode(0o644)).unwrap();
    let file = dir.join("backhaul.toml");
    assert_eq!(backhaul(&["check", "--config", text(&file)], "").status.code(), Some(78));
    let out = backhaul(&["check", "--config", text(&file), "--fix-permissions"], "");
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(fs::metadata(dir.join("token")).unwrap().permissions().mode() & 0o777, 0o640);
}

/// The command line that runs a program on a board with this serial number and card, for all that the kernel says.
fn on_board(dir: &Path, serial: &str) -> Vec<String> {
    let sys = dir.join(format!("sys-{serial}"));
    for (file, text) in [("net/.keep", ""), ("dmi/id/product_uuid", serial), ("block/mmcblk0/device/cid", serial)] {
        let path = sys.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let script = "mount --bind \"$0\" /sys/class && exec \"$@\"";
    ["unshare", "--mount", "sh", "-c", script, text(&sys)].map(str::to_owned).to_vec()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// One image for many: the outbox, the device's name and the machine's id are all the same.
fn image_with_records(dir: &Path, url: &str, records: usize) -> Config {
    let mut config = agent::quick(dir, url);
    config.device = Device { id: "baked-in".into() };
    let mut agent = Agent::new(dir, &config);
    agent.run_through(&on_board(dir, "10000000a1b2c3d4"));
    agent.start();
    agent.wait_listening();
    let mut producer = Producer::new(agent.socket(), None);
    for n in 0..records {
        assert_eq!(producer.put("t", format!("of the image {n}")), Handed::Answered);
    }
    assert!(agent.term(DEADLINE).unwrap().success());
    config
}

#[test]
fn boards_of_one_image_with_an_outbox_in_it_collide_in_no_number_and_lose_no_record() {
    const WHAT: &str = "two boards of one image";
    if !geteuid().is_root() {
        return not_run(WHAT, "needs root for a mount namespace");
    }
    let dir = TempDir::new("image");
    let mut receiver = Receiver::new(&dir);
    let image = image_with_records(&dir, &format!("ws://{}/", receiver.address()), 5);
    let mut names = BTreeSet::new();
    let boards = ["20000000e5f60718", "3000000092a3b4c5"].map(|serial| {
        let home = dir.join(serial);
        fs::create_dir(&home).unwrap();
        let mut config = image.clone();
        config.outbox.dir = home.join("outbox");
        config.local.socket = home.join("agent.sock");
        copy(&image.outbox.dir, &config.outbox.dir);
        let mut agent = Agent::new(&home, &config);
        agent.run_through(&on_board(&home, serial));
        // Twice: it is the same board the second time.
        for round in 0..2 {
            agent.start();
            agent.wait_listening();
            let mut producer = Producer::new(agent.socket(), None);
            for n in 0..10 {
                assert_eq!(producer.put("t", format!("{serial} {round} {n}")), Handed::Answered);
            }
            let epochs: BTreeSet<u64> = producer.committed.iter().map(|record| record.epoch).collect();
            assert_eq!(epochs.len(), 1);
            for record in &producer.committed {
                assert!(names.insert((record.epoch, record.seq)), "{record:?} is another one's name");
            }
            assert!(agent.term(DEADLINE).unwrap().success());
        }
        let log = agent.log();
        assert_eq!(log.matches("made on another board").count(), 1, "{log}");
        agent
    });
    receiver.start();
    // One after the other: with one name between them they would take each other's session, as clones do.
    for mut agent in boards {
        agent.start();
        agent.wait_drained();
        assert!(agent.term(DEADLINE).unwrap().success());
    }
    let stored = receiver.records();
    let of = |start: &str| stored.iter().filter(|record| record.body.starts_with(start.as_bytes())).count();
    assert_eq!((of("of the image"), of("2000"), of("3000")), (5, 20, 20), "each once: {stored:?}");
    assert_eq!(receiver.gaps(), []);
}

#[test]
fn an_image_is_told_what_belongs_to_one_board_alone() {
    let dir = TempDir::new("golden");
    // What is pasted is one word.
    let root = dir.join("the board's root");
    let put = |file: &str, text: &str| {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/backhaul/backhaul.toml", include_str!("../deploy/backhaul.toml"));
    put("etc/machine-id", "");
    let look = || backhaul(&["check", "--image", text(&root)], "");
    let clean = look();
    assert!(clean.status.success(), "{}", said(&clean));

    // As it is after a day on the desk.
    let config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    agent.wait_listening();
    let mut producer = Producer::new(agent.socket(), None);
    for n in 0..7 {
        assert_eq!(producer.put("t", format!("{n}")), Handed::Answered);
    }
    agent.kill9();
    fs::create_dir_all(root.join("var/lib")).unwrap();
    copy(&config.outbox.dir, &root.join("var/lib/backhaul"));
    put("run/backhaul/backoff", "{}");
    put("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    put("etc/backhaul/token", "abc\n");
    put("etc/backhaul/conf.d/50.toml", "[[upstream.endpoint]]\nurl = 'wss://a/'\ntoken_file = '/etc/backhaul/token'\n");
    put("etc/backhaul/conf.d/90-provision.toml", "[device]\nid = 'one'\n");
    put("var/lib/systemd/random-seed", "seed");
    // Links are the image's own: this machine has these, too.
    fs::create_dir(root.join("data")).unwrap();
    fs::rename(root.join("etc/backhaul/conf.d"), root.join("data/conf.d")).unwrap();
    std::os::unix::fs::symlink("/data/conf.d", root.join("etc/backhaul/conf.d")).unwrap();
    fs::create_dir_all(root.join("var/lib/urandom")).unwrap();
    std::os::unix::fs::symlink("/proc/self/environ", root.join("var/lib/urandom/random-seed")).unwrap();
    let dirty = look();
    assert_eq!(dirty.status.code(), Some(78));
    let lines = said(&dirty);
    for says in [
        "an outbox with 7 records that wait",
        "run/backhaul/backoff: left by an agent",
        "etc/machine-id: a machine id",
        "etc/backhaul/token: a secret",
        "data/conf.d/90-provision.toml: provisioned already",
        "var/lib/urandom/random-seed: leads to what is not in this image",
        "\"one\": every board would have this name",
        "random-seed: a seed",
    ] {
        assert!(lines.contains(says), "no {says:?} in {lines}");
    }
    // What it says to do is what helps, but for what is a person's to decide.
    let remedies: Vec<&str> = lines.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    for remedy in remedies.iter().filter(|remedy| !remedy.starts_with("remove the key") && !remedy.starts_with("look"))
    {
        let status = Command::new("sh").args(["-c", remedy]).status().unwrap();
        assert!(status.success(), "{remedy}");
    }
    fs::remove_file(root.join("var/lib/urandom/random-seed")).unwrap();
    let healed = look();
    assert!(healed.status.success(), "{}", said(&healed));
    wait_for(DEADLINE, "nothing is left of the outbox", || {
        fs::read_dir(root.join("var/lib/backhaul")).unwrap().next().is_none().then_some(())
    });
}
