//! Upgrade and downgrade with a full outbox: there and back with every record, or refused with not a byte changed.
//! `make upgrade OLD=<git revision>` names another program in `OLD_AGENT`; without it this one is both.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use backhaul::config::Config;
use backhaul::outbox::format::{PAGE_BYTES, PAYLOAD_BYTES, Place, VERSION, clear_page};
use support::agent::{self, Agent};
use support::producer::{Handed, Producer};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, free_port, program, wait_for};

/// By exit codes of sysexits(3).
const DATA: i32 = 65;
const CONFIG: i32 = 78;

/// Runs the old program, where there is one, in the place of this one.
fn run_old(agent: &mut Agent, old: bool) {
    let through = match std::env::var("OLD_AGENT").ok().filter(|_| old) {
        // The program of today is $1 then.
        Some(old) => ["sh", "-c", "shift; exec \"$0\" \"$@\"", &old].map(str::to_owned).to_vec(),
        None => Vec::new(),
    };
    agent.run_through(&through);
}

fn stop(agent: &mut Agent) {
    assert!(agent.term(DEADLINE).expect("it leaves").success());
}

#[test]
fn an_outbox_goes_there_and_back_with_every_record() {
    let records: usize = std::env::var("RECORDS").map_or(600, |text| text.parse().unwrap());
    let dir = TempDir::new("upgrade");
    let mut receiver = Receiver::new(&dir);
    let config = agent::quick(&dir, "");
    let mut agent = Agent::new(&dir, &config);
    // Only what every version knows. A few records to a message, so that the drain can be cut in its middle.
    let text = format!(
        "[device]\nid = \"rig\"\n[upstream]\nwindow_records = 64\n[[upstream.endpoint]]\nurl = \"ws://{}/\"\n\
         [upstream.reconnect]\nstart_delay_ms_max = 0\nspread_ms = 100\nbackoff_ms_min = 100\nbackoff_ms_max = 300\n\
         [outbox]\ndir = {:?}\nsegment_bytes = 65536\n[local]\nsocket = {:?}\nrecord_bytes_max = 16384\n",
        receiver.address(),
        config.outbox.dir,
        config.local.socket
    );
    fs::write(dir.join("backhaul.toml"), text).unwrap();
    let mut producer = Producer::new(agent.socket(), None);
    for (round, old) in [true, false, true, false].into_iter().enumerate() {
        run_old(&mut agent, old);
        agent.start();
        agent.wait_listening();
        let part = records / 4;
        for first in (0..part).step_by(64) {
            let batch = (first..part.min(first + 64)).map(|n| ("t".into(), format!("{round}-{n}").into_bytes()));
            assert_eq!(producer.put_all(batch.collect()), Handed::Answered);
        }
        assert_eq!(agent::depth(&agent.status().unwrap()), (part * (round + 1)) as u64, "all that waited is there");
        stop(&mut agent);
    }
    let promised: BTreeSet<Vec<u8>> = producer.committed.iter().map(|record| record.body.clone()).collect();
    assert_eq!(promised.len(), records / 4 * 4);

    // The old one drains some of it and dies in the midst of it, the new one drains the rest, and the old one finds
    // nothing left to send.
    run_old(&mut agent, true);
    agent.start();
    receiver.start();
    wait_for(DEADLINE, "a part is stored", || (receiver.count() >= 64).then_some(()));
    agent.kill9();
    for old in [false, true] {
        run_old(&mut agent, old);
        agent.start();
        agent.wait_drained();
        stop(&mut agent);
    }
    let stored = receiver.records();
    let mut names = BTreeMap::new();
    for record in &stored {
        assert!(names.insert((record.epoch, record.seq), &record.body).is_none());
    }
    let bodies: BTreeSet<Vec<u8>> = stored.iter().map(|record| record.body.clone()).collect();
    assert_eq!((stored.len(), &bodies), (promised.len(), &promised), "each once, none lost");
    assert_eq!(receiver.gaps(), [], "and none given up");
    eprintln!("UPGRADE {} records there and back, stored once each", stored.len());
}

