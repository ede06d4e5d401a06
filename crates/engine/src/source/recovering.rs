use std::time::Duration;

use migrated_pages::PageRun;
use migrated_wire::{MAX_OUTSTANDING, ToDestination, ToSource, bounded_text};

use super::answer::Answer;
use super::common::Common;
use super::drain::Drain;
use super::postcopy_active::PostcopyActive;
use super::postcopy_paused::PostcopyPaused;
use super::stop_and_copy::Marks;
use super::{SourceEvent, State};
use crate::record::MigrationState;

/// There are new channels: the destination says what it has, and everything else is sent.
pub(super) struct Recovering {
    drain: Box<Drain>,
    marks: Marks,
    answer: Answer,
    /// Requests that overtook the map.
    requests: Vec<PageRun>,
}

impl Recovering {
    pub(super) fn begin(common: &mut Common, mut drain: Box<Drain>, marks: Marks) -> State {
        common.enter(MigrationState::Recovering);
        common.link.relinked(common.now);
        drain.iteration += 1;
        common.send(ToDestination::Recover { epoch: common.config.epoch, iteration: drain.iteration });
        let answer = Answer::awaited(common);
        State::Recovering(Box::new(Self { drain, marks, answer, requests: Vec::new() }))
    }

    pub(super) const fn deadline(&self) -> Duration {
        self.answer.deadline()
    }

    pub(super) const fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(super) fn on(mut self: Box<Self>, common: &mut Common, event: SourceEvent) -> State {
        let lost = match event {
            SourceEvent::Message(ToSource::Received(piece)) => self.answer.take(common, &piece).err(),
            SourceEvent::Message(ToSource::ReceivedSent { pages }) => {
                return match self.restart(common, pages) {
                    Ok(()) => PostcopyActive::enter(common, self.drain, self.marks),
                    Err(reason) => PostcopyPaused::begin(common, self.drain, self.marks, &reason),
                };
            }
            SourceEvent::Message(ToSource::PageRequest { epoch, pages }) => {
                if epoch == common.config.epoch && self.requests.len() + pages.len() <= MAX_OUTSTANDING {
                    self.requests.extend(pages);
                    None
                } else {
                    Some("requests of another attempt, or too many".to_owned())
                }
            }
            SourceEvent::Message(ToSource::Summary { wire_received, guest_gap_us }) => {
                common.take_summary(wire_received, guest_gap_us);
                self.drain.summary = true;
                None
            }
            SourceEvent::Message(other) => {
                Some(bounded_text(&format!("unexpected instead of the received map: {other:?}")))
            }
            SourceEvent::LinkLost(reason) | SourceEvent::PeerMisbehaved(reason) => Some(reason),
            SourceEvent::Tick => self.answer.overdue(common).or_else(|| common.watch()),
            SourceEvent::Cancel => {
                common.decide("cancel_refused", "the guest runs at the destination");
                None
            }
            _ => None,
        };
        match lost {
            Some(reason) => PostcopyPaused::begin(common, self.drain, self.marks, &reason),
            None => State::Recovering(self),
        }
    }

    fn restart(&mut self, common: &mut Common, pages: u64) -> Result<(), String> {
        let layout = &common.config.identity.layout;
        let received = self.answer.whole(pages)?;
        let (missing, total) = (self.drain.missing, layout.total_pages());
        if total - pages > missing {
            let text =
                format!("a received map of {pages} pages, with {missing} of {total} missing at the switch");
            return Err(text);
        }
        self.drain.restart(received, layout);
        common.push.relinked();
        common.limit_push(common.now);
        common.note_recovery(self.drain.remaining());
        let epoch = common.config.epoch;
        common.request(&mut self.drain, epoch, &std::mem::take(&mut self.requests))
    }
}
