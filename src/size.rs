//! Sizes in bytes as people write them: `512`, `64K`, `1G`.

use thiserror::Error;

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Neither a number nor a number with a unit.
    #[error("{0:?} is not a size: write bytes, or a whole number with K, M, G, T or P")]
    Malformed(String),
    /// More than 2^63 bytes.
    #[error("{0:?} is larger than any disk")]
    TooLarge(String),
    /// Nothing.
    #[error("a size of 0 bytes leaves no disk")]
    Zero,
}

/// Parses a size. Units are powers of 1024 and may be written `K`, `KiB`, `k`.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(malformed());
    }
    let unit = unit.to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").unwrap_or(&unit) {
        "" if unit.is_empty() => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(malformed()),
    };
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match size {
        Some(0) => Err(SizeError::Zero),
        Some(size) if size <= MAX => Ok(size),
        _ => Err(SizeError::TooLarge(text.to_owned())),
    }
}

/// A size in the largest unit that it has at least one of, to a tenth of it.
pub fn show(bytes: u64) -> String {
    let units = [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let Some(&(shift, name)) = units.iter().find(|&&(shift, _)| bytes >= 1 << shift) else {
        return format!("{bytes} B");
    };
    if bytes.is_multiple_of(1 << shift) {
        return format!("{} {name}", bytes >> shift);
    }
    format!("{:.1} {name}", bytes as f64 / (1u64 << shift) as f64)
}

/// Offsets are signed in the kernel's interface.
const MAX: u64 = i64::MAX as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, size) in [
            ("512", 512),
            ("4k", 4096),
            ("1M", 1 << 20),
            ("1G", 1 << 30),
            ("2GiB", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "G", "1.5G", "1GB", "-1", "1 G", "0x10", "1iB"] {
            assert_eq!(parse(text), Err(SizeError::Malformed(text.into())), "{text}");
        }
        assert_eq!(parse("0"), Err(SizeError::Zero));
        assert!(matches!(parse("16777216T"), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(show(1 << 30), "1 GiB");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show(3 << 19), "1.5 MiB");
        assert_eq!(show(1000), "1000 B");
    }
}
