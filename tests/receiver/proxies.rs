//! Admission by others: the configurations that are shipped for nginx and HAProxy, run by the real ones in front of a
//! real receiver, obeyed by a real agent.

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

/// One of the programs that can stand in front.
struct Kind {
    name: &'static str,
    package: &'static str,
    /// Starts it in its folder; the configuration is `conf` there.
    arguments: fn(&Path) -> Vec<PathBuf>,
    /// The whole configuration: the shipped one for this folder, port and upstream, and whatever makes it run without
    /// rights and write `<Unix ms> <status> <path>` for each request into `answers`. Two come in, then nobody for a
    /// long time; or everybody does.
    configuration: fn(&Path, u16, &str, Rate) -> String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rate {
    Two,
    Plenty,
}

const NGINX: Kind = Kind {
    name: "nginx",
    package: "nginx-light",
    arguments: |dir| vec!["-p".into(), dir.into(), "-c".into(), dir.join("conf")],
    configuration: |dir, port, receiver, rate| {
        let folder = dir.display();
        let shipped = shipped(
            "nginx-admission.conf",
            &[
                ("listen 443 ssl;", &format!("listen 127.0.0.1:{port} ssl;")),
                ("127.0.0.1:8080", receiver),
                ("/etc/ssl/fleet/chain.pem", &format!("{folder}/ours/server.pem")),
                ("/etc/ssl/fleet/key.pem", &format!("{folder}/ours/server.key")),
                // The next after the first two comes in after a minute.
                ("rate=1000r/s", if rate == Rate::Two { "rate=1r/m" } else { "rate=1000r/s" }),
                ("burst=1000", "burst=1"),
                ("Backhaul-Spread-Ms 100000", "Backhaul-Spread-Ms 2000"),
            ],
        );
        // A worker of a master that is root would be nobody, and the folder is root's.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        format!(
            "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log info; {user}\n\
             events {{ worker_connections 64; }}\nhttp {{\n\
             log_format answers '$msec $status $request_uri'; access_log {folder}/answers answers;\n\
             client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
             fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
             {shipped}}}\n"
        )
    },
};

const HAPROXY: Kind = Kind {
    name: "haproxy",
    package: "haproxy",
    arguments: |dir| vec!["-db".into(), "-f".into(), dir.join("conf")],
    configuration: |dir, port, receiver, rate| {
        let identity = dir.join("ours/both.pem");
        let [certificate, key] =
            ["server.pem", "server.key"].map(|name| fs::read(dir.join("ours").join(name)).unwrap());
        fs::write(&identity, [certificate, key].concat()).unwrap();
        let shipped = shipped(
            "haproxy-admission.cfg",
            &[
                ("bind :443", &format!("bind 127.0.0.1:{port}")),
                ("127.0.0.1:8080", receiver),
                ("/etc/ssl/fleet/chain-and-key.pem", &identity.display().to_string()),
                // Two ever: a rate is an estimate, and over a long time a rough one.
                ("gpc0_rate(1s)", if rate == Rate::Two { "gpc0" } else { "gpc0_rate(1s)" }),
                (
                    "sc0_gpc0_rate ge 1000",
                    if rate == Rate::Two { "sc0_get_gpc0 ge 2" } else { "sc0_gpc0_rate ge 1000" },
                ),
                ("Backhaul-Spread-Ms 100000", "Backhaul-Spread-Ms 2000"),
                ("frontend fleet\n", "frontend fleet\n    log global\n    log-format \"%Ts%ms %ST %HP\"\n"),
            ],
        );
        format!("global\n    log stdout format raw local0\n\n{shipped}")
    },
};

/// The shipped file with these words replaced, each of which must be there.
fn shipped(name: &str, changes: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    let mut text = fs::read_to_string(file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name} has no {from:?}");
        text = text.replace(from, to);
    }
    text
}

