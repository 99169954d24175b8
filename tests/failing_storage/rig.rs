//! The agent on storage that fails, its producer and its receiver, and what has to be true at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use backhaul::config::Config;
use serde_json::Value;

use super::faults::Faults;
use super::storage::fuse::Folder;
use super::support::agent::{self, Agent};
use super::support::producer::{Handed, Producer};
use super::support::proxy::{Mode, Proxy};
use super::support::receiver::{Receiver, StoredGap};
use super::support::{DEADLINE, TempDir, program, wait_until};

/// What the status says of the flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flash {
    /// It takes everything.
    Ok,
    /// Some lane lives in RAM.
    Degraded,
}

/// All of it. Fields are dropped in this order: the agent before what it stands on.
pub struct Rig {
    /// The agent.
    pub agent: Agent,
    /// One producer of the one lane.
    pub producer: Producer,
    /// The upstream.
    pub receiver: Receiver,
    proxy: Proxy,
    faults: Option<(Folder, Arc<Faults>)>,
    puts: u64,
    dir: TempDir,
}

impl Rig {
    /// With the outbox on a FUSE folder whose calls fail on command.
    pub fn on_fuse(name: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new(name);
        let faults = Arc::new(Faults::default());
        let folder = Folder::new(&dir.join("below"), &dir.join("outbox"), faults.clone());
        let mut rig = Self::in_folder(dir, adjust);
        rig.faults = Some((folder, faults));
        rig
    }

