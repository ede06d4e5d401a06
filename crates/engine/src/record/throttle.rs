use serde::{Deserialize, Serialize};

/// How the guest was slowed so that pre-copy could keep up with it, and what it lost by that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Throttled {
    /// How it is known which vCPU wrote how many pages.
    pub attribution: WriteAttribution,
    /// When it began, since the request, in ms.
    pub began_ms: f64,
    /// When it ended, since the request, in ms; `None` while it goes on.
    pub released_ms: Option<f64>,
    /// Pages a second that all vCPUs together might write, as last set.
    pub budget_pps: f64,
    /// Share of its time that the most throttled vCPU slept in the round that ended last, in percent; 0 once
    /// nothing is held back.
    pub percent: f64,
    /// The largest such share of all rounds.
    pub max_percent: f64,
    /// Time that vCPUs slept, all together, in ms.
    pub lost_ms: f64,
    /// Each vCPU.
    pub vcpus: Vec<ThrottledVcpu>,
}

/// What throttling did to a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ThrottledVcpu {
    /// How long it slept, in ms.
    pub slept_ms: f64,
    /// Share that this is of the time that throttling was on, in percent.
    pub percent: f64,
    /// Pages that it wrote since dirty tracking began, each time counted, as far as they were harvested.
    pub pages: u64,
}

/// How it is known which vCPU wrote how many pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum WriteAttribution {
    /// By each vCPU's page faults: with write protection the first write to a page is one.
    #[default]
    FaultCounters,
    /// By each vCPU's CPU time, where the CPU notes dirty pages without faults. Vcpus that only read can't be told
    /// from those that write then.
    RunTime,
}
