use migrated_guest::{GuestError, PostcopyRam};
use parking_lot::Mutex;

/// Frees a thread that restores state and waits for a page, when the link that would bring the page has ended.
/// Before the commit that is the end of the incoming guest; without this the thread, which is the session's
/// own, would never learn of it.
#[derive(Default)]
pub(super) struct Restoring {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Which link it is, and whether it has ended.
    link: u64,
    link_ended: bool,
    /// The RAM that state is being restored in.
    ram: Option<PostcopyRam>,
}

impl Restoring {
    /// There is a new link. State is not restored before pages have flowed on it.
    pub(super) fn new_link(&self, link: u64) {
        let mut state = self.state.lock();
        (state.link, state.link_ended) = (link, false);
    }

    /// Says that a channel of that link has ended, behind all that the source said on it.
    pub(super) fn link_ended(&self, link: u64) {
        let mut state = self.state.lock();
        if state.link != link {
            return;
        }
        state.link_ended = true;
        if let Some(ram) = &state.ram
            && let Err(error) = ram.abandon()
        {
            tracing::error!("a thread that restores state waits for what will not come: {error}");
        }
    }

    /// Restores state in RAM that may have to be waited for.
    pub(super) fn run(
        &self,
        ram: PostcopyRam,
        restore: impl FnOnce() -> Result<(), GuestError>,
    ) -> Result<(), String> {
        let lost = || Err("the link was lost before the state was restored".to_owned());
        {
            let mut state = self.state.lock();
            if state.link_ended {
                return lost();
            }
            state.ram = Some(ram);
        }
        let restored = restore();
        let mut state = self.state.lock();
        state.ram = None;
        // What was restored then may come from stale memory.
        if state.link_ended { lost() } else { restored.map_err(|error| error.to_string()) }
    }
}
