//! Messages of the control channel and their codec.

use bytes::Bytes;
use migrated_pages::{PageRun, RamLayout};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{LateInputs, PageSetPiece, WireError};

/// Most bytes of one control message: a state section of 1 MiB and its frame.
pub const MAX_MESSAGE: usize = MAX_SECTION + 4096;
/// Most bytes of one state section: the XSAVE area with AMX tiles is about 11 KiB, a PIT far less.
pub const MAX_SECTION: usize = 1 << 20;
/// Most state sections of a guest: eight for each of 1024 vCPUs.
pub const MAX_SECTIONS: usize = 8192;
/// Most characters of a text that a peer sends for people to read.
pub const MAX_TEXT: usize = 2048;

/// Most pages that the destination may have asked for and not yet received. Each waits for a vCPU or a
/// device thread, so this is many more than a guest has.
pub const MAX_OUTSTANDING: usize = 4096;
/// The first protocol version that has [`ToSource::FirstPacket`].
pub const FIRST_PACKET_SINCE: u16 = 5;

/// Names a state section on the wire: kind, instance, version of its layout.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SectionName {
    /// What the state is of.
    pub kind: String,
    /// Which of several.
    pub instance: u32,
    /// Version of its layout.
    pub version: u32,
}

/// One state section on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Which.
    pub name: SectionName,
    /// Its bytes.
    pub data: Bytes,
}

/// What both ends compare before any page flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// How RAM is cut into blocks.
    pub layout: RamLayout,
    /// The state sections that will come, no more and no fewer.
    pub sections: Vec<SectionName>,
    /// The CPU the guest was given, in the VMM's encoding; compared byte by byte.
    pub cpu: Bytes,
}

/// When memory is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerifyWhen {
    /// Never.
    Off,
    /// Before the commit.
    Before,
    /// After the destination runs.
    After,
}

/// Whether the guest may run at the destination before all of its pages are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PostcopyUse {
    /// It won't.
    Never,
    /// If the destination can.
    Allowed,
    /// It will: a destination that can't refuses.
    Required,
}

/// From the source to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDestination {
    /// First message: what will be moved and how.
    Preflight {
        /// The guest.
        identity: GuestIdentity,
        /// The attempt; the destination records it before it runs the guest.
        epoch: u64,
        /// Page channels that are open.
        channels: u16,
        /// When memory is compared.
        verify: VerifyWhen,
        /// Whether pages may follow the guest.
        postcopy: PostcopyUse,
        /// The guest's own clock at the source now, for measuring its longest gap; opaque.
        guest_clock: Option<u64>,
        /// How long the source will try to come back, in ms, when the link is lost before the commit; the
        /// destination keeps what it has for as long, and no longer than it sees fit. Zero: not at all.
        reconnect_window_ms: u64,
    },
    /// Post-copy: pages that the destination lacks or holds a stale version of. All pieces name different
    /// pages.
    Missing(PageSetPiece),
    /// The pieces so far are complete: drop what is stale, and let vCPUs fault on it.
    MissingSent {
        /// Pages named since the migration began.
        pages: u64,
    },
    /// On new channels after a lost link: say what you have. In post-copy that is all of RAM that is there, in
    /// pre-copy what came of the iteration before this one, which the loss interrupted.
    Recover {
        /// The attempt.
        epoch: u64,
        /// The iteration of the page frames on these channels.
        iteration: u32,
    },
    /// A piece of state, sent while the guest is paused.
    State(Section),
    /// Everything was sent: pages up to this iteration on the page channels, and so many sections.
    Finish {
        /// The last iteration.
        iteration: u32,
        /// Sections sent.
        sections: u32,
    },
    /// All hashes were sent on the page channels.
    HashesSent {
        /// Pages hashed.
        pages: u64,
    },
    /// The point of no return: run the guest.
    Commit {
        /// The attempt.
        epoch: u64,
    },
    /// The source gives up; it keeps the guest.
    Abort {
        /// Why, for people.
        reason: String,
    },
    /// Tell me that you live.
    Ping {
        /// Comes back in the pong.
        nonce: u64,
    },
    /// On a resolve channel: what became of the commit of this attempt?
    Resolve {
        /// The attempt.
        epoch: u64,
    },
    /// Everything is done; the channels may close.
    Goodbye,
    /// The guest runs there, and this came here for it; sent from version
    /// [`LATE_INPUT_SINCE`](crate::LATE_INPUT_SINCE) on.
    LateInput(LateInputs),
}

