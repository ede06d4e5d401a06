//! Of include/uapi/linux/userfaultfd.h, as much as is used here.

use std::os::raw::c_ulong;

use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

const TYPE: u32 = 0xaa;

pub(super) const UFFD_API: u64 = 0xaa;
pub(super) const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub(super) const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;
pub(super) const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
pub(super) const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(super) const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;
/// Bits of `RegisterArg::ioctls`: the numbers of the calls that work on the range.
pub(super) const WAKE_BIT: u64 = 1 << 0x02;
pub(super) const CONTINUE_BIT: u64 = 1 << 0x07;
pub(super) const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;

/// `struct uffdio_api`
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ApiArg {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_range`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// `struct uffdio_register`
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct RegisterArg {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

/// `struct uffdio_continue`
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct ContinueArg {
    pub(super) range: Range,
    pub(super) mode: u64,
    /// Bytes mapped, or a negative errno.
    pub(super) mapped: i64,
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Message {
    pub(super) event: u8,
    reserved: [u8; 7],
    pub(super) flags: u64,
    pub(super) address: u64,
    /// Thread id, with UFFD_FEATURE_THREAD_ID.
    pub(super) ptid: u32,
    reserved2: u32,
}

const fn read_write<T>(number: u32) -> c_ulong {
    ioctl_expr(_IOC_READ | _IOC_WRITE, TYPE, number, size_of::<T>() as u32)
}

pub(super) const USERFAULTFD_IOC_NEW: c_ulong = ioctl_expr(_IOC_NONE, TYPE, 0x00, 0);
pub(super) const UFFDIO_API: c_ulong = read_write::<ApiArg>(0x3f);
pub(super) const UFFDIO_REGISTER: c_ulong = read_write::<RegisterArg>(0x00);
pub(super) const UFFDIO_CONTINUE: c_ulong = read_write::<ContinueArg>(0x07);
// "Read", though the kernel reads it: so the header has it.
pub(super) const UFFDIO_UNREGISTER: c_ulong = ioctl_expr(_IOC_READ, TYPE, 0x01, size_of::<Range>() as u32);
pub(super) const UFFDIO_WAKE: c_ulong = ioctl_expr(_IOC_READ, TYPE, 0x02, size_of::<Range>() as u32);

// The numbers as a C compiler makes them of the header.
const _: () = {
    assert!(USERFAULTFD_IOC_NEW == 0xaa00);
    assert!(UFFDIO_API == 0xc018_aa3f);
    assert!(UFFDIO_REGISTER == 0xc020_aa00);
    assert!(UFFDIO_CONTINUE == 0xc020_aa07);
    assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
    assert!(UFFDIO_WAKE == 0x8010_aa02);
    assert!(size_of::<Message>() == 32);
    assert!(std::mem::offset_of!(Message, flags) == 8);
    assert!(std::mem::offset_of!(Message, address) == 16);
    assert!(std::mem::offset_of!(Message, ptid) == 24);
    assert!(std::mem::offset_of!(RegisterArg, ioctls) == 24);
    assert!(std::mem::offset_of!(ContinueArg, mapped) == 24);
};
