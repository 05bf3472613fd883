//! Who is who: target ports, and the ways an administrator names initiators.

use libsrp::login::PortId;
use std::{fmt, net::IpAddr, str::FromStr};
use thiserror::Error;
use vscsi_target::model::Identity;

/// A target port identifier: what `id_ext` and `ioc_guid` are to Linux's initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetPortId {
    /// Identifier extension.
    pub id_ext: u64,
    /// GUID of the I/O controller.
    pub ioc_guid: u64,
}

impl TargetPortId {
    /// The identifier of a target that was given none: a locally administered EUI-64 made of its
    /// name, twice, so that there is one number to copy.
    pub fn derive(target: &str) -> Self {
        let guid = Identity::derive(&format!("SRP target port of {target}"), None).eui;
        Self { id_ext: guid, ioc_guid: guid }
    }

    /// The identifier on the wire (I/O class 0x0100).
    pub const fn port_id(self) -> PortId {
        PortId::new(self.id_ext, self.ioc_guid)
    }

    /// The port's SCSI name string, which the model wants.
    pub fn scsi_name(self) -> String {
        format!("eui.{:016X}{:016X}", self.id_ext, self.ioc_guid)
    }

    /// How a login addresses this port, if it does: initiators of I/O class 0xFF00 write the halves
    /// of both identifiers in the other order.
    pub fn addressed_by(self, target_port: PortId) -> Option<Order> {
        match target_port {
            port if port == self.port_id() => Some(Order::ExtensionFirst),
            port if port == PortId::new_rev10(self.id_ext, self.ioc_guid) => Some(Order::GuidFirst),
            _ => None,
        }
    }
}

impl fmt::Display for TargetPortId {
    /// As options of `add_target`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id_ext={:016x},ioc_guid={:016x}", self.id_ext, self.ioc_guid)
    }
}

/// The order of the halves of a port identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// I/O class 0x0100.
    ExtensionFirst,
    /// I/O class 0xFF00.
    GuidFirst,
}

impl Order {
    /// The identifier with the extension first.
    pub const fn normal(self, port: PortId) -> PortId {
        match self {
            Self::ExtensionFirst => port,
            Self::GuidFirst => {
                let (guid, extension) = port.halves();
                PortId::new(extension, guid)
            }
        }
    }
}

/// An initiator port identifier as people read it: `0x` and 32 hexadecimal digits, the extension
/// first.
pub fn initiator_name(port: PortId) -> String {
    format!("0x{:032x}", u128::from_be_bytes(port.0))
}

/// How an administrator names an initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitiatorName {
    /// By its whole port identifier: 32 hexadecimal digits, with or without `0x`.
    Port(PortId),
    /// By its GUID, whatever its identifier extension: `0002:c903:0005:f34b`, or 16 hexadecimal
    /// digits, with or without `0x`.
    Guid(u64),
    /// By the address it connects from.
    Address(IpAddr),
}

impl InitiatorName {
    /// Whether it names this initiator port, whose identifier has the extension first.
    pub fn matches(&self, port: PortId, peer: IpAddr) -> bool {
        match *self {
            Self::Port(named) => named == port,
            Self::Guid(guid) => port.halves().1 == guid,
            Self::Address(address) => address.to_canonical() == peer.to_canonical(),
        }
    }
}

impl fmt::Display for InitiatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => f.write_str(&initiator_name(*port)),
            Self::Guid(guid) => {
                let [a, b, c, d] =
                    [48, 32, 16, 0].map(|shift| u16::try_from(guid >> shift & 0xFFFF).unwrap_or(0));
                write!(f, "{a:04x}:{b:04x}:{c:04x}:{d:04x}")
            }
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A text that names no initiator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no SRP initiator: give its port identifier (32 hexadecimal digits, with or without \
     0x), its GUID (0002:c903:0005:f34b) or its IP address"
)]
pub struct NotAnInitiator(pub String);

impl FromStr for InitiatorName {
    type Err = NotAnInitiator;

