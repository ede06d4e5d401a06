//! What a session does for each engine: carry out its actions, move its pages.

use std::time::Duration;

use migrated_engine::MigrationState;
use migrated_engine::destination::{DestinationAction, DestinationEvent, Due};
use migrated_engine::source::{Next, Sent, SourceAction, SourceEvent};
use migrated_pages::PageRun;
use migrated_wire::{FrameHead, FrameKind, Section, SectionName};

use super::link::{Channel, Frame, Happening};
use super::scenario::{Fault, GuestOperation};
use super::{EPOCH, Pair};
use crate::guest::FakeGuest;

impl Pair {
    pub(super) fn delay(&mut self) -> Duration {
        Duration::from_micros(20 + self.rng.below(3000))
    }

    fn fails(&self, operation: GuestOperation) -> bool {
        self.scenario.faults.contains(&Fault::Fails(operation))
    }

    /// Counts a control message and lets happen what a scenario ties to it.
    pub(super) fn count_message(&mut self) {
        self.messages += 1;
        for fault in self.scenario.faults.clone() {
            match fault {
                Fault::CutAtMessage(n) if n == self.messages => self.cut(),
                Fault::DestinationDiesAtMessage(n) if n == self.messages => self.destination_dies(),
                _ => {}
            }
        }
    }

    pub(super) fn feed_source(&mut self, event: SourceEvent) -> Result<(), String> {
        self.source.handle(self.link.now, event);
        while let Some(action) = self.source.poll_action() {
            if let Some(answer) = self.source_action(action)? {
                self.source.handle(self.link.now, answer);
            }
        }
        Ok(())
    }

    fn source_action(&mut self, action: SourceAction) -> Result<Option<SourceEvent>, String> {
        let failed = |what: &str| Ok(Some(SourceEvent::GuestFailed(what.into())));
        match action {
            SourceAction::Send(message) => {
                let delay = self.delay();
                let happening = Happening::Destination(DestinationEvent::Message(message));
                self.link.send(Channel::ToDestination, delay, happening);
                self.count_message();
            }
            SourceAction::StartTracking => {
                if self.fails(GuestOperation::StartTracking) {
                    return failed("tracking");
                }
                self.source_guest()?.track(true);
                return Ok(Some(SourceEvent::TrackingStarted));
            }
            SourceAction::Harvest | SourceAction::FinalHarvest => {
                let paused = action == SourceAction::FinalHarvest;
                if self.fails(if paused { GuestOperation::FinalHarvest } else { GuestOperation::Harvest }) {
                    return failed("harvest");
                }
                let took = Duration::from_micros(self.rng.below(2000));
                let dirty = self.source_guest()?.harvest();
                self.guest_writes_now();
                return Ok(Some(SourceEvent::Harvested { dirty, took }));
            }
            SourceAction::Pause => {
                if self.fails(GuestOperation::Pause) {
                    return failed("pause");
                }
                // Until it really stands still the guest writes on.
                self.guest_writes_now();
                let guest = self.source_guest()?;
                guest.set_running(false);
                let copy = guest.clone();
                self.paused = Some(copy);
                self.throttle.set(None);
                return Ok(Some(SourceEvent::Paused));
            }
            SourceAction::SaveState => {
                if self.fails(GuestOperation::Save) {
                    return failed("save");
                }
                let name = SectionName { kind: "cpu".into(), instance: 0, version: 1 };
                let data = self.source_guest()?.cpu_state().to_le_bytes().to_vec().into();
                return Ok(Some(SourceEvent::StateSaved(vec![Section { name, data }])));
            }
            SourceAction::Resume => {
                if self.ever_ran_at_destination {
                    return Err("the source resumed a guest that ran at the destination".into());
                }
                self.source_guest()?.set_running(true);
                self.read_frames();
                return Ok(Some(SourceEvent::Resumed));
            }
            SourceAction::Throttle(order) => {
                if order.is_some() && self.fails(GuestOperation::Throttle) {
                    self.throttle.set(None);
                    return Ok(Some(SourceEvent::ThrottleFailed("throttle".into())));
                }
                self.throttle.set(order);
            }
            SourceAction::ReadThrottle => return Ok(Some(SourceEvent::Throttled(self.throttle.counts()))),
            SourceAction::StopTracking => self.source_guest()?.track(false),
            SourceAction::TakeLateInput { limit_bytes } => {
                let found = self.take_late_input(limit_bytes)?;
                return Ok(Some(SourceEvent::LateInput(found)));
            }
            SourceAction::Retire => {
                if !self.absent().is_empty() {
                    return Err("a guest was retired though pages are missing at the destination".into());
                }
                if self.source_guest.take().is_none_or(|guest| guest.is_running()) {
                    return Err("a guest was retired twice or while it ran".into());
                }
            }
            SourceAction::Ask => {
                let delay = self.delay();
                self.link.after(delay, Happening::Question);
            }
            SourceAction::Reconnect => {
                let delay = self.delay();
                self.link.after(delay, Happening::Reconnect);
            }
            SourceAction::Wake => self.wake_channels(),
            // The other end sees the channels close, after all that was sent before.
            SourceAction::HangUp => {
                for channel in 0..self.scenario.channels {
                    let closed = DestinationEvent::PagesLost("closed by the source".into());
                    self.link.send(Channel::Page(channel), Duration::ZERO, Happening::Destination(closed));
                }
                let closed = DestinationEvent::LinkLost("closed by the source".into());
                self.link.send(Channel::ToDestination, Duration::ZERO, Happening::Destination(closed));
                let is_back_later = matches!(
                    self.source.state(),
                    MigrationState::Negotiating
                        | MigrationState::PrecopyPaused
                        | MigrationState::PostcopyPaused
                );
                if is_back_later {
                    self.link.close();
                }
            }
        }
        Ok(None)
    }

