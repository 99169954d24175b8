//! `backhaul outbox` on what a real agent left behind: whole, damaged, copied, read-only, and on what is no outbox.
//! Counts are compared with the books of the producer that handed the records in.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use backhaul::outbox::format::PAGE_BYTES;
use serde_json::{Value, json};
use support::agent::{self, Agent};
use support::fault_server::{Fault, FaultServer};
use support::producer::{Committed, PIPELINE_MAX, Producer};
use support::{TempDir, free_port, not_run, program};

const DATA: i32 = 65;
const NO_INPUT: i32 = 66;
const TRY_AGAIN: i32 = 75;

/// What an agent left that was killed with records held, and what their producer was told.
struct Left {
    dir: TempDir,
    agent: Agent,
    committed: Vec<Committed>,
}

impl Left {
    fn outbox(&self) -> PathBuf {
        self.dir.join("outbox")
    }

    /// A copy to be damaged.
    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.dir.join(name);
        fs::create_dir(&copy).unwrap();
        for (file, bytes) in files(&self.outbox()) {
            fs::write(copy.join(file), bytes).unwrap();
        }
        copy
    }
}

/// An agent whose upstream is away takes records of all kinds in two lanes, and is killed.
fn killed_agent(name: &str, batches: usize) -> Left {
    let dir = TempDir::new(name);
    let mut config = agent::quick(&dir, &format!("ws://127.0.0.1:{}/", free_port()));
    config.lanes.push(agent::lane("alarm"));
    let mut agent = Agent::new(&dir, &config);
    agent.start();
    agent.wait_listening();
    let mut committed = Vec::new();
    for lane in ["telemetry", "alarm"] {
        let mut producer = Producer::new(agent.socket(), Some(lane));
        for batch in 0..batches {
            let record = |n: usize| (format!("t/{}", n % 3), body(lane, batch * PIPELINE_MAX + n));
            producer.put_all((0..PIPELINE_MAX).map(record).collect());
        }
        assert_eq!(producer.committed.len(), batches * PIPELINE_MAX);
        committed.append(&mut producer.committed);
    }
    agent.kill9();
    Left { dir, agent, committed }
}

/// Text with what JSON has to escape, or any bytes; some larger than a page. None twice.
fn body(lane: &str, n: usize) -> Vec<u8> {
    match n % 4 {
        0 => format!("{lane} {n} \"quoted\"\t\u{e9}\u{1F600}\\").into_bytes(),
        1 => [format!("{lane} {n} ").as_bytes(), &[0, 255, 10, 13]].concat(),
        2 => format!("{lane} {n} {}", "x".repeat(n % 7 * 900)).into_bytes(),
        _ => format!("{lane} {n}").into_bytes(),
    }
}

fn outbox(args: &[&str], dir: &Path) -> Output {
    Command::new(program("backhaul")).arg("outbox").args(args).arg(dir).stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn verify(dir: &Path) -> (i32, Value) {
    let output = outbox(&["verify", "--json"], dir);
    (code(&output), serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}")))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value:#}"))
}

/// The outbox's own files, without the folder in which the agent keeps what is not a record.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn segments(dir: &Path, lane: &str) -> Vec<PathBuf> {
    let names = files(dir).into_keys().filter(|name| name.starts_with(&format!("{lane}.")));
    names.map(|name| dir.join(name)).collect()
}

fn damage(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// The exported records by name, and what the gaps say is lost.
type Exported = (BTreeMap<(String, u64, u64), Vec<u8>>, u64);

fn export(output: &Output) -> Exported {
    let mut records = BTreeMap::new();
    let mut lost = 0;
    let mut last: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for line in text(&output.stdout).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let (lane, epoch) = (line["lane"].as_str().unwrap().to_owned(), number(&line, "epoch"));
        let (from, to) = match line.get("gap") {
            Some(gap) => {
                lost += number(gap, "count");
                (number(gap, "from"), number(gap, "to"))
            }
            None => {
                let seq = number(&line, "seq");
                let body = match (line.get("text"), line.get("base64")) {
                    (Some(text), None) => text.as_str().unwrap().as_bytes().to_vec(),
                    (None, Some(base64)) => data_encoding::BASE64.decode(base64.as_str().unwrap().as_bytes()).unwrap(),
                    other => panic!("{other:?}"),
                };
                assert!(line["topic"].as_str().unwrap().starts_with("t/") && line["at"].is_u64());
                assert_eq!(records.insert((lane.clone(), epoch, seq), body), None, "no name twice");
                (seq, seq)
            }
        };
        let next = last.insert((lane, epoch), to).map_or(from, |last| last + 1);
        assert_eq!(from, next, "what is missing is a gap");
    }
    (records, lost)
}

