//! What a service manager wants to hear (`sd_notify(3)`): one datagram a message to the socket that `NOTIFY_SOCKET`
//! names. Without a service manager everything here does nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// Longest silence that the watchdog bears.
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment says.
    pub fn from_env() -> Self {
        let to = std::env::var("NOTIFY_SOCKET").ok().and_then(|name| open(&name));
        let for_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let micros = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse::<u64>().ok());
        Self { to, watchdog: micros.filter(|micros| for_us && *micros > 0).map(Duration::from_micros) }
    }

    /// How often to say [`Notify::alive`]: a quarter of what the watchdog bears. `sd_watchdog_enabled(3)` advises half,
    /// but what is said at one look is that the loops have turned since the one before.
    pub fn alive_interval(&self) -> Option<Duration> {
        self.watchdog.map(|longest| longest / 4)
    }

    /// Started.
    pub fn ready(&self) {
        self.send("READY=1\n");
    }

    /// The watchdog's due.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// Reading the configuration again; [`Notify::ready`] ends it.
    pub fn reloading(&self) {
        let micros = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = micros.tv_sec as u64 * 1_000_000 + micros.tv_nsec as u64 / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
    }

    /// Leaving.
    pub fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.to {
            // A service manager that does not listen is no reason to do anything else.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn open(name: &str) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::temp_dir::TempDir;

    fn heard(name: &str, socket: &UnixDatagram) -> Vec<String> {
        let notify = Notify { to: open(name), watchdog: None };
        notify.ready();
        notify.reloading();
        notify.stopping();
        let mut buf = [0; 256];
        (0..3).map(|_| socket.recv(&mut buf).map(|n| String::from_utf8_lossy(&buf[..n]).into()).unwrap()).collect()
    }

    #[test]
    fn speaks_to_a_path_and_to_an_abstract_name() {
        let dir = TempDir::new("notify");
        let path = dir.join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let by_path = heard(path.to_str().unwrap(), &socket);
        let name = format!("backhaul-notify-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let by_name = heard(&format!("@{name}"), &socket);
        for heard in [by_path, by_name] {
            assert_eq!(heard[0], "READY=1\n");
            assert!(heard[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{}", heard[1]);
            assert_eq!(heard[2], "STOPPING=1\n");
        }
    }

    #[test]
    fn is_silent_without_a_service_manager() {
        Notify::default().ready();
        assert_eq!(Notify::default().alive_interval(), None);
    }

    #[test]
    fn a_loop_that_turns_once_in_half_of_what_the_watchdog_bears_is_in_time() {
        let notify = Notify { to: None, watchdog: Some(Duration::from_secs(60)) };
        // It turned right after a look: that is seen at the next one, and the one after that would miss it.
        assert!(notify.alive_interval().unwrap() * 2 <= Duration::from_secs(30));
    }
}
