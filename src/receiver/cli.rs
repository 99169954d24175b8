//! The command line of `backhaul-receiver`: what was typed → what it means → run it. Exit codes follow sysexits.
//! `command` is in [`super::command`].

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mio::net::TcpListener;
use native_tls::{Identity, Protocol, TlsAcceptor};

use super::command::{self, Action, Asked};
use super::commands::Beside;
use super::door::Rate;
use super::net::{self, Server};
use super::restart::{self, Restart};
use super::store::{Store, StoreError};
use super::tokens::Tokens;
use super::upgrade::Gate;
use crate::exit::{CONFIG, DATA, NO_INPUT, PERMISSION, TRY_AGAIN, UNAVAILABLE, USAGE};
use crate::record::Body;
use crate::shell::{clock, entropy};

const HELP: &str = "\
backhaul-receiver: the reference upstream; WebSockets in, SQLite out
usage: backhaul-receiver --listen ADDR --store FILE [options]
       backhaul-receiver command --help      sends a command down to a device

  --listen ADDR           address and port, as 0.0.0.0:8443; port 0 picks one
  --store FILE            the SQLite file, made when missing; FILE.lock with it
  --tls-cert FILE         certificate chain, PEM; with --tls-key: wss, not ws
  --tls-key FILE          its private key, PEM (PKCS#8)
  --token-file FILE       lines `device token`, or `* token` for any device;
                          without it everybody may connect as any device
  --ping-interval-ms MS   ping quiet sessions, drop after three (default 20000)
  --accept-rate R         let R connections a second in, tell the rest when to
  --burst B               come back; after a pause B at once (default R)
  --restart-spread S      a planned restart calls the fleet back over S seconds
                          (default: sessions / R; without R 30)
  --restart-gap S         and the first one after S seconds (default 2, or more)
  --watch                 a line on stderr once a second while something changes
  --page ADDR             the last ten minutes of the fleet, on http://ADDR/
  --help, --version

Prints `listening on ADDR:PORT` to stdout once it is ready; logs to stderr
(RUST_LOG=debug for more). SIGTERM or SIGUSR1 is a planned restart: it commits,
tells each session when to come back, leaves. SIGINT: without telling.
";

const VERSION: &str = concat!("backhaul-receiver ", env!("CARGO_PKG_VERSION"), "\n");

/// What was typed.
#[derive(Debug, Default, PartialEq)]
struct Typed {
    listen: Option<String>,
    store: Option<PathBuf>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    token_file: Option<PathBuf>,
    ping_interval_ms: Option<u64>,
    accept_rate: Option<u32>,
    burst: Option<u32>,
    restart_spread_s: Option<u64>,
    restart_gap_s: Option<u64>,
    watch: bool,
    page: Option<String>,
}

/// What it means.
#[derive(Debug, PartialEq)]
enum Meant {
    Print(&'static str),
    Run(Box<Options>),
    Command(Asked),
}

#[derive(Debug, PartialEq)]
struct Options {
    listen: String,
    store: PathBuf,
    /// Certificate and key.
    tls: Option<(PathBuf, PathBuf)>,
    token_file: Option<PathBuf>,
    ping_interval: Duration,
    accept: Option<Rate>,
    restart: Restart,
    watch: bool,
    page: Option<String>,
}

/// Why the process ends, and with which code.
struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let meant = match parse(lexopt::Parser::from_env()) {
        Ok(meant) => meant,
        Err(message) => return report(&Exit::new(USAGE, format!("{message}; try --help"))),
    };
    let done = match meant {
        Meant::Print(text) => print(text),
        Meant::Run(options) => run(&options),
        Meant::Command(asked) => run_command(asked),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => report(&exit),
    }
}

fn report(exit: &Exit) -> ExitCode {
    // Where stderr is gone too there is nobody left to tell.
    let _ = writeln!(io::stderr(), "backhaul-receiver: {}", exit.message);
    ExitCode::from(exit.code)
}

fn print(text: &str) -> Result<(), Exit> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.map_err(|error| Exit::new(UNAVAILABLE, format!("stdout: {error}")))
}

