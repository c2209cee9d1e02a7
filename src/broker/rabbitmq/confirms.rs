//! The messages that are on their way, and what the broker says of them.
//!
//! The broker sends a message back before it confirms it. lapin reads in order, keeps what came back in a line, and hangs the
//! first of it on whatever confirm it resolves next, of those that the broker gave together in any order. So a confirm with
//! nothing hung on it says that the line was empty: whatever came back of its message hangs on a confirm that was resolved
//! before, and who takes in all that are there, to the last, has it. But of a confirm with something on it, its own message
//! may still stand in the line. It is doubted until lapin has surely handed out all that the broker sent with it, which an
//! answer to a question that is asked after it shows.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{Stream as _, future::poll_fn, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, PublisherConfirm, message::BasicReturnMessage, options::BasicPublishOptions,
};

use super::{
    addresses::Address,
    wakes::{Patient, Wakes},
};

/// What the broker says of the message with this number.
pub(super) type Told = (u64, lapin::Result<Confirmed>);

/// A confirm without what came back: that is large, and hardly ever there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmed {
    Ack,
    Nack,
    /// The channel is not in confirm mode.
    NotRequested,
}

/// Messages that are on their way: first they are written, then they are confirmed.
pub(super) struct Confirms<W, C> {
    /// Those that are not written, in their order. To publish one takes a large future, which is gone as soon as it is
    /// written; as long as all of them lay about until they were confirmed, they alone filled a core's cache.
    unwritten: VecDeque<(u64, Pin<Box<W>>)>,
    /// How many of those, from the beginning, are with lapin.
    published: usize,
    written: FuturesUnordered<Confirm<C>>,
    told: Vec<Heard>,
    doubted: Vec<Told>,
    /// Those that could not be published, told last of all: why is said better by the errors of those that could.
    failed: Vec<Told>,
    woken: Arc<Woken>,
    waker: Waker,
    /// Whoever waits here waits for confirms: that a message was written does not wake him.
    patient: Arc<Patient>,
    patient_waker: Waker,
}

