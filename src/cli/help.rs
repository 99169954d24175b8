//! The help texts, each of which fits a screen of 24 lines and 80 columns.

/// `--version`
pub const VERSION: &str = concat!("backhaul ", env!("CARGO_PKG_VERSION"), "\n");

/// `--help`
pub const ALL: &str = "\
Hands telemetry to the cloud: on flash first, one WebSocket upstream, every
record delivered exactly once.

usage: backhaul COMMAND [OPTION...]

  run      the agent, in the foreground; logs to stderr
  check    validate the configuration; print what is effective and its bounds
  send     hand records to the agent, a line each
  status   what the agent is doing and why

  -h, --help       this text; with a command, what that command takes
  -V, --version    the version

exit codes: 0 done, 64 usage, 65 data, 66 no input, 69 unavailable,
            75 try again, 77 permission, 78 configuration
";

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
usage: backhaul check [--config FILE]

Validates the configuration as `run` would, here and now, and prints what is
effective and the bounds on memory and flash that follow from it. Exit 78 and a
line for each error: FILE:LINE: what is wrong.

  --config FILE   /etc/backhaul/backhaul.toml unless said; conf.d/*.toml beside
                  it comes on top
";

/// `send --help`
pub const SEND: &str = "\
usage: backhaul send [OPTION...] [FILE|-]

Hands records to the agent, one for each line of FILE or of standard input, and
waits for the agent's word on them. Exit 75 when the agent or space in the lane
did not come in time, with the count that is committed.

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

/// `status --help`
pub const STATUS: &str = "\
usage: backhaul status [--json|--check] [--config FILE|--socket PATH]

What the agent is doing and why.

  --json          the whole snapshot
  --check         only an exit code: 0 up and well; 1 up but degraded; 2 not up,
                  even while storing well; 3 no agent running
  --config FILE   find the agent's socket by this configuration
  --socket PATH   the agent's socket
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_fits_a_screen() {
        for text in [VERSION, ALL, RUN, CHECK, SEND, STATUS] {
            assert!(text.lines().count() <= 24, "{text}");
            assert_eq!(text.lines().find(|line| line.len() > 80), None);
            assert!(text.ends_with('\n'));
        }
    }
}
