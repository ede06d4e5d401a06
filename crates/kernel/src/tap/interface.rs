use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;

use libc::{c_char, c_int, c_short, c_ulong, ifreq};

use super::TapError;

/// SIOCBRADDIF of linux/sockios.h.
const SIOCBRADDIF: c_ulong = 0x89a2;

/// A `struct ifreq` for calls that name an interface.
pub(super) struct Request(ifreq);

impl Request {
    /// # Errors
    /// [`TapError::Name`].
    pub(super) fn named(name: &str) -> Result<Self, TapError> {
        let fine = (1..libc::IFNAMSIZ).contains(&name.len())
            && !matches!(name, "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:%".contains(&byte));
        if fine { Ok(Self::pattern(name)) } else { Err(TapError::Name { name: name.to_owned() }) }
    }

    /// A name, or a pattern of one, that is short enough.
    pub(super) fn pattern(name: &str) -> Self {
        assert!(name.len() < libc::IFNAMSIZ);
        // SAFETY: all of it is numbers and arrays of them, and a pointer that no call here reads; 0 is valid for each.
        let mut request: ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        Self(request)
    }

    pub(super) fn set_flags(&mut self, flags: c_short) {
        self.0.ifr_ifru.ifru_flags = flags;
    }

    pub(super) fn name(&self) -> String {
        // SAFETY: the last byte of the 16 is zero: ours is shorter, and the kernel ends those that it makes up.
        unsafe { CStr::from_ptr(self.0.ifr_name.as_ptr()) }.to_string_lossy().into_owned()
    }

    /// One of the calls that take an `ifreq` and nothing that it points to.
    pub(super) fn issue(&mut self, fd: &impl AsFd, call: c_ulong) -> io::Result<()> {
        // SAFETY: each call that comes here reads and writes at most one `ifreq`.
        let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), call, &raw mut self.0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// A network interface of this thread's namespace, to be configured.
pub(super) struct Interface<'a> {
    name: &'a str,
    /// Any socket does: it only says which namespace.
    socket: UnixDatagram,
}

impl<'a> Interface<'a> {
    pub(super) fn named(name: &'a str) -> Result<Self, TapError> {
        let socket = UnixDatagram::unbound().map_err(|source| TapError::call("socket", source))?;
        Ok(Self { name, socket })
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        let mut request = Request::named(self.name)?;
        request.0.ifr_ifru.ifru_mtu = c_int::from(mtu);
        request.issue(&self.socket, libc::SIOCSIFMTU).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::Mtu { mtu },
            _ => TapError::call("SIOCSIFMTU", error),
        })
    }

    /// Keeps the host from using the interface itself: an IPv6 address that it gave itself would be announced to
    /// the guest.
    pub(super) fn silence(&self) -> Result<(), TapError> {
        let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        match fs::write(&path, "1") {
            Ok(()) => Ok(()),
            // A kernel without IPv6 has nothing to be silenced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(TapError::Ipv6 { path, source }),
        }
    }

    /// Makes it a port of a bridge.
    pub(super) fn join(&self, bridge: &str) -> Result<(), TapError> {
        let mut port = Request::named(self.name)?;
        port.issue(&self.socket, libc::SIOCGIFINDEX)
            .map_err(|source| TapError::call("SIOCGIFINDEX", source))?;
        let mut request = Request::named(bridge)?;
        // SAFETY: the call above succeeded, so it wrote the index.
        request.0.ifr_ifru.ifru_ifindex = unsafe { port.0.ifr_ifru.ifru_ifindex };
        request.issue(&self.socket, SIOCBRADDIF).map_err(|error| match error.raw_os_error() {
            Some(libc::ENODEV) => TapError::NoBridge { bridge: bridge.to_owned() },
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => {
                TapError::NotBridge { bridge: bridge.to_owned() }
            }
            _ => TapError::call("SIOCBRADDIF", error),
        })
    }

    pub(super) fn bring_up(&self) -> Result<(), TapError> {
        let mut request = Request::named(self.name)?;
        request
            .issue(&self.socket, libc::SIOCGIFFLAGS)
            .map_err(|source| TapError::call("SIOCGIFFLAGS", source))?;
        // SAFETY: the call above succeeded, so it wrote the flags.
        let flags = unsafe { request.0.ifr_ifru.ifru_flags };
        request.set_flags(flags | libc::IFF_UP as c_short);
        request
            .issue(&self.socket, libc::SIOCSIFFLAGS)
            .map_err(|source| TapError::call("SIOCSIFFLAGS", source))
    }
}