    fn source_guest(&mut self) -> Result<&mut FakeGuest, String> {
        self.source_guest.as_mut().ok_or_else(|| "an action on a retired guest".into())
    }

    /// A page channel of the source takes its next batch, reads the pages now, and sends them.
    pub(super) fn pull(&mut self, channel: u16) -> Result<(), String> {
        let mut runs = Vec::new();
        let now = self.link.now;
        let following =
            matches!(self.source.state(), MigrationState::Switchover | MigrationState::PostcopyActive);
        let (iteration, kind) = match self.source.next_batch(now, channel, &mut runs) {
            Next::Pages { iteration } => (iteration, FrameKind::Pages),
            Next::Hashes { iteration } => (iteration, FrameKind::Hashes),
            Next::Marker { iteration, pages } => {
                let frame = Frame { head: FrameHead::marker(iteration, pages), pages: Vec::new() };
                let delay = self.delay();
                let channel = Channel::Page(channel);
                self.link.send(channel, delay, Happening::Frame(channel, frame));
                self.source.marker_sent(now);
                return self.drain_source();
            }
            Next::WaitUntil(at) => {
                self.link.at(at, Happening::ChannelFree(channel));
                return Ok(());
            }
            Next::Wait | Next::Ended => return Ok(()),
        };
        if following && kind == FrameKind::Pages {
            self.note_pushed(&runs)?;
        }
        self.send_frame(Channel::Page(channel), iteration, kind, &runs)?;
        if !following && kind == FrameKind::Pages {
            self.note_leading();
        }
        let busy = Duration::from_micros(1 + self.rng.below(500));
        self.link.after(busy, Happening::ChannelFree(channel));
        Ok(())
    }

    /// The urgent channel takes its next pages.
    pub(super) fn pull_urgent(&mut self) -> Result<(), String> {
        let mut runs = Vec::new();
        let Next::Pages { iteration } = self.source.next_urgent(&mut runs) else { return Ok(()) };
        self.note_urgent(&runs)?;
        self.send_frame(Channel::Urgent, iteration, FrameKind::Pages, &runs)?;
        let busy = Duration::from_micros(1 + self.rng.below(100));
        self.link.after(busy, Happening::UrgentFree);
        Ok(())
    }

