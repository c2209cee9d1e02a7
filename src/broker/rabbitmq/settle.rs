//! Which delivery tags of one channel may be acknowledged, and how. Pure.
//!
//! A broker acknowledges a run of tags three times as fast as single ones, so the settled beginning goes as one. What is
//! settled behind a job that still runs waits a moment for it and then goes singly. No tag is named twice: the broker
//! ends a channel that does so.

use std::collections::VecDeque;

/// The tags that one channel has given out and that are not all acknowledged.
#[derive(Debug, Default)]
pub struct Window {
    /// The tag of `tags[0]`.
    first: u64,
    tags: VecDeque<Tag>,
    /// How many are settled and not acknowledged.
    settled: usize,
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

    /// How many are out, those included that wait for one before them.
    pub fn out(&self) -> usize {
        self.tags.len()
    }

    /// The first that is out, unless none is: what is settled behind it cannot go with what was before it.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// How many are settled and not acknowledged.
    pub fn settled(&self) -> usize {
        self.settled
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
    fn the_settled_beginning_goes_as_one() {
        let mut window = window(5);
        for tag in [2, 1, 3] {
            window.settle(tag);
        }
        assert_eq!(window.take_beginning(), Some(3));
        assert_eq!(window.take_beginning(), None);
        assert_eq!(window.settled(), 0);
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
