//! An endpoint's URL, taken apart: whom to resolve, whom to verify, what to ask for. What passes here can be asked for.

use std::net::{IpAddr, Ipv6Addr};

use tungstenite::http::Uri;

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The whole URL.
    pub uri: Uri,
    /// `wss`.
    pub tls: bool,
    /// A name or an IP literal, the latter without brackets.
    pub host: String,
    /// As given, else 80 or 443.
    pub port: u16,
}

const HINT: &str = "wss://host[:port]/path, in ASCII";

impl Target {
    /// The target of a `ws://` or `wss://` URL (RFC 6455 § 3). An error is one line for people.
    pub fn try_new(url: &str) -> Result<Self, String> {
        if url.is_empty() {
            return Err("a url is needed: wss://host[:port]/path".into());
        }
        let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
        if after_scheme.split(['/', '?']).next().is_some_and(|authority| authority.contains('@')) {
            // Without the url: it may hold a password.
            return Err("a url holds no user and no password: use token_file".into());
        }
        let (scheme, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("wss") => ("wss", rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ws") => ("ws", rest),
            Some(_) | None => return Err(format!("\"{url}\" begins neither with wss:// nor with ws://")),
        };
        let tls = scheme == "wss";
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let no_host = || format!("\"{url}\" names no host: {HINT}");
        if authority.is_empty() {
            return Err(no_host());
        }
        if url.bytes().any(|byte| !byte.is_ascii_graphic()) || url.contains('#') {
            return Err(format!("\"{}\" holds what a url cannot: {HINT}", url.escape_debug()));
        }
        let uri: Uri = format!("{scheme}://{rest}").parse().map_err(|error| format!("\"{url}\": {error}: {HINT}"))?;
        let host = uri.host().unwrap_or_default();
        // Beyond the host there may only be a colon and a number; `http` lets an empty port and one too large pass.
        let port = match &authority[host.len()..] {
            "" if tls => Some(443),
            "" => Some(80),
            rest => rest.strip_prefix(':').and_then(|digits| digits.parse().ok()).filter(|port| *port > 0),
        };
        let port = port.ok_or_else(|| format!("\"{url}\" has no port within 1 to 65535"))?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-' || byte == b'_';
        let fits = match bare {
            Some(bare) => bare.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(name),
        };
        if !fits {
            return Err(no_host());
        }
        let host = bare.unwrap_or(host).to_owned();
        Ok(Self { uri, tls, host, port })
    }

    /// It does not leave this machine.
    pub fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().map_or(self.host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn parts(url: &str) -> (bool, String, u16, String) {
        let target = Target::try_new(url).unwrap();
        let path = target.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        (target.tls, target.host, target.port, path)
    }

    #[test]
    fn takes_urls_apart() {
        assert_eq!(parts("wss://ingest.example.com/v1"), (true, "ingest.example.com".into(), 443, "/v1".into()));
        assert_eq!(parts("ws://127.0.0.1:9000/a/b?c=d&e"), (false, "127.0.0.1".into(), 9000, "/a/b?c=d&e".into()));
        assert_eq!(parts("ws://localhost"), (false, "localhost".into(), 80, "/".into()));
        assert_eq!(parts("WSS://h/"), (true, "h".into(), 443, "/".into()));
        assert_eq!(parts("wss://h?q"), (true, "h".into(), 443, "/?q".into()));
    }

    #[test]
    fn ipv6_literals_lose_their_brackets() {
        assert_eq!(parts("ws://[::1]:9000/v1"), (false, "::1".into(), 9000, "/v1".into()));
        assert_eq!(parts("wss://[2001:db8::7]"), (true, "2001:db8::7".into(), 443, "/".into()));
    }

    #[test]
    fn knows_what_does_not_leave_this_machine() {
        for (url, loopback) in [
            ("ws://localhost:1/", true),
            ("ws://127.8.0.1/", true),
            ("ws://[::1]/", true),
            ("ws://localhost.example.com/", false),
            ("ws://10.0.0.1/", false),
        ] {
            assert_eq!(Target::try_new(url).unwrap().is_loopback(), loopback, "{url}");
        }
    }

    #[test]
    fn refuses_what_is_no_target() {
        for url in [
            "",
            "ingest.example.com",
            "/v1",
            "http://h/",
            "https://h/",
            "ws://",
            "ws:///v1",
            "ws://:80/",
            "ws://h:0/",
            "ws://h:/",
            "ws://h:65536/",
            "ws://h:x/",
            "ws://u:p@h/",
            "https://u:p@h/",
            "ws://[::1/",
            "ws://h h/",
            "ws://h/a b",
            "ws://h/<a>",
            "ws://h/#a",
            "ws://h!/",
            "ws://[h]/",
        ] {
            assert!(Target::try_new(url).is_err(), "{url:?}: {:?}", Target::try_new(url));
        }
    }
}
