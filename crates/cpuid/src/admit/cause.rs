//! Why a host does not have a feature, as far as its CPU lets it be known.

use super::Cause;
use crate::{Class, Feature, HostCpu, Level, Vendor};

/// Transactional memory: microcode took it from all CPUs that had it before 2021, and says so by one of these.
const TSX: [&str; 3] = ["hle", "rtm", "tsxldtrk"];
const TSX_REMOVED: [&str; 2] = ["rtm_always_abort", "tsx_ctrl"];
/// What firmware setups switch off.
const SWITCHED_IN_FIRMWARE: [&str; 4] = ["aes", "nx", "x2apic", "tsc_deadline_timer"];

/// Why `host` does not give `feature`.
pub(super) fn of(feature: Feature, host: &HostCpu) -> Cause {
    let named = |names: &[&str]| names.contains(&feature.name());
    if host.lost.iter().any(|lost| lost.feature == feature && lost.microcode_then != lost.microcode_now) {
        return Cause::RemovedByMicrocode;
    }
    match host.hardware_has(feature) {
        Some(true) => Cause::MaskedByKvm,
        // KVM's own features are KVM's to give.
        _ if feature.class() == Class::Paravirtual => Cause::MaskedByKvm,
        _ if named(&TSX) && TSX_REMOVED.iter().any(|name| shows(host, name)) => Cause::RemovedByMicrocode,
        Some(false) if named(&SWITCHED_IN_FIRMWARE) && generation_has(host, feature) => {
            Cause::DisabledInFirmware
        }
        _ => Cause::HostLacks,
    }
}

fn shows(host: &HostCpu, name: &str) -> bool {
    Feature::named(name)
        .is_some_and(|feature| host.kvm.has(feature) || host.hardware_has(feature) == Some(true))
}

/// Whether CPUs like this one have the feature: those of the highest level that this one has all but it of.
fn generation_has(host: &HostCpu, feature: Feature) -> bool {
    let mut features = host.kvm.features();
    features.insert(feature);
    let vendor = Vendor::of(&host.vendor());
    vendor.is_some() && Level::best(vendor, features).is_some_and(|level| level.core.contains(feature))
}
