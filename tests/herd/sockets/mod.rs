//! The herd on real sockets: the receiver as a process, and thousands of gateways in this one, each with the agent's own
//! core and transport over TCP on loopback. The configuration's times are divided by a scale, so that an outage of a
//! minute takes twelve seconds; what measures the machine and not the policy (the handshake's and the heartbeat's timeout)
//! stays as it is. `fleet::run` plays the same with the very same configuration, and the attempts are compared.
//!
//! The simulation's outage is as long as the real one was. Where the two differ, and it was measured that this machine was
//! late at every step, the outage is repeated.
//!
//! An attempt is counted where the agent calls `connect(2)`. While nothing listens nobody else can see it; what was not
//! refused by the kernel must be exactly what the receiver says that it accepted.
//!
//! HERD_LINKS and HERD_SCALE: other numbers than [`LINKS`] and [`SCALE`].

mod fleet;
mod gateway;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backhaul::config::{Heartbeat, Reconnect};
use backhaul::dialect;
use backhaul::fleet::{Outcome, Scenario, run};
use backhaul::link::Config;
use backhaul::shell::clock;
use backhaul::time::Instant;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};

use crate::support::receiver::Receiver;
use crate::support::{TempDir, not_run};
use fleet::{Counts, Fleet};
use gateway::Kit;

/// Links, unless HERD_LINKS says otherwise.
const LINKS: usize = 2_000;
/// What the configuration's times are divided by, unless HERD_SCALE says otherwise.
const SCALE: u64 = 5;
/// All are back in so many seconds at best, before scaling: 100,000 at 1,000 a second.
const BOUND_S: u64 = 100;
/// The outage, before scaling.
const OUTAGE_S: u64 = 60;
/// Most attempts a second that the goals allow, in units of the accept rate: after an outage, at a planned restart.
const PEAK: (f64, f64) = (6.8, 1.1);
/// Connections that the receiver holds at once.
const MANY: usize = 10_000;
/// Agents that send at once, and how many records each.
const SENDERS: usize = 1_000;
const RECORDS: u64 = 20;
/// From SIGTERM to the first slot, in seconds: the next receiver listens by then, also on a busy machine.
const GAP_S: u64 = 10;
/// At a planned restart the receiver lets in at once what comes in so many seconds: a lag of this machine is no herd.
const LAG_S: u32 = 5;
/// From the moment at which an attempt is due to the kernel's answer that nothing listens, on average: a hundredth of the
/// waits that are counted. Beyond, the machine is late.
const LATE: Duration = Duration::from_millis(70);
/// Outages in which the machine may be late and the two differ; then nothing was compared, which is said loudly.
const OUTAGES_MAX: usize = 3;
/// For what needs no waiting.
const PATIENCE: Duration = Duration::from_secs(120);

/// One test at a time, or each would measure the others.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder for the receiver in memory, where there is such a thing: a disk that others keep busy must not count.
fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::below(memory, "herd") } else { TempDir::new("herd") }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// The defaults, their times divided.
fn config(scale: u64) -> Config {
    let (r, default) = (Reconnect::default(), Config::default());
    let reconnect = Reconnect {
        start_delay_ms_max: r.start_delay_ms_max / scale,
        spread_ms: r.spread_ms / scale,
        backoff_ms_min: r.backoff_ms_min / scale,
        backoff_ms_max: r.backoff_ms_max / scale,
        slow_ms_min: r.slow_ms_min / scale,
        slow_ms_max: r.slow_ms_max / scale,
        // Only waited for.
        stable_after_ms: if scale == 1 { r.stable_after_ms } else { 1_000 },
        ..r
    };
    let heartbeat = Heartbeat { interval_ms: default.heartbeat.interval_ms / scale, ..default.heartbeat };
    Config { reconnect, heartbeat, handshake_timeout_ms: 120_000, endpoints_tls: vec![false], ..default }
}

