//! What an attempt needs before it can dial, and may take long to get: credentials out of files and programs,
//! certificates, addresses. It blocks, and so runs as an errand. All of it is fresh in each attempt: names
//! (firezone#12138), tokens (perspective#2902) and certificates (thin-edge.io#3157) that were kept too long have
//! taken others down.

use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use data_encoding::BASE64;
use native_tls::TlsConnector;
use tungstenite::http::HeaderValue;

use super::clock;
use super::command::{self, Fault};
use super::transport::{Reach, Tunnel, Validity, dial, tls};
use crate::config::file;
use crate::config::secret::{self, SECRET_BYTES_MAX};
use crate::exit;
use crate::link::{Class, Failure};

/// Addresses tried in one attempt, at most.
pub const ADDRESSES_MAX: usize = 8;
/// Largest file of certificates, in bytes: the system's own bundle is a quarter of it.
const CERTIFICATES_BYTES_MAX: u64 = 1 << 20;

/// All that it takes to dial an endpoint.
pub struct Prepared {
    /// Of the endpoint, or of its proxy; at least one.
    pub addresses: Vec<SocketAddr>,
    /// For the endpoint.
    pub authorization: Option<HeaderValue>,
    /// For the proxy.
    pub proxy_authorization: Option<String>,
    /// `wss`.
    pub tls: Option<TlsConnector>,
    /// How long the client's certificate is valid.
    pub client: Option<Validity>,
    /// What the credentials are, in a way that tells them apart and gives nothing away.
    pub digest: Digest,
}

/// What an attempt has to dial with.
pub enum Answer {
    /// Go on.
    Ready(Box<Prepared>),
    /// The credentials are those that were refused; no name was looked up.
    Unchanged,
    /// It cannot be had.
    Failed(Failure),
}

/// A hash whose key is drawn at the start of the process and kept nowhere.
pub type Digest = u64;

/// How a name becomes addresses.
type Lookup = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

fn system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Iterator::collect)
}

/// True where [`prepare`] asks a name server or runs a program; a file takes long only where its file system is ill.
pub fn may_hang(reach: &Reach) -> bool {
    let literal = reach.first_hop().is_ok_and(|(host, _)| host.parse::<IpAddr>().is_ok());
    !literal || !reach.endpoint.token_command.is_empty() || !reach.endpoint.basic_command.is_empty()
}

/// Gets it all, as long as it is `wanted`. `refused`: if the credentials are still those, that is the answer.
pub fn prepare(reach: &Reach, keys: &RandomState, refused: Option<Digest>, wanted: impl Fn() -> bool) -> Answer {
    match prepare_with(system, reach, keys, refused, wanted) {
        Ok(Some(prepared)) => Answer::Ready(Box::new(prepared)),
        Ok(None) => Answer::Unchanged,
        Err(failure) => Answer::Failed(failure),
    }
}

fn prepare_with(
    lookup: Lookup,
    reach: &Reach,
    keys: &RandomState,
    refused: Option<Digest>,
    wanted: impl Fn() -> bool,
) -> Result<Option<Prepared>, Failure> {
    let endpoint = &reach.endpoint;
    let mut hasher = keys.build_hasher();
    let authorization = authorization(reach, wanted)?;
    let proxy_authorization = proxy_authorization(reach)?;
    (&authorization, &proxy_authorization).hash(&mut hasher);
    let ca = endpoint.ca_file.as_deref().map(|path| certificates(path, "ca_file", Class::Certificate)).transpose()?;
    let cert = endpoint.cert_file.as_deref();
    let cert = cert.map(|path| certificates(path, "cert_file", Class::Credentials)).transpose()?;
    let key = endpoint.key_file.as_deref().map(secret::read_key).transpose().map_err(refusal)?;
    (&ca, &cert, &key).hash(&mut hasher);
    let digest = hasher.finish();
    if refused == Some(digest) {
        return Ok(None);
    }
    let files = tls::Files {
        ca: endpoint.ca_file.as_deref().zip(ca.as_deref()),
        client: match (
            endpoint.cert_file.as_deref().zip(cert.as_deref()),
            endpoint.key_file.as_deref().zip(key.as_deref()),
        ) {
            (Some(cert), Some(key)) => Some([cert, key]),
            (Some(_) | None, _) => None,
        },
    };
    let tls = reach.target.tls.then(|| tls::connector(&files)).transpose()?;
    let (host, port) = reach.first_hop()?;
    let addresses = addresses(lookup, host, port)?;
    let authorization = authorization.map(header).transpose()?;
    let client = cert.as_deref().and_then(tls::validity);
    Ok(Some(Prepared { addresses, authorization, proxy_authorization, tls, client, digest }))
}

fn refusal(error: String) -> Failure {
    Failure::new(Class::Credentials, error)
}

