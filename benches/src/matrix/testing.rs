//! Runs as tests want them.

use migrated_api::TransportKind;

use super::axes::{Content, Link, Pattern, Rate, Variant, Way};
use super::run::{Outcome, Run};
use super::setting::Workload;
use crate::journey::Seen;

pub fn migrated(mode: Way) -> Variant {
    Variant::Migrated { mode, transport: TransportKind::Tcp, channels: None }
}

/// A run of 256 MiB at half of 1 Gbit/s that took so long.
pub fn run(variant: Variant, total_s: f64) -> Run {
    let guest = Workload {
        memory_mib: 256,
        vcpus: 1,
        hot_mib: 64,
        fill_mib: 0,
        rate: Rate::OfLink(0.5),
        pattern: Pattern::Random,
        content: Content::Random,
        parameters: String::new(),
    };
    Run {
        scenario: "test".into(),
        aim: String::new(),
        link: Link(Some(1_000_000_000)),
        nonzero_bytes: guest.nonzero_bytes(),
        guest,
        variant,
        round: 1,
        warm_up: false,
        outcome: Outcome::Completed,
        problems: Vec::new(),
        payload_bps: 950e6,
        seen: Seen { total_s, ..Seen::default() },
        record: None,
        arrival: None,
        qemu: None,
    }
}
