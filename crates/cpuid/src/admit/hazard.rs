//! Hazards: bits that tell a guest what it must do or can't rely on.
//!
//! A guest that believes in a hazard which is not there is slower; one that does not believe in a hazard
//! which is there computes or leaks what it should not. So they flow the other way round: a guest may come only to hosts
//! whose hazards it was told of, unless the host says that it is not vulnerable.

use super::{Cause, Mismatch, Warning};
use crate::feature::named;
use crate::{CpuTable, Feature, HostCpu, Kind};

/// Hazards that say "this buffer must be cleared, and can be", with the immunities that make it
/// needless, all of them together. (Linux: Documentation/admin-guide/hw-vuln.)
const CLEARING: [(&str, &[&str]); 4] = [
    ("md_clear", &["mds_no"]),
    ("fb_clear", &["mds_no", "taa_no", "sbdr_ssdp_no", "fbsdp_no", "psdp_no"]),
    ("rfds_clear", &["rfds_no"]),
    ("verw_clear", &["tsa_sq_no", "tsa_l1_no"]),
];

fn is_immune(table: &CpuTable, hazard: Feature) -> bool {
    let Some((_, immunities)) = CLEARING.iter().find(|(name, _)| *name == hazard.name()) else {
        return false;
    };
    // TAA is about transactions, and nobody is vulnerable to it without them.
    let is_immune = |name: &&str| table.has(named(name)) || *name == "taa_no" && !table.has(named("rtm"));
    immunities.iter().all(is_immune)
}

/// Hazards of the host that the guest was not told of.
pub(super) fn untold(guest: &CpuTable, host: &HostCpu, found: &mut Vec<Mismatch>) {
    let untold = host.kvm.features() - guest.features();
    let untold =
        untold.iter().filter(|feature| feature.kind() == Kind::Or && !is_immune(&host.kvm, *feature));
    // Where the guest can't read the hazard's MSR it assumes the worst by itself.
    let untold = untold.filter(|hazard| hazard.needs().is_subset(&guest.features()));
    let rsba = named("rsba");
    let as_rsba = guest.relies_on_rsb() && host.kvm.has(named("rrsba")) && !guest.has(rsba);
    let untold: std::collections::BTreeSet<_> = untold.chain(as_rsba.then_some(rsba)).collect();
    let vendor = host.vendor();
    found.extend(
        untold
            .into_iter()
            .map(|hazard| Mismatch::feature(hazard, false, Cause::HazardOnDestination, &vendor)),
    );
}

/// What is worse for the guest on this host, without being wrong.
pub(super) fn warnings(guest: &CpuTable, host: &HostCpu) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let (has, gives) = (guest.features(), host.kvm.features());
    for (name, _) in CLEARING {
        let hazard = named(name);
        if has.contains(hazard) && !gives.contains(hazard) && !is_immune(&host.kvm, hazard) {
            warnings.push(Warning {
                field: name.into(),
                detail: format!(
                    "the guest clears CPU buffers with VERW, which this host's microcode does not support ({name}); \
                     update the host's microcode"
                ),
            });
        }
    }
    let (ours, theirs) = (guest.physical_address_bits(), host.kvm.physical_address_bits());
    if ours < theirs {
        warnings.push(Warning {
            field: "physical_address_bits".into(),
            detail: format!(
                "the guest has {ours}-bit physical addresses and the host {theirs}: page table entries with higher bits set \
                 do not fault there (kvm_intel: allow_smaller_maxphyaddr)"
            ),
        });
    }
    warnings
}
