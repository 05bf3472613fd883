//! The text of login and text PDUs: `key=value` pairs, each ended by a zero byte (RFC 7143 6.1).

use std::fmt;

use thiserror::Error;

/// The longest text a peer may build up over several PDUs, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;

/// The longest key name in bytes.
pub const MAX_KEY: usize = 63;

/// The longest value of a key that does not say otherwise, in bytes.
pub const MAX_VALUE: usize = 255;

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TextError {
    /// The text grew past [`MAX_TEXT`].
    #[error("text of more than {MAX_TEXT} bytes")]
    TooLong,
    /// The last pair has no zero byte behind it.
    #[error("text ends within a pair")]
    NotTerminated,
    /// A pair without an equals sign.
    #[error("{0:?} is not a key=value pair")]
    NoEquals(String),
    /// A key name that is empty, too long, or made of other characters than keys have.
    #[error("{0:?} is not a key name")]
    InvalidKey(String),
    /// A value that is not UTF-8.
    #[error("value of {0} is not UTF-8")]
    NotUtf8(String),
}

/// The pairs of a complete text, in order. After an error there are no more.
///
/// Zero bytes with nothing before them are skipped: some initiators count padding as text.
pub fn pairs(text: &[u8]) -> Pairs<'_> {
    Pairs { rest: text }
}

/// The iterator of [`pairs`].
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<(&'a str, &'a str), TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|&byte| byte != 0)?;
        let rest = &self.rest[start..];
        let Some(end) = rest.iter().position(|&byte| byte == 0) else {
            self.rest = &[];
            return Some(Err(TextError::NotTerminated));
        };
        self.rest = &rest[end + 1..];
        let pair = parse_pair(&rest[..end]);
        if pair.is_err() {
            self.rest = &[];
        }
        Some(pair)
    }
}

/// A text that is being written.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl Text {
    /// An empty text.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one pair.
    pub fn push(&mut self, key: &str, value: impl fmt::Display) {
        use std::io::Write;
        // A Vec takes every write.
        let _ = write!(self.0, "{key}={value}\0");
    }

    /// The bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

/// Gathers a text that a peer sends in several PDUs by the C bit.
#[derive(Clone, Default)]
pub struct Accumulator(Vec<u8>);

impl Accumulator {
    /// Adds the data segment of one PDU.
    ///
    /// # Errors
    /// [`TextError::TooLong`]; nothing was added.
    pub fn push(&mut self, data: &[u8]) -> Result<(), TextError> {
        if self.0.len() + data.len() > MAX_TEXT {
            return Err(TextError::TooLong);
        }
        self.0.extend_from_slice(data);
        Ok(())
    }

    /// Whether nothing was gathered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The whole text, leaving nothing behind.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl fmt::Debug for Accumulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text may hold CHAP responses.
        write!(f, "Accumulator({} bytes)", self.0.len())
    }
}

/// A text to send that may need several PDUs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct LongText {
    bytes: Vec<u8>,
    sent: usize,
}

impl LongText {
    /// A text of which nothing was sent.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0 }
    }

    /// The next piece of at most `max` bytes, and whether more follows (the C bit).
    pub fn next_piece(&mut self, max: usize) -> (&[u8], bool) {
        let start = self.sent;
        self.sent = self.bytes.len().min(start.saturating_add(max.max(1)));
        (&self.bytes[start..self.sent], self.sent < self.bytes.len())
    }

    /// Whether everything was sent.
    pub fn is_done(&self) -> bool {
        self.sent == self.bytes.len()
    }
}

impl fmt::Debug for LongText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LongText({} of {} bytes sent)", self.sent, self.bytes.len())
    }
}

/// A number in decimal or, behind `0x`, in hexadecimal. `None` for anything else.
pub fn parse_number(value: &str) -> Option<u64> {
    match strip_radix(value, 'x') {
        Some(digits) if digits.bytes().all(|d| d.is_ascii_hexdigit()) => {
            u64::from_str_radix(digits, 16).ok()
        }
        None if value.bytes().all(|d| d.is_ascii_digit()) => value.parse().ok(),
        _ => None,
    }
}

