//! Threads for what blocks: several-step commands, persistence, and all file input and output
//! where io_uring is forbidden. Started on demand, gone after a while of idleness.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// The worker threads of the process. The jobs that wait are bounded only by the number of tasks
/// that can be in progress: each has at most one.
///
/// Dropping it lets the threads finish every job that was given, and does not wait for them.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    most: usize,
}

impl Workers {
    /// At most `threads` threads, at least one.
    pub fn new(threads: usize) -> Self {
        Self::with_idle(threads, IDLE)
    }

    /// As [`Workers::new`], with another time after which an idle thread ends.
    pub fn with_idle(threads: usize, idle: Duration) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), idle });
        Self { shared, most: threads.max(1) }
    }

    /// Runs `job` on one of them. A panic in it ends the job and nothing else.
    pub fn run(&self, job: Box<dyn FnOnce() + Send>) {
        let mut state = self.shared.state();
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle {
            drop(state);
            self.shared.wake.notify_one();
        } else if state.threads < self.most {
            state.threads += 1;
            drop(state);
            self.start();
        }
    }

    /// Threads there are now.
    pub fn threads(&self) -> usize {
        self.shared.state().threads
    }

    fn start(&self) {
        let shared = self.shared.clone();
        let named = thread::Builder::new().name("vscsi-worker".into());
        if let Err(error) = named.spawn(move || shared.work()) {
            let mut state = self.shared.state();
            state.threads -= 1;
            if state.threads > 0 {
                return;
            }
            // Nobody else will come: better slow than never.
            tracing::warn!(%error, "no worker thread can be started");
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.shared.state();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.wake.notify_all();
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    idle: Duration,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                run(job);
                state = self.state();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (back, waited) =
                self.wake.wait_timeout(state, self.idle).unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            // Under the lock: a job given in this moment either is seen here or starts a thread.
            if waited.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { jobs, threads, idle, .. } = &*self.state();
        f.debug_struct("Shared")
            .field("jobs", &jobs.len())
            .field("threads", threads)
            .field("idle", idle)
            .finish()
    }
}

fn run(job: Box<dyn FnOnce() + Send>) {
    // What a job leaves half done is its own: it reports through a message or not at all.
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a job of a worker thread panicked");
    }
}

/// How long a thread waits for a job before it ends.
const IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::HashSet,
        sync::{Barrier, mpsc::channel},
        time::Instant,
    };

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn jobs_run_at_the_same_time_up_to_the_maximum() {
        let workers = Workers::new(3);
        let meet = Arc::new(Barrier::new(3));
        let (sender, receiver) = channel();
        for _ in 0..3 {
            let (meet, sender) = (meet.clone(), sender.clone());
            workers.run(Box::new(move || {
                meet.wait();
                sender.send(()).unwrap();
            }));
        }
        (0..3).for_each(|_| receiver.recv_timeout(LONG).unwrap());
    }

    #[test]
    fn more_jobs_than_threads_all_run_on_at_most_the_maximum() {
        let workers = Workers::new(2);
        let (sender, receiver) = channel();
        for _ in 0..100 {
            let sender = sender.clone();
            workers.run(Box::new(move || sender.send(thread::current().id()).unwrap()));
        }
        let ids: HashSet<_> = (0..100).map(|_| receiver.recv_timeout(LONG).unwrap()).collect();
        assert!(ids.len() <= 2, "{ids:?}");
    }

    #[test]
    fn panic_in_a_job_leaves_the_threads_at_work() {
        let workers = Workers::new(1);
        let (sender, receiver) = channel();
        workers.run(Box::new(|| std::panic::resume_unwind(Box::new("on purpose"))));
        workers.run(Box::new(move || sender.send(7).unwrap()));
        assert_eq!(receiver.recv_timeout(LONG).unwrap(), 7);
    }

    #[test]
    fn idle_threads_end_and_come_back() {
        let workers = Workers::with_idle(2, Duration::from_millis(20));
        let (sender, receiver) = channel();
        for _ in 0..2 {
            let sender = sender.clone();
            workers.run(Box::new(move || sender.send(()).unwrap()));
            receiver.recv_timeout(LONG).unwrap();
            let start = Instant::now();
            while workers.threads() > 0 {
                assert!(start.elapsed() < LONG, "{workers:?}");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn jobs_given_before_the_drop_still_run() {
        let (sender, receiver) = channel();
        let workers = Workers::new(1);
        for i in 0..10 {
            let sender = sender.clone();
            workers.run(Box::new(move || sender.send(i).unwrap()));
        }
        drop(workers);
        let got: Vec<_> = (0..10).map(|_| receiver.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(got, (0..10).collect::<Vec<_>>());
    }
}
