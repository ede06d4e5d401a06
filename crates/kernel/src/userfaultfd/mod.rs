//! userfaultfd: another thread, or another host, provides the pages that a mapping lacks.

mod abi;
mod error;
mod open;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use thiserror::Error;
use vm_memory::{MmapRegion, VolatileMemory};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use abi::{
    CONTINUE_BIT, ContinueArg, Message, Range, RegisterArg, UFFD_EVENT_PAGEFAULT, UFFD_PAGEFAULT_FLAG_WRITE,
    UFFDIO_CONTINUE, UFFDIO_REGISTER, UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING,
    UFFDIO_UNREGISTER, UFFDIO_WAKE, WAKE_BIT,
};
pub use error::UserfaultfdError;

/// The page size of all memory that is watched here, in bytes.
const PAGE_SIZE: usize = 4096;
/// Most faults that one read takes.
const READ_BATCH: usize = 64;

/// One access to a page that is not mapped; the thread waits until [`Userfaultfd::map`],
/// [`wake`](Userfaultfd::wake) or [`unregister`](Userfaultfd::unregister) of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultEvent {
    /// Host address of the page.
    pub address: u64,
    /// Whether it was a write.
    pub is_write: bool,
    /// Thread that waits, as gettid(2) names it; 0 where the kernel doesn't say (before Linux 4.14).
    pub thread: u32,
}

/// A range could be mapped only in part.
#[derive(Debug, Error)]
#[error("{error} (after {bytes} bytes)")]
pub struct PartlyMapped {
    /// Bytes at the range's start that are mapped now, or were before.
    pub bytes: usize,
    /// Why the next page is not.
    #[source]
    pub error: UserfaultfdError,
}

impl PartlyMapped {
    /// Whether the next page is one that the file doesn't have.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        matches!(&self.error, UserfaultfdError::Call { source, .. } if source.raw_os_error() == Some(libc::EFAULT))
    }
}

