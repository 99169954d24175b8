//! Why things are as they are, for people: a sentence for each failure class and for each reason to wait.

use crate::link::Class;

/// Why the last session or attempt ended.
pub const fn why_ended(class: Class) -> &'static str {
    match class {
        Class::Local => "this machine had no way to the network",
        Class::Renewed => "the agent itself ended the session, to begin another one",
        Class::Name => "the server's name did not resolve",
        Class::Refused => "nothing listens at the server's address",
        Class::Unreachable => "the network knows no way to the server",
        Class::Reset => "the connection broke without a word",
        Class::Timeout => "no answer came in time",
        Class::Tls => "no encrypted connection came about",
        Class::Certificate => "the server's certificate cannot be trusted",
        Class::ClockUnset => "the clock here is not set, so that no certificate can be judged",
        Class::Credentials => "the server refuses our credentials",
        Class::WrongPlace => "a server answers, but it is not ours",
        Class::Overload => "the server has too much to do",
        Class::Protocol => "one of the two sides broke the protocol",
        Class::Silent => "the far end fell silent: pings went unanswered",
        Class::Stalled => "records went out and no ack came back",
        Class::Replaced => "a newer connection of this device took over",
        Class::Clone => "another device seems to use this device's identity",
        Class::ServerRetry => "the server asked us to come back later",
        Class::Closed => "the server closed the connection or gave no session",
        Class::Aged => "the session reached its configured age",
        Class::Failback => "an endpoint that is preferred is back",
        Class::ProxyCredentials => "the proxy refuses our credentials",
        Class::Stopped => "the agent was told to stop",
    }
}

/// What the wait for the next attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitCause {
    /// The random delay after boot.
    Boot,
    /// No network here.
    NoNetwork,
    /// The server's word.
    Server,
    /// The slow class.
    Slow,
    /// Backoff, or the spread after a loss.
    Backoff,
    /// It was this side's doing.
    Promptly,
}

/// Why the next attempt is not made now.
pub const fn why_waiting(cause: WaitCause) -> &'static str {
    match cause {
        WaitCause::Boot => "a random delay after boot, lest a fleet comes at once",
        WaitCause::NoNetwork => "no network here: at once when there is one, now and then without",
        WaitCause::Server => "the server has said when to come back",
        WaitCause::Slow => "haste does not cure this: at once when files or the clock change, else slowly",
        WaitCause::Backoff => "a random backoff, lest a fleet stampedes the server",
        WaitCause::Promptly => "at once, but not in step with others",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_sentence_of_its_own_that_fits_a_line() {
        let mut sentences = Class::ALL.map(why_ended).to_vec();
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), Class::COUNT);
        assert_eq!(sentences.iter().find(|sentence| sentence.len() > 72), None);
    }
}
