use migrated_wire::LateInput;
use serde::{Deserialize, Serialize};

/// Most frames of one migration: a few times what a TAP queues.
const MAX_FRAMES: u64 = 4096;
/// Most bytes of all frames of one migration.
const MAX_BYTES: u64 = 4 << 20;

/// Frames for the guest that came to the source after it was paused there, and that the source handed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LateFrames {
    /// Frames that the source sent; at the destination, that were given to the guest's devices.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that this end dropped: they were too many or too long, or there was no link.
    pub dropped: u64,
}

impl LateFrames {
    /// Whether this migration may carry one more.
    pub(crate) const fn has_room_for(&self, input: &LateInput) -> bool {
        self.frames < MAX_FRAMES && self.bytes + input.data.len() as u64 <= MAX_BYTES
    }

    /// Counts a frame, carried or dropped.
    pub(crate) const fn count(&mut self, input: &LateInput, carried: bool) {
        if carried {
            self.frames += 1;
            self.bytes += input.data.len() as u64;
        } else {
            self.dropped += 1;
        }
    }
}
