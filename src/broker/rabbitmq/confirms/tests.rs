use futures_util::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use lapin::message::Delivery;
use tokio::sync::oneshot;

use super::*;

type Told = lapin::Result<Confirmation>;
type Written = lapin::Result<BoxFuture<'static, Told>>;

/// A message that is written at once.
fn written(confirm: impl Future<Output = Told> + Send + 'static) -> BoxFuture<'static, Written> {
    ready(Ok(confirm.boxed())).boxed()
}

/// A confirm that is there after so many turns, with a message that came back hung on it.
async fn confirm(turns: usize, with: Option<&'static str>) -> Told {
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
    Ok(Confirmation::Ack(with.map(came_back)))
}

#[tokio::test]
async fn whatever_is_there_is_heard_together_with_what_came_back_of_it() {
    let mut confirms = Confirms::new(&Wakes::default());
    // The one whose message came back is told first, and the one that it hangs on last of all.
    for number in 0..50 {
        let is_last = number == 49;
        confirms.push(number, written(confirm(usize::from(number > 0), is_last.then_some("the first's queue"))));
    }
    confirms.some().await;
    let mut heard = Vec::new();
    let came_back = confirms.hear(&mut heard);
    assert_eq!(heard.len(), 49);
    assert!(heard.drain(..).all(|(number, told)| number < 49 && told == Ok(Confirmed::Ack)));
    let keys: Vec<_> = came_back.iter().map(|message| message.delivery.routing_key.as_str()).collect();
    assert_eq!(keys, ["the first's queue"]);
    assert!(confirms.hear(&mut heard).is_empty() && heard.is_empty(), "each is heard once");
}

/// A message that is written, and then confirmed, when that is said.
fn two_steps() -> (oneshot::Sender<()>, oneshot::Sender<()>, BoxFuture<'static, Written>) {
    let (write, written) = oneshot::channel::<()>();
    let (tell, told) = oneshot::channel::<()>();
    let message = async move {
        written.await.expect("it is written");
        let confirm = async move {
            told.await.expect("it is told");
            Ok(Confirmation::Ack(None))
        };
        Ok(confirm.boxed())
    };
    (write, tell, message.boxed())
}

#[test]
fn messages_are_published_in_the_order_in_which_they_were_pushed() {
    let (mut confirms, published) = (Confirms::new(&Wakes::default()), std::cell::RefCell::new(Vec::new()));
    let message = |number: u64| {
        let published = &published;
        async move {
            published.borrow_mut().push(number);
            // Every other one is written at once, and every third cannot be published.
            if number.is_multiple_of(2) {
                std::future::pending::<()>().await;
            }
            if number.is_multiple_of(3) {
                Err(lapin::ErrorKind::FutureCompleted.into())
            } else {
                Ok(confirm(0, None).boxed())
            }
        }
    };
    for burst in [0..10, 10..20] {
        burst.for_each(|number| confirms.push(number, message(number)));
        confirms.take_in();
    }
    drop(confirms);
    assert!(published.into_inner().into_iter().eq(0..20));
}

#[test]
fn one_that_is_written_while_others_are_taken_in_is_taken_in_with_them() {
    let mut confirms = Confirms::new(&Wakes::default());
    let [(write_second, second_written), (write_third, third_written)] = [(); 2].map(|()| oneshot::channel::<()>());
    // Each is written, and confirmed, while the confirm of the one before is taken in; what came back of the first hangs on
    // the confirm of the last.
    let told_once_it_tells = |write: oneshot::Sender<()>| async move {
        write.send(()).expect("it waits");
        Ok(Confirmation::Ack(None))
    };
    let second = async move {
        second_written.await.expect("it is written");
        written(told_once_it_tells(write_third)).await
    };
    let third = async {
        third_written.await.expect("it is written");
        written(confirm(0, Some("the first's queue"))).await
    };
    confirms.push(2, second.boxed());
    confirms.push(3, third.boxed());
    confirms.take_in();
    confirms.push(1, written(told_once_it_tells(write_second)));
    assert_eq!(confirms.hear(&mut Vec::new()).len(), 1);
}

#[test]
fn what_was_confirmed_is_told_before_what_was_lost_and_that_before_what_could_not_be_published() {
    let mut confirms = Confirms::new(&Wakes::default());
    let error = || lapin::Error::from(lapin::ErrorKind::FutureCompleted);
    let (lose, lost) = oneshot::channel::<()>();
    let (write, tell, message) = two_steps();
    let waits = async move {
        lost.await.expect("it waits");
        Err(error())
    };
    confirms.push(1, written(waits));
    confirms.push(2, message);
    confirms.take_in();
    write.send(()).expect("it waits");
    tell.send(()).expect("it waits");
    lose.send(()).expect("it waits");
    confirms.push(3, ready(Err(error())).boxed());
    assert!(confirms.some().now_or_never().is_some());
    let mut heard = Vec::new();
    confirms.hear(&mut heard);
    assert!(matches!(heard.as_slice(), [(2, Ok(Confirmed::Ack)), (1, Err(_)), (3, Err(_))]), "{heard:?}");
}

#[test]
fn one_that_cannot_be_published_is_told_so_while_those_around_it_are_on_their_way() {
    let mut confirms = Confirms::new(&Wakes::default());
    let (ends, mut heard) = ([two_steps(), two_steps()], Vec::new());
    let [(write, tell, first), (write_third, tell_third, third)] = ends;
    confirms.push(1, first);
    confirms.push(2, async { Err(lapin::ErrorKind::FutureCompleted.into()) }.boxed());
    confirms.push(3, third);
    assert!(confirms.some().now_or_never().is_some());
    confirms.hear(&mut heard);
    assert!(matches!(heard.drain(..).as_slice(), [(2, Err(_))]));
    write.send(()).expect("it waits");
    write_third.send(()).expect("it waits");
    tell_third.send(()).expect("it waits");
    confirms.hear(&mut heard);
    assert_eq!(heard.drain(..).as_slice(), [(3, Ok(Confirmed::Ack))]);
    tell.send(()).expect("it waits");
    confirms.hear(&mut heard);
    assert_eq!(heard, [(1, Ok(Confirmed::Ack))]);
}

#[test]
fn who_waits_is_woken_by_a_confirm_and_not_by_what_was_written() {
    let (wakes, woken) = (Wakes::default(), Arc::<Woken>::default());
    let mut confirms = Confirms::new(&wakes);
    let waker = woken.clone().into();
    let context = &mut Context::from_waker(&waker);
    let is_woken = || woken.0.swap(false, SeqCst);
    let mut is_told = |confirms: &mut Confirms<_, _>| {
        loop {
            let is_told = std::pin::pin!(confirms.some()).poll(context).is_ready();
            // When it has seen all of them it comes once more by itself.
            if is_told || !is_woken() {
                return is_told;
            }
        }
    };
    let (write, tell, message) = two_steps();
    confirms.push(1, message);
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
    let (write, tell, message) = two_steps();
    confirms.push(2, message);
    assert!(!is_told(&mut confirms));
    write.send(()).expect("it waits");
    assert!(is_woken() && !is_told(&mut confirms));
    tell.send(()).expect("it waits");
    assert!(is_woken() && is_told(&mut confirms));
}

#[tokio::test]
async fn one_with_something_on_it_is_doubted_for_its_own_may_hang_on_one_that_is_told_later() {
    let mut confirms = Confirms::new(&Wakes::default());
    let (tell, told) = oneshot::channel();
    // Both came back, and were confirmed together: the second is told first, with what came back of the first.
    confirms.push(1, written(confirm(0, Some("the first's queue"))));
    confirms.push(2, written(async { told.await.expect("told") }));
    confirms.some().await;
    let mut heard = Vec::new();
    assert_eq!(confirms.hear(&mut heard).len(), 1);
    assert!(heard.is_empty(), "{heard:?}");
    assert_eq!(confirms.doubted(), [(1, Ok(Confirmed::Ack))]);
    assert!(confirms.doubted().is_empty(), "it is doubted once");
    tell.send(confirm(0, Some("the second's queue")).await).expect("it is waited for");
    assert_eq!(confirms.hear(&mut heard)[0].delivery.routing_key.as_str(), "the second's queue");
    assert_eq!(confirms.doubted(), [(2, Ok(Confirmed::Ack))]);
}