impl<W, C> Confirms<W, C>
where
    W: Future<Output = lapin::Result<C>>,
    C: Future<Output = lapin::Result<Confirmation>> + Unpin,
{
    /// None yet, over a connection with these wake-ups.
    pub(super) fn new(wakes: &Wakes) -> Self {
        let (woken, patient) = (Arc::new(Woken::default()), wakes.patient());
        Self {
            unwritten: VecDeque::new(),
            published: 0,
            written: FuturesUnordered::new(),
            told: Vec::new(),
            doubted: Vec::new(),
            failed: Vec::new(),
            waker: woken.clone().into(),
            woken,
            patient_waker: patient.clone().into(),
            patient,
        }
    }

    /// Another message, which is published when it is next asked for confirms.
    pub(super) fn push(&mut self, number: u64, message: W) {
        self.unwritten.push_back((number, Box::pin(message)));
    }

    /// Waits until something was told.
    pub(super) async fn some(&mut self) {
        poll_fn(|context| {
            if self.told.is_empty() {
                self.patient.register(context.waker());
                self.publish();
                let context = &mut Context::from_waker(&self.patient_waker);
                match Pin::new(&mut self.written).poll_next(context) {
                    Poll::Ready(Some(heard)) => self.told.push(heard),
                    // Unless one failed: none of them waits for a confirm, or it waits for it.
                    Poll::Ready(None) | Poll::Pending if self.failed.is_empty() => return Poll::Pending,
                    Poll::Ready(None) | Poll::Pending => {}
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Publishes what is new, and takes in all that was told by now.
    pub(super) fn take_in(&mut self) {
        loop {
            self.take_in_confirms();
            // One that was written meanwhile may be confirmed by now, with what came back of one that was taken in just now.
            if !self.publish() {
                return;
            }
        }
    }

    fn take_in_confirms(&mut self) {
        let context = &mut Context::from_waker(&self.waker);
        loop {
            self.woken.0.store(false, SeqCst);
            match Pin::new(&mut self.written).poll_next(context) {
                Poll::Ready(Some(heard)) => self.told.push(heard),
                Poll::Ready(None) => return,
                // It may only have paused, to let others run, with more to come: it says so by waking whoever asks.
                Poll::Pending if self.woken.0.load(SeqCst) => {}
                Poll::Pending => return,
            }
        }
    }

    /// Publishes what is new, in its order, and waits for the confirms of what has been written. Answers whether anything
    /// has.
    fn publish(&mut self) -> bool {
        let Self { unwritten, published, written, failed, patient_waker, .. } = self;
        let context = &mut Context::from_waker(patient_waker);
        let mut any = false;
        let mut wrote = |number, confirm| {
            any = true;
            match confirm {
                Ok(confirm) => written.push(Confirm { number, confirm }),
                Err(error) => failed.push((number, Err(error))),
            }
        };
        // lapin writes in order: behind one that is not written there is none that is. One there that cannot be written any
        // more is told of with it, for then the whole channel is gone.
        while *published > 0
            && let Some((number, message)) = unwritten.front_mut()
            && let Poll::Ready(confirm) = message.as_mut().poll(context)
        {
            wrote(*number, confirm);
            unwritten.pop_front();
            *published -= 1;
        }
        while let Some((number, message)) = unwritten.get_mut(*published) {
            match message.as_mut().poll(context) {
                Poll::Pending => *published += 1,
                // The channel is gone: hardly ever.
                Poll::Ready(confirm) => {
                    wrote(*number, confirm);
                    unwritten.remove(*published);
                }
            }
        }
        any
    }

    /// Takes in all that was told by now, and gives it out, with what came back. What is doubted is kept. Errors come last:
    /// they are of the whole channel, and what was confirmed before is confirmed all the same.
    pub(super) fn hear(&mut self, heard: &mut Vec<Told>) -> Vec<BasicReturnMessage> {
        self.take_in();
        let mut came_back = Vec::new();
        let mut errors = Vec::new();
        for Heard { told, returned } in self.told.drain(..) {
            let to = match &told {
                (_, Err(_)) => &mut errors,
                _ if returned.is_some() => &mut self.doubted,
                _ => &mut *heard,
            };
            to.push(told);
            came_back.extend(returned.map(|message| *message));
        }
        heard.append(&mut errors);
        heard.append(&mut self.failed);
        came_back
    }

    /// Those that are doubted. They can be believed when what is asked from now on was answered and heard.
    pub(super) fn doubted(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.doubted)
    }
}

/// Publishes one message. It is with lapin once this was first polled, and written when it is ready.
pub(super) async fn publish(
    channel: &Channel,
    Address { exchange, key }: Address,
    body: Vec<u8>,
    properties: BasicProperties,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish(exchange, key, options, &body, properties).await
}

/// The confirm of one message.
struct Confirm<C> {
    number: u64,
    confirm: C,
}

/// A confirm that was told, and what came back with it.
struct Heard {
    told: Told,
    returned: Option<Box<BasicReturnMessage>>,
}

impl<C: Future<Output = lapin::Result<Confirmation>> + Unpin> Future for Confirm<C> {
    type Output = Heard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Heard> {
        Pin::new(&mut self.confirm).poll(context).map(|confirmed| {
            let (confirmed, returned) = match confirmed {
                Ok(Confirmation::Ack(returned)) => (Ok(Confirmed::Ack), returned),
                Ok(Confirmation::Nack(returned)) => (Ok(Confirmed::Nack), returned),
                Ok(Confirmation::NotRequested) => (Ok(Confirmed::NotRequested), None),
                Err(error) => (Err(error), None),
            };
            Heard { told: (self.number, confirmed), returned: returned.map(Box::new) }
        })
    }
}

/// Whether whoever asks was woken while he asked.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

#[cfg(test)]
mod tests;
