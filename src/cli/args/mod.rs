//! What was typed → what it means, once: nothing behind this module sees an option. It reads no file and prints
//! nothing.

#[cfg(feature = "plan")]
mod plan;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use super::help;
use crate::config::load::DEFAULT_PATH;
use crate::shell::port::Wait;
#[cfg(feature = "plan")]
pub use plan::PlanArgs;

/// What the command line means.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print this text.
    Print(&'static str),
    /// `run`
    Run(RunArgs),
    /// `check`
    Check(CheckArgs),
    /// `provision`
    Provision(ProvisionArgs),
    /// `send`
    Send(SendArgs),
    /// `status`
    Status(StatusArgs),
    /// `outbox`
    Outbox(OutboxArgs),
    /// `plan`
    #[cfg(feature = "plan")]
    Plan(PlanArgs),
    /// A command that this build was made without.
    NotBuilt(&'static str),
}

/// `backhaul run`
#[derive(Debug, PartialEq)]
pub struct RunArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// Leave with 78 on a bad configuration whatever ran here before.
    pub strict: bool,
}

/// `backhaul check`
#[derive(Debug, PartialEq)]
pub struct CheckArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// Takes secrets away from others before.
    pub fix_permissions: bool,
    /// Instead: the root of an image that is to be copied to many boards.
    pub image: Option<PathBuf>,
}

/// `backhaul provision`
#[derive(Debug, PartialEq)]
pub struct ProvisionArgs {
    /// The configuration file.
    pub config: PathBuf,
    /// `[device] id`.
    pub device_id: Option<String>,
    /// The endpoint.
    pub url: Option<String>,
    /// The token.
    pub token: Option<Source>,
    /// CA, certificate and key, in this order.
    pub files: [Option<PathBuf>; 3],
    /// A folder with some of it.
    pub from: From,
    /// Replaces what was provisioned before.
    pub force: bool,
    /// Who is to read the secrets; `None`: `backhaul`, where there is such a user.
    pub user: Option<String>,
}

/// Where provisioning takes what the options do not say.
#[derive(Debug, PartialEq)]
pub enum From {
    /// From nowhere.
    Nothing,
    /// This folder.
    Folder(PathBuf),
    /// The boot partition's, if it has one: for init services.
    Boot,
}

/// Where the agent's socket is.
#[derive(Debug, PartialEq)]
pub enum Agent {
    /// Here.
    Socket(PathBuf),
    /// Where this file says; it has to be there.
    Config(PathBuf),
    /// Where the file at its usual place says, if there is one.
    Usual,
}

/// What `send` sends.
#[derive(Debug, PartialEq)]
pub enum Source {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

/// `backhaul send`
#[derive(Debug, PartialEq)]
pub struct SendArgs {
    /// Where the agent is.
    pub agent: Agent,
    /// The lane; `None`: the default lane.
    pub lane: Option<String>,
    /// The topic; `None`: as a put without one.
    pub topic: Option<String>,
    /// Which answer to wait for; `None`: as the lane's mode has it.
    pub wait: Option<Wait>,
    /// How long to wait for the socket, for space and for the answers.
    pub timeout: Duration,
    /// The whole input is one record, any bytes.
    pub whole: bool,
    /// What is sent.
    pub source: Source,
}

impl SendArgs {
    /// Wait for socket or space unless `--timeout` says otherwise.
    pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
    /// A day.
    pub const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
}

/// How `status` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// For people.
    Text,
    /// The snapshot as it is.
    Json,
    /// By the exit code alone.
    Check,
}

/// `backhaul status`
#[derive(Debug, PartialEq)]
pub struct StatusArgs {
    /// Where the agent is.
    pub agent: Agent,
    /// How to answer.
    pub view: View,
}

/// `backhaul outbox`
#[derive(Debug, PartialEq)]
pub struct OutboxArgs {
    /// The folder.
    pub dir: PathBuf,
    /// What to do with it.
    pub action: OutboxAction,
}

/// What `outbox` does.
#[derive(Debug, PartialEq)]
pub enum OutboxAction {
    /// `list`
    List {
        /// For programs.
        json: bool,
    },
    /// `verify`
    Verify {
        /// For programs.
        json: bool,
    },
    /// `export`
    Export {
        /// This lane alone.
        lane: Option<String>,
    },
    /// `wipe`
    Wipe {
        /// This lane alone.
        lane: Option<String>,
        /// Nobody is asked.
        yes: bool,
    },
    /// `prove`
    Prove(ProveArgs),
}

