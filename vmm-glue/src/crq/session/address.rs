//! What the LUN of a request addresses behind an adapter (SAM-5 4.7.7; LoPAR, "Virtual SCSI").

use libsrp::{
    Lun,
    viosrp::lun::{Address, VscsiLun},
};

/// What a request addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressed {
    /// A logical unit of a target.
    Unit {
        /// The target's number: its bus in the upper two bits, its number on the bus below.
        target: u8,
        /// The logical unit, as the target's own LUN.
        lun: Lun,
    },
    /// The REPORT LUNS well-known logical unit, of the first target.
    WellKnown,
    /// Nothing that could be there.
    Nothing,
}

/// Reads the LUN of a request.
///
/// All clients write bus, target and LUN in the logical unit addressing method (10b). Peripheral and
/// flat addresses are read as the same 14 bits, as Linux's server does. The upper half of the buses
/// does not exist.
#[inline]
pub fn addressed(lun: Lun) -> Addressed {
    let unit = match Address::parse(lun) {
        Some(Address::LogicalUnit(unit)) => unit,
        Some(Address::Flat(number)) => VscsiLun::from_number(number),
        Some(Address::Peripheral { bus, target }) => {
            VscsiLun::from_number(u16::from(bus) << 8 | u16::from(target))
        }
        Some(Address::Extended(Lun::REPORT_LUNS)) => return Addressed::WellKnown,
        Some(Address::Extended(_)) | None => return Addressed::Nothing,
    };
    if unit.bus() > MOST_BUS {
        return Addressed::Nothing;
    }
    let target = unit.bus() << 6 | unit.target();
    match Lun::from_number(unit.lun().into()) {
        Some(lun) => Addressed::Unit { target, lun },
        None => Addressed::Nothing,
    }
}

/// How a partition writes the address of a logical unit; `None` for a number above 31.
pub fn lun_of(target: u8, number: u16) -> Option<Lun> {
    let number = u8::try_from(number).ok()?;
    VscsiLun::new(target & 0x3F, target >> 6, number).map(VscsiLun::to_lun)
}

/// Targets are numbered with eight bits.
const MOST_BUS: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(target: u8, lun: u8) -> Addressed {
        Addressed::Unit { target, lun: Lun([0, lun, 0, 0, 0, 0, 0, 0]) }
    }

    #[test]
    fn logical_unit_addresses_have_target_bus_and_lun() {
        assert_eq!(addressed(Lun([0x80, 0, 0, 0, 0, 0, 0, 0])), unit(0, 0));
        assert_eq!(addressed(Lun([0x82, 0x03, 0, 0, 0, 0, 0, 0])), unit(2, 3));
        assert_eq!(addressed(Lun([0x82, 0x63, 0, 0, 0, 0, 0, 0])), unit(0xC2, 3));
        assert_eq!(addressed(Lun([0x82, 0x83, 0, 0, 0, 0, 0, 0])), Addressed::Nothing);
    }

    #[test]
    fn other_methods_are_read_as_the_same_bits() {
        assert_eq!(addressed(Lun([0x00, 0x05, 0, 0, 0, 0, 0, 0])), unit(0, 5));
        assert_eq!(addressed(Lun([0x42, 0x05, 0, 0, 0, 0, 0, 0])), unit(2, 5));
        assert_eq!(addressed(Lun::REPORT_LUNS), Addressed::WellKnown);
        assert_eq!(addressed(Lun([0xC1, 0x02, 0, 0, 0, 0, 0, 0])), Addressed::Nothing);
        assert_eq!(addressed(Lun([0x80, 0, 0, 1, 0, 0, 0, 0])), Addressed::Nothing);
    }

    #[test]
    fn every_unit_that_can_be_addressed_is_written_as_it_is_read() {
        for target in 0..=u8::MAX {
            for number in 0..32u8 {
                let lun = lun_of(target, number.into()).unwrap();
                assert_eq!(addressed(lun), unit(target, number));
            }
        }
        assert_eq!(lun_of(0, 32), None);
        assert_eq!(lun_of(0, 0x100), None);
    }
}