/// Descriptors for so many connections beside what else is open; false, said loudly, where the system gives less.
fn can_open(connections: usize, what: &str) -> bool {
    let wanted = connections as u64 + 256;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        not_run(what, &format!("{wanted} descriptors wanted, `ulimit -Hn` is {:?}", limit.maximum));
        return false;
    }
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).unwrap();
    }
    true
}

/// The fleet against a receiver that accepts so many a second.
struct Rig {
    _dir: TempDir,
    receiver: Receiver,
    fleet: Fleet,
    config: Arc<Config>,
    scale: u64,
    rate: u32,
}

/// How one of its recoveries went.
struct Seen {
    attempts_per_device: f64,
    peak: u64,
    /// From the moment at which the receiver listened, or called the first one back.
    last_in_s: f64,
    /// So late was the loop at worst.
    late_s: f64,
    /// Without the receiver, in seconds.
    outage_s: f64,
}

impl Rig {
    /// All are connected, and have been for so long that all is forgotten.
    fn at_rest(links: usize, scale: u64) -> Self {
        let dir = in_memory();
        let mut receiver = Receiver::new(&dir);
        let rate = u32::try_from(links as u64 * scale / BOUND_S).unwrap();
        let config = Arc::new(config(scale));
        let kit = Kit::new(&receiver.address(), Arc::clone(&config), dialect::Config::default());
        // So much at once that the beginning takes no longer than it must.
        set_flags(&mut receiver, rate, rate * u32::try_from(BOUND_S).unwrap());
        receiver.start();
        receiver.wait_listening();
        let fleet = Fleet::booting(kit, links, 7);
        let mut rig = Self { _dir: dir, receiver, fleet, config, scale, rate };
        rig.rest();
        rig
    }

    fn patience(&self) -> Duration {
        PATIENCE + Duration::from_secs(5 * BOUND_S / self.scale)
    }

    fn bound_s(&self) -> f64 {
        self.fleet.len() as f64 / f64::from(self.rate)
    }

    fn all_up(&mut self, what: &str) {
        self.fleet.run_until(self.patience(), what, |fleet| fleet.up() == fleet.len());
    }

    /// Until every session is stable.
    fn rest(&mut self) {
        self.all_up("all are up");
        let young = Duration::from_millis(self.config.reconnect.stable_after_ms + 100);
        let is_at_rest = |fleet: &Fleet| {
            fleet.up() == fleet.len() && fleet.last_up_at().is_some_and(|last| clock::now().since(last) > young)
        };
        self.fleet.run_until(self.patience() + young, "all are stable", is_at_rest);
    }

    /// The receiver is killed, is away for a while, and comes back.
    fn outage(&mut self) -> Seen {
        set_flags(&mut self.receiver, self.rate, self.rate);
        let (before, begin) = (self.fleet.counts(), clock::now());
        self.fleet.take_late_max();
        self.receiver.kill9();
        let away = Duration::from_secs(OUTAGE_S / self.scale);
        self.fleet.run_until(away + PATIENCE, "the outage", |_| clock::now().since(begin) >= away);
        self.receiver.start();
        let receiver = &mut self.receiver;
        self.fleet.run_until(PATIENCE, "the receiver listens again", |_| receiver.is_listening());
        let back = clock::now();
        self.all_up("all are back");
        self.seen(before, begin, back)
    }

    /// An outage, compared; again where the two differ and this machine was late. What was counted before the last one.
    fn compared_outage(&mut self) -> Counts {
        let (devices, rate) = (self.devices(), self.rate);
        let mut before = self.fleet.counts();
        for _ in 0..OUTAGES_MAX {
            before = self.fleet.counts();
            let (seen, late) = (self.outage(), self.fleet.take_answer_time());
            // The simulation's outages are of whole seconds: between the two next to ours.
            let whole = seen.outage_s as u64;
            let [short, long] = [whole, whole + 1].map(|s| self.simulated(Scenario::outage(devices, rate, s), rate));
            let share = seen.outage_s - whole as f64;
            let attempts = short.attempts_per_device * (1.0 - share) + long.attempts_per_device * share;
            if late <= LATE || is_near(seen.attempts_per_device, attempts) {
                compare("an outage", self, &seen, attempts, &short, PEAK.0);
                return before;
            }
            eprintln!("late: a refusal took {late:?} on average, {:.3} attempts per device", seen.attempts_per_device);
            self.rest();
        }
        not_run("an outage beside its simulation", &format!("this machine was late in each of {OUTAGES_MAX}"));
        before
    }

