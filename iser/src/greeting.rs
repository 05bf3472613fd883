//! Private data of the connection manager: what each side can do (RFC 7145 annex A, as Linux has it).
//!
//! Four bytes, of which the first has flags and the others are 0. The connection manager pads what
//! it carries with zeros, so that an initiator that says nothing looks like one that says 0.

/// What a side can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// It takes addresses relative to its registrations.
    pub zero_based: bool,
    /// It invalidates memory, or lets it be invalidated, by Send with Invalidate.
    pub invalidate: bool,
}

impl Abilities {
    /// None.
    pub const NONE: Self = Self { zero_based: false, invalidate: false };

    /// What private data of any length says. The bits say what is *not* possible; without any, or
    /// with the zeros of padding, nothing is.
    pub fn parse(private: &[u8]) -> Self {
        match private.first() {
            None | Some(0) => Self::NONE,
            Some(flags) => Self {
                zero_based: flags & NOT_ZERO_BASED == 0,
                invalidate: flags & NO_INVALIDATE == 0,
            },
        }
    }

    /// What the target answers: it takes addresses as they are, and invalidates memory if the
    /// initiator lets it.
    pub const fn answer(self) -> Self {
        Self { zero_based: false, invalidate: self.invalidate }
    }

    /// As private data.
    pub const fn emit(self) -> [u8; 4] {
        let zero_based = if self.zero_based { 0 } else { NOT_ZERO_BASED };
        let invalidate = if self.invalidate { 0 } else { NO_INVALIDATE };
        [zero_based | invalidate, 0, 0, 0]
    }
}

const NOT_ZERO_BASED: u8 = 0x80;
const NO_INVALIDATE: u8 = 0x40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_invalidated_only_where_the_initiator_says_so() {
        let cases: [(&[u8], bool, u8); 8] = [
            (&[], false, 0xC0),
            (&[0; 56], false, 0xC0),
            (&[0x80], true, 0x80),
            (&[0x80, 0, 0, 0], true, 0x80),
            (&[0xC0, 0, 0, 0], false, 0xC0),
            (&[0x40], false, 0xC0),
            (&[0x80, 0xFF, 0xFF], true, 0x80),
            (&[0xFF; 56], false, 0xC0),
        ];
        for (private, invalidate, answer) in cases {
            let theirs = Abilities::parse(private);
            assert_eq!(theirs.invalidate, invalidate, "{private:02x?}");
            assert_eq!(theirs.answer().emit(), [answer, 0, 0, 0], "{private:02x?}");
        }
    }

    #[test]
    fn what_is_emitted_is_understood() {
        for invalidate in [false, true] {
            let ours = Abilities { zero_based: false, invalidate };
            assert_eq!(Abilities::parse(&ours.emit()), ours);
        }
    }
}
