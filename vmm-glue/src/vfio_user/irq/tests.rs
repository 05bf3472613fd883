//! Interrupts as the client gets them.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd as Client};

use super::*;

const PENDING: usize = 0x2000;

fn set(data: IrqData, action: IrqAction, index: u32, start: u32, count: u32) -> SetIrqs {
    SetIrqs { data, action, index, start, count }
}

fn client() -> Client {
    Client::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()
}

fn copies(events: &[&Client]) -> Vec<OwnedFd> {
    events.iter().map(|event| event.as_fd().try_clone_to_owned().unwrap()).collect()
}

fn give(interrupts: &mut Interrupts, index: u32, start: u32, events: &[&Client]) {
    let count = events.len() as u32;
    let set = set(IrqData::EventFd, IrqAction::Trigger, index, start, count);
    interrupts.set(&set, &[], copies(events)).unwrap();
}

fn interrupt(interrupts: &Interrupts, vector: u16) {
    let event = interrupts.event(interrupts.route(vector)).unwrap();
    event.unwrap().write(1).unwrap();
}

fn pending(interrupts: &Interrupts) -> u8 {
    let mut byte = [0xA5];
    interrupts.read(PENDING, PENDING, &mut byte);
    byte[0]
}

#[test]
fn a_vector_goes_straight_to_the_client() {
    let mut interrupts = Interrupts::new(4).unwrap();
    let events = [client(), client()];
    give(&mut interrupts, irq::MSIX, 1, &[&events[0], &events[1]]);
    assert_eq!(interrupts.route(2), Route::Line);
    interrupts.configure((true, false), false);
    interrupt(&interrupts, 2);
    assert_eq!((events[0].read().ok(), events[1].read().ok()), (None, Some(1)));
    assert_eq!(interrupts.route(4), Route::Nowhere);
    assert_eq!(interrupts.route(NO_VECTOR), Route::Nowhere);
}

#[test]
fn what_a_mask_holds_back_comes_with_the_unmask() {
    let mut interrupts = Interrupts::new(4).unwrap();
    interrupts.configure((true, false), false);
    // Nobody has taken it yet.
    interrupt(&interrupts, 1);
    assert_eq!(pending(&interrupts), 2);
    let event = client();
    give(&mut interrupts, irq::MSIX, 1, &[&event]);
    assert_eq!((event.read().ok(), pending(&interrupts)), (Some(1), 0));
    let only = |action| set(IrqData::None, action, irq::MSIX, 1, 1);
    interrupts.set(&only(IrqAction::Mask), &[], vec![]).unwrap();
    interrupt(&interrupts, 1);
    assert_eq!((event.read().ok(), pending(&interrupts)), (None, 2));
    interrupts.set(&only(IrqAction::Unmask), &[], vec![]).unwrap();
    assert_eq!((event.read().ok(), pending(&interrupts)), (Some(1), 0));
    // All at once.
    interrupts.configure((true, true), false);
    interrupt(&interrupts, 1);
    assert_eq!(event.read().ok(), None);
    interrupts.configure((true, false), false);
    assert_eq!(event.read().ok(), Some(1));
}

#[test]
fn the_table_masks_only_when_it_was_written() {
    let mut interrupts = Interrupts::new(2).unwrap();
    let event = client();
    give(&mut interrupts, irq::MSIX, 0, &[&event]);
    interrupts.configure((true, false), false);
    let mut entry = [0xA5; 16];
    interrupts.read(0, PENDING, &mut entry);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert!(matches!(interrupts.route(0), Route::Vector(0, _)));
    interrupts.write(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert_eq!(interrupts.route(0), Route::Held(0));
    interrupts.read(0, PENDING, &mut entry);
    assert_eq!(entry, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 0, 0, 0]);
    interrupt(&interrupts, 0);
    interrupts.write(12, &[0]);
    assert_eq!(event.read().ok(), Some(1));
}

