//! From the configuration to what each thread is given: a module gets its own part, never the whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::config::Config;
use crate::config::bounds::bounds;
use crate::insight::notes::Notes;
use crate::insight::record::Sampler;
use crate::outbox::budget::WINDOW_MAX;
use crate::outbox::dead::with_dead_letters;
use crate::outbox::{self, Draft};
use crate::record::Body;
use crate::shell::board::Board;
use crate::shell::outbox::Spending;
#[cfg(feature = "page")]
use crate::shell::page;
use crate::shell::port::{ForLocal, ForOutbox, ForPage, Port, Put};
use crate::shell::remedy::Runner;
use crate::shell::snapshot::Source;
use crate::shell::uplink::{self, Hook};
use crate::shell::{EventHook, TextHook};
use crate::shell::{clock, entropy, hardware, local};
use crate::time::Instant;
use crate::upstream::cap::Cap;
use crate::{config, dialect, link, status, upstream};

/// A process that starts so soon after the machine is part of a boot, not of a mere restart.
const BOOT_WINDOW: Duration = Duration::from_secs(300);

/// A batch takes no more than a second of a slow path: an alarm waits for the one that is on its way.
const BATCH_MS_MAX: u64 = 1000;

/// What is the same for every crew of this process.
pub(super) struct Process {
    /// When it started.
    started: Instant,
    /// Random per start: stands in `hello`.
    nonce: String,
    /// The boot's id, folded.
    pub(super) boot: u32,
    /// The machine's id; empty where there is none.
    machine: String,
    /// Outlives its crew, lest two of them run a remedy each.
    runner: Arc<Runner>,
    /// What happened of late, whichever crew saw it.
    notes: Arc<Mutex<Notes>>,
}

impl Process {
    /// Reads it from the system.
    pub fn new() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            started: clock::now(),
            nonce: format!("{:016x}", entropy::draw()),
            boot: crc32c::crc32c(read("/proc/sys/kernel/random/boot_id").as_bytes()),
            machine: read("/etc/machine-id"),
            runner: Arc::default(),
            notes: Arc::default(),
        }
    }
}

/// For the outbox.
pub(super) fn outbox(config: &Config, device: &str, process: &Process) -> outbox::Config {
    outbox::Config {
        segment_bytes: config.outbox.segment_bytes,
        headroom_bytes_min: config.outbox.headroom_bytes_min,
        record_bytes_max: config.local.record_bytes_max,
        lanes: with_dead_letters(&config.lanes, config.outbox.dead_letters_bytes_max),
        device: device.into(),
        machine: hardware::name(&config.outbox.dir, &process.machine),
    }
}

/// The flash budget, if there is one; what is left of it lies beside the local socket.
pub(super) fn spending(config: &Config) -> Option<Spending> {
    let file = config.local.socket.with_file_name("budget");
    let bytes = Some(config.outbox.budget_bytes_per_day).filter(|bytes| *bytes > 0)?;
    Some(Spending::new(bytes, WINDOW_MAX, file))
}

/// What there is to see until the outbox is open: the lanes as configured, nothing in them.
pub(super) fn board(config: &Config) -> Board {
    let board = Board::default();
    let lane = |lane: &config::Lane| status::Lane {
        name: lane.name.as_str().into(),
        bytes_max: lane.bytes_max,
        ..status::Lane::default()
    };
    *board.lanes.lock() = config.lanes.iter().map(lane).collect();
    board.link.lock().state = "idle";
    *board.flash.lock() = status::Flash { state: "ok".into(), ..status::Flash::default() };
    board
}

/// For the snapshots.
pub(super) fn source(config: &Config, device: &str, process: &Process, board: &Arc<Board>) -> Source {
    // As `check` prints it: all but the program itself.
    let memory = bounds(config).memory;
    let queues = memory.iter().filter(|(part, _)| *part != "program");
    Source {
        board: Arc::clone(board),
        agent: status::Agent {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: 0,
            loss_s_ago: None,
            device: device.into(),
            boot: process.nonce.clone(),
            config: "current".into(),
        },
        started: process.started,
        opened: clock::now(),
        queues_bytes_max: queues.map(|(_, bytes)| bytes).sum(),
        rss_bytes_max: memory.iter().map(|(_, bytes)| bytes).sum(),
    }
}

