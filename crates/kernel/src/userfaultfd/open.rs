//! Getting a userfaultfd that sees faults of the kernel too, and making sure that it can do what is needed.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};

use super::abi::{
    ApiArg, UFFD_API, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM, UFFD_FEATURE_THREAD_ID,
    UFFDIO_API, USERFAULTFD_IOC_NEW,
};
use super::{Userfaultfd, UserfaultfdError};

/// What post-copy can't do without.
const NEEDED: [(u64, &str); 2] = [
    (UFFD_FEATURE_MISSING_SHMEM, "UFFD_FEATURE_MISSING_SHMEM"),
    (UFFD_FEATURE_MINOR_SHMEM, "UFFD_FEATURE_MINOR_SHMEM"),
];
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

impl Userfaultfd {
    /// Opens one, with thread ids in its events where the kernel has them.
    ///
    /// # Errors
    /// [`UserfaultfdError`] says what permission or kernel is missing.
    pub fn open() -> Result<Self, UserfaultfdError> {
        open_by(from_device, from_syscall)
    }
}

/// The descriptor by the first way that works. A file's permissions are the administrator's finer
/// means, so the device comes first; the system call is all that Linux before 6.1 has.
///
/// UFFD_USER_MODE_ONLY, which needs no permission, is of no use here: KVM's own accesses to guest memory
/// come out of the kernel, and would fail instead of waiting.
fn open_by(
    device: impl Fn() -> io::Result<OwnedFd>,
    syscall: impl Fn() -> io::Result<OwnedFd>,
) -> Result<Userfaultfd, UserfaultfdError> {
    let open = || {
        device().or_else(|device| {
            syscall().map_err(|syscall| match syscall.raw_os_error() {
                Some(libc::ENOSYS) => UserfaultfdError::Absent(syscall),
                Some(libc::EPERM) => UserfaultfdError::NotPermitted { device, syscall },
                _ => UserfaultfdError::call("userfaultfd", syscall),
            })
        })
    };
    // A descriptor takes one handshake, and one that asks for what is not there fails: so one asks.
    let offered = handshake(&open()?, 0)?;
    if let Some((_, feature)) = NEEDED.into_iter().find(|(bit, _)| offered & bit == 0) {
        return Err(UserfaultfdError::Unsupported { feature });
    }
    let wanted = NEEDED.iter().fold(UFFD_FEATURE_THREAD_ID & offered, |all, (bit, _)| all | bit);
    let fd = open()?;
    handshake(&fd, wanted)?;
    Ok(Userfaultfd { fd })
}

fn from_device() -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: the call takes flags by value and touches no memory of this process.
    owned(unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW, FLAGS as libc::c_ulong) })
}

fn from_syscall() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags by value and touches no memory of this process.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) } as libc::c_int)
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for this call, and that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Switches `features` on and returns all that the kernel has.
fn handshake(fd: &impl AsRawFd, features: u64) -> Result<u64, UserfaultfdError> {
    let mut api = ApiArg { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: the kernel reads and writes the struct, which is the size that the call's number says.
    if unsafe { ioctl_with_mut_ref(fd, UFFDIO_API, &mut api) } == 0 {
        Ok(api.features)
    } else {
        Err(UserfaultfdError::call("UFFDIO_API", io::Error::last_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: i32) -> impl Fn() -> io::Result<OwnedFd> {
        move || Err(io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn a_missing_permission_is_told_with_both_ways_to_give_it() {
        let error = open_by(refused(libc::EACCES), refused(libc::EPERM)).unwrap_err();
        assert!(matches!(error, UserfaultfdError::NotPermitted { .. }), "{error:?}");
        let text = error.to_string();
        for part in ["Permission denied", "access to /dev/userfaultfd", "vm.unprivileged_userfaultfd=1"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_kernel_without_it_is_told_apart_from_a_missing_permission() {
        let error = open_by(refused(libc::ENOENT), refused(libc::ENOSYS)).unwrap_err();
        assert!(error.to_string().contains("CONFIG_USERFAULTFD"), "{error}");
        let error = open_by(refused(libc::ENOENT), refused(libc::EMFILE)).unwrap_err();
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused() {
        let error = open_by(|| Ok(std::fs::File::open("/dev/null")?.into()), refused(libc::EPERM));
        assert!(matches!(error, Err(UserfaultfdError::Call { call: "UFFDIO_API", .. })), "{error:?}");
    }
}