    /// The receiver is told to restart, and does.
    fn planned(&mut self, burst: u32) -> Seen {
        set_flags(&mut self.receiver, self.rate, burst);
        let (before, begin) = (self.fleet.counts(), clock::now());
        self.fleet.take_late_max();
        self.receiver.signal(Signal::TERM);
        let receiver = &mut self.receiver;
        self.fleet.run_until(PATIENCE, "the receiver leaves", |_| receiver.has_left().is_some_and(|s| s.success()));
        receiver.start();
        self.fleet.run_until(PATIENCE, "the next receiver listens", |_| receiver.is_listening());
        assert!(clock::now().since(begin).as_secs() < GAP_S, "the next one was too late for the first slot");
        self.all_up("all are back");
        self.seen(before, begin, begin + Duration::from_secs(GAP_S))
    }

    /// From `begin` on, the receiver being there from `back` on.
    fn seen(&mut self, before: Counts, begin: Instant, back: Instant) -> Seen {
        let dials = self.fleet.counts().dials - before.dials;
        Seen {
            attempts_per_device: dials as f64 / self.fleet.len() as f64,
            peak: self.fleet.peak(begin),
            last_in_s: self.fleet.last_up_at().unwrap().since(back).as_secs_f64(),
            late_s: self.fleet.take_late_max().as_secs_f64(),
            outage_s: back.since(begin).as_secs_f64(),
        }
    }

    /// What the simulation says of the same.
    fn simulated(&self, mut scenario: Scenario, burst: u32) -> Outcome {
        scenario.server.burst = burst;
        scenario.rtt_ms = (0, 0);
        scenario.drift_ppm_max = 0;
        run(&scenario, &self.config, &mut |_, _| {})
    }

    fn devices(&self) -> u32 {
        u32::try_from(self.fleet.len()).unwrap()
    }
}

/// Of the next receiver.
fn set_flags(receiver: &mut Receiver, rate: u32, burst: u32) {
    let [rate, burst, gap] = [rate, burst, GAP_S as u32].map(|number| number.to_string());
    receiver.set_flags(&["--accept-rate", &rate, "--burst", &burst, "--restart-gap", &gap]);
}

fn is_near(seen: f64, simulated: f64) -> bool {
    (seen / simulated - 1.0).abs() <= 0.1
}

/// Prints both, and asserts what a busy machine cannot spoil: the count, and the rest against a bound and a half.
fn compare(what: &str, rig: &Rig, seen: &Seen, attempts: f64, simulated: &Outcome, peak: f64) {
    let Seen { attempts_per_device, peak: seen_peak, last_in_s, late_s, outage_s } = seen;
    let bound_s = rig.bound_s();
    eprintln!(
        "{what}, {} links, times divided by {}, away for {outage_s:.2} s, the loop {late_s:.3} s late at worst:\n  \
         attempts per device {attempts_per_device:.3} (simulated {attempts:.3})\n  \
         attempts a second   {seen_peak} at most (simulated {}), accept rate {}\n  \
         last in             {:.3} of the bound (simulated {:.3}), bound {bound_s:.1} s",
        rig.fleet.len(),
        rig.scale,
        simulated.attempts_per_s_peak,
        rig.rate,
        last_in_s / bound_s,
        simulated.last_in().unwrap(),
    );
    let near = is_near(*attempts_per_device, attempts);
    assert!(near, "{what}: {attempts_per_device} attempts per device, simulated {attempts}");
    // What comes while the loop sleeps comes at once when it wakes up.
    let peak_max = 1.5 * peak * f64::from(rig.rate) * (1.0 + late_s);
    assert!(*seen_peak as f64 <= peak_max, "{what}: {seen_peak} attempts in a second, at most {peak_max}");
    assert!(*last_in_s <= 1.5 * bound_s + late_s, "{what}: the last one was in after {last_in_s} s");
}

