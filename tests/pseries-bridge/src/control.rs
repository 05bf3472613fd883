//! The control socket: a test asks for what a hypervisor would do. One word a line, one line back.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
};

/// Serves it from a thread of its own; `answer` is called for each line.
pub fn serve(
    path: &Path,
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let answer = Arc::new(answer);
    thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = converse(&stream, &*answer) {
                tracing::info!(%error, "control connection");
            }
        }
    })?;
    Ok(())
}

fn converse(stream: &UnixStream, answer: &dyn Fn(&str) -> String) -> io::Result<()> {
    for line in BufReader::new(stream).lines() {
        writeln!(&*stream, "{}", answer(line?.trim()))?;
    }
    Ok(())
}
