//! Admission by others: the configuration that is shipped for nginx, run by a real nginx in front of a real receiver,
//! obeyed by a real agent.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use backhaul::config::Heartbeat;
use rustix::process::{Pid, Signal, kill_process};

use crate::rig::Knock;
use crate::support::agent::{self, Agent};
use crate::support::authority::Authority;
use crate::support::producer::{Handed, Producer};
use crate::support::receiver::Receiver;
use crate::support::{DEADLINE, TempDir, free_port, mortal, not_run, poll_until, wait_until};

/// nginx with the shipped configuration: other ports, other files, nothing else.
struct Nginx {
    dir: PathBuf,
    port: u16,
    child: Child,
}

/// The shipped file with these words replaced, each of which must be there.
fn shipped(changes: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx-admission.conf");
    let mut text = fs::read_to_string(file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "deploy/nginx-admission.conf has no {from:?}");
        text = text.replace(from, to);
    }
    text
}

impl Nginx {
    /// `None`, loudly, where there is no nginx.
    fn start(dir: &Path, receiver: &Receiver, rate: &str) -> Option<Self> {
        let places = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let Some(program) = places.iter().map(PathBuf::from).find(|path| path.exists()) else {
            not_run("admission by nginx", "it is not installed (apt-get install nginx-light)");
            return None;
        };
        let dir = dir.join("nginx");
        fs::create_dir(&dir).unwrap();
        Authority::new(&dir, "ours").issue("server", "DNS:localhost,IP:127.0.0.1");
        let port = free_port();
        configure(&dir, port, receiver, rate);
        let mut command = mortal(&program);
        command.arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
        let log = fs::File::create(dir.join("out")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let nginx = Self { port, child: command.spawn().unwrap(), dir };
        let said = || fs::read_to_string(nginx.dir.join("out")).unwrap_or_default();
        let listens = || TcpStream::connect(nginx.address()).ok();
        assert!(poll_until(DEADLINE, listens).is_some(), "nginx does not listen: {}", said());
        Some(nginx)
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Done when a worker with the new rate serves.
    fn reload(&self, receiver: &Receiver, rate: &str) {
        let workers =
            || fs::read_to_string(self.dir.join("error.log")).unwrap().matches("start worker process ").count();
        let before = workers();
        configure(&self.dir, self.port, receiver, rate);
        kill_process(Pid::from_child(&self.child), Signal::HUP).unwrap();
        wait_until(DEADLINE, "nginx has a new worker", || workers() > before);
    }

    /// Unix ms and status of each request for this path.
    fn answers(&self, path: &str) -> Vec<(u64, u16)> {
        let log = fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        let lines = log.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let ours = lines.filter(|words| words.len() == 3 && words[2] == path);
        ours.map(|words| (words[0].replace('.', "").parse().unwrap(), words[1].parse().unwrap())).collect()
    }
}

fn configure(dir: &Path, port: u16, receiver: &Receiver, rate: &str) {
    let folder = dir.display();
    let shipped = shipped(&[
        ("listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;")),
        ("127.0.0.1:8080", &receiver.address()),
        ("/etc/ssl/fleet/chain.pem", &format!("{folder}/ours/server.pem")),
        ("/etc/ssl/fleet/key.pem", &format!("{folder}/ours/server.key")),
        ("rate=1000r/s", &format!("rate={rate}")),
        ("burst=1000", "burst=1"),
        ("Backhaul-Spread-Ms 100000", "Backhaul-Spread-Ms 2000"),
    ]);
    // A worker of a master that is root would be nobody, and the folder is root's.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let text = format!(
        "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log info; {user}\n\
         events {{ worker_connections 64; }}\nhttp {{\n\
         log_format answers '$msec $status $request_uri'; access_log {folder}/access.log answers;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
         uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n{shipped}}}\n"
    );
    fs::write(dir.join("nginx.conf"), text).unwrap();
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with it; SIGKILL would leave that behind.
        let _gone = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _gone = self.child.wait();
    }
}

#[test]
fn nginx_turns_away_with_the_word_that_a_real_agent_obeys() {
    let dir = TempDir::new("nginx-admission");
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    // So slow that whoever comes after the first two is turned away on the slowest machine.
    let Some(nginx) = Nginx::start(&dir, &receiver, "1r/m") else { return };
    let ca = nginx.dir.join("ours/ca.pem");
    let address = nginx.address();
    let knock = || Knock { address: &address, offers: "backhaul.v1.json", token: None, tls: Some(&ca) }.ask();
    let mut inside = Vec::new();
    let answer = loop {
        match knock() {
            Ok(client) => inside.push(client),
            Err(answer) => break answer,
        }
        assert!(inside.len() <= 3, "nginx lets everybody in");
    };
    assert!(inside.len() >= 2, "one and a burst of one come in");
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(
        (&answer.headers()["Retry-After"], &answer.headers()["Backhaul-Spread-Ms"]),
        (&"1".parse().unwrap(), &"2000".parse().unwrap())
    );

    let mut config = agent::quick(&dir, &format!("wss://{address}/agent"));
    config.upstream.endpoints[0].ca_file = Some(ca.clone());
    config.upstream.handshake_timeout_ms = 20_000;
    config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 20_000, ..config.upstream.heartbeat };
    let mut agent = Agent::new(&dir, &config);
    let mut producer = Producer::new(agent.socket(), None);
    agent.start();
    agent.wait_failures("overload", 3);
    for number in 0..20 {
        assert_eq!(producer.put("nginx", format!("record {number}")), Handed::Answered);
    }
    nginx.reload(&receiver, "1000r/s");
    agent.wait_drained();
    receiver.wait_acked([&producer]);
    assert_eq!(receiver.records().iter().filter(|record| record.topic == "nginx").count(), 20);
    drop((inside, agent));
    // What nginx itself saw: an answer each, and none of the next attempts before it was due.
    wait_until(DEADLINE, "nginx has written the session down", || {
        nginx.answers("/agent").last().is_some_and(|last| last.1 == 101)
    });
    let answers = nginx.answers("/agent");
    let refused: Vec<u64> = answers.iter().filter(|(_, status)| *status == 503).map(|(at, _)| *at).collect();
    assert!(refused.len() >= 3 && refused.len() + 1 == answers.len(), "{answers:?}");
    // The session is written down when it ends, which is later still.
    for pair in refused.windows(2) {
        assert!(pair[1] - pair[0] >= 990, "{answers:?}: the server said a second");
    }
}
