//! The workload guest: bare 64-bit code that writes its memory and notices when it is not what it wrote.
//!
//! Built by `build.rs` into a PVH ELF image of its own; three files are shared with the host's side.
//! What makes it notice is told in `pages.rs` (what a page holds) and `vcpu.rs` (who checks what, when).
//!
//! All Rust code here runs at CPL 3 with interrupts off, on memory mapped one to one.

#![no_std]
#![no_main]

mod clock;
#[allow(dead_code, reason = "shared with the host, which uses other parts of it")]
mod counters;
mod exception;
mod layout;
mod machine;
mod memory;
mod pages;
#[allow(dead_code, reason = "shared with the host, which uses other parts of it")]
mod params;
mod pvh;
mod random;
mod serial;
mod setup;
mod vcpu;

use core::panic::PanicInfo;

/// Where `entry.s` lands: `index` is the vCPU's, `start_info` is 0 except for the first.
///
/// # Safety
/// Called once per vCPU, by `entry.s` only.
#[unsafe(no_mangle)]
unsafe extern "C" fn start(index: u64, start_info: u64) -> ! {
    if index == 0 {
        // SAFETY: the first vCPU got this address from the loader and is alone until it publishes its set-up.
        match unsafe { setup::publish(start_info) } {
            Ok(()) => {}
            Err(refusal) => {
                serial::print(&["workload: can't start: ", refusal.0, refusal.1, "\r\n"]);
                machine::stop();
            }
        }
    }
    machine::allow_serial(index);
    vcpu::run(index, setup::wait())
}

/// Reported as the exception that it becomes, with the address that tells which.
#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    machine::crash()
}

/// Named by the precompiled `core`, never called: panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
