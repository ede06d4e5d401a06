//! What a driver tells a destination, and what it is told to do.

use std::time::Duration;

use migrated_pages::PageSet;
use migrated_wire::{CommitOutcome, LateInput, Section, ToDestination, ToSource};

#[cfg(doc)]
use super::Destination;

/// What happened.
#[derive(Debug)]
pub enum DestinationEvent {
    /// The control channel is open.
    Connected {
        /// The protocol version that both ends speak.
        version: u16,
    },
    /// The control channel is open again after [`DestinationAction::HangUp`], or instead of one that is still open.
    /// Nothing of the old channels is fed from now on; what they were placing, or have claimed, may still be placed.
    Reconnected {
        /// The protocol version that both ends speak.
        version: u16,
    },
    /// The source said something.
    Message(ToDestination),
    /// A page channel reached the end of an iteration; all its pages before are placed.
    Marker {
        /// Which channel.
        channel: u16,
        /// Which iteration.
        iteration: u32,
        /// Pages the source sent on the channel in it.
        pages: u64,
    },
    /// The control channel broke, for this reason.
    LinkLost(String),
    /// A page channel broke, for this reason. Once nothing more is to come on it, that is how it ends.
    PagesLost(String),
    /// The source sent what it must not.
    PeerMisbehaved(String),
    /// Answer to [`DestinationAction::Arm`].
    Armed,
    /// Answer to [`DestinationAction::Restore`], with what it took.
    Restored(Duration),
    /// Answer to [`DestinationAction::RecordCommit`].
    CommitRecorded,
    /// The commit could not be recorded.
    CommitNotRecorded(String),
    /// Answer to [`DestinationAction::Start`]: the time from the commit's arrival to the first KVM_RUN.
    Started(Duration),
    /// An action on the guest failed; it has not run.
    GuestFailed(String),
    /// Answer to [`DestinationAction::Observe`].
    Observed {
        /// Bytes received on all channels.
        wire_received: u64,
        /// The longest gap the guest saw, in µs, if it is one that tells.
        guest_gap_us: Option<u64>,
        /// The time from the first KVM_RUN to the first frame that the guest sent or got, in µs, if it has a network.
        first_packet_us: Option<u64>,
    },
    /// Somebody asks what became of the commit of this attempt.
    Resolve {
        /// The attempt.
        epoch: u64,
    },
    /// Somebody wants the incoming guest gone.
    Cancel,
    /// Time passed; see [`Destination::deadline`].
    Tick,
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
pub enum DestinationAction {
    /// Send a message on the control channel.
    Send(ToSource),
    /// Drop these pages' contents; whoever touches one from now on faults and waits.
    Arm(PageSet),
    /// There may be a request: look at [`Destination::take_request`].
    Request,
    /// Restore CPU and device state.
    Restore(Vec<Section>),
    /// Write down, where it survives this process, that this attempt was committed.
    RecordCommit(u64),
    /// Write down that this attempt will never run.
    RecordNeverRan(u64),
    /// Run the guest.
    Start,
    /// Destroy the guest, which has not run.
    Destroy,
    /// Hand to the running guest's devices what came for them to the source, without waiting for them.
    Deliver(Vec<LateInput>),
    /// These pages have just come: does for them what makes the guest find them at hand when it runs, beside everything
    /// else. Nothing waits for it.
    WarmUp(PageSet),
    /// Watch the running guest until its own clock tells the gap, then report.
    Observe,
    /// Answer the one who asked; `None` means that this end knows nothing of that attempt.
    Answer(Option<CommitOutcome>),
    /// Close all channels.
    HangUp,
}

/// What a frame that may come carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Pages of a guest that does not run here: [`Destination::begin_placing`], read them into place, then
    /// [`Destination::placed`], or [`Destination::broke_off`] when the channel breaks.
    Pages,
    /// Pages that follow the guest: [`Destination::claim`] them before anything is written, place what was
    /// claimed and throw away the rest, then [`Destination::placed_claims`], or [`Destination::unclaim`] when
    /// the channel breaks.
    Following,
    /// Hashes, to compare.
    Hashes,
    /// Nothing but the end of an iteration.
    Marker,
}

/// What a page fault leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAnswer {
    /// The page is to be asked for: look at [`Destination::take_request`].
    Wanted,
    /// It is on its way, or will be asked for when there is a link.
    Waits,
    /// It is in place: wake whoever waits.
    Here,
}
