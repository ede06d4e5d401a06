/// The page channels' progress through the current iteration.
#[derive(Debug)]
pub(super) struct Lanes {
    iteration: u32,
    lanes: Vec<Lane>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    pages: u64,
    ended: bool,
}

/// What a marker meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Other channels are still in the iteration.
    Partial,
    /// It was the last: the iteration is over with so many pages, and the next one is open.
    Complete { iteration: u32, pages: u64 },
    /// It doesn't belong here, or its count is not what came.
    Wrong(String),
}

impl Lanes {
    pub(super) fn new(channels: u16) -> Self {
        Self::at(channels, 1)
    }

    /// Lanes at the beginning of an iteration.
    pub(super) fn at(channels: u16, iteration: u32) -> Self {
        Self { iteration, lanes: vec![Lane::default(); channels.into()] }
    }

    /// Whether no page of the next iteration has come.
    pub(super) fn is_between(&self) -> bool {
        self.lanes.iter().all(|lane| lane.pages == 0 && !lane.ended)
    }

    pub(super) const fn channels(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// Whether frames of `iteration` may come on `channel` now.
    pub(super) fn is_open(&self, channel: u16, iteration: u32) -> bool {
        iteration == self.iteration && self.lanes.get(usize::from(channel)).is_some_and(|lane| !lane.ended)
    }

    /// The iteration whose frames may come.
    pub(super) const fn iteration(&self) -> u32 {
        self.iteration
    }

    /// Iterations completed.
    pub(super) const fn completed(&self) -> u32 {
        self.iteration - 1
    }

    pub(super) fn count(&mut self, channel: u16, pages: u64) {
        if let Some(lane) = self.lanes.get_mut(usize::from(channel)) {
            lane.pages += pages;
        }
    }

    pub(super) fn mark(&mut self, channel: u16, iteration: u32, pages: u64) -> Mark {
        if !self.is_open(channel, iteration) {
            return Mark::Wrong(format!("marker of iteration {iteration} on channel {channel} is not due"));
        }
        let lane = &mut self.lanes[usize::from(channel)];
        if lane.pages != pages {
            return Mark::Wrong(format!(
                "channel {channel} ends iteration {iteration} with {pages} pages, but {} came",
                lane.pages
            ));
        }
        lane.ended = true;
        if self.lanes.iter().any(|lane| !lane.ended) {
            return Mark::Partial;
        }
        let pages = self.lanes.iter().map(|lane| lane.pages).sum();
        self.lanes.fill(Lane::default());
        self.iteration += 1;
        Mark::Complete { iteration, pages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iteration_ends_when_all_channels_have_ended_it_with_the_right_count() {
        let mut lanes = Lanes::new(2);
        lanes.count(0, 5);
        assert!(matches!(lanes.mark(0, 1, 6), Mark::Wrong(_)));
        assert_eq!(lanes.mark(0, 1, 5), Mark::Partial);
        assert!(!lanes.is_open(0, 1) && lanes.is_open(1, 1));
        assert!(matches!(lanes.mark(0, 1, 5), Mark::Wrong(_)));
        assert!(matches!(lanes.mark(2, 1, 0), Mark::Wrong(_)));
        assert_eq!(lanes.mark(1, 1, 0), Mark::Complete { iteration: 1, pages: 5 });
        assert!(lanes.is_open(0, 2) && !lanes.is_open(0, 1));
        assert_eq!(lanes.completed(), 1);
    }
}
