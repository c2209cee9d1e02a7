//! The messages that are on their way, and what the broker says of them.
//!
//! The broker sends a message back before it confirms it. lapin reads in order, keeps what came back in a line, and hangs the
//! first of it on whatever confirm it resolves next, of those that the broker gave together in any order. So a confirm with
//! nothing hung on it says that the line was empty: whatever came back of its message hangs on a confirm that was resolved
//! before, and who takes in all that are there, to the last, has it. But of a confirm with something on it, its own message
//! may still stand in the line. It is doubted until lapin has surely handed out all that the broker sent with it, which an
//! answer to a question that is asked after it shows.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{Stream as _, future::poll_fn, stream::FuturesUnordered};
use lapin::{BasicProperties, Channel, Confirmation, message::BasicReturnMessage, options::BasicPublishOptions};

use super::{
    addresses::Address,
    wakes::{Patient, Wakes},
};

/// What the broker says of the message with this number.
pub(super) type Told = (u64, lapin::Result<Confirmation>);

/// Messages that are on their way.
pub(super) struct Confirms<F> {
    sent: FuturesUnordered<F>,
    told: Vec<Told>,
    doubted: Vec<Told>,
    woken: Arc<Woken>,
    waker: Waker,
    /// Whoever waits here waits for confirms: that a message was written does not wake him.
    patient: Arc<Patient>,
    patient_waker: Waker,
}

impl<F: Future<Output = Told>> Confirms<F> {
    /// None yet, over a connection with these wake-ups.
    pub(super) fn new(wakes: &Wakes) -> Self {
        let (woken, patient) = (Arc::new(Woken::default()), wakes.patient());
        Self {
            sent: FuturesUnordered::new(),
            told: Vec::new(),
            doubted: Vec::new(),
            waker: woken.clone().into(),
            woken,
            patient_waker: patient.clone().into(),
            patient,
        }
    }

    /// Another message, which is published when it is next asked for confirms.
    pub(super) fn push(&mut self, message: F) {
        self.sent.push(message);
    }

