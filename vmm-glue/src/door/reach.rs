//! The way from a front door to the queues of its controller.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use crate::{
    controller::{Controller, Place},
    queue::{Note, Seed},
};

/// Where the endpoint of a queue is, which is made when it is first needed. `None` if the reactors
/// are stopping.
pub(crate) fn place(controller: &Arc<Controller>, index: u16) -> Option<Place> {
    if let Some(place) = controller.place(index) {
        return Some(place);
    }
    let (opened, place) = sync_channel(1);
    let seed = Seed { controller: Arc::clone(controller), index, opened };
    controller.router().open(controller.reactor_of(index), seed);
    wait(controller, index, &place)
}

/// Sends a note to a queue that is there and needs not answer.
pub(crate) fn note(controller: &Controller, index: u16, note: Note) {
    if let Some(place) = controller.place(index) {
        controller.router().note(place, note);
    }
}

/// Waits for the answer of a queue; `None` if it is gone. It may wait for its disk.
pub(crate) fn wait<T>(controller: &Controller, index: u16, answer: &Receiver<T>) -> Option<T> {
    loop {
        match answer.recv_timeout(TELL_AFTER) {
            Ok(answer) => return Some(answer),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => tracing::warn!(
                controller = controller.name,
                queue = index,
                "the VMM waits until requests in flight are finished, which takes long: is a disk \
                 stuck?"
            ),
        }
    }
}

/// Ends the endpoints of a controller's queues when they have finished what is in flight.
pub(crate) fn close(controller: &Controller) {
    let all = 0..controller.virtqueues();
    let closing: Vec<_> = all
        .filter_map(|index| {
            let (done, answer) = sync_channel(1);
            controller.router().note(controller.place(index)?, Note::Close(done));
            Some((index, answer))
        })
        .collect();
    for (index, answer) in closing {
        let _ = wait(controller, index, &answer);
        controller.set_place(index, None);
    }
}

/// After how long waiting for a queue is told.
const TELL_AFTER: Duration = Duration::from_secs(10);
