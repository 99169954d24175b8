//! From what the kernel says to what the link is told. Owns the rules by which an endpoint counts as usable and a
//! change as worth a ping; knows no socket.

use std::net::{IpAddr, SocketAddr};

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// It leads nowhere but here.
    pub loopback: bool,
    /// It is switched on and has its carrier (`IFF_RUNNING`; RFC 2863's operational state up or unknown).
    pub running: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Where an endpoint is, as far as this is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// On this machine.
    Here,
    /// A name that was never resolved.
    Unknown,
    /// At these addresses.
    At(Vec<SocketAddr>),
}

impl Goal {
    /// What the host in a URL says by itself.
    pub fn of_host(host: &str, port: u16) -> Self {
        match host.parse() {
            Ok(address) => Self::at(&[SocketAddr::new(address, port)]),
            // RFC 6761 § 6.3.
            Err(_) if host.eq_ignore_ascii_case("localhost") => Self::Here,
            Err(_) => Self::Unknown,
        }
    }

    /// What a resolution says.
    pub fn at(addresses: &[SocketAddr]) -> Self {
        match addresses {
            [] => Self::Unknown,
            _ if addresses.iter().any(|address| address.ip().is_loopback()) => Self::Here,
            _ => Self::At(addresses.to_vec()),
        }
    }
}

/// How the kernel would send to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// From this address of ours.
    From(IpAddr),
    /// Not at all.
    None,
    /// It does not say: dialing will.
    Unsaid,
}

/// How an endpoint is reached. Two that are equal are no change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nothing stands between.
    Here,
    /// Each of its addresses in turn: the route, and the interface where it begins, and whether that one is able to.
    At(Vec<(Route, Option<(String, bool)>)>),
    /// Every interface that may lead to it.
    Any(Vec<Interface>),
}

impl Sight {
    /// What is seen of a goal through an interface, or through any. `route` asks the kernel.
    pub fn new(
        goal: &Goal,
        bound: Option<&str>,
        interfaces: &[Interface],
        mut route: impl FnMut(&SocketAddr) -> Route,
    ) -> Self {
        match goal {
            Goal::Here => Self::Here,
            Goal::At(addresses) => {
                let look = |address| {
                    let route = route(address);
                    (route, begins(route, bound, interfaces))
                };
                Self::At(addresses.iter().map(look).collect())
            }
            Goal::Unknown => {
                let leads = |interface: &&Interface| match bound {
                    Some(name) => interface.name == name,
                    None => !interface.loopback,
                };
                let able =
                    |interface: &&Interface| interface.running && interface.addresses.iter().any(leaves_the_link);
                Self::Any(interfaces.iter().filter(leads).filter(able).cloned().collect())
            }
        }
    }

    /// As far as this machine can tell, dialing is no waste. A network without a default route is one where some
    /// addresses are reached and others are not: what counts is the endpoint's.
    pub fn is_usable(&self) -> bool {
        match self {
            Self::Here => true,
            Self::At(paths) => paths.iter().any(|(route, interface)| match (route, interface) {
                (Route::None, _) => false,
                (Route::From(_) | Route::Unsaid, Some((_, able))) => *able,
                // The interfaces were read a moment before: if it matters, the kernel reports it again.
                (Route::From(_) | Route::Unsaid, None) => true,
            }),
            Self::Any(interfaces) => !interfaces.is_empty(),
        }
    }
}

/// The interface where a route begins: the bound one, else the one with the source address. Where several have the
/// address, one with a carrier.
fn begins(route: Route, bound: Option<&str>, interfaces: &[Interface]) -> Option<(String, bool)> {
    let source = match route {
        Route::From(source) => Some(source),
        Route::None | Route::Unsaid => None,
    };
    let fits = |interface: &&Interface| match (bound, source) {
        (Some(name), _) => interface.name == name,
        (None, Some(source)) => interface.addresses.contains(&source),
        (None, None) => false,
    };
    // Where an interface has no address, the kernel lends it another one's.
    let has_address = |interface: &Interface| match source {
        Some(source) => interface.addresses.iter().any(|address| address.is_ipv4() == source.is_ipv4()),
        None => !interface.addresses.is_empty(),
    };
    let able = |interface: &Interface| interface.running && has_address(interface);
    let found = interfaces.iter().filter(fits).max_by_key(|interface| interface.running);
    let found = found.map(|interface| (interface.name.clone(), able(interface)));
    found.or_else(|| bound.map(|name| (name.to_owned(), false)))
}

