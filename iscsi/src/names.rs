//! iSCSI names and what SCSI makes of them (RFC 7143 4.2.7, SPC-4 7.6.4.6).

use std::fmt;

use thiserror::Error;

use crate::pdu::Isid;

/// The longest iSCSI name in bytes.
pub const MAX_NAME: usize = 223;

/// A valid iSCSI name in its normal form (lower case).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IscsiName(String);

/// Why a string is not an iSCSI name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// More than [`MAX_NAME`] bytes.
    #[error("name of {0} bytes where {MAX_NAME} are allowed")]
    TooLong(usize),
    /// None of the three types.
    #[error("{0:?} does not begin with iqn., eui. or naa.")]
    UnknownType(String),
    /// An iqn. name without year, month and naming authority.
    #[error("{0:?} is not of the form iqn.YYYY-MM.reversed.domain[:anything]")]
    InvalidIqn(String),
    /// An eui. name without sixteen hexadecimal digits.
    #[error("{0:?} is not eui. and 16 hexadecimal digits")]
    InvalidEui(String),
    /// An naa. name without sixteen or thirty-two hexadecimal digits.
    #[error("{0:?} is not naa. and 16 or 32 hexadecimal digits")]
    InvalidNaa(String),
    /// A character no name has.
    #[error("character {0:?} is not allowed in a name")]
    Character(char),
}

impl IscsiName {
    /// Checks a name and brings it into its normal form, in which names are compared.
    ///
    /// Of the ASCII characters letters, digits, `-`, `.` and `:` are allowed (RFC 3722); `_` is
    /// too because initiators in the field make names of host names that have it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong(name.len()));
        }
        if let Some(bad) = name.chars().find(|&c| !is_name_char(c)) {
            return Err(NameError::Character(bad));
        }
        let name = name.to_lowercase();
        if name.len() > MAX_NAME {
            return Err(NameError::TooLong(name.len()));
        }
        let is_hex = |digits: &str| digits.bytes().all(|d| d.is_ascii_hexdigit());
        if let Some(rest) = name.strip_prefix("iqn.") {
            if !is_dated_authority(rest) {
                return Err(NameError::InvalidIqn(name));
            }
        } else if let Some(digits) = name.strip_prefix("eui.") {
            if digits.len() != 16 || !is_hex(digits) {
                return Err(NameError::InvalidEui(name));
            }
        } else if let Some(digits) = name.strip_prefix("naa.") {
            if !matches!(digits.len(), 16 | 32) || !is_hex(digits) {
                return Err(NameError::InvalidNaa(name));
            }
        } else {
            return Err(NameError::UnknownType(name));
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for IscsiName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for IscsiName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::parse(name)
    }
}

/// The SCSI name of an initiator port: `name,i,0x` and twelve digits (RFC 7143 4.4.1).
pub fn initiator_port_name(initiator: &IscsiName, isid: Isid) -> String {
    format!("{initiator},i,{isid}")
}

/// The SCSI name of a target port: `name,t,0x` and four digits (RFC 7143 4.4.1).
pub fn target_port_name(target: &IscsiName, portal_group_tag: u16) -> String {
    format!("{target},t,{portal_group_tag:#06x}")
}

/// An iSCSI TransportID (SPC-4 7.6.4.6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TransportId {
    /// The initiator.
    pub name: IscsiName,
    /// Its port; without one, every port it has (format 0).
    pub isid: Option<Isid>,
}

/// Why bytes are not an iSCSI TransportID.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TransportIdError {
    /// Another protocol.
    #[error("protocol identifier {0} is not iSCSI's")]
    Protocol(u8),
    /// Neither format 0 nor 1.
    #[error("TransportID format {0}")]
    Format(u8),
    /// Cut off, or of a length that is not a multiple of four.
    #[error("TransportID of {additional} additional bytes where {left} are left")]
    Length {
        /// ADDITIONAL LENGTH as sent.
        additional: usize,
        /// Bytes behind the header.
        left: usize,
    },
    /// No zero byte ends the name, or it is not text.
    #[error("TransportID name is not a terminated string")]
    NotTerminated,
    /// The port does not follow the name as the format says.
    #[error("TransportID port {0:?}")]
    Port(String),
    /// The name is not one.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl TransportId {
    /// The bytes of it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (format, text) = match self.isid {
            None => (0, self.name.to_string()),
            Some(isid) => (1, initiator_port_name(&self.name, isid)),
        };
        // The zero byte ends the string, padding brings it to a multiple of four, at least 20.
        let additional = (text.len() + 1).next_multiple_of(4).max(20);
        let mut bytes = vec![0; HEADER + additional];
        bytes[0] = format << 6 | PROTOCOL_ISCSI;
        bytes[2..HEADER].copy_from_slice(&(additional as u16).to_be_bytes());
        bytes[HEADER..HEADER + text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    /// Parses one, and says how many bytes it took.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), TransportIdError> {
        let [first, _, hi, lo, rest @ ..] = bytes else {
            return Err(TransportIdError::Length { additional: 0, left: 0 });
        };
        if first & 0x0F != PROTOCOL_ISCSI {
            return Err(TransportIdError::Protocol(first & 0x0F));
        }
        let additional = usize::from(u16::from_be_bytes([*hi, *lo]));
        let text = rest
            .get(..additional)
            .filter(|text| text.len().is_multiple_of(4))
            .ok_or(TransportIdError::Length { additional, left: rest.len() })?;
        let end = text.iter().position(|&b| b == 0).ok_or(TransportIdError::NotTerminated)?;
        let text = str::from_utf8(&text[..end]).map_err(|_| TransportIdError::NotTerminated)?;
        let id = match first >> 6 {
            0 => Self { name: IscsiName::parse(text)?, isid: None },
            1 => {
                let bad = || TransportIdError::Port(text.to_owned());
                let (name, port) = text.split_once(",i,0x").ok_or_else(bad)?;
                let is_isid = port.len() == 12 && port.bytes().all(|d| d.is_ascii_hexdigit());
                let number = u64::from_str_radix(port, 16).ok().filter(|_| is_isid);
                let [_, _, isid @ ..] = number.ok_or_else(bad)?.to_be_bytes();
                Self { name: IscsiName::parse(name)?, isid: Some(Isid(isid)) }
            }
            format => return Err(TransportIdError::Format(format)),
        };
        Ok((id, HEADER + additional))
    }
}

