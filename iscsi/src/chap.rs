//! CHAP as iSCSI uses it (RFC 1994, RFC 7143 12.1.3).
//!
//! Both directions are a hash over identifier, secret and challenge. Nothing here draws random
//! bytes: challenges come from the caller. Secrets never show in debug output.

use std::fmt;
use std::hint::black_box;

use thiserror::Error;

use crate::text::parse_number;

/// The shortest secret in bytes (RFC 7143 12.1.3: 96 bits).
pub const MIN_SECRET: usize = 12;

/// The longest challenge in bytes.
pub const MAX_CHALLENGE: usize = 1024;

/// The longest CHAP name in bytes.
pub const MAX_CHAP_NAME: usize = 255;

/// A hash, by the number CHAP_A gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// MD5 (5).
    Md5,
    /// SHA-1 (6).
    Sha1,
    /// SHA-256 (7).
    Sha256,
    /// SHA3-256 (8).
    Sha3_256,
}

impl Algorithm {
    /// The algorithm of a CHAP_A number.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            5 => Some(Self::Md5),
            6 => Some(Self::Sha1),
            7 => Some(Self::Sha256),
            8 => Some(Self::Sha3_256),
            _ => None,
        }
    }

    /// Its CHAP_A number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha1 => 6,
            Self::Sha256 => 7,
            Self::Sha3_256 => 8,
        }
    }

    /// The response to a challenge: hash of identifier, secret and challenge.
    pub fn respond(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Response {
        fn hash<D: sha2::Digest>(identifier: u8, secret: &[u8], challenge: &[u8]) -> Response {
            let mut hash = D::new();
            hash.update([identifier]);
            hash.update(secret);
            hash.update(challenge);
            Response::new(&hash.finalize())
        }
        let hash = match self {
            Self::Md5 => hash::<md5::Md5>,
            Self::Sha1 => hash::<sha1::Sha1>,
            Self::Sha256 => hash::<sha2::Sha256>,
            Self::Sha3_256 => hash::<sha3::Sha3_256>,
        };
        hash(identifier, &secret.0, challenge)
    }
}

/// Which algorithms a policy lets a peer use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithms(u16);

impl Algorithms {
    /// Every one.
    pub const ALL: Self = Self(1 << 5 | 1 << 6 | 1 << 7 | 1 << 8);
    /// SHA-256 and SHA3-256 only.
    pub const STRONG: Self = Self(1 << 7 | 1 << 8);

    /// Without one of them.
    pub const fn without(self, algorithm: Algorithm) -> Self {
        Self(self.0 & !(1 << algorithm.number()))
    }

    /// Whether one may be used.
    pub const fn contains(self, algorithm: Algorithm) -> bool {
        self.0 & (1 << algorithm.number()) != 0
    }

    /// The first allowed algorithm of a CHAP_A list, in the initiator's order (RFC 7143 6.2.1).
    pub fn choose(self, list: &str) -> Option<Algorithm> {
        list.split(',')
            .filter_map(|number| Algorithm::from_number(parse_number(number)?))
            .find(|&algorithm| self.contains(algorithm))
    }
}

/// A response as long as its algorithm makes it. Compared in constant time.
#[derive(Clone, Copy)]
pub struct Response {
    len: u8,
    bytes: [u8; 32],
}

impl Response {
    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether a peer's response is this one.
    pub fn matches(&self, other: &[u8]) -> bool {
        equal_in_constant_time(self.as_bytes(), other)
    }

    fn new(hash: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let len = hash.len().min(bytes.len());
        bytes[..len].copy_from_slice(&hash[..len]);
        Self { len: len as u8, bytes }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({} bytes)", self.len)
    }
}

/// A CHAP secret.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// A secret that is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("CHAP secret of {0} bytes; it must have at least {MIN_SECRET}")]
pub struct ShortSecret(pub usize);

