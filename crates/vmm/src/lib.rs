//! The KVM guest: RAM, vCPU threads, boot, devices, and its state as a migration needs it.
//!
//! A [`Vm`] is made by [`Vm::create`] or arrives through [`Vm::incoming`]; [`Vm::outgoing`] hands it to a
//! migration. `memory` says where RAM lies, `vcpu` runs guest code once `gate` lets it, `ports`,
//! `serial`, `pci` and `virtio` answer its I/O, `state` turns all of it into sections and back.

mod acpi;
pub mod boot;
mod config;
mod console;
mod cpu;
mod error;
mod gate;
mod host;
pub mod layout;
mod machine;
mod memory;
mod migrate;
mod pci;
mod ports;
mod serial;
mod state;
mod throttle;
mod vcpu;
mod virtio;
mod warm_up;
pub mod workload;

pub use acpi::pm::PowerButtonError;
pub use config::{DeviceConfig, MemoryBacking, NetworkConfig, VmConfig};
pub use console::{CONSOLE_CAPACITY, Console};
pub use cpu::{CpuDifference, CpuError, cpu_differences};
pub use error::{BalloonError, VmmError};
pub use gate::{GuestEnd, RunState};
pub use host::{HostKvm, MAX_VCPUS};
pub use machine::{BootContext, Vm};
pub use memory::{MemoryError, RAM_GRANULE};
pub use migrate::{ClaimError, IncomingVm, PausedVm, RunningVm};
pub use serial::InputRefused;
pub use virtio::BalloonStatus;
pub use virtio::net::NetworkError;