/// What the producer was told, by name.
fn promised(left: &Left) -> BTreeMap<(String, u64, u64), Vec<u8>> {
    let named = |record: &Committed| ((record.lane.clone(), record.epoch, record.seq), record.body.clone());
    left.committed.iter().map(named).collect()
}

#[test]
fn a_killed_agents_records_are_listed_verified_and_exported_to_the_byte() {
    let left = killed_agent("outbox-left", 4);
    let before = files(&left.outbox());
    let (status, json) = verify(&left.outbox());
    assert_eq!(status, 0, "{json:#}");
    assert_eq!(number(&json, "records"), left.committed.len() as u64);
    assert_eq!((number(&json, "acked"), number(&json, "lost_promised"), number(&json, "lost_torn")), (0, 0, 0));
    assert_eq!(number(&json, "segments"), before.keys().filter(|name| name.ends_with(".seg")).count() as u64);

    let listed = outbox(&["list"], &left.outbox());
    let screen = text(&listed.stdout);
    assert_eq!(code(&listed), 0);
    assert!(screen.contains(", of rig") && screen.contains("512 records waiting in 2 lanes"), "{screen}");
    assert!(screen.lines().count() < 24 && screen.lines().all(|line| line.chars().count() <= 100), "{screen}");
    let listed: Value = serde_json::from_slice(&outbox(&["list", "--json"], &left.outbox()).stdout).unwrap();
    for lane in listed["lanes"].as_array().unwrap() {
        assert_eq!((number(lane, "records"), lane["epochs"].as_array().unwrap().len()), (256, 1), "{lane:#}");
        assert!(number(lane, "oldest_at") <= number(lane, "newest_at") && number(lane, "oldest_at") > 0);
    }

    let output = outbox(&["export"], &left.outbox());
    assert_eq!((code(&output), text(&output.stderr)), (0, "backhaul: 512 records exported\n".into()));
    assert_eq!(export(&output), (promised(&left), 0));
    let one = export(&outbox(&["export", "-l", "alarm"], &left.outbox())).0;
    assert!(one.len() == 256 && one.keys().all(|(lane, ..)| lane == "alarm"));
    assert_eq!(code(&outbox(&["export", "-l", "nosuch"], &left.outbox())), NO_INPUT);

    assert!(files(&left.outbox()) == before, "not a byte was changed");
}

