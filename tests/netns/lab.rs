//! The lab: network namespaces with real interfaces between them, that live exactly as long as the test that made them.
//! Each belongs to a process that only sleeps and that dies with its test's thread; the kernel takes the interfaces down
//! with it, so there is no name to collide with and nothing to clean up.
//!
//! A lab is a gateway, where the agent runs, and a world, which is its router and, behind that, the upstream.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use backhaul::config::{Config, Heartbeat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::agent::{self, Agent};
use crate::support::receiver::Receiver;
use crate::support::{DEADLINE, TempDir, mortal, not_run, wait_until};
use serde_json::Value;

/// Where the world's upstream listens: behind the router, not on any cable.
pub const UPSTREAM: &str = "10.9.0.1";
/// The same host over IPv6.
pub const UPSTREAM_V6: &str = "fd09::1";

/// No interface waits for a second until its IPv6 addresses are known to be unique.
const SET_UP: &str = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
    ip link set lo up; echo ready; exec sleep infinity";

/// A network namespace, and a mount namespace with it.
pub struct Namespace {
    holder: Child,
    /// Held open: `read` returns once the namespace is made.
    _ready: BufReader<ChildStdout>,
}

impl Namespace {
    /// A fresh one: loopback is up, nothing else is there.
    pub fn new() -> Self {
        let mut command = mortal("unshare".as_ref());
        command.args(["--net", "--mount", "--propagation", "private", "--", "sh", "-ec"]);
        command.arg(SET_UP);
        let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("unshare was there before");
        let mut ready = BufReader::new(holder.stdout.take().expect("asked for"));
        let mut line = String::new();
        ready.read_line(&mut line).expect("a pipe can be read");
        assert_eq!(line, "ready\n", "no namespace was made");
        Self { holder, _ready: ready }
    }

    /// What runs a command inside, to stand before it. It becomes the command: same process, same id.
    pub fn enter(&self) -> Vec<String> {
        let id = self.holder.id().to_string();
        ["nsenter", "--target", &id, "--net", "--mount", "--"].map(Into::into).to_vec()
    }

    /// Runs a shell's script inside, which has to succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let enter = self.enter();
        let output = Command::new(&enter[0]).args(&enter[1..]).args(["sh", "-ec", script]).output();
        let output = output.expect("nsenter was there before");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{}\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs this on a thread inside: a socket made there stays there.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        let net = File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("the holder lives");
        let enter = || {
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
            make()
        };
        thread::scope(|scope| scope.spawn(enter).join()).expect("it does not panic")
    }

    /// Puts a file with this text in the place of another one, for whoever runs inside.
    pub fn replace(&self, dir: &TempDir, path: &str, text: &str) {
        let file = dir.join(path.replace('/', "_"));
        fs::write(&file, text).expect("the test's folder takes a file");
        self.run(&format!("mount --bind {} {path}", file.display()));
    }

    /// A cable from here to there: an interface at either end, each with its addresses (`10.0.1.2/24`), up.
    pub fn cable(&self, name: &str, addresses: &[&str], to: &Self, name_there: &str, addresses_there: &[&str]) {
        self.run(&format!("ip link add {name} type veth peer name {name_there} netns {}", to.holder.id()));
        for (end, name, addresses) in [(self, name, addresses), (to, name_there, addresses_there)] {
            let assign = |address: &&str| format!("ip addr add {address} dev {name}\n");
            // A neighbour that does not answer is given up after 0.3 s, not 3.
            let hasty =
                format!("for ip in ipv4 ipv6; do echo 100 > /proc/sys/net/$ip/neigh/{name}/retrans_time_ms; done");
            end.run(&format!("{hasty}\n{}ip link set {name} up", addresses.iter().map(assign).collect::<String>()));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ended_already = self.holder.kill();
        let _ended_already = self.holder.wait();
    }
}

/// A gateway and its world, and what runs in them.
pub struct Lab {
    pub gateway: Namespace,
    pub world: Namespace,
    pub receiver: Receiver,
    pub agent: Agent,
    /// As the agent was given it.
    pub config: Config,
    pub dir: TempDir,
}

impl Lab {
    /// `eth0` leads to the world, which has a receiver that runs; the agent is configured and does not run yet.
    pub fn new(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let (gateway, world, dir) = (Namespace::new(), Namespace::new(), TempDir::new(name));
        world.run(&format!("ip addr add {UPSTREAM}/32 dev lo; ip addr add {UPSTREAM_V6}/128 dev lo"));
        gateway.cable("eth0", &["10.0.1.2/24", "fd01::2/64"], &world, "w0", &["10.0.1.1/24", "fd01::1/64"]);
        gateway.run("ip route add default via 10.0.1.1; ip route add default via fd01::1");
        let mut receiver = Receiver::new(&dir);
        receiver.run_at("[::]", &world.enter());
        receiver.start();
        receiver.wait_listening();
        let mut config = agent::quick(&dir, &format!("ws://{UPSTREAM}:{}/v1", receiver.port()));
        config.upstream.endpoints[0].insecure = true;
        config.log.level = "debug".into();
        // A machine that stands still for a moment ends no session.
        config.upstream.heartbeat = Heartbeat { interval_ms: 1000, timeout_ms: 2000, ..config.upstream.heartbeat };
        change(&mut config);
        let mut agent = Agent::new(&dir, &config);
        agent.run_through(&gateway.enter());
        Self { gateway, world, receiver, agent, config, dir }
    }

    /// Waits until the session is proved stable: what is kept beside the socket asks for no wait any more.
    #[track_caller]
    pub fn wait_stable(&self) {
        wait_until(DEADLINE, "the session is stable", || {
            let text = fs::read_to_string(self.dir.join("backoff")).expect("the backoff is kept");
            let content: Value = serde_json::from_str(&text).expect("it is JSON");
            content["saved"]["backoff_exponent"] == 0 && content["saved"]["not_before_boot_ms"] == 0
        });
    }
}

/// True where namespaces are to be had; else it is said, past the test's captured output.
pub fn possible(name: &str) -> bool {
    let missing = missing();
    if let Some(why) = &missing {
        not_run(name, why);
    }
    missing.is_none()
}

fn missing() -> Option<String> {
    let runs = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        let status = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !rustix::process::geteuid().is_root() {
        return Some("it makes network namespaces, and only root may".into());
    }
    for (program, version) in
        [("unshare", "--version"), ("nsenter", "--version"), ("ip", "-V"), ("tc", "-V"), ("nft", "-v")]
    {
        if !runs(program, &[version]) {
            return Some(format!("{program} is not installed"));
        }
    }
    let pair = "ip link add v0 type veth peer name v1 && nft add table inet t";
    let ipv6 = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad && ip link add v0 type veth peer name v1 && \
        ip -6 addr add fd00::1/64 dev v0";
    for (script, what) in [(pair, "veth and nftables"), (ipv6, "IPv6")] {
        if !runs("unshare", &["--net", "--mount", "sh", "-ec", script]) {
            return Some(format!("no network namespace with {what} is to be had"));
        }
    }
    None
}
