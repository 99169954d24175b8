//! What the kernel says of the network: carrier, addresses, routes. Its messages (rtnetlink) are a trigger and no more:
//! they are drained, a moment later everything is looked at afresh, and the link hears which endpoints can be dialed
//! and whether something changed that concerns one. A lost message costs nothing that a later one does not bring.

mod judge;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use log::{debug, warn};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};
use socket2::{Domain, Socket, Type};

use crate::time::Instant;
use judge::{Goal, Interface, Route, Sight};

/// Changes come in swarms (a carrier, an address, its routes): looked at once they have settled.
const SETTLE: Duration = Duration::from_millis(200);

/// RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE (rtnetlink(7)).
const GROUPS: u32 = 1 << 0 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// Endpoints that fit into [`News::usable`]; one beyond is always usable.
const ENDPOINTS_MAX: usize = 16;

/// What the link is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct News {
    /// Bit i: endpoint i can be dialed, as far as this machine can tell.
    pub usable: u16,
    /// Something changed that concerns one of them.
    pub changed: bool,
}

/// The watch over the network.
pub struct Watch {
    /// `None`: the system gives none, and everything counts as usable.
    socket: Option<OwnedFd>,
    places: Vec<Place>,
    /// When to look.
    due: Option<Instant>,
    /// A route came or went since: the picture may be the same, and yet the next router is another.
    rerouted: bool,
}

/// An endpoint, as seen from here.
struct Place {
    /// Dialed through this interface only.
    interface: Option<String>,
    goal: Goal,
    /// As last looked at.
    sight: Option<Sight>,
}

impl Watch {
    /// A watch over no endpoint yet.
    pub fn new(registry: &Registry, token: Token) -> Self {
        let socket = match open(registry, token) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!(target: "netlink", "the network cannot be watched, every endpoint counts as usable error={error}");
                None
            }
        };
        Self { socket, places: Vec::new(), due: None, rerouted: false }
    }

    /// These are the endpoints from now on, in their order: the interface that each is bound to, and host and port of
    /// what is dialed for it (its proxy, if it has one). What was learned of the same ones before is forgotten.
    pub fn set_places<'a>(&mut self, places: impl IntoIterator<Item = (Option<&'a str>, &'a str, u16)>, now: Instant) {
        let place = |(interface, host, port): (Option<&str>, &str, u16)| Place {
            interface: interface.map(Into::into),
            goal: Goal::of_host(host, port),
            sight: None,
        };
        self.places = places.into_iter().take(ENDPOINTS_MAX).map(place).collect();
        self.due = Some(now);
    }

    /// What is dialed for this endpoint has these addresses.
    pub fn learn(&mut self, endpoint: usize, addresses: &[SocketAddr], now: Instant) {
        let Some(place) = self.places.get_mut(endpoint) else { return };
        let goal = Goal::at(addresses);
        if goal != Goal::Unknown && goal != place.goal {
            place.goal = goal;
            place.sight = None;
            self.due.get_or_insert(now + SETTLE);
        }
    }

    /// The socket has something to read.
    pub fn on_ready(&mut self, now: Instant) {
        let Some(socket) = &self.socket else { return };
        let mut buffer = [0; 8192];
        loop {
            match recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => self.rerouted |= has_route(&buffer[..length]),
                Err(Errno::INTR) => {}
                // Messages were lost: whatever they said is seen in a moment.
                Err(Errno::NOBUFS) => self.rerouted = true,
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    debug!(target: "netlink", "not read error={error}");
                    break;
                }
            }
            self.due.get_or_insert(now + SETTLE);
        }
    }

    /// When [`Watch::look`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Looks, if it is time to.
    pub fn look(&mut self, now: Instant) -> Option<News> {
        self.due.take_if(|due| *due <= now)?;
        let rerouted = std::mem::take(&mut self.rerouted);
        // A route is of no concern to what is on this machine.
        let leaves = |place: &Place| place.goal != Goal::Here;
        let mut news = News { usable: u16::MAX, changed: rerouted && self.places.iter().any(leaves) };
        if self.socket.is_none() {
            return Some(news);
        }
        let interfaces = match interfaces() {
            Ok(interfaces) => interfaces,
            Err(error) => {
                debug!(target: "netlink", "interfaces not read, every endpoint counts as usable error={error}");
                return Some(news);
            }
        };
        for (index, place) in self.places.iter_mut().enumerate() {
            let bound = place.interface.as_deref();
            let sight = Sight::new(&place.goal, bound, &interfaces, |address| route(address, bound));
            if !sight.is_usable() {
                news.usable &= !(1 << index);
            }
            // A first sight has nothing to be compared with.
            news.changed |= place.sight.as_ref().is_some_and(|before| *before != sight);
            place.sight = Some(sight);
        }
        debug!(target: "netlink", "usable={:#b} changed={}", news.usable & self.all(), news.changed);
        Some(news)
    }

    fn all(&self) -> u16 {
        u16::try_from((1_u32 << self.places.len()) - 1).unwrap_or(u16::MAX)
    }
}

fn open(registry: &Registry, token: Token) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUPS))?;
    registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
    Ok(socket)
}

