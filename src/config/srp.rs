//! SRP over RDMA: where initiators are listened for, and the target ports they log in to.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use iscsi::names::{IscsiName, NameError};
use thiserror::Error;
use vscsi_target::model::Identity;

/// SRP over RDMA. The default listens nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SrpConfig {
    /// Addresses to listen on; each leads to every port.
    pub listen: Vec<SocketAddr>,
    /// The target ports, no two with the same name. Empty only where nothing is listened on.
    pub ports: Vec<SrpPort>,
}

/// A target port of SRP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrpPort {
    /// The target it belongs to.
    pub target: IscsiName,
    /// What initiators log in to.
    pub name: PortName,
    /// Who may.
    pub allow: SrpAllow,
}

/// The identifier of a target port (SRP rev 16a 6.2): 16 bytes in two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortName {
    /// Identifier extension: the first 8 bytes.
    pub id_ext: u64,
    /// Globally unique identifier of the I/O controller: the last 8 bytes.
    pub ioc_guid: u64,
}

impl PortName {
    /// The name of a target's port that was given none: a locally administered EUI-64 made of the
    /// target's name, twice, so that there is one number to copy. It stays the same over restarts.
    pub fn of_target(target: &IscsiName) -> Self {
        let name = Identity::derive(&format!("SRP target port of {target}"), None).eui;
        Self { id_ext: name, ioc_guid: name }
    }
}

/// Who may log in to an SRP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SrpAllow {
    /// Everybody who reaches a listener.
    Any,
    /// These, and nobody when there are none.
    Only(Vec<SrpInitiator>),
}

/// An initiator that may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SrpInitiator {
    /// The one with this initiator port identifier.
    Port(u128),
    /// Every one whose identifier ends with this GUID.
    Guid(u64),
    /// Every one that comes from this address.
    Address(IpAddr),
}

/// Why a text names no SRP initiator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is neither an initiator port identifier (32 hexadecimal digits) nor a GUID (the last 16 \
     of them, or 0002:c903:0005:f34b) nor an IP address"
)]
pub struct InitiatorError(String);

impl SrpInitiator {
    /// Parses an identifier, a GUID or an address.
    pub fn parse(text: &str) -> Result<Self, InitiatorError> {
        let digits = hex_digits(text);
        if digits.len() == 32
            && let Some(port) = hexadecimal(digits)
        {
            return Ok(Self::Port(port));
        }
        // An IPv6 address is never so short and without `::`.
        let groups = text.split(':').filter(|group| group.len() == 4).count();
        let guid =
            if groups == 4 && text.len() == 19 { text.replace(':', "") } else { digits.into() };
        if guid.len() == 16
            && let Some(guid) = hexadecimal(&guid).and_then(|guid| u64::try_from(guid).ok())
        {
            return Ok(Self::Guid(guid));
        }
        text.parse().map(Self::Address).map_err(|_| InitiatorError(text.to_owned()))
    }
}

/// The name that the nexuses of an initiator have, of iSCSI or of SRP: what `visible_to` compares.
///
/// # Errors
/// It is neither an iSCSI name nor an initiator port identifier of SRP.
pub fn nexus_name(text: &str) -> Result<String, NameError> {
    match SrpInitiator::parse(text) {
        Ok(port @ SrpInitiator::Port(_)) => Ok(port.to_string()),
        _ => IscsiName::parse(text).map(|name| name.to_string()),
    }
}

impl fmt::Display for SrpInitiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "0x{port:032x}"),
            Self::Guid(guid) => write!(f, "0x{guid:016x}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Why a text is no half of a port identifier.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not 1 to 16 hexadecimal digits")]
pub struct HalfError(String);

/// Parses half a port identifier, with or without `0x`.
pub fn half(text: &str) -> Result<u64, HalfError> {
    let digits = Some(hex_digits(text)).filter(|digits| digits.len() <= 16);
    let number = digits.and_then(hexadecimal).and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| HalfError(text.to_owned()))
}

/// Why a text is no address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not an address with a port: write 192.0.2.1:5555 or [2001:db8::1]:5555")]
pub struct ListenError(String);

/// Parses `ADDR:PORT`. SRP has no port of its own, so that it must be there.
pub fn listen(text: &str) -> Result<SocketAddr, ListenError> {
    text.parse().map_err(|_| ListenError(text.to_owned()))
}

fn hex_digits(text: &str) -> &str {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text)
}

/// The number that these digits are, and nothing but digits; not more than 32.
fn hexadecimal(digits: &str) -> Option<u128> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u128::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiators_are_identifiers_or_addresses() {
        let port = SrpInitiator::Port(0x0123_4567_89ab_cdef_fe80_0000_0000_0001);
        for text in ["0x0123456789abcdeffe80000000000001", "0123456789ABCDEFFE80000000000001"] {
            assert_eq!(SrpInitiator::parse(text), Ok(port));
        }
        let guid = SrpInitiator::Guid(0x0002_c903_0005_f34b);
        for text in ["0x0002c9030005f34b", "0002C9030005F34B", "0002:c903:0005:f34b"] {
            assert_eq!(SrpInitiator::parse(text), Ok(guid));
        }
        for text in ["192.0.2.7", "fe80::1", "2001:db8:0:0:0:0:0:1"] {
            let address = text.parse().unwrap();
            assert_eq!(SrpInitiator::parse(text), Ok(SrpInitiator::Address(address)));
        }
        for text in [
            "",
            "0x",
            "host9",
            "192.0.2.7:1",
            "0x123",
            "+5400fffe1234567",
            "1:2:3:4",
            "192.0.2.0/24",
        ] {
            assert!(SrpInitiator::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_initiator_is_shown_as_it_can_be_written() {
        for text in ["0x0000000000000000505400fffe123456", "0x505400fffe123456", "2001:db8::1"] {
            assert_eq!(SrpInitiator::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn names_of_nexuses_are_those_of_iscsi_and_port_identifiers() {
        let name = |text| nexus_name(text).unwrap();
        let port = "0x0123456789abcdeffe80000000000001";
        assert_eq!(name("0123456789ABCDEFFE80000000000001"), port);
        assert_eq!(name("iqn.2026-11.org.X:i"), "iqn.2026-11.org.x:i");
        assert!(nexus_name("0x505400fffe123456").is_err(), "it may be the GUID of several");
        assert!(nexus_name("192.0.2.7").is_err());
    }

    #[test]
    fn halves_are_hexadecimal() {
        assert_eq!(half("0x2c903000000001"), Ok(0x2c_9030_0000_0001));
        assert_eq!(half("FFFFFFFFFFFFFFFF"), Ok(u64::MAX));
        for text in ["", "0x", "-1", "+1", "10000000000000000", "x"] {
            assert!(half(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_listener_needs_a_port() {
        assert_eq!(listen("192.0.2.1:5555"), Ok("192.0.2.1:5555".parse().unwrap()));
        assert_eq!(listen("[::]:5555"), Ok("[::]:5555".parse().unwrap()));
        assert!(listen("192.0.2.1").is_err());
    }

    #[test]
    fn the_name_of_a_port_stays() {
        let target = IscsiName::parse("iqn.2026-11.org.vscsi:disk").unwrap();
        let name = PortName::of_target(&target);
        // Saved reservations and initiators' scripts hold it: a new version must not give another.
        assert_eq!(name.id_ext, name.ioc_guid);
        assert_eq!(name.id_ext, 0x161e_8864_9ee3_2a7e);
    }
}
