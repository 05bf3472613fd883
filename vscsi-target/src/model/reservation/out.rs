//! PERSISTENT RESERVE OUT (SPC-4 5.13.7 to 5.13.11, 6.16).

use super::{
    CONFLICT, Effects, NexusId, Persist, Persistent, Registration, ReservationType, Reservations,
    TransportId, bad_cdb, bad_parameter, byte,
};
use crate::{
    model::Attention,
    opcode::Fail,
    sense::{Sense, key},
};
use std::num::NonZeroU64;

impl Reservations {
    /// Processes a PERSISTENT RESERVE OUT command: the state it leads to, and what else has to
    /// happen. `self` stays as it is.
    ///
    /// `params` is the Data-Out received, `ports` the relative target port identifiers of the
    /// target's ports of the same protocol, for ALL_TG_PT and REGISTER AND MOVE.
    ///
    /// Conflicts while any nexus, even this one, holds the unit by RESERVE (SPC-2 5.5.1).
    pub fn prepare_out(
        &self,
        nexus: &NexusId,
        cdb: &[u8],
        params: &[u8],
        ports: &[u16],
    ) -> Result<(Self, Effects), Fail> {
        if self.legacy.is_some() {
            return Err(CONFLICT);
        }
        let request = Request::parse(cdb, params)?;
        let mut change =
            Change { state: self.clone(), effects: Effects::default(), nexus, ports, request };
        match request.action {
            Action::Register { ignore } => change.register(ignore)?,
            Action::RegisterAndMove => change.register_and_move()?,
            Action::ReplaceLost => return Err(INVALID_RELEASE),
            Action::Reserve => change.reserve()?,
            Action::Release => change.release()?,
            Action::Clear => change.clear()?,
            Action::Preempt { abort } => change.preempt(abort)?,
        }
        let Change { state, mut effects, .. } = change;
        effects.persist = match (self.aptpl, state.aptpl) {
            (_, true) if state != *self => Persist::Save,
            (true, false) => Persist::Remove,
            _ => Persist::Unchanged,
        };
        Ok((state, effects))
    }
}

/// The fields of either parameter list; which are valid depends on the service action.
#[derive(Clone, Copy)]
struct Request<'a> {
    action: Action,
    /// SCOPE and TYPE as sent: some service actions only compare them.
    scope_type: u8,
    key: u64,
    action_key: u64,
    list: &'a [u8],
}

#[derive(Clone, Copy)]
enum Action {
    Register { ignore: bool },
    RegisterAndMove,
    ReplaceLost,
    Reserve,
    Release,
    Clear,
    Preempt { abort: bool },
}

impl<'a> Request<'a> {
    /// Checks the lengths every service action shares. TransportIDs are looked at later, because a
    /// wrong reservation key is to be reported first (SPC-4 tables 67 and 70).
    fn parse(cdb: &[u8], params: &'a [u8]) -> Result<Self, Fail> {
        let action = match byte(cdb, 1) & 0x1F {
            0x00 => Action::Register { ignore: false },
            0x01 => Action::Reserve,
            0x02 => Action::Release,
            0x03 => Action::Clear,
            0x04 => Action::Preempt { abort: false },
            0x05 => Action::Preempt { abort: true },
            0x06 => Action::Register { ignore: true },
            0x07 => Action::RegisterAndMove,
            0x08 => Action::ReplaceLost,
            _ => return Err(bad_cdb(1, 4)),
        };
        let len = u32::from_be_bytes([byte(cdb, 5), byte(cdb, 6), byte(cdb, 7), byte(cdb, 8)]);
        let list = usize::try_from(len).ok().and_then(|len| params.get(..len));
        let list = list.ok_or(LIST_LENGTH)?;
        let (Some(key), Some(action_key), Some(&flags)) =
            (u64_at(list, 0), u64_at(list, 8), list.get(20))
        else {
            return Err(LIST_LENGTH);
        };
        if list.len() < BASIC_LEN {
            return Err(LIST_LENGTH);
        }
        let request = Self { action, scope_type: byte(cdb, 2), key, action_key, list };
        match action {
            Action::RegisterAndMove => {}
            Action::Register { ignore: false } if flags & SPEC_I_PT != 0 => {}
            _ if flags & SPEC_I_PT != 0 => return Err(bad_parameter(20, Some(3))),
            _ if list.len() != BASIC_LEN => return Err(LIST_LENGTH),
            _ => {}
        }
        Ok(request)
    }

