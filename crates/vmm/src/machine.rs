//! A VM: RAM, vCPUs and devices put together.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use migrated_cpuid::GuestCpu;
use migrated_guest::{
    AttachedTracker, DEFAULT_RING_ENTRIES, DirtyTracker, DirtyTracking, GuestError, GuestRam, SectionId,
    VmmWrites, WatchedRam,
};
use migrated_kernel::MemorySlots;
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::acpi::pm::{PowerButtonError, PowerManagement};
use crate::boot::{BootError, BootPlan};
use crate::error::KvmContext;
use crate::gate::{Gate, GuestEnd, RunState};
use crate::migrate::{ClaimError, IncomingVm, RunningVm};
use crate::ports::Ports;
use crate::serial::{InputRefused, SerialPort};
use crate::state::{self, Features, Hardware};
use crate::throttle::Throttler;
use crate::vcpu::{self, Kicker, Vcpu};
use crate::virtio::{BalloonStatus, DeviceMemory, Devices, FreePages};
use crate::workload::{self, WorkloadCounters};
use crate::{BalloonError, Console, HostKvm, VmConfig, VmmError, cpu, host, memory};

/// A VM. Cheap to clone: all clones are the same, and the last one dropped ends it.
#[derive(Clone)]
pub struct Vm {
    pub(crate) machine: Arc<Machine>,
}

/// What is there once for each VM.
pub(crate) struct Machine {
    name: String,
    pub(crate) hardware: Hardware,
    pub(crate) gate: Arc<Gate>,
    pub(crate) ram: GuestRam,
    pub(crate) tracker: Mutex<Box<dyn DirtyTracker>>,
    pub(crate) throttler: Throttler,
    /// Whether a migration has the VM.
    pub(crate) claimed: Mutex<bool>,
    /// The RAM, once it is armed for post-copy.
    pub(crate) watched: Arc<OnceLock<WatchedRam>>,
    vmm_writes: VmmWrites,
    console: Arc<Console>,
    cpu: GuestCpu,
    /// Threads that serve devices.
    workers: Vec<JoinHandle<()>>,
    /// After the vCPUs and the tracker, which use the memory.
    _slots: Arc<MemorySlots>,
}

/// What a loader must know of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootContext {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Frequency of the guest's TSC in kHz.
    pub tsc_khz: u32,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("name", &self.machine.name).field("state", &self.run_state()).finish()
    }
}

impl Vm {
    /// Makes a VM, lets `load` fill its RAM, which is all zero, and runs it.
    ///
    /// # Errors
    /// [`VmmError`] says what the host or the guest's image lacks.
    pub fn create(
        config: VmConfig,
        load: impl FnOnce(&GuestMemoryMmap<()>, BootContext) -> Result<BootPlan, BootError>,
    ) -> Result<Self, VmmError> {
        let machine = Machine::build(config)?;
        let vcpus = machine.hardware.vcpus.len() as u32;
        let plan = load(machine.ram.memory(), BootContext { vcpus, tsc_khz: machine.cpu.tsc_khz })?;
        for (index, vcpu) in (0..).zip(&machine.hardware.vcpus) {
            apply(&plan, index, &vcpu.lock())?;
        }
        machine.gate.start()?;
        Ok(Self { machine: Arc::new(machine) })
    }

    /// Makes an empty VM for a guest that comes from elsewhere. `config` should carry its CPU.
    ///
    /// # Errors
    /// [`VmmError`] says what the host lacks.
    pub fn incoming(config: VmConfig) -> Result<IncomingVm, VmmError> {
        Ok(IncomingVm::new(Self { machine: Arc::new(Machine::build(config)?) }))
    }

    /// Takes the VM for a migration to another host; for no two at once.
    ///
    /// # Errors
    /// [`ClaimError`] when a migration has it, or the guest has ended or is elsewhere.
    pub fn outgoing(&self) -> Result<RunningVm, ClaimError> {
        RunningVm::claim(self)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// What it is doing.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        self.machine.gate.run_state()
    }

    /// Stops the guest for its owner, until [`Vm::resume`]. During a migration the guest stays paused
    /// wherever it ends up, if its state has not been saved yet.
    ///
    /// # Errors
    /// [`GuestError::Gone`] when it has ended or is elsewhere, [`GuestError::Stuck`] when a vCPU can't be stopped.
    pub fn pause(&self) -> Result<(), GuestError> {
        self.machine.gate.owner_pause()
    }

    /// Ends the owner's pause. A guest that a migration holds goes on when that lets it.
    ///
    /// # Errors
    /// [`GuestError::Gone`] when it has ended or is elsewhere.
    pub fn resume(&self) -> Result<(), GuestError> {
        self.machine.gate.owner_resume()
    }

