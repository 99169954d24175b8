//! The configuration through the real binary: every kind of bad input has one clear message with file and line and
//! exit code 78; what is shipped can work.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/temp_dir.rs"]
mod temp_dir;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use backhaul::config::{Config, Endpoint, Handler, Remedy};
use temp_dir::TempDir;

/// What any configuration needs.
const ENDPOINT: &str = "[[upstream.endpoint]]\nurl = 'ws://127.0.0.1:1/'\n";
/// Lines of [`base`] in front of what a test adds.
const BASE_LINES: usize = 4;

/// A folder of its own, gone with the test.
struct Folder(TempDir);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = TempDir::new(&format!("config-{name}"));
        fs::create_dir_all(folder.join("conf.d")).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

fn base(rest: &str) -> String {
    format!("device.id = 'gw-1'\n{ENDPOINT}\n{rest}")
}

/// Exit code, standard output and standard error of `backhaul check`.
fn check(config: &Path) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_backhaul")).arg("check").arg("--config").arg(config).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn effective(config: &Path) -> Config {
    let (code, out, err) = check(config);
    assert_eq!(code, 0, "{err}");
    toml::from_str(&out).unwrap_or_else(|error| panic!("{error}\n{out}"))
}

/// Added behind the base; its line, counted from the first one added; what the message says.
const BAD: &[(&str, usize, &str)] = &[
    // Keys.
    ("[upsteam]", 1, "upsteam: unknown key; did you mean \"upstream\"?"),
    (
        "[upstream.heartbeat]\n\nintervall_ms = 10",
        3,
        "upstream.heartbeat.intervall_ms: unknown key; did you mean \"interval_ms\"?",
    ),
    ("[[lane]]\nname = 'a'\ncolour = 'red'", 3, "lane.colour: unknown key; known here: name, default, "),
    ("[log]\nlevel = 'info'\nformat = 'x'", 3, "log.format: unknown key"),
    ("upstream = 3", 1, "upstream: a table is expected, not an integer"),
    // Types.
    ("[outbox]\nsegment_bytes = '256k'", 2, "outbox.segment_bytes: an integer is expected, not a string"),
    ("[outbox]\nsegment_bytes = 1.5", 2, "an integer is expected, not a float"),
    ("[outbox]\ndir = 7", 2, "outbox.dir: a string is expected, not an integer"),
    ("[outbox]\ndir = 2024-01-01", 2, "a string is expected, not a date"),
    ("[local]\nmode = 0o660", 2, "local.mode: a string is expected, not an integer"),
    ("[[lane]]\ndefault = 'yes'", 2, "lane.default: true or false is expected, not a string"),
    ("[lane]\nname = 'a'", 1, "lane: a list of tables is expected, not a table"),
    ("[[log]]\nlevel = 'info'", 1, "log: a table is expected, not a list"),
    ("lane = ['a']", 1, "lane: a table is expected, not a string"),
    ("[upstream]\nencodings = 'json'", 2, "a list of strings is expected, not a string"),
    // Syntax.
    ("[outbox]\nsegment_bytes = = 1", 2, ""),
    ("[outbox]\ndir = '/a'\ndir = '/b'", 3, "duplicate key"),
    ("[outbox", 1, ""),
    ("[log]\nlevel = \"info", 2, ""),
    ("[outbox]\nsegment_bytes = 256KiB", 2, ""),
    // Bounds.
    ("[upstream.reconnect]\nbackoff_ms_min = 9", 2, "9 is not within 10 to "),
    ("[upstream.reconnect]\nspread_ms = -1", 2, "-1 is not within 0 to "),
    ("[upstream.reconnect]\nslow_ms_max = 99999999999999999999", 2, "the number is not within 10 to "),
    ("[upstream.heartbeat]\ninterval_ms = 0", 2, "0 is not within 10 to "),
    ("[upstream.heartbeat]\nmisses_max = 0", 2, "0 is not within 1 to "),
    ("[upstream]\nhandshake_timeout_ms = 0", 2, "0 is not within 10 to "),
    ("[upstream]\nack_timeout_ms = 1", 2, "1 is not within 10 to "),
    ("[upstream]\nwindow_records = 0", 2, "0 is not within 1 to "),
    ("[upstream]\nwindow_bytes = 0", 2, "0 is not within 1 to "),
    ("[upstream]\nbatch_bytes_max = 2000000", 2, "2000000 is not within 1 to 1048576"),
    ("[upstream]\nattempts_max = -1", 2, "-1 is not within 0 to "),
    ("[outbox]\nsegment_bytes = 12288", 2, "12288 is not within 16384 to "),
    ("[outbox]\nsegment_bytes = 262145", 2, "262145 is not a multiple of 4096"),
    ("[outbox]\nheadroom_bytes_min = -1", 2, "-1 is not within 0 to "),
    ("[outbox]\ndead_letters_bytes_max = -1", 2, "-1 is not within 0 to "),
    ("[[lane]]\nname = 'a'\nweight = 0", 3, "0 is not within 1 to 1000"),
    ("[[lane]]\nname = 'a'\nttl_s = -1", 3, "-1 is not within 0 to 4294967295"),
    ("[[lane]]\nname = 'dead'", 2, "\"dead\" is where refused records lie"),
    ("[outbox]\nbudget_bytes_per_day = -1", 2, "-1 is not within 0 to "),
    ("[[lane]]\nname = 'a'\nbytes_max = 300000", 3, "does not hold two segments of 262144 bytes"),
    ("[[lane]]\nname = 'a'\nlive_share = 0.5\nbytes_max = 600000", 3, "need four segments: bytes_max = 1048576"),
    ("[[lane]]\nname = 'a'\ncommit_ms = 0", 3, "0 is not within 10 to "),
    ("[[lane]]\nname = 'a'\ncommit_bytes = 0", 3, "0 is not within 1 to "),
    ("[local]\nclients_max = 0", 2, "0 is not within 1 to "),
    ("[local]\nrecord_bytes_max = 0", 2, "0 is not within 1 to "),
    // Values together.
    ("[upstream.reconnect]\nbackoff_ms_min = 50000", 2, "backoff_ms_min = 50000 is above backoff_ms_max = 40000"),
    ("[upstream.reconnect]\nslow_ms_min = 20\nslow_ms_max = 19", 3, "slow_ms_min = 20 is above slow_ms_max = 19"),
    (
        "[outbox]\nsegment_bytes = 16384",
        2,
        "a record of 65536 bytes (local.record_bytes_max) does not fit into a segment of 16384",
    ),
    ("[local]\nrecord_bytes_max = 300000", 2, "a record of 300000 bytes (local.record_bytes_max) does not fit"),
    ("[[lane]]\nname = 'a'\n[[lane]]\nname = 'a'", 4, "a second lane \"a\""),
    ("[[lane]]\nname = 'a'\ndefault = true\n[[lane]]\nname = 'b'\ndefault = true", 6, "a second default lane"),
    ("[upstream]\nevents_lane = 'events'", 2, "there is no lane \"events\""),
    // Words.
    ("[upstream]\ndialect = 'mqqt'", 2, "\"mqqt\" is not one of \"backhaul\""),
    ("[upstream]\nencodings = []", 2, "at least one is needed"),
    ("[upstream]\nencodings = [\n  'json',\n  'xml',\n]", 4, "\"xml\" is not one of \"postcard\", \"json\""),
    ("[upstream]\nencodings = ['json', 'json']", 2, "one value twice"),
    ("[[lane]]\nname = 'a'\noverflow = 'drop'", 3, "\"drop\" is not one of \"drop_oldest\", \"reject\""),
    ("[[lane]]\nname = 'a'\ncommit = 'later'", 3, "\"later\" is not one of \"sync\", \"group\""),
    ("[[lane]]\nname = 'Alarm!'", 2, "a lane's name is 1 to 32 of a-z"),
    ("[[lane]]\nname = ''", 2, "a lane's name is 1 to 32 of a-z"),
    ("[log]\nlevel = 'loud'", 2, "\"loud\" is not one of \"error\", \"warn\", \"info\", \"debug\", \"trace\""),
    ("[local]\nmode = '0668'", 2, "\"0668\" is not octal"),
    ("[local]\nmode = '07777'", 2, "\"07777\" is not octal"),
    ("[local]\nmode = ''", 2, "\"\" is not octal"),
    ("[local]\nsocket = 'backhaul.sock'", 2, "\"backhaul.sock\" is not an absolute path"),
    ("[outbox]\ndir = 'outbox'", 2, "\"outbox\" is not an absolute path"),
    // Endpoints.
    ("[[upstream.endpoint]]", 1, "upstream.endpoint.url: a url is needed"),
    ("[[upstream.endpoint]]\nurl = 'http://h/'", 2, "begins neither with wss:// nor with ws://"),
    ("[[upstream.endpoint]]\nurl = 'ws://10.0.0.1/'", 2, "unencrypted: use wss://, or say insecure = true"),
    ("[[upstream.endpoint]]\nurl = 'ws://localhost.example.com/'", 2, "unencrypted"),
    ("[[upstream.endpoint]]\nurl = 'wss:///v1'", 2, "names no host"),
    ("[[upstream.endpoint]]\nurl = 'wss://h:0/'", 2, "has no port within 1 to 65535"),
    ("[[upstream.endpoint]]\nurl = 'wss://h:99999/'", 2, "has no port within 1 to 65535"),
    ("[[upstream.endpoint]]\nurl = 'wss://[::1/'", 2, "invalid authority"),
    ("[[upstream.endpoint]]\nurl = 'wss://me:secret@h/'", 2, "a url holds no user and no password: use token_file"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/a b'", 2, "holds what a url cannot"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\nca_file = '/nowhere/ca.pem'", 3, "/nowhere/ca.pem: No such file"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\nca_file = '/etc'", 3, "/etc: not a file"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\ntoken_file = '/nowhere/token'", 3, "/nowhere/token: No such file"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\ntoken_file = '/etc'", 3, "/etc: not a file"),
    (
        "[[upstream.endpoint]]\nurl = 'wss://h/'\ntoken_command = ['/bin/a']\nbasic_command = ['/bin/b']",
        4,
        "basic_command: beside token_command",
    ),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\ntoken_command = ['a']", 3, "\"a\" is not an absolute path"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\nbasic_file = '/nowhere/basic'", 3, "/nowhere/basic: No such file"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\ncert_file = '/etc/passwd'", 3, "cert_file: needs its key_file"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\ninterface = 'a-name-too-long0'", 3, "is no interface's name"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\ninterface = 'a/b'", 3, "is no interface's name"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\nproxy = 'proxy.example:3128'", 3, "is neither http://host:port nor"),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\nproxy = 'https://proxy.example'", 3, "is neither http://host:port nor"),
    (
        "[[upstream.endpoint]]\nurl = 'wss://h/'\nproxy = 'http://me:sesame@proxy.example'",
        3,
        "holds no user and no password: use proxy_basic_file",
    ),
    ("[[upstream.endpoint]]\nurl = 'wss://h/'\nproxy_basic_file = '/nowhere/proxy'", 3, "/nowhere/proxy: No such file"),
];