fn parse(mut parser: lexopt::Parser) -> Result<Meant, String> {
    if parser.try_raw_args().is_some_and(|args| args.peek().is_some_and(|first| first == "command")) {
        let _command = parser.next();
        let asked = command::parse(&mut parser).map_err(|error| format!("command: {error}"))?;
        return Ok(asked.map_or(Meant::Print(command::HELP), Meant::Command));
    }
    match type_of(parser).map_err(|error| error.to_string())? {
        Ok(typed) => typed.mean().map(|options| Meant::Run(Box::new(options))),
        Err(asked) => Ok(asked),
    }
}

/// The flags as typed; the inner `Err` is a question that ends the reading.
fn type_of(mut parser: lexopt::Parser) -> Result<Result<Typed, Meant>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut typed = Typed::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => typed.listen = Some(parser.value()?.string()?),
            Long("store") => typed.store = Some(parser.value()?.into()),
            Long("tls-cert") => typed.tls_cert = Some(parser.value()?.into()),
            Long("tls-key") => typed.tls_key = Some(parser.value()?.into()),
            Long("token-file") => typed.token_file = Some(parser.value()?.into()),
            Long("ping-interval-ms") => typed.ping_interval_ms = Some(parser.value()?.parse()?),
            Long("accept-rate") => typed.accept_rate = Some(parser.value()?.parse()?),
            Long("burst") => typed.burst = Some(parser.value()?.parse()?),
            Long("restart-spread") => typed.restart_spread_s = Some(parser.value()?.parse()?),
            Long("restart-gap") => typed.restart_gap_s = Some(parser.value()?.parse()?),
            Long("watch") => typed.watch = true,
            Long("page") => typed.page = Some(parser.value()?.string()?),
            Short('h') | Long("help") => return Ok(Err(Meant::Print(HELP))),
            Short('V') | Long("version") => return Ok(Err(Meant::Print(VERSION))),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    Ok(Ok(typed))
}

impl Typed {
    fn mean(self) -> Result<Options, String> {
        let tls = match (self.tls_cert, self.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            (Some(_), None) => return Err("--tls-cert needs --tls-key".into()),
            (None, Some(_)) => return Err("--tls-key needs --tls-cert".into()),
        };
        let ping_interval = match self.ping_interval_ms {
            None => net::PING_INTERVAL,
            Some(ms) if ms >= 10 => Duration::from_millis(ms),
            Some(_) => return Err("--ping-interval-ms is at least 10".into()),
        };
        let accept = match (self.accept_rate, self.burst) {
            (None, None) => None,
            (None, Some(_)) => return Err("--burst needs --accept-rate".into()),
            (Some(0), _) | (_, Some(0)) => return Err("--accept-rate and --burst are at least 1".into()),
            (Some(rate), burst) => Some(Rate { rate, burst: burst.unwrap_or(rate) }),
        };
        let too_long =
            [self.restart_spread_s, self.restart_gap_s].into_iter().flatten().any(|s| s > restart::WAIT_MAX.as_secs());
        if too_long {
            return Err(format!("--restart-spread and --restart-gap are at most {}", restart::WAIT_MAX.as_secs()));
        }
        let restart = Restart {
            gap: self.restart_gap_s.map(Duration::from_secs),
            spread: self.restart_spread_s.map(Duration::from_secs),
            accept_rate: self.accept_rate,
        };
        let listen = self.listen.ok_or("--listen is missing")?;
        let store = self.store.ok_or("--store is missing")?;
        let Self { token_file, watch, page, .. } = self;
        Ok(Options { listen, store, tls, token_file, ping_interval, accept, restart, watch, page })
    }
}

