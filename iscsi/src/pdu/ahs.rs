//! Additional header segments (RFC 7143 11.2.2).

use thiserror::Error;

/// What the additional header segments of a SCSI Command say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ahs<'a> {
    /// CDB bytes from the seventeenth on; empty without an extended CDB.
    pub extended_cdb: &'a [u8],
    /// Expected bidirectional read data length in bytes.
    pub bidi_read_len: Option<u32>,
}

/// Why additional header segments were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AhsError {
    /// A segment announces more bytes than there are.
    #[error("additional header segment of {needed} bytes where {left} are left")]
    Truncated {
        /// Bytes the segment says it has, with its header and padding.
        needed: usize,
        /// Bytes from its start to the end.
        left: usize,
    },
    /// No such type.
    #[error("unknown additional header segment type {0}")]
    UnknownType(u8),
    /// The length does not fit the type.
    #[error("additional header segment type {kind} with length {len}")]
    Length {
        /// Type of the segment.
        kind: u8,
        /// AHSLength as sent.
        len: u16,
    },
    /// Two segments of one type.
    #[error("additional header segment type {0} appears twice")]
    Duplicate(u8),
}

/// Parses all additional header segments of a command: the bytes after the BHS, as many as
/// TotalAHSLength says.
///
/// # Errors
/// A segment that is cut off, unknown, of a wrong length, or repeated.
pub fn parse_ahs(mut bytes: &[u8]) -> Result<Ahs<'_>, AhsError> {
    let mut ahs = Ahs::default();
    while !bytes.is_empty() {
        let [hi, lo, kind, ..] = *bytes else {
            return Err(AhsError::Truncated { needed: 4, left: bytes.len() });
        };
        let (len, kind) = (u16::from_be_bytes([hi, lo]), kind & 0x3F);
        let end = HEADER + usize::from(len);
        let padded = end.next_multiple_of(4);
        if bytes.len() < padded {
            return Err(AhsError::Truncated { needed: padded, left: bytes.len() });
        }
        match kind {
            EXTENDED_CDB => {
                // The reserved byte counts, so a CDB of 17 bytes is the shortest: length 2.
                if !(2..=MAX_EXTENDED_LEN).contains(&len) {
                    return Err(AhsError::Length { kind, len });
                }
                if !ahs.extended_cdb.is_empty() {
                    return Err(AhsError::Duplicate(kind));
                }
                ahs.extended_cdb = &bytes[HEADER + 1..end];
            }
            BIDI_READ => {
                let [_, _, _, _, a, b, c, d, ..] = *bytes else {
                    return Err(AhsError::Length { kind, len });
                };
                if len != BIDI_READ_LEN {
                    return Err(AhsError::Length { kind, len });
                }
                let length = u32::from_be_bytes([a, b, c, d]);
                if ahs.bidi_read_len.replace(length).is_some() {
                    return Err(AhsError::Duplicate(kind));
                }
            }
            other => return Err(AhsError::UnknownType(other)),
        }
        bytes = &bytes[padded..];
    }
    Ok(ahs)
}

const HEADER: usize = 3;
const EXTENDED_CDB: u8 = 1;
const BIDI_READ: u8 = 2;
const BIDI_READ_LEN: u16 = 5;
/// The longest CDB has 260 bytes (SPC-4 4.2.3): 244 in the segment and the reserved byte.
const MAX_EXTENDED_LEN: u16 = 245;
