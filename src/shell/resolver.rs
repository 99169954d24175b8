//! Name resolution off the reactor: `getaddrinfo` obeys no timeout (launchdarkly/python-server-sdk#493), so each
//! lookup has a disposable thread that is abandoned when its answer is no longer wanted. Owns the threads' bound and
//! the order of the addresses.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::link::{Class, Failure};

/// Lookups that still hang although nobody waits for them, at most; beyond, a new one fails at once.
pub const ABANDONED_MAX: usize = 4;
/// Addresses tried in one attempt, at most.
pub const ADDRESSES_MAX: usize = 8;

type Answer = Result<Vec<SocketAddr>, Failure>;

/// Resolves one name at a time.
pub struct Resolver {
    shared: Arc<Shared>,
    lookup: fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    /// The number of the lookup whose answer is wanted.
    wanted: u64,
}

struct Shared {
    desk: Mutex<Desk>,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// Where the threads leave their answers.
#[derive(Default)]
struct Desk {
    /// Threads alive.
    alive: usize,
    /// The number of the lookup whose answer is wanted.
    wanted: u64,
    answer: Option<Answer>,
}

impl Resolver {
    /// A resolver that calls `wake` from its threads when there is an answer to take.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self::with_lookup(wake, |host, port| (host, port).to_socket_addrs().map(Iterator::collect))
    }

    fn with_lookup(
        wake: impl Fn() + Send + Sync + 'static,
        lookup: fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
    ) -> Self {
        let shared = Shared { desk: Mutex::default(), wake: Box::new(wake) };
        Self { shared: Arc::new(shared), lookup, wanted: 0 }
    }

