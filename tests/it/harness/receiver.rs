//! A receiver of webhooks that is not ours: Python's HTTP server with the library of Standard Webhooks.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::Value;

use super::programs::python_script;

/// The secret that the receiver knows.
pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A receiver in a process of its own.
pub(crate) struct Receiver {
    child: Child,
    commands: ChildStdin,
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// Begins to listen. `None` if the Python environment of `tests/run` is not there and need not be.
    pub(crate) fn start() -> Option<Self> {
        let mut command = python_script("receiver.py")?;
        command.arg(SECRET).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python");
        let commands = child.stdin.take().expect("piped");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let port = lines.next().and_then(|line| line.parse().ok()).expect("the receiver says its port");
        let seen = Arc::<Mutex<Vec<Value>>>::default();
        let requests = seen.clone();
        std::thread::spawn(move || {
            for line in lines {
                requests.lock().expect("no panic").push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Some(Self { child, commands, port, seen })
    }

    /// From now on it answers a path with these statuses in turn, the last one again and again. `0`: never answers.
    pub(crate) fn answers(&mut self, path: &str, statuses: &[u16]) {
        let order = serde_json::json!({ "path": path, "statuses": statuses });
        writeln!(self.commands, "{order}").expect("it reads");
    }

    /// Every request to a path, in order: `path`, `verified`, `body`, `headers`, `at` (seconds).
    pub(crate) fn requests(&self, path: &str) -> Vec<Value> {
        let seen = self.seen.lock().expect("no panic");
        seen.iter().filter(|request| request["path"] == path).cloned().collect()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
