//! Commands that wait for their devices. Two processes write here: the receiver, and whoever runs
//! `backhaul-receiver command` beside it.
//!
//! ```text
//! commands(device, seq, topic, body, created, done)   `body` TEXT or BLOB; `done` null: it waits
//! command_cursors(device, last, done)                 the last number given, and up to which all is done
//! ```
//!
//! Numbers come from `command_cursors`, never from `commands`, of which anybody may delete what is done.

use std::path::Path;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::store::{Store, StoreError};
use crate::commands::COMMANDS_MAX;
use crate::record::{Body, INTEGER_MAX};

/// Its tables.
pub(super) const SCHEMA: &str = r"
CREATE TABLE IF NOT EXISTS commands(
    device TEXT NOT NULL, seq INTEGER NOT NULL, topic TEXT NOT NULL, body NOT NULL, created INTEGER NOT NULL,
    done INTEGER, PRIMARY KEY (device, seq));
CREATE TABLE IF NOT EXISTS command_cursors(
    device TEXT PRIMARY KEY, last INTEGER NOT NULL, done INTEGER NOT NULL) WITHOUT ROWID;
";

/// How long another process may write before this one gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

// In this order (CROSS): what is done already may be much, and is not looked at.
const NEXT: &str = "SELECT c.seq, c.topic, c.body FROM command_cursors k CROSS JOIN commands c
    WHERE k.device = ?1 AND c.device = ?1 AND c.seq > max(?2, k.done) AND c.seq <= k.done + ?3 ORDER BY c.seq LIMIT 1";

/// A command on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its number.
    pub seq: u64,
    /// What it is about.
    pub topic: String,
    /// What it says.
    pub body: Body,
}

/// A command that waits, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// For whom.
    pub device: String,
    /// Its number.
    pub seq: u64,
    /// What it is about.
    pub topic: String,
    /// Bytes of its body.
    pub bytes: u64,
    /// Unix ms.
    pub created_ms: u64,
}

impl Store {
    /// Another process has written since the last call.
    pub fn has_changed(&mut self) -> Result<bool, StoreError> {
        let version: i64 = self.connection.pragma_query_value(None, "data_version", |row| row.get(0))?;
        Ok(std::mem::replace(&mut self.data_version, version) != version)
    }

    /// Devices for which something waits.
    pub fn devices_with_commands(&self) -> Result<Vec<String>, StoreError> {
        let mut select = self.connection.prepare_cached("SELECT device FROM command_cursors WHERE last > done")?;
        let devices = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(devices)
    }

    /// What this device is sent next, behind what it was sent: at most 16 beyond the last one done.
    pub fn next_command(&self, device: &str, sent: u64) -> Result<Option<Command>, StoreError> {
        let mut select = self.connection.prepare_cached(NEXT)?;
        let found = select.query_row(params![device, sent as i64, COMMANDS_MAX as i64], |row| {
            let (seq, body): (i64, _) = (row.get(0)?, row.get_ref(2)?);
            Ok(Command { seq: seq as u64, topic: row.get(1)?, body: body_of(body) })
        });
        Ok(found.optional()?)
    }

    /// All up to there is done; durable with the next commit.
    pub fn put_done(&mut self, device: &str, seq: u64, now_ms: u64) -> Result<(), StoreError> {
        let Some((last, done)) = cursor(&self.connection, device)? else { return Ok(()) };
        if seq <= done || seq > last {
            return Ok(());
        }
        self.begin()?;
        let mut update = self.connection.prepare_cached(
            "UPDATE commands SET done = ?3 WHERE device = ?1 AND seq > ?4 AND seq <= ?2 AND done IS NULL",
        )?;
        update.execute(params![device, seq as i64, now_ms as i64, done as i64])?;
        let mut update = self.connection.prepare_cached("UPDATE command_cursors SET done = ?2 WHERE device = ?1")?;
        update.execute(params![device, seq as i64])?;
        Ok(())
    }

