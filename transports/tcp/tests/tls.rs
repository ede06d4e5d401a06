//! TCP+TLS passes what every transport must.

mod common;

migrated_transport::conformance_tests!(common::Tls::new());
