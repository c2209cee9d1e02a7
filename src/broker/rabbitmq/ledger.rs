//! What was written on a publishing channel and is not confirmed. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    broker::{PublishError, way_in::Answer},
    job::Kind,
};

/// The kinds of which jobs are late on some channel. What one channel has learned of a queue that hangs spares the others to
/// learn it: one that meets such a queue for the first time confirms nothing any more. Should it be the channel that hangs, the
/// others refuse its kinds too until that one has been given up, a few seconds later.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// Whether there are any: hardly ever.
    any: AtomicBool,
    /// How many of each kind are late and not confirmed.
    late: Mutex<HashMap<Kind, usize>>,
}

impl Stuck {
    /// Whether jobs of this kind are late, so that more of them would be too.
    pub(super) fn holds(&self, kind: &Kind) -> bool {
        self.any.load(Relaxed) && self.lock().contains_key(kind)
    }

    fn add(&self, kind: &Kind) {
        let mut late = self.lock();
        *late.entry(kind.clone()).or_default() += 1;
        self.any.store(true, Relaxed);
    }

    fn remove(&self, kind: &Kind) {
        let mut late = self.lock();
        if let Some(count) = late.get_mut(kind) {
            *count -= 1;
            if *count == 0 {
                late.remove(kind);
            }
        }
        self.any.store(!late.is_empty(), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Kind, usize>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was written and is not confirmed, in the order in which it was written.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The number of `entries[0]`.
    first: u64,
    entries: VecDeque<Entry>,
    /// How many entries are not confirmed.
    owed: usize,
    /// How many from the beginning have been told that they are late.
    late: usize,
    stuck: Arc<Stuck>,
}

#[derive(Debug)]
struct Entry {
    written: Instant,
    id: Uuid,
    kind: Kind,
    /// Gone once it is answered.
    answer: Option<Answer>,
    confirmed: bool,
}

impl Ledger {
    /// Of a channel on which nothing was written yet.
    pub(super) fn new(stuck: Arc<Stuck>) -> Self {
        Self { first: 0, entries: VecDeque::new(), owed: 0, late: 0, stuck }
    }

    /// Takes one in and numbers it.
    pub(super) fn wrote(&mut self, now: Instant, id: Uuid, kind: Kind, answer: Answer) -> u64 {
        self.entries.push_back(Entry { written: now, id, kind, answer: Some(answer), confirmed: false });
        self.owed += 1;
        self.first + self.entries.len() as u64 - 1
    }

    /// The first with this id that is not confirmed, among those that are meant.
    pub(super) fn find(&self, id: Uuid, is_meant: impl Fn(u64) -> bool) -> Option<(u64, &Kind)> {
        let mut numbered = (self.first..).zip(&self.entries);
        let found = numbered.find(|(number, entry)| entry.id == id && !entry.confirmed && is_meant(*number));
        found.map(|(number, entry)| (number, &entry.kind))
    }

    /// One was confirmed. Its answer, if it has not been told that it is late.
    pub(super) fn confirmed(&mut self, number: u64) -> Option<Answer> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let entry = self.entries.get_mut(index).filter(|entry| !entry.confirmed)?;
        entry.confirmed = true;
        self.owed -= 1;
        let answer = entry.answer.take();
        if answer.is_none() {
            self.stuck.remove(&entry.kind);
        }
        while self.entries.front().is_some_and(|entry| entry.confirmed) {
            self.entries.pop_front();
            self.first += 1;
            self.late = self.late.saturating_sub(1);
        }
        answer
    }

    /// How many are not confirmed.
    pub(super) fn owed(&self) -> usize {
        self.owed
    }

    /// When the oldest that is not confirmed was written.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.written)
    }

    /// When the next one will be late.
    pub(super) fn next_late(&self, patience: Duration) -> Option<Instant> {
        self.entries.get(self.late).map(|entry| entry.written + patience)
    }

