//! Stock Linux guests, booted and moved between two hosts while a TCP client talks to them. This runs where Linux
//! boots under KVM and `MIGRATED_LAB_GUEST` names the kernels: in the lab (`cargo xtask test`), or on a machine with
//! full KVM.

#[path = "../e2e/client.rs"]
#[allow(dead_code, reason = "shared with the other end-to-end tests")]
mod client;
#[path = "../e2e/host.rs"]
#[allow(dead_code, reason = "shared with the other end-to-end tests")]
mod host;
#[path = "../e2e/netns.rs"]
#[allow(dead_code, reason = "shared with the other end-to-end tests")]
mod netns;

mod caller;
mod guest;
mod network;

mod boot;
mod moves;