    /// With the outbox in the folder `outbox` of `dir`, whatever that is. Running, and the link is up.
    pub fn in_folder(dir: TempDir, adjust: impl FnOnce(&mut Config)) -> Self {
        let mut receiver = Receiver::new(&dir);
        let proxy = Proxy::new(&receiver.address());
        let mut config = agent::quick(&dir, &format!("ws://{}/v1", proxy.address()));
        config.outbox.headroom_bytes_min = 1 << 20;
        adjust(&mut config);
        let mut agent = Agent::new(&dir, &config);
        receiver.start();
        receiver.wait_listening();
        agent.start();
        agent.wait_up();
        let producer = Producer::new(agent.socket(), None);
        Self { agent, producer, receiver, proxy, faults: None, puts: 0, dir }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The switches.
    pub fn faults(&self) -> &Faults {
        &self.faults.as_ref().expect("this rig stands on FUSE").1
    }

    /// Cuts or mends the link.
    pub fn link(&self, mode: Mode) {
        self.proxy.set(mode);
    }

    fn put(&mut self) {
        self.puts += 1;
        let body = format!("{} {}", self.puts, "x".repeat(self.puts as usize * 37 % 700));
        wait_until(DEADLINE, "the agent answers", || {
            self.agent.assert_runs();
            self.producer.put("load", body.clone()) != Handed::NoAgent
        });
    }

    /// Puts records that have to be committed, each.
    #[track_caller]
    pub fn put_committed(&mut self, count: usize) {
        let (committed, refused) = (self.producer.committed.len(), self.producer.refused.len());
        for _ in 0..count {
            self.put();
        }
        let answers = &self.producer.refused[refused..];
        assert_eq!(self.producer.committed.len() - committed, count, "refused: {answers:?}");
    }

    /// Puts records until so many are committed: the first ones may be refused.
    #[track_caller]
    pub fn put_committed_soon(&mut self, count: usize) {
        let goal = self.producer.committed.len() + count;
        wait_until(DEADLINE, "records are committed again", || {
            self.put();
            self.producer.committed.len() >= goal
        });
    }

    /// Puts records that have to be refused with this code, each.
    #[track_caller]
    pub fn put_refused(&mut self, count: usize, code: &str) {
        let (committed, refused) = (self.producer.committed.len(), self.producer.refused.len());
        for _ in 0..count {
            self.put();
        }
        assert_eq!(self.producer.committed.len(), committed, "committed, on storage that fails");
        let codes: Vec<&str> = self.producer.refused[refused..].iter().map(|(_, code)| code.as_str()).collect();
        assert_eq!(codes, vec![code; count]);
    }

    /// Waits until the status says so.
    #[track_caller]
    pub fn wait_flash(&mut self, flash: Flash) {
        let word = match flash {
            Flash::Ok => "ok",
            Flash::Degraded => "degraded",
        };
        self.agent.wait_status(&format!("the flash is {word}"), |status| status["flash"]["state"] == word);
    }

    /// Waits until all is upstream; then everything that was committed, or is in RAM, is there once and nothing else,
    /// no loss was reported, and these events are there.
    #[track_caller]
    pub fn settle(&mut self, events: &[&str]) {
        self.wait_all_upstream();
        let gaps = self.receiver.gaps();
        assert!(gaps.iter().all(|gap| gap.count == 0), "{gaps:?}");
        let missing = self.missing();
        assert!(missing.is_empty(), "committed and not upstream: {missing:?}");
        self.assert_nothing_else();
        let stored = self.receiver.records();
        for event in events {
            let says = |body: &[u8]| String::from_utf8_lossy(body).contains(&format!("{event:?}"));
            assert!(stored.iter().any(|record| record.topic == "$event" && says(&record.body)), "no event {event}");
        }
    }

    /// Without an agent `backhaul outbox` finds all that was committed, in several epochs of the lane, and what was
    /// in RAM and is on flash since.
    #[track_caller]
    pub fn assert_exported(&self) {
        let outbox = |command: &str| {
            let output =
                Command::new(program("backhaul")).args(["outbox", command]).arg(self.dir.join("outbox")).output();
            let output = output.expect("our own program starts");
            assert!(output.status.success(), "{command}: {output:?}");
            output.stdout
        };
        let lines = outbox("export");
        let lines: Vec<Value> =
            lines.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let body = |line: &Value| line["text"].as_str().map(str::as_bytes).map(<[u8]>::to_vec);
        let exported: BTreeMap<Vec<u8>, (u64, u64)> = lines
            .iter()
            .filter_map(|line| Some((body(line)?, (line["epoch"].as_u64()?, line["seq"].as_u64()?))))
            .collect();
        for put in &self.producer.committed {
            assert_eq!(exported.get(&put.body), Some(&(put.epoch, put.seq)), "{put:?}");
        }
        for (body, _) in &self.producer.refused {
            assert!(exported.contains_key(body), "kept in RAM and not on flash: {}", String::from_utf8_lossy(body));
        }
        let epochs: BTreeSet<u64> = exported.values().map(|(epoch, _)| *epoch).collect();
        assert!(epochs.len() > 1, "one epoch alone: {epochs:?}");
        outbox("verify");
        outbox("list");
    }

    /// As [`Rig::settle`], but records may be missing if gaps count exactly them.
    #[track_caller]
    pub fn settle_but_for_counted_loss(&mut self) {
        self.wait_all_upstream();
        let gaps = self.receiver.gaps();
        let missing = self.missing();
        let covers = |gap: &StoredGap, name: &(String, u64, u64)| {
            (&gap.lane, gap.epoch) == (&name.0, name.1) && (gap.from..=gap.to).contains(&name.2)
        };
        for name in missing.keys() {
            let covering: Vec<_> = gaps.iter().filter(|gap| covers(gap, name)).collect();
            assert!(covering.len() == 1 && covering[0].why == "corrupt", "{name:?} is missing: {covering:?}");
        }
        let counted: u64 = gaps.iter().map(|gap| gap.count).sum();
        assert_eq!(counted, missing.len() as u64, "{gaps:?}");
        assert!(counted > 0, "nothing was lost");
        self.assert_nothing_else();
    }

    #[track_caller]
    fn wait_all_upstream(&mut self) {
        self.receiver.wait_acked([&self.producer]);
        self.agent.wait_drained();
    }

    /// Committed, and not stored under that name with these bytes.
    fn missing(&self) -> BTreeMap<(String, u64, u64), String> {
        let stored = self.receiver.records().into_iter();
        let stored: BTreeMap<_, _> =
            stored.map(|record| ((record.lane, record.epoch, record.seq), record.body)).collect();
        let committed = self.producer.committed.iter().map(|put| ((put.lane.clone(), put.epoch, put.seq), &put.body));
        let missing = committed.filter(|(name, body)| stored.get(name) != Some(*body));
        missing.map(|(name, body)| (name, String::from_utf8_lossy(body).into_owned())).collect()
    }

    /// Nothing is stored twice or was never taken. What was answered `degraded` is kept in RAM: it is stored, too,
    /// since nobody cut the power.
    #[track_caller]
    fn assert_nothing_else(&self) {
        let stored = self.receiver.records();
        let mut bodies = BTreeSet::new();
        for record in stored.iter().filter(|record| record.topic != "$event") {
            let body = String::from_utf8_lossy(&record.body);
            assert!(bodies.insert(record.body.as_slice()), "stored twice: {body}");
        }
        let producer = &self.producer;
        let in_ram = producer.refused.iter().filter(|(_, code)| code == "degraded").map(|(body, _)| body.as_slice());
        let in_ram: BTreeSet<&[u8]> = in_ram.collect();
        for body in &in_ram {
            assert!(bodies.contains(body), "kept in RAM and not stored: {}", String::from_utf8_lossy(body));
        }
        let committed = producer.committed.iter().map(|put| put.body.as_slice());
        let allowed: BTreeSet<&[u8]> =
            committed.chain(producer.uncertain.iter().map(Vec::as_slice)).chain(in_ram).collect();
        for body in bodies {
            assert!(allowed.contains(body), "stored and never taken: {}", String::from_utf8_lossy(body));
        }
    }
}
