use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use migrated_guest::{GuestError, SectionId};

use super::section::{decode, encode, from_raw, raw};
use super::{Features, Hardware, time};
use crate::error::KvmContext;

/// State that the vCPUs share: a section each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChipPart {
    /// One of the interrupt controllers, by KVM's number.
    Irqchip(u32),
    /// The timer chip.
    Pit,
    /// The serial port.
    Serial,
    /// The fixed hardware of power management. After the interrupt controllers, one of which it drives.
    AcpiPm,
    /// What the guest wrote to it.
    Console,
    /// kvmclock. Last, so that as little time as possible passes after it.
    Clock,
}

impl ChipPart {
    /// All parts that a machine has, in the order of saving and restoring.
    pub(super) fn all(features: &Features) -> Vec<Self> {
        let irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        let mut parts: Vec<Self> = irqchips.into_iter().map(Self::Irqchip).collect();
        if features.pit {
            parts.push(Self::Pit);
        }
        parts.extend([Self::Serial, Self::Console, Self::AcpiPm, Self::Clock]);
        parts
    }

    pub(super) fn id(self) -> SectionId {
        let (kind, instance) = match self {
            Self::Irqchip(chip) => ("irqchip", chip),
            Self::Pit => ("pit", 0),
            Self::Serial => ("serial", 0),
            Self::AcpiPm => ("acpi-pm", 0),
            Self::Console => ("console", 0),
            Self::Clock => ("clock", 0),
        };
        SectionId { kind: kind.into(), instance, version: 1 }
    }

    pub(super) fn save(self, hardware: &Hardware) -> Result<Vec<u8>, GuestError> {
        let vm = &hardware.vm;
        Ok(match self {
            Self::Irqchip(chip_id) => {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                vm.get_irqchip(&mut chip).guest("KVM_GET_IRQCHIP")?;
                raw(&chip)
            }
            Self::Pit => raw(&vm.get_pit2().guest("KVM_GET_PIT2")?),
            Self::Serial => encode(&hardware.serial.save()),
            Self::Console => encode(&hardware.serial.console().history()),
            Self::AcpiPm => encode(&hardware.power.state()),
            Self::Clock => encode(&time::Clock::save(vm)?),
        })
    }

    /// # Errors
    /// In words.
    pub(super) fn restore(self, hardware: &Hardware, data: &[u8]) -> Result<(), String> {
        let vm = &hardware.vm;
        match self {
            Self::Irqchip(chip_id) => {
                let chip: kvm_irqchip = from_raw(data)?;
                if chip.chip_id != chip_id {
                    return Err(format!("it holds the state of chip {}", chip.chip_id));
                }
                vm.set_irqchip(&chip).map_err(|error| format!("KVM_SET_IRQCHIP failed: {error}"))
            }
            Self::Pit => vm
                .set_pit2(&from_raw::<kvm_pit_state2>(data)?)
                .map_err(|error| format!("KVM_SET_PIT2 failed: {error}")),
            Self::Serial => hardware.serial.restore(decode(data)?),
            Self::AcpiPm => hardware.power.restore(decode(data)?),
            Self::Console => hardware.serial.console().go_on(&decode(data)?),
            Self::Clock => {
                decode::<time::Clock>(data)?.restore(vm)?;
                hardware.vcpus.iter().try_for_each(|vcpu| time::forgive_pause(&vcpu.lock()))
            }
        }
    }
}
