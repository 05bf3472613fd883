//! How connections begin and end: orders of the hypervisor side, restarts of the client, and what has
//! to wait for either.

use libsrp::viosrp::crq::{Element, TransportEvent};
use vscsi_target::reactor::Cx;

use crate::memory::guard;

use super::{super::session::INIT, super::shared::Order, Server};

/// What waits until the core has given back everything of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Nothing.
    No,
    /// The queue is free then.
    Free,
    /// The client may go on then.
    Migrated,
    /// The client is told then that initialization is complete.
    Restart,
    /// The endpoint ends then.
    Close,
}

impl Server {
    /// Finishes what waited, if it need not wait any longer, and carries out the orders behind it.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>) {
        loop {
            if self.waiting != Waiting::No {
                if self.session.in_progress() > 0 {
                    return;
                }
                if self.finish(cx) {
                    return;
                }
            }
            if self.stopping {
                self.lose(TransportEvent::PartnerDeregistered, cx);
                self.waiting = Waiting::Close;
                self.shared.over();
                continue;
            }
            let Some(order) = self.shared.next_order() else { return };
            self.obey(order, cx);
        }
    }

    /// Nothing is in progress any more. True if the endpoint is gone by that.
    fn finish(&mut self, cx: &mut Cx<'_>) -> bool {
        match std::mem::replace(&mut self.waiting, Waiting::No) {
            Waiting::No => {}
            Waiting::Free => {
                self.reset_nexuses();
                self.shared.freed();
            }
            Waiting::Migrated => self.shared.is_here(),
            Waiting::Restart => {
                self.reset_nexuses();
                let element = self.session.restarted();
                self.outgoing.push(element);
            }
            Waiting::Close => {
                self.outgoing.insist(&self.shared);
                cx.close();
                return true;
            }
        }
        false
    }

    fn obey(&mut self, order: Order, cx: &mut Cx<'_>) {
        match order {
            Order::Open(queue, generation) => {
                self.generation = generation;
                self.outgoing.set_queue(queue);
                self.session.opened();
                self.moved(cx);
            }
            Order::Free => {
                self.session.closed();
                self.outgoing.set_queue(None);
                self.wait_for(Waiting::Free, cx);
            }
            Order::Lose(event, generation) => {
                self.generation = generation;
                self.lose(event, cx);
            }
            Order::Migrated(generation) => {
                self.generation = generation;
                self.lose(TransportEvent::Migrated, cx);
                self.waiting = Waiting::Migrated;
            }
            Order::Invite => self.outgoing.push(INIT),
            Order::Freeze => self.frozen = true,
            Order::Thaw => self.frozen = false,
            Order::Close => {
                self.session.closed();
                self.outgoing.set_queue(None);
                self.wait_for(Waiting::Close, cx);
                self.shared.over();
            }
        }
    }

    /// The connection is over, and the client is told why. What is in progress is not answered.
    pub(super) fn lose(&mut self, event: TransportEvent, cx: &mut Cx<'_>) {
        self.session.lost();
        self.outgoing.event(Element::Event(event).to_bytes());
        self.give_up(cx);
    }

    /// The client begins anew.
    pub(super) fn restart(&mut self, cx: &mut Cx<'_>) {
        tracing::debug!(adapter = self.shared.config.name, "the partition initializes again");
        self.session.lost();
        self.outgoing.discard();
        self.wait_for(Waiting::Restart, cx);
        self.settle(cx);
    }

    fn wait_for(&mut self, what: Waiting, cx: &mut Cx<'_>) {
        self.waiting = what;
        self.give_up(cx);
    }

    /// Asks the core to end what is in progress. All of it completes, and is not answered.
    fn give_up(&mut self, cx: &mut Cx<'_>) {
        if self.session.in_progress() > 0 {
            cx.engine.orphan(cx.me);
        }
    }

    /// The client is another initiator from now on, as far as the logical units are concerned.
    fn reset_nexuses(&self) {
        for (_, nexus) in &self.shared.nexuses {
            nexus.reset();
        }
    }

    /// The partition has other memory now, or a queue that was found in what it had before.
    pub(super) fn moved(&mut self, cx: &mut Cx<'_>) {
        if !self.place_queue() || self.memory.map().is_lost() {
            self.cut_off(cx);
        }
    }

    /// Memory of some guest is gone. If it is this one's, what it asks for can mean anything.
    #[cold]
    pub(super) fn look_for_losses(&mut self, cx: &mut Cx<'_>) {
        self.losses = guard::losses();
        if self.memory.map().is_lost() {
            self.cut_off(cx);
        }
    }

    /// The client's queue has no memory: the client cannot be told, and is not answered either.
    fn cut_off(&mut self, cx: &mut Cx<'_>) {
        if let Some(suppressed) = self.log.spend() {
            tracing::warn!(
                adapter = self.shared.config.name,
                suppressed,
                "the memory of a partition is gone, or that of its queue; the connection ends"
            );
        }
        self.session.closed();
        self.outgoing.set_queue(None);
        self.give_up(cx);
    }

    /// Finds the client's queue in the present memory; false if it is not there.
    fn place_queue(&mut self) -> bool {
        self.memory.refresh();
        let (window, map) = (self.memory.window(), self.memory.map());
        self.outgoing.queue().is_none_or(|queue| queue.place(window, map))
    }

    /// Tells the client of conditions, as far as it has given buffers for that.
    pub(super) fn report(&mut self) {
        if self.session.state() != super::super::session::State::LoggedIn {
            return self.shared.forget_reports();
        }
        while self.session.can_report() {
            let Some(report) = self.shared.next_report() else { return };
            let Some(aer) = self.session.report(report.lun, report.condition, &mut self.out) else {
                return;
            };
            let unit = self.out.get(..aer.len).unwrap_or_default();
            let written = self.memory.write(aer.buffer, unit);
            if let Err(fault) = written.and_then(|()| self.memory.write(aer.header, &aer.datagram))
            {
                tracing::debug!(adapter = self.shared.config.name, "an AER_REQ is lost: {fault}");
                continue;
            }
            self.outgoing.push(aer.element);
        }
    }
}
