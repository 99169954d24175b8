//! The plain dialect: what is sent, and what a pong confirms.

use std::time::Duration;

use super::*;

struct Plain {
    session: Session,
    now: Instant,
    fetches: Vec<Fetch>,
}

impl Plain {
    fn of(config: Config, offers: Vec<Offer>) -> Self {
        let now = Instant::from_micros(1_000_000);
        let greeting = Greeting { encoding: None, ..greeting(offers, Encoding::Json) };
        Self { session: Session::new(Arc::new(config), greeting, now), now, fetches: Vec::new() }
    }

    /// What it did, as short lines.
    fn did(&mut self) -> Vec<String> {
        let outputs: Vec<_> = std::iter::from_fn(|| self.session.poll_output()).collect();
        let lines = outputs.iter().map(|output| match output {
            Output::Transmit { frame: Frame::Text(text), purpose: Purpose::Records } => format!("text {text}"),
            Output::Transmit { frame: Frame::Binary(bytes), purpose: Purpose::Records } => format!("binary {bytes:?}"),
            Output::Fetch(fetch) => {
                self.fetches.push(fetch.clone());
                line(output)
            }
            _ => line(output),
        });
        lines.collect()
    }

    fn answers(&mut self, name: &str, items: Vec<Item>) {
        let fetch = self.fetches.iter().rfind(|fetch| fetch.lane.as_str() == name).unwrap().clone();
        self.session.handle_input(Input::Items(&fetch, items), self.now);
    }

    fn pong(&mut self, payload: &str) -> Vec<String> {
        self.session.handle_input(Input::Pong(payload.as_bytes()), self.now);
        self.did()
    }
}

fn text(seq: Seq) -> Item {
    let body = Body::Text(format!("r{seq}"));
    Item::Record(Record { seq, at: None, topic: "t".into(), body })
}

fn gap(from: Seq, to: Seq) -> Item {
    Item::Gap(Gap { from, to, why: Why::Overflow })
}

#[test]
fn the_upgrade_is_the_greeting_and_each_record_a_message_with_a_ping_behind_the_batch() {
    let mut plain = Plain::of(config(), vec![offer("a", 3, 6)]);
    assert_eq!(plain.did(), ["greeted plain-5 0", "fetch a 3"]);
    let bytes = Item::Record(Record { seq: 5, at: None, topic: "t".into(), body: Body::Bytes(vec![0, 255]) });
    plain.answers("a", vec![text(3), text(4), bytes]);
    assert_eq!(plain.did(), ["text r3", "text r4", "binary [0, 255]", "ping 1"]);
    assert_eq!((plain.session.in_flight().records, plain.session.progressed()), (3, false));
    assert_eq!(plain.pong("1"), ["acked a 5", "proved"]);
    assert!(plain.session.is_idle() && plain.session.progressed());
    assert_eq!(plain.session.poll_timeout(), None);
}

#[test]
fn a_pong_confirms_every_ping_before_it_and_one_that_nobody_asked_for_none() {
    let mut plain = Plain::of(config(), vec![offer("a", 1, 9), offer("b", 1, 9)]);
    plain.did();
    plain.answers("a", vec![text(1)]);
    plain.answers("b", vec![text(1), text(2)]);
    plain.did();
    plain.answers("a", vec![text(2)]);
    assert_eq!(plain.did(), ["text r2", "ping 3", "fetch a 3"]);
    for stray in ["", "4", "x", "-1", "18446744073709551616"] {
        assert_eq!(plain.pong(stray), [""; 0], "{stray:?}");
    }
    assert_eq!(plain.session.in_flight().records, 4);
    // RFC 6455 § 5.5.3: the newest ping alone may be answered.
    assert_eq!(plain.pong("2"), ["acked a 1", "proved", "acked b 2"]);
    assert_eq!(plain.pong("2"), [""; 0]);
    assert_eq!(plain.pong("1"), [""; 0]);
    assert_eq!(plain.pong("3"), ["acked a 2"]);
}

