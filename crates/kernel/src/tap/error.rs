use std::io;

use thiserror::Error;

/// Why there is no such TAP. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel's driver is not there.
    #[error(
        "/dev/net/tun does not exist: load the tun module (modprobe tun) or pass the device into this container"
    )]
    NoDriver,
    /// The device may not be opened, or no interface be made.
    #[error(
        "no permission for {what}: this process needs CAP_NET_ADMIN, and read and write access to /dev/net/tun"
    )]
    NotPermitted {
        /// What was tried.
        what: &'static str,
    },
    /// A name that no interface can have.
    #[error("`{name}` can't name a network interface: 1 to 15 characters without `/`, `:`, `%` and spaces")]
    Name {
        /// The name.
        name: String,
    },
    /// Another interface has the name.
    #[error(
        "there is a network interface `{name}` already: remove it (ip link delete {name}) or choose another name"
    )]
    Busy {
        /// The name.
        name: String,
    },
    /// The kernel has no such interface.
    #[error(
        "there is no bridge `{bridge}` on this host: make it (ip link add {bridge} type bridge) or name another"
    )]
    NoBridge {
        /// The name that was given.
        bridge: String,
    },
    /// The interface is something else.
    #[error("`{bridge}` is no bridge: name one (ip link show type bridge lists them)")]
    NotBridge {
        /// The name that was given.
        bridge: String,
    },
    /// An MTU that the kernel does not set.
    #[error("an MTU of {mtu} bytes can't be set: a TAP takes 68 to 65521")]
    Mtu {
        /// What was asked for.
        mtu: u16,
    },
    /// The host would send frames of its own to the guest, and that can't be turned off.
    #[error("{path} can't be written: {source}; mount /proc/sys writable")]
    Ipv6 {
        /// The setting.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Any other refusal.
    #[error("{operation} failed: {source}")]
    Kernel {
        /// The call, as the kernel names it.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl TapError {
    /// A refusal that has no meaning of its own for this call.
    pub(super) fn call(operation: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { what: operation },
            _ => Self::Kernel { operation, source },
        }
    }
}
