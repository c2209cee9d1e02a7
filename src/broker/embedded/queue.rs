//! The messages of one kind: what is waiting, what is out, and the pump that gives it out.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Mutex as AsyncMutex, Notify};
use tracing::error;

use super::{
    fresh::Fresh,
    reads::Reads,
    rows::{self, GivenBack, Row, Stored, Wanted},
    settled::Settled,
};
use crate::{
    broker::{Delivery, Receipt, Sink},
    job::{Kind, chain},
    sqlite::Database,
};

/// How many messages are read, or given out from memory, at once.
const READ: usize = 500;
/// How many messages the mark is moved ahead of the deliveries. After a crash, about this many more count as given out once
/// than were (more if suddenly fewer of other kinds are published): it takes two to make a suspect, and a suspect only runs
/// a little slower.
const STEP: i64 = 1000;
/// How many numbers a message is taken to be from the next of its kind at most, whatever those before it were.
const FAR: i64 = 50;
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// There is only one life of a line within a process.
const EPOCH: u32 = 1;

/// The messages of one kind.
pub(super) struct Queue {
    kind: Kind,
    database: Arc<Database>,
    reads: Arc<Reads>,
    settled: Arc<Settled>,
    state: Mutex<State>,
    wake: Notify,
    /// Held while messages are handed to lines, so that a line can be stopped between two bursts.
    giving: AsyncMutex<()>,
}

/// Every message of the kind up to `given` is out on a line, returned, or settled: what is deleted relies on it.
#[derive(Default)]
struct State {
    /// The newest message on the disk.
    last: i64,
    /// Up to here all messages were given out.
    given: i64,
    /// Up to where the disk says that messages may have been given out.
    mark: i64,
    /// Given back, to be given out again.
    returned: BTreeSet<i64>,
    given_back: GivenBack,
    /// Of those behind `given`, what need not be read.
    fresh: Fresh,
    /// Settled, and nobody has asked for it to delete it: in any order.
    settled: Vec<i64>,
    lines: Vec<LineState>,
    depth: u64,
}

struct LineState {
    prefetch: usize,
    sink: Arc<dyn Sink>,
    out: BTreeSet<i64>,
    open: bool,
}

impl LineState {
    fn room(&self) -> usize {
        if self.open { self.prefetch.saturating_sub(self.out.len()) } else { 0 }
    }
}

/// What the pump does next.
enum Next {
    Wait,
    GiveFresh { messages: Vec<Stored> },
    Read { numbers: RangeInclusive<i64>, room: usize },
    ReadReturned { numbers: Vec<i64> },
}