fn header(value: String) -> Result<HeaderValue, Failure> {
    // What goes in here is printable: `secret` sees to it.
    let mut value = HeaderValue::try_from(value).map_err(|error| refusal(error.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The value of `Authorization` (RFC 6750 § 2.1, RFC 7617 § 2).
fn authorization(reach: &Reach, wanted: impl Fn() -> bool) -> Result<Option<String>, Failure> {
    let endpoint = &reach.endpoint;
    let run = |key: &str, command: &[String], meant: fn(&[u8]) -> Result<String, String>| {
        let printed = printed(key, command, reach.credential_timeout, &wanted)?;
        meant(&printed).map_err(|fault| refusal(format!("{key}: its output {fault}")))
    };
    Ok(if let Some(path) = &endpoint.token_file {
        Some(bearer(&secret::read(path).map_err(refusal)?))
    } else if let Some(path) = &endpoint.basic_file {
        Some(basic(&secret::read_basic(path).map_err(refusal)?))
    } else if !endpoint.token_command.is_empty() {
        Some(bearer(&run("token_command", &endpoint.token_command, secret::token)?))
    } else if !endpoint.basic_command.is_empty() {
        Some(basic(&run("basic_command", &endpoint.basic_command, secret::basic)?))
    } else {
        None
    })
}

/// The value of `Proxy-Authorization`, where there is a proxy.
fn proxy_authorization(reach: &Reach) -> Result<Option<String>, Failure> {
    let Ok(Some(proxy)) = &reach.proxy else { return Ok(None) };
    match &reach.endpoint.proxy_basic_file {
        Some(path) => {
            let fault = |error| Failure::new(Class::ProxyCredentials, format!("proxy: {error}"));
            Ok(Some(basic(&secret::read_basic(path).map_err(fault)?)))
        }
        None => Ok(proxy.basic.as_deref().map(basic)),
    }
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn basic(user_and_password: &str) -> String {
    format!("Basic {}", BASE64.encode(user_and_password.as_bytes()))
}

/// What a command prints. Its output is in no error.
fn printed(key: &str, command: &[String], timeout: Duration, wanted: impl Fn() -> bool) -> Result<Vec<u8>, Failure> {
    let bytes_max = usize::try_from(SECRET_BYTES_MAX).unwrap_or(usize::MAX);
    command::output(command, bytes_max, timeout, wanted).map_err(|fault| {
        let (class, what) = match fault {
            Fault::Io(error) => (Class::Credentials, error.to_string()),
            // EX_TEMPFAIL of sysexits: it says itself that this is no refusal.
            Fault::Failed(status) if status.code() == Some(exit::TRY_AGAIN.into()) => {
                (Class::Closed, format!("{status}: try again"))
            }
            Fault::Failed(status) => (Class::Credentials, status.to_string()),
            Fault::TimedOut => (Class::Timeout, format!("not done within {} ms", timeout.as_millis())),
            Fault::TooLong => (Class::Credentials, format!("more than {SECRET_BYTES_MAX} bytes of output")),
            Fault::Abandoned => (Class::Timeout, "abandoned".into()),
        };
        Failure::new(class, format!("{key}: {what}"))
    })
}

fn certificates(path: &Path, key: &str, class: Class) -> Result<Vec<u8>, Failure> {
    let read = file::read(path, CERTIFICATES_BYTES_MAX);
    read.map_err(|error| Failure::new(class, format!("{key} {}: {error}", path.display())))
}

fn addresses(lookup: Lookup, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let fault = |what: String| Failure::new(Class::Name, format!("resolving {host}: {what}"));
    let found = in_order(lookup(host, port).map_err(|error| fault(error.to_string()))?);
    if found.is_empty() { Err(fault("no address".into())) } else { Ok(found) }
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

/// Whether this endpoint takes a connection, as far as it can be told without a session: TCP connects, through the
/// proxy if there is one.
pub fn probe(reach: &Reach, timeout: Duration) -> bool {
    let deadline = clock::now() + timeout;
    let (Ok(proxy_authorization), Ok((host, port))) = (proxy_authorization(reach), reach.first_hop()) else {
        return false;
    };
    let Ok(addresses) = addresses(system, host, port) else { return false };
    let share = |left: usize| deadline.since(clock::now()) / u32::try_from(left).unwrap_or(u32::MAX);
    let count = addresses.len();
    addresses.into_iter().enumerate().any(|(index, address)| {
        let share = share(count - index).max(Duration::from_millis(1));
        let Ok(mut stream) = dial::connect(address, &reach.endpoint.interface, share) else { return false };
        let Ok(Some(_)) = &reach.proxy else { return true };
        let mut tunnel = Tunnel::new(&reach.target, &reach.agent, proxy_authorization.as_deref());
        // A proxy that dribbles is met by the deadline of whoever waits for this.
        let timed = stream.set_read_timeout(Some(share)).and_then(|()| stream.set_write_timeout(Some(share)));
        timed.is_ok() && matches!(tunnel.advance(&mut stream), Ok(true))
    })
}
