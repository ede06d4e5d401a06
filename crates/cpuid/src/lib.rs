//! CPUs as guests see them: CPUID tables, what a host can offer, and whether a guest may come there.
//!
//! Everything is pure but [`HostCpu::read`], which asks KVM.

mod admit;
mod feature;
mod host;
mod kvm;
mod set;

pub use admit::{GuestCpu, Mismatch, TSC_TOLERANCE_PPM, XsaveArea, admit};
pub use feature::FeatureBit;
pub use host::{HostCpu, HostCpuError};
pub use set::{CpuidEntry, CpuidSet, CpuidSetError, Register, Registers};
