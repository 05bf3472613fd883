//! The values that the configuration file's keys have: each is checked while it is read.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use iscsi::names::IscsiName;
use serde::{Deserialize, Deserializer, de};
use thiserror::Error;
use vscsi_target::backend::nvme::Address;

use crate::{config::ISCSI_PORT, size};

/// A whole number of a range.
pub(super) struct Whole<const LOW: u64, const HIGH: u64>(pub(super) u64);

impl<'de, const LOW: u64, const HIGH: u64> Deserialize<'de> for Whole<LOW, HIGH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        if (LOW..=HIGH).contains(&number) {
            Ok(Self(number))
        } else {
            Err(de::Error::custom(format_args!("{number} is not in the range {LOW} to {HIGH}")))
        }
    }
}

/// An iSCSI name.
pub(super) struct Name(pub(super) IscsiName);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        IscsiName::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

/// A namespace of an NVMe controller: `BDF` or `BDF/NSID`, and `,poll` for one without interrupts.
pub(super) struct Namespace(pub(super) Address);

impl<'de> Deserialize<'de> for Namespace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let name = text.strip_suffix(",poll");
        let address = Address::parse(name.unwrap_or(&text)).map_err(de::Error::custom)?;
        Ok(Self(Address { polled: name.is_some(), ..address }))
    }
}

/// A size, with or without a unit.
pub(super) struct Size(pub(super) u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        size::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

/// A path, or `none`.
pub(super) struct OrNone(pub(super) Option<PathBuf>);

impl<'de> Deserialize<'de> for OrNone {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self((text != "none").then(|| PathBuf::from(text))))
    }
}

/// `ADDR` or `ADDR:PORT`.
pub(super) struct Portal(pub(super) SocketAddr);

impl<'de> Deserialize<'de> for Portal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        portal(&text).map(Self).map_err(de::Error::custom)
    }
}

/// The address of a redirection: `ADDR:PORT`, perhaps with `,TAG` (RFC 7143 13.8).
pub(super) struct Elsewhere(pub(super) String);

impl<'de> Deserialize<'de> for Elsewhere {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (address, tag) = match text.split_once(',') {
            Some((address, tag)) => (address, Some(tag)),
            None => (text.as_str(), None),
        };
        let address = portal(address).map_err(de::Error::custom)?;
        if tag.is_some_and(|tag| tag.parse::<u16>().is_err()) {
            return Err(de::Error::custom(format_args!("{text:?} has no portal group tag")));
        }
        Ok(Self(tag.map_or_else(|| address.to_string(), |tag| format!("{address},{tag}"))))
    }
}

/// Why a text is no portal.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not an address: write 192.0.2.1, 192.0.2.1:3260, [2001:db8::1] or [2001:db8::1]:3260"
)]
pub struct PortalError(String);

/// Parses `ADDR[:PORT]`; without a port it is iSCSI's. Names are not looked up.
pub fn portal(text: &str) -> Result<SocketAddr, PortalError> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = text.parse::<SocketAddr>().ok();
    with_port
        .or_else(|| Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, ISCSI_PORT)))
        .ok_or_else(|| PortalError(text.to_owned()))
}
