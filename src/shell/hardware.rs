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
/// Kept of each kind, so that the file stays below what is read of it.
const MARKS_MAX: usize = 16;
/// What makers leave where a serial number should be, on every board alike.
const PLACEHOLDERS: [&str; 6] = [
    "0123456789",
    "123456789",
    "1234567890",
    "0123456789abcdef",
    "Tobefilledbyo.e.m.",
    "03000200-0400-0500-0006-000700080009",
];

/// What the folder knows of boards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Empty on the first board; drawn on each one after it.
    board: String,
    salt: u32,
    /// The machine's id when the folder came to this board: one that changes later makes no other board.
    #[serde(default)]
    id: String,
    /// What is burnt into the board, as far as it was ever seen.
    #[serde(default)]
    burnt: Marks,
}

/// Checksums, with the salt before them, of what is burnt into a board: they name nothing. Kind by kind, the surest
/// first: one that both sides have decides, so that what two boards may share (a modem of one make, a serial number that
/// was never set) does not make them one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Marks {
    /// Of eMMC, which stays where it is.
    soldered: Vec<u32>,
    /// Of SD cards.
    cards: Vec<u32>,
    serials: Vec<u32>,
    /// Of network interfaces.
    addresses: Vec<u32>,
}

impl Marks {
    /// Whether it is one board; `None`: they have no kind in common.
    fn is(&self, other: &Self) -> Option<bool> {
        let pairs = [
            (&self.soldered, &other.soldered),
            (&self.cards, &other.cards),
            (&self.serials, &other.serials),
            (&self.addresses, &other.addresses),
        ];
        let (ours, theirs) = pairs.into_iter().find(|(ours, theirs)| !ours.is_empty() && !theirs.is_empty())?;
        Some(ours.iter().any(|mark| theirs.contains(mark)))
    }

    /// Notes what is visible now; an interface may be late, or have its driver tomorrow.
    fn add(&mut self, seen: &Self) {
        let pairs = [
            (&mut self.soldered, &seen.soldered),
            (&mut self.cards, &seen.cards),
            (&mut self.serials, &seen.serials),
            (&mut self.addresses, &seen.addresses),
        ];
        for (known, seen) in pairs {
            if seen.iter().any(|mark| !known.contains(mark)) {
                let earlier = std::mem::replace(known, seen.clone());
                known.extend(earlier.into_iter().filter(|mark| !seen.contains(mark)));
                known.truncate(MARKS_MAX);
            }
        }
    }
}

/// The name of this machine for the outbox in `dir`: its id when the folder came to this board, and where it was on
/// another board before, a slash and what tells this board from that one.
pub fn name(dir: &Path, machine: &str) -> String {
    name_under(Path::new("/"), dir, machine)
}

fn name_under(root: &Path, dir: &Path, machine: &str) -> String {
    let path = file(dir);
    let was = saved::read::<Known>(&path).map(|(known, _)| known);
    let first = || Known { salt: entropy::draw() as u32, id: machine.to_owned(), ..Known::default() };
    let mut now = was.clone().unwrap_or_else(first);
    let seen = marks(root, now.salt);
    match now.burnt.is(&seen) {
        Some(true) => {}
        // Nothing says that it is another board, so the machine's id does, as it would without any of this.
        None => machine.clone_into(&mut now.id),
        Some(false) => {
            log::warn!(target: "outbox", "made on another board: a copied image, or a card that was moved dir={}", dir.display());
            if now.id == machine && !machine.is_empty() {
                log::warn!(target: "outbox", "this machine-id came with the image: any board made from it has the same");
            }
            now.board = format!("{:08x}", entropy::draw() as u32);
            machine.clone_into(&mut now.id);
            now.burnt = Marks::default();
        }
    }
    now.burnt.add(&seen);
    // Before the outbox acts on it: cut in between, the outbox finds a name that it does not know, and acts then.
    if was.as_ref() != Some(&now)
        && dir.is_dir()
        && let Err(error) = saved::write_durably(&path, &now)
    {
        log::warn!(target: "outbox", "cannot note which board this is file={} error={error}", path.display());
    }
    if now.board.is_empty() { now.id } else { format!("{}/{}", now.id, now.board) }
}

