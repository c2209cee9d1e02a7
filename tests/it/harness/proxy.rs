//! A TCP proxy that fails on command: cuts, goes silent, swallows one answer, or makes every answer late.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// A proxy in front of a server.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    faults: Arc<Faults>,
    cut: watch::Sender<Cut>,
}

/// Which connections are ended.
#[derive(Clone, Copy)]
enum Cut {
    All,
    /// The one with this number.
    Only(usize),
}

#[derive(Default)]
struct Faults {
    /// What the server says is read and thrown away.
    mute_server: AtomicBool,
    /// New connections are closed at once.
    refuse: AtomicBool,
    /// How late everything is that the server says, in milliseconds.
    late: AtomicU64,
    /// How many bytes each client has said so far, in the order in which they came.
    said: Mutex<Vec<usize>>,
    /// Once a client has said this, what the server says to it is thrown away, and the connection is cut.
    swallow_after: Mutex<Option<Vec<u8>>>,
}

impl Proxy {
    /// In front of `host:port`.
    pub(crate) async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (faults, (cut, cuts)) = (Arc::<Faults>::default(), watch::channel(Cut::All));
        let shared = faults.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if shared.refuse.load(SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                let number = {
                    let mut said = shared.said.lock().expect("no panic");
                    said.push(0);
                    said.len() - 1
                };
                tokio::spawn(carry(client, server, number, shared.clone(), cuts.clone()));
            }
        });
        Self { port, faults, cut }
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(Cut::All);
    }

    /// Ends one connection, by its number from zero.
    pub(crate) fn cut_only(&self, number: usize) {
        self.cut.send_replace(Cut::Only(number));
    }

    /// How many bytes each client has said so far, in the order in which they came.
    pub(crate) fn said(&self) -> Vec<usize> {
        self.faults.said.lock().expect("no panic").clone()
    }

    /// Takes no more connections until told otherwise.
    pub(crate) fn refuse_new(&self, refuse: bool) {
        self.faults.refuse.store(refuse, SeqCst);
    }

    /// Ends every connection, and takes no more until told otherwise.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.refuse_new(refuse);
        if refuse {
            self.cut();
        }
    }

    /// Throws away what the server says, while what is said to it arrives.
    pub(crate) fn mute_server(&self, mute: bool) {
        self.faults.mute_server.store(mute, SeqCst);
    }

    /// Makes everything that the server says late.
    pub(crate) fn delay_server(&self, late: Duration) {
        self.faults.late.store(u64::try_from(late.as_millis()).expect("short"), SeqCst);
    }

    /// Lets the next thing that contains these bytes through, and cuts its connection instead of answering.
    pub(crate) fn swallow_answer_to(&self, said: &[u8]) {
        *self.faults.swallow_after.lock().expect("no panic") = Some(said.to_vec());
    }

    /// Whether the answer was swallowed.
    pub(crate) fn has_swallowed(&self) -> bool {
        self.faults.swallow_after.lock().expect("no panic").is_none()
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    number: usize,
    faults: Arc<Faults>,
    mut cuts: watch::Receiver<Cut>,
) {
    cuts.mark_unchanged();
    _ = client.set_nodelay(true);
    _ = server.set_nodelay(true);
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // Raised when the answer to what was just said is to be swallowed.
    let swallow = Arc::new(AtomicBool::new(false));
    tokio::select! {
        () = say(from_client, to_server, number, &faults, &swallow) => {}
        () = answer(from_server, to_client, &faults, &swallow) => {}
        () = is_cut(&mut cuts, number) => {}
    }
}

async fn is_cut(cuts: &mut watch::Receiver<Cut>, number: usize) {
    while cuts.changed().await.is_ok() {
        match *cuts.borrow_and_update() {
            Cut::Only(other) if other != number => {}
            Cut::All | Cut::Only(_) => return,
        }
    }
}

async fn say(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: usize, faults: &Faults, swallow: &AtomicBool) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let said = &bytes[..count];
        faults.said.lock().expect("no panic")[number] += count;
        let matches = |wanted: &Vec<u8>| said.windows(wanted.len()).any(|window| window == wanted.as_slice());
        if faults.swallow_after.lock().expect("no panic").take_if(|wanted| matches(wanted)).is_some() {
            swallow.store(true, SeqCst);
        }
        if to.write_all(said).await.is_err() {
            return;
        }
    }
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: &Faults, swallow: &AtomicBool) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if swallow.load(SeqCst) {
            // The server has answered, so what was asked is done.
            return;
        }
        let late = faults.late.load(SeqCst);
        if late > 0 {
            tokio::time::sleep(Duration::from_millis(late)).await;
        }
        if !faults.mute_server.load(SeqCst) && to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
