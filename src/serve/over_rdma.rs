//! iSER and SRP: their listeners, and what SRP shares.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use iscsi::shared::Shared;
use iser::portal::IserOptions;
use rdma::ListenError;
use srpt::{
    names::{InitiatorName, TargetPortId},
    registry::SessionFacts,
    shared::{Access, Allow, Limits},
};
use vscsi_target::{model::Model, reactor::Inbox, traffic::Traffic};

use super::{
    Portal, StartError,
    fabric::{AnyEndpoint, AnySeed, Reactors},
};
use crate::{
    config::{
        Config, WriteAddress,
        srp::{SrpAllow, SrpInitiator},
    },
    control::api::{SrpChannel, SrpSession},
    report::{Exit, Report},
};

/// Addresses at which nobody is accepted yet.
#[derive(Debug)]
pub struct Opened {
    iser: Vec<iser::portal::Bound>,
    srp: Vec<srpt::portal::Bound>,
}

/// Binds what the configuration says.
pub fn open(config: &Config) -> Result<Opened, StartError> {
    let mut opened = Opened { iser: Vec::new(), srp: Vec::new() };
    for group in &config.portal_groups {
        let options = IserOptions {
            strict: group.write_address == WriteAddress::Whole,
            shared_receives: config.shared_receives,
        };
        for &address in &group.iser {
            opened.iser.push(iser::portal::Bound::new(address, group.tag, options)?);
        }
    }
    for &address in &config.srp.listen {
        opened.srp.push(srpt::portal::Bound::new(address)?);
    }
    Ok(opened)
}

/// What RDMA's listeners say when they cannot be bound.
pub fn report(error: &ListenError) -> Report {
    let exit = match error.reason.kind() {
        std::io::ErrorKind::AddrInUse => Exit::Retry,
        std::io::ErrorKind::PermissionDenied => Exit::Permission,
        _ => Exit::Unavailable,
    };
    Report::new(exit, "rdma-portal", error.to_string()).fix(error.fix())
}

impl Opened {
    /// Accepts from now on; the reactors run.
    pub fn serve(
        self,
        config: &Config,
        model: &Arc<Model>,
        shared: &Arc<Shared>,
        router: &Arc<Reactors>,
        inboxes: &[Arc<Inbox<AnyEndpoint>>],
    ) -> OverRdma {
        let mut portals = Vec::new();
        let mut seeds = Vec::new();
        for bound in self.iser {
            let (address, tag) = (bound.portal.address, bound.portal.tag);
            portals.push(Portal { address, tag, transport: bound.portal.transport });
            let router = Arc::clone(router);
            seeds.push(AnySeed::Iser(bound.seed(Arc::clone(shared), router)));
        }
        let srp = srpt::shared::Shared::new(
            Arc::clone(model),
            Arc::clone(router) as _,
            Limits {
                stop: super::GRACE,
                shared_receives: config.shared_receives,
                ..Limits::default()
            },
        );
        for port in &config.srp.ports {
            let id = TargetPortId { id_ext: port.name.id_ext, ioc_guid: port.name.ioc_guid };
            srp.set_access(port.target.as_str(), Access { allow: allow(&port.allow), port: id });
        }
        let listen = self.srp.iter().map(|bound| bound.portal.address).collect();
        seeds.extend(self.srp.into_iter().map(|bound| AnySeed::Srp(bound.seed(Arc::clone(&srp)))));
        // From the last reactor on: those of TCP begin with the first.
        for (seed, inbox) in seeds.into_iter().zip(inboxes.iter().rev().cycle()) {
            inbox.open(seed);
        }
        OverRdma { portals, listen, srp }
    }
}

/// What is served over RDMA.
#[derive(Debug)]
pub struct OverRdma {
    /// Portals of iSER.
    pub portals: Vec<Portal>,
    /// Where SRP listens.
    pub listen: Vec<SocketAddr>,
    srp: Arc<srpt::shared::Shared>,
}

impl OverRdma {
    /// SRP's sessions now.
    pub fn srp_sessions(&self) -> Vec<SrpSession> {
        self.srp.sessions().iter().map(|facts| session(facts)).collect()
    }

    /// Ends an SRP session: false when there is none of that number.
    pub fn kick(&self, id: u32) -> bool {
        self.srp.kick(id)
    }

    /// Makes SRP's channels look at the LUN map. iSER's sessions are among those of iSCSI.
    pub fn refresh(&self) {
        self.srp.refresh();
    }

    /// Logs SRP's channels out. iSER's sessions are among those of iSCSI.
    pub fn stop(&self, grace: Duration) {
        self.srp.stop(grace);
    }
}

fn allow(allow: &SrpAllow) -> Allow {
    let SrpAllow::Only(list) = allow else { return Allow::Any };
    let name = |initiator: &SrpInitiator| match *initiator {
        SrpInitiator::Port(port) => {
            let (id_ext, guid) = ((port >> 64) as u64, port as u64);
            InitiatorName::Port(libsrp::login::PortId::new(id_ext, guid))
        }
        SrpInitiator::Guid(guid) => InitiatorName::Guid(guid),
        SrpInitiator::Address(address) => InitiatorName::Address(address),
    };
    Allow::Only(list.iter().map(name).collect())
}

fn session(facts: &SessionFacts) -> SrpSession {
    let channels = facts.channels();
    let sum = |counter: fn(&Traffic) -> u64| {
        channels.iter().map(|channel| counter(&channel.counters)).sum()
    };
    SrpSession {
        id: facts.id,
        initiator: srpt::names::initiator_name(facts.initiator),
        target: facts.target.clone(),
        age_seconds: facts.since.elapsed().map_or(0, |age| age.as_secs()),
        commands: sum(|counters| counters.commands()),
        read_bytes: sum(|counters| counters.read_bytes()),
        written_bytes: sum(|counters| counters.written_bytes()),
        refused: sum(|counters| counters.rejected()),
        channels: channels
            .iter()
            .map(|channel| SrpChannel {
                number: channel.number,
                peer: channel.peer.to_string(),
                reactor: channel.place.reactor,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::srp::PortName;
    use iscsi::names::IscsiName;

    #[test]
    fn initiators_keep_their_identifiers() {
        let text = "0x0123456789abcdeffe80000000000001";
        let list = SrpAllow::Only(vec![SrpInitiator::parse(text).unwrap()]);
        assert_eq!(allow(&list), Allow::Only(vec![text.parse().unwrap()]));
    }

    #[test]
    fn a_port_without_a_name_has_the_one_that_srp_derives() {
        let target = IscsiName::parse("iqn.2026-11.org.x:a").unwrap();
        let name = PortName::of_target(&target);
        let derived = TargetPortId::derive(target.as_str());
        assert_eq!((name.id_ext, name.ioc_guid), (derived.id_ext, derived.ioc_guid));
    }
}