/// One of them, running.
struct Front {
    kind: Kind,
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Front {
    /// `None`, loudly, where it is not installed.
    fn new(kind: Kind, dir: &Path) -> Option<Self> {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"].map(|place| Path::new(place).join(kind.name));
        let Some(program) = places.into_iter().find(|path| path.exists()) else {
            let why = format!("it is not installed (apt-get install {})", kind.package);
            not_run(&format!("admission by {}", kind.name), &why);
            return None;
        };
        let dir = dir.join(kind.name);
        fs::create_dir(&dir).unwrap();
        Authority::new(&dir, "ours").issue("server", "DNS:localhost,IP:127.0.0.1");
        Some(Self { kind, program, dir, port: free_port(), child: None })
    }

    fn start(&mut self, receiver: &Receiver, rate: Rate) {
        let text = (self.kind.configuration)(&self.dir, self.port, &receiver.address(), rate);
        fs::write(self.dir.join("conf"), text).unwrap();
        let mut command = mortal(&self.program);
        command.args((self.kind.arguments)(&self.dir)).stdin(Stdio::null());
        // nginx makes a file of that name, HAProxy writes its log to stdout and from the beginning.
        let create = |name| fs::File::create(self.dir.join(name)).unwrap();
        command.stdout(create("answers")).stderr(create("said"));
        self.child = Some(command.spawn().unwrap());
        let said = || fs::read_to_string(self.dir.join("said")).unwrap_or_default();
        let listens = || TcpStream::connect(self.address()).ok();
        assert!(poll_until(DEADLINE, listens).is_some(), "{} does not listen: {}", self.kind.name, said());
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Its worker ends with it; SIGKILL would leave that behind.
            let _gone = kill_process(Pid::from_child(&child), Signal::TERM);
            let _gone = child.wait();
        }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Unix ms and status of each request for this path since the start.
    fn answers(&self, path: &str) -> Vec<(u64, u16)> {
        let log = fs::read_to_string(self.dir.join("answers")).unwrap_or_default();
        let lines = log.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let ours = lines.filter(|words| words.len() == 3 && words[2] == path);
        ours.map(|words| (words[0].replace('.', "").parse().unwrap(), words[1].parse().unwrap())).collect()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Exceeds the rate, sees the word, and sees a real agent obey it and come in in the end.
fn turns_away_with_the_word_that_a_real_agent_obeys(kind: Kind) {
    let dir = TempDir::new(&format!("{}-admission", kind.name));
    let Some(mut front) = Front::new(kind, &dir) else { return };
    let mut receiver = Receiver::new(&dir);
    receiver.start();
    receiver.wait_listening();
    front.start(&receiver, Rate::Two);
    let ca = front.dir.join("ours/ca.pem");
    let address = front.address();
    let mut inside = Vec::new();
    let answer = loop {
        match (Knock { address: &address, offers: "backhaul.v1.json", token: None, tls: Some(&ca) }).ask() {
            Ok(client) => inside.push(client),
            Err(answer) => break answer,
        }
        assert!(inside.len() <= 3, "everybody comes in");
    };
    assert!(inside.len() >= 2, "two come in");
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(answer.headers()["Retry-After"].to_str().unwrap(), "1");
    assert_eq!(answer.headers()["Backhaul-Spread-Ms"].to_str().unwrap(), "2000");

    let mut config = agent::quick(&dir, &format!("wss://{address}/agent"));
    config.upstream.endpoints[0].ca_file = Some(ca.clone());
    config.upstream.handshake_timeout_ms = 20_000;
    config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 20_000, ..config.upstream.heartbeat };
    let mut agent = Agent::new(&dir, &config);
    let mut producer = Producer::new(agent.socket(), None);
    agent.start();
    agent.wait_failures("overload", 3);
    for number in 0..20 {
        assert_eq!(producer.put("front", format!("record {number}")), Handed::Answered);
    }
    drop(inside);
    front.stop();
    // What the front itself saw: none of the attempts before it was due.
    let answers = front.answers("/agent");
    assert!(answers.len() >= 3 && answers.iter().all(|(_, status)| *status == 503), "{answers:?}");
    for pair in answers.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= 990, "{answers:?}: it said a second");
    }
    front.start(&receiver, Rate::Plenty);
    agent.wait_drained();
    receiver.wait_acked([&producer]);
    assert_eq!(receiver.records().iter().filter(|record| record.topic == "front").count(), 20);
    drop(agent);
    wait_until(DEADLINE, "the session is written down", || {
        front.answers("/agent").last().is_some_and(|last| last.1 == 101)
    });
}

#[test]
fn nginx_turns_away_with_the_word_that_a_real_agent_obeys() {
    turns_away_with_the_word_that_a_real_agent_obeys(NGINX);
}

#[test]
fn haproxy_turns_away_with_the_word_that_a_real_agent_obeys() {
    turns_away_with_the_word_that_a_real_agent_obeys(HAPROXY);
}
