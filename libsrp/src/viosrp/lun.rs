//! Addresses of logical units as partitions write them (SAM-5 4.7.7; LoPAR).

use crate::Lun;

/// What an eight-byte LUN says at its first level. The rest must be zero except for a well-known
/// or extended address, which is kept as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Method 10b, as every partition client uses it.
    LogicalUnit(VscsiLun),
    /// Method 00b: a bus of 6 bits, and a target or LUN of 8 bits.
    Peripheral {
        /// The bus; 0 addresses the logical units of this target.
        bus: u8,
        /// A target on another bus, a LUN on bus 0.
        target: u8,
    },
    /// Method 01b: a number of 14 bits.
    Flat(u16),
    /// Method 11b: well-known and extended addresses.
    Extended(Lun),
}

impl Address {
    /// Reads a LUN; `None` when it has further levels.
    pub fn parse(lun: Lun) -> Option<Self> {
        let [a, b, rest @ ..] = lun.0;
        let value = u16::from_be_bytes([a & 0x3F, b]);
        match a >> 6 {
            0b11 => Some(Self::Extended(lun)),
            _ if rest != [0; 6] => None,
            0b10 => Some(Self::LogicalUnit(VscsiLun::from_number(value))),
            0b01 => Some(Self::Flat(value)),
            _ => Some(Self::Peripheral { bus: a, target: b }),
        }
    }
}

/// A logical unit by target, bus and LUN: method 10b, the "logical unit addressing method".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VscsiLun {
    target: u8,
    bus: u8,
    lun: u8,
}

impl VscsiLun {
    /// `None` unless `target` is below 64, `bus` below 8 and `lun` below 32.
    pub const fn new(target: u8, bus: u8, lun: u8) -> Option<Self> {
        if target < 64 && bus < 8 && lun < 32 { Some(Self { target, bus, lun }) } else { None }
    }

    /// The unit of a 14-bit number; higher bits are cut off.
    pub const fn from_number(number: u16) -> Self {
        Self {
            target: (number >> 8) as u8 & 0x3F,
            bus: (number >> 5) as u8 & 0x07,
            lun: number as u8 & 0x1F,
        }
    }

    /// The 14-bit number: target, bus and LUN in one, as Linux's server counts logical units.
    pub const fn number(self) -> u16 {
        (self.target as u16) << 8 | (self.bus as u16) << 5 | self.lun as u16
    }

    /// The target, below 64.
    pub const fn target(self) -> u8 {
        self.target
    }

    /// The bus, below 8.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The LUN, below 32.
    pub const fn lun(self) -> u8 {
        self.lun
    }

    /// The eight bytes on the wire, as REPORT LUNS gives them to a partition too.
    pub const fn to_lun(self) -> Lun {
        let [a, b] = (0x8000 | self.number()).to_be_bytes();
        Lun([a, b, 0, 0, 0, 0, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_bus_and_lun_have_their_bits() {
        let unit = VscsiLun::new(0x2A, 5, 0x13).unwrap();
        assert_eq!(unit.to_lun(), Lun([0xAA, 0xB3, 0, 0, 0, 0, 0, 0]));
        assert_eq!(unit.number(), 0x2AB3);
        assert_eq!((unit.target(), unit.bus(), unit.lun()), (0x2A, 5, 0x13));
    }

    #[test]
    fn first_unit_is_8000() {
        let unit = VscsiLun::new(0, 0, 0).unwrap();
        assert_eq!(unit.to_lun(), Lun([0x80, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(Address::parse(unit.to_lun()), Some(Address::LogicalUnit(unit)));
    }

    #[test]
    fn every_number_round_trips() {
        for number in 0..=0x3FFF {
            let unit = VscsiLun::from_number(number);
            assert_eq!(unit.number(), number);
            assert_eq!(Address::parse(unit.to_lun()), Some(Address::LogicalUnit(unit)));
            assert_eq!(VscsiLun::new(unit.target(), unit.bus(), unit.lun()), Some(unit));
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert_eq!(VscsiLun::new(64, 0, 0), None);
        assert_eq!(VscsiLun::new(0, 8, 0), None);
        assert_eq!(VscsiLun::new(0, 0, 32), None);
    }

    #[test]
    fn the_other_methods_are_told_apart() {
        let lun = |a, b| Lun([a, b, 0, 0, 0, 0, 0, 0]);
        let peripheral = Address::Peripheral { bus: 2, target: 7 };
        assert_eq!(Address::parse(lun(0x02, 0x07)), Some(peripheral));
        assert_eq!(Address::parse(lun(0x41, 0x02)), Some(Address::Flat(0x102)));
        assert_eq!(Address::parse(Lun::REPORT_LUNS), Some(Address::Extended(Lun::REPORT_LUNS)));
    }

    #[test]
    fn deeper_levels_are_refused() {
        assert_eq!(Address::parse(Lun([0x80, 0, 0, 1, 0, 0, 0, 0])), None);
        assert_eq!(Address::parse(Lun([0x00, 1, 0, 0, 0, 0, 0, 1])), None);
    }
}
