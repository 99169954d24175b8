//! A model of the upstream: an append-only log of which a prefix is durable, so that a crash and a restored backup
//! are truncations. Written from the protocol's text, sharing nothing with the receiver but the codec.

use std::collections::BTreeMap;

use backhaul::config::Encoding;
use backhaul::dialect::codec::{self, Frame};
use backhaul::dialect::message::{Acked, AgentMessage, Rejected, ServerMessage, Welcome};
use backhaul::record::LaneName;

const REASON: &str = "sim";

/// Whether the server takes a record depends on the record alone: one in sixteen it refuses.
pub fn is_refused(text: &str) -> bool {
    let number: u64 = text.trim_start_matches('x').parse().unwrap_or(0);
    number % 16 == 5
}

/// What the server has taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Record {
        epoch: u64,
        seq: u64,
        text: String,
    },
    Gap {
        epoch: u64,
        from: u64,
        to: u64,
        why: String,
        count: u64,
    },
    /// A record that will never be stored.
    Refusal {
        epoch: u64,
        seq: u64,
        text: String,
    },
}

impl Entry {
    fn last(&self) -> (u64, u64) {
        match self {
            Self::Record { epoch, seq, .. } | Self::Refusal { epoch, seq, .. } => (*epoch, *seq),
            Self::Gap { epoch, to, .. } => (*epoch, *to),
        }
    }
}

/// One connection as the server sees it.
#[derive(Debug)]
pub struct Peer {
    pub conn: u64,
    pub encoding: Encoding,
    pub greeted: bool,
    /// What this connection may be acked: the pairs its hello named.
    pairs: Vec<(LaneName, u64)>,
}

#[derive(Debug, Default)]
pub struct Server {
    pub log: Vec<Entry>,
    pub durable: usize,
    pub peers: Vec<Peer>,
    /// Broken on purpose: older connections are not fenced.
    pub without_fence: bool,
}

/// What the server does in answer.
pub enum Answer {
    Send(u64, Frame),
    Close(u64, u16),
}

impl Server {
    pub fn acked(&self, epoch: u64, len: usize) -> u64 {
        self.log[..len].iter().map(Entry::last).filter(|(of, _)| *of == epoch).map(|(_, seq)| seq).max().unwrap_or(0)
    }