/// Every file below the folder, to the byte.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            let below = content(&entry.path());
            files.extend(below.into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

fn outbox_with_records(dir: &Path, config: &Config, records: usize) -> Agent {
    let mut agent = Agent::new(dir, config);
    agent.start();
    agent.wait_listening();
    let mut producer = Producer::new(agent.socket(), None);
    for n in 0..records {
        assert_eq!(producer.put("t", format!("record {n}")), Handed::Answered);
    }
    stop(&mut agent);
    agent
}

/// Makes the first page of the first segment one that another version began. `whole`: with a tag that says it is so.
fn set_version(outbox: &Path, version: u8, whole: bool) {
    let path = outbox.join("telemetry.0000.seg");
    let mut bytes = fs::read(&path).unwrap();
    let page: &mut [u8; PAGE_BYTES] = (&mut bytes[..PAGE_BYTES]).try_into().unwrap();
    assert_eq!((&page[..4], page[4]), (&b"BHOB"[..], VERSION));
    page[4] = version;
    if whole {
        clear_page(page, Place { segment: 0, page: 0 }, PAYLOAD_BYTES);
    }
    fs::write(&path, bytes).unwrap();
}

#[test]
fn a_format_from_the_future_is_refused_and_not_a_byte_changes() {
    let dir = TempDir::new("future");
    let config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    let mut agent = outbox_with_records(&dir, &config, 20);
    set_version(&config.outbox.dir, VERSION + 1, true);
    let before = content(&config.outbox.dir);
    agent.start();
    let code = wait_for(DEADLINE, "the agent leaves", || agent.exit_code());
    assert_eq!(code, DATA, "{}", agent.log());
    let said = agent.log();
    let line = said.lines().find(|line| line.contains("newer backhaul")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(&format!("format {}", VERSION + 1)) && line.contains("start the newer one again"), "{line}");
    assert_eq!(content(&config.outbox.dir), before);
    for action in [&["verify"][..], &["list"], &["export"], &["wipe", "--yes"]] {
        let mut command = Command::new(program("backhaul"));
        let out = command.arg("outbox").args(action).arg(&config.outbox.dir).output().unwrap();
        assert_eq!(out.status.code(), Some(DATA), "{action:?} {}", String::from_utf8_lossy(&out.stderr));
        assert!(String::from_utf8_lossy(&out.stderr).contains("newer backhaul"), "{action:?}");
    }
    assert_eq!(content(&config.outbox.dir), before);
}

#[test]
fn damage_that_looks_like_another_version_keeps_no_agent_from_starting() {
    let dir = TempDir::new("damage");
    let config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    let mut agent = outbox_with_records(&dir, &config, 20);
    set_version(&config.outbox.dir, VERSION + 1, false);
    agent.start();
    agent.wait_listening();
    stop(&mut agent);
}

#[test]
fn a_reload_that_names_an_outbox_of_the_future_leaves_the_agent_where_it_is() {
    let dir = TempDir::new("future-reload");
    let mut config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    outbox_with_records(&dir, &config, 1);
    set_version(&config.outbox.dir, VERSION + 1, true);
    let future = std::mem::replace(&mut config.outbox.dir, dir.join("another"));
    let before = content(&future);
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    agent.wait_listening();
    config.outbox.dir.clone_from(&future);
    agent.configure(&config);
    agent.hup();
    wait_for(DEADLINE, "the reload is refused", || {
        agent.log().contains("refused: the outbox was written").then_some(())
    });
    agent.wait_listening();
    stop(&mut agent);
    assert_eq!(content(&future), before);
}

#[test]
fn a_key_that_only_a_newer_version_knows_is_refused_by_line_before_anything_is_touched() {
    let dir = TempDir::new("newer-key");
    let config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    let mut agent = outbox_with_records(&dir, &config, 5);
    let before = content(&config.outbox.dir);
    fs::create_dir(dir.join("conf.d")).unwrap();
    fs::write(dir.join("conf.d/50-newer.toml"), "[outbox]\ncompression = \"zstd\"\n").unwrap();
    agent.start();
    assert_eq!(wait_for(DEADLINE, "the agent leaves", || agent.exit_code()), CONFIG);
    assert!(agent.log().contains("50-newer.toml:2: "), "{}", agent.log());
    assert_eq!(content(&config.outbox.dir), before);
    fs::remove_file(dir.join("conf.d/50-newer.toml")).unwrap();
    // The way out is the configuration alone.
    let mut again = Agent::new(&dir, &config);
    again.start();
    again.wait_status("what waited is there", |status| agent::depth(status) == 5);
    assert!(again.term(Duration::from_secs(60)).is_some());
}
