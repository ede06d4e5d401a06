use migrated_cpuid::CpuReport;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An RFC 9457 problem document: every error of the API is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:migrated:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The HTTP status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable and machine-readable, e.g. `vm_not_found`.
    pub code: String,
    /// For people: what happened and what to do next.
    pub detail: String,
    /// Every single thing that was wrong, where there may be several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// What of a guest's CPU a host can't give, where that is among what was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuReport>,
}

impl Problem {
    /// Media type of a problem document.
    pub const MEDIA_TYPE: &'static str = "application/problem+json";
}

/// One of several things that were wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// Stable and machine-readable, e.g. `insufficient_memory`.
    pub code: String,
    /// For people: what is wrong and what to do about it.
    pub detail: String,
}