fn run(options: &Options) -> Result<(), Exit> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        // It would log frames with what is in them (protocol rule 10).
        .filter_module("tungstenite", log::LevelFilter::Warn)
        .init();
    let gate = Gate::new(options.token_file.as_deref().map(read_tokens).transpose()?);
    let tls = options.tls.as_ref().map(|(cert, key)| read_tls(cert, key)).transpose()?;
    let store = Store::try_new(&options.store, entropy::draw()).map_err(|error| store_exit(&options.store, &error))?;
    if options.token_file.is_none() {
        log::warn!(target: "receiver", "open to everybody: no token file");
    }
    let settings = net::Settings {
        ping_interval: options.ping_interval,
        run: entropy::draw() as u32,
        accept: options.accept,
        restart: options.restart,
        watch: options.watch,
    };
    let listener = listen("--listen", &options.listen)?;
    let page = options.page.as_deref().map(|page| listen("--page", page)).transpose()?;
    let reactor = |error: io::Error| Exit::new(UNAVAILABLE, format!("reactor: {error}"));
    let server = Server::try_new(listener, tls, gate, store, page, settings).map_err(reactor)?;
    let page = server.page_addr().map(|address| format!("page on http://{address}/\n"));
    print(&format!("listening on {}\n{}", server.local_addr(), page.unwrap_or_default()))?;
    server.run().map_err(reactor)
}

/// Beside a receiver: the store's lock is not taken.
fn run_command(asked: Asked) -> Result<(), Exit> {
    let Asked { store: path, action } = asked;
    if !path.exists() {
        return Err(Exit::new(NO_INPUT, format!("--store {}: there is none", path.display())));
    }
    let failed = |error: StoreError| store_exit(&path, &error);
    let mut store = Beside::try_new(&path).map_err(failed)?;
    let now_ms = clock::wall_ms();
    let (device, topic, body) = match action {
        Action::List(device) => return print(&command::list(&store, device.as_deref(), now_ms).map_err(failed)?),
        Action::Put { device, topic, body } => (device, topic, body),
    };
    let body = match body {
        Some(text) => Some(Body::Text(text)),
        None => command::read_body().map_err(|error| Exit::new(NO_INPUT, format!("standard input: {error}")))?,
    };
    let Some(body) = body.filter(|body| command::fits(&topic, body)) else {
        return Err(Exit::new(DATA, "topic and body do not fit into a message of 1 MiB, in each of its encodings"));
    };
    let seq = store.put(&device, &topic, &body, now_ms).map_err(failed)?;
    print(&format!("{seq}\n"))
}

/// Binds the first of the name's addresses that can be bound.
fn listen(flag: &str, name: &str) -> Result<TcpListener, Exit> {
    let addresses = name.to_socket_addrs().map_err(|error| Exit::new(USAGE, format!("{flag} {name}: {error}")))?;
    let mut exit = Exit::new(USAGE, format!("{flag} {name}: no such address"));
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                let code = if error.kind() == ErrorKind::PermissionDenied { PERMISSION } else { UNAVAILABLE };
                exit = Exit::new(code, format!("{flag} {address}: {error}"));
            }
        }
    }
    Err(exit)
}

fn read_tokens(path: &Path) -> Result<Tokens, Exit> {
    let text = fs::read_to_string(path).map_err(|error| unreadable("--token-file", path, &error))?;
    let tokens =
        Tokens::parse(&text).map_err(|error| Exit::new(CONFIG, format!("--token-file {}: {error}", path.display())))?;
    log::info!(target: "receiver", "tokens read count={}", tokens.len());
    Ok(tokens)
}

fn read_tls(cert: &Path, key: &Path) -> Result<TlsAcceptor, Exit> {
    let cert_pem = fs::read(cert).map_err(|error| unreadable("--tls-cert", cert, &error))?;
    let key_pem = fs::read(key).map_err(|error| unreadable("--tls-key", key, &error))?;
    let wrong = |error: native_tls::Error| {
        Exit::new(CONFIG, format!("--tls-cert {} --tls-key {}: {error}", cert.display(), key.display()))
    };
    let identity = Identity::from_pkcs8(&cert_pem, &key_pem).map_err(wrong)?;
    let mut builder = TlsAcceptor::builder(identity);
    builder.min_protocol_version(Some(Protocol::Tlsv12));
    builder.build().map_err(wrong)
}