/// Whether a datagram tells of a unicast route or a rule. A route that was only learned for one destination (cloned)
/// says nothing; what else there is shows in the interfaces.
fn has_route(mut datagram: &[u8]) -> bool {
    // RTM_NEWROUTE and RTM_DELROUTE, RTM_NEWRULE and RTM_DELRULE; RTN_UNICAST; RTM_F_CLONED (rtnetlink(7)).
    const ROUTES: [u16; 2] = [24, 25];
    const RULES: [u16; 2] = [32, 33];
    const UNICAST: u8 = 1;
    const CLONED: u32 = 0x200;
    // struct nlmsghdr, then struct rtmsg.
    while let Some((header, _)) = datagram.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if let Some(&[_, _, _, _, _, _, _, route, a, b, c, d]) = datagram.get(16..28)
            && ROUTES.contains(&kind)
            && route == UNICAST
            && u32::from_ne_bytes([a, b, c, d]) & CLONED == 0
        {
            return true;
        }
        if RULES.contains(&kind) {
            return true;
        }
        // Any length fits into 32 bits, rounded up it may not; what is longer than the datagram ends it.
        match datagram.get(length.clamp(16, datagram.len()).next_multiple_of(4)..) {
            Some(rest) => datagram = rest,
            None => break,
        }
    }
    false
}

/// All interfaces with their addresses, in the order of the kernel.
fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for entry in getifaddrs()? {
        let (flags, running) = (entry.flags, InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        let index = found.iter().position(|known| known.name == entry.interface_name).unwrap_or_else(|| {
            found.push(Interface {
                name: entry.interface_name.clone(),
                loopback: flags.contains(InterfaceFlags::IFF_LOOPBACK),
                running: flags.contains(running),
                addresses: Vec::new(),
            });
            found.len() - 1
        });
        let Some(address) = entry.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        found[index].addresses.extend(v4.or(v6));
    }
    Ok(found)
}

/// Asks the kernel how it would send there: it chooses when a UDP socket is connected, and sends nothing.
fn route(address: &SocketAddr, interface: Option<&str>) -> Route {
    // No route, or one that says no (prohibit: EACCES, blackhole: EINVAL); no such interface, or none of that family.
    const NONE: [Errno; 9] = [
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::NETDOWN,
        Errno::ADDRNOTAVAIL,
        Errno::ACCESS,
        Errno::INVAL,
        Errno::NODEV,
        Errno::NXIO,
        Errno::AFNOSUPPORT,
    ];
    match source(address, interface) {
        Ok(source) => Route::From(source.ip()),
        Err(error) if NONE.iter().any(|none| error.raw_os_error() == Some(none.raw_os_error())) => Route::None,
        Err(_) => Route::Unsaid,
    }
}

fn source(address: &SocketAddr, interface: Option<&str>) -> io::Result<SocketAddr> {
    let socket = Socket::new(Domain::for_address(*address), Type::DGRAM, None)?;
    if let Some(name) = interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    socket.connect(&(*address).into())?;
    UdpSocket::from(socket).local_addr()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use mio::Poll;

    use super::*;

    /// A message: its type, then the type and the flags of the route in it.
    fn message(kind: u16, route: u8, flags: u32) -> Vec<u8> {
        let mut message = vec![0; 30];
        message[..4].copy_from_slice(&30_u32.to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[23] = route;
        message[24..28].copy_from_slice(&flags.to_ne_bytes());
        // To the next multiple of four.
        message.extend([0, 0]);
        message
    }

    #[test]
    fn a_route_or_a_rule_is_told_from_all_else_that_the_kernel_says() {
        let (link, address, route, no_route, rule) = (16, 20, 24, 25, 32);
        for (kind, is_route) in [(link, false), (address, false), (route, true), (no_route, true), (rule, true)] {
            assert_eq!(has_route(&message(kind, 1, 0)), is_route, "{kind}");
            let second = [message(address, 1, 0), message(kind, 1, 0)].concat();
            assert_eq!(has_route(&second), is_route, "{kind}, the second in its datagram");
        }
        assert!(!has_route(&message(route, 1, 0x200)), "learned for one destination");
        assert!(!has_route(&message(route, 2, 0)), "an address of our own has one, too");
    }

    #[test]
    fn a_datagram_that_is_cut_or_absurd_is_no_route_and_no_trouble() {
        let whole = message(24, 1, 0);
        for length in 0..28 {
            assert!(!has_route(&whole[..length]), "{length}");
        }
        for length in [0, 1, 15, 1 << 20, u32::MAX] {
            let mut absurd = message(20, 1, 0);
            absurd[..4].copy_from_slice(&length.to_ne_bytes());
            has_route(&absurd.repeat(3));
        }
    }

    #[test]
    fn the_first_look_is_no_change_and_what_was_learned_is_looked_at_once_it_has_settled() {
        let poll = Poll::new().unwrap();
        let mut watch = Watch::new(poll.registry(), Token(1));
        let at = |ms: u64| Instant::from_micros(ms * 1000);
        watch.set_places([(None, "localhost", 1), (Some("nowhere0"), "192.0.2.1", 1)], at(0));
        assert_eq!(watch.look(at(0)), Some(News { usable: !0b10, changed: false }), "no such interface");
        assert_eq!((watch.look(at(9000)), watch.poll_timeout()), (None, None));
        watch.learn(0, &["127.0.0.1:1".parse().unwrap()], at(9000));
        watch.learn(1, &["192.0.2.1:1".parse().unwrap()], at(9000));
        assert_eq!(watch.poll_timeout(), None, "nothing new");
        watch.learn(1, &["127.0.0.1:1".parse().unwrap()], at(9000));
        assert_eq!((watch.look(at(9199)), watch.poll_timeout()), (None, Some(at(9200))));
        assert_eq!(watch.look(at(9200)), Some(News { usable: u16::MAX, changed: false }));
    }
}
