//! SendTargets (RFC 7143 appendix C).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::names::IscsiName;
use crate::negotiate::SessionType;
use crate::text::Text;

/// Which targets an initiator asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendTargets {
    /// Every target it may use.
    All,
    /// One target.
    One(IscsiName),
}

impl SendTargets {
    /// What a value of the key asks for, in a session of a type whose target is `current`. None
    /// is to be answered with Reject: `All` belongs to discovery sessions, nothing at all (the
    /// session's own target) to normal ones, and a normal session asks for its own target only.
    pub fn parse(value: &str, session: SessionType, current: Option<&IscsiName>) -> Option<Self> {
        match (session, value) {
            (SessionType::Discovery, "All") => Some(Self::All),
            (SessionType::Discovery, "") | (SessionType::Normal, "All") => None,
            (SessionType::Discovery, name) => IscsiName::parse(name).ok().map(Self::One),
            (SessionType::Normal, "") => current.cloned().map(Self::One),
            (SessionType::Normal, name) => {
                IscsiName::parse(name).ok().filter(|name| Some(name) == current).map(Self::One)
            }
        }
    }
}

/// A target as an initiator is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: IscsiName,
    /// Where it is.
    pub portals: Vec<TargetAddress>,
}

/// Where a target is: a portal and the tag of its group. Shows as the value of TargetAddress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetAddress {
    /// The portal.
    pub address: SocketAddr,
    /// Tag of the portal group.
    pub portal_group_tag: u16,
}

impl TargetAddress {
    /// For a portal that listens on `bound`: a wildcard address helps nobody, so it gives way to
    /// the address by which the asking connection came in.
    pub const fn of(bound: SocketAddr, asked_on: IpAddr, portal_group_tag: u16) -> Self {
        let ip = if bound.ip().is_unspecified() { asked_on.to_canonical() } else { bound.ip() };
        Self { address: SocketAddr::new(ip, bound.port()), portal_group_tag }
    }
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A socket address shows an IPv6 address in brackets, as the key wants it; a scope
        // identifier means nothing to another host.
        let address = SocketAddr::new(self.address.ip(), self.address.port());
        write!(f, "{address},{}", self.portal_group_tag)
    }
}

/// Writes the answer: each target's name, followed by its addresses.
pub fn list(targets: &[Listed], answers: &mut Text) {
    for target in targets {
        answers.push("TargetName", &target.name);
        for portal in &target.portals {
            answers.push("TargetAddress", portal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAN: &str = "iqn.2026-11.org.example:san";

    fn name(name: &str) -> IscsiName {
        IscsiName::parse(name).unwrap()
    }

    #[test]
    fn discovery_session_asks_for_all_or_by_name() {
        let parse = |value| SendTargets::parse(value, SessionType::Discovery, None);
        assert_eq!(parse("All"), Some(SendTargets::All));
        assert_eq!(parse(SAN), Some(SendTargets::One(name(SAN))));
        assert_eq!(parse(""), None);
        assert_eq!(parse("all"), None);
    }

    #[test]
    fn normal_session_asks_for_its_own_target() {
        let san = name(SAN);
        let parse = |value| SendTargets::parse(value, SessionType::Normal, Some(&san));
        assert_eq!(parse(""), Some(SendTargets::One(san.clone())));
        assert_eq!(parse(SAN), Some(SendTargets::One(san.clone())));
        assert_eq!(parse("All"), None);
        assert_eq!(parse("iqn.2026-11.org.example:other"), None);
    }

    #[test]
    fn addresses_follow_their_target() {
        let portal = |address: &str, portal_group_tag| TargetAddress {
            address: address.parse().unwrap(),
            portal_group_tag,
        };
        let targets = [
            Listed {
                name: name(SAN),
                portals: vec![portal("192.0.2.1:3260", 1), portal("[2001:db8::1]:3260", 2)],
            },
            Listed { name: name("iqn.2026-11.org.example:b"), portals: vec![] },
        ];
        let mut text = Text::new();
        list(&targets, &mut text);
        assert_eq!(
            text.as_bytes(),
            b"TargetName=iqn.2026-11.org.example:san\0TargetAddress=192.0.2.1:3260,1\0\
              TargetAddress=[2001:db8::1]:3260,2\0TargetName=iqn.2026-11.org.example:b\0"
        );
    }

    #[test]
    fn wildcard_address_gives_way_to_the_connections() {
        let of = |bound: &str, on: &str| {
            TargetAddress::of(bound.parse().unwrap(), on.parse().unwrap(), 1).to_string()
        };
        assert_eq!(of("0.0.0.0:3260", "192.0.2.7"), "192.0.2.7:3260,1");
        assert_eq!(of("[::]:3260", "::ffff:192.0.2.7"), "192.0.2.7:3260,1");
        assert_eq!(of("[::]:3261", "2001:db8::7"), "[2001:db8::7]:3261,1");
        assert_eq!(of("192.0.2.1:3260", "192.0.2.7"), "192.0.2.1:3260,1");
    }
}
