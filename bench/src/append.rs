//! Durable appends in groups of 64, 256 and 1024, in small rounds: every contender has its turn in each, and another
//! one begins it, so that what disturbs the machine hits all alike.

use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::device::{Counted, Device};
use crate::metered::metered;
use crate::store::{Kind, RECORD_BYTES, Store};

/// Records in a commit, commits of each contender in a round, rounds.
const STAGES: [(usize, usize, usize); 3] = [(64, 10, 100), (256, 5, 100), (1024, 2, 100)];
/// Rounds before the clock runs: caches, journals and stores find their steady state.
const ROUNDS_WARM: usize = 5;
/// Room on each file system, beside what is written.
const DEVICE_BYTES: u64 = 256 << 20;

/// What one contender did with groups of one size.
#[derive(Debug, Clone)]
pub struct Appended {
    pub kind: Kind,
    pub group: usize,
    /// Bytes that the device wrote for each byte of records.
    pub bytes_per_byte: f64,
    pub flushes_per_commit: f64,
    /// Time of the committing thread on a CPU, system calls included.
    pub cpu_us_per_record: f64,
    /// The same without the file's writes and syncs, where they can be told apart.
    pub own_cpu_us_per_record: Option<f64>,
    /// Each round's wall time.
    pub seconds: Vec<f64>,
}

struct Contender {
    kind: Kind,
    device: Device,
    store: Box<dyn Store>,
    before: Counted,
    cpu_s: f64,
    /// Of files, before the clock ran.
    files_cpu_s: Option<f64>,
    seconds: Vec<f64>,
}

/// All sizes, all contenders.
pub fn measure(work: &Path, scale: usize) -> Result<Vec<Appended>> {
    let mut appended = Vec::new();
    for (group, commits, rounds) in STAGES {
        let rounds = rounds / scale;
        eprintln!("appending in groups of {group}: {rounds} rounds of {commits} commits for each of {}", Kind::ALL.len());
        let records = (rounds + ROUNDS_WARM) * commits * group;
        let payload = (records * RECORD_BYTES) as u64;
        let mut contenders = Vec::new();
        for kind in Kind::ALL {
            let device = Device::try_new(work, kind.name(), DEVICE_BYTES + payload)?;
            // What lies there beforehand is twice what is written: nothing runs around its ring.
            let store = kind.store(device.dir(), payload * 3 / 2)?;
            contenders.push(Contender {
                kind,
                device,
                store,
                before: Counted::default(),
                cpu_s: 0.0,
                files_cpu_s: None,
                seconds: Vec::new(),
            });
        }
        for round in 0..rounds + ROUNDS_WARM {
            if round == ROUNDS_WARM {
                for contender in &mut contenders {
                    contender.before = contender.device.counted()?;
                    contender.cpu_s = 0.0;
                    contender.files_cpu_s = contender.store.files_cpu_s();
                    contender.seconds.clear();
                }
            }
            for turn in 0..contenders.len() {
                let index = (turn + round) % contenders.len();
                contenders[index].round(group, commits)?;
            }
        }
        for contender in contenders {
            appended.push(contender.finish(group, commits * rounds)?);
        }
    }
    Ok(appended)
}

impl Contender {
    fn round(&mut self, group: usize, commits: usize) -> Result<()> {
        let mut seconds = 0.0;
        for _ in 0..commits {
            self.store.stage(group);
            let begun = Instant::now();
            let committed = metered(&mut self.cpu_s, || self.store.commit());
            seconds += begun.elapsed().as_secs_f64();
            committed.map_err(|error| format!("{}: {error}", self.kind.name()))?;
        }
        self.seconds.push(seconds);
        Ok(())
    }

    fn finish(mut self, group: usize, commits: usize) -> Result<Appended> {
        let wrote = self.device.counted()? - self.before;
        let records = (commits * group) as f64;
        let files = self.store.files_cpu_s().zip(self.files_cpu_s).map(|(after, before)| after - before);
        // Closed before the device goes.
        drop(self.store);
        Ok(Appended {
            kind: self.kind,
            group,
            bytes_per_byte: wrote.bytes as f64 / (records * RECORD_BYTES as f64),
            flushes_per_commit: wrote.flushes as f64 / commits as f64,
            cpu_us_per_record: self.cpu_s * 1e6 / records,
            own_cpu_us_per_record: files.map(|files| (self.cpu_s - files) * 1e6 / records),
            seconds: self.seconds,
        })
    }
}

/// One contender's commits in any folder, without a device.
pub fn alone(kind: Kind, dir: &Path, group: usize, commits: usize) -> Result<()> {
    let mut store = kind.store(dir, (group * commits * RECORD_BYTES * 2) as u64)?;
    let (mut cpu, before) = (0.0, store.files_cpu_s());
    for _ in 0..commits {
        store.stage(group);
        metered(&mut cpu, || store.commit())?;
    }
    let files = store.files_cpu_s().zip(before).map_or(f64::NAN, |(after, before)| after - before);
    let records = (group * commits) as f64;
    println!("{}: {:.3} us/record, own {:.3}", kind.name(), cpu * 1e6 / records, (cpu - files) * 1e6 / records);
    Ok(())
}

/// How much faster `one` was than `other`: the median over the rounds.
pub fn ratio(one: &Appended, other: &Appended) -> f64 {
    median(one.seconds.iter().zip(&other.seconds).map(|(one, other)| other / one).collect())
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
