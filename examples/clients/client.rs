//! `client TOPIC TEXT`: a record onto flash before it returns. Needs the standard library and serde_json.
#![expect(clippy::print_stdout, reason = "the answer is what it is for")]
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::{env, io, process, thread, time::Duration, time::SystemTime};

use serde_json::{Value, json};

fn ask(socket: &str, request: &Value) -> io::Result<Value> {
    let mut agent = UnixStream::connect(socket)?;
    writeln!(agent, "{request}")?;
    let mut answer = String::new();
    BufReader::new(agent).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

fn main() {
    let socket = env::var("BACKHAUL_SOCKET").unwrap_or_else(|_| "/run/backhaul/backhaul.sock".into());
    let [_, topic, text] = &env::args().collect::<Vec<_>>()[..] else {
        return eprintln!("usage: client TOPIC TEXT");
    };
    // The key makes a retry safe: whatever died between request and answer, it is one record.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let key = format!("{}-{}", process::id(), now.as_nanos());
    let request = json!({"put": {"topic": topic, "text": text, "key": key, "wait": "committed"}});
    loop {
        match ask(&socket, &request) {
            Ok(answer) if !is_for_later(&answer) => return println!("{answer}"),
            Ok(_) | Err(_) => thread::sleep(Duration::from_secs(1)), // no agent, or no room: the same again
        }
    }
}

fn is_for_later(answer: &Value) -> bool {
    ["full", "degraded", "busy", "shutting_down"].iter().any(|code| answer["error"]["code"] == *code)
}