    pub(super) fn wake_channels(&mut self) {
        self.link.after(Duration::ZERO, Happening::UrgentFree);
        for channel in 0..self.scenario.channels {
            self.link.after(Duration::ZERO, Happening::ChannelFree(channel));
        }
    }

    fn send_frame(
        &mut self,
        channel: Channel,
        iteration: u32,
        kind: FrameKind,
        runs: &[PageRun],
    ) -> Result<(), String> {
        let now = self.link.now;
        let guest = self.source_guest()?;
        let mut sent = Sent::default();
        let pages: Vec<_> = runs
            .iter()
            .map(|run| {
                let contents: Vec<u64> =
                    (run.first..run.first + run.count).map(|page| guest.read(run.block, page)).collect();
                (*run, contents)
            })
            .collect();
        for contents in pages.iter().flat_map(|(_, contents)| contents) {
            match contents {
                0 => sent.zero_pages += 1,
                _ => {
                    sent.data_pages += 1;
                    sent.bytes += 4096;
                }
            }
        }
        let head = FrameHead { kind, iteration, runs: runs.len() as u32, pages: 0 };
        let delay = self.delay();
        self.link.send(channel, delay, Happening::Frame(channel, Frame { head, pages }));
        self.source.batch_sent(now, if kind == FrameKind::Pages { sent } else { Sent::default() });
        Ok(())
    }

    fn drain_source(&mut self) -> Result<(), String> {
        while let Some(action) = self.source.poll_action() {
            if let Some(answer) = self.source_action(action)? {
                self.source.handle(self.link.now, answer);
            }
        }
        Ok(())
    }

    pub(super) fn feed_destination(&mut self, event: DestinationEvent) -> Result<(), String> {
        self.destination.handle(self.link.now, event);
        self.drain_destination()
    }

    pub(super) fn drain_destination(&mut self) -> Result<(), String> {
        while let Some(action) = self.destination.poll_action() {
            if !self.destination_alive {
                break;
            }
            if let Some(answer) = self.destination_action(action)? {
                self.destination.handle(self.link.now, answer);
            }
        }
        Ok(())
    }

    fn destination_action(&mut self, action: DestinationAction) -> Result<Option<DestinationEvent>, String> {
        match action {
            DestinationAction::Send(message) => {
                let delay = self.delay();
                let happening = Happening::Source(SourceEvent::Message(message));
                self.link.send(Channel::ToSource, delay, happening);
                self.count_message();
            }
            DestinationAction::Arm(missing) => {
                self.arm(&missing);
                return Ok(Some(DestinationEvent::Armed));
            }
            DestinationAction::Request => self.send_requests(),
            DestinationAction::Restore(sections) => {
                self.touch_in_restore();
                if self.fails(GuestOperation::Restore) {
                    return Ok(Some(DestinationEvent::GuestFailed("restore".into())));
                }
                let bytes = sections.first().and_then(|s| s.data.first_chunk::<8>().copied());
                let writes = bytes.ok_or("a section without its data")?;
                self.destination_guest.restore_cpu(u64::from_le_bytes(writes));
                return Ok(Some(DestinationEvent::Restored(Duration::from_micros(300))));
            }
            DestinationAction::RecordCommit(epoch) => {
                if self.fails(GuestOperation::Record) {
                    return Ok(Some(DestinationEvent::CommitNotRecorded("disk full".into())));
                }
                self.committed = Some(epoch);
                return Ok(Some(DestinationEvent::CommitRecorded));
            }
            DestinationAction::RecordNeverRan(_) => self.committed = None,
            DestinationAction::Start => {
                if self.fails(GuestOperation::Start) {
                    return Ok(Some(DestinationEvent::GuestFailed("start".into())));
                }
                self.start_destination()?;
                return Ok(Some(DestinationEvent::Started(Duration::from_micros(200))));
            }
            DestinationAction::Destroy => {
                if self.destination_guest.is_running() {
                    return Err("a guest that runs at the destination was destroyed".into());
                }
            }
            DestinationAction::Deliver(inputs) => self.deliver_late_input(&inputs)?,
            // A fake's pages are at hand.
            DestinationAction::WarmUp(_) => {}
            DestinationAction::Observe => {
                return Ok(Some(DestinationEvent::Observed {
                    wire_received: 1,
                    guest_gap_us: Some(1),
                    first_packet_us: Some(2),
                }));
            }
            DestinationAction::Answer(outcome) => {
                let delay = self.delay();
                self.link.after(delay, Happening::Source(SourceEvent::Outcome(outcome)));
            }
            DestinationAction::HangUp => {
                let closed = SourceEvent::LinkLost("closed by the destination".into());
                self.link.send(Channel::ToSource, Duration::ZERO, Happening::Source(closed));
                let is_kept = matches!(
                    self.destination.state(),
                    MigrationState::PrecopyPaused | MigrationState::PostcopyPaused
                );
                if is_kept {
                    self.link.close();
                }
            }
        }
        Ok(None)
    }