    /// What `hello` says is done. A number that was never given here tells of a store that was restored from a copy:
    /// what waits is numbered anew behind it, since the device would take it for what it has done.
    pub fn put_hello_done(&mut self, device: &str, seq: u64, now_ms: u64) -> Result<(), StoreError> {
        if seq == 0 || cursor(&self.connection, device)?.is_some_and(|(last, _)| seq <= last) {
            return self.put_done(device, seq, now_ms);
        }
        self.begin()?;
        // Read again: another process may have numbered one meanwhile.
        let (last, done) = cursor(&self.connection, device)?.unwrap_or((0, 0));
        if seq <= last || seq > INTEGER_MAX / 2 {
            return self.put_done(device, seq, now_ms);
        }
        log::warn!(target: "store", "commands are numbered anew device={device:?} last={last} done={seq}");
        let (by, done, last) = (seq as i64, done as i64, (last + seq) as i64);
        let renumber = "UPDATE commands SET seq = seq + ?2 WHERE device = ?1 AND seq > ?3";
        self.connection.execute(renumber, params![device, by, done])?;
        let set = "INSERT INTO command_cursors VALUES (?1, ?2, ?3)
            ON CONFLICT DO UPDATE SET last = excluded.last, done = excluded.done";
        self.connection.execute(set, params![device, last, by])?;
        Ok(())
    }
}

/// A store as `backhaul-receiver command` has it: beside a receiver.
pub struct Beside(Connection);

impl Beside {
    /// Opens a store that is there.
    pub fn try_new(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(connection))
    }

    /// Puts a command; it is durable when its number comes back.
    pub fn put(&mut self, device: &str, topic: &str, body: &Body, now_ms: u64) -> Result<u64, StoreError> {
        let transaction = Transaction::new(&mut self.0, TransactionBehavior::Immediate)?;
        let number =
            "INSERT INTO command_cursors VALUES (?1, 1, 0) ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last";
        let seq: i64 = transaction.query_row(number, [device], |row| row.get(0))?;
        let insert = "INSERT INTO commands VALUES (?1, ?2, ?3, ?4, ?5, NULL)";
        match body {
            Body::Text(text) => transaction.execute(insert, params![device, seq, topic, text, now_ms as i64])?,
            Body::Bytes(bytes) => transaction.execute(insert, params![device, seq, topic, bytes, now_ms as i64])?,
        };
        transaction.commit()?;
        Ok(seq as u64)
    }

    /// What waits, the oldest first.
    pub fn waiting(&self, device: Option<&str>) -> Result<Vec<Waiting>, StoreError> {
        let mut select = self.0.prepare(
            "SELECT device, seq, topic, length(CAST(body AS BLOB)), created FROM commands
             WHERE done IS NULL AND (?1 IS NULL OR device = ?1) ORDER BY device, seq",
        )?;
        let row = |row: &Row<'_>| {
            let number = |column| row.get::<_, i64>(column).map(|number| number as u64);
            Ok(Waiting {
                device: row.get(0)?,
                seq: number(1)?,
                topic: row.get(2)?,
                bytes: number(3)?,
                created_ms: number(4)?,
            })
        };
        let waiting = select.query_map([device], row)?.collect::<Result<_, _>>()?;
        Ok(waiting)
    }
}

/// The last number given, and up to which all is done.
fn cursor(connection: &Connection, device: &str) -> Result<Option<(u64, u64)>, StoreError> {
    let mut select = connection.prepare_cached("SELECT last, done FROM command_cursors WHERE device = ?1")?;
    let row = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64));
    Ok(select.query_row([device], row).optional()?)
}