#[test]
fn every_bad_configuration_has_one_message_with_its_line_and_exit_78() {
    let folder = Folder::new("bad");
    for (number, (added, line, says)) in BAD.iter().enumerate() {
        // A root key has to stand in front of the tables, and `upstream` as one alone.
        let (text, line) = match added.split_once(' ') {
            Some(("upstream", _)) => (format!("{added}\n"), *line),
            Some(("lane", _)) => (format!("{added}\n{}", base("")), *line),
            _ => (base(added), BASE_LINES + line),
        };
        let file = folder.file(&format!("{number}.toml"), text);
        let (code, out, err) = check(&file);
        let prefix = format!("{}:{line}: ", file.display());
        assert_eq!(code, 78, "{added}\n{err}");
        assert!(out.is_empty(), "{added}\n{out}");
        assert!(err.starts_with(&prefix) && err.contains(says), "{added}\nwants {prefix}…{says}\ngot   {err}");
        assert_eq!(err.lines().count(), 1, "{added}\n{err}");
    }
}

#[test]
fn tells_every_error_of_all_files_in_their_order() {
    let folder = Folder::new("all");
    let file =
        folder.file("backhaul.toml", base("[log]\nlevel = 'x'\n[outbox]\ndirr = '/'\n[local]\nclients_max = 0\n"));
    let overlay = folder.file("conf.d/site.toml", "\n[upstream]\nattempts_max = 'none'\n");
    let (code, _, err) = check(&file);
    let lines: Vec<_> = err.lines().collect();
    assert_eq!((code, lines.len()), (78, 4), "{err}");
    for (line, place) in lines.iter().zip([(&file, 6), (&file, 8), (&file, 10), (&overlay, 3)]) {
        assert!(line.starts_with(&format!("{}:{}: ", place.0.display(), place.1)), "{line}");
    }
}