impl Secret {
    /// Takes a secret of at least [`MIN_SECRET`] bytes.
    ///
    /// # Errors
    /// It is shorter.
    pub fn new(secret: impl Into<Vec<u8>>) -> Result<Self, ShortSecret> {
        let secret = secret.into();
        if secret.len() < MIN_SECRET {
            return Err(ShortSecret(secret.len()));
        }
        Ok(Self(secret))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        equal_in_constant_time(&self.0, &other.0)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A CHAP name and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// CHAP_N.
    pub name: String,
    /// The secret both sides know.
    pub secret: Secret,
}

/// What the target asks an initiator for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chap {
    /// Who may authenticate.
    pub initiators: Vec<Credential>,
    /// How the target authenticates itself when it is asked to.
    pub target: Option<Credential>,
    /// Which hashes may be used.
    pub algorithms: Algorithms,
}

/// Why an authentication failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChapError {
    /// Nothing in CHAP_A may be used.
    #[error("no CHAP algorithm of {0:?} is allowed")]
    NoAlgorithm(String),
    /// A key that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key that does not belong into this step.
    #[error("{0} is out of order")]
    OutOfOrder(&'static str),
    /// A value that is not of its key's form.
    #[error("value of {0} is malformed")]
    Malformed(&'static str),
    /// No initiator has the name.
    #[error("CHAP name {0:?} is unknown")]
    UnknownName(String),
    /// The secret is another.
    #[error("CHAP response of {0:?} is wrong")]
    WrongResponse(String),
    /// The initiator wants the target to authenticate itself, and it has no credential.
    #[error("mutual authentication was asked for and is not configured")]
    NoTargetCredential,
    /// The initiator's challenge is the target's own.
    #[error("the initiator sent the target's challenge back")]
    Reflection,
    /// Both directions use one secret.
    #[error("both directions have the same secret")]
    EqualSecrets,
}

/// A challenge that waits for its response.
#[derive(Clone)]
pub struct Challenge {
    /// The hash agreed on.
    pub algorithm: Algorithm,
    /// CHAP_I.
    pub identifier: u8,
    /// CHAP_C.
    pub bytes: [u8; 32],
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge({:?}, {})", self.algorithm, self.identifier)
    }
}

/// What an initiator answers to a challenge.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// CHAP_N.
    pub name: &'a str,
    /// CHAP_R.
    pub response: &'a [u8],
    /// CHAP_I and CHAP_C of the initiator, for mutual authentication.
    pub mutual: Option<(u8, &'a [u8])>,
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({:?})", self.name)
    }
}

impl Chap {
    /// Checks an answer; gives the target's name and response when the initiator asked for them.
    ///
    /// # Errors
    /// The initiator is not who it says, or may not have the target's response.
    pub fn verify(
        &self,
        challenge: &Challenge,
        answer: Answer<'_>,
    ) -> Result<Option<(&str, Response)>, ChapError> {
        let Challenge { algorithm, identifier, bytes } = challenge;
        let Some(initiator) = self.initiators.iter().find(|known| known.name == answer.name) else {
            return Err(ChapError::UnknownName(answer.name.to_owned()));
        };
        let expected = algorithm.respond(*identifier, &initiator.secret, bytes);
        if !expected.matches(answer.response) {
            return Err(ChapError::WrongResponse(answer.name.to_owned()));
        }
        let Some((their_identifier, their_challenge)) = answer.mutual else { return Ok(None) };
        let Some(target) = &self.target else { return Err(ChapError::NoTargetCredential) };
        if their_challenge == bytes {
            return Err(ChapError::Reflection);
        }
        if target.secret == initiator.secret {
            return Err(ChapError::EqualSecrets);
        }
        let response = algorithm.respond(their_identifier, &target.secret, their_challenge);
        Ok(Some((&target.name, response)))
    }
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (a, b)| black_box(acc | (a ^ b))) == 0
}

#[cfg(test)]
mod tests;
