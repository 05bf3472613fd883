//! Every session there is, for login, logout and the control socket; never used for I/O.

use crate::{
    login::Refusal,
    names::IscsiName,
    negotiate::{SessionType, Transport},
    pdu::Isid,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};
use vscsi_target::{reactor::EndpointId, traffic::Traffic};

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its reactor.
    pub reactor: u16,
    /// The endpoint there.
    pub endpoint: EndpointId,
}

/// What is known of a session.
#[derive(Debug)]
pub struct SessionFacts {
    /// Target session identifying handle.
    pub tsih: u16,
    /// The initiator.
    pub initiator: IscsiName,
    /// Its part of the session identifier.
    pub isid: Isid,
    /// The target; `None` in a discovery session.
    pub target: Option<IscsiName>,
    /// Target portal group tag.
    pub portal_group_tag: u16,
    /// What its connections run over.
    pub transport: Transport,
    /// When its login ended.
    pub since: SystemTime,
    /// What it did so far.
    pub counters: Traffic,
    place: Mutex<Place>,
    closing: AtomicBool,
    connections: Mutex<Vec<Connection>>,
}

/// A connection as the control socket lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Connection identifier.
    pub cid: u16,
    /// The peer's address.
    pub peer: String,
}

impl SessionFacts {
    /// Where the session is.
    pub fn place(&self) -> Place {
        *lock(&self.place)
    }

    /// Its connections now.
    pub fn connections(&self) -> Vec<Connection> {
        lock(&self.connections).clone()
    }

    /// Whether it is on its way out.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    pub(crate) fn set_closing(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    pub(crate) fn add_connection(&self, cid: u16, peer: &str) {
        lock(&self.connections).push(Connection { cid, peer: peer.to_owned() });
    }

    pub(crate) fn remove_connection(&self, cid: u16) {
        let mut connections = lock(&self.connections);
        if let Some(at) = connections.iter().position(|connection| connection.cid == cid) {
            connections.remove(at);
        }
    }
}

/// What a login that is complete asks the registry.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The initiator.
    pub initiator: &'a IscsiName,
    /// Its part of the session identifier.
    pub isid: Isid,
    /// 0 for a new session, else the one to join.
    pub tsih: u16,
    /// The target.
    pub target: Option<&'a IscsiName>,
    /// Target portal group tag.
    pub portal_group_tag: u16,
    /// Normal or discovery.
    pub kind: SessionType,
    /// What the connection runs over.
    pub transport: Transport,
    /// Who asks.
    pub place: Place,
}

/// What the registry says.
#[derive(Debug)]
pub enum Claimed {
    /// A new session is entered; the login becomes it.
    New(Arc<SessionFacts>),
    /// A session of that identity is there and has to end first; the registry notes who waits.
    Replaces(Arc<SessionFacts>),
    /// The connection joins this session.
    Joins(Arc<SessionFacts>),
}

/// The registry.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: BTreeMap<u16, Entry>,
    last_tsih: u16,
}

#[derive(Debug)]
struct Entry {
    facts: Arc<SessionFacts>,
    waiting: Vec<Place>,
}

