//! The help texts, each of which fits a screen of 24 lines and 80 columns.

/// `--version`
pub const VERSION: &str = concat!("backhaul ", env!("CARGO_PKG_VERSION"), "\n");

#[cfg(feature = "plan")]
macro_rules! plan {
    () => {
        "  plan     what a fleet of agents does to its server after an outage\n"
    };
}
#[cfg(not(feature = "plan"))]
macro_rules! plan {
    () => {
        ""
    };
}

/// `--help`
pub const ALL: &str = concat!(
    "\
Hands telemetry to the cloud: on flash first, one WebSocket upstream, every
record delivered exactly once.

usage: backhaul COMMAND [OPTION...]

  run      the agent, in the foreground; logs to stderr
  check    validate the configuration; print what is effective and its bounds
  provision   set device id, endpoint and credentials, once
  send     hand records to the agent, a line each
  listen   print commands from upstream as they come
  status   what the agent is doing and why
  outbox   look into an outbox without an agent; prove what a storage keeps
",
    plan!(),
    "
  -h, --help       this text; with a command, what that command takes
  -V, --version    the version

exit codes: 0 done, 64 usage, 65 data, 66 no input, 69 unavailable,
            74 storage, 75 try again, 77 permission, 78 configuration
"
);

/// `run --help`
pub const RUN: &str = "\
usage: backhaul run [--config FILE] [--strict]

