//! Peers written in Python from the documentation alone (`tests/peers`), against the real programs: whatever Rust
//! code misreads in the same way on both ends, they do not. Without `python3` nothing is checked, loudly.

#[path = "support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "each test takes what it needs of the rig")]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a peer against a program; its checks name themselves.
fn run(peer: &str, program: &str) {
    if !Command::new("python3").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        support::not_run(peer, "python3 is not installed");
        return;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(peer);
    // Nothing of it is left in the source tree.
    let output = Command::new("python3").arg("-B").arg(&file).arg(program).output().expect("python3 was just there");
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_agent_keeps_the_protocol_as_a_python_server_reads_it() {
    run("server.py", env!("CARGO_BIN_EXE_backhaul"));
}

#[cfg(feature = "receiver")]
#[test]
fn the_receiver_keeps_the_protocol_as_a_python_client_reads_it() {
    run("client.py", env!("CARGO_BIN_EXE_backhaul-receiver"));
}

#[test]
fn the_local_socket_answers_as_a_python_program_reads_its_description() {
    run("local.py", env!("CARGO_BIN_EXE_backhaul"));
}

#[test]
fn the_command_line_does_what_a_person_reads_of_it() {
    run("cli.py", env!("CARGO_BIN_EXE_backhaul"));
}
