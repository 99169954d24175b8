//! The packages as `deploy/package` makes them of this build's agent: the same bytes twice, what is in them and whose it
//! is, and their life on a machine: installed, upgraded, removed, purged. Those of other architectures are made by hand
//! (`make packages`); they differ by the binary alone.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use support::{TempDir, not_run, program};

const BOARD: &str = "x86-64-generic";
/// 2026-01-01, as if the commit were of that day.
const EPOCH: &str = "1767225600";

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs it, and says what it said when it failed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{out}\n{err}");
    out.into_owned()
}

/// This build's agent without what a debugger needs.
fn agent() -> &'static Path {
    static AGENT: OnceLock<TempDir> = OnceLock::new();
    let folder = AGENT.get_or_init(|| {
        let folder = TempDir::new("package-agent");
        run(Command::new("strip").arg("-o").arg(folder.join("backhaul")).arg(program("backhaul")));
        folder
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| folder.join("backhaul"))
}

/// Makes a package into `dist` and says where it is.
fn package(kind: &str, board: &str, dist: &Path, environment: &[(&str, &str)]) -> PathBuf {
    let said = run(Command::new("sh")
        .args(["deploy/package", board, kind])
        .arg(agent())
        .current_dir(project())
        .env("DIST", dist)
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .envs(environment.iter().copied()));
    PathBuf::from(said.trim())
}

/// A .deb, an .ipk and a tarball of this build, made once for all tests.
struct Made {
    deb: PathBuf,
    ipk: PathBuf,
    tar: PathBuf,
    begun: SystemTime,
    _folder: TempDir,
}

fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = TempDir::new("packages");
        // File systems keep coarser times than the clock's.
        let begun = SystemTime::now() - Duration::from_secs(2);
        Made {
            deb: package("deb", BOARD, &folder, &[]),
            ipk: package("ipk", "openwrt-generic", &folder, &[]),
            tar: package("tar", BOARD, &folder, &[]),
            begun,
            _folder: folder,
        }
    })
}

/// Mode, owner, name of each entry of an archive.
fn listing(archive: &Path) -> Vec<(String, String, String)> {
    let text = run(Command::new("tar").arg("--numeric-owner").arg("-tvzf").arg(archive));
    let entry = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[0].to_owned(), words[1].to_owned(), words[5].trim_start_matches("./").to_owned())
    };
    text.lines().map(entry).collect()
}

fn unpack(archive: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(into));
}

#[test]
fn a_package_built_twice_has_the_same_bytes_and_the_time_of_today() {
    let first = made();
    let again = TempDir::new("packages-again");
    // Of another place, language and time zone, by another user's habits.
    let environment = [("TZ", "Asia/Tokyo"), ("LC_ALL", "C.UTF-8"), ("TMPDIR", again.to_str().unwrap())];
    for (kind, board, path) in
        [("deb", BOARD, &first.deb), ("ipk", "openwrt-generic", &first.ipk), ("tar", BOARD, &first.tar)]
    {
        let second = package(kind, board, &again, &environment);
        assert_eq!(second.file_name(), path.file_name());
        assert!(fs::read(&second).unwrap() == fs::read(path).unwrap(), "{kind}: {} differs", second.display());
        assert!(path.metadata().unwrap().modified().unwrap() >= first.begun, "{kind} is of today");
    }
}

