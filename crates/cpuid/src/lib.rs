//! CPUs as guests see them: what a host can give, which part of it a guest gets so that it can move, and
//! whether a guest may come to a host.
//!
//! [`Feature`] names bits and says how they combine; a [`CpuTable`] is CPUID and feature MSRs; a [`HostCpu`] is what a host
//! can give, read from KVM or from a [`CpuDump`]; a [`Baseline`] makes a guest's table; [`admit`] compares
//! a guest with a host; [`PoolBaseline`] finds what several hosts have in common. Everything is pure but
//! [`HostCpu::read`], which asks KVM and the CPU.

mod admit;
mod baseline;
mod combine;
mod dump;
mod feature;
mod hardware;
mod host;
mod kvm;
#[cfg(feature = "openapi")]
mod openapi;
mod pool;
mod set;
mod table;
mod xstate;

pub use admit::{Admission, Cause, CpuReport, GuestCpu, Mismatch, TSC_TOLERANCE_PPM, Value, Warning, admit};
pub use baseline::{
    Baseline, BaselineError, BaselineSpec, CustomBaseline, HOST, Level, PHYSICAL_ADDRESS_BITS, SPEC, Vendor,
};
pub use combine::VendorsDiffer;
pub use dump::{CpuDump, DUMP_FORMAT, DumpError};
pub use feature::{Class, CpuidBit, Feature, FeatureSet, Kind, Masking, Place};
pub use host::{HostCpu, HostIdentity, LostFeature, Signature};
pub use kvm::{HostCpuError, run_time_bits};
pub use pool::{HostCost, Limit, PoolBaseline, PoolError, best_name};
pub use set::{CpuidEntry, CpuidSet, CpuidSetError, Register, Registers};
pub use table::CpuTable;
pub use xstate::XsaveArea;
