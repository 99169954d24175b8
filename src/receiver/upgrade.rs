//! Who may upgrade, and with which encoding (RFC 6455 § 4.2; protocol rule 11). Pure: a request in, an answer out.

use std::borrow::Cow;
use std::fmt;

use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::header::{AUTHORIZATION, HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use crate::config::Encoding;
use crate::fleet::TurnedAway;

use super::tokens::{Grant, Tokens};

/// Looks at every upgrade request.
pub struct Gate {
    tokens: Option<Tokens>,
}

/// A peer that may come in.
pub struct Admitted {
    /// The answer, as bytes on the wire.
    pub answer: Vec<u8>,
    /// What it will speak: the first it offered that we know.
    pub encoding: Encoding,
    /// Which devices it may be.
    pub grant: Grant,
}

/// Why a peer may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No token, or one that we do not know.
    Unauthorized,
    /// Not a WebSocket upgrade, or no encoding that we know.
    UpgradeRequired,
    /// Over the rate.
    Unavailable(TurnedAway),
}

impl Refusal {
    /// The HTTP status, as on the status line.
    pub const fn status(self) -> &'static str {
        match self {
            Self::Unauthorized => "401 Unauthorized",
            Self::UpgradeRequired => "426 Upgrade Required",
            Self::Unavailable(_) => "503 Service Unavailable",
        }
    }

    /// The answer, as bytes on the wire.
    pub fn answer(self) -> Vec<u8> {
        let (header, body): (Cow<'_, str>, _) = match self {
            Self::Unauthorized => ("WWW-Authenticate: Bearer".into(), "a known bearer token is required\n"),
            Self::UpgradeRequired => {
                ("Upgrade: websocket".into(), "a WebSocket of backhaul.v1.postcard or backhaul.v1.json is required\n")
            }
            Self::Unavailable(TurnedAway { after_s, spread_ms }) => {
                (format!("Retry-After: {after_s}\r\nBackhaul-Spread-Ms: {spread_ms}").into(), "")
            }
        };
        let status = self.status();
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{header}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status())
    }
}

impl Gate {
    /// Without tokens everybody may be any device.
    pub fn new(tokens: Option<Tokens>) -> Self {
        Self { tokens }
    }

    /// Credentials first: a stranger learns nothing else.
    pub fn admit(&self, request: &Request) -> Result<Admitted, Refusal> {
        let grant = match &self.tokens {
            None => Grant::Any,
            Some(tokens) => {
                bearer(request.headers()).and_then(|token| tokens.grant(token)).ok_or(Refusal::Unauthorized)?
            }
        };
        let encoding = encoding(request.headers()).ok_or(Refusal::UpgradeRequired)?;
        let mut response = create_response(request).map_err(|_| Refusal::UpgradeRequired)?;
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(encoding.token()));
        let mut answer = Vec::new();
        write_response(&mut answer, &response).map_err(|_| Refusal::UpgradeRequired)?;
        Ok(Admitted { answer, encoding, grant })
    }
}

/// The first encoding offered that we know; an offer may be spread over several headers (RFC 6455 § 11.3.4).
fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let known = |token: &str| [Encoding::Postcard, Encoding::Json].into_iter().find(|known| known.token() == token);
    offers.flat_map(|value| value.split(',')).find_map(|token| known(token.trim()))
}

/// The token of `Authorization: Bearer` (RFC 6750 § 2.1; the scheme's case does not matter, RFC 9110 § 11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn request(extra: &[(&'static str, &str)]) -> Request {
        let mut request = Request::new(());
        let upgrade = [
            ("host", "upstream"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in upgrade.iter().chain(extra) {
            request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
        }
        request
    }

    fn refusal(gate: &Gate, request: &Request) -> Option<Refusal> {
        gate.admit(request).err()
    }

    #[test]
    fn picks_the_first_offer_that_it_knows() {
        let gate = Gate::new(None);
        for (offer, picked) in [
            ("backhaul.v1.json, backhaul.v1.postcard", Encoding::Json),
            ("backhaul.v2.postcard,backhaul.v1.postcard", Encoding::Postcard),
        ] {
            let admitted = gate.admit(&request(&[("sec-websocket-protocol", offer)])).ok().unwrap();
            assert_eq!(admitted.encoding, picked);
            let answer = String::from_utf8(admitted.answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            assert!(answer.contains(&format!("sec-websocket-protocol: {}\r\n", picked.token())), "{answer}");
        }
        let spread = request(&[("sec-websocket-protocol", "mqtt"), ("sec-websocket-protocol", "backhaul.v1.json")]);
        assert_eq!(gate.admit(&spread).ok().unwrap().encoding, Encoding::Json);
    }

    #[test]
    fn refuses_with_426_who_offers_no_encoding_or_no_websocket() {
        let gate = Gate::new(None);
        assert_eq!(refusal(&gate, &request(&[])), Some(Refusal::UpgradeRequired));
        assert_eq!(refusal(&gate, &request(&[("sec-websocket-protocol", "mqtt")])), Some(Refusal::UpgradeRequired));
        let mut plain = Request::new(());
        plain.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("backhaul.v1.json"));
        assert_eq!(refusal(&gate, &plain), Some(Refusal::UpgradeRequired));
    }

    #[test]
    fn refuses_with_401_who_has_no_token_that_it_knows() {
        let gate = Gate::new(Some(Tokens::parse("gw-1 secret").ok().unwrap()));
        let offer = ("sec-websocket-protocol", "backhaul.v1.json");
        for wrong in ["Bearer guess", "Basic secret", "Bearer", "secret", "Bearer "] {
            let refused = refusal(&gate, &request(&[offer, ("authorization", wrong)]));
            assert_eq!(refused, Some(Refusal::Unauthorized), "{wrong}");
        }
        assert_eq!(refusal(&gate, &request(&[offer])), Some(Refusal::Unauthorized));
        let admitted = gate.admit(&request(&[offer, ("authorization", "bearer secret")])).ok().unwrap();
        assert!(admitted.grant.allows("gw-1") && !admitted.grant.allows("gw-2"));
    }

    #[test]
    fn a_stranger_does_not_learn_which_encodings_there_are() {
        let gate = Gate::new(Some(Tokens::parse("gw-1 secret").ok().unwrap()));
        assert_eq!(refusal(&gate, &request(&[])), Some(Refusal::Unauthorized));
    }
}