#[test]
fn links_on_real_sockets_come_back_as_the_simulation_says() {
    let _turn = turn();
    let links = number("HERD_LINKS", LINKS as u64) as usize;
    let scale = number("HERD_SCALE", SCALE);
    if !can_open(links, "the herd on real sockets") {
        return;
    }
    let mut rig = Rig::at_rest(links, scale);
    let (devices, rate) = (rig.devices(), rig.rate);

    let before = rig.compared_outage();
    rig.rest();
    let after = rig.fleet.counts();
    assert!(after.refused >= before.refused + u64::from(devices) / 2, "{before:?} {after:?}: something listened");
    let knocked = after.knocked() - before.knocked();
    let burst = LAG_S * rate;
    let seen = rig.planned(burst);
    let simulated = rig.simulated(Scenario::planned(devices, rate), burst);
    compare("a planned restart", &rig, &seen, simulated.attempts_per_device, &simulated, PEAK.1);
    assert_eq!(seen.attempts_per_device, 1.0);
    // The one that was there in between says how many came.
    assert_eq!(rig.receiver.accepted(), Some(knocked), "attempts that were not refused, and those accepted");
}

#[test]
fn one_receiver_holds_ten_thousand_connections() {
    let _turn = turn();
    if !can_open(MANY, "ten thousand connections") {
        return;
    }
    let dir = in_memory();
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    // 2,000 a second.
    let mut link = config(SCALE);
    link.reconnect.start_delay_ms_max = MANY as u64 / 2;
    let kit = Kit::new(&receiver.address(), Arc::new(link), dialect::Config::default());
    let mut fleet = Fleet::booting(kit, MANY, 11);
    let begin = clock::now();
    fleet.run_until(PATIENCE, "ten thousand are up", |fleet| fleet.up() == MANY);
    eprintln!("{MANY} connections after {:.1} s: {}", clock::now().since(begin).as_secs_f64(), fleet.describe());
    receiver.assert_runs();
}

#[test]
fn a_thousand_agents_that_send_at_once_are_stored_exactly_once_over_a_kill() {
    let _turn = turn();
    if !can_open(SENDERS, "a thousand agents that send") {
        return;
    }
    let dir = in_memory();
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    // Several round trips each, so that the kill finds most of them in the middle.
    let few = dialect::Config { window_records: 4, ..dialect::Config::default() };
    let kit = Kit::new(&receiver.address(), Arc::new(config(SCALE)), few);
    let mut fleet = Fleet::booting(kit, SENDERS, 13);
    fleet.run_until(PATIENCE, "a thousand are up", |fleet| fleet.up() == SENDERS);
    let acked = |fleet: &Fleet| fleet.gateways().map(|gateway| gateway.acked).sum::<u64>();
    let all = SENDERS as u64 * RECORDS;
    fleet.put(RECORDS);
    fleet.run_until(PATIENCE, "half of it is acked", |fleet| acked(fleet) >= all / 2);
    receiver.kill9();
    let before = acked(&fleet);
    receiver.start();
    receiver.wait_listening();
    fleet.run_until(PATIENCE, "everything is acked", |fleet| acked(fleet) == all);
    eprintln!("{SENDERS} agents sent {all} records, killed after {before}");
    assert!(before < all, "all was over before the kill");

    let stored: Vec<_> = receiver.records().into_iter().map(|row| (row.device, row.seq, row.body)).collect();
    let sent = fleet
        .gateways()
        .flat_map(|gateway| (1..=RECORDS).map(|seq| (gateway.device.clone(), seq, gateway.body(seq).into_bytes())));
    assert_eq!(stored.len() as u64, all);
    assert!(stored.into_iter().eq(sent), "what is stored is not what was sent");
}
