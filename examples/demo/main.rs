//! The main job, end to end, in half a minute: real telemetry of this machine survives a killed upstream, a killed
//! agent and a link that stalls. Receiver and agent are real processes in a folder of their own; at the end the books
//! of the sampler are compared with the receiver's table, and the exit code is 0 only if every record that was
//! committed is stored exactly once.
//!
//! `make demo`, or: `cargo build --release --bins --features receiver` and
//! `cargo run --release --features receiver --example demo`

mod machine;
mod sampler;
mod screen;
#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "the tests' rig; the demo takes what it needs")]
mod support;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backhaul::config::{Config, Heartbeat, Reconnect};
use sampler::{INTERVAL, Progress, Sampler, Verdict};
use screen::{Live, Screen, Tone};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use support::agent::{self, Agent};
use support::proxy::{Mode, Proxy};
use support::receiver::Receiver;
use support::{TempDir, program};

/// How often the live line is brought up to date.
const TICK: Duration = Duration::from_millis(100);

/// Longest wait for something that has to happen.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why there is no verdict.
enum Stopped {
    /// By a signal.
    Interrupted,
    /// What has to happen did not.
    Waited(&'static str),
}

fn main() -> ExitCode {
    let mut screen = Screen::new();
    if let Some(missing) = ["backhaul", "backhaul-receiver"].map(program).into_iter().find(|path| !path.exists()) {
        screen.say(Tone::Bad, &format!("{} is not built yet; `make demo` does it", missing.display()));
        return ExitCode::FAILURE;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).expect("a signal that may be caught");
    }
    let mut dir = TempDir::new("demo");
    let stopped = match run(&dir, &mut screen, &interrupted) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => None,
        Err(stopped) => Some(stopped),
    };
    match stopped {
        Some(Stopped::Interrupted) => {
            screen.say(Tone::Plain, "  interrupted; nothing is left running");
            return ExitCode::from(130);
        }
        Some(Stopped::Waited(what)) => screen.say(Tone::Bad, &format!("  {what}: not within {DEADLINE:?}")),
        None => {}
    }
    dir.keep = true;
    ExitCode::FAILURE
}

/// The whole story; true when the verdict is good. Whatever it started has ended when it returns.
fn run(dir: &Path, screen: &mut Screen, interrupted: &AtomicBool) -> Result<bool, Stopped> {
    let seconds = Duration::from_secs;
    let mut demo = Demo::start(dir, screen, interrupted)?;
    demo.watch(seconds(4))?;

    demo.event(Tone::Bad, "SIGKILL", "the receiver is dead; the agent keeps what comes on flash");
    demo.receiver.kill9();
    demo.watch(seconds(4))?;
    demo.receiver.start();
    demo.event(Tone::Good, "restart", "the receiver");
    demo.until_drained()?;
    demo.watch(seconds(2))?;

    demo.event(Tone::Bad, "SIGKILL", "the agent is dead; what it has committed is on flash");
    demo.kill_agent();
    demo.watch(seconds(1))?;
    demo.agent.start();
    demo.event(Tone::Good, "restart", "the agent");
    demo.until_drained()?;
    demo.watch(seconds(2))?;

    demo.event(Tone::Bad, "stall", "not one byte passes, nothing is closed: only the heartbeat can tell");
    demo.proxy.set(Mode::Stall);
    demo.until_stall_is_noticed()?;
    demo.watch(seconds(3))?;
    demo.proxy.set(Mode::Pass);
    demo.event(Tone::Good, "lifted", "bytes pass again");
    demo.until_drained()?;
    demo.watch(seconds(2))?;

    demo.finish()
}

/// Everything that runs. Dropped in this order, whatever happens: children are killed.
struct Demo<'a> {
    sampler: Option<Sampler>,
    progress: Arc<Progress>,
    agent: Agent,
    proxy: Proxy,
    receiver: Receiver,
    screen: &'a mut Screen,
    interrupted: &'a AtomicBool,
    tally: Tally,
}

