use std::net::SocketAddr;

use migrated_engine::MigrationRecord;
use migrated_wire::MigrationId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    ConsoleChunk, GuestDescription, GuestSample, MigratePlan, OtherAddress, PendingResolution, Status,
    VmState, text,
};

/// Version of the messages. A daemon and a VM process of different versions tell each other so and
/// nothing else; the guest runs on.
pub const CONTROL_VERSION: u32 = 5;

/// The first message of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlHello {
    /// The sender's [`CONTROL_VERSION`].
    pub version: u32,
}

/// From the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToVm {
    /// Opens the connection.
    Hello(ControlHello),
    /// Asks for something. Several may be in flight; each is answered once, in any order.
    Request {
        /// Names the request in its answer.
        id: u64,
        /// What is asked.
        request: Request,
    },
}

/// From the VM process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVm {
    /// Opens the connection.
    Hello(ControlHello),
    /// Answers a request.
    Response {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Response, ControlError>,
    },
    /// Something happened. Sent to every connection.
    Event(Event),
}

/// What a daemon asks of a VM process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered with [`Response::Ready`] once the VM is made and boots or listens, or with why it can't.
    AwaitReady,
    /// Answered with [`Response::Status`].
    Status,
    /// Answered with [`Response::Description`].
    Describe,
    /// Answered with [`Response::Sample`] after watching the guest for so long. A migration that begins meanwhile
    /// ends the watching at once, and the answer is why there is none.
    SampleDirty {
        /// How long dirty pages are tracked, in ms: [`GuestSample::TIME_MS`].
        sample_ms: u32,
    },
    /// Stop all vCPUs.
    Pause,
    /// Run all vCPUs.
    Resume,
    /// Press the guest's power button. Answered when it is pressed, whatever the guest makes of it.
    PressPowerButton,
    /// Ask the guest to give up RAM. Answered when it is asked; [`Status::balloon`] says how far it is.
    SetBalloon {
        /// How much in all, in bytes.
        bytes: u64,
    },
    /// Destroy the guest and exit.
    Shutdown,
    /// Answered with [`Response::Console`].
    ConsoleRead {
        /// Offset of the first byte wanted.
        from: u64,
        /// Most bytes wanted; at most [`ConsoleChunk::MAX`] are sent.
        max: u32,
        /// How long to wait for the first byte, in ms.
        wait_ms: u32,
    },
    /// Bytes for the guest's serial input. Wait for the answer before sending more: requests may overtake.
    ConsoleInput {
        /// At most [`ConsoleChunk::MAX`] bytes, which are taken together or not at all.
        bytes: Vec<u8>,
    },
    /// Send the guest away. Answered when it has begun; the rest are [`Event::MigrationRecord`]s.
    Migrate(Box<MigratePlan>),
    /// Give a migration up, unless it is committed. Answered when that is settled or under way.
    CancelMigration {
        /// Which one.
        #[serde(with = "text::migration_id")]
        migration: MigrationId,
    },
    /// Asked at the source: try now to reach the destination of a guest whose pages follow it. Answered when that
    /// is under way.
    RecoverMigration {
        /// Which one.
        #[serde(with = "text::migration_id")]
        migration: MigrationId,
        /// Where the destination is reached from now on; `None` leaves it as it is.
        via: Option<OtherAddress>,
    },
    /// Answered with [`Response::Record`].
    MigrationRecord {
        /// Of which migration.
        #[serde(with = "text::migration_id")]
        migration: MigrationId,
    },
    /// Asked at the destination: did it commit? Answered with [`Response::Resolution`]; the answer
    /// [`Resolution::NeverRan`] binds it never to run that epoch.
    Resolve {
        /// Which migration.
        #[serde(with = "text::migration_id")]
        migration: MigrationId,
        /// Which epoch.
        epoch: u64,
    },
    /// Brought to the source: what the destination answered.
    ResolutionKnown {
        /// Which migration.
        #[serde(with = "text::migration_id")]
        migration: MigrationId,
        /// Which epoch.
        epoch: u64,
        /// The answer.
        answer: Resolution,
    },
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Resolution {
    /// The destination recorded it: the guest runs, or ran, there. The source never resumes.
    Committed,
    /// The guest runs there and lacks pages that only the source has, which keeps its RAM.
    Incomplete,
    /// The guest runs, or ran, there and lacked nothing any more: the source may free its RAM, if the count is its own.
    Complete {
        /// Pages placed since the switch.
        pages: u64,
    },
    /// The guest ran there and its process ended before all of its memory had come: no whole copy is left, and the
    /// source's, which is that of an earlier moment, never runs.
    Lost,
    /// The destination never ran the guest and now never will: the source resumes.
    NeverRan,
    /// The destination knows nothing of the migration; the source must not resume on that.
    Unknown,
}

/// What a VM process answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It is done (or begun, where the request says so).
    Done,
    /// The VM is made.
    Ready {
        /// Where it listens for a guest; none when it boots.
        endpoints: Vec<SocketAddr>,
    },
    /// How the VM is.
    Status(Box<Status>),
    /// What the guest needs of a host.
    Description(Box<GuestDescription>),
    /// What the guest was seen to write.
    Sample(Box<GuestSample>),
    /// Console output.
    Console(ConsoleChunk),
    /// A migration, as far as it got.
    Record(Box<MigrationRecord>),
    /// What became of a commit.
    Resolution(Resolution),
}

/// What a VM process tells without being asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The VM does something else now.
    VmState {
        /// What.
        state: VmState,
        /// Why, where the state alone doesn't say.
        reason: Option<String>,
    },
    /// A migration went on: sent at every change of its state, and about five times a second.
    MigrationRecord(Box<MigrationRecord>),
    /// A commit's fate is unknown: ask the peer's daemon, bring [`Request::ResolutionKnown`].
    NeedsResolution(PendingResolution),
    /// The process is about to exit.
    Exiting {
        /// Why.
        reason: String,
    },
}

/// Whose fault an error is, and so which HTTP status it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request can't be met as it is: a kernel file missing, a plan without endpoints.
    InvalidInput,
    /// Not in the present state.
    Conflict,
    /// The host lacks something at the moment: memory, /dev/kvm.
    Unavailable,
    /// Ours.
    Internal,
}

/// Why a VM process can't do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{message}")]
pub struct ControlError {
    /// Whose fault.
    pub kind: ErrorKind,
    /// Stable and machine-readable, e.g. `kernel_not_elf`.
    pub code: String,
    /// For people: what happened and what to do next.
    pub message: String,
}

impl ControlError {
    /// An error of those parts.
    pub fn new(kind: ErrorKind, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, code: code.into(), message: message.into() }
    }
}