#[test]
fn the_deb_belongs_to_root_and_names_its_configuration_and_what_it_needs() {
    let deb = &made().deb;
    let control = run(Command::new("dpkg-deb").arg("-f").arg(deb));
    let fields: BTreeMap<_, _> = control.lines().filter_map(|line| line.split_once(": ")).collect();
    assert_eq!(fields["Architecture"], "amd64");
    assert_eq!(fields["Version"], env!("CARGO_PKG_VERSION"));
    let needs: Vec<_> = fields["Depends"].split(", ").collect();
    assert!(needs.contains(&"passwd"), "{needs:?}");
    assert!(needs.iter().any(|need| need.starts_with("libc6 (>= 2.")), "{needs:?}");
    // A library that the loader wants and the package does not name stops the service on a machine that lacks it.
    let wants = run(Command::new("readelf").arg("-d").arg(agent()));
    assert_eq!(wants.contains("[libssl.so.3]"), needs.contains(&"libssl3 | libssl3t64"), "{needs:?}\n{wants}");

    let folder = TempDir::new("deb");
    run(Command::new("dpkg-deb").arg("-e").arg(deb).arg(folder.join("control")));
    let conffiles = fs::read_to_string(folder.join("control/conffiles")).unwrap();
    let expected = ["/etc/backhaul/backhaul.toml", "/etc/backhaul/conf.d/10-board.toml", "/etc/init.d/backhaul"];
    assert_eq!(conffiles.lines().collect::<Vec<_>>(), expected);
    let contents = run(Command::new("dpkg-deb").arg("-c").arg(deb));
    for line in contents.lines() {
        assert!(line.contains(" root/root "), "{line}");
        assert!(!line[..10].contains('s') && &line[8..9] != "w", "{line}");
        assert!(
            line.contains("2026-01-01") || line.contains("2025-12-31"),
            "the commit's time, not the build's: {line}"
        );
    }
    for file in ["usr/bin/backhaul", "usr/lib/systemd/system/backhaul.service", "etc/init.d/backhaul"] {
        assert!(contents.lines().any(|line| line.ends_with(&format!(" ./{file}"))), "{file}\n{contents}");
    }
}

#[test]
fn the_deb_keeps_outbox_and_configuration_until_it_is_purged() {
    if !rustix::process::geteuid().is_root() {
        return not_run("the life of the .deb", "a root of its own takes rights to mount");
    }
    let folder = TempDir::new("deb-life");
    let next = package("deb", BOARD, &folder, &[("VERSION", "99.0.0")]);
    fs::create_dir_all(folder.join("place")).unwrap();
    let life = Command::new("unshare")
        .args(["--mount", "sh", "tests/packages/root"])
        .arg(folder.join("place"))
        .arg("tests/packages/life.sh")
        .args([&made().deb, &next])
        .current_dir(project())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&life.stdout);
    let steps: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("ok: ")).collect();
    let errors = String::from_utf8_lossy(&life.stderr);
    assert_eq!(steps, ["installed", "upgraded", "downgraded", "removed", "purged"], "{said}\n{errors}");
    assert!(life.status.success(), "{said}\n{errors}");
}

#[test]
fn the_ipk_is_laid_out_as_opkg_reads_it() {
    let names: Vec<_> = listing(&made().ipk).into_iter().map(|(_, _, name)| name).collect();
    assert_eq!(names, ["", "control.tar.gz", "data.tar.gz", "debian-binary"]);
    let folder = TempDir::new("ipk");
    unpack(&made().ipk, &folder);
    assert_eq!(fs::read_to_string(folder.join("debian-binary")).unwrap(), "2.0\n");
    unpack(&folder.join("control.tar.gz"), &folder.join("control"));
    let control = fs::read_to_string(folder.join("control/control")).unwrap();
    for field in ["Package: backhaul", "Architecture: aarch64_generic", "Require-User: backhaul:backhaul"] {
        assert!(control.lines().any(|line| line == field), "{field}\n{control}");
    }
    let conffiles = fs::read_to_string(folder.join("control/conffiles")).unwrap();
    let expected = ["/etc/backhaul/backhaul.toml", "/etc/backhaul/conf.d/10-board.toml"];
    assert_eq!(conffiles.lines().collect::<Vec<_>>(), expected);
    for script in ["postinst", "prerm"] {
        assert_eq!(
            folder.join("control").join(script).metadata().unwrap().permissions().mode() & 0o111,
            0o111,
            "{script}"
        );
    }
    let data = listing(&folder.join("data.tar.gz"));
    assert!(data.iter().all(|(_, owner, _)| owner == "0/0"), "{data:?}");
    let mode = |name: &str| data.iter().find(|entry| entry.2 == name).map(|entry| entry.0.as_str());
    assert_eq!(mode("usr/bin/backhaul"), Some("-rwxr-xr-x"));
    assert_eq!(mode("etc/init.d/backhaul"), Some("-rwxr-xr-x"));
    assert_eq!(mode("lib/upgrade/keep.d/backhaul"), Some("-rw-r--r--"));
    // procd's own start line: anything else is not a service there.
    unpack(&folder.join("data.tar.gz"), &folder.join("data"));
    let service = fs::read_to_string(folder.join("data/etc/init.d/backhaul")).unwrap();
    assert!(service.starts_with("#!/bin/sh /etc/rc.common\n"), "{service}");
}

