//! The server's side of the control socket: one thread that accepts, one a connection. Everything
//! is bounded: connections, the length of a request, how long a peer may take.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{fs::DirBuilderExt, net::UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::Value;

use super::rpc::{self, Outcome};
use crate::socket::{Listening, SocketError};

/// A bound control socket. Dropping it removes it.
#[derive(Debug)]
pub struct ControlSocket(Listening);

impl ControlSocket {
    /// Binds; a socket that a process left behind is replaced, its directory is made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let create = |source| SocketError::Create { path: path.to_owned(), source };
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(create)?;
        }
        Listening::bind(path, 0o600).map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Serves on threads of its own until the process ends; `call` runs a method.
    pub fn serve<C>(&self, call: C) -> io::Result<()>
    where
        C: Fn(&str, Value) -> Outcome + Send + Sync + 'static,
    {
        let listener = self.0.listener.try_clone()?;
        let (call, open) = (Arc::new(call), Arc::new(AtomicUsize::new(0)));
        thread::Builder::new().name("control".into()).spawn(move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => connection(stream, Arc::clone(&call), &open),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        // Out of descriptors, most likely: others may be closed meanwhile.
                        tracing::warn!(%error, "cannot accept on the control socket");
                        thread::sleep(PAUSE);
                    }
                }
            }
        })?;
        Ok(())
    }
}

fn connection<C>(stream: UnixStream, call: Arc<C>, open: &Arc<AtomicUsize>)
where
    C: Fn(&str, Value) -> Outcome + Send + Sync + 'static,
{
    if let Err(uid) = permitted(&stream) {
        tracing::warn!(?uid, "a user without permission tried the control socket");
        return;
    }
    if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!("more than {MAX_CONNECTIONS} connections to the control socket");
        return;
    }
    let counter = Arc::clone(open);
    let spawned = thread::Builder::new().name("control-client".into()).spawn(move || {
        if let Err(error) = converse(&stream, &*call) {
            tracing::debug!(%error, "a control connection ended");
        }
        counter.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        open.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(%error, "cannot start a thread for a control connection");
    }
}

/// Root and the user the program runs as; else who it is, if that can be told.
fn permitted(stream: &UnixStream) -> Result<(), Option<u32>> {
    let uid = getsockopt(stream, PeerCredentials).map_err(|_| None)?.uid();
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() { Ok(()) } else { Err(Some(uid)) }
}

fn converse<C>(stream: &UnixStream, call: &C) -> io::Result<()>
where
    C: Fn(&str, Value) -> Outcome,
{
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(SLOW))?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_REQUEST as u64 + 1;
        let got = Read::by_ref(&mut reader).take(limit).read_until(b'\n', &mut line)?;
        if got == 0 {
            return Ok(());
        }
        if line.len() > MAX_REQUEST {
            let error = r#"{"error":{"code":-32600,"message":"the request is too long"},"id":null,"jsonrpc":"2.0"}"#;
            return writeln!(&mut &*stream, "{error}");
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        if let Some(mut response) = rpc::answer(&line, |method, params| call(method, params)) {
            response.push('\n');
            (&mut &*stream).write_all(response.as_bytes())?;
        }
    }
}

/// Longest request in bytes.
const MAX_REQUEST: usize = 64 << 10;
const MAX_CONNECTIONS: usize = 32;
/// A connection that says nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(300);
/// A peer that does not take its answer for this long is given up.
const SLOW: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("vscsi-{name}-{}.sock", std::process::id()))
    }

    fn ask(path: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_request_is_answered_beside_a_client_that_says_nothing() {
        let path = scratch("answered");
        let socket = ControlSocket::bind(&path).unwrap();
        socket.serve(|method, _| Ok(json!(method))).unwrap();
        let _silent = UnixStream::connect(&path).unwrap();
        let answer = ask(&path, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\"}\n");
        assert_eq!(answer, "{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":\"x\"}\n");
    }

    #[test]
    fn an_endless_request_is_refused() {
        let path = scratch("endless");
        let socket = ControlSocket::bind(&path).unwrap();
        socket.serve(|_, _| Ok(Value::Null)).unwrap();
        let answer = ask(&path, &vec![b' '; MAX_REQUEST + 1]);
        assert!(answer.contains("too long"), "{answer}");
    }
}
