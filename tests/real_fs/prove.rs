//! `backhaul outbox prove` on the filmed disk: it counts, the power goes somewhere, the next run judges what is left. A
//! disk that did what it said is acquitted at each place; one that said yes to flushes and did nothing is found out.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use fastrand::Rng;

use super::film::{self, Event, Fates, Film, Player, Recorder};
use super::revive::{self, Way};
use super::support::{TempDir, mortal, program};
use super::{CUTS, Replay, from_env, places, storage};

/// Its folder on the disk.
const FOLDER: &str = "prove";
/// Numbers that are filmed: the ring goes round twice, files come and go.
const NUMBERS: usize = 160;
const MODE: &str = "data=ordered";
/// Cuts by a disk that lies.
const LIES: usize = 24;
/// So many numbers before the cut it began to lie.
const LIED_ABOUT: usize = 8;
/// What a verdict is, by exit code: nothing is missing; flushed data is missing.
const KEPT: i32 = 0;
const LIED: i32 = 65;

/// A number that was said to be flushed, and where in the film that had been read.
struct Said {
    at: usize,
    number: u64,
}

/// All of it.
pub fn campaign(name: &'static str) {
    if !storage::own_mounts(name, &["mkfs.ext4", "e2fsck", "debugfs", "mount", "losetup"]) {
        return;
    }
    let cuts = from_env("CUTS").unwrap_or(CUTS);
    let seed = from_env("SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let _replay = Replay { name, cuts, rounds: 1, seed };
    let mut rng = Rng::with_seed(seed);
    let dir = TempDir::new("prove");
    let (mut film, (begin, said)) = film::shoot(&dir, MODE, 4096, count);
    film.begin = begin;
    assert_an_honest_disk_is_acquitted(&dir, &film, &said, cuts, &mut rng);
    assert_liars_are_found_out(&dir, &film, &said, &mut rng);
}

/// A run in a folder of its own, killed once it has counted far enough. From where in the film on the folder is there.
fn count(mount: &Path, recorder: &Recorder) -> (usize, Vec<Said>) {
    let folder = mount.join(FOLDER);
    fs::create_dir(&folder).expect("the disk takes a folder");
    // By its user, a while ago.
    File::open(mount).and_then(|disk| disk.sync_all()).expect("the disk syncs");
    let begin = recorder.position();
    let mut command = mortal(&program("backhaul"));
    command.args(["outbox", "prove", "--bytes", "100000000"]).arg(&folder);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("our own program starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let numbers = lines.filter_map(|line| line.expect("it speaks text").parse().ok());
    // Here and not before: a number that has been read lies behind the flush that made it true.
    let said: Vec<Said> = numbers.take(NUMBERS).map(|number| Said { at: recorder.position(), number }).collect();
    child.kill().expect("our own child can be killed");
    child.wait().expect("our own child can be waited for");
    assert_eq!(said.len(), NUMBERS, "it ended by itself");
    (begin, said)
}

fn assert_an_honest_disk_is_acquitted(dir: &TempDir, film: &Film, said: &[Said], cuts: u64, rng: &mut Rng) {
    let mut player = Player::new(film);
    let answers: Vec<usize> = said.iter().map(|said| said.at).collect();
    let (mut judged, mut unmountable) = (0, 0);
    for at in places(film, &answers, cuts, rng) {
        let (fates, way) = (Fates::draw(rng), if rng.bool() { Way::Fsck } else { Way::Kernel });
        let image = player.cut(at, fates, rng);
        let seen = said.iter().rfind(|said| said.at <= at).map(|said| said.number);
        let verdict = judge(dir, &image, way, seen.filter(|_| rng.u8(..4) > 0), &mut unmountable);
        if let Ok((KEPT, words)) = &verdict
            && (seen.is_none() || words.contains("this storage kept"))
        {
            judged += u64::from(seen.is_some());
            continue;
        }
        let kept = dir.join("failed.img");
        fs::write(&kept, &image).expect("the temporary folder takes an image");
        panic!("cut at {at} ({fates:?}, {way:?}, seen {seen:?}), image {}: {verdict:?}", kept.display());
    }
    eprintln!(
        "prove: {cuts} cuts of {} events of an honest disk, {judged} behind a number, all acquitted, {unmountable} \
         times the kernel wanted fsck",
        film.events.len() - film.begin
    );
    assert!(judged * 2 > cuts, "{judged} of {cuts} cuts judged a run: that proves little");
}

fn assert_liars_are_found_out(dir: &TempDir, film: &Film, said: &[Said], rng: &mut Rng) {
    let mut lies: Vec<usize> = (0..LIES).map(|_| rng.usize(LIED_ABOUT..said.len())).collect();
    lies.sort_unstable();
    let mut player = Player::new(film);
    let (mut found, mut beyond_repair, mut unmountable, mut blind) = (0, 0, 0, 0);
    for last in lies {
        // By the film and not by what had been read: who reads late would take no lie for one.
        let (since, at) = (written(film, said[last - LIED_ABOUT].number), said[last].at);
        let fates = if rng.bool() { Fates::Dropped } else { Fates::ByWrite };
        let image = player.cut_of_a_liar(since, at, fates, rng);
        // Where it reordered writes nobody has to have seen anything.
        let seen = Some(said[last].number).filter(|_| fates == Fates::Dropped || rng.bool());
        match judge(dir, &image, Way::Fsck, seen, &mut unmountable) {
            Ok((LIED, words)) if words.contains("LIES") || words.contains("DAMAGES") => {
                found += 1;
                blind += u32::from(seen.is_none());
            }
            // Only a write of our outbox was lost, and it is told from a bug of ours by nothing.
            Ok((LIED, words)) => assert!(words.contains("OUR OUTBOX"), "{words}"),
            Ok((KEPT, words)) => eprintln!("prove: not found out ({fates:?}, seen {seen:?}):\n{words}"),
            Ok(other) => panic!("a verdict is kept or not: {other:?}"),
            Err(_) => beyond_repair += 1,
        }
    }
    eprintln!(
        "prove: {found} of {LIES} lies found out, {blind} without a witness; {beyond_repair} file systems beyond repair"
    );
    assert!(found > LIES / 2, "{found} of {LIES} lies about flushing were found out");
}

/// Where in the film a number's first bytes go to the disk: see `prove/bench.rs` for how a sector looks.
fn written(film: &Film, number: u64) -> usize {
    let begins = |sector: &[u8]| {
        sector.starts_with(b"BHPROVE1") && sector[12..16] == [0; 4] && sector[16..24] == number.to_le_bytes()
    };
    let is_it = |event: &Event| matches!(event, Event::Write { bytes, .. } if bytes.chunks_exact(512).any(begins));
    film.events.iter().position(is_it).expect("what was said to be flushed was written")
}

/// What the next run says: its exit code and its words.
fn judge(
    dir: &TempDir,
    image: &[u8],
    way: Way,
    seen: Option<u64>,
    unmountable: &mut u64,
) -> Result<(i32, String), String> {
    let file = dir.join("cut.img");
    film::write_sparse(&file, image);
    revive::with(dir, &file, MODE, way, FOLDER, unmountable, |folder| {
        let mut command = Command::new(program("backhaul"));
        command.args(["outbox", "prove", "--judge"]).arg(folder).stdin(Stdio::null());
        if let Some(seen) = seen {
            command.args(["--seen", &seen.to_string()]);
        }
        let output = command.output().expect("our own program starts");
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(code @ (KEPT | LIED)) => Ok((code, words)),
            Some(_) | None => Err(format!("{output:?}")),
        }
    })
}
