//! What the processor keeps in memory: page directories, interrupt gates, the I/O permission map; and
//! the few instructions that Rust has no words for.

use core::arch::{asm, global_asm};
use core::ptr;

use crate::layout::{Arena, DIRECTORY_SPAN};
use crate::memory::store;
use crate::params::PAGE_SIZE;

global_asm!(include_str!("entry.s"), options(att_syntax));

unsafe extern "C" {
    static directory_table: u8;
    static interrupt_gates: u8;
    static exception_stubs: u8;
    static task_states: u8;
    fn park() -> !;
    fn ask_cpuid();
}

/// Bytes of a vCPU's task state, the I/O permission map in it included: `entry.s` sets them aside.
const TASK_STATE_SIZE: u64 = 256;
/// Where the permission map begins in a task state; one bit per port, 0 allows.
const PORT_MAP: u64 = 104;
/// First of the 8 ports of the first serial line.
pub const SERIAL: u16 = 0x3f8;

fn address_of(symbol: *const u8) -> u64 {
    symbol.expose_provenance() as u64
}

/// Maps all of the arena. The image itself maps the first GiB, in which the new directories lie.
pub fn map(arena: &Arena) {
    let table = address_of(&raw const directory_table);
    for gib in 1..=arena.directories() {
        let directory = arena.address(gib - 1);
        for entry in 0..PAGE_SIZE / 8 {
            // 2 MiB each: present, writable, user.
            store(directory + entry * 8, gib * DIRECTORY_SPAN + (entry << 21) + 0x87);
        }
        store(table + gib * 8, directory + 7);
    }
}

/// Points all exception vectors at `entry.s`.
pub fn set_gates() {
    let gates = address_of(&raw const interrupt_gates);
    for vector in 0..32 {
        let stub = address_of(&raw const exception_stubs) + vector * 16;
        // Present interrupt gate to code segment 0x08.
        let low = (stub & 0xffff) | (0x08 << 16) | (0x8e00 << 32) | ((stub & 0xffff_0000) << 32);
        store(gates + vector * 16, low);
        store(gates + vector * 16 + 8, stub >> 32);
    }
}

/// Lets a vCPU use the serial line at CPL 3.
pub fn allow_serial(index: u64) {
    let state = ptr::with_exposed_provenance_mut::<u8>(
        (address_of(&raw const task_states) + index * TASK_STATE_SIZE) as usize,
    );
    // SAFETY: the vCPU's own task state of `TASK_STATE_SIZE` bytes; the processor reads it, Rust has no object there.
    unsafe {
        state.add(PORT_MAP as usize).write_bytes(0xff, (TASK_STATE_SIZE - PORT_MAP) as usize);
        state.add(PORT_MAP as usize + SERIAL as usize / 8).write_volatile(0);
        state.add(102).cast::<u16>().write_volatile(PORT_MAP as u16);
    }
}

/// The time stamp counter.
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// CPUID as code at CPL 0 sees it: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: reads what the processor tells. The compiler keeps RBX to itself, so it is put back; the call
    // needs 8 bytes of stack, and the exception in it has a stack of its own.
    unsafe {
        asm!(
            "mov {kept}, rbx",
            "call {ask}",
            "xchg {kept}, rbx",
            kept = out(reg) ebx,
            ask = sym ask_cpuid,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
        );
    }
    [eax, ebx as u32, ecx, edx]
}

/// Writes a byte to the serial line.
pub fn serial_out(byte: u8) {
    // SAFETY: touches no memory; `allow_serial` allows the port.
    unsafe { asm!("out dx, al", in("dx") SERIAL, in("al") byte, options(nomem, nostack, preserves_flags)) };
}

/// Raises an exception (#UD).
pub fn crash() -> ! {
    // SAFETY: the exception handler reports it and stops the vCPU.
    unsafe { asm!("ud2", options(noreturn, nomem, nostack)) }
}

/// Stops this vCPU for good.
pub fn stop() -> ! {
    // SAFETY: the exception handler halts at this address.
    unsafe { park() }
}
