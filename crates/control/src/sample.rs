use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// What was seen of a guest that was watched for a moment, with dirty tracking on as in a migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestSample {
    /// Pages of guest RAM.
    pub ram_pages: u64,
    /// Of these, pages that were not all zero, about: exact up to 256 MiB.
    pub nonzero_pages: u64,
    /// What it wrote, in windows that followed each other, from short to long.
    pub writes: Vec<WriteWindow>,
    /// What finding the dirty pages took at most, in µs.
    pub harvest_us: f64,
    /// What all of it took, in ms.
    pub took_ms: f64,
}

/// What a guest wrote in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WriteWindow {
    /// How long, in ms.
    pub window_ms: f64,
    /// Distinct pages.
    pub pages: u64,
}

impl WriteWindow {
    /// Distinct pages a second; of two windows the longer one shows less where pages are written again.
    #[must_use]
    pub fn pages_per_second(&self) -> f64 {
        if self.window_ms > 0.0 { self.pages as f64 * 1e3 / self.window_ms } else { 0.0 }
    }
}

impl GuestSample {
    /// How long a guest may be watched, in ms: in less, dirty tracking's own beginning is what is seen, and
    /// tracking costs the guest.
    pub const TIME_MS: RangeInclusive<u32> = 60..=10_000;
    /// How long it is watched when nobody says, in ms.
    pub const DEFAULT_MS: u32 = 600;
}
