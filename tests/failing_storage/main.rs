//! Storage that fails under the real agent, with a producer and the real receiver: a FUSE folder whose calls fail on
//! command, a loop-mounted ext4 that turns read-only, a folder that is removed. What flash does not take is answered
//! `degraded` and kept in RAM; the status and an event upstream say so; when the storage is back, so is the agent,
//! without a restart. Nothing that was told committed is missing upstream, and nothing is there twice.
#![cfg(feature = "receiver")]

mod faults;
mod rig;

#[path = "../support/storage/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs")]
mod storage;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;

use backhaul::config::Overflow;
use rustix::io::Errno;

use rig::{Flash, Rig};
use storage::{LoopMount, own_mounts, text};
use support::TempDir;
use support::proxy::Mode;

/// What the tests of ext4 need.
const EXT4: &[&str] = &["mkfs.ext4", "e2fsck", "mount", "losetup"];

#[test]
fn one_failed_sync_costs_nothing() {
    if !own_mounts("one_failed_sync_costs_nothing", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("sync", |_| ());
    rig.put_committed(20);
    rig.link(Mode::Refuse);
    rig.faults().set(|faults| faults.syncs_fail = 1);
    // Written once more, elsewhere: what the failed sync has lost was never promised by it.
    rig.put_committed(20);
    assert_eq!(rig.faults().failed(), 1);
    rig.agent.kill9();
    rig.agent.start();
    rig.link(Mode::Pass);
    rig.put_committed(1);
    rig.settle(&[]);
}

#[test]
fn writes_that_fail_are_told_and_kept_in_ram_until_flash_is_back() {
    if !own_mounts("writes_that_fail_are_told_and_kept_in_ram_until_flash_is_back", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("write", |_| ());
    rig.put_committed(20);
    rig.faults().set(|faults| faults.writes = Some(Errno::IO));
    rig.put_refused(20, "degraded");
    rig.wait_flash(Flash::Degraded);
    rig.faults().heal();
    rig.wait_flash(Flash::Ok);
    rig.put_committed(20);
    rig.settle(&["storage_degraded", "storage_recovered"]);
}

#[test]
fn what_was_kept_in_ram_while_offline_is_on_flash_when_it_is_back() {
    if !own_mounts("what_was_kept_in_ram_while_offline_is_on_flash_when_it_is_back", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("offline", |_| ());
    rig.link(Mode::Refuse);
    rig.put_committed(20);
    rig.faults().set(|faults| faults.syncs_fail = u32::MAX);
    rig.put_refused(20, "degraded");
    rig.wait_flash(Flash::Degraded);
    rig.faults().heal();
    rig.wait_flash(Flash::Ok);
    rig.put_committed(20);
    // From here on it is on flash, or the receiver will miss it.
    rig.agent.kill9();
    rig.assert_exported();
    rig.agent.start();
    rig.link(Mode::Pass);
    rig.settle(&["storage_degraded", "storage_recovered"]);
}

#[test]
fn a_full_disk_is_the_lanes_overflow_policy() {
    if !own_mounts("a_full_disk_is_the_lanes_overflow_policy", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("full", |config| config.lanes[0].overflow = Overflow::Reject);
    rig.put_committed(20);
    // A batch's first 1,000 bytes go in.
    rig.faults().set(|faults| faults.room_bytes = Some(1000));
    rig.put_refused(20, "full");
    rig.faults().heal();
    rig.put_committed_soon(20);
    rig.settle(&[]);
}

#[test]
fn a_full_disk_under_a_lane_that_drops_its_oldest_is_ram_mode() {
    if !own_mounts("a_full_disk_under_a_lane_that_drops_its_oldest_is_ram_mode", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("drops", |config| config.lanes[0].overflow = Overflow::DropOldest);
    rig.put_committed(20);
    // What is not acked yet would be given up for what comes.
    rig.receiver.wait_acked([&rig.producer]);
    rig.agent.wait_drained();
    rig.faults().set(|faults| faults.room_bytes = Some(1000));
    rig.put_refused(20, "degraded");
    rig.wait_flash(Flash::Degraded);
    rig.faults().heal();
    rig.wait_flash(Flash::Ok);
    rig.put_committed(20);
    rig.settle(&["storage_degraded", "storage_recovered"]);
}

#[test]
fn pages_that_cannot_be_read_cost_their_own_records_and_are_counted() {
    if !own_mounts("pages_that_cannot_be_read_cost_their_own_records_and_are_counted", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("read", |_| ());
    rig.link(Mode::Refuse);
    rig.put_committed(60);
    // What is in RAM is sent without a read: after a start, nothing is.
    rig.agent.kill9();
    rig.agent.start();
    rig.agent.wait_listening();
    rig.put_committed(1);
    rig.faults().set(|faults| faults.unreadable = Some(("telemetry.0000", 3 * 4096, 5 * 4096)));
    rig.link(Mode::Pass);
    rig.settle_but_for_counted_loss();
    assert!(rig.faults().failed() > 0, "nothing was read there");
}

#[test]
fn a_folder_that_turns_read_only_and_back_under_the_agent() {
    if !own_mounts("a_folder_that_turns_read_only_and_back_under_the_agent", &[]) {
        return;
    }
    let mut rig = Rig::on_fuse("rofs", |_| ());
    rig.link(Mode::Refuse);
    rig.put_committed(20);
    rig.faults().set(|faults| faults.read_only = true);
    rig.put_refused(20, "degraded");
    rig.wait_flash(Flash::Degraded);
    // A start on a read-only folder: what it holds is sent; what was in RAM is gone, and nobody was told otherwise.
    rig.agent.kill9();
    rig.producer.uncertain.extend(rig.producer.refused.drain(..).map(|(body, _)| body));
    rig.agent.start();
    rig.agent.wait_listening();
    rig.put_refused(20, "degraded");
    rig.link(Mode::Pass);
    rig.receiver.wait_acked([&rig.producer]);
    rig.wait_flash(Flash::Degraded);
    rig.faults().heal();
    rig.wait_flash(Flash::Ok);
    rig.put_committed(20);
    rig.settle(&["storage_recovered"]);
}

#[test]
fn an_ext4_that_is_mounted_read_only_and_then_writable() {
    if !own_mounts("an_ext4_that_is_mounted_read_only_and_then_writable", EXT4) {
        return;
    }
    let dir = TempDir::new("roext4");
    let (image, mount) = ext4(&dir);
    let mut rig = Rig::in_folder(dir, |_| ());
    rig.link(Mode::Refuse);
    rig.put_committed(20);
    rig.agent.kill9();
    drop(mount);
    let mount = LoopMount::try_new(&image, &rig.dir().join("outbox"), "rw").expect("it was mounted before");
    mount.remount("ro");
    rig.agent.start();
    rig.agent.wait_listening();
    rig.link(Mode::Pass);
    rig.put_refused(20, "degraded");
    rig.wait_flash(Flash::Degraded);
    rig.receiver.wait_acked([&rig.producer]);
    mount.remount("rw");
    rig.wait_flash(Flash::Ok);
    rig.put_committed(20);
    rig.settle(&["storage_recovered"]);
    rig.agent.kill9();
}

#[test]
fn an_ext4_that_gives_up_under_the_agent() {
    if !own_mounts("an_ext4_that_gives_up_under_the_agent", EXT4) {
        return;
    }
    let dir = TempDir::new("abort");
    let (image, mount) = ext4(&dir);
    let mut rig = Rig::in_folder(dir, |_| ());
    rig.put_committed(20);
    rig.link(Mode::Refuse);
    rig.put_committed(20);
    // As ext4 does it itself when its journal cannot be written (`errors=remount-ro`).
    mount.remount("abort");
    rig.put_refused(20, "degraded");
    rig.wait_flash(Flash::Degraded);
    rig.link(Mode::Pass);
    rig.settle(&["storage_degraded"]);
    rig.agent.kill9();
    drop(mount);
    let _mount = LoopMount::try_new(&image, &rig.dir().join("outbox"), "rw").expect("its journal is replayed");
    rig.agent.start();
    rig.agent.wait_listening();
    rig.put_committed(20);
    rig.settle(&["storage_degraded"]);
    rig.agent.kill9();
}

#[test]
fn a_folder_that_is_removed_under_the_agent_is_made_again() {
    let dir = TempDir::new("removed");
    let mut rig = Rig::in_folder(dir, |_| ());
    rig.put_committed(20);
    rig.link(Mode::Refuse);
    rig.put_committed(20);
    fs::remove_dir_all(rig.dir().join("outbox")).expect("it is there");
    rig.put_committed_soon(20);
    // What was committed since is on flash again, for a start to find; what was before is still in this agent's RAM.
    rig.link(Mode::Pass);
    rig.receiver.wait_acked([&rig.producer]);
    rig.link(Mode::Refuse);
    rig.put_committed(20);
    rig.agent.kill9();
    rig.agent.start();
    rig.link(Mode::Pass);
    rig.put_committed(1);
    rig.settle(&[]);
}

/// A small ext4, mounted where the agent's outbox will be.
fn ext4(dir: &TempDir) -> (std::path::PathBuf, LoopMount) {
    let image = dir.join("disk.img");
    let file = fs::File::create(&image).expect("the temporary folder takes an image");
    file.set_len(16 << 20).expect("the temporary folder takes an image");
    storage::run("mkfs.ext4", &["-q", text(&image)]);
    let mount = LoopMount::try_new(&image, &dir.join("outbox"), "rw").unwrap_or_else(|words| panic!("{words}"));
    (image, mount)
}