The agent, in the foreground; logs to stderr. SIGHUP reloads the configuration
(a bad one is refused, the running one stays), SIGTERM puts what was accepted on
flash and leaves within 2 s.

  --config FILE   /etc/backhaul/backhaul.toml unless said; conf.d/*.toml beside
                  it comes on top
  --strict        never fall back to an earlier configuration: a bad one is 78
";

/// `check --help`
pub const CHECK: &str = "\
usage: backhaul check [--config FILE] [--fix-permissions]
       backhaul check --image ROOT

Validates the configuration as `run` would, here and now, and prints what is
effective and the bounds on memory and flash that follow from it. Exit 78 and a
line for each error: FILE:LINE: what is wrong.

  --config FILE      /etc/backhaul/backhaul.toml unless said; conf.d/*.toml
                     beside it comes on top
  --fix-permissions  first takes tokens and keys away from others (chmod o-rwx)
  --image ROOT       a root file system before it is copied to many boards: what
                     in it belongs to one board alone, and how to remove it;
                     exit 78 if there is any
";

/// `provision --help`
pub const PROVISION: &str = "\
usage: backhaul provision [OPTION...]

Sets who this gateway is, where it sends to and by what credentials: writes
conf.d/90-provision.toml and the secrets beside it, all or nothing, after it has
checked the whole configuration. A running agent takes it up at SIGHUP.

  --device-id ID       [device] id
  --url URL            the endpoint, in the place of all that are configured
  --token-file FILE|-  the bearer token
  --ca-file FILE       the CA to trust
  --cert-file FILE     this gateway's certificate, and
  --key-file FILE      its key
  --from DIR           what DIR has of backhaul.toml, token, ca.pem, cert.pem,
                       key.pem; token and key.pem are removed there afterwards
  --boot               the same of /boot/backhaul or /boot/firmware/backhaul, if
                       there is one: for init services
  --user NAME          who reads the secrets; backhaul unless said
  --force              replaces what was provisioned before
  --config FILE        /etc/backhaul/backhaul.toml unless said

exit codes: 0 done, or was so already; 66 no such file, 73 provisioned already,
            74 storage, 77 permission, 78 the configuration would not work
";

/// `send --help`
pub const SEND: &str = "\
usage: backhaul send [OPTION...] [FILE|-]

Hands records to the agent, one for each line of FILE or of standard input, and
waits for the agent's word on them. Exit 75 when the agent or space in the lane
did not come in time, 74 when the storage fails and records are kept in RAM only
(do not send them again), both with the count that is committed.

  -l, --lane LANE    the lane; the default lane unless said
  -t, --topic TOPIC  what the records are about
  --wait accepted|committed|delivered
                     the word to wait for: numbered, on flash, stored upstream;
                     unless said, what the lane's commit mode gives
  --timeout S        how long to wait, 10 s unless said
  --whole            the whole input is one record, any bytes
  --config FILE      find the agent's socket by this configuration
  --socket PATH      the agent's socket

  echo 21.5 | backhaul send -t boiler/temp
";

/// `listen --help`
pub const LISTEN: &str = "\
usage: backhaul listen [-t FILTER] [--json] [--count N]
                       [--config FILE|--socket PATH]

Prints commands from upstream as they come, a line each: the topic, a space and
the body, with control characters and backslashes escaped; bytes that are no
text as base64:... A command is done when it is printed. It may come again where
the agent was killed before it knew. Waits 10 s for an agent, and for one that
is restarted as long as it takes.

  -t, --topic FILTER  commands on these topics alone, as MQTT has it: + is one
                      level, # all that follow; # unless said
  --json              a JSON object a line: seq, topic, text or base64, stream
  --count N           leave after N commands
  --config FILE       find the agent's socket by this configuration
  --socket PATH       the agent's socket

  backhaul listen -t valve/# | while read -r topic body; do ...; done

exit codes: 0 N commands came, or nobody reads, 64 usage, 69 no agent,
            74 output, 77 permission
";

/// `status --help`
pub const STATUS: &str = "\
usage: backhaul status [--watch|--json|--prometheus|--check]
                       [--config FILE|--socket PATH]

What the agent is doing and why, on one screen; in colours on a terminal, unless
NO_COLOR is set.

  --watch         again and again, until ^C; a line a change where standard
                  output is no terminal
  --json          the whole snapshot
  --prometheus    as metrics, for the node exporter's textfile collector
  --check         only an exit code: 0 up and well; 1 up but degraded; 2 not up,
                  even while storing well; 3 no agent running
  --config FILE   find the agent's socket by this configuration
  --socket PATH   the agent's socket
";

/// `outbox --help`
pub const OUTBOX: &str = "\
usage: backhaul outbox list|verify|export|wipe|prove DIR [OPTION...]

What lies on flash, without an agent and without a server. DIR is the folder of
`[outbox] dir`, or a copy of it, damaged or not. All but wipe and prove change
nothing in it and need no permission to write.

  list     lanes, epochs, what waits and what is known to be lost; at once
  verify   reads everything, checks every checksum, says what is lost
  export   the records as NDJSON, for a site that never comes online
  wipe     removes the records; each lane begins a new epoch
  prove    does this storage keep what it said it wrote? (asks for a power cut)

`backhaul outbox COMMAND --help` says more.
";

/// `outbox list --help`
pub const OUTBOX_LIST: &str = "\
usage: backhaul outbox list DIR [--json]

Lanes, segments, what waits for the upstream, its oldest and newest, and what is
known to be lost. Reads a page of each segment and the newest one, as a start of
the agent does: damage in the backlog is for `verify` to find.

  --json   for programs

exit codes: 0 done, 66 no such folder, 77 permission
";

/// `outbox verify --help`
pub const OUTBOX_VERIFY: &str = "\
usage: backhaul outbox verify DIR [--json]

Reads all that is there, checks every checksum and says what waits, what is
damaged and what of the promised records is lost. Writes nothing.

  --json   for programs: records, acked, lost_promised, lost_torn, segments
           and more; a number each, over all lanes

  records        intact and waiting for the upstream
  lost_promised  damaged beyond reading: each was promised
  lost_unknown   numbers skipped behind damage: some may have been promised
  lost_torn      numbers skipped where a write was cut: nothing was promised
  dead_letters   copies of refused records; a damaged one is no lost promise

exit codes: 0 intact, 65 promised records are lost, or may be, 66 no such
            folder, 75 an agent writes here and what was read looks damaged,
            77 permission
";

/// `outbox export --help`
pub const OUTBOX_EXPORT: &str = "\
usage: backhaul outbox export DIR [-l LANE]

Writes what waits for the upstream to standard output, a JSON object a line, the
oldest first in each lane and epoch:

  {\"lane\":\"temp\",\"epoch\":300,\"seq\":17,\"at\":1767225600000,
   \"topic\":\"boiler\",\"text\":\"21.5\"}
  {\"lane\":\"temp\",\"epoch\":300,
   \"gap\":{\"from\":18,\"to\":19,\"why\":\"corrupt\",\"count\":2}}

Bytes that are no text are \"base64\"; `key` and `ttl_s` where there are any (what
has outlived its time is there, too); `boot` and `boot_ms` where no clock was
known. A dead letter, in lane `dead`, names in \"rejected\" its record's lane,
epoch, seq and the reason. Nothing is removed: who imports keeps (lane, epoch,
seq) and drops what comes twice.

  -l, --lane LANE   this lane alone

exit codes: 0 done, 65 done, promised records are lost, or may be, 66 no such
            folder or lane, 74 output, 75 damage while an agent writes here
";

/// `outbox wipe --help`
pub const OUTBOX_WIPE: &str = "\
usage: backhaul outbox wipe DIR [-l LANE] [--yes]

Removes every record and every lane's numbering, durably. At the next start of
the agent each lane begins a new epoch: no number is used again, and the server
sees a new beginning rather than a gap. Refused while an agent runs.

  -l, --lane LANE   this lane alone (`dead`: the dead letters); not a byte of
                    the others changes
  --yes             do not ask

exit codes: 0 done, 1 the answer was no, 66 no such folder or lane, 74 the
            storage failed, 75 an agent runs here, 77 permission
";

/// `outbox prove --help`
pub const OUTBOX_PROVE: &str = "\
usage: backhaul outbox prove DIR [OPTION...]

Finds out whether the storage under DIR keeps what it said it wrote. Writes and
flushes numbered patterns and prints each number once it is flushed. Cut the
power while it counts, start again, run it again: it says what is missing, says
if the storage lies, and begins the next run. DIR: a folder of its own on that
storage; best watched over ssh or a serial line, so that the last number stays.

  --seconds S   the run ends by itself after S seconds
  --bytes N     or after N bytes written to DIR; 67108864 unless said
  --seen N      the last number seen before the cut (asked for on a terminal):
                without it only the order of what was flushed can be judged
  --witness W   each number also goes to HOST:PORT (TCP, a line each) or a file
  --judge       only say what the last cut left
  --sigkill     no power cut: kills itself (--kills N, 100 unless said), which
                tries the recovery and not the storage

exit codes: 0 nothing is missing, 65 flushed data is missing, 66 no such folder,
            74 an error of the storage, 75 another one runs here
";

/// `plan --help`
#[cfg(feature = "plan")]
pub const PLAN: &str = "\
usage: backhaul plan --devices N --accept-rate R [OPTION...]

What a fleet does to a server that accepts R sessions a second: attempts, when
all are back, other settings. Simulated with the agent's own link; one seed.

  --outage S          the server is down for S seconds (60); or
  --planned           it is restarted with `retry` sent before; or
  --power-cut         all devices boot within 3 s
  --no-retry-after    above its rate it answers a bare 503
  --over HOW          or retry-after, 503, reset, silent
  --down HOW          while it is down: refused, reset, silent or 503
  --burst N           at once after a pause (R)     --backlog N  may wait (0)
  --falls-over-at N   attempts in a second that bring it down for 30 s
  --loss-spread S     all notice within S seconds   --rtt MS  the same for all
  --recommend         the cheapest settings that keep --peak R attempts a second
                      or have all --back-within S seconds, as configuration
  --compare           beside it, what other programs' formulas do
  --config FILE       settings to try, a whole file or a fragment; else defaults
  --seed N            another run (1)
  --svg FILE          attempts and devices back over time, as a picture
  --json              for programs
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_fits_a_screen() {
        for text in [
            VERSION,
            ALL,
            RUN,
            CHECK,
            PROVISION,
            SEND,
            LISTEN,
            STATUS,
            OUTBOX,
            OUTBOX_LIST,
            OUTBOX_VERIFY,
            OUTBOX_EXPORT,
            OUTBOX_WIPE,
            OUTBOX_PROVE,
            #[cfg(feature = "plan")]
            PLAN,
        ] {
            assert!(text.lines().count() <= 24, "{text}");
            assert_eq!(text.lines().find(|line| line.len() > 80), None);
            assert!(text.ends_with('\n'));
        }
    }
}
