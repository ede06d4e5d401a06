use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// From one announcement to the next. A switch or a host may miss one; QEMU repeats them about as often.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(250),
];

/// When a guest that has just arrived is announced once more.
#[derive(Debug)]
pub(super) struct Announcer {
    timer: Arc<OwnedFd>,
    /// Repetitions that are left.
    left: usize,
}

impl Announcer {
    pub(super) fn new() -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { timer: Arc::new(timer), left: 0 })
    }

    /// The guest is announced now, and will be again.
    pub(super) fn begin(&mut self) {
        self.left = PAUSES.len();
        self.arm();
    }

    pub(super) fn stop(&mut self) {
        self.left = 0;
        self.arm();
    }

    /// Readable when it is time; `None` when that won't come.
    pub(super) fn timer(&self) -> Option<&Arc<OwnedFd>> {
        (self.left > 0).then_some(&self.timer)
    }

    /// Whether it is time for an announcement, after which the next is waited for.
    pub(super) fn is_due(&mut self) -> bool {
        if self.left == 0 || rustix::io::read(&*self.timer, &mut [0; 8]).is_err() {
            return false;
        }
        self.left -= 1;
        self.arm();
        true
    }

    fn arm(&self) {
        // All zero is off.
        let pause = PAUSES.get(PAUSES.len() - self.left).copied().unwrap_or_default();
        let off = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_nsec: i64::from(pause.subsec_nanos()), ..off };
        timerfd_settime(
            &*self.timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: off, it_value: value },
        )
        .expect("a timer of our own takes any time below a second");
    }
}