    /// How long all vCPUs together were kept from running, by an owner's pause or a migration.
    #[must_use]
    pub fn blocked(&self) -> std::time::Duration {
        self.machine.gate.blocked()
    }

    /// Whether it has a network card.
    #[must_use]
    pub fn has_network(&self) -> bool {
        self.machine.hardware.devices.as_ref().is_some_and(|devices| !devices.cards().is_empty())
    }

    /// The time from the guest's first KVM_RUN here to the first frame that it sent or got; `None` while there was none,
    /// as of a guest without a network.
    #[must_use]
    pub fn first_packet(&self) -> Option<std::time::Duration> {
        self.machine.hardware.devices.as_ref()?.cards().first_packet()
    }

    /// Calls `hook` once when the guest ends by itself, at once if it has: on the thread of a vCPU, so it
    /// must neither wait for the VM nor own it.
    pub fn on_end(&self, hook: impl FnOnce(&GuestEnd) + Send + 'static) {
        self.machine.gate.on_end(Box::new(hook));
    }

    /// What the guest wrote to its serial port.
    #[must_use]
    pub fn console(&self) -> &Arc<Console> {
        &self.machine.console
    }

    /// Types on the guest's serial port.
    ///
    /// # Errors
    /// [`InputRefused`]; nothing was taken then.
    pub fn write_input(&self, bytes: &[u8]) -> Result<(), InputRefused> {
        self.machine.hardware.serial.write_input(bytes)
    }

    /// Presses the guest's power button, as ACPI has one: what the guest makes of it is its own affair.
    ///
    /// # Errors
    /// [`PowerButtonError`] when the guest doesn't run, or takes no notice.
    pub fn press_power_button(&self) -> Result<(), PowerButtonError> {
        self.machine.hardware.power.press_power_button(|| self.run_state() == RunState::Running)
    }

    /// The guest's RAM.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.machine.ram
    }

    /// Writes guest RAM as a device does: a migration under way sends the pages again. While post-copy brings the
    /// guest's RAM this waits for the pages, as a device does too.
    ///
    /// # Errors
    /// When the range is not all RAM.
    pub fn write_guest(&self, address: GuestAddress, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        let written = self.machine.ram.memory().write_slice(bytes, address);
        // Even where only a part was RAM, that part was written.
        self.machine.vmm_writes.mark(address.0, bytes.len() as u64);
        written
    }

    /// The counters of the workload guest, as [`workload::read`] gives them. While post-copy brings the guest's
    /// RAM, and perhaps no link is there to bring it, this never waits: `None` as long as one of the pages is missing.
    #[must_use]
    pub fn workload(&self) -> Option<WorkloadCounters> {
        let Machine { ram, watched, .. } = &*self.machine;
        workload::read_if(ram.memory(), |address| {
            let page = ram.layout().page_at(address.0);
            !watched.get().zip(page).is_some_and(|(ram, (block, page))| ram.missing().contains(block, page))
        })
    }

    /// RAM in bytes that no balloon may take from a guest: below, a Linux with little to do runs out of memory, and
    /// then it ends programs.
    pub const BALLOON_LEAVES: u64 = 64 << 20;

    /// Asks the guest to give up so many bytes of its RAM in all, rounded down to pages. It takes its time, and
    /// [`balloon`](Self::balloon) says how far it is.
    ///
    /// # Errors
    /// [`BalloonError`]; then the guest is asked for as much as before.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), BalloonError> {
        let devices = self.machine.hardware.devices.as_ref();
        let balloon = devices.and_then(Devices::balloon).ok_or(BalloonError::None)?;
        let ram = self.machine.ram.layout().total_bytes();
        let most = ram.saturating_sub(Self::BALLOON_LEAVES);
        if bytes > most {
            return Err(BalloonError::TooLarge { bytes, ram, most });
        }
        balloon.set_target(bytes, || self.run_state() == RunState::Running)
    }

    /// What is known of the guest's balloon, if it has one.
    #[must_use]
    pub fn balloon(&self) -> Option<BalloonStatus> {
        Some(self.machine.hardware.devices.as_ref()?.balloon()?.status())
    }

    /// The CPU that the guest has, read back from KVM: what it was given, with what KVM can't hide.
    #[must_use]
    pub fn cpu(&self) -> &GuestCpu {
        &self.machine.cpu
    }

    /// The sections that this VM's state has, for a destination to compare with its own.
    #[must_use]
    pub fn section_ids(&self) -> Vec<SectionId> {
        state::section_ids(&self.machine.hardware)
    }
}

