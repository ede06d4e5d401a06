//! `migrated-api`.
