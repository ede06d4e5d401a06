use std::io;
use std::mem::MaybeUninit;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// The CPU time that a thread has used, guest mode included; for any thread to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// The clock of a thread that has not been joined.
    ///
    /// # Errors
    /// The kernel's answer, as when the thread has ended.
    pub fn of<T>(thread: &JoinHandle<T>) -> io::Result<Self> {
        let mut clock = MaybeUninit::uninit();
        // SAFETY: as long as its handle exists the thread has neither been joined nor detached, so its id is
        // valid; the call writes one clock id.
        match unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), clock.as_mut_ptr()) } {
            // SAFETY: the call succeeded, so it wrote the id.
            0 => Ok(Self(unsafe { clock.assume_init() })),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The CPU time until now.
    ///
    /// # Errors
    /// `EINVAL` once the thread has ended.
    pub fn now(self) -> io::Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call writes one timespec, and takes any clock id.
        if unsafe { libc::clock_gettime(self.0, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn the_clock_runs_with_its_thread_and_ends_with_it() {
        let (go, wait) = channel::<Duration>();
        let thread = thread::spawn(move || {
            let mut sum = 0u64;
            while wait.try_recv().is_err() {
                sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
            }
        });
        let clock = ThreadClock::of(&thread).unwrap();
        let before = clock.now().unwrap();
        while clock.now().unwrap() == before {
            thread::yield_now();
        }
        go.send(Duration::ZERO).unwrap();
        thread.join().unwrap();
        // The kernel lets go of a thread a moment after it wakes who joins it.
        while clock.now().is_ok() {
            thread::yield_now();
        }
    }
}
