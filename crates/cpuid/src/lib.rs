//! `migrated-cpuid`.
