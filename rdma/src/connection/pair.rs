//! The handles of a connection: its queue pair, its completion queue, and the order in which they go.
#![allow(unsafe_code)] // Verbs, called with handles that these values own.

use std::{os::fd::RawFd, sync::Arc};

use rdma_sys::{
    ibv_comp_channel, ibv_cq, ibv_qp, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_type, rdma_conn_param,
};

use super::Setup;
use crate::{
    device::Device,
    error::RdmaError,
    listener::{Id, MOST_REJECT, Request, set_nonblocking},
    receive::Receives,
    table::Table,
};

/// A completion queue and the channel of its events.
pub(super) struct Completions {
    table: &'static Table,
    pub(super) queue: *mut ibv_cq,
    pub(super) channel: *mut ibv_comp_channel,
}

/// A queue pair with what it needs. Fields go in order, after the queue pair itself.
pub(super) struct Pair {
    pub(super) table: &'static Table,
    pub(super) completions: Completions,
    pub(super) id: Id,
    pub(super) device: Arc<Device>,
    /// RDMA Reads in progress at a time.
    pub(super) reads: u8,
    /// Inline data it takes, in bytes.
    pub(super) inline: u32,
    /// The peer was accepted, or asked.
    pub(super) connected: bool,
}

impl Completions {
    fn new(table: &'static Table, device: &Device, setup: &Setup) -> Result<Self, RdmaError> {
        let context = device.context();
        // SAFETY: an open context.
        let channel = unsafe { (table.ibv_create_comp_channel)(context) };
        if channel.is_null() {
            return Err(RdmaError::last("making a completion channel"));
        }
        let mut completions = Self { table, queue: std::ptr::null_mut(), channel };
        set_nonblocking(completions.fd())
            .map_err(|reason| RdmaError::Call { what: "preparing completion events", reason })?;
        // SAFETY: an open context.
        let vectors = unsafe { (*context).num_comp_vectors }.max(1).cast_unsigned();
        let vector = (setup.vector % vectors).cast_signed();
        // With shared buffers a peer can send as much as there are.
        let received = setup.receives.max(setup.shared_receives.unwrap_or(0));
        let entries = (depth(device, setup) + received).cast_signed();
        // SAFETY: an open context and channel.
        completions.queue = unsafe {
            (table.ibv_create_cq)(context, entries, std::ptr::null_mut(), channel, vector)
        };
        if completions.queue.is_null() {
            return Err(RdmaError::last("making a completion queue"));
        }
        Ok(completions)
    }

    /// Readable when there is an event.
    pub(super) fn fd(&self) -> RawFd {
        // SAFETY: a channel that is open as long as this value.
        unsafe { (*self.channel).fd }
    }

