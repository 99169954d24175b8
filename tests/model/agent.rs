//! The agent of the model: the real outbox and the real session, with the two mailboxes between their threads, each
//! emptied whole, as the shell does it. Links, timers and sockets are left out: a connection is there or it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use backhaul::config::{Commit, Encoding};
use backhaul::dialect::codec::Frame;
use backhaul::dialect::message::AgentMessage;
use backhaul::dialect::{self, Greeting, Input, Output, Session};
use backhaul::outbox::expiry::Clock;
use backhaul::outbox::{LaneId, Outbox};
use backhaul::record::{Epoch, Fetch, Item, LaneName, Offer, Seq};
use backhaul::time::Instant;

use super::facts::{self, Facts};
use super::flash::Flash;
use super::search::Digest;
use super::server::{self, Conn};

/// Time stands still: what a deadline does is a step of its own.
pub const NOW: Instant = Instant::from_micros(1_000_000);

/// Long after anything was put: whatever waits is a backlog.
const LATE: Clock = Clock { boot: 2, boot_ms: 1, wall_ms: None, server_ms: None };

/// What lies in wait for the outbox thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ForOutbox {
    acks: BTreeMap<(LaneName, Epoch), Seq>,
    rejected: BTreeSet<(LaneName, Epoch, Seq)>,
    foreign: Vec<(LaneName, Epoch)>,
    fetches: Vec<Fetch>,
}

/// What lies in wait for the uplink thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ForUplink {
    items: Vec<(Fetch, Vec<Item>)>,
    offers: Vec<Offer>,
    offers_changed: bool,
}

/// One process.
#[derive(Clone)]
pub struct Agent {
    pub outbox: Outbox<Flash>,
    pub session: Option<Session>,
    dialect: Arc<dialect::Config>,
    batch_records_max: u32,
    /// A lane goes on in a new epoch ahead of its backlog.
    live: bool,
    for_outbox: ForOutbox,
    for_uplink: ForUplink,
    /// Numberings that are not ours and that the outbox still offers.
    foreign: Vec<(LaneName, Epoch)>,
    /// Refused and not yet acked.
    refused: BTreeSet<(LaneName, Epoch, Seq)>,
}

impl Agent {
    pub fn new(outbox: Outbox<Flash>, dialect: Arc<dialect::Config>, batch_records_max: u32, live: bool) -> Self {
        let for_uplink = ForUplink { offers: outbox.offers(), ..ForUplink::default() };
        Self {
            outbox,
            session: None,
            dialect,
            batch_records_max,
            live,
            for_outbox: ForOutbox::default(),
            for_uplink,
            foreign: Vec::new(),
            refused: BTreeSet::new(),
        }
    }

    /// The outbox thread has something to do.
    pub fn outbox_has_mail(&self) -> bool {
        self.for_outbox != ForOutbox::default()
    }

    /// The uplink thread has something to do.
    pub fn uplink_has_mail(&self) -> bool {
        self.for_uplink.offers_changed || !self.for_uplink.items.is_empty()
    }

    /// One turn of the outbox thread, perhaps with a few puts to one lane. How many of them were taken.
    pub fn outbox_turn(&mut self, puts: Option<(LaneId, u8)>, facts: &mut Facts) -> u8 {
        let mail = std::mem::take(&mut self.for_outbox);
        for (lane, epoch, seq) in mail.rejected {
            self.outbox.rejected(&lane, epoch, seq, "no");
        }
        for ((lane, epoch), seq) in mail.acks {
            self.outbox.acked(&lane, epoch, seq, NOW);
        }
        for (lane, epoch) in mail.foreign {
            self.renumber(&lane, epoch, facts);
        }
        let taken = puts.map_or(0, |(lane, count)| self.put(lane, count, facts));
        for fetch in mail.fetches {
            let items = self.outbox.fetch(&fetch);
            self.for_uplink.items.push((fetch, items));
        }
        self.publish(facts);
        taken
    }

    fn renumber(&mut self, lane: &LaneName, epoch: Epoch, facts: &mut Facts) {
        let first = |offers: &[Offer]| {
            offers.iter().find(|offer| offer.lane == *lane && offer.epoch == epoch).map(|offer| offer.first)
        };
        let before = self.outbox.offers();
        self.outbox.renumber(lane, epoch);
        let after = self.outbox.offers();
        let new = after.iter().find(|offer| offer.lane == *lane && !before.iter().any(|old| old.epoch == offer.epoch));
        if let (Some(first), Some(new)) = (first(&before), new) {
            facts.on_renumbered(lane, epoch, first, new.epoch);
        }
    }

