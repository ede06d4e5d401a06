//! `migrated-vmm`.

pub mod boot;
pub mod workload;
