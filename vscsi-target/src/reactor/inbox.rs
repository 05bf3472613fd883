//! How other threads reach the endpoints of a reactor. Slow paths only.

use super::{
    Postboxes,
    turn::{Endpoint, EndpointId},
};
use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How other threads reach the endpoints of a reactor.
pub struct Inbox<E: Endpoint> {
    pub(super) reactor: u16,
    pub(super) postboxes: Arc<Postboxes>,
    post: Mutex<Post<E>>,
}

/// What waits for the reactor.
pub(super) struct Post<E: Endpoint> {
    pub(super) seeds: Vec<E::Seed>,
    pub(super) notes: Vec<(EndpointId, E::Note)>,
    pub(super) broadcasts: Vec<Box<dyn Fn() -> E::Note + Send>>,
    closed: bool,
}

impl<E: Endpoint> Inbox<E> {
    /// An inbox of a reactor.
    pub fn new(reactor: u16, postboxes: Arc<Postboxes>) -> Arc<Self> {
        Arc::new(Self { reactor, postboxes, post: Mutex::default() })
    }

    /// Makes an endpoint there. Once the reactor stops, seeds are dropped.
    pub fn open(&self, seed: E::Seed) {
        self.put(|post| post.seeds.push(seed));
    }

    /// Sends a message to an endpoint there.
    pub fn note(&self, to: EndpointId, note: E::Note) {
        self.put(|post| post.notes.push((to, note)));
    }

    /// Sends every endpoint there a message, made by `note` on the reactor. `note` is dropped when
    /// all have theirs: with the sender of a channel in it and in the notes, the receiver sees all
    /// answers and then the end, even if the reactor is gone.
    pub fn broadcast(&self, note: impl Fn() -> E::Note + Send + 'static) {
        self.put(|post| post.broadcasts.push(Box::new(note)));
    }

    fn put(&self, put: impl FnOnce(&mut Post<E>)) {
        let mut post = self.lock();
        if post.closed {
            return;
        }
        put(&mut post);
        drop(post);
        self.postboxes.wake(self.reactor);
    }

    pub(super) fn take(&self) -> Post<E> {
        mem::take(&mut *self.lock())
    }

    /// Drops everything that waits and everything that comes.
    pub(super) fn close(&self) {
        let waiting = mem::replace(&mut *self.lock(), Post { closed: true, ..Post::default() });
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Post<E>> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Endpoint> fmt::Debug for Inbox<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("reactor", &self.reactor).finish_non_exhaustive()
    }
}

impl<E: Endpoint> Default for Post<E> {
    fn default() -> Self {
        Self { seeds: Vec::new(), notes: Vec::new(), broadcasts: Vec::new(), closed: false }
    }
}