    /// Takes all events there are.
    pub(super) fn take_events(&self) {
        loop {
            let (mut queue, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: an open nonblocking channel, places for the answer; what was taken is
            // acknowledged at once.
            unsafe {
                let taken =
                    (self.table.ibv_get_cq_event)(self.channel, &raw mut queue, &raw mut context);
                if taken != 0 {
                    return;
                }
                (self.table.ibv_ack_cq_events)(queue, 1);
            }
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: both are used by nobody any more: the queue pair has gone. All events were
        // acknowledged when they were taken.
        unsafe {
            if !self.queue.is_null() {
                (self.table.ibv_destroy_cq)(self.queue);
            }
            (self.table.ibv_destroy_comp_channel)(self.channel);
        }
    }
}

impl Pair {
    /// Makes the queues of an id, whose events go to a channel of its own already.
    // The request is needed to tell the peer; this happens once a connection.
    #[allow(clippy::result_large_err)]
    pub(super) fn new(
        table: &'static Table,
        request: Request,
        device: Arc<Device>,
        setup: &Setup,
        receives: &Receives,
    ) -> Result<Self, (RdmaError, Request)> {
        let reads = request.reads_allowed.min(reads_of(&device)).max(1);
        let completions = match Completions::new(table, &device, setup) {
            Ok(completions) => completions,
            Err(error) => return Err((error, request)),
        };
        match create(table, &request.id, &device, &completions, setup, receives) {
            Ok(inline) => Ok(Self {
                table,
                completions,
                id: request.id,
                device,
                reads,
                inline,
                connected: false,
            }),
            Err(error) => Err((error, request)),
        }
    }

    /// The queue pair.
    pub(super) fn raw(&self) -> *mut ibv_qp {
        // SAFETY: an id with a queue pair.
        unsafe { (*self.id.raw).qp }
    }

    /// Accepts the peer.
    pub(super) fn accept(&mut self, private: &[u8], shared: bool) -> Result<(), RdmaError> {
        let mut parameters = parameters(private, MOST_ACCEPT);
        parameters.initiator_depth = self.reads;
        parameters.rnr_retry_count = 7;
        parameters.srq = shared.into();
        // SAFETY: an id with a queue pair; the parameters outlive the call.
        if unsafe { (self.table.rdma_accept)(self.id.raw, &raw mut parameters) } != 0 {
            return Err(RdmaError::last("accepting a connection"));
        }
        self.connected = true;
        Ok(())
    }

    /// Asks the peer of an id whose route is known.
    pub(super) fn connect(&mut self, private: &[u8]) -> Result<(), RdmaError> {
        let mut parameters = parameters(private, MOST_ASK);
        parameters.responder_resources = 4;
        parameters.rnr_retry_count = 6;
        // SAFETY: an id with a queue pair; the parameters outlive the call.
        if unsafe { (self.table.rdma_connect)(self.id.raw, &raw mut parameters) } != 0 {
            return Err(RdmaError::last("asking for a connection"));
        }
        self.connected = true;
        Ok(())
    }

    /// Turns the peer away.
    pub(super) fn reject(&self, private: &[u8]) {
        let len = private.len().min(MOST_REJECT) as u8;
        // SAFETY: an id that was not accepted; the data outlives the call.
        unsafe { (self.table.rdma_reject)(self.id.raw, private.as_ptr().cast(), len) };
    }

    /// Disconnects, once.
    pub(super) fn disconnect(&mut self) {
        if std::mem::take(&mut self.connected) {
            // SAFETY: an id that was accepted or asked.
            unsafe { (self.table.rdma_disconnect)(self.id.raw) };
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.disconnect();
        // SAFETY: the id's queue pair, used by nobody else; what it uses goes after it.
        unsafe { (self.table.rdma_destroy_qp)(self.id.raw) };
    }
}

fn parameters(private: &[u8], most: usize) -> rdma_conn_param {
    rdma_conn_param {
        private_data: private.as_ptr().cast(),
        private_data_len: private.len().min(most) as u8,
        responder_resources: 0,
        initiator_depth: 0,
        flow_control: 1,
        retry_count: 7,
        rnr_retry_count: 0,
        srq: 0,
        qp_num: 0,
    }
}

/// Makes the queue pair; gives how much inline data it takes.
fn create(
    table: &Table,
    id: &Id,
    device: &Device,
    completions: &Completions,
    setup: &Setup,
    from: &Receives,
) -> Result<u32, RdmaError> {
    let shared = match from {
        Receives::Own(_) => std::ptr::null_mut(),
        Receives::Shared(ring) => ring.borrow().queue(),
    };
    // Some devices take less inline data than others, and say so by refusing.
    for inline in [INLINE, 64, 0] {
        let mut attributes = ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: completions.queue,
            recv_cq: completions.queue,
            srq: shared,
            cap: ibv_qp_cap {
                max_send_wr: depth(device, setup),
                max_recv_wr: if shared.is_null() { setup.receives } else { 0 },
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: inline,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: an id of the device that the domain and the queue belong to.
        let made = unsafe { (table.rdma_create_qp)(id.raw, device.handle(), &raw mut attributes) };
        if made == 0 {
            return Ok(attributes.cap.max_inline_data.min(INLINE));
        }
    }
    Err(RdmaError::last("making a queue pair"))
}

/// Depth of the send queue: what is asked for, as far as the device has it.
pub(super) fn depth(device: &Device, setup: &Setup) -> u32 {
    let most = u32::try_from(device.attributes().max_qp_wr).unwrap_or(0);
    setup.sends.min(most).max(2)
}

/// RDMA Reads that a device starts at a time.
fn reads_of(device: &Device) -> u8 {
    u8::try_from(device.attributes().max_qp_init_rd_atom.max(0)).unwrap_or(u8::MAX)
}

/// The most inline data asked for, in bytes.
const INLINE: u32 = 256;
/// Private data of a connect request over InfiniBand, by the connection manager.
const MOST_ASK: usize = 56;
/// Private data of an acceptance over InfiniBand.
const MOST_ACCEPT: usize = 196;
