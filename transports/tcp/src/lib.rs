//! `migrated-tcp`.
