//! What a daemon's HTTP API takes and gives. The paths are declared with their handlers in the
//! `migrated` crate; the whole description is committed here as `openapi.json`.
//!
//! Requests refuse unknown fields: a misspelt limit must not be a limit that is not kept.

mod console;
mod cpu;
mod incoming;
mod migration;
mod plan;
mod problem;
mod vm;

pub use console::{ConsoleHeaders, ConsoleInputQuery, ConsoleQuery};
pub use cpu::{
    BaselineLevel, BaselineList, BaselineRequest, CpuCheck, CpuSource, HostCpuReport, NextLevel, VmCpu,
    Withheld,
};
pub use incoming::{
    Admission, AnsweredAt, PrepareIncoming, Prepared, ProbeAnswer, ResolveAnswer, ResolveRequest, Versions,
};
pub use migration::{MigrationList, RecoverMigration, StartMigration, StartedMigration};
pub use plan::{LinkSource, MigrationPlan, PlanMigration, PlannedLink};
pub use problem::{Problem, Reason};
pub use vm::{BalloonTarget, Vm, VmList};

pub use migrated_control::{
    Balloon, BootSource, ConsoleRange, GuestSample, MacAddr, MacAddrError, MemoryBacking, NetworkSpec,
    Resolution, TransportKind, VmSpec, VmState, WorkloadCounters, WriteWindow,
};
pub use migrated_cpuid::{
    BaselineSpec, CpuDump, CpuReport, CustomBaseline, FeatureSet, HostIdentity, LostFeature, Mismatch,
    PoolBaseline,
};
pub use migrated_engine::{
    Compression, EncodedPages, Encodings, FaultParts, LateFrames, LatencyHistogram, MigrationRecord,
    MigrationState, Mode, ModePrediction, OnTimeout, Postcopy, Predicted, Prediction, RecordError,
    RecordRole, Recovery, ThreadWaits, Throttled, ThrottledVcpu, Verify, WriteAttribution,
};
