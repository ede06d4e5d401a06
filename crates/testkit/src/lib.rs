//! `migrated-testkit`.

pub mod capability;
