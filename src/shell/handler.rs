//! Programs that are given commands (`[[handler]]`): each run on a thread of its own, which the local thread starts and
//! never waits for, with a deadline at which the program's process group is killed. What becomes of it, the local
//! thread decides.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::command::{self, Fault};
use crate::commands::Command;
use crate::config::Handler;
use crate::record::MESSAGE_BYTES_MAX;

/// Enough for a process to be started and watched.
const STACK_BYTES: usize = 128 << 10;
/// Of a topic in a report: a report is a record, and those are bounded.
const TOPIC_BYTES_MAX: usize = 256;

/// Of a report, beside the output: its keys and numbers, and a topic that JSON writes as six.
pub const REPORT_BYTES: u32 = 512 + 6 * TOPIC_BYTES_MAX as u32;

/// How a run ended.
#[derive(Debug)]
pub struct Report {
    /// The handler's index in the configuration.
    pub handler: usize,
    /// What it was given.
    pub command: Arc<Command>,
    /// How it left, or why there is nothing to say of that.
    pub end: Result<End, Fault>,
}

/// How a program left.
#[derive(Debug)]
pub struct End {
    /// An exit code, or else a signal.
    pub code: Result<i32, i32>,
    /// What it printed.
    pub output: Vec<u8>,
    /// There was more.
    pub cut: bool,
}

/// The runs there are: one at a time of each handler.
#[derive(Default)]
pub struct Runs {
    stop: Arc<AtomicBool>,
    /// The last one of each handler.
    threads: Vec<(usize, JoinHandle<()>)>,
}

impl Runs {
    /// Runs a handler's program, and tells how that ended.
    pub fn start(
        &mut self,
        number: usize,
        handler: &Handler,
        command: Arc<Command>,
        tell: impl Fn(Report) + Send + Clone + 'static,
    ) {
        self.threads.retain(|(of, _)| *of != number);
        let (handler, stop, given) = (handler.clone(), Arc::clone(&self.stop), Arc::clone(&command));
        let tell_end = tell.clone();
        let body = move || {
            let end = run(&handler, &given, &stop);
            tell_end(Report { handler: number, command: given, end });
        };
        match thread::Builder::new().name("handler".into()).stack_size(STACK_BYTES).spawn(body) {
            Ok(thread) => self.threads.push((number, thread)),
            Err(error) => tell(Report { handler: number, command, end: Err(Fault::Io(error)) }),
        }
    }
}

/// What runs is killed: nobody is left to hear how it ended, and it will be run again.
impl Drop for Runs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (_, thread) in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

fn run(handler: &Handler, command: &Command, stop: &AtomicBool) -> Result<End, Fault> {
    let environment = [
        ("BACKHAUL_TOPIC", command.topic.clone()),
        ("BACKHAUL_SEQ", command.seq.to_string()),
        ("BACKHAUL_STREAM", command.stream.to_string()),
    ];
    let (bytes_max, timeout) = (handler.output_bytes_max as usize, Duration::from_millis(handler.timeout_ms));
    let wanted = || !stop.load(Ordering::Relaxed);
    let input = command.body.as_bytes();
    let (status, mut output) = command::feed(&handler.exec, &environment, input, bytes_max + 1, timeout, wanted)?;
    let cut = output.len() > bytes_max;
    output.truncate(bytes_max);
    let code = status.code().ok_or_else(|| status.signal().unwrap_or_default());
    Ok(End { code, output, cut })
}

/// Most bytes that the runs of these handlers hold: the body once more, as the program's input, and what it prints.
pub fn memory_bytes_max(handlers: &[Handler]) -> u64 {
    let of = |handler: &Handler| {
        (MESSAGE_BYTES_MAX + STACK_BYTES) as u64 + 4 * u64::from(handler.output_bytes_max + REPORT_BYTES)
    };
    handlers.iter().map(of).sum()
}

/// The report as a record's body: with what was printed where `reply` says so, else as an event.
pub fn body(report: &Report, reply: bool) -> String {
    let Command { stream, seq, topic, .. } = &*report.command;
    let end = (0..=TOPIC_BYTES_MAX.min(topic.len())).rev().find(|end| topic.is_char_boundary(*end)).unwrap_or(0);
    let mut body = json!({ "stream": stream, "seq": seq, "topic": &topic[..end] });
    if !reply {
        body["event"] = "handler".into();
    }
    match &report.end {
        Ok(End { code, output, cut }) => {
            match code {
                Ok(code) => body["exit"] = (*code).into(),
                Err(signal) => body["signal"] = (*signal).into(),
            }
            if reply {
                let (key, value) = printed(output);
                body[key] = value;
                if *cut {
                    body["cut"] = true.into();
                }
            }
        }
        Err(Fault::TimedOut) => body["timeout"] = true.into(),
        Err(Fault::Io(error)) => body["error"] = error.to_string().into(),
        Err(Fault::Failed(_) | Fault::TooLong | Fault::Abandoned) => body["error"] = "not run to its end".into(),
    }
    body.to_string()
}

