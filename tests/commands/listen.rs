//! `backhaul listen`: prints, says done, comes back, leaves with a code.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use crate::rig::Bench;
use crate::support::{DEADLINE, mortal, program, wait_for, wait_until};

fn listen(bench: &Bench, words: &[&str]) -> Command {
    let mut command = mortal(&program("backhaul"));
    command.arg("listen").args(words).arg("--socket").arg(bench.agent.socket());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What it printed when it had left with 0.
fn output(mut child: Child) -> String {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    text
}

#[test]
fn prints_a_line_each_and_leaves_after_so_many() {
    let bench = Bench::new(|_| ());
    for (topic, body) in [("valve/1", "open"), ("pump", "no"), ("valve/2", "two\nlines")] {
        assert_eq!(bench.command(&["rig", topic, body]).0, 0);
    }
    assert_eq!(bench.command_with(&["rig", "valve/3", "-"], &[0, 255]).0, 0);
    let text = output(listen(&bench, &["-t", "valve/#", "--count", "3"]).spawn().unwrap());
    assert_eq!(text, "valve/1 open\nvalve/2 two\\nlines\nvalve/3 base64:AP8=\n");
    bench.wait_done(1);
    let text = output(listen(&bench, &["--json", "--count", "1"]).spawn().unwrap());
    assert!(text.starts_with(r#"{"seq":2,"topic":"pump","text":"no","stream":"#), "{text}");
    bench.wait_done(4);
}

#[test]
fn waits_for_an_agent_that_is_restarted_and_prints_nothing_twice() {
    let mut bench = Bench::new(|_| ());
    let mut child = listen(&bench, &["--count", "60"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for round in 0..3 {
        bench.put(20, "a");
        for nth in 1..=20 {
            assert_eq!(lines.next().unwrap().unwrap(), format!("a {}", round * 20 + nth));
        }
        if round < 2 {
            // Whether it knows already that they are done or not.
            bench.agent.kill9();
            bench.agent.start();
        }
    }
    let left = wait_for(DEADLINE, "it leaves", || child.try_wait().unwrap());
    assert!(left.success());
    bench.wait_done(60);
}

#[test]
fn what_it_could_not_print_is_not_done() {
    let bench = Bench::new(|_| ());
    let mut child = listen(&bench, &[]).spawn().unwrap();
    drop(child.stdout.take());
    bench.put(1, "a");
    let left = wait_for(DEADLINE, "it leaves", || child.try_wait().unwrap());
    assert!(left.success(), "nobody reads any more");
    let text = output(listen(&bench, &["--count", "1"]).spawn().unwrap());
    assert_eq!(text, "a 1\n");
    bench.wait_done(1);
}

#[test]
fn leaves_with_a_code_that_says_why() {
    let mut bench = Bench::offline(|_| ());
    let mut none = listen(&bench, &[]).spawn().unwrap();
    for words in [&["-t", "a/#/b"][..], &["--count", "0"], &["--count", "x"], &["extra"]] {
        assert_eq!(listen(&bench, words).output().unwrap().status.code(), Some(64), "{words:?}");
    }
    let left = wait_for(DEADLINE, "it gives up", || none.try_wait().unwrap());
    assert_eq!(left.code(), Some(69));
    bench = bench.online();
    let mut child = listen(&bench, &[]).spawn().unwrap();
    wait_until(DEADLINE, "it listens", || {
        bench.put(1, "a");
        bench.done() > 0
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
