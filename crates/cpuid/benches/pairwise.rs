//! How long it takes to say of every pair of ten real hosts whether a guest can move.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use migrated_cpuid::{Baseline, CpuDump, CpuReport, HostCpu, PoolBaseline};

const HOSTS: [&str; 10] = [
    "intel-haswell",
    "intel-skylake",
    "intel-cascadelake",
    "intel-icelake",
    "intel-sapphirerapids",
    "intel-graniterapids",
    "amd-zen2",
    "amd-zen3",
    "amd-zen4",
    "amd-zen5",
];

fn hosts() -> Vec<HostCpu> {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps");
    let read = |name: &str| {
        let text = std::fs::read_to_string(dumps.join(format!("{name}.json"))).expect("a committed dump");
        HostCpu::try_from(CpuDump::parse(&text).expect("a dump")).expect("a host")
    };
    HOSTS.iter().map(|name| read(name)).collect()
}

fn pairwise(criterion: &mut Criterion) {
    let hosts = hosts();
    criterion.bench_function("all pairs of ten hosts, with the guests' tables made anew", |bencher| {
        bencher.iter(|| {
            let guests = hosts.iter().filter_map(|host| host.grant(&Baseline::of_host(host)).ok());
            let reports =
                guests.flat_map(|guest| hosts.iter().map(move |host| CpuReport::of(&guest, host).admitted));
            black_box(reports.filter(|admitted| *admitted).count())
        });
    });
    criterion.bench_function("the common baseline of six hosts", |bencher| {
        bencher.iter(|| black_box(PoolBaseline::of(&hosts[..6])));
    });
}

criterion_group!(benches, pairwise);
criterion_main!(benches);
