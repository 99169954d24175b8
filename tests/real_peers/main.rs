//! nginx, which nobody here wrote, between a real agent and a real receiver, as the terminator of TLS and reverse proxy
//! that many gateways meet: reloaded, restarted, without its server, and full. Whatever it does, each record is stored
//! once. (`tests/plain` has the servers of others, `tests/reach` the proxies.)
#![cfg(feature = "receiver")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test takes what it needs of the rig")]
mod support;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use backhaul::config::Heartbeat;
use rustix::process::{Pid, Signal, kill_process};
use support::agent::{self, Agent};
use support::authority::Authority;
use support::producer::{Handed, Producer};
use support::receiver::Receiver;
use support::{DEADLINE, TempDir, free_port, mortal, not_run, poll_until, wait_until};

/// nginx with a folder, two ports and no rights of its own: one port speaks TLS, the other does not.
struct Nginx {
    program: PathBuf,
    dir: PathBuf,
    tls_port: u16,
    plain_port: u16,
    child: Option<Child>,
}

impl Nginx {
    /// `None`, loudly, where there is no nginx.
    fn new(dir: &Path, receiver: &Receiver) -> Option<Self> {
        let places = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        let Some(program) = places.iter().map(PathBuf::from).find(|path| path.exists()) else {
            not_run("nginx", "it is not installed (apt-get install nginx-light)");
            return None;
        };
        let dir = dir.join("nginx");
        fs::create_dir(&dir).unwrap();
        let authority = Authority::new(&dir, "ours");
        authority.issue("server", "IP:127.0.0.1");
        let nginx = Self { program, dir, tls_port: free_port(), plain_port: free_port(), child: None };
        nginx.configure(&receiver.address(), 10, "");
        Some(nginx)
    }

