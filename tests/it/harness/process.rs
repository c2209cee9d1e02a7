//! The real binary, as a process of its own.
//!
//! Every process logs at debug, unless its test says otherwise, and when it ends what it logged is looked through for
//! anything secret. A test that measures should not measure that: within `tests/prove` processes log at info.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use warren::job::Kind;

use super::{
    canary,
    engines::{PgDatabase, RabbitPrefix, unique},
    proxy::Proxy,
    scale::sized,
    wait::until,
};

/// How long a process may take to say that it is up.
const START: Duration = Duration::from_mins(1);

/// An installation: a folder with its configuration, and the servers it runs on.
pub(crate) struct Installation {
    pub(crate) folder: TempDir,
    servers: Option<(RabbitPrefix, PgDatabase)>,
}

/// What a process logs. It outlives its folder.
struct Log(File);

impl Log {
    /// A new one in a folder, and where a process writes it.
    fn create(folder: &Path) -> (Self, Stdio) {
        let path = folder.join(unique("log"));
        let written = File::create(&path).expect("our own folder");
        (Self(File::open(path).expect("just made")), written.into())
    }

    fn text(&self) -> String {
        let mut bytes = Vec::new();
        let mut file = &self.0;
        file.rewind().expect("a file");
        file.read_to_end(&mut bytes).expect("a file");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What must be so of every log, once its process has ended.
    fn close(&self) {
        let text = self.text();
        if std::thread::panicking() {
            eprintln!("a process of the failed test said:\n{text}");
        }
        canary::check(&text);
    }
}

/// A running `warren up`. Killed when it is dropped.
pub(crate) struct Up {
    child: Child,
    log: Log,
    pub(crate) gateway: Option<String>,
    pub(crate) admin: String,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Installation {
    /// On one SQLite file.
    pub(crate) fn embedded(configuration: &str) -> Self {
        let this = Self { folder: tempfile::tempdir().expect("a temporary folder"), servers: None };
        this.configure(configuration);
        this
    }

    /// On RabbitMQ and Postgres.
    pub(crate) async fn on_servers(configuration: &str) -> Option<Self> {
        Self::on_servers_with(&[], configuration).await
    }

    /// The same, with kinds that the configuration adds.
    pub(crate) async fn on_servers_with(kinds: &[&str], configuration: &str) -> Option<Self> {
        let added = kinds.iter().map(|kind| Kind::new(kind).expect("a kind"));
        let rabbit = RabbitPrefix::reserve(built_in_kinds().into_iter().chain(added).collect())?;
        let database = PgDatabase::create().await?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let this = Self { folder, servers: Some((rabbit, database)) };
        let keys = this.run(&["config", "keys"]).stdout;
        this.configure(&format!("{keys}\n{configuration}"));
        Some(this)
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, text: &str) {
        self.write(text, None, None);
    }

    /// Writes the configuration anew, with keys, and with servers that are reached through these proxies.
    pub(crate) fn configure_behind(&self, text: &str, broker: Option<&Proxy>, database: Option<&Proxy>) {
        let keys = self.run(&["config", "keys"]).stdout;
        self.write(&format!("{keys}\n{text}"), broker, database);
    }

    fn write(&self, text: &str, broker: Option<&Proxy>, database: Option<&Proxy>) {
        let servers = self.servers().map_or_else(String::new, |(rabbit, postgres)| {
            let broker = broker.map_or_else(|| rabbit.url.clone(), |proxy| rabbit.through(proxy.port));
            let database = database.map_or_else(|| postgres.url.clone(), |proxy| postgres.through(proxy.port));
            let prefix = &rabbit.prefix;
            format!("[broker]\nurl = \"{broker}\"\nprefix = \"{prefix}\"\n[database]\nurl = \"{database}\"\n")
        });
        std::fs::write(self.file(), format!("{text}\n{servers}")).expect("a file in our own folder");
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("warren.toml")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn servers(&self) -> Option<&(RabbitPrefix, PgDatabase)> {
        self.servers.as_ref()
    }

    /// A command that has not begun.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = bare(self.folder.path());
        command.args(arguments).arg("--config").arg(self.file()).arg("--data-dir").arg(self.data());
        if std::fs::read_to_string(self.file()).is_ok_and(|text| text.contains("[log]")) {
            command.env_remove(LEVEL);
        }
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(arguments);
        if !self.file().exists() {
            self.configure("");
        }
        said(&mut command)
    }

    /// Starts a command that goes on until it is ended.
    pub(crate) fn spawn(&self, arguments: &[&str], stdout: Stdio) -> Child {
        self.command(arguments).stdout(stdout).spawn().expect("the binary")
    }

    /// Starts `warren up` with these roles, on ports that are free.
    pub(crate) fn up(&self, roles: &[&str]) -> Up {
        self.up_with(roles, &[])
    }

    /// The same, to be ended abruptly at a crash point.
    pub(crate) fn up_to_crash(&self, roles: &[&str], at: &str, after: u32) -> Up {
        let can_crash = cfg!(feature = "crash-points");
        assert!(can_crash, "it would never end: the feature crash-points is not built in, which tests/run does");
        self.up_with(roles, &[("WARREN_CRASH_AT", at), ("WARREN_CRASH_AFTER", &after.to_string())])
    }

    /// Keeps a process with these roles running, as a supervisor does.
    pub(crate) fn supervise(&self, roles: &[&str]) -> Supervised {
        let arguments = [&["up"], roles, &["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]].concat();
        let mut command = self.command(&arguments);
        let (log, written) = Log::create(self.folder.path());
        command.stderr(written);
        canary::plant_ids(&self.file(), &self.data());
        let out = self.folder.path().join(unique("out"));
        let (running, ends) = (Arc::<Mutex<Running>>::default(), Arc::<Mutex<_>>::default());
        let mut supervised =
            Supervised { running: running.clone(), ends: ends.clone(), thread: None, log, out: out.clone() };
        let thread = std::thread::spawn(move || {
            loop {
                let mut child = {
                    let mut running = running.lock().expect("no panic");
                    if running.stop {
                        break;
                    }
                    // Emptied at each start: what stands in it is of the one that runs.
                    command.stdout(File::create(&out).expect("our own folder"));
                    let child = command.spawn().expect("the binary");
                    running.pid = Some(child.id());
                    child
                };
                let status = child.wait().expect("it is ours");
                running.lock().expect("no panic").pid = None;
                ends.lock().expect("no panic").push(status);
            }
        });
        supervised.thread = Some(thread);
        supervised
    }

    /// The same, where others can reach it too.
    pub(crate) fn up_for_others(&self, roles: &[&str]) -> Up {
        self.up_on("0.0.0.0:0", roles, &[])
    }

    /// Starts `warren up` with these roles, with this in its environment.
    pub(crate) fn up_with(&self, roles: &[&str], environment: &[(&str, &str)]) -> Up {
        self.up_on("127.0.0.1:0", roles, environment)
    }

    fn up_on(&self, address: &str, roles: &[&str], environment: &[(&str, &str)]) -> Up {
        let arguments = [&["up"], roles, &["--listen", address, "--admin-listen", address]].concat();
        let (log, written) = Log::create(self.folder.path());
        let mut command = self.command(&arguments);
        command.stdout(Stdio::piped()).stderr(written);
        command.envs(environment.iter().copied());
        let mut child = command.spawn().expect("the binary");
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                _ = sender.send(line);
            }
        });
        let (mut gateway, mut admin) = (None, None);
        let has_gateway = roles.is_empty() || roles.contains(&"gateway");
        while admin.is_none() || (has_gateway && gateway.is_none()) {
            let Ok(line) = lines.recv_timeout(START) else {
                let status = child.try_wait();
                panic!("it is not up: {status:?}\n{}", self.logs());
            };
            if let Some(url) = line.trim().strip_prefix("health") {
                admin = url.trim().strip_suffix("/readyz").map(str::to_owned);
            }
            if let Some(url) = line.trim().strip_prefix("jobs") {
                gateway = url.trim().strip_suffix("/v1/jobs/{kind}").map(str::to_owned);
            }
        }
        canary::plant_ids(&self.file(), &self.data());
        Up { child, log, gateway, admin: admin.expect("just seen") }
    }

