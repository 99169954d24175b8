//! Where a redirect leads (RFC 9110 § 10.2.2), and what to ask for there. Whether it is followed is not decided here;
//! but it never leads from TLS to none.

use tungstenite::http::Uri;

use crate::config::target::Target;

/// The value of a `Location` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location(String);

impl Location {
    /// As the server wrote it.
    pub fn new(value: &str) -> Self {
        Self(value.trim().into())
    }

    /// Whether it leads from `from` to the host of `to`.
    pub fn leads(&self, from: &Target, to: &Target) -> bool {
        let there = self.resolved(from);
        let same = |there: &Target| there.host.eq_ignore_ascii_case(&to.host) && there.port == to.port;
        there.is_some_and(|there| there.tls == to.tls && same(&there)) && (to.tls || !from.tls)
    }

    /// The URL to which it leads from `from`.
    pub fn url(&self, from: &Target) -> Option<Uri> {
        self.resolved(from).map(|there| there.uri)
    }

    /// Host and port, for people.
    pub fn place(&self, from: &Target) -> String {
        match self.resolved(from) {
            Some(there) => format!("{}:{}", there.host, there.port),
            None => "a location that is none".into(),
        }
    }

    /// Resolved against the URL that was asked for (RFC 3986 § 5.2), dot segments left as they are.
    fn resolved(&self, from: &Target) -> Option<Target> {
        let location = self.0.split('#').next().unwrap_or_default();
        let scheme = if from.tls { "wss" } else { "ws" };
        let authority = from.uri.authority()?;
        let url = match location.split_once("://") {
            Some((named, rest)) if named.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                let scheme = match named.to_ascii_lowercase().as_str() {
                    "http" | "ws" => "ws",
                    "https" | "wss" => "wss",
                    _ => return None,
                };
                format!("{scheme}://{rest}")
            }
            Some(_) | None if location.starts_with("//") => format!("{scheme}:{location}"),
            Some(_) | None if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
            Some(_) | None if location.starts_with('?') => {
                format!("{scheme}://{authority}{}{location}", from.uri.path())
            }
            Some(_) | None => {
                let path = from.uri.path();
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                format!("{scheme}://{authority}{folder}/{location}")
            }
        };
        Target::try_new(&url).ok()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::try_new(url).unwrap()
    }

    #[test]
    fn leads_to_a_host_and_port_and_never_from_tls_to_none() {
        const FROM: &str = "wss://a.example/v1";
        for (from, location, to, leads) in [
            (FROM, "wss://b.example/v2", "wss://b.example/v1", true),
            (FROM, "https://b.example:443/v2", "wss://b.example/v1", true),
            (FROM, "https://B.EXAMPLE/v2", "wss://b.example/v1", true),
            (FROM, "https://b.example:8443/v2", "wss://b.example/v1", false),
            (FROM, "https://b.example.evil/v2", "wss://b.example/v1", false),
            (FROM, "https://evil@b.example/v2", "wss://b.example/v1", false),
            (FROM, "ws://b.example/v2", "ws://b.example/v1", false),
            (FROM, "http://b.example:443/v2", "wss://b.example/v1", false),
            (FROM, "ftp://b.example/v2", "wss://b.example/v1", false),
            (FROM, "/v2", "wss://a.example/v1", true),
            (FROM, "//b.example/v2", "wss://b.example/v1", true),
            (FROM, "v2", "wss://a.example/v1", true),
            (FROM, "", "wss://a.example/v1", true),
            (FROM, "https:///v2", "wss://a.example/v1", false),
            ("ws://a.example/v1", "wss://b.example/v2", "wss://b.example/", true),
            ("ws://a.example/v1", "http://b.example/v2", "ws://b.example/", true),
            ("ws://a.example:9/v1", "/v2", "ws://a.example:9/", true),
            ("ws://[::1]:9/v1", "http://[::1]:9/v2", "ws://[::1]:9/", true),
        ] {
            assert_eq!(Location::new(location).leads(&target(from), &target(to)), leads, "{from} {location} {to}");
        }
    }

    #[test]
    fn what_to_ask_for_is_the_locations() {
        for (location, url) in [
            ("https://a.example/v2?x=1#part", "wss://a.example/v2?x=1"),
            ("/v2", "wss://a.example/v2"),
            ("v2", "wss://a.example/api/v2"),
            ("?x=1", "wss://a.example/api/v1?x=1"),
        ] {
            let uri = Location::new(location).url(&target("wss://a.example/api/v1?y=2")).unwrap();
            assert_eq!(uri, url.parse::<Uri>().unwrap(), "{location}");
        }
    }

    #[test]
    fn a_host_is_told_and_nothing_else() {
        let from = target("wss://a.example/v1");
        assert_eq!(Location::new("https://b.example/login?token=secret").place(&from), "b.example:443");
        assert_eq!(Location::new("https://u:p@b/").place(&from), "a location that is none");
    }
}
