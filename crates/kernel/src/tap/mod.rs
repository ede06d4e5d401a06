//! TAP devices: the host's end of a guest's network card.

mod error;
mod interface;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use libc::{c_int, c_short, c_uint, c_ulong};

pub use error::TapError;
use interface::{Interface, Request};

/// Bytes of the header in front of each frame: `struct virtio_net_hdr_v1`, little-endian.
pub const VNET_HEADER: usize = 12;

/// Named after the guest's host; the kernel puts a number in.
const ANY_NAME: &str = "mgt%d";
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

// The numbers as a C compiler makes them of linux/if_tun.h, and what of `struct ifreq` is used here.
const _: () = {
    assert!(libc::TUNSETIFF == 0x4004_54ca);
    assert!(libc::TUNSETOFFLOAD == 0x4004_54d0);
    assert!(libc::TUNSETVNETHDRSZ == 0x4004_54d8);
    assert!(libc::TUNSETVNETLE == 0x4004_54dc);
    assert!(libc::TUN_F_CSUM == 1 && libc::TUN_F_TSO4 == 2 && libc::TUN_F_TSO6 == 4);
    assert!(libc::TUN_F_TSO_ECN == 8);
    assert!(libc::IFF_TUN_EXCL == 0x8000);
    assert!(size_of::<libc::ifreq>() == 40);
    assert!(std::mem::offset_of!(libc::ifreq, ifr_ifru) == 16);
};

/// What a reader of a TAP can take as it is, where others need a checksum or short segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapOffloads {
    /// Frames whose checksum is still to be computed. Without it, nothing else counts.
    pub checksum: bool,
    /// TCP segments of up to 64 KiB over IPv4.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// Such segments that carry ECN's marks.
    pub ecn: bool,
}

impl TapOffloads {
    fn bits(self) -> c_uint {
        if !self.checksum {
            return 0;
        }
        let bit = |on: bool, bit: c_uint| if on { bit } else { 0 };
        libc::TUN_F_CSUM
            | bit(self.tso4, libc::TUN_F_TSO4)
            | bit(self.tso6, libc::TUN_F_TSO6)
            | bit(self.ecn && (self.tso4 || self.tso6), libc::TUN_F_TSO_ECN)
    }
}

/// A TAP of one queue, up, without addresses and gone when the last descriptor of it is closed.
///
/// Each frame has a [`VNET_HEADER`] in front, in both directions.
#[derive(Debug)]
pub struct Tap {
    fd: Arc<OwnedFd>,
    name: String,
}

impl Tap {
    /// Makes one in this thread's network namespace: named, or under a free name; with the kernel's MTU or
    /// another; a port of `bridge`, where one is named.
    ///
    /// # Errors
    /// [`TapError`] says what to do; nothing is left then.
    pub fn open(name: Option<&str>, mtu: Option<u16>, bridge: Option<&str>) -> Result<Self, TapError> {
        let fd = open_driver()?;
        let tap = Self { name: create(&fd, name)?, fd: Arc::new(fd) };
        tap.set(libc::TUNSETVNETHDRSZ, "TUNSETVNETHDRSZ", VNET_HEADER as c_int)?;
        tap.set(libc::TUNSETVNETLE, "TUNSETVNETLE", 1)?;
        tap.set_offloads(TapOffloads::default()).map_err(|source| TapError::call("TUNSETOFFLOAD", source))?;
        let interface = Interface::named(&tap.name)?;
        if let Some(mtu) = mtu {
            interface.set_mtu(mtu)?;
        }
        interface.silence()?;
        if let Some(bridge) = bridge {
            interface.join(bridge)?;
        }
        interface.bring_up()?;
        Ok(tap)
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Readable while a frame waits; never blocks.
    #[must_use]
    pub const fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Tells the kernel what this end can take as it is, from the next frame on that comes in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        // SAFETY: the call takes a number and touches no memory of ours.
        let result =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(offloads.bits())) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reads one frame with its header; what `into` has no room for is lost.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none; `EBADFD` when somebody removed the interface.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&*self.fd, into)?)
    }

    /// Lets one frame, behind its header, into the host's network, as from a cable.
    ///
    /// # Errors
    /// `EINVAL` for a header that the kernel does not believe; `EIO` while the interface is down; `EBADFD` when
    /// somebody removed it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // The kernel takes a frame as a whole or not at all.
        rustix::io::write(&*self.fd, frame)?;
        Ok(())
    }

    fn set(&self, request: c_ulong, operation: &'static str, value: c_int) -> Result<(), TapError> {
        // SAFETY: both of the calls that come here read one `int`.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), request, &raw const value) } {
            0 => Ok(()),
            _ => Err(TapError::call(operation, io::Error::last_os_error())),
        }
    }
}

fn open_driver() -> Result<OwnedFd, TapError> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    match OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun") {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(match error.raw_os_error() {
            // Without the module a device node may be there all the same.
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver,
            _ => TapError::call("opening /dev/net/tun", error),
        }),
    }
}

/// Makes the interface and gives the name that it got. A name that was asked for must be free: joining somebody
/// else's TAP would take their frames.
fn create(fd: &OwnedFd, name: Option<&str>) -> Result<String, TapError> {
    let mut request = match name {
        Some(name) => Request::named(name)?,
        None => Request::pattern(ANY_NAME),
    };
    let exclusive = if name.is_some() { libc::IFF_TUN_EXCL } else { 0 };
    // The 16 bits of the kernel's field.
    request.set_flags((FLAGS | exclusive) as c_short);
    match request.issue(fd, libc::TUNSETIFF) {
        Ok(()) => Ok(request.name()),
        Err(error) => Err(match (error.raw_os_error(), name) {
            (Some(libc::EBUSY | libc::EINVAL | libc::EEXIST), Some(name)) => {
                TapError::Busy { name: name.to_owned() }
            }
            _ => TapError::call("TUNSETIFF", error),
        }),
    }
}
