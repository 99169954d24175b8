//! The way to an endpoint: by a proxy that knows CONNECT, or straight. From the endpoint's own key, else from the
//! environment, in the words that curl and others read there. Pure: the environment is an argument.

use std::fmt;
use std::net::IpAddr;

use super::Endpoint;
use super::target::Target;

/// The value of `proxy` that overrules the environment.
pub const NO_PROXY: &str = "none";

/// A proxy that knows HTTP CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// A name or an IP literal, the latter without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `user:password` from the environment's URL.
    pub basic: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// What the environment says of proxies. Its URLs may hold passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    https: Option<String>,
    http: Option<String>,
    all: Option<String>,
    no_proxy: Vec<String>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("no_proxy", &self.no_proxy).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads it through `var`. `HTTP_PROXY` is not read: a web server sets it from a request's `Proxy` header (httpoxy,
    /// CVE-2016-5385), which is why curl does not read it either.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().filter_map(|name| var(name)).find(|value| !value.trim().is_empty());
        Self {
            https: first(&["https_proxy", "HTTPS_PROXY"]),
            http: first(&["http_proxy"]),
            all: first(&["all_proxy", "ALL_PROXY"]),
            no_proxy: list(&first(&["no_proxy", "NO_PROXY"]).unwrap_or_default()),
        }
    }
}

/// The proxy for this endpoint. `no_proxy` is `upstream.no_proxy`. An error is one line without a password.
///
/// What the endpoint says goes before the environment, and the environment's `no_proxy` is for the environment's
/// proxies alone. Those are for other machines: what does not leave this one needs none.
pub fn proxy_for(
    endpoint: &Endpoint,
    target: &Target,
    no_proxy: &[String],
    environment: &Environment,
) -> Result<Option<Proxy>, String> {
    let bypassed = |list: &[String]| list.iter().any(|entry| covers(entry, &target.host));
    if endpoint.proxy == NO_PROXY || bypassed(no_proxy) {
        return Ok(None);
    }
    if !endpoint.proxy.is_empty() {
        return from_config(&endpoint.proxy).map(Some);
    }
    let (name, own) = if target.tls { ("https_proxy", &environment.https) } else { ("http_proxy", &environment.http) };
    let said = own.as_ref().map(|url| (name, url)).or(environment.all.as_ref().map(|url| ("all_proxy", url)));
    match said {
        Some((name, url)) if !target.is_loopback() && !bypassed(&environment.no_proxy) => from_environment(name, url),
        Some(_) | None => Ok(None),
    }
}

/// The proxy of an endpoint's `proxy`.
pub fn from_config(url: &str) -> Result<Proxy, String> {
    if url.contains('@') {
        // Without the url: it may hold a password.
        return Err("a proxy's url holds no user and no password: use proxy_basic_file".into());
    }
    if !url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://")) {
        return Err(format!("\"{}\" is neither http://host:port nor \"none\"", url.escape_debug()));
    }
    at(&url[7..]).map_err(|()| format!("\"{}\" is not http://host:port", url.escape_debug()))
}

fn from_environment(name: &str, url: &str) -> Result<Option<Proxy>, String> {
    let url = url.trim();
    let rest = match url.split_once("://") {
        None => url,
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) => {
            let scheme: String = scheme.chars().take(16).collect();
            let way_out = "set the endpoint's proxy, to \"none\" for none";
            return Err(format!("{name} of the environment is {}://, only http:// is known: {way_out}", scheme));
        }
    };
    let (user_info, authority) = match rest.rsplit_once('@') {
        Some((user_info, authority)) => (Some(user_info), authority),
        None => (None, rest),
    };
    let mut proxy = at(authority).map_err(|()| format!("{name} of the environment is not http://host:port"))?;
    if let Some(user_info) = user_info {
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let basic = percent_decoded(user).zip(percent_decoded(password));
        let basic = basic.filter(|(user, _)| !user.contains(':'));
        let basic = basic.ok_or_else(|| format!("{name} of the environment: user and password cannot be read"))?;
        proxy.basic = Some(format!("{}:{}", basic.0, basic.1));
    }
    Ok(Some(proxy))
}

