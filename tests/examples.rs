//! The clients of examples/clients, each as a program of its own against a real agent and a real receiver.
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::agent::{self, Agent};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, mortal, program, wait_for};

/// What JSON, a shell and base64 each trip over.
const TEXT: &str = "21.5 \"°C\" \\ $HOME\nsecond line";

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clients").join(name)
}

/// A client that puts [`TEXT`] on `topic`: as an argument, or where `by_input` as its standard input.
fn put(agent: &Agent, client: &str, mut command: Command, topic: &str, by_input: bool) {
    command.arg(topic).env("BACKHAUL_SOCKET", agent.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    if !by_input {
        command.arg(TEXT);
    }
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{client}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    if by_input {
        stdin.write_all(TEXT.as_bytes()).unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && answer.contains("\"committed\""), "{client}: {answer:?}");
}

#[test]
fn each_client_has_less_than_41_lines() {
    for name in ["client.py", "client.js", "client.c", "client.rs", "client.sh"] {
        let lines = std::fs::read_to_string(source(name)).unwrap().lines().count();
        assert!(lines <= 40, "{name} has {lines}");
    }
}

#[test]
fn what_each_client_puts_arrives_to_the_byte() {
    let dir = TempDir::new("examples");
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    let mut agent = Agent::new(&dir, &agent::quick(&dir, &format!("ws://{}/", receiver.address())));
    agent.start();
    agent.wait_listening();

    let compiled = dir.join("client-c");
    let cc =
        Command::new("cc").args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&compiled).arg(source("client.c")).status();
    assert!(cc.unwrap().success(), "client.c compiles without a warning");
    let by = |interpreter: &str, name: &str| {
        let mut command = Command::new(interpreter);
        command.arg(source(name)).arg("put");
        command
    };
    put(&agent, "Python", by("python3", "client.py"), "python", false);
    put(&agent, "Node", by("node", "client.js"), "node", false);
    put(&agent, "shell", by("sh", "client.sh"), "shell", true);
    put(&agent, "C", Command::new(&compiled), "c", true);
    // `cargo test` builds the examples, `cargo test --test examples` alone does not.
    let rust = program("backhaul").with_file_name("examples/client");
    assert!(rust.exists(), "cargo test --features receiver --no-run makes {}", rust.display());
    put(&agent, "Rust", Command::new(rust), "rust", false);

    agent.wait_drained();
    let stored = receiver.records();
    let topics: Vec<&str> = stored.iter().map(|record| record.topic.as_str()).collect();
    assert_eq!(topics, ["python", "node", "shell", "c", "rust"]);
    for record in &stored {
        assert_eq!(String::from_utf8_lossy(&record.body), TEXT, "{}", record.topic);
    }
}

#[test]
fn a_client_that_listens_gets_each_command_and_says_done() {
    let dir = TempDir::new("examples-listen");
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    let mut agent = Agent::new(&dir, &agent::quick(&dir, &format!("ws://{}/", receiver.address())));
    agent.start();
    agent.wait_up();
    for (number, (interpreter, name)) in
        [("python3", "client.py"), ("node", "client.js"), ("sh", "client.sh")].into_iter().enumerate()
    {
        let mut client = mortal(Path::new(interpreter));
        client.arg(source(name)).args(["listen", "valve/#"]).env("BACKHAUL_SOCKET", agent.socket());
        let mut client = client.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        for text in ["open", "shut"] {
            let mut give = Command::new(program("backhaul-receiver"));
            give.arg("command").arg("--store").arg(dir.join("receiver.sqlite")).args(["rig", "valve/1", text]);
            assert!(give.output().unwrap().status.success());
            let line = lines.next().unwrap().unwrap();
            assert!(line.contains("valve/1") && line.contains(text), "{name}: {line}");
        }
        let done = 2 * (number as u64 + 1);
        wait_for(DEADLINE, format!("{name} said done"), || {
            (agent.status()?["commands"]["done"].as_u64()? == done).then_some(())
        });
        client.kill().unwrap();
        client.wait().unwrap();
    }
}
