//! Getting a vCPU out of guest mode. This file is the crate's only unsafe room.
//!
//! A kick is two things: `immediate_exit` is set in the page that the vCPU's thread shares with KVM,
//! so that a thread about to enter the guest does not; and a signal is sent, so that a thread inside
//! comes out. Either way KVM_RUN fails with EINTR, after it completed what the last exit had left
//! open, such as an IN instruction whose value was delivered but not yet taken.

use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use migrated_kernel::ThreadClock;
use parking_lot::Mutex;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Size of the part of the shared page that is mapped, in bytes: `kvm_run`'s head lies in it.
const PAGE_SIZE: usize = 4096;
const _: () = assert!(offset_of!(kvm_run, immediate_exit) == 1);

/// Kicks one vCPU from any thread.
///
/// The page is mapped a second time: [`VcpuFd`] hands out `&mut kvm_run` to the vCPU's own thread, and
/// no other thread may write through an alias of that.
#[derive(Debug)]
pub(crate) struct Kicker {
    page: MmapRegion<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Kicker {
    pub(crate) fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        register_handler()?;
        // SAFETY: `vcpu` keeps the descriptor open for the whole of this statement, which duplicates it.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) }.try_clone_to_owned()?;
        let file = FileOffset::new(File::from(fd), 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let page =
            MmapRegion::build(Some(file), PAGE_SIZE, prot, libc::MAP_SHARED).map_err(io::Error::other)?;
        Ok(Self { page, thread: Mutex::new(None) })
    }

    /// Names the thread that runs the vCPU.
    pub(crate) fn attach(&self, thread: JoinHandle<()>) {
        *self.thread.lock() = Some(thread);
    }

    /// The CPU time of the thread that runs the vCPU, if that exists.
    pub(crate) fn clock(&self) -> Option<ThreadClock> {
        self.thread.lock().as_ref().and_then(|thread| ThreadClock::of(thread).ok())
    }

    /// Makes KVM_RUN return, whether the thread is in it or about to enter.
    pub(crate) fn kick(&self) {
        self.immediate_exit(1);
        if let Some(thread) = &*self.thread.lock() {
            // The thread has not been joined, so its handle is valid; the signal has a handler.
            if let Err(error) = thread.kill(SIGRTMIN()) {
                tracing::error!("a vCPU's thread can't be signalled: {error}");
            }
        }
    }

    /// Lets KVM_RUN enter the guest again. Only for the vCPU's own thread, see [`Gate`](crate::gate::Gate).
    pub(crate) fn rearm(&self) {
        self.immediate_exit(0);
    }

    /// Waits for the thread to end.
    pub(crate) fn join(&self) {
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a vCPU's thread panicked");
        }
    }

    fn immediate_exit(&self, value: u8) {
        self.page
            .get_atomic_ref::<AtomicU8>(offset_of!(kvm_run, immediate_exit))
            .expect("the field lies in the mapped page")
            .store(value, Ordering::SeqCst);
    }
}

/// The signal need not do anything: that it is delivered is what ends KVM_RUN. Without a handler it
/// would end the process.
fn register_handler() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static REGISTERED: OnceLock<Result<(), i32>> = OnceLock::new();
    REGISTERED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), ignore).map_err(|error| error.errno()))
        .map_err(io::Error::from_raw_os_error)
}
