//! Wakes whoever waits for the broker once for all that came together.
//!
//! lapin's thread hands out frame by frame what it has read, and wakes with each of them the task that it is for. On another
//! core that task has dealt with the first before the second is there, sleeps, and is woken again: two system calls and a
//! switch for each job. So while that thread hands out what it has read, those who are wrapped here are not woken; they are
//! when it comes back to its socket, which [`super::cork`] tells.
//!
//! It also wakes the task that publishes with each message that it has written. Nothing can be done with that but to go on
//! waiting for what the broker says: that task sleeps until something was read, or nothing will be.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, ThreadId},
};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;

use crate::crash_point;

/// The wake-ups of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Wakes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Something was read, and whoever read it has not come back.
    handing_out: bool,
    put_off: Vec<Arc<Sleeper>>,
    /// Who tells what was written.
    telling: Option<ThreadId>,
    patient: Vec<Arc<Patient>>,
}

impl Wakes {
    /// What is handed out from now on wakes nobody yet.
    pub(super) fn put_off(&self) {
        self.lock().handing_out = true;
    }

    /// Something was written: what this thread tells from now on is that.
    pub(super) fn tell_what_was_written(&self) {
        self.lock().telling = Some(thread::current().id());
    }

    /// Wakes whoever was not woken, if anything that was read has been handed out; nobody is told what was written any more.
    pub(super) fn let_go(&self) {
        let mut state = self.lock();
        state.telling = None;
        if state.handing_out {
            Self::wake_all(state);
        }
    }

    /// Wakes whoever was not woken: nothing may be read any more.
    pub(super) fn end(&self) {
        Self::wake_all(self.lock());
    }

    fn wake_all(mut state: MutexGuard<'_, State>) {
        let State { put_off, patient, .. } = mem::take(&mut *state);
        drop(state);
        for sleeper in put_off {
            sleeper.wake_up();
        }
        for Patient { task, .. } in patient.iter().map(Arc::as_ref) {
            task.wake();
        }
    }

    /// One that waits for what is said of what was written.
    pub(super) fn patient(&self) -> Arc<Patient> {
        Arc::new(Patient { wakes: self.clone(), task: AtomicWaker::new() })
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

/// Wakes a task as it is woken, but for what it is told while something is written: then when something was read.
#[derive(Debug)]
pub(super) struct Patient {
    wakes: Wakes,
    task: AtomicWaker,
}

impl Patient {
    /// The task that waits now.
    pub(super) fn register(&self, waker: &Waker) {
        self.task.register(waker);
    }
}

impl Wake for Patient {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.wakes.lock();
        // What another thread tells meanwhile is something else.
        if state.telling.is_some_and(|telling| telling == thread::current().id()) {
            // It is told of every message.
            if !state.patient.iter().any(|patient| Arc::ptr_eq(patient, self)) {
                state.patient.push(self.clone());
            }
            drop(state);
            // Its bytes are the system's, and nothing was read since.
            crash_point!("broker: published, not confirmed");
        } else {
            drop(state);
            self.task.wake();
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
        wakes.end();
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

    #[test]
    fn who_is_told_that_something_was_written_is_woken_when_something_was_read() {
        let wakes = Wakes::default();
        let (patient, count) = (wakes.patient(), Arc::<Count>::default());
        let waker: Waker = patient.clone().into();
        let woken = || {
            patient.register(&count.clone().into());
            count.0.swap(0, SeqCst)
        };
        assert_eq!(woken(), 0);
        waker.wake_by_ref();
        assert_eq!(woken(), 1, "nothing is written");
        wakes.tell_what_was_written();
        waker.wake_by_ref();
        wakes.let_go();
        assert_eq!(woken(), 0, "nothing was read");
        waker.wake_by_ref();
        assert_eq!(woken(), 1, "that it was written is told");
        wakes.put_off();
        wakes.let_go();
        assert_eq!(woken(), 1, "something was read");
        wakes.put_off();
        wakes.let_go();
        assert_eq!(woken(), 0, "that was all");
        wakes.tell_what_was_written();
        waker.wake_by_ref();
        wakes.end();
        assert_eq!(woken(), 1, "nothing will be read");
    }

    #[test]
    fn of_all_that_was_written_each_who_waits_is_noted_once() {
        let wakes = Wakes::default();
        let patients = [wakes.patient(), wakes.patient()];
        let counts = [Arc::<Count>::default(), Arc::default()];
        for (patient, count) in patients.iter().zip(&counts) {
            patient.register(&count.clone().into());
        }
        wakes.tell_what_was_written();
        for patient in patients.iter().cycle().take(6) {
            Waker::from(patient.clone()).wake();
        }
        assert_eq!(wakes.lock().patient.len(), 2);
        wakes.end();
        assert_eq!(counts.map(|count| count.0.load(SeqCst)), [1, 1]);
    }

    #[test]
    fn what_another_thread_tells_while_something_is_written_is_told_at_once() {
        let wakes = Wakes::default();
        let (patient, count) = (wakes.patient(), Arc::<Count>::default());
        patient.register(&count.clone().into());
        wakes.tell_what_was_written();
        let waker: Waker = patient.into();
        thread::spawn(move || waker.wake()).join().expect("no panic");
        assert_eq!(count.0.load(SeqCst), 1);
    }
}