/// A numeric range `low~high`, or one number for both ends. `None` unless low ≤ high.
pub fn parse_range(value: &str) -> Option<(u64, u64)> {
    let (low, high) = match value.split_once('~') {
        Some((low, high)) => (parse_number(low)?, parse_number(high)?),
        None => (parse_number(value)?, parse_number(value)?),
    };
    (low <= high).then_some((low, high))
}

/// `Yes` or `No`.
pub fn parse_boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// The way a boolean is written.
pub const fn boolean(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// A binary value of at most `max` bytes in hexadecimal (`0x`) or base64 (`0b`). `None` for
/// anything else. An odd number of hexadecimal digits has a leading zero left out.
pub fn parse_binary(value: &str, max: usize) -> Option<Vec<u8>> {
    if let Some(digits) = strip_radix(value, 'x') {
        return parse_hex(digits.as_bytes(), max);
    }
    parse_base64(strip_radix(value, 'b')?.as_bytes(), max)
}

/// A binary value in hexadecimal, the way to write it that every peer reads.
#[derive(Clone, Copy)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn parse_pair(pair: &[u8]) -> Result<(&str, &str), TextError> {
    let lossy =
        |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_KEY + 1)]).into_owned();
    let Some(equals) = pair.iter().position(|&byte| byte == b'=') else {
        return Err(TextError::NoEquals(lossy(pair)));
    };
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    let invalid = || TextError::InvalidKey(lossy(key));
    if key.is_empty() || key.len() > MAX_KEY || !key.iter().all(|&byte| is_key_byte(byte)) {
        return Err(invalid());
    }
    let key = str::from_utf8(key).map_err(|_| invalid())?;
    let value = str::from_utf8(value).map_err(|_| TextError::NotUtf8(key.to_owned()))?;
    Ok((key, value))
}

const fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+' | b'@' | b'_' | b'#')
}

fn strip_radix(value: &str, letter: char) -> Option<&str> {
    let rest = value.strip_prefix('0')?;
    let rest = rest.strip_prefix([letter, letter.to_ascii_uppercase()])?;
    (!rest.is_empty()).then_some(rest)
}

fn parse_hex(digits: &[u8], max: usize) -> Option<Vec<u8>> {
    if digits.len().div_ceil(2) > max {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).map(|n| n as u8);
    let (head, tail) = digits.split_at(digits.len() % 2);
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    for &digit in head {
        bytes.push(nibble(digit)?);
    }
    for pair in tail.chunks_exact(2) {
        bytes.push(nibble(pair[0])? << 4 | nibble(pair[1])?);
    }
    Some(bytes)
}