    fn put(&mut self, lane: LaneId, count: u8, facts: &mut Facts) -> u8 {
        let mut taken = 0;
        for _ in 0..count {
            let name = self.outbox.lane_name(lane).clone();
            let Ok((epoch, seq)) = self.outbox.push(lane, facts::draft(facts.count(), 1), NOW) else { break };
            facts.put((name, epoch, seq));
            taken += 1;
        }
        match self.outbox.commit_mode(lane) {
            Commit::Sync => {
                let result = self.outbox.commit(lane);
                self.tell(facts);
                if result.is_err() {
                    facts.degrade();
                }
            }
            Commit::Group | Commit::RamFirst => {}
        }
        taken
    }

    /// Deadlines of the outbox.
    pub fn outbox_timeout(&mut self, facts: &mut Facts) {
        if let Some((at, _)) = self.outbox.poll_timeout() {
            self.outbox.handle_timeout(at);
            self.tell(facts);
            self.publish(facts);
        }
    }

    /// Whoever waited for `committed` hears it where it is so.
    fn tell(&self, facts: &mut Facts) {
        facts.tell(|(lane, epoch, seq)| {
            self.outbox.lane(Some(lane.as_str())).is_some_and(|lane| self.outbox.is_committed(lane, *epoch, *seq))
        });
    }

    fn publish(&mut self, facts: &mut Facts) {
        while let Some(event) = self.outbox.poll_event() {
            if event.kind == "storage_degraded" {
                facts.degrade();
            }
        }
        let offers = self.outbox.offers();
        self.for_uplink.offers_changed |= offers != self.for_uplink.offers;
        self.for_uplink.offers = offers;
    }

    /// The upgrade is done: live epochs begin, `hello` goes out.
    pub fn connect(&mut self, conn: &mut Conn, facts: &mut Facts) -> Result<(), String> {
        if self.live {
            self.outbox.handle_clock(LATE);
            self.outbox.begin_live();
            self.tell(facts);
            self.publish(facts);
        }
        self.for_uplink.offers_changed = false;
        let asked = |number: &u64| {
            let in_mail = |fetch: &Fetch| fetch.session == *number;
            self.for_outbox.fetches.iter().any(in_mail) || self.for_uplink.items.iter().any(|(fetch, _)| in_mail(fetch))
        };
        // The lowest that no question bears: numbers that only rise would tell equal states apart.
        let session = (1..).find(|number| !asked(number)).expect("endless");
        let greeting = Greeting {
            device: "model".into(),
            agent: "backhaul/model".into(),
            boot: "1".into(),
            offers: self.ours(),
            commands: None,
            last: None,
            session,
            encoding: Some(Encoding::Postcard),
            capped: false,
            batch_records_max: self.batch_records_max,
            lone_records: 0,
        };
        self.session = Some(Session::new(Arc::clone(&self.dialect), greeting, NOW));
        self.perform(conn, facts)
    }

    /// The offers without the numberings that are not ours, as the upstream keeps them back.
    fn ours(&mut self) -> Vec<Offer> {
        let offers = &self.for_uplink.offers;
        let is = |(lane, epoch): &(LaneName, Epoch), offer: &Offer| offer.epoch == *epoch && offer.lane == *lane;
        self.foreign.retain(|pair| offers.iter().any(|offer| is(pair, offer)));
        offers.iter().filter(|offer| !self.foreign.iter().any(|pair| is(pair, offer))).cloned().collect()
    }

    /// One turn of the uplink thread: what the outbox had to say.
    pub fn uplink_turn(&mut self, conn: Option<&mut Conn>, facts: &mut Facts) -> Result<(), String> {
        let items = std::mem::take(&mut self.for_uplink.items);
        let changed = std::mem::take(&mut self.for_uplink.offers_changed);
        let offers = changed.then(|| self.ours());
        let (Some(session), Some(conn)) = (&mut self.session, conn) else { return Ok(()) };
        for (fetch, items) in items {
            session.handle_input(Input::Items(&fetch, items), NOW);
        }
        if let Some(offers) = offers {
            session.handle_input(Input::Offers(&offers), NOW);
        }
        self.perform(conn, facts)
    }

