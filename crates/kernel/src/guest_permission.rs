use std::io;

use crate::KvmError;

/// Asks for the permission to give guests an XSAVE component (arch/x86/include/uapi/asm/prctl.h).
const ARCH_REQ_XCOMP_GUEST_PERM: libc::c_int = 0x1025;
/// AMX' tile data, by its bit in XCR0; it brings the tile configuration along.
const XFEATURE_XTILEDATA: libc::c_ulong = 18;
/// What refusals are told as.
const AMX: &str = "AMX";

// Options of arch_prctl are counted from ARCH_GET_XCOMP_SUPP; another one would be granted as silently.
const _: () = {
    const ARCH_GET_XCOMP_SUPP: libc::c_int = 0x1021;
    assert!(ARCH_REQ_XCOMP_GUEST_PERM == ARCH_GET_XCOMP_SUPP + 4);
};

/// Lets the guests of this process have AMX (ARCH_REQ_XCOMP_GUEST_PERM, Linux 5.17). Before that KVM shows
/// no AMX and refuses vCPUs that have it. Must come before the process's first vCPU; asking again is no error.
///
/// # Errors
/// [`KvmError::Unsupported`] where the CPU or the kernel has no AMX; [`KvmError::Call`] otherwise.
pub fn permit_guest_amx() -> Result<(), KvmError> {
    // SAFETY: the option takes a number and touches no memory of this process; it widens what later vCPUs may have.
    let result =
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM, XFEATURE_XTILEDATA) };
    if result == 0 { Ok(()) } else { Err(refusal(io::Error::last_os_error())) }
}

fn refusal(source: io::Error) -> KvmError {
    match source.raw_os_error() {
        // Not this CPU; not this option; not this call.
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS) => KvmError::Unsupported {
            capability: AMX,
            advice: "this CPU has none, or its kernel is older than Linux 5.17 or hides it",
        },
        _ => KvmError::call(
            "arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)",
            source,
            &[(
                libc::EBUSY,
                "this process has made a vCPU already, and the first one fixes what vCPUs may have",
            )],
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_whether_amx_can_be_had_at_all() {
        let text = |errno| refusal(io::Error::from_raw_os_error(errno)).to_string();
        for errno in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
            assert!(text(errno).starts_with("KVM has no AMX here"), "{}", text(errno));
        }
        assert!(text(libc::EBUSY).contains("made a vCPU already"), "{}", text(libc::EBUSY));
    }

    #[test]
    fn the_kernel_knows_the_call() {
        match permit_guest_amx() {
            Ok(()) => permit_guest_amx().expect("what is permitted stays so"),
            Err(KvmError::Unsupported { capability, .. }) => assert_eq!(capability, AMX),
            Err(error) => panic!("{error}"),
        }
    }
}
