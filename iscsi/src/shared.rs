//! What all iSCSI endpoints of the process share: who may do what, the portals, the session
//! registry and the way to other reactors. Used at login, discovery and logout only.

use crate::{
    chap::Chap,
    discovery::{Listed, SendTargets, TargetAddress},
    endpoint::{Note, Seed},
    login::{Admission, Applicant, Refusal, Refused},
    names::IscsiName,
    negotiate::{Preferences, SessionType, Transport},
    portal::Portal,
    registry::{Place, Registry, SessionFacts},
};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use vscsi_target::{log_budget::LogBudget, model::Model};

/// How endpoints reach other reactors. The program gives one that wraps seeds and notes into its
/// own and puts them into the reactor's inbox.
pub trait Router: Send + Sync + Debug {
    /// How many reactors there are.
    fn reactors(&self) -> u16;
    /// Makes an endpoint on a reactor.
    fn open(&self, reactor: u16, seed: Seed);
    /// Sends a message to an endpoint.
    fn note(&self, to: Place, note: Note);
}

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Every initiator.
    Any,
    /// These.
    Only(Vec<IscsiName>),
}

impl Allow {
    /// Whether an initiator is among them.
    pub fn admits(&self, initiator: &IscsiName) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.contains(initiator),
        }
    }
}

/// Where a target is, if not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// For now, at this TargetAddress.
    Temporary(String),
    /// For good.
    Permanent(String),
}

/// How one target is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// Who may log in.
    pub allow: Allow,
    /// The authentication they must pass.
    pub chap: Option<Chap>,
    /// What the target calls itself besides its name.
    pub alias: Option<String>,
    /// It moved.
    pub redirect: Option<Redirect>,
    /// Tags of the portal groups it is reached by; `None` for all.
    pub portal_groups: Option<Vec<u16>>,
}

/// Bounds and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Commands in progress in a session: the span from ExpCmdSN to MaxCmdSN.
    pub window: u32,
    /// Sessions of one initiator.
    pub sessions_per_initiator: usize,
    /// Connections of one portal that have not finished login; more are closed at once.
    pub half_open: usize,
    /// How long a login may take.
    pub login: Duration,
    /// Silence after which a connection is pinged.
    pub ping_after: Duration,
    /// How long the answer may take.
    pub ping_answer: Duration,
    /// How long sessions have to log out when a reactor stops by itself.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 128,
            sessions_per_initiator: 64,
            half_open: 12_000,
            login: Duration::from_secs(15),
            ping_after: Duration::from_secs(30),
            ping_answer: Duration::from_secs(15),
            stop: Duration::from_secs(2),
        }
    }
}

/// What all endpoints share.
#[derive(Debug)]
pub struct Shared {
    /// Bounds and times.
    pub limits: Limits,
    /// What the target would agree on.
    pub preferences: Preferences,
    /// Every session.
    pub registry: Registry,
    /// The way to other reactors.
    pub router: Arc<dyn Router>,
    /// The command core's model.
    pub model: Arc<Model>,
    access: RwLock<BTreeMap<String, Access>>,
    discovery: RwLock<Option<Chap>>,
    portals: RwLock<Vec<Arc<Portal>>>,
    endpoints: Mutex<HashSet<Place>>,
    stopping: AtomicBool,
    random: File,
    log: Mutex<LogBudget>,
}

