//! VIOSRP: what surrounds SRP between a partition and its virtual SCSI server (LoPAR, appendix on
//! virtual SCSI): command/response queue elements, management datagrams, addressing.
//!
//! A queue element points at an information unit or a datagram in the client's memory; a datagram
//! in turn points at its payload there. Each has its file; none reads more than it is given.

pub mod adapter_info;
pub mod capabilities;
pub mod crq;
pub mod error_log;
pub mod lun;
pub mod mad;
pub mod physical_adapter;

/// Writes `text` into a field of NUL-padded bytes, cut to its size.
pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}

/// The bytes of a field in front of its NUL padding.
pub fn unpadded(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_longer_than_its_field_is_cut() {
        assert_eq!(padded::<3>("abcd"), *b"abc");
    }

    #[test]
    fn padding_is_taken_off() {
        assert_eq!(unpadded(&padded::<8>("ab")), b"ab");
        assert_eq!(unpadded(b"full"), b"full");
        assert_eq!(unpadded(b""), b"");
    }
}
