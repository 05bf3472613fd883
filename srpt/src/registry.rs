//! Every I_T nexus there is with its channels, for login, logout and the control socket; never used
//! for I/O.
//!
//! A nexus belongs to its channels together, on whichever reactors they are: the first makes it, the
//! last one to go ends it. A login that wants to be the only one waits here until the channels
//! before it, and their nexus, are gone.

use crate::{functions::Functions, login::Refusal};
use libsrp::login::{MultiChannelAction, MultiChannelResult, PortId};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};
use vscsi_target::{model::Nexus, reactor::EndpointId, traffic::Traffic};

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its reactor.
    pub reactor: u16,
    /// The endpoint there.
    pub endpoint: EndpointId,
}

/// What names an I_T nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NexusKey {
    initiator: [u8; 16],
    target: [u8; 16],
}

impl NexusKey {
    /// The nexus between these ports.
    pub const fn new(initiator: PortId, target: PortId) -> Self {
        Self { initiator: initiator.0, target: target.0 }
    }
}

/// What is known of a nexus: to SRP, a session.
#[derive(Debug)]
pub struct SessionFacts {
    /// Names it for the control socket; not used again.
    pub id: u32,
    /// The initiator port, with the identifier extension first.
    pub initiator: PortId,
    /// The target's name.
    pub target: String,
    /// When its first channel logged in.
    pub since: SystemTime,
    /// What ended commands of it.
    pub functions: Functions,
    key: NexusKey,
    channels: Mutex<Vec<Arc<ChannelFacts>>>,
    /// Counts channels up, for their numbers.
    next: AtomicU32,
}

impl SessionFacts {
    /// Its channels now.
    pub fn channels(&self) -> Vec<Arc<ChannelFacts>> {
        lock(&self.channels).clone()
    }
}

/// What is known of a channel.
#[derive(Debug)]
pub struct ChannelFacts {
    /// Its number in the session, from 0; not used again.
    pub number: u32,
    /// Where it is.
    pub place: Place,
    /// The peer.
    pub peer: SocketAddr,
    /// What it did so far.
    pub counters: Traffic,
}

/// What a login that may come in asks the registry.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The I_T nexus, by the identifiers as they came.
    pub key: NexusKey,
    /// The initiator port, with the identifier extension first.
    pub initiator: PortId,
    /// The target's name.
    pub target: &'a str,
    /// What is to become of other channels of the nexus.
    pub action: MultiChannelAction,
    /// Who asks.
    pub place: Place,
    /// The peer.
    pub peer: SocketAddr,
    /// Whether the channels before it were ended for this login already.
    pub terminated: bool,
}

/// A place in the registry: a channel of a nexus.
#[derive(Debug)]
pub struct Member {
    /// The session.
    pub session: Arc<SessionFacts>,
    /// The channel.
    pub channel: Arc<ChannelFacts>,
    /// The nexus they share.
    pub nexus: Arc<Nexus>,
    /// What the initiator is told of other channels.
    pub result: MultiChannelResult,
}

/// What the registry says.
#[derive(Debug)]
pub enum Claimed {
    /// The channel is entered.
    In(Member),
    /// These channels, perhaps none any more, have to end first; the registry notes who waits.
    Waits(Vec<Place>),
}

/// What is left of a nexus when a channel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Other channels.
    Others,
    /// Nothing: end its tasks, then [`Registry::release`] it.
    Nothing,
}

/// How many channels there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Of one nexus.
    pub of_nexus: usize,
    /// Of all.
    pub of_all: usize,
}

/// The registry.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    nexuses: BTreeMap<NexusKey, Entry>,
    last_id: u32,
}

#[derive(Debug)]
struct Entry {
    facts: Arc<SessionFacts>,
    nexus: Arc<Nexus>,
    waiting: Vec<Place>,
    /// Its last channel is gone, or all of them were told to go.
    ending: bool,
}

