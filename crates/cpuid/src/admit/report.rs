use serde::{Deserialize, Serialize};

use super::{Admission, Cause, GuestCpu, Mismatch, Warning, admit, compare, msr};
use crate::baseline::hazards;
use crate::pool::name_of;
use crate::{Baseline, CpuTable, Feature, HostCpu, Vendor};

/// The whole answer to "can this guest run on that host, and if not, why not".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuReport {
    /// Whether it can.
    pub admitted: bool,
    /// Every reason why not.
    pub mismatches: Vec<Mismatch>,
    /// What does not keep it away and its owner may want to know.
    pub warnings: Vec<Warning>,
    /// The baseline that the guest was made from, or is asked for.
    pub made_from: String,
    /// The highest named baseline within what the guest has.
    pub guest_baseline: Option<String>,
    /// The highest named baseline that the host offers.
    pub host_baseline: Option<String>,
    /// The highest named baseline that both have: what the guest should be made from to run on either.
    pub common_baseline: Option<String>,
    /// What a person would do next.
    pub fix: Vec<String>,
}

impl CpuReport {
    /// Of a guest that wants to come to a host.
    #[must_use]
    pub fn of(guest: &GuestCpu, host: &HostCpu) -> Self {
        let mut report = Self::new(&guest.table, &guest.baseline, host, admit(guest, host));
        report.fix = report.fixes("power-cycle the guest with");
        report
    }

    fn new(guest: &CpuTable, made_from: &str, host: &HostCpu, admission: Admission) -> Self {
        let vendor = Vendor::of(&guest.cpuid.vendor());
        let (has, offers) = (guest.features() - hazards(), host.offered());
        let name = |features| vendor.and_then(|vendor| name_of(vendor, features));
        let same_vendor = guest.cpuid.vendor() == host.vendor();
        Self {
            admitted: admission.is_admitted(),
            made_from: made_from.to_owned(),
            guest_baseline: name(has),
            host_baseline: crate::best_name(host),
            common_baseline: same_vendor.then(|| name((has & offers).closed())).flatten(),
            mismatches: admission.mismatches,
            warnings: admission.warnings,
            fix: Vec::new(),
        }
    }

    /// Each thing to do once, in the order of the mismatches; first what solves all of them.
    fn fixes(&self, make: &str) -> Vec<String> {
        let mut fixes = Vec::new();
        let by_baseline = self
            .mismatches
            .iter()
            .all(|mismatch| !matches!(mismatch.cause, Cause::VendorDiffers) && mismatch.field != "tsc_khz");
        if let (false, true, Some(common)) = (self.admitted, by_baseline, &self.common_baseline) {
            fixes.push(format!("{make} `--cpu-baseline {common}`, which both sides have"));
        }
        for mismatch in &self.mismatches {
            let advice = mismatch.advice().to_owned();
            if !fixes.contains(&advice) {
                fixes.push(advice);
            }
        }
        fixes
    }
}

impl GuestCpu {
    /// The highest named baseline within what the guest has.
    #[must_use]
    pub fn best_name(&self) -> Option<String> {
        name_of(Vendor::of(&self.table.cpuid.vendor())?, self.table.features() - hazards())
    }
}

impl HostCpu {
    /// The CPU of a new guest of that baseline on this host.
    ///
    /// # Errors
    /// What this host can't give of it.
    pub fn grant(&self, baseline: &Baseline) -> Result<GuestCpu, Box<CpuReport>> {
        let table = baseline.table(self);
        let mut admission = compare(&table, self);
        let kept: Vec<_> = admission.mismatches.iter().map(|mismatch| mismatch.field.clone()).collect();
        let hidden = (table.features() - hazards()) & self.kept_back();
        let hidden = hidden.iter().filter(|feature| !kept.iter().any(|field| field == feature.name()));
        let vendor = self.vendor();
        let masked = hidden.map(|feature| Mismatch::feature(feature, true, Cause::MaskedByPolicy, &vendor));
        admission.mismatches.extend(masked);
        if !admission.is_admitted() {
            let mut report = CpuReport::new(&table, &baseline.name, self, admission);
            report.fix = report.fixes("make the guest with");
            return Err(Box::new(report));
        }
        Ok(GuestCpu {
            baseline: baseline.name.clone(),
            unmasked: Default::default(),
            tsc_khz: self.tsc_khz,
            saved_msrs: msr::saved_here(&table, self),
            table,
        })
    }

    /// What KVM would give and this host does not offer: hidden by its owner, or by this software.
    fn kept_back(&self) -> crate::FeatureSet {
        let withheld = Feature::all().filter(|feature| feature.withheld().is_some());
        self.hidden | withheld.collect()
    }
}
