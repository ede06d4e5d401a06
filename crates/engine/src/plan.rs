use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::predict::{
    Choice, KICKS, Model, PATIENCE, RATE_GUESS, ROUND_TRIPS, WriteFit, WriteSample, choose,
};
use crate::{Limits, Mode, Prediction};

/// What a guest is taken to write in a migration, relative to a short sample before it: the middle of 2 to 3,
/// this project's estimate, not a published figure. A guest that was sampled while it was tracked is
/// taken as it is.
pub const TRACKING_FACTOR: f64 = 2.5;

/// What a guest was seen to write.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DirtySample {
    /// How long it was watched.
    pub window: Duration,
    /// Distinct pages it wrote meanwhile.
    pub pages: u64,
    /// Whether dirty tracking was on as it is in a migration.
    pub tracked: bool,
}

/// What is known of a migration that nobody has asked for yet.
#[derive(Clone, Debug, Default)]
pub struct PlanInputs {
    /// Pages of guest RAM.
    pub ram_pages: u64,
    /// Of these, pages that are not all zero, if they were counted.
    pub nonzero_pages: Option<u64>,
    /// Payload bits a second that the link carries, measured or given.
    pub link_bps: Option<u64>,
    /// Round trip time to the destination.
    pub rtt: Duration,
    /// What connections and preflight will take.
    pub setup: Duration,
    /// What saving and restoring the state will take, as far as it was rehearsed.
    pub state: Duration,
    /// Bytes of CPU and device state.
    pub state_bytes: u64,
    /// What a harvest of dirty pages takes.
    pub harvest: Duration,
    /// What the guest writes, if it was watched: windows that follow each other, the latest last.
    pub writes: Vec<DirtySample>,
    /// Why the destination can't take a guest whose pages follow it, if it can't.
    pub no_postcopy: Option<String>,
    /// What the migration may cost.
    pub limits: Limits,
}

/// What a migration would cost by each mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// The mode that `auto` is expected to end up with.
    pub recommended: Mode,
    /// Why.
    pub reason: String,
    /// What may be lost by it that would not be lost without a migration, if anything.
    pub risk: Option<String>,
    /// What each mode costs. Post-copy and hybrid from the beginning: nothing, or all of RAM once, is sent before
    /// the guest switches.
    pub prediction: Prediction,
}

/// Says what a migration would cost without moving anything.
#[must_use]
pub fn plan(inputs: &PlanInputs) -> Plan {
    let prediction = model(inputs).predict();
    let can_switch = prediction.postcopy.possible;
    let Choice { rounds, why, .. } = choose(&prediction, &inputs.limits, PATIENCE);
    let (recommended, why) = if rounds {
        (Mode::Precopy, why)
    } else if !can_switch {
        let not = inputs.no_postcopy.as_deref().unwrap_or("it is not allowed");
        (Mode::Precopy, format!("{why}; post-copy is not possible: {not}"))
    } else if prediction.dirty_rate_pps * migrated_pages::PAGE_SIZE as f64 * 8.0 >= prediction.link_bps {
        (Mode::Postcopy, format!("{why}; the guest writes as fast as the link sends"))
    } else if prediction.postcopy.within_limits && !prediction.hybrid.within_limits {
        (Mode::Postcopy, format!("{why}; with a round before the switch, neither"))
    } else {
        (Mode::Hybrid, format!("{why}; the first one leaves less than it sends"))
    };
    let risk = (recommended != Mode::Precopy).then(|| {
        "until its last page has arrived the guest needs both hosts: if the destination's VM process dies \
         meanwhile, the guest is lost"
            .to_owned()
    });
    let unknown = match (inputs.link_bps.or(inputs.limits.bandwidth_bps), inputs.writes.is_empty()) {
        (Some(_), false) => "",
        (None, false) => "; the link's rate is a guess",
        (Some(_), true) => "; what the guest writes is not known and taken as nothing",
        (None, true) => {
            "; the link's rate is a guess, what the guest writes is not known and taken as nothing"
        }
    };
    let reason = format!("{why}{unknown}");
    Plan { recommended, reason, risk, prediction }
}

fn model(inputs: &PlanInputs) -> Model {
    let mut fit = WriteFit::new(inputs.ram_pages);
    for sample in &inputs.writes {
        let factor = if sample.tracked { 1.0 } else { TRACKING_FACTOR };
        let pages = ((sample.pages as f64 * factor) as u64).min(inputs.ram_pages);
        fit.add(WriteSample { window: sample.window, pages });
    }
    let (writes, confidence) = fit.curve();
    let rate = match (inputs.link_bps, inputs.limits.bandwidth_bps) {
        (Some(bits), _) | (None, Some(bits)) => bits as f64 / 8.0,
        (None, None) => RATE_GUESS,
    };
    let page = migrated_pages::PAGE_SIZE as f64;
    let nonzero = inputs.nonzero_pages.map_or(inputs.ram_pages, |pages| pages.min(inputs.ram_pages));
    let sending = Duration::try_from_secs_f64(inputs.state_bytes as f64 / rate.max(1.0));
    let state = inputs.state.saturating_add(sending.unwrap_or(Duration::MAX / 4));
    Model {
        elapsed: inputs.setup,
        rounds: 0,
        sent_bytes: 0,
        ram_pages: inputs.ram_pages,
        left_bytes: nonzero as f64 * page,
        page_bytes: page,
        rate,
        rtt: inputs.rtt,
        round_overhead: inputs.rtt.saturating_add(inputs.harvest),
        fixed: state
            .saturating_add(inputs.harvest)
            .saturating_add(KICKS)
            .saturating_add(inputs.rtt.saturating_mul(ROUND_TRIPS)),
        writes,
        samples: fit.samples(),
        confidence,
        limits: inputs.limits,
        can_switch: inputs.limits.allow_postcopy && inputs.no_postcopy.is_none(),
    }
}
