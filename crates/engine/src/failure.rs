use serde::{Deserialize, Serialize};

use crate::{MigrationState, RecordError};

/// Why a migration did not complete, as a stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The destination could not be reached or refused the channels.
    PeerUnreachable,
    /// The guest does not fit the destination.
    PreflightRefused,
    /// A channel broke.
    LinkLost,
    /// The peer said nothing for too long.
    PeerDead,
    /// A phase took longer than it may.
    PhaseTimeout,
    /// The destination gave up.
    DestinationFailed,
    /// The source gave up (as the destination sees it).
    SourceFailed,
    /// The peer broke the protocol.
    Protocol,
    /// An operation on the guest failed.
    GuestFailed,
    /// Pre-copy did not converge within its limits.
    NotConverged,
    /// The guest had to switch before its pages, and the link was not fit for that.
    LinkUnfit,
    /// Memory differs between the hosts.
    VerificationFailed,
    /// The destination took the commit but could not run the guest, and never will.
    CommitRefused,
    /// The commit could not be recorded.
    EpochNotRecorded,
    /// Somebody cancelled it.
    Cancelled,
}

impl FailureCode {
    /// The code as API and metrics show it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PeerUnreachable => "peer_unreachable",
            Self::PreflightRefused => "preflight_refused",
            Self::LinkLost => "link_lost",
            Self::PeerDead => "peer_dead",
            Self::PhaseTimeout => "phase_timeout",
            Self::DestinationFailed => "destination_failed",
            Self::SourceFailed => "source_failed",
            Self::Protocol => "protocol",
            Self::GuestFailed => "guest_failed",
            Self::NotConverged => "not_converged",
            Self::LinkUnfit => "link_unfit",
            Self::VerificationFailed => "verification_failed",
            Self::CommitRefused => "commit_refused",
            Self::EpochNotRecorded => "epoch_not_recorded",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a migration did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Stable code.
    pub code: FailureCode,
    /// For people: what happened, with the peer and the last progress.
    pub message: String,
    /// The state it happened in.
    pub phase: MigrationState,
}

impl Failure {
    /// The state this failure ends a migration in.
    #[must_use]
    pub fn final_state(&self) -> MigrationState {
        match self.code {
            FailureCode::Cancelled => MigrationState::Cancelled,
            _ => MigrationState::Failed,
        }
    }
}

impl From<&Failure> for RecordError {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.as_str().to_owned(),
            message: failure.message.clone(),
            phase: Some(failure.phase),
            details: None,
        }
    }
}
