//! A guest that asks virtio-rng for entropy, again and again.

use migrated_vmm::boot::BootPlan;
use migrated_vmm::{DeviceConfig, Vm, VmConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{CODE, RAM};

/// What the guest writes to the device's registers in the beginning: (bytes, address, value) of 32 bits each.
const SCRIPT: u64 = 0x2_0000;
/// Where the device's registers begin.
const BAR: u32 = 0xc000_0000;
/// The queue: descriptors, available ring, used ring, a page each.
pub const RINGS: u64 = 0x10_0000;
/// Then the buffers, a page each.
pub const BUFFERS: u64 = RINGS + 0x3000;
pub const SIZE: u16 = 16;

/// Carries out the script, reads the device's identity by port and its status by memory, and then offers all
/// buffers again and again:
///
/// ```text
///     mov esi, 0x20000
/// 1:  lodsd; test eax, eax; jz 9f; mov ecx, eax; lodsd; mov edi, eax; lodsd
///     cmp ecx, 1; jne 2f; stosb; jmp 1b
/// 2:  cmp ecx, 2; jne 3f; stosw; jmp 1b
/// 3:  stosd; jmp 1b
/// 9:  mov eax, 0x80000800; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; in eax, dx; mov [0x8010], eax
///     mov al, [0xc0000014]; mov [0x8014], al
/// 4:  mov ax, [0x102002]; add ax, 16; mov [0x101002], ax; mov word [0xc0003000], 0
///     inc dword [0x8000]; jmp 4b
/// ```
const DRIVER: &[u8] = &[
    0xbe, 0x00, 0x00, 0x02, 0x00, 0xad, 0x85, 0xc0, 0x74, 0x1a, 0x89, 0xc1, 0xad, 0x89, 0xc7, 0xad, 0x83,
    0xf9, 0x01, 0x75, 0x03, 0xaa, 0xeb, 0xed, 0x83, 0xf9, 0x02, 0x75, 0x04, 0x66, 0xab, 0xeb, 0xe4, 0xab,
    0xeb, 0xe1, 0xb8, 0x00, 0x08, 0x00, 0x80, 0x66, 0xba, 0xf8, 0x0c, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed,
    0xa3, 0x10, 0x80, 0x00, 0x00, 0xa0, 0x14, 0x00, 0x00, 0xc0, 0xa2, 0x14, 0x80, 0x00, 0x00, 0x66, 0xa1,
    0x02, 0x20, 0x10, 0x00, 0x66, 0x83, 0xc0, 0x10, 0x66, 0xa3, 0x02, 0x10, 0x10, 0x00, 0x66, 0xc7, 0x05,
    0x00, 0x30, 0x00, 0xc0, 0x00, 0x00, 0xff, 0x05, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xdf,
];

/// Acknowledges, accepts VIRTIO_F_VERSION_1, sets queue 0 up, and is ready.
fn script() -> Vec<[u32; 3]> {
    let rings = RINGS as u32;
    [
        (1, 0x14, 0),
        (1, 0x14, 3),
        (4, 0x08, 1),
        (4, 0x0c, 1),
        (1, 0x14, 0xb),
        (2, 0x16, 0),
        (2, 0x18, SIZE.into()),
        (4, 0x20, rings),
        (4, 0x28, rings + 0x1000),
        (4, 0x30, rings + 0x2000),
        (2, 0x1c, 1),
        (1, 0x14, 0xf),
    ]
    .map(|(bytes, register, value)| [bytes, BAR + register, value])
    .to_vec()
}

fn load(memory: &GuestMemoryMmap<()>) {
    memory.write_slice(DRIVER, GuestAddress(CODE)).unwrap();
    for (n, write) in (0..).zip(script()) {
        memory.write_obj(write, GuestAddress(SCRIPT + 12 * n)).unwrap();
    }
    for n in 0..u64::from(SIZE) {
        memory.write_obj(BUFFERS + n * 0x1000, GuestAddress(RINGS + 16 * n)).unwrap();
        // 64 bytes that the device writes.
        memory.write_obj([64u32, 2], GuestAddress(RINGS + 16 * n + 8)).unwrap();
        memory.write_obj(n as u16, GuestAddress(RINGS + 0x1004 + 2 * n)).unwrap();
    }
}

pub fn config() -> VmConfig {
    VmConfig { devices: vec![DeviceConfig::Rng], ..VmConfig::new("test", RAM) }
}

pub fn run() -> Vm {
    Vm::create(config(), |memory, _| {
        load(memory);
        Ok(BootPlan { entry: CODE, start_info: 0, ap_entry: None })
    })
    .unwrap()
}

/// How many requests the device has answered, modulo 2^16.
pub fn used(vm: &Vm) -> u16 {
    vm.ram().memory().read_obj(GuestAddress(RINGS + 0x2002)).unwrap()
}