impl Machine {
    /// Everything in place, no instruction run. What KVM wants in a certain order is in that order:
    /// tracking, then chips, then vCPUs, then what needs those.
    fn build(config: VmConfig) -> Result<Self, VmmError> {
        let host = HostKvm::open()?;
        host.check_vcpus(config.vcpus)?;
        let ram = memory::allocate(config.memory_bytes, config.backing, config.prefault)?;
        let console = match config.console {
            Some(file) => Console::in_file(file),
            None => Console::new(),
        };
        let console = Arc::new(console.map_err(VmmError::Console)?);

        let vm = host.create_vm()?;
        let tracking = DirtyTracking::enable(config.tracking, &vm, DEFAULT_RING_ENTRIES)?;
        host::create_chips(&vm)?;
        let slots = Arc::new(MemorySlots::register(vm.clone(), ram.memory().clone())?);
        let (vcpus, cpu) = cpu::create_vcpus(&host, &vm, config.vcpus, config.cpu)?;
        let vcpus: Vec<Vcpu> = vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();

        let vmm_writes = VmmWrites::new(ram.layout());
        let AttachedTracker { tracker, ring_full } = {
            let guards: Vec<_> = vcpus.iter().map(|vcpu| vcpu.lock()).collect();
            tracking.attach(&slots, &ram, guards.iter().map(|guard| &**guard), vmm_writes.clone())?
        };
        let kickers = vcpus
            .iter()
            .map(|vcpu| Kicker::new(&vcpu.lock()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| VmmError::Kvm { operation: "mapping a vCPU's page", source })?;
        let features = Features::probe(&host, &vm, &vcpus[0], cpu.tsc_khz)?;
        let memory = DeviceMemory::new(ram.memory().clone(), vmm_writes.clone());
        let watched = Arc::<OnceLock<WatchedRam>>::default();
        let pages = FreePages::new(ram.clone(), config.backing, vmm_writes.clone(), watched.clone());
        let devices = Devices::new(&config.networks, &config.devices, &vm, memory, &pages)?;
        let workers = devices.as_ref().map(Devices::gate_workers).unwrap_or_default();
        let gate = Arc::new(Gate::new(kickers, workers));
        let throttler = Throttler::new(&vm, &vcpus, gate.clone())?;
        let serial = Arc::new(SerialPort::new(vm.clone(), console.clone()));
        let power = Arc::new(PowerManagement::new(vm.clone()));
        let mut machine = Self {
            name: config.name,
            hardware: Hardware { vm, vcpus, serial, power, devices, features },
            gate,
            ram,
            tracker: Mutex::new(tracker),
            throttler,
            claimed: Mutex::new(false),
            watched,
            vmm_writes,
            console,
            cpu,
            workers: Vec::new(),
            _slots: slots,
        };
        let pci = machine.hardware.devices.as_ref().map(|devices| devices.bus().clone());
        let ports = Ports::new(machine.hardware.serial.clone(), machine.hardware.power.clone(), pci.clone());
        let ports = Arc::new(ports);
        for (index, vcpu) in machine.hardware.vcpus.iter().enumerate() {
            let exits = vcpu::Exits { ports: ports.clone(), pci: pci.clone(), ring_full: ring_full.clone() };
            vcpu::spawn(&machine.name, index, vcpu.clone(), machine.gate.clone(), exits)?;
        }
        if let Some(devices) = &machine.hardware.devices {
            machine.workers = devices.spawn_workers(&machine.name, &machine.gate)?;
        }
        Ok(machine)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.close();
        // Who waits for a page in the middle of an instruction or a request leaves only when it comes.
        if let Some(Err(error)) = self.watched.get().map(WatchedRam::abandon) {
            tracing::error!("RAM can't be let go, and vCPUs may wait for it: {error}");
        }
        self.gate.join();
        if self.workers.drain(..).filter_map(|worker| worker.join().err()).count() > 0 {
            tracing::error!("a device's worker panicked");
        }
    }
}

fn apply(plan: &BootPlan, index: u32, vcpu: &VcpuFd) -> Result<(), VmmError> {
    if !plan.starts_running(index) {
        return Ok(());
    }
    let base = vcpu.get_sregs().vmm("KVM_GET_SREGS")?;
    vcpu.set_sregs(&plan.sregs(base)).vmm("KVM_SET_SREGS")?;
    vcpu.set_regs(&plan.regs(index)).vmm("KVM_SET_REGS")?;
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).vmm("KVM_SET_MP_STATE")
}
