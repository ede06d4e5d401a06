//! `migrated-testkit`.
