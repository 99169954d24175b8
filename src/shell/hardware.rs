//! Which board this is. An outbox that was made on one board and is opened on another came with a copied image, or its
//! card was moved: either way the other board may go on numbering records where this one would. So a folder remembers
//! the boards that it knows by what is burnt into them; on one that shares nothing with the last it is given a new name,
//! which to the outbox means: a new epoch.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{entropy, saved};

/// Of one mark; serial numbers and addresses are shorter.
const MARK_BYTES_MAX: u64 = 256;
/// Kept, so that the file stays below what is read of it.
const MARKS_MAX: usize = 32;

/// What the folder knows of boards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Empty on the first board; drawn on each one after it.
    board: String,
    salt: u32,
    /// Checksums, with the salt before them, of what is burnt into it: they name nothing.
    marks: Vec<u32>,
    /// The same of the machine's id.
    machine: u32,
}

/// The name of this machine for the outbox in `dir`: its id, and where the folder was on another board before, a slash
/// and what tells this board from that one.
pub fn name(dir: &Path, machine: &str) -> String {
    name_under(Path::new("/"), dir, machine)
}

fn name_under(root: &Path, dir: &Path, machine: &str) -> String {
    let path = file(dir);
    let was = saved::read::<Known>(&path).map(|(known, _)| known);
    let salt = was.as_ref().map_or_else(|| entropy::draw() as u32, |was| was.salt);
    let digest = |mark: &[u8]| crc32c::crc32c_append(salt, mark);
    let mut marks: Vec<u32> = marks(root).iter().map(|mark| digest(mark)).collect();
    marks.sort_unstable();
    marks.dedup();
    marks.truncate(MARKS_MAX);
    let was = was.unwrap_or_default();
    let unknown = was.marks.is_empty() || marks.is_empty();
    let same = unknown || marks.iter().any(|mark| was.marks.contains(mark));
    let mut now = Known { board: was.board.clone(), salt, marks, machine: digest(machine.as_bytes()) };
    if !same {
        now.board = format!("{:08x}", entropy::draw() as u32);
        log::warn!(target: "outbox", "made on another board: a copied image, or a card that was moved dir={}", dir.display());
        if was.machine == now.machine && !machine.is_empty() {
            log::warn!(target: "outbox", "this machine-id came with the image: any board made from it has the same");
        }
    }
    if now.marks.is_empty() {
        // What one cannot see now is still there.
        now.marks.clone_from(&was.marks);
    }
    // Before the outbox acts on it: cut in between, the outbox finds a name that it does not know, and acts then.
    if now != was
        && dir.is_dir()
        && let Err(error) = saved::write_durably(&path, &now)
    {
        log::warn!(target: "outbox", "cannot note which board this is file={} error={error}", path.display());
    }
    if now.board.is_empty() { machine.to_owned() } else { format!("{machine}/{}", now.board) }
}

/// Where the folder `dir` of an outbox keeps it.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("link").join("board")
}

/// What is burnt into the board, under `root`, and stays with it: unlike an address that is drawn at each boot, or of
/// an interface that a container has.
fn marks(root: &Path) -> Vec<Vec<u8>> {
    let entries = |folder: &str| -> Vec<PathBuf> {
        let read = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        read.map(|entry| entry.path()).collect()
    };
    let is_burnt_in = |interface: &PathBuf| {
        // NET_ADDR_PERM of linux/netdevice.h.
        let permanent = fs::read_to_string(interface.join("addr_assign_type")).is_ok_and(|kind| kind.trim() == "0");
        permanent && interface.join("device").exists()
    };
    let addresses = entries("sys/class/net").into_iter().filter(is_burnt_in).map(|path| path.join("address"));
    // Of the card, too: an image that is written to a thousand cards finds a thousand of them.
    let cards = entries("sys/class/block").into_iter().map(|path| path.join("device/cid"));
    let fixed = ["sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_uuid"];
    let paths = addresses.chain(cards).chain(fixed.into_iter().map(|path| root.join(path)));
    paths.filter_map(|path| mark(&path)).collect()
}

/// `None` for what is not there or was never set.
fn mark(path: &Path) -> Option<Vec<u8>> {
    let mut mark = Vec::new();
    File::open(path).ok()?.take(MARK_BYTES_MAX).read_to_end(&mut mark).ok()?;
    mark.retain(u8::is_ascii_graphic);
    let digit = |byte: &&u8| !matches!(byte, b':' | b'-');
    let first = *mark.iter().find(digit)?;
    let is_set = mark.iter().filter(digit).any(|byte| *byte != first);
    is_set.then_some(mark)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    fn burn(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn board(serial: &str, card: &str) -> TempDir {
        let root = TempDir::new("board");
        burn(&root, "sys/firmware/devicetree/base/serial-number", serial);
        burn(&root, "sys/class/block/mmcblk0/device/cid", card);
        root
    }

    #[test]
    fn a_folder_has_a_new_name_on_a_board_that_shares_nothing_with_the_last() {
        let dir = TempDir::new("hardware");
        let first = board("10000000a1b2c3d4\0", "035344\n");
        assert_eq!(name_under(&first, &dir, "m"), "m", "as an earlier version has it");
        assert_eq!(name_under(&first, &dir, "m"), "m");
        let other = board("10000000ffffffff\0", "035345\n");
        let named = name_under(&other, &dir, "m");
        assert!(named.starts_with("m/") && named.len() == 10, "{named}");
        assert_eq!(name_under(&other, &dir, "m"), named, "and keeps it");
        let back = name_under(&first, &dir, "m");
        assert!(back != named && back != "m", "the other one may have numbered on meanwhile: {back}");
    }

    #[test]
    fn a_part_that_is_replaced_makes_no_other_board() {
        let dir = TempDir::new("hardware-part");
        assert_eq!(name_under(&board("1000a\n", "035344\n"), &dir, "m"), "m");
        assert_eq!(name_under(&board("1000a\n", "035345\n"), &dir, "m"), "m", "another card");
        assert_eq!(name_under(&board("1000b\n", "035345\n"), &dir, "m"), "m", "another board, the same card");
        assert_eq!(name_under(&TempDir::new("hidden"), &dir, "m"), "m", "one of which nothing can be seen");
        assert_ne!(name_under(&board("1000c\n", "035346\n"), &dir, "m"), "m");
    }

    #[test]
    fn what_was_never_burnt_in_is_no_mark() {
        let root = board("0000000000000000\0", "\n");
        burn(&root, "sys/class/net/eth0/address", "b8:27:eb:00:00:01\n");
        burn(&root, "sys/class/net/eth0/addr_assign_type", "0\n");
        burn(&root, "sys/class/net/veth0/address", "0a:00:00:00:00:01\n");
        burn(&root, "sys/class/net/veth0/addr_assign_type", "3\n");
        burn(&root, "sys/class/dmi/id/product_uuid", "ffffffff-ffff-ffff-ffff-ffffffffffff\n");
        assert!(marks(&root).is_empty(), "not even an address without a device: {:?}", marks(&root));
        burn(&root, "sys/class/net/eth0/device/uevent", "");
        assert_eq!(marks(&root), [b"b8:27:eb:00:00:01"]);
    }
}
