//! A request for a connection with a login in it: refused, or a channel, or in wait for the channels
//! before it to end.

use crate::{
    conn::{Beginning, Conn},
    endpoint::{Endpoint, Note},
    link::RdmaLink,
    login::{self, Manager, Refusal, rejection},
    names::initiator_name,
    portal::HalfOpen,
    registry::{Claim, Claimed, NexusKey, Place},
    shared::{Admission, Shared},
};
use libsrp::{
    channel::ChannelParameters,
    login::{LoginReq, MultiChannelAction, PortId},
};
use rdma::Request;
use std::sync::Arc;
use vscsi_target::{
    model::{
        Nexus,
        reservation::{NexusId, TransportId},
    },
    reactor::Cx,
};

/// A request for a connection, just come.
#[derive(Debug)]
pub struct Arrival {
    /// What all endpoints share.
    pub shared: Arc<Shared>,
    /// The request.
    pub request: Request,
    /// Its place among the connections that are not established.
    pub slot: HalfOpen,
}

/// A login that may come in.
#[derive(Debug)]
pub struct Applicant {
    shared: Arc<Shared>,
    /// The request and its place; gone once it was answered.
    pending: Option<(Request, HalfOpen)>,
    login: LoginReq,
    agreed: ChannelParameters,
    admission: Admission,
    key: NexusKey,
    /// Channels before it were ended for it.
    terminated: bool,
    deadline: u64,
}

/// What becomes of the endpoint.
#[derive(Debug)]
pub enum Turn {
    /// It stays.
    Stay,
    /// It is a channel from now on.
    Become(Box<Conn<RdmaLink>>),
    /// It is over.
    Close,
}

impl Applicant {
    /// Reads a login and answers it, or has it wait.
    pub fn open(arrival: Arrival, cx: &mut Cx<'_>) -> Option<Endpoint> {
        let Arrival { shared, request, slot } = arrival;
        // librdmacm tells of connections by RDMA/CM only.
        let login = match login::parse(request.private_data(), Manager::Rdma) {
            Ok(login) => login,
            Err(refusal) => {
                shared.log_refused(&refusal, None, request.peer());
                request.reject(&rejection(None, &refusal));
                return None;
            }
        };
        let admitted = shared
            .admit(&login, request.peer().ip())
            .and_then(|admission| Ok((admission, shared.offer().agree(&login)?)));
        let (admission, agreed) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                refuse(&shared, request, &login, &refusal, None);
                return None;
            }
        };
        let deadline = cx.now + shared.limits.login.as_nanos() as u64;
        let mut applicant = Box::new(Self {
            shared,
            pending: Some((request, slot)),
            key: NexusKey::new(login.initiator_port, login.target_port),
            login,
            agreed,
            admission,
            terminated: false,
            deadline,
        });
        match applicant.claim(cx) {
            Turn::Stay => {
                cx.wake_at(deadline);
                applicant.shared.enter(place(cx));
                Some(Endpoint::Login(applicant))
            }
            Turn::Become(conn) => Some(Endpoint::Channel(conn)),
            Turn::Close => None,
        }
    }

    /// The nexus it waited for has ended.
    pub fn released(&mut self, cx: &mut Cx<'_>) -> Turn {
        let turn = self.claim(cx);
        if !matches!(turn, Turn::Stay) {
            cx.wake_at(u64::MAX);
        }
        // A channel is entered under the same place.
        if matches!(turn, Turn::Close) {
            self.shared.leave(place(cx));
        }
        turn
    }

    /// What it waited for took too long.
    pub fn expired(&mut self, cx: &mut Cx<'_>) -> Turn {
        if cx.now < self.deadline {
            cx.wake_at(self.deadline);
            return Turn::Stay;
        }
        self.give_up("the channels before it do not end", cx)
    }

    /// The target stops.
    pub fn stop(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.give_up("the target is stopping", cx)
    }

    fn give_up(&mut self, why: &str, cx: &mut Cx<'_>) -> Turn {
        self.shared.registry.give_up(self.key, place(cx));
        self.shared.leave(place(cx));
        self.refuse(&Refusal::Resources(why.to_owned()))
    }

    fn refuse(&mut self, refusal: &Refusal) -> Turn {
        if let Some((request, _)) = self.pending.take() {
            let initiator = Some(self.admission.initiator);
            refuse(&self.shared, request, &self.login, refusal, initiator);
        }
        Turn::Close
    }

    /// Asks the registry for a place.
    fn claim(&mut self, cx: &mut Cx<'_>) -> Turn {
        let Some((request, _)) = &self.pending else { return Turn::Close };
        let claim = Claim {
            key: self.key,
            initiator: self.admission.initiator,
            target: &self.admission.target,
            action: self.login.action,
            place: place(cx),
            peer: request.peer(),
            terminated: self.terminated,
        };
        let most = self.shared.most();
        let claimed = self.shared.registry.claim(&claim, most, || self.establish());
        let member = match claimed {
            Ok(Claimed::In(member)) => member,
            Ok(Claimed::Waits(channels)) => {
                self.terminated = self.login.action == MultiChannelAction::Single;
                for place in channels {
                    self.shared.router.note(place, Note::Replaced);
                }
                return Turn::Stay;
            }
            Err(refusal) => return self.refuse(&refusal),
        };
        let Some((request, slot)) = self.pending.take() else { return Turn::Close };
        let shared = Arc::clone(&self.shared);
        let (login, agreed) = (self.login, self.agreed);
        let beginning = Beginning { shared, request, slot, login, agreed, member };
        match Conn::begin(beginning, cx) {
            Some(conn) => Turn::Become(conn),
            None => Turn::Close,
        }
    }

    /// The I_T nexus, for its first channel.
    fn establish(&self) -> Result<Arc<Nexus>, Refusal> {
        let Admission { target, port, initiator } = &self.admission;
        let gone = |_| Refusal::NoTarget(self.login.target_port);
        let target = self.shared.model.target(target).map_err(gone)?;
        let name = port.scsi_name();
        let port = target.ports().into_iter().find(|port| port.name == name);
        let Some(port) = port.map(|port| port.relative_id) else {
            return Err(Refusal::Resources(format!("{} has no port {name}", target.name)));
        };
        let identity = NexusId::new(TransportId::srp(initiator.0), port);
        Ok(Nexus::establish(target, port, identity, initiator_name(*initiator)))
    }
}

fn refuse(
    shared: &Shared,
    request: Request,
    login: &LoginReq,
    refusal: &Refusal,
    initiator: Option<PortId>,
) {
    let initiator = initiator.unwrap_or(login.initiator_port);
    shared.log_refused(refusal, Some(initiator), request.peer());
    request.reject(&rejection(Some(login), refusal));
}

fn place(cx: &Cx<'_>) -> Place {
    Place { reactor: cx.reactor, endpoint: cx.me }
}
