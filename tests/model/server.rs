//! The far end and the wire. The server is an append-only log of which a prefix is durable, so that a crash and a
//! restored backup are truncations; it keeps the protocol's rules and reports every one that the agent breaks.

use std::collections::VecDeque;

use backhaul::config::Encoding;
use backhaul::dialect::codec::{self, Frame};
use backhaul::dialect::message::{Acked, AgentMessage, Hello, Rejected, ServerMessage, Welcome};
use backhaul::record::{Epoch, LaneName, Record, Seq};

use super::facts;

/// What the server has taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A record, stored.
    Record { lane: LaneName, epoch: Epoch, seq: Seq, id: u8 },
    /// A record, refused for ever.
    Refused { lane: LaneName, epoch: Epoch, seq: Seq, id: u8 },
    /// Numbers that will never come.
    Gap { lane: LaneName, epoch: Epoch, from: Seq, to: Seq, why: String, count: u64 },
}

impl Entry {
    fn last(&self) -> (&LaneName, Epoch, Seq) {
        match self {
            Self::Record { lane, epoch, seq, .. } | Self::Refused { lane, epoch, seq, .. } => (lane, *epoch, *seq),
            Self::Gap { lane, epoch, to, .. } => (lane, *epoch, *to),
        }
    }

    fn is_of(&self, (lane, epoch): &(LaneName, Epoch)) -> bool {
        let (of, in_epoch, _) = self.last();
        of == lane && in_epoch == *epoch
    }
}

/// One connection: both directions and what the server knows of it.
#[derive(Debug, Clone, Hash)]
pub struct Conn {
    /// Agent to server, in order.
    pub up: VecDeque<Vec<u8>>,
    /// Server to agent, in order.
    pub down: VecDeque<Vec<u8>>,
    /// The agent has not left.
    pub agent: bool,
    /// The server has not closed.
    pub server: bool,
    /// What its `hello` named, and what of it was acked here; none before.
    pairs: Option<Vec<((LaneName, Epoch), Seq)>>,
}

impl Conn {
    pub fn new() -> Self {
        Self { up: VecDeque::new(), down: VecDeque::new(), agent: true, server: true, pairs: None }
    }

    /// The agent is gone: nothing more is heard here.
    pub fn leave(&mut self) {
        self.agent = false;
        self.down.clear();
    }

    /// The server is gone: nothing more is taken.
    pub fn close(&mut self) {
        self.server = false;
        self.up.clear();
    }

    fn say(&mut self, message: &ServerMessage) {
        if self.agent
            && let Frame::Binary(bytes) = codec::encode(message, Encoding::Postcard)
        {
            self.down.push_back(bytes);
        }
    }

    /// True where records come next: the only message that can be refused.
    pub fn records_are_next(&self) -> bool {
        self.up.front().is_some_and(|bytes| matches!(decode(bytes), AgentMessage::Records { .. }))
    }
}

/// A message of the agent's.
pub fn decode(bytes: &[u8]) -> AgentMessage {
    let frame = Frame::Binary(bytes.to_vec());
    codec::decode(&frame.as_ref()).expect("the agent encodes what can be decoded").expect("and what is known")
}

/// What is stored.
#[derive(Debug, Clone, Default, Hash)]
pub struct Server {
    /// All that was taken.
    pub log: Vec<Entry>,
    /// How much of it is durable.
    pub durable: usize,
}

impl Server {
    fn acked(&self, pair: &(LaneName, Epoch), len: usize) -> Seq {
        self.log[..len].iter().filter(|entry| entry.is_of(pair)).map(|entry| entry.last().2).max().unwrap_or(0)
    }

    /// Takes the next message of `conn`; `other` is the device's other connection. An error: the agent broke a rule.
    pub fn receive(&mut self, conn: &mut Conn, other: Option<&mut Conn>, refuse: bool) -> Result<(), String> {
        let Some(bytes) = conn.up.pop_front() else { return Ok(()) };
        match decode(&bytes) {
            AgentMessage::Hello(hello) if conn.pairs.is_none() => {
                // Rule 2: fence, make durable, and only then say what is stored.
                if let Some(other) = other.filter(|other| other.pairs.is_some()) {
                    other.close();
                }
                self.durable = self.log.len();
                self.welcome(conn, hello);
                Ok(())
            }
            AgentMessage::Records { lane, epoch, records } => {
                let pair = (lane, epoch);
                named(conn, &pair)?;
                for (index, record) in records.into_iter().enumerate() {
                    self.contiguous(&pair, record.seq)?;
                    self.take(&pair, &record, refuse && index == 0)?;
                }
                Ok(())
            }
            AgentMessage::Gap { lane, epoch, from, to, lost } => {
                let pair = (lane, epoch);
                named(conn, &pair)?;
                self.contiguous(&pair, from)?;
                let [lost] = lost.as_slice() else { return Err(format!("a gap of one cause: {lost:?}")) };
                if to < from {
                    return Err(format!("a gap from {from} to {to}"));
                }
                let (lane, why, count) = (pair.0, lost.why.clone(), lost.count);
                self.log.push(Entry::Gap { lane, epoch, from, to, why, count });
                Ok(())
            }
            other @ (AgentMessage::Hello(_) | AgentMessage::Done { .. }) => Err(format!("not allowed here: {other:?}")),
        }
    }