/// From the destination to the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSource {
    /// The guest fits: send pages.
    PreflightOk {
        /// What exporting and importing CPU and device state took here in a rehearsal, in µs.
        rehearsal_us: u64,
        /// Why post-copy is not possible here, if it isn't.
        no_postcopy: Option<String>,
    },
    /// The guest doesn't fit; nothing was changed anywhere.
    PreflightRefused {
        /// Every reason, for people.
        reasons: Vec<String>,
    },
    /// All channels reached this iteration's end.
    IterationDone {
        /// Which.
        iteration: u32,
        /// Pages received in it on all channels.
        pages: u64,
    },
    /// Pages named as missing were dropped and fault from now on.
    Armed {
        /// Pages named since the migration began.
        pages: u64,
    },
    /// Somebody waits for these pages.
    PageRequest {
        /// The attempt.
        epoch: u64,
        /// At most [`MAX_OUTSTANDING`] pages.
        pages: Vec<PageRun>,
    },
    /// A part of what the destination holds, answering [`ToDestination::Recover`].
    Received(PageSetPiece),
    /// All parts were sent.
    ReceivedSent {
        /// Pages named in them.
        pages: u64,
    },
    /// Post-copy: nothing is missing any more.
    AllPagesReceived {
        /// Pages placed since the switch, counted as they were placed.
        pages: u64,
    },
    /// RAM is complete, or known to be missing, and state restored: commit, and the guest runs.
    Ready {
        /// What restoring took, in µs.
        import_us: u64,
        /// Distinct pages received.
        received: u64,
    },
    /// What comparing hashes found.
    Verified {
        /// Pages compared.
        pages: u64,
        /// Pages that differ.
        mismatches: u64,
        /// The first of them, for people.
        detail: String,
    },
    /// The guest runs here.
    Running {
        /// The attempt.
        epoch: u64,
        /// From the commit's arrival until the first KVM_RUN, in µs.
        resume_us: u64,
    },
    /// The commit came but the guest never ran here and now never will.
    CommitRefused {
        /// The attempt.
        epoch: u64,
        /// Why, for people.
        reason: String,
    },
    /// What the destination saw of the whole migration, after the guest runs.
    Summary {
        /// Bytes received on all channels.
        wire_received: u64,
        /// The longest gap the workload guest saw since the migration began, in µs.
        guest_gap_us: Option<u64>,
    },
    /// The destination gives up before any commit.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// Answer to a ping.
    Pong {
        /// The ping's.
        nonce: u64,
    },
    /// Answer on a resolve channel.
    Outcome(CommitOutcome),
    /// Before the summary, of a guest with a network; sent from version [`FIRST_PACKET_SINCE`] on.
    FirstPacket {
        /// From the first KVM_RUN until the first frame that the guest sent or got, in µs.
        us: u64,
    },
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommitOutcome {
    /// The destination recorded it: the guest runs there, or did.
    Committed,
    /// It never arrived, and the destination will refuse it from now on.
    NeverRan,
    /// It was post-copy, and no page is missing there any more.
    Complete {
        /// Pages placed since the switch.
        pages: u64,
    },
}

/// Encodes a message.
///
/// # Panics
/// Never for the message types of this crate: they have no value that postcard can't write.
#[must_use]
pub fn encode_message<M: Serialize>(message: &M) -> Vec<u8> {
    postcard::to_stdvec(message).expect("wire messages are plain data")
}

/// Decodes a message that fills `bytes` exactly.
///
/// # Errors
/// [`WireError`] when the bytes are too many, do not decode, or some are left over.
pub fn decode_message<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, WireError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(WireError::TooLarge {
            what: "control message",
            got: bytes.len() as u64,
            limit: MAX_MESSAGE as u64,
        });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(WireError::Malformed {
            what: "control message",
            reason: format!("{} bytes are left over", rest.len()),
        }),
        Err(error) => Err(WireError::Malformed { what: "control message", reason: error.to_string() }),
    }
}

/// Cuts a text to [`MAX_TEXT`] bytes at a character, for sending.
#[must_use]
pub fn bounded_text(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use migrated_pages::RamBlock;
    use proptest::prelude::*;

    #[test]
    fn messages_survive_and_left_over_bytes_do_not() {
        let block = RamBlock { name: "ram0".into(), guest_base: 0, pages: 16 };
        let message = ToDestination::Preflight {
            identity: GuestIdentity {
                layout: RamLayout::new(vec![block]).unwrap(),
                sections: vec![SectionName { kind: "vcpu".into(), instance: 0, version: 1 }],
                cpu: Bytes::from_static(b"cpu"),
            },
            epoch: 3,
            channels: 2,
            verify: VerifyWhen::After,
            postcopy: PostcopyUse::Allowed,
            guest_clock: Some(9),
            reconnect_window_ms: 30_000,
        };
        let mut bytes = encode_message(&message);
        assert_eq!(decode_message::<ToDestination>(&bytes).unwrap(), message);
        bytes.push(0);
        assert!(matches!(decode_message::<ToDestination>(&bytes), Err(WireError::Malformed { .. })));
        bytes.truncate(bytes.len() - 3);
        assert!(matches!(decode_message::<ToDestination>(&bytes), Err(WireError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = decode_message::<ToDestination>(&bytes) {
                prop_assert_eq!(decode_message::<ToDestination>(&encode_message(&message)).unwrap(), message);
            }
            if let Ok(message) = decode_message::<ToSource>(&bytes) {
                prop_assert_eq!(decode_message::<ToSource>(&encode_message(&message)).unwrap(), message);
            }
        }
    }

    #[test]
    fn texts_are_cut_at_a_character() {
        assert_eq!(bounded_text("short"), "short");
        let cut = bounded_text(&"ü".repeat(MAX_TEXT));
        assert!(cut.len() <= MAX_TEXT && cut.chars().all(|c| c == 'ü'));
    }
}
