//! What is left of deliveries that were read, on its way back to the thread that allocated it.
//!
//! Each message is nearly a dozen small pieces of memory, which lapin's thread allocates anew for every one. Freed on another
//! thread each is an atomic operation, and its place in the cache travels to that thread and back before lapin's may use it
//! again: with four workers on two cores 4 % of what a job costs them. So they are gathered here until lapin's thread comes by
//! its socket, which [`super::cork`] tells. Must not know what it gathers.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What is left of the deliveries of one connection.
#[derive(Debug)]
pub(super) struct Spent<T>(Arc<Mutex<State<T>>>);

#[derive(Debug)]
struct State<T> {
    /// How many sockets there are by which a thread comes: two for a moment, while a lost one is replaced.
    sockets: usize,
    bursts: Vec<Vec<T>>,
}

impl<T> Default for Spent<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { sockets: 0, bursts: Vec::new() })))
    }
}

impl<T> Clone for Spent<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Spent<T> {
    /// A thread comes by from now on.
    pub(super) fn begin(&self) {
        self.lock().sockets += 1;
    }

    /// It comes by no more.
    pub(super) fn end(&self) {
        self.lock().sockets -= 1;
        self.free();
    }

    /// These are needed no longer. They are freed at once if nobody comes by for them.
    pub(super) fn give(&self, burst: Vec<T>) {
        let mut state = self.lock();
        if state.sockets > 0 {
            state.bursts.push(burst);
        }
    }

    /// Frees them, on the thread that comes by.
    pub(super) fn free(&self) {
        let bursts = mem::take(&mut self.lock().bursts);
        drop(bursts);
    }

    /// How many bursts wait for that.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().bursts.len()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{Sender, channel},
        thread::{self, ThreadId},
    };

    use super::*;

    /// Tells which thread frees it.
    struct Piece(Sender<ThreadId>);

    impl Drop for Piece {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).expect("someone looks");
        }
    }

    #[test]
    fn what_is_spent_is_freed_by_the_thread_that_comes_by_while_there_is_one() {
        let spent = Spent::default();
        let (sender, freed) = channel();
        let give = || {
            let (spent, pieces) = (spent.clone(), vec![Piece(sender.clone()), Piece(sender.clone())]);
            let giver = thread::spawn(move || spent.give(pieces));
            let id = giver.thread().id();
            giver.join().expect("no panic");
            id
        };
        let at_once = give();
        assert_eq!(freed.try_iter().collect::<Vec<_>>(), [at_once; 2], "nobody comes by yet");
        spent.begin();
        give();
        assert_eq!(freed.try_iter().count(), 0);
        spent.free();
        assert_eq!(freed.try_iter().collect::<Vec<_>>(), [thread::current().id(); 2]);
        give();
        spent.begin();
        spent.end();
        assert_eq!(freed.try_iter().count(), 2, "the lost connection's");
        give();
        assert_eq!(freed.try_iter().count(), 0, "the new connection's thread comes by");
        spent.end();
        assert_eq!(freed.try_iter().count(), 2);
        let at_once = give();
        assert_eq!(freed.try_iter().collect::<Vec<_>>(), [at_once; 2]);
    }
}
