//! The way to a transport: what an attempt needs is prepared by an errand, then its sockets race, each in the dialing
//! stage, until one is through. Owns errands and sockets, and remembers what was presented to each endpoint; which
//! address when, the link decides.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};
use mio::{Registry, Token};
use tungstenite::http::Uri;

use super::SOURCES;
use crate::link::{Class, Failure};
use crate::shell::errand::Errands;
use crate::shell::prepare::{self, Answer, Digest, Prepared};
use crate::shell::sources::Sources;
use crate::shell::transport::{Handshake, Meter, Progress, Reach, Validity};
use crate::upstream::Input;

/// See above.
pub(super) struct Dialing {
    errands: Errands<(Answer, Option<Sources>)>,
    probes: Errands<(u8, bool)>,
    keys: Arc<RandomState>,
    /// For the endpoint of the present attempt.
    prepared: Option<Box<Prepared>>,
    /// By the index of the address.
    sockets: BTreeMap<u8, Handshake>,
    /// The credentials presented last, by endpoint.
    presented: Vec<Option<Digest>>,
    /// The files of the endpoint tried last.
    sources: Option<Sources>,
    /// Where the next resolution is to lead, by the word of the server asked last.
    redirected: Option<(usize, Uri)>,
    /// What to ask for in the present attempt, if not for the endpoint's own URL.
    url: Option<Uri>,
}

/// How the race stands.
pub(super) enum Race {
    /// Not decided; these are out of it.
    On(Vec<(u8, Failure)>),
    /// This one is through, and the others are dropped.
    Won { address: u8, handshake: Box<Handshake> },
    /// Somebody has answered for all of them, and all are dropped.
    Lost(Failure),
}