/// The regular files below a folder.
fn files(root: &Path) -> BTreeSet<String> {
    let text = run(Command::new("find").arg(root).args(["-type", "f", "-printf", "%P\\n"]));
    text.lines().map(str::to_owned).collect()
}

/// The init system, and where its service goes.
const SERVICES: &[(&str, &[&str])] = &[
    ("systemd", &["usr/lib/systemd/system/backhaul.service", "usr/lib/sysusers.d/backhaul.conf"]),
    ("sysv", &["etc/init.d/backhaul"]),
    ("busybox", &["etc/init.d/S50backhaul"]),
    ("openrc", &["etc/init.d/backhaul"]),
    ("runit", &["etc/sv/backhaul/run", "etc/sv/backhaul/finish"]),
    ("procd", &["etc/init.d/backhaul"]),
    ("none", &[]),
];

#[test]
fn the_tarball_installs_for_each_init_system_and_goes_without_a_trace_but_outbox_and_configuration() {
    let folder = TempDir::new("tarball");
    assert!(listing(&made().tar).iter().all(|(_, owner, _)| owner == "0/0"));
    unpack(&made().tar, &folder);
    let source = folder.join(format!("backhaul-{}-{BOARD}", env!("CARGO_PKG_VERSION")));
    let install = |root: &Path, arguments: &[&str]| {
        run(Command::new("sh").arg(source.join("install.sh")).args(arguments).env("DESTDIR", root))
    };
    for (init, services) in SERVICES {
        let root = folder.join(init);
        let flag = format!("--init={init}");
        install(&root, &[&flag]);
        for file in *services {
            let mode = root.join(file).metadata().unwrap_or_else(|error| panic!("{init}: {file}: {error}")).mode();
            assert_eq!(mode & 0o111 != 0, !file.starts_with("usr/lib"), "{init}: {file}");
        }
        assert_eq!(root.join("usr/bin/backhaul").metadata().unwrap().mode() & 0o7777, 0o755);
        assert_eq!(root.join("var/lib/backhaul").metadata().unwrap().mode() & 0o7777, 0o750);
        let changed = root.join("etc/backhaul/backhaul.toml");
        fs::write(&changed, "# a person was here\n").unwrap();
        fs::write(root.join("var/lib/backhaul/record"), "").unwrap();
        let said = install(&root, &[&flag]);
        assert_eq!(fs::read_to_string(&changed).unwrap(), "# a person was here\n", "{init}: kept over an upgrade");
        assert!(said.contains("backhaul.toml.dist"), "{init}: says where the new one is: {said}");

        install(&root, &["--uninstall", &flag]);
        let left: Vec<_> = files(&root).into_iter().collect();
        let conf =
            ["backhaul.toml", "backhaul.toml.dist", "conf.d/10-board.toml"].map(|file| format!("etc/backhaul/{file}"));
        assert!(left.iter().eq(conf.iter().chain([&"var/lib/backhaul/record".to_owned()])), "{init}: {left:?}");
        install(&root, &["--uninstall", "--purge", &flag]);
        assert_eq!(files(&root), BTreeSet::new(), "{init}");
    }
}