    fn flag(&self, at: usize, bit: u8) -> bool {
        self.list.get(at).is_some_and(|b| b & bit != 0)
    }

    /// The type of the reservation to be made, for service actions that make one.
    fn reservation_type(&self) -> Result<ReservationType, Fail> {
        if self.scope_type >> 4 != LU_SCOPE {
            return Err(bad_cdb(2, 7));
        }
        ReservationType::from_code(self.scope_type & 0x0F).ok_or_else(|| bad_cdb(2, 3))
    }

    /// The TransportIDs that follow the basic list (SPC-4 table 215).
    fn transport_ids(&self) -> Result<Vec<TransportId>, Fail> {
        let total = u32_at(self.list, BASIC_LEN).ok_or(LIST_LENGTH)?;
        let rest = self.list.get(BASIC_LEN + 4..).unwrap_or_default();
        let mut rest =
            usize::try_from(total).ok().and_then(|total| rest.get(..total)).ok_or(LIST_LENGTH)?;
        let mut at = BASIC_LEN + 4;
        let mut ids = Vec::new();
        while !rest.is_empty() {
            let (id, used) = TransportId::parse(rest).map_err(|_| bad_parameter(at, None))?;
            ids.push(id);
            at += used;
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(ids)
    }

    /// The TransportID of a REGISTER AND MOVE list (SPC-4 table 217).
    fn destination(&self) -> Result<NexusId, Fail> {
        let len = u32_at(self.list, 20).and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or(LIST_LENGTH)?;
        if len < MIN_TRANSPORT_ID || len % 4 != 0 {
            return Err(bad_parameter(20, None));
        }
        let id = self.list.get(BASIC_LEN..).and_then(|rest| rest.get(..len));
        let (id, used) =
            TransportId::parse(id.ok_or(LIST_LENGTH)?).map_err(|_| bad_parameter(24, None))?;
        if used != len {
            return Err(bad_parameter(20, None));
        }
        let port = self.list.get(18..20).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
        Ok(NexusId::new(id, port))
    }
}

/// A state being changed by one command.
struct Change<'a> {
    state: Reservations,
    effects: Effects,
    nexus: &'a NexusId,
    ports: &'a [u16],
    request: Request<'a>,
}

