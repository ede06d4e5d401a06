//! Dumps of a host's CPU, which come from files and peers, and everything that is concluded from one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migrated_cpuid::{Baseline, CpuDump, CpuReport, HostCpu, PoolBaseline};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(host) = CpuDump::parse(text).and_then(HostCpu::try_from) else { return };
    let written = serde_json::to_string(&CpuDump::of(&host)).expect("a dump can be written");
    let again = CpuDump::parse(&written).and_then(HostCpu::try_from).expect("what was written can be read");
    assert_eq!(again, host);
    if let Ok(guest) = host.grant(&Baseline::of_host(&host)) {
        assert!(CpuReport::of(&guest, &host).admitted, "a host admits its own guests");
    }
    let _ = PoolBaseline::of(&[host.clone(), host]);
});
