//! What tests of the program share: a directory, a running target, commands.
#![allow(clippy::unwrap_used)] // What is not as expected fails the test.
#![allow(dead_code)] // Not every test uses all of it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// The program.
pub const VSCSI: &str = env!("CARGO_BIN_EXE_vscsi");

/// A directory of a test's own.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vscsi-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn image(&self, name: &str) -> String {
        let path = self.0.join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        self.text(&path)
    }

    pub fn path(&self, name: &str) -> String {
        self.text(&self.0.join(name))
    }

    pub fn control(&self) -> String {
        self.text(&self.0.join("control.sock"))
    }

    pub fn text(&self, path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running target, ended with the test.
pub struct Target {
    pub child: Child,
    /// What it printed at start.
    pub ready: serde_json::Value,
    pub control: String,
}

impl Target {
    /// Serves over iSCSI to everybody, and what `args` say.
    pub fn start(scratch: &Scratch, args: &[&str]) -> Self {
        let iscsi = ["--iscsi", "127.0.0.1:0", "--allow-any"];
        Self::serve(scratch, &[&iscsi[..], args].concat())
    }

    /// Serves what `args` say.
    pub fn serve(scratch: &Scratch, args: &[&str]) -> Self {
        let control = scratch.control();
        let state = scratch.text(&scratch.0.join("state"));
        let mut child = Command::new(VSCSI)
            .args(["serve", "--json", "--reactors", "1"])
            .args(["--control", &control, "--state-dir", &state])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self { child, ready, control }
    }

    /// The address of the first portal.
    pub fn portal(&self) -> &str {
        self.ready["portals"][0]["address"].as_str().unwrap()
    }

    /// Runs a command against it.
    pub fn ask(&self, args: &[&str]) -> Output {
        vscsi(&[&["--control", &self.control], args].concat())
    }

    /// What a command answers in JSON.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.ask(&[&["--json"], args].concat());
        assert!(output.status.success(), "{}", error(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Ends it; gives the exit code and the log.
    pub fn stop(mut self) -> (Option<i32>, String) {
        assert!(self.ask(&["shutdown"]).status.success());
        let code = self.child.wait().unwrap().code();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (code, log)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn vscsi(args: &[&str]) -> Output {
    Command::new(VSCSI).args(args).env_remove("VSCSI_LOG").output().unwrap()
}

pub fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
