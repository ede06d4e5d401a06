use std::fs::File;
use std::path::PathBuf;

use migrated_cpuid::GuestCpu;
use migrated_guest::TrackerKind;

/// What a VM is made of.
#[derive(Debug)]
pub struct VmConfig {
    /// Name for logs and threads.
    pub name: String,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// What backs the RAM on the host.
    pub backing: MemoryBacking,
    /// Touch all RAM at creation, in parallel, so that no first-touch cost falls into the guest's time.
    pub prefault: bool,
    /// How written pages are found during a migration; fixed when the VM is made.
    pub tracking: TrackerKind,
    /// The CPU that the guest gets: of its baseline, or as it had it where it comes from. `None` is for all
    /// that this host offers.
    pub cpu: Option<GuestCpu>,
    /// File that the console's last bytes are kept in, so that they outlive this process.
    pub console: Option<File>,
    /// Network interfaces, in the order in which the guest finds them: in the first slots of the PCI bus.
    pub networks: Vec<NetworkConfig>,
    /// Other devices, in the slots that follow. A VM without any device has no bus either.
    pub devices: Vec<DeviceConfig>,
}

/// One network interface: a virtio NIC on a TAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The NIC's address, as it goes over the wire.
    pub mac: [u8; 6],
    /// The host's bridge that the TAP becomes a port of.
    pub bridge: String,
    /// Name of the TAP, which must be free; `None` lets the kernel find one.
    pub tap: Option<String>,
    /// Largest packet in bytes, without the Ethernet header; `None` is the kernel's default.
    pub mtu: Option<u16>,
}

impl VmConfig {
    /// A VM of one vCPU and `memory_bytes` of RAM, everything else as it comes. It tracks by the dirty
    /// log, whose cost does not depend on how often a guest writes; full rings stop vCPUs.
    #[must_use]
    pub fn new(name: impl Into<String>, memory_bytes: u64) -> Self {
        Self {
            name: name.into(),
            memory_bytes,
            vcpus: 1,
            backing: MemoryBacking::default(),
            prefault: false,
            tracking: TrackerKind::Log,
            cpu: None,
            console: None,
            networks: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// A device that a VM has. A guest keeps its devices, and their order, for life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// virtio-rng: entropy of the host's.
    Rng,
    /// virtio-balloon: the guest gives RAM to the host that it is asked for, or does not need just now.
    Balloon,
    /// virtio-console: a port `org.migrated.agent` for a program in the guest, which host programs reach by a socket.
    Agent {
        /// Where the socket is made; what is there is replaced.
        socket: PathBuf,
    },
}

/// What backs guest RAM on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryBacking {
    /// 4 KiB pages of a memfd.
    #[default]
    Memfd,
    /// Transparent huge pages: of a memfd where the host allows them there, else of anonymous memory.
    Thp,
    /// 2 MiB pages of hugetlbfs, which the host must have reserved.
    Hugetlb2m,
}
