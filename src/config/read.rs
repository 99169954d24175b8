//! What each key means and which values can work: the merged files → [`Config`]. Bounds refuse only what cannot work.
//! Every field stands in a struct literal, so that a new one does not compile before it is read here.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::group::group_id;
use super::section::{Problems, Section};
use super::target::Target;
use super::tree::{Place, Table};
use super::{
    Commit, Config, Device, Dialect, Encoding, Endpoint, Handler, Heartbeat, Lane, Local, Log, Metrics, Outbox,
    Overflow, Pace, Page, Reconnect, Remedy, Upstream, device, file, proxy, secret,
};
use crate::commands::filter::Filter;
use crate::outbox::dead::DEAD_LANE;
use crate::outbox::format::SEGMENT_BYTES_MAX;
use crate::outbox::record_bytes_max;
use crate::record::{LaneName, MESSAGE_BYTES_MAX};
use crate::shell::handler::REPORT_BYTES;

/// What the files mean.
pub struct Meaning {
    pub config: Config,
    /// The device's name, resolved.
    pub device: String,
    /// What a person should look at.
    pub warnings: Vec<String>,
}

/// Endpoints, and what a person should look at.
pub type Endpoints = (Vec<Endpoint>, Vec<String>);

/// What the files mean, or all that is wrong.
pub fn read(tree: &Table) -> Result<Meaning, Vec<(Place, String)>> {
    let problems = Problems::default();
    let mut warnings = Vec::new();
    let mut root = Section::root(tree, &problems);
    let (device, device_name) = read_device(root.section("device"));
    let upstream_section = root.section("upstream");
    let outbox_section = root.section("outbox");
    let local_section = root.section("local");
    let lane_sections = root.sections("lane").unwrap_or_default();
    let remedies = read_remedies(&mut root);
    let handler_sections = root.sections("handler").unwrap_or_default();
    let page = read_page(root.section("page"));
    let metrics_section = root.section("metrics");
    let log = read_log(root.section("log"));
    root.finish();

    let (outbox, outbox_section) = read_outbox(outbox_section);
    let (local, local_section) = read_local(local_section);
    let record_max = record_bytes_max(outbox.segment_bytes);
    if local.record_bytes_max > record_max {
        let (section, key) = match local_section.has("record_bytes_max") {
            true => (&local_section, "record_bytes_max"),
            false => (&outbox_section, "segment_bytes"),
        };
        let (record, segment) = (local.record_bytes_max, outbox.segment_bytes);
        let message = format!(
            "a record of {record} bytes (local.record_bytes_max) does not fit into a segment of {segment} bytes \
             (outbox.segment_bytes): {record_max} bytes would"
        );
        section.fail(key, &message);
    }
    let lanes = read_lanes(lane_sections, &outbox, &outbox_section);
    let upstream = read_upstream(upstream_section, &lanes, &mut warnings);
    let handlers = read_handlers(handler_sections, &lanes, local.record_bytes_max);
    let metrics = read_metrics(metrics_section, &lanes);
    local_group(&local, &mut warnings);
    outbox_section.finish();
    local_section.finish();

    let config = Config { device, upstream, outbox, lanes, local, remedies, handlers, page, metrics, log };
    let problems = problems.into_sorted();
    if problems.is_empty() { Ok(Meaning { config, device: device_name, warnings }) } else { Err(problems) }
}

/// The tables of an `endpoints_file`: `[[endpoint]]`, checked as those of the configuration.
pub fn read_endpoints_file(tree: &Table) -> Result<Endpoints, Vec<(Place, String)>> {
    let problems = Problems::default();
    let mut warnings = Vec::new();
    let mut root = Section::root(tree, &problems);
    let endpoints = read_endpoints(&mut root, &mut warnings);
    root.finish();
    let problems = problems.into_sorted();
    if problems.is_empty() { Ok((endpoints, warnings)) } else { Err(problems) }
}

/// The socket's path alone: whoever talks to the agent need not be allowed to see more.
pub fn read_socket(tree: &Table) -> Result<PathBuf, Vec<(Place, String)>> {
    let problems = Problems::default();
    let mut root = Section::root(tree, &problems);
    let socket = root.section("local").path("socket").unwrap_or_else(|| Local::default().socket);
    let problems = problems.into_sorted();
    if problems.is_empty() { Ok(socket) } else { Err(problems) }
}

