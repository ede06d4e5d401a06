use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use migrated_engine::destination::DestinationEvent;
use migrated_engine::source::SourceEvent;
use migrated_pages::PageRun;

use crate::rng::Rng;

/// What will happen at some moment.
#[derive(Debug)]
pub(super) enum Happening {
    Source(SourceEvent),
    Destination(DestinationEvent),
    Frame(Channel, Frame),
    /// A frame of a guest that does not run here is placed now, if its link has not broken.
    InPlace {
        generation: u64,
        channel: u16,
        pages: Vec<(PageRun, Vec<u64>)>,
    },
    /// Claimed pages are placed now, if their link has not broken.
    Placed {
        generation: u64,
        pages: Vec<(PageRun, Vec<u64>)>,
    },
    /// An end notices that this generation of the link is gone.
    Notice {
        generation: u64,
        end: End,
    },
    /// The urgent channel of the source asks for work.
    UrgentFree,
    /// A vCPU of the destination's guest touches a page.
    Touch(usize),
    /// The source's attempt to reconnect arrives.
    Reconnect,
    /// A page channel of the source asks for work.
    ChannelFree(u16),
    GuestWrites,
    Cut,
    DestinationDies,
    /// The source's question about its commit arrives.
    Question,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// A frame of a page channel with the contents that were read for it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) head: migrated_wire::FrameHead,
    pub(super) pages: Vec<(PageRun, Vec<u64>)>,
}

/// Channels of the link, each of which keeps its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    ToSource,
    ToDestination,
    Page(u16),
    Urgent,
}

struct Entry {
    at: Duration,
    order: u64,
    channel: Option<Channel>,
    happening: Happening,
}

/// The agenda of the simulation: everything that is due, and the messages in flight.
pub(super) struct Link {
    pub(super) now: Duration,
    agenda: BinaryHeap<Reverse<Entry>>,
    order: u64,
    last_delivery: Vec<Duration>,
    up: bool,
}

impl Link {
    pub(super) fn new(channels: u16) -> Self {
        Self {
            now: Duration::ZERO,
            agenda: BinaryHeap::new(),
            order: 0,
            last_delivery: vec![Duration::ZERO; usize::from(channels) + 3],
            up: true,
        }
    }

    pub(super) fn at(&mut self, at: Duration, happening: Happening) {
        self.push(at, None, happening);
    }

    pub(super) fn after(&mut self, delay: Duration, happening: Happening) {
        self.push(self.now + delay, None, happening);
    }

    /// Sends over a channel: delivered after `delay`, but never before what was sent earlier on it.
    pub(super) fn send(&mut self, channel: Channel, delay: Duration, happening: Happening) {
        if !self.up {
            return;
        }
        let index = match channel {
            Channel::ToSource => 0,
            Channel::ToDestination => 1,
            Channel::Urgent => 2,
            Channel::Page(index) => usize::from(index) + 3,
        };
        let at = (self.now + delay).max(self.last_delivery[index]);
        self.last_delivery[index] = at;
        self.push(at, Some(channel), happening);
    }

    fn push(&mut self, at: Duration, channel: Option<Channel>, happening: Happening) {
        self.order += 1;
        self.agenda.push(Reverse(Entry { at, order: self.order, channel, happening }));
    }

    /// The next thing that is due no later than `limit`; time moves on to it.
    pub(super) fn pop_before(&mut self, limit: Option<Duration>) -> Option<Happening> {
        let Reverse(first) = self.agenda.peek()?;
        if limit.is_some_and(|limit| first.at > limit) {
            return None;
        }
        let Reverse(entry) = self.agenda.pop()?;
        self.now = self.now.max(entry.at);
        Some(entry.happening)
    }

    pub(super) const fn is_up(&self) -> bool {
        self.up
    }

    /// Nothing sent from now on arrives.
    pub(super) const fn close(&mut self) {
        self.up = false;
    }

    /// New channels: what is in flight on the old ones never arrives.
    pub(super) fn restore(&mut self) {
        self.agenda.retain(|Reverse(entry)| entry.channel.is_none());
        self.last_delivery.fill(Duration::ZERO);
        self.up = true;
    }

    /// Nothing sent from now on arrives, and of each channel only some first part of what is in flight.
    pub(super) fn cut(&mut self, rng: &mut Rng) {
        self.up = false;
        let mut entries: Vec<Entry> = self.agenda.drain().map(|Reverse(entry)| entry).collect();
        entries.sort();
        let mut lost: Vec<Channel> = Vec::new();
        for entry in entries {
            if let Some(channel) = entry.channel {
                if !lost.contains(&channel) && rng.below(3) == 0 {
                    lost.push(channel);
                }
                if lost.contains(&channel) {
                    continue;
                }
            }
            self.agenda.push(Reverse(entry));
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("now", &self.now).field("up", &self.up).finish_non_exhaustive()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
