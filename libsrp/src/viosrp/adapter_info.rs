//! ADAPTER INFO: what client and server tell of themselves.

use zerocopy::big_endian::U32;

use crate::wire::{self, NoRoom, WireError, codes, raw};

/// The payload of the datagram. The client fills it in, the server overwrites it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// The SRP version, NUL-padded: [`Self::SRP_VERSION`]. Linux works around old servers
    /// by comparing this text.
    pub srp_version: [u8; 8],
    /// The partition's name, NUL-padded.
    pub partition_name: [u8; 96],
    /// The partition's number.
    pub partition_number: u32,
    /// The version of the datagrams: 1.
    pub mad_version: u32,
    /// The operating system. Linux sends ENABLE FAST FAIL and CAPABILITIES to AIX only.
    pub os_type: OsType,
    /// The longest transfer of each port, in bytes; clients read the first.
    pub max_transfer: [u32; 8],
}

impl AdapterInfo {
    /// Bytes of the payload.
    pub const LEN: usize = size_of::<RawAdapterInfo>();
    /// What servers state as SRP version.
    pub const SRP_VERSION: [u8; 8] = *b"16.a\0\0\0\0";
    /// What servers state as version of the datagrams.
    pub const MAD_VERSION: u32 = 1;

    /// Reads the payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (raw, _) = wire::read::<RawAdapterInfo>(bytes)?;
        Ok(Self {
            srp_version: raw.srp_version,
            partition_name: raw.partition_name,
            partition_number: raw.partition_number.get(),
            mad_version: raw.mad_version.get(),
            os_type: OsType::from_code(raw.os_type.get()),
            max_transfer: raw.max_transfer.map(U32::get),
        })
    }

    /// Writes the payload; gives the bytes written.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, NoRoom> {
        let raw = RawAdapterInfo {
            srp_version: self.srp_version,
            partition_name: self.partition_name,
            partition_number: self.partition_number.into(),
            mad_version: self.mad_version.into(),
            os_type: self.os_type.code().into(),
            max_transfer: self.max_transfer.map(U32::new),
        };
        wire::write(&raw, out)
    }
}

codes! {
    /// Operating systems.
    pub enum OsType(u32) {
        /// OS/400.
        Os400 = 1,
        /// Linux.
        Linux = 2,
        /// AIX, and so the Virtual I/O Server.
        Aix = 3,
        /// Open Firmware.
        OpenFirmware = 4,
    }
}

raw! {
    struct RawAdapterInfo = 148 {
        srp_version: [u8; 8],
        partition_name: [u8; 96],
        partition_number: U32,
        mad_version: U32,
        os_type: U32,
        max_transfer: [U32; 8],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::round_trip;
    use crate::viosrp::padded;

    #[test]
    fn server_information_round_trips() {
        let mut bytes = [0; 148];
        bytes[..4].copy_from_slice(b"16.a");
        bytes[8..13].copy_from_slice(b"vscsi");
        bytes[104..120].copy_from_slice(&[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0x10, 0, 0]);
        let info = AdapterInfo {
            srp_version: AdapterInfo::SRP_VERSION,
            partition_name: padded("vscsi"),
            partition_number: 7,
            mad_version: AdapterInfo::MAD_VERSION,
            os_type: OsType::Aix,
            max_transfer: [0x10_0000, 0, 0, 0, 0, 0, 0, 0],
        };
        round_trip!(bytes, info, AdapterInfo::parse, AdapterInfo::emit);
    }

    #[test]
    fn last_port_ends_at_the_last_byte() {
        let mut bytes = [0; 148];
        bytes[147] = 9;
        assert_eq!(AdapterInfo::parse(&bytes).unwrap().max_transfer, [0, 0, 0, 0, 0, 0, 0, 9]);
    }
}