/// `backhaul outbox prove`
#[derive(Debug, PartialEq)]
pub struct ProveArgs {
    /// The run ends by itself after this time.
    pub duration: Option<Duration>,
    /// The run ends by itself when it has written so many bytes.
    pub bytes_max: u64,
    /// The last number that was seen before the power went.
    pub seen: Option<u64>,
    /// Where each number goes beside standard output: HOST:PORT or a file.
    pub witness: Option<String>,
    /// Says what the last cut left, and begins no new run.
    pub judge: bool,
    /// Kills so many children instead of asking for a power cut.
    pub sigkill: Option<u64>,
    /// This is such a child.
    pub child: bool,
}

impl ProveArgs {
    /// What a run writes unless `--bytes` says otherwise.
    pub const BYTES_DEFAULT: u64 = 64 << 20;
    /// Kills unless `--kills` says otherwise.
    pub const KILLS_DEFAULT: u64 = 100;
}

/// One line on what is wrong with the command line.
#[derive(Debug, PartialEq)]
pub struct UsageError(pub String);

/// Reads the arguments behind the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut typed = Typed::read(Parser::from_args(args))?;
    let command = match typed.command.take() {
        _ if typed.version => return Ok(Command::Print(help::VERSION)),
        None if typed.help => return Ok(Command::Print(help::ALL)),
        None => {
            return Err(UsageError(
                "what to do? one of run, check, provision, send, status, outbox, plan (see --help)".into(),
            ));
        }
        Some(command) => command,
    };
    match command.as_str() {
        "run" => typed.run(),
        "check" => typed.check(),
        "provision" => typed.provision(),
        "send" => typed.send(),
        "status" => typed.status(),
        "outbox" => typed.outbox(),
        #[cfg(feature = "plan")]
        "plan" => typed.plan(),
        #[cfg(not(feature = "plan"))]
        "plan" => Ok(Command::NotBuilt("plan")),
        other => Err(UsageError(format!(
            "unknown command '{other}': one of run, check, provision, send, status, outbox, plan"
        ))),
    }
}

/// The options as typed. Each command takes those it knows; what is left over is an error.
#[derive(Default)]
struct Typed {
    command: Option<String>,
    options: Vec<(String, Option<OsString>)>,
    operands: Vec<OsString>,
    help: bool,
    version: bool,
}

impl Typed {
    fn read(mut parser: Parser) -> Result<Self, UsageError> {
        let mut typed = Self::default();
        while let Some(arg) = parser.next().map_err(usage)? {
            let name = match arg {
                Arg::Value(value) if typed.command.is_none() => {
                    typed.command = Some(value.string().map_err(usage)?);
                    continue;
                }
                Arg::Value(value) => {
                    typed.operands.push(value);
                    continue;
                }
                Arg::Short(short) => match short {
                    'l' => "lane".into(),
                    't' => "topic".into(),
                    'h' => "help".into(),
                    'V' => "version".into(),
                    other => return Err(UsageError(format!("unknown option '-{other}' (see --help)"))),
                },
                Arg::Long(long) => long.to_owned(),
            };
            match name.as_str() {
                "help" => typed.help = true,
                "version" => typed.version = true,
                "config" | "socket" | "lane" | "topic" | "wait" | "timeout" | "seconds" | "bytes" | "seen"
                | "witness" | "kills" | "devices" | "accept-rate" | "burst" | "backlog" | "outage" | "down"
                | "device-id" | "url" | "token-file" | "ca-file" | "cert-file" | "key-file" | "from" | "user"
                | "image" | "over" | "falls-over-at" | "loss-spread" | "rtt" | "peak" | "back-within" | "seed"
                | "svg" => {
                    let value = parser.value().map_err(usage)?;
                    typed.options.push((name, Some(value)));
                }
                "strict" | "whole" | "json" | "check" | "yes" | "judge" | "sigkill" | "child" | "planned" | "boot"
                | "force" | "fix-permissions" | "power-cut" | "no-retry-after" | "recommend" | "compare" => {
                    typed.options.push((name, None));
                }
                other => return Err(UsageError(format!("unknown option '--{other}' (see --help)"))),
            }
        }
        Ok(typed)
    }

    fn run(mut self) -> Result<Command, UsageError> {
        if self.help {
            return Ok(Command::Print(help::RUN));
        }
        let config = self.config()?;
        let strict = self.flag("strict");
        self.finish("run")?;
        Ok(Command::Run(RunArgs { config, strict }))
    }