#[test]
fn damage_is_counted_to_the_record_in_verify_and_export_alike() {
    let left = killed_agent("outbox-damage", 4);
    let promised = promised(&left);
    let check = |copy: &Path, what: &str, bounded: bool| {
        let before = files(copy);
        let (status, json) = verify(copy);
        let output = outbox(&["export"], copy);
        let (records, lost) = export(&output);
        assert_eq!((status, code(&output)), (DATA, DATA), "{what}: {json:#}");
        assert_eq!(number(&json, "records"), records.len() as u64, "{what}");
        assert_eq!(number(&json, "lost_promised"), lost, "{what}");
        assert!(records.iter().all(|(name, body)| promised.get(name) == Some(body)), "{what}: nothing is invented");
        let missing = (promised.len() - records.len()) as u64;
        assert!(missing > 0, "{what}: the damage is where records are");
        if bounded {
            assert_eq!(lost, missing, "{what}: {json:#}");
        } else {
            assert!(lost <= missing && (lost == missing || number(&json, "lost_unknown") > 0), "{what}: {json:#}");
        }
        assert!(files(copy) == before, "{what}: not a byte was changed");
        json
    };
    // A bit of a record costs the record. There are later batches: the producer waited for these before it went on.
    for n in [4, 100, 188] {
        let copy = left.copy(&format!("bit-{n}"));
        let wanted = format!("telemetry {n} \"quoted\"").into_bytes();
        let found = segments(&copy, "telemetry").into_iter().find_map(|file| {
            let bytes = fs::read(&file).unwrap();
            let at = bytes.windows(wanted.len()).position(|window| window == wanted)?;
            Some((file, at))
        });
        // It may lie across two pages.
        let Some((file, at)) = found else { continue };
        damage(&file, |bytes| bytes[at] ^= 4);
        let json = check(&copy, &format!("a bit of record {n}"), true);
        assert_eq!(
            (number(&json, "lost_promised"), json["pages_damaged"].as_array().unwrap().len()),
            (1, 1),
            "{json:#}"
        );
    }
    // A bit of a header costs its batch.
    let copy = left.copy("header");
    let mut count = 0;
    damage(&segments(&copy, "telemetry")[0], |bytes| {
        let count_of = |page: &[u8]| u64::from(u32::from_le_bytes(page[12..16].try_into().unwrap()));
        let is_batch = |page: &&mut [u8]| page[..4] == *b"BHOB" && count_of(page) > 0;
        let first = bytes.chunks_exact_mut(PAGE_BYTES).find(is_batch).expect("there are records");
        count = count_of(first);
        first[60] ^= 1;
    });
    assert_eq!(number(&check(&copy, "a bit of a header", true), "lost_promised"), count);
    let copy = left.copy("zeroed");
    damage(&segments(&copy, "telemetry")[0], |bytes| bytes.fill(0));
    check(&copy, "a zeroed segment", true);
    let copy = left.copy("removed");
    fs::remove_file(&segments(&copy, "alarm")[0]).unwrap();
    check(&copy, "a segment that is gone", true);
    let copy = left.copy("cut-short");
    damage(&segments(&copy, "telemetry")[0], |bytes| bytes.truncate(3 * PAGE_BYTES + 77));
    check(&copy, "a truncated segment", true);
    let copy = left.copy("garbage");
    damage(&segments(&copy, "alarm")[1], |bytes| fastrand::Rng::with_seed(1).fill(bytes));
    check(&copy, "a segment of garbage", false);
    // All of a lane: its numbers are gone, the other lane is whole.
    let copy = left.copy("lane");
    for file in segments(&copy, "alarm") {
        damage(&file, |bytes| fastrand::Rng::with_seed(2).fill(bytes));
    }
    let (status, json) = verify(&copy);
    assert_eq!((status, number(&json, "records")), (DATA, 256), "{json:#}");
    assert_eq!(json["lost_lanes"], serde_json::json!(["alarm"]));
    assert!(text(&outbox(&["list"], &copy).stdout).contains("LOST: not one header is intact"));
}

#[test]
fn what_is_no_outbox_is_told_and_never_a_panic() {
    let dir = TempDir::new("outbox-none");
    for command in ["list", "verify", "export", "wipe"] {
        let missing = outbox(&[command], &dir.join("nosuch"));
        assert_eq!(code(&missing), NO_INPUT, "{missing:?}");
        assert_eq!(text(&missing.stderr).lines().count(), 1);
        assert_eq!(code(&outbox(&[command], &dir)), 0, "{command}: an empty folder holds nothing");
    }
    assert!(fs::read_dir(&*dir).unwrap().next().is_none(), "nothing was made there");
    fs::write(dir.join("file"), "x").unwrap();
    assert_eq!(code(&outbox(&["list"], &dir.join("file"))), NO_INPUT);

    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in one.map_or(0..20, |seed: u64| seed..seed + 1) {
        let replay = format!("SEED={seed} cargo test --test outbox_cli what_is_no_outbox");
        let mut rng = fastrand::Rng::with_seed(seed);
        let random = dir.join(format!("random-{seed}"));
        fs::create_dir(&random).unwrap();
        for name in ["telemetry.0000.seg", "telemetry.0001.seg", "a.0007.seg", "a.seg", "lock", "b.99999.seg"] {
            let mut bytes = vec![0; rng.usize(..100_000)];
            rng.fill(&mut bytes);
            fs::write(random.join(name), bytes).unwrap();
        }
        let before = files(&random);
        assert_eq!(code(&outbox(&["list"], &random)), 0, "{replay}");
        let (status, json) = verify(&random);
        assert_eq!((status, number(&json, "records")), (DATA, 0), "{replay}: {json:#}");
        assert_eq!(export(&outbox(&["export"], &random)).0.len(), 0, "{replay}");
        assert!(files(&random) == before, "{replay}: not a byte was changed");
        assert_eq!(code(&outbox(&["wipe", "--yes"], &random)), 0, "{replay}");
        assert_eq!(verify(&random).0, 0, "{replay}");
    }
}

