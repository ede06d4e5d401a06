use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_ioctls::VmFd;

use super::net::{Cards, Net};
use super::pci::VirtioPci;
use super::rng::Rng;
use super::worker::Worker;
use super::{AgentConsole, Balloon, BalloonControl, DeviceMemory, FreePages, VirtioDevice};
use crate::gate::{Gate, GateWorker};
use crate::pci::{PciBus, PciFunction};
use crate::{DeviceConfig, NetworkConfig, VmmError};

/// Makes the device that a VM was configured with.
///
/// # Errors
/// [`VmmError`] says what the host lacks.
fn make(
    config: &DeviceConfig,
    pages: &FreePages,
    balloon: &mut Option<Arc<BalloonControl>>,
) -> Result<Box<dyn VirtioDevice>, VmmError> {
    Ok(match config {
        DeviceConfig::Rng => Box::new(Rng),
        DeviceConfig::Balloon => {
            let control = Arc::new(BalloonControl::new().map_err(VmmError::Descriptors)?);
            *balloon = Some(control.clone());
            Box::new(Balloon::new(pages.clone(), control))
        }
        DeviceConfig::Agent { socket } => {
            let failed = |source| VmmError::AgentSocket { path: socket.clone(), source };
            Box::new(AgentConsole::new(socket).map_err(failed)?)
        }
    })
}

/// A VM's devices on their bus.
pub(crate) struct Devices {
    bus: Arc<PciBus>,
    /// From slot 1 on.
    pub(super) functions: Vec<Arc<VirtioPci>>,
    cards: Cards,
    balloon: Option<Arc<BalloonControl>>,
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.functions.iter().map(|function| function.kind().name)).finish()
    }
}

impl Devices {
    /// Makes them, network cards first, so that these keep their places whatever else a guest has; `None` for a VM
    /// without devices, which has no bus either.
    ///
    /// # Errors
    /// [`VmmError`] says what the host lacks.
    pub(crate) fn new(
        networks: &[NetworkConfig],
        others: &[DeviceConfig],
        vm: &Arc<VmFd>,
        memory: DeviceMemory,
        pages: &FreePages,
    ) -> Result<Option<Self>, VmmError> {
        let wanted = networks.len() + others.len();
        if wanted > PciBus::DEVICES {
            return Err(VmmError::Devices { wanted, max: PciBus::DEVICES });
        }
        let (mut cards, mut balloon) = (Cards::default(), None);
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for (slot, network) in (1..).zip(networks) {
            let net = Net::open(network)?;
            cards.add(slot, net.handle());
            devices.push(Box::new(net));
        }
        for other in others {
            devices.push(make(other, pages, &mut balloon)?);
        }
        if devices.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { cards, balloon, ..Self::on_bus(devices, vm, memory)? }))
    }

    /// Puts devices on a bus, in the slots from 1 on.
    pub(super) fn on_bus(
        devices: Vec<Box<dyn VirtioDevice>>,
        vm: &Arc<VmFd>,
        memory: DeviceMemory,
    ) -> Result<Self, VmmError> {
        let memory = Arc::new(memory);
        let function =
            |(slot, device)| VirtioPci::new(device, slot, vm.clone(), memory.clone()).map(Arc::new);
        let functions = (1..).zip(devices).map(function).collect::<Result<Vec<_>, _>>();
        let functions = functions.map_err(VmmError::Descriptors)?;
        let bus = PciBus::new(functions.iter().map(|function| function.clone() as Arc<dyn PciFunction>));
        Ok(Self { bus: Arc::new(bus), functions, cards: Cards::default(), balloon: None })
    }

    pub(crate) fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }

    /// Its network cards.
    pub(crate) fn cards(&self) -> &Cards {
        &self.cards
    }

    /// The host's hand on the balloon, if there is one.
    pub(crate) fn balloon(&self) -> Option<&BalloonControl> {
        self.balloon.as_deref()
    }

    /// The devices, each with its slot.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (u32, &VirtioPci)> {
        (1..).zip(self.functions.iter().map(|function| &**function))
    }

    /// The workers as the gate must know them.
    pub(crate) fn gate_workers(&self) -> Vec<GateWorker> {
        let worker = |(slot, function): (u32, &VirtioPci)| {
            GateWorker::new(format!("{}{slot}", function.kind().name), function.shared().wake.clone())
        };
        self.functions().map(worker).collect()
    }

    /// Starts the workers, which wait at the gate first. They end when it closes.
    ///
    /// # Errors
    /// [`VmmError::Thread`].
    pub(crate) fn spawn_workers(&self, vm: &str, gate: &Arc<Gate>) -> Result<Vec<JoinHandle<()>>, VmmError> {
        let spawn = |(number, (slot, function)): (usize, (u32, &VirtioPci))| {
            // The kernel keeps 15 bytes of a thread's name.
            let name: String = format!("{}{slot}:{vm}", function.kind().name).chars().take(15).collect();
            let (worker, gate) = (Worker::new(function.shared().clone()), gate.clone());
            thread::Builder::new()
                .name(name)
                .spawn(move || worker.run(&gate, number))
                .map_err(VmmError::Thread)
        };
        self.functions().enumerate().map(spawn).collect()
    }
}