    /// Tells those that are late that nobody knows what became of them.
    pub(super) fn answer_late(&mut self, now: Instant, patience: Duration) {
        while let Some(entry) = self.entries.get_mut(self.late)
            && entry.written + patience <= now
        {
            self.late += 1;
            if let Some(answer) = entry.answer.take() {
                self.stuck.add(&entry.kind);
                answer.send(Err(PublishError::OutcomeUnknown));
            }
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // The channel is gone, and with it all that it will ever say of them.
        for entry in self.entries.iter().take(self.late).filter(|entry| !entry.confirmed) {
            self.stuck.remove(&entry.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn what_is_late_is_told_so_once_and_its_kind_is_stuck_until_it_is_confirmed() {
        let (slow, quick) = (Kind::new("slow").expect("a kind"), Kind::new("quick").expect("a kind"));
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let stuck = Arc::<Stuck>::default();
        let mut ledger = Ledger::new(stuck.clone());
        let write = |ledger: &mut Ledger, at, kind: &Kind| {
            let (answer, told) = oneshot::channel();
            (ledger.wrote(at, Uuid::nil(), kind.clone(), Answer::Alone(answer)), told)
        };
        let (first, mut first_told) = write(&mut ledger, start, &slow);
        let (second_one, _kept) = write(&mut ledger, start, &quick);
        let (third, _kept_too) = write(&mut ledger, start + second, &quick);
        assert_eq!(ledger.next_late(5 * second), Some(start + 5 * second));
        assert!(ledger.confirmed(second_one).is_some());
        ledger.answer_late(start + 5 * second, 5 * second);
        assert_eq!(first_told.try_recv(), Ok(Err(PublishError::OutcomeUnknown)));
        assert_eq!((stuck.holds(&slow), stuck.holds(&quick)), (true, false));
        assert_eq!(ledger.next_late(5 * second), Some(start + 6 * second), "the next that is not answered");
        assert_eq!((ledger.owed(), ledger.oldest()), (2, Some(start)));
        assert!(ledger.confirmed(first).is_none(), "it was answered before");
        assert!(!stuck.holds(&slow));
        assert_eq!(ledger.oldest(), Some(start + second));
        assert!(ledger.confirmed(third).is_some());
        assert!(ledger.confirmed(third).is_none(), "a number is confirmed once");
        assert_eq!((ledger.owed(), ledger.oldest(), ledger.next_late(second)), (0, None, None));
    }

    #[test]
    fn a_kind_is_stuck_as_long_as_jobs_of_it_are_late_on_any_channel() {
        let (kind, start) = (Kind::new("slow").expect("a kind"), Instant::now());
        let stuck = Arc::<Stuck>::default();
        let [mut one, mut other] = [Ledger::new(stuck.clone()), Ledger::new(stuck.clone())];
        let write =
            |ledger: &mut Ledger| ledger.wrote(start, Uuid::nil(), kind.clone(), Answer::Alone(oneshot::channel().0));
        let numbers = [write(&mut one), write(&mut one)];
        write(&mut other);
        assert!(!stuck.holds(&kind));
        one.answer_late(start, Duration::ZERO);
        other.answer_late(start, Duration::ZERO);
        assert!(stuck.holds(&kind));
        // In another order than they were written in.
        one.confirmed(numbers[1]);
        drop(one);
        assert!(stuck.holds(&kind), "one is late on the other");
        drop(other);
        assert!(!stuck.holds(&kind), "nothing more is to be learned of those");
        assert_eq!(*stuck.lock(), HashMap::new());
    }

    #[test]
    fn a_message_is_found_by_its_id_until_it_is_confirmed_and_a_copy_of_it_after_it() {
        let mut ledger = Ledger::new(Arc::default());
        let (kind, now) = (Kind::new("any").expect("a kind"), Instant::now());
        let mut write = |id| {
            let (answer, _) = oneshot::channel();
            ledger.wrote(now, Uuid::from_u128(id), kind.clone(), Answer::Alone(answer))
        };
        let [one, other, copy] = [1, 2, 1].map(&mut write);
        let id = Uuid::from_u128(1);
        assert_eq!(ledger.find(id, |_| true), Some((one, &kind)));
        assert_eq!(ledger.find(id, |number| number != one), Some((copy, &kind)));
        ledger.confirmed(one);
        assert_eq!(ledger.find(id, |_| true), Some((copy, &kind)));
        assert_eq!(ledger.find(Uuid::from_u128(2), |_| true), Some((other, &kind)));
        ledger.confirmed(copy);
        assert_eq!(ledger.find(id, |_| true), None);
    }
}
