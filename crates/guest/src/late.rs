//! What comes from outside for a guest that has left.

/// Something that came from outside for a device of a guest that was paused, and that the guest has not seen: a frame
/// that waited at a network device's TAP, for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LateInput {
    /// Instance of the device, the same at both ends.
    pub device: u32,
    /// The bytes as the device reads them from outside, with the header that it puts before a frame if it has one.
    pub data: Vec<u8>,
}

/// Hands late input to the devices of a guest that runs.
pub trait LateDelivery: Send {
    /// Hands it over, in this order, behind what came before. Returns at once and touches no guest RAM, which may be
    /// missing: the device's own thread does that. What a device can't take is lost, as on any network.
    fn deliver(&mut self, inputs: Vec<LateInput>);
}

/// Throws away what comes: for guests whose devices take nothing from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDelivery;

impl LateDelivery for NoDelivery {
    fn deliver(&mut self, inputs: Vec<LateInput>) {
        tracing::debug!(inputs = inputs.len(), "no device of this guest takes late input: dropped");
    }
}