/// An address that is of use beyond the next neighbours.
fn leaves_the_link(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local() && !address.is_loopback() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback() && !address.is_unspecified(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn interface(name: &str, running: bool, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Interface { name: name.into(), loopback: name == "lo", running, addresses }
    }

    fn goal(address: &str) -> Goal {
        Goal::at(&[address.parse().unwrap()])
    }

    fn from(address: &str) -> Route {
        Route::From(address.parse().unwrap())
    }

    fn lo() -> Interface {
        interface("lo", true, &["127.0.0.1", "::1"])
    }

    #[test]
    fn what_is_on_this_machine_is_always_usable() {
        for goal in [
            Goal::of_host("127.0.0.1", 1),
            Goal::of_host("127.8.8.8", 1),
            Goal::of_host("::1", 1),
            Goal::of_host("LocalHost", 1),
            goal("127.0.0.1:9"),
        ] {
            assert_eq!(goal, Goal::Here);
            let sight = Sight::new(&goal, Some("eth0"), &[], |_| unreachable!("no route is needed"));
            assert!(sight.is_usable());
        }
    }

    #[test]
    fn a_known_address_needs_a_route_and_the_carrier_of_its_interface() {
        let goal = Goal::of_host("192.0.2.7", 443);
        for (running, route, usable) in [
            (true, from("10.0.0.2"), true),
            (false, from("10.0.0.2"), false),
            (true, Route::None, false),
            // Plugged out, the route is still there, and the reserve has its carrier.
            (false, Route::Unsaid, true),
            // An address that is gone again, or not yet listed.
            (true, from("10.9.9.9"), true),
        ] {
            let interfaces = [lo(), interface("eth0", running, &["10.0.0.2"]), interface("wwan0", true, &["10.1.0.2"])];
            let sight = Sight::new(&goal, None, &interfaces, |_| route);
            assert_eq!(sight.is_usable(), usable, "{running} {route:?}");
        }
    }

    #[test]
    fn one_address_that_can_be_reached_is_enough() {
        let goal = Goal::at(&["[2001:db8::7]:443".parse().unwrap(), "192.0.2.7:443".parse().unwrap()]);
        let interfaces = [interface("eth0", true, &["10.0.0.2"])];
        let v4_only = |address: &SocketAddr| if address.is_ipv4() { from("10.0.0.2") } else { Route::None };
        assert!(Sight::new(&goal, None, &interfaces, v4_only).is_usable());
        assert!(!Sight::new(&goal, None, &interfaces, |_| Route::None).is_usable());
    }

    #[test]
    fn a_bound_endpoint_depends_on_its_own_interface() {
        let interfaces = [interface("eth0", false, &["10.0.0.2"]), interface("wwan0", true, &["10.1.0.2"])];
        let sight = |bound, route| Sight::new(&goal("192.0.2.7:443"), Some(bound), &interfaces, |_| route).is_usable();
        assert!(!sight("eth0", from("10.0.0.2")));
        assert!(!sight("eth0", Route::Unsaid), "unsaid, but without carrier");
        assert!(sight("wwan0", from("10.1.0.2")));
        assert!(sight("wwan0", Route::Unsaid));
        assert!(!sight("wwan0", Route::None));
    }

    #[test]
    fn a_name_never_resolved_needs_any_interface_that_leads_out() {
        let sight = |bound, interfaces: &[Interface]| {
            Sight::new(&Goal::of_host("ingest.example.com", 443), bound, interfaces, |_| unreachable!()).is_usable()
        };
        let eth0 = |running, addresses: &[&str]| interface("eth0", running, addresses);
        assert!(!sight(None, &[]));
        assert!(!sight(None, &[lo()]));
        assert!(!sight(None, &[lo(), eth0(true, &[])]));
        assert!(!sight(None, &[lo(), eth0(true, &["169.254.7.7", "fe80::7"])]));
        assert!(!sight(None, &[lo(), eth0(false, &["10.0.0.2"])]));
        assert!(sight(None, &[lo(), eth0(true, &["10.0.0.2"])]));
        assert!(sight(None, &[lo(), eth0(true, &["fe80::7", "2001:db8::2"])]));
        assert!(sight(Some("eth0"), &[lo(), eth0(true, &["10.0.0.2"])]));
        assert!(!sight(Some("wwan0"), &[lo(), eth0(true, &["10.0.0.2"])]));
    }

    #[test]
    fn only_what_concerns_an_endpoint_is_a_change() {
        // warmcat/libwebsockets#3015: an address of a modem went, and good connections over Ethernet were closed.
        let sight = |eth0: &[&str], wwan0: &[&str]| {
            let interfaces = [lo(), interface("eth0", true, eth0), interface("wwan0", true, wwan0)];
            Sight::new(&goal("192.0.2.7:443"), None, &interfaces, |_| from(eth0[0]))
        };
        let before = sight(&["10.0.0.2"], &["10.1.0.2"]);
        assert_eq!(before, sight(&["10.0.0.2"], &[]));
        assert_eq!(before, sight(&["10.0.0.2", "10.0.0.9"], &["10.1.0.2"]));
        assert_ne!(before, sight(&["10.0.0.9"], &["10.1.0.2"]));
    }
}
