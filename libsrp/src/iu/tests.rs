use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::Tag;

const RULES: DataRules = DataRules::SRP;

/// The smallest unit of each opcode: all zero but for it.
fn smallest(opcode: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[0] = opcode;
    bytes
}

const FROM_INITIATOR: [(u8, usize); 6] =
    [(0x00, 64), (0x01, 48), (0x02, 48), (0x03, 16), (0x41, 16), (0x42, 16)];
const FROM_TARGET: [(u8, usize); 6] =
    [(0x80, 16), (0x81, 16), (0x82, 36), (0xC0, 52), (0xC1, 36), (0xC2, 32)];

#[test]
fn initiator_units_have_their_exact_sizes() {
    for (opcode, len) in FROM_INITIATOR {
        let bytes = smallest(opcode, len);
        let unit = InitiatorIu::parse(&bytes, &RULES).unwrap();
        let mut out = [0xA5; 64];
        assert_eq!(unit.emit(&mut out), Ok(len));
        assert_eq!(out[..len], bytes);
        assert!(InitiatorIu::parse(&bytes[..len - 1], &RULES).is_err());
        let mut junk = bytes.clone();
        junk.extend([0xA5; 9]);
        assert_eq!(InitiatorIu::parse(&junk, &RULES), Ok(unit));
    }
}

#[test]
fn target_units_have_their_exact_sizes() {
    for (opcode, len) in FROM_TARGET {
        let bytes = smallest(opcode, len);
        let unit = TargetIu::parse(&bytes).unwrap();
        let mut out = [0xA5; 64];
        assert_eq!(unit.emit(&mut out), Ok(len));
        assert_eq!(out[..len], bytes);
        assert!(TargetIu::parse(&bytes[..len - 1]).is_err());
        let mut junk = bytes.clone();
        junk.extend([0xA5; 9]);
        assert_eq!(TargetIu::parse(&junk), Ok(unit));
    }
}

#[test]
fn opcodes_of_the_other_side_are_unexpected() {
    for code in 0..=u8::MAX {
        let bytes = smallest(code, 64);
        let unexpected = IuError::Unexpected(Opcode::from_code(code));
        if !FROM_INITIATOR.iter().any(|(known, _)| *known == code) {
            assert_eq!(InitiatorIu::parse(&bytes, &RULES), Err(unexpected));
        }
        if !FROM_TARGET.iter().any(|(known, _)| *known == code) {
            assert_eq!(TargetIu::parse(&bytes), Err(unexpected));
        }
    }
}

#[test]
fn nothing_is_truncated() {
    let error = IuError::Wire(WireError::Truncated { needed: 1, got: 0 });
    assert_eq!(InitiatorIu::parse(&[], &RULES), Err(error));
    assert_eq!(TargetIu::parse(&[]), Err(error));
}

#[test]
fn tags_are_copied_raw() {
    for (opcode, len) in FROM_INITIATOR {
        let mut bytes = smallest(opcode, len);
        bytes[8..16].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        let tag = match InitiatorIu::parse(&bytes, &RULES).unwrap() {
            InitiatorIu::LoginReq(unit) => unit.tag,
            InitiatorIu::TskMgmt(unit) => unit.tag,
            InitiatorIu::Cmd(unit) => unit.tag,
            InitiatorIu::ILogout(unit) => unit.tag,
            InitiatorIu::CredRsp(unit) => unit.tag,
            InitiatorIu::AerRsp(unit) => unit.tag,
        };
        assert_eq!(tag, Tag([8, 7, 6, 5, 4, 3, 2, 1]));
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        opcode in prop::sample::select(std::vec![0, 1, 2, 3, 0x41, 0x42, 0x80, 0x81, 0x82, 0xC0, 0xC1, 0xC2, 0x55]),
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = opcode;
        }
        let mut out = [0xA5; 8192];
        for rules in [DataRules::SRP, DataRules::VSCSI] {
            if let Ok(unit) = InitiatorIu::parse(&bytes, &rules) {
                let len = unit.emit(&mut out).unwrap();
                prop_assert_eq!(InitiatorIu::parse(&out[..len], &rules), Ok(unit));
            }
        }
        if let Ok(unit) = TargetIu::parse(&bytes) {
            let len = unit.emit(&mut out).unwrap();
            prop_assert_eq!(TargetIu::parse(&out[..len]), Ok(unit));
        }
    }
}
