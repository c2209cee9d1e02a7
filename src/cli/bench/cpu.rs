//! What processes use, as Linux counts it: those of the installation, and the servers where they run on this machine and may be
//! looked at. Must not know what is measured.

use std::{collections::HashMap, net::IpAddr};

use procfs::{
    net::{TcpState, tcp, tcp6},
    process::{FDTarget, Process, Stat, all_processes},
};

/// The CPU time of a process so far, in microseconds. It is counted in ticks, of which there are a hundred a second.
pub(super) fn cpu_us(pid: u32) -> u64 {
    process(pid).and_then(|process| process.stat().ok()).map_or(0, |stat| micros(stat.utime + stat.stime))
}

/// The most memory that a process has held, in MiB.
pub(super) fn peak_memory_mib(pid: u32) -> u64 {
    process(pid).and_then(|process| process.status().ok()?.vmhwm).unwrap_or(0) / 1024
}

fn process(pid: u32) -> Option<Process> {
    Process::new(pid.cast_signed()).ok()
}

fn micros(ticks: u64) -> u64 {
    ticks * 1_000_000 / procfs::ticks_per_second()
}

/// A server that runs on this machine.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: &'static str,
    pid: i32,
}

impl Server {
    /// The process of `program` that listens there. `None` if that is another machine, another program (what forwards to a
    /// container, say), or a process that only its own user may look at.
    pub(super) fn find(name: &'static str, program: &str, (host, port): (&str, u16)) -> Option<Self> {
        if host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
            return None;
        }
        let sockets = tcp().into_iter().chain(tcp6()).flatten();
        let listening =
            sockets.filter(|socket| socket.state == TcpState::Listen && socket.local_address.port() == port);
        let inodes: Vec<_> = listening.map(|socket| socket.inode).collect();
        let holds = |process: &Process| {
            let files = process.fd().into_iter().flatten().flatten();
            files.into_iter().any(|file| matches!(file.target, FDTarget::Socket(inode) if inodes.contains(&inode)))
        };
        let stats = all_processes().ok()?.flatten().filter(holds).filter_map(|process| process.stat().ok());
        // Its children may have inherited the socket.
        stats.filter(|stat| stat.comm == program).map(|stat| stat.pid).min().map(|pid| Self { name, pid })
    }

    /// The CPU time so far of it and all its children, in microseconds: about, since they begin and end meanwhile. Zero once it
    /// is gone.
    pub(super) fn cpu_us(&self) -> u64 {
        let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
        for stat in all_processes().into_iter().flatten().flatten().filter_map(|process| process.stat().ok()) {
            children.entry(stat.ppid).or_default().push(stat);
        }
        // After its children: one that ends meanwhile is not left out.
        let mut open: Vec<_> =
            self.pid.try_into().ok().and_then(process).and_then(|own| own.stat().ok()).into_iter().collect();
        let mut ticks = 0;
        while let Some(stat) = open.pop() {
            // With the children that have ended.
            ticks += stat.utime + stat.stime + (stat.cutime + stat.cstime).cast_unsigned();
            open.extend(children.remove(&stat.pid).into_iter().flatten());
        }
        micros(ticks)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        net::TcpListener,
        process::{Command, Stdio, id},
        time::{Duration, Instant},
    };

    use super::*;

    fn own_name() -> String {
        Process::myself().expect("a process").stat().expect("its state").comm
    }

    #[test]
    fn a_server_is_found_by_where_it_listens_and_by_its_program_alone() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let find = |program: &str, host: &str| Server::find("it", program, (host, port)).map(|server| server.pid);
        let this = Some(id().cast_signed());
        assert_eq!(find(&own_name(), "127.0.0.1"), this);
        assert_eq!(find(&own_name(), "localhost"), this);
        assert_eq!(find(&own_name(), "192.0.2.1"), None, "another machine");
        assert_eq!(find("another", "127.0.0.1"), None);
        drop(socket);
        assert_eq!(find(&own_name(), "127.0.0.1"), None, "nobody listens any more");
    }

    /// One that would run for ever.
    struct Child(String);

    impl Drop for Child {
        fn drop(&mut self) {
            let killed = Command::new("kill").arg(&self.0).status();
            assert!(killed.is_ok_and(|status| status.success()));
        }
    }

    #[test]
    fn what_children_use_counts_while_they_run_and_when_they_have_ended() {
        let script = "sh -c 'while :; do :; done' & echo $!; wait $!; echo over; read -r end";
        let mut parent = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut said = BufReader::new(parent.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let child = Child(said.next().expect("the child"));
        let server = Server { name: "it", pid: parent.id().cast_signed() };
        let began = Instant::now();
        // Ten ticks.
        while server.cpu_us() < 100_000 {
            assert!(began.elapsed() < Duration::from_secs(20), "the child has used nothing");
        }
        assert!(cpu_us(parent.id()) < 100_000, "it does nothing itself");
        drop(child);
        assert_eq!(said.next().as_deref(), Some("over"));
        assert!(server.cpu_us() >= 100_000);
        drop(parent.stdin.take());
        parent.wait().expect("its end");
    }
}