#[test]
fn refuses_a_configuration_without_endpoint() {
    let folder = Folder::new("endpoint");
    let file = folder.file("backhaul.toml", "[device]\nid = 'gw-1'\n\n[upstream]\nattempts_max = 1\n");
    let (code, _, err) = check(&file);
    assert_eq!(
        (code, err),
        (78, format!("{}:4: upstream.endpoint: at least one table with its url is needed\n", file.display()))
    );
}

#[test]
fn refuses_files_that_cannot_be_read() {
    let folder = Folder::new("unreadable");
    let missing = folder.0.join("missing.toml");
    assert_eq!(check(&missing).0, 78);
    assert!(check(&missing).2.contains("missing.toml: No such file"));
    let binary = folder.file("binary.toml", b"# a\n# \xff\n");
    assert!(check(&binary).2.starts_with(&format!("{}:2: not UTF-8", binary.display())));
    let large = folder.file("large.toml", vec![b'\n'; (1 << 20) + 1]);
    assert!(check(&large).2.contains("longer than 1048576 bytes"));
    assert_eq!(check(&folder.0).0, 78);
}

#[test]
fn refuses_a_device_that_has_no_name() {
    let folder = Folder::new("device");
    for (id, says) in [
        ("", "an empty name"),
        ("file:/nowhere/id", "/nowhere/id: No such file"),
        ("mac:nosuchif0", "No such file"),
        ("two words", "white space"),
    ] {
        let file = folder.file("backhaul.toml", format!("{ENDPOINT}[device]\nid = '{id}'\n"));
        let (code, _, err) = check(&file);
        assert_eq!(code, 78);
        assert!(err.starts_with(&format!("{}:4: device.id: ", file.display())) && err.contains(says), "{err}");
    }
}

