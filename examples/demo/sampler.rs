//! A local program as a gateway has many: it samples this machine several times a second, hands each reading to the
//! agent, and keeps books of the answers. Its books and the receiver's table alone decide the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::machine;
use crate::support::producer::{Handed, PIPELINE_MAX, Producer};
use crate::support::receiver::Stored;

/// Between two samples.
pub const INTERVAL: Duration = Duration::from_millis(200);

/// While there is no agent to talk to.
const KNOCK_INTERVAL: Duration = Duration::from_millis(20);

/// What it has done so far, for the live line.
#[derive(Default)]
pub struct Progress {
    pub sampled: AtomicUsize,
    pub committed: AtomicUsize,
}

/// The sampler at work.
pub struct Sampler {
    pub progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Producer>>,
}

impl Sampler {
    /// Begins to sample.
    pub fn start(socket: &Path) -> Self {
        let producer = Producer::new(socket, None);
        let (stop, progress) = (Arc::<AtomicBool>::default(), Arc::<Progress>::default());
        let thread = thread::spawn({
            let (stop, progress) = (Arc::clone(&stop), Arc::clone(&progress));
            move || run(producer, &stop, &progress)
        });
        Self { progress, stop, thread: Some(thread) }
    }

    /// Ends sampling; its books.
    pub fn finish(mut self) -> Producer {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("taken here alone and in drop");
        thread.join().expect("the sampler did not panic")
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The thread ends with its agent, or with this program.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(mut producer: Producer, stop: &AtomicBool, progress: &Progress) -> Producer {
    let mut number = 0u64;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // Every body is unlike all others: that is how a copy would show.
        let readings = machine::sample().into_iter().map(|metric| {
            number += 1;
            (metric.topic, format!("{{\"n\":{number},\"value\":{}}}", metric.value).into_bytes())
        });
        let readings: Vec<_> = readings.collect();
        for batch in readings.chunks(PIPELINE_MAX) {
            while producer.put_all(batch.to_vec()) == Handed::NoAgent && !stop.load(Ordering::Relaxed) {
                thread::sleep(KNOCK_INTERVAL);
            }
            progress.sampled.store(producer.handed_in(), Ordering::Relaxed);
            progress.committed.store(producer.committed.len(), Ordering::Relaxed);
        }
        next = Instant::now().max(next + INTERVAL);
        thread::sleep(next - Instant::now());
    }
    producer
}

/// The books against the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Handed to the agent.
    pub sampled: usize,
    /// Told to be committed.
    pub committed: usize,
    /// Rows that hold one of ours.
    pub stored: usize,
    /// Committed, and not in the table under that name with those bytes.
    pub missing: usize,
    /// Rows beyond the first that hold the same body.
    pub duplicates: usize,
    /// Rows that hold what was never handed in.
    pub strangers: usize,
    /// Handed in and never answered, for the agent was killed in between: (all, of these stored).
    pub unanswered: (usize, usize),
}

impl Verdict {
    /// Compares. The agent's own events (topic `$event`) are not the sampler's and not counted.
    pub fn new(books: &Producer, table: &[Stored]) -> Self {
        let rows: Vec<&Stored> = table.iter().filter(|row| row.topic != "$event").collect();
        let name = |row: &Stored| (row.lane.clone(), row.epoch, row.seq);
        let by_name: BTreeMap<_, &[u8]> = rows.iter().map(|row| (name(row), &row.body[..])).collect();
        let bodies: BTreeSet<&[u8]> = rows.iter().map(|row| &row.body[..]).collect();
        let handed_in: BTreeSet<&[u8]> = books
            .committed
            .iter()
            .map(|record| &record.body[..])
            .chain(books.uncertain.iter().map(Vec::as_slice))
            .collect();
        let arrived = |record: &&crate::support::producer::Committed| {
            by_name.get(&(record.lane.clone(), record.epoch, record.seq)) == Some(&&record.body[..])
        };
        Self {
            sampled: books.handed_in(),
            committed: books.committed.len(),
            stored: rows.len(),
            missing: books.committed.len() - books.committed.iter().filter(arrived).count(),
            duplicates: rows.len() - bodies.len(),
            strangers: bodies.difference(&handed_in).count(),
            unanswered: (
                books.uncertain.len(),
                books.uncertain.iter().filter(|body| bodies.contains(&body[..])).count(),
            ),
        }
    }

    /// Exactly once, and something at all.
    pub fn holds(&self) -> bool {
        (self.missing, self.duplicates, self.strangers) == (0, 0, 0) && self.committed > 0
    }
}
