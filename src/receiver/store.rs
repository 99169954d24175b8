//! What was received, in SQLite. Knows tables and transactions, nothing of sessions or sockets.
//!
//! ```text
//! records(device, lane, epoch, seq, at, topic, body, received)   a record each; `at` null: no clock was known
//! gaps(device, lane, epoch, from, to, why, count, received)      a cause each of what will never come
//! lanes(device, lane, epoch, acked)                              all of exactly-once: the highest number stored
//! meta(name, value)                                              `command_stream`
//! commands, command_cursors                                      see [`commands`]
//! ```
//!
//! `acked` comes from `lanes`, never from `records`, which retention may delete, and is advanced in the transaction
//! that stores. All that arrives in one turn of the loop is one transaction; nothing is durable before
//! [`Store::commit`]. WAL with `synchronous=FULL`: a commit is one sync of the log, and readers never wait.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use rusqlite::{Connection, OptionalExtension, params};

use crate::dialect::message::Lost;
use crate::record::{Epoch, INTEGER_MAX, LaneName, Record, Seq};

use super::commands;
use super::session::LaneEpoch;

/// The tables' version, in `user_version`.
const SCHEMA_VERSION: i64 = 1;
/// Pages that SQLite may cache, in KiB: what one busy turn touches.
const CACHE_KIB: i64 = 16 * 1024;
/// The log is folded into the file each time it has so many pages: fewer syncs than SQLite's 1,000, still 16 MiB.
const CHECKPOINT_PAGES: i64 = 4096;
/// How long a turn waits for another process that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = r#"
CREATE TABLE IF NOT EXISTS records(
    device TEXT NOT NULL, lane TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    at INTEGER, topic TEXT NOT NULL, body BLOB NOT NULL, received INTEGER NOT NULL,
    PRIMARY KEY (device, lane, epoch, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gaps(
    device TEXT NOT NULL, lane TEXT NOT NULL, epoch INTEGER NOT NULL, "from" INTEGER NOT NULL, "to" INTEGER NOT NULL,
    why TEXT NOT NULL, count INTEGER NOT NULL, received INTEGER NOT NULL,
    PRIMARY KEY (device, lane, epoch, "from", why)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lanes(
    device TEXT NOT NULL, lane TEXT NOT NULL, epoch INTEGER NOT NULL, acked INTEGER NOT NULL,
    PRIMARY KEY (device, lane, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"#;

// Of two copies the first stored wins: with `lanes` intact there is no second; where someone lost `lanes` and kept
// `records` it must not stop the device for ever.
const PUT_RECORD: &str = "INSERT OR IGNORE INTO records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const PUT_GAP: &str = "INSERT OR IGNORE INTO gaps VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const ADVANCE: &str = "INSERT INTO lanes VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT DO UPDATE SET acked = max(acked, excluded.acked)";
const ACKED: &str = "SELECT acked FROM lanes WHERE device = ?1 AND lane = ?2 AND epoch = ?3";

/// The store, held by one process at a time.
pub struct Store {
    pub(super) connection: Connection,
    /// Moves when another process writes.
    pub(super) data_version: i64,
    command_stream: u64,
    /// Something was put since the last commit.
    open: bool,
    /// Held for life. A file of its own: closing a second descriptor of the database would drop SQLite's own locks.
    _lock: File,
}

/// Why the store does not do what it should.
#[derive(Debug)]
pub enum StoreError {
    /// Another receiver has it.
    Locked(PathBuf),
    /// The lock file cannot be made.
    Lock(PathBuf, io::Error),
    /// Written by a newer version of this program.
    Newer(i64),
    /// SQLite's own word.
    Sqlite(rusqlite::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked(path) => write!(f, "another receiver holds {}", path.display()),
            Self::Lock(path, error) => write!(f, "cannot lock {}: {error}", path.display()),
            Self::Newer(version) => write!(f, "tables of version {version}; this program knows {SCHEMA_VERSION}"),
            Self::Sqlite(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Store {
    /// Opens the store, making it where it is missing. `seed` draws what a new store needs at random.
    pub fn try_new(path: &Path, seed: u64) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(StoreError::Newer(version));
        }
        connection.execute_batch(SCHEMA)?;
        connection.execute_batch(commands::SCHEMA)?;
        connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        let drawn = fastrand::Rng::with_seed(seed).u64(1..=INTEGER_MAX) as i64;
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('command_stream', ?1)", [drawn])?;
        let command_stream: i64 =
            connection.query_row("SELECT value FROM meta WHERE name = 'command_stream'", [], |row| row.get(0))?;
        let data_version = connection.pragma_query_value(None, "data_version", |row| row.get(0))?;
        Ok(Self { connection, data_version, command_stream: command_stream as u64, open: false, _lock: lock })
    }

    /// Which numbering of commands this store holds; the same for its life.
    pub fn command_stream(&self) -> u64 {
        self.command_stream
    }

    /// Adds records of one (lane, epoch), ascending, at least one, and advances `acked` to the last.
    pub fn put_records(
        &mut self,
        device: &str,
        lane: &LaneName,
        epoch: Epoch,
        records: &[Record],
        received_ms: u64,
    ) -> Result<(), StoreError> {
        let Some(last) = records.last() else { return Ok(()) };
        self.begin()?;
        let mut insert = self.connection.prepare_cached(PUT_RECORD)?;
        insert.raw_bind_parameter(1, device)?;
        insert.raw_bind_parameter(2, lane.as_str())?;
        insert.raw_bind_parameter(3, epoch as i64)?;
        insert.raw_bind_parameter(8, received_ms as i64)?;
        for record in records {
            insert.raw_bind_parameter(4, record.seq as i64)?;
            insert.raw_bind_parameter(5, record.at.map(|at| at as i64))?;
            insert.raw_bind_parameter(6, record.topic.as_str())?;
            insert.raw_bind_parameter(7, record.body.as_bytes())?;
            insert.raw_execute()?;
        }
        drop(insert);
        self.advance(device, lane, epoch, last.seq)
    }

    /// Notes that `from` … `to` will never come, a row for each cause, and advances `acked` to `to`.
    pub fn put_gap(
        &mut self,
        device: &str,
        (lane, epoch): (&LaneName, Epoch),
        (from, to): (Seq, Seq),
        lost: &[Lost],
        received_ms: u64,
    ) -> Result<(), StoreError> {
        self.begin()?;
        let mut insert = self.connection.prepare_cached(PUT_GAP)?;
        for Lost { why, count } in lost {
            let (lane, epoch, from, to) = (lane.as_str(), epoch as i64, from as i64, to as i64);
            insert.execute(params![device, lane, epoch, from, to, why, *count as i64, received_ms as i64])?;
        }
        drop(insert);
        self.advance(device, lane, epoch, to)
    }

    /// Makes all that was put durable.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if self.open {
            self.connection.prepare_cached("COMMIT")?.execute([])?;
            self.open = false;
        }
        Ok(())
    }

    /// Discards all that was put since the last commit.
    pub fn rollback(&mut self) {
        self.open = false;
        // Some errors (a full disk) have ended the transaction already.
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            log::error!(target: "store", "cannot roll back error={error}");
        }
    }

    /// How far each is stored; 0: not at all. Only what is committed counts: commit first.
    pub fn acked(&self, device: &str, lanes: Vec<LaneEpoch>) -> Result<Vec<(LaneEpoch, Seq)>, StoreError> {
        debug_assert!(!self.open, "acked must be read after the commit");
        let mut select = self.connection.prepare_cached(ACKED)?;
        let mut acked = Vec::with_capacity(lanes.len());
        for (lane, epoch) in lanes {
            let found: Option<i64> =
                select.query_row(params![device, lane.as_str(), epoch as i64], |row| row.get(0)).optional()?;
            acked.push(((lane, epoch), found.map_or(0, |seq| seq as u64)));
        }
        Ok(acked)
    }

    /// Devices of which something was ever stored.
    pub fn devices(&self) -> Result<u64, StoreError> {
        let count: i64 =
            self.connection
                .query_row("SELECT count(*) FROM (SELECT DISTINCT device FROM lanes)", [], |row| row.get(0))?;
        Ok(count as u64)
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        if !self.open {
            self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            self.open = true;
        }
        Ok(())
    }

    fn advance(&self, device: &str, lane: &LaneName, epoch: Epoch, seq: Seq) -> Result<(), StoreError> {
        let mut advance = self.connection.prepare_cached(ADVANCE)?;
        advance.execute(params![device, lane.as_str(), epoch as i64, seq as i64])?;
        Ok(())
    }
}

/// One receiver a store: the fence between two sessions of a device lives in one process (protocol rule 12).
fn lock(store: &Path) -> Result<File, StoreError> {
    let mut path = store.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|error| StoreError::Lock(path.clone(), error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(store.into())),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            log::warn!(target: "store", "the file system has no locks; run one receiver only store={}", store.display());
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(StoreError::Lock(path, error)),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::record::Body;
    use crate::temp_dir::TempDir;

    fn lane() -> LaneName {
        LaneName::try_new("a").unwrap()
    }

    fn record(seq: Seq, text: &str) -> Record {
        Record { seq, at: (seq > 1).then_some(1000 + seq), topic: "t".into(), body: Body::Text(text.into()) }
    }

    fn acked(store: &Store) -> Seq {
        store.acked("gw", vec![(lane(), 7)]).unwrap()[0].1
    }

    #[test]
    fn what_is_committed_is_there_after_a_reopen_and_what_is_not_is_gone() {
        let folder = TempDir::new("store-commit");
        let mut store = Store::try_new(&folder.join("store.db"), 1).unwrap();
        let stream = store.command_stream();
        store.put_records("gw", &lane(), 7, &[record(1, "one"), record(2, "two")], 50).unwrap();
        store.commit().unwrap();
        store.put_records("gw", &lane(), 7, &[record(3, "three")], 60).unwrap();
        drop(store);

        let store = Store::try_new(&folder.join("store.db"), 2).unwrap();
        assert_eq!(acked(&store), 2);
        assert_eq!(store.command_stream(), stream, "drawn once in a store's life");
        let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<(i64, Option<i64>, Vec<u8>, i64)> {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        };
        let mut select = store.connection.prepare("SELECT seq, at, body, received FROM records").unwrap();
        let rows: Vec<_> = select.query_map([], row).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows, [(1, None, b"one".to_vec(), 50), (2, Some(1002), b"two".to_vec(), 50)]);
    }

    #[test]
    fn a_rollback_takes_back_acked_with_the_records() {
        let folder = TempDir::new("store-rollback");
        let mut store = Store::try_new(&folder.join("store.db"), 1).unwrap();
        store.put_records("gw", &lane(), 7, &[record(1, "one")], 50).unwrap();
        store.rollback();
        assert_eq!(acked(&store), 0);
        store.put_records("gw", &lane(), 7, &[record(1, "one")], 50).unwrap();
        store.commit().unwrap();
        assert_eq!(acked(&store), 1);
    }

    #[test]
    fn acked_never_goes_back_and_the_first_copy_wins() {
        let folder = TempDir::new("store-first");
        let mut store = Store::try_new(&folder.join("store.db"), 1).unwrap();
        store.put_records("gw", &lane(), 7, &[record(1, "one"), record(2, "two")], 50).unwrap();
        store.put_records("gw", &lane(), 7, &[record(1, "other")], 60).unwrap();
        store.commit().unwrap();
        assert_eq!(acked(&store), 2);
        let body: Vec<u8> =
            store.connection.query_row("SELECT body FROM records WHERE seq = 1", [], |row| row.get(0)).unwrap();
        assert_eq!(body, b"one");
    }

    #[test]
    fn a_gap_is_a_row_for_each_cause() {
        let folder = TempDir::new("store-gap");
        let mut store = Store::try_new(&folder.join("store.db"), 1).unwrap();
        let lost = [Lost { why: "overflow".into(), count: 3 }, Lost { why: "torn".into(), count: 0 }];
        store.put_gap("gw", (&lane(), 7), (1, 4), &lost, 50).unwrap();
        store.commit().unwrap();
        assert_eq!(acked(&store), 4);
        let rows: i64 = store
            .connection
            .query_row(r#"SELECT count(*) FROM gaps WHERE "from" = 1 AND "to" = 4"#, [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 2);
    }

    #[test]
    fn refuses_a_store_that_another_holds_and_one_from_the_future() {
        let folder = TempDir::new("store-held");
        let store = Store::try_new(&folder.join("store.db"), 1).unwrap();
        assert!(matches!(Store::try_new(&folder.join("store.db"), 1), Err(StoreError::Locked(_))));
        store.connection.pragma_update(None, "user_version", 99).unwrap();
        drop(store);
        assert!(matches!(Store::try_new(&folder.join("store.db"), 1), Err(StoreError::Newer(99))));
    }
}