    /// Asks for the addresses of `host` and forgets what was asked before. The answer is here at once for an IP
    /// literal or when no thread can be had; else it is for [`Resolver::take`] after the wake-up.
    pub fn resolve(&mut self, host: &str, port: u16) -> Option<Answer> {
        self.abandon();
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Ok(vec![SocketAddr::new(address, port)]));
        }
        {
            let mut desk = self.shared.desk();
            if desk.alive > ABANDONED_MAX {
                let detail = format!("resolving: {ABANDONED_MAX} lookups hang already");
                return Some(Err(Failure::new(Class::Name, detail)));
            }
            desk.alive += 1;
        }
        let (shared, number, lookup, host) = (Arc::clone(&self.shared), self.wanted, self.lookup, host.to_owned());
        let body = move || {
            let clerk = Clerk { shared, number };
            let answer = match lookup(&host, port) {
                Ok(found) => Ok(in_order(found)),
                Err(error) => Err(Failure::new(Class::Name, format!("resolving {host}: {error}"))),
            };
            clerk.hand_in(answer);
        };
        match thread::Builder::new().name("resolver".into()).spawn(body) {
            Ok(_) => None,
            Err(error) => {
                self.shared.desk().alive -= 1;
                Some(Err(Failure::new(Class::Name, format!("resolving: no thread: {error}"))))
            }
        }
    }

    /// The answer to the last question, once.
    pub fn take(&mut self) -> Option<Answer> {
        self.shared.desk().answer.take()
    }

    /// The answer is no longer wanted; a thread that hangs is left to itself.
    pub fn abandon(&mut self) {
        self.wanted += 1;
        let mut desk = self.shared.desk();
        desk.wanted = self.wanted;
        desk.answer = None;
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Each change is one assignment: a panicking thread leaves nothing half done.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's seat at the desk; left even if the lookup panics.
struct Clerk {
    shared: Arc<Shared>,
    number: u64,
}

impl Clerk {
    fn hand_in(&self, answer: Answer) {
        let mut desk = self.shared.desk();
        if desk.wanted == self.number {
            desk.answer = Some(answer);
            drop(desk);
            (self.shared.wake)();
        }
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        self.shared.desk().alive -= 1;
    }
}

/// Both families in turn, beginning with the one the system prefers (RFC 8305 § 4), each in the system's order.
fn in_order(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (mut preferred, mut other) = (Vec::new(), Vec::new());
    for address in found {
        let family = if address.is_ipv6() == first_is_v6 { &mut preferred } else { &mut other };
        if !family.contains(&address) {
            family.push(address);
        }
    }
    let mut rest = other.into_iter();
    let mut ordered = Vec::new();
    for address in preferred {
        ordered.push(address);
        ordered.extend(rest.next());
    }
    ordered.extend(rest);
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn resolver(lookup: fn(&str, u16) -> io::Result<Vec<SocketAddr>>) -> (Resolver, Receiver<()>) {
        let (sender, woken) = sync_channel(64);
        let wake = move || sender.try_send(()).unwrap_or_default();
        (Resolver::with_lookup(wake, lookup), woken)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ip_literals_need_no_thread() {
        let (mut resolver, _woken) = resolver(|_, _| unreachable!("no lookup"));
        assert_eq!(resolver.resolve("192.0.2.7", 9).unwrap().unwrap(), [address("192.0.2.7:9")]);
        assert_eq!(resolver.resolve("2001:db8::7", 9).unwrap().unwrap(), [address("[2001:db8::7]:9")]);
    }

    #[test]
    fn the_answer_is_taken_once_after_the_wake_up() {
        let (mut resolver, woken) = resolver(|_, port| Ok(vec![SocketAddr::new([192, 0, 2, 1].into(), port)]));
        assert!(resolver.resolve("a.example", 7).is_none());
        woken.recv_timeout(DEADLINE).unwrap();
        assert_eq!(resolver.take().unwrap().unwrap(), [address("192.0.2.1:7")]);
        assert!(resolver.take().is_none());
    }

    #[test]
    fn a_name_that_does_not_resolve_is_a_failure_of_that_class() {
        let (mut resolver, woken) = resolver(|_, _| Err(io::Error::other("no such name")));
        assert!(resolver.resolve("nowhere.example", 7).is_none());
        woken.recv_timeout(DEADLINE).unwrap();
        let failure = resolver.take().unwrap().unwrap_err();
        assert_eq!(failure.class, Class::Name);
        assert_eq!(failure.detail, "resolving nowhere.example: no such name");
    }

    #[test]
    fn late_answers_are_ignored_and_hanging_lookups_bounded() {
        static GATE: Mutex<()> = Mutex::new(());
        let gate = GATE.lock().unwrap();
        let (mut resolver, woken) = resolver(|host, port| match host {
            "slow.example" => {
                drop(GATE.lock());
                Ok(vec![SocketAddr::new([192, 0, 2, 1].into(), port)])
            }
            _ => Ok(vec![SocketAddr::new([192, 0, 2, 2].into(), port)]),
        });
        for _ in 0..=ABANDONED_MAX {
            assert!(resolver.resolve("slow.example", 1).is_none());
        }
        assert_eq!(resolver.resolve("slow.example", 1).unwrap().unwrap_err().class, Class::Name);
        drop(gate);
        // All of them leave, none of them says a word; then there is room again.
        while resolver.shared.desk().alive > 0 {
            thread::yield_now();
        }
        assert!(resolver.take().is_none());
        assert!(woken.try_recv().is_err());
        assert!(resolver.resolve("quick.example", 1).is_none());
        woken.recv_timeout(DEADLINE).unwrap();
        assert_eq!(resolver.take().unwrap().unwrap(), [address("192.0.2.2:1")]);
    }

    #[test]
    fn a_lookup_that_panics_frees_its_place() {
        let (mut resolver, _woken) = resolver(|_, _| panic!("a lookup that panics"));
        assert!(resolver.resolve("a.example", 1).is_none());
        while resolver.shared.desk().alive > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn families_take_turns_and_eight_addresses_are_enough() {
        let v4 = |n: u8| SocketAddr::new([192, 0, 2, n].into(), 1);
        let v6 = |n: u16| SocketAddr::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, n].into(), 1);
        let found = vec![v6(1), v6(2), v6(1), v6(3), v4(1), v4(2)];
        assert_eq!(in_order(found), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
        assert_eq!(in_order((1..=20).map(v4).collect()).len(), ADDRESSES_MAX);
        assert_eq!(in_order(Vec::new()), []);
    }
}