#[test]
fn overlays_come_on_top_in_the_order_of_their_names() {
    let folder = Folder::new("overlay");
    let file = folder.file(
        "backhaul.toml",
        base("[log]\nlevel = 'error'\n[local]\nclients_max = 1\nmode = '0600'\n[[lane]]\nname = 'a'\n[[lane]]\nname = 'b'\n"),
    );
    folder.file("conf.d/10-site.toml", "[local]\nclients_max = 2\n[log]\nlevel = 'warn'\n[[lane]]\nname = 'c'\n");
    folder.file("conf.d/20-device.toml", "device.id = 'gw-2'\n[local]\nclients_max = 3\n");
    folder.file("conf.d/30-off.toml.disabled", "[local]\nclients_max = 4\n");
    folder.file("conf.d/.40-hidden.toml", "[local]\nclients_max = 5\n");
    let config = effective(&file);
    assert_eq!(config.device.id, "gw-2");
    assert_eq!(config.local.clients_max, 3);
    assert_eq!(config.local.mode, "0600");
    assert_eq!(config.log.level, "warn");
    let lanes: Vec<_> = config.lanes.iter().map(|lane| (lane.name.as_str(), lane.default)).collect();
    assert_eq!(lanes, [("c", true)]);
    assert_eq!(config.upstream.endpoints.len(), 1);
}

#[test]
fn prints_what_is_effective_and_its_bounds_as_a_configuration_again() {
    let folder = Folder::new("effective");
    let file = folder.file("backhaul.toml", base("[[lane]]\nname = 'a'\nbytes_max = 1000000\n"));
    let (code, out, _) = check(&file);
    assert_eq!(code, 0);
    for part in ["# device gw-1\n", "# memory, at most\n", "# flash, at most\n", "#   lane a ", "#   dead letters "] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    // In whole segments.
    let lane = out.lines().find(|line| line.starts_with("#   lane a ")).unwrap();
    assert!(lane.ends_with(" 786432 bytes"), "{lane}");
    let again = folder.file("again.toml", &out);
    assert_eq!(effective(&again), effective(&file));
}