    /// The next message of the server's.
    pub fn read(&mut self, conn: &mut Conn, facts: &mut Facts) -> Result<(), String> {
        if let (Some(session), Some(bytes)) = (&mut self.session, conn.down.pop_front()) {
            session.handle_input(Input::Binary(&bytes), NOW);
        }
        self.perform(conn, facts)
    }

    /// The connection is gone.
    pub fn hang_up(&mut self, conn: &mut Conn) {
        self.session = None;
        conn.leave();
    }

    /// Carries out what the session wants, as the upstream and the uplink's shell do.
    fn perform(&mut self, conn: &mut Conn, facts: &mut Facts) -> Result<(), String> {
        while let Some(output) = self.session.as_mut().and_then(Session::poll_output) {
            match output {
                Output::Transmit { frame: Frame::Binary(bytes), .. } => self.transmit(bytes, conn, facts)?,
                Output::Transmit { frame: Frame::Text(text), .. } => return Err(format!("not postcard: {text}")),
                Output::Fetch(fetch) => self.for_outbox.fetches.push(fetch),
                Output::Greeted { .. } => facts.restored = None,
                Output::Acked { lane, epoch, seq } => {
                    self.refused.retain(|refused| (&refused.0, refused.1) != (&lane, epoch) || refused.2 > seq);
                    let known = self.for_outbox.acks.entry((lane, epoch)).or_default();
                    *known = seq.max(*known);
                }
                Output::Rejected { lane, epoch, seq, .. } => {
                    if self.refused.insert((lane.clone(), epoch, seq)) {
                        self.for_outbox.rejected.insert((lane, epoch, seq));
                    }
                }
                Output::Foreign { lane, epoch } => {
                    if !facts.copies_allowed {
                        return Err(format!("lane {lane}: epoch {epoch} is held to be someone else's"));
                    }
                    self.refused.retain(|refused| (&refused.0, refused.1) != (&lane, epoch));
                    self.foreign.push((lane.clone(), epoch));
                    self.for_outbox.foreign.push((lane, epoch));
                }
                Output::End { failure, .. } => {
                    if failure.class == backhaul::link::Class::Protocol {
                        return Err(format!("the session ends: {failure:?}"));
                    }
                    self.hang_up(conn);
                }
                // That no pong comes says nothing of the acks.
                Output::Proved | Output::Forgotten { .. } | Output::Ping(_) => {}
                Output::Command { .. } | Output::Retry { .. } => {
                    return Err(format!("never asked for: {output:?}"));
                }
            }
        }
        Ok(())
    }

    fn transmit(&mut self, bytes: Vec<u8>, conn: &mut Conn, facts: &mut Facts) -> Result<(), String> {
        if self.outbox.disk_mut().is_off() {
            return Ok(());
        }
        if let AgentMessage::Records { lane, epoch, records } = server::decode(&bytes) {
            for record in &records {
                facts.on_sent(&lane, epoch, record)?;
            }
        }
        conn.up.push_back(bytes);
        Ok(())
    }

    /// Everything delivered, nothing under way in here.
    pub fn is_drained(&self) -> bool {
        !self.outbox_has_mail()
            && !self.uplink_has_mail()
            && self.session.as_ref().is_some_and(Session::is_idle)
            && self.outbox.offers().iter().all(|offer| offer.first == offer.next)
            && self.outbox.lanes_status(None).iter().all(|lane| lane.depth == 0)
    }

    /// For a trace.
    pub fn describe(&self) -> String {
        let lane = |offer: &Offer| {
            format!("{}/{:x} {}..{} sent≤{}", offer.lane, offer.epoch % 4096, offer.first, offer.next, offer.sent_max)
        };
        let lanes: Vec<_> = self.outbox.offers().iter().map(lane).collect();
        let depth: Vec<_> = self.outbox.lanes_status(None).iter().map(|lane| lane.depth).collect();
        let session = if self.session.is_some() { "session" } else { "no session" };
        format!("{} depth {depth:?} {session}", lanes.join(", "))
    }
}

impl Hash for Agent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.outbox.hash_state(state);
        // Types of the agent's own surface that no one else has to hash: by what they print.
        let mut digest = Digest::default();
        let rest = (&self.session, &self.for_outbox, &self.for_uplink, &self.foreign, &self.refused);
        write!(digest, "{rest:?}").expect("a digest takes everything");
        digest.value().hash(state);
    }
}