    fn check(mut self) -> Result<Command, UsageError> {
        if self.help {
            return Ok(Command::Print(help::CHECK));
        }
        let image = self.value("image")?.map(PathBuf::from);
        let fix_permissions = self.flag("fix-permissions");
        if image.is_some() && fix_permissions {
            return Err(UsageError("--image or --fix-permissions, not both".into()));
        }
        let config = self.config()?;
        self.finish("check")?;
        Ok(Command::Check(CheckArgs { config, fix_permissions, image }))
    }

    fn provision(mut self) -> Result<Command, UsageError> {
        if self.help {
            return Ok(Command::Print(help::PROVISION));
        }
        let from = match (self.value("from")?, self.flag("boot")) {
            (None, false) => From::Nothing,
            (Some(folder), false) => From::Folder(folder.into()),
            (None, true) => From::Boot,
            (Some(_), true) => return Err(UsageError("--from or --boot, not both".into())),
        };
        let token = self.value("token-file")?;
        let args = ProvisionArgs {
            config: self.config()?,
            device_id: self.text("device-id")?,
            url: self.text("url")?,
            token: token.map(|file| if file == "-" { Source::Stdin } else { Source::File(file.into()) }),
            files: [self.value("ca-file")?, self.value("cert-file")?, self.value("key-file")?]
                .map(|file| file.map(PathBuf::from)),
            from,
            force: self.flag("force"),
            user: self.text("user")?,
        };
        self.finish("provision")?;
        let says = args.device_id.is_some() || args.url.is_some() || args.token.is_some();
        if args.from == From::Nothing && !says && args.files.iter().all(Option::is_none) {
            return Err(UsageError("provision what? --device-id, --url, --token-file, --from … (see --help)".into()));
        }
        Ok(Command::Provision(args))
    }

    fn send(mut self) -> Result<Command, UsageError> {
        if self.help {
            return Ok(Command::Print(help::SEND));
        }
        let args = SendArgs {
            agent: self.agent()?,
            lane: self.text("lane")?,
            topic: self.text("topic")?,
            wait: self.text("wait")?.map(|word| wait(&word)).transpose()?,
            timeout: self.text("timeout")?.map_or(Ok(SendArgs::TIMEOUT_DEFAULT), |word| timeout(&word))?,
            whole: self.flag("whole"),
            source: match self.operand() {
                None => Source::Stdin,
                Some(dash) if dash == "-" => Source::Stdin,
                Some(file) => Source::File(file.into()),
            },
        };
        self.finish("send")?;
        Ok(Command::Send(args))
    }

    fn status(mut self) -> Result<Command, UsageError> {
        if self.help {
            return Ok(Command::Print(help::STATUS));
        }
        let agent = self.agent()?;
        let view = match (self.flag("json"), self.flag("check")) {
            (false, false) => View::Text,
            (true, false) => View::Json,
            (false, true) => View::Check,
            (true, true) => return Err(UsageError("--json or --check, not both".into())),
        };
        self.finish("status")?;
        Ok(Command::Status(StatusArgs { agent, view }))
    }

    fn outbox(mut self) -> Result<Command, UsageError> {
        const ONE_OF: &str = "one of list, verify, export, wipe, prove";
        let word = self.operand().map(|word| word.to_string_lossy().into_owned());
        let Some(word) = word else {
            let help = self.help.then_some(Command::Print(help::OUTBOX));
            return help.ok_or_else(|| UsageError(format!("outbox does what? {ONE_OF} (see outbox --help)")));
        };
        let text = match word.as_str() {
            "list" => help::OUTBOX_LIST,
            "verify" => help::OUTBOX_VERIFY,
            "export" => help::OUTBOX_EXPORT,
            "wipe" => help::OUTBOX_WIPE,
            "prove" => help::OUTBOX_PROVE,
            other => return Err(UsageError(format!("outbox does not know '{other}': {ONE_OF}"))),
        };
        if self.help {
            return Ok(Command::Print(text));
        }
        let action = match word.as_str() {
            "list" => OutboxAction::List { json: self.flag("json") },
            "verify" => OutboxAction::Verify { json: self.flag("json") },
            "export" => OutboxAction::Export { lane: self.text("lane")? },
            "wipe" => OutboxAction::Wipe { lane: self.text("lane")?, yes: self.flag("yes") },
            _ => OutboxAction::Prove(self.prove()?),
        };
        let Some(dir) = self.operand() else {
            return Err(UsageError(format!("outbox {word} of which folder? (see outbox {word} --help)")));
        };
        self.finish(&format!("outbox {word}"))?;
        Ok(Command::Outbox(OutboxArgs { dir: dir.into(), action }))
    }

