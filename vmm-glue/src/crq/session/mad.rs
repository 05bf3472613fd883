//! Management datagrams, and what the server reports in buffers that a client gave it by one.

use libsrp::{
    Lun, Tag,
    aer::AerReq,
    viosrp::{
        adapter_info::AdapterInfo,
        capabilities::{Capabilities, CapabilityFlags, CapabilityKind, Support},
        crq::{ElementStatus, Format, Message},
        error_log::ErrorLog,
        mad::{Mad, MadBody, MadError, MadStatus},
        padded,
        physical_adapter::PhysicalAdapterInfo,
        unpadded,
    },
};
use vscsi_target::model::Attention;

use super::{Reply, Session, State, Step, Violation, answer, fail};

/// A datagram whose payload is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    mad: Mad,
    format: Format,
    /// Where the payload is.
    pub buffer: u64,
    /// Bytes of it to read.
    pub len: u32,
}

/// A datagram that is kept: a buffer for a unit of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parked {
    mad: Mad,
    format: Format,
    /// Where the datagram is.
    header: u64,
    /// Where the unit goes.
    buffer: u64,
}

/// A unit of the server: write the first `len` bytes of the buffer for units to `buffer`, then
/// `datagram` to `header`, then put the element into the client's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Aer {
    /// Where the unit goes.
    pub buffer: u64,
    /// Its bytes.
    pub len: usize,
    /// Where the datagram is that gave the buffer.
    pub header: u64,
    /// What it becomes.
    pub datagram: [u8; Mad::HEADER_LEN],
    /// Its answer.
    pub element: [u8; 16],
}

impl Session {
    /// Takes a datagram.
    pub(super) fn datagram(
        &mut self,
        message: &Message,
        bytes: &[u8],
        out: &mut [u8],
    ) -> Step<'static> {
        let format = message.format;
        let mad = match Mad::parse(bytes) {
            Ok(mad) => mad,
            Err(MadError::Header(error)) => return Step::Violated(Violation::Datagram(error)),
            Err(MadError::Body { kind, tag, .. }) => {
                let body = MadBody::Unknown(kind);
                let mad = Mad { tag, status: MadStatus::Success, len: 0, body };
                return Step::Reply(reply(&mad, format, MadStatus::Failed, out));
            }
        };
        let status = match mad.body {
            MadBody::AdapterInfo { buffer }
            | MadBody::Capabilities { buffer }
            | MadBody::PhysicalAdapterInfo { buffer }
            | MadBody::ErrorLog { buffer } => match readable(&mad) {
                Some(len) => return Step::Payload(Payload { mad, format, buffer, len }),
                None => MadStatus::Failed,
            },
            MadBody::EnableFastFail if self.state == State::LoggedIn => MadStatus::Failed,
            MadBody::EnableFastFail => {
                self.fast_fail = true;
                MadStatus::Success
            }
            MadBody::EmptyIu { buffer, .. } => {
                // Some do not say how long the buffer is: then it takes any unit.
                let has_room = mad.len == 0 || usize::from(mad.len) >= LONGEST_AER;
                if has_room && self.parked.len() < MOST_PARKED {
                    let header = message.address();
                    self.parked.push_back(Parked { mad, format, header, buffer });
                    return Step::Nothing;
                }
                MadStatus::Failed
            }
            MadBody::HostConfig { .. } | MadBody::TapePassthrough { .. } | MadBody::Unknown(_) => {
                MadStatus::NotSupported
            }
        };
        Step::Reply(reply(&mad, format, status, out))
    }

    /// Carries a datagram out whose payload was read, `None` if it could not be. What is in `write`
    /// afterwards goes where the payload was, before the answer; if that fails, the answer is
    /// [`Session::payload_failed`] instead.
    pub fn payload(
        &mut self,
        payload: &Payload,
        read: Option<&[u8]>,
        write: &mut Vec<u8>,
        out: &mut [u8],
    ) -> Reply {
        write.clear();
        let Payload { mad, format, .. } = payload;
        let done = read.and_then(|read| match mad.body {
            MadBody::AdapterInfo { .. } => self.adapter_info(read, write),
            MadBody::Capabilities { .. } => self.capabilities(read, write),
            MadBody::PhysicalAdapterInfo { .. } => self.physical_adapter(read, write),
            MadBody::ErrorLog { .. } => self.error_log(read),
            _ => None,
        });
        let status = if done.is_some() { MadStatus::Success } else { MadStatus::Failed };
        if done.is_none() {
            write.clear();
        }
        // What is written is never longer than what was read.
        write.truncate(payload.len as usize);
        reply(mad, *format, status, out)
    }

    /// The answer to a datagram whose payload could not be written.
    pub fn payload_failed(&self, payload: &Payload, out: &mut [u8]) -> Reply {
        reply(&payload.mad, payload.format, MadStatus::Failed, out)
    }

    fn adapter_info(&self, read: &[u8], write: &mut Vec<u8>) -> Option<()> {
        if let Ok(client) = AdapterInfo::parse(read) {
            // A client can send as many as it likes.
            tracing::debug!(
                adapter = self.config.name,
                partition = %String::from_utf8_lossy(unpadded(&client.partition_name)),
                number = client.partition_number,
                os = ?client.os_type,
                "a partition introduces itself"
            );
        }
        let config = &self.config;
        let info = AdapterInfo {
            srp_version: AdapterInfo::SRP_VERSION,
            partition_name: padded(&config.partition_name),
            partition_number: config.partition_number,
            mad_version: AdapterInfo::MAD_VERSION,
            os_type: config.os_type,
            max_transfer: [config.max_transfer, 0, 0, 0, 0, 0, 0, 0],
        };
        write.resize(AdapterInfo::LEN, 0);
        info.emit(write).ok().map(|_| ())
    }

    fn capabilities(&self, read: &[u8], write: &mut Vec<u8>) -> Option<()> {
        let asked = Capabilities::parse(read).ok()?;
        if asked.flags.contains(CapabilityFlags::MIGRATED) {
            tracing::debug!(adapter = self.config.name, "the partition was migrated");
        }
        let mut answered = asked;
        answered.flags = CapabilityFlags(asked.flags.0 & CapabilityFlags::LIST_SUPPORTED.0);
        answered.name = padded(&self.config.name);
        answered.location = padded(&self.config.location);
        write.resize(read.len(), 0);
        let supports = |kind| match kind {
            CapabilityKind::Migration => self.config.migration,
            // RESERVE(6) and RELEASE(6) are there.
            CapabilityKind::Reservation => true,
            CapabilityKind::Unknown(_) => false,
        };
        let support = |yes| if yes { Support::Yes } else { Support::No };
        answered.emit(write, |entry| support(supports(entry.kind))).ok().map(|_| ())
    }

    fn physical_adapter(&self, read: &[u8], write: &mut Vec<u8>) -> Option<()> {
        let lun = read.first_chunk().map(|lun| Lun(*lun))?;
        let info = PhysicalAdapterInfo {
            lun,
            version: 1,
            part_number: padded(&self.config.part_number),
            serial_number: padded(&self.config.serial_number),
            location: padded(&self.config.location),
        };
        write.resize(PhysicalAdapterInfo::LEN, 0);
        info.emit(write).ok().map(|_| ())
    }

    fn error_log(&self, read: &[u8]) -> Option<()> {
        let log = ErrorLog::parse(read).ok()?;
        tracing::debug!(
            adapter = self.config.name,
            lun = ?log.lun,
            error = log.error_id,
            device = %String::from_utf8_lossy(unpadded(&log.device)),
            "the partition logs an error"
        );
        Some(())
    }

    /// Whether the client could be told of something by itself.
    pub fn can_report(&self) -> bool {
        self.state == State::LoggedIn && !self.parked.is_empty()
    }

    /// Reports a condition of a logical unit in a buffer that the client gave: AER_REQ. `None` if
    /// there is none; the condition is reported all the same, by the next command.
    pub fn report(&mut self, lun: Lun, condition: Attention, out: &mut [u8]) -> Option<Aer> {
        if !self.can_report() {
            return None;
        }
        let Parked { mad, format, header, buffer } = self.parked.pop_front()?;
        let tag = Tag::from_u64(self.next_tag);
        let sense = condition.sense().encode(false);
        let request =
            AerReq { tag, limit_delta: 0, solicited: false, lun, sense: sense.as_bytes() };
        let len = request.emit(out).ok()?;
        let mut datagram = [0; Mad::HEADER_LEN];
        mad.with_status(MadStatus::Success).emit_header(&mut datagram).ok()?;
        self.next_tag = self.next_tag.wrapping_add(1);
        if self.reported.len() >= MOST_PARKED {
            self.reported.pop_front();
        }
        self.reported.push_back(tag);
        let element = answer(format, ElementStatus::Ok, Mad::HEADER_LEN, mad.tag);
        Some(Aer { buffer, len, header, datagram, element })
    }
}

