//! What all SRP endpoints of the process share: who may log in where, the registry and the way to
//! other reactors. Used at login and logout only.

use crate::{
    endpoint::{Note, Seed},
    login::{Offer, Refusal},
    names::{InitiatorName, TargetPortId, initiator_name},
    registry::{Most, Place, Registry, SessionFacts},
};
use libsrp::{
    channel::{LoginParameters, Violation},
    login::{LoginReq, PortId},
};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Debug,
    net::{IpAddr, SocketAddr},
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
    Only(Vec<InitiatorName>),
}

impl Allow {
    /// Whether an initiator port, its identifier with the extension first, is among them.
    pub fn admits(&self, port: PortId, peer: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.iter().any(|name| name.matches(port, peer)),
        }
    }
}

/// How one target is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who may log in.
    pub allow: Allow,
    /// How logins address it: [`TargetPortId::derive`] unless it was given another. The target has a
    /// port of that [name](TargetPortId::scsi_name) and SRP's protocol identifier
    /// ([`PROTOCOL`]) in the model.
    pub port: TargetPortId,
}

/// SRP's protocol identifier (SPC-5 table 481).
pub const PROTOCOL: u8 = 4;

/// Bounds and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that an initiator may have in progress on a channel: its request limit, at least 2.
    pub credit: u32,
    /// Receive buffers that the channels of a reactor share, instead of some for each.
    pub shared_receives: Option<u32>,
    /// The most segments of a command's data.
    pub descriptors: u32,
    /// The most immediate data of a command, in bytes; `None` refuses it.
    pub immediate: Option<u32>,
    /// Channels of one I_T nexus.
    pub channels_per_nexus: usize,
    /// Channels of all.
    pub channels: usize,
    /// Connections of one portal that are not established; more are rejected.
    pub half_open: usize,
    /// How long a login may take.
    pub login: Duration,
    /// How long a channel has to be closed by both sides.
    pub close: Duration,
    /// How long commands in progress have to finish when a reactor stops by itself.
    pub stop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            credit: LoginParameters::SRP.request_limit,
            shared_receives: None,
            descriptors: LoginParameters::SRP.max_descriptors,
            immediate: LoginParameters::SRP.max_immediate,
            channels_per_nexus: 64,
            channels: 4096,
            half_open: 1024,
            login: Duration::from_secs(15),
            close: Duration::from_secs(1),
            stop: Duration::from_secs(2),
        }
    }
}

/// What all endpoints share.
#[derive(Debug)]
pub struct Shared {
    /// Bounds and times.
    pub limits: Limits,
    /// Every nexus with its channels.
    pub registry: Registry,
    /// The way to other reactors.
    pub router: Arc<dyn Router>,
    /// The command core's model.
    pub model: Arc<Model>,
    access: RwLock<BTreeMap<String, Access>>,
    endpoints: Mutex<HashSet<Place>>,
    stopping: AtomicBool,
    log: Mutex<LogBudget>,
}

/// A login that may come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The target's name.
    pub target: String,
    /// The target's port.
    pub port: TargetPortId,
    /// The initiator's port, with the identifier extension first.
    pub initiator: PortId,
}

impl Shared {
    /// Nobody may log in yet.
    pub fn new(model: Arc<Model>, router: Arc<dyn Router>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            registry: Registry::default(),
            router,
            model,
            access: RwLock::default(),
            endpoints: Mutex::default(),
            stopping: AtomicBool::new(false),
            log: Mutex::default(),
        })
    }

    /// Says how a target is reached. Channels that exist stay.
    pub fn set_access(&self, target: &str, access: Access) {
        let mut all = self.access.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(target.to_owned(), access);
    }

    /// Lets nobody reach a target any more. Channels that exist stay.
    pub fn remove_access(&self, target: &str) {
        self.access.write().unwrap_or_else(PoisonError::into_inner).remove(target);
    }

    /// Every session, by number.
    pub fn sessions(&self) -> Vec<Arc<SessionFacts>> {
        self.registry.sessions()
    }

    /// Drops every channel of a session: false when there is none of that number.
    pub fn kick(&self, id: u32) -> bool {
        let Some(facts) = self.registry.session(id) else { return false };
        for channel in facts.channels() {
            self.router.note(channel.place, Note::Kick);
        }
        true
    }

    /// Makes every channel look at the LUN map, also those that are idle.
    pub fn refresh(&self) {
        for channel in self.sessions().iter().flat_map(|facts| facts.channels()) {
            self.router.note(channel.place, Note::Refresh);
        }
    }

    /// Closes listeners and logins; channels take no more commands, and are logged out when those in
    /// progress are done, or after `grace`.
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

    pub(crate) fn enter(&self, place: Place) {
        lock(&self.endpoints).insert(place);
    }

    pub(crate) fn leave(&self, place: Place) {
        lock(&self.endpoints).remove(&place);
    }

    pub(crate) fn offer(&self) -> Offer {
        Offer(LoginParameters {
            request_limit: self.limits.credit.max(LEAST_CREDIT),
            max_descriptors: self.limits.descriptors,
            max_immediate: self.limits.immediate,
            ..LoginParameters::SRP
        })
    }

    pub(crate) fn most(&self) -> Most {
        Most { of_nexus: self.limits.channels_per_nexus, of_all: self.limits.channels }
    }

    /// Whether an initiator may log in where it wants to.
    pub(crate) fn admit(&self, request: &LoginReq, peer: IpAddr) -> Result<Admission, Refusal> {
        if self.is_stopping() {
            return Err(Refusal::Resources("the target is stopping".to_owned()));
        }
        let all = self.access.read().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find_map(|(target, access)| {
            Some((target, access, access.port.addressed_by(request.target_port)?))
        });
        let (target, access, order) = found.ok_or(Refusal::NoTarget(request.target_port))?;
        let initiator = order.normal(request.initiator_port);
        if !access.allow.admits(initiator, peer) {
            let who = initiator_name(initiator);
            return Err(Refusal::Denied(match &access.allow {
                Allow::Only(names) => match names.as_slice() {
                    [only] => format!("{who} is not allowed; the allow list has 1 entry ({only})"),
                    names => {
                        format!("{who} is not among the {} entries of the allow list", names.len())
                    }
                },
                Allow::Any => format!("{who} is not allowed"),
            }));
        }
        Ok(Admission { target: target.clone(), port: access.port, initiator })
    }

    /// A nexus has ended: who waits for that goes on.
    pub(crate) fn released(&self, session: &Arc<SessionFacts>) {
        for place in self.registry.release(session) {
            self.router.note(place, Note::Released);
        }
    }

    /// One log line a channel that cannot go on, but not more than a few a second.
    pub(crate) fn log_violation(&self, violation: &Violation, peer: SocketAddr) {
        if let Some(suppressed) = lock(&self.log).spend() {
            tracing::warn!(%peer, suppressed, "SRP channel is closed: {violation}");
        }
    }

    /// One log line a refused login, but not more than a few a second.
    pub(crate) fn log_refused(
        &self,
        refusal: &Refusal,
        initiator: Option<PortId>,
        peer: SocketAddr,
    ) {
        let Some(suppressed) = lock(&self.log).spend() else { return };
        let fix = refusal.fix(initiator);
        tracing::warn!(
            %peer, suppressed,
            "error[login-denied]: SRP login refused\n  why: {refusal}\n  fix: {fix}"
        );
    }
}