fn body_of(value: ValueRef<'_>) -> Body {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => match (value, std::str::from_utf8(bytes)) {
            (ValueRef::Text(_), Ok(text)) => Body::Text(text.into()),
            _ => Body::Bytes(bytes.to_vec()),
        },
        ValueRef::Null => Body::Text(String::new()),
        ValueRef::Integer(number) => Body::Text(number.to_string()),
        ValueRef::Real(number) => Body::Text(number.to_string()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    fn text(text: &str) -> Body {
        Body::Text(text.into())
    }

    fn put(folder: &TempDir, device: &str, count: u64) {
        let mut beside = Beside::try_new(&folder.join("s.db")).unwrap();
        for _ in 0..count {
            let seq = beside.put(device, "t", &text("x"), 5).unwrap();
            assert!(seq > 0);
        }
    }

    fn sent(store: &Store, device: &str) -> Vec<u64> {
        let mut sent = 0;
        std::iter::from_fn(|| {
            sent = store.next_command(device, sent).unwrap()?.seq;
            Some(sent)
        })
        .collect()
    }

    fn done(store: &mut Store, seq: u64) {
        store.put_done("gw", seq, 9).unwrap();
        store.commit().unwrap();
    }

    #[test]
    fn what_waits_is_sent_in_order_sixteen_beyond_done() {
        let folder = TempDir::new("commands");
        let mut store = Store::try_new(&folder.join("s.db"), 1).unwrap();
        assert!(!store.has_changed().unwrap());
        put(&folder, "gw", 40);
        put(&folder, "other", 1);
        assert!(store.has_changed().unwrap() && !store.has_changed().unwrap());
        assert_eq!(store.devices_with_commands().unwrap(), ["gw", "other"]);
        assert_eq!(sent(&store, "gw"), (1..=16).collect::<Vec<_>>());
        done(&mut store, 3);
        assert!(!store.has_changed().unwrap(), "by ourselves");
        assert_eq!(sent(&store, "gw"), (4..=19).collect::<Vec<_>>());
        done(&mut store, 2);
        done(&mut store, 41);
        assert_eq!(sent(&store, "gw")[0], 4, "it never falls, and what was never given is not done");
        done(&mut store, 40);
        assert_eq!(store.devices_with_commands().unwrap(), ["other"]);
        put(&folder, "gw", 1);
        assert_eq!(sent(&store, "gw"), [41]);
        assert_eq!(sent(&store, "nobody"), [0; 0]);
    }

    #[test]
    fn text_and_bytes_come_back_as_they_were() {
        let folder = TempDir::new("commands");
        let store = Store::try_new(&folder.join("s.db"), 1).unwrap();
        let mut beside = Beside::try_new(&folder.join("s.db")).unwrap();
        let bodies = [text("12"), text(""), Body::Bytes(vec![0, 255]), Body::Bytes(b"text".to_vec())];
        for (nth, body) in bodies.iter().enumerate() {
            assert_eq!(beside.put("gw", "a/b", body, 7).unwrap(), nth as u64 + 1);
            let found = store.next_command("gw", nth as u64).unwrap().unwrap();
            assert_eq!((&found.body, found.topic.as_str()), (body, "a/b"));
        }
        let waiting = beside.waiting(Some("gw")).unwrap();
        assert_eq!(waiting.iter().map(|waiting| waiting.bytes).collect::<Vec<_>>(), [2, 0, 2, 4]);
        assert_eq!(beside.waiting(Some("other")).unwrap(), []);
    }

    #[test]
    fn a_store_restored_from_a_copy_gives_numbers_that_the_device_has_not_seen() {
        let folder = TempDir::new("commands");
        let mut store = Store::try_new(&folder.join("s.db"), 1).unwrap();
        put(&folder, "gw", 3);
        done(&mut store, 1);
        // The device has done 10; this store gave it 3.
        store.put_hello_done("gw", 10, 9).unwrap();
        store.commit().unwrap();
        assert_eq!(sent(&store, "gw"), [12, 13]);
        put(&folder, "gw", 1);
        assert_eq!(sent(&store, "gw"), [12, 13, 14]);
        store.put_hello_done("gw", 12, 9).unwrap();
        store.commit().unwrap();
        assert_eq!(sent(&store, "gw"), [13, 14]);
        store.put_hello_done("new", 4, 9).unwrap();
        store.commit().unwrap();
        put(&folder, "new", 1);
        assert_eq!(sent(&store, "new"), [5]);
    }

    #[test]
    fn there_is_no_command_in_a_store_that_is_not_there() {
        let folder = TempDir::new("commands");
        assert!(Beside::try_new(&folder.join("s.db")).is_err());
        assert!(!folder.join("s.db").exists());
    }
}