/// As a user who may write nothing; false: this machine cannot.
fn as_nobody(args: &[&str], dir: &Path) -> Option<Output> {
    let exe = program("backhaul");
    // The build folder may be closed to others.
    let open = TempDir::new("outbox-exe");
    let copy = open.join("backhaul");
    // By a process of its own: what another thread starts meanwhile would hold our copy open for writing, and a program
    // that is being written cannot be started.
    assert!(Command::new("cp").args([&exe, &copy]).status().unwrap().success());
    for path in [&*open, &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&copy);
    let probe = Command::new("setpriv").args(["--reuid", "65534", "--clear-groups", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return None;
    }
    Some(command.arg("outbox").args(args).arg(dir).stdin(Stdio::null()).output().unwrap())
}

#[test]
fn a_folder_without_permission_to_write_is_read_and_not_wiped() {
    let left = killed_agent("outbox-ro", 2);
    let copy = left.copy("ro");
    for name in files(&copy).keys() {
        fs::set_permissions(copy.join(name), fs::Permissions::from_mode(0o444)).unwrap();
    }
    for path in [&*left.dir, &copy] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let restore = || {
        for path in [&*left.dir, &copy] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    };
    let before = files(&copy);
    let Some(output) = as_nobody(&["verify", "--json"], &copy) else {
        not_run(
            "a_folder_without_permission_to_write_is_read_and_not_wiped",
            "it takes the right to become another user",
        );
        restore();
        return;
    };
    let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((code(&output), number(&json, "records")), (0, left.committed.len() as u64), "{json:#}");
    let output = as_nobody(&["export"], &copy).unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert!(export(&output) == (promised(&left), 0), "other records than were promised");
    assert_eq!(code(&as_nobody(&["wipe", "--yes"], &copy).unwrap()), 77);
    // What may not even be read is no damage.
    fs::set_permissions(segments(&copy, "alarm")[0].as_path(), fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(code(&as_nobody(&["verify"], &copy).unwrap()), 77);
    assert!(files(&copy) == before);
    restore();
}

#[test]
fn a_running_agent_is_seen_and_never_wiped_and_wiping_begins_new_epochs() {
    let mut left = killed_agent("outbox-wipe", 2);
    left.agent.start();
    left.agent.wait_listening();
    let dir = left.outbox();
    let listed = outbox(&["list"], &dir);
    assert_eq!(code(&listed), 0);
    assert!(text(&listed.stderr).contains("an agent runs on"), "{listed:?}");
    let wiped = outbox(&["wipe", "--yes"], &dir);
    assert_eq!((code(&wiped), text(&wiped.stderr).contains("an agent runs here")), (TRY_AGAIN, true), "{wiped:?}");
    left.agent.kill9();

    let asked = outbox(&["wipe"], &dir);
    assert_eq!(code(&asked), 64, "nobody to ask: {asked:?}");
    assert_eq!(number(&verify(&dir).1, "records"), left.committed.len() as u64);
    let wiped = outbox(&["wipe", "--yes"], &dir);
    assert_eq!(code(&wiped), 0, "{wiped:?}");
    assert!(text(&wiped.stdout).starts_with("removed 256 waiting records in 2 lanes"), "{wiped:?}");
    assert_eq!(files(&dir).into_keys().collect::<Vec<_>>(), ["lock"]);
    assert_eq!(verify(&dir).0, 0);

    left.agent.start();
    left.agent.wait_listening();
    let mut producer = Producer::new(left.agent.socket(), Some("alarm"));
    producer.put("t/0", "new");
    left.agent.kill9();
    let new = &producer.committed[0];
    assert!(left.committed.iter().all(|old| old.epoch != new.epoch), "a new epoch: {new:?}");
    let (records, _) = export(&outbox(&["export"], &dir));
    assert_eq!(records, BTreeMap::from([(("alarm".into(), new.epoch, new.seq), b"new".to_vec())]));
}

/// One put, and the name that it got.
fn put(agent: &Agent, put: Value) -> (u64, u64) {
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    stream.write_all(format!("{}\n", json!({ "put": put })).as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    (number(&answer["committed"], "epoch"), number(&answer["committed"], "seq"))
}

/// What `export` says of a lane, a line each.
fn lines(lane: &str, dir: &Path) -> Vec<Value> {
    let output = outbox(&["export", "--lane", lane], dir);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn dead_letters_are_shown_exported_and_wiped_as_such() {
    let dir = TempDir::new("outbox-dead");
    let server = FaultServer::new();
    server.set(Fault::Rejects("bad"));
    let mut agent = Agent::new(&dir, &agent::quick(&dir, &server.url()));
    agent.start();
    agent.wait_listening();
    let names: Vec<_> = (0..9)
        .map(|n| {
            let word = if n % 3 == 0 { "bad" } else { "good" };
            put(&agent, json!({ "topic": "t", "text": format!("{word} {n}"), "key": format!("k {n}"), "ttl_s": 3600 }))
        })
        .collect();
    let depth = |status: &Value| {
        let lanes = status["lanes"].as_array().unwrap().iter();
        lanes.filter(|lane| lane["name"] == "dead").map(|lane| number(lane, "depth")).sum::<u64>()
    };
    agent.wait_status("three letters", |status| depth(status) == 3 && status["lanes"][0]["depth"] == 0);
    agent.kill9();
    let dir = dir.join("outbox");
    let before = files(&dir);

    let listed = text(&outbox(&["list"], &dir).stdout);
    assert!(listed.contains("3 dead letters in lane dead: refused, never sent"), "{listed}");
    assert!(listed.contains("waiting in 1 lane\n"), "{listed}");
    let (status, json) = verify(&dir);
    assert_eq!((status, number(&json, "dead_letters"), number(&json, "dead_letters_lost")), (0, 3, 0), "{json:#}");
    // All ten: the agent's own word on the first refusal is one, too. What was acked need not be known to flash.
    assert_eq!(
        (number(&json, "records") + number(&json, "acked"), number(&json, "lost_promised")),
        (10, 0),
        "{json:#}"
    );
    let letters = lines("dead", &dir);
    assert_eq!(letters.len(), 3);
    for (letter, n) in letters.iter().zip([0, 3, 6]) {
        let (epoch, seq) = names[n];
        let rejected = &letter["rejected"];
        assert_eq!(
            (&rejected["lane"], number(rejected, "epoch"), number(rejected, "seq")),
            (&json!("telemetry"), epoch, seq)
        );
        assert!(rejected["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{letter}");
        assert_eq!(
            (&letter["lane"], &letter["topic"], &letter["text"]),
            (&json!("dead"), &json!("t"), &json!(format!("bad {n}")))
        );
        assert_eq!((&letter["key"], &letter["ttl_s"]), (&json!(format!("k {n}")), &json!(3600)));
        assert!(letter["at"].is_u64());
    }

    // A letter that is damaged is told, and no promise is broken.
    for file in segments(&dir, "dead") {
        damage(&file, |bytes| {
            if let Some(at) = bytes.windows(5).position(|window| window == b"bad 0") {
                bytes[at] ^= 1;
            }
        });
    }
    let (status, json) = verify(&dir);
    let letters = (number(&json, "dead_letters"), number(&json, "dead_letters_lost"));
    assert_eq!((status, &json["intact"], letters), (0, &json!(true), (2, 1)), "{json:#}");
    assert!(text(&outbox(&["verify"], &dir).stdout).contains("intact, but for dead letters"));
    for file in segments(&dir, "dead") {
        damage(&file, |bytes| fastrand::Rng::with_seed(3).fill(bytes));
    }
    assert_eq!(verify(&dir).0, 0, "not even all of them");

    let wiped = outbox(&["wipe", "--lane", "dead", "--yes"], &dir);
    assert_eq!(code(&wiped), 0, "{wiped:?}");
    let kept = before.into_iter().filter(|(name, _)| !name.starts_with("dead.")).collect();
    assert!(files(&dir) == kept, "the other lane is as it was");
    agent.start();
    agent.wait_listening();
    put(&agent, json!({ "text": "bad again" }));
    agent.wait_status("a letter in a new lane", |status| depth(status) > 0);
}

#[test]
fn wiping_a_lane_leaves_the_others_as_they_are_to_the_byte() {
    let mut left = killed_agent("outbox-wipe-lane", 2);
    let dir = left.outbox();
    let before = files(&dir);
    let none = outbox(&["wipe", "-l", "nosuch", "--yes"], &dir);
    assert_eq!((code(&none), text(&none.stderr).contains("there is alarm, telemetry")), (NO_INPUT, true), "{none:?}");
    let wiped = outbox(&["wipe", "-l", "alarm", "--yes"], &dir);
    assert!(text(&wiped.stdout).starts_with("removed 128 waiting records in lane alarm of "), "{wiped:?}");
    let kept = before.into_iter().filter(|(name, _)| !name.starts_with("alarm.")).collect();
    assert!(files(&dir) == kept);
    left.agent.start();
    left.agent.wait_listening();
    let mut producer = Producer::new(left.agent.socket(), Some("alarm"));
    producer.put("t/0", "new");
    left.agent.kill9();
    let new = &producer.committed[0];
    let mut expected = promised(&left);
    assert!(expected.keys().all(|(.., epoch, _)| *epoch != new.epoch), "a new epoch: {new:?}");
    expected.retain(|(lane, ..), _| lane == "telemetry");
    expected.insert(("alarm".into(), new.epoch, new.seq), b"new".to_vec());
    assert!(export(&outbox(&["export"], &dir)) == (expected, 0));
}

#[test]
fn what_is_over_its_time_or_of_a_lane_that_is_not_configured_any_more_is_there() {
    let mut left = killed_agent("outbox-over", 1);
    let dir = left.outbox();
    // The lane is drained from now on, and nothing drains it here.
    let mut config = agent::quick(&left.dir, &format!("ws://127.0.0.1:{}/", free_port()));
    left.agent.configure(&config);
    left.agent.start();
    left.agent.wait_listening();
    let (epoch, seq) = put(&left.agent, json!({ "text": "short-lived", "ttl_s": 1, "key": "k" }));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    left.agent.kill9();
    let (status, json) = verify(&dir);
    assert_eq!((status, number(&json, "records")), (0, left.committed.len() as u64 + 1), "{json:#}");
    assert_eq!(lines("alarm", &dir).len(), PIPELINE_MAX);
    // Whether it is over is the reader's to say: no clock here is known to be right.
    let last = lines("telemetry", &dir).pop().unwrap();
    assert_eq!((number(&last, "epoch"), number(&last, "seq")), (epoch, seq));
    assert_eq!((&last["text"], &last["ttl_s"], &last["key"]), (&json!("short-lived"), &json!(1), &json!("k")));
    assert_eq!(code(&outbox(&["wipe", "-l", "alarm", "--yes"], &dir)), 0);
    assert!(segments(&dir, "alarm").is_empty() && lines("telemetry", &dir).len() == PIPELINE_MAX + 1);
    config.lanes.push(agent::lane("alarm"));
    left.agent.configure(&config);
    left.agent.start();
    left.agent.wait_listening();
    assert_eq!(put(&left.agent, json!({ "lane": "alarm", "text": "again" })).1, 1);
}

#[test]
fn prove_survives_its_own_kills_and_counts_them() {
    let dir = TempDir::new("outbox-prove");
    let output = outbox(&["prove", "--sigkill", "--kills", "25"], &dir);
    assert_eq!(code(&output), 0, "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("25 kills, ") && said.contains("none missing"), "{said}");
}

#[test]
fn prove_counts_within_its_budget_and_judges_what_a_cut_left() {
    let dir = TempDir::new("outbox-cut");
    let witness = dir.join("witness");
    let place = dir.join("place");
    fs::create_dir(&place).unwrap();
    let run = outbox(&["prove", "--bytes", "4000000", "--witness", witness.to_str().unwrap()], &place);
    assert_eq!(code(&run), 0, "{run:?}");
    let last = fs::read_to_string(&witness).unwrap().lines().last().unwrap().to_owned();
    let last: u64 = last.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((60..190).contains(&last), "{last} numbers in 4 MB");
    assert!(text(&run.stdout).contains("ended by itself"), "{run:?}");
    // As if it had been cut: the state says that it has not ended, and another boot.
    let cut = || fs::write(place.join("prove.state.1"), r#"{"run":1,"boot":"another","finished":false}"#).unwrap();
    cut();
    let kept = outbox(&["prove", "--judge", "--seen", &last.to_string()], &place);
    let said = text(&kept.stdout);
    assert_eq!(code(&kept), 0, "{said}");
    assert!(said.contains("kept what it said it wrote") && said.contains("1 cut judged: 1 kept everything"), "{said}");
    // The person saw more than is there.
    fs::remove_file(place.join("prove.report")).unwrap();
    let lies = outbox(&["prove", "--judge", "--seen", &(last + 3).to_string()], &place);
    let said = text(&lies.stdout);
    assert_eq!(code(&lies), DATA, "{said}");
    assert!(
        said.contains("LIES") && said.contains(&format!("{} to {}: flushed, and gone", last + 1, last + 3)),
        "{said}"
    );
    // It was said; the next run begins.
    let next = outbox(&["prove", "--bytes", "3000000"], &place);
    assert_eq!((code(&next), text(&next.stdout).contains("run 2 on")), (0, true), "{next:?}");
    assert_eq!(code(&outbox(&["prove"], &killed_agent("outbox-not", 1).outbox())), 64, "an outbox is not touched");
}