/// `host[:port]`, with or without a slash behind it.
fn at(authority: &str) -> Result<Proxy, ()> {
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    if authority.contains(['/', '?']) {
        return Err(());
    }
    let target = Target::try_new(&format!("ws://{authority}/")).map_err(drop)?;
    Ok(Proxy { host: target.host, port: target.port, basic: None })
}

fn list(text: &str) -> Vec<String> {
    text.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// An entry of `no_proxy` speaks of this host: `*` of each, a name of itself and what ends with `.name`, an address
/// of itself, `address/bits` of its network.
fn covers(entry: &str, host: &str) -> bool {
    if entry == "*" {
        return true;
    }
    let entry = entry.strip_prefix("*.").unwrap_or(entry).trim_matches(['.', '[', ']']);
    let Ok(address) = host.parse::<IpAddr>() else {
        let (entry, host) = (entry.to_ascii_lowercase(), host.trim_end_matches('.').to_ascii_lowercase());
        return !entry.is_empty()
            && host.strip_suffix(&entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    };
    match entry.split_once('/') {
        None => entry.parse() == Ok(address),
        Some((network, bits)) => {
            let network = network.trim_end_matches(']').parse::<IpAddr>();
            network.is_ok_and(|network| bits.parse().is_ok_and(|bits| within(address, network, bits)))
        }
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            (a.to_bits() ^ n.to_bits()).checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            (a.to_bits() ^ n.to_bits()).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
    }
}

/// RFC 3986 § 2.1; `None` where it does not end in text.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn environment(vars: &[(&str, &str)]) -> Environment {
        Environment::read(|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into()))
    }

    fn chosen(url: &str, proxy: &str, no_proxy: &[&str], vars: &[(&str, &str)]) -> Result<Option<String>, String> {
        let endpoint = Endpoint { url: url.into(), proxy: proxy.into(), ..Endpoint::default() };
        let no_proxy: Vec<_> = no_proxy.iter().map(|entry| (*entry).to_owned()).collect();
        let proxy = proxy_for(&endpoint, &Target::try_new(url).unwrap(), &no_proxy, &environment(vars))?;
        Ok(proxy.map(|proxy| {
            let basic = proxy.basic.map(|basic| format!("{basic}@")).unwrap_or_default();
            format!("{basic}{}:{}", proxy.host, proxy.port)
        }))
    }

    const WSS: &str = "wss://ingest.example.com/v1";
    const WS: &str = "ws://ingest.example.com/v1";

    #[test]
    fn each_scheme_has_its_variable_and_all_proxy_is_for_both() {
        let https = [("https_proxy", "http://a:1")];
        let http = [("http_proxy", "b:2/")];
        let all = [("ALL_PROXY", "http://[2001:db8::1]:3")];
        assert_eq!(chosen(WSS, "", &[], &https), Ok(Some("a:1".into())));
        assert_eq!(chosen(WSS, "", &[], &[("HTTPS_PROXY", "http://a")]), Ok(Some("a:80".into())));
        assert_eq!(chosen(WSS, "", &[], &http), Ok(None));
        assert_eq!(chosen(WS, "", &[], &http), Ok(Some("b:2".into())));
        assert_eq!(chosen(WS, "", &[], &https), Ok(None));
        assert_eq!(chosen(WS, "", &[], &all), Ok(Some("2001:db8::1:3".into())));
        assert_eq!(chosen(WSS, "", &[], &[https[0], all[0]]), Ok(Some("a:1".into())));
        assert_eq!(chosen(WSS, "", &[], &[("https_proxy", ""), ("HTTPS_PROXY", "c:4")]), Ok(Some("c:4".into())));
    }

    #[test]
    fn http_proxy_in_capitals_is_not_read() {
        assert_eq!(chosen(WS, "", &[], &[("HTTP_PROXY", "http://evil:1")]), Ok(None));
    }

    #[test]
    fn the_endpoints_own_word_goes_before_the_environment() {
        let vars = [("https_proxy", "http://a:1"), ("no_proxy", "*")];
        assert_eq!(chosen(WSS, "http://b:2", &[], &vars), Ok(Some("b:2".into())));
        assert_eq!(chosen(WSS, "none", &[], &vars[..1]), Ok(None));
        assert_eq!(chosen(WSS, "", &[], &vars), Ok(None));
        assert_eq!(chosen(WSS, "http://b:2", &["example.com"], &[]), Ok(None));
    }

    #[test]
    fn what_does_not_leave_this_machine_goes_by_a_proxy_only_when_told_so() {
        let vars = [("all_proxy", "http://a:1")];
        assert_eq!(chosen("ws://127.0.0.1:9/", "", &[], &vars), Ok(None));
        assert_eq!(chosen("wss://localhost:9/", "", &[], &vars), Ok(None));
        assert_eq!(chosen("ws://127.0.0.1:9/", "http://a:1", &[], &[]), Ok(Some("a:1".into())));
    }

    #[test]
    fn passwords_come_from_the_environment_and_never_from_the_configuration() {
        let vars = [("https_proxy", "http://me:p%40ss%3aw@a:1")];
        assert_eq!(chosen(WSS, "", &[], &vars), Ok(Some("me:p@ss:w@a:1".into())));
        let refused = from_config("http://me:sesame@a:1").unwrap_err();
        assert!(refused.contains("proxy_basic_file") && !refused.contains("sesame"), "{refused}");
        for url in ["http://me:ses%0aame@a:1", "http://me:sesame@", "https://me:sesame@a:1", "socks5://sesame@a:1"] {
            let refused = chosen(WSS, "", &[], &[("https_proxy", url)]).unwrap_err();
            assert!(refused.contains("https_proxy") && !refused.contains("ame"), "{url}: {refused}");
        }
        let environment = environment(&[("https_proxy", "http://me:sesame@a:1")]);
        let proxy = from_environment("https_proxy", "http://me:sesame@a:1").unwrap();
        assert!(!format!("{environment:?} {proxy:?}").contains("sesame"));
    }

    #[test]
    fn refuses_what_is_no_proxy() {
        for url in ["a:1", "https://a:1", "socks5://a:1", "http://", "http://a:0", "http://a:x", "http://a/b", "nöne"]
        {
            assert!(from_config(url).is_err(), "{url}");
        }
    }

    #[test]
    fn no_proxy_knows_names_addresses_networks_and_all() {
        for (entry, host, expected) in [
            ("*", "a", true),
            ("example.com", "example.com", true),
            ("example.com", "EXAMPLE.com.", true),
            ("example.com", "a.b.example.com", true),
            ("example.com", "anexample.com", false),
            (".example.com", "a.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("com", "example.org", false),
            ("", "a", false),
            (".", "a", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.70", false),
            ("0.2.7", "192.0.2.7", false),
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/25", "192.0.2.128", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.1", true),
            ("192.0.2.0/33", "192.0.2.0", false),
            ("192.0.2.0/x", "192.0.2.0", false),
            ("192.0.2.0/24", "a.example.com", false),
            ("2001:db8::/32", "2001:db8:1::2", true),
            ("[2001:db8::1]", "2001:db8::1", true),
            ("2001:db8::/32", "192.0.2.1", false),
            ("::/0", "2001:db8::1", true),
        ] {
            assert_eq!(covers(entry, host), expected, "{entry} {host}");
        }
        assert_eq!(list(" a, b ,,c d"), ["a", "b", "c", "d"]);
    }
}
