//! Features that a host had once and has no more: a microcode or kernel update took them, and guests that have
//! them can't come here again. What the CPU offered last is kept in the state directory.

use std::time::SystemTime;

use migrated_cpuid::{CpuDump, FeatureSet, HostCpu, LostFeature};

use super::store::Store;
use super::vm::unix_ms;

/// Notes what the host has lost since a daemon last looked, and keeps what it has now.
pub fn follow(host: &mut HostCpu, store: &Store) {
    match store.read_host_cpu() {
        Ok(None) => {}
        Ok(Some(before)) => match HostCpu::try_from(before) {
            Ok(before) => host.lost = lost(&before, host, unix_ms(SystemTime::now())),
            Err(e) => tracing::warn!("what this host's CPU offered before can't be understood: {e}"),
        },
        Err(e) => tracing::warn!("what this host's CPU offered before can't be read: {e}"),
    }
    for LostFeature { feature, microcode_then, microcode_now, .. } in &host.lost {
        tracing::warn!(
            %feature,
            microcode_then = revision(*microcode_then),
            microcode_now = revision(*microcode_now),
            "this host's CPU has lost a feature: guests that have it can't come here"
        );
    }
    if let Err(e) = store.write_host_cpu(&CpuDump::of(host)) {
        tracing::warn!("can't keep what this host's CPU offers: {e}; a loss will not be noticed");
    }
}

fn revision(microcode: Option<u64>) -> String {
    microcode.map_or("unknown".into(), |revision| format!("{revision:#x}"))
}

/// What was there before and is not now; what was lost then stays lost until it is there again.
fn lost(before: &HostCpu, now: &HostCpu, unix_ms: u64) -> Vec<LostFeature> {
    let offered = by_nature(now);
    let still = before.lost.iter().filter(|lost| !offered.contains(lost.feature)).cloned();
    let newly = (by_nature(before) - offered).iter().map(|feature| LostFeature {
        feature,
        microcode_then: before.identity.microcode,
        microcode_now: now.identity.microcode,
        noticed_unix_ms: unix_ms,
    });
    still.chain(newly).collect()
}

/// What a host offers when nothing is hidden: hiding is no loss.
fn by_nature(host: &HostCpu) -> FeatureSet {
    HostCpu { hidden: FeatureSet::EMPTY, ..host.clone() }.offered()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::cpus;

    #[test]
    fn a_feature_is_lost_until_it_comes_back() {
        let [avx2, sse4_2] = ["avx2", "sse4_2"].map(|name| migrated_cpuid::Feature::named(name).unwrap());
        let healthy = cpus::host("intel-haswell");
        let mut without = healthy.clone();
        without.kvm.clear([avx2].into_iter().collect());
        without.identity.microcode = Some(0x99);
        let first = lost(&healthy, &without, 7);
        let expected = LostFeature {
            feature: avx2,
            microcode_then: healthy.identity.microcode,
            microcode_now: Some(0x99),
            noticed_unix_ms: 7,
        };
        assert_eq!(first, [expected]);

        without.lost = first.clone();
        assert_eq!(lost(&without, &without, 8), first);
        let mut less = without.clone();
        less.kvm.clear([sse4_2].into_iter().collect());
        let both: Vec<_> = lost(&without, &less, 9).iter().map(|lost| lost.feature).collect();
        assert_eq!(both, [avx2, sse4_2]);
        assert_eq!(lost(&without, &healthy, 9), []);
    }

    #[test]
    fn what_is_hidden_is_not_lost() {
        let host = cpus::host("intel-haswell");
        let hidden = migrated_cpuid::Feature::named("avx2").into_iter().collect();
        assert_eq!(lost(&host, &HostCpu { hidden, ..host.clone() }, 1), []);
        assert_eq!(lost(&HostCpu { hidden, ..host.clone() }, &host, 1), []);
    }
}