fn parse_base64(encoded: &[u8], max: usize) -> Option<Vec<u8>> {
    let end = encoded.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    let (digits, padding) = encoded.split_at(end);
    if padding.len() > 2 || (!padding.is_empty() && !encoded.len().is_multiple_of(4)) {
        return None;
    }
    if digits.len() % 4 == 1 || digits.len() / 4 * 3 > max {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for quad in digits.chunks(4) {
        let mut bits = 0_u32;
        for &digit in quad {
            bits = bits << 6 | sextet(digit)?;
        }
        let [_, a, b, c] = (bits << (6 * (4 - quad.len()))).to_be_bytes();
        bytes.extend_from_slice(&[a, b, c][..quad.len() - 1]);
    }
    (bytes.len() <= max).then_some(bytes)
}

fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
        pairs(text).collect()
    }

    #[test]
    fn pairs_come_in_order() {
        assert_eq!(all(b"A=1\0B=x=y\0C=\0"), Ok(vec![("A", "1"), ("B", "x=y"), ("C", "")]));
    }

    #[test]
    fn padding_counted_as_text_is_skipped() {
        assert_eq!(all(b"A=1\0\0\0"), Ok(vec![("A", "1")]));
    }

    #[test]
    fn pair_without_zero_byte_is_an_error() {
        assert_eq!(all(b"A=1\0B=2"), Err(TextError::NotTerminated));
    }

    #[test]
    fn pair_without_equals_sign_is_an_error() {
        assert_eq!(all(b"AB\0"), Err(TextError::NoEquals("AB".into())));
    }

    #[test]
    fn key_of_63_bytes_is_taken_and_of_64_is_not() {
        let text = |len: usize| format!("{}=v\0", "K".repeat(len));
        assert!(all(text(63).as_bytes()).is_ok());
        assert_eq!(all(text(64).as_bytes()), Err(TextError::InvalidKey("K".repeat(64))));
    }

    #[test]
    fn empty_key_is_an_error() {
        assert_eq!(all(b"=v\0"), Err(TextError::InvalidKey(String::new())));
    }

    #[test]
    fn value_that_is_not_utf8_is_an_error() {
        assert_eq!(all(b"A=\xFF\0"), Err(TextError::NotUtf8("A".into())));
    }

    #[test]
    fn text_reads_back_what_was_pushed() {
        let mut text = Text::new();
        text.push("MaxBurstLength", 262_144);
        text.push("InitialR2T", boolean(false));
        assert_eq!(text.as_bytes(), b"MaxBurstLength=262144\0InitialR2T=No\0");
    }

    #[test]
    fn accumulator_stops_at_its_limit() {
        let mut text = Accumulator::default();
        for _ in 0..8 {
            text.push(&[b'a'; 8192]).unwrap();
        }
        assert_eq!(text.push(b"b"), Err(TextError::TooLong));
        assert_eq!(text.take().len(), MAX_TEXT);
        assert!(text.is_empty());
    }

    #[test]
    fn long_text_is_cut_and_says_when_more_follows() {
        let mut text = LongText::new(b"abcdefg".to_vec());
        assert_eq!(text.next_piece(3), (&b"abc"[..], true));
        assert_eq!(text.next_piece(3), (&b"def"[..], true));
        assert_eq!(text.next_piece(3), (&b"g"[..], false));
        assert!(text.is_done());
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        for (value, number) in [
            ("0", Some(0)),
            ("262144", Some(262_144)),
            ("0x1F", Some(31)),
            ("0XfF", Some(255)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("0x", None),
            ("-1", None),
            ("+1", None),
            ("0x+1", None),
            ("1 ", None),
            ("12a", None),
        ] {
            assert_eq!(parse_number(value), number, "{value:?}");
        }
    }

    #[test]
    fn ranges_need_their_ends_in_order() {
        assert_eq!(parse_range("1~0x10"), Some((1, 16)));
        assert_eq!(parse_range("7"), Some((7, 7)));
        assert_eq!(parse_range("2~1"), None);
        assert_eq!(parse_range("1~"), None);
    }

    #[test]
    fn booleans_are_case_sensitive() {
        assert_eq!(parse_boolean("Yes"), Some(true));
        assert_eq!(parse_boolean("No"), Some(false));
        assert_eq!(parse_boolean("yes"), None);
    }

    #[test]
    fn binaries_are_hexadecimal_or_base64() {
        for (value, bytes) in [
            ("0x00ff", Some(&[0, 255][..])),
            ("0Xabc", Some(&[0x0A, 0xBC])),
            ("0bZm9v", Some(b"foo")),
            ("0BZm8=", Some(b"fo")),
            ("0bZg==", Some(b"f")),
            ("0bZg", Some(b"f")),
            ("0bZ===", None),
            ("0bZm9v=", None),
            ("0bZ", None),
            ("0b", None),
            ("0x", None),
            ("0xg0", None),
            ("00ff", None),
        ] {
            assert_eq!(parse_binary(value, 64).as_deref(), bytes, "{value:?}");
        }
    }

    #[test]
    fn binary_longer_than_allowed_is_refused() {
        assert!(parse_binary("0x0011", 2).is_some());
        assert!(parse_binary("0x001122", 2).is_none());
        assert!(parse_binary("0bZm9v", 3).is_some());
        assert!(parse_binary("0bZm9vZg", 3).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_pairs_or_an_error(text: Vec<u8>) {
            for (key, _) in pairs(&text).flatten() {
                prop_assert!(!key.is_empty() && key.len() <= MAX_KEY);
            }
        }

        #[test]
        fn any_value_parses_or_does_not(value: String) {
            let _ = (parse_number(&value), parse_range(&value), parse_boolean(&value));
            prop_assert!(parse_binary(&value, 8).is_none_or(|bytes| bytes.len() <= 8));
        }

        #[test]
        fn hexadecimal_round_trips(bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            prop_assert_eq!(parse_binary(&Hex(&bytes).to_string(), 100), Some(bytes));
        }
    }
}