/// For the local thread.
pub(super) fn local(
    config: &Config,
    process: &Process,
    source: Source,
    inbox: &Arc<Port<ForOutbox>>,
    lives: &Arc<AtomicBool>,
) -> local::Setup {
    local::Setup {
        config: config.local.clone(),
        boot: process.boot,
        outbox: Arc::clone(inbox),
        source,
        command_wait: Duration::from_millis(config.upstream.command_wait_ms),
        event: event_hook(config, process, inbox),
        handlers: config.handlers.clone(),
        events_lane: config.upstream.events_lane.clone(),
        metrics: (config.metrics.every_s > 0).then(|| metrics(config, process, inbox)),
        turned: set(lives),
    }
}

/// For the uplink thread.
pub(super) fn uplink(
    config: &Config,
    device: &str,
    process: &Process,
    inbox: &Arc<Port<ForOutbox>>,
    lives: &Arc<AtomicBool>,
    local: Arc<Port<ForLocal>>,
) -> uplink::Setup {
    let upstream = &config.upstream;
    let link = link::Config {
        endpoints_tls: Vec::new(),
        remedies: config
            .remedies
            .iter()
            .map(|remedy| link::Remedy {
                after_s: remedy.after_s,
                again_after_s: remedy.again_after_s,
                id: (crc32c::crc32c(remedy.exec.join("\0").as_bytes()) >> 16).max(1) as u16,
            })
            .collect(),
        ..link::Config::from(upstream)
    };
    let dialect = dialect::Config {
        window_records: upstream.window_records,
        window_bytes: upstream.window_bytes,
        batch_bytes_max: upstream.batch_bytes_max,
        ack_timeout_ms: upstream.ack_timeout_ms,
        batch_ms_max: (upstream.heartbeat.timeout_ms / 3).clamp(1, BATCH_MS_MAX),
        records_per_s_max: upstream.pace.records_per_s_max,
        bytes_per_s_max: upstream.pace.bytes_per_s_max,
        lanes: config.lanes.iter().map(dialect_lane).collect(),
        ..dialect::Config::default()
    };
    let encodings = match upstream.dialect {
        config::Dialect::Backhaul => upstream.encodings.clone(),
        config::Dialect::Plain => Vec::new(),
    };
    let commands = Arc::clone(&local);
    let command = Arc::new(move |command| commands.give(|cell| cell.commands.push(command)));
    let mut setup = uplink::Setup {
        upstream: upstream::Setup {
            link: Arc::new(link),
            dialect: Arc::new(dialect),
            device: device.into(),
            agent: concat!("backhaul/", env!("CARGO_PKG_VERSION")).into(),
            boot: process.nonce.clone(),
            endpoints: Vec::new(),
            seed: entropy::draw(),
            saved: None,
            fresh_boot: process.started.since(Instant::default()) < BOOT_WINDOW,
            cap: Cap::new(upstream.pace.bytes_per_day_max),
        },
        endpoints: Vec::new(),
        endpoints_file: upstream.endpoints_file.clone(),
        remedies: config.remedies.clone(),
        runner: Arc::clone(&process.runner),
        encodings,
        live: config.lanes.iter().any(|lane| lane.live_share > 0.0),
        no_proxy: upstream.no_proxy.clone(),
        credential_timeout: Duration::from_millis(upstream.credential_timeout_ms),
        heartbeat: upstream.heartbeat,
        backoff_file: config.local.socket.with_file_name("backoff"),
        day_file: config.local.socket.with_file_name("day"),
        flash_file: config.outbox.dir.join("link").join("backoff"),
        watchdog: set(lives),
        command,
        link_changed: Arc::new(move || local.give(|cell| cell.link_changed = true)),
        event: event_hook(config, process, inbox),
        note: note_hook(process),
    };
    setup.set_endpoints(upstream.endpoints.clone());
    setup
}

/// True where a running uplink can take up all that has changed: then no session need end for it.
pub(super) fn in_place(old: &Config, new: &Config) -> bool {
    let upstream = config::Upstream {
        dialect: new.upstream.dialect,
        encodings: new.upstream.encodings.clone(),
        window_records: new.upstream.window_records,
        window_bytes: new.upstream.window_bytes,
        batch_bytes_max: new.upstream.batch_bytes_max,
        command_wait_ms: new.upstream.command_wait_ms,
        events_lane: new.upstream.events_lane.clone(),
        ..old.upstream.clone()
    };
    // What decides on memory, on what is said, and on what goes where is another crew's.
    upstream == old.upstream
        && Config {
            upstream: old.upstream.clone(),
            remedies: old.remedies.clone(),
            log: old.log.clone(),
            ..new.clone()
        } == *old
}

