//! What a VM is made of. Kept with the VM, shown by the API, shipped to the destination.

use migrated_cpuid::BaselineSpec;
use serde::{Deserialize, Serialize};

use crate::NetworkSpec;

/// A VM's specification, complete enough to make an equal, empty VM on another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmSpec {
    /// Name, unique on a host: letters, digits, `-`, `_`, `.`; at most 64.
    pub name: String,
    /// Guest RAM in bytes: a multiple of 2 MiB, at least 16 MiB.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// What boots.
    pub boot: BootSource,
    /// What backs the RAM on the host.
    #[serde(default)]
    pub backing: MemoryBacking,
    /// Touch all RAM at creation, so that no first-touch cost falls into the guest's time.
    #[serde(default)]
    pub prefault: bool,
    /// The CPU that the guest gets: a baseline's name with parts, `host`, or an object that changes one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(schema_with = cpu_baseline_schema))]
    pub cpu_baseline: BaselineSpec,
    /// Network interfaces, at most 8, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<NetworkSpec>,
}

/// A name, or an object of the keys of [`CustomBaseline`](migrated_cpuid::CustomBaseline).
#[cfg(feature = "openapi")]
fn cpu_baseline_schema() -> utoipa::openapi::Schema {
    use utoipa::openapi::schema::{Array, Object, OneOf, Type};
    let text = || Object::with_type(Type::String);
    let custom = Object::builder()
        .property("name", text())
        .property("base", text())
        .property("add", Array::new(text()))
        .property("remove", Array::new(text()))
        .property("physical_address_bits", Object::with_type(Type::Integer))
        .required("base");
    OneOf::builder().item(text()).item(custom).build().into()
}

const fn one() -> u32 {
    1
}

/// What a VM boots. At a migration's destination nothing boots: memory arrives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum BootSource {
    /// A kernel from the host's file system: a PVH ELF image (vmlinux) or a bzImage (vmlinuz).
    Kernel {
        /// Path of the kernel.
        kernel: String,
        /// Path of an initramfs.
        #[serde(default)]
        initramfs: Option<String>,
        /// Kernel command line.
        #[serde(default)]
        cmdline: String,
    },
    /// The built-in workload guest, which writes its memory and checks it.
    Workload {
        /// Its command line: `key=value` words, see `migrated vm create --help`.
        #[serde(default)]
        cmdline: String,
    },
}

/// What backs guest RAM on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MemoryBacking {
    /// 4 KiB pages of a memfd.
    #[default]
    Memfd,
    /// A memfd with transparent huge pages asked for.
    Thp,
    /// 2 MiB pages of hugetlbfs, which the host must have reserved.
    Hugetlb2m,
}
