//! Who sent a command, as reservations see it: an initiator port and a target port, named so that
//! the name outlives sessions and power cycles (SPC-4 5.13.7, 7.6.4).

use std::fmt;
use std::sync::Arc;

/// The I_T nexus a registration belongs to.
///
/// A clone shares the TransportID, and comparing two clones of one identity compares pointers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NexusId {
    /// The initiator port.
    pub transport_id: TransportId,
    /// The target port, by its RELATIVE TARGET PORT IDENTIFIER.
    pub relative_target_port: u16,
}

impl NexusId {
    /// The nexus between an initiator port and a target port.
    pub fn new(transport_id: TransportId, relative_target_port: u16) -> Self {
        Self { transport_id, relative_target_port }
    }

    /// The same initiator port seen through another target port.
    pub fn through(&self, relative_target_port: u16) -> Self {
        Self { transport_id: self.transport_id.clone(), relative_target_port }
    }
}

impl fmt::Debug for NexusId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.transport_id, self.relative_target_port)
    }
}

/// A TransportID (SPC-4 7.6.4) in canonical form: reserved bytes zero, iSCSI names in lower case,
/// the ISID in twelve digits, the least padding. Equal ports have equal bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TransportId(Arc<[u8]>);

impl TransportId {
    /// The longest TransportID this accepts, in bytes.
    pub const MAX_LEN: usize = 252;

    /// An iSCSI initiator port: node name and ISID (format code 01b, SPC-4 7.6.4.6).
    pub fn iscsi(name: &str, isid: [u8; 6]) -> Result<Self, TransportIdError> {
        if name.is_empty() || name.len() > MAX_ISCSI_NAME || name.contains('\0') {
            return Err(TransportIdError::Name { len: name.len() });
        }
        let [a, b, c, d, e, f] = isid;
        let mut text = name.to_ascii_lowercase();
        text.push_str(ISCSI_SEPARATOR);
        text.push_str(&format!("{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}"));
        // At least one null ends the text, and the field is a multiple of four.
        let additional = (text.len() + 1).next_multiple_of(4).max(MIN_ISCSI_ADDITIONAL);
        let mut bytes = vec![0; 4 + additional];
        bytes[0] = ISCSI_PORT_FORMAT | ISCSI;
        bytes[2..4].copy_from_slice(&(additional as u16).to_be_bytes());
        bytes[4..4 + text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(bytes.into()))
    }

    /// An SRP initiator port by its identifier (SPC-4 7.6.4.5).
    pub fn srp(identifier: [u8; 16]) -> Self {
        Self::fixed(SRP, 8, &identifier)
    }

    /// A SAS initiator port by its SAS address (SPC-4 7.6.4.7).
    pub fn sas(address: [u8; 8]) -> Self {
        Self::fixed(SAS, 4, &address)
    }

    /// A Fibre Channel initiator port by its N_Port_Name (SPC-4 7.6.4.2).
    pub fn fibre_channel(name: [u8; 8]) -> Self {
        Self::fixed(FIBRE_CHANNEL, 8, &name)
    }

