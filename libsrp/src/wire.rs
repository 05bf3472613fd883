//! What every unit shares: how layouts are declared, read and written.
//!
//! A layout (`RawX`) is private to its file and mirrors the bytes; the public value (`X`) has
//! `parse`, which checks every length, and `emit`, which writes every byte including the reserved
//! ones. Bytes behind a unit are not an error: several initiators pad.

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A unit that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The bytes end before the unit does.
    #[error("{got} bytes where at least {needed} are needed")]
    Truncated {
        /// Bytes the unit takes, as far as it could be read.
        needed: usize,
        /// Bytes there were.
        got: usize,
    },
    /// The bytes hold another unit.
    #[error("opcode {found:#04x} where {expected:#04x} was expected")]
    Opcode {
        /// The opcode of the unit asked for.
        expected: u8,
        /// The opcode in the bytes.
        found: u8,
    },
}

/// The buffer to write to is too small; nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{needed} bytes do not fit a buffer of {room}")]
pub struct NoRoom {
    /// Bytes to be written.
    pub needed: usize,
    /// Bytes the buffer holds.
    pub room: usize,
}

/// The layout at the front of `bytes`, and what follows it.
pub(crate) fn read<T>(bytes: &[u8]) -> Result<(&T, &[u8]), WireError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    T::ref_from_prefix(bytes)
        .map_err(|_| WireError::Truncated { needed: size_of::<T>(), got: bytes.len() })
}

/// As [`read`], for a layout that starts with an opcode.
pub(crate) fn read_unit<T>(bytes: &[u8], expected: u8) -> Result<(&T, &[u8]), WireError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let (raw, rest) = read(bytes)?;
    match bytes.first() {
        Some(&found) if found != expected => Err(WireError::Opcode { expected, found }),
        _ => Ok((raw, rest)),
    }
}

/// Writes a layout to the front of `out`; gives its size.
pub(crate) fn write<T: IntoBytes + Immutable>(raw: &T, out: &mut [u8]) -> Result<usize, NoRoom> {
    room_for(size_of::<T>(), out)?.copy_from_slice(raw.as_bytes());
    Ok(size_of::<T>())
}

/// The first `needed` bytes of `out`.
pub(crate) fn room_for(needed: usize, out: &mut [u8]) -> Result<&mut [u8], NoRoom> {
    let room = out.len();
    out.get_mut(..needed).ok_or(NoRoom { needed, room })
}

/// Declares a layout of an exact size, with big-endian fields.
macro_rules! raw {
    ($(#[$meta:meta])* struct $name:ident = $size:literal { $($field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        struct $name { $($field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

/// Declares an enumeration of wire codes that keeps codes it does not know.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        pub enum $name:ident($repr:ty) { $($(#[$vmeta:meta])* $variant:ident = $code:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vmeta])* $variant,)+
            /// A code not named here, as it came.
            Unknown($repr),
        }

        impl $name {
            /// What a code on the wire stands for.
            pub const fn from_code(code: $repr) -> Self {
                match code {
                    $($code => Self::$variant,)+
                    other => Self::Unknown(other),
                }
            }

            /// The code on the wire.
            pub const fn code(self) -> $repr {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Unknown(other) => other,
                }
            }
        }
    };
}

pub(crate) use {codes, raw};
