//! `migrated-kernel`.