    /// Reads one TransportID from the front of `bytes`; also returns how many bytes it took.
    ///
    /// An iSCSI TransportID without an ISID (format code 00b) names a device, not a port. The
    /// standard lets a device server reject it, and this does.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), TransportIdError> {
        let &[first, _, hi, lo, ..] = bytes else {
            return Err(TransportIdError::Truncated { needed: FIXED_LEN, have: bytes.len() });
        };
        let (format, protocol) = (first & 0xC0, first & 0x0F);
        if protocol != ISCSI {
            let Some(fixed) = bytes.first_chunk::<FIXED_LEN>() else {
                return Err(TransportIdError::Truncated { needed: FIXED_LEN, have: bytes.len() });
            };
            if format != 0 {
                return Err(TransportIdError::Format { protocol, format: format >> 6 });
            }
            let name = match protocol {
                FIBRE_CHANNEL | IEEE_1394 => 8..16,
                SPI => 2..8,
                SRP => 8..24,
                SAS => 4..12,
                SOP => 2..4,
                _ => return Err(TransportIdError::Protocol(protocol)),
            };
            return Ok((Self::fixed(protocol, name.start, &fixed[name]), FIXED_LEN));
        }
        let additional = usize::from(u16::from_be_bytes([hi, lo]));
        let total = 4 + additional;
        if additional < MIN_ISCSI_ADDITIONAL || additional % 4 != 0 || total > Self::MAX_LEN {
            return Err(TransportIdError::Length(additional));
        }
        let Some(field) = bytes.get(4..total) else {
            return Err(TransportIdError::Truncated { needed: total, have: bytes.len() });
        };
        if format != ISCSI_PORT_FORMAT {
            return Err(TransportIdError::Format { protocol, format: format >> 6 });
        }
        let text = field.split(|&b| b == 0).next().unwrap_or(field);
        let text = str::from_utf8(text).map_err(|_| TransportIdError::NotText)?;
        let (name, digits) =
            text.rsplit_once(ISCSI_SEPARATOR).ok_or(TransportIdError::Separator)?;
        if digits.is_empty() || digits.len() > 12 || !digits.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err(TransportIdError::Isid { len: digits.len() });
        }
        let number = u64::from_str_radix(digits, 16)
            .map_err(|_| TransportIdError::Isid { len: digits.len() })?;
        let [_, _, isid @ ..] = number.to_be_bytes();
        Ok((Self::iscsi(name, isid)?, total))
    }

    /// The TransportID on the wire: 24 to 252 bytes, a multiple of four.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The PROTOCOL IDENTIFIER (SPC-4 7.6.1).
    pub fn protocol(&self) -> u8 {
        self.0.first().map_or(0, |b| b & 0x0F)
    }

    fn fixed(protocol: u8, at: usize, name: &[u8]) -> Self {
        let mut bytes = [0; FIXED_LEN];
        bytes[0] = protocol;
        bytes[at..at + name.len()].copy_from_slice(name);
        Self(Arc::from(bytes.as_slice()))
    }
}

impl fmt::Display for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_bytes();
        if self.protocol() == ISCSI {
            let text = bytes.get(4..).unwrap_or_default();
            let text = text.split(|&b| b == 0).next().unwrap_or_default();
            return f.write_str(&String::from_utf8_lossy(text));
        }
        let (kind, name) = match self.protocol() {
            FIBRE_CHANNEL => ("fc", 8..16),
            SPI => ("spi", 2..8),
            IEEE_1394 => ("sbp", 8..16),
            SRP => ("srp", 8..24),
            SAS => ("sas", 4..12),
            SOP => ("sop", 2..4),
            _ => ("port", 0..bytes.len()),
        };
        write!(f, "{kind}.")?;
        bytes.get(name).unwrap_or_default().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for TransportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransportId({self})")
    }
}

/// Why bytes are no TransportID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportIdError {
    /// It ends beyond the bytes given.
    #[error("a TransportID of {needed} bytes is cut off after {have}")]
    Truncated {
        /// Its whole length.
        needed: usize,
        /// What is there.
        have: usize,
    },
    /// A PROTOCOL IDENTIFIER without a TransportID format.
    #[error("protocol identifier {0:#x} has no TransportID format")]
    Protocol(u8),
    /// A FORMAT CODE that is reserved, or does not name an initiator port.
    #[error("TransportID format code {format} of protocol {protocol:#x} does not name a port")]
    Format {
        /// The PROTOCOL IDENTIFIER.
        protocol: u8,
        /// The FORMAT CODE.
        format: u8,
    },
    /// An ADDITIONAL LENGTH too short, too long or not a multiple of four.
    #[error("additional length {0} of an iSCSI TransportID is not allowed")]
    Length(usize),
    /// The name is not UTF-8.
    #[error("the iSCSI name is not text")]
    NotText,
    /// The name has no `,i,0x` part.
    #[error("the iSCSI TransportID has no separator before its ISID")]
    Separator,
    /// The ISID is not 1 to 12 hexadecimal digits.
    #[error("an ISID of {len} characters is not 1 to 12 hexadecimal digits")]
    Isid {
        /// How many characters it has.
        len: usize,
    },
    /// An iSCSI name that is empty, longer than 223 bytes or holds a null.
    #[error("an iSCSI name of {len} bytes is not allowed")]
    Name {
        /// Its length.
        len: usize,
    },
}

const FIXED_LEN: usize = 24;
const MIN_ISCSI_ADDITIONAL: usize = 20;
const MAX_ISCSI_NAME: usize = 223;
const ISCSI_SEPARATOR: &str = ",i,0x";
const ISCSI_PORT_FORMAT: u8 = 0x40;

const FIBRE_CHANNEL: u8 = 0x0;
const SPI: u8 = 0x1;
const IEEE_1394: u8 = 0x3;
const SRP: u8 = 0x4;
const ISCSI: u8 = 0x5;
const SAS: u8 = 0x6;
const SOP: u8 = 0xA;
