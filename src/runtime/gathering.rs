//! Where what is finished gathers until a lane takes it, and which lane that is.
//!
//! What comes while a commit is in flight waits for its end and is taken all at once: that commit is the batching window, and
//! no timer ever waits for more. A second lane takes something meanwhile when so much has gathered that it is worth a commit
//! of its own, or when whoever is at it is held up. Must not know what it holds, nor how that is recorded.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// How much one lane takes at most.
const MAX_ROWS: usize = 500;
const MAX_BYTES: usize = 4 << 20;
/// So many rows are worth a commit of their own beside another: fewer are better together with those that come until that
/// one is over, for a commit costs the same however few it holds.
const ENOUGH: usize = 64;
/// A row counts once more for each so many bytes.
const A_ROW: usize = MAX_BYTES / ENOUGH;
/// Whoever has waited so long for the database keeps nobody else waiting.
const SLOW: Duration = Duration::from_millis(100);

/// What can gather.
pub(super) trait Gathers {
    /// How many bytes of it are recorded.
    fn bytes(&self) -> usize;
}

/// What is finished and not taken, and what each lane does.
#[derive(Debug)]
pub(super) struct Gathering<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

#[derive(Debug)]
struct State<T> {
    waiting: Vec<T>,
    /// How many rows those are, large ones counted more than once.
    weight: usize,
    lanes: Vec<Lane>,
}

#[derive(Debug, Clone, Default)]
struct Lane {
    /// It has taken something, and is not back.
    busy: bool,
    /// Since when the database has owed it an answer.
    asked: Option<Instant>,
    /// The answer takes long.
    slow: bool,
    /// It has something else to do than to record a batch that is well.
    held_up: bool,
}

impl<T: Gathers> Gathering<T> {
    /// Nothing yet, for so many lanes.
    pub(super) fn new(lanes: usize) -> Self {
        let state = State { waiting: Vec::new(), weight: 0, lanes: vec![Lane::default(); lanes] };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }

    /// How many lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.lock().lanes.len()
    }

    /// Takes one in. Returns at once; what bounds all of them is the prefetch.
    pub(super) fn push(&self, item: T) {
        let weight = weight(&item);
        let mut state = self.lock();
        let before = state.weight;
        state.waiting.push(item);
        state.weight += weight;
        // Once for each batch: whoever was woken takes all that is there by then.
        let wakes = if state.is_quick() { before < ENOUGH && state.weight >= ENOUGH } else { before == 0 };
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Waits until there is something for this lane to take, which is back from what it took before: behind what it has
    /// kept.
    pub(super) async fn take(&self, lane: usize, mut kept: Vec<T>) -> Vec<T> {
        self.lock().lanes[lane] = Lane::default();
        loop {
            match self.take_now(lane, kept) {
                Ok(batch) => return batch,
                Err(none) => kept = none,
            }
            self.wake.notified().await;
            // Tokio runs a task at once that another has woken. What is about to end too ends before the batch is taken, which
            // is not the first of them alone then.
            tokio::task::yield_now().await;
        }
    }

    fn take_now(&self, lane: usize, mut batch: Vec<T>) -> Result<Vec<T>, Vec<T>> {
        let mut state = self.lock();
        if batch.is_empty() && (state.waiting.is_empty() || state.is_quick() && state.weight < ENOUGH) {
            return Err(batch);
        }
        let waiting = &mut state.waiting;
        if batch.is_empty() && waiting.len() <= MAX_ROWS {
            // About as many will come meanwhile.
            let next = Vec::with_capacity(waiting.len());
            batch = std::mem::replace(waiting, next);
        } else {
            let room = MAX_ROWS.saturating_sub(batch.len()).min(waiting.len());
            batch.extend(waiting.drain(..room));
        }
        cut(&mut batch, waiting);
        state.weight = state.waiting.iter().map(weight).sum();
        state.lanes[lane].busy = true;
        if state.weight >= ENOUGH {
            self.wake.notify_one();
        }
        Ok(batch)
    }

    /// This lane has asked the database for something.
    pub(super) fn asked(&self, lane: usize, now: Instant) {
        self.lock().lanes[lane].asked = Some(now);
    }

    /// It was answered.
    pub(super) fn answered(&self, lane: usize) {
        let mut state = self.lock();
        (state.lanes[lane].asked, state.lanes[lane].slow) = (None, false);
    }

    /// Nobody is to wait for this lane until it is back.
    pub(super) fn held_up(&self, lane: usize) {
        let mut state = self.lock();
        state.lanes[lane].held_up = true;
        self.wake_for_what_is_left(&state);
    }

    /// Looks which lanes wait long for the database. Answers since when each that waits was owed an answer.
    pub(super) fn look(&self, now: Instant) -> Vec<Instant> {
        let mut state = self.lock();
        for lane in &mut state.lanes {
            lane.slow = lane.asked.is_some_and(|asked| now.saturating_duration_since(asked) >= SLOW);
        }
        self.wake_for_what_is_left(&state);
        state.lanes.iter().filter_map(|lane| lane.asked).collect()
    }

    /// Wakes a lane for what waits, unless one will soon be back.
    fn wake_for_what_is_left(&self, state: &State<T>) {
        if state.weight > 0 && !state.is_quick() {
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// Whether a lane will soon be back.
    fn is_quick(&self) -> bool {
        self.lanes.iter().any(|lane| lane.busy && !lane.slow && !lane.held_up)
    }
}

/// Puts back what would make the batch too many bytes.
fn cut<T: Gathers>(batch: &mut Vec<T>, waiting: &mut Vec<T>) {
    let mut bytes = 0;
    let fits = batch.iter().take_while(|item| {
        bytes += item.bytes();
        bytes <= MAX_BYTES
    });
    // One alone always fits: it is bounded by itself.
    let fits = fits.count().max(1);
    if fits < batch.len() {
        waiting.splice(0..0, batch.drain(fits..));
    }
}

fn weight<T: Gathers>(item: &T) -> usize {
    1 + item.bytes() / A_ROW
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
        task::{Context, Poll, Wake},
    };

    use super::*;

    /// So many bytes.
    impl Gathers for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    fn gathering(lanes: usize) -> Arc<Gathering<usize>> {
        Arc::new(Gathering::new(lanes))
    }

    fn push(gathering: &Gathering<usize>, items: usize) {
        (0..items).for_each(|_| gathering.push(1));
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    /// A lane that runs when it is woken, and never else.
    struct Waits {
        take: Pin<Box<dyn Future<Output = Vec<usize>>>>,
        woken: Arc<Woken>,
    }

    /// A lane that is back.
    fn back(gathering: &Arc<Gathering<usize>>, lane: usize) -> Waits {
        let gathering = gathering.clone();
        let take = Box::pin(async move { gathering.take(lane, Vec::new()).await });
        Waits { take, woken: Arc::new(Woken(true.into())) }
    }

    impl Waits {
        /// How many it takes, if it does.
        fn takes(&mut self) -> Option<usize> {
            while self.woken.0.swap(false, SeqCst) {
                let waker = self.woken.clone().into();
                if let Poll::Ready(batch) = self.take.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Some(batch.len());
                }
            }
            None
        }
    }

    #[test]
    fn one_lane_takes_all_and_what_comes_then_waits_for_it() {
        let gathering = gathering(2);
        let (mut first, mut second) = (back(&gathering, 0), back(&gathering, 1));
        assert_eq!((first.takes(), second.takes()), (None, None));
        push(&gathering, 3);
        assert_eq!((first.takes(), second.takes()), (Some(3), None));
        push(&gathering, ENOUGH - 1);
        assert_eq!(second.takes(), None, "not worth a commit beside the first");
        assert_eq!(back(&gathering, 0).takes(), Some(ENOUGH - 1));
    }

    #[test]
    fn another_lane_takes_all_when_that_is_enough_for_a_commit_of_its_own() {
        let gathering = gathering(3);
        let (mut first, mut second, mut third) = (back(&gathering, 0), back(&gathering, 1), back(&gathering, 2));
        assert_eq!((first.takes(), second.takes(), third.takes()), (None, None, None));
        push(&gathering, 1);
        assert_eq!(first.takes(), Some(1));
        push(&gathering, ENOUGH);
        assert_eq!((second.takes(), third.takes()), (Some(ENOUGH), None));
        gathering.push(A_ROW * ENOUGH);
        assert_eq!(third.takes(), Some(1), "a large one is enough alone");
    }

    #[test]
    fn a_lane_that_waits_long_for_the_database_keeps_nobody_waiting_until_it_is_answered() {
        let gathering = gathering(3);
        let asked = Instant::now();
        let (mut first, mut second, mut third) = (back(&gathering, 0), back(&gathering, 1), back(&gathering, 2));
        assert_eq!((first.takes(), second.takes(), third.takes()), (None, None, None));
        push(&gathering, 1);
        assert_eq!(first.takes(), Some(1));
        gathering.asked(0, asked);
        push(&gathering, 1);
        assert_eq!(gathering.look(asked + SLOW / 2), [asked]);
        assert_eq!(second.takes(), None);
        assert_eq!(gathering.look(asked + SLOW), [asked]);
        assert_eq!(second.takes(), Some(1));
        gathering.asked(1, asked);
        gathering.answered(0);
        assert_eq!(gathering.look(asked + SLOW), [asked]);
        push(&gathering, 1);
        assert_eq!(third.takes(), None, "the first will soon be back");
        assert_eq!(back(&gathering, 0).takes(), Some(1));
    }

    #[test]
    fn nobody_waits_for_a_lane_that_is_held_up_until_it_is_back() {
        let gathering = gathering(2);
        let (mut first, mut second) = (back(&gathering, 0), back(&gathering, 1));
        assert_eq!((first.takes(), second.takes()), (None, None));
        push(&gathering, 1);
        assert_eq!(first.takes(), Some(1));
        push(&gathering, 1);
        gathering.held_up(0);
        assert_eq!(second.takes(), Some(1), "what was there");
        let mut second = back(&gathering, 1);
        assert_eq!(second.takes(), None);
        gathering.asked(0, Instant::now());
        push(&gathering, 1);
        assert_eq!(second.takes(), Some(1), "and what comes, also while it asks once more");
        push(&gathering, 1);
        assert_eq!(back(&gathering, 0).takes(), None, "the second will soon be back");
        let mut second = back(&gathering, 1);
        assert_eq!(second.takes(), Some(1));
    }

    #[test]
    fn no_more_is_taken_than_one_commit_may_hold_and_the_rest_wakes_another_lane() {
        let two = gathering(2);
        let (mut first, mut second) = (back(&two, 0), back(&two, 1));
        assert_eq!((first.takes(), second.takes()), (None, None));
        push(&two, MAX_ROWS + ENOUGH);
        assert_eq!((first.takes(), second.takes()), (Some(MAX_ROWS), Some(ENOUGH)));
        let one = gathering(1);
        (0..3).for_each(|_| one.push(MAX_BYTES / 2));
        assert_eq!(back(&one, 0).takes(), Some(2));
        one.push(MAX_BYTES + 1);
        assert_eq!(back(&one, 0).takes(), Some(1));
        assert_eq!(back(&one, 0).takes(), Some(1), "one that is larger than that goes alone");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn every_one_is_taken_by_one_lane_however_many_push_and_take() {
        let (gathering, count) = (gathering(4), 20_000);
        let (sender, mut taken) = tokio::sync::mpsc::unbounded_channel();
        let mut lanes = tokio::task::JoinSet::new();
        for lane in 0..4 {
            let (gathering, sender) = (gathering.clone(), sender.clone());
            lanes.spawn(async move {
                loop {
                    let batch = gathering.take(lane, Vec::new()).await;
                    // Whoever counts may be through.
                    _ = sender.send(batch);
                    tokio::task::yield_now().await;
                }
            });
        }
        let pushing = gathering.clone();
        let pushes = std::thread::spawn(move || (0..count).for_each(|number| pushing.push(number)));
        let mut all = Vec::new();
        while all.len() < count {
            let batch = tokio::time::timeout(Duration::from_secs(10), taken.recv()).await;
            let batch = batch.expect("something is taken").expect("lanes");
            assert!(batch.len() <= MAX_ROWS);
            all.extend(batch);
        }
        pushes.join().expect("no panic");
        all.sort_unstable();
        assert!(all.into_iter().eq(0..count));
    }
}