fn dialect_lane(lane: &config::Lane) -> dialect::LaneConfig {
    dialect::LaneConfig {
        name: lane.name.clone(),
        weight: lane.weight,
        live_permille: ((lane.live_share * 1000.0).ceil() as u32).min(999),
        cap_exempt: lane.cap_exempt,
    }
}

/// Makes a record on topic `$event` of what someone should know upstream.
pub(super) fn event_hook(config: &Config, process: &Process, inbox: &Arc<Port<ForOutbox>>) -> EventHook {
    let lane = Some(config.upstream.events_lane.clone()).filter(|lane| !lane.is_empty());
    let (boot, inbox, note) = (process.boot, Arc::clone(inbox), note_hook(process));
    Arc::new(move |kind, detail| {
        note(kind, detail);
        let body = serde_json::json!({ "event": kind, "detail": detail }).to_string();
        if !put(&inbox, boot, lane.clone(), "$event", body) {
            log::warn!(target: "agent", "no room for an event kind={kind} detail={detail}");
        }
    })
}

/// Remembers what happened, for who looks at the page.
fn note_hook(process: &Process) -> EventHook {
    let notes = Arc::clone(&process.notes);
    Arc::new(move |kind, detail| {
        notes.lock().unwrap_or_else(PoisonError::into_inner).add(kind, detail, clock::now());
    })
}

/// Makes records of metrics.
fn metrics(config: &Config, process: &Process, inbox: &Arc<Port<ForOutbox>>) -> (Sampler, TextHook) {
    let config::Metrics { every_s, lane, topic } = config.metrics.clone();
    let lane = Some(lane).filter(|lane| !lane.is_empty());
    let (boot, inbox) = (process.boot, Arc::clone(inbox));
    let take = move |body| {
        if !put(&inbox, boot, lane.clone(), &topic, body) {
            log::debug!(target: "agent", "no room for metrics");
        }
    };
    (Sampler::new(Duration::from_secs(every_s), clock::now()), Arc::new(take))
}

/// A record of the agent's own; false where there is no room for it.
fn put(inbox: &Port<ForOutbox>, boot: u32, lane: Option<String>, topic: &str, body: String) -> bool {
    let draft = Draft {
        at: clock::wall_ms_if_set(),
        boot,
        boot_ms: clock::now().as_millis(),
        ttl_s: 0,
        topic: topic.into(),
        key: None,
        body: Body::Text(body),
    };
    let bytes = draft.bytes();
    let put = Put { ticket: None, lane, draft, wait: None };
    inbox.give(|cell| {
        if cell.is_full() {
            return false;
        }
        cell.puts.push(put);
        cell.puts_bytes += bytes;
        true
    })
}

/// The page, where there is one.
#[cfg(feature = "page")]
pub(super) fn page(config: &Config, process: &Process, source: Source) -> std::io::Result<Option<PageLife>> {
    let Ok(listen) = config.page.listen.parse() else { return Ok(None) };
    let setup = page::Setup {
        listen,
        hosts: config.page.hosts.clone(),
        source,
        notes: Arc::clone(&process.notes),
        config: shown(config),
    };
    let page = page::Page::try_new(setup)?;
    Ok(Some((page.port(), Box::new(move || page.run()))))
}

/// This program was built without it.
#[cfg(not(feature = "page"))]
pub(super) fn page(_config: &Config, _process: &Process, _source: Source) -> std::io::Result<Option<PageLife>> {
    Ok(None)
}

/// Where the page is told to stop, and what its thread does.
pub(super) type PageLife = (Arc<Port<ForPage>>, Box<dyn FnOnce() -> std::io::Result<()> + Send>);

/// The effective configuration for the page: what files hold that it names is not in it, nor is what may be a secret in
/// a program's arguments or in a URL's query.
#[cfg(feature = "page")]
fn shown(config: &Config) -> String {
    let mut config = config.clone();
    let without_arguments = |exec: &mut Vec<String>| {
        if exec.len() > 1 {
            exec.truncate(1);
            exec.push("…".into());
        }
    };
    for endpoint in &mut config.upstream.endpoints {
        page::without_query(&mut endpoint.url);
        without_arguments(&mut endpoint.token_command);
        without_arguments(&mut endpoint.basic_command);
    }
    config.remedies.iter_mut().for_each(|remedy| without_arguments(&mut remedy.exec));
    toml::to_string(&config).expect("strings, numbers and lists of tables, all of which TOML has")
}

fn set(lives: &Arc<AtomicBool>) -> Hook {
    let lives = Arc::clone(lives);
    Arc::new(move || lives.store(true, Ordering::Relaxed))
}