impl Registry {
    /// Enters a channel. `establish` makes the nexus if this is its first.
    ///
    /// # Errors
    /// There are as many channels as there may be, or the nexus cannot be made.
    pub fn claim(
        &self,
        claim: &Claim<'_>,
        most: Most,
        establish: impl FnOnce() -> Result<Arc<Nexus>, Refusal>,
    ) -> Result<Claimed, Refusal> {
        let mut inner = lock(&self.inner);
        let all: usize =
            inner.nexuses.values().map(|entry| lock(&entry.facts.channels).len()).sum();
        let joins = claim.action == MultiChannelAction::Multi;
        let mut result = MultiChannelResult::NoOthers;
        if claim.terminated {
            result = MultiChannelResult::Terminated;
        }
        if let Some(entry) = inner.nexuses.get_mut(&claim.key) {
            if entry.ending || !joins {
                entry.waiting.push(claim.place);
                entry.ending = true;
                return Ok(Claimed::Waits(places(&entry.facts)));
            }
            let count = lock(&entry.facts.channels).len();
            if count >= most.of_nexus {
                return Err(Refusal::ChannelLimit(count));
            }
            result = MultiChannelResult::Maintained;
        }
        if all >= most.of_all {
            return Err(Refusal::Resources(format!("there are {all} channels already")));
        }
        if !inner.nexuses.contains_key(&claim.key) {
            let nexus = establish()?;
            inner.last_id = inner.last_id.wrapping_add(1);
            let facts = Arc::new(SessionFacts {
                id: inner.last_id,
                initiator: claim.initiator,
                target: claim.target.to_owned(),
                since: SystemTime::now(),
                functions: Functions::default(),
                key: claim.key,
                channels: Mutex::default(),
                next: AtomicU32::new(0),
            });
            let entry = Entry { facts, nexus, waiting: Vec::new(), ending: false };
            inner.nexuses.insert(claim.key, entry);
        }
        let Some(entry) = inner.nexuses.get(&claim.key) else {
            return Err(Refusal::Resources("the nexus is gone".to_owned()));
        };
        let channel = Arc::new(ChannelFacts {
            number: entry.facts.next.fetch_add(1, Ordering::Relaxed),
            place: claim.place,
            peer: claim.peer,
            counters: Traffic::default(),
        });
        lock(&entry.facts.channels).push(Arc::clone(&channel));
        Ok(Claimed::In(Member {
            session: Arc::clone(&entry.facts),
            channel,
            nexus: Arc::clone(&entry.nexus),
            result,
        }))
    }

    /// A channel has ended.
    pub fn leave(&self, session: &SessionFacts, channel: &Arc<ChannelFacts>) -> Left {
        let mut inner = lock(&self.inner);
        let mut channels = lock(&session.channels);
        channels.retain(|other| !Arc::ptr_eq(other, channel));
        if !channels.is_empty() {
            return Left::Others;
        }
        if let Some(entry) = inner.nexuses.get_mut(&session.key) {
            entry.ending = true;
        }
        Left::Nothing
    }

    /// Takes a nexus out that has no channels and no tasks any more. Gives who waits for that; the
    /// nexus is lost once the caller has dropped its own part in it, too.
    pub fn release(&self, session: &Arc<SessionFacts>) -> Vec<Place> {
        let entry = {
            let mut inner = lock(&self.inner);
            match inner.nexuses.get(&session.key) {
                Some(entry) if Arc::ptr_eq(&entry.facts, session) => {
                    inner.nexuses.remove(&session.key)
                }
                _ => None,
            }
        };
        // Dropping the nexus takes locks of its logical units: not under this one.
        entry.map_or_else(Vec::new, |entry| {
            drop(entry.nexus);
            entry.waiting
        })
    }

    /// A login does not wait any more.
    pub fn give_up(&self, key: NexusKey, place: Place) {
        if let Some(entry) = lock(&self.inner).nexuses.get_mut(&key) {
            entry.waiting.retain(|other| *other != place);
        }
    }

    /// Every session.
    pub fn sessions(&self) -> Vec<Arc<SessionFacts>> {
        let mut all: Vec<_> =
            lock(&self.inner).nexuses.values().map(|entry| Arc::clone(&entry.facts)).collect();
        all.sort_by_key(|facts| facts.id);
        all
    }

    /// The session of that number.
    pub fn session(&self, id: u32) -> Option<Arc<SessionFacts>> {
        self.sessions().into_iter().find(|facts| facts.id == id)
    }
}

