//! The registers of a vCPU that stands at a hypervisor call.
//!
//! The stub gives them in the byte order that the vCPU is in, without saying which that is. The
//! address where it stopped is known, so that tells.

/// All registers as the stub gave them: r0 to r31, the address, the machine state, and more that is
/// given back as it came; eight bytes each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: Vec<u8>,
    big: bool,
    site: u64,
}

impl Frame {
    /// Of registers whose address is one of `sites`. `None` if it is none of them.
    pub fn at(bytes: Vec<u8>, sites: &[u64]) -> Option<Self> {
        let at: [u8; 8] = bytes.get(ADDRESS * 8..ADDRESS * 8 + 8)?.try_into().ok()?;
        let little = u64::from_le_bytes(at);
        let big = u64::from_be_bytes(at);
        let (site, is_big) = match (sites.contains(&little), sites.contains(&big)) {
            (true, _) => (little, false),
            (false, true) => (big, true),
            (false, false) => return None,
        };
        Some(Self { bytes, big: is_big, site })
    }

    /// Where it stands.
    pub fn site(&self) -> u64 {
        self.site
    }

    /// The number of the hypervisor call: r3.
    pub fn call(&self) -> u64 {
        self.register(3)
    }

    /// Its arguments: r4 and on.
    pub fn arguments(&self) -> [u64; 8] {
        std::array::from_fn(|number| self.register(number + 4))
    }

    /// The call returned this; the vCPU goes on behind it.
    pub fn returned(&mut self, status: i64) {
        self.set(3, status.cast_unsigned());
        self.set(ADDRESS, self.site.wrapping_add(4));
    }

    /// The vCPU goes on at this address.
    pub fn jump(&mut self, to: u64) {
        self.set(ADDRESS, to);
    }

    /// For the stub.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn register(&self, number: usize) -> u64 {
        let bytes = self.bytes.get(number * 8..number * 8 + 8);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        if self.big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) }
    }

    fn set(&mut self, number: usize, value: u64) {
        let bytes = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        if let Some(place) = self.bytes.get_mut(number * 8..number * 8 + 8) {
            place.copy_from_slice(&bytes);
        }
    }
}

/// The number of the register with the address of the next instruction.
const ADDRESS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: u64 = 0xC000_0000_000D_FCB0;

    fn registers(order: fn(u64) -> [u8; 8]) -> Vec<u8> {
        (0..34).flat_map(|number| order(if number == 32 { SITE } else { 0x100 + number })).collect()
    }

    #[test]
    fn both_byte_orders_are_read_and_written() {
        for order in [u64::to_le_bytes, u64::to_be_bytes] {
            let mut frame = Frame::at(registers(order), &[1, SITE]).unwrap();
            assert_eq!((frame.site(), frame.call()), (SITE, 0x103));
            assert_eq!(frame.arguments(), [0x104, 0x105, 0x106, 0x107, 0x108, 0x109, 0x10A, 0x10B]);
            frame.returned(-4);
            assert_eq!(frame.bytes()[24..32], order((-4_i64).cast_unsigned()));
            assert_eq!(frame.bytes()[256..264], order(SITE + 4));
            assert_eq!(frame.bytes()[32..40], order(0x104));
        }
    }

    #[test]
    fn another_address_is_no_call() {
        assert_eq!(Frame::at(registers(u64::to_le_bytes), &[SITE + 4]), None);
    }

    #[test]
    fn too_few_registers_are_none() {
        assert_eq!(Frame::at(vec![0; 263], &[0]), None);
    }
}