impl Change<'_> {
    /// REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 tables 67, 68 and 69).
    fn register(&mut self, ignore: bool) -> Result<(), Fail> {
        let request = self.request;
        let own_key = self.state.key_of(self.nexus);
        if !ignore && request.key != own_key.map_or(0, NonZeroU64::get) {
            return Err(CONFLICT);
        }
        let named = request.flag(20, SPEC_I_PT);
        if own_key.is_some() && named {
            return Err(bad_parameter(20, Some(3)));
        }
        let new_key = NonZeroU64::new(request.action_key);
        let elsewhere = ignore && request.flag(20, ALL_TG_PT);
        if own_key.is_none() && new_key.is_none() && !elsewhere {
            return Ok(());
        }
        self.set_aptpl(request.flag(20, APTPL), 20)?;
        let others = if named { self.named_nexuses()? } else { Vec::new() };
        let ports = self.target_ports();
        for &port in &ports {
            let nexus = self.nexus.through(port);
            // Each port takes the request as if it had come through it; one that would have
            // answered RESERVATION CONFLICT is left as it is.
            let key = self.state.key_of(&nexus);
            if ignore || key == own_key {
                self.set_key(nexus, new_key)?;
            }
        }
        for id in others {
            for &port in &ports {
                self.set_key(NexusId::new(id.clone(), port), new_key)?;
            }
        }
        self.count();
        Ok(())
    }

    /// The initiator ports of SPEC_I_PT: none may be registered yet, none of another protocol.
    fn named_nexuses(&self) -> Result<Vec<TransportId>, Fail> {
        let mut ids = self.request.transport_ids()?;
        let protocol = self.nexus.transport_id.protocol();
        ids.retain(|id| *id != self.nexus.transport_id);
        let registered = |id: &TransportId| {
            self.target_ports()
                .iter()
                .any(|&port| self.state.key_of(&NexusId::new(id.clone(), port)).is_some())
        };
        if ids.iter().any(|id| id.protocol() != protocol || registered(id)) {
            return Err(bad_parameter(BASIC_LEN + 4, None));
        }
        Ok(ids)
    }

    /// The target ports a registration is for, the receiving one first.
    fn target_ports(&self) -> Vec<u16> {
        let own = self.nexus.relative_target_port;
        let mut ports = vec![own];
        if self.request.flag(20, ALL_TG_PT) {
            ports.extend(self.ports.iter().copied().filter(|&port| port != own));
        }
        ports
    }

    /// REGISTER AND MOVE (SPC-4 5.13.8).
    fn register_and_move(&mut self) -> Result<(), Fail> {
        self.check_key()?;
        let Some(reservation) = &self.state.persistent else {
            return Err(bad_cdb(1, 4));
        };
        let kind = reservation.kind;
        if kind.is_all_registrants() || !self.state.is_holder(self.nexus) {
            return Err(CONFLICT);
        }
        let key = NonZeroU64::new(self.request.action_key).ok_or_else(|| bad_parameter(8, None))?;
        let destination = self.request.destination()?;
        let id = &destination.transport_id;
        if *id == self.nexus.transport_id || id.protocol() != self.nexus.transport_id.protocol() {
            return Err(bad_parameter(24, None));
        }
        let port = destination.relative_target_port;
        if port != self.nexus.relative_target_port && !self.ports.contains(&port) {
            return Err(bad_parameter(18, None));
        }
        self.set_aptpl(self.request.flag(17, APTPL), 17)?;
        // Moved before the old holder is unregistered, or unregistering would release it; and
        // unregistered before the new one is added, so that a full table can still be moved in.
        self.state.persistent = Some(Persistent::new(kind, &destination));
        if self.request.flag(17, UNREG) {
            self.unregister(self.nexus);
        }
        self.set_key(destination, Some(key))?;
        self.count();
        Ok(())
    }

    /// RESERVE (SPC-4 5.13.9).
    fn reserve(&mut self) -> Result<(), Fail> {
        self.check_key()?;
        let kind = self.request.reservation_type()?;
        match &self.state.persistent {
            None => self.state.persistent = Some(Persistent::new(kind, self.nexus)),
            Some(held) if held.kind == kind && self.state.is_holder(self.nexus) => {}
            Some(_) => return Err(CONFLICT),
        }
        Ok(())
    }

    /// RELEASE (SPC-4 5.13.11.2.2).
    fn release(&mut self) -> Result<(), Fail> {
        self.check_key()?;
        let Some(kind) = self.state.reservation_type() else { return Ok(()) };
        if !self.state.is_holder(self.nexus) {
            return Ok(());
        }
        if self.request.scope_type != (LU_SCOPE << 4 | kind.code()) {
            return Err(INVALID_RELEASE);
        }
        self.state.persistent = None;
        if kind.frees_registrants() {
            self.tell_registrants(Attention::RESERVATIONS_RELEASED);
        }
        Ok(())
    }

    /// CLEAR (SPC-4 5.13.11.2.7).
    fn clear(&mut self) -> Result<(), Fail> {
        self.check_key()?;
        self.tell_registrants(Attention::RESERVATIONS_PREEMPTED);
        self.state.persistent = None;
        self.state.registrations.clear();
        self.count();
        Ok(())
    }

    /// PREEMPT and PREEMPT AND ABORT (SPC-4 table 72, 5.13.11.2.4 to 5.13.11.2.6).
    fn preempt(&mut self, abort: bool) -> Result<(), Fail> {
        self.check_key()?;
        let target = NonZeroU64::new(self.request.action_key);
        let replaces = match (&self.state.persistent, target) {
            (Some(Persistent { holder: None, .. }), None) => true,
            (Some(_), None) => return Err(bad_parameter(8, None)),
            (Some(Persistent { holder: Some(holder), .. }), Some(_)) => {
                self.state.key_of(holder) == target
            }
            (Some(Persistent { holder: None, .. }), Some(_)) | (None, _) => false,
        };
        // To replace an all registrants reservation is to name every registration.
        let named = |r: &Registration| target.map_or(replaces, |target| r.key == target);
        let victims: Vec<NexusId> =
            self.state.registrations.iter().filter(|r| named(r)).map(|r| r.nexus.clone()).collect();
        if victims.is_empty() {
            return Err(CONFLICT);
        }
        let kind = if replaces { Some(self.request.reservation_type()?) } else { None };
        let old_kind = self.state.reservation_type();

        for victim in victims.iter().filter(|victim| *victim != self.nexus) {
            self.effects.attentions.push((victim.clone(), Attention::REGISTRATIONS_PREEMPTED));
        }
        // A nexus that takes the reservation over keeps its registration even when it named itself.
        self.state
            .registrations
            .retain(|r| !victims.contains(&r.nexus) || (replaces && r.nexus == *self.nexus));
        if let Some(kind) = kind {
            self.state.persistent = Some(Persistent::new(kind, self.nexus));
            if old_kind != Some(kind) {
                self.tell_registrants(Attention::RESERVATIONS_RELEASED);
            }
        } else if self.state.registrations.is_empty() {
            self.state.persistent = None;
        }
        if abort {
            self.effects.abort = victims;
        }
        self.count();
        Ok(())
    }

    /// The sender must be registered, and know its key.
    fn check_key(&self) -> Result<(), Fail> {
        match self.state.key_of(self.nexus) {
            Some(key) if key.get() == self.request.key => Ok(()),
            _ => Err(CONFLICT),
        }
    }

    fn set_aptpl(&mut self, aptpl: bool, at: usize) -> Result<(), Fail> {
        if aptpl && !self.state.capabilities.persist_through_power_loss {
            return Err(bad_parameter(at, Some(0)));
        }
        self.state.aptpl = aptpl;
        Ok(())
    }

    /// Registers a nexus, changes its key, or unregisters it.
    fn set_key(&mut self, nexus: NexusId, key: Option<NonZeroU64>) -> Result<(), Fail> {
        let Some(key) = key else {
            self.unregister(&nexus);
            return Ok(());
        };
        if let Some(found) = self.state.registrations.iter_mut().find(|r| r.nexus == nexus) {
            found.key = key;
            return Ok(());
        }
        if self.state.registrations.len() >= self.state.capabilities.max_registrations {
            return Err(INSUFFICIENT_RESOURCES);
        }
        self.state.registrations.push(Registration { nexus, key });
        Ok(())
    }

    /// Removes a registration, and releases what depended on it (SPC-4 5.13.11.2.3).
    fn unregister(&mut self, nexus: &NexusId) {
        let held = self.state.is_holder(nexus);
        self.state.registrations.retain(|r| r.nexus != *nexus);
        let Some(kind) = self.state.reservation_type() else { return };
        if !held || (kind.is_all_registrants() && !self.state.registrations.is_empty()) {
            return;
        }
        self.state.persistent = None;
        if kind.frees_registrants() {
            self.tell_registrants(Attention::RESERVATIONS_RELEASED);
        }
    }

    fn tell_registrants(&mut self, attention: Attention) {
        let others = self.state.registrations.iter().map(|r| &r.nexus).filter(|n| *n != self.nexus);
        self.effects.attentions.extend(others.map(|n| (n.clone(), attention)));
    }

    fn count(&mut self) {
        self.state.generation = self.state.generation.wrapping_add(1);
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

const LIST_LENGTH: Fail = Fail::Check(Sense::PARAMETER_LIST_LENGTH);
/// INVALID RELEASE OF PERSISTENT RESERVATION.
const INVALID_RELEASE: Fail = Fail::Check(Sense::new(key::ILLEGAL_REQUEST, 0x26, 0x04));
/// INSUFFICIENT REGISTRATION RESOURCES.
const INSUFFICIENT_RESOURCES: Fail = Fail::Check(Sense::new(key::ILLEGAL_REQUEST, 0x55, 0x04));

const BASIC_LEN: usize = 24;
const MIN_TRANSPORT_ID: usize = 24;
const LU_SCOPE: u8 = 0;

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const UNREG: u8 = 0x02;
const APTPL: u8 = 0x01;
