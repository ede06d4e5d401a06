use std::fmt;

use serde::{Deserialize, Serialize};

/// Names one piece of a guest's state: what it is of, which one, and in which layout.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SectionId {
    /// What the state is of, e.g. `vcpu`, `serial`, `irqchip`.
    pub kind: String,
    /// Which of several, e.g. the vCPU's index.
    pub instance: u32,
    /// Version of the section's layout; a version the destination doesn't know is refused.
    pub version: u32,
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} v{}", self.kind, self.instance, self.version)
    }
}

/// One piece of a guest's device or CPU state. An unknown or left-over section is an error at the
/// destination: silence about state is how guests break an hour later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSection {
    /// What the bytes are.
    pub id: SectionId,
    /// The state, in the encoding that `id` fixes.
    pub data: Vec<u8>,
}
