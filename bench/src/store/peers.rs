//! The peers, each set up to its advantage: durable at every commit (but for SQLite NORMAL), acked records deleted in
//! the transaction of the next group where it has transactions.

use std::path::Path;

use queue_file::QueueFile;
use redb::{Database, Durability, TableDefinition};
use rusqlite::{Connection, params};

use super::{RECORD_BYTES, Store, value};
use crate::Result;

/// What a peer is about to write.
#[derive(Default)]
struct Staged {
    values: Vec<[u8; RECORD_BYTES]>,
    /// Number of the first of them.
    first: u64,
    next: u64,
    acked: u64,
    deleted: u64,
}

impl Staged {
    fn stage(&mut self, count: usize) {
        self.first = self.next;
        self.values.clear();
        self.values.extend((self.next..).take(count).map(value));
        self.next += count as u64;
    }
}

/// One table in WAL mode.
pub struct Sqlite {
    db: Connection,
    staged: Staged,
}

impl Sqlite {
    /// `FULL` or `NORMAL`.
    pub fn try_new(dir: &Path, synchronous: &str) -> Result<Self> {
        let db = Connection::open(dir.join("db"))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", synchronous)?;
        db.execute_batch("CREATE TABLE queue (id INTEGER PRIMARY KEY, value BLOB NOT NULL)")?;
        Ok(Self { db, staged: Staged::default() })
    }
}

impl Store for Sqlite {
    fn stage(&mut self, count: usize) {
        self.staged.stage(count);
    }

    fn commit(&mut self) -> Result<()> {
        let staged = &mut self.staged;
        let transaction = self.db.transaction()?;
        {
            let mut insert = transaction.prepare_cached("INSERT INTO queue (id, value) VALUES (?, ?)")?;
            for (id, value) in (staged.first..).zip(&staged.values) {
                insert.execute(params![id as i64, value])?;
            }
            if staged.deleted < staged.acked {
                let mut delete = transaction.prepare_cached("DELETE FROM queue WHERE id < ?")?;
                delete.execute(params![staged.acked as i64])?;
                staged.deleted = staged.acked;
            }
        }
        Ok(transaction.commit()?)
    }

    fn ack(&mut self, count: usize) -> Result<()> {
        self.staged.acked += count as u64;
        Ok(())
    }
}

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("queue");
/// Its default is 1 GiB, which is no gateway's.
const REDB_CACHE_BYTES: usize = 4 << 20;

/// One table.
pub struct Redb {
    db: Database,
    staged: Staged,
}

impl Redb {
    /// An empty one.
    pub fn try_new(dir: &Path) -> Result<Self> {
        let db = Database::builder().set_cache_size(REDB_CACHE_BYTES).create(dir.join("db"))?;
        Ok(Self { db, staged: Staged::default() })
    }
}

impl Store for Redb {
    fn stage(&mut self, count: usize) {
        self.staged.stage(count);
    }

    fn commit(&mut self) -> Result<()> {
        let staged = &mut self.staged;
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (id, value) in (staged.first..).zip(&staged.values) {
                table.insert(id, value.as_slice())?;
            }
            for id in staged.deleted..staged.acked {
                table.remove(id)?;
            }
            staged.deleted = staged.acked;
        }
        Ok(transaction.commit()?)
    }

    fn ack(&mut self, count: usize) -> Result<()> {
        self.staged.acked += count as u64;
        Ok(())
    }
}

/// A ring in a file.
pub struct Queue {
    queue: QueueFile,
    staged: Staged,
}

impl Queue {
    /// With so much room that it never grows.
    pub fn try_new(dir: &Path, bytes: u64) -> Result<Self> {
        let mut queue = QueueFile::with_capacity(dir.join("queue"), bytes * 2)?;
        queue.set_overwrite_on_remove(false);
        Ok(Self { queue, staged: Staged::default() })
    }
}

impl Store for Queue {
    fn stage(&mut self, count: usize) {
        self.staged.stage(count);
    }

    fn commit(&mut self) -> Result<()> {
        Ok(self.queue.add_n(&self.staged.values)?)
    }

    fn ack(&mut self, count: usize) -> Result<()> {
        Ok(self.queue.remove_n(count)?)
    }
}
