//! Results of hypervisor calls, and the connections they begin and end.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use libsrp::viosrp::crq::{Format, Init, TransportEvent};
use vmm_glue::{
    crq::{Adapter, Delivered, Delivery, Hcall, Interrupt, Partner, Window},
    memory::GuestMap,
};

use super::{
    partition::guest::{IOBA, MEMORY, QUEUE, UNITS, command, linux_login},
    *,
};

const INIT: Element = Element::Init(Init::Init);
const COMPLETE: Element = Element::Init(Init::Complete);

#[test]
fn a_queue_is_registered_once_and_free_when_nothing_touches_it() {
    let mut world = World::new();
    let guest = &mut world.guest;
    assert_eq!(guest.send(INIT), Hcall::Closed);
    assert_eq!(guest.register(), Hcall::Success);
    assert_eq!(guest.register(), Hcall::Resource);
    guest.free().unwrap();
    assert_eq!(guest.adapter.free_crq(), Hcall::Success);
    assert_eq!(guest.send(INIT), Hcall::Closed);
    guest.connect().unwrap();
}

#[test]
fn queues_that_are_no_whole_mapped_pages_are_refused() {
    let world = World::new();
    let adapter = &world.guest.adapter;
    let (map, end) = (&world.guest.window, IOBA + MEMORY);
    let refused =
        [(QUEUE + 8, 4096), (QUEUE, 0), (QUEUE, 4097), (end, 4096), (end - 4096, 8192), (0, 4096)];
    for (ioba, len) in refused {
        assert_eq!(adapter.reg_crq(ioba, len), Hcall::Parameter, "{ioba:#x} {len}");
    }
    assert_eq!(adapter.reg_crq(QUEUE, !0xFFF), Hcall::Parameter);
    // Readable only.
    let _ = map.put_tce(QUEUE, 1);
    assert_eq!(adapter.reg_crq(QUEUE, 4096), Hcall::Parameter);
    let _ = map.put_tce(QUEUE, 3);
    assert_eq!(adapter.reg_crq(QUEUE, 8192), Hcall::Success);
}

#[test]
fn elements_that_a_client_may_not_send_are_refused() {
    let mut world = World::new();
    world.guest.connect().unwrap();
    for first in [0x00u64, 0x01, 0x7F, 0xFF] {
        assert_eq!(world.guest.adapter.send_crq(first << 56, 0), Hcall::Parameter, "{first:#x}");
    }
    assert_eq!(world.guest.adapter.send_crq(0x81 << 56, 0), Hcall::Success);
    assert_eq!(world.guest.send(INIT), Hcall::Success);
    assert_eq!(world.wait(), COMPLETE);
}

#[test]
fn a_server_that_is_not_there_is_closed_and_invites_when_it_comes() {
    let mut world = World::new();
    world.guest.adapter.set_online(false);
    assert_eq!(world.guest.register(), Hcall::Closed);
    assert_eq!(world.guest.send(INIT), Hcall::Closed);
    assert!(world.is_quiet());
    world.guest.adapter.set_online(true);
    assert_eq!(world.wait(), INIT);
    assert_eq!(world.guest.send(COMPLETE), Hcall::Success);
    world.guest.log_in().unwrap();
    world.settle();
}

#[test]
fn both_sides_may_initialize_at_once() {
    let mut world = World::new();
    world.guest.adapter.set_online(false);
    assert_eq!(world.guest.register(), Hcall::Closed);
    world.guest.adapter.set_online(true);
    assert_eq!(world.guest.send(INIT), Hcall::Success);
    let both = [world.wait(), world.wait()];
    assert_eq!(both, [INIT, COMPLETE]);
    assert_eq!(world.guest.send(COMPLETE), Hcall::Success);
    world.guest.log_in().unwrap();
}

#[test]
fn a_server_that_goes_tells_the_client_and_does_not_register_again_by_itself() {
    let mut world = World::ready();
    world.guest.adapter.set_online(false);
    assert_eq!(world.wait(), Element::Event(TransportEvent::PartnerDeregistered));
    assert_eq!(world.guest.send(INIT), Hcall::Closed);
    world.guest.free().unwrap();
    // No event answers the client's freeing its queue, and none that it registers another.
    assert_eq!(world.guest.register(), Hcall::Closed);
    assert!(world.is_quiet());
    world.guest.adapter.set_online(true);
    assert_eq!(world.wait(), INIT);
}

#[test]
fn a_full_mailbox_drops_and_a_suspended_server_goes_on_where_it_was() {
    let mut world = World::ready();
    world.guest.adapter.prepare_suspend();
    assert!(world.guest.adapter.wait_suspended(Duration::from_secs(10)));
    let ping = [0x80, 6, 0, 0xF5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ping = Element::parse(&ping);
    let sent = (0..1000).take_while(|_| world.guest.send(ping) == Hcall::Success).count();
    assert_eq!(sent, 256);
    assert_eq!(world.guest.send(ping), Hcall::Dropped);
    assert!(world.is_quiet());
    world.guest.adapter.resume();
    for _ in 0..sent {
        let Element::Message(message) = world.wait() else { panic!() };
        assert_eq!(message.format, Format::Six);
    }
    assert!(world.is_quiet());
    assert!(world.guest.adapter.stats().dropped >= 1);
}

#[test]
fn nobody_waits_for_a_suspension_that_was_not_prepared() {
    let world = World::ready();
    assert!(!world.guest.adapter.wait_suspended(Duration::from_secs(10)));
}

#[test]
fn interrupts_come_only_while_the_client_wants_them() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut world = World::ready();
    assert_eq!(world.guest.interrupts.load(Relaxed), 0);
    assert_eq!(world.guest.adapter.vio_signal(true), Hcall::Success);
    world.status(lun(0, 0), &[0; 6]);
    let interrupts = Arc::clone(&world.guest.interrupts);
    until("an interrupt", || interrupts.load(Relaxed) == 1);
    let _ = world.guest.adapter.vio_signal(false);
    world.status(lun(0, 0), &[0; 6]);
    assert!(world.is_quiet());
    assert_eq!(interrupts.load(Relaxed), 1);
}

