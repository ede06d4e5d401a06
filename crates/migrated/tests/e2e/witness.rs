use std::fs::{File, read_link};

use migrated_vmm::workload;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::host::Host;

/// Looks into guest RAM from outside and knows of itself which copy of a guest runs, whatever daemons say.
///
/// The workload guest counts its rounds in its RAM. An incoming copy has no count of its own: all it holds
/// came from the source, where the count is at least as high. So a copy that was seen, at one moment, with
/// more rounds than the source had a moment *later* has run by itself. From then on the source's count
/// must stand still for ever: else two copies ran.
pub struct Witness {
    source: Copy,
    incoming: Vec<Copy>,
    /// The source's count at the moment when an incoming copy was first seen to have run.
    stopped_at: Option<u64>,
}

struct Copy {
    pid: u32,
    ram: GuestMemoryMmap<()>,
}

impl Witness {
    /// A witness of a guest that is about to move away from its process `pid`.
    pub fn of(pid: u32) -> Self {
        Self { source: Copy::of(pid).unwrap(), incoming: Vec::new(), stopped_at: None }
    }

    /// Looks once.
    #[track_caller]
    pub fn look(&mut self, destination: &Host) {
        for pid in destination.vm_processes() {
            if self.incoming.iter().all(|copy| copy.pid != pid) {
                self.incoming.extend(Copy::of(pid));
            }
        }
        let counts: Vec<_> = self.incoming.iter().filter_map(Copy::rounds).collect();
        // Read after those: at the source the count only grows. One that is gone is the freed RAM of a guest that left.
        let Some(at_source) = self.source.rounds() else { return };
        match self.stopped_at {
            Some(stopped_at) => assert_eq!(at_source, stopped_at, "two copies have run"),
            None if counts.iter().any(|count| *count > at_source) => self.stopped_at = Some(at_source),
            None => {}
        }
    }

    /// Whether an incoming copy was seen to have run.
    pub fn saw_it_run(&self) -> bool {
        self.stopped_at.is_some()
    }
}

impl Copy {
    /// The guest of that process; none while it has no RAM yet, or is gone.
    fn of(pid: u32) -> Option<Self> {
        let mut files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let is_ram = |link: &std::path::Path| link.to_string_lossy().starts_with("/memfd:guest-ram");
        let ram = files.find(|file| read_link(file.path()).is_ok_and(|link| is_ram(&link)))?;
        let ram = File::options().read(true).write(true).open(ram.path()).ok()?;
        let size = ram.metadata().ok()?.len().try_into().ok()?;
        let range = (GuestAddress(0), size, Some(FileOffset::new(ram, 0)));
        Some(Self { pid, ram: GuestMemoryMmap::from_ranges_with_files([range]).ok()? })
    }

    /// Rounds of its first vCPU.
    fn rounds(&self) -> Option<u64> {
        Some(workload::read(&self.ram)?.vcpus.first()?.heartbeat)
    }
}