/// As text where it is one, and JSON does not make more of it than base64 would.
fn printed(output: &[u8]) -> (&'static str, Value) {
    let text = str::from_utf8(output).ok().map(Value::from);
    let base64_bytes = output.len().div_ceil(3) * 4;
    match text.filter(|text| text.to_string().len() <= base64_bytes + 2) {
        Some(text) => ("text", text),
        None => ("base64", data_encoding::BASE64.encode(output).into()),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::record::Body;

    const LONG: Duration = Duration::from_secs(60);

    fn ran(script: &str, body: Body, timeout_ms: u64) -> Report {
        let (report, reports) = sync_channel(1);
        let handler = Handler {
            exec: ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec(),
            timeout_ms,
            output_bytes_max: 100,
            ..Handler::default()
        };
        let command = Arc::new(Command { stream: 7, seq: 3, topic: "valve/1".into(), body });
        let mut runs = Runs::default();
        runs.start(0, &handler, command, move |end| report.send(end).unwrap());
        reports.recv_timeout(LONG).unwrap()
    }

    fn text(text: &str) -> Body {
        Body::Text(text.into())
    }

    #[test]
    fn the_body_is_its_input_and_its_output_the_reply() {
        let script = "cat; echo \" $BACKHAUL_TOPIC $BACKHAUL_SEQ $BACKHAUL_STREAM\"; exit 3";
        let report = ran(script, text("open"), 60_000);
        let expected = json!({ "stream": 7, "seq": 3, "topic": "valve/1", "exit": 3, "text": "open valve/1 3 7\n" });
        assert_eq!(serde_json::from_str::<Value>(&body(&report, true)).unwrap(), expected);
        let expected = json!({ "event": "handler", "stream": 7, "seq": 3, "topic": "valve/1", "exit": 3 });
        assert_eq!(serde_json::from_str::<Value>(&body(&report, false)).unwrap(), expected);
    }

    #[test]
    fn a_body_that_it_does_not_read_holds_up_nobody_and_one_that_it_reads_is_whole() {
        let large = Body::Bytes((0..MESSAGE_BYTES_MAX).map(|nth| nth as u8).collect());
        let report = ran("echo done", large.clone(), 60_000);
        assert_eq!(report.end.unwrap().output, b"done\n");
        let report = ran("wc -c", large, 60_000);
        assert_eq!(String::from_utf8(report.end.unwrap().output).unwrap().trim(), MESSAGE_BYTES_MAX.to_string());
    }

    #[test]
    fn one_that_hangs_or_floods_is_killed_at_the_deadline() {
        for script in ["sleep 1000", "yes"] {
            let report = ran(script, text(""), 300);
            assert!(matches!(report.end, Err(Fault::TimedOut)), "{script}");
            assert!(body(&report, true).contains("\"timeout\":true"));
        }
        let report = ran("printf %01000d 1", text(""), 60_000);
        let end = report.end.as_ref().unwrap();
        assert_eq!((end.output.len(), end.cut), (100, true));
        assert!(body(&report, true).contains("\"cut\":true"));
        let report = ran("kill -9 $$", text(""), 60_000);
        assert!(body(&report, false).contains("\"signal\":9"));
    }

    #[test]
    fn a_report_is_never_larger_than_its_bound() {
        for output in [vec![1; 100], vec![b'a'; 100], vec![255; 100]] {
            let topic = "\u{1}".repeat(5000);
            let command = Arc::new(Command { stream: u64::MAX, seq: u64::MAX, topic, body: text("") });
            let report = Report { handler: 0, command, end: Ok(End { code: Ok(-1), output, cut: true }) };
            assert!(body(&report, true).len() <= 100 * 4 / 3 + REPORT_BYTES as usize);
        }
    }

    #[test]
    fn what_runs_when_nobody_is_left_to_hear_is_killed() {
        let mut runs = Runs::default();
        let exec = ["/bin/sleep", "1000"].map(ToOwned::to_owned).to_vec();
        let handler = Handler { exec, timeout_ms: 1_000_000, ..Handler::default() };
        let command = Arc::new(Command { stream: 7, seq: 3, topic: "a".into(), body: text("") });
        let (report, reports) = sync_channel(1);
        runs.start(0, &handler, command, move |end| report.send(end).unwrap());
        drop(runs);
        assert!(matches!(reports.try_recv().unwrap().end, Err(Fault::Abandoned)));
    }
}