/// With less an initiator that keeps one request in reserve for task management starts nothing.
const LEAST_CREDIT: u32 = 2;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::login;
    use libsrp::login::RejectReason;
    use vscsi_target::reactor::Postboxes;

    #[derive(Debug)]
    struct Nowhere;

    impl Router for Nowhere {
        fn reactors(&self) -> u16 {
            1
        }

        fn open(&self, _reactor: u16, _seed: Seed) {}

        fn note(&self, _to: Place, _note: Note) {}
    }

    fn shared(allow: &[&str], credit: u32) -> Arc<Shared> {
        let model = Model::new(Postboxes::new(1).unwrap());
        let limits = Limits { credit, ..Limits::default() };
        let shared = Shared::new(model, Arc::new(Nowhere), limits);
        let names = allow.iter().map(|name| name.parse().unwrap()).collect();
        let port = TargetPortId { id_ext: 3, ioc_guid: 2 };
        shared.set_access("iqn.x:t", Access { allow: Allow::Only(names), port });
        shared
    }

    fn request(target_port: PortId, initiator_port: PortId) -> LoginReq {
        LoginReq { target_port, initiator_port, ..login() }
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    #[test]
    fn login_to_the_port_of_a_target_by_an_allowed_initiator_is_admitted() {
        let shared = shared(&["0000:0000:0000:0009"], 8);
        let request = request(PortId::new(3, 2), PortId::new(1, 9));
        let admission = shared.admit(&request, PEER).unwrap();
        assert_eq!(
            (admission.target.as_str(), admission.initiator),
            ("iqn.x:t", PortId::new(1, 9))
        );
    }

    #[test]
    fn initiators_of_io_class_ff00_are_known_by_the_same_name() {
        let shared = shared(&["00000000000000010000000000000009"], 8);
        let request = request(PortId::new(2, 3), PortId::new(9, 1));
        assert_eq!(shared.admit(&request, PEER).unwrap().initiator, PortId::new(1, 9));
    }

    #[test]
    fn other_ports_other_initiators_and_other_addresses_are_refused() {
        let shared = shared(&["192.0.2.8", "0000:0000:0000:0008"], 8);
        for (target, initiator) in [((3, 3), (0, 8)), ((3, 2), (8, 0))] {
            let request =
                request(PortId::new(target.0, target.1), PortId::new(initiator.0, initiator.1));
            let refusal = shared.admit(&request, PEER).unwrap_err();
            assert_eq!(refusal.reason(), RejectReason::NoNexus);
        }
        let other = IpAddr::from([192, 0, 2, 8]);
        assert!(shared.admit(&request(PortId::new(3, 2), PortId::new(8, 0)), other).is_ok());
    }

    #[test]
    fn target_that_stops_or_is_gone_admits_nobody() {
        let shared = shared(&["192.0.2.7"], 8);
        let request = request(PortId::new(3, 2), PortId::new(0, 1));
        shared.remove_access("iqn.x:t");
        assert!(matches!(shared.admit(&request, PEER), Err(Refusal::NoTarget(_))));
        shared.stop(Duration::ZERO);
        assert_eq!(shared.admit(&request, PEER).unwrap_err().reason(), RejectReason::NoResources);
    }

    #[test]
    fn no_channel_has_less_credit_than_two() {
        let agreed = shared(&[], 0).offer().agree(&login()).unwrap();
        assert_eq!(agreed.request_limit, 2);
    }
}
