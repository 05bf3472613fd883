//! Threads for what blocks: several-step commands, persistence, and all file input and output
//! where io_uring is forbidden. Started on demand, gone after a while of idleness.

/// The worker threads of the process.
#[derive(Debug)]
pub struct Workers {}

impl Workers {
    /// At most `threads` threads.
    pub fn new(_threads: usize) -> Self {
        Self {}
    }

    /// Runs `job` on one of them.
    pub fn run(&self, job: Box<dyn FnOnce() + Send>) {
        std::thread::spawn(job);
    }
}