#[test]
fn the_tarball_finds_the_init_system_and_refuses_one_that_it_does_not_know() {
    let folder = TempDir::new("which-init");
    unpack(&made().tar, &folder);
    let script = folder.join(format!("backhaul-{}-{BOARD}/install.sh", env!("CARGO_PKG_VERSION")));
    // What each leaves on a disk.
    let signs = [
        ("systemd", "run/systemd/system"),
        ("procd", "sbin/procd"),
        ("openrc", "sbin/openrc-run"),
        ("runit", "etc/runit"),
        ("sysv", "etc/rc2.d"),
        ("busybox", "etc/init.d"),
        ("none", "home"),
    ];
    for (init, sign) in signs {
        let root = folder.join(init);
        fs::create_dir_all(root.join(sign)).unwrap();
        let said = run(Command::new("sh").arg(&script).env("DESTDIR", &root));
        assert!(said.contains(&format!("installed for {init};")), "{init}: {said}");
    }
    let root = folder.join("unknown");
    let refused = Command::new("sh").arg(&script).arg("--init=launchd").env("DESTDIR", &root).output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
    assert!(!root.exists(), "nothing is installed");
}

#[test]
fn the_papers_name_each_crate_of_the_program_with_its_licence_and_its_checksum() {
    let folder = TempDir::new("papers");
    run(Command::new("dpkg-deb").arg("-x").arg(&made().deb).arg(&*folder));
    let papers = folder.join("usr/share/doc/backhaul");
    let sbom: Value = serde_json::from_slice(&fs::read(papers.join("sbom.cdx.json")).unwrap()).unwrap();
    assert_eq!(sbom["bomFormat"], "CycloneDX");
    let licences = run(Command::new("gzip").arg("-dc").arg(papers.join("licences.gz")));
    let components: BTreeMap<_, _> = sbom["components"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (format!("{} {}", part["name"].as_str().unwrap(), part["version"].as_str().unwrap()), part))
        .collect();

    // Beside what the script asked, what every build of the agent has, and no build that is only for tests or the receiver.
    let linked = run(Command::new(env!("CARGO"))
        .current_dir(project())
        .args(["tree", "--locked", "--features", "plan"])
        .args([
            "--no-default-features",
            "--target",
            "x86_64-unknown-linux-gnu",
            "--edges",
            "normal,no-proc-macro",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]));
    let linked: BTreeSet<_> = linked
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| format!("{name} {}", rest.split(' ').next().unwrap()))
        .filter(|title| !title.starts_with("backhaul "))
        .collect();
    assert!(linked.len() > 30, "{linked:?}");
    let lock: toml::Table = fs::read_to_string(project().join("Cargo.lock")).unwrap().parse().unwrap();
    let locked: BTreeMap<_, _> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| {
            let title = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
            Some((title, package.get("checksum")?.as_str()?))
        })
        .collect();
    for title in &linked {
        let part = components.get(title).unwrap_or_else(|| panic!("{title} is in the program and not in the SBOM"));
        let licence = part["licenses"][0]["expression"].as_str().unwrap();
        assert!(!licence.is_empty() && licence != "see its text", "{title}: {licence}");
        assert_eq!(part["hashes"][0]["content"], locked[title], "{title}");
        assert!(licences.contains(&format!("{title}: {licence}\n")), "{title} in licences.gz");
    }
    for wanted in ["tungstenite", "mio", "native-tls", "postcard"] {
        assert!(linked.iter().any(|title| title.starts_with(&format!("{wanted} "))), "{wanted}");
    }
    for absent in ["rusqlite", "libsqlite3-sys", "fuser", "arbitrary", "cc"] {
        assert!(
            !components.keys().any(|title| title.starts_with(&format!("{absent} "))),
            "{absent} is not in the agent"
        );
    }
    // The texts, not only the names.
    assert!(licences.contains("Permission is hereby granted") && licences.contains("Apache License"));
    assert!(components.keys().any(|title| title.starts_with("rust-std ")));
}