/// Where a configuration keeps what is not configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The outbox's folder.
    pub outbox: PathBuf,
    /// The local socket; what else is beside it is the agent's, too.
    pub socket: PathBuf,
    /// What `[device] id` says, unresolved.
    pub device: String,
    /// Files with tokens, passwords and keys, of all endpoints.
    pub secrets: Vec<PathBuf>,
}

/// Those alone.
pub fn read_places(tree: &Table) -> Result<Places, Vec<(Place, String)>> {
    let problems = Problems::default();
    let mut root = Section::root(tree, &problems);
    let outbox = root.section("outbox").path("dir").unwrap_or_else(|| Outbox::default().dir);
    let socket = root.section("local").path("socket").unwrap_or_else(|| Local::default().socket);
    let device = root.section("device").text("id").unwrap_or_else(|| Device::default().id);
    let mut upstream = root.section("upstream");
    let mut secrets = Vec::new();
    for mut endpoint in upstream.sections("endpoint").unwrap_or_default() {
        let keys = ["token_file", "basic_file", "key_file", "proxy_basic_file"];
        secrets.extend(keys.into_iter().filter_map(|key| endpoint.path(key)));
    }
    let problems = problems.into_sorted();
    if problems.is_empty() { Ok(Places { outbox, socket, device, secrets }) } else { Err(problems) }
}

/// How a link comes back and stays up: what a fleet's planner needs, of a whole configuration or of a fragment.
pub fn read_link(tree: &Table) -> Result<Upstream, Vec<(Place, String)>> {
    let problems = Problems::default();
    let mut section = Section::root(tree, &problems).section("upstream");
    let upstream = read_link_keys(&mut section);
    let problems = problems.into_sorted();
    if problems.is_empty() { Ok(upstream) } else { Err(problems) }
}

const PAGE_BYTES: u32 = 4096;
/// 100 years: sums of such durations in microseconds stay within 64 bits.
const MS_MAX: i64 = 3_155_760_000_000;
/// What a timer can keep; from 0 where no wait at all makes sense.
const MS: std::ops::RangeInclusive<i64> = 10..=MS_MAX;
/// An exabyte: sums stay within 64 bits.
const DISK_BYTES_MAX: i64 = 1 << 60;
const LANES_MAX: usize = 64;
/// A thousand to one is as good as first.
const WEIGHT_MAX: i64 = 1000;

fn read_device(mut section: Section<'_>) -> (Device, String) {
    let device = Device { id: section.text("id").unwrap_or_else(|| Device::default().id) };
    let name = device::resolve_device(&device).unwrap_or_else(|fault| {
        section.fail("id", &fault);
        String::new()
    });
    section.finish();
    (device, name)
}

fn read_upstream(mut section: Section<'_>, lanes: &[Lane], warnings: &mut Vec<String>) -> Upstream {
    let default = Upstream::default();
    let encodings = [("postcard", Encoding::Postcard), ("json", Encoding::Json)];
    let dialects = [("backhaul", Dialect::Backhaul), ("plain", Dialect::Plain)];
    let upstream = Upstream {
        dialect: section.choice("dialect", &dialects, default.dialect),
        encodings: section.choices("encodings", &encodings, default.encodings),
        window_records: section.number("window_records", 1..=1 << 20, default.window_records),
        window_bytes: section.number("window_bytes", 1..=64 << 20, default.window_bytes),
        batch_bytes_max: section.number("batch_bytes_max", 1..=MESSAGE_BYTES_MAX as i64, default.batch_bytes_max),
        ack_timeout_ms: section.number("ack_timeout_ms", MS, default.ack_timeout_ms),
        command_wait_ms: section.number("command_wait_ms", MS, default.command_wait_ms),
        events_lane: section.text("events_lane").unwrap_or(default.events_lane),
        endpoints: read_endpoints(&mut section, warnings),
        endpoints_file: section.path("endpoints_file"),
        no_proxy: section.texts("no_proxy"),
        credential_timeout_ms: section.number("credential_timeout_ms", MS, default.credential_timeout_ms),
        pace: read_pace(section.section("pace")),
        ..read_link_keys(&mut section)
    };
    let events = upstream.events_lane.as_str();
    if !events.is_empty() && lanes.iter().all(|lane| lane.name.as_str() != events) {
        section.fail("events_lane", &format!("there is no lane \"{events}\""));
    }
    section.finish();
    upstream
}

