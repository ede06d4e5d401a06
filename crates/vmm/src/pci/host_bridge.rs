use super::{ConfigSpace, Identity, PciFunction};

/// What a bus hangs on. It has no registers of its own, but kernels trust a bus only where they find one.
pub(super) struct HostBridge(ConfigSpace);

impl HostBridge {
    pub(super) fn new() -> Self {
        // Intel's "virtual PCIe host", of which no kernel believes to know errata; Cloud Hypervisor has it, too.
        let identity = Identity {
            vendor: 0x8086,
            device: 0x0d57,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self(ConfigSpace::new(identity))
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, register: u8, data: &mut [u8]) {
        self.0.read(register, data);
    }

    fn write_config(&self, _register: u8, _data: &[u8]) {}

    fn read_memory(&self, _address: u64, _data: &mut [u8]) -> bool {
        false
    }

    fn write_memory(&self, _address: u64, _data: &[u8]) -> bool {
        false
    }
}