    /// The first instruction at the destination: the copy must be the one that was paused.
    fn start_destination(&mut self) -> Result<(), String> {
        if self.committed != Some(EPOCH) {
            return Err("the destination runs before it recorded the commit".into());
        }
        let paused = self.paused.as_ref().ok_or("the destination runs a guest that was never paused")?;
        let whole =
            paused.contents().iter().zip(self.destination_guest.contents()).zip(paused.layout().ids()).all(
                |((theirs, ours), block)| {
                    theirs
                        .iter()
                        .zip(ours)
                        .zip(0..)
                        .all(|((theirs, ours), page)| theirs == ours || self.absent().contains(block, page))
                },
            );
        if !whole {
            return Err("the destination's memory is not the source's at the pause".into());
        }
        if paused.cpu_state() != self.destination_guest.cpu_state() {
            return Err("the destination's CPU is not the source's at the pause".into());
        }
        let contents = paused.contents().to_vec();
        self.expect(&contents);
        self.destination_guest.set_running(true);
        self.ever_ran_at_destination = true;
        Ok(())
    }

    pub(super) fn receive(&mut self, from: Channel, frame: Frame) -> Result<(), String> {
        if !self.destination_alive || self.destination.outcome().is_some() {
            return Ok(());
        }
        let Some(frame) = self.leading.take_or_wait(from, frame) else { return Ok(()) };
        let (channel, admitted) = match from {
            Channel::Page(channel) => (channel, self.destination.admit(channel, &frame.head)),
            _ => (0, self.destination.admit_urgent(&frame.head)),
        };
        let due = match admitted {
            Ok(due) => due,
            Err(error) => {
                return self.feed_destination(DestinationEvent::PeerMisbehaved(error.to_string()));
            }
        };
        match due {
            Due::Following => return self.begin_placing(frame.pages),
            Due::Marker => {
                let FrameHead { iteration, pages, .. } = frame.head;
                return self.feed_destination(DestinationEvent::Marker { channel, iteration, pages });
            }
            Due::Pages => return self.begin_placing_before(channel, frame.pages),
            Due::Hashes => self.compare(channel, &frame),
        }
        Ok(())
    }

    /// After the commit the destination's guest writes on; what was placed is what was there at the pause.
    fn compare(&mut self, channel: u16, frame: &Frame) {
        let ours = match &self.paused {
            Some(paused) if self.destination_guest.is_running() => paused,
            _ => &self.destination_guest,
        };
        let (mut pages, mut mismatches) = (0, 0);
        for (run, contents) in &frame.pages {
            for (page, contents) in (run.first..).zip(contents) {
                pages += 1;
                mismatches += u64::from(ours.read(run.block, page) != *contents);
            }
        }
        self.destination.compared(channel, pages, mismatches, None);
    }
}