impl Registry {
    /// Enters a login that is complete (RFC 7143 6.3.5).
    ///
    /// # Errors
    /// The session to join is not there, or a limit was reached.
    pub fn claim(&self, claim: &Claim<'_>, per_initiator: usize) -> Result<Claimed, Refusal> {
        let mut inner = lock(&self.inner);
        let same = |facts: &SessionFacts| {
            facts.initiator == *claim.initiator
                && facts.isid == claim.isid
                && facts.target.as_ref() == claim.target
                && facts.portal_group_tag == claim.portal_group_tag
        };
        if claim.tsih != 0 {
            let facts = inner
                .sessions
                .get(&claim.tsih)
                .map(|entry| &entry.facts)
                .filter(|facts| same(facts) && !facts.is_closing())
                .ok_or(Refusal::NoSession(claim.tsih))?;
            if (claim.transport, facts.transport) != (Transport::Tcp, Transport::Tcp) {
                let why = "only a session over TCP takes more connections, and over TCP only";
                return Err(Refusal::CannotInclude(why.to_owned()));
            }
            return Ok(Claimed::Joins(Arc::clone(facts)));
        }
        if claim.kind == SessionType::Normal
            && let Some(entry) = inner.sessions.values_mut().find(|entry| same(&entry.facts))
        {
            entry.waiting.push(claim.place);
            return Ok(Claimed::Replaces(Arc::clone(&entry.facts)));
        }
        let existing = inner
            .sessions
            .values()
            .filter(|entry| entry.facts.initiator == *claim.initiator)
            .count();
        if existing >= per_initiator {
            return Err(Refusal::OutOfResources(format!(
                "the initiator has {existing} sessions, as many as it may have"
            )));
        }
        let tsih = inner
            .free_tsih()
            .ok_or_else(|| Refusal::OutOfResources("no session handle is free".to_owned()))?;
        let facts = Arc::new(SessionFacts {
            tsih,
            initiator: claim.initiator.clone(),
            isid: claim.isid,
            target: claim.target.cloned(),
            portal_group_tag: claim.portal_group_tag,
            transport: claim.transport,
            since: SystemTime::now(),
            counters: Traffic::default(),
            place: Mutex::new(claim.place),
            closing: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        inner.last_tsih = tsih;
        inner.sessions.insert(tsih, Entry { facts: Arc::clone(&facts), waiting: Vec::new() });
        Ok(Claimed::New(facts))
    }

    /// Takes a session out that has ended. Gives who waits for that.
    pub fn release(&self, facts: &Arc<SessionFacts>) -> Vec<Place> {
        let mut inner = lock(&self.inner);
        match inner.sessions.get(&facts.tsih) {
            Some(entry) if Arc::ptr_eq(&entry.facts, facts) => {
                inner.sessions.remove(&facts.tsih).map_or_else(Vec::new, |entry| entry.waiting)
            }
            _ => Vec::new(),
        }
    }

    /// Every session, by handle.
    pub fn sessions(&self) -> Vec<Arc<SessionFacts>> {
        lock(&self.inner).sessions.values().map(|entry| Arc::clone(&entry.facts)).collect()
    }

    /// The session of a handle.
    pub fn session(&self, tsih: u16) -> Option<Arc<SessionFacts>> {
        lock(&self.inner).sessions.get(&tsih).map(|entry| Arc::clone(&entry.facts))
    }
}

impl Inner {
    /// The next handle, never 0; handles are not used again soon.
    fn free_tsih(&self) -> Option<u16> {
        let mut tsih = self.last_tsih;
        for _ in 0..u16::MAX {
            tsih = tsih.checked_add(1).unwrap_or(1);
            if !self.sessions.contains_key(&tsih) {
                return Some(tsih);
            }
        }
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> IscsiName {
        IscsiName::parse(name).unwrap()
    }

    fn claim<'a>(initiator: &'a IscsiName, target: &'a IscsiName, tsih: u16) -> Claim<'a> {
        Claim {
            initiator,
            isid: Isid([1; 6]),
            tsih,
            target: Some(target),
            portal_group_tag: 1,
            kind: SessionType::Normal,
            transport: Transport::Tcp,
            place: Place { reactor: 0, endpoint: EndpointId { index: 3, generation: 1 } },
        }
    }

    #[test]
    fn same_identity_again_waits_for_the_session_before_it() {
        let registry = Registry::default();
        let (initiator, target) =
            (name("iqn.2026-11.org.example:a"), name("iqn.2026-11.org.example:t"));
        let Ok(Claimed::New(first)) = registry.claim(&claim(&initiator, &target, 0), 8) else {
            panic!("a new identity was not new");
        };
        let again = registry.claim(&claim(&initiator, &target, 0), 8);
        assert!(matches!(&again, Ok(Claimed::Replaces(old)) if Arc::ptr_eq(old, &first)));
        assert_eq!(registry.release(&first).len(), 1);
        assert!(matches!(registry.claim(&claim(&initiator, &target, 0), 8), Ok(Claimed::New(_))));
    }

    #[test]
    fn handle_of_another_initiator_is_no_session() {
        let registry = Registry::default();
        let (initiator, other, target) = (
            name("iqn.2026-11.org.example:a"),
            name("iqn.2026-11.org.example:b"),
            name("iqn.2026-11.org.example:t"),
        );
        let Ok(Claimed::New(facts)) = registry.claim(&claim(&initiator, &target, 0), 8) else {
            panic!("a new identity was not new");
        };
        let joined = registry.claim(&claim(&initiator, &target, facts.tsih), 8);
        assert!(matches!(joined, Ok(Claimed::Joins(_))));
        let stolen = registry.claim(&claim(&other, &target, facts.tsih), 8);
        assert!(matches!(stolen, Err(Refusal::NoSession(_))));
    }

    #[test]
    fn connections_over_rdma_neither_join_nor_are_joined() {
        let registry = Registry::default();
        let (initiator, target) =
            (name("iqn.2026-11.org.example:a"), name("iqn.2026-11.org.example:t"));
        let over = |transport, tsih| Claim { transport, ..claim(&initiator, &target, tsih) };
        for (of_session, of_joining) in [
            (Transport::Rdma, Transport::Rdma),
            (Transport::Rdma, Transport::Tcp),
            (Transport::Tcp, Transport::Rdma),
        ] {
            let Ok(Claimed::New(facts)) = registry.claim(&over(of_session, 0), 8) else {
                panic!("a new identity was not new");
            };
            let joined = registry.claim(&over(of_joining, facts.tsih), 8);
            assert!(matches!(joined, Err(Refusal::CannotInclude(_))), "{joined:?}");
            registry.release(&facts);
        }
    }

    #[test]
    fn session_over_rdma_is_replaced_by_one_over_tcp() {
        let registry = Registry::default();
        let (initiator, target) =
            (name("iqn.2026-11.org.example:a"), name("iqn.2026-11.org.example:t"));
        let over = |transport| Claim { transport, ..claim(&initiator, &target, 0) };
        assert!(matches!(registry.claim(&over(Transport::Rdma), 8), Ok(Claimed::New(_))));
        let again = registry.claim(&over(Transport::Tcp), 8);
        assert!(matches!(again, Ok(Claimed::Replaces(_))), "{again:?}");
    }

    #[test]
    fn sessions_above_the_limit_of_an_initiator_are_refused() {
        let registry = Registry::default();
        let (initiator, target) =
            (name("iqn.2026-11.org.example:a"), name("iqn.2026-11.org.example:t"));
        let discovery = Claim { kind: SessionType::Discovery, ..claim(&initiator, &target, 0) };
        assert!(registry.claim(&discovery, 1).is_ok());
        assert!(matches!(registry.claim(&discovery, 1), Err(Refusal::OutOfResources(_))));
    }
}