/// Where the folder `dir` of an outbox keeps it.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("link").join("board")
}

/// What is burnt into the board, under `root`, and stays with it: unlike an address that is drawn at each boot, one of
/// an interface that a container has, or of a USB modem, which have the same address by the thousand.
fn marks(root: &Path, salt: u32) -> Marks {
    let entries = |folder: &str| -> Vec<PathBuf> {
        let read = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        read.map(|entry| entry.path()).collect()
    };
    let digests = |files: &mut dyn Iterator<Item = PathBuf>| -> Vec<u32> {
        let mut digests: Vec<u32> =
            files.filter_map(|path| mark(&path)).map(|mark| crc32c::crc32c_append(salt, &mark)).collect();
        digests.sort_unstable();
        digests.dedup();
        digests.truncate(MARKS_MAX);
        digests
    };
    // Of the card, too: an image that is written to a thousand cards finds a thousand of them.
    let is_soldered =
        |card: &PathBuf| fs::read_to_string(card.join("device/type")).is_ok_and(|kind| kind.trim() == "MMC");
    let (soldered, cards): (Vec<_>, Vec<_>) = entries("sys/class/block").into_iter().partition(is_soldered);
    let serials = ["sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_uuid"];
    Marks {
        soldered: digests(&mut soldered.into_iter().map(|card| card.join("device/cid"))),
        cards: digests(&mut cards.into_iter().map(|card| card.join("device/cid"))),
        serials: digests(&mut serials.into_iter().map(|path| root.join(path))),
        addresses: digests(
            &mut entries("sys/class/net")
                .into_iter()
                .filter(|interface| is_burnt_in(interface))
                .map(|interface| interface.join("address")),
        ),
    }
}

fn is_burnt_in(interface: &Path) -> bool {
    // NET_ADDR_PERM of linux/netdevice.h.
    let permanent = fs::read_to_string(interface.join("addr_assign_type")).is_ok_and(|kind| kind.trim() == "0");
    // Locally administered: some boot loader drew it, or every board has the one that it was built with.
    let octet = fs::read_to_string(interface.join("address"))
        .ok()
        .and_then(|address| address.get(..2).and_then(|octet| u8::from_str_radix(octet, 16).ok()));
    let bus = fs::read_link(interface.join("device/subsystem")).unwrap_or_default();
    permanent && octet.is_some_and(|octet| octet & 2 == 0) && interface.join("device").exists() && !bus.ends_with("usb")
}