#[test]
fn a_secret_that_others_can_read_is_refused_with_the_way_out() {
    let folder = Folder::new("secret");
    let token = folder.file("token", "abc123\n");
    let endpoint = format!("[[upstream.endpoint]]\nurl = 'wss://h/'\ntoken_file = '{}'\n", token.display());
    let file = folder.file("backhaul.toml", format!("device.id = 'gw-1'\n{endpoint}"));
    for (mode, fits) in
        [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o604, false), (0o602, false), (0o601, false)]
    {
        fs::set_permissions(&token, fs::Permissions::from_mode(mode)).unwrap();
        let (code, _, err) = check(&file);
        assert_eq!(code, if fits { 0 } else { 78 }, "{mode:o}: {err}");
        if !fits {
            assert!(err.starts_with(&format!("{}:4: upstream.endpoint.token_file: ", file.display())), "{err}");
            assert!(err.contains(&format!("chmod o-rwx {}", token.display())), "{err}");
        }
    }
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    for (content, says) in
        [("", "holds no secret"), ("two words", "more than one printable word"), (" \n", "holds no secret")]
    {
        fs::write(&token, content).unwrap();
        let (code, _, err) = check(&file);
        assert_eq!(code, 78);
        assert!(err.contains(says) && !err.contains("two words"), "{err}");
    }
}