const PROTOCOL_ISCSI: u8 = 5;
const HEADER: usize = 4;

fn is_name_char(c: char) -> bool {
    match c {
        '-' | '.' | ':' | '_' => true,
        c if c.is_ascii() => c.is_ascii_alphanumeric(),
        c => c.is_alphanumeric(),
    }
}

/// `YYYY-MM.` and something that does not begin with a dot or colon.
fn is_dated_authority(rest: &str) -> bool {
    let [y0, y1, y2, y3, b'-', m0, m1, b'.', first, ..] = rest.as_bytes() else { return false };
    [y0, y1, y2, y3, m0, m1].iter().all(|digit| digit.is_ascii_digit())
        && matches!((m0, m1), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2'))
        && !matches!(first, b'.' | b':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOST: &str = "iqn.1994-05.com.redhat:host9";

    #[test]
    fn names_of_the_three_types_are_taken() {
        for name in [
            HOST,
            "iqn.2026-11.org.example",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
            "naa.62004567ba64678d0123456789abcdef",
            "iqn.2010-04.org.ipxe:my_host",
        ] {
            assert_eq!(IscsiName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn upper_case_becomes_lower_case() {
        assert_eq!(IscsiName::parse("IQN.1994-05.com.RedHat:Host9"), IscsiName::parse(HOST));
    }

    #[test]
    fn other_strings_are_refused() {
        for name in [
            "",
            "host9",
            "iqn.",
            "iqn.1994-13.com.example",
            "iqn.1994-5.com.example",
            "iqn.1994-05.",
            "iqn.1994-05.:x",
            "eui.02004567a425678",
            "eui.02004567a425678g",
            "naa.123",
            "iqn.1994-05.com.example:a b",
            "iqn.1994-05.com.example:a,b",
            "iqn.1994-05.com.example:a/b",
        ] {
            assert!(IscsiName::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn name_of_223_bytes_is_taken_and_of_224_is_not() {
        let name = |len: usize| format!("{HOST}{}", "x".repeat(len - HOST.len()));
        assert!(IscsiName::parse(&name(223)).is_ok());
        assert_eq!(IscsiName::parse(&name(224)), Err(NameError::TooLong(224)));
    }

    #[test]
    fn port_names_carry_isid_and_portal_group() {
        let name = IscsiName::parse(HOST).unwrap();
        let isid = Isid([0x00, 0x02, 0x3D, 0x00, 0x00, 0x0A]);
        assert_eq!(
            initiator_port_name(&name, isid),
            "iqn.1994-05.com.redhat:host9,i,0x00023d00000a"
        );
        assert_eq!(target_port_name(&name, 1), "iqn.1994-05.com.redhat:host9,t,0x0001");
    }

    #[test]
    fn transport_id_with_port_is_format_1() {
        let id = TransportId {
            name: IscsiName::parse("iqn.2026-11.org.example:a").unwrap(),
            isid: Some(Isid([0x80, 0, 0, 1, 2, 3])),
        };
        let mut bytes = vec![0x45, 0, 0, 44];
        bytes.extend_from_slice(b"iqn.2026-11.org.example:a,i,0x800000010203\0\0");
        assert_eq!(id.to_bytes(), bytes);
        assert_eq!(TransportId::parse(&bytes), Ok((id, 48)));
    }

    #[test]
    fn short_transport_id_has_at_least_20_additional_bytes() {
        let id = TransportId { name: IscsiName::parse("iqn.2026-11.org.a").unwrap(), isid: None };
        let mut bytes = vec![0x05, 0, 0, 20];
        bytes.extend_from_slice(b"iqn.2026-11.org.a\0\0\0");
        assert_eq!(id.to_bytes(), bytes);
        assert_eq!(TransportId::parse(&bytes), Ok((id, 24)));
    }

    #[test]
    fn transport_id_that_is_cut_off_is_refused() {
        let id = TransportId { name: IscsiName::parse(HOST).unwrap(), isid: None };
        let bytes = id.to_bytes();
        for len in 0..bytes.len() {
            assert!(TransportId::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_transport_id_or_not(mut bytes: Vec<u8>) {
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0xC0 | 5;
            }
            let _ = TransportId::parse(&bytes);
        }

        #[test]
        fn normal_form_is_stable(name: String) {
            if let Ok(name) = IscsiName::parse(&format!("iqn.2026-11.{name}")) {
                prop_assert_eq!(IscsiName::parse(name.as_str()), Ok(name));
            }
        }
    }
}