impl Queue {
    pub(super) fn new(kind: Kind, database: Arc<Database>, reads: Arc<Reads>, settled: Arc<Settled>) -> Self {
        let (state, wake, giving) = (Mutex::default(), Notify::new(), AsyncMutex::new(()));
        Self { kind, database, reads, settled, state, wake, giving }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Messages of an earlier process are on the disk, up to this one.
    pub(super) fn left(&self, last: i64, count: u64) {
        let mut state = self.lock();
        (state.last, state.depth) = (last, count);
        drop(state);
        self.wake.notify_one();
    }

    /// These are on the disk now, behind all others of this kind.
    pub(super) fn published(&self, rows: impl Iterator<Item = Row>) {
        let mut state = self.lock();
        let room = state.room();
        rows.for_each(|row| state.note(row, room));
        drop(state);
        self.wake.notify_one();
    }

    /// How many wait to be given out.
    pub(super) fn waiting(&self) -> u64 {
        let state = self.lock();
        let out: usize = state.lines.iter().map(|line| line.out.len()).sum();
        state.depth.saturating_sub(out as u64)
    }

    /// Adds a line, and answers its number.
    pub(super) fn join(&self, prefetch: u16, sink: Arc<dyn Sink>) -> usize {
        let mut state = self.lock();
        state.lines.push(LineState { prefetch: prefetch.into(), sink, out: BTreeSet::new(), open: true });
        let number = state.lines.len() - 1;
        drop(state);
        self.wake.notify_one();
        number
    }

    pub(super) fn set_prefetch(&self, line: usize, prefetch: u16) {
        self.lock().lines[line].prefetch = prefetch.into();
        self.wake.notify_one();
    }

    pub(super) fn settle(self: &Arc<Self>, line: usize, receipts: &[Receipt]) {
        let mut state = self.lock();
        let State { lines, settled, given_back, depth, .. } = &mut *state;
        let before = settled.len();
        let out = &mut lines[line].out;
        settled.extend(receipts.iter().filter_map(|receipt| seq(*receipt)).filter(|seq| out.remove(seq)));
        let new = &settled[before..];
        *depth = depth.saturating_sub(new.len() as u64);
        if !given_back.is_empty() {
            given_back.retain(|seq, _| !new.contains(seq));
        }
        // Before anyone else can settle something: what is to be deleted is to hold all of it.
        if before == 0 && !new.is_empty() {
            self.settled.has_some(self);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// What was settled since this was last asked, as runs that may be deleted.
    pub(super) fn take_settled(&self) -> Vec<RangeInclusive<i64>> {
        let mut state = self.lock();
        let mut settled = std::mem::take(&mut state.settled);
        settled.sort_unstable();
        state.settled_runs(&settled)
    }

    pub(super) fn give_back(&self, line: usize, receipts: &[Receipt]) {
        let mut state = self.lock();
        let out = &mut state.lines[line].out;
        let back: Vec<_> = receipts.iter().filter_map(|receipt| seq(*receipt)).filter(|seq| out.remove(seq)).collect();
        state.take_back(back);
        drop(state);
        self.wake.notify_one();
    }

    /// Nothing more goes to this line once this has returned.
    pub(super) async fn stop(&self, line: usize) {
        self.lock().lines[line].open = false;
        drop(self.giving.lock().await);
    }

    /// Something may go to this line again.
    pub(super) fn resume(&self, line: usize) {
        self.lock().lines[line].open = true;
        self.wake.notify_one();
    }

    /// What is out on this line goes to others. What was settled is deleted once this has returned.
    pub(super) async fn close(&self, line: usize) {
        self.stop(line).await;
        self.lock().take_back_all_of(line);
        self.wake.notify_one();
        self.settled.delete_before_the_end().await;
    }

    /// What was given back and is not given out again.
    pub(super) fn returned(&self) -> Vec<i64> {
        self.lock().returned.iter().copied().collect()
    }

    /// Gives messages out for as long as the process runs.
    pub(super) async fn pump(self: Arc<Self>) {
        loop {
            let given = match self.next() {
                Next::Wait => {
                    self.wake.notified().await;
                    continue;
                }
                Next::GiveFresh { messages } => self.give_fresh(messages).await,
                Next::Read { numbers, room } => self.give_new(numbers, room.min(READ)).await,
                Next::ReadReturned { numbers } => self.give_returned(&numbers).await,
            };
            if let Err(error) = given {
                error!(kind = %self.kind, error, "cannot give jobs out");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn next(&self) -> Next {
        let mut state = self.lock();
        let room = state.room();
        if room == 0 {
            Next::Wait
        } else if !state.returned.is_empty() {
            Next::ReadReturned { numbers: state.returned.iter().copied().take(room.min(READ)).collect() }
        } else if let Some(messages) = state.fresh.take(room.min(READ)) {
            Next::GiveFresh { messages }
        } else if state.given < state.last {
            Next::Read { numbers: state.given + 1..=state.last, room }
        } else {
            Next::Wait
        }
    }

    async fn give_new(&self, numbers: RangeInclusive<i64>, limit: usize) -> Result<(), String> {
        let last = *numbers.end();
        let messages = self.reads.read(Wanted { kind: self.kind.clone(), numbers, limit }).await?;
        if messages.is_empty() {
            // Those numbers belong to other kinds, or to messages that are settled.
            let mut state = self.lock();
            state.given = state.given.max(last);
            return Ok(());
        }
        self.give_out(messages).await
    }

    async fn give_fresh(&self, messages: Vec<Stored>) -> Result<(), String> {
        let last = messages.last().map_or(0, |message| message.seq);
        let given = self.give_out(messages).await;
        let mut state = self.lock();
        if state.given < last {
            // Not all of them, so those behind them are no longer next: all are read.
            state.fresh.forget();
        }
        given
    }

    async fn give_returned(&self, numbers: &[i64]) -> Result<(), String> {
        let wanted = |number: &i64| Wanted { kind: self.kind.clone(), numbers: *number..=*number, limit: 1 };
        let wanted: Vec<_> = numbers.iter().map(wanted).collect();
        let read = rows::read(self.database.readers(), &wanted.iter().collect::<Vec<_>>()).await;
        let mut messages = Vec::with_capacity(numbers.len());
        for (number, found) in numbers.iter().zip(read.map_err(|error| chain(&error))?) {
            let found = found.map_err(|error| chain(&error))?;
            if found.is_empty() {
                self.lock().returned.remove(number);
            }
            messages.extend(found);
        }
        self.give_out(messages).await
    }

    async fn give_out(&self, messages: Vec<Stored>) -> Result<(), String> {
        let last = messages.last().map_or(0, |message| message.seq);
        if last > self.lock().mark {
            let (kind, upto) = (self.kind.clone(), last + STEP * spacing(self.lock().given, &messages));
            let marked = self.database.write(move |connection| {
                let kind = kind.clone();
                Box::pin(async move { rows::mark(connection, &kind, upto).await })
            });
            marked.await.map_err(|error| chain(&error))?;
            self.lock().mark = upto;
        }
        let giving = self.giving.lock().await;
        let bursts = self.distribute(messages);
        for (sink, burst) in bursts {
            sink.deliver(burst);
        }
        drop(giving);
        Ok(())
    }

    /// Cuts messages into one burst a line, each without gaps as far as there is room.
    fn distribute(&self, messages: Vec<Stored>) -> Vec<(Arc<dyn Sink>, Vec<Delivery>)> {
        let mut state = self.lock();
        let State { lines, returned, given_back, given, .. } = &mut *state;
        let open = lines.iter().filter(|line| line.room() > 0).count().max(1);
        let fair = messages.len().div_ceil(open);
        let mut messages = messages.into_iter().peekable();
        let mut bursts = Vec::with_capacity(open);
        // Twice: what one line has no room for goes to another.
        for at_most in [fair, usize::MAX] {
            for line in lines.iter_mut() {
                let room = line.room().min(at_most);
                let mut burst = Vec::with_capacity(room.min(READ));
                while burst.len() < room
                    && let Some(message) = messages.next()
                {
                    let Stored { seq, given: given_by_others, envelope, body } = message;
                    line.out.insert(seq);
                    returned.remove(&seq);
                    *given = (*given).max(seq);
                    burst.push(Delivery {
                        envelope: Ok(envelope),
                        body: body.into(),
                        given_before: given_by_others + given_back.get(&seq).copied().unwrap_or(0),
                        receipt: Receipt { epoch: EPOCH, tag: seq.cast_unsigned() },
                    });
                }
                if !burst.is_empty() {
                    bursts.push((line.sink.clone(), burst));
                }
            }
            if messages.peek().is_none() {
                break;
            }
        }
        bursts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn room(&self) -> usize {
        self.lines.iter().map(LineState::room).sum()
    }

    /// A message, newer than all others of its kind, is on the disk.
    fn note(&mut self, row: Row, room: usize) {
        let (seq, all_given) = (row.seq, self.given >= self.last);
        self.fresh.note(row, self.last, all_given, room);
        (self.last, self.depth) = (seq, self.depth + 1);
    }

    /// Sorted numbers of settled messages as runs that hold no message of this kind that is not settled: numbers are given
    /// over all kinds, so what lies between two of one kind mostly belongs to others.
    fn settled_runs(&self, settled: &[i64]) -> Vec<RangeInclusive<i64>> {
        let between = |set: &BTreeSet<i64>, after, before| set.range(after + 1..before).next().is_some();
        rows::runs(settled, |after, before| {
            !between(&self.returned, after, before) && !self.lines.iter().any(|line| between(&line.out, after, before))
        })
    }

    fn take_back_all_of(&mut self, line: usize) {
        let out = std::mem::take(&mut self.lines[line].out);
        self.take_back(out);
    }

    fn take_back(&mut self, seqs: impl IntoIterator<Item = i64>) {
        for seq in seqs {
            self.returned.insert(seq);
            *self.given_back.entry(seq).or_default() += 1;
        }
    }
}

/// How far one of these messages mostly is from the one before it, the first from the last that was given out (0: none): more than
/// one number where other kinds are published too. Not the mean, which an old one that was left behind would make too much.
fn spacing(given: i64, messages: &[Stored]) -> i64 {
    let seqs = Some(given).filter(|given| *given > 0).into_iter().chain(messages.iter().map(|message| message.seq));
    let mut gaps: Vec<_> = seqs.clone().zip(seqs.skip(1)).map(|(one, next)| next - one).collect();
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).map_or(1, |gap| (*gap).clamp(1, FAR))
}

fn seq(receipt: Receipt) -> Option<i64> {
    (receipt.epoch == EPOCH).then(|| receipt.tag.cast_signed())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{super::fresh::MOST_BYTES, *};
    use crate::{broker::Outgoing, job::Envelope, sqlite::Use};

    fn envelope() -> Envelope {
        Envelope::new(Uuid::from_u128(7), Kind::new("a.b").expect("a good name"), 1, 5)
    }

    fn stored(seqs: impl IntoIterator<Item = i64>) -> Vec<Stored> {
        let message = |seq| Stored { seq, given: 0, envelope: envelope().into(), body: Vec::new() };
        seqs.into_iter().map(message).collect()
    }

    fn rows<const N: usize>(seqs: [i64; N], bytes: usize) -> impl Iterator<Item = Row> {
        let job = move || Outgoing { envelope: envelope(), body: vec![7; bytes] };
        seqs.into_iter().map(move |seq| Row { seq, job: job(), head: None })
    }

    #[test]
    fn a_mark_is_moved_ahead_by_messages_of_its_kind_whatever_is_published_between_them() {
        assert_eq!(spacing(0, &stored(1..=500)), 1);
        assert_eq!(spacing(0, &stored((1..=500).step_by(13))), 13);
        assert_eq!(spacing(0, &stored([900_000, 1_000_000])), FAR);
        assert_eq!(spacing(0, &stored([1].into_iter().chain(60_000..60_100))), 1, "one was left behind");
        assert_eq!((spacing(5, &stored([25])), spacing(0, &stored([25])), spacing(5, &stored([]))), (20, 1, 1));
        assert_eq!(spacing(25, &stored([5])), 1, "it was given back");
    }

    struct Nobody;

    impl Sink for Nobody {
        fn deliver(&self, _: Vec<Delivery>) {}
    }

    #[test]
    fn what_is_settled_is_one_run_up_to_what_is_out_on_any_line_or_returned() {
        let line = |out: &[i64]| LineState {
            prefetch: 10,
            sink: Arc::new(Nobody),
            out: out.iter().copied().collect(),
            open: true,
        };
        let mut state = State { lines: vec![line(&[]), line(&[8])], given: 30, ..State::default() };
        assert_eq!(state.settled_runs(&[2, 5, 6, 12, 20]), [2..=6, 12..=20]);
        state.returned.insert(15);
        assert_eq!(state.settled_runs(&[2, 5, 6, 12, 20]), [2..=6, 12..=12, 20..=20]);
    }

    /// What is to be given out from memory next, if it is not to be read.
    fn from_memory(queue: &Queue) -> Option<Vec<i64>> {
        match queue.next() {
            Next::GiveFresh { messages } => Some(messages.iter().map(|message| message.seq).collect()),
            Next::Read { numbers, .. } => {
                let state = queue.lock();
                assert_eq!(numbers, state.given + 1..=state.last);
                None
            }
            Next::Wait | Next::ReadReturned { .. } => panic!("something is to be given out, and nothing came back"),
        }
    }

    /// A queue with a line, on a file without a table: no mark can be written.
    async fn queue(prefetch: u16) -> (tempfile::TempDir, Queue) {
        let folder = tempfile::tempdir().expect("a folder");
        let database = Arc::new(Database::open(folder.path(), Use::Owner).await.expect("a database"));
        let (reads, settled) = (Arc::new(Reads::open(database.clone())), Arc::new(Settled::new(&database)));
        let queue = Queue::new(envelope().kind, database, reads, settled);
        queue.join(prefetch, Arc::new(Nobody));
        (folder, queue)
    }

    #[tokio::test]
    async fn what_was_just_written_need_not_be_read_unless_something_before_it_must() {
        let (_folder, queue) = queue(3).await;
        queue.published(rows([2, 5, 6, 9], 10));
        assert_eq!(from_memory(&queue), Some(vec![2, 5, 6]), "as many as there is room for");
        queue.lock().given = 6;
        queue.published(rows([11], 10));
        assert_eq!(from_memory(&queue), None, "the fourth was not kept, so the fifth is not");
        queue.lock().given = 11;
        queue.published(rows([12], MOST_BYTES + 1));
        assert_eq!(from_memory(&queue), None, "too large to be kept");
        queue.lock().given = 12;
        queue.published(rows([13], MOST_BYTES));
        assert_eq!(from_memory(&queue), Some(vec![13]), "all before it are given out");
    }

    #[tokio::test]
    async fn what_could_not_be_given_out_is_read_with_all_that_is_behind_it() {
        let (_folder, queue) = queue(3).await;
        queue.published(rows([1], 10));
        let Next::GiveFresh { messages } = queue.next() else { panic!("it is fresh") };
        queue.published(rows([2], 10));
        queue.give_fresh(messages).await.expect_err("its mark cannot be written");
        assert_eq!(from_memory(&queue), None);
    }

    #[tokio::test]
    async fn what_found_no_room_any_more_is_read_with_all_that_is_behind_it() {
        let (_folder, queue) = queue(3).await;
        queue.lock().mark = 10;
        queue.published(rows([1, 2, 3], 10));
        let Next::GiveFresh { messages } = queue.next() else { panic!("they are fresh") };
        queue.set_prefetch(0, 2);
        queue.published(rows([4], 10));
        queue.give_fresh(messages).await.expect("two of them");
        assert_eq!(queue.lock().given, 2);
        assert_eq!(queue.waiting(), 2);
        queue.set_prefetch(0, 9);
        assert_eq!(from_memory(&queue), None);
    }

    #[tokio::test]
    async fn what_an_earlier_process_left_is_read() {
        let (_folder, queue) = queue(3).await;
        queue.left(4, 2);
        queue.published(rows([5], 10));
        assert_eq!(from_memory(&queue), None);
    }
}
