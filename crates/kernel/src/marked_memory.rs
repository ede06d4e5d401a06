use std::fmt;
use std::iter::FusedIterator;

use vm_memory::bitmap::{BS, Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryResult, Permissions,
    VolatileSlice,
};

/// Where writes to guest memory are recorded.
pub trait WriteLog: fmt::Debug + Send + Sync + 'static {
    /// `len` bytes from guest-physical `address` on were just written.
    fn wrote(&self, address: u64, len: u64);
}

/// Guest memory in which every write through vm-memory's interfaces leaves a mark in a [`WriteLog`].
///
/// KVM logs what vCPUs write and knows nothing of the VMM's own writes to the same pages. Devices that hold
/// nothing but this can't forget to mark one: the mark is set by vm-memory after each write, of a buffer's
/// bytes as well as of a ring's index.
///
/// It is the guest's own mapping, not a second one: an access to a page that post-copy has not brought yet waits
/// for it as a vCPU's does.
#[derive(Debug)]
pub struct MarkedMemory<L> {
    memory: GuestMemoryMmap<()>,
    log: Marks<L>,
}

/// Makes a [`WriteLog`] of what vm-memory takes for a bitmap, whose offsets are guest-physical addresses here.
#[derive(Debug)]
pub struct Marks<L>(L);

impl<L: WriteLog> MarkedMemory<L> {
    /// `memory`, the writes to which are told to `log`.
    pub const fn new(memory: GuestMemoryMmap<()>, log: L) -> Self {
        Self { memory, log: Marks(log) }
    }
}

impl<'a, L: WriteLog> WithBitmapSlice<'a> for Marks<L> {
    type S = RefSlice<'a, Self>;
}

impl<L: WriteLog> Bitmap for Marks<L> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.0.wrote(offset as u64, len as u64);
    }

    /// A log is read by harvesting it alone.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl<L: WriteLog> GuestMemory for MarkedMemory<L> {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = Marks<L>;

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        GuestMemoryBackend::check_range(&self.memory, addr, count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Marks<L>>>> {
        let unmarked = GuestMemoryBackend::get_slices(&self.memory, addr, count);
        Ok(MarkedSlices { unmarked, log: &self.log, address: addr.0 })
    }
}

/// The slices of a range, each with its place in the log.
struct MarkedSlices<'a, L> {
    unmarked: GuestMemoryBackendSliceIterator<'a, GuestMemoryMmap<()>>,
    log: &'a Marks<L>,
    /// Guest-physical address of the next slice.
    address: u64,
}

impl<'a, L: WriteLog> Iterator for MarkedSlices<'a, L> {
    type Item = GuestMemoryResult<VolatileSlice<'a, RefSlice<'a, Marks<L>>>>;

    fn next(&mut self) -> Option<Self::Item> {
        let slice = match self.unmarked.next()? {
            Ok(slice) => slice,
            Err(error) => return Some(Err(error)),
        };
        let marks = self.log.slice_at(self.address as usize);
        self.address += slice.len() as u64;
        // SAFETY: the bytes are those of `slice`, which promises them for `'a`; everybody else who has them got
        // them from vm-memory as well, or is the guest.
        Some(Ok(unsafe {
            VolatileSlice::with_bitmap(slice.ptr_guard_mut().as_ptr(), slice.len(), marks, None)
        }))
    }
}

impl<L: WriteLog> FusedIterator for MarkedSlices<'_, L> {}

impl<'a, L: WriteLog> GuestMemorySliceIterator<'a, RefSlice<'a, Marks<L>>> for MarkedSlices<'a, L> {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::sync::{Arc, Mutex};

    use vm_memory::Bytes;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Writes(Arc<Mutex<Vec<(u64, u64)>>>);

    impl WriteLog for Writes {
        fn wrote(&self, address: u64, len: u64) {
            self.0.lock().unwrap().push((address, len));
        }
    }

    #[test]
    fn every_kind_of_write_is_marked_where_it_went_and_no_read_is() {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        let plain = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let writes = Writes::default();
        let memory = MarkedMemory::new(plain.clone(), writes.clone());
        let taken = || std::mem::take(&mut *writes.0.lock().unwrap());

        memory.write_slice(&[7; 16], GuestAddress(0x1ff8)).unwrap();
        assert_eq!(taken(), [(0x1ff8, 8), (0x2000, 8)]);
        memory.write_obj(1u32, GuestAddress(0x1004)).unwrap();
        assert_eq!(taken(), [(0x1004, 4)]);
        memory.store(2u16, GuestAddress(0x2ffe), Ordering::Release).unwrap();
        assert_eq!(taken(), [(0x2ffe, 2)]);
        let mut slices = memory.get_slices(GuestAddress(0x1100), 0x40, Permissions::Write).unwrap();
        slices.next().unwrap().unwrap().subslice(0x10, 8).unwrap().copy_from(&[9u8; 8]);
        assert_eq!(taken(), [(0x1110, 8)]);

        let mut read = [0; 16];
        memory.read_slice(&mut read, GuestAddress(0x1ff8)).unwrap();
        assert_eq!(memory.load::<u16>(GuestAddress(0x2ffe), Ordering::Acquire).unwrap(), 2);
        assert_eq!((taken(), read), (vec![], [7; 16]));
        assert_eq!(plain.read_obj::<u32>(GuestAddress(0x1004)).unwrap(), 1, "it is the same memory");

        assert!(memory.write_slice(&[0; 16], GuestAddress(0x3000)).is_err());
        assert_eq!(memory.write(&[1; 16], GuestAddress(0x2ff8)).unwrap(), 8, "what is RAM of it");
        assert_eq!(taken(), [(0x2ff8, 8)]);
    }
}