/// `None` for what is not there or was never set.
fn mark(path: &Path) -> Option<Vec<u8>> {
    let mut mark = Vec::new();
    File::open(path).ok()?.take(MARK_BYTES_MAX).read_to_end(&mut mark).ok()?;
    mark.retain(u8::is_ascii_graphic);
    let digit = |byte: &&u8| !matches!(byte, b':' | b'-');
    let first = *mark.iter().find(digit)?;
    let is_set = mark.iter().filter(digit).any(|byte| *byte != first);
    let is_own = !PLACEHOLDERS.iter().any(|placeholder| mark.eq_ignore_ascii_case(placeholder.as_bytes()));
    (is_set && is_own).then_some(mark)
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
    fn the_surest_kind_that_both_sides_have_decides() {
        let dir = TempDir::new("hardware-part");
        assert_eq!(name_under(&board("1000a\n", "035344\n"), &dir, "m"), "m");
        assert_eq!(name_under(&board("1000b\n", "035344\n"), &dir, "m"), "m", "a card that was moved numbers on");
        assert_eq!(name_under(&TempDir::new("hidden"), &dir, "m"), "m", "one of which nothing can be seen");
        assert_eq!(name_under(&board("1000b\n", "\n"), &dir, "m"), "m", "a card that cannot be read");
        let copied = name_under(&board("1000b\n", "035345\n"), &dir, "m");
        assert!(copied.starts_with("m/"), "the first card may go on in any board: {copied}");
        let soldered = board("1000b\n", "035345\n");
        burn(&soldered, "sys/class/block/mmcblk1/device/cid", "150100\n");
        burn(&soldered, "sys/class/block/mmcblk1/device/type", "MMC\n");
        assert_eq!(name_under(&soldered, &dir, "m"), copied);
        let other = board("1000b\n", "035345\n");
        burn(&other, "sys/class/block/mmcblk1/device/cid", "150101\n");
        burn(&other, "sys/class/block/mmcblk1/device/type", "MMC\n");
        assert_ne!(name_under(&other, &dir, "m"), copied, "the card that an image came on is in every board once");
    }

    fn interface(root: &Path, name: &str, address: &str) {
        burn(root, &format!("sys/class/net/{name}/address"), address);
        burn(root, &format!("sys/class/net/{name}/addr_assign_type"), "0\n");
        burn(root, &format!("sys/class/net/{name}/device/uevent"), "");
    }

    #[test]
    fn an_interface_that_is_late_makes_no_other_board() {
        let dir = TempDir::new("hardware-late");
        let (eth, wlan) = ("b8:27:eb:00:00:01\n", "b8:27:eb:00:00:02\n");
        let seen = |interfaces: &[(&str, &str)]| {
            let root = TempDir::new("board");
            interfaces.iter().for_each(|(name, address)| interface(&root, name, address));
            name_under(&root, &dir, "m")
        };
        assert_eq!(seen(&[("eth0", eth), ("wlan0", wlan)]), "m");
        let noted = fs::read(file(&dir)).unwrap();
        for _ in 0..2 {
            assert_eq!(seen(&[("wlan0", wlan)]), "m");
            assert_eq!(seen(&[("eth0", eth)]), "m");
            assert_eq!(seen(&[]), "m");
        }
        assert_eq!(fs::read(file(&dir)).unwrap(), noted, "nor does it cost flash anything");
        assert!(seen(&[("eth0", "b8:27:eb:00:00:03\n")]).starts_with("m/"));
    }

    #[test]
    fn what_boards_have_in_common_does_not_make_them_one() {
        let dir = TempDir::new("hardware-modem");
        let with_modem = |address: &str| {
            let root = TempDir::new("board");
            interface(&root, "eth0", address);
            interface(&root, "wwan0", "0c:5b:8f:27:9a:64\n");
            std::os::unix::fs::symlink("../../bus/usb", root.join("sys/class/net/wwan0/device/subsystem")).unwrap();
            burn(&root, "sys/class/dmi/id/product_uuid", "03000200-0400-0500-0006-000700080009\n");
            root
        };
        assert_eq!(name_under(&with_modem("b8:27:eb:00:00:01\n"), &dir, "m"), "m");
        assert_ne!(name_under(&with_modem("b8:27:eb:00:00:02\n"), &dir, "m"), "m");
    }

    #[test]
    fn a_machine_id_that_is_drawn_at_each_boot_makes_no_other_board() {
        let (dir, here) = (TempDir::new("hardware-id"), board("1000a\n", "035344\n"));
        assert_eq!(name_under(&here, &dir, "m"), "m");
        assert_eq!(name_under(&here, &dir, "n"), "m");
        assert!(name_under(&board("1000a\n", "035345\n"), &dir, "n").starts_with("n/"));
        let unseen = TempDir::new("hardware-unseen");
        assert_eq!(name_under(&TempDir::new("hidden"), &unseen, "m"), "m");
        assert_eq!(name_under(&TempDir::new("hidden"), &unseen, "n"), "n", "it is all that there is");
    }

    #[test]
    fn what_was_never_burnt_in_is_no_mark() {
        let root = board("0000000000000000\0", "\n");
        interface(&root, "eth0", "b8:27:eb:00:00:01\n");
        fs::remove_dir_all(root.join("sys/class/net/eth0/device")).unwrap();
        interface(&root, "eth1", "0a:00:00:00:00:01\n");
        interface(&root, "eth2", "b8:27:eb:00:00:02\n");
        burn(&root, "sys/class/net/eth2/addr_assign_type", "3\n");
        burn(&root, "sys/class/dmi/id/product_uuid", "ffffffff-ffff-ffff-ffff-ffffffffffff\n");
        assert_eq!(marks(&root, 1), Marks::default(), "without a device, or drawn by someone");
        burn(&root, "sys/class/net/eth0/device/uevent", "");
        assert_eq!(marks(&root, 1).addresses, [crc32c::crc32c_append(1, b"b8:27:eb:00:00:01")]);
    }
}