    fn from_str(text: &str) -> Result<Self, NotAnInitiator> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let number = u128::from_str_radix(digits, 16).ok();
            match (digits.len(), number) {
                (32, Some(number)) => return Ok(Self::Port(PortId(number.to_be_bytes()))),
                (16, Some(number)) => return Ok(Self::Guid(number as u64)),
                _ => {}
            }
        }
        if let Some(guid) = guid_in_groups(text) {
            return Ok(Self::Guid(guid));
        }
        text.parse().map(Self::Address).map_err(|_| NotAnInitiator(text.to_owned()))
    }
}

/// A GUID of four groups of four digits.
fn guid_in_groups(text: &str) -> Option<u64> {
    let mut groups = 0;
    let mut guid = 0;
    for group in text.split(':') {
        if group.len() != 4 || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        guid = guid << 16 | u64::from(u16::from_str_radix(group, 16).ok()?);
        groups += 1;
    }
    (groups == 4).then_some(guid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_name_initiators_are_told_apart() {
        let port = PortId::new(0, 0x0002_C903_0005_F34B);
        for (text, name) in [
            ("0x00000000000000000002c9030005f34b", InitiatorName::Port(port)),
            ("00000000000000000002C9030005F34B", InitiatorName::Port(port)),
            ("0002:c903:0005:f34b", InitiatorName::Guid(0x0002_C903_0005_F34B)),
            ("0x0002c9030005f34b", InitiatorName::Guid(0x0002_C903_0005_F34B)),
            ("192.0.2.7", InitiatorName::Address([192, 0, 2, 7].into())),
            ("2001:db8::7", InitiatorName::Address("2001:db8::7".parse().unwrap())),
        ] {
            assert_eq!(text.parse(), Ok(name), "{text}");
            assert_eq!(name.to_string().parse(), Ok(name), "{text}");
        }
    }

    #[test]
    fn other_texts_name_nobody() {
        for text in
            ["", "0x", "iqn.2026-11.org.x:a", "0002:c903:0005", "+002:c903:0005:f34b", "0x1"]
        {
            assert_eq!(text.parse::<InitiatorName>(), Err(NotAnInitiator(text.to_owned())));
        }
    }

    #[test]
    fn a_guid_matches_any_extension_and_an_identifier_one() {
        let (port, peer) = (PortId::new(5, 7), IpAddr::from([192, 0, 2, 7]));
        let matches = |text: &str| text.parse::<InitiatorName>().unwrap().matches(port, peer);
        assert!(matches("0000:0000:0000:0007"));
        assert!(matches("00000000000000050000000000000007"));
        assert!(!matches("00000000000000000000000000000007"));
        assert!(matches("::ffff:192.0.2.7"));
        assert!(!matches("192.0.2.8"));
    }

    #[test]
    fn derived_identifiers_are_stable_different_and_locally_administered() {
        let (a, b) = (TargetPortId::derive("iqn.x:a"), TargetPortId::derive("iqn.x:b"));
        assert_eq!(a, TargetPortId::derive("iqn.x:a"));
        assert_ne!(a, b);
        assert_eq!((a.ioc_guid >> 56 & 3, a.id_ext), (2, a.ioc_guid));
    }

    #[test]
    fn both_io_classes_address_a_port() {
        let port = TargetPortId { id_ext: 1, ioc_guid: 2 };
        assert_eq!(port.addressed_by(PortId::new(1, 2)), Some(Order::ExtensionFirst));
        assert_eq!(port.addressed_by(PortId::new(2, 1)), Some(Order::GuidFirst));
        assert_eq!(port.addressed_by(PortId::new(1, 1)), None);
        assert_eq!(Order::GuidFirst.normal(PortId::new(7, 0)), PortId::new(0, 7));
    }

    #[test]
    fn target_port_is_shown_as_the_initiator_wants_it() {
        let port = TargetPortId { id_ext: 0xA, ioc_guid: 0xB };
        assert_eq!(port.to_string(), "id_ext=000000000000000a,ioc_guid=000000000000000b");
        assert_eq!(port.scsi_name(), "eui.000000000000000A000000000000000B");
    }
}