fn unreadable(flag: &str, path: &Path, error: &io::Error) -> Exit {
    let code = if error.kind() == ErrorKind::PermissionDenied { PERMISSION } else { CONFIG };
    Exit::new(code, format!("{flag} {}: {error}", path.display()))
}

fn store_exit(path: &Path, error: &StoreError) -> Exit {
    let code = match error {
        StoreError::Locked(_) => TRY_AGAIN,
        StoreError::Lock(_, error) if error.kind() == ErrorKind::PermissionDenied => PERMISSION,
        StoreError::Lock(..) => UNAVAILABLE,
        StoreError::Newer(_) => DATA,
        StoreError::Sqlite(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => DATA,
            Some(rusqlite::ErrorCode::PermissionDenied | rusqlite::ErrorCode::ReadOnly) => PERMISSION,
            Some(_) | None => UNAVAILABLE,
        },
    };
    Exit::new(code, format!("--store {}: {error}", path.display()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Meant, String> {
        parse(lexopt::Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn reads_every_flag() {
        let line = "--listen 127.0.0.1:0 --store=s.db --tls-cert c --tls-key k --token-file t --ping-interval-ms 50";
        let options = Options {
            listen: "127.0.0.1:0".into(),
            store: "s.db".into(),
            tls: Some(("c".into(), "k".into())),
            token_file: Some("t".into()),
            ping_interval: Duration::from_millis(50),
            accept: None,
            restart: Restart { gap: None, spread: None, accept_rate: None },
            watch: false,
            page: None,
        };
        assert_eq!(typed(line).unwrap(), Meant::Run(Box::new(options)));
        let herd = "--listen a:1 --store s --accept-rate 1000 --restart-spread 120 --restart-gap 0";
        let Meant::Run(options) = typed(herd).unwrap() else { panic!("not a run") };
        assert_eq!(options.accept, Some(Rate { rate: 1000, burst: 1000 }));
        let spread = Some(Duration::from_secs(120));
        assert_eq!(options.restart, Restart { gap: Some(Duration::ZERO), spread, accept_rate: Some(1000) });
        let Meant::Run(options) = typed(&format!("{herd} --burst 5")).unwrap() else { panic!("not a run") };
        assert_eq!(options.accept, Some(Rate { rate: 1000, burst: 5 }));
        let Meant::Run(options) = typed(&format!("{herd} --watch --page :80")).unwrap() else { panic!("not a run") };
        assert_eq!((options.watch, options.page.as_deref()), (true, Some(":80")));
    }

    #[test]
    fn says_what_is_wrong_with_the_line() {
        for (line, word) in [
            ("", "--listen"),
            ("--listen a:1", "--store"),
            ("--listen a:1 --store s --tls-cert c", "--tls-key"),
            ("--listen a:1 --store s --ping-interval-ms 9", "at least 10"),
            ("--listen a:1 --store s --ping-interval-ms soon", "soon"),
            ("--listen a:1 --store s --frobnicate", "--frobnicate"),
            ("--listen a:1 --store s extra", "extra"),
            ("--listen a:1 --store s --burst 5", "--accept-rate"),
            ("--listen a:1 --store s --accept-rate 0", "at least 1"),
            ("--listen a:1 --store s --accept-rate 5 --burst 0", "at least 1"),
            ("--listen a:1 --store s --accept-rate many", "many"),
            ("--listen a:1 --store s --restart-spread 3601", "at most 3600"),
        ] {
            let message = typed(line).unwrap_err();
            assert!(message.contains(word), "{line}: {message}");
        }
    }

    #[test]
    fn help_fits_a_screen() {
        assert!(HELP.lines().count() <= 24 && HELP.lines().all(|line| line.len() <= 80), "{HELP}");
        assert_eq!(typed("--help"), Ok(Meant::Print(HELP)));
        assert_eq!(typed("-V"), Ok(Meant::Print(VERSION)));
        assert_eq!(typed("command -h"), Ok(Meant::Print(command::HELP)));
        assert!(typed("command --store s gw").is_err_and(|error| error.contains("topic")));
    }
}
