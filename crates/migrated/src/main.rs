//! `migrated`: live migration of KVM guests.
fn main() {}
