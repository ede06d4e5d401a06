use std::io;

use thiserror::Error;

/// Why userfaultfd can't be used. The text says what a person would do next.
#[derive(Debug, Error)]
pub enum UserfaultfdError {
    /// This process may not have one, by either way.
    #[error(
        "userfaultfd is not permitted (/dev/userfaultfd: {device}; the system call: {syscall}); give this user \
         read and write access to /dev/userfaultfd, or CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1"
    )]
    NotPermitted {
        /// What opening the device said.
        device: io::Error,
        /// What the system call said.
        syscall: io::Error,
    },
    /// The kernel was built without it.
    #[error(
        "this kernel has no userfaultfd ({0}); post-copy needs one built with CONFIG_USERFAULTFD, 5.14 or newer"
    )]
    Absent(#[source] io::Error),
    /// The kernel's is too old.
    #[error("this kernel's userfaultfd lacks {feature}; post-copy needs Linux 5.14 or newer")]
    Unsupported {
        /// The feature, as the kernel's header names it.
        feature: &'static str,
    },
    /// A call failed.
    #[error("{call} failed: {meaning} ({source})")]
    Call {
        /// The call, as the kernel's header names it.
        call: &'static str,
        /// What the errno means for this call.
        meaning: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl UserfaultfdError {
    pub(super) fn call(call: &'static str, source: io::Error) -> Self {
        let meaning = match source.raw_os_error().unwrap_or(0) {
            libc::EBUSY => "another userfaultfd of this process watches the memory already",
            libc::EINVAL => "the memory is no shared memory of 4 KiB pages that can be watched",
            libc::ENOENT => "the memory is not watched, or not mapped any more",
            libc::EFAULT => "the file has no page there: it must be filled before it is mapped",
            libc::ENOMEM => "the host kernel is out of memory; free some or raise the cgroup's limit",
            libc::EMFILE | libc::ENFILE => "too many open files; raise RLIMIT_NOFILE",
            libc::ESRCH => "the process is ending",
            _ => "unexpected answer of the kernel",
        };
        Self::Call { call, meaning, source }
    }
}