fn read_link_keys(section: &mut Section<'_>) -> Upstream {
    let default = Upstream::default();
    Upstream {
        handshake_timeout_ms: section.number("handshake_timeout_ms", MS, default.handshake_timeout_ms),
        session_age_s_max: section.number("session_age_s_max", 0..=MS_MAX / 1000, default.session_age_s_max),
        server_wait_ms_max: section.number("server_wait_ms_max", MS, default.server_wait_ms_max),
        attempts_max: section.number("attempts_max", 0..=i64::from(u32::MAX), default.attempts_max),
        reconnect: read_reconnect(section.section("reconnect")),
        heartbeat: read_heartbeat(section.section("heartbeat")),
        ..default
    }
}

fn read_endpoints(upstream: &mut Section<'_>, warnings: &mut Vec<String>) -> Vec<Endpoint> {
    /// An endpoint's index is one byte.
    const ENDPOINTS_MAX: usize = 16;
    let Some(sections) = upstream.sections("endpoint") else { return Vec::new() };
    if sections.is_empty() {
        upstream.fail("endpoint", "at least one table with its url is needed");
    } else if sections.len() > ENDPOINTS_MAX {
        upstream.fail("endpoint", &format!("at most {ENDPOINTS_MAX} are allowed"));
    }
    sections.into_iter().map(|section| read_endpoint(section, warnings)).collect()
}

fn read_endpoint(mut section: Section<'_>, warnings: &mut Vec<String>) -> Endpoint {
    let endpoint = Endpoint {
        url: section.text("url").unwrap_or_default(),
        insecure: section.flag("insecure", false),
        ca_file: section.path("ca_file"),
        token_file: section.path("token_file"),
        token_command: section.command("token_command"),
        basic_file: section.path("basic_file"),
        basic_command: section.command("basic_command"),
        cert_file: section.path("cert_file"),
        key_file: section.path("key_file"),
        interface: section.text("interface").unwrap_or_default(),
        proxy: section.text("proxy").unwrap_or_default(),
        proxy_basic_file: section.path("proxy_basic_file"),
    };
    let has_credentials = check_credentials(&section, &endpoint);
    match Target::try_new(&endpoint.url) {
        Err(fault) => section.fail("url", &fault),
        Ok(target) if target.tls => (),
        Ok(_) if endpoint.cert_file.is_some() => section.fail("cert_file", "is for wss:// alone"),
        Ok(target) if target.is_loopback() => (),
        Ok(_) if !endpoint.insecure => section.fail(
            "url",
            &format!("\"{}\" goes to another machine unencrypted: use wss://, or say insecure = true", endpoint.url),
        ),
        Ok(_) if has_credentials => {
            warnings.push(format!("{}: the credentials travel unencrypted", endpoint.url));
        }
        Ok(_) => (),
    }
    check_certificates(&section, &endpoint);
    check_way(&section, &endpoint);
    section.finish();
    endpoint
}

/// True where there are any: at most one kind, because there is one header.
fn check_credentials(section: &Section<'_>, endpoint: &Endpoint) -> bool {
    let keys = [
        ("token_file", endpoint.token_file.is_some()),
        ("token_command", !endpoint.token_command.is_empty()),
        ("basic_file", endpoint.basic_file.is_some()),
        ("basic_command", !endpoint.basic_command.is_empty()),
    ];
    let mut given = keys.into_iter().filter_map(|(key, is_given)| is_given.then_some(key));
    let first = given.next();
    if let Some((first, second)) = first.zip(given.next()) {
        section.fail(second, &format!("beside {first}: one of them is enough, and all that fits into a request"));
    }
    if let Some(Err(fault)) = endpoint.token_file.as_deref().map(secret::read) {
        section.fail("token_file", &fault);
    }
    if let Some(Err(fault)) = endpoint.basic_file.as_deref().map(secret::read_basic) {
        section.fail("basic_file", &fault);
    }
    first.is_some()
}

