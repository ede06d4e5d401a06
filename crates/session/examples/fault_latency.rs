//! How long threads wait for pages that follow a guest, over TCP on loopback: with the background push at full
//! rate, and with the push at a limit. `cargo run --release -p migrated-session --example fault_latency [MIB] [VCPUS]`.

#![expect(clippy::print_stdout, reason = "figures are what it is for")]
#![expect(dead_code, reason = "what the tests alone need of their rig")]

#[path = "../tests/sessions/guest.rs"]
mod guest;
#[path = "../tests/sessions/relay.rs"]
mod relay;
#[path = "../tests/sessions/rig.rs"]
mod rig;
#[path = "../tests/sessions/vcpus.rs"]
mod vcpus;

use migrated_engine::{Limits, Mode};
use migrated_wire::VerifyWhen;

use rig::{Case, Network, migrate};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let (mib, vcpus) = (arguments.next().unwrap_or(256), arguments.next().unwrap_or(2));
    for (limit, bandwidth_bps) in [("none", None), ("1 Gbit/s", Some(1_000_000_000))] {
        let case = Case {
            mode: Mode::Postcopy,
            network: Network::Tcp,
            pages: mib * 256,
            vcpus,
            channels: 1,
            verify: VerifyWhen::Off,
            limits: Limits { bandwidth_bps, ..Limits::default() },
            ..Case::default()
        };
        let ending = migrate(&case, |_, _| {});
        let source = ending.record.postcopy.expect("pages followed");
        let postcopy = ending.destination_record.postcopy.expect("pages followed");
        let quantile = |share| postcopy.fault_latency.quantile_us(share).unwrap_or(0);
        println!(
            "push limit {limit}: {} faults in {:.0} ms; waited P50 <= {} P90 <= {} P99 <= {} P99.9 <= {} max {} µs, mean {} µs",
            postcopy.fault_latency.count(),
            postcopy.last_page_ms.unwrap_or(0.0),
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            quantile(0.999),
            postcopy.fault_latency.max_us,
            postcopy.fault_latency.sum_us / postcopy.fault_latency.count().max(1),
        );
        println!(
            "  pages: {} pushed, {} by fault, {} by prefetch; downtime {:.2} ms",
            source.pages_push,
            source.pages_fault,
            source.pages_prefetch,
            ending.record.downtime_us.total / 1e3,
        );
    }
}