#[test]
fn a_gap_is_settled_here_in_its_turn() {
    let mut plain = Plain::of(config(), vec![offer("a", 1, 9)]);
    plain.did();
    plain.answers("a", vec![gap(1, 3)]);
    assert_eq!(plain.did(), ["acked a 3", "fetch a 4"], "which proves nothing");
    assert!(!plain.session.progressed());
    // Behind records it waits for their pong.
    plain.answers("a", vec![text(4), gap(5, 8)]);
    assert_eq!(plain.did(), ["text r4", "ping 1"]);
    assert_eq!(plain.pong("1"), ["acked a 8", "proved"]);
    assert!(plain.session.is_idle());
    // With nothing else to send it is as if there had been nothing at all.
    let mut plain = Plain::of(config(), vec![offer("a", 1, 4)]);
    plain.did();
    plain.answers("a", vec![gap(1, 3)]);
    assert_eq!(plain.did(), ["acked a 3", "proved"]);
}

#[test]
fn a_lane_of_gaps_keeps_no_other_lane_from_being_stalled() {
    let mut plain = Plain::of(config(), vec![offer("a", 1, 2), offer("b", 1, 9)]);
    plain.did();
    plain.answers("a", vec![text(1)]);
    let (deadline, timer) = plain.session.poll_timeout().unwrap();
    assert_eq!(timer, Timer::Ack);
    plain.now = plain.now + Duration::from_millis(ACK_TIMEOUT_MS / 2);
    plain.answers("b", vec![gap(1, 5)]);
    assert_eq!(plain.did(), ["text r1", "ping 1", "acked b 5", "fetch b 6"]);
    assert_eq!(plain.session.poll_timeout(), Some((deadline, Timer::Ack)));
    plain.now = deadline;
    plain.session.handle_timeout(plain.now);
    assert_eq!(plain.did(), ["end Stalled 1000"]);
    assert!(!plain.session.progressed());
}

#[test]
fn without_a_pong_it_is_stalled() {
    let mut plain = Plain::of(config(), vec![offer("a", 1, 2)]);
    plain.did();
    plain.answers("a", vec![text(1)]);
    plain.did();
    plain.session.handle_input(Input::Text("hello"), plain.now);
    plain.session.handle_input(Input::Binary(&[1, 2]), plain.now);
    assert_eq!(plain.did(), [""; 0], "what the server says is no ack");
    let (deadline, timer) = plain.session.poll_timeout().unwrap();
    assert_eq!((deadline.since(plain.now).as_millis() as u64, timer), (ACK_TIMEOUT_MS, Timer::Ack));
    plain.now = deadline;
    plain.session.handle_timeout(plain.now);
    assert_eq!(plain.did(), ["end Stalled 1000"]);
    assert_eq!(plain.pong("1"), [""; 0], "nothing comes after the end");
    assert!(!plain.session.progressed());
}

#[test]
fn the_heartbeats_pings_count_along() {
    let mut plain = Plain::of(config(), vec![offer("a", 1, 2)]);
    plain.did();
    assert_eq!(plain.session.heartbeat(), Some(1));
    plain.answers("a", vec![text(1)]);
    assert_eq!(plain.did(), ["ping 1", "text r1", "ping 2"]);
    assert_eq!(plain.session.heartbeat(), Some(3));
    assert_eq!(plain.did(), ["ping 3"]);
    assert_eq!(plain.pong("1"), [""; 0], "it was sent before the record");
    assert_eq!(plain.pong("3"), ["acked a 1", "proved"]);
}

#[test]
fn the_window_and_the_pace_hold_here_as_well() {
    let mut plain = Plain::of(Config { window_records: 4, ..config() }, vec![offer("a", 1, 100)]);
    plain.did();
    plain.answers("a", (1..=4).map(text).collect());
    assert_eq!(plain.did(), ["text r1", "text r2", "text r3", "text r4", "ping 1"]);
    assert_eq!(plain.pong("1"), ["acked a 4", "proved", "fetch a 5"]);
    let mut plain = Plain::of(Config { records_per_s_max: 1, ..config() }, vec![offer("a", 1, 100)]);
    plain.did();
    plain.answers("a", (1..=1).map(text).collect());
    assert_eq!(plain.did(), ["text r1", "ping 1", "fetch a 2"]);
    plain.answers("a", (2..=2).map(text).collect());
    assert_eq!(plain.did(), [""; 0]);
    assert_eq!(plain.session.poll_timeout().map(|(_, timer)| timer), Some(Timer::Pace));
}