    /// Everything that its processes logged.
    pub(crate) fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.folder.path()).expect("our own folder").map_while(Result::ok);
        let logs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log"));
        logs.map(|log| std::fs::read_to_string(log.path()).unwrap_or_default()).collect()
    }
}

/// The kinds that the binary knows, by its own word.
pub(crate) fn built_in_kinds() -> Vec<Kind> {
    let kinds = Installation::embedded("").run(&["config", "check", "-o", "json"]).json()["kinds"].clone();
    let kinds = kinds.as_array().expect("a list").iter();
    kinds.map(|kind| Kind::new(kind.as_str().expect("a name")).expect("a kind")).collect()
}

/// The variable that says what is logged.
const LEVEL: &str = "WARREN__LOG__LEVEL";

/// The binary, with nothing of the environment that tests themselves run in.
pub(crate) fn bare(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
    command.current_dir(folder).stdin(Stdio::null());
    for name in ["AMQP_URL", "DATABASE_URL", "RUST_LOG", "WARREN_KEY"] {
        command.env_remove(name);
    }
    command.env(LEVEL, sized("debug", "info"));
    command
}

/// Runs a command to its end.
pub(crate) fn said(command: &mut Command) -> Said {
    let output = command.output().expect("the command");
    canary::check(&String::from_utf8_lossy(&output.stderr));
    Said {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Up {
    pub(crate) fn gateway(&self) -> &str {
        self.gateway.as_deref().expect("it has the role of a gateway")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("the process ends", async || self.child.try_wait().expect("it is ours")).await
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        self.log.close();
    }
}

/// A process that is started again whenever it ends.
pub(crate) struct Supervised {
    running: Arc<Mutex<Running>>,
    ends: Arc<Mutex<Vec<ExitStatus>>>,
    thread: Option<std::thread::JoinHandle<()>>,
    log: Log,
    out: PathBuf,
}

#[derive(Default)]
struct Running {
    pid: Option<u32>,
    stop: bool,
}

impl Supervised {
    /// Where the gateway of the one that runs listens, once it does.
    pub(crate) fn gateway(&self) -> Option<String> {
        let said = std::fs::read_to_string(&self.out).ok()?;
        let line = said.lines().find_map(|line| line.trim().strip_prefix("jobs"))?;
        line.trim().strip_suffix("/v1/jobs/{kind}").map(str::to_owned)
    }

    /// How it ended, each time.
    pub(crate) fn ends(&self) -> Vec<ExitStatus> {
        self.ends.lock().expect("no panic").clone()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let mut running = self.running.lock().expect("no panic");
        running.stop = true;
        if let Some(pid) = running.pid {
            _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        drop(running);
        _ = self.thread.take().map(std::thread::JoinHandle::join);
        self.log.close();
    }
}