fn check_certificates(section: &Section<'_>, endpoint: &Endpoint) {
    if let Some(Err(fault)) = endpoint.ca_file.as_deref().map(readable) {
        section.fail("ca_file", &fault);
    }
    match (&endpoint.cert_file, &endpoint.key_file) {
        (Some(_), None) => section.fail("cert_file", "needs its key_file"),
        (None, Some(_)) => section.fail("key_file", "needs its cert_file"),
        (Some(_), Some(_)) | (None, None) => (),
    }
    if let Some(Err(fault)) = endpoint.cert_file.as_deref().map(readable) {
        section.fail("cert_file", &fault);
    }
    if let Some(Err(fault)) = endpoint.key_file.as_deref().map(secret::read_key) {
        section.fail("key_file", &fault);
    }
}

/// The interface and the proxy.
fn check_way(section: &Section<'_>, endpoint: &Endpoint) {
    /// IFNAMSIZ is 16, the last of them zero (netdevice(7)).
    const INTERFACE_BYTES_MAX: usize = 15;
    let interface = endpoint.interface.as_str();
    if interface.len() > INTERFACE_BYTES_MAX || interface.contains(['/', ' ', '\0']) {
        section.fail("interface", &format!("\"{}\" is no interface's name", interface.escape_debug()));
    }
    if !["", proxy::NO_PROXY].contains(&endpoint.proxy.as_str())
        && let Err(fault) = proxy::from_config(&endpoint.proxy)
    {
        section.fail("proxy", &fault);
    }
    if endpoint.proxy_basic_file.is_some() && endpoint.proxy == proxy::NO_PROXY {
        section.fail("proxy_basic_file", "beside proxy = \"none\"");
    }
    if let Some(Err(fault)) = endpoint.proxy_basic_file.as_deref().map(secret::read_basic) {
        section.fail("proxy_basic_file", &fault);
    }
}

fn readable(path: &Path) -> Result<(), String> {
    let tell = |error: io::Error| format!("{}: {error}", path.display());
    file::open(path).map(drop).map_err(tell)
}

fn read_reconnect(mut section: Section<'_>) -> Reconnect {
    let default = Reconnect::default();
    let reconnect = Reconnect {
        start_delay_ms_max: section.number("start_delay_ms_max", 0..=MS_MAX, default.start_delay_ms_max),
        spread_ms: section.number("spread_ms", 0..=MS_MAX, default.spread_ms),
        backoff_ms_min: section.number("backoff_ms_min", MS, default.backoff_ms_min),
        backoff_ms_max: section.number("backoff_ms_max", MS, default.backoff_ms_max),
        slow_ms_min: section.number("slow_ms_min", MS, default.slow_ms_min),
        slow_ms_max: section.number("slow_ms_max", MS, default.slow_ms_max),
        stable_after_ms: section.number("stable_after_ms", MS, default.stable_after_ms),
        failover_failures: section.number("failover_failures", 1..=1000, default.failover_failures),
        failback_ms: section.number("failback_ms", MS, default.failback_ms),
    };
    in_order(&section, ("backoff_ms_min", reconnect.backoff_ms_min), ("backoff_ms_max", reconnect.backoff_ms_max));
    in_order(&section, ("slow_ms_min", reconnect.slow_ms_min), ("slow_ms_max", reconnect.slow_ms_max));
    section.finish();
    reconnect
}

/// Told at the one that is said, at the upper one where both are.
fn in_order(section: &Section<'_>, (min_key, min): (&str, u64), (max_key, max): (&str, u64)) {
    if min > max {
        let key = if section.has(max_key) { max_key } else { min_key };
        section.fail(key, &format!("{min_key} = {min} is above {max_key} = {max}"));
    }
}

