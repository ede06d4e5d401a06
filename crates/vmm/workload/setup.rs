//! What the first vCPU does before all others begin: parameters, memory map, tables, header.

use core::arch::x86_64::__cpuid;
use core::cell::UnsafeCell;
use core::hint;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::counters::{self, header};
use crate::layout::{Arena, COUNTERS_BASE, Plan};
use crate::machine;
use crate::memory::store;
use crate::params::{Leaves, PAGE_SIZE, Params, Problem};
use crate::pvh::Boot;
use crate::serial::{Hex, print};

/// What all vCPUs know.
pub struct Setup {
    pub params: Params,
    pub arena: Arena,
    pub plan: Plan,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u64,
}

struct Shared(UnsafeCell<MaybeUninit<Setup>>);

// SAFETY: written before `READY` is set, only read after.
unsafe impl Sync for Shared {}

static SETUP: Shared = Shared(UnsafeCell::new(MaybeUninit::uninit()));
static READY: AtomicBool = AtomicBool::new(false);

/// Why the guest can't start: what, and the word of the command line, if any.
pub struct Refusal(pub &'static str, pub &'static str);

/// Sets everything up and lets all vCPUs go.
///
/// # Errors
/// What to tell on the console.
///
/// # Safety
/// Called once, by the first vCPU, with the address that the loader left.
pub unsafe fn publish(start_info: u64) -> Result<(), Refusal> {
    machine::set_gates();
    machine::allow_serial(0);
    // SAFETY: passed on from the caller; nothing was written below 1 MiB yet.
    let boot = unsafe { Boot::read(start_info) }.map_err(|what| Refusal(what, ""))?;
    let params = Params::parse(boot.cmdline).map_err(|bad| {
        let what = match bad.problem {
            Problem::NotKeyValue => "not of the form key=value: ",
            Problem::UnknownKey => "unknown key: ",
            Problem::Repeated => "given twice: ",
            Problem::BadValue => "bad value: ",
        };
        Refusal(what, bad.word)
    })?;
    print_cpuid(&params.cpuid);
    let tsc_khz = match params.tsc_khz {
        0 => cpuid_tsc_khz()
            .ok_or(Refusal("CPUID does not tell the TSC's frequency, give it as tsc_khz=", ""))?,
        khz => khz,
    };
    let arena = Arena::new(boot.ram());
    let plan = Plan::new(&arena, &params).map_err(|_| Refusal("hot and fill don't fit into RAM", ""))?;
    machine::map(&arena);
    let setup = Setup { params, arena, plan, tsc_khz };
    write_header(&setup);
    // SAFETY: nobody reads it before `READY` is set.
    unsafe { (*SETUP.0.get()).write(setup) };
    READY.store(true, Ordering::Release);
    Ok(())
}

/// Waits until the first vCPU has set up.
pub fn wait() -> &'static Setup {
    while !READY.load(Ordering::Acquire) {
        hint::spin_loop();
    }
    // SAFETY: written before `READY` was set and not since.
    unsafe { (*SETUP.0.get()).assume_init_ref() }
}

fn write_header(setup: &Setup) {
    let words = (1 + setup.params.vcpus) * PAGE_SIZE / 8;
    for word in 0..words {
        store(COUNTERS_BASE + word * 8, 0);
    }
    let Setup { params, arena, plan, tsc_khz } = setup;
    for (word, value) in [
        (header::VERSION, counters::VERSION),
        (header::VCPUS, params.vcpus),
        (header::TSC_KHZ, *tsc_khz),
        (header::HOT_PAGES, plan.hot_pages),
        (header::FILL_PAGES, plan.fill_pages),
        (header::HOT_ADDRESS, arena.address(plan.hot)),
        (header::FILL_ADDRESS, arena.address(plan.fill)),
        (header::GENERATIONS_ADDRESS, arena.address(plan.generations)),
        (header::MAGIC, counters::MAGIC),
    ] {
        store(COUNTERS_BASE + word * 8, value);
    }
}

/// A line for each leaf: leaf, subleaf, EAX, EBX, ECX, EDX.
fn print_cpuid(leaves: &Leaves) {
    for &(leaf, subleaf) in leaves.as_slice() {
        let [eax, ebx, ecx, edx] = machine::cpuid(leaf, subleaf);
        let [leaf, subleaf, eax, ebx, ecx, edx] = [leaf, subleaf, eax, ebx, ecx, edx].map(|n| Hex::new(n.into()));
        print(&["workload: cpuid ", leaf.half(), " ", subleaf.half(), ": "]);
        print(&[eax.half(), " ", ebx.half(), " ", ecx.half(), " ", edx.half(), "\r\n"]);
    }
}

/// The TSC's frequency by leaf 0x15 (crystal clock and ratio), a hypervisor's timing leaf 0x4000_0010, or
/// leaf 0x16 (the base frequency, which on processors without leaf 0x15's crystal is the TSC's).
fn cpuid_tsc_khz() -> Option<u64> {
    let last = __cpuid(0).eax;
    if last >= 0x15 {
        let ratio = __cpuid(0x15);
        if ratio.eax != 0 && ratio.ecx != 0 {
            return Some(u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax) / 1000)
                .filter(|khz| *khz > 0);
        }
    }
    if __cpuid(1).ecx >> 31 == 1 && (0x4000_0010..0x4001_0000).contains(&__cpuid(0x4000_0000).eax) {
        let timing = __cpuid(0x4000_0010).eax;
        if timing != 0 {
            return Some(u64::from(timing));
        }
    }
    (last >= 0x16).then(|| u64::from(__cpuid(0x16).eax & 0xffff) * 1000).filter(|khz| *khz > 0)
}
