//! What a driver reads and writes, in the words of its accesses.

use super::*;

const OFFERED: u64 = feature::VERSION_1 | feature::RING_RESET | 1 << 1;

fn registers() -> Registers {
    Registers::new(OFFERED, 3, 4)
}

fn read(registers: &Registers, offset: usize, len: usize) -> u64 {
    let mut bytes = [0xA5; 8];
    registers.read(offset, &mut bytes[..len]);
    bytes[..len].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

fn write(registers: &mut Registers, offset: usize, len: usize, value: u64) -> Option<Action> {
    registers.write(offset, &value.to_le_bytes()[..len])
}

/// Up to FEATURES_OK, with all features that are offered.
fn negotiated() -> Registers {
    let mut registers = registers();
    write(&mut registers, 0x14, 1, 3);
    for half in 0..2 {
        write(&mut registers, 0x08, 4, half);
        write(&mut registers, 0x0C, 4, OFFERED >> (32 * half));
    }
    write(&mut registers, 0x14, 1, 11);
    assert_eq!(read(&registers, 0x14, 1), 11);
    registers
}

#[test]
fn features_are_read_and_accepted_by_halves() {
    let mut registers = registers();
    assert_eq!(read(&registers, 0x04, 4), OFFERED & 0xFFFF_FFFF);
    write(&mut registers, 0x00, 4, 1);
    assert_eq!(read(&registers, 0x04, 4), OFFERED >> 32);
    write(&mut registers, 0x00, 4, 2);
    assert_eq!(read(&registers, 0x04, 4), 0);
    write(&mut registers, 0x08, 4, 2);
    write(&mut registers, 0x0C, 4, 0xFFFF_FFFF);
    assert_eq!((registers.features, read(&registers, 0x0C, 4)), (0, 0));
    assert_eq!(negotiated().features, OFFERED);
}

#[test]
fn features_that_were_not_offered_are_not_ok() {
    for bad in [1u64 << 33 | feature::VERSION_1, 1 << 1] {
        let mut registers = registers();
        for half in 0..2 {
            write(&mut registers, 0x08, 4, half);
            write(&mut registers, 0x0C, 4, bad >> (32 * half));
        }
        write(&mut registers, 0x14, 1, 11);
        assert_eq!(read(&registers, 0x14, 1), 3, "{bad:#x}");
    }
}

#[test]
fn what_was_agreed_on_stays() {
    let mut registers = negotiated();
    write(&mut registers, 0x0C, 4, 0);
    assert_eq!(registers.features, OFFERED);
    registers.offer(0);
    write(&mut registers, 0x00, 4, 0);
    assert_eq!(read(&registers, 0x04, 4), OFFERED & 0xFFFF_FFFF);
}

#[test]
fn queues_are_described_and_start_with_the_driver() {
    let mut registers = negotiated();
    assert_eq!(read(&registers, 0x12, 2), 3);
    write(&mut registers, 0x16, 2, 2);
    assert_eq!((read(&registers, 0x18, 2), read(&registers, 0x1E, 2)), (256, 2));
    write(&mut registers, 0x18, 2, 128);
    // One area by halves, one at once.
    write(&mut registers, 0x20, 4, 0x1000);
    write(&mut registers, 0x24, 4, 0x2);
    write(&mut registers, 0x28, 8, 0x3_0000_2000);
    write(&mut registers, 0x30, 8, 0x4_0000_3000);
    assert_eq!(write(&mut registers, 0x1A, 2, 1), Some(Action::Vectors));
    assert_eq!(write(&mut registers, 0x1C, 2, 1), None);
    let queue = *registers.queue(2).unwrap();
    assert_eq!(queue.areas, [0x2_0000_1000, 0x3_0000_2000, 0x4_0000_3000]);
    assert_eq!((queue.size, queue.vector, queue.enabled), (128, 1, true));
    assert_eq!(write(&mut registers, 0x14, 1, 15), Some(Action::Start));
    assert_eq!(write(&mut registers, 0x14, 1, 15), None);
    // One that runs is not described anew.
    write(&mut registers, 0x18, 2, 64);
    write(&mut registers, 0x20, 8, 0);
    assert_eq!(*registers.queue(2).unwrap(), queue);
    assert_eq!(write(&mut registers, 0x1C, 2, 1), None);
    write(&mut registers, 0x16, 2, 1);
    assert_eq!(write(&mut registers, 0x1C, 2, 1), Some(Action::Enable(1)));
}

#[test]
fn a_queue_stops_until_it_is_told_that_it_has() {
    let mut registers = negotiated();
    write(&mut registers, 0x14, 1, 15);
    assert_eq!(write(&mut registers, 0x3A, 2, 1), None);
    write(&mut registers, 0x1C, 2, 1);
    assert_eq!(write(&mut registers, 0x3A, 2, 1), Some(Action::ResetQueue(0)));
    assert_eq!((read(&registers, 0x3A, 2), read(&registers, 0x1C, 2)), (1, 1));
    registers.reset_queue(0);
    assert_eq!((read(&registers, 0x3A, 2), read(&registers, 0x1C, 2)), (0, 0));
}

#[test]
fn a_queue_and_a_vector_that_are_not_there_read_so() {
    let mut registers = negotiated();
    write(&mut registers, 0x10, 2, 4);
    assert_eq!(read(&registers, 0x10, 2), 0xFFFF);
    write(&mut registers, 0x10, 2, 3);
    assert_eq!(read(&registers, 0x10, 2), 3);
    write(&mut registers, 0x16, 2, 3);
    for offset in [0x18, 0x1A, 0x1C, 0x20, 0x3A] {
        assert_eq!(write(&mut registers, offset, 2, 1), None);
    }
    assert_eq!((read(&registers, 0x18, 2), read(&registers, 0x1A, 2)), (0, 0xFFFF));
    assert_eq!(read(&registers, 0x1C, 2), 0);
}

#[test]
fn only_a_reset_clears_the_status() {
    let mut registers = negotiated();
    write(&mut registers, 0x14, 1, 1);
    assert_eq!(read(&registers, 0x14, 1), 11);
    assert!(!registers.need_reset());
    write(&mut registers, 0x14, 1, 15);
    assert!(!registers.is_live());
    assert_eq!(write(&mut registers, 0x14, 1, 0), Some(Action::Reset));
    // It takes its time.
    assert_eq!(read(&registers, 0x14, 1), 0x4F);
    registers.reset();
    assert_eq!((read(&registers, 0x14, 1), registers.features), (0, 0));
}

#[test]
fn accesses_at_any_place_and_of_any_length_are_harmless() {
    let mut registers = negotiated();
    for offset in 0..80 {
        for len in 0..70 {
            registers.write(offset, &vec![0xFF; len]);
            let mut bytes = vec![0xA5; len];
            registers.read(offset, &mut bytes);
            if offset >= LEN {
                assert!(bytes.iter().all(|&byte| byte == 0));
            }
        }
    }
}