fn read_heartbeat(mut section: Section<'_>) -> Heartbeat {
    let default = Heartbeat::default();
    let heartbeat = Heartbeat {
        interval_ms: section.number("interval_ms", MS, default.interval_ms),
        timeout_ms: section.number("timeout_ms", MS, default.timeout_ms),
        misses_max: section.number("misses_max", 1..=1000, default.misses_max),
        adaptive: section.flag("adaptive", default.adaptive),
        interval_ms_max: section.number("interval_ms_max", MS, default.interval_ms_max),
    };
    if heartbeat.adaptive {
        let (min, max) = (heartbeat.interval_ms, heartbeat.interval_ms_max);
        in_order(&section, ("interval_ms", min), ("interval_ms_max", max));
    }
    section.finish();
    heartbeat
}

fn read_pace(mut section: Section<'_>) -> Pace {
    let default = Pace::default();
    let pace = Pace {
        records_per_s_max: section.number("records_per_s_max", 0..=1_000_000_000, default.records_per_s_max),
        bytes_per_s_max: section.number("bytes_per_s_max", 0..=DISK_BYTES_MAX, default.bytes_per_s_max),
        bytes_per_day_max: section.number("bytes_per_day_max", 0..=DISK_BYTES_MAX, default.bytes_per_day_max),
    };
    section.finish();
    pace
}

fn read_remedies(root: &mut Section<'_>) -> Vec<Remedy> {
    /// Their runs are remembered in one byte each.
    const REMEDIES_MAX: usize = 8;
    let sections = root.sections("remedy").unwrap_or_default();
    if sections.len() > REMEDIES_MAX {
        root.fail("remedy", &format!("at most {REMEDIES_MAX} are allowed"));
    }
    let mut remedies: Vec<_> = sections.into_iter().map(read_remedy).collect();
    remedies.sort_by_key(|remedy| remedy.after_s);
    remedies
}

fn read_remedy(mut section: Section<'_>) -> Remedy {
    const S_MAX: i64 = MS_MAX / 1000;
    let default = Remedy::default();
    let remedy = Remedy {
        after_s: section.number("after_s", 1..=S_MAX, default.after_s),
        exec: section.command("exec"),
        timeout_s: section.number("timeout_s", 1..=3600, default.timeout_s),
        again_after_s: section.number("again_after_s", 0..=S_MAX, default.again_after_s),
    };
    if !section.has("after_s") {
        section.fail("after_s", "is needed: seconds without a session");
    }
    if !section.has("exec") {
        section.fail("exec", "is needed: a program and its arguments");
    }
    section.finish();
    remedy
}

fn read_handlers(sections: Vec<Section<'_>>, lanes: &[Lane], record_bytes_max: u32) -> Vec<Handler> {
    /// Each may hold a command of 1 MiB.
    const HANDLERS_MAX: usize = 16;
    if let Some(section) = sections.get(HANDLERS_MAX) {
        section.fail("topic", &format!("at most {HANDLERS_MAX} handlers are allowed"));
    }
    sections.into_iter().map(|section| read_handler(section, lanes, record_bytes_max)).collect()
}

fn read_handler(mut section: Section<'_>, lanes: &[Lane], record_bytes_max: u32) -> Handler {
    let default = Handler::default();
    let handler = Handler {
        topic: section.text("topic").unwrap_or_default(),
        exec: section.command("exec"),
        timeout_ms: section.number("timeout_ms", MS, default.timeout_ms),
        reply_topic: section.text("reply_topic").unwrap_or_default(),
        reply_lane: section.text("reply_lane").unwrap_or_default(),
        output_bytes_max: section.number("output_bytes_max", 0..=MESSAGE_BYTES_MAX as i64, default.output_bytes_max),
    };
    if let Err(fault) = Filter::try_new(&handler.topic) {
        section.fail("topic", fault);
    }
    if !section.has("exec") {
        section.fail("exec", "is needed: a program and its arguments");
    }
    let (topic, lane) = (handler.reply_topic.as_str(), handler.reply_lane.as_str());
    if topic.contains(['+', '#']) {
        section.fail("reply_topic", "+ and # are for those who listen");
    }
    if topic.is_empty() && !lane.is_empty() {
        section.fail("reply_lane", "needs a reply_topic");
    } else if !lane.is_empty() && lanes.iter().all(|known| known.name.as_str() != lane) {
        section.fail("reply_lane", &format!("there is no lane \"{lane}\""));
    }
    // As base64, with what stands around it.
    let reply = u64::from(handler.output_bytes_max) * 4 / 3 + u64::from(REPORT_BYTES) + topic.len() as u64;
    if !topic.is_empty() && reply > u64::from(record_bytes_max) {
        let message = format!("a reply of {reply} bytes does not fit into a record (local.record_bytes_max)");
        section.fail("output_bytes_max", &message);
    }
    section.finish();
    handler
}

