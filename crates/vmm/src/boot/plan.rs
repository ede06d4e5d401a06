//! The registers that vCPUs begin with.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Guest-physical address of the GDT.
pub(super) const GDT_ADDRESS: u64 = 0x500;

/// Flat 32-bit segments: code and data where Linux's protocol wants them (`__BOOT_CS`, `__BOOT_DS`), which PVH leaves
/// open, and a busy 32-bit TSS, which PVH asks for.
pub(super) const GDT: [u64; 5] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// RFLAGS after reset: bit 1 is always set.
const RFLAGS_RESET: u64 = 0x2;
/// Protected mode, and ET, which is always set; no paging.
const CR0_PE_ET: u64 = 0x11;

/// By which protocol a kernel is entered, both in 32-bit protected mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// PVH: RBX has the address of `hvm_start_info`.
    Pvh,
    /// Linux's own: RSI has the address of `boot_params` (Documentation/arch/x86/boot.rst, 32-bit boot protocol).
    Linux,
}

/// How a loaded guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// Guest-physical address of the 32-bit entry point.
    pub entry: u64,
    /// Which protocol `info` is of.
    pub protocol: BootProtocol,
    /// Guest-physical address of what the first vCPU is handed over.
    pub info: u64,
    /// Where the other vCPUs begin, for a guest that does not start them itself by INIT and SIPI.
    pub ap_entry: Option<u64>,
}

impl BootPlan {
    /// General registers. The first vCPU gets what is handed over in the register that the protocol names; the
    /// others, where they begin by themselves, get RBX = 0 and their index in RDI.
    #[must_use]
    pub fn regs(&self, vcpu: u32) -> kvm_regs {
        let mut regs = kvm_regs { rflags: RFLAGS_RESET, ..Default::default() };
        match (vcpu, self.ap_entry) {
            (0, _) => {
                regs.rip = self.entry;
                match self.protocol {
                    BootProtocol::Pvh => regs.rbx = self.info,
                    BootProtocol::Linux => regs.rsi = self.info,
                }
            }
            (_, Some(entry)) => {
                regs.rip = entry;
                regs.rdi = vcpu.into();
            }
            (_, None) => {}
        }
        regs
    }

    /// Special registers of a vCPU that [starts running](Self::starts_running): flat 32-bit protected mode
    /// without paging. What `base` holds beside (the APIC's base) stays.
    #[must_use]
    pub fn sregs(&self, base: kvm_sregs) -> kvm_sregs {
        let data = flat(DATA_SELECTOR, 3);
        let tr = kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..flat(TSS_SELECTOR, 11) };
        kvm_sregs {
            cs: flat(CODE_SELECTOR, 11),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr,
            gdt: kvm_dtable { base: GDT_ADDRESS, limit: size_of_val(&GDT) as u16 - 1, ..Default::default() },
            idt: kvm_dtable::default(),
            cr0: CR0_PE_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            ..base
        }
    }

    /// Whether the vCPU begins with these registers (KVM_MP_STATE_RUNNABLE). The others keep their reset state
    /// and wait for the guest's INIT and SIPI (KVM_MP_STATE_UNINITIALIZED).
    #[must_use]
    pub const fn starts_running(&self, vcpu: u32) -> bool {
        vcpu == 0 || self.ap_entry.is_some()
    }
}

/// A present 4 GiB segment; `type_` as in a descriptor, with the accessed (or busy) bit set.
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}
