use migrated_pages::PageSet;

use super::State;
use super::common::Common;
use super::postcopy_setup::PostcopySetup;
use super::precopy::Precopy;
use crate::record::MigrationState;

/// What a source was doing with a guest that runs here when its link was lost, and goes on with on a new one.
pub(super) enum Interrupted {
    /// Sending a round.
    Round(Box<Precopy>),
    /// Telling the destination what it will lack when the guest switches.
    Setup(Box<PostcopySetup>),
}

impl Interrupted {
    /// The iteration of the frames that come next on a new link.
    pub(super) const fn next_iteration(&self) -> u32 {
        match self {
            Self::Round(precopy) => precopy.iteration() + 1,
            Self::Setup(setup) => setup.iteration(),
        }
    }

    /// The state that was interrupted.
    pub(super) const fn phase(&self) -> MigrationState {
        match self {
            Self::Round(_) => MigrationState::Precopy,
            Self::Setup(_) => MigrationState::PostcopySetup,
        }
    }

    /// Pages that are still to be sent, as far as is known.
    pub(super) fn remaining(&self) -> u64 {
        match self {
            Self::Round(precopy) => precopy.remaining(),
            Self::Setup(setup) => setup.missing(),
        }
    }

    /// Notes in the record how far it got.
    pub(super) fn note(&self, common: &mut Common) {
        if let Self::Round(precopy) = self {
            precopy.note_interrupted(common);
        }
    }

    /// Goes on, on a new link, now that the destination has said what it has of an interrupted round. An error is a
    /// breach of the protocol.
    pub(super) fn resume(self, common: &mut Common, received: &PageSet) -> Result<State, String> {
        match self {
            Self::Round(mut precopy) => {
                let interrupted = precopy.iteration();
                let left = precopy.resume(common, received)?;
                let pages = received.len();
                let what = format!("{pages} pages of iteration {interrupted} are at the destination");
                common.note_reconnect(left, &format!("{what}, {left} are left of it"));
                common.enter(MigrationState::Precopy);
                Ok(State::Precopy(precopy))
            }
            Self::Setup(setup) => {
                let left = setup.missing();
                common.note_reconnect(left, "the destination is told anew what it will lack");
                Ok(setup.begin_again(common))
            }
        }
    }
}
