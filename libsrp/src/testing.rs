//! What the tests of every unit share.

/// Checks a unit both ways: bytes to value; value into a buffer of 0xA5 to the same bytes and
/// not one more; one byte short and empty are errors; junk behind is ignored; one byte of room
/// too few is an error that writes nothing.
macro_rules! round_trip {
    ($bytes:expr, $value:expr, $parse:expr, $emit:expr $(,)?) => {{
        let bytes: &[u8] = &$bytes[..];
        let value = $value;
        assert_eq!($parse(bytes), Ok(value));

        let mut out = std::vec![0xA5; bytes.len() + 8];
        assert_eq!($emit(&value, &mut out), Ok(bytes.len()));
        assert_eq!(&out[..bytes.len()], bytes);
        assert_eq!(out[bytes.len()..], [0xA5; 8]);

        assert!($parse(&bytes[..bytes.len() - 1]).is_err());
        assert!($parse(&[]).is_err());
        assert_eq!($parse(&out), Ok(value));

        let mut short = std::vec![0xA5; bytes.len() - 1];
        assert!($emit(&value, &mut short).is_err());
        assert!(short.iter().all(|&byte| byte == 0xA5));
    }};
}

pub(crate) use round_trip;
