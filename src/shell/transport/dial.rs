//! The socket of an attempt: which way out it takes, how it is tuned, and what keeps it from being dialed.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use socket2::{Domain, SockRef, Socket, Type};

use crate::link::{Class, Failure};

/// What waits unsent in the kernel, at most, in bytes: a ping behind it still leaves in time, and what counts as sent
/// is (nearly) on the wire. 16 KiB is one TLS record.
const UNSENT_BYTES_MAX: u32 = 16 << 10;

/// The kernel refuses more (EINVAL).
const SILENCE_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// Begins to connect, by this interface (empty: as the routes say). The socket does not block.
pub fn begin(address: SocketAddr, interface: &str, silence: Duration) -> Result<mio::net::TcpStream, Failure> {
    let begun = || {
        let socket = socket(address, interface)?;
        socket.set_nonblocking(true).map_err(fault)?;
        let address = scoped(address, interface, &socket);
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(fault(error)),
        }
        let tcp = mio::net::TcpStream::from_std(socket.into());
        tune(&tcp, silence).map_err(fault)?;
        Ok(tcp)
    };
    begun()
}

/// Connects within `timeout`, and blocks meanwhile.
pub fn connect(address: SocketAddr, interface: &str, timeout: Duration) -> Result<TcpStream, Failure> {
    let socket = socket(address, interface)?;
    let address = scoped(address, interface, &socket);
    socket.connect_timeout(&address.into(), timeout).map_err(fault)?;
    Ok(socket.into())
}

/// Whether it is connected by now.
pub fn connected(tcp: &mio::net::TcpStream) -> Result<bool, Failure> {
    if let Some(error) = tcp.take_error().map_err(fault)? {
        return Err(fault(error));
    }
    match tcp.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(fault(error)),
    }
}

fn fault(error: io::Error) -> Failure {
    Failure::from_io(&error, "dialing")
}

fn socket(address: SocketAddr, interface: &str) -> Result<Socket, Failure> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).map_err(fault)?;
    if !interface.is_empty() {
        socket.bind_device(Some(interface.as_bytes())).map_err(|error| {
            let why = match Errno::from_io_error(&error) {
                Some(Errno::NODEV) => "there is none".into(),
                // Before Linux 5.7.
                Some(Errno::PERM) => "not permitted, it takes CAP_NET_RAW".into(),
                Some(_) | None => error.to_string(),
            };
            Failure::new(Class::Local, format!("dialing: interface {interface}: {why}"))
        })?;
    }
    Ok(socket)
}

/// A link-local address means nothing without its link (RFC 4007 § 6).
fn scoped(mut address: SocketAddr, interface: &str, socket: &Socket) -> SocketAddr {
    if let SocketAddr::V6(v6) = &mut address
        && v6.ip().is_unicast_link_local()
        && v6.scope_id() == 0
        && let Ok(index) = name_to_index(socket, interface)
    {
        v6.set_scope_id(index);
    }
    address
}

fn tune(tcp: &mio::net::TcpStream, silence: Duration) -> io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    set_silence(tcp, silence)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

/// So long the kernel waits for an acknowledgement of bytes that it has sent.
pub fn set_silence(tcp: &mio::net::TcpStream, silence: Duration) -> io::Result<()> {
    SockRef::from(tcp).set_tcp_user_timeout(Some(silence.min(SILENCE_MAX)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::net::{Ipv6Addr, TcpListener};

    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_a_local_fault_by_name() {
        let failure = begin("127.0.0.1:9".parse().unwrap(), "nosuch0", Duration::from_secs(1)).unwrap_err();
        assert_eq!(failure.class, Class::Local, "{failure}");
        assert!(failure.detail.contains("interface nosuch0"), "{failure}");
    }

    #[test]
    fn a_heartbeat_of_years_is_none_that_the_kernel_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = begin(listener.local_addr().unwrap(), "", Duration::from_secs(1_000_000_000)).unwrap();
        assert_eq!(SockRef::from(&tcp).tcp_user_timeout().unwrap(), Some(SILENCE_MAX));
        set_silence(&tcp, Duration::from_secs(7)).unwrap();
        assert_eq!(SockRef::from(&tcp).tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
    }

    #[test]
    fn the_loopback_interface_leads_to_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = connect(address, "lo", Duration::from_secs(30)).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        drop(listener);
        let failure = connect(address, "lo", Duration::from_secs(30)).unwrap_err();
        assert_eq!(failure.class, Class::Refused, "{failure}");
    }

    #[test]
    fn a_link_local_address_gets_the_scope_of_its_interface() {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        let scope = |text: &str, interface: &str| {
            let address = SocketAddr::new(text.parse::<Ipv6Addr>().unwrap().into(), 1);
            let SocketAddr::V6(scoped) = scoped(address, interface, &socket) else { unreachable!("it was V6") };
            scoped.scope_id()
        };
        let lo = name_to_index(&socket, "lo").unwrap();
        assert_eq!((scope("fe80::1", "lo"), scope("fe80::1", ""), scope("2001:db8::1", "lo")), (lo, 0, 0));
    }
}
