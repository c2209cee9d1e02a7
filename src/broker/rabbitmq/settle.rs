//! Which delivery tags of one channel may be acknowledged, and how. Pure.
//!
//! A broker acknowledges a run of tags three times as fast as single ones, so the settled beginning goes as one. What is
//! settled behind a job that still runs waits a moment for it and then goes singly. No tag is named twice: the broker
//! ends a channel that does so.

use std::collections::VecDeque;

/// This part of the prefetch, once settled, is not to wait for more: the broker could come to wait for room.
const ROOM: usize = 4;

/// The tags that one channel has given out and that are not all acknowledged.
#[derive(Debug, Default)]
pub struct Window {
    /// The tag of `tags[0]`.
    first: u64,
    tags: VecDeque<Tag>,
    /// How many are settled and not acknowledged.
    settled: usize,
    /// What kept something that was settled from going with the beginning, when that was last looked at.
    slow: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Out,
    Settled,
    /// Acknowledged by itself.
    Gone,
}

impl Window {
    /// Tags begin at 1 in every channel.
    pub fn new() -> Self {
        Self { first: 1, ..Self::default() }
    }

    /// The next tag was given out. False if it is not the next one.
    pub fn give_out(&mut self, tag: u64) -> bool {
        let next = self.first + self.tags.len() as u64;
        if tag == next {
            self.tags.push_back(Tag::Out);
        }
        tag == next
    }

    /// One is done with. A tag that is not out is ignored.
    pub fn settle(&mut self, tag: u64) {
        if let Some(slot @ Tag::Out) = self.slot(tag) {
            *slot = Tag::Settled;
            self.settled += 1;
        }
    }

    /// One was given back by itself. False if it was not out.
    pub fn give_back(&mut self, tag: u64) -> bool {
        match self.slot(tag) {
            Some(slot @ Tag::Out) => {
                *slot = Tag::Gone;
                true
            }
            _ => false,
        }
    }

    /// The tag up to which all can be acknowledged at once.
    pub fn take_beginning(&mut self) -> Option<u64> {
        let mut last = None;
        while let Some(tag) = self.tags.front() {
            match tag {
                Tag::Out => break,
                Tag::Settled => {
                    self.settled -= 1;
                    last = Some(self.first);
                }
                // Passed over and never named again: the last one named is always one that is still unacknowledged.
                Tag::Gone => {}
            }
            self.tags.pop_front();
            self.first += 1;
        }
        last
    }

    /// Those that are settled behind one that is not, to be acknowledged singly.
    pub fn take_stragglers(&mut self) -> Vec<u64> {
        let mut stragglers = Vec::with_capacity(self.settled);
        if self.settled > 0 {
            for (tag, slot) in (self.first..).zip(&mut self.tags) {
                if *slot == Tag::Settled {
                    *slot = Tag::Gone;
                    stragglers.push(tag);
                }
            }
            self.settled = 0;
        }
        stragglers
    }

    /// Once the beginning is taken: those that are settled behind one that was in their way the last time too.
    pub fn take_left_behind(&mut self) -> Vec<u64> {
        let is_slow = self.slow == Some(self.first);
        let left_behind = if is_slow { self.take_stragglers() } else { Vec::new() };
        self.slow = self.has_settled().then_some(self.first);
        left_behind
    }

    /// How many are out, those included that wait for one before them.
    pub fn out(&self) -> usize {
        self.tags.len()
    }

    /// Whether any is settled and not acknowledged.
    pub fn has_settled(&self) -> bool {
        self.settled > 0
    }

    /// Whether so many are settled that they make a quarter of the prefetch free.
    pub fn makes_room(&self, prefetch: u16) -> bool {
        self.settled >= usize::from(prefetch).div_ceil(ROOM)
    }

