//! How a namespace is named: `nvme:0000:00:03.0`, `nvme:0000:00:03.0/2`.

use nvme::Bdf;
use std::fmt;
use thiserror::Error;

/// A namespace of a controller, and how to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The controller's PCI function.
    pub bdf: Bdf,
    /// The namespace; `None` for the active one with the lowest number.
    pub nsid: Option<u32>,
    /// Its completions are polled for, without interrupts.
    pub polled: bool,
}

/// Why a text names no namespace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Not the address of a PCI function.
    #[error("{0:?} is not an address of a PCI function, like 0000:03:00.0")]
    Function(String),
    /// Not the number of a namespace.
    #[error("{0:?} is not a number of a namespace: 1 to 4294967294 are")]
    Namespace(String),
}

impl Address {
    /// What begins the name of a namespace.
    pub const PREFIX: &str = "nvme:";

    /// Parses it, without the prefix.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (function, nsid) = match text.split_once('/') {
            Some((function, nsid)) => (function, Some(nsid)),
            None => (text, None),
        };
        let bdf = Bdf::parse(function).map_err(|_| AddressError::Function(function.to_owned()))?;
        let wrong = |nsid: &str| AddressError::Namespace(nsid.to_owned());
        let nsid = nsid
            .map(|nsid| match nsid.parse() {
                Ok(number @ 1..=0xFFFF_FFFE) => Ok(number),
                _ => Err(wrong(nsid)),
            })
            .transpose()?;
        Ok(Self { bdf, nsid, polled: false })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::PREFIX, self.bdf)?;
        self.nsid.map_or(Ok(()), |nsid| write!(f, "/{nsid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_namespace() {
        let address = Address::parse("00:03.0").unwrap();
        assert_eq!((address.nsid, address.to_string().as_str()), (None, "nvme:0000:00:03.0"));
        let address = Address::parse("0000:00:03.0/7").unwrap();
        assert_eq!(address.to_string(), "nvme:0000:00:03.0/7");
    }

    #[test]
    fn wrong_addresses_are_refused() {
        for text in ["", "nvme0", "00:03.0/", "00:03.0/0", "00:03.0/4294967295", "00:03.0/1/1"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
