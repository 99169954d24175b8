//! Processes of their own: what is measured in one is its peak memory, and nothing that came before.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, ChildStdin, ChildStdout, Command, Stdio};
use std::{env, fs};

use crate::store::Kind;
use crate::{Result, append, life, open};

/// This program once more. Killed when it is dropped before its end.
pub struct Child {
    process: process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Child {
    /// Begins it.
    pub fn spawn(args: &[&str]) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        let mut process = command.arg("child").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(stdin), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("a child without pipes".into());
        };
        Ok(Self { process, stdin, stdout: BufReader::new(stdout) })
    }

    /// Its next line: this word and a figure.
    pub fn expect(&mut self, word: &str) -> Result<f64> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let figure = line.strip_prefix(word).and_then(|rest| rest.trim().parse().ok());
        figure.ok_or_else(|| format!("the child says {line:?} instead of {word:?}").into())
    }

    /// It may go on.
    pub fn say_go(&mut self) -> Result<()> {
        Ok(writeln!(self.stdin)?)
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<()> {
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the child ended with {status}").into()) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The child's side: what `spawn` was given.
pub fn run(args: &[&str]) -> Result<()> {
    match args {
        ["life", name, dir, commits] => {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == *name).ok_or("an unknown contender")?;
            let mut store = kind.store(Path::new(dir), life::STORE_BYTES)?;
            println!("ready 0");
            std::io::stdin().read_line(&mut String::new())?;
            life::live(store.as_mut(), commits.parse()?)?;
            println!("memory_mib {}", memory_mib()?);
        }
        // Not part of the run: where a profiler looks.
        ["cpu", name, dir, group, commits] => {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == *name).ok_or("an unknown contender")?;
            append::alone(kind, Path::new(dir), group.parse()?, commits.parse()?)?;
        }
        ["fill", dir, bytes] => println!("records {}", open::fill(Path::new(dir), bytes.parse()?)?),
        ["open", dir, bytes] => open::open(Path::new(dir), bytes.parse()?)?,
        _ => return Err("an unknown child".into()),
    }
    Ok(())
}

/// Peak resident memory of this process, its program included.
pub fn memory_mib() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