#[test]
fn enabling_without_a_queue_is_an_error_and_without_a_migration_nothing() {
    let mut world = World::new();
    assert_eq!(world.guest.adapter.enable_crq(), Hcall::Parameter);
    world.guest.connect().unwrap();
    assert_eq!(world.guest.adapter.enable_crq(), Hcall::Success);
}

#[test]
fn a_reset_partition_has_no_queue_and_wants_no_interrupts() {
    let mut world = World::ready();
    let _ = world.guest.adapter.vio_signal(true);
    until("the reset", || world.guest.adapter.reset() == Hcall::Success);
    assert_eq!(world.guest.send(INIT), Hcall::Closed);
    world.guest.connect().unwrap();
    assert!(world.is_quiet());
    assert_eq!(world.guest.interrupts.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// A queue of its own with room for two.
#[derive(Clone, Default)]
struct Elsewhere(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    elements: Vec<[u8; 16]>,
    interrupts: u32,
    discarded: u32,
}

impl Interrupt for Elsewhere {
    fn interrupt(&mut self) {
        self.0.lock().unwrap().interrupts += 1;
    }
}

impl Partner for Elsewhere {
    fn deliver(&mut self, element: [u8; 16]) -> Delivered {
        let mut inner = self.0.lock().unwrap();
        if inner.elements.len() >= 2 {
            return Delivered::Full;
        }
        inner.elements.push(element);
        Delivered::Taken
    }

    fn discard(&mut self) {
        self.0.lock().unwrap().discarded += 1;
    }
}

#[test]
fn a_partner_takes_elements_when_it_has_room() {
    let reactors = Reactors::<Server>::start(1).unwrap();
    let partner = Elsewhere::default();
    let window = Window::new(Arc::new(GuestMap::default()), 1, 0, 16);
    let delivery = Delivery::Partner(Box::new(partner.clone()));
    let config = Config::new("elsewhere");
    let adapter = Adapter::new(config, vec![], window, &reactors, delivery).unwrap();
    assert_eq!(adapter.reg_crq(0x1000, 4096), Hcall::Success);
    let _ = adapter.vio_signal(true);
    for _ in 0..5 {
        assert_eq!(adapter.send_crq(0xC001 << 48, 0), Hcall::Success);
    }
    let mut got = 0;
    until("five elements", || {
        let mut inner = partner.0.lock().unwrap();
        got += inner.elements.len();
        inner.elements.clear();
        got == 5
    });
    assert!((3..=5).contains(&partner.0.lock().unwrap().interrupts));
    adapter.disconnect(TransportEvent::PartnerFailed);
    until("the event", || {
        let inner = partner.0.lock().unwrap();
        inner.elements.first().is_some_and(|element| element[..2] == [0xFF, 0x01])
    });
    until("the free", || adapter.free_crq() == Hcall::Success);
    assert!(partner.0.lock().unwrap().discarded >= 3);
}

#[test]
fn a_client_may_send_from_several_processors_at_once() {
    let mut world = World::ready();
    let adapter = &world.guest.adapter;
    thread::scope(|scope| {
        for number in 0..4u64 {
            let guest = &world.guest;
            scope.spawn(move || {
                for n in 0..25 {
                    let at = UNITS + 0x100 * (25 * number + n);
                    let tag = Tag::from_u64(1 + 25 * number + n);
                    let unit = command(tag, lun(0, 0), &[0; 6], Data::None).unwrap();
                    assert_eq!(guest.send_unit(Format::Srp, at, &unit, 256), Hcall::Success);
                }
            });
        }
    });
    assert_eq!(adapter.stats().violations, 0);
    let mut tags: Vec<_> = (0..100)
        .map(|_| match world.guest.wait().unwrap() {
            Element::Message(message) => message.tag().to_u64(),
            other => panic!("{other:?}"),
        })
        .collect();
    tags.sort_unstable();
    assert_eq!(tags, (1..=100).collect::<Vec<_>>());
}

#[test]
fn no_element_is_forgotten_while_the_server_falls_asleep() {
    let mut world = World::ready();
    let ping = Element::parse(&[0x80, 6, 0, 0xF5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let begun = Instant::now();
    let mut number = 0u64;
    // A reactor polls for about a tenth of a millisecond before it sleeps.
    while begun.elapsed() < Duration::from_millis(800) {
        number += 1;
        let pause = Duration::from_micros(number * 37 % 200);
        let since = Instant::now();
        while since.elapsed() < pause {
            std::hint::spin_loop();
        }
        assert_eq!(world.guest.send(ping), Hcall::Success);
        assert!(matches!(world.wait(), Element::Message(_)), "after {number}");
    }
}

#[test]
fn a_login_after_kexec_finds_the_old_queue_and_frees_it() {
    let mut world = World::ready();
    // The new kernel knows nothing of the old one's queue.
    assert_eq!(world.guest.register(), Hcall::Resource);
    world.guest.free().unwrap();
    world.guest.connect().unwrap();
    let mut unit = [0; 256];
    linux_login(Tag([5; 8])).emit(&mut unit).unwrap();
    let _ = world.guest.send_unit(Format::Srp, UNITS, &unit, 256);
    assert_eq!(world.guest.answer(UNITS).unwrap().0.tag(), Tag([5; 8]));
    // It is another initiator for the logical units, or the same after a reset.
    world.settle();
}
