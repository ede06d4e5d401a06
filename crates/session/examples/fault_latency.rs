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
        let parts = &postcopy.fault_parts;
        for (name, times) in [
            ("request", &parts.request),
            ("wire", &parts.wire),
            ("place", &parts.place),
            ("wake", &parts.wake),
        ] {
            let quantile = |share| times.quantile_us(share).unwrap_or(0);
            println!(
                "  {name}: P50 <= {} P99 <= {} max {} µs, mean {} µs of {}",
                quantile(0.5),
                quantile(0.99),
                times.max_us,
                times.sum_us / times.count().max(1),
                times.count()
            );
        }
        println!(
            "  {:.0} faults/s, at most {:.0}; blocked {:.1?} ms, all at once {:.1} ms; push held to {:.0} Mbit/s",
            postcopy.faults_per_second,
            postcopy.faults_per_second_peak,
            postcopy.blocked.iter().map(|thread| thread.blocked_us / 1e3).collect::<Vec<_>>(),
            postcopy.all_blocked_us / 1e3,
            source.push_bps.unwrap_or(f64::INFINITY) / 1e6,
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