    /// Waits until something was told.
    pub(super) async fn some(&mut self) {
        poll_fn(|context| {
            if self.told.is_empty() {
                self.patient.register(context.waker());
                let context = &mut Context::from_waker(&self.patient_waker);
                match Pin::new(&mut self.sent).poll_next(context) {
                    Poll::Ready(Some(told)) => self.told.push(told),
                    // Nothing is on its way.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Publishes what is new, and takes in all that was told by now.
    pub(super) fn take_in(&mut self) {
        let context = &mut Context::from_waker(&self.waker);
        loop {
            self.woken.0.store(false, SeqCst);
            match Pin::new(&mut self.sent).poll_next(context) {
                Poll::Ready(Some(told)) => self.told.push(told),
                Poll::Ready(None) => return,
                // It may only have paused, to let others run, with more to come: it says so by waking whoever asks.
                Poll::Pending if self.woken.0.load(SeqCst) => {}
                Poll::Pending => return,
            }
        }
    }

    /// Takes in all that was told by now, and gives it out, with what came back. What is doubted is kept.
    pub(super) fn hear(&mut self, heard: &mut Vec<Told>) -> Vec<BasicReturnMessage> {
        self.take_in();
        let mut returned = Vec::new();
        for (number, mut told) in self.told.drain(..) {
            let message = match &mut told {
                Ok(Confirmation::Ack(message) | Confirmation::Nack(message)) => message.take(),
                _ => None,
            };
            let to = if message.is_some() { &mut self.doubted } else { &mut *heard };
            to.push((number, told));
            returned.extend(message);
        }
        returned
    }

    /// Those that are doubted. They can be believed when what is asked from now on was answered and heard.
    pub(super) fn doubted(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.doubted)
    }
}

/// Publishes one message and waits for its confirm.
pub(super) async fn send(
    channel: &Channel,
    Address { exchange, key }: Address,
    body: Vec<u8>,
    properties: BasicProperties,
    number: u64,
) -> Told {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirmed = match channel.basic_publish(exchange, key, options, &body, properties).await {
        Ok(confirm) => confirm.await,
        Err(error) => Err(error),
    };
    (number, confirmed)
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
mod tests {
    use futures_util::FutureExt as _;
    use lapin::message::Delivery;

    use super::*;

    /// A confirm that is there after so many turns, with a message that came back hung on it.
    async fn confirm(number: u64, turns: usize, with: Option<&str>) -> Told {
        let mut left = turns;
        poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        let came_back = |key: &str| BasicReturnMessage {
            delivery: Delivery::mock(0, "".into(), key.into(), false, Vec::new()),
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
        };
        (number, Ok(Confirmation::Ack(with.map(came_back))))
    }

    #[tokio::test]
    async fn whatever_is_there_is_heard_together_with_what_came_back_of_it() {
        let mut confirms = Confirms::new(&Wakes::default());
        // The one whose message came back is told first, and the one that it hangs on last of all.
        for number in 0..50 {
            let is_last = number == 49;
            confirms.push(confirm(number, usize::from(number > 0), is_last.then_some("the first's queue")));
        }
        confirms.some().await;
        let mut heard = Vec::new();
        let came_back = confirms.hear(&mut heard);
        assert_eq!(heard.len(), 49);
        assert!(heard.drain(..).all(|(number, told)| number < 49 && told == Ok(Confirmation::Ack(None))));
        let keys: Vec<_> = came_back.iter().map(|message| message.delivery.routing_key.as_str()).collect();
        assert_eq!(keys, ["the first's queue"]);
        assert!(confirms.hear(&mut heard).is_empty() && heard.is_empty(), "each is heard once");
    }

    #[test]
    fn who_waits_is_woken_by_a_confirm_and_not_by_what_was_written() {
        let (wakes, woken) = (Wakes::default(), Arc::<Woken>::default());
        let mut confirms = Confirms::new(&wakes);
        let waker = woken.clone().into();
        let context = &mut Context::from_waker(&waker);
        let is_woken = || woken.0.swap(false, SeqCst);
        let mut is_told = |confirms: &mut Confirms<_>| {
            loop {
                let is_told = std::pin::pin!(confirms.some()).poll(context).is_ready();
                // When it has seen all of them it comes once more by itself.
                if is_told || !is_woken() {
                    return is_told;
                }
            }
        };
        let message = |number| {
            let (write, written) = tokio::sync::oneshot::channel::<()>();
            let (tell, told) = tokio::sync::oneshot::channel::<()>();
            let sent = async move {
                written.await.expect("it is written");
                told.await.expect("it is told");
                (number, Ok(Confirmation::Ack(None)))
            };
            (write, tell, sent.boxed())
        };
        let (write, tell, sent) = message(1);
        confirms.push(sent);
        assert!(!is_told(&mut confirms));
        wakes.tell_what_was_written();
        write.send(()).expect("it waits");
        wakes.let_go();
        assert!(!is_woken(), "it was only written");
        wakes.put_off();
        tell.send(()).expect("it waits");
        wakes.let_go();
        assert!(is_woken() && is_told(&mut confirms));
        confirms.hear(&mut Vec::new());
        // That it is written may also be found by whoever comes for something else.
        let (write, tell, sent) = message(2);
        confirms.push(sent);
        assert!(!is_told(&mut confirms));
        write.send(()).expect("it waits");
        assert!(is_woken() && !is_told(&mut confirms));
        tell.send(()).expect("it waits");
        assert!(is_woken() && is_told(&mut confirms));
    }

    #[tokio::test]
    async fn one_with_something_on_it_is_doubted_for_its_own_may_hang_on_one_that_is_told_later() {
        let mut confirms = Confirms::new(&Wakes::default());
        let (tell, told) = tokio::sync::oneshot::channel();
        // Both came back, and were confirmed together: the second is told first, with what came back of the first.
        confirms.push(confirm(1, 0, Some("the first's queue")).boxed());
        confirms.push(async { told.await.expect("told") }.boxed());
        confirms.some().await;
        let mut heard = Vec::new();
        assert_eq!(confirms.hear(&mut heard).len(), 1);
        assert!(heard.is_empty(), "{heard:?}");
        assert_eq!(confirms.doubted(), [(1, Ok(Confirmation::Ack(None)))]);
        assert!(confirms.doubted().is_empty(), "it is doubted once");
        tell.send(confirm(0, 0, Some("the second's queue")).await).expect("it is waited for");
        assert_eq!(confirms.hear(&mut heard)[0].delivery.routing_key.as_str(), "the second's queue");
        assert_eq!(confirms.doubted(), [(0, Ok(Confirmation::Ack(None)))]);
    }
}
