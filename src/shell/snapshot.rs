//! Puts the snapshot together that `status` shows: what the threads pinned to the board, and what the process knows
//! of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::insight::figures::{Histograms, Rate};
use crate::shell::board::Board;
use crate::shell::clock;
use crate::status::{Agent, Flash, Lane, Link, Memory, Status};
use crate::time::Instant;

/// Where snapshots come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// What the threads say.
    pub board: Arc<Board>,
    /// The agent's part; its uptime is counted from `started`.
    pub agent: Agent,
    /// When the process started.
    pub started: Instant,
    /// When the outbox was opened that writes to flash.
    pub opened: Instant,
    /// The bound that `check` prints.
    pub queues_bytes_max: u64,
    /// The same with the program itself.
    pub rss_bytes_max: u64,
}

impl Source {
    /// Everything, now. `queues_bytes`: what lies in queues and buffers outside the outbox.
    pub fn snapshot(&self, queues_bytes: u64) -> Status {
        let now = clock::now();
        let agent = Agent {
            uptime_s: now.since(self.started).as_secs(),
            loss_s_ago: self.board.lost_at.lock().map(|at| now.since(at).as_secs()),
            ..self.agent.clone()
        };
        let queues_bytes = queues_bytes + self.board.outbox_bytes.load(Ordering::Relaxed);
        Status {
            agent,
            link: self.link(),
            lanes: self.lanes(now),
            flash: self.flash(now),
            wire: *self.board.wire.lock(),
            delay: *self.board.delay.lock(),
            commands: *self.board.commands.lock(),
            memory: Memory {
                rss_bytes: rss_bytes(),
                queues_bytes,
                queues_bytes_max: self.queues_bytes_max,
                rss_bytes_max: self.rss_bytes_max,
            },
            histograms: Histograms {
                sync: self.board.sync.lock().clone(),
                rtt: self.board.rtt.lock().clone(),
                put_to_delivered: self.board.put_to_delivered.lock().clone(),
            },
        }
    }

    /// The estimate of the life-time is of this moment.
    fn flash(&self, now: Instant) -> Flash {
        let mut flash = self.board.flash.lock().clone();
        if let Some(lifetime) = &mut flash.lifetime {
            lifetime.estimate(flash.bytes_written, now.since(self.opened));
        }
        flash
    }

    /// The outbox thread sleeps while nothing happens; its records grow older all the same.
    fn lanes(&self, now: Instant) -> Vec<Lane> {
        let asleep = now.since(*self.board.lanes_at.lock());
        let mut lanes = self.board.lanes.lock().clone();
        for lane in &mut lanes {
            lane.oldest_s = lane.oldest_s.map(|s| s + asleep.as_secs());
            lane.put_per_s = Rate::aged(lane.put_per_s, asleep);
            lane.acked_per_s = Rate::aged(lane.acked_per_s, asleep);
        }
        lanes
    }

    /// The link's part, now.
    pub fn link(&self) -> Link {
        let wall_ms = clock::wall_ms_if_set();
        let certificate = self.board.certificate.lock().as_ref().map(|view| view.status(wall_ms));
        let link = self.board.link.lock().status(clock::now(), wall_ms.is_some());
        Link { certificate, ..link }
    }
}

/// Resident memory of this process; 0 where /proc does not say.
pub fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_grow_older_while_the_outbox_sleeps() {
        let board = Arc::<Board>::default();
        let lane = |oldest_s| Lane { oldest_s, ..Lane::default() };
        *board.lanes.lock() = vec![lane(Some(5)), lane(None)];
        *board.lanes_at.lock() = Instant::from_micros(10_000_000);
        let (agent, started) = (Agent::default(), Instant::default());
        let source = Source { board, agent, started, opened: started, queues_bytes_max: 0, rss_bytes_max: 0 };
        let lanes = source.lanes(Instant::from_micros(13_900_000));
        assert_eq!((lanes[0].oldest_s, lanes[1].oldest_s), (Some(8), None));
    }

    #[test]
    fn knows_its_own_memory() {
        assert!(rss_bytes() > 100 << 10);
    }
}