    fn take(&mut self, (lane, epoch): &(LaneName, Epoch), record: &Record, refuse: bool) -> Result<(), String> {
        let id = facts::id_of(record)?;
        let (lane, epoch, seq) = (lane.clone(), *epoch, record.seq);
        self.log.push(match refuse {
            true => Entry::Refused { lane, epoch, seq, id },
            false => Entry::Record { lane, epoch, seq, id },
        });
        Ok(())
    }

    fn welcome(&self, conn: &mut Conn, hello: Hello) {
        let pairs: Vec<_> = hello.lanes.iter().map(|lane| (lane.lane.clone(), lane.epoch)).collect();
        let acked: Vec<Seq> = pairs.iter().map(|pair| self.acked(pair, self.durable)).collect();
        let rejected = self.log.iter().filter_map(|entry| match entry {
            Entry::Refused { lane, epoch, seq, .. } => {
                let held = hello.lanes.iter().find(|held| held.lane == *lane && held.epoch == *epoch)?;
                let refusal = || Rejected { lane: lane.clone(), epoch: *epoch, seq: *seq, reason: "no".into() };
                (held.first..held.next).contains(seq).then(refusal)
            }
            Entry::Record { .. } | Entry::Gap { .. } => None,
        });
        let welcome = Welcome {
            session: "s".into(),
            features: Vec::new(),
            now: 1_767_225_600_000,
            message_bytes_max: 1 << 20,
            acked: pairs
                .iter()
                .zip(&acked)
                .filter(|(_, seq)| **seq > 0)
                .map(|((lane, epoch), seq)| Acked { lane: lane.clone(), epoch: *epoch, seq: *seq })
                .collect(),
            rejected: rejected.collect(),
            command_stream: 1,
        };
        conn.say(&ServerMessage::Welcome(welcome));
        conn.pairs = Some(pairs.into_iter().zip(acked).collect());
    }

    /// Rule 3. What an older connection said is fenced, what a crash lost was not acked: there is no other way.
    fn contiguous(&self, pair: &(LaneName, Epoch), seq: Seq) -> Result<(), String> {
        let expected = self.acked(pair, self.log.len()) + 1;
        if seq == expected { Ok(()) } else { Err(format!("{seq} instead of {expected} in {pair:?}")) }
    }

    /// Makes everything durable; says what was refused, then what is acked.
    pub fn sync(&mut self, conns: [Option<&mut Conn>; 2]) {
        let news = self.log[self.durable..].to_vec();
        self.durable = self.log.len();
        for conn in conns.into_iter().flatten().filter(|conn| conn.server) {
            let Some(mut pairs) = conn.pairs.take() else { continue };
            for (pair, told) in &mut pairs {
                for entry in news.iter().filter(|entry| entry.is_of(pair)) {
                    if let Entry::Refused { lane, epoch, seq, .. } = entry {
                        let (lane, epoch, seq) = (lane.clone(), *epoch, *seq);
                        conn.say(&ServerMessage::Reject { lane, epoch, seq, reason: "no".into() });
                    }
                }
                let acked = self.acked(pair, self.durable);
                if acked > *told {
                    *told = acked;
                    conn.say(&ServerMessage::Ack { lane: pair.0.clone(), epoch: pair.1, seq: acked });
                }
            }
            conn.pairs = Some(pairs);
        }
    }

    /// Keeps `len` entries; returns what was durable and is lost.
    pub fn truncate(&mut self, len: usize) -> Vec<Entry> {
        self.log.truncate(self.durable.max(len));
        let lost = self.log.split_off(len.min(self.durable));
        self.durable = self.log.len();
        lost
    }
}

fn named(conn: &Conn, pair: &(LaneName, Epoch)) -> Result<(), String> {
    let pairs = conn.pairs.as_ref().ok_or("records before welcome")?;
    let named = pairs.iter().any(|(known, _)| known == pair);
    if named { Ok(()) } else { Err(format!("hello did not name {pair:?}")) }
}