/// The section comes back for what is checked against other sections.
fn read_outbox(mut section: Section<'_>) -> (Outbox, Section<'_>) {
    let default = Outbox::default();
    let outbox = Outbox {
        dir: section.path("dir").unwrap_or(default.dir),
        segment_bytes: section.number("segment_bytes", 16_384..=i64::from(SEGMENT_BYTES_MAX), default.segment_bytes),
        headroom_bytes_min: section.number("headroom_bytes_min", 0..=DISK_BYTES_MAX, default.headroom_bytes_min),
        dead_letters_bytes_max: section.number(
            "dead_letters_bytes_max",
            0..=DISK_BYTES_MAX,
            default.dead_letters_bytes_max,
        ),
        budget_bytes_per_day: section.number("budget_bytes_per_day", 0..=DISK_BYTES_MAX, default.budget_bytes_per_day),
    };
    if !outbox.segment_bytes.is_multiple_of(PAGE_BYTES) {
        section.fail("segment_bytes", &format!("{} is not a multiple of {PAGE_BYTES}", outbox.segment_bytes));
    }
    (outbox, section)
}

fn read_lanes(sections: Vec<Section<'_>>, outbox: &Outbox, outbox_section: &Section<'_>) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    let mut default_named = false;
    for mut section in sections {
        let lane = read_lane(&mut section);
        if lanes.iter().any(|other| other.name == lane.name) {
            section.fail("name", &format!("a second lane \"{}\"", lane.name));
        }
        if lane.name.as_str() == DEAD_LANE {
            section.fail("name", &format!("\"{DEAD_LANE}\" is where refused records lie: another name is needed"));
        }
        if lane.default && default_named {
            section.fail("default", "a second default lane: at most one is allowed");
        }
        default_named |= lane.default;
        let least = 2 * u64::from(outbox.segment_bytes);
        if lane.bytes_max < least {
            let message = format!(
                "a lane of {} bytes does not hold two segments of {} bytes (outbox.segment_bytes)",
                lane.bytes_max, outbox.segment_bytes
            );
            if section.has("bytes_max") || !outbox_section.has("segment_bytes") {
                section.fail("bytes_max", &message);
            } else {
                outbox_section.fail("segment_bytes", &message);
            }
        }
        if lane.live_share > 0.0 && lane.bytes_max < 2 * least {
            let message = format!("two epochs beside each other need four segments: bytes_max = {}", 2 * least);
            section.fail("live_share", &message);
        }
        if lanes.len() == LANES_MAX {
            section.fail("name", &format!("at most {LANES_MAX} lanes are allowed"));
        }
        section.finish();
        lanes.push(lane);
    }
    Config { lanes, ..Config::default() }.completed().lanes
}

fn read_lane(section: &mut Section<'_>) -> Lane {
    let default = Lane::default();
    let overflow = [("drop_oldest", Overflow::DropOldest), ("reject", Overflow::Reject)];
    let commit = [("sync", Commit::Sync), ("group", Commit::Group), ("ram_first", Commit::RamFirst)];
    let name = section.text("name").map(|name| LaneName::try_new(&name).map_err(|error| (name, error)));
    Lane {
        name: match name {
            None => default.name,
            Some(Ok(name)) => name,
            Some(Err((name, error))) => {
                section.fail("name", &format!("\"{}\": {error}", name.escape_debug()));
                default.name
            }
        },
        default: section.flag("default", default.default),
        weight: section.number("weight", 1..=WEIGHT_MAX, default.weight),
        bytes_max: section.number("bytes_max", 0..=DISK_BYTES_MAX, default.bytes_max),
        overflow: section.choice("overflow", &overflow, default.overflow),
        ttl_s: section.number("ttl_s", 0..=i64::from(u32::MAX), default.ttl_s),
        commit: section.choice("commit", &commit, default.commit),
        commit_ms: section.number("commit_ms", MS, default.commit_ms),
        commit_bytes: section.number("commit_bytes", 1..=16 << 20, default.commit_bytes),
        cap_exempt: section.flag("cap_exempt", default.cap_exempt),
        live_share: section.share("live_share", default.live_share),
    }
}

