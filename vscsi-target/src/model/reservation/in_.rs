//! PERSISTENT RESERVE IN (SPC-4 6.15).

use super::{CONFLICT, ReservationType, Reservations, bad_cdb, byte};
use crate::opcode::Fail;

impl Reservations {
    /// Parameter data for the service action in `cdb`, cut to its allocation length. The lengths
    /// inside tell the whole, cut or not.
    ///
    /// Conflicts while any nexus, even this one, holds the unit by RESERVE (SPC-2 5.5.1).
    pub fn read_in(&self, cdb: &[u8]) -> Result<Vec<u8>, Fail> {
        if self.legacy.is_some() {
            return Err(CONFLICT);
        }
        let mut data = match byte(cdb, 1) & 0x1F {
            0x00 => self.read_keys(),
            0x01 => self.read_reservation(),
            0x02 => self.report_capabilities(),
            0x03 => self.read_full_status(),
            _ => return Err(bad_cdb(1, 4)),
        };
        data.truncate(usize::from(u16::from_be_bytes([byte(cdb, 7), byte(cdb, 8)])));
        Ok(data)
    }

    fn read_keys(&self) -> Vec<u8> {
        self.with_header(|list| {
            for registration in &self.registrations {
                list.extend(registration.key.get().to_be_bytes());
            }
        })
    }

    fn read_reservation(&self) -> Vec<u8> {
        self.with_header(|list| {
            let Some(reservation) = &self.persistent else { return };
            // An all registrants reservation has no key of its own and reports zero.
            let key = reservation.holder.as_ref().and_then(|holder| self.key_of(holder));
            list.extend(key.map_or(0, |key| key.get()).to_be_bytes());
            list.extend([0, 0, 0, 0, 0, reservation.kind.code(), 0, 0]);
        })
    }

    fn report_capabilities(&self) -> Vec<u8> {
        let mut data = vec![0, 8, 0, 0, 0, 0, 0, 0];
        data[2] = CRH | SIP_C | ATP_C;
        data[2] |= u8::from(self.capabilities.persist_through_power_loss);
        data[3] = TMV | ALLOW_COMMANDS | u8::from(self.aptpl);
        for kind in ReservationType::ALL {
            let code = kind.code();
            data[4 + usize::from(code / 8)] |= 1 << (code % 8);
        }
        data
    }

    fn read_full_status(&self) -> Vec<u8> {
        self.with_header(|list| {
            for registration in &self.registrations {
                let id = registration.nexus.transport_id.as_bytes();
                let holds =
                    self.persistent.as_ref().filter(|_| self.is_holder(&registration.nexus));
                list.extend(registration.key.get().to_be_bytes());
                list.extend([0; 4]);
                // One descriptor a nexus, so ALL_TG_PT is never set.
                list.extend(
                    holds.map_or([0, 0], |reservation| [R_HOLDER, reservation.kind.code()]),
                );
                list.extend([0; 4]);
                list.extend(registration.nexus.relative_target_port.to_be_bytes());
                list.extend((id.len() as u32).to_be_bytes());
                list.extend(id);
            }
        })
    }

    /// PRGENERATION, ADDITIONAL LENGTH, and the list that `fill` appends.
    fn with_header(&self, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut data = Vec::from(self.generation.to_be_bytes());
        data.extend([0; 4]);
        fill(&mut data);
        let additional = u32::try_from(data.len() - 8).unwrap_or(u32::MAX);
        data[4..8].copy_from_slice(&additional.to_be_bytes());
        data
    }
}

const CRH: u8 = 0x10;
const SIP_C: u8 = 0x08;
const ATP_C: u8 = 0x04;
const TMV: u8 = 0x80;
/// 100b: TEST UNIT READY and RECEIVE COPY RESULTS pass every reservation, MODE SENSE, READ BUFFER
/// and the like pass write exclusive, as the classes of the opcode table say.
const ALLOW_COMMANDS: u8 = 0x40;
const R_HOLDER: u8 = 0x01;