/// Bytes of a payload that are read; `None` if the length cannot be that of one.
fn readable(mad: &Mad) -> Option<u32> {
    let len = usize::from(mad.len);
    let least = match mad.body {
        MadBody::AdapterInfo { .. } => 1,
        MadBody::Capabilities { .. } => Capabilities::HEADER_LEN,
        MadBody::PhysicalAdapterInfo { .. } => size_of::<Lun>(),
        _ => ErrorLog::HEADER_LEN,
    };
    let most = match mad.body {
        MadBody::Capabilities { .. } if len > Capabilities::MAX_LEN => return None,
        MadBody::AdapterInfo { .. } => AdapterInfo::LEN,
        MadBody::PhysicalAdapterInfo { .. } => PhysicalAdapterInfo::LEN,
        _ => MOST_PAYLOAD,
    };
    (len >= least).then_some(len.min(most) as u32)
}

/// The answer to a datagram: its header with a status.
fn reply(mad: &Mad, format: Format, status: MadStatus, out: &mut [u8]) -> Reply {
    match mad.with_status(status).emit_header(out) {
        Ok(len) => Reply { len, element: answer(format, ElementStatus::Ok, len, mad.tag) },
        Err(_) => fail(format, ElementStatus::Nonrecoverable, mad.tag),
    }
}

/// The most bytes of a payload that are read.
const MOST_PAYLOAD: usize = 4096;
/// Buffers of a client that are kept.
const MOST_PARKED: usize = 16;
/// Bytes of the longest AER_REQ: a header and sense data in fixed format.
const LONGEST_AER: usize = AerReq::HEADER_LEN + 18;

const _: () = assert!(LONGEST_AER <= super::MOST_UNIT);
