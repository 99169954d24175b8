//! Every failure of the link that one machine can stage, one row each (`table.rs`): a real agent with a session that
//! proved stable, an upstream that begins to fail, and what is *seen* at its listening socket and in `status`:
//! the class, the words, how long the agent keeps away, and that it comes back by itself with nothing lost.
//! `docs/failures.md` is held against the code and against these rows (`page.rs`).
#![cfg(feature = "receiver")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

mod page;
mod scene;
mod table;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use scene::Stage;
use table::{Row, rows};

/// Agents at once. They wait most of the time.
const AT_ONCE: usize = 12;

/// EVerest/EVerest#1808: one close reason of many ended in no reconnect at all, so each one is staged.
#[test]
fn every_failure_shows_as_its_class_waits_as_long_as_that_asks_for_and_ends_by_itself() {
    let wanted = std::env::var("ROW").ok();
    let rows: Vec<Row> =
        rows().into_iter().filter(|row| wanted.as_ref().is_none_or(|name| row.name == *name)).collect();
    assert!(!rows.is_empty(), "there is no row {wanted:?}");
    let stage = Stage::new();
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(rows.len()) {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if catch_unwind(AssertUnwindSafe(|| scene::play(row, &stage))).is_err() {
                        failed.lock().expect("pushing does not panic").push((row.stage, row.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("pushing does not panic");
    for (_, name) in &failed {
        eprintln!("again: ROW='{name}' cargo test --features receiver --test failures every_failure -- --nocapture");
    }
    assert!(failed.is_empty(), "{} of {} rows: {failed:?}", failed.len(), rows.len());
    eprintln!("{} failures staged", rows.len());
}
