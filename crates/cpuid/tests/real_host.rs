//! The CPU that this runs on, as KVM gives it.

use kvm_ioctls::Kvm;
use migrated_cpuid::{Baseline, CpuDump, CpuReport, HostCpu, best_name};
use migrated_testkit::require;

#[test]
fn this_host_gives_what_it_says_that_it_offers() {
    require!(Kvm);
    let host = HostCpu::read(&Kvm::new().unwrap(), "here").unwrap();
    assert!(host.hardware.as_ref().is_some_and(|table| table.vendor() == host.vendor()));
    assert!(host.tsc_khz > 0 && host.msr_indices.as_ref().is_some_and(|listed| !listed.is_empty()));
    assert!(best_name(&host).is_some(), "a 64-bit CPU has the lowest level at least: {}", host.offered());
    let guest = host.grant(&Baseline::of_host(&host)).unwrap();
    let report = CpuReport::of(&guest, &host);
    assert!(report.admitted, "{:?}", report.mismatches);
    let text = serde_json::to_string(&CpuDump::of(&host)).unwrap();
    assert_eq!(HostCpu::try_from(CpuDump::parse(&text).unwrap()).unwrap(), host);
}