impl Shared {
    /// Nobody may do anything yet.
    ///
    /// # Errors
    /// The system's random source cannot be opened.
    pub fn new(
        model: Arc<Model>,
        router: Arc<dyn Router>,
        preferences: Preferences,
        limits: Limits,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            limits,
            preferences,
            registry: Registry::default(),
            router,
            model,
            access: RwLock::default(),
            discovery: RwLock::default(),
            portals: RwLock::default(),
            endpoints: Mutex::default(),
            stopping: AtomicBool::new(false),
            random: File::open("/dev/urandom")?,
            log: Mutex::default(),
        }))
    }

    /// Says how a target is reached. Sessions that exist stay.
    pub fn set_access(&self, target: &str, access: Access) {
        let mut all = self.access.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(target.to_owned(), access);
    }

    /// Lets nobody reach a target any more. Sessions that exist stay.
    pub fn remove_access(&self, target: &str) {
        self.access.write().unwrap_or_else(PoisonError::into_inner).remove(target);
    }

    /// Says which authentication discovery needs.
    pub fn set_discovery(&self, chap: Option<Chap>) {
        *self.discovery.write().unwrap_or_else(PoisonError::into_inner) = chap;
    }

    /// Every session, by handle.
    pub fn sessions(&self) -> Vec<Arc<SessionFacts>> {
        self.registry.sessions()
    }

    /// Drops a session: false when there is none of that handle.
    pub fn kick(&self, tsih: u16) -> bool {
        match self.registry.session(tsih) {
            Some(facts) => {
                self.router.note(facts.place(), Note::Kick);
                true
            }
            None => false,
        }
    }

    /// Closes listeners and logins, and asks every session to log out within `grace`; those that
    /// do not are dropped then.
    pub fn stop(&self, grace: Duration) {
        self.stopping.store(true, Ordering::Release);
        let endpoints: Vec<Place> = lock(&self.endpoints).iter().copied().collect();
        for place in endpoints {
            self.router.note(place, Note::Stop { grace });
        }
    }

    /// Whether [`Shared::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// An endpoint is there, which [`Shared::stop`] has to reach.
    pub fn enter(&self, place: Place) {
        lock(&self.endpoints).insert(place);
    }

    /// An endpoint is about to go.
    pub fn leave(&self, place: Place) {
        lock(&self.endpoints).remove(&place);
    }

    /// Initiators are accepted at a portal from now on.
    pub fn add_portal(&self, portal: Arc<Portal>) {
        self.portals.write().unwrap_or_else(PoisonError::into_inner).push(portal);
    }

    /// A portal is closed.
    pub fn remove_portal(&self, portal: &Arc<Portal>) {
        let mut portals = self.portals.write().unwrap_or_else(PoisonError::into_inner);
        portals.retain(|other| !Arc::ptr_eq(other, portal));
    }

    /// Whether an applicant may try, and how (see [`crate::login::Gate`]).
    pub(crate) fn admit(
        &self,
        applicant: &Applicant<'_>,
        portal: &Portal,
    ) -> Result<Admission, Refusal> {
        if self.is_stopping() {
            return Err(Refusal::Unavailable("the target is stopping".to_owned()));
        }
        let all = self.access.read().unwrap_or_else(PoisonError::into_inner);
        let admission = |chap: &Option<Chap>, alias: &Option<String>| Admission {
            chap: chap.clone(),
            portal_group_tag: portal.tag,
            target_alias: alias.clone(),
            preferences: self.preferences.over(portal.transport),
        };
        if applicant.session_type == SessionType::Discovery {
            if !all.values().any(|access| access.allow.admits(applicant.initiator)) {
                return Err(Refusal::Denied("no target's allow list has it".to_owned()));
            }
            let chap = self.discovery.read().unwrap_or_else(PoisonError::into_inner);
            return Ok(admission(&chap, &None));
        }
        let target = applicant.target.ok_or(Refusal::Missing("TargetName"))?;
        let access = all.get(target.as_str()).ok_or(Refusal::NotFound)?;
        if !access.allow.admits(applicant.initiator) {
            return Err(Refusal::Denied(match &access.allow {
                Allow::Only(names) => match names.as_slice() {
                    [only] => format!("its allow list has 1 entry ({only})"),
                    names => {
                        format!("it is not among the {} entries of its allow list", names.len())
                    }
                },
                Allow::Any => "it is not allowed".to_owned(),
            }));
        }
        if access.portal_groups.as_ref().is_some_and(|groups| !groups.contains(&portal.tag)) {
            return Err(Refusal::CannotInclude(format!(
                "the target is not reached by portal group {}",
                portal.tag
            )));
        }
        match &access.redirect {
            Some(Redirect::Temporary(to)) => return Err(Refusal::MovedTemporarily(to.clone())),
            Some(Redirect::Permanent(to)) => return Err(Refusal::MovedPermanently(to.clone())),
            None => {}
        }
        Ok(admission(&access.chap, &access.alias))
    }

    /// The targets that an initiator may reach of those it asks for, with the portals of each that
    /// are reached over the transport it asks by: the answer does not say which that is.
    pub(crate) fn listed(
        &self,
        initiator: &IscsiName,
        wanted: &SendTargets,
        local: SocketAddr,
        transport: Transport,
    ) -> Vec<Listed> {
        let all = self.access.read().unwrap_or_else(PoisonError::into_inner);
        let portals = self.portals.read().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter(|(_, access)| access.allow.admits(initiator))
            .filter_map(|(name, access)| {
                let name = IscsiName::parse(name).ok()?;
                if matches!(wanted, SendTargets::One(one) if *one != name) {
                    return None;
                }
                let reaches = |portal: &&Arc<Portal>| {
                    access.portal_groups.as_ref().is_none_or(|tags| tags.contains(&portal.tag))
                        && portal.transport == transport
                        && portal.is_reachable_like(local)
                };
                let mut addresses = Vec::new();
                for portal in portals.iter().filter(reaches) {
                    let address = TargetAddress::of(portal.address, local.ip(), portal.tag);
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                Some(Listed { name, portals: addresses })
            })
            .collect()
    }

    /// An unpredictable CHAP identifier and challenge.
    ///
    /// # Errors
    /// The random source failed.
    pub(crate) fn challenge(&self) -> io::Result<(u8, [u8; 32])> {
        let mut bytes = [0; 33];
        (&self.random).read_exact(&mut bytes)?;
        let [identifier, challenge @ ..] = bytes;
        Ok((identifier, challenge))
    }

    /// A session has ended: who waits for that goes on.
    pub(crate) fn released(&self, facts: &Arc<SessionFacts>) {
        for place in self.registry.release(facts) {
            self.router.note(place, Note::Released);
        }
    }

    /// Drops every session of a target, but not `except`.
    pub(crate) fn drop_sessions_of(&self, target: &str, except: Option<Place>) {
        for facts in self.registry.sessions() {
            if facts.target.as_ref().is_some_and(|name| name.as_str() == target)
                && Some(facts.place()) != except
            {
                self.router.note(facts.place(), Note::Kick);
            }
        }
    }

    /// One log line a refused login, but not more than a few a second.
    pub(crate) fn log_refused(&self, refused: &Refused, peer: &SocketAddr) {
        let Some(suppressed) = lock(&self.log).spend() else { return };
        let why = refused.reason.to_string();
        let fix = fix(refused);
        tracing::warn!(%peer, suppressed, "error[login-denied]: {refused}\n  why: {why}\n  fix: {fix}");
    }
}

/// What the administrator can do about a refused login.
fn fix(refused: &Refused) -> String {
    let initiator = refused.initiator.as_ref().map_or("IQN", IscsiName::as_str);
    match &refused.reason {
        Refusal::Denied(_) => {
            format!("add --allow {initiator}, or that name to the target's allow list")
        }
        Refusal::Authentication(_) | Refusal::AuthenticationRequired | Refusal::NoAuthMethod(_) => {
            "compare CHAP names and secrets of both sides".to_owned()
        }
        Refusal::NotFound => "compare the target name with what discovery lists".to_owned(),
        Refusal::OutOfResources(_) | Refusal::TooManyConnections(_) => {
            "log out sessions that are not used, or raise the limit".to_owned()
        }
        _ => "check the initiator's settings; vscsi takes what RFC 7143 defines".to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