impl<'a> Demo<'a> {
    fn start(dir: &Path, screen: &'a mut Screen, interrupted: &'a AtomicBool) -> Result<Self, Stopped> {
        let mut receiver = Receiver::new(dir);
        receiver.start();
        let proxy = Proxy::new(&receiver.address());
        let mut agent = Agent::new(dir, &configuration(dir, &proxy));
        agent.start();
        let metrics = machine::sample().len();
        screen.say(Tone::Strong, "backhaul: telemetry of this machine, cut in every way");
        screen.say(Tone::Faint, &format!("  sampler ─▶ agent ─▶ proxy ─▶ receiver      in {}", dir.display()));
        screen.say(Tone::Plain, "");
        let every = INTERVAL.as_millis();
        let sampler = Sampler::start(agent.socket());
        let progress = Arc::clone(&sampler.progress);
        let sampler = Some(sampler);
        let tally = Tally::default();
        let mut demo = Self { sampler, progress, agent, proxy, receiver, screen, interrupted, tally };
        demo.event(Tone::Good, "start", &format!("{metrics} metrics every {every} ms, each a record"));
        demo.until("the link is up", |status| agent::state(status) == "up")?;
        Ok(demo)
    }

    fn event(&mut self, tone: Tone, head: &str, text: &str) {
        self.screen.event(tone, head, text);
    }

    /// Lets it run for a while.
    fn watch(&mut self, duration: Duration) -> Result<(), Stopped> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            self.tick()?;
        }
        Ok(())
    }

    /// Lets it run until the agent's status is as wanted.
    fn until(&mut self, what: &'static str, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value, Stopped> {
        let begin = Instant::now();
        while begin.elapsed() < DEADLINE {
            if let Some(status) = self.tick()?.filter(|status| wanted(status)) {
                return Ok(status);
            }
        }
        Err(Stopped::Waited(what))
    }

    /// Lets it run until the link is up and the backlog is gone but for what was sampled just now.
    fn until_drained(&mut self) -> Result<(), Stopped> {
        const JUST_NOW: u64 = 100;
        let begin = Instant::now();
        self.until("the link is up again", |status| agent::state(status) == "up")?;
        let up = begin.elapsed().as_secs_f64();
        self.until("the backlog is gone", |status| agent::depth(status) < JUST_NOW)?;
        let drained = begin.elapsed().as_secs_f64();
        self.event(Tone::Good, "up", &format!("by itself after {up:.1} s, backlog delivered after {drained:.1} s"));
        Ok(())
    }

    fn until_stall_is_noticed(&mut self) -> Result<(), Stopped> {
        let begin = Instant::now();
        let status = self.until("the stall is noticed", |status| agent::state(status) != "up")?;
        let class = status["link"]["last_failure"]["class"].as_str().unwrap_or("?").to_owned();
        let after = begin.elapsed().as_secs_f64();
        self.event(Tone::Plain, "noticed", &format!("after {after:.1} s, class {class}; records wait on flash"));
        Ok(())
    }

    fn kill_agent(&mut self) {
        self.agent.kill9();
        self.tally.end_life();
    }

    /// One look at everything.
    fn tick(&mut self) -> Result<Option<Value>, Stopped> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Stopped::Interrupted);
        }
        std::thread::sleep(TICK);
        let status = self.agent.status();
        if let Some(status) = &status {
            self.tally.note(status);
        }
        self.screen.live(&Live {
            state: status.as_ref().map_or("no agent", agent::state),
            depth: status.as_ref().map(agent::depth),
            sampled: self.progress.sampled.load(Ordering::Relaxed),
            committed: self.progress.committed.load(Ordering::Relaxed),
            stored: self.receiver.count(),
        });
        Ok(status)
    }

    /// Stops sampling, lets the last records through, stops the agent as an init system does, compares.
    fn finish(mut self) -> Result<bool, Stopped> {
        let books = self.sampler.take().expect("it samples until here").finish();
        let begin = Instant::now();
        while !self.receiver.has_acked([&books]) {
            self.tick()?;
            if begin.elapsed() > DEADLINE {
                return Err(Stopped::Waited("the last record is acked"));
            }
        }
        let left = self.agent.term(DEADLINE).is_some_and(|status| status.success());
        self.tally.end_life();
        self.event(Tone::Good, "end", "the sampler's books against the receiver's table");
        let verdict = Verdict::new(&books, &self.receiver.records());
        self.show(&verdict);
        if !left {
            self.screen.say(Tone::Bad, "  the agent did not leave in order when it was told to");
        }
        Ok(verdict.holds() && left)
    }

    fn show(&mut self, verdict: &Verdict) {
        let judge = |count| if count == 0 { Tone::Good } else { Tone::Bad };
        let (unanswered, of_these_stored) = verdict.unanswered;
        let in_flight = match unanswered {
            0 => "in flight when the agent was killed".into(),
            _ => format!("in flight when the agent was killed; {of_these_stored} of these stored"),
        };
        let screen = &mut self.screen;
        screen.say(Tone::Plain, "");
        screen.row(Tone::Strong, "sampled", verdict.sampled, "handed to the agent");
        screen.row(Tone::Strong, "committed", verdict.committed, "the agent promised these");
        screen.row(Tone::Plain, "unanswered", unanswered, &in_flight);
        screen.row(Tone::Strong, "stored", verdict.stored, "rows in the receiver's table");
        screen.row(judge(verdict.missing), "missing", verdict.missing, "committed, and not stored with these bytes");
        screen.row(judge(verdict.duplicates), "duplicates", verdict.duplicates, "stored more than once");
        if verdict.strangers > 0 {
            screen.row(Tone::Bad, "strangers", verdict.strangers, "stored, and never sampled");
        }
        screen.row(Tone::Plain, "reconnects", self.tally.sessions.saturating_sub(1), "sessions after the first");
        screen.row(Tone::Plain, "bytes to flash", self.tally.flash_bytes, "as the agent counts them");
        screen.say(Tone::Plain, "");
        if verdict.holds() {
            screen.say(Tone::Good, "  every committed record is stored upstream exactly once");
        } else {
            screen.say(Tone::Bad, "  THE PROMISE IS BROKEN");
        }
    }
}

