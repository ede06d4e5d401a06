//! `migrated-vmm`.
