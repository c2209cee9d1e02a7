//! One connection that is always being had: made, watched, and made again until it works.
//!
//! lapin can recover connections by itself, and then a consumer hangs for ever after some errors; so its recovery stays
//! off, and whoever uses a [`Link`] makes its channels anew on each new connection.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use futures_util::StreamExt as _;
use lapin::{Channel, Connection, ConnectionProperties, Event, message::Delivery, uri::AMQPUri};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{cork::Cork, spent::Spent, wakes::Wakes};
use crate::{job::chain, retry::Reconnect};

/// How long anything that the broker should answer at once may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that is silent for twice this is gone.
const HEARTBEAT_SECONDS: u16 = 10;
/// lapin holds 64 frames of buffers for each connection; at the broker's own default that is 8 MiB.
const FRAME_MAX: u32 = 16 * 1024;
/// How long something must have worked before its loss is a new trouble and no longer the old one: without that, what is
/// made and lost at once would be made again ten times a second.
pub(super) const A_LIFE: Duration = Duration::from_secs(5);
/// lapin tells of most ends of a connection, but not of all.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// Where the broker is, with its password. Never printed whole.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl(AMQPUri);

/// A text that is no AMQP URL. Does not repeat it: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an AMQP URL reads amqp://user:password@host:port/vhost, with %2f for the vhost /")]
pub struct BadAmqpUrl;

impl FromStr for AmqpUrl {
    type Err = BadAmqpUrl;

    fn from_str(text: &str) -> Result<Self, BadAmqpUrl> {
        text.parse().map(Self).map_err(|_| BadAmqpUrl)
    }
}

impl AmqpUrl {
    /// The virtual host.
    pub fn vhost(&self) -> &str {
        &self.0.vhost
    }

    /// Its host and port.
    pub fn address(&self) -> (&str, u16) {
        (&self.0.authority.host, self.0.authority.port)
    }

    fn with_our_settings(&self) -> AMQPUri {
        let mut uri = self.0.clone();
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        uri.query.connection_timeout.get_or_insert(5_000);
        uri
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { authority, vhost, .. } = &self.0;
        write!(f, "amqp://{}@{}:{}/{vhost}", authority.userinfo.username, authority.host, authority.port)
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether there is a connection, and what the broker says of it.
#[derive(Debug, Clone)]
pub(super) enum LinkState {
    /// None, and why.
    Down(String),
    /// One that works.
    Up(Arc<Connection>),
    /// One on which the broker takes no publishes, and why.
    Blocked(Arc<Connection>, String),
}

impl LinkState {
    /// The connection, if there is one.
    pub(super) fn connection(&self) -> Option<Arc<Connection>> {
        match self {
            Self::Up(connection) | Self::Blocked(connection, _) => Some(connection.clone()),
            Self::Down(_) => None,
        }
    }
}

/// One connection that is always being had.
#[derive(Debug)]
pub(super) struct Link {
    state: watch::Receiver<LinkState>,
    cork: Cork,
    renew: Arc<Notify>,
    stop: CancellationToken,
}

impl Link {
    /// Begins to connect. `name` is what the broker's operators see.
    pub(super) fn open(url: &AmqpUrl, name: &str) -> Self {
        let (report, state) = watch::channel(LinkState::Down("not connected yet".into()));
        let stop = CancellationToken::new();
        let renew = Arc::new(Notify::new());
        let (cork, url, name) = (Cork::default(), url.clone(), name.to_owned());
        let keeper = Keeper { url, name, cork: cork.clone(), report, renew: renew.clone(), stop: stop.clone() };
        tokio::spawn(keeper.run());
        Self { state, cork, renew, stop }
    }

    /// The state now, and a way to wait for the next one.
    pub(super) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// The state now.
    pub(super) fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// Whether there is a connection that takes what is published.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), LinkState::Up(_))
    }

    /// Whether there is a connection on which the broker takes nothing.
    pub(super) fn is_blocked(&self) -> bool {
        matches!(*self.state.borrow(), LinkState::Blocked(..))
    }

    /// The present connection; waits until there is one. `None` once the link is closed.
    pub(super) async fn connection(&self) -> Option<Arc<Connection>> {
        let mut state = self.state.clone();
        let state = state.wait_for(|state| state.connection().is_some()).await.ok()?;
        state.connection()
    }

    /// A channel on the present connection; waits until there is one. `None` once the link is closed.
    pub(super) async fn channel(&self) -> Option<lapin::Result<Channel>> {
        Some(within(self.connection().await?.create_channel()).await)
    }

    /// Holds back what is written to the broker until what is answered is dropped, so that it goes together. Not to be held
    /// across anything that waits.
    pub(super) fn hold_writes(&self) -> MutexGuard<'_, ()> {
        self.cork.hold()
    }

