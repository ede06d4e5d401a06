//! The engine's throttle, as the guest knows it.

use migrated_engine::source::SourceEvent;
use migrated_engine::{ThrottleCounts, ThrottleOrder, WriteAttribution as InRecord};
use migrated_guest::{Guest, Throttle, WriteAttribution};

/// Holds the guest back, or no longer. Only a failure is answered.
pub(super) fn set<G: Guest>(guest: &mut G, order: Option<ThrottleOrder>) -> Option<SourceEvent> {
    let throttle = order.map(|order| Throttle {
        pages_per_second: order.pages_per_second as f64,
        max_slowdown: f64::from(order.max_slowdown_percent) / 100.0,
    });
    let failed = guest.throttle(throttle).err()?;
    Some(SourceEvent::ThrottleFailed(failed.to_string()))
}

/// What it did so far, if the guest can be throttled.
pub(super) fn read<G: Guest>(guest: &G) -> Option<SourceEvent> {
    let throttled = guest.throttled()?;
    Some(SourceEvent::Throttled(ThrottleCounts {
        attribution: match throttled.attribution {
            WriteAttribution::FaultCounters => InRecord::FaultCounters,
            WriteAttribution::RunTime => InRecord::RunTime,
        },
        vcpus: throttled.vcpus.iter().map(|vcpu| (vcpu.slept, vcpu.pages)).collect(),
    }))
}
