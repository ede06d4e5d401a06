use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_CAP_BINARY_STATS_FD, KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK, KVMIO, kvm_stats_desc,
    kvm_stats_header,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::KvmError;

// Number of include/uapi/linux/kvm.h.
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Bytes of a descriptor before its name.
const DESCRIPTOR: usize = 16;
const _: () = {
    assert!(size_of::<kvm_stats_header>() == 24);
    assert!(offset_of!(kvm_stats_header, name_size) == 4);
    assert!(offset_of!(kvm_stats_header, num_desc) == 8);
    assert!(offset_of!(kvm_stats_header, desc_offset) == 16);
    assert!(offset_of!(kvm_stats_header, data_offset) == 20);
    assert!(size_of::<kvm_stats_desc>() == DESCRIPTOR);
    assert!(offset_of!(kvm_stats_desc, flags) == 0);
    assert!(offset_of!(kvm_stats_desc, size) == 6);
    assert!(offset_of!(kvm_stats_desc, offset) == 8);
};

/// Most descriptors, and longest name with its 0, that are believed; Linux 6.18 has about 50 of 48 bytes.
const MAX_DESCRIPTORS: u32 = 4096;
const MAX_NAME: u32 = 256;

/// Some counters out of KVM's statistics of a vCPU. Reading them neither stops the vCPU nor waits for it.
#[derive(Debug)]
pub struct VcpuStats<const N: usize> {
    file: File,
    /// Where each counter lies in the file.
    places: [u64; N],
}

impl<const N: usize> VcpuStats<N> {
    /// Opens the statistics of a vCPU of `vm` and looks cumulative counters up by the names that they have in
    /// `/sys/kernel/debug/kvm`, too. Opening waits as long as the vCPU runs.
    ///
    /// # Errors
    /// [`KvmError::Unsupported`] before Linux 5.14 and where a counter is missing, [`KvmError::Call`] when KVM
    /// refuses or what it says makes no sense.
    pub fn open(vm: &VmFd, vcpu: &VcpuFd, names: [&str; N]) -> Result<Self, KvmError> {
        let unsupported = |advice| KvmError::Unsupported { capability: "KVM_CAP_BINARY_STATS_FD", advice };
        if vm.check_extension_raw(KVM_CAP_BINARY_STATS_FD.into()) <= 0 {
            return Err(unsupported("a vCPU's counters can be read from Linux 5.14 on"));
        }
        // SAFETY: the call takes no argument; all it does is to make a descriptor.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            let meanings = [(libc::EMFILE, "too many files are open; raise the limit (ulimit -n)")];
            return Err(KvmError::call("KVM_GET_STATS_FD", io::Error::last_os_error(), &meanings));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = find(&file, names)
            .map_err(|source| KvmError::call("reading the descriptors of a vCPU's counters", source, &[]))?;
        if places.contains(&None) {
            return Err(unsupported("this kernel's KVM does not count what was asked for"));
        }
        Ok(Self { file, places: places.map(Option::unwrap_or_default) })
    }

    /// The counters as they are now, in the order in which they were named.
    ///
    /// # Errors
    /// The kernel's answer, which is none once the vCPU exists.
    pub fn read(&self) -> io::Result<[u64; N]> {
        let mut values = [0; N];
        for (value, place) in values.iter_mut().zip(self.places) {
            *value = u64::from_ne_bytes(read_at(&self.file, place)?);
        }
        Ok(values)
    }
}

/// Where the cumulative counters of these names lie; `file` is laid out as KVM_GET_STATS_FD is documented.
fn find<const N: usize>(file: &impl FileExt, names: [&str; N]) -> io::Result<[Option<u64>; N]> {
    let header: [u8; 24] = read_at(file, 0)?;
    let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (name_size, count, descriptors, data) = (field(4), field(8), field(16), field(20));
    if name_size > MAX_NAME || count > MAX_DESCRIPTORS {
        let text = format!("{count} counters with names of {name_size} bytes are more than there can be");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let size = DESCRIPTOR + name_size as usize;
    let mut table = vec![0; size * count as usize];
    file.read_exact_at(&mut table, descriptors.into())?;
    let mut places = [None; N];
    for descriptor in table.chunks_exact(size) {
        let (head, name) = descriptor.split_at(DESCRIPTOR);
        let flags = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        let values = u16::from_ne_bytes([head[6], head[7]]);
        let offset = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        if flags & KVM_STATS_TYPE_MASK != KVM_STATS_TYPE_CUMULATIVE || values != 1 {
            continue;
        }
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if let Some(wanted) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            places[wanted] = Some(u64::from(data) + u64::from(offset));
        }
    }
    Ok(places)
}

fn read_at<const N: usize>(file: &impl FileExt, place: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, place)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as KVM makes it: header, id, descriptors, data.
    struct Stats(Vec<u8>);

    impl Stats {
        fn new(name_size: u32, counters: &[(u32, u16, &str, u64)]) -> Self {
            let descriptors = 24 + name_size;
            let data = descriptors + counters.len() as u32 * (16 + name_size);
            let header = [0, name_size, counters.len() as u32, 24, descriptors, data];
            let mut file: Vec<u8> = header.iter().flat_map(|field: &u32| field.to_ne_bytes()).collect();
            file.resize(descriptors as usize, b'x');
            for (index, (flags, size, name, _)) in (0u32..).zip(counters) {
                file.extend(flags.to_ne_bytes());
                file.extend(0i16.to_ne_bytes());
                file.extend(size.to_ne_bytes());
                file.extend((index * 8).to_ne_bytes());
                file.extend(0u32.to_ne_bytes());
                let end = file.len() + name_size as usize;
                file.extend(name.as_bytes());
                file.resize(end, 0);
            }
            file.extend(counters.iter().flat_map(|(.., value)| value.to_ne_bytes()));
            Self(file)
        }
    }

    impl FileExt for Stats {
        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
            let rest = self.0.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(into.len());
            into[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    #[test]
    fn counters_are_found_by_their_whole_name_and_kind() {
        let cumulative = KVM_STATS_TYPE_CUMULATIVE;
        let counters = [
            (cumulative, 1, "pf_fixed_late", 1),
            (kvm_bindings::KVM_STATS_TYPE_INSTANT, 1, "pf_taken", 2),
            (cumulative, 4, "pf_fast", 3),
            (cumulative, 1, "pf_fixed", 4),
            (cumulative, 1, "exits", 5),
        ];
        let file = Stats::new(24, &counters);
        let places = find(&file, ["exits", "pf_taken", "pf_fast", "pf_fixed"]).unwrap();
        let value = |place| u64::from_ne_bytes(read_at(&file, place).unwrap());
        assert_eq!(places.map(|place| place.map(value)), [Some(5), None, None, Some(4)]);
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert!(find(&Stats::new(MAX_NAME + 1, &[]), ["exits"]).is_err());
        let mut cut = Stats::new(16, &[(KVM_STATS_TYPE_CUMULATIVE, 1, "exits", 5)]);
        cut.0.truncate(50);
        assert!(find(&cut, ["exits"]).is_err());
        assert!(find(&Stats(Vec::new()), ["exits"]).is_err());
    }
}