    pub fn stored(&self) -> BTreeMap<(u64, u64), &str> {
        let record = |entry: &'_ Entry| match entry {
            Entry::Record { epoch, seq, .. } => Some((*epoch, *seq)),
            Entry::Gap { .. } | Entry::Refusal { .. } => None,
        };
        let mut stored = BTreeMap::new();
        for entry in &self.log {
            if let (Some(name), Entry::Record { text, .. }) = (record(entry), entry) {
                stored.insert(name, text.as_str());
            }
        }
        stored
    }

    /// What was refused of an epoch from a number on, as far as it is durable.
    fn refused(&self, epoch: u64, first: u64) -> impl Iterator<Item = u64> {
        self.log[..self.durable].iter().filter_map(move |entry| match entry {
            Entry::Refusal { epoch: of, seq, .. } if *of == epoch && *seq >= first => Some(*seq),
            Entry::Refusal { .. } | Entry::Record { .. } | Entry::Gap { .. } => None,
        })
    }

    pub fn connect(&mut self, conn: u64, encoding: Encoding) {
        self.peers.push(Peer { conn, encoding, greeted: false, pairs: Vec::new() });
    }

    pub fn disconnect(&mut self, conn: u64) {
        self.peers.retain(|peer| peer.conn != conn);
    }

    /// Takes one message. An error is a broken rule of the agent's: the test fails.
    pub fn receive(&mut self, conn: u64, frame: &Frame) -> Result<Vec<Answer>, String> {
        let Some(index) = self.peers.iter().position(|peer| peer.conn == conn) else { return Ok(Vec::new()) };
        let message = codec::decode::<AgentMessage>(&frame.as_ref()).map_err(|error| error.to_string())?;
        let message = message.ok_or("a message without a name")?;
        let greeted = self.peers[index].greeted;
        match message {
            AgentMessage::Hello(hello) if !greeted => {
                let mut answers = Vec::new();
                if !self.without_fence {
                    let older: Vec<u64> = self.peers.iter().filter(|peer| peer.greeted).map(|peer| peer.conn).collect();
                    self.peers.retain(|peer| !peer.greeted);
                    answers.extend(older.into_iter().map(|conn| Answer::Close(conn, 4009)));
                }
                self.durable = self.log.len();
                let acked = hello.lanes.iter().map(|lane| Acked {
                    lane: lane.lane.clone(),
                    epoch: lane.epoch,
                    seq: self.acked(lane.epoch, self.durable),
                });
                let rejected = hello.lanes.iter().flat_map(|lane| {
                    let refused = self.refused(lane.epoch, lane.first);
                    refused.map(|seq| Rejected {
                        lane: lane.lane.clone(),
                        epoch: lane.epoch,
                        seq,
                        reason: REASON.into(),
                    })
                });
                let welcome = Welcome {
                    session: format!("s{conn}"),
                    features: Vec::new(),
                    now: 1_767_225_600_000,
                    message_bytes_max: 1 << 20,
                    acked: acked.filter(|acked| acked.seq > 0).collect(),
                    rejected: rejected.collect(),
                    command_stream: 1,
                };
                let peer = self.peers.iter_mut().find(|peer| peer.conn == conn).expect("it is speaking");
                peer.greeted = true;
                peer.pairs = hello.lanes.into_iter().map(|lane| (lane.lane, lane.epoch)).collect();
                answers.push(Answer::Send(conn, codec::encode(&ServerMessage::Welcome(welcome), peer.encoding)));
                Ok(answers)
            }
            AgentMessage::Records { lane, epoch, records } if greeted => {
                self.named(index, &lane, epoch)?;
                for record in records {
                    self.contiguous(epoch, record.seq)?;
                    let text = String::from_utf8_lossy(record.body.as_bytes()).into_owned();
                    let seq = record.seq;
                    self.log.push(match is_refused(&text) {
                        true => Entry::Refusal { epoch, seq, text },
                        false => Entry::Record { epoch, seq, text },
                    });
                }
                Ok(Vec::new())
            }
            AgentMessage::Gap { lane, epoch, from, to, lost } if greeted => {
                self.named(index, &lane, epoch)?;
                self.contiguous(epoch, from)?;
                if lost.len() != 1 || to < from {
                    return Err(format!("a gap of one cause: {from}..={to} {lost:?}"));
                }
                self.log.push(Entry::Gap { epoch, from, to, why: lost[0].why.clone(), count: lost[0].count });
                Ok(Vec::new())
            }
            other @ (AgentMessage::Hello(_)
            | AgentMessage::Records { .. }
            | AgentMessage::Gap { .. }
            | AgentMessage::Done { .. }) => Err(format!("not allowed here: {other:?}")),
        }
    }

    fn named(&self, index: usize, lane: &LaneName, epoch: u64) -> Result<(), String> {
        let named = self.peers[index].pairs.iter().any(|pair| pair.0 == *lane && pair.1 == epoch);
        if named { Ok(()) } else { Err(format!("hello did not name {lane} {epoch}")) }
    }

    fn contiguous(&self, epoch: u64, seq: u64) -> Result<(), String> {
        let expected = self.acked(epoch, self.log.len()) + 1;
        if seq == expected { Ok(()) } else { Err(format!("{seq} instead of {expected} in epoch {epoch}")) }
    }

    /// Makes everything durable and acks it.
    pub fn sync(&mut self) -> Vec<Answer> {
        let before = std::mem::replace(&mut self.durable, self.log.len());
        let mut answers = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.greeted) {
            for (lane, epoch) in &peer.pairs {
                let first = self.acked(*epoch, before) + 1;
                for seq in self.refused(*epoch, first) {
                    let (lane, epoch) = (lane.clone(), *epoch);
                    let reject = ServerMessage::Reject { lane, epoch, seq, reason: REASON.into() };
                    answers.push(Answer::Send(peer.conn, codec::encode(&reject, peer.encoding)));
                }
                let ack =
                    ServerMessage::Ack { lane: lane.clone(), epoch: *epoch, seq: self.acked(*epoch, self.durable) };
                answers.push(Answer::Send(peer.conn, codec::encode(&ack, peer.encoding)));
            }
        }
        answers
    }

    /// Loses what is not durable, or (a restored backup) all behind `len`; and every connection.
    pub fn crash(&mut self, len: usize) -> Vec<Entry> {
        self.peers.clear();
        let lost = self.log.split_off(len.min(self.durable));
        self.durable = self.log.len();
        lost
    }
}
