//! Everything that a daemon counts: names, units, help and buckets in one table, and where the
//! figures come from.

mod ended;

use std::collections::BTreeMap;

use anyhow::Result;
use metrics::{Unit, counter, gauge, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use migrated_api::{MigrationRecord, MigrationState, RecordRole, VmState};
use migrated_control::Status;
use serde::Serialize;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations up to each of these bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// Prometheus's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Declared {
    /// Its name, without the suffixes that Prometheus adds to a histogram.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its base unit, as the `metrics` crate names it.
    pub unit: &'static str,
    /// Its label names.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// 1 ms to 10 s, fine where downtimes are.
const DOWNTIME: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0,
];
/// 50 ms to an hour.
const DURATION: &[f64] =
    &[0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
/// 10 Mbit/s to 400 Gbit/s.
const BIT_RATE: &[f64] = &[1e7, 1e8, 5e8, 1e9, 2.5e9, 5e9, 1e10, 2.5e10, 5e10, 1e11, 2e11, 4e11];
const PAGE_RATE: &[f64] = &[1e2, 1e3, 1e4, 5e4, 1e5, 2.5e5, 5e5, 1e6, 2.5e6, 5e6, 1e7];
const COUNT: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0];
/// 1 µs to 16.8 s: the buckets of a record's histogram.
const FAULT: &[f64] = &[
    0.000001, 0.000002, 0.000004, 0.000008, 0.000016, 0.000032, 0.000064, 0.000128, 0.000256, 0.000512,
    0.001024, 0.002048, 0.004096, 0.008192, 0.016384, 0.032768, 0.065536, 0.131072, 0.262144, 0.524288,
    1.048576, 2.097152, 4.194304, 8.388608, 16.777216,
];
/// How often RAM crossed the wire.
const RATIO: &[f64] = &[0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

const MIGRATIONS: &str = "migrated_migrations_total";
const DOWNTIME_SECONDS: &str = "migrated_downtime_seconds";
const MIGRATION_SECONDS: &str = "migrated_migration_seconds";
const SETUP_SECONDS: &str = "migrated_migration_setup_seconds";
const BYTES: &str = "migrated_migration_bytes_total";
const THROUGHPUT: &str = "migrated_migration_throughput_bits_per_second";
const DIRTY_RATE: &str = "migrated_dirty_rate_pages_per_second";
const ITERATIONS: &str = "migrated_migration_iterations";
const WIRE_RATIO: &str = "migrated_migration_wire_to_ram_ratio";
const POSTCOPY_PAGES: &str = "migrated_postcopy_pages_total";
const POSTCOPY_FAULTS: &str = "migrated_postcopy_faults_total";
const POSTCOPY_FAULT_SECONDS: &str = "migrated_postcopy_fault_seconds";
const POSTCOPY_FAULT_PART_SECONDS: &str = "migrated_postcopy_fault_part_seconds";
const POSTCOPY_BLOCKED_SECONDS: &str = "migrated_postcopy_blocked_seconds";
const POSTCOPY_SECONDS: &str = "migrated_postcopy_seconds";
const PRECOPY_LINK_LOSSES: &str = "migrated_precopy_link_losses_total";
const POSTCOPY_LINK_LOSSES: &str = "migrated_postcopy_link_losses_total";
const THROTTLE_RATIO: &str = "migrated_throttle_ratio";
const THROTTLED_SECONDS: &str = "migrated_throttled_vcpu_seconds";
const LATE_FRAMES: &str = "migrated_late_frames_total";
const FIRST_PACKET_SECONDS: &str = "migrated_first_packet_seconds";
const ACTIVE: &str = "migrated_active_migrations";
const VMS: &str = "migrated_vms";
const BALLOON: &str = "migrated_balloon_bytes";
const BLOCKED: &str = "migrated_vcpu_blocked_seconds";
const CPU_REFUSALS: &str = "migrated_cpu_refusals_total";
const CPU_FEATURES_LOST: &str = "migrated_host_cpu_features_lost";

/// All metrics.
pub const DECLARED: &[Declared] = &[
    Declared {
        name: MIGRATIONS,
        kind: Kind::Counter,
        unit: "count",
        labels: &["role", "mode", "outcome"],
        help: "Migrations that ended, by this host's role and how they ended",
    },
    Declared {
        name: DOWNTIME_SECONDS,
        kind: Kind::Histogram(DOWNTIME),
        unit: "seconds",
        labels: &["mode", "part"],
        help: "Time the guest stood still in migrations away from this host, whole and by part",
    },
    Declared {
        name: MIGRATION_SECONDS,
        kind: Kind::Histogram(DURATION),
        unit: "seconds",
        labels: &["mode", "outcome"],
        help: "From the request until the source released the guest, or the end",
    },
    Declared {
        name: SETUP_SECONDS,
        kind: Kind::Histogram(DURATION),
        unit: "seconds",
        labels: &["mode"],
        help: "From the request until the first page could flow",
    },
    Declared {
        name: BYTES,
        kind: Kind::Counter,
        unit: "bytes",
        labels: &["class"],
        help: "Bytes of migrations away from this host: page payload as it is (data) and compressed (lz4), what \
               compressing kept off the wire (saved), RAM that crossed as zero pages without payload (zero), \
               everything else on the wire (state)",
    },
    Declared {
        name: THROUGHPUT,
        kind: Kind::Histogram(BIT_RATE),
        unit: "bits_per_second",
        labels: &["transport"],
        help: "Page payload over the time that pages flowed",
    },
    Declared {
        name: DIRTY_RATE,
        kind: Kind::Histogram(PAGE_RATE),
        unit: "count_per_second",
        labels: &[],
        help: "Pages that guests dirtied a second, one observation an iteration",
    },
    Declared {
        name: ITERATIONS,
        kind: Kind::Histogram(COUNT),
        unit: "count",
        labels: &["mode"],
        help: "Rounds over the dirty pages of a completed migration",
    },
    Declared {
        name: WIRE_RATIO,
        kind: Kind::Histogram(RATIO),
        unit: "count",
        labels: &["mode"],
        help: "Bytes on the wire over guest RAM of a completed migration",
    },
    Declared {
        name: POSTCOPY_PAGES,
        kind: Kind::Counter,
        unit: "count",
        labels: &["why"],
        help: "Pages that followed guests away from this host: pushed in the background (push), waited for (fault), \
               or near one that was (prefetch)",
    },
    Declared {
        name: POSTCOPY_FAULTS,
        kind: Kind::Counter,
        unit: "count",
        labels: &[],
        help: "Pages that guests on this host touched before they had come",
    },
    Declared {
        name: POSTCOPY_FAULT_SECONDS,
        kind: Kind::Histogram(FAULT),
        unit: "seconds",
        labels: &[],
        help: "From a fault on a page that had not come until who waited went on; counted at the end of a migration, \
               each as the bound of its bucket, so that the sum is up to twice the true one",
    },
    Declared {
        name: POSTCOPY_FAULT_PART_SECONDS,
        kind: Kind::Histogram(FAULT),
        unit: "seconds",
        labels: &["part"],
        help: "The parts of migrated_postcopy_fault_seconds, of pages that were asked for: until the request goes to the \
               transport (request), until the payload was read (wire), until it was in place (place), until who \
               waited went on (wake); counted as that is",
    },
    Declared {
        name: POSTCOPY_BLOCKED_SECONDS,
        kind: Kind::Histogram(DOWNTIME),
        unit: "seconds",
        labels: &["who"],
        help: "Time that a guest on this host waited for pages in one migration: each thread for itself (each), all \
               that waited at all at the same time (all)",
    },
    Declared {
        name: POSTCOPY_SECONDS,
        kind: Kind::Histogram(DURATION),
        unit: "seconds",
        labels: &["mode"],
        help: "From the commit until nothing was missing at the destination, in migrations away from this host",
    },
    Declared {
        name: PRECOPY_LINK_LOSSES,
        kind: Kind::Counter,
        unit: "count",
        labels: &["role"],
        help: "Times that the link was lost while pages were copied before the guest, and was waited for",
    },
    Declared {
        name: POSTCOPY_LINK_LOSSES,
        kind: Kind::Counter,
        unit: "count",
        labels: &["role"],
        help: "Times that the link was lost while pages followed a guest",
    },
    Declared {
        name: THROTTLE_RATIO,
        kind: Kind::Gauge,
        unit: "count",
        labels: &[],
        help: "Largest share of its time that a vCPU is made to sleep at present so that a migration away from this \
               host keeps up with what it writes",
    },
    Declared {
        name: THROTTLED_SECONDS,
        kind: Kind::Histogram(DURATION),
        unit: "seconds",
        labels: &["mode"],
        help: "Time that vCPUs were made to sleep, all together, in a migration away from this host that slowed any",
    },
    Declared {
        name: LATE_FRAMES,
        kind: Kind::Counter,
        unit: "count",
        labels: &["role", "fate"],
        help: "Frames for a guest that came to the source after it was paused there: handed on to the destination \
               (carried), or dropped",
    },
    Declared {
        name: FIRST_PACKET_SECONDS,
        kind: Kind::Histogram(DOWNTIME),
        unit: "seconds",
        labels: &["mode"],
        help: "From the first KVM_RUN of a guest that came to this host until the first frame that it sent or got here",
    },
    Declared {
        name: ACTIVE,
        kind: Kind::Gauge,
        unit: "count",
        labels: &["role", "state"],
        help: "Migrations that have not ended",
    },
    Declared { name: VMS, kind: Kind::Gauge, unit: "count", labels: &["state"], help: "VMs on this host" },
    Declared {
        name: BALLOON,
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &["amount"],
        help: "RAM that the guests now on this host are asked to give up (target) and say that they have given up \
               (actual), all together",
    },
    Declared {
        name: BLOCKED,
        kind: Kind::Gauge,
        unit: "seconds",
        labels: &[],
        help: "Time that vCPUs of the VMs now on this host were kept from running by migration, all together",
    },
    Declared {
        name: CPU_REFUSALS,
        kind: Kind::Counter,
        unit: "count",
        labels: &["at"],
        help: "Guests that this host refused because of their CPU, at their creation or at their admission",
    },
    Declared {
        name: CPU_FEATURES_LOST,
        kind: Kind::Gauge,
        unit: "count",
        labels: &[],
        help: "Features that this host's CPU offered once and offers no more",
    },
];

/// A daemon's metrics.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for declared in DECLARED {
            if let Kind::Histogram(bounds) = declared.kind {
                builder = builder.set_buckets_for_metric(Matcher::Full(declared.name.to_owned()), bounds)?;
            }
        }
        let recorder = builder.build_recorder();
        with_local_recorder(&recorder, || {
            for Declared { name, kind, unit, help, .. } in DECLARED.iter().copied() {
                let unit = Unit::from_string(unit).unwrap_or(Unit::Count);
                match kind {
                    Kind::Counter => metrics::describe_counter!(name, unit, help),
                    Kind::Gauge => metrics::describe_gauge!(name, unit, help),
                    Kind::Histogram(_) => metrics::describe_histogram!(name, unit, help),
                }
            }
        });
        let handle = recorder.handle();
        Ok(Self { recorder, handle })
    }

    /// Counts a migration that has just ended.
    pub fn migration_ended(&self, record: &MigrationRecord) {
        with_local_recorder(&self.recorder, || ended::count(record));
    }

    /// Counts a guest that was refused because of its CPU: at `creation` or `admission`.
    pub fn cpu_refused(&self, at: &'static str) {
        with_local_recorder(&self.recorder, || counter!(CPU_REFUSALS, "at" => at).increment(1));
    }

    /// Everything as Prometheus reads it, with the VMs and active migrations of this moment, and what those VMs say
    /// of themselves that answer.
    pub fn render(
        &self,
        vms: &[VmState],
        statuses: &[Status],
        active: &[(RecordRole, MigrationState)],
        throttle_percent: f64,
        cpu_features_lost: usize,
    ) -> String {
        with_local_recorder(&self.recorder, || {
            let mut by_state: BTreeMap<&str, u32> =
                VmState::ALL.iter().map(|state| (state.name(), 0)).collect();
            vms.iter().for_each(|state| *by_state.entry(state.name()).or_default() += 1);
            by_state.into_iter().for_each(|(state, n)| gauge!(VMS, "state" => state).set(n));
            for end in [RecordRole::Source, RecordRole::Destination] {
                for state in MigrationState::ALL.into_iter().filter(|state| !state.is_final()) {
                    let n = active.iter().filter(|is| **is == (end, state)).count();
                    gauge!(ACTIVE, "role" => role(end), "state" => state.name()).set(n as f64);
                }
            }
            gauge!(THROTTLE_RATIO).set(throttle_percent / 100.0);
            let blocked_us: u64 = statuses.iter().map(|status| status.vcpu_blocked_us).sum();
            gauge!(BLOCKED).set(blocked_us as f64 / 1e6);
            let balloons = || statuses.iter().filter_map(|status| status.balloon);
            let (target, actual): (u64, u64) = (
                balloons().map(|balloon| balloon.target_bytes).sum(),
                balloons().map(|balloon| balloon.actual_bytes).sum(),
            );
            gauge!(BALLOON, "amount" => "target").set(target as f64);
            gauge!(BALLOON, "amount" => "actual").set(actual as f64);
            gauge!(CPU_FEATURES_LOST).set(cpu_features_lost as f64);
        });
        self.handle.run_upkeep();
        self.handle.render()
    }
}

const fn role(role: RecordRole) -> &'static str {
    match role {
        RecordRole::Source => "source",
        RecordRole::Destination => "destination",
    }
}