/// The section comes back for what is checked against other sections.
fn read_local(mut section: Section<'_>) -> (Local, Section<'_>) {
    /// sockaddr_un holds 108 bytes, the last of them zero (unix(7)).
    const SOCKET_PATH_BYTES_MAX: usize = 107;
    let default = Local::default();
    let local = Local {
        socket: section.path("socket").unwrap_or(default.socket),
        mode: section.text("mode").unwrap_or(default.mode),
        group: section.text("group").unwrap_or(default.group),
        clients_max: section.number("clients_max", 1..=4096, default.clients_max),
        // Room for the message around it.
        record_bytes_max: section.number(
            "record_bytes_max",
            1..=MESSAGE_BYTES_MAX as i64 - 1024,
            default.record_bytes_max,
        ),
    };
    let socket_bytes = local.socket.as_os_str().len();
    if socket_bytes > SOCKET_PATH_BYTES_MAX {
        section.fail("socket", &format!("a path of {socket_bytes} bytes, at most {SOCKET_PATH_BYTES_MAX} work"));
    }
    if local.mode_bits().is_none() {
        section.fail("mode", &format!("\"{}\" is not octal, as \"0660\" is", local.mode.escape_debug()));
    }
    (local, section)
}

/// A group that does not exist or cannot be given is no reason not to run.
fn local_group(local: &Local, warnings: &mut Vec<String>) {
    let group = local.group.as_str();
    if group.is_empty() {
        return;
    }
    match group_id(group) {
        None => warnings.push(format!("local.group: there is no group \"{group}\"; the socket keeps the process's")),
        Some(id) => {
            let mine = rustix::process::getgroups().unwrap_or_default();
            let member = mine.iter().chain([&rustix::process::getegid()]).any(|group| group.as_raw() == id);
            if !rustix::process::geteuid().is_root() && !member {
                warnings.push(format!(
                    "local.group: neither root nor a member of \"{group}\"; the socket keeps the process's group"
                ));
            }
        }
    }
}

fn read_page(mut section: Section<'_>) -> Page {
    let page = Page { listen: section.text("listen").unwrap_or_default(), hosts: section.texts("hosts") };
    match page.listen.parse::<SocketAddr>() {
        Err(_) if page.listen.is_empty() => (),
        _ if !cfg!(feature = "page") => section.fail("listen", "this program was built without the page"),
        Err(_) => {
            let message =
                format!("\"{}\" is not an address and a port, as \"127.0.0.1:9550\" is", page.listen.escape_debug());
            section.fail("listen", &message);
        }
        // Whoever can reach it reads what this gateway does.
        Ok(address) if address.ip().is_unspecified() => {
            section
                .fail("listen", "that is every address of this machine, the uplink's too: name the one that is meant");
        }
        Ok(_) => (),
    }
    section.finish();
    page
}

fn read_metrics(mut section: Section<'_>, lanes: &[Lane]) -> Metrics {
    let default = Metrics::default();
    let metrics = Metrics {
        every_s: section.number("every_s", 0..=MS_MAX / 1000, default.every_s),
        lane: section.text("lane").unwrap_or(default.lane),
        topic: section.text("topic").unwrap_or(default.topic),
    };
    let name = metrics.lane.as_str();
    if !name.is_empty() && lanes.iter().all(|lane| lane.name.as_str() != name) {
        section.fail("lane", &format!("there is no lane \"{name}\""));
    }
    section.finish();
    metrics
}

fn read_log(mut section: Section<'_>) -> Log {
    let log = Log { level: section.text("level").unwrap_or_else(|| Log::default().level) };
    if log.level_filter().is_none() {
        let known = Log::LEVELS.map(|(word, _)| format!("\"{word}\"")).join(", ");
        section.fail("level", &format!("\"{}\" is not one of {known}", log.level.escape_debug()));
    }
    section.finish();
    log
}