    fn prove(&mut self) -> Result<ProveArgs, UsageError> {
        let sigkill = self.flag("sigkill");
        let kills = self.count("kills")?;
        if kills.is_some() && !sigkill {
            return Err(UsageError("--kills goes with --sigkill".into()));
        }
        Ok(ProveArgs {
            duration: self.count("seconds")?.map(Duration::from_secs),
            bytes_max: self.count("bytes")?.unwrap_or(ProveArgs::BYTES_DEFAULT),
            seen: self.count("seen")?,
            witness: self.text("witness")?,
            judge: self.flag("judge"),
            sigkill: sigkill.then_some(kills.unwrap_or(ProveArgs::KILLS_DEFAULT)),
            child: self.flag("child"),
        })
    }

    /// A whole number.
    fn count(&mut self, name: &str) -> Result<Option<u64>, UsageError> {
        let parse = |word: String| word.parse().map_err(|_| UsageError(format!("--{name} {word}: a whole number")));
        self.text(name)?.map(parse).transpose()
    }

    fn config(&mut self) -> Result<PathBuf, UsageError> {
        Ok(self.value("config")?.map_or_else(|| DEFAULT_PATH.into(), PathBuf::from))
    }

    fn agent(&mut self) -> Result<Agent, UsageError> {
        match (self.value("socket")?, self.value("config")?) {
            (None, None) => Ok(Agent::Usual),
            (Some(socket), None) => Ok(Agent::Socket(socket.into())),
            (None, Some(config)) => Ok(Agent::Config(config.into())),
            (Some(_), Some(_)) => Err(UsageError("--socket or --config, not both".into())),
        }
    }

    fn flag(&mut self, name: &str) -> bool {
        let before = self.options.len();
        self.options.retain(|(option, _)| option != name);
        self.options.len() < before
    }

    fn value(&mut self, name: &str) -> Result<Option<OsString>, UsageError> {
        let Some(index) = self.options.iter().position(|(option, _)| option == name) else { return Ok(None) };
        let (_, value) = self.options.remove(index);
        if self.options.iter().any(|(option, _)| option == name) {
            return Err(UsageError(format!("--{name} twice")));
        }
        Ok(value)
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, UsageError> {
        self.value(name)?.map(|value| value.string().map_err(usage)).transpose()
    }

    fn operand(&mut self) -> Option<OsString> {
        (!self.operands.is_empty()).then(|| self.operands.remove(0))
    }

    fn finish(&self, command: &str) -> Result<(), UsageError> {
        if let Some((option, _)) = self.options.first() {
            return Err(UsageError(format!("{command} has no option '--{option}' (see {command} --help)")));
        }
        match self.operands.first() {
            None => Ok(()),
            Some(operand) => Err(UsageError(format!("unexpected argument '{}'", operand.to_string_lossy()))),
        }
    }
}

fn one_of<T: Copy>(name: &str, word: &str, words: &[(&str, T)]) -> Result<T, UsageError> {
    let found = words.iter().find(|(known, _)| *known == word).map(|(_, meant)| *meant);
    found.ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(known, _)| *known).collect();
        UsageError(format!("--{name} {word}: one of {}", known.join(", ")))
    })
}

fn usage(error: lexopt::Error) -> UsageError {
    UsageError(error.to_string())
}

fn wait(word: &str) -> Result<Wait, UsageError> {
    let words = [("accepted", Wait::Accepted), ("committed", Wait::Committed), ("delivered", Wait::Delivered)];
    one_of("wait", word, &words)
}

