//! The token file: which bearer token speaks for which device. Pure; does not know where the text came from.
//!
//! One entry a line, `device token` or `* token` (any device); empty lines and lines that begin with `#` are skipped.
//! A device may have several tokens (one is being replaced), and a token several devices.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The token file, read.
pub struct Tokens(HashMap<String, Grant>);

/// Which devices the holder of a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Any: the token is of the line `*`, or there is no token file.
    Any,
    /// These.
    Devices(Arc<[String]>),
}

impl Grant {
    /// May the holder be this device?
    pub fn allows(&self, device: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Devices(devices) => devices.iter().any(|allowed| allowed == device),
        }
    }
}

/// A line that is no entry. Says where, never what: the line may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokensError {
    /// Its number, from 1.
    pub line: usize,
}

impl fmt::Display for TokensError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: expected `device token` or `* token`", self.line)
    }
}

impl std::error::Error for TokensError {}

impl Tokens {
    /// The file's text, read.
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let mut tokens: HashMap<String, Grant> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let (Some(device), Some(token), None) = (words.next(), words.next(), words.next()) else {
                return Err(TokensError { line: index + 1 });
            };
            let grant = tokens.entry(token.into()).or_insert_with(|| Grant::Devices([].into()));
            *grant = match grant {
                Grant::Any => Grant::Any,
                Grant::Devices(_) if device == "*" => Grant::Any,
                Grant::Devices(devices) => Grant::Devices(devices.iter().cloned().chain([device.into()]).collect()),
            };
        }
        Ok(Self(tokens))
    }

    /// What the holder of this token may be; `None`: nobody. Found by a keyed hash, so that the time it takes says
    /// nothing about how much of a guess was right.
    pub fn grant(&self, token: &str) -> Option<Grant> {
        self.0.get(token).cloned()
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// No token at all: nobody may connect.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn binds_a_token_to_its_devices() {
        let tokens = Tokens::parse("# fleet\n\n gw-1  aaa\ngw-2 aaa\ngw-1 bbb\n* ccc\n").unwrap();
        assert_eq!(tokens.len(), 3);
        let shared = tokens.grant("aaa").unwrap();
        assert!(shared.allows("gw-1") && shared.allows("gw-2") && !shared.allows("gw-3"));
        assert!(!tokens.grant("bbb").unwrap().allows("gw-2"));
        assert!(tokens.grant("ccc").unwrap().allows("anything"));
        assert_eq!(tokens.grant("ddd"), None);
    }

    #[test]
    fn a_star_wins_over_a_device_of_the_same_token_in_either_order() {
        for text in ["* t\ngw-1 t", "gw-1 t\n* t"] {
            assert_eq!(Tokens::parse(text).unwrap().grant("t"), Some(Grant::Any));
        }
    }

    #[test]
    fn names_the_line_that_is_wrong_and_not_its_content() {
        for bad in ["gw-1", "gw-1 a b"] {
            let Err(error) = Tokens::parse(&format!("gw-0 zzz\n{bad}\n")) else { panic!("{bad} was accepted") };
            assert_eq!(error, TokensError { line: 2 });
        }
    }
}