    /// At most so many connections at once; read at the next start or reload.
    fn configure(&self, receiver: &str, connections: u32, more: &str) {
        let Self { dir, tls_port, plain_port, .. } = self;
        let dir = dir.display();
        // A worker of a master that is root would be nobody, and the folder is root's.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let text = format!(
            "daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log info; {user} {more}\n\
             events {{ worker_connections 64; }}\n\
             http {{\n  access_log off; limit_conn_zone $server_name zone=all:1m;\n\
             client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;\n\
             uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
             server {{\n    listen 127.0.0.1:{tls_port} ssl; listen 127.0.0.1:{plain_port}; server_name rig;\n\
             ssl_certificate {dir}/ours/server.pem; ssl_certificate_key {dir}/ours/server.key;\n\
             location / {{\n      limit_conn all {connections};\n      proxy_pass http://{receiver};\n\
             proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n\
             proxy_read_timeout 1h;\n    }}\n  }}\n}}\n"
        );
        fs::write(self.dir.join("nginx.conf"), text).unwrap();
    }

    fn start(&mut self) {
        let mut command = mortal(&self.program);
        command.arg("-p").arg(&self.dir).arg("-c").arg(self.dir.join("nginx.conf"));
        let log = fs::File::create(self.dir.join("out")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let said = || fs::read_to_string(self.dir.join("out")).unwrap_or_default();
        let listens = || TcpStream::connect(("127.0.0.1", self.plain_port)).ok();
        assert!(poll_until(DEADLINE, listens).is_some(), "nginx does not listen: {}", said());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// Every worker reads the configuration; done when a new one serves.
    fn reload(&self) {
        let workers =
            || fs::read_to_string(self.dir.join("error.log")).unwrap().matches("start worker process ").count();
        let before = workers();
        self.signal(Signal::HUP);
        wait_until(DEADLINE, "nginx has a new worker", || workers() > before);
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.child.take().unwrap().wait().unwrap();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(child) = self.child.as_mut() {
            // Its worker ends with it; SIGKILL would leave that behind.
            let _gone = kill_process(Pid::from_child(child), Signal::TERM);
            let _gone = child.wait();
        }
    }
}

/// Receiver, nginx, agent, producer: dropped in this order of names.
struct Front {
    agent: Agent,
    producer: Producer,
    nginx: Nginx,
    receiver: Receiver,
    _dir: TempDir,
}

impl Front {
    fn up() -> Option<Self> {
        let dir = TempDir::new("front");
        let mut receiver = Receiver::new(&dir);
        let mut nginx = Nginx::new(&dir, &receiver)?;
        receiver.start();
        receiver.wait_listening();
        nginx.start();
        let mut config = agent::quick(&dir, &format!("wss://127.0.0.1:{}/v1", nginx.tls_port));
        config.upstream.endpoints[0].ca_file = Some(nginx.dir.join("ours/ca.pem"));
        config.upstream.handshake_timeout_ms = 5000;
        // A machine that stands still for a moment ends no session.
        config.upstream.heartbeat = Heartbeat { interval_ms: 2000, timeout_ms: 5000, ..config.upstream.heartbeat };
        let mut agent = Agent::new(&dir, &config);
        let producer = Producer::new(agent.socket(), None);
        agent.start();
        agent.wait_up();
        let mut front = Self { agent, producer, nginx, receiver, _dir: dir };
        front.deliver(10);
        Some(front)
    }

    fn put(&mut self, count: usize) {
        for _ in 0..count {
            let number = self.producer.handed_in();
            assert_eq!(self.producer.put("front", format!("record {number}")), Handed::Answered);
        }
    }

    fn deliver(&mut self, count: usize) {
        self.put(count);
        self.receiver.wait_acked([&self.producer]);
    }

    fn assert_stored_once(&self) {
        let stored: Vec<_> = self.receiver.records().into_iter().filter(|record| record.topic != "$event").collect();
        let names: Vec<_> = stored.iter().map(|record| (record.epoch, record.seq, &record.body)).collect();
        let promised = self.producer.committed.iter();
        assert_eq!(names, promised.map(|record| (record.epoch, record.seq, &record.body)).collect::<Vec<_>>());
        assert_eq!(self.receiver.gaps(), []);
    }
}

#[test]
fn a_reload_of_nginx_lets_the_session_live_or_come_back() {
    let Some(mut front) = Front::up() else { return };
    let before = agent::sessions(&front.agent.wait_up());
    front.put(20);
    front.nginx.reload();
    front.deliver(20);
    // An old worker serves its connections to their end.
    assert_eq!(agent::sessions(&front.agent.wait_up()), before, "the session lives on");
    // Unless it is told not to: from the reload after the next one on the old worker has a deadline.
    let receiver = front.receiver.address();
    front.nginx.configure(&receiver, 10, "worker_shutdown_timeout 100ms;");
    front.nginx.reload();
    front.agent.wait_status("a session with a worker that has the deadline", |_| true);
    front.nginx.reload();
    front.deliver(20);
    front.nginx.reload();
    front.deliver(20);
    front.assert_stored_once();
}

#[test]
fn a_restart_of_nginx_is_overcome() {
    let Some(mut front) = Front::up() else { return };
    for _ in 0..3 {
        front.put(20);
        front.nginx.stop();
        front.put(20);
        front.agent.wait_status("it is noticed", |status| agent::state(status) != "up");
        front.nginx.start();
        front.deliver(5);
    }
    front.assert_stored_once();
}

#[test]
fn while_the_receiver_is_away_nginx_answers_502_which_is_transient() {
    let Some(mut front) = Front::up() else { return };
    front.put(20);
    front.receiver.kill9();
    front.put(20);
    let status = front.agent.wait_failures("closed", 3);
    let detail = status["link"]["last_failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("http 502"), "{detail}");
    front.receiver.start();
    front.receiver.wait_listening();
    front.deliver(20);
    front.assert_stored_once();
}

#[test]
fn an_nginx_that_is_full_answers_503_which_is_overload() {
    let Some(mut front) = Front::up() else { return };
    let receiver = front.receiver.address();
    front.nginx.stop();
    front.nginx.configure(&receiver, 1, "");
    front.agent.wait_status("it is noticed", |status| agent::state(status) != "up");
    // Behind a port that does not listen yet the agent cannot be first.
    front.agent.signal(Signal::STOP);
    front.nginx.start();
    let url = format!("ws://127.0.0.1:{}/v1", front.nginx.plain_port);
    let mut request = tungstenite::client::IntoClientRequest::into_client_request(url).unwrap();
    let offered = tungstenite::http::HeaderValue::from_static("backhaul.v1.json");
    request.headers_mut().insert("Sec-WebSocket-Protocol", offered);
    let stream = TcpStream::connect(("127.0.0.1", front.nginx.plain_port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut holder, _) = tungstenite::client(request, stream).unwrap();
    front.agent.signal(Signal::CONT);
    front.put(20);
    let status = front.agent.wait_failures("overload", 3);
    let detail = status["link"]["last_failure"]["detail"].as_str().unwrap();
    assert!(detail.contains("http 503"), "{detail}");
    holder.close(None).unwrap();
    drop(holder);
    front.deliver(20);
    front.assert_stored_once();
}