fn timeout(word: &str) -> Result<Duration, UsageError> {
    let seconds = word.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|timeout| *timeout <= SendArgs::TIMEOUT_MAX)
        .ok_or_else(|| UsageError(format!("--timeout {word}: seconds, from 0 to {}", SendArgs::TIMEOUT_MAX.as_secs())))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    pub(super) fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from)).map_err(|UsageError(message)| message)
    }

    #[test]
    fn means_what_was_typed() {
        let send = |args: SendArgs| Ok(Command::Send(args));
        let plain = || SendArgs {
            agent: Agent::Usual,
            lane: None,
            topic: None,
            wait: None,
            timeout: Duration::from_secs(10),
            whole: false,
            source: Source::Stdin,
        };
        assert_eq!(parsed("send"), send(plain()));
        assert_eq!(parsed("send -"), send(plain()));
        assert_eq!(parsed("send -- -x"), send(SendArgs { source: Source::File("-x".into()), ..plain() }));
        assert_eq!(
            parsed("send -l alarm -t a/b --wait delivered --timeout 0.5 --whole --socket /s f.bin"),
            send(SendArgs {
                agent: Agent::Socket("/s".into()),
                lane: Some("alarm".into()),
                topic: Some("a/b".into()),
                wait: Some(Wait::Delivered),
                timeout: Duration::from_millis(500),
                whole: true,
                source: Source::File("f.bin".into()),
            })
        );
        assert_eq!(parsed("run"), Ok(Command::Run(RunArgs { config: DEFAULT_PATH.into(), strict: false })));
        assert_eq!(parsed("run --strict --config=/c"), Ok(Command::Run(RunArgs { config: "/c".into(), strict: true })));
        assert_eq!(
            parsed("status --json --config /c"),
            Ok(Command::Status(StatusArgs { agent: Agent::Config("/c".into()), view: View::Json }))
        );
        let prove = |line: &str| match parsed(line) {
            Ok(Command::Outbox(OutboxArgs { action: OutboxAction::Prove(args), .. })) => args,
            other => panic!("{other:?}"),
        };
        assert_eq!(prove("outbox prove /d --seconds 9").duration, Some(Duration::from_secs(9)));
        assert_eq!(prove("outbox prove /d --sigkill").sigkill, Some(100));
        assert_eq!(prove("outbox prove /d --sigkill --kills 3").sigkill, Some(3));
        assert_eq!(prove("outbox prove /d --seen 17 --judge").seen, Some(17));
        assert_eq!(
            parsed("outbox export -l alarm /d"),
            Ok(Command::Outbox(OutboxArgs {
                dir: "/d".into(),
                action: OutboxAction::Export { lane: Some("alarm".into()) }
            }))
        );
        assert_eq!(
            parsed("outbox wipe --lane alarm --yes /d"),
            Ok(Command::Outbox(OutboxArgs {
                dir: "/d".into(),
                action: OutboxAction::Wipe { lane: Some("alarm".into()), yes: true }
            }))
        );
        assert_eq!(parsed("outbox wipe --help"), Ok(Command::Print(help::OUTBOX_WIPE)));
        assert_eq!(parsed("outbox --help"), Ok(Command::Print(help::OUTBOX)));
        assert_eq!(parsed("--version"), Ok(Command::Print(help::VERSION)));
        assert_eq!(parsed("send --help"), Ok(Command::Print(help::SEND)));
        assert_eq!(parsed("--help"), Ok(Command::Print(help::ALL)));
    }

    #[test]
    fn refuses_what_means_nothing() {
        for (line, says) in [
            ("", "what to do?"),
            ("sned", "unknown command 'sned'"),
            ("run now", "unexpected argument 'now'"),
            ("run --jsn", "unknown option '--jsn'"),
            ("run --json", "run has no option '--json'"),
            ("run -x", "unknown option '-x'"),
            ("run --config", "missing"),
            ("run --config a --config b", "--config twice"),
            ("run --strict=yes", "unexpected argument"),
            ("check --image / --fix-permissions", "--image or --fix-permissions, not both"),
            ("provision", "provision what?"),
            ("provision --from /a --boot", "--from or --boot, not both"),
            ("check --socket /s", "check has no option '--socket'"),
            ("send a b", "unexpected argument 'b'"),
            ("send --wait soon", "--wait soon: one of"),
            ("send --timeout -1", "--timeout -1: seconds"),
            ("send --timeout nan", "--timeout nan: seconds"),
            ("send --timeout 1e9", "--timeout 1e9: seconds"),
            ("send --socket a --config b", "--socket or --config, not both"),
            ("outbox", "outbox does what? one of list"),
            ("outbox lst /d", "outbox does not know 'lst'"),
            ("outbox list", "outbox list of which folder?"),
            ("outbox list /d /e", "unexpected argument '/e'"),
            ("outbox list --yes /d", "outbox list has no option '--yes'"),
            ("outbox prove --bytes 1k /d", "--bytes 1k: a whole number"),
            ("outbox prove --kills 3 /d", "--kills goes with --sigkill"),
            ("status --json --check", "--json or --check, not both"),
        ] {
            let message = parsed(line).unwrap_err();
            assert!(message.contains(says), "{line:?}: {message:?} lacks {says:?}");
            assert!(!message.contains('\n'));
        }
    }
}