#[test]
fn the_pin_masks_itself_until_the_guest_has_seen_to_it() {
    let mut interrupts = Interrupts::new(2).unwrap();
    let (event, unmask) = (client(), client());
    give(&mut interrupts, irq::INTX, 0, &[&event]);
    let resample = set(IrqData::EventFd, IrqAction::Unmask, irq::INTX, 0, 1);
    interrupts.set(&resample, &[], copies(&[&unmask])).unwrap();
    interrupt(&interrupts, 0);
    interrupts.collect();
    assert_eq!((event.read().ok(), interrupts.is_asserted()), (Some(1), true));
    interrupt(&interrupts, 1);
    interrupts.collect();
    assert_eq!(event.read().ok(), None);
    // The guest unmasks before it has read the status: it comes again.
    interrupts.set(&set(IrqData::None, IrqAction::Unmask, irq::INTX, 0, 1), &[], vec![]).unwrap();
    assert_eq!(event.read().ok(), Some(1));
    assert_eq!((interrupts.read_status(), interrupts.read_status()), (1, 0));
    unmask.write(1).unwrap();
    interrupts.collect();
    assert_eq!(event.read().ok(), None);
    // Disabled by the command register.
    interrupts.configure((false, false), true);
    interrupt(&interrupts, 0);
    interrupts.collect();
    assert_eq!(event.read().ok(), None);
    interrupts.configure((false, false), false);
    assert_eq!(event.read().ok(), Some(1));
}

#[test]
fn a_change_of_the_configuration_is_told() {
    let mut interrupts = Interrupts::new(2).unwrap();
    let (pin, vector) = (client(), client());
    give(&mut interrupts, irq::INTX, 0, &[&pin]);
    give(&mut interrupts, irq::MSIX, 0, &[&vector]);
    interrupts.change(NO_VECTOR);
    assert_eq!((pin.read().ok(), interrupts.read_status()), (Some(1), 2));
    interrupts.configure((true, false), false);
    interrupts.change(0);
    assert_eq!((pin.read().ok(), vector.read().ok()), (None, Some(1)));
}

#[test]
fn sets_that_cannot_be_are_refused() {
    let mut interrupts = Interrupts::new(2).unwrap();
    let event = client();
    let pipe = nix::unistd::pipe().unwrap();
    let trigger =
        |index, start, count| set(IrqData::EventFd, IrqAction::Trigger, index, start, count);
    for (set, descriptors) in [
        (trigger(irq::MSIX, 1, 2), copies(&[&event, &event])),
        (trigger(irq::MSIX, u32::MAX, 1), copies(&[&event])),
        (trigger(irq::MSIX, 0, 2), copies(&[&event])),
        (trigger(irq::MSIX, 0, 1), vec![pipe.0]),
        (trigger(1, 0, 1), copies(&[&event])),
        (trigger(3, 0, 0), vec![]),
        (set(IrqData::EventFd, IrqAction::Mask, irq::INTX, 0, 1), copies(&[&event])),
        (set(IrqData::EventFd, IrqAction::Unmask, irq::MSIX, 0, 1), copies(&[&event])),
        (set(IrqData::Bool, IrqAction::Mask, irq::MSIX, 0, 2), vec![]),
    ] {
        assert_eq!(interrupts.set(&set, &[1], descriptors), Err(libc::EINVAL), "{set:?}");
    }
    // Eventfds are taken away, one by one and all.
    give(&mut interrupts, irq::MSIX, 0, &[&event]);
    interrupts.configure((true, false), false);
    interrupts.set(&trigger(irq::MSIX, 0, 2), &[], vec![]).unwrap();
    assert_eq!(interrupts.route(0), Route::Held(0));
    let none = set(IrqData::None, IrqAction::Trigger, irq::MSIX, 0, 0);
    give(&mut interrupts, irq::MSIX, 0, &[&event]);
    interrupts.set(&none, &[], vec![]).unwrap();
    assert_eq!(interrupts.route(0), Route::Held(0));
}
