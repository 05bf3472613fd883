//! RESERVE and RELEASE (SPC-2 7.16 to 7.22), of whole logical units only, with the compatible
//! reservation handling of SPC-4 5.13.3 (CRH).

use super::{CONFLICT, NexusId, Reservations, bad_cdb, byte};
use crate::opcode::Fail;

impl Reservations {
    /// RESERVE(6) or RESERVE(10). `Ok(true)` when the state changed.
    ///
    /// Extents and third parties are refused: they are obsolete since SPC-3.
    pub fn reserve(&mut self, nexus: &NexusId, cdb: &[u8]) -> Result<bool, Fail> {
        refuse_obsolete(cdb)?;
        if self.is_compatible_no_op(nexus)? {
            return Ok(false);
        }
        match &self.legacy {
            Some(holder) if holder == nexus => Ok(false),
            Some(_) => Err(CONFLICT),
            None => {
                self.legacy = Some(nexus.clone());
                Ok(true)
            }
        }
    }

    /// RELEASE(6) or RELEASE(10). From a nexus that does not hold the unit it does nothing and ends
    /// with GOOD. `Ok(true)` when the state changed.
    pub fn release(&mut self, nexus: &NexusId, cdb: &[u8]) -> Result<bool, Fail> {
        refuse_obsolete(cdb)?;
        if self.is_compatible_no_op(nexus)? {
            return Ok(false);
        }
        Ok(self.nexus_loss(nexus))
    }

    /// The nexus is gone: its RESERVE ends, its registration stays. True when the state changed.
    pub fn nexus_loss(&mut self, nexus: &NexusId) -> bool {
        self.legacy.take_if(|holder| holder == nexus).is_some()
    }

    /// LOGICAL UNIT RESET, target reset or hard reset: RESERVE ends, registrations and a persistent
    /// reservation stay. True when the state changed.
    pub fn logical_unit_reset(&mut self) -> bool {
        self.legacy.take().is_some()
    }

    /// Whether RESERVE and RELEASE from this nexus do nothing because a persistent reservation
    /// already gives it access. With registrations and without such access they conflict.
    fn is_compatible_no_op(&self, nexus: &NexusId) -> Result<bool, Fail> {
        if self.registrations.is_empty() {
            return Ok(false);
        }
        let registered = self.key_of(nexus).is_some();
        let shared = self.reservation_type().is_some_and(|kind| kind.frees_registrants());
        if self.is_holder(nexus) || (shared && registered) { Ok(true) } else { Err(CONFLICT) }
    }
}

fn refuse_obsolete(cdb: &[u8]) -> Result<(), Fail> {
    match byte(cdb, 1) {
        flags if flags & 0x10 != 0 => Err(bad_cdb(1, 4)),
        flags if flags & 0x01 != 0 => Err(bad_cdb(1, 0)),
        _ => Ok(()),
    }
}