/// A userfaultfd over shared mappings of memfds of 4 KiB pages.
///
/// A page of a registered mapping that has no page-table entry traps, whether or not the file has a
/// page there (minor and missing faults). It is resolved by giving the file its page through another
/// mapping and then [mapping](Self::map) it. Closing it lets go of all memory and all who wait.
///
/// To be polled for reading: there is a fault to [read](Self::read_faults).
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Userfaultfd {
    /// Makes accesses to unmapped pages of all of `region` trap. Pages that are mapped stay so.
    ///
    /// # Errors
    /// [`UserfaultfdError::Call`], as where `region` is no shared mapping of a memfd.
    pub fn register(&self, region: &MmapRegion<()>) -> Result<(), UserfaultfdError> {
        let mut arg = RegisterArg {
            range: range(region, 0, region.size()),
            mode: UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes the struct, which is the size that the call's number says.
        // Of the mapping it changes only who waits for a page.
        let result = unsafe { ioctl_with_mut_ref(&self.fd, UFFDIO_REGISTER, &mut arg) };
        check("UFFDIO_REGISTER", result)?;
        if arg.ioctls & (CONTINUE_BIT | WAKE_BIT) == CONTINUE_BIT | WAKE_BIT {
            return Ok(());
        }
        self.unregister(region)?;
        Err(UserfaultfdError::Unsupported { feature: "UFFDIO_CONTINUE for this memory" })
    }

    /// Lets go of all of `region` and of whoever waits there: from now on the file's own pages answer,
    /// and zeros where it has none.
    ///
    /// # Errors
    /// [`UserfaultfdError::Call`].
    pub fn unregister(&self, region: &MmapRegion<()>) -> Result<(), UserfaultfdError> {
        let range = range(region, 0, region.size());
        // SAFETY: the kernel reads the struct, which is the size that the call's number says.
        let result = unsafe { ioctl_with_ref(&self.fd, UFFDIO_UNREGISTER, &range) };
        check("UFFDIO_UNREGISTER", result)
    }

    /// Maps the file's pages of a range of a registered mapping (UFFDIO_CONTINUE) and wakes whoever waits
    /// for them. Pages that are mapped already stay, and who waits for them is woken too.
    ///
    /// # Errors
    /// [`PartlyMapped`] says up to where: EFAULT where the file has no page, ENOENT where the range is not
    /// registered.
    ///
    /// # Panics
    /// When the range lies outside of the mapping or is not whole pages.
    pub fn map(&self, region: &MmapRegion<()>, offset: usize, length: usize) -> Result<(), PartlyMapped> {
        let whole = range(region, offset, length);
        let failed = |at, error| PartlyMapped { bytes: (at - whole.start) as usize, error };
        assert!(offset.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE), "whole pages");
        let (mut at, end) = (whole.start, whole.start + whole.len);
        while at < end {
            let mut arg = ContinueArg { range: Range { start: at, len: end - at }, ..Default::default() };
            // SAFETY: the kernel reads and writes the struct, which is the size that the call's number
            // says, and maps pages of a file where they belong: memory that is accessed as volatile.
            let result = unsafe { ioctl_with_mut_ref(&self.fd, UFFDIO_CONTINUE, &mut arg) };
            if result == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // A part was done, and its waiters are awake.
                Some(libc::EAGAIN) if arg.mapped > 0 => at += arg.mapped as u64,
                // The address space is just being changed (by fork or munmap): nothing was done.
                Some(libc::EAGAIN) => std::thread::yield_now(),
                // The first page is mapped already. Who came too late for its wake-up gets one of their own.
                Some(libc::EEXIST) => {
                    let page = PAGE_SIZE as u64;
                    self.wake_range(Range { start: at, len: page }).map_err(|error| failed(at, error))?;
                    at += page;
                }
                _ => return Err(failed(at, UserfaultfdError::call("UFFDIO_CONTINUE", error))),
            }
        }
        Ok(())
    }

    /// Wakes whoever waits for pages of a range; a page that is not mapped then traps anew.
    ///
    /// # Errors
    /// [`UserfaultfdError::Call`].
    ///
    /// # Panics
    /// When the range lies outside of the mapping.
    pub fn wake(
        &self,
        region: &MmapRegion<()>,
        offset: usize,
        length: usize,
    ) -> Result<(), UserfaultfdError> {
        self.wake_range(range(region, offset, length))
    }

    fn wake_range(&self, range: Range) -> Result<(), UserfaultfdError> {
        // SAFETY: the kernel reads the struct, which is the size that the call's number says.
        let result = unsafe { ioctl_with_ref(&self.fd, UFFDIO_WAKE, &range) };
        check("UFFDIO_WAKE", result)
    }

    /// Appends faults that nobody has read yet, many at once and without waiting, and returns how many.
    /// Each access is one fault: threads that wait for the same page are told one by one.
    ///
    /// # Errors
    /// [`UserfaultfdError::Call`].
    pub fn read_faults(&self, out: &mut Vec<FaultEvent>) -> Result<usize, UserfaultfdError> {
        let mut messages = [Message::default(); READ_BATCH];
        let size = size_of_val(&messages);
        // SAFETY: the kernel writes at most `size` bytes into the array, for which any bytes are valid.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), size) };
        let Ok(read) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // EAGAIN: no fault, or its thread was woken meanwhile.
                Some(libc::EAGAIN | libc::EINTR) => Ok(0),
                _ => Err(UserfaultfdError::call("read of a userfaultfd", error)),
            };
        };
        let before = out.len();
        let faults = messages[..read / size_of::<Message>()].iter();
        out.extend(faults.filter(|message| message.event == UFFD_EVENT_PAGEFAULT).map(|message| {
            FaultEvent {
                address: message.address & !(PAGE_SIZE as u64 - 1),
                is_write: message.flags & UFFD_PAGEFAULT_FLAG_WRITE != 0,
                thread: message.ptid,
            }
        }));
        Ok(out.len() - before)
    }
}

/// The host addresses of a part of a mapping.
fn range(region: &MmapRegion<()>, offset: usize, length: usize) -> Range {
    let slice = region.get_slice(offset, length).expect("the range lies in the mapping");
    Range { start: slice.ptr_guard().as_ptr().addr() as u64, len: length as u64 }
}

fn check(call: &'static str, result: libc::c_int) -> Result<(), UserfaultfdError> {
    if result == 0 { Ok(()) } else { Err(UserfaultfdError::call(call, io::Error::last_os_error())) }
}