    /// The wake-ups from what the broker sends.
    pub(super) fn wakes(&self) -> &Wakes {
        self.cork.wakes()
    }

    /// Where what is left of deliveries goes.
    pub(super) fn spent(&self) -> &Spent<Delivery> {
        self.cork.spent()
    }

    /// Gives the present connection up for a new one.
    pub(super) fn renew(&self) {
        self.renew.notify_one();
    }

    /// Ends the connection, now or as soon as it would be made.
    pub(super) fn close(&self) {
        self.stop.cancel();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// A connection outside of any link, for administration: used and closed.
pub(super) async fn connect(url: &AmqpUrl, name: &str) -> lapin::Result<Connection> {
    connect_corked(url, name, &Cork::default()).await
}

async fn connect_corked(url: &AmqpUrl, name: &str, cork: &Cork) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    within(Connection::connect_uri_with_runtime(url.with_our_settings(), properties, cork.runtime())).await
}

/// Closes a connection, but waits no longer than a moment: a blocked one writes nothing, not even its end.
pub(super) async fn close(connection: &Connection) {
    if let Ok(Err(error)) = timeout(Duration::from_secs(2), connection.close(200, "bye".into())).await {
        tracing::debug!(%error, "the broker was gone before the connection was closed");
    }
}

/// Bounds a call: lapin's own have no timeouts.
pub(super) async fn within<T>(call: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// The task behind a [`Link`].
struct Keeper {
    url: AmqpUrl,
    name: String,
    cork: Cork,
    report: watch::Sender<LinkState>,
    renew: Arc<Notify>,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let mut pauses = Reconnect::new();
        while !self.stop.is_cancelled() {
            let made = tokio::select! {
                made = connect_corked(&self.url, &self.name, &self.cork) => made,
                () = self.stop.cancelled() => break,
            };
            let reason = match made {
                Ok(connection) => {
                    info!(broker = %self.url, connection = self.name, "connected to the broker");
                    let (connection, began) = (Arc::new(connection), Instant::now());
                    self.report.send_replace(LinkState::Up(connection.clone()));
                    let reason = self.watch_over(connection).await;
                    if began.elapsed() >= A_LIFE {
                        pauses.reset();
                    }
                    reason
                }
                Err(error) => chain(&error),
            };
            if self.stop.is_cancelled() {
                break;
            }
            self.report.send_replace(LinkState::Down(reason.clone()));
            let pause = pauses.pause();
            warn!(broker = %self.url, connection = self.name, reason, ?pause, "no connection to the broker");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
        self.report.send_replace(LinkState::Down("closed".into()));
    }

    /// Returns why the connection is over.
    async fn watch_over(&self, connection: Arc<Connection>) -> String {
        let mut events = std::pin::pin!(connection.events_listener());
        let mut check = tokio::time::interval(CHECK_EVERY);
        let mut reason = "the connection was closed".to_owned();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(why)) => {
                        warn!(why, "the broker has blocked publishing");
                        self.report.send_replace(LinkState::Blocked(connection.clone(), why));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        info!("the broker takes publishes again");
                        self.report.send_replace(LinkState::Up(connection.clone()));
                    }
                    // Channels' errors come this way too.
                    Some(Event::Error(error)) => reason = chain(&error),
                    Some(_) => {}
                    None => return reason,
                },
                _ = check.tick() => {}
                () = self.renew.notified() => {
                    // One that hangs must not hold up the next.
                    let old = connection.clone();
                    tokio::spawn(async move { close(&old).await });
                    return "given up for a new one".into();
                }
                () = self.stop.cancelled() => {
                    close(&connection).await;
                    return reason;
                }
            }
            if !connection.status().connected() {
                return reason;
            }
        }
    }
}