/// The agent's own counters, which begin anew with each of its lives. Shown, and no part of the verdict.
#[derive(Default)]
struct Tally {
    sessions: usize,
    flash_bytes: usize,
    /// The same of the life that goes on.
    life: (usize, usize),
}

impl Tally {
    fn note(&mut self, status: &Value) {
        let count = |value: &Value| value.as_u64().and_then(|count| count.try_into().ok()).unwrap_or(0);
        self.life = (count(&status["link"]["sessions"]), count(&status["flash"]["bytes_written"]));
    }

    fn end_life(&mut self) {
        let (sessions, flash_bytes) = std::mem::take(&mut self.life);
        self.sessions += sessions;
        self.flash_bytes += flash_bytes;
    }
}

/// A gateway's configuration with its waits cut to a hundredth, so that half a minute shows what takes an hour.
fn configuration(dir: &Path, proxy: &Proxy) -> Config {
    let mut config = agent::quick(dir, &format!("ws://{}/v1", proxy.address()));
    config.device.id = "demo".into();
    config.upstream.handshake_timeout_ms = 2_000;
    config.upstream.ack_timeout_ms = 10_000;
    config.upstream.reconnect = Reconnect {
        start_delay_ms_max: 0,
        spread_ms: 400,
        backoff_ms_min: 200,
        backoff_ms_max: 400,
        slow_ms_min: 3_000,
        slow_ms_max: 36_000,
        stable_after_ms: 600,
        ..Reconnect::default()
    };
    config.upstream.heartbeat = Heartbeat { interval_ms: 600, timeout_ms: 400, misses_max: 3, ..Heartbeat::default() };
    config.outbox.segment_bytes = 262_144;
    config
}
