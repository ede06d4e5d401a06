//! What becomes of an exception: a line on the console, a mark in the counters, and the vCPU stops.

use crate::counters::{status, vcpu};
use crate::machine;
use crate::memory::store;
use crate::serial::{Hex, print_anyway};
use crate::vcpu::counter;

/// Where `entry.s` returns to from an exception at CPL 3.
///
/// # Safety
/// Called by `entry.s` only.
#[unsafe(no_mangle)]
unsafe extern "C" fn report(vector: u64, rip: u64, code: u64, address: u64, index: u64) -> ! {
    store(counter(index, vcpu::FAULT_VECTOR), vector);
    store(counter(index, vcpu::FAULT_RIP), rip);
    store(counter(index, vcpu::STATUS), status::FAULTED);
    let [index, vector, rip, code, address] = [index, vector, rip, code, address].map(Hex::new);
    print_anyway(&[
        "workload: vCPU ",
        index.text(),
        " stopped by exception ",
        vector.text(),
        " at ",
        rip.text(),
    ]);
    print_anyway(&[", error code ", code.text(), ", CR2 ", address.text(), "\r\n"]);
    machine::stop()
}
