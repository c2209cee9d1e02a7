//! Wakes whoever waits for the broker once for all that came together.
//!
//! lapin's thread hands out frame by frame what it has read, and wakes with each of them the task that it is for. On another
//! core that task has dealt with the first before the second is there, sleeps, and is woken again: two system calls and a
//! switch for each job. So while that thread hands out what it has read, those who are wrapped here are not woken; they are
//! when it comes back to its socket, which [`super::cork`] tells.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;

/// The wake-ups of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Wakes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Something was read, and whoever read it has not come back.
    handing_out: bool,
    put_off: Vec<Arc<Sleeper>>,
}

impl Wakes {
    /// What is handed out from now on wakes nobody yet.
    pub(super) fn put_off(&self) {
        self.lock().handing_out = true;
    }

    /// Wakes whoever was not woken.
    pub(super) fn let_go(&self) {
        let State { put_off, .. } = mem::take(&mut *self.lock());
        for sleeper in put_off {
            sleeper.wake_up();
        }
    }

    /// A task that waits for what is read.
    pub(super) fn once_for_all<F>(&self, task: F) -> OnceForAll<F> {
        let sleeper =
            Arc::new(Sleeper { wakes: self.clone(), task: AtomicWaker::new(), woken: AtomicBool::new(false) });
        OnceForAll { task, waker: sleeper.clone().into(), sleeper }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who is woken.
#[derive(Debug)]
struct Sleeper {
    wakes: Wakes,
    task: AtomicWaker,
    /// It is to be woken: again is not needed.
    woken: AtomicBool,
}

impl Sleeper {
    fn wake_up(&self) {
        // Before it runs: what comes then is to wake it again. Read as well as written: whoever found it set and did not
        // wake has handed something out before, and that is what it must see.
        self.woken.swap(false, AcqRel);
        self.task.wake();
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.woken.swap(true, AcqRel) {
            return;
        }
        let mut state = self.wakes.lock();
        if state.handing_out {
            state.put_off.push(self.clone());
        } else {
            drop(state);
            self.wake_up();
        }
    }
}

pin_project! {
    /// See [`Wakes::once_for_all`].
    pub(super) struct OnceForAll<F> {
        #[pin]
        task: F,
        sleeper: Arc<Sleeper>,
        waker: Waker,
    }
}

impl<F: Future> Future for OnceForAll<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.sleeper.task.register(context.waker());
        this.task.poll(&mut Context::from_waker(this.waker))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        future::{Pending, pending},
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// A task that always goes back to sleep.
    pub(in super::super) struct Sleeping {
        task: OnceForAll<Pending<()>>,
        count: Arc<Count>,
    }

    impl Sleeping {
        pub(in super::super) fn on(wakes: &Wakes) -> Self {
            let mut sleeping = Self { task: wakes.once_for_all(pending()), count: Arc::default() };
            assert_eq!(sleeping.woken(), 0);
            sleeping
        }

        pub(in super::super) fn wake(&self) {
            self.task.waker.wake_by_ref();
        }

        /// How often it was woken since it was last asked.
        pub(in super::super) fn woken(&mut self) -> usize {
            let waker = self.count.clone().into();
            assert!(Pin::new(&mut self.task).poll(&mut Context::from_waker(&waker)).is_pending());
            self.count.0.swap(0, SeqCst)
        }
    }

    #[test]
    fn who_is_woken_while_something_is_handed_out_is_woken_once_when_that_is_over() {
        let wakes = Wakes::default();
        let mut task = Sleeping::on(&wakes);
        task.wake();
        assert_eq!(task.woken(), 1, "nothing is handed out");
        wakes.put_off();
        task.wake();
        task.wake();
        assert_eq!(task.woken(), 0);
        wakes.let_go();
        assert_eq!(task.woken(), 1);
        wakes.let_go();
        assert_eq!(task.woken(), 0, "that was all");
        task.wake();
        assert_eq!(task.woken(), 1, "as before");
    }

    #[test]
    fn one_who_is_woken_while_he_runs_runs_again() {
        let wakes = Wakes::default();
        let mut task = Sleeping::on(&wakes);
        wakes.put_off();
        task.wake();
        assert_eq!(task.woken(), 0, "he runs by himself");
        wakes.let_go();
        assert_eq!(task.woken(), 1, "what he has not seen may have come after he ran");
    }
}
