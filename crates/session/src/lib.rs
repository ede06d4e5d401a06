//! `migrated-session`.
