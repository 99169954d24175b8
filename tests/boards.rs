//! Every folder of `boards/`: known keys, a target that can be built, a configuration that the real `backhaul check`
//! takes and that fits the board's memory and flash, links that lead somewhere, a row in the table. And a folder that
//! is broken is refused, for each of these reasons.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/temp_dir.rs"]
mod temp_dir;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use temp_dir::TempDir;

/// Part of a board's memory that the agent may take, at most: the rest is the system's and other programs'.
const MEMORY_PART: u64 = 3;

/// Files of a folder, all of them and no others.
const FILES: [&str; 3] = ["README.md", "backhaul.toml", "board.toml"];

/// Keys of `board.toml`: each on a line of its own, for `deploy/build` reads them line by line.
const KEYS: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Board {
    target: String,
    #[expect(dead_code, reason = "its type is what it is held to")]
    linker: Linker,
    rustflags: String,
    #[expect(dead_code, reason = "its type is what it is held to")]
    std: Std,
    features: Vec<String>,
    memory_bytes: u64,
    flash_bytes: u64,
    flash_free_bytes: u64,
    #[expect(dead_code, reason = "its type is what it is held to")]
    file_system: FileSystem,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Linker {
    Zig,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Std {
    Prebuilt,
    Built,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileSystem {
    Ext4,
    F2fs,
    Ubifs,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Package {
    Deb,
    Ipk,
    Tar,
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn boards() -> PathBuf {
    project().join("boards")
}

/// The names of the folders, in order.
fn names() -> Vec<String> {
    let entries = fs::read_dir(boards()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What `deploy/targets` says of a target: its packages' architectures, by kind. `None`: it does not know it.
fn architectures(target: &str) -> Option<(String, String)> {
    let script = ". deploy/targets; target \"$1\" && printf '%s|%s' \"$deb\" \"$ipk\"";
    let output = Command::new("sh").args(["-c", script, "-", target]).current_dir(project()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let known = output.status.success().then(|| text.split_once('|').unwrap());
    known.map(|(deb, ipk)| (deb.to_owned(), ipk.to_owned()))
}

fn toml_file(path: &Path) -> toml::Table {
    fs::read_to_string(path).unwrap().parse().unwrap()
}

/// What is wrong with a folder; empty: nothing. `home` is the folder of boards that its links start from.
fn complaints(folder: &Path, home: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let files: BTreeSet<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    if !files.iter().eq(FILES) {
        found.push(format!("files {files:?}, not {FILES:?}"));
        return found;
    }
    let text = fs::read_to_string(folder.join("board.toml")).unwrap();
    let board: Board = match toml::from_str(&text) {
        Ok(board) => board,
        Err(error) => {
            found.push(format!("board.toml: {}", error.message()));
            return found;
        }
    };
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    if lines.clone().count() != KEYS || !lines.clone().all(|line| line.contains(" = ") && !line.contains(" #")) {
        found.push("board.toml: a key a line, as `key = value`, for a shell script reads it".to_owned());
    }
    target(&board, &mut found);
    bounds(&board, folder, &mut found);
    readme(&fs::read_to_string(folder.join("README.md")).unwrap(), home, &mut found);
    found
}

fn target(board: &Board, found: &mut Vec<String>) {
    match architectures(&board.target) {
        None => found.push(format!("target {}: not in deploy/targets", board.target)),
        Some((deb, ipk)) => {
            let missing = board.packages.iter().any(|package| match package {
                Package::Deb => deb.is_empty(),
                Package::Ipk => ipk.is_empty(),
                Package::Tar => false,
            });
            if missing || board.packages.is_empty() {
                found.push(format!("packages: not of the kinds that {} has", board.target));
            }
        }
    }
    if !toml_file(&project().join("cross.toml"))["target"].as_table().unwrap().contains_key(&board.target) {
        found.push(format!("target {}: not in cross.toml", board.target));
    }
    let known = toml_file(&project().join("Cargo.toml"));
    let known = known["features"].as_table().unwrap();
    found.extend(
        board.features.iter().filter(|name| !known.contains_key(*name)).map(|name| format!("no feature {name}")),
    );
    if board.features.iter().any(|name| name == "vendored") {
        found.push("feature vendored: deploy/openssl builds OpenSSL".to_owned());
    }
    if !board.rustflags.split_whitespace().all(|flag| flag.starts_with("-C")) {
        found.push(format!("rustflags {:?}: -C only", board.rustflags));
    }
}

/// The configuration is put beside the shipped one, as the package does, and `backhaul check` is asked.
fn bounds(board: &Board, folder: &Path, found: &mut Vec<String>) {
    let place = TempDir::new("board");
    fs::create_dir_all(place.join("conf.d")).unwrap();
    fs::copy(project().join("deploy/backhaul.toml"), place.join("backhaul.toml")).unwrap();
    fs::copy(folder.join("backhaul.toml"), place.join("conf.d/10-board.toml")).unwrap();
    // A machine that builds has no /etc/machine-id, perhaps.
    fs::write(place.join("conf.d/90-test.toml"), "[device]\nid = 'gw-1'\n").unwrap();
    let check = Command::new(env!("CARGO_BIN_EXE_backhaul"))
        .args(["check", "--config"])
        .arg(place.join("backhaul.toml"))
        .output()
        .unwrap();
    if !check.status.success() || !check.stderr.is_empty() {
        found.push(format!("backhaul check: {}", String::from_utf8_lossy(&check.stderr)));
        return;
    }
    let text = String::from_utf8(check.stdout).unwrap();
    let sums: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#   together"))
        .map(|line| line.trim().strip_suffix(" bytes").unwrap().parse().unwrap())
        .collect();
    let [memory, flash] = sums[..] else { panic!("a sum of memory, a sum of flash: {sums:?}") };
    let effective: toml::Table = text.parse().unwrap();
    let headroom = u64::try_from(effective["outbox"]["headroom_bytes_min"].as_integer().unwrap()).unwrap();
    if memory > board.memory_bytes / MEMORY_PART {
        found.push(format!("memory: {memory} bytes at most, more than a third of {}", board.memory_bytes));
    }
    if flash + headroom > board.flash_free_bytes {
        found.push(format!("flash: {flash} bytes and {headroom} left free, of {}", board.flash_free_bytes));
    }
    if board.flash_free_bytes >= board.flash_bytes {
        found.push("flash: no system leaves all of it free".to_owned());
    }
}

fn readme(text: &str, home: &Path, found: &mut Vec<String>) {
    let missing = ["**Storage**", "LED", "**Install**"].into_iter().filter(|word| !text.contains(word));
    found.extend(missing.map(|word| format!("README.md: nothing about {word}")));
    // From any folder of boards, `..` is `home`.
    let links = links(text).into_iter().map(|link| (link, home.join(link.strip_prefix("../").unwrap_or(link))));
    found.extend(links.filter(|(_, path)| !path.exists()).map(|(link, _)| format!("README.md: {link} leads nowhere")));
}

/// Where the links of a page lead, without those to other hosts.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
    let here = targets.filter(|link| !link.contains("://"));
    here.map(|link| link.split('#').next().unwrap()).filter(|link| !link.is_empty()).collect()
}

#[test]
fn every_board_has_known_keys_a_target_and_bounds_that_fit() {
    let names = names();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        let found = complaints(&boards().join(&name), &boards());
        assert!(found.is_empty(), "boards/{name}: {found:#?}");
    }
}

#[test]
fn the_table_lists_each_board_with_its_target_and_no_other() {
    let page = fs::read_to_string(boards().join("README.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| ["))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let named: Vec<String> =
        rows.iter().map(|row| row[0].strip_prefix('[').unwrap().split_once(']').unwrap().0.to_owned()).collect();
    assert_eq!(named, names());
    for (name, row) in named.iter().zip(&rows) {
        let board = toml_file(&boards().join(name).join("board.toml"));
        assert_eq!(row[1].trim_matches('`'), board["target"].as_str().unwrap(), "{name}");
        let mib = board["memory_bytes"].as_integer().unwrap() >> 20;
        assert_eq!(row[2], format!("{mib} MiB"), "{name}");
        let overlay = toml_file(&boards().join(name).join("backhaul.toml"));
        let lanes = overlay["lane"].as_array().unwrap();
        let outbox: i64 = lanes.iter().map(|lane| lane["bytes_max"].as_integer().unwrap()).sum();
        assert_eq!(row[4], format!("{} MiB", outbox >> 20), "{name}");
    }
    let lost: Vec<_> = links(&page).into_iter().filter(|link| !boards().join(link).exists()).collect();
    assert_eq!(lost, <[&str; 0]>::default(), "boards/README.md");
}

#[test]
fn cross_knows_the_targets_of_the_boards_and_no_others() {
    let cross = toml_file(&project().join("cross.toml"));
    let known: BTreeSet<_> = cross["target"].as_table().unwrap().keys().cloned().collect();
    let used: BTreeSet<_> = names()
        .iter()
        .map(|name| toml_file(&boards().join(name).join("board.toml"))["target"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(known, used);
    // The keys that cross 0.2.5 reads; others it ignores with a warning that nobody sees.
    let top: BTreeSet<_> = cross.keys().map(String::as_str).collect();
    assert_eq!(top, BTreeSet::from(["build", "target"]));
    let env = cross["build"]["env"].as_table().unwrap();
    assert_eq!(env.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(["passthrough", "volumes"]));
    // A volume is mounted under its variable's value, but the variable is not set inside unless it is passed through.
    let list =
        |key: &str| env[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>();
    assert!(list("volumes").is_subset(&list("passthrough")), "{env}");
    for (target, keys) in cross["target"].as_table().unwrap() {
        let keys: Vec<_> = keys.as_table().unwrap().keys().map(String::as_str).collect();
        assert!(
            keys.iter().all(|key| ["image", "pre-build", "dockerfile", "runner", "env"].contains(key)),
            "{target}: {keys:?}"
        );
    }
}

/// The file of a folder that is changed, from, to; what the complaint has to say.
const BROKEN: &[(&str, &str, &str, &str)] = &[
    ("board.toml", "linker", "linkr", "unknown field `linkr`"),
    ("board.toml", "\"zig\"", "\"gold\"", "unknown variant `gold`"),
    ("board.toml", "\"armv7-", "\"armv9-", "not in deploy/targets"),
    ("board.toml", "\"armv7-", "\"armv9-", "not in cross.toml"),
    ("board.toml", "features = []", "features = [\"warp\"]", "no feature warp"),
    ("board.toml", "features = []", "features = [\"vendored\"]", "feature vendored"),
    ("board.toml", "features = []", "features = [\n]", "a key a line"),
    ("board.toml", "-Ctarget", "-Ztarget", "-C only"),
    ("board.toml", "\"deb\"", "\"ipk\"", "packages"),
    ("board.toml", "\"deb\"", "\"rpm\"", "unknown variant `rpm`"),
    ("board.toml", "memory_bytes = 536870912", "memory_bytes = 67108864", "more than a third"),
    ("board.toml", "memory_bytes = 536870912\n", "", "missing field `memory_bytes`"),
    ("board.toml", "flash_free_bytes = 500000000", "flash_free_bytes = 50000000", "left free, of 50000000"),
    ("board.toml", "flash_free_bytes = 500000000", "flash_free_bytes = 4000000000", "leaves all of it free"),
    ("backhaul.toml", "bytes_max = 67108864", "bytes_max = 671088640", "flash: "),
    ("backhaul.toml", "bytes_max", "byte_max", "unknown key"),
    ("backhaul.toml", "[outbox]", "[local]\nclients_max = 4096\n[outbox]", "more than a third"),
    ("README.md", "docs/install.md", "docs/installs.md", "leads nowhere"),
    ("README.md", "**Storage**", "**Disk**", "nothing about **Storage**"),
];

#[test]
fn a_folder_that_is_broken_is_refused() {
    for (file, from, to, says) in BROKEN {
        let folder = TempDir::new("broken-board");
        for name in FILES {
            let text = fs::read_to_string(boards().join("beaglebone-black").join(name)).unwrap();
            let text = if name == *file {
                assert!(text.contains(from), "beaglebone-black/{file} has {from}");
                text.replacen(from, to, 1)
            } else {
                text
            };
            fs::write(folder.join(name), text).unwrap();
        }
        let found = complaints(&folder, &boards());
        assert!(found.iter().any(|complaint| complaint.contains(says)), "{file}, {from} → {to}: {found:?}");
    }
    let folder = TempDir::new("broken-board");
    fs::write(folder.join("board.toml"), "").unwrap();
    assert!(complaints(&folder, &boards())[0].contains("README.md"));
}