#[test]
fn each_way_to_credentials_and_through_proxies_is_taken() {
    let folder = Folder::new("ways");
    let [basic, key] = ["basic", "key"].map(|name| {
        let file = folder.file(name, "me:open sesame\n");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    });
    for (added, fits) in [
        (format!("basic_file = '{basic}'"), true),
        (format!("cert_file = '{basic}'\nkey_file = '{key}'"), true),
        (format!("proxy = 'http://proxy.example'\nproxy_basic_file = '{basic}'"), true),
        (format!("proxy = 'none'\nproxy_basic_file = '{basic}'"), false),
        ("proxy = 'none'\ninterface = 'wwan0.1'".into(), true),
        ("basic_command = ['/usr/bin/id']".into(), true),
    ] {
        let text = format!("device.id = 'gw-1'\n[[upstream.endpoint]]\nurl = 'wss://h/'\n{added}\n");
        let (code, out, err) = check(&folder.file("backhaul.toml", text));
        assert_eq!(code, if fits { 0 } else { 78 }, "{added}: {err}");
        assert!(!out.contains("sesame") && !err.contains("sesame"), "{added}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let pair = format!("cert_file = '{basic}'\nkey_file = '{key}'");
    for (url, added, says) in [
        ("wss://h/", &pair, "others may get at this secret"),
        ("ws://localhost/", &format!("cert_file = '{basic}'\nkey_file = '{basic}'"), "is for wss:// alone"),
    ] {
        let text = format!("device.id = 'gw-1'\n[[upstream.endpoint]]\nurl = '{url}'\n{added}\n");
        let (code, _, err) = check(&folder.file("backhaul.toml", text));
        assert!(code == 78 && err.contains(says), "{err}");
    }
}

#[test]
fn an_unknown_group_is_a_warning() {
    let folder = Folder::new("group");
    let file = folder.file("backhaul.toml", base("[local]\ngroup = 'no-such-group'\n"));
    let (code, _, err) = check(&file);
    assert_eq!(code, 0);
    assert!(err.starts_with("warning: local.group: there is no group \"no-such-group\""), "{err}");
}

#[test]
fn takes_every_url_that_can_work() {
    let folder = Folder::new("url");
    for url in [
        "wss://h",
        "wss://h/",
        "wss://ingest.example.com:8443/v1?a=b",
        "wss://[2001:db8::1]/",
        "wss://[2001:db8::1]:444/",
        "WSS://H/",
        "ws://localhost:8080/",
        "ws://127.0.0.1/",
        "ws://127.1.2.3:9/",
        "ws://[::1]:9/",
    ] {
        let file = folder.file("backhaul.toml", format!("device.id = 'gw-1'\n[[upstream.endpoint]]\nurl = '{url}'\n"));
        let (code, _, err) = check(&file);
        assert_eq!((code, err.as_str()), (0, ""), "{url}");
    }
    let remote = "device.id = 'gw-1'\n[[upstream.endpoint]]\nurl = 'ws://10.0.0.1/'\ninsecure = true\n";
    assert_eq!(check(&folder.file("backhaul.toml", remote)).0, 0);
}

#[test]
fn quick_settings_for_tests_can_work() {
    let folder = Folder::new("quick");
    let file = folder.file(
        "backhaul.toml",
        base(
            "[upstream.reconnect]\nstart_delay_ms_max = 0\nspread_ms = 0\nbackoff_ms_min = 10\nbackoff_ms_max = 10\n\
             slow_ms_min = 10\nslow_ms_max = 10\nstable_after_ms = 10\n\
             [upstream.heartbeat]\ninterval_ms = 10\ntimeout_ms = 10\nmisses_max = 1\n\
             [outbox]\nsegment_bytes = 16384\nheadroom_bytes_min = 0\n[local]\nrecord_bytes_max = 4096\n\
             [[lane]]\nbytes_max = 32768\n",
        ),
    );
    assert_eq!(effective(&file).lanes[0].bytes_max, 32768);
}

#[test]
fn the_shipped_file_is_the_default_and_shows_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/backhaul.toml");
    let text = fs::read_to_string(&path).unwrap();
    let mut expected = Config::default().completed();
    expected.upstream.endpoints = vec![Endpoint { url: "wss://ingest.example.com/v1".into(), ..Endpoint::default() }];
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), expected);

    let with_device = text.replace("file:/etc/machine-id", "gw-1");
    let folder = Folder::new("shipped");
    let (code, out, err) = check(&folder.file("backhaul.toml", with_device));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("segment_bytes = 262144"));

    // What has no default stands in a comment.
    let optional: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) => format!("{rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let path = |file: &str| Some(PathBuf::from(format!("/etc/backhaul/{file}")));
    let program = |name: &str| vec![format!("/usr/lib/backhaul/{name}")];
    expected.upstream.endpoints = vec![Endpoint {
        url: "wss://ingest.example.com/v1".into(),
        insecure: false,
        ca_file: path("ca.pem"),
        token_file: path("token"),
        token_command: program("token"),
        basic_file: path("basic"),
        basic_command: program("basic"),
        cert_file: path("client.pem"),
        key_file: path("client.key"),
        interface: "eth0".into(),
        proxy: "http://proxy.example.com:3128".into(),
        proxy_basic_file: path("proxy"),
    }];
    expected.upstream.endpoints_file = Some("/run/backhaul/endpoints.toml".into());
    expected.remedies = vec![Remedy { after_s: 1800, exec: program("modem-reset"), ..Remedy::default() }];
    expected.handlers = vec![Handler {
        topic: "valve/#".into(),
        exec: [program("valve"), vec!["--set".into()]].concat(),
        reply_topic: "valve/reply/{seq}".into(),
        reply_lane: "telemetry".into(),
        ..Handler::default()
    }];
    assert_eq!(toml::from_str::<Config>(&optional).unwrap(), expected);
    let shipped = toml::from_str(&optional).unwrap();
    let known = toml::Value::try_from(&expected).unwrap();
    assert_eq!(keys(&shipped, ""), keys(&known, ""));
}

/// `key = value`, or the head of a list of tables.
fn is_setting(line: &str) -> bool {
    let key = line.split(" = ").next().unwrap_or_default();
    line.starts_with("[[") || key != line && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn keys(value: &toml::Value, path: &str) -> BTreeSet<String> {
    if let Some(table) = value.as_table() {
        table.iter().flat_map(|(key, value)| keys(value, &format!("{path}.{key}"))).collect()
    } else if let Some(list) = value.as_array().filter(|list| list.iter().all(toml::Value::is_table)) {
        list.iter().flat_map(|value| keys(value, path)).collect()
    } else {
        BTreeSet::from([path.to_owned()])
    }
}

#[test]
fn a_bad_command_line_is_exit_64_and_one_line() {
    for args in [&["chekc"][..], &[], &["check", "--confg", "x"], &["send", "--wait", "soon"], &["run", "x"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_backhaul")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1, "{args:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_backhaul")).arg("--help").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_full_disk_behind_the_output_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_backhaul")).arg("--version").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(74));
}
