use rustix::process::setpriority_process;

/// Well before every thread of default priority. The scheduler then lets the thread run as soon as it wakes, even on a
/// core where the push, or the guest, is in the middle of its slice.
const NICE: i32 = -10;

/// Gives this thread the priority of one that a waiting vCPU waits for. It does little and sleeps most of the time.
/// Without the permission (`CAP_SYS_NICE`, or `RLIMIT_NICE`) it stays as it is: faults then wait a little longer
/// on busy hosts.
pub fn raise() {
    // On Linux a priority is a thread's, and no id is the calling thread's.
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!("a thread that serves page faults keeps its priority: {error}");
    }
}

/// Well behind every thread of default priority, and still a tenth of a core where all are busy.
const NICE_BEHIND: i32 = 10;

/// Lets every other thread go first, for as long as this one lives: nobody gets a priority back without permission.
pub fn lower() {
    if let Err(error) = setpriority_process(None, NICE_BEHIND) {
        tracing::debug!("a thread that frees memory keeps its priority: {error}");
    }
}
