//! The way in, as every adapter has it: where jobs wait to be written, and how they are answered.
//!
//! Jobs that are published together are answered together: however many they are, whoever published them is woken once.
//! Most jobs come alone, and need no list of answers. An answer that is dropped, with the channel that its job was for, says
//! that nobody knows.

use std::{
    iter,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::Instant,
};

use super::{Outgoing, PublishError, Publishing, PublishingAll, Verdict};

/// A job that waits to be written.
pub(super) struct Waiting {
    pub(super) job: Outgoing,
    pub(super) since: Instant,
    pub(super) answer: Answer,
}

/// The way in.
#[derive(Debug)]
pub(super) struct WayIn {
    sender: mpsc::Sender<Waiting>,
}

impl WayIn {
    /// A way in on which so many may wait, and its other end.
    pub(super) fn new(length: usize) -> (Self, mpsc::Receiver<Waiting>) {
        let (sender, receiver) = mpsc::channel(length);
        (Self { sender }, receiver)
    }

    /// Lets jobs wait in their order.
    pub(super) fn publish_all(&self, jobs: Vec<Outgoing>) -> PublishingAll {
        let (answer, told) = oneshot::channel();
        let publishing = PublishingAll::new(told, jobs.len());
        let (group, since) = (Group::of(jobs.len(), answer), Instant::now());
        for (place, job) in jobs.into_iter().enumerate() {
            self.queue(Waiting { job, since, answer: Answer::Among(Place { group: group.clone(), place }) });
        }
        publishing
    }

    /// The same for a single job.
    pub(super) fn publish(&self, job: Outgoing) -> Publishing {
        let (answer, told) = oneshot::channel();
        self.queue(Waiting { job, since: Instant::now(), answer: Answer::Alone(answer) });
        Publishing::new(told)
    }

    fn queue(&self, waiting: Waiting) {
        let (refused, why) = match self.sender.try_send(waiting) {
            Ok(()) => return,
            Err(TrySendError::Full(refused)) => (refused, PublishError::Busy),
            Err(TrySendError::Closed(refused)) => (refused, PublishError::Unavailable),
        };
        refused.answer.send(Err(why));
    }
}

/// Adds at most so many that are about to wait to those that a burst begins with.
///
/// Tokio runs a task at once that another has woken. Those who are about to come too run before this goes on, so that a
/// burst is not the first of them alone.
pub(super) async fn and_the_rest<T>(waiting: &mut mpsc::Receiver<T>, burst: &mut impl Extend<T>, most: usize) {
    tokio::task::yield_now().await;
    burst.extend(iter::from_fn(|| waiting.try_recv().ok()).take(most));
}

/// The answers to jobs that were published together, told when all are there, with the last place among them.
#[derive(Debug)]
struct Group(Mutex<Answers>);

#[derive(Debug)]
struct Answers {
    verdicts: Vec<Verdict>,
    told: Option<oneshot::Sender<Vec<Verdict>>>,
}

impl Group {
    fn of(jobs: usize, told: oneshot::Sender<Vec<Verdict>>) -> Arc<Self> {
        let verdicts = vec![Err(PublishError::OutcomeUnknown); jobs];
        Arc::new(Self(Mutex::new(Answers { verdicts, told: Some(told) })))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Answers { verdicts, told } = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.take() {
            // Whoever asked may be gone.
            _ = told.send(std::mem::take(verdicts));
        }
    }
}

/// Where one job's answer goes. Dropped, it is that nobody knows.
#[derive(Debug)]
pub(super) enum Answer {
    Alone(oneshot::Sender<Verdict>),
    Among(Place),
}

impl Answer {
    pub(super) fn send(self, verdict: Verdict) {
        match self {
            // Whoever asked may be gone.
            Self::Alone(answer) => _ = answer.send(verdict),
            Self::Among(Place { group, place }) => {
                group.0.lock().unwrap_or_else(PoisonError::into_inner).verdicts[place] = verdict;
            }
        }
    }
}

/// Whose answer it is among those of a group.
#[derive(Debug)]
pub(super) struct Place {
    group: Arc<Group>,
    place: usize,
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::job::{Envelope, Kind, Micros};

    fn jobs(count: u128) -> Vec<Outgoing> {
        let job = |id| {
            let kind = Kind::new("test.kind").expect("a kind");
            Outgoing {
                envelope: Envelope::new(uuid::Uuid::from_u128(id), kind, 1, Micros::default()),
                body: Vec::new(),
            }
        };
        (0..count).map(job).collect()
    }

    #[tokio::test]
    async fn each_is_told_its_own_in_their_order_whenever_it_comes() {
        let (way_in, mut other_end) = WayIn::new(8);
        let mut published = std::pin::pin!(way_in.publish_all(jobs(3)));
        assert!(published.as_mut().now_or_never().is_none());
        let mut waiting = Vec::new();
        other_end.recv_many(&mut waiting, 8).await;
        let ids: Vec<_> = waiting.iter().map(|waiting| waiting.job.envelope.id.as_u128()).collect();
        assert_eq!(ids, [0, 1, 2]);
        waiting.pop().expect("the third").answer.send(Ok(()));
        // The second is dropped.
        waiting.pop();
        assert!(published.as_mut().now_or_never().is_none(), "the first is not answered");
        waiting.pop().expect("the first").answer.send(Err(PublishError::Refused));
        let told = published.await;
        assert_eq!(told, [Err(PublishError::Refused), Err(PublishError::OutcomeUnknown), Ok(())]);
    }

    #[tokio::test]
    async fn one_alone_is_told_or_knows_that_nobody_does() {
        let (way_in, mut other_end) = WayIn::new(1);
        let alone = || way_in.publish(jobs(1).remove(0));
        for told in [Ok(()), Err(PublishError::Refused)] {
            let answer = async { other_end.recv().await.expect("a job").answer.send(told.clone()) };
            assert_eq!(tokio::join!(alone(), answer).0, told);
        }
        let drops = async { drop(other_end.recv().await.expect("a job")) };
        assert_eq!(tokio::join!(alone(), drops).0, Err(PublishError::OutcomeUnknown));
        let mut waits = std::pin::pin!(alone());
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(alone().await, Err(PublishError::Busy));
        drop(other_end);
        assert_eq!(waits.await, Err(PublishError::OutcomeUnknown));
        assert_eq!(alone().await, Err(PublishError::Unavailable));
    }

    #[tokio::test]
    async fn who_finds_no_room_is_refused_and_the_others_are_not() {
        let (way_in, mut other_end) = WayIn::new(2);
        let published = way_in.publish_all(jobs(3));
        let answer = async {
            for _ in 0..2 {
                other_end.recv().await.expect("a job").answer.send(Ok(()));
            }
        };
        let (told, ()) = tokio::join!(published, answer);
        assert_eq!(told, [Ok(()), Ok(()), Err(PublishError::Busy)]);
        drop(other_end);
        assert_eq!(way_in.publish_all(jobs(1)).await, [Err(PublishError::Unavailable)]);
        assert_eq!(way_in.publish_all(Vec::new()).await, []);
    }
}