fn places(facts: &SessionFacts) -> Vec<Place> {
    lock(&facts.channels).iter().map(|channel| channel.place).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vscsi_target::model::{
        Target,
        reservation::{NexusId, TransportId},
    };

    const MOST: Most = Most { of_nexus: 3, of_all: 4 };

    fn claim(initiator: u64, endpoint: u32, action: MultiChannelAction) -> Claim<'static> {
        let port = PortId::new(0, initiator);
        Claim {
            key: NexusKey::new(port, PortId::new(2, 2)),
            initiator: port,
            target: "t",
            action,
            place: Place { reactor: 0, endpoint: EndpointId { index: endpoint, generation: 0 } },
            peer: ([192, 0, 2, 7], 4).into(),
            terminated: false,
        }
    }

    fn nexus() -> Result<Arc<Nexus>, Refusal> {
        let target = Target::new("t".to_owned());
        let identity = NexusId::new(TransportId::srp([1; 16]), 1);
        Ok(Nexus::establish(target, 1, identity, "i".to_owned()))
    }

    fn enter(registry: &Registry, claim: &Claim<'_>) -> Member {
        match registry.claim(claim, MOST, nexus) {
            Ok(Claimed::In(member)) => member,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn channels_of_a_nexus_share_it() {
        let registry = Registry::default();
        let first = enter(&registry, &claim(1, 0, MultiChannelAction::Single));
        let second = enter(&registry, &claim(1, 1, MultiChannelAction::Multi));
        assert_eq!(first.result, MultiChannelResult::NoOthers);
        assert_eq!(second.result, MultiChannelResult::Maintained);
        assert!(Arc::ptr_eq(&first.nexus, &second.nexus));
        assert_eq!((first.channel.number, second.channel.number), (0, 1));
        assert_eq!(registry.leave(&first.session, &first.channel), Left::Others);
        assert_eq!(registry.leave(&second.session, &second.channel), Left::Nothing);
        assert!(registry.release(&first.session).is_empty());
        assert!(registry.sessions().is_empty());
        assert_eq!(Arc::strong_count(&first.nexus), 2);
    }

    #[test]
    fn single_login_waits_until_the_nexus_before_it_is_gone() {
        let registry = Registry::default();
        let old = enter(&registry, &claim(1, 0, MultiChannelAction::Single));
        let mut again = claim(1, 1, MultiChannelAction::Single);
        let Ok(Claimed::Waits(ends)) = registry.claim(&again, MOST, nexus) else { panic!() };
        assert_eq!(ends, [old.channel.place]);
        // Who comes meanwhile waits as well, and does not join what is ending.
        let multi = claim(1, 2, MultiChannelAction::Multi);
        assert!(matches!(registry.claim(&multi, MOST, nexus), Ok(Claimed::Waits(_))));
        assert_eq!(registry.leave(&old.session, &old.channel), Left::Nothing);
        assert_eq!(registry.release(&old.session), [again.place, multi.place]);
        again.terminated = true;
        let new = enter(&registry, &again);
        assert_eq!(new.result, MultiChannelResult::Terminated);
        assert!(!Arc::ptr_eq(&new.nexus, &old.nexus));
        assert_ne!(new.session.id, old.session.id);
        assert_eq!(enter(&registry, &multi).result, MultiChannelResult::Maintained);
    }

    #[test]
    fn login_that_gave_up_is_not_told() {
        let registry = Registry::default();
        let old = enter(&registry, &claim(1, 0, MultiChannelAction::Single));
        let again = claim(1, 1, MultiChannelAction::Single);
        assert!(matches!(registry.claim(&again, MOST, nexus), Ok(Claimed::Waits(_))));
        registry.give_up(again.key, again.place);
        assert_eq!(registry.leave(&old.session, &old.channel), Left::Nothing);
        assert!(registry.release(&old.session).is_empty());
    }

    #[test]
    fn channels_above_the_limits_are_refused() {
        let registry = Registry::default();
        for endpoint in 0..3 {
            enter(&registry, &claim(1, endpoint, MultiChannelAction::Multi));
        }
        let fourth = registry.claim(&claim(1, 3, MultiChannelAction::Multi), MOST, nexus);
        assert_eq!(fourth.unwrap_err(), Refusal::ChannelLimit(3));
        enter(&registry, &claim(2, 4, MultiChannelAction::Single));
        let fifth = registry.claim(&claim(3, 5, MultiChannelAction::Single), MOST, nexus);
        assert!(matches!(fifth, Err(Refusal::Resources(_))));
    }

    #[test]
    fn initiators_do_not_end_each_other() {
        let registry = Registry::default();
        let one = enter(&registry, &claim(1, 0, MultiChannelAction::Single));
        let two = enter(&registry, &claim(2, 1, MultiChannelAction::Single));
        assert!(!Arc::ptr_eq(&one.nexus, &two.nexus));
        assert_eq!(registry.sessions().len(), 2);
        assert_eq!(registry.session(two.session.id).unwrap().initiator, PortId::new(0, 2));
    }
}