    fn slot(&mut self, tag: u64) -> Option<&mut Tag> {
        let index = usize::try_from(tag.checked_sub(self.first)?).ok()?;
        self.tags.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn window(out: u64) -> Window {
        let mut window = Window::new();
        for tag in 1..=out {
            assert!(window.give_out(tag));
        }
        window
    }

    #[test]
    fn a_quarter_of_the_prefetch_makes_room() {
        let mut window = window(250);
        assert!(!window.makes_room(1));
        for (tag, quarter_of) in [(1, [1, 4]), (2, [5, 8]), (3, [9, 12])] {
            window.settle(tag);
            assert_eq!(quarter_of.map(|prefetch| window.makes_room(prefetch)), [true; 2]);
            assert!(!window.makes_room(quarter_of[1] + 1));
        }
        (4..250).for_each(|tag| window.settle(tag));
        assert!(!window.makes_room(1000));
        window.settle(250);
        assert!(window.makes_room(1000));
    }

    #[test]
    fn what_is_left_behind_goes_singly_only_if_the_same_is_before_it_the_next_time() {
        let mut window = window(5);
        window.settle(2);
        window.settle(4);
        assert_eq!((window.take_beginning(), window.take_left_behind()), (None, vec![]), "the first may soon end");
        window.settle(1);
        assert_eq!((window.take_beginning(), window.take_left_behind()), (Some(2), vec![]), "another is before it");
        window.settle(5);
        assert_eq!((window.take_beginning(), window.take_left_behind()), (None, vec![4, 5]), "the same");
        window.settle(3);
        assert_eq!((window.take_beginning(), window.take_left_behind()), (Some(3), vec![]));
        assert!(!window.has_settled());
    }

    #[test]
    fn the_settled_beginning_goes_as_one() {
        let mut window = window(5);
        for tag in [2, 1, 3] {
            window.settle(tag);
        }
        assert_eq!(window.take_beginning(), Some(3));
        assert_eq!(window.take_beginning(), None);
        assert!(!window.has_settled());
    }

    #[test]
    fn what_is_settled_behind_a_slow_job_goes_singly_and_is_not_named_again() {
        let mut window = window(4);
        for tag in [2, 3] {
            window.settle(tag);
        }
        assert_eq!(window.take_beginning(), None);
        assert_eq!(window.take_stragglers(), [2, 3]);
        window.settle(1);
        assert_eq!(window.take_beginning(), Some(1));
        window.settle(2);
        window.settle(4);
        assert_eq!(window.take_beginning(), Some(4));
    }

    #[test]
    fn a_tag_that_was_not_given_out_or_is_gone_is_ignored() {
        let mut window = window(2);
        window.settle(9);
        window.settle(0);
        assert!(window.give_back(2));
        assert!(!window.give_back(2));
        window.settle(2);
        window.settle(1);
        assert_eq!(window.take_beginning(), Some(1));
        assert!(!window.give_out(2), "a tag out of turn");
        assert!(window.give_out(3));
    }

    /// A broker that holds what is unacknowledged, and knows what RabbitMQ ends a channel for.
    #[derive(Default)]
    struct Broker {
        unacknowledged: BTreeSet<u64>,
    }

    impl Broker {
        fn ack(&mut self, tag: u64, multiple: bool) {
            assert!(self.unacknowledged.contains(&tag), "406 PRECONDITION_FAILED: unknown delivery tag {tag}");
            if multiple {
                self.unacknowledged.retain(|held| *held > tag);
            } else {
                self.unacknowledged.remove(&tag);
            }
        }
    }

    #[test]
    fn whatever_the_order_every_settled_tag_is_acknowledged_once_and_no_other_ever() {
        // A linear congruential generator: the orders are many and the same in every run.
        let mut seed = 42_u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..300 {
            let (mut window, mut broker, mut out) = (Window::new(), Broker::default(), Vec::new());
            let mut next = 1;
            for _ in 0..400 {
                match random(4) {
                    0 => {
                        for _ in 0..=random(8) {
                            assert!(window.give_out(next));
                            broker.unacknowledged.insert(next);
                            out.push(next);
                            next += 1;
                        }
                    }
                    1 if !out.is_empty() => {
                        let tag = out.swap_remove(usize::try_from(random(out.len() as u64)).expect("small"));
                        window.settle(tag);
                    }
                    2 => {
                        if let Some(tag) = window.take_beginning() {
                            broker.ack(tag, true);
                        }
                    }
                    _ => window.take_stragglers().into_iter().for_each(|tag| broker.ack(tag, false)),
                }
                assert!(out.iter().all(|tag| broker.unacknowledged.contains(tag)), "one that is out was acknowledged");
            }
            if let Some(tag) = window.take_beginning() {
                broker.ack(tag, true);
            }
            window.take_stragglers().into_iter().for_each(|tag| broker.ack(tag, false));
            let left: Vec<_> = broker.unacknowledged.into_iter().collect();
            out.sort_unstable();
            assert_eq!(left, out);
        }
    }
}
