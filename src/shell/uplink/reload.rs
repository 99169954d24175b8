//! Another configuration while the uplink runs, by a reload or by `endpoints_file`: a session goes on where it can.

use std::io;
use std::sync::Arc;

use log::warn;

use super::elsewhere::{self, EndpointsFile, Looked};
use super::setup::{place, reach};
use super::{Reactor, Setup, Transport, wake};
use crate::config::Endpoint;
use crate::shell::clock;
use crate::{link, upstream};

impl Reactor {
    /// Before an attempt: are there other endpoints? False while it waits for the answer.
    pub(super) fn look_elsewhere(&mut self) -> bool {
        let due = self.upstream.poll_timeout().filter(|(at, _)| *at <= clock::now()).map(|(_, timer)| timer);
        let attempt = matches!(due, Some(upstream::Timer::Link(link::Timer::Retry | link::Timer::StartDelay)));
        let Some(elsewhere) = self.elsewhere.as_mut().filter(|_| attempt) else { return true };
        match elsewhere.poll(clock::now()) {
            Looked::NotYet => return false,
            Looked::Done(None) => {}
            Looked::Done(Some(endpoints)) => {
                let mut setup = self.setup.clone();
                setup.set_endpoints(endpoints);
                self.reconfigure(setup);
            }
        }
        true
    }

    /// A reload. `found`, what `endpoints_file` says, stands in for what the configuration says; where it says nothing
    /// good, what it said last.
    pub(super) fn take_up(&mut self, mut setup: Setup, found: Option<Vec<Endpoint>>) {
        let same_file = setup.endpoints_file == self.setup.endpoints_file;
        if !same_file {
            let path = setup.endpoints_file.as_deref();
            self.elsewhere = path.map(|path| EndpointsFile::new(path, wake(&self.waker)));
        }
        match found {
            Some(endpoints) => {
                // It may be older than what was seen here.
                self.elsewhere.iter_mut().for_each(EndpointsFile::forget);
                setup.set_endpoints(endpoints);
            }
            None if same_file && self.elsewhere.is_some() => setup.set_endpoints(self.setup.endpoints.clone()),
            None => {}
        }
        self.reconfigure(setup);
    }

    /// From now on like this; a session goes on where its endpoint is still there.
    fn reconfigure(&mut self, setup: Setup) {
        let reaches = setup.endpoints.iter().map(|endpoint| reach(endpoint, &setup)).collect::<io::Result<Vec<_>>>();
        let reaches = match reaches {
            Ok(reaches) => reaches,
            Err(error) => return warn!(target: "uplink", "endpoints refused error={error}"),
        };
        let before = |endpoint| self.setup.endpoints.iter().position(|old| elsewhere::is_same(old, endpoint));
        let was: Vec<_> =
            setup.endpoints.iter().map(|endpoint| before(endpoint).and_then(|at| u8::try_from(at).ok())).collect();
        self.endpoint = was.iter().position(|was| was.map(usize::from) == Some(self.endpoint)).unwrap_or(0);
        self.reaches = reaches;
        self.dialing.reorder(&was);
        self.network.set_places(self.reaches.iter().map(|reach| place(reach)), clock::now());
        let (link, dialect) = (Arc::clone(&setup.upstream.link), Arc::clone(&setup.upstream.dialect));
        let endpoints = setup.upstream.endpoints.clone();
        let bytes_per_day_max = setup.upstream.cap.bytes_per_day_max();
        self.setup = setup;
        let silence = self.reaches[self.endpoint].silence;
        if let Transport::Open(open) = &self.transport
            && let Err(error) = open.set_silence(silence)
        {
            warn!(target: "uplink", "the session keeps its TCP_USER_TIMEOUT error={error}");
        }
        let new = upstream::Reconfiguration { link, dialect, endpoints, was, bytes_per_day_max };
        self.upstream.reconfigure(new, clock::now());
        self.perform();
        self.view_is_stale = true;
    }
}