impl Dialing {
    /// `wake` makes what wakes the reactor.
    pub fn new<W: Fn() + Send + Sync + 'static>(wake: impl Fn() -> W, endpoints: usize) -> Self {
        Self {
            errands: Errands::new(wake()),
            probes: Errands::new(wake()),
            keys: Arc::default(),
            prepared: None,
            sockets: BTreeMap::new(),
            presented: vec![None; endpoints],
            sources: None,
            redirected: None,
            url: None,
        }
    }

    /// The endpoints are others now; `was[i]` is the index before of the one that is now i.
    pub fn reorder(&mut self, was: &[Option<u8>]) {
        let before = |was: &Option<u8>| self.presented.get(usize::from((*was)?)).copied().flatten();
        self.presented = was.iter().map(before).collect();
        self.redirected = None;
    }

    /// Begins to get what it takes to dial; the answer comes from [`Dialing::take_answer`]. `recheck`: it is a refusal's
    /// sequel, and credentials that are still those presented last are the answer.
    pub fn prepare(&mut self, endpoint: usize, reach: &Arc<Reach>, recheck: bool) -> Result<(), Failure> {
        self.url = self.redirected.take().filter(|(to, _)| *to == endpoint).map(|(_, url)| url);
        self.sources = None;
        let refused = self.presented[endpoint].filter(|_| recheck);
        let (reach, keys) = (Arc::clone(reach), Arc::clone(&self.keys));
        let may_hang = prepare::may_hang(&reach);
        let begun = self.errands.run(may_hang, move |clerk| {
            // Before they are read: no change is missed.
            let sources = watched(&reach);
            (prepare::prepare(&reach, &keys, refused, || clerk.is_wanted()), sources)
        });
        begun.map_err(|error| Failure::new(Class::Name, format!("resolving: {error}")))
    }

    /// What the errand came to, once.
    pub fn take_answer(&mut self, endpoint: usize, registry: &Registry) -> Option<Input<'static>> {
        let (answer, sources) = self.errands.take()?;
        let registered = |sources: &Sources| sources.register(registry, SOURCES).inspect_err(unwatched).is_ok();
        self.sources = sources.filter(registered);
        Some(match answer {
            Answer::Ready(prepared) => {
                let addresses = u8::try_from(prepared.addresses.len()).unwrap_or(u8::MAX);
                self.presented[endpoint] = Some(prepared.digest);
                self.prepared = Some(prepared);
                Input::Resolved { addresses }
            }
            Answer::Unchanged => Input::CredentialsUnchanged,
            Answer::Failed(failure) => {
                self.presented[endpoint] = None;
                Input::Failed(failure)
            }
        })
    }

    /// The addresses of the present attempt.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.prepared.as_ref().map_or(&[], |prepared| &prepared.addresses)
    }

    /// How long the client's certificate of the present attempt is valid.
    pub fn client(&self) -> Option<&Validity> {
        self.prepared.as_ref()?.client.as_ref()
    }

    /// Begins to dial this address, beside the others.
    pub fn dial(
        &mut self,
        address: u8,
        reach: &Reach,
        meter: Rc<Meter>,
        registry: &Registry,
        token: Token,
    ) -> Result<(), Failure> {
        let prepared = self.prepared.as_ref();
        let prepared = prepared.ok_or_else(|| Failure::new(Class::Name, "dialing: nothing is resolved"))?;
        let Some(&to) = prepared.addresses.get(usize::from(address)) else {
            return Err(Failure::new(Class::Name, "dialing: no such address"));
        };
        let by_proxy = matches!(reach.proxy, Ok(Some(_)));
        debug!(target: "uplink", "dialing address={to} url={} by_proxy={by_proxy}", reach.endpoint.url);
        let handshake = Handshake::dial(to, reach, prepared, self.url.as_ref(), meter, registry, token)?;
        self.sockets.insert(address, handshake);
        Ok(())
    }

    /// Takes each socket as far as it goes.
    pub fn race(&mut self) -> Race {
        let mut failed = Vec::new();
        for (address, handshake) in std::mem::take(&mut self.sockets) {
            match handshake.advance() {
                Ok(Progress::Waiting(handshake)) => drop(self.sockets.insert(address, handshake)),
                Ok(Progress::Dialed(handshake)) => {
                    self.sockets.clear();
                    return Race::Won { address, handshake: handshake.into() };
                }
                Ok(Progress::Secured(_) | Progress::Upgraded(..) | Progress::Redirected(..)) => {
                    warn!(target: "uplink", "a socket went ahead address={address}");
                }
                Err(failure) if concerns_socket(failure.class) => failed.push((address, failure)),
                Err(failure) => {
                    self.sockets.clear();
                    return Race::Lost(failure);
                }
            }
        }
        Race::On(failed)
    }

    /// Forgets the sockets.
    pub fn drop_sockets(&mut self) {
        self.sockets.clear();
    }

    /// The answer to what is being prepared is no longer wanted.
    pub fn abandon(&mut self) {
        self.errands.abandon();
    }

    /// Begins to look whether this endpoint takes connections; false where that cannot be.
    pub fn probe(&mut self, endpoint: u8, reach: &Arc<Reach>, timeout: Duration) -> bool {
        let reach = Arc::clone(reach);
        // A proxy that dribbles holds it up for longer than asked.
        self.probes.run(true, move |_| (endpoint, prepare::probe(&reach, timeout))).is_ok()
    }

    /// The endpoint probed last, and whether it took a connection; once.
    pub fn take_probed(&mut self) -> Option<(u8, bool)> {
        self.probes.take()
    }

    /// Whether one of the files has changed since it was asked last.
    pub fn have_sources_changed(&self) -> bool {
        self.sources.as_ref().is_some_and(Sources::changed)
    }

    /// The next resolution is of this endpoint, and asks for this URL there.
    pub fn set_redirected(&mut self, endpoint: usize, url: Uri) {
        self.redirected = Some((endpoint, url));
    }

    /// What was set last and not taken up.
    pub fn forget_redirect(&mut self) {
        self.redirected = None;
    }
}

/// The endpoint's files, where it has any.
fn watched(reach: &Reach) -> Option<Sources> {
    reach.files().next()?;
    Sources::watch(reach.files()).inspect_err(unwatched).ok()
}

/// SIGHUP remains, and the slow class reads them anyway.
fn unwatched(error: &io::Error) {
    debug!(target: "uplink", "files not watched error={error}");
}

/// It speaks of one socket; what else there is was said by a proxy that lives.
const fn concerns_socket(class: Class) -> bool {
    matches!(class, Class::Local | Class::Refused | Class::Unreachable | Class::Reset | Class::Timeout)
}
