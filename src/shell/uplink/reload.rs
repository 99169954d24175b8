//! Another configuration while the uplink runs, by a reload or by `endpoints_file`: a session goes on where it can.

use std::io;
use std::sync::Arc;

use log::warn;

use super::elsewhere::{self, EndpointsFile};
use super::setup::{place, reach};
use super::{Reactor, Setup};
use crate::shell::clock;
use crate::{link, upstream};

impl Reactor {
    /// Before an attempt: are there other endpoints?
    pub(super) fn look_elsewhere(&mut self) {
        let due = self.upstream.poll_timeout().filter(|(at, _)| *at <= clock::now()).map(|(_, timer)| timer);
        let attempt = matches!(due, Some(upstream::Timer::Link(link::Timer::Retry | link::Timer::StartDelay)));
        let Some(elsewhere) = self.elsewhere.as_mut().filter(|_| attempt) else { return };
        if let Some(endpoints) = elsewhere.look() {
            let mut setup = self.setup.clone();
            setup.set_endpoints(endpoints);
            self.reconfigure(setup);
        }
    }

    /// A reload. What `endpoints_file` says stands in for what the configuration says; where it says nothing good,
    /// what it said last.
    pub(super) fn take_up(&mut self, mut setup: Setup) {
        let same_file = setup.endpoints_file == self.setup.endpoints_file;
        if !same_file {
            self.elsewhere = setup.endpoints_file.as_deref().map(EndpointsFile::new);
        }
        match self.elsewhere.as_mut().map(EndpointsFile::look) {
            Some(Some(endpoints)) => setup.set_endpoints(endpoints),
            Some(None) if same_file => setup.set_endpoints(self.setup.endpoints.clone()),
            Some(None) | None => {}
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
        let new = upstream::Reconfiguration { link, dialect, endpoints, was, bytes_per_day_max };
        self.upstream.reconfigure(new, clock::now());
        self.perform();
        self.view_is_stale = true;
    }
}
